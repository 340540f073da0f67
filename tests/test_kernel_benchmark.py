"""The kernel-level benchmark: what is measured and refused, its record, table and picture."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import dllm_kernels
from benchmarks import bench_triton_post_process as cli
from benchmarks import implementations, limits, results, table, workloads
from benchmarks.implementations import BLOCK_BY_BLOCK, Implementation
from benchmarks.measure import CALLS
from benchmarks.measure import table as measuring
from benchmarks.measure.bench import Bench, OtherIdsError
from benchmarks.results import Absence, Block, GpuState, KernelTable, Times
from benchmarks.workloads import parse
from tests.conftest import HAS_GPU
from tests.records import GPU

ROOT = Path(__file__).parent.parent
SMALL = "2x4x1500-fp32-50"
WARM = "1x32x157184-bf16-100-warm"
COLD = "1x32x157184-bf16-100"

PEERS = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from dllm_kernels import dllm_post_process_reference as good

@dataclass
class Options:
    blocks: int

def wrong(logits, input_ids, mask_id, threshold):
    input_ids.fill_(3)

def out_of_memory(logits, input_ids, mask_id, threshold):
    raise torch.OutOfMemoryError("no room for it")

def uninstalled(logits, input_ids, mask_id, threshold):
    import package_that_nobody_has

def choosy(logits, input_ids, mask_id, threshold):
    raise ValueError("expected one block")

def broken(logits, input_ids, mask_id, threshold):
    {}["kernel"]

def leaving(logits, input_ids, mask_id, threshold):
    raise SystemExit(3)

seen = set()  # draws of the logits, of which a check has each once

def tiring(logits, input_ids, mask_id, threshold):
    if logits.data_ptr() not in seen:
        seen.add(logits.data_ptr())
        good(logits, input_ids, mask_id, threshold)

def breaking(logits, input_ids, mask_id, threshold):
    if logits.data_ptr() in seen:
        raise KeyError("again")
    seen.add(logits.data_ptr())
    good(logits, input_ids, mask_id, threshold)

def interrupting(logits, input_ids, mask_id, threshold):
    if logits.shape[-1] == 1600:
        raise KeyboardInterrupt
    good(logits, input_ids, mask_id, threshold)

def writing(logits, input_ids, mask_id, threshold):
    good(logits, input_ids, mask_id, threshold)
    logits.zero_()
"""


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    """Without what takes long to compile; and with the garbage collector as it was."""
    others = [Implementation(BLOCK_BY_BLOCK, implementations.block_by_block)]
    monkeypatch.setattr(implementations, "present", lambda: others)
    monkeypatch.setattr(measuring, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(limits, "UNROLL", (4,))
    yield
    gc.unfreeze()
    gc.enable()


@pytest.fixture
def peers(tmp_path):
    path = tmp_path / "peers.py"
    path.write_text(PEERS)
    return path


def run(*arguments, workload=SMALL):
    return cli.main(["--workload", workload, *map(str, arguments)])


# What is measured


def test_the_overview_is_measured_as_far_as_it_can_be_here(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(workloads, "OVERVIEW", (SMALL, f"{SMALL}-warm"))
    path = tmp_path / "table.json"
    assert cli.main(["--overview", "--json", str(path)]) == 0
    record = results.load(KernelTable, path)
    assert set(record.workloads) == {SMALL, f"{SMALL}-warm"} if HAS_GPU else {SMALL}
    assert record.skipped == (() if HAS_GPU else (f"{SMALL}-warm",))
    assert HAS_GPU or f"Left out, because they need a GPU: {SMALL}-warm" in capsys.readouterr().out


def test_it_measures_what_is_right_and_records_it(tmp_path, peers, capsys):
    path = tmp_path / "table.json"
    assert run("--peer", f"{peers}:good", "--json", path) == 0
    printed = capsys.readouterr().out
    record = results.load(KernelTable, path)
    assert record.checked
    assert record.implementations == ("fused", "reference", BLOCK_BY_BLOCK, "peers.good")
    assert record.peers == {"peers.good": hashlib.sha256(peers.read_bytes()).hexdigest()}
    assert set(record.floor_searches[SMALL]) >= {"torch.amax", "torch.sum"}
    times = {(one.implementation, one.clock): one.us for one in record.times}
    for name in (*record.implementations, *record.limits):
        assert len(times[name, "call_us"]) >= 3
        assert name in printed
    assert ("No GPU here" in printed) is not HAS_GPU
    assert str(tmp_path) not in record.command
    assert list(tmp_path.glob("*.part")) == []


def test_show_prints_the_same_table_and_measures_nothing(tmp_path, monkeypatch, capsys):
    path = tmp_path / "table.json"
    assert run("--json", path) == 0
    measured = capsys.readouterr().out.removesuffix(f"Record: {path}\n")
    monkeypatch.setattr(cli, "_measured", None)
    assert cli.main(["--show", str(path)]) == 0
    assert capsys.readouterr().out == measured


def test_a_call_that_has_nothing_to_do_is_measured(tmp_path, capsys):
    path, workload = tmp_path / "table.json", "2x4x1500-fp32-0"
    assert run("--json", path, workload=workload) == 0
    record = results.load(KernelTable, path)
    assert {one.implementation for one in record.times} == {*record.implementations, *record.limits}
    assert table.Sheet(record, workload).gb_per_s("fused") is None
    printed = capsys.readouterr().out
    assert f"{workload}: 0 bytes to be read" in printed
    assert ", as there is nothing to be read" in printed


@pytest.mark.parametrize(("skip", "code"), [((), 1), (("--skip-correctness",), 0)])
def test_a_wrong_peer_is_named_and_not_timed_unless_that_is_asked_for(tmp_path, peers, capsys, skip, code):
    path = tmp_path / "table.json"
    assert run("--peer", f"{peers}:wrong", "--json", path, *skip) == code
    printed = capsys.readouterr().out
    record = results.load(KernelTable, path)
    timed = {one.implementation for one in record.times}
    assert timed >= {"fused", "reference"}
    assert ("peers.wrong" in timed) is bool(skip)
    assert ("peers.wrong: WRONG, no times: " in printed) is not skip
    assert ("ids differ from the reference" in printed) is not bool(skip)
    assert ("NOT CHECKED" in printed) is bool(skip)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out_of_memory", "OutOfMemoryError: no room for it"),
        ("uninstalled", "ModuleNotFoundError: No module named 'package_that_nobody_has'"),
        ("choosy", "ValueError: expected one block"),
        ("broken", "KeyError: 'kernel'"),
        ("leaving", "SystemExit: 3"),
    ],
)
def test_a_peer_that_fails_is_named_and_the_rest_goes_on(tmp_path, peers, capsys, name, message):
    path = tmp_path / "table.json"
    assert run("--peer", f"{peers}:{name}", "--peer", f"{peers}:good", "--json", path) == 0
    assert f"peers.{name}: FAILED, no times: {message}" in capsys.readouterr().out
    timed = {one.implementation for one in results.load(KernelTable, path).times}
    assert timed >= {"fused", "reference", "peers.good"}
    assert f"peers.{name}" not in timed


@pytest.mark.parametrize(
    ("name", "warm_up", "code", "message"),
    [
        ("tiring", True, 1, "WRONG, no times: after it was timed: "),
        ("breaking", True, 0, "FAILED, no times: before it was timed: KeyError: 'again'"),
        ("breaking", False, 0, "FAILED, no times: while it was timed: KeyError: 'again'"),
    ],
)
def test_what_is_right_at_first_and_not_later_has_no_times(
    tmp_path, peers, monkeypatch, capsys, name, warm_up, code, message
):
    """And costs no other its own, which are there once."""
    if not warm_up:
        monkeypatch.setattr(Bench, "warm_up", lambda _: {})
    path = tmp_path / "table.json"
    assert run("--peer", f"{peers}:{name}", "--peer", f"{peers}:good", "--json", path) == code
    assert f"peers.{name}: {message}" in capsys.readouterr().out
    record = results.load(KernelTable, path)
    timed = [one.implementation for one in record.times if one.clock == "call_us"]
    assert sorted(timed) == sorted({*record.implementations, *record.limits} - {f"peers.{name}"})
    assert f"peers.{name}" not in {one.implementation for one in record.times}


@pytest.mark.parametrize(("culprit", "code"), [("peers.tiring", 1), ("peers.good", 2)])
def test_a_block_that_fails_as_a_whole_is_taken_without_what_is_unsound_by_then(
    tmp_path, peers, monkeypatch, capsys, culprit, code
):
    """As CUPTI says of calls that have stopped to do anything. Where all are sound, the failure is not theirs."""
    end = Bench.end

    def fails(bench):
        if culprit in bench.implementations:
            raise RuntimeError("CUPTI reported no GPU activity")
        return end(bench)

    monkeypatch.setattr(Bench, "end", fails)
    path = tmp_path / "table.json"
    assert run("--peer", f"{peers}:tiring", "--peer", f"{peers}:good", "--json", path) == code
    if code == 2:
        assert "error: CUPTI reported no GPU activity" in capsys.readouterr().err
        return
    assert "peers.tiring: WRONG, no times: after it was timed: " in capsys.readouterr().out
    record = results.load(KernelTable, path)
    assert {one.implementation for one in record.times} >= {"fused", "reference", "peers.good"}
    assert [one.clock for one in record.blocks] == list(measuring.TABLE_CALLS[record.environment.device_type])


class _Captures:
    """A bench whose graphs are those of what it is asked for, but for some."""

    def __init__(self, *names, failing=None, not_captured=()):
        self.workload = parse(SMALL)
        self.implementations = dict.fromkeys(names)
        self.failing = failing or {}
        self.no_more = not_captured
        self.not_captured = {}
        self.graphs = []
        self.taken = []

    def begin(self, clock, core, only):
        (name,) = only
        if name in self.failing:
            raise self.failing[name]
        self.not_captured = {name: "no room for it"} if name in self.no_more else {}
        self.graphs += [] if self.not_captured else only
        return self.graphs

    def sample(self, name, calls):
        self.taken += [float(self.graphs.index(name) + 1)] * calls
        return []

    def end(self):
        return self.taken

    def abandon(self):
        self.graphs.clear()
        self.taken.clear()


@pytest.mark.parametrize("clock", results.GRAPH_CLOCKS)
def test_whose_capture_fails_is_known(clock):
    bench = _Captures("fused", "breaking", "floor", failing={"breaking": KeyError("again")})
    with pytest.raises(measuring._TurnError) as failed:
        measuring._Table("cuda", None, None, (), True, 0)._begin(bench, clock)
    assert (failed.value.name, str(failed.value.error)) == ("breaking", "'again'")


def test_a_peer_is_first_called_where_most_is_masked(tmp_path):
    """It may tune itself then, for all calls to come."""
    (tmp_path / "peer.py").write_text(
        "masked = []\n"
        "def noting(logits, ids, mask_id, threshold):\n"
        "    masked.append(int((ids == mask_id).sum()))\n"
        "    assert masked[0] == 8, masked\n"
        "    from dllm_kernels import dllm_post_process_reference as step\n"
        "    step(logits, ids, mask_id, threshold)\n"
    )
    path = tmp_path / "table.json"
    names = [f"2x4x1600-fp32-{percent}" for percent in (0, 50, 100)]
    chosen = [argument for name in names for argument in ("--workload", name)]
    assert run(*chosen, "--peer", f"{tmp_path / 'peer.py'}:noting", "--json", path) == 0
    record = results.load(KernelTable, path)
    assert record.workloads == (names[2], SMALL, names[1], names[0])
    assert record.absences == ()


def test_what_had_ended_before_an_interrupt_is_kept(tmp_path, peers, capsys):
    path = tmp_path / "table.json"
    arguments = ("--workload", "2x4x1600-fp32-50", "--peer", f"{peers}:interrupting")
    assert run(*arguments, "--json", path) == 130
    assert f"interrupted; what had ended is in {path}, if anything" in capsys.readouterr().err
    record = results.load(KernelTable, path)
    assert record.workloads == (SMALL, "2x4x1600-fp32-50")
    assert record.absences == (
        Absence("2x4x1600-fp32-50", results.INPUTS, "failed", "not reached: the measurement ended before"),
    )
    assert {one.implementation for one in record.times} >= {"fused", "reference", "peers.interrupting"}
    assert list(tmp_path.glob("*.part")) == []
    assert run(*arguments) == 130
    assert "interrupted; what was measured is lost" in capsys.readouterr().err


def test_a_peer_that_writes_the_logits_is_wrong(tmp_path, peers, capsys):
    path = tmp_path / "table.json"
    assert run("--peer", f"{peers}:writing", "--peer", f"{peers}:good", "--json", path) == 1
    assert "peers.writing: WRONG, no times: it writes the logits" in capsys.readouterr().out
    timed = {one.implementation for one in results.load(KernelTable, path).times}
    assert timed >= {"fused", "reference", "peers.good"}
    assert "peers.writing" not in timed


@pytest.mark.parametrize("name", ["dllm_post_process_fused", "dllm_post_process_reference"])
def test_without_fused_or_reference_it_exits_1(monkeypatch, capsys, name):
    def fails(*_, **__):
        raise RuntimeError("not today")

    monkeypatch.setattr(dllm_kernels, name, fails)
    assert run() == 1
    assert f"{name.removeprefix('dllm_post_process_')}: FAILED, no times: RuntimeError" in capsys.readouterr().out


def test_a_fused_that_is_wrong_exits_1(monkeypatch, capsys):
    monkeypatch.setattr(dllm_kernels, "dllm_post_process_fused", lambda *_, **__: None)
    assert run() == 1
    assert "fused: WRONG, no times: " in capsys.readouterr().out


def test_inputs_that_do_not_fit_are_named(monkeypatch, capsys):
    def fails(*_, **__):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(workloads, "make_inputs", fails)
    assert run() == 1
    assert "the inputs: FAILED, no times: OutOfMemoryError: no room" in capsys.readouterr().out


def test_after_what_ends_the_use_of_the_gpu_there_is_no_rest(tmp_path, peers, monkeypatch, capsys):
    """As an address where no memory is does. What was measured of the workloads before is kept."""

    def fails(bench, name, error):
        assert name == "peers.breaking"
        if bench.workload.name == "2x4x1600-fp32-50":
            raise measuring._GpuLostError(f"nothing runs any more after {name} failed")

    monkeypatch.setattr(measuring, "_expect_gpu", fails)
    path, others = tmp_path / "table.json", ["2x4x1600-fp32-50", "2x4x1700-fp32-50"]
    more = [argument for name in others for argument in ("--workload", name)]
    assert run(*more, "--peer", f"{peers}:breaking", "--json", path) == 1
    printed = capsys.readouterr().out
    assert printed.count("the inputs: FAILED, no times: nothing runs any more after peers.breaking failed") == 2
    record = results.load(KernelTable, path)
    assert {one.workload for one in record.times} == {SMALL}
    assert [one.workload for one in record.absences if one.implementation == results.INPUTS] == others


def test_whether_the_gpu_is_lost_is_asked_of_the_gpu():
    def fails():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    error = RuntimeError("CUDA error: an illegal memory access was encountered\nFor debugging consider")
    measuring._expect_gpu(_OnAGpu(), "peer", error)
    lost = _OnAGpu()
    lost.torch = SimpleNamespace(cuda=SimpleNamespace(synchronize=fails))
    for why in (error, AssertionError()):  # which may say nothing
        with pytest.raises(measuring._GpuLostError, match=f"after peer failed; measure again .*{type(why).__name__}"):
            measuring._expect_gpu(lost, "peer", why)


@pytest.mark.gpu
@pytest.mark.parametrize("calls", [0, 400])
def test_a_peer_that_reads_where_no_memory_is_costs_only_what_comes_after(tmp_path, calls):
    """At once, or while it is timed; in a process of its own, whose use of the GPU it ends."""
    path, peer = tmp_path / "table.json", tmp_path / "peer.py"
    peer.write_text(f"""
import torch
from dllm_kernels import dllm_post_process_reference

left = {{32: {calls}, 16: 10**9}}

def reckless(logits, input_ids, mask_id, threshold):
    dllm_post_process_reference(logits, input_ids, mask_id, threshold)
    left[logits.shape[1]] -= 1
    if left[logits.shape[1]] < 0:
        torch.zeros(1, device="cuda")[torch.full((1,), 10**9, device="cuda")]
""")
    quickly = (
        "import sys; from benchmarks import bench_triton_post_process as cli, implementations, limits; "
        "from benchmarks.measure import table; implementations.present = list; limits.UNROLL = (4,); "
        "table.MAX_SECONDS = 0.2; sys.exit(cli.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", quickly, "--workload", "1x16x3000-fp16-100", "--workload", "1x32x3000-fp16-100",
         "--workload", "1x16x4000-fp16-100", "--peer", f"{peer}:reckless", "--json", path],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    record = results.load(KernelTable, path)
    assert {one.workload for one in record.times} == {"1x16x3000-fp16-100"}
    lost = [one for one in record.absences if one.implementation == results.INPUTS]
    assert [one.workload for one in lost] == ["1x32x3000-fp16-100", "1x16x4000-fp16-100"]
    assert "after peer.reckless failed" in lost[0].detail


# Graphs


class _OnAGpu:
    """A bench that says it is on a GPU, where some calls wait and a graph of some leaves other ids."""

    device = "cuda"
    torch = SimpleNamespace(cuda=SimpleNamespace(synchronize=lambda: None))

    def __init__(self):
        self.workload = parse(SMALL)
        self.implementations = {}
        self.not_captured = {}

    def wait_of(self, name):
        return "cudaStreamSynchronize" if name == "waits" else ""

    def begin(self, clock):
        assert clock == "graph_us"
        (name,) = self.implementations
        assert name != "waits", "PyTorch does not recover from a capture that failed"
        if name == "differs":
            raise OtherIdsError("in a CUDA graph, differs leaves other ids")
        self.not_captured = {"allocates": "operation not permitted"} if name == "allocates" else {}

    def abandon(self):
        pass


def test_what_no_graph_can_hold_is_named_with_the_reason():
    bench, kept = _OnAGpu(), measuring._Table("cuda", None, None, (), True, 0)
    everything = dict.fromkeys(("fused", "waits", "differs", "allocates", "floor"))
    assert list(kept._capturable(bench, everything)) == ["fused", "floor"]
    assert [(one.implementation, one.kind, one.detail) for one in kept.absences] == [
        ("waits", "not captured", "its call waits for the GPU (cudaStreamSynchronize)"),
        ("differs", "wrong", "OtherIdsError: in a CUDA graph, differs leaves other ids"),
        ("allocates", "not captured", "operation not permitted"),
    ]


def test_a_table_has_a_clock_more_than_a_run():
    runs, tables = CALLS["cuda"], measuring.TABLE_CALLS["cuda"]
    assert list(tables) == [*runs, "replay_us"]
    assert set(tables) == set(table.CLOCKS) - {"host_us"}, "which is read with call_us"
    assert set(measuring.TABLE_CLOCK_METHODS["cuda"]) == set(table.CLOCKS)
    assert "CUDA graph of one call" in measuring.TABLE_CLOCK_METHODS["cuda"]["replay_us"]
    assert measuring.TABLE_CALLS["cpu"] == CALLS["cpu"]


def test_what_a_graph_can_hold_is_replayed_on_both_clocks_of_graphs(monkeypatch):
    """And all but it is told once, and called on the others."""
    bench, kept, taken = _OnAGpu(), measuring._Table("cuda", None, None, (), True, 0), []
    bench.draws = [torch.zeros(1)]
    bench.implementations = dict.fromkeys(("fused", "reference", "waits"))
    monkeypatch.setattr(kept, "_is_sound", lambda *_: True)
    monkeypatch.setattr(kept, "_warm_up", lambda _: None)
    monkeypatch.setattr(kept, "_drop_unsound", lambda _: False)
    monkeypatch.setattr(kept, "_fastest_reader", lambda _: None)
    monkeypatch.setattr(limits, "others", lambda _: dict.fromkeys((limits.EMPTY_KERNEL, limits.PLAIN_CALL)))

    def block(bench, clock, _):
        taken.append((clock, list(bench.implementations)))
        if clock == "graph_us":
            kept._drop(bench, "reference", "failed", "no more", when="")

    monkeypatch.setattr(kept, "_block", block)
    kept._take_turns(bench)
    bounds = [limits.FLOOR, limits.EMPTY_KERNEL, limits.PLAIN_CALL]
    assert taken == [
        ("device_us", ["fused", "reference", "waits", *bounds]),
        ("call_us", ["fused", "reference", "waits", *bounds]),
        ("graph_us", ["fused", "reference", *bounds]),
        ("replay_us", ["fused", *bounds]),
    ]
    assert [one.kind for one in kept.absences if one.implementation == "waits"] == ["not captured"]


def test_replays_are_kept_under_their_clock_of_all_that_was_captured():
    """And what was captured before and has no graph of every draw is told, and timed on the others."""
    bench = _Captures("fused", "peer", limits.FLOOR, not_captured=("peer",))
    kept = measuring._Table("cuda", None, None, (), True, 0)
    kept.timed = dict(bench.implementations)
    kept._block(bench, "replay_us", random.Random(0))
    turns = measuring.TURNS_A_BLOCK["replay_us"]
    assert sorted((one.implementation, one.clock, one.us) for one in kept.times) == [
        ("floor", "replay_us", (2.0,) * turns),
        ("fused", "replay_us", (1.0,) * turns),
    ]
    assert kept.absences == [Absence(SMALL, "peer", "not captured", "no room for it")]
    assert list(kept.timed) == ["fused", "peer", limits.FLOOR]


def test_a_graph_of_a_draw_that_leaves_other_ids_is_wrong_and_costs_no_other_its_times(monkeypatch):
    monkeypatch.setattr(measuring, "_expect_gpu", lambda *_: None)
    bench = _Captures("fused", "peer", failing={"peer": OtherIdsError("in a CUDA graph, peer leaves other ids")})
    kept = measuring._Table("cuda", None, None, (), True, 0)
    kept.timed = dict(bench.implementations)
    kept.times = [Times(SMALL, name, "call_us", (1.0,), True) for name in bench.implementations]
    kept._block(bench, "replay_us", random.Random(0))
    assert [(one.implementation, one.clock) for one in kept.times] == [("fused", "call_us"), ("fused", "replay_us")]
    assert [(one.implementation, one.kind) for one in kept.absences] == [("peer", "wrong")]
    assert list(kept.timed) == ["fused"]


@pytest.mark.parametrize(
    ("calm", "kept_us", "quiet"),
    [
        ([1, 0, 1, 1, 0, 1, 1, 1], [(1, 3, 4), (6, 7, 8)], True),
        ([1, 0, 1, 1, 0, 1, 1, 0], [(1, 2, 3, 4, 5), (6, 7, 8)], False),
    ],
)
def test_calls_that_waited_for_a_processor_do_not_count(calm, kept_us, quiet):
    """Of one as of the other, or they would not compare."""
    kept = measuring._Table("cpu", None, None, (), True, 0)
    order = ["fused"] * 5 + ["reference"] * 3
    kept._keep(SMALL, "call_us", order, map(float, range(1, 9)), list(map(bool, calm)))
    assert [(one.implementation, one.us, one.quiet) for one in kept.times] == [
        ("fused", kept_us[0], quiet),
        ("reference", kept_us[1], quiet),
    ]


# Table and picture


# Of the device's time.
SHARES = {"device_us": 1.0, "graph_us": 0.5, "call_us": 3.0, "replay_us": 1.5, "host_us": 2.0}


def gpu_table(**changes):
    """Fused at twice the floor's time cold, three times warm; the formula is not captured."""
    us = {"fused": 10.0, "reference": 100.0, BLOCK_BY_BLOCK: 200.0, limits.FLOOR: 5.0, limits.EMPTY_KERNEL: 1.0}
    times = [
        Times(workload, name, clock, (value * 0.9, value, value, value, value * 1.1), True)
        for workload in (COLD, WARM)
        for clock, share in SHARES.items()
        for name, value in ((n, v * share * (1.5 if (n, workload) == ("fused", WARM) else 1.0)) for n, v in us.items())
        if name != BLOCK_BY_BLOCK or clock not in results.GRAPH_CLOCKS
    ]
    reason = "its call waits for the GPU (cudaStreamSynchronize)"
    throttled = GpuState(1200, 2600, 90, 690.0, ("power cap",), 0)
    fields = {
        "created": "2026-11-24T10:00:00+00:00", "command": "python -m benchmarks.bench_triton_post_process",
        "seconds": 9.0, "seed": 0,
        "environment": GPU, "checked": True, "workloads": (COLD, WARM), "skipped": (),
        "implementations": ("fused", "reference", BLOCK_BY_BLOCK), "peers": {},
        "limits": (limits.FLOOR, limits.EMPTY_KERNEL), "clock_methods": dict.fromkeys(table.CLOCKS, ""),
        "floor_searches": {COLD: {"torch.amax": 6.0, "maxima": 5.0}, WARM: {"torch.amax": 2.0}},
        "times": tuple(times),
        "absences": tuple(Absence(name, BLOCK_BY_BLOCK, "not captured", reason) for name in (COLD, WARM)),
        "blocks": (Block(COLD, 0, "call_us", throttled.fault, throttled),),
    }  # fmt: skip
    return KernelTable(**{**fields, **changes})


def test_the_floor_and_fused_are_held_on_the_same_clock():
    """Cold, on the device's and in a graph; warm, in a graph alone."""
    cold, warm = table.Sheet(gpu_table(), COLD), table.Sheet(gpu_table(), WARM)
    assert cold.floor_clocks == ("device_us", "graph_us")
    assert warm.floor_clocks == ("graph_us",)
    assert cold.above_floor("fused", "device_us") == pytest.approx((5.0, 2.0))
    assert cold.above_floor(BLOCK_BY_BLOCK, "graph_us") is None
    assert warm.above_floor("fused", "graph_us") == pytest.approx((5.0, 3.0))
    assert cold.share_of_limit("fused") == pytest.approx(0.5)
    assert warm.share_of_limit("fused") == pytest.approx(1 / 3)


def test_speedups_and_bandwidth():
    sheet = table.Sheet(gpu_table(), COLD)
    assert sheet.speedup("fused", "reference", "device_us") == pytest.approx(10)
    assert sheet.speedup("fused", BLOCK_BY_BLOCK, "call_us") == pytest.approx(20)
    assert sheet.speedup("fused", "reference", "replay_us") == pytest.approx(10)
    assert sheet.speedup("fused", BLOCK_BY_BLOCK, "replay_us") is None
    assert sheet.gb_per_s("fused") == pytest.approx(32 * 157184 * 2 / 10e-6 / 1e9)


def test_the_table_tells_what_is_missing_and_why(tmp_path, capsys):
    results.save(gpu_table(), tmp_path / "table.json")
    assert cli.main(["--show", str(tmp_path / "table.json")]) == 0
    printed = capsys.readouterr().out
    assert f"¹ {BLOCK_BY_BLOCK}: not timed in a graph: its call waits for the GPU" in printed
    assert "floor: maxima, the fastest of 2 ways" in printed
    assert "call_us: the GPU was throttled: power cap; do not rely on these" in printed
    (fused, _) = [line for line in printed.splitlines() if line.startswith("│ fused")]
    assert [cell.strip() for cell in fused.strip("│").split("│")] == [
        "fused", "10.0 ±0.0%", "5.00 ±0.0%", "30.0 ±0.0%", "15.0 ±0.0%", "20.0 ±0.0%", "10.0, 10.0, 10.0", "20.0, 20.0",
        "1,006.0", "+5.0, 2.00x", "+2.5, 2.00x",
    ]  # fmt: skip
    (formula, _) = [line for line in printed.splitlines() if line.startswith(f"│ {BLOCK_BY_BLOCK}")]
    assert [cell.strip() for cell in formula.strip("│").split("│")] == [
        BLOCK_BY_BLOCK, "200 ±0.0%", "-¹", "600 ±0.0%", "-¹", "400 ±0.0%", "0.500, 0.500, -", "1.00, 1.00", "50.3",
        "+195.0, 40.00x", "-",
    ]  # fmt: skip
    assert max(len(line) for line in printed.splitlines() if line.startswith("│")) <= 180


def test_a_record_from_before_there_were_replays_is_shown_without(tmp_path, capsys):
    new = gpu_table()
    old = gpu_table(
        clock_methods={clock: how for clock, how in new.clock_methods.items() if clock != "replay_us"},
        times=tuple(one for one in new.times if one.clock != "replay_us"),
    )
    results.save(old, tmp_path / "table.json")
    assert cli.main(["--show", str(tmp_path / "table.json")]) == 0
    printed = capsys.readouterr().out
    assert "replay_us" not in printed
    (fused, _) = [line for line in printed.splitlines() if line.startswith("│ fused")]
    assert [cell.strip() for cell in fused.strip("│").split("│")][3:7] == [
        "30.0 ±0.0%", "20.0 ±0.0%", "10.0, 10.0", "20.0, 20.0",
    ]  # fmt: skip


def test_a_record_keeps_every_field_and_refuses_another(tmp_path):
    path = tmp_path / "table.json"
    results.save(gpu_table(), path)
    assert results.load(KernelTable, path) == gpu_table()
    path.write_text(path.read_text().replace('"version": 1', '"version": 0'))
    with pytest.raises(results.RecordError, match="this version reads 1"):
        results.load(KernelTable, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": []}, f"times: expected some of each workload, or an absence that says why not; got none of {COLD}"),
        ({"workloads": []}, "workloads: "),
    ],
)
def test_a_record_without_times_says_why_or_is_refused(tmp_path, capsys, changes, message):
    path = tmp_path / "table.json"
    results.save(gpu_table(times=()), path)  # the formula is not captured, and told so
    assert cli.main(["--show", str(path)]) == 0
    path.write_text(json.dumps({**json.loads(path.read_text()), "absences": [], **changes}))
    assert cli.main(["--show", str(path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_picture_is_drawn(tmp_path, ending, start, capsys):
    pytest.importorskip("matplotlib")
    results.save(gpu_table(), tmp_path / "table.json")
    picture = tmp_path / "new" / f"table.{ending}"
    assert cli.main(["--show", str(tmp_path / "table.json"), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(start)
    assert picture.stat().st_size > 5000
    assert f"Picture: {picture}" in capsys.readouterr().out


def test_a_picture_that_cannot_be_drawn_leaves_the_one_that_was_there(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")

    def half(self, path, **_):
        Path(path).write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(figure.Figure, "savefig", half)
    results.save(gpu_table(), tmp_path / "table.json")
    picture = tmp_path / "table.svg"
    picture.write_text("before")
    assert cli.main(["--show", str(tmp_path / "table.json"), "--plot", str(picture)]) == 2
    assert picture.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.json", "table.svg"]


# The command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "1x1x1"], "error: workload: expected blocks x positions x vocabulary"),
        (
            ["--workload", SMALL, "--peer", "none.py:f"],
            "error: --peer: expected FILE.py:FUNCTION of a file",
        ),
        (["--workload", SMALL, "--peer", f"{__file__}"], "error: --peer: expected FILE.py:FUNCTION"),
        (["--workload", SMALL, "--peer", f"{ROOT / 'tests' / 'calls.py'}:none"], "error: --peer: expected calls.py to"),
        (["--workload", SMALL, "--plot", "table.pdf"], "error: --plot: expected a file that ends in .png or .svg"),
        (
            ["--workload", SMALL, "--plot", f"{__file__}/table.svg"],
            "error: --plot: expected a file that can be written",
        ),
        (["--show", "none.json"], "error: none.json: cannot be read"),
    ],
)
def test_what_cannot_be_done_exits_2_before_anything_is_measured(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(measuring, "measure_table", None)
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("import package_that_nobody_has", "ModuleNotFoundError: No module named 'package_that_nobody_has'"),
        ("f = = 1", "SyntaxError: "),
        ("{}[1]", "KeyError: 1"),
        ("raise SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_a_peer_that_cannot_be_imported_exits_2(tmp_path, capsys, line, error):
    broken = tmp_path / "broken.py"
    broken.write_text(f"{line}\n")
    assert run("--peer", f"{broken}:f") == 2
    assert f"error: --peer: broken.py cannot be imported: {error}" in capsys.readouterr().err


def test_a_peer_that_is_given_twice_exits_2(peers, capsys):
    assert run("--peer", f"{peers}:good", "--peer", f"{peers}:good") == 2
    assert "expected each name once" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    ["--show a --quick", "--overview --quick", "--show a --peer b.py:f", "--show a --seed 0", "--ncu a --plot b.png"],
)
def test_options_that_exclude_each_other_exit_2(arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments.split())
    assert stopped.value.code == 2


@pytest.mark.parametrize("seed", ["99999999999999999999999", "-1", "2.5"])
def test_a_seed_that_no_generator_takes_is_refused(capsys, seed):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--seed", seed])
    assert stopped.value.code == 2
    assert f"argument --seed: expected a whole number from 0 to 2**63 - 1; got '{seed}'" in capsys.readouterr().err


@pytest.mark.skipif(HAS_GPU, reason="needs a machine without a GPU")
@pytest.mark.parametrize("workload", [(), (SMALL,)], ids=["the default", "a name"])
def test_nsight_compute_needs_a_gpu(capsys, workload):
    assert cli.main(["--ncu", *workload]) == 2
    assert "error: --ncu: expected a CUDA GPU to profile on; there is none here" in capsys.readouterr().err


@pytest.mark.parametrize("how", [[str(ROOT / "benchmarks" / "bench_triton_post_process.py")], ["-m", cli.MODULE]])
def test_help_shows_examples_however_it_is_started(tmp_path, how):
    folder = tmp_path if how[0] != "-m" else ROOT
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *how, "--help"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout
    assert "ncu --profile-from-start off --clock-control none" in done.stdout
