"""The interval covers the truth as often as it says, with noise inside processes and shifts between them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import stats
from benchmarks.results import Series


def _simulate(rng, *, processes, pairs, truth, process_sd, pair_sd):
    made = []
    for process in range(processes):
        shift = rng.normal(0, process_sd)
        drift = np.linspace(0, 0.05, pairs)  # slow, and the same for both of a pair
        noise = rng.normal(0, pair_sd, pairs) + (rng.random(pairs) < 0.03) * rng.exponential(0.5, pairs)
        fused = 10 * np.exp(drift + noise)
        reference = 10 * truth * np.exp(drift + shift + rng.normal(0, pair_sd, pairs))
        made.append(Series("w", "device_us", process, tuple(fused), tuple(reference), True))
    return made


@pytest.mark.parametrize("process_sd", [0.0, 0.002, 0.02])
@pytest.mark.parametrize("processes", [3, 5])
def test_coverage(process_sd, processes):
    rng = np.random.default_rng(1)
    truth, covered, trials = 2.0, 0, 400
    for _ in range(trials):
        series = _simulate(rng, processes=processes, pairs=15, truth=truth, process_sd=process_sd, pair_sd=0.01)
        interval = stats.speedup(series, 0.95)
        covered += interval.low <= truth <= interval.high
    # 95 % of 400, less three standard errors.
    assert covered / trials >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)


def test_more_processes_narrow_the_interval():
    rng = np.random.default_rng(2)
    widths = []
    for processes in (3, 12):
        series = _simulate(rng, processes=processes, pairs=15, truth=2.0, process_sd=0.01, pair_sd=0.01)
        interval = stats.speedup(series, 0.95)
        widths.append(interval.high - interval.low)
    assert widths[1] < widths[0]


def test_more_pairs_of_one_process_do_not_stand_for_another_process():
    rng = np.random.default_rng(3)
    series = _simulate(rng, processes=1, pairs=1000, truth=2.0, process_sd=0.0, pair_sd=0.01)
    interval = stats.speedup(series, 0.95)
    assert (interval.low, interval.high) == (0.0, math.inf)
    assert interval.estimate == pytest.approx(2.0, rel=0.01)


def test_direction_and_medians():
    series = [Series("w", "call_us", p, (2.0, 2.0, 50.0), (8.0, 8.0, 8.0), True) for p in range(2)]
    assert stats.speedup(series, 0.95).estimate == pytest.approx(4.0)
    assert stats.median_us(series, "fused") == 2.0
    assert stats.median_us(series, "reference") == 8.0
    assert stats.fused_us(series, 0.95).estimate == pytest.approx(2.0)


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="expected samples"):
        stats.speedup([], 0.95)
