"""Measuring: what a worker emits, that wrong results are caught before timing, and how GPU time is summed up."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import dllm_kernels
from benchmarks import measure, results, workloads
from benchmarks.workloads import Workload
from tests.records import CPU

TINY = Workload(2, 4, 1500, "fp32", 50)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(workloads.WORKLOADS, TINY.name, TINY)
    monkeypatch.setattr(measure, "PAIRS", {"cuda": 4, "cpu": 4})
    monkeypatch.setattr(measure, "_waited_ns", lambda: 0)  # whatever else runs here
    return TINY


def _events(name):
    events = []
    measure.run_worker({"workloads": [name], "process": 2, "seed": 5}, events.append)
    return events


def test_a_worker_checks_before_it_times(tiny):
    events = _events(tiny.name)
    kinds = [event["event"] for event in events]
    assert kinds[:3] == ["environment", "begin", "check"]
    assert events[2]["check"]["passed"]
    series = [event["series"] for event in events if event["event"] == "series"]
    assert "call_us" in {one["clock"] for one in series}
    for one in series:
        assert one["process"] == 2
        assert len(one["fused"]) == len(one["reference"]) >= measure.MIN_PAIRS
        assert min(one["fused"] + one["reference"]) > 0


WRONG = {
    "does nothing": lambda *_, **__: None,
    "another token": lambda logits, ids, mask_id, threshold, **outputs: _call(
        logits.roll(1, -1), ids, mask_id, threshold, outputs
    ),
    "half the confidence": lambda logits, ids, mask_id, threshold, **outputs: _call(
        logits / 2, ids, mask_id, threshold, outputs
    ),
    "another threshold": lambda logits, ids, mask_id, threshold, **outputs: _call(logits, ids, mask_id, 0.3, outputs),
}


def _only_with_outputs(logits, ids, mask_id, threshold, **outputs):
    if outputs:
        _call(logits, ids, mask_id, threshold, outputs)


WRONG["nothing where no outputs are asked for"] = _only_with_outputs


def _call(logits, ids, mask_id, threshold, outputs):
    dllm_kernels.dllm_post_process_reference(logits, ids, mask_id, threshold, **outputs)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_results_are_never_timed(tiny, monkeypatch, name):
    monkeypatch.setattr(dllm_kernels, "dllm_post_process_fused", WRONG[name])
    events = _events(tiny.name)
    (check,) = [event["check"] for event in events if event["event"] == "check"]
    assert not check["passed"]
    assert not [event for event in events if event["event"] == "series"]


def test_an_undecidable_row_excuses_its_own_block_only(tiny, monkeypatch):
    bench = measure._Bench(tiny, "cpu", 0)
    first = bench.draws[0][0].softmax(-1).amax(-1)[bench.prepared[0] == tiny.mask_id][0]
    monkeypatch.setattr(workloads, "THRESHOLD", float(first))  # a row of the first block lies at the threshold
    for block, passes in [(0, True), (1, False)]:

        def leaves_masks(logits, ids, *arguments, block=block, **outputs):
            before = ids.clone()
            dllm_kernels.dllm_post_process_reference(logits, ids, *arguments, **outputs)
            ids[block] = before[block]

        bench.implementations["fused"] = leaves_masks
        assert bench.check()[0] is passes


def test_pairs_taken_while_others_ran_are_left_out(tiny, monkeypatch):
    """Every other pair waits for a processor. If all do, they are better than none."""
    bench = measure._Bench(tiny, "cpu", 0)
    taken = iter(range(10**6))
    clock = iter(range(10**6))
    monkeypatch.setattr(measure, "_waited_ns", lambda: 10**9 * ((next(clock) + 1) // 4))
    fused, _ = bench._pairs(lambda *_: (0.0, float(next(taken))))
    assert [int(call) // 2 % 2 for _, call in fused] == [0, 0, 0, 0]
    monkeypatch.setattr(measure, "_waited_ns", lambda: 10**9 * next(clock))
    monkeypatch.setattr(measure, "SECONDS", {"cuda": 0.01, "cpu": 0.01})
    fused, reference = bench._pairs(lambda *_: (0.0, 1.0))
    assert len(fused) == len(reference) >= measure.MIN_PAIRS


def test_waiting_for_a_processor_is_seen():
    """Two busy threads on one processor: each waits for the other."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("the test pins processors, which this system cannot")
    code = (
        "import os, sys, time, threading; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "other = os.fork()\n"
        "end = time.monotonic() + 0.5\n"
        "while time.monotonic() < end: pass\n"
        "if other:\n"
        "    os.waitpid(other, 0)\n"
        "    from benchmarks.measure import _waited_ns\n"
        "    print(_waited_ns())\n"
    )
    root = Path(measure.__file__).parent.parent
    printed = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert int(printed) > 50e6


def test_fresh_processes_make_a_record(tmp_path):
    """Through real workers, one small workload: the record holds every process and says where it ran."""
    chosen, _ = workloads.select(["1x32x50257-fp16-100"], gpu=False)
    lines = []
    run = measure.measure(chosen, processes=2, first_process=3, progress=lines.append)
    assert {check.process for check in run.checks} == {3, 4}
    assert {one.process for one in run.series} <= {3, 4}  # where other work ran, none
    assert len(lines) == 2
    assert run.environment.torch
    assert all(check.passed for check in run.checks)
    results.save_run(run, tmp_path / "run.json")
    assert results.load_run(tmp_path / "run.json") == run


def _fake_worker(monkeypatch, tmp_path, body):
    worker = tmp_path / "worker.py"
    worker.write_text(f"import json, sys\n{body}")
    monkeypatch.setattr(measure, "WORKER", worker)


def test_a_failed_worker_is_an_error_that_shows_its_output(monkeypatch, tmp_path):
    _fake_worker(monkeypatch, tmp_path, "sys.exit('out of memory')")
    with pytest.raises(RuntimeError, match="exit code 1(.|\n)*out of memory"):
        measure.measure([TINY], processes=1)


def test_a_talkative_worker_is_not_stopped_by_a_full_pipe(monkeypatch, tmp_path):
    environment = json.dumps({"event": "environment", "environment": dataclasses.asdict(CPU)})
    _fake_worker(monkeypatch, tmp_path, f"sys.stderr.write('x' * 2**20)\nprint({environment!r})")
    assert measure.measure([], processes=1).environment == CPU


def test_a_checkout_that_changes_while_measured_is_an_error(monkeypatch, tmp_path):
    fields = json.dumps(dataclasses.asdict(CPU))
    body = (
        f"fields = json.loads({fields!r})\n"
        "fields['commit'] = str(json.loads(sys.argv[1])['process'])\n"
        "print(json.dumps({'event': 'environment', 'environment': fields}))"
    )
    _fake_worker(monkeypatch, tmp_path, body)
    assert measure.measure([], processes=1).environment.commit == "0"
    with pytest.raises(RuntimeError, match=r"the checkout changed: .*commit='0'.*commit='1'"):
        measure.measure([], processes=2)


def _event(name, start, duration, *, gpu):
    from torch._C._autograd import DeviceType

    return SimpleNamespace(
        name=lambda: name,
        start_ns=lambda: start,
        duration_ns=lambda: duration,
        device_type=lambda: DeviceType.CUDA if gpu else DeviceType.CPU,
    )


def test_gpu_time_is_that_of_the_range_it_falls_into():
    events = [
        _event("sample 0", 1000, 500, gpu=False),
        _event("sample 1", 2000, 500, gpu=False),
        _event("cudaLaunchKernel", 1010, 10, gpu=False),
        _event("kernel", 1100, 50, gpu=True),
        _event("kernel", 1200, 30, gpu=True),
        _event("prepare ids", 1800, 999, gpu=True),
        _event("sample 1", 2000, 400, gpu=True),
        _event("Memcpy", 2100, 70, gpu=True),
    ]
    assert measure.device_us_of_ranges(events, "sample ", 2) == [0.08, 0.07]
    with pytest.raises(RuntimeError, match="no GPU activity for 1 of 3 calls"):
        measure.device_us_of_ranges(events, "sample ", 3)


def test_commit_of_a_checkout_and_of_none(tmp_path, monkeypatch):
    monkeypatch.delenv("DLLM_KERNELS_COMMIT", raising=False)
    assert measure.commit_of(tmp_path) == (None, True)
    monkeypatch.setenv("DLLM_KERNELS_COMMIT", "abc")
    assert measure.commit_of(tmp_path) == ("abc", False)


def test_a_record_tells_its_command_and_no_path_of_the_machine():
    assert measure._command(["run", "--output", "/home/me/run.json"]) == "python -m benchmarks run --output run.json"
