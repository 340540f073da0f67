"""Gates on the quick workloads: the verdict of `benchmarks.gate`, and every series for pytest-benchmark to compare.

pytest tests/perf --benchmark-autosave                            save this state
pytest tests/perf --benchmark-compare                             show it beside the last saved one
pytest tests/perf --benchmark-compare --benchmark-compare-fail=median:5%
"""

from __future__ import annotations

import pytest

from benchmarks import gate
from benchmarks.workloads import QUICK
from tests.perf.conftest import CLOCK


@pytest.mark.parametrize("workload", QUICK)
def test_verdict(judged, workload):
    _, judgement = judged
    verdicts = [verdict for verdict in judgement.verdicts if verdict.workload == workload]
    assert verdicts, "not judged"
    for verdict in verdicts:
        assert verdict.status is gate.Status.PASS, f"{verdict.clock}: {verdict.status.name}, {verdict.reason}"


@pytest.mark.parametrize("series", ["fused", "reference", "relative"])
@pytest.mark.parametrize("workload", QUICK)
@pytest.mark.benchmark(timer=CLOCK)
def test_series(run, benchmark, workload, series):
    """Seconds of GPU time (host time on a CPU); `relative` is fused / reference, without a unit."""
    clock = "device_us" if run.environment.device_type == "cuda" else "call_us"
    samples = []
    for one in run.series:
        if (one.workload, one.clock) == (workload, clock):
            pairs = zip(one.us, one.beside_us, strict=True)
            chosen = {"fused": lambda f, _: f / 1e6, "reference": lambda _, r: r / 1e6, "relative": lambda f, r: f / r}
            samples += [chosen[series](fused, reference) for fused, reference in pairs]
    assert samples, f"no samples of {workload} on {clock}"
    benchmark.extra_info.update(device=run.environment.device, commit=run.environment.commit, clock=clock)
    ticks = CLOCK.replay(samples)
    benchmark.pedantic(lambda: next(ticks), rounds=len(samples), iterations=1)
