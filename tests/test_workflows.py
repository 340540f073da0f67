"""What must hold for the workflows and what is around them, read from the YAML: what act does not look at above all."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import results, session
from benchmarks.service import artefacts, gpus, judge, overrides, verdict
from tests.workflows.forge import git

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yml"))}
JOBS = {(name, job): found for name, workflow in WORKFLOWS.items() for job, found in workflow["jobs"].items()}
STEPS = [(*key, step) for key, job in JOBS.items() for step in job["steps"]]
GATE = WORKFLOWS["gpu-perf.yml"]["jobs"]
HISTORY = WORKFLOWS["gpu-history.yml"]["jobs"]
READ = {"contents": "read"}

each_workflow = pytest.mark.parametrize("name", WORKFLOWS)
each_job = pytest.mark.parametrize(("name", "job_name"), JOBS)


def uses_of(action: str) -> list[tuple[str, str, dict[str, Any]]]:
    return [(name, job, step) for name, job, step in STEPS if step.get("uses", "").startswith(f"{action}@")]


def runs_of(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_triggers() -> None:
    """None gives outside code rights or secrets; what is not of a pull request is of main."""
    assert {name: workflow[True] for name, workflow in WORKFLOWS.items()} == {  # YAML reads the key `on` as true
        "ci.yml": {"push": {"branches": ["main"]}, "pull_request": None},
        "gpu-perf.yml": {"pull_request": {"branches": ["main"]}},
        "gpu-history.yml": {
            "push": {"branches": ["main"]}, "schedule": [{"cron": "17 3 * * *"}], "workflow_dispatch": None,
        },
        "perf-pending.yml": {
            "pull_request_target": {"types": ["opened", "reopened", "synchronize", "edited"]},
        },
        "perf-override.yml": {"workflow_dispatch": WORKFLOWS["perf-override.yml"][True]["workflow_dispatch"]},
        "report.yml": {"workflow_run": {"workflows": ["GPU performance"], "types": ["requested", "completed"]}},
    }  # fmt: skip
    assert WORKFLOWS["gpu-perf.yml"]["name"] == "GPU performance"


@each_workflow
def test_nothing_is_permitted_but_by_a_job(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {}


def test_what_each_job_may_do() -> None:
    more = {
        ("gpu-perf.yml", "approval"): {},
        ("gpu-perf.yml", "perf-verdict"): {**READ, "actions": "read"},
        ("gpu-history.yml", "append"): {"contents": "write"},
        ("gpu-history.yml", "publish"): {**READ, "issues": "write"},
        ("gpu-history.yml", "pages"): {"id-token": "write", "pages": "write"},
        ("perf-override.yml", "override"): {**READ, "statuses": "write"},
        ("perf-pending.yml", "pending"): {"statuses": "write"},
        ("report.yml", "whose"): {**READ, "issues": "read", "pull-requests": "read", "statuses": "write"},
        ("report.yml", "report"): {**READ, "actions": "read", "pull-requests": "write", "statuses": "write"},
    }
    for key, job in JOBS.items():
        assert job["permissions"] == more.get(key, READ), key


@each_job
def test_a_job_ends_in_time(name: str, job_name: str) -> None:
    assert 0 < JOBS[name, job_name]["timeout-minutes"] <= 90


@each_workflow
def test_actions_are_pinned_by_commit_with_their_version(name: str) -> None:
    uses = re.findall(r"- uses: (.*)", (FOLDER / name).read_text())
    assert bool(uses) is (name != "perf-pending.yml"), "one that runs for strangers with rights takes nothing in"
    for one in uses:
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one)


def test_an_action_has_one_version() -> None:
    pins = {step["uses"] for *_, step in STEPS if "uses" in step}
    assert len(pins) == len({pin.split("@")[0] for pin in pins})


def test_what_runs_on_github_runs_in_a_named_image() -> None:
    for key, job in JOBS.items():
        assert job["runs-on"] == "ubuntu-24.04" or key in {("gpu-perf.yml", "gpu"), ("gpu-history.yml", "measure")}
        assert "container" not in job, key
        assert "services" not in job, key


def test_a_checkout_leaves_no_token_but_where_results_are_pushed_or_fetched() -> None:
    for name, job, step in uses_of("actions/checkout"):
        kept = (name, job) in {("gpu-history.yml", "append"), ("gpu-history.yml", "publish")}
        assert step["with"]["persist-credentials"] is kept, (name, job)


def test_nothing_is_cached() -> None:
    """What a stranger's job put into a cache could be taken out by main's."""
    for name, job, step in STEPS:
        assert "actions/cache" not in step.get("uses", ""), (name, job)
        assert not {"cache", "cache-dependency-path"} & set(step.get("with", {})), (name, job)


def test_no_secret_is_used() -> None:
    for path in FOLDER.glob("*.yml"):
        assert "secrets." not in path.read_text()


def test_no_failure_is_forgiven() -> None:
    conditions = {
        # An output that is lost leaves the pull request without an approval, and the verdict red.
        ("gpu-perf.yml", "approval"): " && ".join(
            f"needs.plan.outputs.{name} != ''" for name in ("base", "changed", "gpus")
        ),
        ("gpu-perf.yml", "perf-verdict"): "always()",
        ("gpu-history.yml", "plan"): "github.ref == 'refs/heads/main'",
        ("gpu-history.yml", "append"): "always() && needs.measure.result != 'skipped'",
        ("gpu-history.yml", "publish"): "always() && needs.append.result != 'skipped'",
        ("gpu-history.yml", "pages"): "always() && needs.publish.result == 'success'",
        ("perf-pending.yml", "pending"): "github.event.action != 'edited' || github.event.changes.base",
        ("report.yml", "whose"): "github.event.workflow_run.event == 'pull_request'",
        ("report.yml", "report"): "github.event.action == 'completed' && needs.whose.outputs.number != ''",
    }
    for key, job in JOBS.items():
        assert job.get("if") == conditions.get(key), key
        assert not job.get("strategy", {}).get("fail-fast", False), key
    for name, job, step in STEPS:
        assert "continue-on-error" not in {*step, *JOBS[name, job]}
        assert step.get("if", "always()") == "always()"


def test_steps_call_what_people_call() -> None:
    """No logic in YAML: one command each, without shell syntax, and no expression, which would be an injection."""
    for name, job, step in STEPS:
        if "run" not in step:
            continue
        script = step["run"].strip()
        assert "${{" not in script, (name, job)
        assert not re.search(r"[|;&<>`\n]|\$\(", script), (name, job, script)
        if (name, job) == ("gpu-perf.yml", "approval"):
            assert script.startswith("echo ")
        elif (name, job) == ("perf-pending.yml", "pending"):  # where no checkout may be, and so no make
            assert script.startswith('gh api "repos/$GITHUB_REPOSITORY/statuses/$HEAD" --raw-field state=pending ')
            assert f" context={verdict.CHECK} " in script
        else:
            assert script == ".ci/run" or script.startswith("make "), (name, job, script)


def test_what_comes_from_people_is_no_part_of_a_command() -> None:
    """Titles, branch names and reasons reach a step through its environment, and there only our own code."""
    text = "".join(path.read_text() for path in FOLDER.glob("*.yml"))
    expressions = " ".join(re.findall(r"\$\{\{(.*?)\}\}", text, re.DOTALL))
    taken = set(re.findall(r"\b(?:github\.event|inputs|github\.head_ref)[\w.]*", expressions))
    assert taken == {
        "github.event.pull_request.number", "github.event.pull_request.head.sha",
        # The name that perf-pending.yml compares; elsewhere main, or the workflow does not run.
        "github.event.pull_request.base.ref", "github.event.pull_request.base.sha",
        "github.event.repository.default_branch",
        "github.event_name", "github.event.action",
        "github.event.workflow_run.head_sha", "github.event.workflow_run.id", "inputs.commit", "inputs.reason",
    }  # fmt: skip
    (step,) = (step for step in JOBS["perf-override.yml", "override"]["steps"] if "run" in step)
    assert step["run"] == "make service ARGS=override"


def test_ci_runs_what_people_run_and_builds_the_image() -> None:
    jobs = WORKFLOWS["ci.yml"]["jobs"]
    assert runs_of(jobs["ci"]) == [".ci/run"]
    assert runs_of(jobs["workflows"]) == ["make test-workflows"]
    (build,) = runs_of(jobs["image"])
    assert build.startswith("make image ")
    assert "make codegen" in (ROOT / ".ci" / "run").read_text()
    (upload,) = (step for step in jobs["ci"]["steps"] if "upload-artifact" in step.get("uses", ""))
    assert upload["with"]["include-hidden-files"] is True  # or nothing of .bench is taken


# The pull request's gate


def test_a_newer_push_replaces_its_pull_requests_run() -> None:
    assert WORKFLOWS["gpu-perf.yml"]["concurrency"] == {
        "group": "gpu-perf-${{ github.event.pull_request.number }}",
        "cancel-in-progress": True,
    }


def test_the_one_check_waits_for_every_job_and_always_says_something() -> None:
    job = GATE[verdict.CHECK]
    assert job["name"] == verdict.CHECK
    assert job["if"] == "always()"
    assert set(job["needs"]) == set(GATE) - {verdict.CHECK}
    assert "strategy" not in job
    (step,) = (step for step in job["steps"] if "run" in step)
    assert step["run"] == 'make service ARGS="verdict artefacts"'
    assert step["env"]["NEEDS"] == "${{ toJSON(needs) }}"


def test_the_gpu_job_waits_for_an_approval_that_blocks_nobody_else() -> None:
    assert GATE["approval"]["environment"] == "gpu"
    assert "concurrency" not in GATE["approval"]
    assert set(GATE["gpu"]["needs"]) == {"plan", "approval"}
    assert "if" not in GATE["gpu"], "with a condition of its own it might run without the approval"


@pytest.mark.parametrize("job", [GATE["gpu"], HISTORY["measure"]], ids=["gpu-perf", "gpu-history"])
def test_one_measurement_a_gpu_at_a_time_on_each_model_of_the_list(job: dict[str, Any]) -> None:
    assert job["runs-on"] == ["self-hosted", "linux", "${{ matrix.gpu.runner }}"]
    # With queue: max no run that waits is cancelled by a newer one.
    assert job["concurrency"] == {"group": "${{ matrix.gpu.runner }}", "queue": "max"}
    assert job["strategy"] == {"fail-fast": False, "matrix": {"gpu": "${{ fromJSON(needs.plan.outputs.gpus) }}"}}


def test_the_judge_is_never_the_pull_requests() -> None:
    # Without a value it would be the pull request's merge.
    base = "${{ needs.plan.outputs.base || github.event.pull_request.base.sha }}"
    assert GATE["gpu"]["env"]["BASE"] == base
    refs = {
        job: {
            step["with"].get("path", "."): step["with"].get("ref")
            for step in GATE[job]["steps"]
            if "with" in step and "ref" in step["with"]
        }
        for job in GATE
    }
    head, tip = "${{ github.event.pull_request.head.sha }}", "${{ github.event.pull_request.base.ref }}"
    assert refs == {
        "plan": {"judge": tip, "pull-request": head},
        "approval": {},
        "gpu": {"judge": base, "pull-request": head},
        "perf-verdict": {".": base},
    }
    for job in ("plan", "gpu"):
        assert all(run.startswith("make -C judge ") for run in runs_of(GATE[job]))


def test_head_is_tested_before_it_is_measured_by_the_judges_image_on_a_pinned_base() -> None:
    commits, judges, judged, tests, sanitizer, measure, keep, remove = runs_of(GATE["gpu"])
    assert commits == "make -C judge commits FROM=../pull-request"
    assert judges == 'make -C judge pinned image IMAGE="$JUDGE"'
    assert judged == 'make -C judge pinned image IMAGE="$JUDGED" CONTEXT=../pull-request'
    assert tests == 'make -C judge in-image IMAGE="$JUDGED" RESULTS="$PWD/tests" ARGS=test'
    assert sanitizer == tests.removesuffix("test") + "\"test tests/sanitizer -k 'quick or overrun'\""
    wanted = "compare $BASE $HEAD --require-baseline --output /results/record.json"
    assert measure == f'make -C judge in-image IMAGE="$JUDGE" RESULTS="$PWD/results" ARGS="{wanted}"'
    assert keep == 'make -C judge keep-record RESULTS="$PWD/results" KEPT="$PWD/kept"'
    assert remove.startswith("make -C judge remove-images ")


def test_records_are_kept_whatever_the_verdict() -> None:
    (upload,) = (step for step in GATE["gpu"]["steps"] if "upload-artifact" in step.get("uses", ""))
    assert upload["if"] == "always()"
    assert upload["with"] == {
        "name": "gpu-perf-${{ matrix.gpu.name }}",
        "path": "kept/record.json",  # where no container could put a link
        "if-no-files-found": "error",
        "overwrite": True,
        "retention-days": 90,
    }


def test_artefacts_are_looked_at_before_anything_is_taken_out() -> None:
    found = uses_of("actions/download-artifact")
    assert found
    for name, job, step in found:
        assert step["with"]["skip-decompress"] is True, (name, job)
        assert re.fullmatch(r"gpu-(perf|history|same)-(\*|\$\{\{ matrix\.gpu\.name \}\})", step["with"]["pattern"])


@pytest.mark.parametrize(
    ("base", "code"),
    [
        ("pytorch/pytorch:2.11.0-cuda13.0-cudnn9-devel", 2),
        ("pytorch/pytorch@sha256:abc", 2),
        (f"pytorch/pytorch:2.11.0-cuda13.0-cudnn9-devel@sha256:{'a' * 64}", 0),
    ],
)
def test_an_image_on_a_base_without_a_digest_is_refused(base: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"ARG BASE_IMAGE={base}\nFROM ${{BASE_IMAGE}}\n")
    for folder, context in ((tmp_path, []), (ROOT, [f"CONTEXT={tmp_path}"])):
        command = ["make", "--file", str(ROOT / "Makefile"), "pinned", *context]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert ("without a digest: run make pin-image" in done.stderr) is (code == 2)


def test_of_what_a_container_left_a_plain_file_alone_is_kept(tmp_path: Path) -> None:
    """An upload follows links, as to what the runner's user may read."""
    results, kept = tmp_path / "results", tmp_path / "kept"
    results.mkdir()
    record = results / "record.json"

    def keep() -> int:
        command = ["make", "keep-record", f"RESULTS={results}", f"KEPT={kept}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode

    secret = tmp_path / "token"
    secret.write_text("secret")
    for place in (lambda: record.symlink_to(secret), record.mkdir, lambda: os.mkfifo(record)):
        place()
        assert keep() == 2
        assert not kept.exists()
        record.rmdir() if record.is_dir() and not record.is_symlink() else record.unlink()
    with record.open("wb") as file:
        file.truncate(artefacts.MOST_BYTES + 1)
    assert keep() == 2
    record.write_text("{}")
    assert keep() == 0
    assert (kept / "record.json").read_text() == "{}"


def test_what_runs_in_an_image_has_no_network_and_one_folder(tmp_path: Path) -> None:
    given = ["IMAGE=judge", f"RESULTS={tmp_path}", "GPUS=--gpus all", "ARGS=compare A B"]
    # As under `make test`, which tells its own folder too.
    command = ["make", "--no-print-directory", "--dry-run", "in-image", *given]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = printed.replace("\\\n", " ").split()
    assert words[-4:] == ["judge", "compare", "A", "B"]
    assert words.count("--volume") == 1
    assert f'"{tmp_path}:/results"' in words
    for flag in (
        "--rm",
        "--init",
        "--gpus all",
        "--network none",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--user",
    ):
        assert flag in " ".join(words)


# What main's own workflows do


def test_the_report_takes_nothing_of_a_pull_request_but_its_artefacts() -> None:
    jobs = WORKFLOWS["report.yml"]["jobs"]
    refs = [
        step["with"].get("ref") for job in jobs.values() for step in job["steps"] if "checkout" in step.get("uses", "")
    ]
    assert refs == [None, "${{ needs.whose.outputs.base }}"], "None: of workflow_run, main"
    assert WORKFLOWS["report.yml"]["concurrency"]["queue"] == "max"
    assert "head_sha" in WORKFLOWS["report.yml"]["concurrency"]["group"]


def test_an_override_is_a_run_of_its_own_that_a_maintainer_approves() -> None:
    workflow = WORKFLOWS[overrides.WORKFLOW]
    assert workflow["run-name"] == "Override ${{ inputs.commit }}: ${{ inputs.reason }}"
    assert overrides.title("0" * 40, "a good reason") == f"Override {'0' * 40}: a good reason"
    assert workflow["jobs"]["override"]["environment"] == overrides.ENVIRONMENT
    inputs = workflow[True]["workflow_dispatch"]["inputs"]
    assert {name: field["required"] for name, field in inputs.items()} == {"commit": True, "reason": True}


def test_history_is_of_main_and_loses_no_push() -> None:
    assert HISTORY["plan"]["if"] == "github.ref == 'refs/heads/main'"
    assert WORKFLOWS["gpu-history.yml"]["concurrency"] == {
        "group": "gpu-history-${{ github.sha }}",
        "cancel-in-progress": False,
    }
    assert HISTORY["measure"]["environment"] == "gpu-history"
    assert HISTORY["pages"]["environment"]["name"] == "github-pages"
    assert runs_of(HISTORY["append"])[-1] == 'make benchmarks ARGS="results push"'


def test_history_measures_records_a_commit_beside_itself_too() -> None:
    measured = [run for run in runs_of(HISTORY["measure"]) if "in-image" in run]
    assert 'ARGS="run --output /results/record.json"' in measured[0]
    assert 'ARGS="compare HEAD HEAD --processes 10 --output /results/record.json"' in measured[1]
    uploads = [step["with"]["path"] for step in HISTORY["measure"]["steps"] if "upload" in step.get("uses", "")]
    assert uploads == ["kept/record.json", "kept-same/record.json"], "where no container could put a link"


# Around them


def test_every_gpu_model_of_the_list_has_a_baseline_and_known_noise() -> None:
    for gpu in gpus.read((ROOT / gpus.FILE).read_text()):
        assert results.device_path(session.BASELINES, gpu.device).exists(), gpu.device
        assert session.noise_path(gpu.device).exists(), gpu.device


def test_every_part_of_the_judge_has_an_owner() -> None:
    """And what is not the judge's has none: the last line that matches counts."""
    lines = [line.split() for line in (ROOT / ".github" / "CODEOWNERS").read_text().splitlines()]
    rules = [(line[0], line[1:]) for line in lines if line and line[0] != "#"]
    assert all(len(owners) <= 1 and all(owner.startswith("@") for owner in owners) for _, owners in rules)

    def is_owned(path: str) -> bool:
        return bool([owners for pattern, owners in rules if gitignore(pattern).fullmatch(path)][-1])

    added = [
        "dllm_kernels/reference/__init__.py",
        "GNUmakefile",
        "rich.py",
        "dllm_kernels/.gitattributes",
        "tests/pytest.ini",
        "docs/runner/new.md",
    ]
    for path in [*git(ROOT, "ls-files").splitlines(), *added]:
        assert is_owned(path) is bool(judge.of_the_judge([path])), path


def gitignore(pattern: str) -> re.Pattern[str]:
    """Paths that such a line of CODEOWNERS matches: *, ** and a folder's slash, from the root on."""
    if pattern == "*":
        return re.compile(".*", re.DOTALL)
    parts = re.escape(pattern.lstrip("/")).replace(r"\*\*/", "(?:[^/]+/)*").replace(r"\*", "[^/]*")
    return re.compile(parts + (".*" if pattern.endswith("/") else ""))


def test_act_stands_in_for_every_action_and_for_no_other() -> None:
    used = {step["uses"].split("@")[0].removeprefix("actions/") for *_, step in STEPS if "uses" in step}
    assert {path.parent.name for path in (ROOT / "tests" / "workflows" / "actions").glob("*/action.yml")} == used


def test_the_list_of_gpu_models_is_json_of_its_form() -> None:
    listed = json.loads((ROOT / gpus.FILE).read_text())
    assert all(set(one) == {"name", "device", "runner"} for one in listed)
