"""From raw samples to ratios with intervals. Pure.

Samples come in pairs and pairs in processes. A process has a shift of its own (memory layout, clocks), which more pairs
do not average away, so the middle of its log ratios counts as one observation and the interval is over processes. A few
processes say little of their own variance; where it is known from runs of the same code against itself on that device
(`Noise`), both are pooled.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.results import Noise, Series

# How many processes the known variance counts as, at most.
KNOWN_WEIGHT = 10
# A run whose processes vary more than was known, as on a restless machine, goes by its own variance alone: where an F
# test says so, which errs in so many of the runs that do not. Of processes that vary three times as much as was known
# (simulated, three looks), the same code is accused in 0.01 % of comparisons, and a slowdown just beyond the tolerance
# passes in 9 %; with both variances pooled, in 0.04 % and 20 %.
CONTRADICTED = 0.05
# Of the samples on each side that do not count: some of the call's clock are ten times the median. A third, as once,
# hides a slowdown of a quarter of the calls. It costs a little: processes of the same code differ by 0.35 % instead of
# 0.33 % on the device's clock, and by 1.6 % instead of 1.4 % on the call's (one H100, 30 processes, quick workloads).
TRIMMED = 0.1


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence bounds; 0 and inf where the samples allow none."""

    estimate: float
    low: float
    high: float


def ratios(series: Iterable[Series]) -> list[float]:
    """Per process, the middle of log(us / beside_us) over its pairs."""
    logs: dict[int, list[float]] = {}
    for one in series:
        pairs = zip(one.us, one.beside_us, strict=True)
        logs.setdefault(one.process, []).extend(math.log(us / beside_us) for us, beside_us in pairs)
    return [_middle(values) for values in logs.values()]


def times(series: Iterable[Series], *, beside: bool = False) -> list[float]:
    """Per process, the middle of log(us), or of log(beside_us)."""
    logs: dict[int, list[float]] = {}
    for one in series:
        logs.setdefault(one.process, []).extend(map(math.log, one.beside_us if beside else one.us))
    return [_middle(values) for values in logs.values()]


def _middle(values: Sequence[float]) -> float:
    """The mean without the outermost on each side: of three or more, one at least."""
    cut = max(int(TRIMMED * len(values)), 1) if len(values) >= 3 else 0
    return statistics.fmean(sorted(values)[cut : len(values) - cut])


def interval(logs: Sequence[float], error: float, noise: Noise | None = None) -> Interval:
    """Mean of the processes' logarithms, back from them, with bounds that err by `error` on each side.

    Raises:
        ValueError: no process.
    """
    if not logs:
        raise ValueError("series: expected samples of at least one process; got none")
    centre = statistics.fmean(logs)
    deviation, freedom = spread(logs, noise)
    if freedom == 0:
        return Interval(math.exp(centre), 0.0, math.inf)
    half = _t_quantile(1 - error, freedom) * deviation / math.sqrt(len(logs))
    # No overflow.
    return Interval(math.exp(centre), math.exp(max(centre - half, -700.0)), math.exp(min(centre + half, 700.0)))


def in_shorter_processes(noise: Noise, pairs: int) -> Noise:
    """What is known, for processes of so few pairs: what samples vary by is averaged over fewer of them."""
    if pairs >= noise.pairs:
        return noise
    return dataclasses.replace(noise, deviation=min(1.0, noise.deviation * math.sqrt(noise.pairs / pairs)), pairs=pairs)


def spread(logs: Sequence[float], noise: Noise | None) -> tuple[float, int]:
    """Standard deviation of a process, and the degrees of freedom that it is known with; 0 if it is not."""
    own = len(logs) - 1
    variance = statistics.variance(logs) if own else 0.0
    if noise is None or contradicts(logs, noise):
        return math.sqrt(variance), own
    known = _weight(noise)
    return math.sqrt((known * noise.deviation**2 + own * variance) / (known + own)), known + own


def contradicts(logs: Sequence[float], noise: Noise) -> bool:
    """Whether the processes vary more than the known noise explains."""
    own = len(logs) - 1
    if not own:
        return False
    return statistics.variance(logs) > noise.deviation**2 * _f_quantile(1 - CONTRADICTED, own, _weight(noise))


def _weight(noise: Noise) -> int:
    return min(noise.processes - 1, KNOWN_WEIGHT)


def detectable(noise: Noise, processes: int, tolerance: float, error: float, power: float) -> float:
    """The smallest slowdown (0.02 is 2 %) that is told from `tolerance` in `power` of all runs."""
    return math.expm1(math.log1p(tolerance) + _margin(noise, processes, error, power))


def processes_to_tell(noise: Noise, slowdown: float, tolerance: float, error: float, power: float, most: int) -> int:
    """The fewest processes in which such a slowdown is told from `tolerance` in `power` of all runs; at most `most`."""
    enough = (count for count in range(1, most) if detectable(noise, count, tolerance, error, power) <= slowdown)
    return next(enough, most)


def least_tolerance(noise: Noise, processes: int, error: float, power: float) -> float:
    """The smallest tolerance below which `power` of all runs without a slowdown are shown to lie."""
    return math.expm1(_margin(noise, processes, error, power))


def _margin(noise: Noise, processes: int, error: float, power: float) -> float:
    from scipy import stats

    freedom = _weight(noise) + processes - 1
    quantiles = _t_quantile(1 - error, freedom) + float(stats.norm.ppf(power))
    return quantiles * noise.deviation / math.sqrt(processes)


@functools.cache
def _t_quantile(share: float, freedom: int) -> float:
    """Of Student's distribution; scipy takes 0.1 ms for it, and simulations ask a million times for the same few."""
    from scipy import stats

    return float(stats.t.ppf(share, freedom))


@functools.cache
def _f_quantile(share: float, above: int, below: int) -> float:
    """Of the F distribution with these degrees of freedom."""
    from scipy import stats

    return float(stats.f.ppf(share, above, below))


def median_us(series: Iterable[Series], *, beside: bool = False) -> float:
    """Median over processes of the median sample, of what was measured or of what it was held beside."""
    return statistics.median(statistics.median(one.beside_us if beside else one.us) for one in series)
