"""Intervals cover the truth as often as they say, with noise in pairs, drift, outliers, and processes that differ."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import stats
from benchmarks.results import Noise, Series

TRIALS = 400


def _process_medians(rng, *, processes, truth, process_sd, pair_sd=0.01, pairs=40):
    """Median log ratios as `stats.ratios` finds them; noise and outliers fall on either of a pair."""

    def us():
        size = (processes, pairs)
        return rng.normal(0, pair_sd, size) + (rng.random(size) < 0.03) * rng.exponential(0.5, size)

    shift = rng.normal(0, process_sd, (processes, 1))
    return list(np.median(math.log(truth) + shift + us() - us(), axis=1))


def _at_least(share, trials=TRIALS):
    """A share less three standard errors of a simulation."""
    return share - 3 * math.sqrt(share * (1 - share) / trials)


def _series(rng, process, truth, pairs=60):
    drift = np.exp(np.linspace(0, 0.05, pairs))
    us = 10 * truth * drift * np.exp(rng.normal(0, 0.01, pairs))
    beside = 10 * drift * np.exp(rng.normal(0, 0.01, pairs))
    return Series("w", "device_us", process, "fused", "base fused", tuple(us), tuple(beside), True)


def test_drift_cancels_in_pairs():
    rng = np.random.default_rng(4)
    logs = stats.ratios(_series(rng, process, 1.02) for process in range(20))
    assert np.mean(logs) == pytest.approx(math.log(1.02), abs=0.001)


@pytest.mark.parametrize("process_sd", [0.0, 0.002, 0.02])
@pytest.mark.parametrize("processes", [3, 5, 10])
@pytest.mark.parametrize("known", [False, True])
def test_coverage(process_sd, processes, known):
    """With the processes' own variance, and with one known from 40 others."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(TRIALS):
        noise = None
        if known:
            others = _process_medians(rng, processes=40, truth=1.0, process_sd=process_sd)
            noise = Noise(float(np.std(others, ddof=1)), 40)
        logs = _process_medians(rng, processes=processes, truth=2.0, process_sd=process_sd)
        interval = stats.interval(logs, 0.025, noise)
        covered += interval.low <= 2.0 <= interval.high
    assert covered / TRIALS >= _at_least(0.95)


def test_known_noise_narrows_the_interval_of_few_processes():
    rng = np.random.default_rng(2)
    own, known = [], []
    for _ in range(100):
        logs = _process_medians(rng, processes=3, truth=1.0, process_sd=0.003)
        for widths, noise in ((own, None), (known, Noise(0.004, 40))):
            interval = stats.interval(logs, 0.01, noise)
            widths.append(interval.high - interval.low)
    assert np.median(known) < 0.5 * np.median(own)


def test_of_shorter_processes_more_noise_is_expected():
    """Of samples that vary by themselves, what is known of means of 40 holds for means of 10."""
    rng = np.random.default_rng(3)
    known = Noise(float(rng.normal(0, 0.02, (4000, 40)).mean(axis=1).std()), 4000, pairs=40)
    shorter = stats.in_shorter_processes(known, 10)
    assert shorter.deviation == pytest.approx(rng.normal(0, 0.02, (4000, 10)).mean(axis=1).std(), rel=0.05)
    assert stats.in_shorter_processes(known, 40) == stats.in_shorter_processes(known, 400) == known
    unknown = Noise(0.01, 4000)
    assert stats.in_shorter_processes(unknown, 3) == unknown


def test_known_noise_counts_for_ten_processes():
    deviation, freedom = stats.spread([0.0, 0.004, -0.004], Noise(0.002, 40))
    assert freedom == 10 + 2
    assert deviation == pytest.approx(math.sqrt((10 * 0.002**2 + 2 * 0.004**2) / 12))
    assert stats.spread([0.0, 0.004, -0.004], Noise(0.002, 5))[1] == 4 + 2
    assert stats.spread([0.0], Noise(0.002, 40)) == (pytest.approx(0.002), 10)


@pytest.mark.parametrize("processes", [3, 9])
def test_a_machine_that_is_noisier_than_known_is_not_accused(processes):
    """Processes that vary by 1 % where 0.3 % is known: the same code is hardly ever shown to be 1 % slower."""
    rng = np.random.default_rng(4)
    accused = sum(
        stats.interval(list(rng.normal(0, 0.01, processes)), 0.001, Noise(0.003, 40)).low > 1.01 for _ in range(5000)
    )
    assert accused <= 10


@pytest.mark.parametrize("process_sd", [0.002, 0.006])
@pytest.mark.parametrize("processes", [4, 10])
def test_the_detectable_slowdown_is_detected(process_sd, processes):
    """In as many runs as promised; and the least tolerance holds for as many runs without a slowdown."""
    rng = np.random.default_rng(3)
    noise = Noise(process_sd, 1000)
    tolerance, error, power = 0.01, 0.001, 0.9
    slowdown = stats.detectable(noise, processes, tolerance, error, power)
    least = stats.least_tolerance(noise, processes, error, power)
    seen = passed = 0
    for _ in range(TRIALS):
        shifts = rng.normal(0, process_sd, processes)
        seen += stats.interval(list(math.log1p(slowdown) + shifts), error, noise).low > 1 + tolerance
        passed += stats.interval(list(shifts), error, noise).high <= 1 + least
    assert seen / TRIALS >= _at_least(power)
    assert passed / TRIALS >= _at_least(power)
    assert seen / TRIALS <= power + 0.1  # not promised too cautiously either


def test_more_pairs_of_one_process_do_not_stand_for_another_process():
    interval = stats.interval([math.log(2.0)], 0.025)
    assert (interval.low, interval.high) == (0.0, math.inf)
    assert interval.estimate == pytest.approx(2.0)


def test_direction_and_medians():
    series = [
        Series("w", "call_us", p, "fused", "reference", (2.0, 2.0, 50.0), (8.0, 8.0, 8.0), True) for p in range(2)
    ]
    assert stats.ratios(series) == pytest.approx([math.log(0.25)] * 2)
    assert stats.times(series) == pytest.approx([math.log(2.0)] * 2)
    assert stats.median_us(series) == 2.0
    assert stats.median_us(series, beside=True) == 8.0


def test_a_slowdown_of_a_quarter_of_the_calls_is_not_trimmed_away():
    us = (10.0, 10.0, 10.0, 14.0) * 50
    series = [Series("w", "device_us", p, "fused", "base fused", us, (10.0,) * 200, True) for p in range(3)]
    assert stats.interval(stats.ratios(series), 0.05).estimate > 1.05


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="expected samples"):
        stats.interval([], 0.05)
