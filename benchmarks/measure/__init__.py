"""From workloads to raw samples, in fresh worker processes. Measures, never judges.

The conductor starts the workers, tells them one by one what to do, and keeps what they report. Each workload's results
are checked on the inputs to be timed, calls are repeated until their times have settled, and then samples are taken in
pairs, the two of a pair one after the other, in random order and next time in the other: fused beside reference, and,
when two states of the package are compared, head beside base, each in a process of its own, driven in lock-step.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import math
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import engines, machine_code, workloads
from benchmarks.measure import machine
from benchmarks.measure.nursery import Worker, nursery
from benchmarks.measure.sides import INSTALLED, Side
from benchmarks.results import Block, Check, Environment, GpuState, Run, Series

CLOCK_METHODS = {
    "cuda": {
        "device_us": "sum of the durations of the call's kernels, copies and fills, from CUPTI through PyTorch's "
        "profiler, which notes no operators; calls in rows; before a row other data of twice the L2 cache's size are "
        "read, unless a call reads as much or is to find its logits there, and then one or two calls are not timed; on "
        "memory that was allocated before",
        "call_us": "host clock from an idle GPU until the result is ready; rows as of device_us",
        "host_us": "host clock until the call returns, otherwise as call_us",
        "graph_us": "a call's share of the replay of a CUDA graph of 16 calls or more (2 on 0.5 GiB of logits), "
        "by CUDA events; the ids are restored before the replay; the first of two replays is not timed",
    },
    "cpu": {"call_us": "host clock around the call"},
}
# The clocks that blocks of samples are taken on, and calls in a row, a sample each, before it is the other's turn.
# Of as many calls, few in a row tell most: on an H100, what the calls of a row share is two thirds of the variance.
CALLS = {"cuda": {"device_us": 2, "call_us": 1, "graph_us": 1}, "cpu": {"call_us": 1}}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How much a process's samples have to tell."""

    turns: dict[str, int]  # in a block
    blocks: dict[str, int]  # at most, of one workload, clock and process
    precision: dict[str, float]  # standard error of the median of rows' log ratios, at which they end sooner


# A speedup is held against a loss of some percent; beside a base, 1 % is to be seen: on an H200, where the standard
# error of a process is about all that processes of the same code differ by, 0.35 % of one is 0.8 % told by three on the
# device's clock, and 1.5 % is 3.5 % on the call's, of which 5 % are allowed. Graphs are not judged.
OF_SPEEDUP = Sampling(
    turns={"device_us": 20, "call_us": 30, "graph_us": 10},
    blocks={"cuda": 2, "cpu": 1},
    precision={"device_us": 0.008, "call_us": 0.03, "graph_us": math.inf},
)
OF_SLOWDOWN = Sampling(
    turns={"device_us": 80, "call_us": 75, "graph_us": 20},
    blocks={"cuda": 2, "cpu": 1},
    precision={"device_us": 0.0035, "call_us": 0.015, "graph_us": math.inf},
)
MAX_SECONDS = {"cuda": 1.0, "cpu": 0.9}  # of a block, after which no further turn is started
MIN_TURNS = 3  # with the reference: those that are missing then are taken all the same
RETAKES = 2  # of a block during which the GPU was throttled or another process used it
MAX_WAIT = 0.05  # of a pair's time that our threads, together, may wait for a processor
# Turns with the reference in a block, when head and base are compared; then, where calls are alone in their rows. It
# takes so long that it would take most of the time. Its times on the host's clock vary most: of five turns, speedups of
# processes differed by up to 15 %, which left some of 25 workloads in doubt at every first look.
REFERENCE_TURNS = {
    "cuda": {"device_us": (4, 4), "call_us": (10, 5), "graph_us": (1, 1)},
    "cpu": {"call_us": (19, 19)},
}
TOGETHER_BYTES = 2**28  # of logits, up to which all processes hold a workload at once: else memory may not suffice
# Read by a call that takes so long that what ran before does not matter: it is alone in its row, and half as many rows
# tell as much.
ALONE_BYTES = 2**28

Progress = Callable[[str], None]
# A pair: whose and which implementation, beside whose and which.
Pair = tuple[tuple[str, str], tuple[str, str]]
# What each of a pair replied, in the order in which they were asked.
Turn = tuple[Pair, dict[tuple[str, str], Any]]


def has_gpu() -> bool:
    """Whether there is a GPU to measure on. The first answer takes seconds: PyTorch is imported."""
    return nursery().gpu_uuid is not None


def device() -> str:
    """The model that would be measured on, as records name it. This process starts no CUDA for it, which would be
    another process on the GPU."""
    return nursery().gpu_name or machine.cpu_name()


def measure(
    chosen: Sequence[workloads.AnyWorkload],
    *,
    head: Side = INSTALLED,
    base: Side | None = None,
    skipped: Sequence[workloads.AnyWorkload] = (),
    processes: int = 3,
    seed: int = 0,
    first_process: int = 0,
    clocks: Mapping[str, Collection[str]] | None = None,
    progress: Progress | None = None,
    waiting: Progress | None = None,
) -> Run:
    """Measure `head`, beside `base` if there is one, in `processes` fresh processes a side.

    Processes are numbered from `first_process`; both sides of a number see the same inputs. Fused is held beside the
    reference of `base`, so that a change of the reference changes no speedup. With `clocks`, each workload is timed on
    its own there alone. `progress` is called with a line of text for every workload of every process begun, `waiting`
    once if another run measures here.

    Raises:
        ValueError: `clocks` lacks one of the workloads.
        RuntimeError: an engine that is asked for cannot be fetched; a worker failed, and the message holds what it
            printed; or what is measured changed meanwhile.
    """
    if clocks is not None and (lacking := {one.name for one in chosen} - set(clocks)):
        raise ValueError(f"clocks: expected those of every workload; got none of {', '.join(sorted(lacking))}")
    for step in {workload.engine for workload in chosen if isinstance(workload, workloads.EngineStep)}:
        engines.fetch(step)  # here, where no worker fetches it too
    sides = {"head": head} if base is None else {"head": head, "base": base}
    gpu = machine.Gpu(uuid) if (uuid := nursery().gpu_uuid) else None
    with ExitStack() as stack:
        # Before a process of ours appears on the GPU, which another run there would notice.
        lock = stack.enter_context(machine.lock(gpu.uuid_hash if gpu else "cpu", waiting or progress))
        began = time.monotonic()
        started = stack.enter_context(_start(sides, range(first_process, first_process + processes), lock))
        environment, files = _common_environment(started.values(), head)
        conductor = _Conductor(environment.device_type, seed, gpu, clocks)
        conductor.ours = [worker.pid for workers in started.values() for worker in workers.values()]
        if gpu:
            conductor.cores = dict(zip(started, stack.enter_context(machine.cores(processes)), strict=True))
            if clocks is None:  # a further look finds all of it compiled
                _compile(chosen, list(started.values()))
        for workload in chosen:
            conductor.measure_workload(workload, started, progress)
        seconds = time.monotonic() - began
    return Run(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=command("benchmarks", sys.argv[1:]),
        seconds=round(seconds, 1),
        seed=seed,
        environment=environment,
        base=None if base is None else base.state,
        files=files,
        workloads=tuple(w.name for w in chosen if w.name not in conductor.absent),
        skipped=(*(w.name for w in skipped), *conductor.absent),
        clock_methods=CLOCK_METHODS[environment.device_type],
        checks=tuple(conductor.checks),
        series=tuple(conductor.series),
        blocks=tuple(conductor.blocks),
        counts=_with_code(conductor.counts, conductor.kernels),
    )


@contextmanager
def _start(sides: dict[str, Side], numbers: Sequence[int], lock: int) -> Iterator[dict[int, dict[str, Worker]]]:
    """All at once, because they take seconds to start. They wait for commands and take no time from each other.

    Whose is the first of two alternates, so that neither side always has the memory that is given out first.
    """
    started: dict[int, dict[str, Worker]] = {number: {} for number in numbers}
    try:
        for number, workers in started.items():
            for name in sorted(sides, reverse=number % 2 == 0):  # head, then base
                workers[name] = nursery().worker(sides[name], lock)
        yield started
    finally:
        every = [worker for workers in started.values() for worker in workers.values()]
        for worker in every:
            worker.kill()
        for worker in every:
            worker.wait()


def _compile(chosen: Sequence[workloads.AnyWorkload], started: Sequence[dict[str, Worker]]) -> None:
    """The kernels of the workloads, each process those of some: as each workload is opened, all processes would compile
    the same ones at the same time, 14 s of a run of everything on an H200."""
    of_each_kind = list({workloads.kernels_of(workload): workload.name for workload in chosen}.values())
    for number, workers in enumerate(started):
        for worker in workers.values():
            worker.send("compile", chosen=of_each_kind[number :: len(started)])
    for workers in started:
        for worker in workers.values():
            worker.receive()


def _with_code(
    counts: dict[str, dict[str, dict[str, int]]], kernels: dict[tuple[str, str], list[str]]
) -> dict[str, dict[str, dict[str, int]]]:
    """The counts by side and workload, with what the kernels of each are made of (`machine_code.Code`)."""
    files = {Path(name) for names in kernels.values() for name in names}
    with ThreadPoolExecutor() as pool:  # each waits for a program of half a second
        codes = dict(zip(files, pool.map(_code_of, files), strict=True))
    found = {side: dict(of_workloads) for side, of_workloads in counts.items()}
    for (side, workload), names in kernels.items():
        read = [code for name in names if (code := codes[Path(name)])]
        if read and len(read) == len(names):
            found[side][workload] = {**counts[side][workload], **dataclasses.asdict(machine_code.together(read))}
    return found


def _code_of(file: Path) -> machine_code.Code | None:
    """None where it cannot be read: the figures explain a slowdown, and minutes of measuring are not lost for them."""
    try:
        return machine_code.read(file)
    except (RuntimeError, OSError) as error:
        print(f"machine code: not in the record, because {error}", file=sys.stderr)
        return None


def _common_environment(started: Iterable[dict[str, Worker]], head: Side) -> tuple[Environment, dict[str, str]]:
    """What every worker says of the machine, and what the heads say of the package; and which file each side's
    imported."""
    found: list[Environment] = []
    files: dict[str, str] = {}
    for workers in started:
        for name, worker in sorted(workers.items(), reverse=True):  # head, which is the first that is found
            reply = worker.receive()
            files[name] = reply["file"]
            environment = Environment(**reply["environment"])
            if name == "head" and head.state is not None:
                environment = dataclasses.replace(environment, commit=head.state.commit, dirty=head.state.dirty)
            elif name != "head":
                environment = dataclasses.replace(environment, commit=found[0].commit, dirty=found[0].dirty)
            found.append(environment)
    if not found:
        raise RuntimeError("measure: expected at least one process to report where it ran")
    for other in found[1:]:
        if other != found[0]:
            raise RuntimeError(f"measure: the machine or the checkout changed: {found[0]}, then {other}")
    return found[0], files


class _Conductor:
    """Drives the workers of one run and keeps what they report."""

    def __init__(
        self,
        device_type: str,
        seed: int,
        gpu: machine.Gpu | None,
        clocks: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        self.device = device_type
        self.seed = seed
        self.gpu = gpu
        self.clocks = clocks  # to be timed on, by workload; None: all
        self.ours: list[int] = []  # processes on the GPU
        # The processor that both sides of a process share: on a virtual machine with an H100 the call took 87 us on one
        # and 165 us on another; two processes on one agreed within 2 %, each on its own within 27 %.
        self.cores: dict[int, int | None] = {}
        self.checks: list[Check] = []
        self.absent: dict[str, None] = {}  # workloads that base is too old for
        self.series: list[Series] = []
        self.blocks: list[Block] = []
        self.counts: dict[str, dict[str, dict[str, int]]] = {}  # of one fused call, by side and workload
        self.kernels: dict[tuple[str, str], list[str]] = {}  # the files of their machine code

    def measure_workload(
        self,
        workload: workloads.AnyWorkload,
        started: dict[int, dict[str, Worker]],
        progress: Progress | None = None,
    ) -> None:
        together = workload.logits_bytes <= TOGETHER_BYTES
        for group in [started] if together else [{process: workers} for process, workers in started.items()]:
            correct = self._open(workload.name, group)
            for process, workers in group.items():
                if progress:
                    progress(f"{workload.name}, process {process + 1}")
                if correct[process]:
                    self._measure_process(workload.name, process, workers)
            _ask_all({(n, name): w for n, workers in group.items() for name, w in workers.items()}, "close")

    def _open(self, workload: str, group: dict[int, dict[str, Worker]]) -> dict[int, bool]:
        """Make the inputs and check the results on them, in all processes at once: they may have to compile."""
        for process, workers in group.items():
            for worker in workers.values():
                worker.send("open", workload=workload, seed=self.seed + 1000 * process)
        correct = {}
        for process, workers in group.items():
            replies = {name: worker.receive() for name, worker in workers.items()}
            if replies.get("base", {}).get("absent") and not replies["head"].get("absent"):
                self.absent[workload] = None
                correct[process] = False
                continue
            check = _check_of(workload, process, replies)
            self.checks.append(dataclasses.replace(check, clocks=self._chosen_clocks(workload)))
            correct[process] = check.passed
        return correct

    def _measure_process(self, workload: str, process: int, workers: dict[str, Worker]) -> None:
        for worker in workers.values():  # one after the other: they would slow each other down
            worker.ask("warm_up")
        if any(workload not in self.counts.get(name, {}) for name in workers):
            for name, reply in _ask_all(workers, "counts").items():
                self.counts.setdefault(name, {})[workload] = reply["counts"]
                self.kernels[name, workload] = reply["kernels"]
        rng = random.Random(f"{self.seed} {process} {workload}")
        chosen = self._chosen_clocks(workload)
        for clock in CALLS[self.device]:
            if clock not in workloads.clocks_of(workload) or (clock == "graph_us" and process > 0):
                continue  # one process is enough for what is not judged
            if chosen is None or clock in chosen:
                self._measure_clock(workload, process, clock, workers, rng)

    def _chosen_clocks(self, workload: str) -> tuple[str, ...] | None:
        return None if self.clocks is None else tuple(sorted(self.clocks[workload]))

    def _measure_clock(
        self, workload: str, process: int, clock: str, workers: dict[str, Worker], rng: random.Random
    ) -> None:
        alone = workloads.WORKLOADS[workload].bytes_read > ALONE_BYTES
        calls = 1 if alone else CALLS[self.device][clock]
        sampling = _sampling(workers)
        wanted = sampling.turns[clock] // (2 if alone else 1)
        taken: dict[tuple[str, Pair], list[tuple[float, float]]] = {}
        disturbed: set[tuple[str, Pair]] = set()
        blocks = retakes = 0
        while blocks < sampling.blocks[self.device]:
            pairs, disturbed_now, state = self._block(
                clock, calls, wanted, REFERENCE_TURNS[self.device][clock][alone], process, workers, rng
            )
            fault = "" if state is None else state.fault
            self.blocks.append(Block(workload, process, clock, fault, state))
            if fault:
                retakes += 1
                if retakes > RETAKES:
                    return
                continue
            if not pairs:
                return
            blocks += 1
            disturbed |= disturbed_now
            for key, values in pairs.items():
                taken.setdefault(key, []).extend(values)
            first = next(values for (name, _), values in taken.items() if name == clock)
            if _standard_error(first, calls) < sampling.precision[clock]:
                break
        for key, values in taken.items():
            name, ((_, implementation), (side, beside)) = key
            us, beside_us = zip(*values, strict=True)
            beside = f"base {beside}" if side == "base" else beside
            quiet = key not in disturbed
            self.series.append(Series(workload, name, process, implementation, beside, us, beside_us, quiet))

    def _block(
        self, clock: str, calls: int, wanted: int, reference_turns: int, process: int, workers: dict[str, Worker],
        rng: random.Random,
    ) -> tuple[dict[tuple[str, Pair], list[tuple[float, float]]], set[tuple[str, Pair]], GpuState | None]:  # fmt: skip
        """One block of so many turns, some of them with the reference: samples by clock and pair; those of which other
        work disturbed most; the GPU's state at its end, or at its start where that was at fault."""
        # A graph of the reference's calls takes longest to capture and tells nothing of head beside base.
        only = ["fused"] if clock == "graph_us" and "base" in workers else None
        ready = _ask_all(workers, "begin", clock=clock, core=self.cores.get(process), only=only)
        state = self.gpu.state(self.ours) if self.gpu else None
        turns: list[Turn] = []
        deadline = time.monotonic() + MAX_SECONDS[self.device]
        number = references = 0
        reversed_orders: dict[Pair, list[tuple[str, str]]] = {}  # that are due
        while number < wanted:
            is_over = time.monotonic() >= deadline
            if is_over and references >= MIN_TURNS:
                break
            with_reference = is_over or number * reference_turns // wanted != (number - 1) * reference_turns // wanted
            references += with_reference
            for pair in _pairs_of(workers, with_reference):
                if any(implementation not in ready[side] for side, implementation in pair):
                    continue
                # Each order as often as the other: on an H100 fused took 7.4 us in some rows and 9.4 in others beside
                # base's reference, presumably after it; drawn anew each time, three to nine rows did not even that out.
                order = reversed_orders.pop(pair, None)
                if order is None:
                    order = rng.sample(pair, 2)
                    reversed_orders[pair] = order[::-1]
                turn = {}  # which keeps that order
                for side, implementation in order:
                    turn[side, implementation] = workers[side].ask("sample", implementation=implementation, calls=calls)
                turns.append((pair, turn))
            number += 1
        if self.gpu and not (state and state.fault):
            state = self.gpu.state(self.ours)
        ended = _ask_all(workers, "end")
        if clock in ("device_us", "graph_us"):
            return _on_the_clocks_of_the_gpu(clock, turns, ended, calls), set(), state
        return *_on_the_host_clocks(turns, self.device), state


def _ask_all(workers: dict[Any, Worker], do: str, **arguments: Any) -> dict[Any, Any]:
    """All at once: outside of samples nothing is disturbed by that."""
    for worker in workers.values():
        worker.send(do, **arguments)
    return {name: worker.receive() for name, worker in workers.items()}


def _sampling(workers: dict[str, Worker]) -> Sampling:
    return OF_SLOWDOWN if "base" in workers else OF_SPEEDUP


def _pairs_of(workers: dict[str, Worker], with_reference: bool) -> list[Pair]:
    if "base" not in workers:
        return [(("head", "fused"), ("head", "reference"))]
    pairs: list[Pair] = [(("head", "fused"), ("base", "fused"))]
    if with_reference:
        # The references first: after a pair with base's alone, head's, which ran some turns ago, took 3 % longer on the
        # host's clock.
        pairs += [
            (("head", "reference"), ("base", "reference")),
            (("head", "fused"), ("base", "reference")),
        ]
    return pairs


def _on_the_clocks_of_the_gpu(
    clock: str, turns: Sequence[Turn], ended: dict[str, list[float]], calls: int
) -> dict[tuple[str, Pair], list[tuple[float, float]]]:
    """Each worker reports its samples in its own order."""
    samples = {name: iter(values) for name, values in ended.items()}
    taken: dict[tuple[str, Pair], list[tuple[float, float]]] = {}
    for pair, turn in turns:
        us = {member: list(itertools.islice(samples[member[0]], calls)) for member in turn}
        taken.setdefault((clock, pair), []).extend(zip(us[pair[0]], us[pair[1]], strict=True))
    return taken


def _on_the_host_clocks(
    turns: Sequence[Turn], device: str
) -> tuple[dict[tuple[str, Pair], list[tuple[float, float]]], set[tuple[str, Pair]]]:
    """Samples of each pair during which our threads did not wait for a processor; if those are fewer than half, all of
    that pair, which is then among the disturbed ones.

    Such a wait says that other work ran here, and lengthens the implementation that splits its work more finely: on
    two busy cores fused has been seen to take five times the reference's time instead of a fifth of it. Where most
    samples waited, it may be for our own threads, which is what is to be seen.
    """
    every: dict[tuple[str, Pair], list[tuple[float, float]]] = {}
    calm: dict[tuple[str, Pair], list[tuple[float, float]]] = {}
    for pair, turn in turns:
        for (call, host, ns, waited_ns), (beside_call, beside_host, beside_ns, beside_waited_ns) in zip(
            turn[pair[0]], turn[pair[1]], strict=True
        ):
            is_calm = waited_ns + beside_waited_ns <= MAX_WAIT * (ns + beside_ns)
            for taken in (every, calm) if is_calm else (every,):
                taken.setdefault(("call_us", pair), []).append((call, beside_call))
                if device == "cuda":
                    taken.setdefault(("host_us", pair), []).append((host, beside_host))
    disturbed = {
        key
        for key, values in every.items()
        if len(calm.get(key, ())) < max(min(MIN_TURNS, len(values)), len(values) / 2)
    }
    return {key: values if key in disturbed else calm[key] for key, values in every.items()}, disturbed


def _standard_error(pairs: Sequence[tuple[float, float]], calls: int) -> float:
    """Of the median of the log ratios of rows, from their median absolute deviation, as if they were normal."""
    of_calls = [math.log(us / beside_us) for us, beside_us in pairs]
    logs = [statistics.fmean(of_calls[first : first + calls]) for first in range(0, len(of_calls), calls)]
    centre = statistics.median(logs)
    deviation = 1.4826 * statistics.median(abs(value - centre) for value in logs)
    return math.sqrt(math.pi / 2) * deviation / math.sqrt(len(logs))


def _check_of(workload: str, process: int, replies: dict[str, dict[str, Any]]) -> Check:
    """Whether every side agrees with its reference, and the references with each other."""
    head, base = replies["head"], replies.get("base", replies["head"])
    if not head["passed"]:
        return Check(workload, process, False, head["detail"])
    if head["digest"] != base["digest"]:
        detail = "the references of head and base leave different ids: the operation itself was changed"
        return Check(workload, process, False, detail)
    if not base["passed"]:
        return Check(workload, process, False, f"base: {base['detail']}", base_alone=True)
    return Check(workload, process, True, head["detail"])


def command(module: str, arguments: Sequence[str]) -> str:
    """What was typed; of absolute paths the last part alone, because records are published."""
    short = [Path(argument).name if Path(argument).is_absolute() else argument for argument in arguments]
    return shlex.join(["python", "-m", module, *short])
