"""How often, and in how many processes, what is in doubt is measured again."""

from __future__ import annotations

import math

import pytest

from benchmarks import gate, measure, session, workloads
from benchmarks.measure.sides import Side
from benchmarks.policy import Policy, processes_wanted
from benchmarks.results import Check, Noise, State
from tests.records import NAME, OTHER, make_noise, make_run, make_series

BASE = Side(None, None)
STATE = State("d" * 40, False, "dllm_kernels/__init__.py")
ALL = "every workload on every clock"
DOUBT = (NAME, "device_us")
LOOKS = [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9, 10, 11]]


def _judged(monkeypatch, doubts, deviation=0.003, noise=None, question="slowdown", accused=(), base=BASE):
    """What is measured, in which processes, where these workloads and clocks are in doubt at every look; NAME's
    processes differ by so much on the device's clock."""
    measured, kept = [], []

    def made_up(chosen, *, processes, first_process, clocks, **_):
        numbers = range(first_process, first_process + processes)
        measured.append(({one.name: sorted(clocks[one.name]) for one in chosen} if clocks else ALL, list(numbers)))
        checks = tuple(
            Check(one.name, number, True, "equal", clocks=tuple(clocks[one.name]) if clocks else None)
            for one in chosen for number in numbers
        )  # fmt: skip
        series = tuple(
            make_series(
                (check.workload, clock), check.process,
                math.exp(deviation * (-1) ** check.process if (check.workload, clock) == (NAME, "device_us") else 0.0),
                pair=("fused", "base fused"),
            )
            for check in checks for clock in ("device_us", "call_us") if check.covers(clock)
        )  # fmt: skip
        return make_run({}, base=STATE, checks=checks, series=series)

    def judge(run):
        def verdicts(found, status):
            return [gate.Verdict(*one, question, status, "") for one in found]

        found = verdicts(doubts, gate.Status.INCONCLUSIVE) + verdicts(accused, gate.Status.REGRESSION)
        return gate.Judgement((*found, gate.Verdict(NAME, "graph_us", question, gate.Status.PASS, "")), (), 96)

    monkeypatch.setattr(measure, "measure", made_up)
    monkeypatch.setattr(measure, "has_gpu", lambda: True)
    monkeypatch.setattr(session, "noise_of", lambda device: noise)
    chosen = [workloads.WORKLOADS[name] for name in (NAME, OTHER)]
    run, _, looks = session.judged(chosen, judge, base=base, keep=kept.append)
    assert kept[-1] == run
    assert len(kept) == len(measured)
    return measured, looks


def test_without_doubt_there_is_one_look(monkeypatch):
    measured, looks = _judged(monkeypatch, [])
    assert (measured, looks) == ([(ALL, LOOKS[0])], 1)


def test_doubt_doubles_the_processes_at_every_look(monkeypatch):
    measured, looks = _judged(monkeypatch, [DOUBT])
    assert looks == 3
    assert [numbers for _, numbers in measured] == LOOKS


def test_a_further_look_measures_what_is_in_doubt_on_the_clock_in_doubt(monkeypatch):
    measured, _ = _judged(monkeypatch, [DOUBT, (NAME, "call_us"), (OTHER, "call_us")], 0.01)
    assert measured[0][0] == ALL
    assert [what for what, _ in measured[1:3]] == [{NAME: ["call_us", "device_us"], OTHER: ["call_us"]}] * 2
    assert len(measured) > 3
    assert [what for what, _ in measured[3:]] == [{NAME: ["device_us"]}] * len(measured[3:]), "the one that differs"


def test_the_last_look_goes_on_where_processes_differ(monkeypatch):
    """Of the workload in doubt alone, and whether that was known of the device or not."""
    for noise in (None, make_noise(device=0.003)):
        measured, looks = _judged(monkeypatch, [DOUBT, (OTHER, "device_us")], 0.01, noise)
        assert looks == 3
        assert [numbers for _, numbers in measured[:3]] == LOOKS
        rounds = [list(range(first, first + 6)) for first in range(12, session.MOST_PROCESSES["cuda"], 6)]
        assert measured[3:] == [({NAME: ["device_us"]}, numbers) for numbers in rounds]


def test_a_doubtful_speedup_asks_for_no_more(monkeypatch):
    """Its tolerance follows the noise of its baseline."""
    measured, _ = _judged(monkeypatch, [DOUBT], 0.01, question="speedup")
    assert len(measured) == 3


def test_a_workload_that_is_accused_is_not_judged_anew(monkeypatch):
    measured, _ = _judged(monkeypatch, [DOUBT, (OTHER, "device_us")], accused=[DOUBT])
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
