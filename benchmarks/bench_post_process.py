"""The asv suite: every workload on every clock, from one record per commit, and what the compiler made of the kernels.

`python -m benchmarks record` names its record in DLLM_KERNELS_RECORD, so that history holds the samples that were
judged; without one (`asv run A..B`, `asv continuous`) the commit that asv has installed is measured here, by the same
rules, once a set of workloads: `asv run --bench Quick` measures the quick ones alone.

asv takes lower for better, so regressions are looked for in `relative`, fused / reference, and in the fused times;
`speedup`, reference / fused, is there to be read. What a commit cannot be asked, or what it gets wrong, is a gap.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import codegen, limits, measure, results, session, workloads

RECORD = "DLLM_KERNELS_RECORD"
CLOCKS = ("device_us", "call_us", "graph_us", "host_us")
OTHERS = tuple(name for name in workloads.WORKLOADS if name not in workloads.QUICK)
ARCHITECTURE = "sm_90"  # that kernels are compiled for; `python -m benchmarks codegen` has the others
NEEDED = {"confidence", "tokens"}  # arguments of the operation, by which its results are checked


@dataclass
class Measured:
    """What one set of workloads gave, small enough to be read anew for every series."""

    why_not: str = ""  # nothing was measured
    device: str = ""
    times: dict[tuple[str, str], dict[str, list[float]]] = field(default_factory=dict)  # by workload and clock
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # of one fused call, by workload

    def of(self, workload: str, clock: str) -> tuple[list[float], list[float]]:
        """Fused and reference, pair by pair."""
        both = self.times[workload, clock]
        return both["fused"], both["reference"]


def measured(chosen: Iterable[str]) -> Measured:
    """Of the commit that asv has installed.

    Raises:
        RecordError: the record is of another state.
        RuntimeError: measuring failed.
    """
    from benchmarks.history import machine

    path = os.environ.get(RECORD)
    if path:
        run = _recorded(Path(path), os.environ["ASV_COMMIT"])
        _note(run.environment, **machine.measured_with(run))
        return _of_run(run)
    if why_not := _cannot_be_asked():
        return Measured(why_not)
    machine.expect_registered(machine.this_machine())
    gpu = measure.has_gpu()
    some = [workload for workload in workloads.select(None, gpu=gpu)[0] if workload.name in set(chosen)]
    if not some:
        return Measured("none of these workloads is for this machine")
    run = measure.measure(some, processes=session.PROCESSES["cuda" if gpu else "cpu"])
    _note(run.environment, **machine.measured_with(run))
    return _of_run(run)


def _recorded(path: Path, commit: str) -> results.Run:
    run = results.load(results.Run, path)
    if run.environment.commit != commit or run.environment.dirty:
        state = " with uncommitted changes" if run.environment.dirty else ""
        raise results.RecordError(f"{path}: measured at {run.environment.commit}{state}; asv asks for {commit}")
    return run


def _note(environment: results.Environment, **measured_with: str | None) -> None:
    """What it was measured with, beside where asv will keep its results."""
    from benchmarks.history import RESULTS, machine

    name = f"{os.environ['ASV_COMMIT'][:8]}-{os.environ['ASV_ENV_NAME']}.json"
    machine.note(RESULTS / machine.machine_name(environment) / name, **measured_with)


def _cannot_be_asked() -> str:
    """Why the installed package cannot be measured by today's rules; empty if it can."""
    found = importlib.util.find_spec("dllm_kernels")
    if found is None:
        return "the package could not be built or installed"
    if not Path(str(found.origin)).is_relative_to(sys.prefix):
        raise RuntimeError(f"dllm_kernels: expected asv's own installation below {sys.prefix}; found {found.origin}")
    import dllm_kernels

    for name in ("dllm_post_process_fused", "dllm_post_process_reference"):
        function = getattr(dllm_kernels, name, None)
        if function is None:
            return f"it has no {name}"
        if missing := NEEDED - set(inspect.signature(function).parameters):
            return f"{name} has no argument {', '.join(sorted(missing))}"
    return ""


def _of_run(run: results.Run) -> Measured:
    failed = [f"{check.workload}: {check.detail}" for check in run.checks if not check.passed]
    if failed:
        return Measured("wrong results, so their times count for nothing: " + "; ".join(failed))
    found = Measured(device=run.environment.device, counts=run.counts.get("head", {}))
    for one in run.series:
        if (one.implementation, one.beside) == ("fused", "reference"):
            both = found.times.setdefault((one.workload, one.clock), {"fused": [], "reference": []})
            both["fused"] += one.us
            both["reference"] += one.beside_us
    return found


def _gap(found: Measured, otherwise: str) -> NotImplementedError:
    """By this asv leaves a gap in the curve; anything else it counts as a failed benchmark."""
    return NotImplementedError(found.why_not or otherwise)


class _Quick:
    def setup_cache(self) -> Measured:
        return measured(workloads.QUICK)


class _Others:
    def setup_cache(self) -> Measured:
        return measured(OTHERS)


_Quick.setup_cache.timeout = 1800  # type: ignore[attr-defined]  # asv's name, in seconds: a busy CPU measures slowly
_Others.setup_cache.timeout = 1800  # type: ignore[attr-defined]


class _Times:
    """On the clocks: on `host_us` what a call costs the host, on `graph_us` a call inside a CUDA graph."""

    param_names = ("workload", "clock")

    def setup(self, found: Measured, workload: str, clock: str) -> None:
        if (workload, clock) not in found.times:
            raise _gap(found, f"{workload} has no samples on {clock} here")

    def track_fused_us(self, found: Measured, workload: str, clock: str) -> dict[str, Any]:
        """The fused operation."""
        return _as_asv(found.of(workload, clock)[0])

    def track_reference_us(self, found: Measured, workload: str, clock: str) -> dict[str, Any]:
        """The PyTorch reference."""
        return _as_asv(found.of(workload, clock)[1])

    def track_relative(self, found: Measured, workload: str, clock: str) -> dict[str, Any]:
        """Time of fused as a share of the reference's, pair by pair: lower is better, as asv expects."""
        return _as_asv([fused / reference for fused, reference in zip(*found.of(workload, clock), strict=True)])

    def track_speedup(self, found: Measured, workload: str, clock: str) -> dict[str, Any]:
        """Time of the reference as a multiple of fused's, pair by pair: higher is better; for reading."""
        return _as_asv([reference / fused for fused, reference in zip(*found.of(workload, clock), strict=True)])


class _OnDevice:
    """Of a GPU alone."""

    param_names = ("workload",)

    def track_bandwidth_share(self, found: Measured, workload: str) -> dict[str, Any]:
        """Bytes that must be read over the device's time, in percent of what the GPU can read: higher is better."""
        percent = workloads.operations()[workload].bytes_read / limits.READ_GB_PER_S[found.device] / 10
        return _as_asv([percent / us for us in found.of(workload, "device_us")[0]])

    def track_peak_bytes(self, found: Measured, workload: str) -> int:
        """Of device memory at once: the logits, and what a fused call allocates."""
        return workloads.WORKLOADS[workload].logits_bytes + found.counts[workload]["peak_bytes"]


def _needs_a_limit(found: Measured, workload: str) -> None:
    if (workload, "device_us") not in found.times:
        raise _gap(found, f"{workload} was not measured on a GPU")
    if found.device not in limits.READ_GB_PER_S:
        raise _gap(found, f"nobody has measured how fast {found.device} reads: benchmarks/limits.py")


def _needs_a_count(found: Measured, workload: str) -> None:
    if "peak_bytes" not in found.counts.get(workload, {}):
        raise _gap(found, f"what {workload} allocates on a GPU was not counted")


_OnDevice.track_bandwidth_share.setup = _needs_a_limit  # type: ignore[attr-defined]  # asv's name
_OnDevice.track_peak_bytes.setup = _needs_a_count  # type: ignore[attr-defined]


class Quick(_Quick, _Times):
    params = (list(workloads.QUICK), list(CLOCKS))


class Others(_Others, _Times):
    params = (list(OTHERS), list(CLOCKS))


class QuickOnDevice(_Quick, _OnDevice):
    params = (list(workloads.QUICK),)


class OthersOnDevice(_Others, _OnDevice):
    params = ([name for name in OTHERS if name in workloads.operations()],)


class Compiled:
    """What the compiler made of the kernels; without a GPU too."""

    params = (list(codegen.PLAIN_VARIANTS),)
    param_names = ("kernel",)

    def setup_cache(self) -> dict[str, dict[str, int]]:
        """Registers and instructions by variant; nothing where the commit has none of today's kernels.

        Raises:
            RuntimeError: compiling failed, or asv keeps this machine's results under another name.
        """
        from benchmarks.history import machine

        if importlib.util.find_spec("dllm_kernels") is None or importlib.util.find_spec("dllm_kernels.gpu") is None:
            return {}
        if RECORD not in os.environ:  # what a record was measured with is noted with its samples
            here = machine.this_machine()
            machine.expect_registered(here)
            _note(here, python=here.python, triton=here.triton)
        return codegen.figures(ARCHITECTURE, codegen.PLAIN_VARIANTS)

    def setup(self, figures: dict[str, dict[str, int]], kernel: str) -> None:
        if kernel not in figures:
            raise NotImplementedError("this commit's kernels cannot be compiled as today's are")

    def track_registers(self, figures: dict[str, dict[str, int]], kernel: str) -> int:
        """Of a thread."""
        return figures[kernel]["registers"]

    def track_instructions(self, figures: dict[str, dict[str, int]], kernel: str) -> int:
        """Of the machine code."""
        return figures[kernel]["instructions"]


Compiled.setup_cache.timeout = 600  # type: ignore[attr-defined]


def _as_asv(samples: list[float]) -> dict[str, Any]:
    """asv takes the median and an interval from a result of this form, whatever the benchmark's kind."""
    return {"samples": samples, "number": 1}


# Unit of each series, and whether less of it is better (for asv's viewers; asv itself takes less for better always).
SERIES: dict[Callable[..., Any], tuple[str, bool]] = {
    _Times.track_fused_us: ("µs", True),
    _Times.track_reference_us: ("µs", True),
    _Times.track_relative: ("of the reference", True),
    _Times.track_speedup: ("x", False),
    _OnDevice.track_bandwidth_share: ("% of the read bandwidth", False),
    _OnDevice.track_peak_bytes: ("bytes", True),
    Compiled.track_registers: ("registers", True),
    Compiled.track_instructions: ("instructions", True),
}
for benchmark, (unit, less_is_better) in SERIES.items():
    options: dict[str, Any] = {"unit": unit, "less_is_better": less_is_better}
    options["version"] = "1"  # of the meaning; asv would otherwise drop the history at every edit of the source
    vars(benchmark).update(options)
