"""From workloads to a table's samples: implementations of the step and the limits, in turns, in this process.

For each workload, results are held against the reference on the inputs to be timed; what is wrong is not timed. The
fastest way to read the logits is searched for, calls are repeated until their times have settled, and then, on one
clock after the other, everything has its turns in random order: implementations, that fastest way, an empty kernel,
and a plain call of PyTorch. Then results are held against the reference again. Whatever fails or is wrong by then is
named and has no times, and the rest goes on; but after what ends this process's use of the GPU, as a call does that
reads where no memory is, there is no rest.
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
from benchmarks.measure.bench import MOST_GRAPHS, Bench, OtherIdsError, start
from benchmarks.results import GRAPH_CLOCKS, INPUTS, Absence, Block, Environment, KernelTable, Kind, Times

# A table's clocks are a run's and one more: an engine that replays the step as a CUDA graph saves an implementation of
# many launches most of what they cost the host.
TABLE_CALLS = {**CALLS, "cuda": {**CALLS["cuda"], "replay_us": 1}}
TABLE_CLOCK_METHODS = {
    **CLOCK_METHODS,
    "cuda": {
        **CLOCK_METHODS["cuda"],
        "replay_us": "host clock from an idle GPU, from before the replay of a CUDA graph of one call until the result "
        f"is ready; ids restored outside of the sample; a graph for each draw of logits, {MOST_GRAPHS} at most; rows "
        "of replays as of device_us",
    },
}
TURNS_A_BLOCK = {"device_us": 80, "call_us": 75, "graph_us": 20, "replay_us": 75}
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
    keep: Callable[[KernelTable], None] = lambda table: None,
) -> KernelTable:
    """Measure fused, reference, what else is present, and `peers`, in this process.

    Holds the machine's lock, and on a GPU runs on one processor while samples are taken. Workloads of which more is
    masked come first. `progress` is called with a line of text for every workload begun, and `keep` with the table so
    far for every one that ended; `module` is what was started, for the record.

    Raises:
        RuntimeError: CUDA or CUPTI failed outside of an implementation's calls.
    """
    # A peer that tunes itself does so at its first call of a vocabulary: not where it has no row to read.
    chosen = sorted(chosen, key=lambda workload: -workload.masked_percent)
    environment = Environment(**start(None)["environment"])
    gpu = machine.current_gpu()
    with ExitStack() as stack:
        stack.enter_context(machine.lock(gpu.uuid_hash if gpu else "cpu", progress))
        began = time.monotonic()
        core = stack.enter_context(machine.cores(1))[0] if gpu else None
        table = _Table(environment.device_type, gpu, core, peers, checked, seed)

        def so_far(left: Sequence[workloads.Workload]) -> KernelTable:
            unreached = (
                Absence(one.name, INPUTS, "failed", "not reached: the measurement ended before") for one in left
            )
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
                clock_methods=TABLE_CLOCK_METHODS[environment.device_type],
                floor_searches=dict(table.floor_searches),
                times=tuple(table.times),
                absences=(*table.absences, *unreached),
                blocks=tuple(table.blocks),
            )

        for number, workload in enumerate(chosen):
            progress(workload.name)
            try:
                table.measure(workload)
            except _GpuLostError as lost:
                table.end([one.name for one in chosen[number:]], lost)
                break
            keep(so_far(chosen[number + 1 :]))
        return so_far(())


class _TurnError(Exception):
    """What an implementation or a limit ended with in its turn."""

    def __init__(self, name: str, error: BaseException) -> None:
        super().__init__(name)
        self.name = name
        self.error = error


class _GpuLostError(Exception):
    """What an implementation did after which nothing in this process runs on the GPU."""


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
        self.clocks = TABLE_CALLS[device_type]
        self.gpu = gpu
        self.core = core
        self.peers = peers
        self.checked = checked
        self.seed = seed
        # Names, each once, in the order of first appearance.
        self.implementations: dict[str, None] = {"fused": None, "reference": None}
        self.limits: dict[str, None] = {}
        self.timed: dict[str, implementations.Step] = {}  # of the workload at hand, what has not failed
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

    def end(self, workloads_left: Sequence[str], lost: _GpuLostError) -> None:
        """Of the first, what was timed before was not checked after; the others cannot be measured."""
        self.times = [one for one in self.times if one.workload != workloads_left[0]]
        for workload in workloads_left:
            self._absent(workload, INPUTS, "failed", str(lost))

    def _take_turns(self, bench: Bench) -> None:
        sound = {
            name: step
            for name, step in bench.implementations.items()
            if name == "reference" or self._is_sound(bench, name)
        }
        bounds = limits.others(bench.draws[0])
        self.limits |= dict.fromkeys(bounds)
        self.timed = {**sound, limits.FLOOR: self._fastest_reader(bench), **bounds}
        self._warm_up(bench)
        rng = random.Random(f"{self.seed} {bench.workload.name}")
        bench.implementations = self.timed
        for clock in self.clocks:
            if clock == "graph_us":  # and for replay_us after it
                bench.implementations = self._capturable(bench, self.timed)
            self._block(bench, clock, rng)
        self._drop_unsound(bench)

    def _is_sound(self, bench: Bench, name: str) -> bool:
        fault = self._fault(bench, name)
        if fault:
            self._absent(bench.workload.name, name, *fault)
        return not fault

    def _fault(self, bench: Bench, name: str) -> tuple[Kind, str | BaseException] | None:
        """That it does not run or, if that is asked, is not right. The first call may compile, and ask for more memory
        than there is."""
        try:
            if not self.checked:
                bench.sample(name, 1)
                return None
            disagreement = bench.disagreement(name)
        except FAILURES as error:
            _expect_gpu(bench, name, error)
            return "failed", error
        return ("wrong", disagreement) if disagreement else None

    def _drop_unsound(self, bench: Bench) -> bool:
        """What was right at first, and is not after it was timed; whether there was any."""
        turns, bench.implementations = bench.implementations, self.timed
        beside = [name for name in self.timed if name in self.implementations and name != "reference"]
        faults = {name: self._fault(bench, name) for name in beside if "reference" in self.timed}
        bench.implementations = turns
        for name, fault in faults.items():
            if fault:
                self._drop(bench, name, *fault, when="after it was timed: ")
        return any(faults.values())

    def _drop(self, bench: Bench, name: str, kind: Kind, reason: str | BaseException, when: str) -> None:
        """It is not timed any more, and none of its times is kept."""
        workload = bench.workload.name
        for some in (self.timed, bench.implementations):
            some.pop(name, None)
        self.times = [one for one in self.times if (one.workload, one.implementation) != (workload, name)]
        self._absent(workload, name, kind, reason, when)

    def _warm_up(self, bench: Bench) -> None:
        for name, step in list(self.timed.items()):
            bench.implementations = {name: step}
            try:
                bench.warm_up()
            except FAILURES as error:
                _expect_gpu(bench, name, error)
                self._drop(bench, name, "failed", error, when="before it was timed: ")

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
        for name, step in list(everything.items()):
            bench.implementations = {name: step}
            reason = _why_not_captured(bench, name)
            if isinstance(reason, RuntimeError):
                _expect_gpu(bench, name, reason)
            if isinstance(reason, OtherIdsError):
                self._drop(bench, name, "wrong", reason, when="")
            elif reason:
                self._absent(bench.workload.name, name, "not captured", reason)
            else:
                found[name] = step
        return found

    def _block(self, bench: Bench, clock: str, rng: random.Random) -> None:
        """Of all that the bench has; begun again without what fails meanwhile."""
        while True:
            try:
                return self._turns(bench, clock, rng)
            except _TurnError as failed:
                _expect_gpu(bench, failed.name, failed.error)
                bench.abandon()
                kind: Kind = "wrong" if isinstance(failed.error, OtherIdsError) else "failed"
                self._drop(bench, failed.name, kind, failed.error, when="while it was timed: ")
            except RuntimeError:  # CUPTI's, too, where calls have stopped to do anything
                bench.abandon()
                if not self._drop_unsound(bench):
                    raise

    def _turns(self, bench: Bench, clock: str, rng: random.Random) -> None:
        name = bench.workload.name
        calls = 1 if bench.workload.bytes_read > ALONE_BYTES else self.clocks[clock]
        ready = self._begin(bench, clock)
        order: list[str] = []
        replies: list[tuple[float, float, int, int]] = []
        deadline = time.monotonic() + MAX_SECONDS
        turns = 0
        while turns < TURNS_A_BLOCK[clock] and (turns < MIN_TURNS or time.monotonic() < deadline):
            for implementation in rng.sample(ready, len(ready)):
                try:
                    replies += bench.sample(implementation, calls)
                except FAILURES as error:
                    raise _TurnError(implementation, error) from error
                order += [implementation] * calls
            turns += 1
        state = self.gpu.state([os.getpid()]) if self.gpu else None
        ended = bench.end()
        self.blocks.append(Block(name, 0, clock, state.fault if state else "", state))
        if ended:
            self._keep(name, clock, order, ended)
            return
        # A call whose threads waited for a processor was measured together with what took it.
        calm = [waited_ns <= MAX_WAIT * ns for *_, ns, waited_ns in replies]
        self._keep(name, "call_us", order, [call_us for call_us, *_ in replies], calm)
        if self.gpu:
            self._keep(name, "host_us", order, [host_us for _, host_us, *_ in replies], calm)

    def _begin(self, bench: Bench, clock: str) -> list[str]:
        if clock not in GRAPH_CLOCKS:
            return bench.begin(clock, self.core)
        ready = []
        for name in list(bench.implementations):  # one by one, to know whose capture fails
            try:
                ready = bench.begin(clock, self.core, [name])
            except FAILURES as error:
                raise _TurnError(name, error) from error
            if name not in ready:  # though it was captured before: there may be no memory for more graphs
                del bench.implementations[name]
                self._absent(bench.workload.name, name, "not captured", bench.not_captured[name])
        return ready

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

    def _absent(self, workload: str, name: str, kind: Kind, reason: str | BaseException, when: str = "") -> None:
        text = reason if isinstance(reason, str) else f"{type(reason).__name__}: {reason}"
        self.absences.append(Absence(workload, name, kind, " ".join(f"{when}{text}".split())[:300]))


def _expect_gpu(bench: Bench, name: str, error: BaseException) -> None:
    """After a failure, that the GPU still runs what it is given.

    Raises:
        _GpuLostError: nothing runs any more.
    """
    if bench.device != "cuda":
        return
    try:
        bench.torch.cuda.synchronize()
    except RuntimeError:
        raise _GpuLostError(
            f"nothing runs on the GPU any more after {name} failed; measure again without it "
            f"({type(error).__name__}: {error})"
        ) from error


def _why_not_captured(bench: Bench, name: str) -> str | BaseException:
    """Empty where a CUDA graph can hold its calls."""
    try:
        if wait := bench.wait_of(name):
            return f"its call waits for the GPU ({wait})"
        bench.begin("graph_us")
        return bench.not_captured.get(name, "")
    except FAILURES as error:
        return error
    finally:
        bench.abandon()
