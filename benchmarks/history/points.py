"""What asv's results say, of any project: series of points in the order of the commits."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.history.machine import noted


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


def read(results: Path, commits: Sequence[str]) -> dict[Series, list[Point]]:
    """Every series of a folder of asv's results, its points in the order of `commits`; other commits are left out.

    Raises:
        ValueError: the list of benchmarks, or what something was measured with, is damaged.
    """
    from asv.results import iter_results

    meta = _benchmarks(results)
    order = {commit: number for number, commit in enumerate(commits)}
    found: dict[Series, dict[str, Point]] = {}
    every = list(iter_results(str(results)))
    several = len({result.env_name for result in every}) > 1
    for result in every:
        if result.commit_hash not in order:
            continue
        environment = noted(results / result.params["machine"] / f"{result.commit_hash[:8]}-{result.env_name}.json")
        for name in result.get_all_result_keys():
            about = meta.get(name, {})
            parameters = result.get_result_params(name)
            values = result.get_result_value(name, parameters)
            every_stats = result.get_result_stats(name, parameters)
            for chosen, value, stats in zip(itertools.product(*parameters), values, every_stats, strict=True):
                series = Series(
                    result.params["machine"],
                    name,
                    tuple(text.strip("'") for text in chosen),
                    str(about.get("unit", "")),
                    bool(about.get("less_is_better", True)),
                    result.env_name if several else "",
                )
                point = Point(result.commit_hash, _number(value), *_interval(stats), environment)
                found.setdefault(series, {})[result.commit_hash] = point
    return {series: sorted(points.values(), key=lambda point: order[point.commit]) for series, points in found.items()}


def _benchmarks(results: Path) -> dict[str, Any]:
    path = results / "benchmarks.json"
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: damaged, {error}") from error
    return {name: about for name, about in found.items() if isinstance(about, dict)}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _interval(stats: dict[str, Any] | None) -> tuple[float | None, float | None]:
    """asv writes infinite bounds where there were too few samples."""
    known = stats or {}
    return _number(known.get("ci_99_a")), _number(known.get("ci_99_b"))


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
