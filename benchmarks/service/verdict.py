"""The one verdict on a pull request, out of what its jobs ended in and the records that they left. Pure.

Green needs everything: every job a success, of every GPU model exactly one record, of this head beside this base, whose
verdicts follow from its samples, by the policy, baseline and noise of this checkout, and PASS; and nothing changed of
what the pull request is judged by. A maintainer may override the rest for one commit: see `overrides`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks import gate, report, verification
from benchmarks.results import Run
from benchmarks.service.gpus import Gpu

CHECK = "perf-verdict"  # the job that decides, and the one check that a merge requires
MOST_ATTEMPTS = 2  # of a run: each errs in one of twenty, and a lost runner needs a second


@dataclass(frozen=True)
class Asked:
    """What was to be measured."""

    head: str
    base: str
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True)
class Found:
    """A record that can be judged, and its judgement by this checkout's rules."""

    gpu: Gpu
    run: Run
    judgement: gate.Judgement


@dataclass(frozen=True)
class Outcome:
    """Why it is red, if it is, and what can be shown of the measurements."""

    reasons: tuple[str, ...]
    found: tuple[Found, ...]

    @property
    def green(self) -> bool:
        return not self.reasons


def decide(
    asked: Asked,
    jobs: dict[str, str],
    records: Sequence[Run],
    changed: Sequence[str],
    case_of: Callable[[Run], gate.Case],
) -> Outcome:
    """The outcome.

    `jobs` is what each job ended in, in GitHub's words; `changed` the pull request's changes to its judge; `case_of`
    gives what this repository judges a record by, and raises ValueError where it has no baseline for the device.
    """
    reasons = [
        f"{name}: the job ended as {result!r}, not in success" for name, result in jobs.items() if result != "success"
    ]
    if not jobs:
        reasons.append("no job was to be waited for")
    found = []
    for gpu in asked.gpus:
        own = [run for run in records if run.environment.device == gpu.device]
        if len(own) != 1:
            reasons.append(f"{gpu.name}: {len(own)} records of {gpu.device}; expected one")
            continue
        try:
            case = case_of(own[0])
            _refuse_strange_workloads(own[0], case)
            judgement = gate.judge(own[0], case)
            reasons += [f"{gpu.name}: {reason}" for reason in _of_record(asked, own[0], judgement, case)]
        except (ValueError, ArithmeticError, LookupError) as error:
            reasons.append(f"{gpu.name}: the record cannot be judged: {error}")
            continue
        found.append(Found(gpu, own[0], judgement))
    known = {gpu.device for gpu in asked.gpus}
    reasons += [
        f"a record of {device}, which is not on the list of GPU models"
        for device in sorted({run.environment.device for run in records} - known)
    ]
    if changed:
        reasons.append("it changes what it is judged by, below: a maintainer has to take that on (docs/operating.md)")
    return Outcome(tuple(reasons), tuple(found))


def _refuse_strange_workloads(run: Run, case: gate.Case) -> None:
    """Judging takes time for each: a record of thousands would keep the judge busy for hours."""
    strange = {*run.workloads, *(check.workload for check in run.checks)} - set(case.expected or ())
    if strange:
        raise ValueError(f"it has {len(strange)} workloads that nobody asked for, {min(strange)[:80]!r} among them")


def _of_record(asked: Asked, run: Run, judgement: gate.Judgement, case: gate.Case) -> list[str]:
    reasons = []
    if run.environment.commit != asked.head or run.environment.dirty:
        reasons.append(f"measured {_state(run.environment.commit, run.environment.dirty)}; expected {asked.head[:10]}")
    if run.base is None or run.base.commit != asked.base or run.base.dirty:
        was = "nothing" if run.base is None else _state(run.base.commit, run.base.dirty)
        reasons.append(f"measured beside {was}; expected the merge base {asked.base[:10]}")
    _, differences = verification.verify(run)
    if differences:
        reasons.append(f"the record's samples do not give its verdicts: {differences[0]}")
    reasons += [f"the record was judged by another {one}" for one in verification.judged_otherwise(run, case)]
    if judgement.status is not gate.Status.PASS:
        reasons.append(f"{report.MARKS[judgement.status]}: {_worst(judgement)}")
    return reasons


def _worst(judgement: gate.Judgement) -> str:
    """The first of the verdicts that decided in words, and which workloads the others are of."""
    worst = [one for one in judgement.verdicts if one.status is judgement.status]
    if not worst:
        return "nothing was judged"
    first, names = worst[0], list(dict.fromkeys(one.workload for one in worst))
    shown = f"{first.workload} on {first.clock}, {first.question}: {first.reason}"
    if len(names) > 1:
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        shown += f"; also {', '.join(names[1:4])}{more}"
    return f"{shown} ({len(worst)} of {len(judgement.verdicts)} verdicts)"


def _state(commit: str | None, dirty: bool) -> str:
    return (commit or "no commit")[:10] + (" with uncommitted changes" if dirty else "")
