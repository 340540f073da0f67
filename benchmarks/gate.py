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

    A CPU's is "not slower", with room for the spread between processes on a shared machine: where nothing is faster the
    backend takes the reference's path or comes close to it, and no interval around 1 lies above 1. On two shared cores
    the medians of processes spread by 6 %, which five processes turn into an interval of 10 % to either side.
    """

    floors: dict[str, dict[str, float]] = field(
        default_factory=lambda: {
            "cuda": {"device_us": 3.0, "call_us": 1.5},
            "cpu": {"call_us": 0.85},
        }
    )
    # Largest loss of speedup against the baseline. On the H100 of the first baseline, intervals of four processes reach
    # 1 to 6 % from the estimate on the device clock and 3 to 35 % on the host's.
    tolerances: dict[str, float] = field(default_factory=lambda: {"device_us": 0.05, "call_us": 0.25})
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


def judge(run: Run, policy: Policy, baseline: Baseline | None) -> Judgement:
    """Hold every workload of `run` against the floor and, where there is one, the baseline.

    Raises:
        ValueError: the baseline is of another device.
    """
    if baseline is not None and baseline.device != run.environment.device:
        raise ValueError(f"baseline: it was taken on {baseline.device}; the run on {run.environment.device}")
    floors = policy.floors[run.environment.device_type]
    comparisons = max(1, len(run.workloads) * len(floors))
    verdicts = []
    for workload in run.workloads:
        failed = [check for check in run.checks if check.workload == workload and not check.passed]
        checked = {check.process for check in run.checks if check.workload == workload}
        for clock, floor in floors.items():
            series = [one for one in run.series if (one.workload, one.clock) == (workload, clock)]
            if failed:
                verdicts.append(Verdict(workload, clock, Status.REGRESSION, f"wrong result: {failed[0].detail}"))
            elif not series:
                verdicts.append(Verdict(workload, clock, Status.INCONCLUSIVE, "no samples"))
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
    status = None
    if entry is not None and entry.speedup * (1 - policy.tolerances[clock]) > floor:
        bound = entry.speedup * (1 - policy.tolerances[clock])
        of_what = f"baseline {entry.speedup:.2f}x less {policy.tolerances[clock]:.0%}"
    elif baseline is not None and entry is None:
        status, of_what = Status.INCONCLUSIVE, "floor; the baseline lacks this workload"

    interval = stats.speedup(series, 1 - policy.error / policy.looks)
    strict = stats.speedup(series, 1 - policy.error / policy.looks / comparisons)
    if strict.high < bound:
        status, relation = Status.REGRESSION, "below"
    elif interval.low >= bound:
        status, relation = status or Status.PASS, "above"
    else:
        status, relation = Status.INCONCLUSIVE, "not clearly above"
    return Verdict(
        workload,
        clock,
        status,
        f"{relation} {bound:.2f}x ({of_what})",
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
