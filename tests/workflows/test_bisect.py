"""`python -m benchmarks history --bisect`: a planted slowdown between two measured commits is found by measuring. The
package, the measuring and the repository are real; the slowdown is a sleep, large enough for any CPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.history.machine import machine_name, this_machine
from tests import synthetic_history
from tests.synthetic_history import Benchmark

ROOT = Path(__file__).parent.parent.parent
WORKLOAD = "1x32x50257-fp16-100"
COMMITS, MEASURED, BROKEN, CULPRIT = 9, (0, 1, 2, 7, 8), 4, 5
CLOCK = "call_us"


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Nine commits: the fifth cannot be imported, from the sixth on every call sleeps; results of both ends."""
    folder = tmp_path / "checkout"
    for name in ("benchmarks", "dllm_kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "evidence"))
    git(folder, "init", "--quiet", "--initial-branch", "main")
    door = folder / "dllm_kernels" / "__init__.py"
    text = door.read_text()
    slow = text + (
        "\n_fast = dllm_post_process_fused\n\n\n"
        "def dllm_post_process_fused(*arguments, **options):  # type: ignore[no-redef]\n"
        "    import time\n\n    time.sleep(0.2)\n    _fast(*arguments, **options)\n"
    )
    for place in range(COMMITS):
        door.write_text(text + "\nraise ImportError\n" if place == BROKEN else slow if place >= CULPRIT else text)
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--allow-empty", "--message", f"commit {place}")
    machine = machine_name(this_machine())
    one = Benchmark("bench_post_process.Quick.track_fused_us", "µs", 1.0, {"workload": (WORKLOAD,), "clock": (CLOCK,)})
    results = folder / ".asv" / "results"
    synthetic_history.write_benchmarks(results, [one])
    synthetic_history.write_json(results / machine / "machine.json", {"machine": machine, "version": 1})
    for place in MEASURED:
        us = 2e5 if place >= CULPRIT else 1e4
        commit = git(folder, "rev-parse", f"HEAD~{COMMITS - 1 - place}")
        values = {one.name: [us * (1 + 0.001 * place)]}
        synthetic_history.write_result(results / machine, commit, place, [one], values, 0.01, {"machine": machine})
    return folder


def test_the_commit_between_is_found_by_measuring(checkout: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "history", "--bisect", "--json"],
        cwd=checkout, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    places = [git(checkout, "rev-parse", f"HEAD~{COMMITS - 1 - place}") for place in range(COMMITS)]
    good, bad = places.index(found["last_before"]), places.index(found["first"])
    assert good < CULPRIT <= bad, done.stderr
    assert found["between"] == bad - good - 1
    assert f"{places[BROKEN][:10]} beside {places[2][:10]}: cannot be measured" in done.stderr
    told = re.findall(r"(\w{10}) beside \w{10}: (PASS|REGRESSION)", done.stderr)
    assert told, "on a busy machine some stay in doubt, but a sleep of this length hides from nobody"
    for commit, verdict in told:
        place = next(number for number, one in enumerate(places) if one.startswith(commit))
        assert (verdict == "REGRESSION") is (place >= CULPRIT)
        assert not good < place < bad, "what was told is no longer between"
