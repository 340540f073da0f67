"""In a measuring process: one workload's inputs, the check of its results, and the clocks.

Ids are restored from a prepared copy before each call, outside the sample. On a GPU each call takes the next of several
draws of logits: together they cover at least three times the L2 cache, so that they come from memory, and where each of
them lies there, which makes a few percent, averages out. Of a warm workload, the calls of a row share a draw. Fused's
rows go round several streams, each with ids of its own, for the same reason: a package keeps a workspace for every
stream. Graphs of one call, of fused each with a workspace of its own, are replayed as calls are made: there is one for
each draw. Before a row, other data fill the L2 cache, so that no call pays for what another has written there. In a
sample PyTorch asks CUDA for no memory, and before a block every draw is read: after CUDA gave memory out, calls take
longer until each has been.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import workloads
from benchmarks.measure import machine
from benchmarks.measure.cupti import Profiler, device_us_of_ranges, inside, launched_kernels, watch_loaded_kernels

if TYPE_CHECKING:
    from torch import Tensor

L2_MULTIPLE = 3  # of the L2 cache's size that rotating logits cover
# So many, as far as they fit into a share of the GPU's memory that twenty processes of both sides can hold at once. Of
# seven draws of 161 MB in one process on an H200, a step took 47.9 to 49.3 us, and processes differed by 0.7 %; of 23,
# by 0.3 %.
DRAWS, DRAWS_SHARE = 63, 1 / 40
# And at least so many: of one draw of 0.3 GB, two processes of the same code on an H200 took 80.5 and 81.6 us, each of
# them all the time. Of a warm workload no more.
LEAST_DRAWS = 3
MOST_DRAWS = 1023  # logits of 0.2 MB and less cover less of the cache than L2_MULTIPLE: a million take minutes to draw
# Of the L2 cache's size, so much is read before a row: what the reference has written there, and is not in memory yet,
# would else be moved while the next calls read. On an H100, the first and the second call after two of SGLang's step
# took 15.4 and 12.5 us, and 11.8 with no such step before.
SWEPT_MULTIPLE = 2
MOST_UNTIMED = 2  # calls before a row
# Streams that rows of calls go round, and the largest logits for which: allocations are a stream's own. On an H100, the
# same kernel took about 4.7 or 4.9 us as it was given one or another workspace; with 25, processes differed by 0.56 %.
# Fused alone goes round them. Where the reference did, CUDA gave it memory on most, and after some of its turns, on an
# H200, fused took 4.8 % more for a round of 63 draws of 40 MB (presumably every address was looked up anew): after more
# of them in the process where the reference ran more often, so that the same code seemed to differ by 1 %.
PLACES, PLACES_BYTES = 63, 2**26
PRIORITIES = 2  # of streams: PyTorch has 32 of each
GRAPH_CALLS = 16  # in a CUDA graph, at least: the start of a replay takes a microsecond or two
LONG_CALLS, LONG_BYTES = 2, 2**29  # where the logits take more than that, and a call more than a hundred microseconds
# Of one call each, of an implementation; an odd number, as of draws. With so many of seven implementations, a workload
# took 17 to 19 s on an H200 on all clocks together. Where there are more draws, logits come from memory all the same:
# they are so small that other data are read before a row.
MOST_GRAPHS = 63
QUEUED_CYCLES = 400_000  # of the GPU, 0.2 ms, in which the host launches a graph
WARM_UP_SECONDS = {"cuda": 0.1, "cpu": 0.3}  # at most, an implementation
SETTLED = 0.05  # warm-up ends when two successive medians of three calls differ by less, or its time is over
SPIN_SECONDS = 0.005  # for which OpenMP's threads of the other side may still spin and take a processor from ours
# What the host waits in, by name. It may wait in cudaMemcpyAsync too, if one end is memory of its own that is not
# pinned (CUDA's "API synchronization behavior"), which the copy on the GPU says.
WAITS = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def start(package_folder: Path | None) -> dict[str, Any]:
    """Load what is to be measured, and say where this process runs (`Environment`) and which file it has loaded.

    Raises:
        RuntimeError: the package is not the one that was asked for.
    """
    import dllm_kernels

    found = Path(dllm_kernels.__file__).resolve()
    if package_folder is not None and not found.is_relative_to(package_folder):
        raise RuntimeError(f"dllm_kernels: expected the one in {package_folder}; found {found}")
    import torch

    gc.disable()  # a collection inside a sample would be part of it; `Bench.begin` collects
    if torch.cuda.is_available():
        watch_loaded_kernels()
        with Profiler():  # CUPTI takes a second to start, once
            torch.ones(1, device="cuda")
    gc.collect()
    gc.freeze()  # what was imported is not looked through again at each collection: that takes 0.15 s
    return {"environment": dataclasses.asdict(machine.describe_environment()), "file": str(found)}


class OtherIdsError(RuntimeError):
    """A replayed CUDA graph left other ids than the calls it was made of."""


def open_bench(workload: str, seed: int, draws: int | None = None) -> Any:
    """What measures that workload, on so many draws of logits or as many as it takes: a `Bench`, or one with the same
    commands."""
    if workloads.is_decoding(workload):
        from benchmarks.e2e.bench import DecodingBench

        return DecodingBench(workload, seed)
    if workloads.is_engine_step(workload):
        from benchmarks.measure.engine_bench import EngineBench

        return EngineBench(workload, seed, draws)
    return Bench(workload, seed, draws)


def compile_kernels(chosen: Sequence[str]) -> None:
    """Of these workloads, into Triton's cache on the disk, where other processes find them."""
    for workload in chosen:
        bench = open_bench(workload, seed=0, draws=1)
        bench.check()
        bench.close()


def waits(called: Sequence[str], activities: Sequence[str]) -> int:
    """How often the host waited for the GPU, by names of what it called and of what the GPU did. A copy that it waits
    for by itself, and in a call after it, is one wait."""
    return max(sum(name in WAITS for name in called), sum("Pageable" in name for name in activities))


class Bench:
    """One workload in one process. Its public methods are the commands of the worker."""

    def __init__(self, workload: str, seed: int, draws: int | None = None) -> None:
        import torch

        from dllm_kernels import dllm_post_process_fused, dllm_post_process_reference

        self.torch = torch
        self.workload = workloads.parse(workload)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # What is measured; others may be added, which are called with logits, ids, mask id and threshold alone.
        self.implementations: dict[str, Callable[..., Any]] = {
            "fused": dllm_post_process_fused,
            "reference": dllm_post_process_reference,
        }
        copies = draws or (self._copies() if self.device == "cuda" else 1)
        self.draws, self.prepared = workloads.make_inputs(self.workload, self.device, seed, copies)
        self.ids = self.prepared.clone()
        self.places = self._places()
        self.swept = self._swept()
        self.rows = 0
        self.turn = 0
        self.random = random.Random(seed)
        self.samples = 0  # of the block
        self.profile: Profiler | None = None
        self.graphs: dict[str, Any] = {}  # of the block, by implementation: of many calls
        self.draw_graphs: dict[str, list[Any]] = {}  # the same: of one call each, one for each draw
        self.not_captured: dict[str, str] = {}  # and why
        calls = max(copies, GRAPH_CALLS if self.workload.logits_bytes <= LONG_BYTES else LONG_CALLS)
        self.graph_ids = self.prepared.expand(calls, *self.prepared.shape).clone()  # of the calls in a graph
        self.replayed_us: list[float] = []  # of the block, a call
        self.processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()

    def _copies(self) -> int:
        """How many draws there are: an odd number, as of places, or every other one would be taken by calls that are
        not timed, or by the other implementation."""
        if self.workload.warm:
            return LEAST_DRAWS
        cold = -(-L2_MULTIPLE * self._l2_bytes() // self.workload.logits_bytes)
        fitting = int(DRAWS_SHARE * self._gpu().total_memory) // self.workload.logits_bytes
        return min(max(LEAST_DRAWS, cold, min(DRAWS, fitting)), MOST_DRAWS) | 1

    def _l2_bytes(self) -> int:
        l2_bytes: int = self._gpu().L2_cache_size
        return l2_bytes

    def _gpu(self) -> Any:
        return self.torch.cuda.get_device_properties(0)

    def _swept(self) -> Tensor | None:
        """What is read before a row; nothing where the call that is not timed reads as much itself, or is there to have
        the next ones find their logits in the cache."""
        swept_bytes = 0 if self.device == "cpu" else SWEPT_MULTIPLE * self._l2_bytes()
        if self.workload.warm or self.workload.bytes_read >= swept_bytes:
            return None
        return self.torch.zeros(swept_bytes // 4, device=self.device)

    def _places(self) -> list[tuple[Any, Tensor]]:
        """Streams with ids of their own."""
        if self.device == "cpu":
            return [(None, self.ids)]
        if self.workload.logits_bytes > PLACES_BYTES:
            return [(self.torch.cuda.current_stream(), self.ids)]
        stream: Any = self.torch.cuda.Stream  # it has no types
        return [(stream(priority=-(place % PRIORITIES)), self.prepared.clone()) for place in range(PLACES)]

    def check(self) -> dict[str, Any]:
        """Whether fused leaves the ids that the reference leaves, outside the undecidable band; and which those are."""
        # All is read at the end: each wait for the GPU would be the turn of every other process that checks meanwhile.
        found = [self._found(logits) for logits in self.draws]
        expected_ids = self.torch.stack([ids for ids, _ in found]).cpu()
        differences = self.torch.stack([counts for _, counts in found]).tolist()
        wrong = next(filter(None, (_in_words(*difference) for difference in differences)), "")
        detail = wrong or f"ids and candidates equal the reference on {len(self.draws)} draws"
        digest = hashlib.sha256(expected_ids.numpy().tobytes()).hexdigest()
        return {"passed": not wrong, "detail": detail, "digest": digest}

    def _found(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The ids that the reference leaves, and in what fused differs: see `_in_words`. Waits for nothing."""
        torch = self.torch
        ids, p, tokens = self._outcome("fused", logits)
        expected_ids, expected_p, expected_tokens = self._outcome("reference", logits)
        # The timed call gives no outputs, which are compiled out: another kernel.
        self.ids.copy_(self.prepared)
        self._call("fused", logits)
        masked = self.prepared == self.workload.mask_id
        differences = [
            (tokens != expected_tokens).sum(),
            (p - expected_p).abs().masked_fill(~masked, 0.0).max(),
            wrong_ids(ids, expected_ids, expected_p),
            (self.ids != ids).sum(),
        ]
        return expected_ids, torch.stack([one.double() for one in differences])

    def disagreement(self, implementation: str) -> str:
        """How it differs from the reference on the inputs to be timed, outside the undecidable band; empty where it
        does not. Of fused, candidates and confidences are held against the reference's too. Logits that another one
        writes are restored: all are given the same."""
        if implementation == "fused":
            reply = self.check()
            return "" if reply["passed"] else str(reply["detail"])
        for logits in self.draws:
            expected_ids, expected_p, _ = self._outcome("reference", logits)
            self.ids.copy_(self.prepared)
            kept = logits.clone()
            try:
                self._call(implementation, logits)
                writes = not self.torch.equal(logits, kept)
            finally:
                logits.copy_(kept)
            if writes:
                return "it writes the logits"
            if wrong := int(wrong_ids(self.ids, expected_ids, expected_p)):
                return f"{wrong} ids differ from the reference"
        return ""

    def _outcome(self, implementation: str, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, confidence and candidates that it leaves."""
        ids = self.prepared.clone()
        confidence = self.torch.empty(ids.shape, device=self.device)
        tokens = self.torch.empty_like(ids)
        self.implementations[implementation](
            logits, ids, self.workload.mask_id, workloads.THRESHOLD, confidence=confidence, tokens=tokens
        )
        return ids, confidence, tokens

    def _places_of(self, implementation: str) -> list[tuple[Any, Tensor]]:
        if implementation != "fused" or self.draw_graphs:  # which hold the first one's ids
            return self.places[:1]
        return self.places

    def warm_up(self) -> dict[str, int]:
        """Call each implementation in all its places, then until its times have settled; how many calls the latter
        took."""
        if self.device == "cuda":
            self._visit_places()
        calls = {}
        for implementation in self.implementations:
            calls[implementation] = 0
            deadline = time.monotonic() + WARM_UP_SECONDS[self.device]
            before = float("inf")
            while time.monotonic() < deadline:
                now = statistics.median(self._host_clocks(implementation)[0] for _ in range(3))
                calls[implementation] += 3
                if abs(now / before - 1) < SETTLED:
                    break
                before = now
        return calls

    def _visit_places(self) -> None:
        self.torch.cuda.synchronize()  # the streams do not wait for the one on which everything was made
        for implementation in self.implementations:
            for stream, ids in self._places_of(implementation):
                self.ids = ids
                with self.torch.cuda.stream(stream):
                    self._begin_row(implementation)
        self.ids = self.places[0][1]
        self.torch.cuda.synchronize()

    def begin(self, clock: str, core: int | None = None, only: Sequence[str] | None = None) -> list[str]:
        """Start a block of samples on a clock and processor, of all implementations or of `only` those; which of them
        it can be read for."""
        gc.collect()
        if core is not None:
            os.sched_setaffinity(0, {core})
        self.samples = 0
        wanted = list(self.implementations if only is None else only)
        if clock == "device_us":
            self.profile = Profiler().__enter__()
        elif clock == "graph_us":
            self.not_captured = {}
            for name in wanted:
                self._capture(name)
            return list(self.graphs)
        elif clock == "replay_us":
            self.not_captured = {}
            for name in wanted:
                self._capture_draws(name)  # and then reads every draw, in calls that replays are held against
            return list(self.draw_graphs)
        if self.device == "cuda" and "fused" in self.implementations:
            for logits in self.draws:
                self.ids.copy_(self.prepared)
                self._call("fused", logits)
            # Or the other side's first row would share the GPU with what is left of this.
            self.torch.cuda.synchronize()
        return wanted

    def sample(self, implementation: str, calls: int) -> list[tuple[float, float, int, int]]:
        """On the host's clock, of each call: microseconds until the result is ready and until the call returned, and
        nanoseconds of the sample and of our threads' waiting for a processor in it. On the GPU's, and of replays,
        nothing yet: see `end`."""
        if self.graphs:
            self._replay(implementation)
            self.replayed_us += [self._replay(implementation) for _ in range(calls)]
            return []
        places = self._places_of(implementation)
        stream, self.ids = places[self.rows % len(places)]
        self.rows += 1
        with self.torch.cuda.stream(stream):  # of None, which there is without a GPU, nothing
            return self._row(implementation, calls)

    def _row(self, implementation: str, calls: int) -> list[tuple[float, float, int, int]]:
        if self.device == "cuda":
            self._begin_row(implementation)
        if self.draw_graphs:
            self.replayed_us += [self._replay_draw(implementation) for _ in range(calls)]
            return []
        if self.profile is None:
            return [self._host_clocks(implementation) for _ in range(calls)]
        for _ in range(calls):
            self._profiled(implementation)
        return []

    def _begin_row(self, implementation: str) -> None:
        """The other side has used the caches of processor and GPU: a call that is not timed fills them again. Now and
        then it is two: what takes longer at every second or third call would else be timed always or never."""
        if self.swept is not None:
            self.swept.amax()
        for _ in range(self.random.randint(1, MOST_UNTIMED)):
            if self.draw_graphs:
                self._replay_draw(implementation)
            else:
                self._prepare()
                self._call(implementation, self._next_logits())

    def end(self) -> list[float]:
        """The samples of a block on a clock of the GPU's, or of replays, in microseconds."""
        profile, replayed_us = self.profile, self.replayed_us
        self.abandon()
        if profile is None:
            return replayed_us
        return device_us_of_ranges(profile.events, "sample ", self.samples)

    def abandon(self) -> None:
        """End a block of which no sample counts."""
        if self.processors:
            os.sched_setaffinity(0, self.processors)
        self.graphs.clear()
        self.draw_graphs.clear()
        self.replayed_us = []
        if self.profile is not None:
            profile, self.profile = self.profile, None
            profile.__exit__(None, None, None)

    def close(self) -> None:
        """Give the memory back: other processes need it."""
        self.draws, self.swept = [], None
        if self.device == "cuda":
            self.torch.cuda.empty_cache()

    def counts(self) -> dict[str, Any]:
        """What one fused call does, counted, not timed: GPU activities, waits of the host, allocations and the most
        memory that they hold at once; and the files of its kernels' machine code, which takes a second to read."""
        torch = self.torch
        if self.device == "cpu":
            return {"counts": {}, "kernels": []}
        self._prepare()
        before = torch.cuda.memory_stats().get("allocation.all.allocated", 0)
        torch.cuda.reset_peak_memory_stats()
        held_bytes = torch.cuda.memory_allocated()
        with launched_kernels() as kernels:
            self._call("fused", self._next_logits())
        allocations = torch.cuda.memory_stats().get("allocation.all.allocated", 0) - before
        events = self._events_of_a_call("fused")
        activities = inside(events, "sample 0", gpu=True)
        counts = {
            "launches": len(activities),
            "synchronizations": waits(inside(events, "call", gpu=False), activities),
            "allocations": allocations,
            "peak_bytes": torch.cuda.max_memory_allocated() - held_bytes,
        }
        return {"counts": counts, "kernels": [str(path) for path in kernels]}

    def wait_of(self, implementation: str) -> str:
        """What its call waits for the GPU by, which no stream that is captured permits; empty where it does not."""
        if self.device == "cpu":
            return ""
        called = inside(self._events_of_a_call(implementation), "call", gpu=False)
        return next((name for name in called if "Synchronize" in name), "")

    def _events_of_a_call(self, implementation: str) -> Sequence[Any]:
        """Of the range "call", and of "sample 0", which ends when the GPU is done."""
        with Profiler() as profile:
            self._prepare()
            with self.torch.profiler.record_function("sample 0"):
                with self.torch.profiler.record_function("call"):
                    self._call(implementation, self._next_logits())
                self.torch.cuda.synchronize()
        return profile.events

    def call_under_profiler(self) -> None:
        """One fused call as Nsight Compute is to see it: settled, and alone in the profiler's and an NVTX range."""
        cuda = self.torch.cuda
        logits = self._next_logits()
        self._prepare()
        cuda.profiler.start()
        with cuda.nvtx.range(self.workload.name):
            self._call("fused", logits)
            cuda.synchronize()
        cuda.profiler.stop()

    def _capture(self, implementation: str) -> None:
        """Into a CUDA graph: calls in turn on every draw and on ids of their own; none where it cannot be captured.

        Raises:
            OtherIdsError: its replay leaves other ids than calls outside of a graph.
        """
        draws = self.draws[:1] if self.workload.warm else self.draws
        calls = [(draws[number % len(draws)], ids) for number, ids in enumerate(self.graph_ids)]
        for graph in self._captured(implementation, [calls]):
            self.graphs[implementation] = graph
            self._replay(implementation)
            for logits, ids in calls:
                self._expect_ids_of_a_call(implementation, logits, ids)

    def _capture_draws(self, implementation: str) -> None:
        """Into a CUDA graph for each draw: one call, on the first place's ids; none where it cannot be captured.

        Raises:
            OtherIdsError: a replay leaves other ids than a call outside of a graph.
        """
        stream, self.ids = self.places[0]
        draws = self.draws[:MOST_GRAPHS]
        graphs = self._captured(implementation, [[(logits, self.ids)] for logits in draws])
        if not graphs:
            return
        self.draw_graphs[implementation] = graphs
        with self.torch.cuda.stream(stream):  # on which samples are taken: a graph's first launch uploads it
            for graph, logits in zip(graphs, draws, strict=True):
                self._prepare()
                graph.replay()
                self._expect_ids_of_a_call(implementation, logits, self.ids.clone())

    def _captured(self, implementation: str, rows: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> list[Any]:
        """A CUDA graph for each of these rows of calls on logits and ids; none where they cannot be captured.

        They share a pool of memory, as they are replayed one at a time: with as many intermediate results as there are
        draws, those of ten implementations might not fit. A step that kept something there for its next call would
        find what another graph's call has left.
        """
        torch = self.torch
        pool = torch.cuda.graph_pool_handle()
        graphs = []
        try:
            for row in rows:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool):
                    for logits, ids in row:
                        self.implementations[implementation](logits, ids, self.workload.mask_id, workloads.THRESHOLD)
                graphs.append(graph)
        except RuntimeError as error:  # torch's for what a stream that is captured does not permit, such as a wait
            self.not_captured[implementation] = str(error)
            return []
        return graphs

    def _expect_ids_of_a_call(self, implementation: str, logits: Tensor, ids: Tensor) -> None:
        """That a call outside of a graph leaves these ids, which a replay has left.

        Raises:
            OtherIdsError: it leaves others.
        """
        self.ids.copy_(self.prepared)
        self._call(implementation, logits)
        if not self.torch.equal(self.ids, ids):
            raise OtherIdsError(f"{self.workload.name}: in a CUDA graph, {implementation} leaves other ids")

    def _replay(self, implementation: str) -> float:
        """Microseconds a call, by CUDA events around the replay of a graph that was launched while the GPU was busy."""
        torch = self.torch
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.graph_ids.copy_(self.prepared.expand_as(self.graph_ids))
        torch.cuda._sleep(QUEUED_CYCLES)
        start.record()
        self.graphs[implementation].replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3 / len(self.graph_ids)

    def _replay_draw(self, implementation: str) -> float:
        """Microseconds on the host's clock, from before the replay of the next draw's graph until its result is
        ready."""
        graph = self._next_of(self.draw_graphs[implementation])
        self._prepare()
        start = time.perf_counter_ns()
        graph.replay()
        self.torch.cuda.synchronize()
        ready = time.perf_counter_ns()
        return (ready - start) / 1e3

    def _profiled(self, implementation: str) -> None:
        logits = self._next_logits()
        self._prepare()
        with self.torch.profiler.record_function(f"sample {self.samples}"):
            self._call(implementation, logits)
            self.torch.cuda.synchronize()
        self.samples += 1

    def _call(self, implementation: str, logits: Tensor) -> None:
        self.implementations[implementation](logits, self.ids, self.workload.mask_id, workloads.THRESHOLD)

    def _next_logits(self) -> Tensor:
        logits: Tensor = self._next_of(self.draws)
        return logits

    def _next_of(self, draws: Sequence[Any]) -> Any:
        """Of the draws, or of what was made of each."""
        self.turn += 1
        turn = self.rows if self.workload.warm else self.turn
        return draws[turn % len(draws)]

    def _prepare(self) -> None:
        self.ids.copy_(self.prepared)
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        else:
            time.sleep(SPIN_SECONDS)

    def _host_clocks(self, implementation: str) -> tuple[float, float, int, int]:
        logits = self._next_logits()
        self._prepare()
        waited_ns = machine.waited_ns() if self.device == "cpu" else 0
        start = time.perf_counter_ns()
        self._call(implementation, logits)
        returned = time.perf_counter_ns()
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        ready = time.perf_counter_ns()
        waited_ns = machine.waited_ns() - waited_ns if self.device == "cpu" else 0
        return (ready - start) / 1e3, (returned - start) / 1e3, ready - start, waited_ns


def _in_words(candidates: float, worst: float, ids: float, without_outputs: float) -> str:
    """What is wrong with a call of which so many candidates differ from the reference's, its confidence by `worst` at
    most, so many ids where confidence decides, and so many from its own without outputs; empty if nothing is."""
    if candidates:
        return f"{candidates:.0f} candidates differ from the reference"
    if not worst <= 2e-6:  # each may be 1e-6 off
        return f"a confidence is {worst:.1e} off the reference"
    if ids:
        return f"{ids:.0f} ids differ from the reference"
    return "without outputs, the call leaves other ids than with them" if without_outputs else ""


def wrong_ids(ids: Tensor, expected_ids: Tensor, expected_p: Tensor) -> Tensor:
    """How many differ where the reference's confidence decides."""
    wrong = (ids != expected_ids) & ~undecidable(expected_p).any(dim=-1, keepdim=True)  # the fallback hangs on each row
    return wrong.sum()


def undecidable(p: Tensor) -> Tensor:
    """Where the reference's confidence is so near the threshold that another may lie on its other side."""
    return (p - workloads.THRESHOLD).abs() <= 2e-6
