"""What must hold for every workflow, and for the gate, read from the YAML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parent.parent / ".github" / "workflows"
WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yml"))}
JOBS = [(name, job_name) for name, workflow in WORKFLOWS.items() for job_name in workflow["jobs"]]
GATE = WORKFLOWS["gpu-perf.yml"]["jobs"]["gate"]

each_workflow = pytest.mark.parametrize("name", WORKFLOWS)
each_job = pytest.mark.parametrize(("name", "job_name"), JOBS)


def steps_of(job: dict[str, Any], action: str) -> list[dict[str, Any]]:
    return [step for step in job["steps"] if step.get("uses", "").startswith(f"{action}@")]


def test_both_workflows_are_there() -> None:
    assert set(WORKFLOWS) == {"ci.yml", "gpu-perf.yml"}


@each_workflow
def test_nothing_is_permitted_but_by_a_job(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {}


@each_job
def test_a_job_may_read_contents_and_no_more(name: str, job_name: str) -> None:
    assert WORKFLOWS[name]["jobs"][job_name]["permissions"] == {"contents": "read"}


@each_workflow
def test_no_trigger_runs_outside_code_with_rights(name: str) -> None:
    triggers = WORKFLOWS[name][True]  # YAML reads the key `on` as true
    assert set(triggers) <= {"push", "pull_request", "workflow_dispatch"}
    assert triggers["push"] == {"branches": ["main"]}


@each_workflow
def test_a_newer_push_replaces_a_pull_requests_run_and_no_other(name: str) -> None:
    concurrency = WORKFLOWS[name]["concurrency"]
    assert "${{ github.ref }}" in concurrency["group"]
    assert concurrency["cancel-in-progress"] == "${{ github.event_name == 'pull_request' }}"


@each_job
def test_a_job_ends_in_time(name: str, job_name: str) -> None:
    assert 0 < WORKFLOWS[name]["jobs"][job_name]["timeout-minutes"] <= 60


@each_workflow
def test_actions_are_pinned_by_commit_with_their_version(name: str) -> None:
    uses = re.findall(r"uses: (.*)", (FOLDER / name).read_text())
    assert uses
    for one in uses:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one)


@each_job
def test_checkout_has_the_history_and_leaves_no_token(name: str, job_name: str) -> None:
    (step,) = steps_of(WORKFLOWS[name]["jobs"][job_name], "actions/checkout")
    assert step["with"] == {"fetch-depth": 0, "persist-credentials": False}


@each_job
def test_no_failure_is_forgiven(name: str, job_name: str) -> None:
    job = WORKFLOWS[name]["jobs"][job_name]
    for step in [job, *job["steps"]]:
        assert "continue-on-error" not in step
        assert step.get("if", "always()") == "always()"
        assert "|| true" not in step.get("run", "")


@each_job
def test_scripts_hold_no_expression(name: str, job_name: str) -> None:
    for step in WORKFLOWS[name]["jobs"][job_name]["steps"]:
        assert "${{" not in step.get("run", ""), "an expression in a script is an injection"


@each_job
def test_what_was_measured_is_kept(name: str, job_name: str) -> None:
    (step,) = steps_of(WORKFLOWS[name]["jobs"][job_name], "actions/upload-artifact")
    assert step["if"] == "always()"
    history = [".asv/results/"] if name == "gpu-perf.yml" else []  # the runner's machine is cleaned after the job
    assert step["with"]["path"].split() == [".bench/", *history]
    assert step["with"]["include-hidden-files"] is True  # or nothing of .bench is taken
    assert step["with"]["if-no-files-found"] == "error"


def test_ci_runs_what_people_run() -> None:
    scripts = [step["run"] for step in WORKFLOWS["ci.yml"]["jobs"]["ci"]["steps"] if "run" in step]
    assert scripts == [".ci/run"]


def test_the_gate_runs_on_a_protected_gpu_machine() -> None:
    assert GATE["runs-on"] == ["self-hosted", "linux", "gpu"]
    assert GATE["environment"] == "gpu"


def test_the_gate_tests_and_judges_on_the_gpu() -> None:
    runs = [" ".join(step["run"].replace("\\\n", " ").split()) for step in GATE["steps"] if "run" in step]
    on_gpu = [run for run in runs if "--gpus all" in run]
    assert len(on_gpu) == 2
    assert on_gpu[0].endswith("make test")
    assert "command=(make bench ARGS=--require-baseline)" in on_gpu[1]
    assert 'command=(.venv/bin/python -m benchmarks compare "$BASE" HEAD --require-baseline)' in on_gpu[1]
    assert on_gpu[1].endswith('"${command[@]}"')


def test_a_cancelled_job_leaves_no_container_behind() -> None:
    """make, as a container's first process, spins instead of ending when it is told to."""
    for step in GATE["steps"]:
        if "docker run" in step.get("run", ""):
            assert "docker run --rm --init " in step["run"]


def test_the_verdict_is_in_the_summary() -> None:
    (step,) = (step for step in GATE["steps"] if "GITHUB_STEP_SUMMARY" in step.get("run", ""))
    assert step["if"] == "always()"
    assert "benchmarks report" in step["run"]
