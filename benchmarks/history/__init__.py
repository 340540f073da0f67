"""The asv history of this repository, fed by the record that was judged, and the dashboard over both.

History takes clean commits only. Results are kept by machine name; here that is the device's model, so that a series
goes on when a container, host or runner is replaced.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from benchmarks import report
from benchmarks.bench_post_process import CLOCKS, RECORD, SERIES
from benchmarks.gate import Judgement
from benchmarks.results import Run

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / ".asv" / "results"
HTML = ROOT / ".asv" / "html"


def record_and_publish(record: Path, run: Run, judgement: Judgement, site: Path) -> Path:
    """Add the judged run to the history, if its commit is clean and its results right; publish; the front page's path.

    Raises:
        RuntimeError: asv failed, or saved nothing.
    """
    commit = run.environment.commit
    if commit is None or run.environment.dirty:
        print("History: not added, because the package was measured outside a clean commit.")
    elif not all(check.passed for check in run.checks):
        print("History: not added, because results were wrong.")
    elif not run.series:
        print("History: not added, because there are no samples.")
    else:
        with Console().status(f"Adding {commit[:10]} to the history: asv installs it and takes the record's samples"):
            add(record, run, commit)
        print(f"History: added {commit[:10]} on {machine_name(run)}.")
    return publish(run, judgement, site)


def machine_name(run: Run) -> str:
    """The device's model; of a CPU with its number of cores, which its times depend on."""
    environment = run.environment
    cores = f"-{environment.cpu_cores}-cores" if environment.device_type == "cpu" else ""
    return re.sub(r"[^a-z0-9]+", "-", environment.device.lower()).strip("-") + cores


def add(record: Path, run: Run, commit: str) -> None:
    """Store the record's samples as asv's result for `commit`, in place of an earlier one.

    Raises:
        RuntimeError: asv failed, or did not save every series of the run.
    """
    machine = machine_name(run)
    # Only what stays the same for years: another value of a key starts another series.
    _asv(
        "machine", "--yes", "--machine", machine, "--os", platform.system(), "--arch", platform.machine(),
        "--cpu", "-", "--num_cpu", "-", "--ram", "-",
    )  # fmt: skip
    stored = RESULTS / machine
    before = _stamps(stored, commit)
    # asv starts a process even for a parameter that has no samples: ask for those that have.
    wanted = r"\((" + "|".join(sorted({rf"'{one.workload}', '{one.clock}'" for one in run.series})) + r")\)"
    _asv("run", "--machine", machine, "--record-samples", "--bench", wanted, f"{commit}^!", record=record)
    saved = [path for path, stamp in _stamps(stored, commit).items() if before.get(path) != stamp]
    if not saved:
        raise RuntimeError(f"asv ended without an error but saved no result for {commit[:10]} in {stored}")
    for path in saved:
        _expect_all_saved(path, run)


def publish(run: Run, judgement: Judgement, site: Path) -> Path:
    """Write the site: the front page, and asv's own pages beside it where there is a history."""
    site.mkdir(parents=True, exist_ok=True)
    history_link = None
    if RESULTS.exists():
        shutil.rmtree(HTML, ignore_errors=True)
        with Console().status("Publishing the history"):
            _asv("publish", "--no-pull")
            _run([sys.executable, "-m", "asv_tachyon", "install", str(HTML)])
        shutil.rmtree(site / "asv", ignore_errors=True)
        shutil.copytree(HTML, site / "asv")
        history_link = "asv/index.html"
    page = site / "index.html"
    page.write_text(report.page(run, judgement, history_link))
    return page


def _stamps(folder: Path, commit: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob(f"{commit[:8]}*.json")}


def _expect_all_saved(path: Path, run: Run) -> None:
    """asv's exit code does not tell whether a benchmark stored anything."""
    stored = json.loads(path.read_text())["results"]
    for name in SERIES:
        medians, params, *_ = next(value for key, value in stored.items() if key.endswith(f".{name}"))
        known = {
            (workload.strip("'"), clock.strip("'"))
            for (workload, clock), median in zip(itertools.product(*params), medians, strict=True)
            if isinstance(median, float) and not math.isnan(median)
        }
        missing = {(one.workload, one.clock) for one in run.series if one.clock in CLOCKS} - known
        if missing:
            raise RuntimeError(f"asv saved {path} without {name} of {sorted(missing)}")


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
