"""Verdicts: what passes, what fails, and that doubt is never green."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks import stats
from benchmarks.gate import Policy, Status, judge, tolerance_of
from benchmarks.results import Baseline, BaselineEntry, Check
from benchmarks.workloads import WORKLOADS
from tests.records import CPU, GPU, NAME, OTHER, make_run, steady

POLICY = Policy()


def _baseline(device=15.0, call=4.0, **changes):
    entries = {
        NAME: {"device_us": BaselineEntry(device, 10.0, 150.0, 0.05), "call_us": BaselineEntry(call, 10.0, 40.0, 0.2)}
    }
    fields = Baseline(GPU.device, "2026-11-01", "c" * 40, "first", GPU.torch, GPU.triton, GPU.driver, entries)
    return dataclasses.replace(fields, **changes)


def _by_clock(judgement):
    return {verdict.clock: verdict for verdict in judgement.verdicts}


def test_above_the_floor_passes_and_says_there_is_no_baseline():
    judgement = judge(make_run(steady()), POLICY, None)
    assert judgement.status is Status.PASS
    assert "No baseline for NVIDIA Test" in judgement.notes[0]


def test_below_the_floor_is_a_regression():
    judgement = judge(make_run(steady(device=2.5)), POLICY, None)
    assert judgement.status is Status.REGRESSION
    assert _by_clock(judgement)["device_us"].reason == "below 3.00x (floor)"
    assert _by_clock(judgement)["call_us"].status is Status.PASS


def test_a_lost_speedup_is_seen_against_the_baseline_though_far_above_the_floor():
    assert judge(make_run(steady(device=14.0)), POLICY, _baseline()).status is Status.REGRESSION
    assert judge(make_run(steady(device=14.8)), POLICY, _baseline()).status is Status.PASS


def test_at_the_bound_is_doubt():
    run = make_run({**steady(), (NAME, "device_us"): [14.3, 14.8, 14.4, 14.9]})
    judgement = judge(run, POLICY, _baseline())
    assert judgement.status is Status.INCONCLUSIVE
    assert judgement.doubtful() == [NAME]


def test_one_process_is_doubt():
    judgement = judge(make_run({(NAME, "device_us"): [15.0], (NAME, "call_us"): [4.0]}), POLICY, None)
    assert judgement.status is Status.INCONCLUSIVE


def test_a_slow_cpu_backend_fails_and_a_fast_one_passes():
    for speedup, status in [(0.9, Status.REGRESSION), (1.1, Status.PASS)]:
        run = make_run({(NAME, "call_us"): [speedup * s for s in (0.99, 1.0, 1.0, 1.01)]}, environment=CPU)
        assert judge(run, POLICY, None).status is status


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"series": ()}, "no samples"),
        ({"checks": ()}, "timed without a check of its results"),
    ],
)
def test_what_is_missing_is_never_green(changes, reason):
    judgement = judge(dataclasses.replace(make_run(steady()), **changes), POLICY, None)
    assert judgement.status is Status.INCONCLUSIVE
    assert {verdict.reason for verdict in judgement.verdicts} == {reason}


def test_a_missing_workload_is_never_green():
    run = dataclasses.replace(make_run(steady()), workloads=(NAME, OTHER))
    assert judge(run, POLICY, None).status is Status.INCONCLUSIVE


def test_an_empty_run_is_never_green():
    assert judge(make_run({}), POLICY, None).status is Status.INCONCLUSIVE


def test_a_missing_clock_is_never_green():
    run = make_run({(NAME, "call_us"): [4.0, 4.0, 4.0]})
    assert _by_clock(judge(run, POLICY, None))["device_us"].status is Status.INCONCLUSIVE


def test_a_workload_of_the_baseline_that_was_not_measured_is_never_green():
    baseline = _baseline()
    baseline.entries[OTHER] = baseline.entries[NAME]
    judgement = judge(make_run(steady()), POLICY, baseline)
    assert {v.reason for v in judgement.verdicts if v.workload == OTHER} == {"expected, and not measured"}
    assert judgement.status is Status.INCONCLUSIVE
    assert judge(make_run(steady()), POLICY, baseline, [NAME]).status is Status.PASS


def test_both_slower_keeps_the_speedup_and_is_a_regression_all_the_same():
    run = make_run(steady(), fused_us=12.0)
    judgement = judge(run, POLICY, _baseline())
    assert _by_clock(judgement)["device_us"].status is Status.REGRESSION
    assert "fused itself is slower than 11 us" in _by_clock(judgement)["device_us"].reason
    assert _by_clock(judgement)["call_us"].status is Status.PASS  # the host's speed is not the baseline's
    assert judge(make_run(steady(), fused_us=10.5), POLICY, _baseline()).status is Status.PASS


def test_a_machine_that_was_never_quiet_accuses_nobody():
    slow = steady(device=2.5)
    assert judge(make_run(slow), POLICY, None).status is Status.REGRESSION
    judgement = judge(make_run(slow, quiet=False), POLICY, None)
    assert judgement.status is Status.INCONCLUSIVE
    assert "disturbed every process" in _by_clock(judgement)["device_us"].reason
    assert judge(make_run(steady(), quiet=False), POLICY, None).status is Status.PASS


def test_a_noisy_record_passes_the_baseline_that_is_made_of_it():
    run = make_run({(NAME, "device_us"): [14.0, 15.0, 15.5, 16.0], (NAME, "call_us"): [4.0, 4.0, 4.0, 4.01]})
    tolerances = {
        clock: tolerance_of([one for one in run.series if one.clock == clock], clock, POLICY)
        for clock in ("device_us", "call_us")
    }
    assert tolerances["device_us"] > 0.1
    assert tolerances["call_us"] == POLICY.tolerances["call_us"]
    entries = {
        NAME: {
            clock: BaselineEntry(stats.speedup([s for s in run.series if s.clock == clock], 0.95).estimate, 10, 40, t)
            for clock, t in tolerances.items()
        }
    }
    assert judge(run, POLICY, _baseline(entries=entries)).status is Status.PASS


def test_a_wrong_result_is_a_regression_however_fast():
    run = make_run(steady(device=100.0))
    wrong = Check(NAME, 2, False, "3 ids differ from the reference")
    judgement = judge(dataclasses.replace(run, checks=(*run.checks[:2], wrong, *run.checks[3:])), POLICY, None)
    assert judgement.status is Status.REGRESSION
    assert "3 ids differ" in judgement.verdicts[0].reason


def test_a_workload_that_the_baseline_lacks_is_doubt():
    judgement = judge(make_run({**steady(), **steady(workload=OTHER)}), POLICY, _baseline())
    assert [verdict.status for verdict in judgement.verdicts if verdict.workload == OTHER] == [Status.INCONCLUSIVE] * 2
    assert judgement.status is Status.INCONCLUSIVE


def test_another_device_than_the_baselines_is_refused():
    with pytest.raises(ValueError, match="baseline: .*NVIDIA Other.*NVIDIA Test"):
        judge(make_run(steady()), POLICY, dataclasses.replace(_baseline(), device="NVIDIA Other"))


def test_a_part_of_the_workloads_is_called_a_part():
    notes = judge(make_run(steady(), skipped=(OTHER,)), POLICY, None).notes
    assert f"A part only: {len(WORKLOADS) - 2} of the {len(WORKLOADS) - 1} workloads" in " ".join(notes)
    every = make_run({key: value for name in WORKLOADS for key, value in steady(workload=name).items()})
    assert not [note for note in judge(every, POLICY, None).notes if "A part" in note]


def test_older_software_of_the_baseline_is_named():
    notes = judge(make_run(steady()), POLICY, _baseline(torch="2.10.0")).notes
    assert "The baseline was taken with torch 2.10.0; this run has 2.11.0." in notes


def test_many_comparisons_need_more_evidence_for_a_regression():
    """The same borderline samples: a regression alone, doubt among many."""
    borderline = {(NAME, "call_us"): [0.91, 0.925, 0.94]}
    alone = judge(make_run(borderline, environment=CPU), Policy(looks=1), None)
    names = [f"1x32x{vocab}-fp16-100" for vocab in range(1000, 1030)]
    crowd = {**borderline, **{(name, "call_us"): [3.0, 3.0, 3.01] for name in names}}
    assert alone.status is Status.REGRESSION
    assert judge(make_run(crowd, environment=CPU), Policy(looks=1), None).status is Status.INCONCLUSIVE
