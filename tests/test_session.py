"""How often, and in how many processes, what is in doubt is measured again."""

from __future__ import annotations

import math

import pytest

from benchmarks import gate, session, workloads
from benchmarks.measure.sides import Side
from benchmarks.policy import Policy, processes_wanted
from benchmarks.results import Check, Noise, State
from tests.records import NAME, OTHER, make_noise, make_run, make_series

BASE = Side(None, None)
STATE = State("d" * 40, False, "dllm_kernels/__init__.py")
LOOKS = [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9, 10, 11]]


def _judged(monkeypatch, doubts, deviation=0.003, noise=None, question="slowdown", accused=(), base=BASE):
    """What is measured where these workloads are in doubt at every look; NAME's processes differ by so much."""
    measured, kept = [], []

    def measure(chosen, *, processes=None, first_process=0, clocks=None, **_):
        names, numbers = [one.name for one in chosen], range(first_process, first_process + (processes or 3))
        measured.append((names, list(numbers)))
        assert clocks == ({name: {"device_us"} for name in names} if first_process else None), "those in doubt"
        of = None if clocks is None else ("device_us",)
        checks = tuple(Check(name, number, True, "equal", clocks=of) for name in names for number in numbers)
        series = tuple(
            make_series(
                (name, "device_us"), number, math.exp(deviation * (-1) ** number if name == NAME else 0.0),
                pair=("fused", "base fused"),
            )
            for name in names for number in numbers
        )  # fmt: skip
        return make_run({}, base=STATE, checks=checks, series=series)

    def judge(run):
        def verdicts(names, status):
            return [gate.Verdict(name, "device_us", question, status, "") for name in names]

        found = verdicts(doubts, gate.Status.INCONCLUSIVE) + verdicts(accused, gate.Status.REGRESSION)
        return gate.Judgement((*found, gate.Verdict(NAME, "call_us", question, gate.Status.PASS, "")), (), 96)

    monkeypatch.setattr(session, "measured", measure)
    monkeypatch.setattr(session, "noise_of", lambda device: noise)
    chosen = [workloads.WORKLOADS[name] for name in (NAME, OTHER)]
    run, _, looks = session.judged(chosen, judge, base=base, keep=kept.append)
    assert kept[-1] == run
    assert len(kept) == len(measured)
    return measured, looks


def test_without_doubt_there_is_one_look(monkeypatch):
    measured, looks = _judged(monkeypatch, [])
    assert (measured, looks) == ([([NAME, OTHER], LOOKS[0])], 1)


def test_doubt_doubles_the_processes_at_every_look(monkeypatch):
    measured, looks = _judged(monkeypatch, [NAME])
    assert looks == 3
    assert [numbers for _, numbers in measured] == LOOKS


def test_the_last_look_goes_on_where_processes_differ(monkeypatch):
    """Of the workload in doubt alone, and whether that was known of the device or not."""
    for noise in (None, make_noise(device=0.003)):
        measured, looks = _judged(monkeypatch, [NAME, OTHER], 0.01, noise)
        assert looks == 3
        assert [numbers for _, numbers in measured[:3]] == LOOKS
        rounds = [list(range(first, first + 6)) for first in range(12, session.MOST_PROCESSES["cuda"], 6)]
        assert measured[3:] == [([NAME], numbers) for numbers in rounds]


def test_a_doubtful_speedup_asks_for_no_more(monkeypatch):
    """Its tolerance follows the noise of its baseline."""
    measured, _ = _judged(monkeypatch, [NAME], 0.01, question="speedup")
    assert len(measured) == 3


def test_a_workload_that_is_accused_is_not_judged_anew(monkeypatch):
    measured, _ = _judged(monkeypatch, [NAME, OTHER], accused=[NAME])
    assert {name for names, _ in measured[1:] for name in names} == {OTHER}


@pytest.mark.parametrize(
    ("deviation", "fewest", "most"), [(0.001, 1, 3), (0.003, 4, 9), (0.0076, 18, 30), (0.1, 99, 99)]
)
def test_twice_what_is_allowed_is_told_in_the_processes_that_are_wanted(deviation, fewest, most):
    logs = [deviation * sign for sign in (-1, 1, -1, 1, -1, 1)]
    for noise in (None, Noise(deviation, 12), Noise(deviation / 10, 12)):
        wanted = processes_wanted(Policy(), "cuda", "device_us", logs, noise, 96, 99)
        assert fewest <= wanted <= (most if noise else 2 * most + 5)
    assert processes_wanted(Policy(), "cuda", "device_us", logs[:1], None, 96, 99) == 0
