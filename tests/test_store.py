"""The branch that history lives on: nothing is lost when runners push at once, are killed, or leave damage. With real
local repositories."""

from __future__ import annotations

import datetime
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.history import store
from benchmarks.history.points import commits_of, read
from benchmarks.history.store import BRANCH, Store, merged
from benchmarks.history.survey import survey
from tests import synthetic_history

MACHINE = synthetic_history.MACHINES[0]


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A bare repository with six commits on main."""
    history = synthetic_history.make(tmp_path / "origin", commits=6)
    git(tmp_path, "clone", "--quiet", "--bare", str(history.repository), "remote.git")
    shutil.move(history.results, tmp_path / "results")
    return tmp_path / "remote.git"


class Runner:
    """A clone, with results of some of the commits."""

    def __init__(self, folder: Path, remote: Path, places: range | tuple[int, ...]) -> None:
        git(folder.parent, "clone", "--quiet", str(remote), folder.name)
        self.folder = folder
        self.commits = commits_of(folder)
        self.every = folder.parent / "results"
        self.results = folder / ".asv" / "results"
        self.store = Store(folder, self.results, "origin")
        for place in places:
            self.measure(place)

    def path(self, place: int) -> Path:
        return self.results / MACHINE / f"{self.commits[place][:8]}-shared-py3.json"

    def measure(self, place: int) -> None:
        self.path(place).parent.mkdir(parents=True, exist_ok=True)
        for name in ("benchmarks.json", f"{MACHINE}/machine.json"):
            shutil.copy(self.every / name, self.results / name)
        shutil.copy(self.every / MACHINE / self.path(place).name, self.path(place))

    def change(self, place: int, **changes: Any) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.path(place).read_text())
        content |= changes
        self.path(place).write_text(json.dumps(content))
        return content

    def on_the_branch(self) -> dict[str, bytes]:
        git(self.folder, "fetch", "--quiet", "origin", BRANCH)
        names = git(self.folder, "ls-tree", "-r", "--name-only", "FETCH_HEAD").splitlines()
        return {
            name: subprocess.run(
                ["git", "show", f"FETCH_HEAD:{name}"], cwd=self.folder, capture_output=True, check=True
            ).stdout
            for name in names
        }


@pytest.fixture
def runner(tmp_path: Path, remote: Path) -> Any:
    def make(name: str, places: range | tuple[int, ...] = ()) -> Runner:
        return Runner(tmp_path / name, remote, places)

    return make


def test_the_branch_is_an_orphan_that_holds_the_results_and_nothing_else(runner: Any) -> None:
    one = runner("one", range(3))
    head = git(one.folder, "rev-parse", "HEAD")
    assert one.store.push() is not None
    assert set(one.on_the_branch()) == {
        "benchmarks.json", f"{MACHINE}/machine.json", *(f"{MACHINE}/{one.path(n).name}" for n in range(3))
    }  # fmt: skip
    assert git(one.folder, "rev-list", "FETCH_HEAD").count("\n") == 0
    assert git(one.folder, "rev-parse", "HEAD") == head
    assert git(one.folder, "status", "--porcelain", "--ignored").splitlines() == ["?? .asv/"]
    assert one.store.push() is None


def test_what_one_pushed_the_other_fetches(runner: Any) -> None:
    one, other = runner("one", range(3)), runner("other")
    assert other.store.fetch() == 0
    one.store.push()
    assert other.store.fetch() == 5
    assert other.path(2).read_bytes() == one.path(2).read_bytes()
    assert other.store.fetch() == 0
    assert other.store.push() is None


def test_eight_runners_at_once_lose_nothing(runner: Any) -> None:
    """Six of them measured different commits, two the same one on other workloads."""
    runners = [runner(f"runner-{place}", (place,)) for place in range(6)]
    for name in ("first", "second"):
        one = runner(name, (0,))
        only(one, 0, "fused" if name == "first" else "reference")
        runners.append(one)
    with ThreadPoolExecutor(len(runners)) as pool:
        list(pool.map(lambda one: one.store.push(), runners))
    found = runners[0].on_the_branch()
    assert {name for name in found if name.startswith(f"{MACHINE}/") and "machine" not in name} == {
        f"{MACHINE}/{runners[0].path(place).name}" for place in range(6)
    }
    assert set(json.loads(found[f"{MACHINE}/{runners[0].path(0).name}"])["results"]) == {
        one.name for one in synthetic_history.OURS
    }
    assert git(runners[0].folder, "rev-list", "--count", "--merges", "FETCH_HEAD") == "0"


def test_nobodys_older_copy_replaces_what_was_measured_again(runner: Any) -> None:
    one, other = runner("one", range(3)), runner("other")
    one.store.push()
    other.store.fetch()
    again = one.change(1, python="measured again")
    one.store.push()
    other.measure(4)
    other.store.push()
    assert json.loads(other.on_the_branch()[f"{MACHINE}/{one.path(1).name}"]) == again


def only(runner: Runner, place: int, wanted: str) -> None:
    """As if measured by `--bench wanted`."""
    content = json.loads(runner.path(place).read_text())
    runner.change(place, results={key: row for key, row in content["results"].items() if wanted in key})


def test_what_both_measured_is_kept_where_one_fetches_before_it_pushes(runner: Any) -> None:
    one, other = runner("one", (0,)), runner("other", (0,))
    only(one, 0, "fused")
    only(other, 0, "reference")
    one.store.push()
    other.store.fetch()
    other.store.push()
    kept = json.loads(one.on_the_branch()[f"{MACHINE}/{one.path(0).name}"])
    assert {name.rpartition(".")[2] for name in kept["results"]} == {"track_fused_us", "track_reference_us"}


def test_a_worktrees_older_copy_replaces_nothing(runner: Any) -> None:
    """Worktrees of a clone share its refs, and each has results of its own."""
    one = runner("one", range(2))
    one.store.push()
    git(one.folder, "worktree", "add", "--quiet", "--detach", str(one.folder.parent / "beside"))
    beside = Store(one.folder.parent / "beside", one.folder.parent / "beside" / ".asv" / "results", "origin")
    assert beside.fetch() == 4
    again = one.change(1, python="measured again")
    one.store.push()
    assert beside.push() is None
    assert json.loads(one.on_the_branch()[f"{MACHINE}/{one.path(1).name}"]) == again


def test_what_one_remote_has_is_pushed_to_another(runner: Any, tmp_path: Path) -> None:
    one = runner("one", range(2))
    one.store.push()
    git(tmp_path, "init", "--quiet", "--bare", "backup.git")
    assert Store(one.folder, one.results, str(tmp_path / "backup.git")).push() is not None
    assert Store(one.folder, one.results, "origin", "another-branch").push() is not None


def test_a_file_that_is_not_even_text_is_named(runner: Any) -> None:
    one = runner("one", (0,))
    one.path(0).write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=rf"{one.path(0).name}: damaged"):
        one.store.push()


def test_of_two_results_of_a_benchmark_the_later_stays_whoever_pushes_last(runner: Any) -> None:
    one, other = runner("one", (0,)), runner("other", (0,))
    content = json.loads(one.path(0).read_text())
    name = "bench_post_process.track_fused_us"
    late = [[99.0] * 8, *content["results"][name][1:]]
    late[3] += 1000
    other.change(0, results={**content["results"], name: late})
    other.store.push()
    one.store.push()
    for found in (one, other):
        kept = json.loads(found.on_the_branch()[f"{MACHINE}/{one.path(0).name}"])
        assert kept["results"][name] == late


def test_a_parameter_that_only_one_was_asked_for_is_kept() -> None:
    columns = ["result", "params", "version", "started_at", "stats_ci_99_a", "samples"]
    ours = {"result_columns": columns, "results": {"b": [[math.nan, 2.0], [["x", "y"]], "1", 20, [None, 1.9]]}}
    theirs = {
        "result_columns": columns,
        "results": {"b": [[1.0, 5.0], [["x", "y"]], "1", 10, [0.9, 4.9], [[1.0], None]]},
    }
    both = [[1.0, 2.0], [["x", "y"]], "1", 20, [0.9, 1.9], [[1.0], None]]
    assert merged(ours, theirs)["results"]["b"] == both
    assert merged(theirs, ours)["results"]["b"] == both


def test_results_of_which_one_kept_samples_are_both_kept() -> None:
    """asv lists columns in the order in which it met them, and leaves out those that are all empty."""
    ours = {"result_columns": ["result", "samples", "params", "started_at"], "results": {"x": [[1.0], [[0.9]], [], 5]}}
    theirs = {
        "result_columns": ["result", "params", "started_at"],
        "results": {"x": [[7.0], [], 4], "y": [[2.0], [], 5]},
    }
    for both in (merged(ours, theirs), merged(theirs, ours)):
        cells = {name: zip(both["result_columns"], row, strict=False) for name, row in both["results"].items()}
        rows = {name: {column: cell for column, cell in row if cell is not None} for name, row in cells.items()}
        assert rows["x"] == {"result": [1.0], "params": [], "started_at": 5, "samples": [[0.9]]}
        assert rows["y"] == {"result": [2.0], "params": [], "started_at": 5}


def edited(runner: Runner, place: int, version: str, new: bool = False) -> None:
    """As if this checkout's benchmark were of that version, and there were a new one in it."""
    name = "bench_post_process.track_fused_us"
    about = json.loads((runner.results / "benchmarks.json").read_text())
    about[name]["version"] = version
    if new:
        about["bench.track_new"] = {**about[name], "name": "bench.track_new"}
    (runner.results / "benchmarks.json").write_text(json.dumps(about))
    content = json.loads(runner.path(place).read_text())
    content["results"][name][2] = version
    runner.change(place, results=content["results"])


@pytest.mark.parametrize("fetched", [False, True])
@pytest.mark.parametrize("last", ["newer", "older"])
def test_an_older_checkout_takes_no_benchmark_and_no_version_away(runner: Any, last: str, fetched: bool) -> None:
    newer, older = runner("newer", (3,)), runner("older", (2,))
    runners = [older, newer] if last == "newer" else [newer, older]
    if fetched:
        runner("first", (0,)).store.push()
        for one in runners:
            one.store.fetch()
    edited(newer, 3, "2", new=True)
    edited(older, 2, "1")
    for one in runners:
        one.store.push()
    for one in runners:
        one.store.fetch()
        about = json.loads((one.results / "benchmarks.json").read_text())
        assert about["bench_post_process.track_fused_us"]["version"] == "2"
        assert "bench.track_new" in about
        assert about["version"] == 2, "the format's"


def test_both_versions_are_kept_where_two_drivers_measured_one_commit(runner: Any) -> None:
    one, other = runner("one", (0,)), runner("other", (0,))
    for runs, version in ((one, "590"), (other, "580")):
        runs.path(0).with_suffix(".environment").write_text(json.dumps({"driver": version, "torch": "2"}))
        runs.store.push()
    one.store.fetch()
    one.store.push()
    (name,) = [name for name in other.on_the_branch() if name.endswith(".environment")]
    assert json.loads(other.on_the_branch()[name]) == {"driver": "580 and 590", "torch": "2"}


def test_a_benchmark_that_means_something_else_now_is_not_filled_from_the_old() -> None:
    columns = ["result", "params", "version", "started_at"]
    ours = {"result_columns": columns, "results": {"b": [[math.nan, 2.0], [["x", "y"]], "2", 20]}}
    theirs = {"result_columns": columns, "results": {"b": [[1.0, 5.0], [["x", "y"]], "1", 10]}}
    assert merged(theirs, ours)["results"]["b"][0][1] == 2.0
    assert math.isnan(merged(ours, theirs)["results"]["b"][0][0])


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (None, "delimiter|Expecting|Unterminated"),
        ("{}", "expected asv's format 2"),
        ('{"results": [], "version": 2}', "no proper"),
        ("[" * 100_000, "nested too deeply"),
    ],
    ids=["half", "empty", "no results", "deep"],
)
def test_a_damaged_file_is_named_and_nothing_is_pushed(runner: Any, damage: str | None, fault: str) -> None:
    one = runner("one", range(2))
    whole = one.path(1).read_text()
    one.path(1).write_text(whole[: len(whole) // 2] if damage is None else damage)
    again = "delete it, or measure that commit again"
    with pytest.raises(ValueError, match=rf"{one.path(1).name}: damaged, .*({fault}).*; {again}"):
        one.store.push()
    assert git(one.folder, "ls-remote", "origin", BRANCH) == ""
    one.path(1).write_text(whole)
    assert one.store.push() is not None


@pytest.mark.parametrize(
    "damage",
    ['{"commit_hash": ', "{}", '{"result_columns": [], "results": {"b": null}}', '{"results": [], "version": 2}'],
)
def test_damage_on_the_branch_stops_nobody(runner: Any, remote: Path, damage: str) -> None:
    one, other = runner("one", range(2)), runner("other", (4,))
    one.store.push()
    git(one.folder, "fetch", "--quiet", "origin", BRANCH)
    git(one.folder, "worktree", "add", "--quiet", "--detach", str(one.folder / "by-hand"), "FETCH_HEAD")
    (one.folder / "by-hand" / MACHINE / one.path(0).name).write_text(damage)
    git(one.folder / "by-hand", "commit", "--quiet", "--all", "--message", "broken")
    git(one.folder / "by-hand", "push", "--quiet", "origin", f"HEAD:{BRANCH}")
    other.store.fetch()
    assert other.store.push() is not None
    points = read(other.results, survey(other.results, other.commits), other.commits)
    measured = {point.commit for values in points.values() for point in values}
    assert measured == {other.commits[1], other.commits[4]}, "the rest is read"
    one.measure(0)
    one.change(0, python="again")
    assert one.store.push() is not None
    assert json.loads(one.on_the_branch()[f"{MACHINE}/{one.path(0).name}"])["python"] == "again"


def test_a_rewritten_main_takes_no_history_with_it(runner: Any, remote: Path) -> None:
    one = runner("one", range(6))
    one.store.push()
    git(one.folder, "checkout", "--quiet", "-B", "main", one.commits[2])
    git(one.folder, "commit", "--quiet", "--allow-empty", "--message", "another third commit")
    git(one.folder, "push", "--quiet", "--force", "origin", "main")
    other = runner("other")
    other.store.fetch()
    assert len(list(other.results.glob(f"{MACHINE}/*-shared-py3.json"))) == 6
    points = read(other.results, survey(other.results, commits_of(other.folder)), commits_of(other.folder))
    assert {point.commit for values in points.values() for point in values} == set(one.commits[:3])


def test_a_branch_that_was_deleted_gets_back_what_is_here(runner: Any, remote: Path) -> None:
    one = runner("one", range(3))
    one.store.push()
    git(remote, "update-ref", "-d", f"refs/heads/{BRANCH}")
    one.measure(3)
    one.store.push()
    assert set(one.on_the_branch()) == {
        "benchmarks.json", f"{MACHINE}/machine.json", *(f"{MACHINE}/{one.path(place).name}" for place in range(4)),
    }  # fmt: skip


@pytest.mark.parametrize("fetched", [False, True])
def test_a_branch_that_was_rewound_gets_back_what_is_here_and_keeps_what_came_since(
    runner: Any, remote: Path, fetched: bool
) -> None:
    one, other = runner("one", (0,)), runner("other")
    first = one.store.push()
    for place in (1, 2):
        one.measure(place)
    one.store.push()
    git(remote, "update-ref", f"refs/heads/{BRANCH}", first)
    other.store.fetch()
    other.measure(4)
    other.change(0, python="another runner's")
    other.store.push()
    if fetched:
        one.store.fetch()
    one.measure(3)
    one.store.push()
    names = {f"{MACHINE}/{one.path(place).name}" for place in range(5)}
    assert names < set(one.on_the_branch())


def test_a_push_that_is_killed_can_be_made_again(runner: Any) -> None:
    one = runner("one", range(6))
    program = (
        "import sys; from pathlib import Path; from benchmarks.history.store import Store;"
        f"print('begun', flush=True); Store(Path({str(one.folder)!r}), Path({str(one.results)!r}), 'origin').push()"
    )
    for seconds in (0.0, 0.03, 0.06, 0.1):
        process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    one.store.push()
    assert len(one.on_the_branch()) == 8
    assert one.store.push() is None


def test_a_remote_that_refuses_is_an_error_with_its_words(runner: Any, remote: Path) -> None:
    hook = remote / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho no results today >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(RuntimeError, match="no results today"):
        runner("one", (0,)).store.push()


def test_a_remote_that_is_none_is_an_error(runner: Any) -> None:
    one = runner("one", (0,))
    with pytest.raises(RuntimeError, match="nowhere"):
        Store(one.folder, one.results, "nowhere").push()


def test_thinning_drops_old_samples_and_keeps_what_follows_from_them(tmp_path: Path) -> None:
    history = synthetic_history.make(tmp_path, commits=8)
    for path in history.results.glob(f"{MACHINE}/*-shared-py3.json"):
        content = json.loads(path.read_text())
        content["result_columns"].append("samples")
        for row in content["results"].values():
            row.append([[1.0, 2.0, 3.0]] * 8)
        path.write_text(json.dumps(content))
    before = read(history.results, survey(history.results, history.commits), history.commits)
    today = datetime.datetime.fromtimestamp(synthetic_history.BEGIN_S, datetime.timezone.utc).date()
    today += datetime.timedelta(days=182)
    assert store.thin(history.results, 180, today) == 5, "the first evening's, and four of the next day"
    assert store.thin(history.results, 180, today) == 0
    with_samples = [
        commit for commit in history.commits
        if "samples" in (text := (history.results / MACHINE / f"{commit[:8]}-shared-py3.json").read_text())
        and "[1.0, 2.0, 3.0]" in text.replace("[1.0,2.0,3.0]", "[1.0, 2.0, 3.0]")
    ]  # fmt: skip
    assert with_samples == history.commits[5:]
    after = read(history.results, survey(history.results, history.commits), history.commits)
    assert set(after) == set(before)
    for series, points in before.items():
        for old, new in zip(points, after[series], strict=True):
            assert (new.commit, new.environment) == (old.commit, old.environment)
            assert (new.value, new.low, new.high) == pytest.approx((old.value, old.low, old.high), rel=1e-4)
    assert sorted(path.name for path in history.results.iterdir()) == ["benchmarks.json", MACHINE]


def test_thinning_ends_at_a_damaged_file_with_its_name_and_leaves_what_it_cannot_read(tmp_path: Path) -> None:
    history = synthetic_history.make(tmp_path, commits=2)
    one, other = sorted(history.results.glob(f"{MACHINE}/*-shared-py3.json"))
    content = json.loads(one.read_text())
    content["result_columns"].append("samples")
    name, unread = list(content["results"])[:2]
    content["results"][name].append([[1.0, 2.0]] * 8)
    content["results"][unread] = None
    one.write_text(json.dumps(content))
    other.write_text('{"version": 2')
    today = datetime.date(2030, 1, 1)
    with pytest.raises(ValueError, match=f"{other.name}: damaged, .*; delete it"):
        store.thin(history.results, 180, today)
    thinned = json.loads(one.read_text())["results"]
    assert "[1.0, 2.0]" not in str(thinned)
    assert thinned[unread] is None
    assert thinned[name] == content["results"][name][: len(thinned[name])]


def test_thinning_that_is_killed_leaves_nothing_that_is_pushed(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = runner("one", (0,))
    content = json.loads(one.path(0).read_text())
    one.change(
        0,
        result_columns=[*content["result_columns"], "samples"],
        results={name: [*row, [[1.0]] * 8] for name, row in content["results"].items()},
    )
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(os, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            store.thin(one.results, 180, datetime.date(2030, 1, 1))
    one.store.push()
    assert set(one.on_the_branch()) == {"benchmarks.json", f"{MACHINE}/machine.json", f"{MACHINE}/{one.path(0).name}"}


def killed(*_: object) -> None:
    raise KeyboardInterrupt
