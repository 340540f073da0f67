"""The files of docs/runner.md: who is let onto a GPU machine, and what Kubernetes' schemas say of the fleet."""

from __future__ import annotations

import ast
import copy
import json
import os
import shutil
import signal
import socketserver
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from benchmarks.service import gpus
from tests.workflows.api import REPOSITORY, Api

ROOT = Path(__file__).parent.parent
RUNNER = ROOT / "docs" / "runner"
KUBERNETES = "1.33"
PULL_REQUEST = {"GITHUB_EVENT_NAME": "pull_request", "GITHUB_REF": "refs/pull/7/merge"}


@pytest.fixture
def admit(tmp_path: Path):
    """Asks the hook about a job: whether the worker went on, and what was printed. The worker here is a shell."""
    with Api() as api:

        def ask(approvals: Any = None, hook: Path = RUNNER / "admit.sh", **environment: str) -> tuple[bool, str]:
            if approvals is not None:
                api.answers["actions/runs/5/approvals"] = approvals
            given = {"GITHUB_API_URL": api.url, "GITHUB_REPOSITORY": REPOSITORY, "GITHUB_RUN_ID": "5", **environment}
            steps = f'"{hook}"; echo "a step that always runs"'
            done = subprocess.run(["/bin/bash", "-c", steps], env=given, capture_output=True, text=True, check=False)
            went_on = "a step that always runs\n" in done.stdout
            assert done.returncode == (0 if went_on else -signal.SIGKILL)
            return went_on, done.stdout

        ask.api = api
        yield ask


def approval(state: str = "approved", environment: str = "gpu") -> dict[str, Any]:
    return {"state": state, "environments": [{"name": environment}], "user": {"login": "maintainer"}}


def test_an_approved_pull_request_may_run(admit) -> None:
    assert admit([approval()], **PULL_REQUEST) == (True, "This job may run here.\na step that always runs\n")


@pytest.mark.parametrize(
    "approvals", [[], [approval("rejected")], [approval(environment="github-pages")], "nonsense", [{}]]
)
def test_a_pull_request_without_an_approval_may_not(admit, approvals: Any) -> None:
    went_on, said = admit(approvals, **PULL_REQUEST)
    assert not went_on
    assert said.startswith("This job may not run here: ")


def test_github_that_does_not_answer_is_a_refusal(admit) -> None:
    went_on, said = admit(None, **PULL_REQUEST)
    assert not went_on
    assert "GitHub could not be asked about its approval: " in said


@pytest.mark.parametrize("event", ["push", "schedule", "workflow_dispatch"])
def test_main_may_run_without_an_approval_and_no_other_branch(admit, event: str) -> None:
    assert admit(GITHUB_EVENT_NAME=event, GITHUB_REF="refs/heads/main")[0]
    assert not admit(GITHUB_EVENT_NAME=event, GITHUB_REF="refs/heads/mine")[0]
    assert admit.api.asked == []


@pytest.mark.parametrize("event", ["pull_request_target", "workflow_run", "issue_comment", ""])
def test_no_other_event_may(admit, event: str) -> None:
    assert not admit([approval()], GITHUB_EVENT_NAME=event, GITHUB_REF="refs/heads/main")[0]


def test_the_environment_of_a_job_does_not_reach_the_answer(admit, tmp_path: Path) -> None:
    """A module of that name would be imported in place of Python's own."""
    (tmp_path / "json.py").write_text("raise SystemExit(0)\n")
    assert not admit([], PYTHONPATH=str(tmp_path), **PULL_REQUEST)[0]


def test_a_token_that_it_may_not_read_is_none(admit) -> None:
    """As where the folder is root's, and the repository public."""
    code = textwrap.dedent(f"""
        import os, runpy, pathlib
        def closed(self): raise PermissionError(13, "closed")
        pathlib.Path.read_text = closed
        os.environ.update({PULL_REQUEST!r}, GITHUB_API_URL={admit.api.url!r}, GITHUB_REPOSITORY={REPOSITORY!r},
                          GITHUB_RUN_ID="5")
        runpy.run_path({str(RUNNER / "admit.py")!r}, run_name="__main__")
    """)
    admit.api.answers["actions/runs/5/approvals"] = [approval()]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "This job may run here.\n"), done.stderr


def served(answer: bytes):
    """A server that gives everybody these bytes, and hangs up."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(answer)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n[]",
        b"nonsense\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 9999,
    ],
    ids=["cut off", "no HTTP", "nothing", "deep"],
)
def test_an_answer_of_any_kind_but_an_approval_is_a_refusal(admit, answer: bytes) -> None:
    """Also one that the hook fails on: it is asked by a door, which stays shut then."""
    with served(answer) as server:
        went_on, _ = admit(**{**PULL_REQUEST, "GITHUB_API_URL": f"http://127.0.0.1:{server.server_address[1]}"})
        server.shutdown()
    assert not went_on


def test_a_hook_that_is_told_to_end_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "admit.py").write_text("import os, signal\nos.kill(os.getppid(), signal.SIGTERM)\n")
    shutil.copy(RUNNER / "admit.sh", tmp_path)
    steps = f'"{tmp_path / "admit.sh"}"; echo "a step that always runs"'
    done = subprocess.run(["/bin/bash", "-c", steps], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


@pytest.mark.parametrize("ask", [signal.SIGINT, signal.SIGTERM])
def test_a_hook_that_is_told_to_end_while_it_asks_github_is_a_refusal_at_once(tmp_path: Path, ask: int) -> None:
    """A job that is cancelled: GitHub's runner interrupts the hook, asks it to end, and kills it ten seconds later."""
    asking = tmp_path / "asking"
    code = f"import os, pathlib, time\npathlib.Path({str(asking)!r}).write_text(str(os.getppid()))\ntime.sleep(5)\n"
    (tmp_path / "admit.py").write_text(code)
    shutil.copy(RUNNER / "admit.sh", tmp_path)
    steps = f'"{tmp_path / "admit.sh"}"; echo "a step that always runs"'
    with subprocess.Popen(["/bin/bash", "-c", steps], stdout=subprocess.PIPE, text=True) as worker:
        while not (asking.exists() and asking.read_text()):
            time.sleep(0.01)
        began = time.monotonic()
        os.kill(int(asking.read_text()), ask)
        assert worker.wait(timeout=4) == -signal.SIGKILL
        assert time.monotonic() - began < 4
        assert worker.stdout is not None
        assert worker.stdout.read() == ""


def test_a_hook_without_its_program_is_a_refusal(admit, tmp_path: Path) -> None:
    shutil.copy(RUNNER / "admit.sh", tmp_path)
    assert not admit([approval()], hook=tmp_path / "admit.sh", **PULL_REQUEST)[0]


def test_the_hook_needs_nothing_but_python() -> None:
    names = {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse((RUNNER / "admit.py").read_text(), feature_version=(3, 8)))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert names <= sys.stdlib_module_names


# Kubernetes


def values() -> dict[str, Any]:
    found = yaml.safe_load((RUNNER / "values.yaml").read_text())
    assert isinstance(found, dict)
    return found


def pod_of(given: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": "runner", **given["template"].get("metadata", {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": given["template"]["spec"]}


def test_the_runners_pod_is_one_to_kubernetes() -> None:
    kubernetes_validate.validate(pod_of(values()), KUBERNETES, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    pod = copy.deepcopy(pod_of(values()))
    pod["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_what_the_cluster_needs_is_known_to_kubernetes() -> None:
    found = list(yaml.safe_load_all((RUNNER / "cluster.yaml").read_text()))
    assert [one["kind"] for one in found] == ["Namespace", "NetworkPolicy", "DaemonSet"]
    for one in found:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_values_are_of_the_chart() -> None:
    """Helm takes no notice of a key that the chart does not have."""
    known = {
        "githubConfigUrl", "githubConfigSecret", "scaleSetLabels", "proxy", "maxRunners", "minRunners", "runnerGroup",
        "runnerScaleSetName", "githubServerTLS", "keyVault", "containerMode", "listenerTemplate", "listenerMetrics",
        "template", "controllerServiceAccount", "namespaceOverride", "annotations", "labels", "resourceMeta",
    }  # fmt: skip
    assert set(values()) <= known


def test_the_fleet_is_found_by_the_label_of_the_list() -> None:
    runners = {gpu.runner for gpu in gpus.read((ROOT / gpus.FILE).read_text())}
    *fixed, label = values()["scaleSetLabels"]
    assert fixed == ["self-hosted", "linux"]
    assert label in runners


def test_a_runner_is_not_root_has_the_hook_and_no_token_of_the_cluster() -> None:
    spec = values()["template"]["spec"]
    (runner,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert runner["securityContext"]["runAsNonRoot"] is True
    assert runner["securityContext"]["allowPrivilegeEscalation"] is False
    environment = {one["name"]: one["value"] for one in runner["env"]}
    assert environment["GPUS"] == "--gpus all"
    hook = environment["ACTIONS_RUNNER_HOOK_JOB_STARTED"]
    (mount,) = (one for one in runner["volumeMounts"] if one["name"] == "admit")
    assert Path(hook).parent == Path(mount["mountPath"])
    assert mount["readOnly"] is True
    privileged = [one["name"] for one in spec["initContainers"] if one.get("securityContext", {}).get("privileged")]
    assert privileged == ["docker"]
    gpu = [one["name"] for one in spec["initContainers"] if "nvidia.com/gpu" in json.dumps(one.get("resources", {}))]
    assert gpu == ["docker"]


def test_the_policy_holds_the_runners_and_keeps_them_from_what_is_inside() -> None:
    labels = values()["template"]["metadata"]["labels"]
    (policy,) = (
        one for one in yaml.safe_load_all((RUNNER / "cluster.yaml").read_text()) if one["kind"] == "NetworkPolicy"
    )
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert "ingress" not in policy["spec"]
    assert {one["port"] for one in policy["spec"]["egress"][1]["ports"]} == {443, 80}, "80: apt's, to build the image"
    inside = policy["spec"]["egress"][1]["to"][0]["ipBlock"]["except"]
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(inside)


# The units of a single host


def unit(name: str) -> str:
    return (RUNNER / name).read_text()


def test_the_hosts_runner_starts_behind_locked_clocks_with_the_hook() -> None:
    runner = unit("gpu-runner.service")
    assert "Requires=gpu-clocks.service" in runner
    assert "Before=gpu-runner.service" in unit("gpu-clocks.service")
    assert "ACTIONS_RUNNER_HOOK_JOB_STARTED=/usr/local/lib/gpu-runner/admit.sh" in runner
    assert "--jitconfig" in runner
    assert "RuntimeMaxSec" not in runner, "the time that a runner waits would count, and end a job"
    assert "\nUser=gpu-runner\n" in runner


def test_scripts_can_be_called() -> None:
    for name in ("admit.sh", "register"):
        assert os.access(RUNNER / name, os.X_OK), name
