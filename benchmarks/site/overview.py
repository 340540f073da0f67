"""What the overview says, in the order in which it is read. Pure: from curves and commits to words and numbers."""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks import stats
from benchmarks.gate import Judgement, Status
from benchmarks.policy import BESIDE_BASE, Policy
from benchmarks.results import NoiseRecord, Run
from benchmarks.site.bends import size
from benchmarks.site.commits import Commit
from benchmarks.site.curves import RECENT, Curve, State
from benchmarks.site.units import percent, reading

GATE_PROCESSES = 3  # of each side, in which the gate first looks
LIMIT = re.compile("share|limit|utili[sz]ation|efficiency|roofline", re.IGNORECASE)
TIMES = ("seconds", "s", "ms", "µs", "us", "ns")


class Fitness(enum.Enum):
    """Of the latest commit on a machine."""

    WORSE = "worse"
    LOOK = "doubt"
    FINE = "fine"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Verdict:
    """A record that the gate judged, on its machine."""

    machine: str
    run: Run
    judgement: Judgement


@dataclass(frozen=True)
class Figure:
    """A number of a machine's card."""

    label: str
    value: str
    about: tuple[str, ...]  # a line each


@dataclass(frozen=True)
class Card:
    """A machine at a glance."""

    machine: str
    fitness: Fitness
    said: str  # in a few words
    reasons: tuple[str, ...]
    since: str  # "since" the commit by which it became worse, or "after" the last good one, where history says so
    latest: Commit | None  # that was measured
    behind: int  # commits since
    figures: tuple[Figure, ...]
    headline: Curve | None
    counts: dict[State, int]


def card(
    machine: str,
    curves: Sequence[Curve],
    commits: Sequence[Commit],
    noise: NoiseRecord | None,
    verdict: Verdict | None,
) -> Card:
    places = {one.hash: number for number, one in enumerate(commits)}
    with_value = sorted({places[point.commit] for curve in curves for point in curve.known})
    curves = [curve for curve in curves if not curve.ended]
    judged = [curve for curve in curves if curve.judged]
    states = {curve.key: curve.state(len(judged)) for curve in curves}
    counts = {state: sum(states[curve.key] is state for curve in judged) for state in State}
    headline = headline_of(curves)
    if not with_value:
        why = ("No commit of this branch has a value here.",)
        return Card(machine, Fitness.UNKNOWN, "Nothing measured", why, "", None, len(commits), (), None, counts)
    latest, behind = commits[with_value[-1]], len(commits) - 1 - with_value[-1]
    fitness, said, reasons = _fitness(judged, states, latest, behind, verdict)
    if _stale(with_value, behind):
        fitness, said = Fitness.UNKNOWN, f"{said.partition(' up to ')[0]} up to {latest.short}"
    figures = tuple(_figures(curves, headline, noise))
    steps = [one for curve in judged if states[curve.key] is State.WORSE for one in curve.blamed]
    since = max(steps, key=size).since if steps else ""
    return Card(machine, fitness, said, tuple(reasons), since, latest, behind, figures, headline, counts)


def _stale(measured: Sequence[int], behind: int) -> bool:
    """Whether nothing is known of the latest commit: as often as it used to measure, the machine would have measured
    `RECENT` of those that came since."""
    usual = (measured[-1] - measured[0]) / max(1, len(measured) - 1)
    return behind > RECENT * max(1.0, usual)


def _fitness(
    judged: Sequence[Curve],
    states: dict[str, State],
    latest: Commit,
    behind: int,
    verdict: Verdict | None,
) -> tuple[Fitness, str, list[str]]:
    worse = [curve for curve in judged if states[curve.key] is State.WORSE]
    odd = [curve for curve in judged if states[curve.key] is State.ODD]
    moved = [curve for curve in judged if any(one.worse and one.environment for one in curve.recent)]
    reasons = []
    if worse:
        steps = [(curve, one) for curve in worse for one in curve.blamed]
        curve, step = max(steps, key=lambda pair: size(pair[1]))
        reasons.append(
            f"{step.since.capitalize()}, {curve.series.name} is worse by {percent(size(step))}; "
            f"{len(worse)} of {len(judged)} series bent in the last {RECENT} measured commits."
        )
    if odd:
        curve = max(odd, key=lambda one: one.excess(len(judged)) or 0)
        reasons.append(
            f"The last point of {curve.series.name} is worse than those before by "
            f"{percent(curve.excess(len(judged)) or 0)}, more than they scatter: one point alone, so measure it again."
        )
    if moved:
        reasons.append(f"{len(moved)} series became worse with another environment, which is no commit's doing.")
    status = None
    if verdict is not None:
        text, status = _judged(verdict, latest, behind)
        reasons.append(text)
    if behind:
        reasons.append(f"Measured up to {latest.short}: {_commits(behind)} of the branch came since.")
    if worse or status is Status.REGRESSION:
        return Fitness.WORSE, "Worse", reasons
    if odd or status is Status.INCONCLUSIVE:
        return Fitness.LOOK, "In doubt", reasons
    if status is Status.PASS:
        return Fitness.FINE, "Fine", reasons
    short = sum(states[curve.key] is State.SHORT for curve in judged)
    if behind:
        said = "Measured" if short == len(judged) else "Fine"
        return Fitness.UNKNOWN, f"{said} up to {latest.short}", reasons
    if short == len(judged):
        return (
            Fitness.UNKNOWN,
            "Too early to tell",
            [*reasons, "How far its series scatter is not known from so few values above zero."],
        )
    told = len(judged) - short
    return (
        Fitness.FINE,
        "Fine",
        [*reasons, f"None of {told} series became worse in the last {RECENT} measured commits."],
    )


def _judged(verdict: Verdict, latest: Commit, behind: int) -> tuple[str, Status | None]:
    """In words, and the status where it is of the latest commit."""
    environment, status = verdict.run.environment, verdict.judgement.status
    commit = (environment.commit or "an unknown commit")[:10]
    edited = " with uncommitted changes" if environment.dirty else ""
    text = f"The gate judged {commit}{edited}: {status.name}."
    return text, status if environment.commit == latest.hash and not edited and not behind else None


def _commits(count: int) -> str:
    return "one commit" if count == 1 else f"{count:,} commits"


def answer(cards: Sequence[Card]) -> tuple[Fitness, str]:
    """All machines in one sentence."""
    if not any(card.latest for card in cards):
        return Fitness.UNKNOWN, "No commit of this branch was measured yet"
    named = {fitness: [card for card in cards if card.fitness is fitness] for fitness in Fitness}
    if worse := named[Fitness.WORSE]:
        since = {card.since for card in worse}
        when = f" {since.pop()}" if len(since) == 1 and "" not in since else ""
        return Fitness.WORSE, f"Worse on {_machines(worse, cards)}{when}"
    if doubtful := named[Fitness.LOOK]:
        return Fitness.LOOK, f"In doubt on {_machines(doubtful, cards)}"
    fine, unknown = named[Fitness.FINE], named[Fitness.UNKNOWN]
    said = unknown[0].said if len(unknown) == 1 else "Not measured"
    if not fine:
        return Fitness.UNKNOWN, f"{said} on {_machines(unknown, cards)}"
    rest = f"; {said.lower()} on {_machines(unknown, cards)}" if unknown else ""
    return Fitness.FINE, f"The latest commit is fine on {_machines(fine, cards)}{rest}"


def _machines(some: Sequence[Card], cards: Sequence[Card]) -> str:
    if len(some) == 1:
        return some[0].machine
    every = "both" if len(cards) == 2 else f"all {len(cards)}"
    return f"{every} machines" if len(some) == len(cards) else f"{len(some)} of {len(cards)} machines"


def headline_of(curves: Sequence[Curve]) -> Curve | None:
    """The series that stands for a machine: a speedup if there is one, else a time, else any; one that has not ended.

    Among them one that at least half as many commits have as the most measured one; of the benchmark with the fewest
    series, for a short list is looked at first; of its parameters the first combination, which projects mean most by.
    """
    known = [curve for curve in curves if not curve.ended]
    speedups = [curve for curve in known if "speedup" in curve.series.benchmark.lower()]
    times = [curve for curve in known if curve.series.unit in TIMES]
    candidates = speedups or times or known
    most = max((len(curve.known) for curve in candidates), default=0)
    sizes = Counter(curve.series.benchmark for curve in candidates)
    often = [curve for curve in candidates if 2 * len(curve.known) >= most]
    return min(often, key=lambda curve: sizes[curve.series.benchmark], default=None)


def _figures(curves: Sequence[Curve], headline: Curve | None, noise: NoiseRecord | None) -> Iterable[Figure]:
    if headline is None or headline.latest is None:
        return
    yield _now(headline, curves, _title(headline), headline.series.unit)
    limits = [
        curve
        for curve in curves
        if curve.latest
        and curve.series.unit.startswith(("%", "percent"))
        and LIMIT.search(curve.series.name + curve.series.unit)
    ]
    beside = [one for one in limits if set(one.series.parameters) <= set(headline.series.parameters)]
    if limit := next(iter(beside or limits), None):
        yield _now(limit, curves, f"Share of {_whole(limit.series.unit)}", "%")
    yield _smallest(headline, noise)


def _title(curve: Curve) -> str:
    if "speedup" in curve.series.benchmark.lower():
        return "Speedup"
    return re.sub("^(time|track|mem|peakmem|timeraw)_", "", curve.series.benchmark.rpartition(".")[2])


def _whole(unit: str) -> str:
    """Of which the unit is a share: "% of the limit"."""
    return unit.partition(" of ")[2] or "the limit"


def _now(curve: Curve, curves: Sequence[Curve], label: str, unit: str) -> Figure:
    point = curve.latest
    assert point is not None
    assert point.value is not None
    values = [one.latest.value for one in curves if _alike(one, curve) and one.latest and one.latest.value is not None]
    about = [curve.series.chosen] if curve.series.parameters else []
    if point.low is not None and point.high is not None:
        about.insert(0, f"{reading(point.low, unit)} to {reading(point.high, unit)} with 99 % confidence")
    if len(values) > 1:
        about.append(f"{len(values)} series like it: {reading(min(values), unit)} to {reading(max(values), unit)}")
    return Figure(label, reading(point.value, unit), tuple(about))


def _alike(one: Curve, other: Curve) -> bool:
    """Series that differ in their benchmark's first parameter alone, which is what a benchmark is run over."""
    mine, others = one.series, other.series
    short = mine.benchmark.rpartition(".")[2] == others.benchmark.rpartition(".")[2]
    return short and mine.parameters[1:] == others.parameters[1:]


def _smallest(headline: Curve, noise: NoiseRecord | None) -> Figure:
    """By the gate, where the machine's noise is known and of this series; else by how the history itself scatters."""
    label = "Smallest slowdown seen"
    policy = Policy()
    told = {
        key: stats.detectable(known, GATE_PROCESSES, 0.0, policy.look_error(), policy.power)
        for key in _keys(noise)
        if noise and (known := noise.of(*key, BESIDE_BASE))
    }
    own = headline.detectable
    history = "" if own is None else f"{percent(own)} from one commit to the next, by the history's own scatter"
    if mine := [value for key, value in told.items() if set(key) <= set(headline.series.values)]:
        same_clock = [value for key, value in told.items() if key[1] in headline.series.values]
        about = [
            f"by the gate, two commits side by side in {GATE_PROCESSES} processes each",
            f"{len(same_clock)} workloads: {percent(min(same_clock))} to {percent(max(same_clock))}",
        ]
        return Figure(label, percent(mine[0]), (*about, *([history] if history else [])))
    if own is None:
        return Figure(label, "–", ("too few commits to know the scatter",))  # noqa: RUF001
    scatter = f"by this history's own scatter, {percent(headline.scatter or 0)} a point"
    return Figure(label, percent(own), ("from one commit to the next", scatter))


def _keys(noise: NoiseRecord | None) -> list[tuple[str, str]]:
    return [(workload, clock) for workload, clocks in (noise.entries if noise else {}).items() for clock in clocks]
