"""What the dashboard makes of curves: how a series ends, which bend together, what is on top, and how it is drawn."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from benchmarks import results, session, stats
from benchmarks.history.changes import changes
from benchmarks.history.points import Point, Series
from benchmarks.policy import Policy
from benchmarks.results import Noise, NoiseRecord
from benchmarks.site import bends, commits, drawing, overview, units
from benchmarks.site.commits import Commit
from benchmarks.site.curves import RECENT, Curve, State
from tests.synthetic_history import MACHINES, make

SERIES = Series("m", "b.track_x", ("p",), "µs", True)


def curve_of(
    values: list[float | None],
    series: Series = SERIES,
    environments: dict[int, str] | None = None,
    measured: int | None = None,
) -> Curve:
    """Found by the real detector, on a machine with so many measured commits (default: those of the series)."""
    points, driver = [], "1"
    for place, value in enumerate(values):
        driver = (environments or {}).get(place, driver)
        points.append(Point(f"{place:040x}", value, None, None, {"driver": driver}))
    end = measured or len(values)
    near = frozenset(f"{place:040x}" for place in range(max(0, end - RECENT), end))
    return Curve("s0", series, points, changes(series, points, [one.commit for one in points]), True, near)


def noisy(count: int, level: float = 10.0) -> list[float | None]:
    return [level * (1 + 0.004 * ((7 * number) % 5 - 2)) for number in range(count)]


@pytest.mark.parametrize(
    ("values", "state"),
    [
        (noisy(40), State.STEADY),
        ([*noisy(30), *noisy(6, 10.8)], State.WORSE),
        ([*noisy(30), *noisy(6, 9.2)], State.BETTER),
        ([*noisy(30), *noisy(20, 10.8)], State.STEADY),
        ([*noisy(30), *noisy(5, 10.8), *noisy(5)], State.BETTER),
        ([*noisy(30), 10.8], State.ODD),
        ([*noisy(30), 9.2], State.STEADY),
        (noisy(3), State.SHORT),
        ([0.0] * 20, State.SHORT),
    ],
    ids=["steady", "worse", "better", "long ago", "undone", "last alone", "last alone, better", "short", "zeros"],
)
def test_the_end_of_a_series(values: list[float | None], state: State) -> None:
    assert curve_of(values).state(comparisons=10) is state


def test_a_series_that_no_longer_runs_says_nothing_of_the_latest_commit() -> None:
    commits_ = [Commit(f"{place:040x}", "2026-01-01", "s") for place in range(60)]
    gone = curve_of([*noisy(25), *noisy(5, 12.0)], Series("m", "a.time_gone", (), "s", True), measured=60)
    failing = curve_of([*noisy(25), *noisy(5, 12.0), *[None] * 30], Series("m", "a.time_failing", (), "s", True))
    going = curve_of(noisy(60), Series("m", "a.time_z", (), "s", True))
    assert [one.state(2) for one in (gone, failing, going)] == [State.ENDED, State.ENDED, State.STEADY]
    card = overview.card("m", [gone, failing, going], commits_, None, None)
    assert (card.fitness, card.headline, card.counts[State.STEADY]) == (overview.Fitness.FINE, going, 1)
    assert sum(card.counts.values()) == 1
    assert not any("like it" in line for line in card.figures[0].about)


@pytest.mark.parametrize(("every", "since", "stale"), [(1, 30, True), (1, 5, False), (5, 30, False), (5, 60, True)])
def test_a_machine_that_stopped_measuring_is_unknown_and_not_worse(every: int, since: int, stale: bool) -> None:
    """Of one that measures every fifth commit, thirty are but six of its measurements."""
    values = [*noisy(30), *noisy(6, 10.8)]
    commits_ = [Commit(f"{place:040x}", "2026-01-01", "s") for place in range(every * 35 + 1 + since)]
    points = [Point(f"{every * n:040x}", value, None, None, {}) for n, value in enumerate(values)]
    found = changes(SERIES, points, [one.hash for one in commits_])
    curve = Curve("s", SERIES, points, found, True, frozenset(point.commit for point in points[-RECENT:]))
    card = overview.card("m", [curve], commits_, None, None)
    assert card.fitness is (overview.Fitness.UNKNOWN if stale else overview.Fitness.WORSE)
    assert card.said == (f"Worse up to {points[-1].commit[:10]}" if stale else "Worse")


def test_a_tick_of_a_coarse_clock_is_nothing_odd() -> None:
    assert curve_of([3.1 if n % 5 == 4 else 3.0 for n in range(40)]).state(comparisons=1) is State.STEADY


def test_where_more_is_better_less_is_worse() -> None:
    series = dataclasses.replace(SERIES, less_is_better=False)
    assert curve_of([*noisy(30), *noisy(6, 9.2)], series).state(1) is State.WORSE
    assert curve_of([*noisy(30), 9.2], series).state(1) is State.ODD


def test_a_step_of_the_environment_is_not_worse_and_the_point_after_is_not_odd() -> None:
    assert curve_of([*noisy(30), *noisy(6, 10.8)], environments={30: "2"}).state(10) is State.MOVED
    assert curve_of([*noisy(30), 10.8], environments={30: "2"}).state(10) is State.STEADY


def test_runners_of_two_drivers_that_take_turns_hide_no_odd_point() -> None:
    turns = {n: str(n % 2) for n in range(31)}
    assert curve_of([*noisy(30), 10.8], environments=turns).state(10) is State.ODD
    assert curve_of(noisy(31), environments=turns).state(10) is State.STEADY


def test_what_a_history_would_show_follows_from_its_scatter() -> None:
    calm, restless = (curve_of([10 * (1 + size * ((7 * n) % 5 - 2)) for n in range(60)]) for size in (0.001, 0.01))
    assert calm.detectable is not None
    assert restless.detectable == pytest.approx(10 * calm.detectable, rel=0.2)
    assert curve_of(noisy(4)).detectable is None


def test_the_smallest_slowdown_is_the_gates_where_the_noise_of_the_machine_is_known() -> None:
    speedup = curve_of(noisy(30), Series("m", "b.track_speedup", ("w", "device_us"), "x", False))
    noise = Noise(0.004, 30)
    record = NoiseRecord(
        "M", "2026-01-01", None, "2", None, None, {"w": {"device_us": {"fused beside base fused": noise}}}
    )
    policy = Policy()
    expected = stats.detectable(noise, session.PROCESSES["cuda"], 0.0, policy.look_error(), policy.power)
    all_commits = [Commit(point.commit, "2026-01-01", "s") for point in speedup.points]
    known = overview.card("m", [speedup], all_commits, record, None).figures[-1]
    assert known.value == units.percent(expected)
    assert "by the gate" in known.about[0]
    own = overview.card("m", [speedup], all_commits, None, None).figures[-1]
    assert own.value == units.percent(speedup.detectable or 0)
    assert "scatter" in " ".join(own.about)
    assert "gate" not in " ".join(own.about)


@pytest.mark.parametrize(
    ("benchmarks", "expected"),
    [
        ({"a.time_x": "seconds", "b.track_speedup": "x"}, "b.track_speedup"),
        ({"a.peakmem_x": "bytes", "b.time_x": "seconds"}, "b.time_x"),
        ({"a.peakmem_x": "bytes"}, "a.peakmem_x"),
    ],
)
def test_the_series_on_top(benchmarks: dict[str, str], expected: str) -> None:
    curves = [curve_of(noisy(10), Series("m", name, (), unit, True)) for name, unit in benchmarks.items()]
    headline = overview.headline_of(curves)
    assert headline is not None
    assert headline.series.benchmark == expected


def test_the_series_on_top_is_one_that_is_measured_and_of_the_shortest_list() -> None:
    rare = curve_of([*noisy(3), *[None] * 37], Series("m", "a.track_speedup", ("1",), "x", False))
    many = [curve_of(noisy(40), Series("m", "Others.track_speedup", (str(n),), "x", False)) for n in range(5)]
    few = [curve_of(noisy(40), Series("m", "Quick.track_speedup", (str(n),), "x", False)) for n in range(2)]
    assert overview.headline_of([rare, *many, *few]) is few[0]


def test_series_that_bend_together_are_one_bend_at_the_commit_of_most() -> None:
    commits_ = [Commit(f"{place:040x}", "2026-01-01", "s") for place in range(40)]
    at = {20: 3, 21: 1, 30: 1}
    curves = []
    for place, count in at.items():
        for number in range(count):
            series = dataclasses.replace(SERIES, parameters=(f"{place} {number}",))
            curves.append(curve_of([*noisy(place), *noisy(40 - place, 10.8)], series))
    found = bends.bends(curves, commits_)
    assert [(int(one.commit.hash, 16), len(one.changes)) for one in found] == [(30, 1), (20, 4)]


def test_a_version_is_told_once_where_runners_of_two_take_turns() -> None:
    commits_ = [Commit(f"{place:040x}", "2026-01-01", "s") for place in range(40)]
    turns = curve_of(noisy(40), environments={n: str(n % 2 if n < 20 else 2 if n < 35 else 1) for n in range(40)})
    found = bends.environment_changes([turns], commits_)
    told = [(int(one.commit.hash, 16), one.differences["driver"]) for one in found]
    assert {one.steps for one in found} == {0}
    assert told == [(35, ("2", "1")), (20, ("1", "2")), (1, ("0", "1"))]


def test_of_few_points_nobody_says_that_nothing_changed() -> None:
    commits_ = [Commit(f"{place:040x}", "2026-01-01", "s") for place in range(3)]
    (found,) = bends.environment_changes([curve_of(noisy(3), environments={2: "2"})], commits_)
    assert found.steps is None


def test_a_bend_between_commits_names_both() -> None:
    measured = zip((0, 1, 2, 3, 8, 9, 10), [*noisy(4), *noisy(3, 12.0)], strict=True)
    points = [Point(f"{place:040x}", value, None, None, {}) for place, value in measured]
    order = [f"{place:040x}" for place in range(11)]
    found = changes(SERIES, points, order)
    (bend,) = bends.bends(
        [Curve("s", SERIES, points, found, True, frozenset(order))], [Commit(one, "", "") for one in order]
    )
    assert (int(bend.last_before.hash, 16), int(bend.commit.hash, 16), bend.between) == (3, 8, 4)


def test_a_sketch_has_gaps_and_keeps_its_size_however_long_the_history() -> None:
    points = [Point(str(place), None if place == 3 else 10.0 + place, None, None, {}) for place in range(6)]
    order = {str(place): place for place in range(5000)}
    drawn = drawing.sketch(points, order, (0, 5), ["4"], [], [])
    assert drawn.line.count("M") == 2
    assert len(drawn.environments) == 1
    ended = drawing.sketch(points[:3], order, (0, 5), [], [], [])
    assert ended.last is not None
    assert drawn.last is not None
    assert ended.last[0] < drawing.WIDTH / 2 < drawn.last[0], "one that ended does not reach the right edge"
    many = [Point(str(place), 10.0 + place % 7, 9.0, 18.0, {}) for place in range(5000)]
    assert drawing.sketch(many, order, (0, 4999), [], [], []).line.count("L") < drawing.BINS
    flat = drawing.sketch(points[:1], order, (0, 0), [], [], [])
    assert flat.last is not None
    assert flat.line == ""


@pytest.mark.parametrize(
    ("url", "prefix"),
    [
        ("git@github.com:a/b.git", "https://github.com/a/b/commit/"),
        ("https://user:secret@gitlab.com/a/b/c.git", "https://gitlab.com/a/b/c/-/commit/"),
        ("ssh://git@codeberg.org/a/b", "https://codeberg.org/a/b/commit/"),
        ("/srv/git/b.git", ""),
        ("https://example.org/a/b.git", ""),
    ],
)
def test_commits_are_linked_where_the_remote_is_a_known_forge(tmp_path: Path, url: str, prefix: str) -> None:
    history = make(tmp_path, commits=1)
    subprocess.run(["git", "remote", "add", "origin", url], cwd=history.repository, check=True)
    assert commits.link_prefix(history.repository, {}) == prefix
    assert commits.link_prefix(history.repository, {"show_commit_url": "https://x.org/c/"}) == "https://x.org/c/"
    assert commits.link_prefix(history.repository, {"show_commit_url": "javascript:alert(1)//"}) == prefix


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.00321, "seconds", "3.21 ms"),
        (0.0009997, "seconds", "1.00 ms"),
        (5.2e7, "bytes", "49.6 MiB"),
        (15.93, "x", "15.9×"),  # noqa: RUF001
        (7.6, "µs", "7.60 µs"),
        (12345.6, "MB/s", "12,346 MB/s"),
        (0.0, "", "0"),
        (1e-7, "", "1.00e-07"),
    ],
)
def test_values_are_read_with_three_digits(value: float, unit: str, text: str) -> None:
    assert units.reading(value, unit) == text


def test_a_machines_noise_is_found_under_its_name_in_the_history() -> None:
    assert results.device_slug("NVIDIA H100 80GB HBM3") == MACHINES[0]
    assert session.PROCESSES["cuda"] == overview.GATE_PROCESSES
