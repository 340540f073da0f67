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


def process_log_speedups(series: Iterable[Series]) -> list[float]:
    """Median of log(reference / fused) over each process's pairs."""
    logs: dict[int, list[float]] = {}
    for one in series:
        pairs = zip(one.reference, one.fused, strict=True)
        logs.setdefault(one.process, []).extend(math.log(reference / fused) for reference, fused in pairs)
    return [statistics.median(values) for values in logs.values()]


def speedup(series: Iterable[Series], confidence: float) -> Interval:
    """Speedup reference / fused with its two-sided interval."""
    from scipy import stats

    values = process_log_speedups(series)
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
