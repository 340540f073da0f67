"""Where history bent, and where what it was measured with changed: steps of many series told as one. Pure."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.history.changes import NEIGHBOURS, TURNS, Beside, Change
from benchmarks.site.commits import Commit
from benchmarks.site.curves import Curve


@dataclass(frozen=True)
class EnvironmentChange:
    machine: str
    commit: Commit
    last_before: Commit
    differences: dict[str, tuple[str, str]]  # before, after
    steps: int | None  # of series, that came with it; None where all have too few points to tell


@dataclass(frozen=True)
class Bend:
    """Where series of one machine changed at the same commit, in the same direction."""

    machine: str
    commit: Commit
    last_before: Commit
    worse: bool
    environment: dict[str, tuple[str, str]]
    beside: Beside | None
    between: int  # commits that were not measured
    changes: tuple[tuple[Curve, Change], ...]  # largest first

    @property
    def largest(self) -> Change:
        return self.changes[0][1]


def size(change: Change) -> float:
    """By which share a series became worse or better: 0.05 whether it takes 5 % longer or reaches 1/1.05 as much."""
    return max(change.ratio, 1 / change.ratio) - 1


def bends(curves: Sequence[Curve], commits: Sequence[Commit]) -> list[Bend]:
    """All changes, those of a commit together, newest first."""
    places = {one.hash: number for number, one in enumerate(commits)}
    groups: dict[tuple[str, bool, bool, str], list[tuple[Curve, Change]]] = {}
    for curve in curves:
        for change in curve.changes:
            key = (change.series.machine, change.worse, bool(change.environment), change.first)
            groups.setdefault(key, []).append((curve, change))
    for key in sorted(groups, key=lambda key: (len(groups[key]), str(key))):  # the few join the many beside them
        beside = [
            other
            for other in groups
            if other != key and other[:3] == key[:3] and len(groups[other]) >= len(groups[key])
            and _measured_between(groups[key], places[key[3]], places[other[3]], places) <= NEIGHBOURS
        ]  # fmt: skip
        if beside:
            groups[max(beside, key=lambda other: len(groups[other]))] += groups.pop(key)
    found = [_bend(key[3], group, {one.hash: one for one in commits}) for key, group in groups.items()]
    return sorted(found, key=lambda one: (places[one.commit.hash], size(one.largest)), reverse=True)


def _measured_between(group: Sequence[tuple[Curve, Change]], one: int, other: int, places: dict[str, int]) -> int:
    first, last = min(one, other), max(one, other)
    return sum(first < places[point.commit] <= last for point in group[0][0].known)


def _bend(commit: str, group: Sequence[tuple[Curve, Change]], by_hash: dict[str, Commit]) -> Bend:
    ordered = tuple(sorted(group, key=lambda pair: (pair[1].first != commit, -size(pair[1]))))
    first = ordered[0][1]
    before = by_hash[first.last_before]
    environment, between = first.environment, first.between
    beside = next((change.beside for _, change in ordered if change.beside), None)
    return Bend(first.series.machine, by_hash[commit], before, first.worse, environment, beside, between, ordered)


def environment_changes(curves: Sequence[Curve], commits: Sequence[Commit]) -> list[EnvironmentChange]:
    """Where a machine's points began to be measured with something else, newest first; not each time that runners of
    two versions take turns."""
    places = {one.hash: number for number, one in enumerate(commits)}
    machines: dict[str, dict[str, list[Curve]]] = {}
    for curve in curves:
        machines.setdefault(curve.series.machine, {}).setdefault(curve.series.environment, []).append(curve)
    found = []
    for machine, environments in machines.items():
        for some in environments.values():
            for last, now, differences in _differences(some, places):
                told = [curve for curve in some if curve.scatter is not None]
                steps = sum(_came_with(curve, now, places) for curve in told) if told else None
                found.append(EnvironmentChange(machine, commits[now], commits[last], differences, steps))
        for last, now, old, new in _renamed(environments, places):
            found.append(EnvironmentChange(machine, commits[now], commits[last], {"environment": (old, new)}, 0))
    return sorted(found, key=lambda one: places[one.commit.hash], reverse=True)


def _came_with(curve: Curve, place: int, places: dict[str, int]) -> bool:
    return any(one.environment and abs(places[one.first] - place) <= NEIGHBOURS for one in curve.changes)


def _differences(
    curves: Sequence[Curve], places: dict[str, int]
) -> Iterator[tuple[int, int, dict[str, tuple[str, str]]]]:
    """Of one of asv's environments: the place before, the place, and what became another there."""
    known = {places[point.commit]: point.environment for curve in curves for point in curve.points if point.environment}
    before: dict[str, str] = {}
    lately: deque[dict[str, str]] = deque(maxlen=TURNS)
    last = None
    for place in sorted(known):
        differences = {
            name: (before[name], version)
            for name, version in known[place].items()
            if name in before and version not in {one.get(name) for one in lately}
        }
        if differences and last is not None:
            yield last, place, differences
        before, last = {**before, **known[place]}, place
        lately.append(before)


def _renamed(
    environments: dict[str, list[Curve]], places: dict[str, int]
) -> Iterator[tuple[int, int, str, str]]:  # fmt: skip
    """Where environments of asv's end and others begin: their curves do, so that no step tells of it."""
    spans = {}
    for name, curves in environments.items():
        own = [places[point.commit] for curve in curves for point in curve.points]
        spans[name] = (min(own), max(own))
    measured = sorted({places[point.commit] for some in environments.values() for one in some for point in one.points})
    for last, now in itertools.pairwise(measured):
        ended = [name for name, (_, end) in spans.items() if end == last]
        begun = [name for name, (begin, _) in spans.items() if begin == now]
        if ended or begun:
            yield last, now, ", ".join(ended) or "none", ", ".join(begun) or "none"
