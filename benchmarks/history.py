"""The asv history of this repository, fed by the record that was judged, and the dashboard over both.

History takes clean commits only. Results are kept by machine name; here that is the device's model, so that a series
goes on when a container, host or runner is replaced.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks import report
from benchmarks.bench_post_process import RECORD
from benchmarks.gate import Judgement
from benchmarks.results import Run

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".asv" / "results"
HTML = ROOT / ".asv" / "html"


def record_and_publish(record: Path, run: Run, judgement: Judgement, site: Path) -> Path:
    """Add the judged run to the history, if its commit is clean, and publish; the path of the front page.

    Raises:
        RuntimeError: asv failed, or saved nothing.
    """
    commit = run.environment.commit
    if commit is None or run.environment.dirty:
        print("History: not added, because the package was measured outside a clean commit.")
    else:
        add(record, run, commit)
        print(f"History: added {commit[:10]} on {machine_name(run)}.")
    return publish(run, judgement, site)


def machine_name(run: Run) -> str:
    return re.sub(r"[^a-z0-9]+", "-", run.environment.device.lower()).strip("-")


def add(record: Path, run: Run, commit: str) -> None:
    """Store the record's samples as asv's result for `commit`, in place of an earlier one."""
    machine = machine_name(run)
    # Only what stays the same for years: another value of a key starts another series.
    _asv(
        "machine", "--yes", "--machine", machine, "--os", "Linux", "--arch", os.uname().machine,
        "--cpu", "-", "--num_cpu", "-", "--ram", "-",
    )  # fmt: skip
    stored = RESULTS / machine
    before = _stamps(stored, commit)
    _asv("run", "--machine", machine, "--record-samples", f"{commit}^!", record=record)
    after = _stamps(stored, commit)
    if not after or after == before:
        raise RuntimeError(f"asv ended without an error but saved no result for {commit[:10]} in {stored}")
    for path in after:
        _expect_samples(path)


def publish(run: Run, judgement: Judgement, site: Path) -> Path:
    """Write the site: the front page, and asv's own pages beside it where there is a history."""
    site.mkdir(parents=True, exist_ok=True)
    history_link = None
    if RESULTS.exists():
        shutil.rmtree(HTML, ignore_errors=True)
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


def _expect_samples(path: Path) -> None:
    stored = json.loads(path.read_text())["results"]
    if not any(stored.values()):
        raise RuntimeError(f"asv saved {path} without a single result")


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
