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
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from benchmarks import stats
from benchmarks.machine_code import WHAT
from benchmarks.noise import ALONE, pair_name
from benchmarks.policy import Policy, judged_clocks, slowdown_tolerance
from benchmarks.results import (
    AcceptedSlowdown,
    Baseline,
    BaselineEntry,
    Check,
    Noise,
    NoiseRecord,
    Run,
    Series,
    Strict,
    differing_versions,
)
from benchmarks.workloads import WORKLOADS, clocks_of, may_be_absent

WRONG = "wrong result"  # with which a verdict's reason begins that is not about times
COUNTED = {"launches": "launches", "synchronizations": "waits of the host", "allocations": "allocations on the device"}
LEAST_PAIRS = 3  # of a process, for its middle to be one
# Fewer processes than BELIEVED may agree by chance on a machine whose processes differ more than is known: they accuse
# only of a slowdown that would be told if processes differed by SUSPECTED. Simulated, of all 25 workloads, where each
# side's process is off by 1 % up or down, 27 % of runs of the same code were accused at the first look without this.
BELIEVED, SUSPECTED = 6, 0.015
LEAST_PROCESSES = 3  # fewer are not believed to be as fast as base, either


class Status(Enum):
    """A verdict, with the exit code of the command that ends in it."""

    PASS = 0
    REGRESSION = 1
    INCONCLUSIVE = 3


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
    more_may_decide: bool = True  # if in doubt: whether more samples may end that


@dataclass(frozen=True)
class Judgement:
    """All verdicts of a run, and what holds for the whole of it."""

    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    comparisons: int  # that the chance of a false REGRESSION is split over

    @property
    def status(self) -> Status:
        """The worst of the verdicts; without any, a doubt."""
        return worst([verdict.status for verdict in self.verdicts])

    def doubtful(self) -> dict[str, set[str]]:
        """Workloads that more samples may decide, and on which clocks."""
        found: dict[str, set[str]] = {}
        for verdict in self.doubts():
            found.setdefault(verdict.workload, set()).add(verdict.clock)
        return found

    def doubts(self) -> list[Verdict]:
        """What more samples may decide. A workload that is accused is not looked at again: it would be judged anew."""
        accused = {v.workload for v in self.verdicts if v.status is Status.REGRESSION}
        doubts = [v for v in self.verdicts if v.status is Status.INCONCLUSIVE and v.more_may_decide]
        return [verdict for verdict in doubts if verdict.workload not in accused]


def worst(found: Sequence[Status]) -> Status:
    """A regression before a doubt before a pass; of none, a doubt."""
    if Status.REGRESSION in found:
        return Status.REGRESSION
    return Status.PASS if set(found) == {Status.PASS} else Status.INCONCLUSIVE


@dataclass(frozen=True)
class Case(Strict):
    """Everything that a run is judged by: with it, the same samples give the same verdicts anywhere."""

    policy: Policy = field(default_factory=Policy)
    baseline: Baseline | None = None
    noise: NoiseRecord | None = None
    accepted: tuple[AcceptedSlowdown, ...] = ()
    expected: tuple[str, ...] | None = None  # workloads of a whole run; by default the baseline's

    def expects(self) -> tuple[str, ...]:
        if self.expected is not None:
            return self.expected
        return tuple(self.baseline.entries) if self.baseline else ()


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
        if set(entries) != (clocks := judged_clocks(run.environment.device_type, workload)):
            wanted = ", ".join(sorted(clocks))
            raise ValueError(f"baseline: expected {workload} on {wanted}, as the run; got {', '.join(entries)}")
    every = tuple(dict.fromkeys([*run.workloads, *(check.workload for check in run.checks), *case.expects()]))
    pairs = [
        (workload, clock)
        for workload in every
        for clock in case.policy.floors[run.environment.device_type]
        if clock in judged_clocks(run.environment.device_type, workload)
    ]
    comparisons = max(1, sum(1 + (run.base is not None) + _has_limit(case, clock) for _, clock in pairs))
    judge = _Judge(run, case, comparisons)
    verdicts = [verdict for workload, clock in pairs for verdict in judge.answers(workload, clock)]
    verdicts += [verdict for workload in every for verdict in judge.counted(workload)]
    return Judgement(tuple(verdicts), (*_notes(run, case), *_next_steps(run, verdicts)), comparisons)


def _has_limit(case: Case, clock: str) -> bool:
    """Whether fused's own times on that clock are held against the baseline's: a comparison more."""
    return case.baseline is not None and clock in case.policy.fused_tolerances


def speedup_series(run: Run, workload: str, clock: str) -> list[Series]:
    """Fused beside the reference: of the same process, or of base's."""
    return _series_of(run, workload, clock, "fused", "reference" if run.base is None else "base reference")


def slowdown_series(run: Run, workload: str, clock: str) -> list[Series]:
    """Fused beside base's."""
    return _series_of(run, workload, clock, "fused", "base fused")


def _series_of(run: Run, workload: str, clock: str, implementation: str, beside: str) -> list[Series]:
    key = (workload, clock, implementation, beside)
    return [one for one in run.series if (one.workload, one.clock, one.implementation, one.beside) == key]


class _Judge:
    """Answers for one run. Errors are one-sided: of a false REGRESSION, and of a false PASS."""

    def __init__(self, run: Run, case: Case, comparisons: int) -> None:
        self.run = run
        self.case = case
        self.policy = case.policy
        self.error = self.policy.look_error()
        self.strict_error = self.error / comparisons
        self.device_type = run.environment.device_type
        self.reference = "reference" if run.base is None else "base reference"

    def answers(self, workload: str, clock: str) -> list[Verdict]:
        questions = {"speedup": self.reference}
        if self.run.base is not None:
            questions = {"slowdown": "base fused", **questions}
        return [
            self._fault(workload, clock, question, beside) or getattr(self, f"_{question}")(workload, clock)
            for question, beside in questions.items()
        ]

    def counted(self, workload: str) -> list[Verdict]:
        """Launches, waits and allocations of a call are counted, not timed: one more than base's is one too many,
        unless it was accepted."""
        is_one_call = "device_us" in clocks_of(workload)
        if self.run.base is None or self.device_type != "cuda" or workload not in self.run.workloads or not is_one_call:
            return []
        if self._wrong(workload):  # of which nothing is counted
            return []
        head, base = (self.run.counts.get(side, {}).get(workload, {}) for side in ("head", "base"))
        if missing := [text for name, text in COUNTED.items() if name not in head or name not in base]:
            reason = f"not counted of head and base: {', '.join(missing)}"
            return [Verdict(workload, "count", "slowdown", Status.INCONCLUSIVE, reason)]
        if not head["launches"] or not base["launches"]:
            return [Verdict(workload, "count", "slowdown", Status.INCONCLUSIVE, "no call is without a launch")]
        accepted, remark = self._accepted(workload, "count")
        return [
            Verdict(
                workload,
                "count",
                "slowdown",
                Status.PASS if head[name] - base[name] <= accepted else Status.REGRESSION,
                f"{head[name]} {text} a call; base {base[name]}{remark}",
            )
            for name, text in COUNTED.items()
            if head[name] > base[name]
        ]

    def _fault(self, workload: str, clock: str, question: str, beside: str) -> Verdict | None:
        """What keeps the question from being answered by times."""

        def doubt(reason: str, more_may_decide: bool = True) -> Verdict:
            status = Status.INCONCLUSIVE
            return Verdict(workload, clock, question, status, reason, more_may_decide=more_may_decide)

        failed = self._wrong(workload)
        for check in failed:
            if not check.base_alone:
                return Verdict(workload, clock, question, Status.REGRESSION, f"{WRONG}: {check.detail}")
        if failed:  # as where head mends it
            return doubt(f"nothing to be held beside: {WRONG} of {failed[0].detail}", more_may_decide=False)
        if workload not in self.run.workloads:
            return doubt("expected, and not measured", more_may_decide=False)
        series = self._series(workload, clock, "fused", beside)
        dropped = [b.fault for b in self.run.blocks if (b.workload, b.clock) == (workload, clock) and b.fault]
        if not series:
            return doubt(dropped[-1] if dropped else f"no samples beside {beside}")
        checks = [check for check in self.run.checks if check.workload == workload]
        timed, asked = {one.process for one in series}, {check.process for check in checks if check.covers(clock)}
        if not timed <= {check.process for check in checks}:
            return doubt("timed without a check of its results")
        if missing := asked - timed:
            why = f": {dropped[-1]}" if dropped else ""
            return doubt(f"no samples beside {beside} of {len(missing)} of {len(asked)} processes{why}")
        if untold := timed - self._told(workload, clock):
            what = "block of samples" if self.device_type == "cpu" else "state of the GPU"
            return doubt(f"of {len(untold)} of {len(timed)} processes, no {what} is on record")
        fewest = min(len(one.us) for one in series)
        if fewest < LEAST_PAIRS:
            return doubt(f"{fewest} pairs beside {beside} in a process; expected at least {LEAST_PAIRS}")
        return None

    def _told(self, workload: str, clock: str) -> set[int]:
        """Processes of which a block of samples is on record, on a GPU with its state."""
        blocks = [b for b in self.run.blocks if (b.workload, b.clock, b.fault) == (workload, clock, "")]
        return {block.process for block in blocks if block.gpu or self.device_type == "cpu"}

    def _wrong(self, workload: str) -> list[Check]:
        return [check for check in self.run.checks if check.workload == workload and not check.passed]

    def _series(self, workload: str, clock: str, implementation: str, beside: str) -> list[Series]:
        return _series_of(self.run, workload, clock, implementation, beside)

    def _noise(self, series: Sequence[Series], pair: str = "") -> Noise | None:
        """What is known of processes with as many pairs as these have, or as the one of them with fewest."""
        one, record = series[0], self.case.noise
        noise = record.of(one.workload, one.clock, pair or pair_name(one)) if record else None
        return noise and stats.in_shorter_processes(noise, min(len(each.us) for each in series))

    def _slowdown(self, workload: str, clock: str) -> Verdict:
        """Head's fused beside base's, in the same job."""
        series = slowdown_series(self.run, workload, clock)
        noise = self._noise(series)
        logs = stats.ratios(series)
        tolerance = slowdown_tolerance(self.policy, self.device_type, clock, noise, len(logs))
        accepted, remark = self._accepted(workload, clock)
        tolerance = max(tolerance, accepted)
        status, found = slowdown_status(logs, noise, tolerance, self.error, self.strict_error)
        reason = {
            Status.REGRESSION: f"slower than base by more than {tolerance:.1%}",
            Status.PASS: f"not slower than base by {tolerance:.1%}",
            Status.INCONCLUSIVE: f"not clearly within {tolerance:.1%} of base",
        }[status] + remark
        if status is not Status.PASS:
            reason += f"; {self._who_moved(workload, clock, found)}{self._cause(workload)}"
        if noise is not None and stats.contradicts(logs, noise):
            reason += "; the processes vary more than is known of this device"
        elif noise is not None:
            # Fewer are followed by as many, where they are in doubt.
            count = max(len(logs), BELIEVED)
            least = stats.detectable(noise, count, tolerance, self.strict_error, self.policy.power)
            reason += (
                f" (slowdowns from {least:.1%} on are told in {self.policy.power:.0%} of runs of {count} processes)"
            )
        return self._verdict(series, "slowdown", *_unless_disturbed(series, status, reason), found, 1 + tolerance)

    def _accepted(self, workload: str, clock: str) -> tuple[float, str]:
        """The slowdown that was accepted beside this base, and what to say of it; if it does not count, why."""
        today = datetime.datetime.fromisoformat(self.run.created).date()
        base = (self.run.base and self.run.base.commit) or ""
        remark = ""
        for one in self.case.accepted:
            if (one.workload, one.clock) != (workload, clock):
                continue
            if not base.startswith(one.base):
                remark = f"; {one} was accepted beside {one.base} alone: {one.reason}"
            elif datetime.date.fromisoformat(one.expires) < today:
                remark = f"; {one} was accepted until {one.expires}: {one.reason}"
            else:
                return one.slowdown, f", which is accepted until {one.expires}: {one.reason}"
        return 0.0, remark

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

    def _speedup(self, workload: str, clock: str) -> Verdict:
        """Fused beside the reference, against the floor and the baseline."""
        series = speedup_series(self.run, workload, clock)
        baseline = self.case.baseline
        entry = baseline.of(workload, clock, self.reference) if baseline else None
        floor = self.policy.floor(self.device_type, workload, clock)
        bound, of_what = floor, "floor"
        accepted, _ = self._accepted(workload, clock)
        if entry is not None and (least := entry.speedup * (1 - entry.tolerance) / (1 + accepted)) > bound:
            bound, of_what = least, f"baseline {entry.speedup:.2f}x less {entry.tolerance:.1%}"
            of_what += f", and {accepted:.1%} accepted" if accepted else ""

        logs, noise = [-value for value in stats.ratios(series)], self._noise(series)
        found = stats.interval(logs, self.error, noise)
        if stats.interval(logs, self.strict_error, noise).high < bound:
            status, reason = Status.REGRESSION, f"below {bound:.2f}x ({of_what})"
        elif found.low >= bound:
            status, reason = Status.PASS, f"above {bound:.2f}x ({of_what})"
        else:
            status, reason = Status.INCONCLUSIVE, f"not clearly above {bound:.2f}x ({of_what})"

        more_may_decide = True
        if entry is not None:
            status, reason, more_may_decide = self._beside_its_baseline(series, entry, found, floor, status, reason)
        elif baseline is not None and status is Status.PASS:
            reason += f"; the baseline lacks this workload beside {self.reference}"
            status, more_may_decide = Status.INCONCLUSIVE, False
        status, reason = _unless_disturbed(series, status, reason)
        verdict = self._verdict(series, "speedup", status, reason, found, bound)
        return dataclasses.replace(verdict, more_may_decide=more_may_decide)

    def _beside_its_baseline(
        self, series: Sequence[Series], entry: BaselineEntry, found: stats.Interval, floor: float, status: Status,
        reason: str,
    ) -> tuple[Status, str, bool]:  # fmt: skip
        """The verdict on the speedup, in view of the baseline's own times too; and whether more samples may decide."""
        workload, clock = series[0].workload, series[0].clock
        times, alone = stats.times(series), self._noise(series, ALONE)
        own = stats.interval(times, self.error, alone)
        if _has_limit(self.case, clock):
            accepted, _ = self._accepted(workload, clock)
            limit_us = entry.fused_us * (1 + self.policy.fused_tolerances[clock]) * (1 + accepted)
            if stats.interval(times, self.strict_error, alone).low > limit_us:
                return Status.REGRESSION, f"fused itself is slower than {limit_us:.3g} us", True
            if own.high > limit_us and status is Status.PASS:
                return Status.INCONCLUSIVE, f"fused is not clearly faster than {limit_us:.3g} us", True
        fused = stats.median_us(series) / entry.fused_us - 1
        reference = stats.median_us(series, beside=True) / entry.reference_us - 1
        moved = f"beside the baseline's times fused {fused:+.1%}, reference {reference:+.1%}"
        if status is Status.PASS:
            slower = 1 + self.policy.tolerances[clock]
            times_are_the_host_s = not _has_limit(self.case, clock) and self.run.base is None
            if times_are_the_host_s and own.low > entry.fused_us * slower and 1 + reference > slower:
                reason += f"; {moved}: a slower host, or both became slower, which `compare BASE` tells"
            return status, reason + _outgrown(found, entry), True
        is_faster = stats.interval(stats.times(series, beside=True), self.error).high < entry.reference_us
        not_slower = own.high <= entry.fused_us * (1 + entry.tolerance)
        if found.low >= floor and is_faster and not_slower:
            if self._times_count(workload, clock):
                told = (
                    f"the reference became {-reference:.1%} faster, fused {fused:+.1%} is within {entry.tolerance:.1%}"
                )
                return Status.PASS, f"above the floor; {told}: renew the baseline", True
            if self.run.base is None:
                why = "a faster reference, or a faster host on which fused lost, which `compare BASE` tells"
                return Status.INCONCLUSIVE, f"{reason}; {moved}: {why}", False
        return status, f"{reason}; {moved}", True

    def _times_count(self, workload: str, clock: str) -> bool:
        """Whether a time that is the baseline's says that fused has not become slower: a GPU's clock is the same in
        every run; of a host's, which may be a faster one, base beside head has to say so too."""
        if clock in self.policy.fused_tolerances:
            return True
        if self.run.base is None or self._fault(workload, clock, "slowdown", "base fused"):
            return False
        return self._slowdown(workload, clock).status is Status.PASS

    @staticmethod
    def _verdict(
        series: Sequence[Series], question: str, status: Status, reason: str, ratio: stats.Interval, bound: float
    ) -> Verdict:
        one = series[0]
        us, beside_us = stats.median_us(series), stats.median_us(series, beside=True)
        return Verdict(one.workload, one.clock, question, status, reason, ratio, bound, us, beside_us)


def slowdown_status(
    logs: Sequence[float], noise: Noise | None, tolerance: float, error: float, strict_error: float
) -> tuple[Status, stats.Interval]:
    """The verdict on log(head / base) of each process, and the interval that a PASS goes by."""
    found = stats.interval(logs, error, noise)
    suspected = _suspected(noise, len(logs))
    if min(stats.interval(logs, strict_error, one).low for one in (noise, suspected)) > 1 + tolerance:
        return Status.REGRESSION, found
    if len(logs) < LEAST_PROCESSES:
        found = stats.interval(logs, error, suspected)
    return Status.PASS if found.high <= 1 + tolerance else Status.INCONCLUSIVE, found


def _suspected(noise: Noise | None, processes: int) -> Noise | None:
    """What the noise may be in so few processes, before they are believed to be slower."""
    if noise is None or processes >= BELIEVED:
        return noise
    return dataclasses.replace(noise, deviation=max(noise.deviation, SUSPECTED))


def _unless_disturbed(series: Sequence[Series], status: Status, reason: str) -> tuple[Status, str]:
    disturbed = sum(not one.quiet for one in series)
    if status is not Status.INCONCLUSIVE and 2 * disturbed >= len(series):
        reason += f", but other work on this machine disturbed {disturbed} of {len(series)} processes"
        return Status.INCONCLUSIVE, reason
    return status, reason


def _outgrown(found: stats.Interval, entry: BaselineEntry) -> str:
    """A baseline far below what is reached would let much of it be lost."""
    if found.low <= entry.speedup * (1 + 2 * entry.tolerance):
        return ""
    return f"; {found.estimate / entry.speedup - 1:.0%} better than the baseline: renew it"


def _notes(run: Run, case: Case) -> list[str]:
    notes = []
    environment, baseline = run.environment, case.baseline
    if baseline is None:
        notes.append(f"No baseline for {environment.device}: judged by correctness and the absolute floor only.")
    for what, record in (("baseline", baseline), ("known noise", case.noise)):
        for name, old, new in differing_versions(record, environment) if record else ():
            notes.append(f"The {what} was taken with {name} {old}; this run has {new}.")
    gpu = environment.device_type == "cuda"
    known = [name for name, one in WORKLOADS.items() if name not in run.skipped and (gpu or not one.needs_gpu)]
    if missing := len([name for name in known if name not in run.workloads]):
        notes.append(f"A part only: {missing} of the {len(known)} workloads for this device were not measured.")
    if environment.dirty:
        notes.append("The working tree has uncommitted changes: this run enters no history.")
    too_new = [name for name in run.skipped if run.base is not None and gpu and may_be_absent(name)]
    for names, why in (
        ([name for name in run.skipped if name not in too_new], "they need a GPU"),
        (too_new, "the base commit is too old for them"),
    ):
        if names:
            notes.append(f"Left out, because {why}: {', '.join(names)}.")
    for clock, what in (("graph_us", "In a CUDA graph"), ("host_us", "Until the call returns")):
        if told := _medians(run, clock):
            notes.append(f"{what}, microseconds a call, recorded and not judged: {told}.")
    faults = [block.fault for block in run.blocks if block.fault]
    if faults:
        notes.append(
            f"{len(faults)} of {len(run.blocks)} blocks of samples were dropped: {'; '.join(sorted(set(faults)))}."
        )
    return notes


def _medians(run: Run, clock: str) -> str:
    parts = []
    for workload in run.workloads:
        for beside in ("base fused", "base reference", "reference"):
            if series := _series_of(run, workload, clock, "fused", beside):
                us, beside_us = stats.median_us(series), stats.median_us(series, beside=True)
                parts.append(f"{workload} {us:.2f} beside {beside_us:.2f} ({beside})")
    return ", ".join(parts)


def _next_steps(run: Run, verdicts: Sequence[Verdict]) -> list[str]:
    steps = Counter(_next_step(run, verdict) for verdict in verdicts if verdict.status is Status.INCONCLUSIVE)
    return [f"In doubt, {count} of {len(verdicts)} verdicts: {step}." for step, count in steps.items()]


def _next_step(run: Run, doubt: Verdict) -> str:
    """What may end it."""
    if doubt.more_may_decide:
        if doubt.ratio and doubt.ratio.high == math.inf:
            return "measure in two processes or more (`--processes`): one has no interval where its noise is not known"
        if doubt.ratio:
            return "measure again, in more processes (`--processes`), on a calm machine (`python -m benchmarks doctor`)"
        return "measure again (`python -m benchmarks doctor` says what may keep samples from counting)"
    if doubt.ratio:
        return (
            "bring the baseline up to date (`python -m benchmarks baseline --help`), once `compare BASE` shows that "
            "fused is not slower"
        )
    if doubt.workload in run.workloads:
        return "hold head beside a commit whose results are right (`python -m benchmarks compare BASE`)"
    part = "`python -m benchmarks gate RECORD` with `--quick` or `--workload NAME` judges a part"
    return f"measure what was expected and was not; {part}"


def comparison(judgement: Judgement) -> Judgement:
    """The verdicts on head beside base alone."""
    return dataclasses.replace(judgement, verdicts=tuple(v for v in judgement.verdicts if v.question == "slowdown"))
