"""Records survive the way to disk and back, and what cannot be trusted is refused with its reason."""

from __future__ import annotations

import dataclasses
import json

import pytest

from benchmarks import results
from benchmarks.results import Baseline, BaselineEntry, RecordError
from tests.records import NAME, make_run, steady


def test_a_run_survives(tmp_path):
    run = make_run(steady())
    path = tmp_path / "deep" / "run.json"
    results.save(run, path)
    assert results.load(results.Run, path) == run
    assert [file.name for file in path.parent.iterdir()] == ["run.json"]


def test_what_further_processes_counted_stands_in_where_no_launch_was_seen():
    def counted(head, base):
        return dataclasses.replace(run, counts={"head": {NAME: {"launches": head}}, "base": {NAME: {"launches": base}}})

    run = dataclasses.replace(make_run(steady()), series=())
    for head, base, found in ((1, 1, (1, 1)), (0, 1, (2, 1)), (1, 0, (1, 2))):
        together = counted(head, base).with_more(counted(2, 2))
        assert tuple(together.counts[side][NAME]["launches"] for side in ("head", "base")) == found


def test_a_baseline_survives(tmp_path):
    entries = {NAME: {"device_us": {"reference": BaselineEntry(15.0, 7.0, 105.0, 0.05)}}}
    baseline = Baseline("NVIDIA Test", "2026-11-23", "a" * 40, "first", "2.11.0", "3.6.0", "580.1", entries)
    path = results.device_path(tmp_path, "NVIDIA H100 80GB HBM3")
    assert path.name == "nvidia-h100-80gb-hbm3.json"
    results.save(baseline, path)
    assert results.load(results.Baseline, path) == baseline


def _break(path, **changes):
    fields = json.loads(path.read_text())
    fields.update(changes)
    path.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_text(""), "damaged"),
        (lambda path: path.write_text(path.read_text()[:500]), "damaged"),
        (lambda path: path.write_text("[" * 200_000), "damaged"),
        (lambda path: path.write_text("[1, 2]"), "not a record of the kind 'run'"),
        (lambda path: _break(path, kind="baseline"), "not a record of the kind 'run'"),
        (lambda path: _break(path, version=99), "format 99; this version reads 5"),
        (lambda path: _break(path, surprise=1), "not a complete record of the kind 'run': surprise"),
        (
            lambda path: _break(path, environment={"device": "x"}),
            "not a complete record of the kind 'run': environment",
        ),
        (lambda path: _spoil(path, "environment", device=["x"]), "environment.device: Input should be a valid string"),
        (lambda path: _spoil(path, "environment", device_type="tpu"), "environment.device_type: .*'cuda' or 'cpu'"),
        (lambda path: _break(path, created="yesterday"), "not a complete record of the kind 'run': .*yesterday"),
        (lambda path: _break(path, clock_methods=None), "clock_methods: Input should be an object"),
        (lambda path: _break(path, workloads="all"), "workloads: Input should be a valid array"),
        (lambda path: _break(path, counts=[1]), "counts: Input should be an object"),
        (lambda path: _break(path, series=[{"workload": NAME}]), "series.0.clock: Field required"),
        (lambda path: _break(path, series=[_series(us=[1.0])]), "expected pairs; got 1 and 2 samples"),
        (lambda path: _break(path, series=[_series(us=[], beside_us=[])]), "expected pairs; got 0 and 0"),
        (
            lambda path: _break(path, series=[_series(us=[1.0, -2.0])]),
            "series.0.us.1: Input should be greater than or equal to 0.001",
        ),
        (lambda path: _break(path, series=[_series(us=[1.0, None])]), "series.0.us.1: Input should be a valid number"),
        (lambda path: _break(path, series=[_series(us=[1.0, True])]), "series.0.us.1: Input should be a valid number"),
        (
            lambda path: _break(path, series=[_series(us=[1.0, 1e999])]),
            "series.0.us.1: Input should be a finite number",
        ),
        (lambda path: _break(path, series=[_series(us=[1.0, 1e-320])]), "series.0.us.1: Input should be greater than"),
        (lambda path: _break(path, series=[_series(), _series()]), "series: expected each once; got .*call_us"),
        (lambda path: _break(path, series=[_series(process="0")]), "series.0.process: Input should be a valid integer"),
    ],
)
def test_what_cannot_be_trusted_is_refused(tmp_path, spoil, message):
    path = tmp_path / "run.json"
    results.save(make_run(steady()), path)
    spoil(path)
    with pytest.raises(RecordError, match=message) as caught:
        results.load(results.Run, path)
    assert str(path) in str(caught.value)


def _spoil(path, of, **changes):
    _break(path, **{of: {**json.loads(path.read_text())[of], **changes}})


def _series(**changes):
    fields = {"workload": NAME, "clock": "call_us", "process": 0, "us": [1.0, 2.0]}
    pair = {"implementation": "fused", "beside": "reference", "beside_us": [3.0, 4.0]}
    return {**fields, **pair, "quiet": True, **changes}


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    results.save(make_run(steady()), path)
    before = path.read_text()
    monkeypatch.setattr(json, "dump", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        results.save(make_run(steady(20.0)), path)
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]
