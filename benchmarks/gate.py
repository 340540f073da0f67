"""Records and a policy in, verdicts with reasons out. Pure: nothing is measured here.

Up to three questions a workload and clock: is fused slower than that of the base commit, has it lost speedup against
the reviewed baseline of this device, is its speedup above the floor. An answer PASSES when its whole interval lies on
the right side of the bound, is a REGRESSION when the whole lies on the wrong side, and INCONCLUSIVE otherwise. What is
in doubt is never a pass: missing samples, dropped blocks and failed checks count against the run.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from benchmarks import stats
from benchmarks.machine_code import WHAT
from benchmarks.results import AcceptedSlowdown, Baseline, Noise, NoiseRecord, Run, Series, Strict, decoded
from benchmarks.workloads import WORKLOADS

CLOCKS = {"cuda": {"device_us", "call_us"}, "cpu": {"call_us"}}  # that are judged
COUNTED = {"launches": "launches", "synchronizations": "waits of the host", "allocations": "allocations on the device"}


class Status(Enum):
    """A verdict, with the exit code of the command that ends in it."""

    PASS = 0
    REGRESSION = 1
    INCONCLUSIVE = 3


@dataclass(frozen=True)
class Policy(Strict):
    """What a run must reach.

    Floors are speedups over the reference that hold on every device of a type: well below what was measured when they
    were set (see the baselines), far above what an unfused implementation reaches. A CPU's is "not slower".
    """

    floors: dict[str, dict[str, float]] = field(
        default_factory=lambda: {
            "cuda": {"device_us": 3.0, "call_us": 1.5},
            "cpu": {"call_us": 1.0},
        }
    )
    # Largest slowdown against the base commit in the same job, where the noise allows to see it.
    slowdowns: dict[str, dict[str, float]] = field(
        default_factory=lambda: {"cuda": {"device_us": 0.01, "call_us": 0.05}, "cpu": {"call_us": 0.05}}
    )
    # Least tolerance of a baseline's entry for a loss of speedup; its noise may demand more (`tolerance_of`). Two
    # machines with an H100 agreed within 2.7 % on the device clock and 6 % on the host's (0.6 % and 2 % on average).
    tolerances: dict[str, float] = field(default_factory=lambda: {"device_us": 0.03, "call_us": 0.15})
    # Largest growth of the fused operation's own time against the baseline, on the clock that is the same in every
    # run: a change that slows fused and reference alike keeps the speedup.
    fused_tolerances: dict[str, float] = field(default_factory=lambda: {"device_us": 0.10})
    error: float = 0.05  # chance of a wrong verdict, split over the looks and, for REGRESSION, over the comparisons
    looks: int = 3
    power: float = 0.95  # of runs without a slowdown that should pass, where a tolerance follows from the noise

    def __post_init__(self) -> None:
        if not (0 < self.error < 1 and 0 < self.power < 1 and 1 <= self.looks <= 100):
            raise ValueError(f"policy: expected error and power between 0 and 1, and 1 to 100 looks; got {self}")
        if not all(0 < share < 1 for clocks in self.slowdowns.values() for share in clocks.values()):
            raise ValueError(f"policy: expected slowdowns between 0 and 1, as shares; got {self.slowdowns}")
        for device, judged in CLOCKS.items():
            if set(self.floors.get(device, {})) != judged or set(self.slowdowns.get(device, {})) != judged:
                raise ValueError(f"policy: expected floors and slowdowns for {device} on {', '.join(sorted(judged))}")
        if not CLOCKS["cuda"] <= set(self.tolerances):
            raise ValueError(f"policy: expected tolerances for {', '.join(sorted(CLOCKS['cuda']))}")


@dataclass(frozen=True)
class Verdict:
    """One workload on one clock against one bound."""

    workload: str
    clock: str
    question: str  # "slowdown" (head / base) or "speedup" (reference / fused)
    status: Status
    reason: str
    ratio: stats.Interval | None = None
    bound: float | None = None
    fused_us: float | None = None
    beside_us: float | None = None  # of base's fused, or of the reference


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


@dataclass(frozen=True)
class Case(Strict):
    """Everything that a run is judged by: with it, the same samples give the same verdicts anywhere."""

    policy: Policy = field(default_factory=Policy)
    baseline: Baseline | None = None
    noise: NoiseRecord | None = None
    accepted: tuple[AcceptedSlowdown, ...] = ()
    expected: tuple[str, ...] | None = None  # workloads of a whole run; by default the baseline's


@dataclass(frozen=True)
class _Judged(Case):
    """A case and the verdicts in it, as records keep them."""

    verdicts: tuple[dict[str, Any], ...] = ()


def tolerance_of(series: Sequence[Series], clock: str, policy: Policy, noise: Noise | None) -> float:
    """The tolerance that a baseline of these samples needs: another run's interval, as wide as this one's, lies above
    the bound though its estimate is half of an interval lower."""
    relative = stats.interval(stats.ratios(series), policy.error / policy.looks, noise)
    return max(policy.tolerances[clock], 1.5 * (1 - relative.estimate / relative.high))


def judge(run: Run, case: Case) -> Judgement:
    """Answer every question that the record and the case allow.

    Raises:
        ValueError: the baseline or the noise is of another device.
    """
    for name in ("baseline", "noise"):
        record = getattr(case, name)
        if record is not None and record.device != run.environment.device:
            raise ValueError(f"{name}: it was taken on {record.device}; the run on {run.environment.device}")
    for workload, entries in (case.baseline.entries if case.baseline else {}).items():
        if set(entries) != CLOCKS[run.environment.device_type]:
            wanted = ", ".join(sorted(CLOCKS[run.environment.device_type]))
            raise ValueError(f"baseline: expected {workload} on {wanted}, as the run; got {', '.join(entries)}")
    expected = case.expected
    if expected is None:
        expected = tuple(case.baseline.entries) if case.baseline else ()
    every = tuple(dict.fromkeys([*run.workloads, *expected]))
    clocks = case.policy.floors[run.environment.device_type]
    judge = _Judge(run, case, comparisons=max(1, len(every) * len(clocks) * (1 if run.base is None else 2)))
    verdicts = [verdict for workload in every for clock in clocks for verdict in judge.answers(workload, clock)]
    verdicts += [verdict for workload in every for verdict in judge.counted(workload)]
    return Judgement(tuple(verdicts), tuple(_notes(run, case)))


class _Judge:
    """Answers for one run. Errors are one-sided: of a false REGRESSION, and of a false PASS."""

    def __init__(self, run: Run, case: Case, comparisons: int) -> None:
        self.run = run
        self.case = case
        self.policy = case.policy
        self.error = self.policy.error / self.policy.looks
        self.strict_error = self.error / comparisons

    def answers(self, workload: str, clock: str) -> list[Verdict]:
        questions = ["speedup"] if self.run.base is None else ["slowdown", "speedup"]
        fault = self._fault(workload, clock)
        if fault:
            return [Verdict(workload, clock, question, *fault) for question in questions]
        return [getattr(self, f"_{question}")(workload, clock) for question in questions]

    def counted(self, workload: str) -> list[Verdict]:
        """Launches, waits and allocations of a call are counted, not timed: one more than base's is one too many."""
        head, base = (self.run.counts.get(side, {}).get(workload, {}) for side in ("head", "base"))
        return [
            Verdict(
                workload,
                "count",
                "slowdown",
                Status.REGRESSION,
                f"{head[name]} {text} a call; base {base.get(name, 0)}",
            )
            for name, text in COUNTED.items()
            if head.get(name, 0) > base.get(name, 0) and base
        ]

    def _fault(self, workload: str, clock: str) -> tuple[Status, str] | None:
        """What keeps the workload from being judged by its times."""
        failed = [check for check in self.run.checks if check.workload == workload and not check.passed]
        if failed:
            return Status.REGRESSION, f"wrong result: {failed[0].detail}"
        if workload not in self.run.workloads:
            return Status.INCONCLUSIVE, "expected, and not measured"
        series = [one for one in self.run.series if (one.workload, one.clock) == (workload, clock)]
        dropped = [b.fault for b in self.run.blocks if (b.workload, b.clock) == (workload, clock) and b.fault]
        if not series:
            return Status.INCONCLUSIVE, dropped[-1] if dropped else "no samples"
        checked = {check.process for check in self.run.checks if check.workload == workload}
        timed = {one.process for one in series}
        if not timed <= checked:
            return Status.INCONCLUSIVE, "timed without a check of its results"
        if checked - timed:
            why = f": {dropped[-1]}" if dropped else ""
            return Status.INCONCLUSIVE, f"no samples of {len(checked - timed)} of {len(checked)} processes{why}"
        return None

    def _series(self, workload: str, clock: str, implementation: str, beside: str) -> list[Series]:
        key = (workload, clock, implementation, beside)
        return [one for one in self.run.series if (one.workload, one.clock, one.implementation, one.beside) == key]

    def _noise(self, series: Sequence[Series]) -> Noise | None:
        return self._known(series[0].workload, series[0].clock, pair_name(series[0]))

    def _known(self, workload: str, clock: str, pair: str) -> Noise | None:
        return None if self.case.noise is None else self.case.noise.of(workload, clock, pair)

    def _slowdown(self, workload: str, clock: str) -> Verdict:
        """Head's fused beside base's, in the same job."""
        series = self._series(workload, clock, "fused", "base fused")
        if not series:
            return Verdict(workload, clock, "slowdown", Status.INCONCLUSIVE, "no samples beside base")
        noise = self._noise(series)
        logs = stats.ratios(series)
        tolerance = slowdown_tolerance(self.policy, self.run.environment.device_type, clock, noise, len(logs))
        status, found = slowdown_status(logs, noise, tolerance, self.error, self.strict_error)
        reason = {
            Status.REGRESSION: f"slower than base by more than {tolerance:.1%}",
            Status.PASS: f"not slower than base by {tolerance:.1%}",
            Status.INCONCLUSIVE: f"not clearly within {tolerance:.1%} of base",
        }[status]
        if status is not Status.PASS:
            reason += f"; {self._who_moved(workload, clock, found)}{self._cause(workload)}"
        if noise is not None:
            least = stats.detectable(noise, len(logs), tolerance, self.strict_error, self.policy.power)
            reason += f" (slowdowns from {least:.1%} on are told in {self.policy.power:.0%} of runs)"
        status, reason = self._excused(workload, clock, found, status, reason)
        return self._verdict(series, "slowdown", *_unless_disturbed(series, status, reason), found, 1 + tolerance)

    def _cause(self, workload: str) -> str:
        """Where the compiled kernels of head and base differ."""
        head, base = (self.run.counts.get(side, {}).get(workload, {}) for side in ("head", "base"))
        changes = [
            f"{text} {base[name]} to {head[name]}"
            for name, text in WHAT.items()
            if name in base and name in head and base[name] != head[name]
        ]
        return f"; in the compiled code, {', '.join(changes)}" if changes else ""

    def _who_moved(self, workload: str, clock: str, fused: stats.Interval) -> str:
        reference = self._series(workload, clock, "reference", "base reference")
        if not reference:
            return f"fused {fused.estimate - 1:+.1%}"
        moved = stats.interval(stats.ratios(reference), self.error, self._noise(reference))
        text = f"fused {fused.estimate - 1:+.1%}, reference {moved.estimate - 1:+.1%}"
        return text + (": both became slower" if moved.low > 1 and fused.low > 1 else "")

    def _excused(
        self, workload: str, clock: str, found: stats.Interval, status: Status, reason: str
    ) -> tuple[Status, str]:
        today = datetime.date.fromisoformat(self.run.created[:10])
        for one in self.case.accepted:
            if status is not Status.REGRESSION or (one.workload, one.clock) != (workload, clock):
                continue
            if datetime.date.fromisoformat(one.expires) < today:
                reason += f"; it was accepted until {one.expires}: {one.reason}"
            elif found.high <= 1 + one.slowdown:
                return Status.PASS, f"{reason}; accepted up to {one.slowdown:.0%} until {one.expires}: {one.reason}"
        return status, reason

    def _speedup(self, workload: str, clock: str) -> Verdict:
        """Fused beside the reference, against the floor and the baseline."""
        series = self._series(workload, clock, "fused", "reference")
        if not series:
            return Verdict(workload, clock, "speedup", Status.INCONCLUSIVE, "no samples beside the reference")
        baseline = self.case.baseline
        entry = baseline.entries.get(workload, {}).get(clock) if baseline else None
        bound, of_what = self.policy.floors[self.run.environment.device_type][clock], "floor"
        if entry is not None and entry.speedup * (1 - entry.tolerance) > bound:
            bound = entry.speedup * (1 - entry.tolerance)
            of_what = f"baseline {entry.speedup:.2f}x less {entry.tolerance:.1%}"

        logs, noise = [-value for value in stats.ratios(series)], self._noise(series)
        found = stats.interval(logs, self.error, noise)
        if stats.interval(logs, self.strict_error, noise).high < bound:
            status, reason = Status.REGRESSION, f"below {bound:.2f}x ({of_what})"
        elif found.low >= bound:
            status, reason = Status.PASS, f"above {bound:.2f}x ({of_what})"
        else:
            status, reason = Status.INCONCLUSIVE, f"not clearly above {bound:.2f}x ({of_what})"

        if entry is not None and clock in self.policy.fused_tolerances:
            limit_us = entry.fused_us * (1 + self.policy.fused_tolerances[clock])
            times, alone = stats.times(series), self._known(workload, clock, ALONE)
            own = stats.interval(times, self.error, alone)
            floor = self.policy.floors[self.run.environment.device_type][clock]
            if stats.interval(times, self.strict_error, alone).low > limit_us:
                status, reason = Status.REGRESSION, f"fused itself is slower than {limit_us:.3g} us"
            elif own.high > limit_us and status is Status.PASS:
                status, reason = Status.INCONCLUSIVE, f"fused is not clearly faster than {limit_us:.3g} us"
            elif (
                status is not Status.PASS
                and found.low >= floor
                and own.high <= entry.fused_us * (1 + entry.tolerance)
                and stats.interval(stats.times(series, beside=True), self.error).high < entry.reference_us
            ):
                faster = 1 - stats.median_us(series, beside=True) / entry.reference_us
                status = Status.PASS
                reason = (
                    f"above the floor; the reference became {faster:.1%} faster, fused not slower: renew the baseline"
                )
        if baseline is not None and entry is None and status is Status.PASS:
            status, reason = Status.INCONCLUSIVE, f"{reason}; the baseline lacks this workload"
        return self._verdict(series, "speedup", *_unless_disturbed(series, status, reason), found, bound)

    @staticmethod
    def _verdict(
        series: Sequence[Series], question: str, status: Status, reason: str, ratio: stats.Interval, bound: float
    ) -> Verdict:
        one = series[0]
        us, beside_us = stats.median_us(series), stats.median_us(series, beside=True)
        return Verdict(one.workload, one.clock, question, status, reason, ratio, bound, us, beside_us)


def slowdown_tolerance(policy: Policy, device_type: str, clock: str, noise: Noise | None, processes: int) -> float:
    """The policy's, or what the noise forbids to go below with so many processes."""
    tolerance = policy.slowdowns[device_type][clock]
    if noise is None:
        return tolerance
    return max(tolerance, stats.least_tolerance(noise, processes, policy.error / policy.looks, policy.power))


def slowdown_status(
    logs: Sequence[float], noise: Noise | None, tolerance: float, error: float, strict_error: float
) -> tuple[Status, stats.Interval]:
    """The verdict on log(head / base) of each process, and the interval that a PASS goes by."""
    found = stats.interval(logs, error, noise)
    if stats.interval(logs, strict_error, noise).low > 1 + tolerance:
        return Status.REGRESSION, found
    return Status.PASS if found.high <= 1 + tolerance else Status.INCONCLUSIVE, found


def _unless_disturbed(series: Sequence[Series], status: Status, reason: str) -> tuple[Status, str]:
    if status is Status.REGRESSION and not any(one.quiet for one in series):
        return Status.INCONCLUSIVE, f"{reason}, but other work on this machine disturbed every process"
    return status, reason


ALONE = "fused alone"  # under which a noise record keeps what is known of times


def pair_name(series: Series) -> str:
    """Under which a noise record keeps what is known of such pairs."""
    return f"{series.implementation} beside {series.beside}"


def _notes(run: Run, case: Case) -> list[str]:
    notes = []
    environment, baseline = run.environment, case.baseline
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
    if inside := _inside_graphs(run):
        notes.append(f"In a CUDA graph, microseconds a call, recorded and not judged: {inside}.")
    faults = [block.fault for block in run.blocks if block.fault]
    if faults:
        notes.append(
            f"{len(faults)} of {len(run.blocks)} blocks of samples were dropped: {'; '.join(sorted(set(faults)))}."
        )
    return notes


def _inside_graphs(run: Run) -> str:
    parts = []
    for workload in run.workloads:
        for beside in ("base fused", "reference"):
            series = [
                one
                for one in run.series
                if (one.workload, one.clock, one.implementation, one.beside) == (workload, "graph_us", "fused", beside)
            ]
            if series:
                us, beside_us = stats.median_us(series), stats.median_us(series, beside=True)
                parts.append(f"{workload} {us:.2f} beside {beside_us:.2f} ({beside})")
    return ", ".join(parts)


def comparison(judgement: Judgement) -> Judgement:
    """The verdicts on head beside base alone."""
    return Judgement(tuple(v for v in judgement.verdicts if v.question == "slowdown"), judgement.notes)


def refuse_what_noise_forbids(run: Run, case: Case) -> None:
    """An error where a tolerance asked for by hand is smaller than the noise of this device lets anybody see.

    Raises:
        ValueError: with the workload, and the tolerance that would be allowed.
    """
    processes = max(len({check.process for check in run.checks}), 1)
    for one in run.series:
        noise = case.noise.of(one.workload, one.clock, pair_name(one)) if case.noise else None
        if (
            noise is None
            or one.beside != "base fused"
            or one.clock not in case.policy.floors[run.environment.device_type]
        ):
            continue
        wanted = case.policy.slowdowns[run.environment.device_type][one.clock]
        least = stats.least_tolerance(noise, processes, case.policy.error / case.policy.looks, case.policy.power)
        if one.clock == "device_us" and wanted < least:
            raise ValueError(
                f"--max-slowdown: expected at least {100 * least:.2g} for {one.workload}, what the noise of "
                f"{run.environment.device} lets {processes} processes tell apart; got {100 * wanted:g}"
            )


def process_ratios(run: Run) -> dict[tuple[str, str, str], list[float]]:
    """Each process's middle log ratio, by workload, clock and pair; and of fused beside the reference, log time."""
    grouped: dict[tuple[str, str, str], list[Series]] = {}
    for one in run.series:
        grouped.setdefault((one.workload, one.clock, pair_name(one)), []).append(one)
    found = {key: stats.ratios(series) for key, series in grouped.items()}
    for (workload, clock, pair), series in grouped.items():
        if pair == "fused beside reference":
            found[workload, clock, ALONE] = stats.times(series)
    return found


def noise_entries(
    runs: Sequence[dict[tuple[str, str, str], list[float]]],
) -> dict[str, dict[str, dict[str, Noise]]]:
    """How far processes differ within runs of the same code on both sides, given `process_ratios` of each run.

    Within, because a shift between runs of one code may be another GPU's; the gate compares within one run too.
    """
    entries: dict[str, dict[str, dict[str, Noise]]] = {}
    for key in dict.fromkeys(key for run in runs for key in run):
        groups = [run[key] for run in runs if key in run]
        freedom = sum(len(group) - 1 for group in groups)
        if freedom > 0:
            squares = sum(sum((value - sum(group) / len(group)) ** 2 for value in group) for group in groups)
            workload, clock, pair = key
            noise = Noise(math.sqrt(squares / freedom), freedom + 1)
            entries.setdefault(workload, {}).setdefault(clock, {})[pair] = noise
    return entries


def with_verdicts(run: Run, case: Case, judgement: Judgement) -> Run:
    """The record with what it was judged by and how: `verify` derives the verdicts again from it alone."""
    judged = {**dataclasses.asdict(case), "verdicts": [_plain(verdict) for verdict in judgement.verdicts]}
    return dataclasses.replace(run, judged=judged)


def verify(run: Run) -> tuple[Judgement, list[str]]:
    """Judge a record again by what it was judged by; the verdicts, and where they differ from the recorded ones.

    Raises:
        ValueError: the record holds no verdicts, or not what they were judged by.
    """
    if run.judged is None:
        raise ValueError("record: it holds no verdicts to verify")
    judged = decoded(_Judged, run.judged)
    judgement = judge(run, judged)
    derived = [_plain(verdict) for verdict in judgement.verdicts]
    differences = [
        f"verdict {number}: recorded {old}; derived {new}"
        for number, (old, new) in enumerate(zip(judged.verdicts, derived, strict=False), 1)
        if old != new
    ]
    if len(judged.verdicts) != len(derived):
        differences.append(f"{len(judged.verdicts)} verdicts recorded, {len(derived)} derived")
    return judgement, differences


def _plain(verdict: Verdict) -> dict[str, Any]:
    return {**dataclasses.asdict(verdict), "status": verdict.status.name}
