"""`pytest tests/perf` as its users run it, over a made-up measurement: what is saved, compared and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLUGIN = """
import dataclasses, os
from benchmarks import measure
from benchmarks.measure import machine
from benchmarks.workloads import QUICK
from tests.records import CPU, make_run

FUSED_US = float(os.environ["FUSED_US"])
ENVIRONMENT = dataclasses.replace(CPU, device=os.environ["DEVICE"])
speedups = {(name, "call_us"): [20 / FUSED_US * s for s in (0.99, 1.0, 1.0, 1.01)] for name in QUICK}
measure.measure = lambda *_, **__: make_run(speedups, environment=ENVIRONMENT, fused_us=FUSED_US)
machine.describe_environment = lambda: ENVIRONMENT
"""


@pytest.fixture
def perf(tmp_path):
    (tmp_path / "made_up.py").write_text(PLUGIN)

    def run(*arguments, fused_us=10.0, device="CPU A"):
        command = [sys.executable, "-m", "pytest", "tests/perf", "-q", "-p", "made_up", "-p", "no:cacheprovider"]
        environment = {
            # pytest-benchmark does not save where it takes itself for one of several workers.
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "FUSED_US": str(fused_us),
            "DEVICE": device,
        }
        storage = f"--benchmark-storage={tmp_path / 'saved'}"
        result = subprocess.run(
            [*command, storage, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        return result.returncode, result.stdout + result.stderr

    return run


def test_saved_compared_and_a_slowdown_fails(perf):
    assert perf("--benchmark-autosave")[0] == 0
    compare = ("--benchmark-compare", "--benchmark-compare-fail=median:5%")
    assert perf(*compare)[0] == 0
    code, output = perf(*compare, fused_us=11.0)
    assert code == 1
    assert "relative] (0001" in output
    assert "10.0" in output


def test_a_slow_operation_fails_without_any_comparison(perf):
    code, output = perf(fused_us=30.0)
    assert code == 1
    assert "REGRESSION, below" in output


def test_what_cannot_be_compared_is_refused(perf, tmp_path):
    code, output = perf("--benchmark-compare")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "no saved run" in output
    perf("--benchmark-autosave")
    code, output = perf("--benchmark-compare", device="CPU B")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "measured on CPU A, this one on CPU B" in output
    for option in ("--benchmark-disable", "--benchmark-skip"):
        code, output = perf("--benchmark-compare", option)
        assert code == pytest.ExitCode.USAGE_ERROR
        assert f"with {option} nothing would be compared" in output
    for options, what in (
        (["--benchmark-only"], "nothing would be judged by the gate"),
        (["-n", "2"], "compares nothing"),
    ):
        code, output = perf("--benchmark-compare", *options)
        assert code == pytest.ExitCode.USAGE_ERROR
        assert what in output
    (saved,) = (tmp_path / "saved").rglob("*.json")
    content = json.loads(saved.read_text())
    lost = content["benchmarks"].pop()["fullname"]
    saved.write_text(json.dumps(content))
    code, output = perf("--benchmark-compare")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert f"the saved run lacks {lost}" in output
