"""A record's verdicts follow from its samples and from what it says it was judged by."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks import results
from benchmarks.gate import Case, Status, judge
from benchmarks.policy import Policy
from benchmarks.results import AcceptedSlowdown
from benchmarks.verification import judged_otherwise, verify, with_verdicts
from tests.records import NAME, OTHER, make_baseline, make_compared, make_noise

POLICY = Policy()


def test_a_verdict_is_derived_again_from_the_record_alone(tmp_path):
    run = make_compared(1.08)
    accepted = (AcceptedSlowdown(NAME, "call_us", "d" * 40, 0.1, "x", "2027-01-01"),)
    case = Case(POLICY, make_baseline(), make_noise(), accepted, (NAME,))
    results.save(with_verdicts(run, case, judge(run, case)), tmp_path / "run.json")
    stored = results.load(results.Run, tmp_path / "run.json")
    judgement, differences = verify(stored)
    assert judgement.status is Status.REGRESSION
    assert differences == []
    faster = tuple(dataclasses.replace(one, us=tuple(us * 0.9 for us in one.us)) for one in stored.series)
    assert verify(dataclasses.replace(stored, series=faster))[1]
    with pytest.raises(ValueError, match="holds no verdicts"):
        verify(run)


def test_another_scipys_last_digits_are_no_difference():
    run, case = make_compared(), Case(POLICY, make_baseline(), make_noise())
    judged = with_verdicts(run, case, judge(run, case))
    for off, differs in ((1e-11, False), (1e-6, True)):
        verdicts = [
            {**one, "ratio": one["ratio"] and {**one["ratio"], "low": one["ratio"]["low"] * (1 + off)}}
            for one in judged.judged["verdicts"]
        ]
        changed = dataclasses.replace(judged, judged={**judged.judged, "verdicts": verdicts})
        assert bool(verify(changed)[1]) is differs


def test_what_a_record_was_judged_by_is_held_beside_what_is_here():
    run = make_compared()
    case = Case(POLICY, make_baseline(), make_noise())
    looser = dataclasses.replace(POLICY, error=0.2)
    judged = with_verdicts(run, dataclasses.replace(case, policy=looser, noise=None), judge(run, case))
    assert judged_otherwise(judged, case) == [
        "policy than this repository's: error 0.2; here 0.05",
        "noise than this repository's: none; here of 2026-11-23",
    ]
    assert judged_otherwise(with_verdicts(run, case, judge(run, case)), case) == []


def test_a_record_that_was_cut_down_to_what_passes_is_told():
    """Without its slow workload, and without expecting it, a record is consistent in itself."""
    case = Case(POLICY, expected=(NAME, OTHER))
    cut = with_verdicts(make_compared(), dataclasses.replace(case, expected=(NAME,)), judge(make_compared(), Case()))
    assert judged_otherwise(cut, case) == [f"list of expected workloads than this repository's: without {OTHER}"]
    assert judged_otherwise(with_verdicts(make_compared(), case, judge(make_compared(), case)), case) == []
