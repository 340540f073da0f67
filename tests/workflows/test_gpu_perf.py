"""gpu-perf.yml, run by act: what a pull request has to be for perf-verdict to turn green or red."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.policy import judged_clocks
from benchmarks.workloads import WORKLOADS
from tests.workflows.api import REPOSITORY, Api
from tests.workflows.forge import Done, Forge, git

SLOWED = "1x32x157184-bf16-100"
H100 = "benchmarks/baselines/nvidia-h100-80gb-hbm3.json"
Edit = Callable[[str], str]


def planted(**shares: Any) -> dict[str, Edit]:
    """A change of the package after which the GPU that is not there takes so much longer."""
    return {"dllm_kernels/planted.py": lambda _: json.dumps(shares)}


def workflow_with(**jobs: dict[str, Any]) -> dict[str, Edit]:
    """A change of gpu-perf.yml: lines put into jobs."""

    def edit(text: str) -> str:
        for name, fields in jobs.items():
            lines = "".join(f"    {key}: {value}\n" for key, value in fields.items())
            text = text.replace(f"\n  {name}:\n", f"\n  {name}:\n{lines}")
        return text

    return {".github/workflows/gpu-perf.yml": edit}


@pytest.fixture
def run(forge: Forge, api: Api) -> Callable[..., Done]:
    def run(edits: dict[str, Edit], number: int = 7, **environment: str) -> Done:
        event = forge.pull_request(edits, number)
        return forge.act(
            "gpu-perf.yml", "pull_request", event, GITHUB_API_URL=api.url, GITHUB_REPOSITORY=REPOSITORY, **environment
        )

    return run


def measured(done: Done) -> list[str]:
    return [line for line in done.containers if " compare " in line]


def assert_red(done: Done, *reasons: str) -> str:
    summary = done.summary("perf-verdict")
    assert done.jobs["perf-verdict"] is False, done.output[-3000:]
    assert summary.startswith("## perf-verdict: RED\n"), summary
    head = summary.partition("\n### ")[0]
    for reason in reasons:
        assert reason in head, head
    return summary


def test_a_neutral_one_goes_green(run):
    done = run({"README.md": lambda text: text + "\nA word more.\n"})
    assert done.code == 0, done.output[-3000:]
    assert done.jobs == {"Plan": True, "Approval": True, "GPU h100": True, "perf-verdict": True}
    summary = done.summary("perf-verdict")
    assert summary.startswith("## perf-verdict: GREEN\n")
    assert "### PASS on NVIDIA H100 80GB HBM3" in summary
    assert "xychart-beta" in summary
    questions = 2 * sum(len(judged_clocks("cuda", name)) for name in WORKLOADS)  # slowdown and speedup
    assert f"{questions} that passed" in summary


def test_the_judge_is_the_merge_base_and_the_pull_request_runs_in_its_own_image(run, forge):
    done = run({"README.md": lambda text: text + "\nA word more.\n"})
    base, head = measured(done)[0].split(" compare ")[1].split()[:2]
    assert base == git(forge.main, "rev-parse", "HEAD")
    builds = [line for line in done.containers if line.startswith("build ")]
    assert [re.search(r"--tag (judge|pull-request):.* REVISION=(\w+)", line).groups() for line in builds] == [
        ("judge", base),
        ("pull-request", head),
    ]
    runs = [line for line in done.containers if line.startswith("run ")]
    assert [re.search(r" (judge|pull-request):\S+ (\w+)", line).groups() for line in runs] == [
        ("pull-request", "test"),
        ("pull-request", "test"),
        ("judge", "compare"),
    ]
    assert "tests/sanitizer" in runs[1]
    folders = [re.search(r"--volume (\S+):/results", line)[1] for line in runs]
    assert len(set(folders)) == 2, "the pull request's tests could leave a record for the judge"
    assert all("--network none" in line for line in runs)
    assert head != base


def test_one_that_slows_the_operation_goes_red_and_names_the_workload(run):
    done = run(planted(fused=1.1, workloads=[SLOWED]))
    summary = assert_red(done, "gpu: the job ended as 'failure'", f"h100: REGRESSION: {SLOWED} on device_us, slowdown:")
    assert re.search(rf"\| {SLOWED} \| device_us \|.*\| slowdown \| \+(9|10)\.\d+% \[.*\| REGRESSION \|", summary)
    assert len(re.findall(r"\| REGRESSION \|", summary)) == 3, "of the other workloads none is accused"


def test_one_that_breaks_correctness_goes_red_before_any_timing(run):
    wrong = {"dllm_kernels/__init__.py": lambda text: text + "\n\ndef dllm_post_process_fused(*_, **__):\n    pass\n"}
    done = run(wrong)
    assert done.jobs["GPU h100"] is False
    assert not measured(done)
    assert_red(done, "gpu: the job ended as 'failure'", "h100: 0 records of NVIDIA H100")


def test_one_that_slows_both_sides_goes_red(run):
    """Which keeps the speedup over its own reference; it is held beside base's."""
    done = run(planted(fused=1.1, reference=1.1))
    assert_red(done, "h100: REGRESSION", "both became slower")


def test_one_that_raises_a_tolerance_goes_red(run):
    looser = {
        "benchmarks/policy.py": lambda text: text.replace(
            '"device_us": 0.01, "call_us": 0.05', '"device_us": 0.5, "call_us": 0.5'
        )
    }
    done = run({**looser, **planted(fused=1.1)})
    summary = assert_red(done, "h100: REGRESSION", "slower than base by more than 1.0%")
    assert "- benchmarks/policy.py" in summary
    alone = run(looser, number=8)
    assert alone.jobs["GPU h100"] is True
    assert_red(alone, "it changes what it is judged by", "- benchmarks/policy.py")


def test_one_that_edits_a_baseline_goes_red(run):
    def lower(text: str) -> str:
        fields = json.loads(text)
        for clocks in fields["entries"].values():
            for pairs in clocks.values():
                for entry in pairs.values():
                    entry["speedup"] /= 2
                    entry["fused_us"] *= 2
        return json.dumps(fields)

    done = run({H100: lower, **planted(fused=1.1)})
    assert_red(done, "h100: REGRESSION", "it changes what it is judged by", f"- {H100}")


def test_one_that_takes_its_gpu_off_the_list_goes_red(run):
    other = '[{"name": "mine", "device": "My GPU", "runner": "gpu-mine"}]'
    done = run({".github/gpus.json": lambda _: other})
    assert done.jobs["GPU h100"] is True, "the list is the merge base's"
    assert_red(done, "it changes what it is judged by", "- .github/gpus.json")


def test_a_skipped_gpu_job_goes_red(run):
    done = run(workflow_with(gpu={"if": "false"}))
    assert "GPU h100" not in done.jobs
    assert_red(done, "gpu: the job ended as 'skipped'", "h100: 0 records of NVIDIA H100")


def test_a_cancelled_gpu_job_goes_red(run):
    """act cancels nothing: here the job is told that it was."""

    def edit(text: str) -> str:
        return text.replace(
            "NEEDS: ${{ toJSON(needs) }}",
            """NEEDS: '{"plan": {"result": "success"}, "gpu": {"result": "cancelled"}}'""",
        )

    assert_red(run({".github/workflows/gpu-perf.yml": edit}), "gpu: the job ended as 'cancelled'")


def test_an_empty_gpu_job_goes_red(run):
    done = run({"README.md": lambda text: text + "\nA word more.\n"}, TEST_GPU="lost")
    assert done.jobs["GPU h100"] is False, "nothing to upload is a failure"
    assert_red(done, "h100: 0 records of NVIDIA H100")


def test_a_maintainers_override_turns_it_green_for_that_commit_alone(forge, api):
    def act(event: dict[str, Any]) -> Done:
        return forge.act("gpu-perf.yml", "pull_request", event, GITHUB_API_URL=api.url, GITHUB_REPOSITORY=REPOSITORY)

    event = forge.pull_request(planted(fused=1.1))
    head = event["pull_request"]["head"]["sha"]
    api.answers["actions/workflows/perf-override.yml/runs"] = {
        "workflow_runs": [
            {
                "id": 5, "path": ".github/workflows/perf-override.yml", "event": "workflow_dispatch",
                "head_branch": "main", "conclusion": "success", "html_url": "https://example.org/5",
                "display_title": f"Override {head}: 10 % for the edit rule, agreed in the design",
            }
        ]
    }  # fmt: skip
    approval = {"state": "approved", "user": {"login": "maintainer"}, "environments": [{"name": "perf-override"}]}
    api.answers["actions/runs/5/approvals"] = [approval]
    done = act(event)
    assert done.jobs["perf-verdict"] is True, done.output[-3000:]
    summary = done.summary("perf-verdict")
    assert summary.startswith("## perf-verdict: RED, overridden for this commit\n")
    assert "Overridden by maintainer: 10 % for the edit rule, agreed in the design" in summary
    assert "h100: REGRESSION" in summary

    assert_red(act(forge.pull_request(planted(fused=1.11), number=8)), "h100: REGRESSION")
