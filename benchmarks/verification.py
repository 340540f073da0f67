"""A record keeps what it was judged by, so that anybody can derive its verdicts again. Pure."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from benchmarks.gate import Case, Judgement, Verdict, judge
from benchmarks.policy import Policy
from benchmarks.results import Run, decoded


@dataclass(frozen=True)
class _Judged(Case):
    """A case and the verdicts in it, as records keep them."""

    verdicts: tuple[dict[str, Any], ...] = ()


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
        raise ValueError("record: it holds no verdicts to verify, as of `run`; `gate` gives some")
    judged = decoded(_Judged, run.judged)
    judgement = judge(run, judged)
    derived = [_plain(verdict) for verdict in judgement.verdicts]
    if len(judged.verdicts) != len(derived):
        return judgement, [f"{len(judged.verdicts)} verdicts recorded, {len(derived)} derived"]
    pairs = zip(judged.verdicts, derived, strict=True)
    return judgement, [difference for old, new in pairs if (difference := _difference(old, new))]


def by_the_rules_of(run: Run, case: Case) -> Judgement:
    """The judgement on what the record was judged on, by the case's policy, baseline, noise and exceptions."""
    assert run.judged is not None
    return judge(run, dataclasses.replace(case, expected=decoded(_Judged, run.judged).expects()))


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Of a recorded and a derived verdict, in words; empty where there is none."""
    was, now = _leaves(old), _leaves(new)
    changes = [
        f"{name} {was.get(name)!r} recorded, {now.get(name)!r} derived"
        for name in dict.fromkeys([*now, *was])
        if not _is_same(was.get(name), now.get(name))
    ]
    return f"{new['workload']} on {new['clock']}, {new['question']}: {'; '.join(changes)}" if changes else ""


def _is_same(old: Any, new: Any) -> bool:
    """Quantiles of scipy 1.15 and 1.17 differ by up to 2.4e-11."""
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-9)
    return bool(old == new)


def _leaves(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found |= _leaves(value, f"{name} ") if isinstance(value, dict) else {prefix + name: value}
    return found


def _plain(verdict: Verdict) -> dict[str, Any]:
    return {**dataclasses.asdict(verdict), "status": verdict.status.name}


def judged_otherwise(run: Run, case: Case) -> list[str]:
    """In what the recorded case differs from `case`, in words, an item each."""
    assert run.judged is not None
    judged = decoded(_Judged, run.judged)
    differences = []
    for name in [one.name for one in dataclasses.fields(Policy)]:
        old, new = getattr(judged.policy, name), getattr(case.policy, name)
        if old != new:
            differences.append(f"policy than this repository's: {name} {old}; here {new}")
    for name in ("baseline", "noise"):
        old, new = getattr(judged, name), getattr(case, name)
        if old != new:
            was, here = (f"of {one.created}" if one else "none" for one in (old, new))
            differences.append(f"{name} than this repository's: {was}; here {here}")
    if judged.accepted != case.accepted:
        differences.append(f"list of accepted slowdowns: {len(judged.accepted)}; here {len(case.accepted)}")
    if missing := [name for name in case.expects() if name not in judged.expects()]:
        differences.append(f"list of expected workloads than this repository's: without {', '.join(missing)}")
    return differences
