"""Verdicts: what passes, what fails, and that doubt is never green."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from benchmarks import baseline as baselines
from benchmarks import session, stats, workloads
from benchmarks.gate import Case, Status, judge
from benchmarks.policy import Policy, baseline_tolerance, slowdown_tolerance
from benchmarks.results import AcceptedSlowdown, BaselineEntry, Block, Check, GpuState
from benchmarks.workloads import WORKLOADS, Decoding, EngineStep, Workload
from tests.records import (
    COUNTS,
    CPU,
    GPU,
    NAME,
    OTHER,
    SPREAD,
    blocks_of,
    make_baseline,
    make_compared,
    make_noise,
    make_run,
    steady,
)

POLICY = Policy()


def judge_(run, policy, baseline, expected=None, **more):
    return judge(run, Case(policy, baseline, expected=None if expected is None else tuple(expected), **more))


def _by_clock(judgement):
    return {verdict.clock: verdict for verdict in judgement.verdicts}


def _wrong_beside_base():
    run = make_compared()
    wrong = tuple(
        dataclasses.replace(check, passed=False, detail="base: 3 ids differ", base_alone=True) for check in run.checks
    )
    return dataclasses.replace(run, checks=wrong, series=(), counts={})  # what is wrong is neither timed nor counted


def test_above_the_floor_passes_and_says_there_is_no_baseline():
    judgement = judge_(make_run(steady()), POLICY, None)
    assert judgement.status is Status.PASS
    assert "No baseline for NVIDIA Test" in judgement.notes[0]


def test_below_the_floor_is_a_regression():
    judgement = judge_(make_run(steady(device=2.5)), POLICY, None)
    assert judgement.status is Status.REGRESSION
    assert _by_clock(judgement)["device_us"].reason == "below 3.00x (floor)"
    assert _by_clock(judgement)["call_us"].status is Status.PASS


def test_a_lost_speedup_is_seen_against_the_baseline_though_far_above_the_floor():
    assert judge_(make_run(steady(device=14.0), fused_us=10.7), POLICY, make_baseline()).status is Status.REGRESSION
    assert judge_(make_run(steady(device=14.8)), POLICY, make_baseline()).status is Status.PASS


def test_at_the_bound_is_doubt():
    run = make_run({**steady(), (NAME, "device_us"): [14.0, 14.4, 14.1, 14.5]}, fused_us=10.5)
    judgement = judge_(run, POLICY, make_baseline())
    assert judgement.status is Status.INCONCLUSIVE
    assert judgement.doubtful() == {NAME: {"device_us"}}


def test_one_process_is_doubt_where_no_noise_is_known():
    run = make_run({(NAME, "device_us"): [15.0], (NAME, "call_us"): [4.0]})
    judgement = judge_(run, POLICY, None)
    assert judgement.status is Status.INCONCLUSIVE
    assert "In doubt, 2 of 2 verdicts: measure in two processes or more" in judgement.notes[-1]
    assert judge_(run, POLICY, None, noise=make_noise()).status is Status.PASS


def test_a_slow_cpu_backend_fails_and_a_fast_one_passes():
    for speedup, status in [(0.9, Status.REGRESSION), (1.1, Status.PASS)]:
        run = make_run({(NAME, "call_us"): [speedup * s for s in (0.99, 1.0, 1.0, 1.01)]}, environment=CPU)
        assert judge_(run, POLICY, None).status is status


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"series": ()}, "no samples beside reference"),
        ({"checks": ()}, "timed without a check of its results"),
    ],
)
def test_what_is_missing_is_never_green(changes, reason):
    judgement = judge_(dataclasses.replace(make_run(steady()), **changes), POLICY, None)
    assert judgement.status is Status.INCONCLUSIVE
    assert {verdict.reason for verdict in judgement.verdicts} == {reason}


def test_a_missing_workload_is_never_green():
    run = dataclasses.replace(make_run(steady()), workloads=(NAME, OTHER))
    assert judge_(run, POLICY, None).status is Status.INCONCLUSIVE


def test_an_empty_run_is_never_green():
    assert judge_(make_run({}), POLICY, None).status is Status.INCONCLUSIVE


def test_a_missing_clock_is_never_green():
    run = make_run({(NAME, "call_us"): [4.0, 4.0, 4.0]})
    assert _by_clock(judge_(run, POLICY, None))["device_us"].status is Status.INCONCLUSIVE


def test_a_workload_of_the_baseline_that_was_not_measured_is_never_green():
    baseline = make_baseline()
    baseline.entries[OTHER] = baseline.entries[NAME]
    judgement = judge_(make_run(steady()), POLICY, baseline)
    assert {v.reason for v in judgement.verdicts if v.workload == OTHER} == {"expected, and not measured"}
    assert judgement.status is Status.INCONCLUSIVE
    assert judge_(make_run(steady()), POLICY, baseline, [NAME]).status is Status.PASS


def test_both_slower_keeps_the_speedup_and_is_a_regression_all_the_same():
    run = make_run(steady(), fused_us=12.0)
    judgement = judge_(run, POLICY, make_baseline())
    assert _by_clock(judgement)["device_us"].status is Status.REGRESSION
    assert "fused itself is slower than 11 us" in _by_clock(judgement)["device_us"].reason
    assert _by_clock(judgement)["call_us"].status is Status.PASS  # the host's speed is not the baseline's
    assert judge_(make_run(steady(), fused_us=10.5), POLICY, make_baseline()).status is Status.PASS


def test_a_faster_reference_is_not_our_regression():
    judgement = judge_(make_run(steady(device=13.0)), POLICY, make_baseline())
    assert judgement.status is Status.PASS
    reason = _by_clock(judgement)["device_us"].reason
    assert "the reference became 13.2% faster, fused +0.1% is within 5.0%: renew" in reason
    at_the_floor = make_run(steady(device=2.5))
    assert judge_(at_the_floor, POLICY, make_baseline()).status is Status.REGRESSION


def test_on_the_call_clock_a_faster_reference_is_told_where_base_shows_that_fused_is_not_slower():
    """Times of another host say nothing: one that is faster would hide what was lost."""
    faster = steady(call=3.0)
    verdict = _by_clock(judge_(make_run(faster), POLICY, make_baseline()))["call_us"]
    assert verdict.status is Status.INCONCLUSIVE
    assert "beside the baseline's times fused +0.1%, reference -24.9%: a faster reference, or a" in verdict.reason
    assert not verdict.more_may_decide
    slower = _by_clock(judge_(make_run(faster, fused_us=13.0), POLICY, make_baseline()))["call_us"]
    assert slower.status is Status.REGRESSION

    def beside_base(call):
        slowdowns = {(NAME, "device_us"): [*SPREAD], (NAME, "call_us"): [call * s for s in SPREAD]}
        judgement = judge_(make_run(faster, slowdowns=slowdowns), POLICY, make_baseline(), noise=make_noise())
        return next(v for v in judgement.verdicts if (v.question, v.clock) == ("speedup", "call_us"))

    assert beside_base(1.0).status is Status.PASS
    assert "the reference became 24.9% faster, fused +0.1% is within 20.0%: renew" in beside_base(1.0).reason
    assert beside_base(1.2).status is Status.REGRESSION


def test_both_slower_on_the_call_clock_is_a_remark():
    """It may be another host; beside base it is a verdict."""
    verdict = _by_clock(judge_(make_run(steady(), fused_us=20.0), POLICY, make_baseline()))["call_us"]
    assert verdict.status is Status.PASS
    assert "fused +100.2%, reference +100.2%: a slower host, or both became slower, which `compare" in verdict.reason
    for fused_us in (11.8, 12.2):  # where 20 % are nothing yet
        same = _by_clock(judge_(make_run(steady(), fused_us=fused_us), POLICY, make_baseline()))
        assert ("slower host" in same["call_us"].reason) is (fused_us > 12)
        assert "slower host" not in same["device_us"].reason, "which is no host's"
    beside_base = judge_(make_compared(fused_us=20.0), POLICY, make_baseline())
    assert not [one for one in beside_base.verdicts if "slower host" in one.reason]


def test_doubt_is_not_explained_away_by_a_reference_that_did_not_become_faster():
    unsteady = {**steady(), (NAME, "device_us"): [14.3, 14.8, 15.2, 15.7]}
    verdict = _by_clock(judge_(make_run(unsteady), POLICY, make_baseline()))["device_us"]
    assert verdict.status is Status.INCONCLUSIVE
    assert "not clearly above" in verdict.reason


def test_a_machine_that_was_never_quiet_decides_nothing():
    slow = steady(device=2.5)
    assert judge_(make_run(slow), POLICY, None).status is Status.REGRESSION
    judgement = judge_(make_run(slow, quiet=False), POLICY, None)
    assert judgement.status is Status.INCONCLUSIVE
    assert "disturbed 4 of 4 processes" in _by_clock(judgement)["device_us"].reason
    assert judge_(make_run(steady(), quiet=False), POLICY, None).status is Status.INCONCLUSIVE
    run = make_run(steady())
    for disturbed, status in ((1, Status.PASS), (2, Status.INCONCLUSIVE)):
        series = tuple(
            dataclasses.replace(one, quiet=not (one.clock == "call_us" and one.process < disturbed))
            for one in run.series
        )
        found = _by_clock(judge_(dataclasses.replace(run, series=series), POLICY, None))
        assert (found["call_us"].status, found["device_us"].status) == (status, Status.PASS)


def test_a_noisy_record_passes_the_baseline_that_is_made_of_it():
    run = make_run({(NAME, "device_us"): [14.8, 15.0, 15.1, 15.3], (NAME, "call_us"): [4.0, 4.0, 4.0, 4.01]})
    tolerances = {
        clock: baseline_tolerance([one for one in run.series if one.clock == clock], POLICY, None)
        for clock in ("device_us", "call_us")
    }
    assert 0.03 < tolerances["device_us"] < 0.05
    assert tolerances["call_us"] == POLICY.tolerances["call_us"]
    entries = {NAME: {}}
    for clock, tolerance in tolerances.items():
        relative = stats.interval(stats.ratios(one for one in run.series if one.clock == clock), 0.05).estimate
        entries[NAME][clock] = {"reference": BaselineEntry(1 / relative, 10, 40, tolerance)}
    assert judge_(run, POLICY, make_baseline(entries=entries)).status is Status.PASS


def test_a_baseline_is_of_today_s_workloads_alone(monkeypatch):
    """One that is registered no more may have been too noisy; it keeps the others from nothing."""
    gone = "7x7x70-fp16-100"
    noisy = {(gone, "device_us"): [13.0, 15.0, 15.5, 17.0], (gone, "call_us"): [0.9, 4.0, 2.0, 1.0]}
    run = make_run({**steady(), **noisy})
    monkeypatch.setitem(workloads.WORKLOADS, gone, workloads.parse(gone))
    monkeypatch.setattr(workloads, "WORKLOADS", {name: workloads.WORKLOADS[name] for name in (NAME, gone)})
    with pytest.raises(ValueError, match=gone):
        baselines.accepted([run], "first", make_noise())
    del workloads.WORKLOADS[gone]
    assert set(baselines.accepted([run], "first", make_noise()).entries) == {NAME}


def test_a_baseline_keeps_what_was_not_measured_again(monkeypatch):
    """A workload that is new, or one of the two ways to measure, changes no other's entry, unless another version would
    stand beside them."""
    monkeypatch.setattr(workloads, "WORKLOADS", {name: workloads.WORKLOADS[name] for name in (NAME, OTHER)})
    before = BaselineEntry(7.0, 10.0, 70.0, 0.05)
    clocks = {clock: {"reference": before, "base reference": before} for clock in ("device_us", "call_us")}
    older = make_baseline(entries={OTHER: clocks, NAME: clocks, "7x7x70-fp16-100": clocks})
    run = make_run(steady())
    with pytest.raises(ValueError, match=OTHER):
        baselines.accepted([run], "more", make_noise())
    accepted = baselines.accepted([run], "more", make_noise(), older)
    assert list(accepted.entries) == [NAME, OTHER]
    new = accepted.of(NAME, "device_us", "reference")
    assert (new.speedup, new.source) == (pytest.approx(15, rel=1e-3), "")
    kept = dataclasses.replace(before, source=f"{older.commit}, {older.created}: first")
    for workload, way in ((NAME, "base reference"), (OTHER, "reference"), (OTHER, "base reference")):
        assert accepted.of(workload, "call_us", way) == kept, (workload, way)
    again = baselines.accepted([run], "again", make_noise(), accepted)
    assert again.of(OTHER, "call_us", "reference") == kept
    with pytest.raises(ValueError, match="which is of driver 1; got driver"):
        baselines.accepted([run], "more", make_noise(), dataclasses.replace(older, driver="1"))
    with pytest.raises(ValueError, match="expected NVIDIA Other, as the baseline"):
        baselines.accepted([run], "more", make_noise(), dataclasses.replace(older, device="NVIDIA Other"))


def test_no_baseline_is_made_of_a_record_with_a_wrong_result(monkeypatch):
    """Of whatever workload: the commit is not to be held against."""
    monkeypatch.setattr(workloads, "WORKLOADS", {NAME: workloads.WORKLOADS[NAME]})
    run = make_run(steady())
    wrong = Check("7x7x70-fp16-100", 0, False, "3 ids differ from the reference")
    with pytest.raises(ValueError, match="a result was wrong, 7x7x70-fp16-100: 3 ids differ"):
        baselines.accepted([dataclasses.replace(run, checks=(*run.checks, wrong))], "first", make_noise())


def test_a_wrong_result_is_a_regression_however_fast():
    run = make_run(steady(device=100.0))
    wrong = Check(NAME, 2, False, "3 ids differ from the reference")
    judgement = judge_(dataclasses.replace(run, checks=(*run.checks[:2], wrong, *run.checks[3:])), POLICY, None)
    assert judgement.status is Status.REGRESSION
    assert "3 ids differ" in judgement.verdicts[0].reason


def test_a_wrong_result_of_base_alone_is_doubt():
    """Head may be what mends it: it is not accused, and nothing is green that was held beside a wrong result."""
    run = _wrong_beside_base()
    judgement = judge_(run, POLICY, None)
    assert {verdict.status for verdict in judgement.verdicts} == {Status.INCONCLUSIVE}
    assert "nothing to be held beside: wrong result of base: 3 ids differ" in judgement.verdicts[0].reason
    assert not judgement.doubtful(), "more samples decide nothing"
    first, *others = run.checks
    both = (dataclasses.replace(first, detail="4 ids differ", base_alone=False), *others)
    assert judge_(dataclasses.replace(run, checks=both), POLICY, None).status is Status.REGRESSION


def test_a_workload_that_the_baseline_lacks_is_doubt():
    judgement = judge_(make_run({**steady(), **steady(workload=OTHER)}), POLICY, make_baseline())
    assert [verdict.status for verdict in judgement.verdicts if verdict.workload == OTHER] == [Status.INCONCLUSIVE] * 2
    assert judgement.status is Status.INCONCLUSIVE


def test_a_speedup_is_held_against_what_was_measured_its_way():
    """A comparison's speedup is beside base's reference, and another one than beside the reference of its process."""
    baseline = make_baseline()
    for clocks in baseline.entries.values():
        for ways in clocks.values():
            ways["base reference"] = dataclasses.replace(ways["reference"], speedup=2 * ways["reference"].speedup)
    assert judge_(make_run(steady()), POLICY, baseline).status is Status.PASS
    assert judge_(make_compared(), POLICY, baseline).status is Status.REGRESSION
    for clocks in baseline.entries.values():
        for ways in clocks.values():
            del ways["reference"]
    (verdict,) = [v for v in judge_(make_run(steady()), POLICY, baseline).verdicts if v.clock == "device_us"]
    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.reason.endswith("the baseline lacks this workload beside reference")


def test_another_device_than_the_baselines_is_refused():
    with pytest.raises(ValueError, match="baseline: .*NVIDIA Other.*NVIDIA Test"):
        judge_(make_run(steady()), POLICY, dataclasses.replace(make_baseline(), device="NVIDIA Other"))


def test_a_part_of_the_workloads_is_called_a_part():
    notes = judge_(make_run(steady(), skipped=(OTHER,)), POLICY, None).notes
    assert f"A part only: {len(WORKLOADS) - 2} of the {len(WORKLOADS) - 1} workloads" in " ".join(notes)
    every = make_run({key: value for name in WORKLOADS for key, value in steady(workload=name).items()})
    assert not [note for note in judge_(every, POLICY, None).notes if "A part" in note]


def test_older_software_of_the_baseline_and_of_the_noise_is_named():
    noise = dataclasses.replace(make_noise(), driver="570.1")
    notes = judge_(make_run(steady()), POLICY, make_baseline(torch="2.10.0"), noise=noise).notes
    assert "The baseline was taken with torch 2.10.0; this run has 2.11.0." in notes
    assert "The known noise was taken with driver 570.1; this run has 580.1." in notes
    assert not [note for note in judge_(make_run(steady()), POLICY, make_baseline()).notes if "was taken with" in note]


def test_many_comparisons_need_more_evidence_for_a_regression():
    """The same borderline samples: a regression alone, doubt among many."""
    borderline = {(NAME, "call_us"): [0.91, 0.935, 0.96]}
    alone = judge_(make_run(borderline, environment=CPU), Policy(looks=1), None)
    names = [f"1x32x{vocab}-fp16-100" for vocab in range(1000, 1030)]
    crowd = {**borderline, **{(name, "call_us"): [3.0, 3.0, 3.01] for name in names}}
    assert alone.status is Status.REGRESSION
    assert judge_(make_run(crowd, environment=CPU), Policy(looks=1), None).status is Status.INCONCLUSIVE


def test_processes_of_fewer_pairs_than_are_known_are_believed_less():
    """Of a quarter of the pairs, the interval is twice as wide."""
    run, noise = make_compared(1.0), make_noise()
    widths = {}
    for known_pairs in (0, 10, 40):
        entries = {
            name: {
                clock: {pair: dataclasses.replace(one, pairs=known_pairs) for pair, one in pairs.items()}
                for clock, pairs in clocks.items()
            }
            for name, clocks in noise.entries.items()
        }
        verdicts = judge_(run, POLICY, None, noise=dataclasses.replace(noise, entries=entries)).verdicts
        found = next(one.ratio for one in verdicts if (one.question, one.clock) == ("slowdown", "device_us"))
        widths[known_pairs] = math.log(found.high / found.low)
    assert widths[0] == widths[10]
    assert widths[40] == pytest.approx(2 * widths[10], rel=0.05)


def test_whether_fused_itself_is_slower_counts_as_a_comparison(monkeypatch):
    """Each question that may end in a REGRESSION has its share of the error."""
    errors = set()
    interval = stats.interval
    monkeypatch.setattr(
        stats, "interval", lambda logs, error, noise=None: errors.add(error) or interval(logs, error, noise)
    )
    for run, baseline, comparisons in [
        (make_run(steady()), None, 2),
        (make_run(steady()), make_baseline(), 3),
        (make_compared(), None, 4),
        (make_compared(), make_baseline(), 5),
    ]:
        errors.clear()
        judge_(run, POLICY, baseline)
        assert errors == {POLICY.look_error(), POLICY.look_error() / comparisons}


def _slowdowns(run, **more):
    judgement = judge_(run, POLICY, None, noise=make_noise(), **more)
    return {verdict.clock: verdict for verdict in judgement.verdicts if verdict.question == "slowdown"}


def test_the_same_code_passes_beside_itself():
    assert {verdict.status for verdict in _slowdowns(make_compared()).values()} == {Status.PASS}


@pytest.mark.parametrize(("device", "call", "clock"), [(1.08, 1.0, "device_us"), (1.0, 1.12, "call_us")])
def test_a_slowdown_beside_base_is_a_regression_though_the_speedup_is_far_above_the_floor(device, call, clock):
    found = _slowdowns(make_compared(device, call))
    assert found.pop(clock).status is Status.REGRESSION
    assert {verdict.status for verdict in found.values()} == {Status.PASS}


def test_a_gain_is_no_regression():
    assert {verdict.status for verdict in _slowdowns(make_compared(0.8, 0.7)).values()} == {Status.PASS}


def test_both_slower_is_said():
    reason = _slowdowns(make_compared(1.1, moved=1.1))["device_us"].reason
    assert "fused +10.0%, reference +10.0%: both became slower" in reason
    assert "both" not in _slowdowns(make_compared(1.1))["device_us"].reason


def test_one_more_launch_is_a_regression_whatever_the_times():
    counts = {
        "head": {NAME: {"launches": 2, "synchronizations": 0, "allocations": 0}},
        "base": {NAME: {"launches": 1, "synchronizations": 0, "allocations": 0}},
    }
    found = _slowdowns(make_compared(counts=counts))
    assert found["count"].status is Status.REGRESSION
    assert found["count"].reason == "2 launches a call; base 1"
    del counts["base"][NAME]["launches"]
    found = _slowdowns(make_compared(counts=counts))["count"]
    assert (found.status, found.reason) == (Status.INCONCLUSIVE, "not counted of head and base: launches")
    counts["base"][NAME]["launches"] = 0
    assert _slowdowns(make_compared(counts=counts))["count"].reason == "no call is without a launch"
    counts["base"] = counts["head"]
    assert "count" not in _slowdowns(make_compared(counts=counts))


def test_noise_that_forbids_the_tolerance_raises_it_and_says_what_can_be_seen():
    (verdict,) = _on_device(judge_(make_compared(1.03), POLICY, None, noise=make_noise(device=0.012)))
    assert 1.02 < verdict.bound < 1.03
    assert verdict.status is not Status.REGRESSION
    assert "slowdowns from" in verdict.reason


def test_noise_cannot_raise_it_beyond_the_loosest():
    """Where noise hides everything, a slowdown is doubt, and so is none."""
    noise = make_noise(device=0.2)
    assert (
        slowdown_tolerance(POLICY, "cuda", "device_us", noise.of(NAME, "device_us", "fused beside base fused"), 4)
        == 0.05
    )
    for slowdown in (1.0, 1.3):
        (verdict,) = _on_device(judge_(make_compared(slowdown), POLICY, None, noise=noise))
        assert (verdict.status, verdict.bound) == (Status.INCONCLUSIVE, 1.05)


def test_a_run_noisier_than_known_goes_by_its_own_noise_and_says_so():
    unsteady = {(NAME, "device_us"): [1.03, 1.0, 1.03, 1.0], (NAME, "call_us"): [1.0] * 4}
    run = make_run(steady(), slowdowns=unsteady)
    (verdict,) = _on_device(judge_(run, POLICY, None, noise=make_noise(device=0.001)))
    assert verdict.status is Status.INCONCLUSIVE
    assert "the processes vary more than is known of this device" in verdict.reason
    assert verdict.ratio == stats.interval(
        stats.ratios(
            one
            for one in run.series
            if one.clock == "device_us" and one.beside == "base fused" and one.implementation == "fused"
        ),
        POLICY.look_error(),
    )


def _on_device(judgement):
    return [v for v in judgement.verdicts if (v.question, v.clock) == ("slowdown", "device_us")]


@pytest.mark.parametrize(
    ("slowdown", "expires", "base", "status"),
    [
        (0.12, "2027-01-01", "d" * 40, Status.PASS),
        (0.12, "2027-01-01", "d" * 7, Status.PASS),
        (0.12, "2026-11-22", "d" * 40, Status.REGRESSION),
        (0.12, "2027-01-01", "e" * 40, Status.REGRESSION),
        (0.02, "2027-01-01", "d" * 40, Status.REGRESSION),
        (0.10, "2027-01-01", "d" * 40, Status.INCONCLUSIVE),
    ],
)
def test_an_accepted_slowdown_has_a_size_an_end_and_a_base(slowdown, expires, base, status):
    accepted = (AcceptedSlowdown(NAME, "device_us", base, slowdown, "exact sums", expires),)
    verdict = _slowdowns(make_compared(1.1), accepted=accepted)["device_us"]
    assert verdict.status is status
    assert "exact sums" in verdict.reason


def test_an_accepted_slowdown_lowers_what_the_baseline_asks_beside_that_base():
    """Or it would be accepted up to the baseline's tolerance alone."""
    slower = make_run(
        steady(device=15 / 1.15),
        slowdowns={(NAME, "device_us"): [1.15 * s for s in SPREAD], (NAME, "call_us"): [*SPREAD]},
        fused_us=11.5,
    )

    def speedup(*accepted):
        judgement = judge_(slower, POLICY, make_baseline(), noise=make_noise(), accepted=accepted)
        return next(v for v in judgement.verdicts if (v.question, v.clock) == ("speedup", "device_us"))

    assert speedup().status is Status.REGRESSION
    verdict = speedup(AcceptedSlowdown(NAME, "device_us", "d" * 40, 0.2, "exact sums", "2027-01-01"))
    assert verdict.status is Status.PASS
    assert "(baseline 15.00x less 5.0%, and 20.0% accepted)" in verdict.reason
    elsewhere = AcceptedSlowdown(NAME, "device_us", "e" * 40, 0.2, "exact sums", "2027-01-01")
    assert speedup(elsewhere).status is Status.REGRESSION


@pytest.mark.parametrize(
    ("launches", "base", "status"),
    [(2, "d" * 7, Status.PASS), (3, "d" * 7, Status.REGRESSION), (2, "e" * 7, Status.REGRESSION)],
)
def test_a_launch_more_is_accepted_as_a_slowdown_is(launches, base, status):
    one = {"launches": 1, "synchronizations": 0, "allocations": 0}
    run = make_compared()
    run = dataclasses.replace(run, counts={"head": {NAME: {**one, "launches": launches}}, "base": {NAME: one}})
    judgement = judge_(run, POLICY, None, accepted=(AcceptedSlowdown(NAME, "count", base, 1, "split", "2027-01-01"),))
    (verdict,) = [verdict for verdict in judgement.verdicts if verdict.clock == "count"]
    assert verdict.status is status
    assert f"{launches} launches a call; base 1" in verdict.reason
    assert "split" in verdict.reason


@pytest.mark.parametrize(("clock", "slowdown"), [("count", 0.5), ("count", 0), ("device_us", 1)])
def test_an_accepted_slowdown_is_a_share_and_of_counts_a_number(clock, slowdown):
    with pytest.raises(ValueError, match="a slowdown between 0 and 1, or of counts from 1 to 99"):
        AcceptedSlowdown(NAME, clock, "d" * 7, slowdown, "split", "2027-01-01")


def test_an_accepted_slowdown_is_found_among_those_of_other_bases_and_times():
    def accepted(base, expires):
        return AcceptedSlowdown(NAME, "device_us", base, 0.06, "exact sums", expires)

    counts, over, elsewhere = (
        accepted("d" * 7, "2027-01-01"),
        accepted("d" * 7, "2026-11-22"),
        accepted("e" * 7, "2027-01-01"),
    )
    verdict = _slowdowns(make_compared(1.04), accepted=(over, elsewhere, counts))["device_us"]
    assert (verdict.status, verdict.bound) == (Status.PASS, 1.06)
    verdict = _slowdowns(make_compared(1.04), accepted=(elsewhere, over))["device_us"]
    assert verdict.status is Status.REGRESSION


def test_a_dropped_block_is_never_green():
    state = GpuState(1200, 2619, 88, 700.0, ("hardware thermal slowdown",), 0)
    run = make_compared()
    kept = tuple(one for one in run.series if one.clock != "device_us")
    block = Block(NAME, 0, "device_us", state.fault, state)
    judgement = judge_(dataclasses.replace(run, series=kept, blocks=(block,)), POLICY, None)
    assert judgement.status is Status.INCONCLUSIVE
    assert {v.reason for v in judgement.verdicts if v.clock == "device_us"} == {
        "the GPU was throttled: hardware thermal slowdown"
    }
    assert "1 of 1 blocks of samples were dropped" in " ".join(judgement.notes)


def test_the_compiled_code_stands_beside_the_slowdown():
    code = {"registers": 48, "loads_16_bytes": 9, "barriers": 9, "launches": 1}
    counts = {"head": {NAME: {**code, "registers": 80, "loads_16_bytes": 0}}, "base": {NAME: code}}
    slower = judge_(dataclasses.replace(make_compared(1.05), counts=counts), POLICY, None)
    (reason,) = [v.reason for v in slower.verdicts if (v.question, v.clock) == ("slowdown", "device_us")]
    assert "in the compiled code, registers 48 to 80, loads of 16 bytes 9 to 0" in reason
    as_fast = judge_(dataclasses.replace(make_compared(1.0), counts=counts), POLICY, None)
    assert not any("compiled" in v.reason for v in as_fast.verdicts)


def test_a_process_without_samples_is_never_green():
    """All its blocks were dropped: what the others say is not the whole."""
    run = make_run(steady())
    kept = tuple(one for one in run.series if (one.clock, one.process) != ("device_us", 2))
    state = GpuState(1200, 2619, 88, 700.0, ("power cap",), 0)
    block = Block(NAME, 2, "device_us", state.fault, state)
    verdicts = _by_clock(judge_(dataclasses.replace(run, series=kept, blocks=(*blocks_of(kept), block)), POLICY, None))
    assert verdicts["device_us"].status is Status.INCONCLUSIVE
    assert (
        verdicts["device_us"].reason
        == "no samples beside reference of 1 of 4 processes: the GPU was throttled: power cap"
    )
    assert verdicts["call_us"].status is Status.PASS


def test_a_baseline_of_other_clocks_is_refused():
    run = make_run({(NAME, "call_us"): [4.0] * 3}, environment=dataclasses.replace(CPU, device=GPU.device))
    with pytest.raises(ValueError, match="baseline: expected .* on call_us, as the run; got device_us, call_us"):
        judge_(run, POLICY, make_baseline())


def test_two_ways_to_measure_a_speedup_are_not_held_for_one():
    """Noise known of one process's pairs says nothing of pairs from two."""
    noise = make_noise(device=0.05)
    del noise.entries[NAME]["device_us"]["fused beside base reference"]
    verdicts = {
        v.clock: v for v in judge_(make_compared(), POLICY, None, noise=noise).verdicts if v.question == "speedup"
    }
    assert verdicts["device_us"].ratio.high / verdicts["device_us"].ratio.low < 1.01


def test_a_failed_check_counts_wherever_it_is():
    run = make_run(steady())
    stray = Check(OTHER, 0, False, "1 id differs")
    assert judge_(dataclasses.replace(run, checks=(*run.checks, stray)), POLICY, None).status is Status.REGRESSION


def test_what_was_not_counted_or_hardly_sampled_is_never_green():
    run = make_compared(counts={})
    lacks_all = "not counted of head and base: launches, waits of the host, allocations on the device"
    assert _slowdowns(run)["count"].reason == lacks_all
    assert _slowdowns(run)["count"].status is Status.INCONCLUSIVE
    for name, text in (("synchronizations", "waits of the host"), ("allocations", "allocations on the device")):
        less = {key: count for key, count in COUNTS.items() if key != name}
        for counts in ({"head": less, "base": COUNTS}, {"head": COUNTS, "base": less}):
            found = _slowdowns(make_compared(counts={side: {NAME: one} for side, one in counts.items()}))["count"]
            assert (found.status, found.reason) == (Status.INCONCLUSIVE, f"not counted of head and base: {text}")
    few = [
        dataclasses.replace(one, us=one.us[:2], beside_us=one.beside_us[:2]) if one.process == 1 else one
        for one in run.series
    ]
    verdict = _slowdowns(dataclasses.replace(run, series=tuple(few)))["device_us"]
    assert (verdict.status, verdict.reason) == (
        Status.INCONCLUSIVE,
        "2 pairs beside base fused in a process; expected at least 3",
    )


def test_a_speedup_of_two_pairs_is_never_green():
    run = make_run(steady())
    few = tuple(dataclasses.replace(one, us=one.us[:2], beside_us=one.beside_us[:2]) for one in run.series)
    verdict = _by_clock(judge_(dataclasses.replace(run, series=few), POLICY, None))["call_us"]
    assert (verdict.status, verdict.reason) == (
        Status.INCONCLUSIVE,
        "2 pairs beside reference in a process; expected at least 3",
    )


def test_samples_without_the_state_of_the_gpu_are_never_green():
    run = make_run(steady())
    stateless = tuple(dataclasses.replace(block, gpu=None) if block.process == 1 else block for block in run.blocks)
    for blocks, processes in (((), 4), (stateless, 1)):
        found = _by_clock(judge_(dataclasses.replace(run, blocks=blocks), POLICY, None))["call_us"]
        assert (found.status, found.reason) == (
            Status.INCONCLUSIVE,
            f"of {processes} of 4 processes, no state of the GPU is on record",
        )
    on_a_cpu = make_run({(NAME, "call_us"): [1.1, 1.1, 1.1, 1.11]}, environment=CPU)
    assert judge_(on_a_cpu, POLICY, None).status is Status.PASS
    assert judge_(dataclasses.replace(on_a_cpu, blocks=()), POLICY, None).status is Status.INCONCLUSIVE


def test_fewer_than_three_processes_pass_no_slowdown_that_they_may_hide():
    """Two that happen to agree say nothing where processes differ by more than is known."""
    for processes, status in ((1, Status.INCONCLUSIVE), (2, Status.INCONCLUSIVE), (3, Status.PASS)):
        same = {(NAME, clock): [1.0, 1.001, 0.999][:processes] for clock in ("device_us", "call_us")}
        speedups = {key: [15.0] * processes for key in same}
        assert _slowdowns(make_run(speedups, slowdowns=same))["device_us"].status is status


def test_what_would_be_told_is_what_the_verdict_goes_by():
    """Few processes are suspected to differ by more than is known, and accuse of more alone than the message says."""
    noise = make_noise()
    (verdict,) = _on_device(judge_(make_compared(1.03), POLICY, None, noise=noise))
    assert verdict.status is Status.INCONCLUSIVE
    told = float(re.search(r"slowdowns from ([\d.]+)% on are told in 95% of runs of 6 processes", verdict.reason)[1])
    six = {
        (NAME, clock): [(1 + told / 100 + 0.001) * s for s in (*SPREAD, 1.0, 1.0)] for clock in ("device_us", "call_us")
    }
    run = make_run({key: [15.0] * 6 for key in six}, slowdowns=six)
    assert _slowdowns(run)["device_us"].status is Status.REGRESSION


def test_a_comparison_without_its_base_explains_no_faster_reference():
    run = make_run(steady(call=3.0), slowdowns={(NAME, "device_us"): [*SPREAD], (NAME, "call_us"): [*SPREAD]})
    kept = tuple(one for one in run.series if (one.clock, one.beside) != ("call_us", "base fused"))
    judgement = judge_(dataclasses.replace(run, series=kept), POLICY, make_baseline(), noise=make_noise())
    assert judgement.status is not Status.PASS


def test_a_process_without_samples_beside_base_is_never_green():
    run = make_compared()
    kept = [one for one in run.series if (one.process, one.implementation, one.beside) != (1, "fused", "base fused")]
    for verdict in _slowdowns(dataclasses.replace(run, series=tuple(kept))).values():
        assert verdict.status is Status.INCONCLUSIVE
        assert verdict.reason == "no samples beside base fused of 1 of 4 processes"


def test_more_samples_are_taken_only_where_they_may_decide():
    run = make_run({**steady(), **steady(workload=OTHER)})
    assert judge_(run, POLICY, make_baseline()).status is Status.INCONCLUSIVE  # the baseline lacks it
    assert judge_(run, POLICY, make_baseline()).doubtful() == {}
    assert judge_(make_run(steady()), POLICY, None, [NAME, OTHER]).doubtful() == {}  # was not asked for
    doubtful = judge_(make_run({**steady(), (NAME, "device_us"): [2.9, 3.1, 3.0]}), POLICY, None).doubtful()
    assert doubtful == {NAME: {"device_us"}}


def test_a_process_that_was_to_measure_one_clock_is_missed_on_no_other():
    """Where a further look asks for the clock in doubt alone; on that one, samples that are missing are a doubt."""
    run = make_run(steady())
    for clock, other in (("device_us", "call_us"), ("call_us", "device_us")):
        asked = dataclasses.replace(run.checks[-1], process=4, clocks=(clock,))
        series = (*run.series, dataclasses.replace(run.series[0], process=4, clock=clock))
        missed = dataclasses.replace(run, checks=(*run.checks, asked))
        found = _by_clock(judge_(missed, POLICY, None))
        assert found[clock].reason == "no samples beside reference of 1 of 5 processes"
        assert found[other].status is Status.PASS
        measured = dataclasses.replace(missed, series=series, blocks=blocks_of(series))
        assert _by_clock(judge_(measured, POLICY, None))[clock].reason != found[clock].reason
        unchecked = dataclasses.replace(measured, checks=run.checks)
        assert _by_clock(judge_(unchecked, POLICY, None))[clock].reason == "timed without a check of its results"


def test_a_wrong_result_is_one_on_every_clock():
    run = make_run(steady())
    wrong = Check(NAME, 4, False, "3 ids differ", clocks=("call_us",))
    judgement = judge_(dataclasses.replace(run, checks=(*run.checks, wrong)), POLICY, None)
    assert {verdict.status for verdict in judgement.verdicts} == {Status.REGRESSION}


@pytest.mark.parametrize(
    ("run", "baseline", "step"),
    [
        (make_run({**steady(), (NAME, "device_us"): [2.9, 3.1, 3.0, 2.9]}), None, "measure again, in more processes"),
        (make_run(steady(device=2.5), quiet=False), None, "measure again, in more processes"),
        (make_run({(NAME, "call_us"): [4.0, 4.0, 4.0]}), None, "measure again (`python -m benchmarks doctor`"),
        (make_run({**steady(), **steady(workload=OTHER)}), make_baseline(), "bring the baseline up to date"),
        (_wrong_beside_base(), None, "hold head beside a commit whose results are right"),
    ],
)
def test_every_doubt_names_what_may_end_it(run, baseline, step):
    judgement = judge_(run, POLICY, baseline)
    assert judgement.status is Status.INCONCLUSIVE
    (note,) = [note for note in judgement.notes if note.startswith("In doubt")]
    doubts = sum(verdict.status is Status.INCONCLUSIVE for verdict in judgement.verdicts)
    assert note.startswith(f"In doubt, {doubts} of {len(judgement.verdicts)} verdicts: {step}")


def test_where_nothing_is_in_doubt_no_step_is_named():
    for run in (make_run(steady()), make_run(steady(device=2.0))):
        assert not [note for note in judge_(run, POLICY, None).notes if "In doubt" in note]


def test_a_baseline_that_was_left_behind_is_said_to_be():
    verdict = _by_clock(judge_(make_run(steady(device=25.0)), POLICY, make_baseline()))["device_us"]
    assert (verdict.status, "67% better than the baseline: renew it" in verdict.reason) == (Status.PASS, True)
    assert "renew" not in _by_clock(judge_(make_run(steady(device=15.5)), POLICY, make_baseline()))["device_us"].reason


def test_calls_inside_a_graph_are_told_and_not_judged():
    run = make_run(steady())
    inside = dataclasses.replace(run.series[0], clock="graph_us", us=(5.0,) * 3, beside_us=(60.0,) * 3)
    judgement = judge_(dataclasses.replace(run, series=(*run.series, inside)), POLICY, None)
    assert {verdict.clock for verdict in judgement.verdicts} == {"device_us", "call_us"}
    assert f"In a CUDA graph, microseconds a call, recorded and not judged: {NAME} 5.00 beside 60.00 (reference)." in (
        judgement.notes
    )


DECODING = Decoding(1, 32, 157184, "bf16")
DECODE = DECODING.name


@pytest.fixture
def _decoding(monkeypatch):
    monkeypatch.setitem(WORKLOADS, DECODE, DECODING)


@pytest.mark.usefixtures("_decoding")
@pytest.mark.parametrize(("speedup", "status"), [(1.2, Status.PASS), (0.9, Status.REGRESSION)])
def test_decoding_must_not_be_slower_than_with_the_reference_and_is_judged_on_the_host_clock_alone(speedup, status):
    run = make_run({(DECODE, "call_us"): [speedup * s for s in (0.998, 0.999, 1.001, 1.002)]})
    (verdict,) = judge_(run, POLICY, None, [DECODE]).verdicts
    assert (verdict.workload, verdict.clock, verdict.status) == (DECODE, "call_us", status)
    assert f"{1.0:.2f}x (floor)" in verdict.reason


def test_an_engine_s_step_is_judged_as_a_call_is(monkeypatch):
    step = EngineStep("sglang", Workload(1, 32, 157184, "fp32", 100))
    monkeypatch.setitem(WORKLOADS, step.name, step)
    clocks = [(step.name, "device_us"), (step.name, "call_us")]
    run = make_run({key: [8.0, 8.01, 8.02] for key in clocks}, slowdowns={key: [1.0] * 3 for key in clocks}, counts={})
    verdicts = judge_(run, POLICY, None, [step.name], noise=make_noise(workload=step.name)).verdicts
    assert {(verdict.clock, verdict.question) for verdict in verdicts} >= {
        ("device_us", "slowdown"),
        ("count", "slowdown"),
    }
    notes = judge_(dataclasses.replace(run, skipped=(step.name,)), POLICY, None, [step.name]).notes
    assert f"Left out, because the base commit is too old for them: {step.name}." in notes


@pytest.mark.usefixtures("_decoding")
def test_decoding_beside_a_base_needs_no_launches_counted():
    spread = (0.998, 0.999, 1.001, 1.002)
    run = make_run(
        {(DECODE, "call_us"): [1.2 * s for s in spread]}, slowdowns={(DECODE, "call_us"): list(spread)}, counts={}
    )
    judgement = judge_(run, POLICY, None, [DECODE], noise=make_noise(workload=DECODE))
    assert [(verdict.question, verdict.status) for verdict in judgement.verdicts] == [
        ("slowdown", Status.PASS),
        ("speedup", Status.PASS),
    ]


@pytest.mark.usefixtures("_decoding")
def test_what_base_is_too_old_for_is_left_out_and_said(monkeypatch, tmp_path):
    monkeypatch.setattr(session, "BASELINES", tmp_path)
    run = make_compared(skipped=(DECODE,))
    assert DECODE not in session.case_of(run).expected
    assert NAME in session.case_of(run).expected
    assert DECODE in session.case_of(make_run(steady(), skipped=(DECODE,))).expected, "a run without a base has none"
    assert any(
        note == f"Left out, because the base commit is too old for them: {DECODE}." for note in judge(run, Case()).notes
    )
