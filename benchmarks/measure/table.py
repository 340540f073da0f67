"""From workloads to a table's samples: implementations of the step and the limits, in turns, in this process.

For each workload, results are held against the reference on the inputs to be timed; what is wrong is not timed. The
fastest way to read the logits is searched for, calls are repeated until their times have settled, and then, on one
clock after the other, everything has its turns in random order: implementations, that fastest way, an empty kernel,
and a plain call of PyTorch. Whatever fails is named, and the rest goes on.
"""

from __future__ import annotations

import datetime
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

from benchmarks import implementations, limits, workloads
from benchmarks.implementations import Implementation
from benchmarks.measure import (
    ALONE_BYTES,
    CALLS,
    CLOCK_METHODS,
    MAX_WAIT,
    MIN_TURNS,
    command,
    machine,
)
from benchmarks.measure.bench import Bench, start
from benchmarks.results import INPUTS, Absence, Block, Environment, KernelTable, Kind, Times

TURNS_A_BLOCK = {"device_us": 80, "call_us": 75, "graph_us": 20}
MAX_SECONDS = 3.0  # of a block, after which no further turn is started
SEARCH_SAMPLES = 5  # of each way to read the logits
# What an implementation may end with: it may be a stranger's, whose code raises anything or leaves, and what was
# measured of the others is not to be lost with it.
FAILURES = (Exception, SystemExit)


def measure_table(
    chosen: Sequence[workloads.Workload],
    *,
    peers: Sequence[Implementation] = (),
    skipped: Sequence[workloads.Workload] = (),
    checked: bool = True,
    seed: int = 0,
    module: str,
    progress: Callable[[str], None],
) -> KernelTable:
    """Measure fused, reference, what else is present, and `peers`, in this process.

    Holds the machine's lock, and on a GPU runs on one processor while samples are taken. `progress` is called with a
    line of text for every workload begun; `module` is the one that was started, for the record.

    Raises:
        RuntimeError: CUDA or CUPTI failed outside of an implementation's first call.
    """
    environment = Environment(**start(None)["environment"])
    gpu = machine.current_gpu()
    with ExitStack() as stack:
        stack.enter_context(machine.lock(gpu.uuid_hash if gpu else "cpu", progress))
        began = time.monotonic()
        core = stack.enter_context(machine.cores(1))[0] if gpu else None
        table = _Table(environment.device_type, gpu, core, peers, checked, seed)
        for workload in chosen:
            progress(workload.name)
            table.measure(workload)
    return KernelTable(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=command(module, sys.argv[1:]),
        seconds=round(time.monotonic() - began, 1),
        seed=seed,
        environment=environment,
        checked=checked,
        workloads=tuple(workload.name for workload in chosen),
        skipped=tuple(workload.name for workload in skipped),
        implementations=tuple(table.implementations),
        peers={peer.name: peer.sha256 for peer in peers if peer.sha256},
        limits=(limits.FLOOR, *table.limits),
        clock_methods=CLOCK_METHODS[environment.device_type],
        floor_searches=table.floor_searches,
        times=tuple(table.times),
        absences=tuple(table.absences),
        blocks=tuple(table.blocks),
    )


class _Table:
    """Measures workload by workload and keeps what was found."""

    def __init__(
        self,
        device_type: str,
        gpu: machine.Gpu | None,
        core: int | None,
        peers: Sequence[Implementation],
        checked: bool,
        seed: int,
    ) -> None:
        self.clocks = CALLS[device_type]
        self.gpu = gpu
        self.core = core
        self.peers = peers
        self.checked = checked
        self.seed = seed
        # Names, each once, in the order of first appearance.
        self.implementations: dict[str, None] = {"fused": None, "reference": None}
        self.limits: dict[str, None] = {}
        self.floor_searches: dict[str, dict[str, float]] = {}
        self.times: list[Times] = []
        self.absences: list[Absence] = []
        self.blocks: list[Block] = []

    def measure(self, workload: workloads.Workload) -> None:
        try:
            bench = Bench(workload.name, self.seed)
        except RuntimeError as error:  # out of memory, PyTorch's for the CPU's too
            self._absent(workload.name, INPUTS, "failed", error)
            return
        others = {one.name: one.step for one in [*implementations.present(), *self.peers]}
        bench.implementations.update(others)
        self.implementations |= dict.fromkeys(bench.implementations)
        if self._is_sound(bench, "reference"):  # or there is nothing to hold the others against
            self._take_turns(bench)
        bench.close()

    def _take_turns(self, bench: Bench) -> None:
        sound = {
            name: step
            for name, step in bench.implementations.items()
            if name == "reference" or self._is_sound(bench, name)
        }
        bounds = limits.others(bench.draws[0])
        self.limits |= dict.fromkeys(bounds)
        everything = {**sound, limits.FLOOR: self._fastest_reader(bench), **bounds}
        bench.implementations = everything
        bench.warm_up()
        rng = random.Random(f"{self.seed} {bench.workload.name}")
        for clock in self.clocks:
            bench.implementations = self._capturable(bench, everything) if clock == "graph_us" else everything
            self._block(bench, clock, rng)

    def _is_sound(self, bench: Bench, name: str) -> bool:
        """Whether it runs and, if that is asked, is right. The first call may compile, and ask for more memory than
        there is."""
        try:
            if not self.checked:
                bench.sample(name, 1)
                return True
            disagreement = bench.disagreement(name)
        except FAILURES as error:
            self._absent(bench.workload.name, name, "failed", error)
            return False
        if disagreement:
            self._absent(bench.workload.name, name, "wrong", disagreement)
        return not disagreement

    def _fastest_reader(self, bench: Bench) -> implementations.Step:
        """On the clock that it is least disturbed on: inside a graph; without a GPU, that of the call."""
        found = limits.readers(bench.workload.masked_rows, bench.draws[0])
        clock = "graph_us" if "graph_us" in self.clocks else "call_us"
        medians = {}
        for name, reader in found.items():
            bench.implementations = {name: reader}
            bench.sample(name, 1)  # compiles it, which no capture permits
            bench.begin(clock)
            replies = bench.sample(name, SEARCH_SAMPLES)
            medians[name] = statistics.median(bench.end() or [call_us for call_us, *_ in replies])
        self.floor_searches[bench.workload.name] = medians
        return found[min(medians, key=medians.__getitem__)]

    def _capturable(self, bench: Bench, everything: dict[str, implementations.Step]) -> dict[str, implementations.Step]:
        """Those whose calls a CUDA graph can hold. One that waits is not tried: PyTorch does not recover from that."""
        found = {}
        waits = {name: bench.wait_of(name) for name in everything}
        for name, step in everything.items():
            reason: str | Exception = ""
            if wait := waits[name]:
                reason = f"its call waits for the GPU ({wait})"
            else:
                bench.implementations = {name: step}
                try:
                    bench.begin("graph_us")
                    reason = bench.not_captured.get(name, "")
                except RuntimeError as error:  # its replay leaves other ids
                    reason = error
                bench.end()
            if reason:
                self._absent(bench.workload.name, name, "not captured", reason)
            else:
                found[name] = step
        return found

    def _block(self, bench: Bench, clock: str, rng: random.Random) -> None:
        name = bench.workload.name
        calls = 1 if bench.workload.bytes_read > ALONE_BYTES else self.clocks[clock]
        ready = bench.begin(clock, self.core)
        order: list[str] = []
        replies: list[tuple[float, float, int, int]] = []
        deadline = time.monotonic() + MAX_SECONDS
        turns = 0
        while turns < TURNS_A_BLOCK[clock] and (turns < MIN_TURNS or time.monotonic() < deadline):
            for implementation in rng.sample(ready, len(ready)):
                replies += bench.sample(implementation, calls)
                order += [implementation] * calls
            turns += 1
        state = self.gpu.state([os.getpid()]) if self.gpu else None
        self.blocks.append(Block(name, 0, clock, state.fault if state else "", state))
        if ended := bench.end():
            self._keep(name, clock, order, ended)
            return
        # A call whose threads waited for a processor was measured together with what took it.
        calm = [waited_ns <= MAX_WAIT * ns for *_, ns, waited_ns in replies]
        self._keep(name, "call_us", order, [call_us for call_us, *_ in replies], calm)
        if self.gpu:
            self._keep(name, "host_us", order, [host_us for _, host_us, *_ in replies], calm)

    def _keep(
        self, workload: str, clock: str, order: Sequence[str], us: Iterable[float], calm: Sequence[bool] = ()
    ) -> None:
        """The calm samples of each; if those of one are too few, all of all, and then it says so."""
        every: dict[str, list[float]] = {name: [] for name in order}
        kept: dict[str, list[float]] = {name: [] for name in order}
        for name, value, was_calm in zip(order, us, calm or [True] * len(order), strict=True):
            every[name].append(value)
            if was_calm:
                kept[name].append(value)
        quiet = all(len(values) >= MIN_TURNS for values in kept.values())
        for name, values in (kept if quiet else every).items():
            self.times.append(Times(workload, name, clock, tuple(values), quiet))

    def _absent(self, workload: str, name: str, kind: Kind, reason: str | BaseException) -> None:
        text = reason if isinstance(reason, str) else f"{type(reason).__name__}: {reason}"
        self.absences.append(Absence(workload, name, kind, " ".join(text.split())[:300]))
