"""The committed baselines, noise and evidence: whole, readable, and of today's workloads."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import results, session
from benchmarks.e2e.record import EndToEnd
from benchmarks.policy import BESIDE_BASE
from benchmarks.selftest import Selftest
from benchmarks.workloads import WORKLOADS

EVIDENCE = session.BASELINES.parent / "evidence"
KINDS = {"selftest": Selftest, "kernel": results.KernelTable, "e2e": EndToEnd, "run": results.Run}


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.json") if path.name != "accepted-slowdowns.json")


@pytest.mark.parametrize("name", _names(session.BASELINES))
def test_a_baseline_holds_every_workload_of_its_device_both_ways_and_no_other(name):
    """Or `--require-baseline` could never pass, and a workload without an entry would be held against nothing."""
    baseline = results.load(results.Baseline, session.BASELINES / name)
    assert name == results.device_path(session.BASELINES, baseline.device).name
    assert set(baseline.entries) == set(WORKLOADS)
    for clocks in baseline.entries.values():
        assert {frozenset(ways) for ways in clocks.values()} == {frozenset({"reference", "base reference"})}


@pytest.mark.parametrize("name", _names(session.BASELINES / "noise"))
def test_the_noise_of_every_workload_is_known_beside_base(name):
    noise = results.load(results.NoiseRecord, session.BASELINES / "noise" / name)
    assert name == session.noise_path(noise.device).name
    for workload, kind in WORKLOADS.items():
        for clock in kind.clocks & {"device_us", "call_us"}:
            assert noise.of(workload, clock, "fused beside base fused"), (workload, clock)
            assert noise.of(workload, clock, "fused beside base reference"), (workload, clock)


@pytest.mark.parametrize("name", _names(session.BASELINES / "noise"))
def test_with_the_known_noise_slowdowns_are_caught_and_the_same_code_is_not(name):
    """2 % of device time and 10 % of call time in 95 % of the runs that the committed selftest simulated, from today's
    known noise, of every workload."""
    noise = results.load(results.NoiseRecord, session.BASELINES / "noise" / name)
    power = results.load(Selftest, EVIDENCE / f"selftest-{name}").power
    assert {(one.workload, one.clock): one.deviation for one in power} == {
        (workload, clock): noise.entries[workload][clock][BESIDE_BASE].deviation
        for workload, kind in WORKLOADS.items()
        for clock in kind.clocks & {"device_us", "call_us"}
    }
    assert [one for one in power if one.caught < 0.95 or one.accused > 0.01 or one.doubted > 0.05] == []


@pytest.mark.parametrize("name", _names(EVIDENCE))
def test_evidence_is_read_by_today_s_code(name):
    results.load(KINDS[name.split("-")[0]], EVIDENCE / name)
