"""Measuring: what a worker emits, and that wrong results are caught before timing."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

import dllm_kernels
from benchmarks import machine_code, measure, results, workloads
from benchmarks.measure import bench as measuring
from benchmarks.measure import machine
from benchmarks.measure.bench import Bench, open_bench, waits
from benchmarks.results import GpuState
from benchmarks.workloads import Workload

TINY = Workload(2, 4, 1500, "fp32", 50)
LONG = "128x32x157184-bf16-100"


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(workloads.WORKLOADS, TINY.name, TINY)
    return TINY


class _InThisProcess:
    """A worker without a process, so that a test can reach into it."""

    def __init__(self):
        self.asked = []

    def ask(self, do, **arguments):
        self.send(do, **arguments)
        return self.receive()

    def send(self, do, **arguments):
        self.asked.append(do)
        if do == "open":
            self.bench = open_bench(**arguments)
            self.inputs = self.bench.draws[0] if isinstance(self.bench, Bench) else None
            self.reply = self.bench.check()
        else:
            self.reply = getattr(self.bench, do)(**arguments)

    def receive(self):
        return self.reply


def _conduct(*sides, clocks=None):
    conductor = measure._Conductor("cuda" if torch.cuda.is_available() else "cpu", 5, None, clocks)
    workers = {side: _InThisProcess() for side in sides}
    conductor.measure_workload(TINY, {2: workers})
    return conductor, workers


def test_results_are_checked_and_times_settle_before_any_is_kept(tiny):
    conductor, workers = _conduct("head")
    first = [command for command in workers["head"].asked if command != "counts"][:3]
    assert first == ["open", "warm_up", "begin"]
    assert [check.passed for check in conductor.checks] == [True]
    assert {one.clock for one in conductor.series} >= {"call_us"}
    for one in conductor.series:
        assert (one.workload, one.process, one.implementation, one.beside) == (TINY.name, 2, "fused", "reference")
        assert len(one.us) == len(one.beside_us) >= measure.MIN_TURNS
        assert min(one.us + one.beside_us) > 0


def test_a_further_look_measures_the_clock_in_doubt_alone(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for asked, clocks in (({"call_us"}, {"call_us"}), ({"device_us"}, set()), ({"count"}, set())):
        conductor, _ = _conduct("head", clocks={TINY.name: asked})
        assert {one.clock for one in conductor.series} == clocks
        (check,) = conductor.checks
        assert check.passed
        assert {clock for clock in ("call_us", "device_us", "count") if check.covers(clock)} == asked


def test_head_and_base_are_sampled_in_lock_step(tiny, monkeypatch):
    """Both sides see the same inputs; fused is held beside base's fused and base's reference."""
    # Both sides are in this process here, and a process has one CUPTI.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    conductor, workers = _conduct("head", "base")
    assert workers["head"].inputs.equal(workers["base"].inputs)
    pairs = {(one.implementation, one.beside) for one in conductor.series if one.clock == "call_us"}
    assert pairs == {("fused", "base fused"), ("fused", "base reference"), ("reference", "base reference")}


def test_the_order_in_pairs_is_random_and_repeatable(tiny):
    orders = []
    for _ in range(2):
        taken = []

        class Spy(_InThisProcess):
            def send(self, do, *, taken=taken, **arguments):
                if do == "sample":
                    taken.append(arguments["implementation"])
                super().send(do, **arguments)

        conductor = measure._Conductor("cpu", 5, None)
        conductor.measure_workload(TINY, {2: {"head": Spy()}})
        orders.append(taken[:8])
    assert orders[0] == orders[1]
    assert orders[0] != ["fused", "reference"] * 4
    for first, second in zip(orders[0][0::4], orders[0][2::4], strict=True):  # of two turns
        assert first != second


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
    conductor, workers = _conduct("head")
    assert [check.passed for check in conductor.checks] == [False]
    assert conductor.series == []
    assert workers["head"].asked == ["open", "close"]


def test_a_changed_reference_is_a_failed_check():
    """Head may not make itself faster by another specification."""
    replies = {
        "head": {"passed": True, "detail": "equal", "digest": "1"},
        "base": {"passed": True, "detail": "equal", "digest": "2"},
    }
    check = measure._check_of(TINY.name, 0, replies)
    assert not check.passed
    assert not check.base_alone
    assert "the operation itself was changed" in check.detail


@pytest.mark.parametrize("head_passes", [True, False])
def test_whose_result_is_wrong_is_noted(head_passes):
    replies = {
        "head": {"passed": head_passes, "detail": "of head", "digest": "1"},
        "base": {"passed": False, "detail": "2 ids differ", "digest": "1"},
    }
    check = measure._check_of(TINY.name, 0, replies)
    assert (check.passed, check.base_alone) == (False, head_passes)
    assert check.detail == ("base: 2 ids differ" if head_passes else "of head")
    replies["base"]["digest"] = "2"
    assert not measure._check_of(TINY.name, 0, replies).base_alone, "head has another specification"


def test_logits_that_an_implementation_writes_are_restored(tiny):
    bench = Bench(TINY.name, 0)
    before = bench.draws[0].clone()

    def writes(logits, *_):
        logits.zero_()

    def writes_and_fails(logits, *_):
        logits.fill_(torch.nan)
        raise KeyError

    bench.implementations |= {"writes": writes, "writes and fails": writes_and_fails}
    assert bench.disagreement("writes") == "it writes the logits"
    assert bench.draws[0].equal(before)
    with pytest.raises(KeyError):
        bench.disagreement("writes and fails")
    assert bench.draws[0].equal(before)


def test_a_confidence_that_is_no_number_is_wrong(tiny):
    bench = Bench(TINY.name, 0)

    def leaves_nan(*arguments, confidence=None, **outputs):
        dllm_kernels.dllm_post_process_reference(*arguments, confidence=confidence, **outputs)
        if confidence is not None:
            confidence[bench.prepared == tiny.mask_id] = torch.nan

    bench.implementations["fused"] = leaves_nan
    assert bench.check()["detail"] == "a confidence is nan off the reference"


def test_an_undecidable_row_excuses_its_own_block_only(tiny, monkeypatch):
    bench = Bench(TINY.name, 0)
    bench.draws = bench.draws[:1]
    first = bench.draws[0][0].softmax(-1).amax(-1)[bench.prepared[0] == tiny.mask_id][0]
    monkeypatch.setattr(workloads, "THRESHOLD", float(first))  # a row of the first block lies at the threshold
    for block, passes in [(0, True), (1, False)]:

        def leaves_masks(logits, ids, *arguments, block=block, **outputs):
            before = ids.clone()
            dllm_kernels.dllm_post_process_reference(logits, ids, *arguments, **outputs)
            ids[block] = before[block]

        bench.implementations["fused"] = leaves_masks
        assert bench.check()["passed"] is passes


def test_pairs_taken_while_others_ran_are_left_out():
    """Every other pair waited for a processor. If most did, it may be for our own threads: all stay, and say so."""
    pair = (("head", "fused"), ("head", "reference"))

    def turns(waited):
        return [(pair, {one: [(float(turn), 0.0, 1000, waited(turn))] for one in pair}) for turn in range(8)]

    taken, disturbed = measure._on_the_host_clocks(turns(lambda turn: 500 * (turn % 2)), "cpu")
    assert disturbed == set()
    assert taken["call_us", pair] == [(0.0, 0.0), (2.0, 2.0), (4.0, 4.0), (6.0, 6.0)]
    for calm in (0, 3):
        taken, disturbed = measure._on_the_host_clocks(turns(lambda turn, calm=calm: 500 * (turn >= calm)), "cpu")
        assert disturbed == {("call_us", pair)}
        assert len(taken["call_us", pair]) == 8
    other = (("head", "fused"), ("base", "fused"))
    both = [*turns(lambda turn: 500), *((other, {one: [(1.0, 0.0, 1000, 0)] for one in other}) for _ in range(3))]
    taken, disturbed = measure._on_the_host_clocks(both, "cpu")
    assert disturbed == {("call_us", pair)}, "what disturbed one pair says nothing of another"
    assert (len(taken["call_us", pair]), len(taken["call_us", other])) == (8, 3)


def test_samples_on_the_device_clock_are_given_back_to_their_calls():
    """A worker reports its samples in its own order, several calls a turn; pairs were asked for in any order."""
    head, base, reference = ("head", "fused"), ("base", "fused"), ("base", "reference")
    turns = [
        ((head, base), {base: [], head: []}),
        ((head, reference), {head: [], reference: []}),
    ]
    ended = {"head": [1.0, 2.0, 3.0, 4.0], "base": [10.0, 20.0, 30.0, 40.0]}
    assert measure._on_the_clocks_of_the_gpu("device_us", turns, ended, 2) == {
        ("device_us", (head, base)): [(1.0, 10.0), (2.0, 20.0)],
        ("device_us", (head, reference)): [(3.0, 30.0), (4.0, 40.0)],
    }


class _OnAGpu:
    """A worker that says it is on a GPU, where `unsampled` cannot be captured in a graph."""

    def __init__(self, *unsampled):
        self.unsampled = unsampled
        self.taken = []

    def ask(self, do, **arguments):
        self.send(do, **arguments)
        return self.receive()

    def send(self, do, **arguments):
        if do == "begin":
            self.clock = arguments["clock"]
            wanted = arguments["only"] or ("fused", "reference")
            captured = [name for name in wanted if name not in self.unsampled]
            self.reply = captured if self.clock == "graph_us" else ["fused", "reference"]
        elif do == "sample":
            calls = [1.0] * arguments["calls"]
            self.taken += calls
            self.reply = [(1.0, 1.0, 1000, 0) for _ in calls] if self.clock == "call_us" else []
        elif do == "end":
            self.reply, self.taken = self.taken, []
        else:
            self.reply = {"passed": True, "detail": "", "digest": "", "counts": {}, "kernels": []}

    def receive(self):
        return self.reply


def test_calls_in_a_graph_are_timed_where_they_can_be_captured(tiny):
    """In the first process; of a comparison fused alone; never an implementation that waits for the GPU."""

    def pairs(workers, process=0):
        conductor = measure._Conductor("cuda", 5, None)
        conductor.measure_workload(TINY, {process: workers})
        assert {"device_us", "call_us"} <= {one.clock for one in conductor.series}
        return {(one.implementation, one.beside) for one in conductor.series if one.clock == "graph_us"}

    assert pairs({"head": _OnAGpu()}) == {("fused", "reference")}
    assert pairs({"head": _OnAGpu()}, process=1) == set()
    assert pairs({"head": _OnAGpu(), "base": _OnAGpu()}) == {("fused", "base fused")}
    assert pairs({"head": _OnAGpu(), "base": _OnAGpu()}, process=1) == set()
    assert pairs({"head": _OnAGpu("fused"), "base": _OnAGpu()}) == set()
    assert pairs({"head": _OnAGpu("fused", "reference")}) == set()


@pytest.mark.parametrize("period", [2, 3, 4])
def test_what_only_some_calls_do_is_timed_as_often_as_it_happens(tiny, period):
    bench = Bench(TINY.name, 0)
    fused, called = bench.implementations["fused"], []

    def counted(*arguments):
        called.append(1)
        fused(*arguments)

    bench.implementations["fused"] = counted
    timed = []
    for _ in range(60):
        bench._begin_row("fused")
        timed.append(len(called) % period)
        bench._call("fused", bench.draws[0])
    for phase in range(period):
        assert 0.5 * 60 / period < timed.count(phase) < 1.5 * 60 / period


def test_fused_alone_goes_round_the_places(tiny):
    """What the reference allocates, it has allocated there before."""
    bench = Bench(TINY.name, 0)
    bench.places = [(None, bench.prepared.clone()) for _ in range(3)]
    seen = {name: set() for name in bench.implementations}

    def noting(name, step):
        def call(logits, ids, *arguments):
            seen[name].add(ids.data_ptr())
            step(logits, ids, *arguments)

        return call

    bench.implementations = {name: noting(name, step) for name, step in bench.implementations.items()}
    for _ in range(9):
        bench.sample("fused", 1)
        bench.sample("reference", 1)
    places = [ids.data_ptr() for _, ids in bench.places]
    assert seen == {"fused": set(places), "reference": {places[0]}}


@pytest.mark.gpu
@pytest.mark.parametrize("clock", ["device_us", "call_us"])
def test_no_sample_asks_cuda_for_memory(clock):
    torch.cuda.empty_cache()  # what others left on the same streams
    bench = Bench("1x32x32000-bf16-100", 0)
    bench.warm_up()
    bench.begin(clock)
    before = torch.cuda.memory_stats()["segment.all.allocated"]
    for _ in range(2 * len(bench.places)):
        bench.sample("fused", 1)
        bench.sample("reference", 1)
    after = torch.cuda.memory_stats()["segment.all.allocated"]
    bench.end()
    assert after == before


@pytest.mark.gpu
def test_a_graph_replays_checked_calls_and_a_call_that_waits_is_left_out(tiny, monkeypatch):
    bench = Bench(TINY.name, 0)
    assert bench.begin("graph_us") == ["fused", "reference"]
    for implementation in ("fused", "reference", "fused"):
        assert bench.sample(implementation, 1) == []
    fused_us, reference_us, again_us = bench.end()
    assert 0.5 < fused_us < reference_us
    assert 0.5 < again_us < reference_us

    fused = bench.implementations["fused"]

    def waits(*arguments, **outputs):
        torch.cuda.synchronize()
        fused(*arguments, **outputs)

    bench.implementations["fused"] = waits
    assert bench.begin("graph_us") == ["reference"]
    assert bench.sample("reference", 1) == []
    assert len(bench.end()) == 1
    bench.implementations["fused"] = fused
    assert bench.begin("graph_us") == ["fused", "reference"]  # nothing is left of the failed capture
    bench.end()
    calls = []

    def only_at_first(logits, ids, *arguments):
        calls.append(1)
        if len(calls) < 3:
            fused(logits, ids, *arguments)

    bench.implementations["fused"] = only_at_first
    with pytest.raises(RuntimeError, match="in a CUDA graph, fused leaves other ids"):
        bench.begin("graph_us")


@pytest.mark.gpu
def test_graphs_of_one_call_replay_checked_calls(tiny):
    bench = Bench(TINY.name, 0)
    bench.warm_up()
    assert bench.begin("replay_us") == ["fused", "reference"]
    most = min(len(bench.draws), measuring.MOST_GRAPHS)
    assert {name: len(graphs) for name, graphs in bench.draw_graphs.items()} == {"fused": most, "reference": most}
    order = ("fused", "reference") * 15
    for implementation in order:
        assert bench.sample(implementation, 1) == []
    taken = bench.end()
    assert len(taken) == len(order)
    fused_us, reference_us = (sorted(taken[first::2])[7] for first in (0, 1))
    assert 1 < fused_us < reference_us
    assert len(bench.sample("reference", 1)) == 1, "a call again"


@pytest.mark.gpu
def test_what_graphs_of_one_call_need_in_between_does_not_pile_up():
    bench = Bench("1x32x157184-bf16-100", 0)
    bench.warm_up()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    bench.begin("replay_us", only=["reference"])
    grown_bytes = torch.cuda.memory_reserved() - before
    graphs = len(bench.draw_graphs["reference"])
    bench.end()
    assert graphs > 20
    assert grown_bytes < graphs * 2 * bench.workload.logits_bytes / 2, "a copy in float32 for every other graph"


class _Graphs:
    """CUDA's graphs on the CPU: what is called while one is captured is called when it is replayed, and not then.

    What happens is noted, of every call the number of its draw and whether its ids were restored before.
    """

    def __init__(self, bench):
        self.bench = bench
        self.noted = []
        self.pools = {}
        self.captured = None  # the calls of the graph at hand
        self.never, self.no_more = {}, {}  # by implementation, the draw whose call does nothing in a graph, or fails
        bench.device = "cuda"
        bench.swept = SimpleNamespace(amax=lambda: self.noted.append("sweep"))
        bench.places = [(None, bench.prepared.clone()) for _ in range(3)]
        bench.implementations = {
            name: functools.partial(self.call, name, step) for name, step in bench.implementations.items()
        }
        self.cuda = SimpleNamespace(
            CUDAGraph=lambda: SimpleNamespace(),
            graph=self.capture,
            graph_pool_handle=object,
            stream=torch.cuda.stream,
            synchronize=lambda: self.noted.append("wait"),
        )
        bench.torch = SimpleNamespace(cuda=self.cuda, equal=torch.equal)

    @contextmanager
    def capture(self, graph, pool):
        calls = self.captured = []
        try:
            yield
        finally:
            self.captured = None
        graph.replay = lambda: [call() for call in calls]
        self.pools.setdefault(calls[0].args[0], []).append(pool)

    def call(self, name, step, logits, ids, *arguments):
        draw = next(number for number, one in enumerate(self.bench.draws) if one is logits)
        if self.captured is None:
            self.noted.append(f"call {draw}")
            step(logits, ids, *arguments)
            return
        if self.no_more.get(name) == draw:
            raise torch.OutOfMemoryError("no room for it")
        self.captured.append(functools.partial(self.replay, name, draw, step, logits, ids, *arguments))

    def replay(self, name, draw, step, logits, ids, *arguments):
        self.noted.append(f"replay {draw}" if ids.equal(self.bench.prepared) else "replay on ids that a call has left")
        if self.never.get(name) != draw:
            step(logits, ids, *arguments)

    def of_rows(self, implementation, rows, calls=1):
        """What is noted in each of so many."""
        noted = []
        for _ in range(rows):
            self.noted.clear()
            assert self.bench.sample(implementation, calls) == []
            noted.append(self.noted.copy())
        return noted


@pytest.fixture
def graphs(tiny):
    return _Graphs(Bench(TINY.name, 0, draws=5))


def test_of_every_draw_there_is_a_graph_and_those_of_an_implementation_share_memory(graphs):
    assert graphs.bench.begin("replay_us") == ["fused", "reference"]
    assert {name: len(pools) for name, pools in graphs.pools.items()} == {"fused": 5, "reference": 5}
    for pools in graphs.pools.values():
        assert pools == pools[:1] * 5
    read_last = [one for one in graphs.noted if one.startswith("call")][-5:]
    assert read_last == [f"call {draw}" for draw in range(5)], "every draw, as before every block"


@pytest.mark.parametrize("implementation", ["fused", "reference"])
def test_rows_of_replays_begin_as_rows_of_calls_and_go_on_from_draw_to_draw(graphs, implementation):
    graphs.bench.begin("replay_us")
    rows = graphs.of_rows(implementation, 60)
    replays = [[one for one in noted if one.startswith("replay")] for noted in rows]
    for noted, row in zip(rows, replays, strict=True):
        assert noted == ["sweep", *(step for replay in row for step in ("wait", replay, "wait"))]
    assert {len(row) for row in replays} == {2, 3}, "one or two that are not timed, and one that is"
    every = [one for row in replays for one in row]
    first = int(every[0].split()[1])
    assert every == [f"replay {(first + number) % 5}" for number in range(len(every))]
    assert {row[-1] for row in replays} == {f"replay {draw}" for draw in range(5)}, "each is timed now and then"
    assert len(graphs.bench.end()) == 60


def test_a_sample_of_a_replay_is_the_replay_and_the_wait_for_its_result(graphs, monkeypatch):
    graphs.bench.begin("replay_us")
    ticks = iter(range(0, 10**9, 5000))

    def now():
        graphs.noted.append("clock")
        return next(ticks)

    monkeypatch.setattr(measuring.time, "perf_counter_ns", now)
    ((*_, waited, start, replay, ready, end),) = graphs.of_rows("fused", 1)
    assert [waited, start, replay.split()[0], ready, end] == ["wait", "clock", "replay", "wait", "clock"]
    assert graphs.bench.end() == [5.0]


def test_replays_of_a_row_share_a_draw_where_calls_find_their_logits_in_the_cache():
    graphs = _Graphs(Bench(f"{TINY.name}-warm", 0, draws=3))
    graphs.bench.begin("replay_us")
    replays = [[one for one in noted if one.startswith("replay")] for noted in graphs.of_rows("fused", 6, calls=2)]
    assert [set(row) for row in replays[:3]] == [set(row) for row in replays[3:]]
    assert sorted(one for row in replays[:3] for one in set(row)) == ["replay 0", "replay 1", "replay 2"]


def test_of_many_draws_not_all_are_captured(graphs, monkeypatch):
    monkeypatch.setattr(measuring, "MOST_GRAPHS", 3)
    graphs.bench.begin("replay_us")
    assert {name: len(pools) for name, pools in graphs.pools.items()} == {"fused": 3, "reference": 3}
    replays = {one for noted in graphs.of_rows("fused", 10) for one in noted if one.startswith("replay")}
    assert replays == {"replay 0", "replay 1", "replay 2"}


def test_a_graph_of_any_draw_that_leaves_other_ids_is_found(graphs):
    graphs.never["fused"] = 4
    with pytest.raises(measuring.OtherIdsError, match="in a CUDA graph, fused leaves other ids"):
        graphs.bench.begin("replay_us")


def test_where_one_draw_is_not_captured_the_implementation_has_no_replays(graphs):
    graphs.no_more["fused"] = 3
    assert graphs.bench.begin("replay_us") == ["reference"]
    assert graphs.bench.not_captured == {"fused": "no room for it"}
    graphs.of_rows("reference", 2)
    assert len(graphs.bench.end()) == 2


def test_after_a_block_of_replays_calls_are_timed_again(graphs):
    bench = graphs.bench
    for end in (bench.end, bench.abandon):
        bench.begin("replay_us")
        graphs.of_rows("fused", 1)
        end()
        graphs.noted.clear()
        assert len(bench.sample("fused", 2)) == 2
        assert not [one for one in graphs.noted if one.startswith("replay")]
        assert bench.end() == []


class _Gpu:
    """States of a GPU, one after the other."""

    def __init__(self, *faults):
        self.faults = list(faults)

    def state(self, ours):
        fault = self.faults.pop(0)
        return GpuState(1980, 2619, 40, 300.0, (fault,) if fault else (), 0)


def test_throttled_blocks_are_dropped_and_taken_again(tiny):
    conductor = measure._Conductor("cpu", 5, None)
    conductor.gpu = _Gpu("", "power cap", "brake", "", "")  # at a block's end, at the next one's start, and not again
    conductor.measure_workload(TINY, {0: {"head": _InThisProcess()}})
    faults = ["the GPU was throttled: power cap", "the GPU was throttled: brake", ""]
    assert [block.fault for block in conductor.blocks] == faults
    assert conductor.series


def test_a_gpu_that_stays_throttled_gives_no_samples(tiny):
    conductor = measure._Conductor("cpu", 5, None)
    conductor.gpu = _Gpu(*["software thermal slowdown"] * 9)
    conductor.measure_workload(TINY, {0: {"head": _InThisProcess()}})
    assert len(conductor.blocks) == 1 + measure.RETAKES
    assert conductor.series == []


class _Counting:
    """A worker that measures nothing, and notes how many calls it is asked for in a row."""

    def __init__(self):
        self.rows = {}
        self.clock = ""

    def ask(self, do, **arguments):
        self.send(do, **arguments)
        return self.receive()

    def send(self, do, *, clock="", calls=0, **arguments):
        self.reply = {"passed": True, "detail": "", "digest": "", "counts": {}, "kernels": []}
        if do == "begin":
            self.clock = clock
            self.reply = ["fused", "reference"]
        elif do == "sample":
            self.rows.setdefault(self.clock, []).append(calls)
            self.reply = [(1.0, 1.0, 1000, 0)] * calls
        elif do == "end":
            self.reply = [1.0] * sum(self.rows[self.clock])

    def receive(self):
        return self.reply


@pytest.mark.parametrize(
    ("name", "calls", "share"), [("1x32x128000-fp16-100", 2, 1), ("128x32x157184-bf16-6", 2, 1), (LONG, 1, 2)]
)
def test_a_call_that_takes_long_is_alone_in_its_row_and_comes_half_as_often(name, calls, share):
    """How long follows from what it reads: with few rows masked, a call on many logits is a short one."""
    conductor, worker = measure._Conductor("cuda", 5, None), _Counting()
    conductor.measure_workload(workloads.WORKLOADS[name], {0: {"head": worker}})
    rows = worker.rows["device_us"]
    assert set(rows) == {calls}
    assert len(rows) == 2 * measure.OF_SPEEDUP.turns["device_us"] // share  # of fused and reference, in one block


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_beside_a_base_the_reference_is_paired_in_every_part_of_a_block_and_three_times_at_least(monkeypatch, seconds):
    monkeypatch.setattr(measure, "MAX_SECONDS", {"cuda": seconds})
    conductor = measure._Conductor("cuda", 5, None)
    conductor.measure_workload(
        workloads.WORKLOADS["1x32x128000-fp16-100"], {0: {"head": _Counting(), "base": _Counting()}}
    )
    pairs = {(one.clock, one.implementation, one.beside): len(one.us) for one in conductor.series}
    for beside, implementation in (("base reference", "fused"), ("base reference", "reference")):
        assert pairs["call_us", implementation, beside] == (10 if seconds else measure.MIN_TURNS)
        assert pairs["device_us", implementation, beside] == (4 if seconds else measure.MIN_TURNS) * 2  # calls in a row
    assert pairs["call_us", "fused", "base fused"] == (75 if seconds else measure.MIN_TURNS)


def test_a_reference_that_takes_long_is_paired_half_as_often():
    conductor = measure._Conductor("cuda", 5, None)
    conductor.measure_workload(workloads.WORKLOADS[LONG], {0: {"head": _Counting(), "base": _Counting()}})
    pairs = {(one.clock, one.beside): len(one.us) for one in conductor.series if one.implementation == "fused"}
    assert (pairs["call_us", "base reference"], pairs["device_us", "base reference"]) == (5, 4)


def test_the_references_are_paired_before_base_s_alone_runs():
    """What has just run, and what ran many turns ago, are not the same: on the host's clock it made 3 %."""
    asked = []

    class Noting(_Counting):
        def send(self, do, **arguments):
            super().send(do, **arguments)
            if do == "sample" and self.clock == "call_us":
                asked.append(arguments["implementation"])

    workload = workloads.WORKLOADS["1x32x128000-fp16-100"]
    measure._Conductor("cuda", 5, None).measure_workload(workload, {0: {"head": Noting(), "base": Noting()}})
    first = asked.index("reference")
    assert asked[first : first + 2] == ["reference", "reference"]
    assert sorted(asked[first + 2 : first + 4]) == ["fused", "reference"]


def test_calls_of_a_row_that_vary_together_tell_no_more_than_one():
    """Or sampling would end while rows, which differ by the place that they were given, are few."""
    rows = [(1.0 + 0.01 * (number % 7), 1.0) for number in range(40)]
    doubled = [pair for pair in rows for _ in range(2)]
    assert measure._standard_error(doubled, 2) == pytest.approx(measure._standard_error(rows, 1))
    assert measure._standard_error(doubled, 1) < 0.8 * measure._standard_error(rows, 1)


@pytest.mark.parametrize(
    ("called", "activities", "number"),
    [
        (["cudaLaunchKernel", "cudaMemcpyAsync"], ["kernel", "Memcpy DtoD (Device -> Device)"], 0),
        (["cudaMemcpyAsync"], ["Memcpy DtoH (Device -> Pinned)"], 0),
        (["cudaMemcpyAsync", "cudaStreamSynchronize"], ["Memcpy DtoH (Device -> Pageable)"], 1),
        (["cudaMemcpyAsync"], ["Memcpy DtoH (Device -> Pageable)"], 1),
        (["cudaStreamSynchronize", "cudaStreamSynchronize"], [], 2),
    ],
    ids=["copies on the GPU", "to pinned memory", "item()", "not blocking, to memory that is not pinned", "two waits"],
)
def test_the_hosts_waits_are_counted(called, activities, number):
    assert waits(called, activities) == number


def test_fresh_processes_make_a_record(tmp_path):
    """Through real workers, one small workload: the record holds every process and says where it ran."""
    chosen, _ = workloads.select(["1x32x50257-fp16-100"], gpu=False)
    lines = []
    clocks = {chosen[0].name: {"call_us"}}
    run = measure.measure(chosen, processes=2, first_process=3, clocks=clocks, progress=lines.append)
    assert {(check.process, check.clocks) for check in run.checks} == {(3, ("call_us",)), (4, ("call_us",))}
    with pytest.raises(ValueError, match="clocks: expected those of every workload; got none of 1x32x50257-fp16-100"):
        measure.measure(chosen, clocks={})
    assert {one.process for one in run.series} <= {3, 4}  # where other work ran, none
    assert len(lines) >= 2
    assert run.environment.torch
    assert all(check.passed for check in run.checks)
    results.save(run, tmp_path / "run.json")
    assert results.load(results.Run, tmp_path / "run.json") == run


@pytest.mark.parametrize("processes", [1, 3, 40])
def test_of_every_kind_of_workload_one_is_compiled_a_side(processes):
    chosen = list(workloads.WORKLOADS.values())
    asked = [[] for _ in range(processes)]

    class Noting(_Counting):
        def __init__(self, number):
            super().__init__()
            self.number = number

        def send(self, do, **arguments):
            assert do == "compile"
            self.reply = None
            asked[self.number] += arguments["chosen"]

    measure._compile(chosen, [{"head": Noting(number)} for number in range(processes)])
    every = [workloads.WORKLOADS[name] for part in asked for name in part]
    assert sorted(map(workloads.kernels_of, every)) == sorted({workloads.kernels_of(one) for one in chosen})
    assert max(map(len, asked)) - min(map(len, asked)) <= 1


def test_compiling_takes_one_draw_and_leaves_no_logits(tiny, monkeypatch):
    opened, called = [], []
    fused = dllm_kernels.dllm_post_process_fused

    class Noting(Bench):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            opened.append((self, len(self.draws)))

    def noting(*arguments, **outputs):
        called.append(set(outputs))
        fused(*arguments, **outputs)

    monkeypatch.setattr(measuring, "Bench", Noting)
    monkeypatch.setattr(dllm_kernels, "dllm_post_process_fused", noting)
    measuring.compile_kernels([TINY.name])
    ((bench, draws),) = opened
    assert (draws, bench.draws) == (1, [])
    assert called == [{"confidence", "tokens"}, set()], "with outputs and without: two kernels"


def test_what_kernels_are_made_of_is_read_from_their_files_and_stands_beside_the_counts(monkeypatch):
    read = []

    def code(path):
        read.append(path.name)
        return machine_code.Code(**{**dict.fromkeys(machine_code.WHAT, 1), "registers": len(path.name)})

    monkeypatch.setattr(machine_code, "read", code)
    counts = {"head": {"a": {"launches": 2}, "b": {"launches": 1}}, "base": {"a": {"launches": 1}}}
    kernels = {("head", "a"): ["one", "three"], ("head", "b"): [], ("base", "a"): ["one"]}
    found = measure._with_code(counts, kernels)
    assert sorted(read) == ["one", "three"], "each file once"
    assert (found["head"]["a"]["launches"], found["head"]["a"]["registers"], found["head"]["a"]["barriers"]) == (
        2,
        5,
        2,
    )
    assert found["head"]["b"] == {"launches": 1}
    assert found["base"]["a"]["registers"] == 3
    assert counts["base"]["a"] == {"launches": 1}


def test_machine_code_that_cannot_be_read_is_told_and_loses_no_measurement(tmp_path, capsys):
    lost = str(tmp_path / "no.cubin")
    found = measure._with_code({"head": {"a": {"launches": 1}}}, {("head", "a"): [lost]})
    assert found == {"head": {"a": {"launches": 1}}}
    assert "machine code: not in the record, because" in capsys.readouterr().err


@pytest.mark.parametrize(("lacks_it", "left_out"), [("base", True), ("head", False)])
def test_a_base_that_cannot_be_asked_is_left_out_and_a_head_that_cannot_is_wrong(tiny, lacks_it, left_out):
    class Old(_InThisProcess):
        def send(self, do, **arguments):
            super().send(do, **arguments)
            if do == "open":
                self.reply = {"passed": False, "detail": "the package has no such thing", "digest": "", "absent": True}

    conductor = measure._Conductor("cpu", 5, None)
    workers = {side: Old() if side == lacks_it else _InThisProcess() for side in ("head", "base")}
    conductor.measure_workload(TINY, {0: workers})
    assert conductor.series == []
    assert list(conductor.absent) == ([TINY.name] if left_out else [])
    assert [check.passed for check in conductor.checks] == ([] if left_out else [False])


def test_a_record_tells_its_command_and_no_path_of_the_machine():
    typed = ["run", "--output", "/home/me/run.json"]
    assert measure.command("benchmarks", typed) == "python -m benchmarks run --output run.json"


def test_draws_cover_the_cache_several_times_but_of_tiny_logits_there_is_an_end():
    l2_bytes = 50 * 2**20

    def draws_of(name):
        bench = object.__new__(Bench)
        bench.workload = workloads.parse(name)
        bench._gpu = lambda: SimpleNamespace(L2_cache_size=l2_bytes, total_memory=80 * 2**30)
        return bench._copies(), bench.workload.logits_bytes

    for name in ("1x32x128000-fp16-100", "2x16x32000-bf16-50", "1x32x4000-fp16-100", "128x32x157184-fp32-100"):
        copies, logits_bytes = draws_of(name)
        assert copies * logits_bytes >= 3 * l2_bytes
        assert copies % 2 == 1
        assert copies == 3 or 2 * 20 * copies * logits_bytes <= 1.1 * 80 * 2**30  # in forty processes at once
    assert draws_of("8x32x157184-fp32-100")[0] == 13
    assert draws_of("2x4x70-fp32-50")[0] == 1023  # 84,000 else: a minute


def test_the_device_is_known_before_anything_is_measured_by_the_name_that_records_have():
    assert measure.device() == machine.describe_environment().device
