"""Green needs everything: what turns a pull request red, forged records among it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from benchmarks import gate, results
from benchmarks.policy import Policy
from benchmarks.results import State
from benchmarks.service import gpus, judge, verdict
from tests.records import GPU, NAME, OTHER, make_baseline, make_compared, make_noise
from tests.service.pull_requests import ASKED, BASE, CASE, MODEL, SUCCESS, decide, judged


def test_green() -> None:
    outcome = decide(judged(make_compared()))
    assert outcome.green
    assert [found.gpu for found in outcome.found] == [MODEL]


@pytest.mark.parametrize("result", ["failure", "cancelled", "skipped", "", "Success"])
def test_a_job_that_ended_otherwise_than_in_success_is_red(result: str) -> None:
    outcome = decide(judged(make_compared()), jobs={**SUCCESS, "gpu": result})
    assert outcome.reasons == (f"gpu: the job ended as {result!r}, not in success",)


def test_no_job_at_all_is_red() -> None:
    assert not decide(judged(make_compared()), jobs={}).green


def test_a_missing_record_is_red_though_the_job_succeeded() -> None:
    assert decide().reasons == ("test: 0 records of NVIDIA Test; expected one",)


def test_every_gpu_model_of_the_list_has_to_have_its_record() -> None:
    other = gpus.Gpu("other", "NVIDIA Other", "gpu-other")
    outcome = decide(judged(make_compared()), asked=dataclasses.replace(ASKED, gpus=(MODEL, other)))
    assert outcome.reasons == ("other: 0 records of NVIDIA Other; expected one",)


def test_two_records_of_a_model_are_red() -> None:
    record = judged(make_compared())
    assert decide(record, record).reasons == ("test: 2 records of NVIDIA Test; expected one",)


def test_a_record_of_another_device_is_red() -> None:
    elsewhere = dataclasses.replace(GPU, device="My GPU")
    outcome = decide(judged(make_compared()), dataclasses.replace(make_compared(), environment=elsewhere))
    assert outcome.reasons == ("a record of My GPU, which is not on the list of GPU models",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"environment": dataclasses.replace(GPU, commit="b" * 40)}, "measured bbbbbbbbbb; expected aaaaaaaaaa"),
        ({"environment": dataclasses.replace(GPU, dirty=True)}, "measured aaaaaaaaaa with uncommitted changes"),
        ({"base": State("c" * 40, False, "x")}, "measured beside cccccccccc; expected the merge base dddddddddd"),
        ({"base": State(BASE, True, "x")}, "measured beside dddddddddd with uncommitted changes"),
    ],
)
def test_a_record_of_another_state_is_red(changes: dict[str, Any], reason: str) -> None:
    outcome = decide(judged(make_compared(**changes)))
    assert [reason in one for one in outcome.reasons] == [True], outcome.reasons


def test_a_regression_is_red_and_names_workload_and_reason() -> None:
    (reason,) = decide(judged(make_compared(device=1.1))).reasons
    assert reason.startswith(f"test: REGRESSION: {NAME} on device_us, slowdown: slower than base by more than 1.0%")


def test_a_regression_of_many_workloads_names_the_first_ones() -> None:
    names = [f"workload-{number}" for number in range(9)]
    verdicts = [
        gate.Verdict(name, clock, "slowdown", gate.Status.REGRESSION, "slow")
        for name in names
        for clock in ("device_us", "call_us")
    ]
    judgement = gate.Judgement((*verdicts, gate.Verdict("fine", "call_us", "speedup", gate.Status.PASS, "")), (), 1)
    also = "also workload-1, workload-2, workload-3 and 5 more"
    assert verdict._worst(judgement) == f"workload-0 on device_us, slowdown: slow; {also} (18 of 19 verdicts)"


def test_doubt_is_red() -> None:
    (reason,) = decide(judged(make_compared(device=1.0095))).reasons
    assert reason.startswith("test: INCONCLUSIVE: ")


def test_a_record_without_verdicts_is_red() -> None:
    (reason,) = decide(make_compared()).reasons
    assert (
        reason
        == "test: the record cannot be judged: record: it holds no verdicts to verify, as of `run`; `gate` gives some"
    )


def test_forged_verdicts_are_red() -> None:
    """A regression whose record says PASS: its samples say otherwise, twice."""
    slow, good = judged(make_compared(device=1.1)), judged(make_compared())
    reasons = decide(dataclasses.replace(slow, judged=good.judged)).reasons
    assert any("the record's samples do not give its verdicts" in reason for reason in reasons)
    assert any("REGRESSION" in reason for reason in reasons)


def test_a_looser_judge_in_the_record_counts_for_nothing() -> None:
    """It verifies by its own rules, which are not this checkout's."""
    loose = Policy(slowdowns={"cuda": {"device_us": 0.5, "call_us": 0.5}, "cpu": {"call_us": 0.5}})
    case = gate.Case(policy=loose, baseline=make_baseline(device=1.0, call=1.0), noise=make_noise(), expected=(NAME,))
    reasons = decide(judged(make_compared(device=1.1), case)).reasons
    assert any("judged by another policy than this repository's: slowdowns" in reason for reason in reasons)
    assert any("judged by another baseline" in reason for reason in reasons)
    assert any(reason.startswith("test: REGRESSION") for reason in reasons)


def test_workloads_that_were_left_out_are_red() -> None:
    case = dataclasses.replace(CASE, expected=(NAME, OTHER))
    outcome = verdict.decide(ASKED, SUCCESS, [judged(make_compared(), case)], (), lambda run: case)
    assert any("expected, and not measured" in reason for reason in outcome.reasons)


def test_no_baseline_is_red() -> None:
    def none(run: results.Run) -> gate.Case:
        raise ValueError("baseline: none for NVIDIA Test")

    outcome = verdict.decide(ASKED, SUCCESS, [judged(make_compared())], (), none)
    assert outcome.reasons == ("test: the record cannot be judged: baseline: none for NVIDIA Test",)


def test_a_change_of_the_judge_is_red() -> None:
    outcome = decide(judged(make_compared()), changed=("benchmarks/policy.py",))
    assert [reason.startswith("it changes what it is judged by") for reason in outcome.reasons] == [True]


@pytest.mark.parametrize(
    "path",
    [
        "benchmarks/policy.py", "benchmarks/baselines/noise/x.json", ".github/workflows/ci.yml", ".github/gpus.json",
        ".ci/run", "constraints/gpu.txt", "container/entrypoint.sh", "Dockerfile", ".dockerignore", "Makefile",
        "pyproject.toml", "asv.conf.json", "dllm_kernels/reference.py", "tests/perf/test_gates.py",
        "tests/containers/test_image.py", "tests/sanitizer/test_clean.py", "Benchmarks/policy.py", "makefile",
        "GNUmakefile", "rich.py", "json/__init__.py", "Dockerfile.dockerignore", "dllm_kernels/.gitattributes",
        ".gitattributes", "tests/conftest.py", "tests/pytest.ini", "tests/oracle.py", "Docs/Runner/admit.py",
        "docs/runner/admit.py", "dllm_kernels/data.json", "a/Dockerfile", "dllm_kernels/a\nb.py",
        "dllm_kernels/reference/__init__.py", "dllm_kernels/reference.pyi",
    ],
)  # fmt: skip
def test_paths_of_the_judge(path: str) -> None:
    assert judge.of_the_judge(["README.md", path]) == (path,)


def test_paths_that_are_not_the_judges() -> None:
    paths = [
        "dllm_kernels/cpu.py", "dllm_kernels/gpu/share.py", "tests/test_cpu.py", "tests/e2e/test_llada2_mini.py",
        "docs/kernel.md", "docs/pictures/a-b.png", "CHANGELOG.md", "LICENSE", "",
    ]  # fmt: skip
    assert judge.of_the_judge(paths) == ()


def test_workloads_that_nobody_asked_for_are_red_and_not_judged() -> None:
    run = make_compared()
    more = tuple(f"workload-{number}" for number in range(100_000))
    outcome = decide(dataclasses.replace(run, workloads=(*run.workloads, *more)))
    assert [f"{len(more)} workloads that nobody asked for" in reason for reason in outcome.reasons] == [True]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected at least one"),
        ([{"name": "a", "device": "A"}], "runner"),
        ([{"name": "a b", "device": "A", "runner": "r"}], "name"),
        ([{"name": "a", "device": "A", "runner": "r; rm"}], "runner"),
        (
            [{"name": "a", "device": "A", "runner": "r"}, {"name": "b", "device": "A", "runner": "r"}],
            "each device once",
        ),
        ([{"name": "a", "device": "A", "runner": "r", "more": 1}], "more"),
    ],
)
def test_a_wrong_list_of_gpu_models(content: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gpus.read(json.dumps(content))
