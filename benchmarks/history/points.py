"""What asv's results say, of any project: series of points in the order of the commits."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.history.machine import noted
from benchmarks.history.survey import Survey

CONFIG = "asv.conf.json"


@dataclass(frozen=True)
class Series:
    """One benchmark with its parameters on one machine."""

    machine: str
    benchmark: str  # asv's name of it: "bench_post_process.track_fused_us"
    parameters: tuple[str, ...]
    unit: str
    less_is_better: bool
    environment: str = ""  # asv's name of it, where results are of several

    @property
    def name(self) -> str:
        short = self.benchmark.rpartition(".")[2]
        return f"{short}({', '.join(self.parameters)})" if self.parameters else short


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
    from asv.results import Results

    meta = _benchmarks(results)
    order = {commit: number for number, commit in enumerate(commits)}
    series: dict[Series, dict[str, Point]] = {}
    for name, paths in sorted(found.sound.items()):
        for path in paths:
            result, environment = Results.load(str(path)), noted(path)
            for one, value, stats in _values(result, meta, name if len(found.sound) > 1 else ""):
                point = Point(result.commit_hash, _number(value), *_interval(stats), environment)
                series.setdefault(one, {})[result.commit_hash] = point
    return {one: sorted(points.values(), key=lambda point: order[point.commit]) for one, points in series.items()}


def _values(result: Any, meta: dict[str, Any], environment: str) -> Iterator[tuple[Series, Any, Any]]:
    """Each series of one of asv's results, with its value and statistics."""
    for name in result.get_all_result_keys():
        about = meta.get(name, {})
        unit, less_is_better = str(about.get("unit") or ""), bool(about.get("less_is_better", True))
        parameters = result.get_result_params(name)
        every = itertools.product(*parameters)
        values, stats = result.get_result_value(name, parameters), result.get_result_stats(name, parameters)
        for chosen, value, known in zip(every, values, stats, strict=True):
            texts = tuple(text.strip("'") for text in chosen)
            yield Series(result.params["machine"], name, texts, unit, less_is_better, environment), value, known


def _benchmarks(results: Path) -> dict[str, Any]:
    path = results / "benchmarks.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return {name: about for name, about in found.items() if isinstance(about, dict)}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _interval(stats: dict[str, Any] | None) -> tuple[float | None, float | None]:
    """asv writes infinite bounds where there were too few samples."""
    known = stats or {}
    return _number(known.get("ci_99_a")), _number(known.get("ci_99_b"))


def asv_config(repository: Path, results: Path) -> dict[str, Any]:
    """Of the project, which may keep it beside its results; empty where there is none.

    Raises:
        ValueError: it cannot be read.
    """
    from asv import util

    places = (repository, results.parent, results.parent.parent)
    path = next((place / CONFIG for place in places if (place / CONFIG).is_file()), None)
    if path is None:
        return {}
    try:
        found = util.load_json(str(path), js_comments=True)
    except util.UserError as error:
        raise ValueError(f"{path}: damaged, {error}") from error
    return dict(found)


def left_out(config: dict[str, Any]) -> list[str]:
    """Patterns of benchmarks that asv's configuration leaves out of the search for regressions."""
    return [pattern for pattern, first in config.get("regressions_first_commits", {}).items() if first is None]


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
