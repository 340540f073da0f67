"""A series with what the page says of it: where it bent, how far it scatters, and whether its end is as it was."""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from benchmarks import stats
from benchmarks.history.changes import LEAST, LEAST_KNOWN, Change, scatter
from benchmarks.history.points import Point, Series
from benchmarks.policy import Policy
from benchmarks.results import Noise

RECENT = 10  # of a machine's measured commits, that are near the end
LEVEL = 30  # points before the last, since the last step and with the same environment, that it is held beside
ERROR = 0.01  # chance that on a machine the last point of any series is called odd though nothing happened


class State(enum.Enum):
    """Of a series' end, worst first."""

    WORSE = "worse"
    ODD = "look"
    MOVED = "environment"
    BETTER = "better"
    STEADY = "steady"
    SHORT = "cannot be told"
    ENDED = "ended"


@dataclass(frozen=True)
class Curve:
    key: str  # of the file that holds its points
    series: Series
    points: Sequence[Point]
    changes: Sequence[Change]
    judged: bool  # False: asv's configuration leaves it out of regressions; it is for reading
    near: frozenset[str]  # the last `RECENT` commits that its machine was measured at

    @cached_property
    def known(self) -> list[Point]:
        return [point for point in self.points if point.value is not None]

    @property
    def latest(self) -> Point | None:
        return self.known[-1] if self.known else None

    @property
    def ended(self) -> bool:
        """It no longer runs, or no longer has values: of the latest commit it says nothing."""
        return self.latest is None or self.latest.commit not in self.near

    @cached_property
    def scatter(self) -> float | None:
        """Standard deviation of a point, as a share."""
        logs = [math.log(point.value) for point in self.known if point.value and point.value > 0]
        if len(logs) < LEAST_KNOWN or len(logs) < len(self.known):
            return None
        return scatter(logs)

    @cached_property
    def detectable(self) -> float | None:
        """The smallest slowdown of one commit that its point would show beside the one before."""
        if self.scatter is None:
            return None
        policy = Policy()
        noise = Noise(min(self.scatter, 1.0), len(self.known))
        return stats.detectable(noise, 1, 0.0, policy.look_error(), policy.power)

    @property
    def recent(self) -> list[Change]:
        """Changes near the end that a later one did not undo."""
        return [one for one in self.changes if one.first in self.near and not self._undone(one)]

    @property
    def blamed(self) -> list[Change]:
        """Those for the worse that are a commit's."""
        return [one for one in self.recent if one.worse and not one.environment]

    def _undone(self, change: Change) -> bool:
        now = self.changes[-1].after
        return abs(math.log(now / change.before)) < math.log1p(LEAST)

    def excess(self, comparisons: int) -> float | None:
        """By which share the last point is worse than those before, where that is more than they scatter."""
        if self.scatter is None:
            return None
        from scipy import stats as distributions

        start = 0
        if self.changes:
            start = next(n for n, point in enumerate(self.known) if point.commit == self.changes[-1].first)
        *earlier, last = self.known[start:]
        before = [math.log(one.value or 1) for one in earlier if one.environment == last.environment][-LEVEL:]
        if len(before) < LEAST_KNOWN - 1:
            return None
        sign = 1 if self.series.less_is_better else -1
        excess = sign * (math.log(last.value or 1) - statistics.median(before))
        reach = math.sqrt(1 + math.pi / 2 / len(before)) * self.scatter
        bound = float(distributions.t.ppf(1 - ERROR / comparisons, len(before) - 1)) * reach
        return math.expm1(excess) if excess > max(bound, math.log1p(LEAST)) else None

    def state(self, comparisons: int) -> State:
        """As one of so many series that are judged on the machine."""
        if self.ended:
            return State.ENDED
        if self.scatter is None:
            return State.SHORT
        if self.blamed:
            return State.WORSE
        if self.excess(comparisons) is not None:
            return State.ODD
        if any(one.environment for one in self.recent):
            return State.MOVED
        return State.BETTER if self.recent else State.STEADY
