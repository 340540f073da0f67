"""Histories that nobody measured: a git repository and asv's results of its commits, with what is planted in them.

    make(folder, commits=60, noise=0.01, seed=3, steps=[Step(commit=40, slowdown=1.05)])

The repository is a real one, written by `git fast-import`; the results have the form that asv itself writes. For tests
alone: nothing that is published comes from here.

    python -m tests.synthetic_history FOLDER --commits 2000 --series 40
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.history.machine import ENDING

ENV_NAME = "shared-py3"
BEGIN_S = 1_700_000_000  # of the first commit; one every six hours
EVERY_S = 6 * 3600
COLUMNS = [
    "result", "params", "version", "started_at", "duration", "stats_ci_99_a", "stats_ci_99_b", "stats_q_25",
    "stats_q_75", "stats_number", "stats_repeat",
]  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """As asv's `benchmarks.json` tells of it. Each combination of parameters is a series, the nth at n * level."""

    name: str
    unit: str
    level: float
    parameters: dict[str, Sequence[str]] = field(default_factory=dict)
    less_is_better: bool | None = True  # None: asv does not say, as of nearly all projects
    type: str = "track"

    @property
    def combinations(self) -> list[tuple[str, ...]]:
        return list(itertools.product(*self.parameters.values()))


@dataclass(frozen=True)
class Step:
    """From `commit` (counted from 0) on everything takes so many times as long, in the benchmarks and on the machines
    whose names contain these texts."""

    commit: int
    slowdown: float
    benchmark: str = ""
    machine: str = ""


@dataclass(frozen=True)
class Updated:
    """From `commit` on measured with another version of something."""

    commit: int
    name: str
    version: str
    machine: str = ""


@dataclass(frozen=True)
class History:
    repository: Path
    results: Path
    commits: list[str]  # oldest first


WORKLOADS = ("1x32x128000-fp16-100", "4x32x157184-bf16-100", "128x32x157184-bf16-100", "1x32x50257-fp16-100")
PARAMETERS = {"workload": WORKLOADS, "clock": ("device_us", "call_us")}
OURS = tuple(
    Benchmark(f"bench_post_process.{name}", unit, level, PARAMETERS, less)
    for name, unit, level, less in (
        ("track_fused_us", "µs", 7.6, True),
        ("track_reference_us", "µs", 119.0, True),
        ("track_relative", "of the reference", 0.063, True),
        ("track_speedup", "x", 15.9, False),
        ("track_bandwidth_share", "% of the limit", 12.0, False),
    )
)  # fmt: skip
MACHINES = ("nvidia-h100-80gb-hbm3",)
ENVIRONMENT = {"python": "3.12.3", "torch": "2.11.0", "triton": "3.6.0", "driver": "580.159.04"}


def make(
    folder: Path,
    *,
    commits: int = 60,
    benchmarks: Sequence[Benchmark] = OURS,
    machines: Sequence[str] = MACHINES,
    noise: float = 0.01,
    seed: int = 0,
    steps: Sequence[Step] = (),
    updates: Sequence[Updated] = (),
    environment: dict[str, str] | None = None,
    failed: Sequence[int] = (),
    not_measured: dict[str, Sequence[int]] | None = None,
    subjects: dict[int, str] | None = None,
) -> History:
    """A history below `folder`: `repository/` and `results/`.

    Args:
        noise: standard deviation of a point, as a share of it.
        environment: what every point was measured with at first (default: something plausible); {}: not noted.
        failed: commits that have results without values, as where an old commit lacks a feature.
        not_measured: of each machine, commits without results.
        subjects: of commits whose messages are not made up.
    """
    repository, results = folder / "repository", folder / "results"
    hashes = make_repository(repository, commits, subjects or {})
    write_benchmarks(results, benchmarks)
    for number, machine in enumerate(machines):
        about = {"arch": "x86_64", "cpu": "-", "machine": machine, "num_cpu": "-", "os": "Linux", "ram": "-"}
        (results / machine).mkdir(parents=True, exist_ok=True)
        write_json(results / machine / "machine.json", {**about, "version": 1})
        draw = random.Random(f"{seed} {machine}")
        installed = dict(ENVIRONMENT if environment is None else environment)
        for place, commit in enumerate(hashes):
            installed |= {one.name: one.version for one in updates if one.commit == place and one.machine in machine}
            values = {
                one.name: [
                    _value(one, machine, place, (number + 1) * (index + 1), steps, draw.gauss(0, noise))
                    for index in range(len(one.combinations))
                ]
                for one in benchmarks
            }
            if place in (not_measured or {}).get(machine, ()):
                continue
            if place in failed:
                values = {name: [math.nan] * len(known) for name, known in values.items()}
            write_result(results / machine, commit, BEGIN_S + place * EVERY_S, benchmarks, values, noise, about)
            if installed:
                write_json(results / machine / f"{commit[:8]}-{ENV_NAME}{ENDING}", installed)
    return History(repository, results, hashes)


def _value(
    one: Benchmark, machine: str, place: int, scale: float, steps: Sequence[Step], deviation: float
) -> float:  # fmt: skip
    value = one.level * scale * math.exp(deviation)
    for step in steps:
        if step.commit <= place and step.benchmark in one.name and step.machine in machine:
            value *= step.slowdown if one.less_is_better is not False else 1 / step.slowdown
    return value


def make_repository(folder: Path, commits: int, subjects: dict[int, str], branch: str = "main") -> list[str]:
    """A repository of so many commits on one branch; their hashes, oldest first."""
    folder.mkdir(parents=True)
    stream = []
    for place in range(commits):
        date = BEGIN_S + place * EVERY_S
        message = subjects.get(place, f"Change number {place}").encode(errors="surrogateescape")
        content = f"{place}\n".encode()
        stream.append(
            b"commit refs/heads/%s\ncommitter A Person <person@example.org> %d +0000\ndata %d\n%s\n"
            b"M 100644 inline version.txt\ndata %d\n%s\n"
            % (branch.encode(), date, len(message), message, len(content), content)
        )
    _git(folder, "init", "--quiet", "--initial-branch", branch)
    _git(folder, "fast-import", "--quiet", input=b"".join(stream))
    _git(folder, "reset", "--quiet", "--hard", branch)
    return _git(folder, "rev-list", "--first-parent", "--reverse", branch).split()


def _git(folder: Path, *arguments: str, input: bytes | None = None) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, input=input, capture_output=True, check=True).stdout.decode()


def write_benchmarks(results: Path, benchmarks: Sequence[Benchmark]) -> None:
    about: dict[str, Any] = {"version": 2}
    for one in benchmarks:
        about[one.name] = {
            "code": "", "name": one.name, "param_names": list(one.parameters), "type": one.type, "unit": one.unit,
            "params": [[repr(value) for value in values] for values in one.parameters.values()],
            "timeout": 60.0, "version": "1",
        }  # fmt: skip
        if one.less_is_better is not None:
            about[one.name]["less_is_better"] = one.less_is_better
    write_json(results / "benchmarks.json", about)


def write_result(
    folder: Path,
    commit: str,
    date_s: int,
    benchmarks: Sequence[Benchmark],
    values: dict[str, list[float]],
    noise: float,
    machine: dict[str, str],
) -> None:
    """One commit's file, as asv writes it."""
    rows = {}
    for one in benchmarks:
        known = values[one.name]
        low, high = ([value * (1 + sign * noise) for value in known] for sign in (-1.5, 1.5))
        parameters = [[repr(value) for value in values] for values in one.parameters.values()]
        count = [9] * len(known)
        rows[one.name] = [known, parameters, "1", date_s * 1000, 1.0, low, high, low, high, [1] * len(known), count]
    write_json(
        folder / f"{commit[:8]}-{ENV_NAME}.json",
        {
            "commit_hash": commit, "env_name": ENV_NAME, "date": date_s * 1000, "python": "3", "requirements": {},
            "params": {**machine, "python": "3"}, "env_vars": {}, "result_columns": COLUMNS, "results": rows,
            "durations": {}, "version": 2,
        },
    )  # fmt: skip


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a synthetic history: FOLDER/repository and FOLDER/results.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--commits", type=int, default=60, help="(default 60)")
    parser.add_argument("--series", type=int, default=40, help="on each machine, in fives (default 40)")
    parser.add_argument("--machines", type=int, default=1, help="(default 1)")
    parser.add_argument("--noise", type=float, default=0.01, help="standard deviation of a point (default 0.01)")
    parser.add_argument("--seed", type=int, default=0, help="(default 0)")
    options = parser.parse_args()
    workloads = [f"{2**index}x32x128000-fp16-100" for index in range(max(1, options.series // len(OURS)))]
    benchmarks = [
        Benchmark(one.name, one.unit, one.level, {"workload": workloads, "clock": ["device_us"]}, one.less_is_better)
        for one in OURS
    ]
    half, late = options.commits // 2, options.commits - options.commits // 10
    history = make(
        options.folder,
        commits=options.commits,
        benchmarks=benchmarks,
        machines=[f"gpu-{index}" for index in range(options.machines)],
        noise=options.noise,
        seed=options.seed,
        steps=[
            Step(half, 1.05, "fused"), Step(half, 1.05, "speedup"), Step(half, 1.05, "relative"), Step(late, 1.04),
        ],
        updates=[Updated(late, "driver", "590.11")],
    )  # fmt: skip
    print(f"{len(history.commits)} commits; slower by 5 % at {history.commits[half]}, by 4 % with another driver later")


if __name__ == "__main__":
    main()
