"""What asv's results say, of any project: series of points in the order of the commits."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.history.machine import noted
from benchmarks.history.survey import Survey, current, sound_content

CONFIGS = ("asv.conf.json", "asv.conf.jsonc")


@dataclass(frozen=True)
class Series:
    """One benchmark with its parameters on one machine."""

    machine: str
    benchmark: str  # asv's name of it: "bench_post_process.track_fused_us"
    parameters: tuple[str, ...]  # as asv writes them: 'a' with its quotes, 1 without
    unit: str
    less_is_better: bool
    environment: str = ""  # asv's name of it, where results are of several
    parameter_names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        short = self.benchmark.rpartition(".")[2]
        return f"{short}({self.chosen})" if self.parameters else short

    @property
    def full_name(self) -> str:
        """As asv has it: its name of the benchmark, and the parameters as it writes them."""
        return f"{self.benchmark}({', '.join(self.parameters)})" if self.parameters else self.benchmark

    @property
    def values(self) -> tuple[str, ...]:
        """The parameters without quotes."""
        return tuple(text.strip("'") for text in self.parameters)

    @property
    def chosen(self) -> str:
        """The parameters for a reader: words speak for themselves, of a number one has to know what it is."""
        names = self.parameter_names if len(self.parameter_names) == len(self.parameters) else ("",) * len(self.values)
        told = zip(names, self.parameters, self.values, strict=True)
        return ", ".join(f"{name}={text}" if name and text == value else value for name, text, value in told)


@dataclass(frozen=True)
class Point:
    """What was found of a series at one commit; no value where it failed or was left out."""

    commit: str
    value: float | None
    low: float | None  # of asv's 99 % interval of the median, where the samples allow one
    high: float | None
    environment: dict[str, str]  # what it was measured with, where that is known: versions, and how a clock was read


def read(results: Path, found: Survey, commits: Sequence[str]) -> dict[Series, list[Point]]:
    """Every series of what is sound in a folder of asv's results, its points in the order of `commits`."""
    meta = _benchmarks(results)
    order = {commit: number for number, commit in enumerate(commits)}
    series: dict[Series, dict[str, Point]] = {}
    for name, paths in sorted(found.sound.items()):
        for path in paths:
            content, _ = sound_content(path)
            commit, environment = content["commit_hash"], {**_told(content), **noted(path)}
            for one, value, interval in _values(content, meta, name if len(found.sound) > 1 else ""):
                series.setdefault(one, {})[commit] = Point(commit, value, *interval, environment)
    return {one: sorted(points.values(), key=lambda point: order[point.commit]) for one, points in series.items()}


def _values(
    content: dict[str, Any], meta: dict[str, Any], environment: str
) -> Iterator[tuple[Series, float | None, tuple[float | None, float | None]]]:
    """Each series of one of asv's results, with its value and interval."""
    for name, cells in current(content, meta).items():
        about = meta[name]
        unit, less_is_better = str(about.get("unit") or ""), bool(about.get("less_is_better", True))
        names = tuple(map(str, about.get("param_names") or ()))
        machine = content["params"]["machine"]
        columns = [cells.get(column) for column in ("result", "stats_ci_99_a", "stats_ci_99_b")]
        for number, chosen in enumerate(itertools.product(*cells["params"])):
            value, low, high = (None if column is None else _number(column[number]) for column in columns)
            yield Series(machine, name, chosen, unit, less_is_better, environment, names), value, (low, high)


def _told(content: dict[str, Any]) -> dict[str, str]:
    """What asv itself says of machine and libraries. A Python of no minor version is what was asked for, not what ran,
    and "-" is what our own machines say of what would start another curve."""
    every = {**content["params"], **content["requirements"], "machine": None}
    told = {name: str(value) for name, value in every.items() if value not in (None, "", "-")}
    return {name: value for name, value in told.items() if name != "python" or "." in value}


def _benchmarks(results: Path) -> dict[str, Any]:
    path = results / "benchmarks.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _number(value: float | None) -> float | None:
    """asv writes NaN for a parameter that was not asked for, and infinite bounds where there were too few samples."""
    return None if value is None or not math.isfinite(value) else float(value)


def asv_config(repository: Path, results: Path) -> dict[str, Any]:
    """Of the project, which may keep it beside its results; empty where there is none.

    Raises:
        ValueError: it cannot be read, does not say what it leaves out as asv expects, or is one of several.
    """
    from asv import util

    path = _config_path(repository, results)
    if path is None:
        return {}
    try:
        found = util.load_json(str(path), js_comments=True)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object; got {found!r}")
    first_commits = found.get("regressions_first_commits", {})
    if not isinstance(first_commits, dict):
        raise ValueError(f"{path}: expected patterns by name as regressions_first_commits; got {first_commits!r}")
    for pattern in first_commits:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{path}: expected regular expressions in regressions_first_commits; got {pattern!r}: {error}"
            ) from error
    return found


def _config_path(repository: Path, results: Path) -> Path | None:
    """At the top of the repository, beside the results, or else in a folder of the repository."""
    places = (repository, results.parent, results.parent.parent)
    path = next((place / name for place in places for name in CONFIGS if (place / name).is_file()), None)
    inside = sorted(one for name in CONFIGS for one in repository.glob(f"*/{name}"))
    if path is None and len(inside) > 1:
        raise ValueError(
            f"{inside[0]}: expected one configuration of asv in {repository}; got {len(inside)}, so lay the results "
            "beside the one that they are of"
        )
    return path or next(iter(inside), None)


def left_out(config: dict[str, Any]) -> list[str]:
    """Patterns of series that asv's configuration leaves out of the search for regressions."""
    return [pattern for pattern, first in config.get("regressions_first_commits", {}).items() if first is None]


def is_searched(series: Series, without: Sequence[str]) -> bool:
    """Whether it matches none of the patterns, as asv matches them."""
    return not any(re.match(pattern, series.full_name) for pattern in without)


def commits_of(repository: Path, revision: str = "HEAD") -> list[str]:
    """A branch's own commits, oldest first: those of merged branches are part of their merge.

    Raises:
        ValueError: there is no such revision.
    """
    command = ["git", "rev-list", "--first-parent", "--reverse", revision]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(f"{revision}: expected a revision of this repository; git says {done.stderr.strip()}")
    return done.stdout.split()
