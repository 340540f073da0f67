"""asv's own commands over this repository's suite, in a repository of its own: what stands in is the package, and
`measure`, which draws times about the speed that a commit's package says it has. asv, git and the environments are
real."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from benchmarks.history.machine import this_machine
from benchmarks.history.points import commits_of, read
from benchmarks.history.survey import survey

ROOT = Path(__file__).parent.parent
PACKAGE = """
__version__ = "0"
FUSED_US = {fused_us}
WRONG = {wrong}

def dllm_post_process_fused(logits, input_ids, mask_id, threshold, *, confidence=None, tokens=None):
    pass

dllm_post_process_reference = dllm_post_process_fused
"""
# Appended to the checkout's own copy of `benchmarks/measure/__init__.py`.
MEASURE = '''


def has_gpu():
    return False


def measure(chosen, *, processes=3, seed=0, **_):
    """Draws about the package's own speed."""
    import json
    import os

    import dllm_kernels

    draw = random.Random(f"{dllm_kernels.FUSED_US} {seed}")
    speeds = (dllm_kernels.FUSED_US, 100)
    pairs = [
        (workload.name, process, [[us * draw.gauss(1, 0.005) for _ in range(10)] for us in speeds])
        for workload in chosen
        for process in range(processes)
    ]
    commit, dirty = machine.commit_of(Path(dllm_kernels.__file__).parent)
    environment = Environment(**{**json.loads(os.environ["THIS_MACHINE"]), "commit": commit, "dirty": dirty})
    return Run(
        created="2026-01-01T00:00:00+00:00", command="stand-in", seconds=1.0, seed=seed, base=None, skipped=(),
        files={"head": "__init__.py"}, environment=environment, workloads=tuple(one.name for one in chosen),
        clock_methods=CLOCK_METHODS["cpu"],
        checks=tuple(Check(name, process, not dllm_kernels.WRONG, "3 ids differ") for name, process, _ in pairs),
        series=tuple(
            Series(name, "call_us", process, "fused", "reference", tuple(fused), tuple(reference), True)
            for name, process, (fused, reference) in pairs
        ),
        blocks=(), counts={},
    )
'''
# Commits, oldest first: what becomes of the package.
LACKING, BROKEN, WRONG, FIRST, AS_FAST, SLOWER, LATEST = range(7)


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def commit(folder: Path, text: str) -> None:
    (folder / "dllm_kernels" / "__init__.py").write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "a change")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("__pycache__", "*.json"))
    with (folder / "benchmarks" / "measure" / "__init__.py").open("a") as file:
        file.write(MEASURE)
    for name in ("asv.conf.json", "pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    (folder / "dllm_kernels").mkdir()
    git(folder, "init", "--quiet", "--initial-branch", "main")
    metadata = (folder / "pyproject.toml").read_text()
    fast, slower = (PACKAGE.format(fused_us=us, wrong=False) for us in (10, 11))
    commit(folder, '__version__ = "0"\n')
    (folder / "pyproject.toml").write_text(metadata.replace("hatchling.build", "nobody.build"))
    commit(folder, fast)
    (folder / "pyproject.toml").write_text(metadata)
    commit(folder, PACKAGE.format(fused_us=10, wrong=True))
    for text in (fast, fast, slower, slower):
        commit(folder, text)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@functools.cache
def described() -> str:
    return json.dumps(dataclasses.asdict(this_machine()))


def run(folder: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**environment, "HOME": str(home), "COLUMNS": "200", "THIS_MACHINE": described()},
    )  # fmt: skip


@pytest.fixture(scope="module")
def measured(checkout: Path, home: Path) -> Path:
    """Every commit, as a maintainer would: the machine named once, then asv's own command."""
    named = run(checkout, home, "benchmarks", "machine")
    assert named.returncode == 0, named.stderr
    done = run(checkout, home, "asv", "run", "--bench", "Quick", "ALL")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cannot be built, so its place in the history stays empty" in done.stdout
    return checkout


def fused_us(folder: Path, workload: str = "1x32x128000-fp16-100") -> dict[int, float | None]:
    """By place of the commit."""
    commits = commits_of(folder)
    results = folder / ".asv" / "results"
    every = read(results, survey(results, commits), commits)
    (points,) = [
        points for series, points in every.items()
        if series.benchmark.endswith("Quick.track_fused_us") and series.values == (workload, "call_us")
    ]  # fmt: skip
    return {commits.index(point.commit): point.value for point in points}


def test_a_commit_that_lacks_cannot_be_built_or_is_wrong_is_a_gap(measured: Path) -> None:
    known = fused_us(measured)
    assert {place for place, value in known.items() if value is None} == {LACKING, BROKEN, WRONG}
    assert known[FIRST] == pytest.approx(10, rel=0.01)
    assert known[LATEST] == pytest.approx(11, rel=0.01)


def test_results_hold_intervals_and_what_they_were_measured_with(measured: Path) -> None:
    commits = commits_of(measured)
    results = measured / ".asv" / "results"
    for series, points in read(results, survey(results, commits), commits).items():
        if series.benchmark.endswith("Quick.track_relative") and series.values[1] == "call_us":
            assert points[FIRST].low is not None
            assert points[FIRST].high is not None
            assert points[FIRST].low < 0.1 < points[FIRST].high
            assert points[FIRST].environment["torch"]
            assert points[FIRST].environment["clock_methods"]


def test_new_measures_what_is_new_alone(measured: Path, home: Path) -> None:
    nothing = run(measured, home, "asv", "run", "--bench", "Quick", "NEW")
    assert "No commit hashes selected" in nothing.stdout + nothing.stderr
    commit(measured, PACKAGE.format(fused_us=11, wrong=False))
    done = run(measured, home, "asv", "run", "--bench", "Quick", "NEW")
    assert done.returncode == 0, done.stdout
    assert len(re.findall("For dllm-kernels commit", done.stdout)) == 1
    assert fused_us(measured)[LATEST + 1] == pytest.approx(11, rel=0.01)


def test_a_range_and_a_pattern_measure_that_alone(measured: Path, home: Path) -> None:
    done = run(measured, home, "asv", "run", "--dry-run", "--bench", "Quick.track_relative", "HEAD~2..HEAD")
    assert done.returncode == 0, done.stdout
    assert "Running 2 total benchmarks (2 commits * 1 environments * 1 benchmarks)" in done.stdout


def test_continuous_exits_with_a_regression_and_without_one(measured: Path, home: Path) -> None:
    commits = commits_of(measured)
    options = ("asv", "continuous", "--bench", "Quick.track_relative", "--factor", "1.02")
    worse = run(measured, home, *options, commits[AS_FAST], commits[SLOWER])
    assert worse.returncode == 1, worse.stdout + worse.stderr
    assert "PERFORMANCE DECREASED" in worse.stdout
    same = run(measured, home, *options, commits[FIRST], commits[AS_FAST])
    assert same.returncode == 0, same.stdout + same.stderr


def test_compare_shows_both(measured: Path, home: Path) -> None:
    commits = commits_of(measured)
    done = run(measured, home, "asv", "compare", "--factor", "1.02", commits[AS_FAST], commits[SLOWER])
    assert done.returncode == 0, done.stdout + done.stderr
    worse = done.stdout.partition("worsened")[2] or done.stdout
    assert re.search(r"\+ .*1\.10 .*track_relative", worse), done.stdout


def test_find_names_the_commit(measured: Path, home: Path) -> None:
    commits = commits_of(measured)
    done = run(
        measured, home, "asv", "find", f"{commits[FIRST]}..{commits[LATEST]}",
        r"Quick\.track_relative\('1x32x128000-fp16-100', 'call_us'\)",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert commits[SLOWER][:8] in done.stdout.rpartition("Greatest regression found")[2]


def test_history_names_the_commits_that_may_be_to_blame(measured: Path, home: Path) -> None:
    done = run(measured, home, "benchmarks", "history", "--json")
    assert done.returncode == 0, done.stderr
    commits = commits_of(measured)
    found = [one for one in json.loads(done.stdout) if one["series"]["benchmark"].endswith("track_relative")]
    assert {(one["last_before"], one["first"], one["between"]) for one in found} == {
        (commits[AS_FAST], commits[SLOWER], 0)
    }
    assert not any(re.search("speedup|reference", one["series"]["benchmark"]) for one in json.loads(done.stdout))


def test_publish_and_preview_show_the_regression(measured: Path, home: Path) -> None:
    done = run(measured, home, "asv", "publish", "--no-pull")
    assert done.returncode == 0, done.stdout + done.stderr
    regressions = json.loads((measured / ".asv" / "html" / "regressions.json").read_text())["regressions"]
    assert any("track_relative" in name for name, *_ in regressions)
    assert not any("track_speedup" in name for name, *_ in regressions)
    environment = {**os.environ, "HOME": str(home), "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "asv", "preview"], cwd=measured, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        address = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
        with urllib.request.urlopen(f"{address.rstrip('/')}/index.json", timeout=10) as answer:
            assert json.load(answer)["project"] == "dllm-kernels"
    finally:
        server.terminate()
        server.wait(timeout=10)
        if server.stdout is not None:
            server.stdout.close()


def test_a_record_and_asvs_own_run_agree(measured: Path, home: Path) -> None:
    """The same measuring, once through `python -m benchmarks`, once through asv: the same figures in the history."""
    before = fused_us(measured)
    done = run(measured, home, "benchmarks", "run", "--quick", "--processes", "5", "--output", "record.json")
    assert done.returncode == 0, done.stderr
    (path,) = (measured / ".asv" / "results").glob(f"*/{commits_of(measured)[-1][:8]}-*.json")
    path.unlink()
    done = run(measured, home, "benchmarks", "record", "record.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert fused_us(measured)[max(before)] == before[max(before)]
