"""Records and a policy in, verdicts with reasons out. Pure: nothing is measured here.

A speedup PASSES when its whole interval lies above the bound, is a REGRESSION when its whole interval lies below, and
is INCONCLUSIVE otherwise. What is in doubt is never a pass: missing samples and failed checks count against the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from benchmarks import stats
from benchmarks.results import Baseline, Run, Series
from benchmarks.workloads import WORKLOADS


class Status(Enum):
    """A verdict, with the exit code of the command that ends in it."""

    PASS = 0
    REGRESSION = 1
    INCONCLUSIVE = 3


@dataclass(frozen=True)
class Policy:
    """What a run must reach.

    Floors are speedups over the reference that hold on every device of a type: well below what was measured when they
    were set (see the baselines), far above what an unfused implementation reaches.
    """

    floors: dict[str, dict[str, float]] = field(
        default_factory=lambda: {
            "cuda": {"device_us": 3.0, "call_us": 1.5},
            "cpu": {"call_us": 1.0},
        }
    )
    # Least tolerance of a baseline's entry for a loss of speedup; its noise may demand more (`tolerance_of`). Two
    # machines with an H100 agreed within 2.7 % on the device clock and 6 % on the host's (0.6 % and 2 % on average).
    tolerances: dict[str, float] = field(default_factory=lambda: {"device_us": 0.03, "call_us": 0.15})
    # Largest growth of the fused operation's own time against the baseline, on the clock that is the same in every
    # run: a change that slows fused and reference alike keeps the speedup.
    fused_tolerances: dict[str, float] = field(default_factory=lambda: {"device_us": 0.10})
    error: float = 0.05  # chance of a wrong verdict, split over the looks and, for REGRESSION, over the comparisons
    looks: int = 3


@dataclass(frozen=True)
class Verdict:
    """One workload on one clock against one bound."""

    workload: str
    clock: str
    status: Status
    reason: str
    speedup: stats.Interval | None = None
    bound: float | None = None
    fused_us: float | None = None
    reference_us: float | None = None


@dataclass(frozen=True)
class Judgement:
    """All verdicts of a run, and what holds for the whole of it."""

    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]

    @property
    def status(self) -> Status:
        """The worst: a regression before a doubt before a pass."""
        found = {verdict.status for verdict in self.verdicts}
        if Status.REGRESSION in found:
            return Status.REGRESSION
        return Status.PASS if found == {Status.PASS} else Status.INCONCLUSIVE

    def doubtful(self) -> list[str]:
        """Workloads that more samples may decide."""
        return list(dict.fromkeys(v.workload for v in self.verdicts if v.status is Status.INCONCLUSIVE))


def tolerance_of(series: Sequence[Series], clock: str, policy: Policy) -> float:
    """The tolerance that a baseline of these samples needs: another run's interval, as wide as this one's, lies above
    the bound though its estimate is half of an interval lower."""
    interval = stats.speedup(series, 1 - policy.error / policy.looks)
    return max(policy.tolerances[clock], 1.5 * (1 - interval.low / interval.estimate))


def judge(run: Run, policy: Policy, baseline: Baseline | None, expected: Sequence[str] | None = None) -> Judgement:
    """Hold every workload of `run` against the floor and, where there is one, the baseline.

    `expected` are the workloads that a whole run has; by default those of the baseline, if there is one.

    Raises:
        ValueError: the baseline is of another device.
    """
    if baseline is not None and baseline.device != run.environment.device:
        raise ValueError(f"baseline: it was taken on {baseline.device}; the run on {run.environment.device}")
    floors = policy.floors[run.environment.device_type]
    if expected is None:
        expected = list(baseline.entries) if baseline else []
    every = list(dict.fromkeys([*run.workloads, *expected]))
    comparisons = max(1, len(every) * len(floors))
    verdicts = []
    for workload in every:
        failed = [check for check in run.checks if check.workload == workload and not check.passed]
        checked = {check.process for check in run.checks if check.workload == workload}
        for clock, floor in floors.items():
            series = [one for one in run.series if (one.workload, one.clock) == (workload, clock)]
            if failed:
                verdicts.append(Verdict(workload, clock, Status.REGRESSION, f"wrong result: {failed[0].detail}"))
            elif not series:
                reason = "no samples" if workload in run.workloads else "expected, and not measured"
                verdicts.append(Verdict(workload, clock, Status.INCONCLUSIVE, reason))
            elif not {one.process for one in series} <= checked:
                verdicts.append(Verdict(workload, clock, Status.INCONCLUSIVE, "timed without a check of its results"))
            else:
                verdicts.append(_judge_series(workload, clock, series, floor, policy, baseline, comparisons))
    return Judgement(tuple(verdicts), tuple(_notes(run, baseline)))


def _judge_series(
    workload: str,
    clock: str,
    series: Sequence[Series],
    floor: float,
    policy: Policy,
    baseline: Baseline | None,
    comparisons: int,
) -> Verdict:
    entry = baseline.entries.get(workload, {}).get(clock) if baseline else None
    bound, of_what = floor, "floor"
    if entry is not None and entry.speedup * (1 - entry.tolerance) > floor:
        bound, of_what = (
            entry.speedup * (1 - entry.tolerance),
            f"baseline {entry.speedup:.2f}x less {entry.tolerance:.1%}",
        )

    confidence = 1 - policy.error / policy.looks
    strict = 1 - policy.error / policy.looks / comparisons
    interval = stats.speedup(series, confidence)
    if stats.speedup(series, strict).high < bound:
        status, reason = Status.REGRESSION, f"below {bound:.2f}x ({of_what})"
    elif interval.low >= bound:
        status, reason = Status.PASS, f"above {bound:.2f}x ({of_what})"
    else:
        status, reason = Status.INCONCLUSIVE, f"not clearly above {bound:.2f}x ({of_what})"

    if entry is not None and status is not Status.REGRESSION and clock in policy.fused_tolerances:
        limit_us = entry.fused_us * (1 + policy.fused_tolerances[clock])
        if stats.fused_us(series, strict).low > limit_us:
            status, reason = Status.REGRESSION, f"fused itself is slower than {limit_us:.3g} us; so is the reference"
        elif stats.fused_us(series, confidence).high > limit_us:
            status, reason = Status.INCONCLUSIVE, f"fused is not clearly faster than {limit_us:.3g} us"
    if baseline is not None and entry is None and status is Status.PASS:
        status, reason = Status.INCONCLUSIVE, f"{reason}; the baseline lacks this workload"
    if status is Status.REGRESSION and not any(one.quiet for one in series):
        status, reason = Status.INCONCLUSIVE, f"{reason}, but other work on this machine disturbed every process"
    return Verdict(
        workload,
        clock,
        status,
        reason,
        interval,
        bound,
        stats.median_us(series, "fused"),
        stats.median_us(series, "reference"),
    )


def _notes(run: Run, baseline: Baseline | None) -> list[str]:
    notes = []
    environment = run.environment
    if baseline is None:
        notes.append(f"No baseline for {environment.device}: judged by correctness and the absolute floor only.")
    else:
        for name in ("torch", "triton", "driver"):
            old, new = getattr(baseline, name), getattr(environment, name)
            if old != new:
                notes.append(f"The baseline was taken with {name} {old}; this run has {new}.")
    known = [name for name in WORKLOADS if name not in run.skipped]
    if missing := len([name for name in known if name not in run.workloads]):
        notes.append(f"A part only: {missing} of the {len(known)} workloads for this device were not asked for.")
    if environment.dirty:
        notes.append("The working tree has uncommitted changes: this run enters no history.")
    if run.skipped:
        notes.append(f"Left out, because they need a GPU: {', '.join(run.skipped)}.")
    return notes
