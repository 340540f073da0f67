"""A curve as the small picture in a table: a line, its band, and marks, in the coordinates of an SVG view box."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.history.points import Point

WIDTH, HEIGHT = 240.0, 48.0
MARGIN = 5.0  # within which the last point's dot fits
BINS = 120  # that more points are drawn as the medians of


@dataclass(frozen=True)
class Sketch:
    """Paths of an SVG."""

    line: str
    band: str
    dots: tuple[tuple[float, float], ...]  # points with no neighbour to draw a line to
    last: tuple[float, float] | None
    environments: tuple[float, ...]  # x of vertical lines
    worse: tuple[float, ...]
    better: tuple[float, ...]


@dataclass(frozen=True)
class _Bin:
    place: float
    value: float | None
    low: float
    high: float


def sketch(
    points: Sequence[Point],
    order: dict[str, int],
    span: tuple[int, int],
    environments: Sequence[str],
    worse: Sequence[str],
    better: Sequence[str],
) -> Sketch:
    """Marks stand at commits of `order`, which maps them to places on the branch; the picture is as wide as `span`, the
    places of all that the machine measured, so that a curve that ended is seen to."""
    places = [order[point.commit] for point in points]
    bins = _bins(places, points)
    known = [one for one in bins if one.value is not None]
    if not known:
        return Sketch("", "", (), None, (), (), ())
    left, right = span[0], max(span[1], span[0] + 1)
    bottom, top = min(one.low for one in known), max(one.high for one in known)
    middle, height = (bottom + top) / 2, max(top - bottom, 0.02 * abs(top + bottom) / 2, 1e-300)

    def x(place: float) -> float:
        return round(MARGIN + (WIDTH - 2 * MARGIN) * (place - left) / (right - left), 1)

    def y(value: float) -> float:
        return round(HEIGHT / 2 - (HEIGHT - 2 * MARGIN) * (value - middle) / height, 1)

    runs = _runs(bins)
    lines = ["M" + "L".join(f"{x(one.place)},{y(one.value or 0)}" for one in run) for run in runs if len(run) > 1]
    bands = [
        "M"
        + "L".join(
            [f"{x(one.place)},{y(one.high)}" for one in run] + [f"{x(one.place)},{y(one.low)}" for one in run[::-1]]
        )
        + "Z"
        for run in runs
        if len(run) > 1
    ]
    return Sketch(
        "".join(lines),
        "".join(bands),
        tuple((x(run[0].place), y(run[0].value or 0)) for run in runs if len(run) == 1),
        (x(known[-1].place), y(known[-1].value or 0)),
        *(tuple(x(order[commit]) for commit in marks) for marks in (environments, worse, better)),
    )


def _bins(places: Sequence[int], points: Sequence[Point]) -> list[_Bin]:
    size = max(1, -(-len(points) // BINS))
    bins = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        place = statistics.fmean(places[start : start + size])
        known = [point for point in part if point.value is not None]
        if not known:
            bins.append(_Bin(place, None, 0, 0))
            continue
        value = statistics.median(point.value or 0 for point in known)
        low = statistics.median(point.value if point.low is None else point.low for point in known)  # type: ignore[type-var]
        high = statistics.median(point.value if point.high is None else point.high for point in known)  # type: ignore[type-var]
        bins.append(_Bin(place, value, min(low or 0, value), max(high or 0, value)))
    return bins


def _runs(bins: Sequence[_Bin]) -> list[list[_Bin]]:
    """What lies between gaps."""
    runs: list[list[_Bin]] = [[]]
    for one in bins:
        if one.value is None:
            runs.append([])
        else:
            runs[-1].append(one)
    return [run for run in runs if run]
