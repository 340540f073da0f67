"""How often, and in how many processes, what is in doubt is measured again."""

from __future__ import annotations

import pytest

from benchmarks import gate, session, workloads
from benchmarks.measure.sides import Side
from benchmarks.policy import Policy, processes_wanted
from benchmarks.results import Check
from tests.records import NAME, OTHER, make_noise, make_run

BASE = Side(None, None)
CALM, RESTLESS = 0.003, 0.0076  # standard deviations of processes on the device's clock


def _judged(monkeypatch, noise, doubts, **options):
    """The workloads and numbers of processes that are measured where the same ones are in doubt at every look."""
    measured = []

    def measure(chosen, *, processes=None, first_process=0, **_):
        processes = processes or session.PROCESSES["cuda"]
        numbers = range(first_process, first_process + processes)
        measured.append(([workload.name for workload in chosen], list(numbers)))
        checks = tuple(Check(workload.name, number, True, "equal") for workload in chosen for number in numbers)
        return make_run({}, checks=checks)

    def judge(run):
        verdicts = [gate.Verdict(name, "device_us", "slowdown", gate.Status.INCONCLUSIVE, "") for name in doubts]
        return gate.Judgement((*verdicts, gate.Verdict(NAME, "call_us", "slowdown", gate.Status.PASS, "")), ())

    monkeypatch.setattr(session, "measured", measure)
    monkeypatch.setattr(session, "noise_of", lambda device: noise)
    *_, looks = session.judged([workloads.WORKLOADS[NAME]], judge, **options)
    return measured, looks


def test_without_doubt_there_is_one_look(monkeypatch):
    measured, looks = _judged(monkeypatch, None, [])
    assert (len(measured), looks) == (1, 1)


def test_doubt_doubles_the_processes_at_every_look(monkeypatch):
    measured, looks = _judged(monkeypatch, None, [NAME], base=BASE)
    assert looks == 3
    assert [numbers for _, numbers in measured] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_the_last_look_beside_a_base_goes_on_where_the_known_noise_asks_for_it(monkeypatch):
    noise = make_noise(device=2 * RESTLESS)
    noise.entries.update(make_noise(device=CALM, workload=OTHER).entries)
    measured, looks = _judged(monkeypatch, noise, [NAME, OTHER], base=BASE)
    assert looks == 3
    (_, last), *more = measured[2:]
    assert last == [6, 7, 8, 9, 10, 11]
    assert more == [([NAME], [*range(12, 18)]), ([NAME], [*range(18, session.MOST_PROCESSES)])]
    alone, _ = _judged(monkeypatch, noise, [NAME, OTHER])  # a speedup's tolerance follows its baseline
    assert len(alone) == 3


@pytest.mark.parametrize(
    ("deviation", "fewest", "most"), [(0.001, 1, 3), (CALM, 4, 9), (RESTLESS, 18, 24), (0.1, 99, 99)]
)
def test_noise_asks_for_the_processes_that_tell_twice_what_is_allowed(deviation, fewest, most):
    noise = make_noise(device=deviation, call=0.001)
    assert fewest <= processes_wanted(Policy(), "cuda", NAME, noise, 96, 99) <= most
    assert processes_wanted(Policy(), "cuda", OTHER, noise, 96, 99) == 0
    assert processes_wanted(Policy(), "cuda", NAME, None, 96, 99) == 0
