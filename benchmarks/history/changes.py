"""Where history bent: the commits from which on a series took another value. Pure.

Steps are found by asv's own detector (`asv.step_detect`, piecewise constant with an L1 penalty). One that comes with
another driver, PyTorch or Triton is the environment's and blamed on no commit.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.history.points import Point, Series

LEAST = 0.01  # smaller steps are not told
ERROR = 0.05  # of the interval of a step's size
# What a step costs, in standard deviations of a point. asv's own choice of it misses a clean 5 % among 60 points of 1 %
# noise in 8 of 100 histories, this one in 1, and tells of no step in 300 without one (`tests/test_changes.py`).
PENALTY = 10
POINTS = 60  # for which that holds; of more, a step costs more, and so it does of fewer
# Chance of a false step by which that grows the fewer jumps the scatter is taken from, as Student's t does. Of 168
# series of 5 to 60 points without a step, in one of 20 histories some series is told of one (`tests/test_changes.py`).
FALSE_STEP = 0.0005
LEAST_KNOWN = 5  # points, for any step to be told: of fewer, the largest jump is the scatter
FEW = 4  # points that have to stand out further than any single one
THIRD_QUARTILE = 1.1503  # of a normal distribution's absolute values, in its standard deviations
# Commits that a step has to show in: one alone may be a disturbed measurement.
LEAST_POINTS = 2
# Standard deviations within which a point may belong to either side of a step, and how many such are looked past.
EITHER_SIDE, FARTHEST = 3, 3


NEIGHBOURS = 2  # measured commits within which series may place the same step
MANY = 4  # times as many series, that a step of the environment is told by
TURNS = 10  # points among which a version that came back was never gone
UNKNOWN = "unknown"  # a version before it was first noted


@dataclass(frozen=True)
class Beside:
    """What became another so near to a step that the two are seen as one."""

    differences: dict[str, tuple[str, str]]  # before, after
    points: int  # after the step; before it where negative


@dataclass(frozen=True)
class Change:
    """From `first` on a series took another value than up to `last_before`."""

    series: Series
    last_before: str
    first: str
    before: float
    after: float
    low: float  # of after / before, with its interval
    high: float
    between: int  # commits after `last_before` and before `first` that have no point
    environment: dict[str, tuple[str, str]]  # what else became another at the same step, before and after
    beside: Beside | None = None  # where the step is blamed on a commit
    apart: int = 0  # points after the step that `environment` became another; before it where negative

    @property
    def ratio(self) -> float:
        return self.after / self.before

    @property
    def worse(self) -> bool:
        return (self.after > self.before) is self.series.less_is_better

    @property
    def since(self) -> str:
        """The commit; where those between were not measured, the last one that it is not."""
        return f"after {self.last_before[:10]}" if self.between else f"since {self.first[:10]}"


def changes(series: Series, points: Sequence[Point], commits: Sequence[str]) -> list[Change]:
    """The steps of one series, oldest first; on logarithms, because times differ by shares."""
    known = [point for point in points if point.value is not None and point.value > 0]
    if len(known) < LEAST_KNOWN:
        return []
    logs = [math.log(point.value or math.nan) for point in known]
    segments = _segments(logs)
    centres = [statistics.median(logs[left:right]) for left, right in segments]
    deviation = _deviation(logs, segments, centres)
    order = {commit: number for number, commit in enumerate(commits)}
    found, updates = [], _updates(known)
    for (left, right), before, after in zip(itertools.pairwise(segments), centres, centres[1:], strict=False):
        if abs(math.expm1(after - before)) < LEAST:
            continue
        reach = deviation * _reach(left, right, len(logs) - len(segments))
        last, first = known[left[1] - 1], known[right[0]]
        environment, apart = _environment_at(known, updates, logs, (left, right), (before, after), deviation)
        found.append(
            Change(
                series,
                last.commit,
                first.commit,
                math.exp(before),
                math.exp(after),
                math.exp(after - before - reach),
                math.exp(after - before + reach),
                order[first.commit] - order[last.commit] - 1,
                environment,
                None if environment else _beside(updates, right[0]),
                apart,
            )
        )
    return found


def of_every(points: dict[Series, list[Point]], commits: Sequence[str]) -> dict[Series, list[Change]]:
    """The steps of every series; one beside those of many other series of its machine, which came with another
    environment, is of that too: noise moves a step by a commit or two. And one that lies beside an update by which
    most other series show none may be a commit's."""
    found = {series: changes(series, values, commits) for series, values in points.items()}
    measured: dict[str, set[str]] = {}
    for series, values in points.items():
        measured.setdefault(series.machine, set()).update(point.commit for point in values)
    order = {
        machine: {commit: number for number, commit in enumerate(one for one in commits if one in some)}
        for machine, some in measured.items()
    }
    alike = _alike(found)
    found = {
        series: [_apart_from_the_few(one, alike[_side(one)], points, order[series.machine]) for one in some]
        for series, some in found.items()
    }
    alike = _alike(found)
    return {
        series: [_with_the_many(one, alike[_side(one)], order[series.machine]) for one in some]
        for series, some in found.items()
    }


def _side(change: Change) -> tuple[str, bool]:
    return change.series.machine, change.worse


def _alike(found: dict[Series, list[Change]]) -> dict[tuple[str, bool], list[Change]]:
    """Those of one machine and direction."""
    alike: dict[tuple[str, bool], list[Change]] = {}
    for change in itertools.chain.from_iterable(found.values()):
        alike.setdefault(_side(change), []).append(change)
    return alike


def _apart_from_the_few(
    change: Change, alike: Sequence[Change], points: dict[Series, list[Point]], order: dict[str, int]
) -> Change:
    """As a commit's, with the update beside it, where few of the machine's series show a step near that update and most
    of these lie beside it: the steps of an update that had an effect lie at it."""
    if not change.apart:
        return change
    place = order[change.first]
    near = [one for one in alike if one.environment and abs(order[one.first] - place) <= FARTHEST]
    measured = sum(
        order[values[0].commit] < place < order[values[-1].commit]
        for series, values in points.items()
        if series.machine == change.series.machine
    )
    if 2 * len(near) >= measured or 2 * sum(one.apart != 0 for one in near) <= len(near):
        return change
    return dataclasses.replace(change, environment={}, beside=Beside(change.environment, change.apart), apart=0)


def _with_the_many(change: Change, alike: Sequence[Change], order: dict[str, int]) -> Change:
    """As the environment's, where a group of changes that is at least `MANY` times as large as that of the blamed ones
    lies beside it, and its own size may be theirs."""
    if change.environment:
        return change
    near = [one for one in alike if abs(order[one.first] - order[change.first]) <= NEIGHBOURS]
    many = [one for one in near if one.environment]
    if len(many) < MANY * (len(near) - len(many)) or _least(change) > statistics.median(map(_size, many)):
        return change
    return dataclasses.replace(change, environment=many[0].environment, beside=None)


def _size(change: Change) -> float:
    return abs(math.log(change.ratio))


def _least(change: Change) -> float:
    """The smallest size in a change's interval."""
    if change.low <= 1 <= change.high:
        return 0.0
    return min(abs(math.log(change.low)), abs(math.log(change.high)))


def _segments(logs: Sequence[float]) -> list[tuple[int, int]]:
    """Between steps: the first index of each, and the one after its last."""
    from asv.step_detect import solve_potts_approx

    penalty = PENALTY * _dearer(len(logs)) * max(scatter(logs), 1e-9)
    ends, *_ = solve_potts_approx(logs, [1.0] * len(logs), gamma=penalty, min_size=LEAST_POINTS)
    segments = list(itertools.pairwise([0, *ends]))
    while (short := _no_further_than_one_alone(logs, segments)) is not None:
        segments = _joined(logs, segments, short)
    return segments


def _dearer(points: int) -> float:
    """How much more a step costs than of `POINTS` points: of more there are more chances of a false step, and of fewer
    the scatter is badly known."""
    from scipy import stats

    if points >= POINTS:
        return math.log(points) / math.log(POINTS)
    unsure, known = (float(stats.t.ppf(1 - FALSE_STEP, count - 2)) for count in (points, POINTS))
    return unsure / known


def _no_further_than_one_alone(logs: Sequence[float], segments: Sequence[tuple[int, int]]) -> int | None:
    """A segment of few points that lies no further from one beside it than some single point elsewhere lies from its
    own: disturbed measurements that happen to be neighbours."""
    if len(segments) == 1:
        return None
    centres = [statistics.median(logs[left:right]) for left, right in segments]
    alone = max(
        abs(logs[place] - centre)
        for (left, right), centre in zip(segments, centres, strict=True)
        for place in range(left, right)
    )
    for number, (left, right) in enumerate(segments):
        beside = [centres[other] for other in (number - 1, number + 1) if 0 <= other < len(segments)]
        if right - left < FEW and min(abs(centres[number] - other) for other in beside) <= alone:
            return number
    return None


def _joined(logs: Sequence[float], segments: Sequence[tuple[int, int]], number: int) -> list[tuple[int, int]]:
    """With that segment as part of the one beside it that is nearer to it."""
    centre = statistics.median(logs[slice(*segments[number])])
    beside = [other for other in (number - 1, number + 1) if 0 <= other < len(segments)]
    nearest = min(beside, key=lambda other: abs(statistics.median(logs[slice(*segments[other])]) - centre))
    first, last = sorted((number, nearest))
    return [*segments[:first], (segments[first][0], segments[last][1]), *segments[last + 1 :]]


def scatter(logs: Sequence[float]) -> float:
    """Standard deviation of a point, from one to the next, so that steps hardly change it.

    By the third quartile of the jumps, as if they were normal: where a clock is coarse, most points are the
    same and half of the jumps are none, and what is left would each be told as a step.
    """
    jumps = [abs(after - before) for before, after in itertools.pairwise(logs)]
    return _by_third_quartile(jumps) / math.sqrt(2)


def _by_third_quartile(sizes: Sequence[float]) -> float:
    """Standard deviation of what has these absolute values, whatever the largest of them are."""
    return sorted(sizes)[math.ceil(0.75 * len(sizes)) - 1] / THIRD_QUARTILE


def _deviation(logs: Sequence[float], segments: Sequence[tuple[int, int]], centres: Sequence[float]) -> float:
    """Standard deviation of the points about their segments' middles, which one disturbed measurement hardly changes;
    inf where nothing is left to tell it by."""
    freedom = len(logs) - len(segments)
    sizes = [
        abs(logs[index] - centre)
        for (left, right), centre in zip(segments, centres, strict=True)
        for index in range(left, right)
    ]
    return _by_third_quartile(sizes) * math.sqrt(len(logs) / freedom) if freedom > 0 else math.inf


def _reach(before: tuple[int, int], after: tuple[int, int], freedom: int) -> float:
    """Half of the interval of the difference of two segments' medians, in standard deviations of a point.

    A median of n has pi / 2 times the variance of a mean, from three on.
    """
    from scipy import stats

    lengths = [right - left for left, right in (before, after)]
    share = sum((math.pi / 2 if length > 2 else 1.0) / length for length in lengths)
    return float(stats.t.ppf(1 - ERROR / 2, freedom)) * math.sqrt(share)


@dataclass(frozen=True)
class _Update:
    """A version became another at one of the points from `earliest` to `latest`: those before `latest` do not say."""

    name: str
    old: str
    new: str
    earliest: int
    latest: int


def _updates(known: Sequence[Point]) -> list[_Update]:
    """What is not noted for a while is what it was, until it is noted again."""
    found = []
    seen: dict[str, int] = {}
    for place, point in enumerate(known):
        for name, version in point.environment.items():
            if name not in seen and place:
                found.append(_Update(name, UNKNOWN, version, place, place))
            elif name in seen and (old := known[seen[name]].environment[name]) != version:
                found.append(_Update(name, old, version, seen[name] + 1, place))
            seen[name] = place
    return found


def _environment_at(
    known: Sequence[Point],
    updates: Sequence[_Update],
    logs: Sequence[float],
    sides: Sequence[tuple[int, int]],
    levels: Sequence[float],
    deviation: float,
) -> tuple[dict[str, tuple[str, str]], int]:
    """What else became another at the step between two segments; or some points earlier or later, where those between
    may as well belong to the step's other side. And how many points later."""
    (begin, step), (_, end) = sides
    before, after = levels

    def makes_none(update: _Update, place: int) -> bool:
        """Whether points were measured with the other side's version and are yet at their own side's level, as where
        runners of two drivers take turns."""
        middle, rising = (before + after) / 2, after > before
        of_their_own = [
            (logs[n] > middle) is (rising if n >= place else not rising)
            for n in range(begin, end)
            if known[n].environment.get(update.name) == (update.old if n >= place else update.new)
        ]
        return sum(of_their_own) >= LEAST_POINTS and 2 * sum(of_their_own) > len(of_their_own)

    for place in _places(logs, step, levels, deviation):
        there = [one for one in updates if one.earliest <= place <= one.latest]
        if told := {one.name: (one.old, one.new) for one in there if not makes_none(one, place)}:
            return told, place - step
    return {}, 0


def _beside(updates: Sequence[_Update], step: int) -> Beside | None:
    """The nearest update that lies too near to a step for the few points between them to show as a level of their own;
    none where runners of two versions take turns."""
    lone = [
        one
        for one in updates
        if not any(0 < abs(one.latest - other.latest) <= TURNS for other in updates if other.name == one.name)
    ]
    apart = {one: min(max(one.earliest, step), one.latest) - step for one in lone}
    near = [one for one, points in apart.items() if 0 < abs(points) < FEW]
    if not near:
        return None
    points = min((apart[one] for one in near), key=abs)
    return Beside({one.name: (one.old, one.new) for one in near if apart[one] == points}, points)


def _places(logs: Sequence[float], step: int, levels: Sequence[float], deviation: float) -> list[int]:
    """Where a step may lie: points that may as well belong to its other side are looked past."""
    before, after = levels
    places = [step]
    for place in range(step - 1, max(0, step - 1 - FARTHEST), -1):
        if abs(logs[place] - after) >= EITHER_SIDE * deviation:
            break
        places.append(place)
    for place in range(step, min(len(logs) - 1, step + FARTHEST)):
        if abs(logs[place] - before) >= EITHER_SIDE * deviation:
            break
        places.append(place + 1)
    return places


def narrowed(commits: Sequence[str], good: str, bad: str, is_bad: Callable[[str], bool | None]) -> tuple[str, str]:
    """The last good and the first bad commit, by halves; more than one apart where `is_bad` cannot tell (None) of those
    between them."""
    low, high = commits.index(good), commits.index(bad)
    untold: set[int] = set()
    while True:
        middle = (low + high) / 2
        candidates = sorted(set(range(low + 1, high)) - untold, key=lambda number: abs(number - middle))
        if not candidates:
            return commits[low], commits[high]
        answer = is_bad(commits[candidates[0]])
        if answer is None:
            untold.add(candidates[0])
        elif answer:
            high = candidates[0]
        else:
            low = candidates[0]
