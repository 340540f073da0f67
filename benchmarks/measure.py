"""From workloads to raw samples, in fresh worker processes. Measures, never judges.

Every worker checks each workload's results on the inputs to be timed, warms up until timings settle, and takes pairs:
fused beside reference, in random order, on a GPU each on the next of several draws of logits, so that neither finds its
own in the cache. Ids are restored from a prepared copy before each call, outside the sample. Workers are started by
path, so that they measure the `dllm_kernels` that their interpreter has installed, whichever commit that is.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import workloads
from benchmarks.results import Check, Environment, Run, Series

if TYPE_CHECKING:
    from torch import Tensor

WORKER = Path(__file__).with_name("worker.py")
CLOCK_METHODS = {
    "cuda": {
        "device_us": "sum of the durations of the call's kernels, copies and fills, from CUPTI through torch.profiler",
        "call_us": "host clock from an idle GPU until the result is ready",
        "host_us": "host clock until the call returns, GPU idle before",
    },
    "cpu": {"call_us": "host clock around the call"},
}
PAIRS = {"cuda": 30, "cpu": 12}  # a workload, clock and process
MIN_PAIRS = 3
SECONDS = {"cuda": 3.0, "cpu": 0.9}  # of pairs, after which no further one is started; of warm-up, a third of it
MAX_WAIT = 0.05  # of a pair's time that our threads, together, may wait for a processor
L2_MULTIPLE = 3  # of the L2 cache's size that rotating logits cover, so that they come from memory
SETTLED = 0.05  # warm-up ends when two successive medians of three calls differ by less, or its time is over

Progress = Callable[[str], None]


def measure(
    chosen: Sequence[workloads.Workload],
    *,
    skipped: Sequence[workloads.Workload] = (),
    processes: int = 3,
    seed: int = 0,
    first_process: int = 0,
    progress: Progress | None = None,
) -> Run:
    """Measure fused beside reference in `processes` fresh processes, numbered from `first_process`.

    `progress` is called with a line of text for every workload of every process begun.

    Raises:
        RuntimeError: a worker failed, and the message holds what it printed; or what is measured changed meanwhile.
    """
    environment: Environment | None = None
    checks: list[Check] = []
    series: list[Series] = []
    for process in range(first_process, first_process + processes):
        for event in _worker_events({"workloads": [w.name for w in chosen], "process": process, "seed": seed}):
            if event["event"] == "begin" and progress:
                progress(f"process {process + 1}: {event['workload']}")
            elif event["event"] == "environment":
                found = Environment(**event["environment"])
                if environment not in (None, found):
                    raise RuntimeError(f"measure: the machine or the checkout changed: {environment}, then {found}")
                environment = found
            elif event["event"] == "check":
                checks.append(Check(**event["check"]))
            elif event["event"] == "series":
                fields = event["series"]
                series.append(
                    Series(**{**fields, "fused": tuple(fields["fused"]), "reference": tuple(fields["reference"])})
                )
    if environment is None:
        raise RuntimeError("measure: expected at least one process to report where it ran")
    return Run(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=_command(sys.argv[1:]),
        seed=seed,
        environment=environment,
        workloads=tuple(w.name for w in chosen),
        skipped=tuple(w.name for w in skipped),
        clock_methods=CLOCK_METHODS[environment.device_type],
        checks=tuple(checks),
        series=tuple(series),
    )


def _command(arguments: Sequence[str]) -> str:
    """What was typed; of absolute paths the last part alone, because records are published."""
    return shlex.join(
        ["python", "-m", "benchmarks", *(Path(a).name if Path(a).is_absolute() else a for a in arguments)]
    )


def _worker_events(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryFile("w+") as errors:  # a pipe that nobody reads would stop the worker when it is full
        command = [sys.executable, str(WORKER), json.dumps(task)]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert worker.stdout is not None
            for line in worker.stdout:
                yield json.loads(line)
            if worker.wait() != 0:
                errors.seek(0)
                text = errors.read().strip()
                raise RuntimeError(f"a measuring process ended with exit code {worker.returncode}:\n{text}")
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()


# What follows runs in a worker.


def run_worker(task: dict[str, Any], emit: Callable[[dict[str, Any]], None]) -> None:
    """Measure one process's share of a run; `emit` takes events that JSON can hold."""
    import dataclasses

    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    emit({"event": "environment", "environment": dataclasses.asdict(describe_environment(device))})
    for name in task["workloads"]:
        emit({"event": "begin", "workload": name})
        workload = workloads.WORKLOADS[name]
        seed = task["seed"] + 1000 * task["process"]
        bench = _Bench(workload, device, seed)
        passed, detail = bench.check()
        check = Check(workload=name, process=task["process"], passed=passed, detail=detail)
        emit({"event": "check", "check": dataclasses.asdict(check)})
        if passed:
            for clock, (fused, reference) in bench.samples().items():
                one = Series(name, clock, task["process"], tuple(fused), tuple(reference), bench.quiet)
                emit({"event": "series", "series": dataclasses.asdict(one)})
        del bench
        if device == "cuda":
            torch.cuda.empty_cache()


class _Bench:
    """One workload's inputs in one process, and the ways to time a call on them."""

    def __init__(self, workload: workloads.Workload, device: str, seed: int) -> None:
        import torch

        from dllm_kernels import dllm_post_process_fused, dllm_post_process_reference

        self.torch = torch
        self.workload = workload
        self.device = device
        self.random = random.Random(seed)
        self.implementations: dict[str, Callable[..., None]] = {
            "fused": dllm_post_process_fused,
            "reference": dllm_post_process_reference,
        }
        copies = 1
        if device == "cuda":
            l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
            copies = -(-L2_MULTIPLE * l2_bytes // workload.logits_bytes)
        self.draws, self.prepared = workloads.make_inputs(workload, device, seed, copies)
        self.ids = self.prepared.clone()
        self.turn = 0
        self.quiet = True

    def call(self, implementation: str, logits: Tensor) -> None:
        self.implementations[implementation](logits, self.ids, self.workload.mask_id, workloads.THRESHOLD)

    def check(self) -> tuple[bool, str]:
        """Whether fused leaves the ids that the reference leaves, outside the undecidable band."""
        torch = self.torch
        for logits in self.draws:
            outcomes = {}
            for name, function in self.implementations.items():
                ids = self.prepared.clone()
                confidence = torch.empty(ids.shape, device=self.device)
                tokens = torch.empty_like(ids)
                function(logits, ids, self.workload.mask_id, workloads.THRESHOLD, confidence=confidence, tokens=tokens)
                outcomes[name] = ids, confidence, tokens
            (ids, p, tokens), (expected_ids, expected_p, expected_tokens) = outcomes["fused"], outcomes["reference"]
            if not torch.equal(tokens, expected_tokens):
                return False, f"{int((tokens != expected_tokens).sum())} candidates differ from the reference"
            masked = self.prepared == self.workload.mask_id
            worst = float((p - expected_p)[masked].abs().max())
            if not worst <= 2e-6:  # each may be 1e-6 off
                return False, f"a confidence is {worst:.1e} off the reference"
            unsure = (expected_p - workloads.THRESHOLD).abs() <= 2e-6
            wrong = (ids != expected_ids) & ~unsure.any(dim=-1, keepdim=True)  # a block's fallback hangs on each row
            if bool(wrong.any()):
                return False, f"{int(wrong.sum())} ids differ from the reference"
            # The timed call gives no outputs, which are compiled out: another kernel.
            self.ids.copy_(self.prepared)
            self.call("fused", logits)
            if not torch.equal(self.ids, ids):
                return False, "without outputs, the call leaves other ids than with them"
        return True, f"ids and candidates equal the reference on {len(self.draws)} draws"

    def samples(self) -> dict[str, tuple[list[float], list[float]]]:
        """Per clock, fused and reference samples in microseconds, pair by pair."""
        self._warm_up()
        fused, reference = self._pairs(self._host_clocks)
        clocks = {"call_us": ([call for _, call in fused], [call for _, call in reference])}
        if self.device == "cuda":
            clocks["host_us"] = [host for host, _ in fused], [host for host, _ in reference]
            clocks["device_us"] = self._device_samples(len(fused))
        return clocks

    def _next_logits(self) -> Tensor:
        self.turn += 1
        return self.draws[self.turn % len(self.draws)]

    def _prepare(self) -> None:
        self.ids.copy_(self.prepared)
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def _host_clocks(self, implementation: str, logits: Tensor) -> tuple[float, float]:
        """Microseconds until the call returns, and until its result is ready."""
        self._prepare()
        start = time.perf_counter_ns()
        self.call(implementation, logits)
        returned = time.perf_counter_ns()
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        ready = time.perf_counter_ns()
        return (returned - start) / 1e3, (ready - start) / 1e3

    def _warm_up(self) -> None:
        for implementation in self.implementations:
            deadline = time.monotonic() + SECONDS[self.device] / 3
            before = float("inf")
            while time.monotonic() < deadline:
                calls = [self._host_clocks(implementation, self._next_logits())[1] for _ in range(3)]
                now = statistics.median(calls)
                if abs(now / before - 1) < SETTLED:
                    break
                before = now

    def _order(self) -> list[str]:
        order = list(self.implementations)
        self.random.shuffle(order)
        return order

    def _pairs(
        self, sample: Callable[[str, Tensor], tuple[float, float]]
    ) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        """Pairs of samples during which our threads did not wait for a processor; if those are too few, all pairs.

        Such a wait says that other work ran here, and lengthens the implementation that splits its work more finely: on
        two busy cores fused has been seen to take five times the reference's time instead of a fifth of it. On a
        machine that is never quiet, disturbed pairs are better than none: the series then says that it is of such.
        """
        pairs: list[dict[str, tuple[float, float]]] = []
        quiet: list[dict[str, tuple[float, float]]] = []
        deadline = time.monotonic() + SECONDS[self.device]
        while len(quiet) < PAIRS[self.device] and (len(pairs) < MIN_PAIRS or time.monotonic() < deadline):
            waited_ns, start_ns = _waited_ns(), time.perf_counter_ns()
            pairs.append(
                {implementation: sample(implementation, self._next_logits()) for implementation in self._order()}
            )
            if _waited_ns() - waited_ns <= MAX_WAIT * (time.perf_counter_ns() - start_ns):
                quiet.append(pairs[-1])
        self.quiet = len(quiet) >= MIN_PAIRS
        kept = quiet if self.quiet else pairs
        return [pair["fused"] for pair in kept], [pair["reference"] for pair in kept]

    def _device_samples(self, pairs: int) -> tuple[list[float], list[float]]:
        """GPU time of each call. A named range around call and synchronisation tells which activity is whose."""
        torch = self.torch
        order: list[str] = []
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities, acc_events=True) as profile:
            for _ in range(pairs):
                for implementation in self._order():
                    logits = self._next_logits()
                    self._prepare()
                    with torch.profiler.record_function(f"sample {len(order)}"):
                        self.call(implementation, logits)
                        torch.cuda.synchronize()
                    order.append(implementation)
        busy = device_us_of_ranges(profile.profiler.kineto_results.events(), "sample ", len(order))
        fused = [us for us, implementation in zip(busy, order, strict=True) if implementation == "fused"]
        return fused, [us for us, implementation in zip(busy, order, strict=True) if implementation == "reference"]


def _waited_ns() -> int:
    """How long this process's threads have been ready to run without a processor; 0 where the kernel does not say."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[1])
        except (OSError, IndexError):  # a thread that ended meanwhile
            continue
    return total


def device_us_of_ranges(events: Sequence[Any], prefix: str, count: int) -> list[float]:
    """Microseconds of GPU activity inside each named host range `prefix` + number, from Kineto's events.

    Raises:
        RuntimeError: a range is missing or holds no GPU activity.
    """
    from torch._C._autograd import DeviceType

    starts, ends, activity = [0] * count, [0] * count, []
    for event in events:
        name = event.name()
        if event.device_type() == DeviceType.CPU:
            if name.startswith(prefix):
                index = int(name.removeprefix(prefix))
                starts[index], ends[index] = event.start_ns(), event.start_ns() + event.duration_ns()
        elif not name.startswith(prefix):  # GPU copies of the ranges themselves
            activity.append((event.start_ns(), event.duration_ns()))
    busy_ns = [0] * count
    for start, duration in activity:
        for index in range(count):
            if starts[index] <= start < ends[index]:
                busy_ns[index] += duration
    if not all(busy_ns):
        raise RuntimeError(f"CUPTI reported no GPU activity for {busy_ns.count(0)} of {count} calls")
    return [ns / 1e3 for ns in busy_ns]


def describe_environment(device: str) -> Environment:
    """Where this process runs, and which commit of the package it measures."""
    import torch

    import dllm_kernels

    commit, dirty = commit_of(Path(dllm_kernels.__file__).parent)
    return Environment(
        device=torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        device_type=device,
        cpu_cores=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=_version("triton"),
        cuda=torch.version.cuda,
        driver=_driver() if device == "cuda" else None,
        commit=commit,
        dirty=dirty,
    )


def commit_of(folder: Path) -> tuple[str | None, bool]:
    """HEAD of the checkout that `folder` lies in, and whether tracked files differ; (None, True) where none is known.

    A copy that travels without its repository says in DLLM_KERNELS_COMMIT which commit it is a copy of.
    """
    head, tracked, changes = (
        _git(folder, *arguments)
        for arguments in (("rev-parse", "HEAD"), ("ls-files", "."), ("status", "--porcelain", "--untracked-files=no"))
    )
    if head and tracked and changes is not None:
        return head, bool(changes)
    named = os.environ.get("DLLM_KERNELS_COMMIT")
    return (named, False) if named else (None, True)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints in `folder`; None where it fails or is missing."""
    try:
        result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    pynvml.nvmlInit()
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()
