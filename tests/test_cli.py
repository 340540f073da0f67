"""`python -m benchmarks`: exit codes and messages, without measuring."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from benchmarks import __main__ as cli
from benchmarks import history, measure, results
from benchmarks.workloads import WORKLOADS
from tests.records import GPU, NAME, make_run, steady


def _whole(device=15.0, **changes):
    """A run of every workload."""
    return make_run(
        {key: value for name in WORKLOADS for key, value in steady(device, workload=name).items()}, **changes
    )


@pytest.fixture(autouse=True)
def _own_baselines(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "BASELINES", tmp_path / "baselines")
    monkeypatch.setattr(cli, "OUTPUT", tmp_path / "output")


@pytest.fixture
def record(tmp_path):
    def save(run):
        results.save_run(run, tmp_path / "run.json")
        return str(tmp_path / "run.json")

    return save


def test_help_shows_examples():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], capture_output=True, text=True, check=True, cwd=cli.ROOT
    )
    assert "examples:" in result.stdout
    assert "Exit codes: 0 pass, 1 regression, 2 usage or environment error, 3 inconclusive" in result.stdout


@pytest.mark.parametrize(("device", "code"), [(15.0, 0), (2.0, 1)])
def test_gate_exits_with_the_verdict(record, device, code, capsys):
    assert cli.main(["gate", record(_whole(device))]) == code
    assert NAME in capsys.readouterr().out


def test_gate_takes_a_part_for_a_pass_only_when_asked_to(record, capsys):
    path = record(make_run(steady()))
    assert cli.main(["gate", path]) == 3
    assert "expected, and not measured" in capsys.readouterr().out
    assert cli.main(["gate", path, "--workload", NAME]) == 0
    assert cli.main(["gate", path, "--quick"]) == 3


def test_gate_exits_3_in_doubt(record):
    assert cli.main(["gate", record(make_run({(NAME, "device_us"): [9.0], (NAME, "call_us"): [4.0]}))]) == 3


def test_report_of_a_regression_exits_0(record, capsys):
    assert cli.main(["report", record(make_run(steady(device=2.0))), "--markdown"]) == 0
    assert "REGRESSION" in capsys.readouterr().out


def test_require_baseline(record, capsys):
    path = record(_whole())
    assert cli.main(["gate", path, "--require-baseline"]) == 2
    assert "baseline: none for NVIDIA Test" in capsys.readouterr().err
    assert cli.main(["baseline", path, "--accept", "--reason", "first"]) == 0
    assert cli.main(["gate", path, "--require-baseline"]) == 0
    stored = results.load_baseline(cli.BASELINES / "nvidia-test.json")
    assert stored.reason == "first"
    assert stored.commit == GPU.commit
    assert stored.entries[NAME]["device_us"].speedup == pytest.approx(15.0, rel=1e-3)
    assert cli.main(["gate", record(_whole(13.0)), "--require-baseline"]) == 1


def test_only_a_clean_run_that_passes_becomes_a_baseline(record, capsys):
    arguments = ["--accept", "--reason", "x"]
    assert cli.main(["baseline", record(_whole(2.0)), *arguments]) == 2
    assert "only a run that passes" in capsys.readouterr().err
    assert cli.main(["baseline", record(make_run(steady())), *arguments]) == 2
    assert "only a run that passes" in capsys.readouterr().err
    dirty = _whole(environment=dataclasses.replace(GPU, dirty=True))
    assert cli.main(["baseline", record(dirty), *arguments]) == 2
    assert "uncommitted changes" in capsys.readouterr().err
    assert not cli.BASELINES.exists()


@pytest.mark.parametrize("content", ["", "{", json.dumps({"kind": "run", "version": 0})])
def test_a_record_that_cannot_be_used_exits_2(tmp_path, content, capsys):
    path = tmp_path / "bad.json"
    path.write_text(content)
    assert cli.main(["gate", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_bench_measures_more_where_in_doubt_and_stops(tmp_path, monkeypatch, capsys):
    """One process leaves doubt; three more decide; the page is published from all of them."""
    asked = []

    def fake_measure(chosen, *, processes, first_process=0, **_):
        asked.append((processes, first_process))
        run = make_run({key: values[:1] * processes for key, values in steady().items()})
        shifted = [dataclasses.replace(one, process=one.process + first_process) for one in run.series]
        checks = [dataclasses.replace(one, process=one.process + first_process) for one in run.checks]
        return dataclasses.replace(run, series=tuple(shifted), checks=tuple(checks))

    monkeypatch.setattr(measure, "measure", fake_measure)
    monkeypatch.setattr(history, "record_and_publish", lambda record, run, judgement, site: site / "index.html")
    output = tmp_path / "latest.json"
    assert cli.main(["bench", "--workload", NAME, "--processes", "1", "--output", str(output)]) == 0
    assert asked == [(1, 0), (3, 1)]
    assert {one.process for one in results.load_run(output).series} == {0, 1, 2, 3}
    assert "index.html" in capsys.readouterr().out


def test_bench_refuses_an_unknown_workload(capsys):
    assert cli.main(["bench", "--workload", "1x1x1"]) == 2
    assert "workload: unknown 1x1x1" in capsys.readouterr().err
