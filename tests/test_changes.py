"""Where a history bent: what is planted is named at its commit, what is not is not told, and the environment's is
blamed on no commit. On histories that nobody measured."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as cli
from benchmarks.gate import Judgement
from benchmarks.history import command
from benchmarks.history.changes import Beside, Change, changes, narrowed, of_every
from benchmarks.history.points import Point, Series, asv_config, commits_of, left_out, read
from benchmarks.history.survey import survey
from benchmarks.results import Run
from tests import records, synthetic_history
from tests.synthetic_history import Step, Updated

TIME = Series("gpu", "bench.track_fused_us", (), "µs", True)


def walk(seed: int, slowdown: float, commits: int = 60, noise: float = 0.01) -> tuple[list[str], int, list[Point]]:
    """Commits, the place of the planted slowdown, points."""
    draw = random.Random(seed)
    names = [f"{number:040x}" for number in range(commits)]
    place = draw.randrange(5, commits - 5)
    values = [10 * math.exp(draw.gauss(0, noise)) * (slowdown if n >= place else 1) for n in range(commits)]
    return names, place, [Point(name, value, None, None, {}) for name, value in zip(names, values, strict=True)]


def test_a_slowdown_of_five_percent_is_named_at_its_commit_and_nothing_else() -> None:
    exact = 0
    for seed in range(100):
        commits, place, points = walk(seed, 1.05)
        found = changes(TIME, points, commits)
        exact += [one.first for one in found] == [commits[place]]
        assert all(one.worse for one in found)
    assert exact >= 95


def test_a_history_without_a_slowdown_is_told_as_such() -> None:
    assert sum(bool(changes(TIME, points, commits)) for commits, _, points in (walk(n, 1.0) for n in range(100))) <= 2


def test_the_interval_of_a_change_holds_its_size() -> None:
    held = told = 0
    for seed in range(200):
        commits, place, points = walk(seed, 1.08)
        for one in changes(TIME, points, commits):
            if one.first == commits[place]:
                told += 1
                held += one.low <= 1.08 <= one.high
    assert told >= 190
    assert 0.90 <= held / told <= 0.99


@pytest.mark.parametrize("quantum", [0.016, 0.03])
def test_a_coarse_clock_makes_no_steps(quantum: float) -> None:
    """Most of its points are the same; in some histories two neighbours are both one tick longer."""
    told = 0
    for seed in range(50):
        draw = random.Random(seed)
        ticks = [1 / quantum + (draw.random() < 0.3) for _ in range(60)]
        points = [Point(f"{n:040x}", count * quantum, None, None, {}) for n, count in enumerate(ticks)]
        told += bool(changes(TIME, points, [point.commit for point in points]))
    assert told <= 1


def test_slow_drift_below_the_noise_is_no_step_and_an_outlier_is_none() -> None:
    commits, _, points = walk(3, 1.0)
    points[30] = Point(commits[30], 15.0, None, None, {})
    assert changes(TIME, points, commits) == []


def test_disturbed_measurements_that_happen_to_be_neighbours_are_no_step_however_long_the_history() -> None:
    """One in twenty is disturbed."""
    told = 0
    for seed in range(100):
        draw = random.Random(seed)
        logs = [draw.gauss(0, 0.01) + (abs(draw.gauss(0, 0.05)) if draw.random() < 0.05 else 0) for _ in range(500)]
        points = [Point(f"{n:040x}", 10 * math.exp(one), None, None, {}) for n, one in enumerate(logs)]
        told += bool(changes(TIME, points, [point.commit for point in points]))
    assert told <= 1


@pytest.mark.parametrize(("points", "told"), [(2, False), (3, False), (4, True)])
def test_a_step_of_few_points_stands_out_further_than_any_single_one(points: int, told: bool) -> None:
    commits, _, known = walk(3, 1.0)
    values = [(p.value or 0) * (1.2 if n >= 60 - points else 1) * (1.5 if n == 10 else 1) for n, p in enumerate(known)]
    disturbed = [Point(name, value, None, None, {}) for name, value in zip(commits, values, strict=True)]
    assert [one.first for one in changes(TIME, disturbed, commits)] == ([commits[60 - points]] if told else [])
    calm = [
        dataclasses.replace(p, value=v / 1.5 if n == 10 else v)
        for n, (p, v) in enumerate(zip(known, values, strict=True))
    ]
    assert [one.first for one in changes(TIME, calm, commits)] == [commits[60 - points]]


def test_two_steps_are_told_apart_and_directions_are_of_the_series() -> None:
    commits, _, points = walk(5, 1.0)
    levels = [1.0] * 20 + [1.2] * 20 + [0.9] * 20
    points = [Point(p.commit, (p.value or 0) * level, None, None, {}) for p, level in zip(points, levels, strict=True)]
    found = changes(TIME, points, commits)
    assert [(one.first, one.worse) for one in found] == [(commits[20], True), (commits[40], False)]
    speedup = Series("gpu", "bench.track_speedup", (), "x", False)
    assert [one.worse for one in changes(speedup, points, commits)] == [False, True]


def test_values_without_noise_have_steps_too() -> None:
    commits = [f"{number:040x}" for number in range(20)]
    points = [Point(name, 48.0 if n < 12 else 64.0, None, None, {}) for n, name in enumerate(commits)]
    (found,) = changes(Series("gpu", "bench.track_registers", (), "registers", True), points, commits)
    assert found.first == commits[12]
    assert (found.before, found.after) == pytest.approx((48.0, 64.0))


@pytest.mark.parametrize("known", [0, 1, 2, 3, 4])
def test_too_few_points_tell_of_nothing(known: int) -> None:
    points = [Point(f"{n:040x}", 48.0 if n < known / 2 else 64.0, None, None, {}) for n in range(known)]
    assert changes(TIME, points, [point.commit for point in points]) == []


def test_where_too_few_commits_were_measured_to_tell_nobody_says_that_nothing_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    h100, h200 = synthetic_history.MACHINES, "nvidia-h200"
    for name, machines, said in (
        ("few", (h200,), "Too few commits measured to tell: no step shows in fewer than 5."),
        (
            "both",
            (*h100, h200),
            "No series changed; of 40 too few commits were measured to tell.",
        ),
        ("many", h100, "No series changed."),
    ):
        history = synthetic_history.make(
            tmp_path / name, commits=20, machines=machines, not_measured={h200: range(3, 19)}
        )
        arguments = ["history", "--results", str(history.results), "--repository", str(history.repository)]
        for form in ([], ["--issue"]):
            assert cli.main([*arguments, *form]) == 0
            assert capsys.readouterr().out.splitlines()[-1] == said


@pytest.mark.parametrize("commits", [5, 6, 8, 12])
def test_a_young_history_of_many_series_without_a_step_is_told_as_such(commits: int) -> None:
    """Of few points the scatter is badly known, and of many series some look steadier than they are."""
    told = 0
    for seed in range(15):
        draw = random.Random(seed)
        for _ in range(168):
            points = [Point(f"{n:040x}", math.exp(draw.gauss(0, 0.01)), None, None, {}) for n in range(commits)]
            told += bool(changes(TIME, points, [point.commit for point in points]))
    assert told <= 3


def test_a_large_slowdown_is_named_in_a_young_history_too() -> None:
    named = 0
    for seed in range(100):
        draw = random.Random(seed)
        values = [math.exp(draw.gauss(0, 0.01)) * (1.2 if n >= 4 else 1) for n in range(8)]
        points = [Point(f"{n:040x}", value, None, None, {}) for n, value in enumerate(values)]
        named += [one.first for one in changes(TIME, points, [point.commit for point in points])] == [f"{4:040x}"]
    assert named >= 95


def test_commits_without_points_may_be_to_blame(tmp_path: Path) -> None:
    history = synthetic_history.make(
        tmp_path, commits=60, steps=[Step(33, 1.2, "fused")], not_measured={"nvidia-h100-80gb-hbm3": range(31, 36)}
    )
    found = command.bent(
        read(history.results, survey(history.results, history.commits), history.commits), history.commits
    )
    assert {one.series.benchmark for one in found} == {"bench_post_process.track_fused_us"}
    assert {(one.last_before, one.first, one.between) for one in found} == {
        (history.commits[30], history.commits[36], 5)
    }


def test_a_step_that_comes_with_another_driver_is_not_blamed_on_the_commit_and_a_real_one_is(tmp_path: Path) -> None:
    history = synthetic_history.make(
        tmp_path,
        commits=80,
        steps=[Step(30, 1.06, "fused"), Step(55, 1.06, "fused")],
        updates=[Updated(30, "driver", "590.11")],
        seed=4,
    )
    found = command.bent(
        read(history.results, survey(history.results, history.commits), history.commits), history.commits
    )
    by_place: dict[int, list[Change]] = {}
    for one in found:
        by_place.setdefault(history.commits.index(one.first), []).append(one)
    assert set(by_place) == {30, 55}
    assert all(one.environment == {"driver": ("580.159.04", "590.11")} for one in by_place[30])
    assert all(one.environment == {} for one in by_place[55])


def test_a_stray_step_beside_those_of_many_that_came_with_another_driver_is_not_blamed_and_a_larger_one_is(
    tmp_path: Path,
) -> None:
    """Of 40 series that a driver slows down, noise puts the step of some beside it, in 4 of these histories."""
    blamed = {"driver": 0, "and a commit": 0}
    for seed in range(12):
        for name, steps in {
            "driver": [Step(45, 1.05)],
            "and a commit": [Step(45, 1.05), Step(46, 1.3, "fused")],
        }.items():
            history = synthetic_history.make(
                tmp_path / f"{name} {seed}", seed=seed, steps=steps, updates=[Updated(45, "driver", "590.11")]
            )
            points = read(history.results, survey(history.results, history.commits), history.commits)
            found = command.bent(points, history.commits)
            there = [one for one in found if abs(history.commits.index(one.first) - 45) <= 5]
            blamed[name] += any(not one.environment for one in there)
    assert blamed == {"driver": 0, "and a commit": 12}


@pytest.mark.parametrize(("step", "slowed", "blamed"), [(31, 3, True), (28, 1, True), (30, 3, False), (30, 8, False)])
def test_beside_an_update_a_step_of_few_series_is_a_commits_and_at_it_the_environments(
    step: int, slowed: int, blamed: bool
) -> None:
    """By 3 %, of eight series, with another driver from 30 on. Each step may as well lie a few commits beside where it
    is told."""
    told = {"blamed": 0, "environment": 0}
    commits = [f"{n:040x}" for n in range(60)]
    for seed in range(20):
        draw, points = random.Random(seed), {}
        for number in range(8):
            values = [math.exp(draw.gauss(0, 0.01)) * (1.03 if n >= step and number < slowed else 1) for n in range(60)]
            points[dataclasses.replace(TIME, parameters=(str(number),))] = [
                Point(name, values[n], None, None, {"driver": str(n >= 30)}) for n, name in enumerate(commits)
            ]
        for one in itertools.chain.from_iterable(of_every(points, commits).values()):
            told["environment" if one.environment else "blamed"] += 1
    assert told["blamed" if blamed else "environment"] >= 0.85 * sum(told.values()), told


def test_a_step_that_lands_one_point_beside_the_update_is_still_not_blamed() -> None:
    """The first point with the new driver lies between both levels, and may belong to either."""
    commits = [f"{number:040x}" for number in range(40)]
    draw = random.Random(2)
    values = [100 * math.exp(draw.gauss(0, 0.01)) * (1.05 if n >= 20 else 1) for n in range(40)]
    values[20] = 102.0
    points = [
        Point(name, value, None, None, {"driver": "2" if n >= 20 else "1"})
        for n, (name, value) in enumerate(zip(commits, values, strict=True))
    ]
    (found,) = changes(TIME, points, commits)
    assert found.first == commits[21]
    assert found.environment == {"driver": ("1", "2")}


def test_an_update_next_to_a_step_that_is_clearly_a_commits_takes_no_blame() -> None:
    commits = [f"{number:040x}" for number in range(40)]
    draw = random.Random(2)
    points = [
        Point(
            name, 100 * math.exp(draw.gauss(0, 0.005)) * (1.2 if n >= 21 else 1), None, None, {"driver": str(n >= 20)}
        )
        for n, name in enumerate(commits)
    ]
    (found,) = changes(TIME, points, commits)
    assert (found.first, found.environment) == (commits[21], {})


def stepped(factor: float, noted: dict[int, dict[str, str]], outlier: int | None = None) -> list[Change]:
    """Of a history of 60 with a step at 30; `noted`, by the first point from which on it holds, is what was noted."""
    commits = [f"{number:040x}" for number in range(60)]
    draw = random.Random(1)
    points, environment = [], {}
    for n, name in enumerate(commits):
        environment = noted.get(n, environment)
        value = 10 * math.exp(draw.gauss(0, 0.01)) * (factor if n >= 30 else 1) * (3 if n == outlier else 1)
        points.append(Point(name, value, None, None, environment))
    return changes(TIME, points, commits)


def test_one_disturbed_measurement_takes_no_blame_from_a_commit_and_leaves_the_interval() -> None:
    (calm,) = stepped(1.1, {0: {"driver": "1"}, 28: {"driver": "2"}})
    (disturbed,) = stepped(1.1, {0: {"driver": "1"}, 28: {"driver": "2"}}, outlier=10)
    assert (disturbed.first, disturbed.environment) == (f"{30:040x}", {})
    assert disturbed.high - disturbed.low == pytest.approx(calm.high - calm.low, rel=0.1)


@pytest.mark.parametrize("silent", [(30, 31), (29, 30), (26, 34), (15, 30)])
def test_a_version_that_some_points_do_not_note_is_told_all_the_same(silent: tuple[int, int]) -> None:
    begin, end = silent
    (found,) = stepped(1.05, {0: {"driver": "1"}, begin: {}, end: {"driver": "2"}})
    assert found.environment == {"driver": ("1", "2")}


def test_a_version_that_is_first_noted_at_a_step_may_be_to_blame_and_at_another_point_not() -> None:
    (found,) = stepped(1.05, {0: {"torch": "2"}, 30: {"torch": "2", "driver": "2"}})
    assert found.environment == {"driver": ("unknown", "2")}
    (found,) = stepped(1.05, {0: {"torch": "2"}, 40: {"torch": "2", "driver": "2"}})
    assert found.environment == {}
    (found,) = stepped(1.05, {0: {"driver": "1"}, 20: {}, 40: {"driver": "1"}})
    assert found.environment == {}


@pytest.mark.parametrize(
    ("update", "points"), [(27, -3), (28, -2), (29, -1), (31, 1), (32, 2), (33, 3), (26, None), (34, None)]
)
def test_an_update_beside_a_commits_step_may_have_had_a_part_in_it(update: int, points: int | None) -> None:
    (found,) = stepped(1.2, {0: {"driver": "1"}, update: {"driver": "2"}})
    assert (found.first, found.environment) == (f"{30:040x}", {})
    assert found.beside == (Beside({"driver": ("1", "2")}, points) if points else None)
    text = command.told([found], {}) + command.issue([found])
    where = {-1: "one measured commit earlier", 1: "one measured commit later"}
    several = f"{abs(points or 0)} measured commits {'later' if (points or 0) > 0 else 'earlier'}"
    assert text.count(f"part of it may be driver 1 to 2, {where.get(points or 0, several)}") == (2 if points else 0)


@pytest.mark.parametrize("turns", ["one, other", "one in ten", "for one commit"])
def test_runners_of_two_drivers_that_take_turns_take_no_blame_from_a_commit(turns: str) -> None:
    """The same driver measured both levels."""
    driver = {"one, other": lambda n: n % 2, "one in ten": lambda n: n % 10 == 0, "for one commit": lambda n: n == 20}
    commits = [f"{number:040x}" for number in range(40)]
    draw = random.Random(2)
    points = [
        Point(
            name,
            math.exp(draw.gauss(0, 0.01)) * (1.06 if n >= 20 else 1),
            None,
            None,
            {"driver": str(driver[turns](n))},
        )
        for n, name in enumerate(commits)
    ]
    (found,) = changes(TIME, points, commits)
    assert (found.first, found.environment, found.beside) == (commits[20], {}, None)


def test_a_driver_that_slows_down_whenever_it_comes_is_to_blame() -> None:
    commits = [f"{number:040x}" for number in range(40)]
    draw = random.Random(2)
    driver = [n // 10 % 2 for n in range(40)]
    points = [
        Point(name, math.exp(draw.gauss(0, 0.01)) * (1.06 if driver[n] else 1), None, None, {"driver": str(driver[n])})
        for n, name in enumerate(commits)
    ]
    found = changes(TIME, points, commits)
    assert len(found) == 3
    assert all("driver" in one.environment for one in found)


@pytest.mark.parametrize("name", ["asv.conf.json", "asv.conf.jsonc"])
@pytest.mark.parametrize("place", ["repository", ".", "repository/perf"])
def test_what_a_projects_configuration_leaves_out_is_not_searched(tmp_path: Path, place: str, name: str) -> None:
    history = synthetic_history.make(tmp_path, steps=[Step(30, 1.2)])
    conf = """{
      // a comment
      "regressions_first_commits": {
        ".*track_speedup": null, ".*track_reference.*device_us'\\\\)$": null, ".*track_fused.*": "abc"
      }
    }"""
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / name).write_text(conf)
    without = left_out(asv_config(history.repository, history.results))
    found = command.bent(
        read(history.results, survey(history.results, history.commits), history.commits), history.commits, without
    )
    names = {one.series.benchmark.rpartition(".")[2] for one in found}
    assert "track_fused_us" in names
    assert "track_speedup" not in names
    reference = [one.series.values[1] for one in found if "track_reference" in one.series.benchmark]
    assert set(reference) == {"call_us"}, "asv matches the name with its parameters"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "damaged"),
        ("[1]", r"expected a JSON object; got \[1\]"),
        ('{"regressions_first_commits": [1]}', r"expected patterns by name .* got \[1\]"),
        ('{"regressions_first_commits": {"(": null}}', r"expected regular expressions .* got '\('"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "asv.conf.json").write_text(text)
    with pytest.raises(ValueError, match=f"asv.conf.json: {fault}"):
        asv_config(tmp_path, tmp_path / ".asv" / "results")


def test_of_several_configurations_the_one_beside_the_results_counts(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "asv.conf.json").write_text(json.dumps({"project": name}))
    assert asv_config(tmp_path, tmp_path / "other" / "results") == {"project": "other"}
    with pytest.raises(ValueError, match="one.asv.conf.json: expected one configuration of asv"):
        asv_config(tmp_path, tmp_path / "elsewhere" / "of" / "results")


def test_one_damaged_file_stops_nothing_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    history = synthetic_history.make(tmp_path, steps=[Step(30, 1.2)])
    path = next((history.results / synthetic_history.MACHINES[0]).glob(f"{history.commits[7][:8]}*.json"))
    content = json.loads(path.read_text())
    content["results"] = dict.fromkeys(content["results"])
    path.write_text(json.dumps(content))
    arguments = ["history", "--results", str(history.results), "--repository", str(history.repository)]
    assert cli.main(arguments) == 0
    told, faults = capsys.readouterr()
    assert "59 of the 60 commits" in told
    assert history.commits[30][:10] in told
    assert f"{path}: left out" in faults


def test_what_cannot_be_read_in_every_file_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    history = synthetic_history.make(tmp_path, commits=6)
    for place, path in enumerate(sorted((history.results / synthetic_history.MACHINES[0]).glob("*-shared-py3.json"))):
        content = json.loads(path.read_text())
        content["results"]["bench_post_process.track_fused_us"] = None
        path.write_text(json.dumps({**content, "version": 1 if place == 5 else 2}))
    arguments = ["history", "--results", str(history.results), "--repository", str(history.repository)]
    assert cli.main(arguments) == 0
    named, older = capsys.readouterr().err.splitlines()
    assert named.endswith("track_fused_us: expected at most 11 columns, and in 4 other files")
    assert older == "1 of an older format: left out, `asv update` converts them"


def test_points_are_in_the_order_of_the_commits_and_gaps_have_no_value(tmp_path: Path) -> None:
    history = synthetic_history.make(tmp_path, commits=12, failed=[4])
    points = read(history.results, survey(history.results, history.commits), history.commits)
    assert len(points) == 5 * 8
    for values in points.values():
        assert [point.commit for point in values] == history.commits
        assert [point.value is None for point in values] == [n == 4 for n in range(12)]
        known = values[0]
        assert known.low is not None
        assert known.high is not None
        assert known.low < (known.value or 0) < known.high


def test_results_of_commits_that_are_no_longer_on_the_branch_are_left_out(tmp_path: Path) -> None:
    history = synthetic_history.make(tmp_path, commits=10)
    commits = commits_of(history.repository, f"{history.commits[5]}")
    points = read(history.results, survey(history.results, commits), commits)
    assert all(len(values) == 6 for values in points.values())


def test_a_revision_that_is_none_is_an_error(tmp_path: Path) -> None:
    history = synthetic_history.make(tmp_path, commits=2)
    with pytest.raises(ValueError, match="nowhere: expected a revision"):
        commits_of(history.repository, "nowhere")


@pytest.mark.parametrize("culprit", range(1, 9))
def test_halving_names_the_culprit_beside_commits_that_cannot_be_measured(culprit: int) -> None:
    commits = [str(number) for number in range(9)]
    asked: list[str] = []

    def is_bad(commit: str) -> bool | None:
        asked.append(commit)
        return None if commit == "4" and culprit not in (4, 5) else int(commit) >= culprit

    assert narrowed(commits, "0", "8", is_bad) == (str(culprit - 1), str(culprit))
    assert len(asked) == len(set(asked)) <= 5


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Run]:
    """By commit what measuring it would give; this machine is the one of `make_change`."""
    runs: dict[str, Run] = {}
    monkeypatch.setattr(command.sides, "commit", contextlib.nullcontext)
    monkeypatch.setattr(command.measure, "has_gpu", lambda: True)
    monkeypatch.setattr(command, "this_machine", lambda: None)
    monkeypatch.setattr(command, "machine_name", lambda environment: "gpu")

    def judged(chosen: object, judge: Any, *, head: str, **_: object) -> tuple[Run, Judgement, int]:
        return runs[head], judge(runs[head]), 1

    monkeypatch.setattr(command.session, "judged", judged)
    return runs


def test_bisecting_passes_over_wrong_results_and_blames_a_commit_that_is_slower(
    measured: dict[str, Run], capsys: pytest.CaptureFixture
) -> None:
    """The gate calls wrong results a regression, too."""
    fine, slow = records.make_compared(), records.make_compared(device=1.05)
    wrong = dataclasses.replace(
        fine, checks=(dataclasses.replace(fine.checks[0], passed=False, detail="5 tokens differ"), *fine.checks[1:])
    )
    for name, runs, blamed, between in (
        ("wrong beside the slow one", [fine, wrong, slow], "c3", 1),
        ("wrong alone", [wrong, wrong, wrong], "c4", 3),
    ):
        measured.update(zip(("c1", "c2", "c3"), runs, strict=True))
        change = make_change(last_before="c0", first="c4", between=3)
        found, fault = command._bisected([change], ["c0", "c1", "c2", "c3", "c4"])
        assert [(one.first, one.between) for one in found] == [(blamed, between)], name
        assert not fault
    assert "cannot be told: wrong result: 5 tokens differ" in capsys.readouterr().err


def test_bisecting_passes_over_a_clock_that_has_no_verdict(measured: dict[str, Run]) -> None:
    measured["c1"] = records.make_compared()
    series = Series("gpu", "bench_post_process.Quick.track_fused_us", (records.NAME, "graph_us"), "µs", True)
    change = make_change(series=series, last_before="c0", first="c2", between=1)
    assert command._slower_than(change)("c1") is None


def test_bisecting_leaves_series_of_another_machine_as_they_are(
    measured: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    measured["c1"] = records.make_compared(device=1.05)
    here = make_change(last_before="c0", first="c2", between=1)
    there = dataclasses.replace(here, series=dataclasses.replace(here.series, machine="other"))
    found, fault = command._bisected([there, here], ["c0", "c1", "c2"])
    assert found == [there, dataclasses.replace(here, first="c1", between=0)]
    assert not fault
    assert "--bisect: 1 series of other left as they are, because this is gpu" in capsys.readouterr().err


def test_bisecting_on_none_of_the_machines_prints_what_is_known_and_exits_2(
    measured: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    one = synthetic_history.Benchmark(
        "bench_post_process.track_fused_us", "µs", 7.6, {"workload": (records.NAME,), "clock": ("call_us",)}
    )
    history = synthetic_history.make(
        tmp_path, benchmarks=[one], steps=[Step(33, 1.2)], not_measured={synthetic_history.MACHINES[0]: [32, 33]}
    )
    arguments = ["--results", str(history.results), "--repository", str(history.repository), "--bisect"]
    assert cli.main(["history", *arguments]) == 2
    told, fault = capsys.readouterr()
    assert f"one of the 2 commits after {history.commits[31][:10]}" in told
    assert f"expected to run on {synthetic_history.MACHINES[0]}" in fault


def test_halving_says_how_far_it_came_where_nothing_can_be_told() -> None:
    commits = [str(number) for number in range(6)]
    assert narrowed(commits, "0", "5", lambda commit: None) == ("0", "5")
    assert narrowed(commits, "0", "5", lambda commit: False if commit == "1" else None) == ("1", "5")


def make_change(**fields: object) -> Change:
    name = "bench_post_process.Quick.track_fused_us"
    known = {
        "series": Series("gpu", name, ("1x32x128000-fp16-100", "device_us"), "µs", True),
        "last_before": "a" * 40, "first": "b" * 40, "before": 10.0, "after": 10.5, "low": 1.04, "high": 1.06,
        "between": 0, "environment": {},
    }  # fmt: skip
    return Change(**{**known, **fields})  # type: ignore[arg-type]


def test_an_issue_blames_commits_and_sets_the_environments_apart() -> None:
    text = command.issue(
        [make_change(), make_change(environment={"driver": ("1", "2")}), make_change(after=9.0, low=0.8, high=0.95)]
    )
    blamed, _, coincided = text.partition("### Slower since the environment changed")
    assert "### Performance became worse" in blamed
    assert blamed.count("bbbbbbbbbb") == 1
    assert "+5.0% [+4.0%, +6.0%]" in blamed
    assert "driver 1 to 2" in coincided
    assert "-10.0%" not in text


def test_an_issue_of_nothing_worse_says_so() -> None:
    assert command.issue([make_change(after=9.0, low=0.8, high=0.95)]) == "No series became worse."


def test_names_from_a_results_file_are_no_markup() -> None:
    evil = Series("gpu", "b.track_x", ("@everyone | <img src=x> [a](http://e.example) `x`",), "|", True)
    text = command.issue([make_change(series=evil)])
    (row,) = [line for line in text.splitlines() if "track_x" in line]
    assert row.count(" | ") == 6
    assert "`track_x(@everyone <img src=x> [a](http://e.example) x )`" in row


def test_messages_and_names_are_data_to_a_terminal_too(tmp_path: Path) -> None:
    """Of odd line ends, other encodings and control characters."""
    evil = {0: "one\u2028two", 1: "\x1b[2Jgone \u202e", 2: "caf\udce9"}
    history = synthetic_history.make(tmp_path, commits=3, subjects=evil)
    messages = command.subjects(history.repository, history.commits)
    assert list(messages) == history.commits
    assert messages[history.commits[0]] == "one\u2028two"
    series = Series("gpu", "b.track_\x1b[31m", (), "", True)
    text = command.told([make_change(first=history.commits[1], series=series)], messages)
    assert "?[2Jgone ?" in text
    assert "track_?[31m" in text


def test_the_terminal_names_commit_message_machine_and_size() -> None:
    text = command.told([make_change(), make_change(between=3)], {"b" * 40: "Loads are narrower"})
    assert text.startswith("bbbbbbbbbb  Loads are narrower\n  on gpu\n    worse  +5.0% [+4.0%, +6.0%]  track_fused_us(")
    assert "one of the 3 commits after aaaaaaaaaa" in text
