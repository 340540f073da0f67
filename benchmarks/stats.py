"""Estimates and intervals from pairs of samples, with the process as the unit of repetition.

Samples of one process share an allocation, a clock state and a placement on the machine, so more pairs from one process
say nothing about the next one. Each process contributes one number, the median of the log ratios of its pairs (medians
because interrupts lengthen single samples); the interval is Student's t over these numbers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.results import Series


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence bounds; without bounds where one process alone was measured."""

    estimate: float
    low: float
    high: float


def speedup(series: Iterable[Series], confidence: float) -> Interval:
    """Speedup reference / fused, pair by pair, with its two-sided interval."""
    logs: dict[int, list[float]] = {}
    for one in series:
        pairs = zip(one.reference, one.fused, strict=True)
        logs.setdefault(one.process, []).extend(math.log(reference / fused) for reference, fused in pairs)
    return _over_processes(logs, confidence)


def fused_us(series: Iterable[Series], confidence: float) -> Interval:
    """The fused operation's time with its two-sided interval."""
    logs: dict[int, list[float]] = {}
    for one in series:
        logs.setdefault(one.process, []).extend(map(math.log, one.fused))
    return _over_processes(logs, confidence)


def _over_processes(logs: dict[int, list[float]], confidence: float) -> Interval:
    """Student's interval over the medians of the processes, back from logarithms."""
    from scipy import stats

    values = [statistics.median(one) for one in logs.values()]
    if not values:
        raise ValueError("series: expected samples of at least one process; got none")
    centre = statistics.fmean(values)
    if len(values) == 1:
        return Interval(math.exp(centre), 0.0, math.inf)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return Interval(math.exp(centre), math.exp(centre - half), math.exp(min(centre + half, 700.0)))  # no overflow


def median_us(series: Iterable[Series], implementation: str) -> float:
    """Median over processes of the median sample of "fused" or "reference"."""
    samples = [one.fused if implementation == "fused" else one.reference for one in series]
    return statistics.median(statistics.median(values) for values in samples)
