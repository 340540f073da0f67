"""The asv history of this repository, fed by the record that was judged.

History takes clean commits only. What asv's results say is in `points`, where they bent in `changes`, how runners share
them in `store`, and under which name a machine's are kept in `machine`.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from benchmarks.bench_post_process import CLOCKS, RECORD
from benchmarks.history import machine
from benchmarks.results import Run
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / ".asv" / "results"


def record(path: Path, run: Run) -> bool:
    """Add the run to the history, if its commit is clean and its results right; whether it was added.

    Raises:
        RuntimeError: asv failed, or saved nothing.
    """
    commit = run.environment.commit
    if commit is None or run.environment.dirty:
        print("History: not added, because the package was measured outside a clean commit.")
    elif not all(check.passed for check in run.checks):
        print("History: not added, because results were wrong.")
    elif not any((one.implementation, one.beside) == ("fused", "reference") for one in run.series):
        print("History: not added, because there are no samples of fused beside the reference of its process.")
    else:
        with Console().status(f"Adding {commit[:10]} to the history: asv installs it and takes the record's samples"):
            add(path, run, commit)
        unknown = [name for name in run.workloads if name not in WORKLOADS]
        without = f" Without {', '.join(unknown)}, which is registered no more." if unknown else ""
        print(f"History: added {commit[:10]} on {machine.machine_name(run.environment)}.{without}")
        return True
    return False


def add(path: Path, run: Run, commit: str) -> None:
    """Store the record's samples as asv's result for `commit`, in place of an earlier one of the same workloads.

    What is there of other workloads stays, unless other versions measured it: these are noted for the whole result.

    Raises:
        RuntimeError: asv failed, or did not save every series of the run's workloads that are registered.
        ValueError: what an earlier result was measured with is damaged.
    """
    stored = RESULTS / machine.register(run.environment)
    before = _stamps(stored, commit)
    chosen = ["--bench", rf"\.Compiled\.|'({'|'.join(map(re.escape, run.workloads))})'"]
    if otherwise := _measured_otherwise(before, run):
        print(f"History: what was there is replaced as a whole, because it was measured otherwise: {otherwise}.")
        chosen = []
    _asv("run", "--machine", stored.name, "--record-samples", *chosen, f"{commit}^!", record=path)
    saved = [result for result, stamp in _stamps(stored, commit).items() if before.get(result) != stamp]
    if not saved:
        raise RuntimeError(f"asv ended without an error but saved no result for {commit[:10]} in {stored}")
    for result in saved:
        _expect_all_saved(result, run)


def _measured_otherwise(stored: Iterable[Path], run: Run) -> str:
    """With what else than the run, or without what the run has; empty if with the same, or if nothing was noted."""
    here = {name: value for name, value in machine.measured_with(run).items() if value}
    notes = [noted for result in stored if (noted := machine.noted(result))]
    differing = {
        (name, noted.get(name)) for noted in notes for name in noted.keys() | here if noted.get(name) != here.get(name)
    }
    return ", ".join(f"{name} {there}" if there else f"no {name}" for name, there in sorted(differing, key=str))


def _stamps(folder: Path, commit: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob(f"{commit[:8]}*.json")}


def _expect_all_saved(path: Path, run: Run) -> None:
    """asv's exit code does not tell whether a benchmark stored anything."""
    stored = json.loads(path.read_text())["results"]
    known = {
        (workload.strip("'"), clock.strip("'"))
        for key, (medians, params, *_) in stored.items()
        if key.endswith(".track_relative")
        for (workload, clock), median in zip(itertools.product(*params), medians or (), strict=False)
        if isinstance(median, float) and not math.isnan(median)
    }
    paired = [one for one in run.series if (one.implementation, one.beside) == ("fused", "reference")]
    wanted = {(one.workload, one.clock) for one in paired if one.clock in CLOCKS and one.workload in WORKLOADS}
    if missing := wanted - known:
        raise RuntimeError(f"asv saved {path} without {sorted(missing)}")


def _asv(*arguments: str, record: Path | None = None) -> None:
    environment = dict(os.environ)
    environment.pop(RECORD, None)
    if record is not None:
        environment[RECORD] = str(record.resolve())
    _run([sys.executable, "-m", "asv", *arguments], environment)


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        output = (result.stdout + result.stderr).strip()
        raise RuntimeError(f"{' '.join(command[1:])} ended with exit code {result.returncode}:\n{output}")
