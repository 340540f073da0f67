"""Made-up runs for the tests of what is done with records."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from benchmarks.results import (
    Baseline,
    BaselineEntry,
    Block,
    Check,
    Environment,
    GpuState,
    Noise,
    NoiseRecord,
    Run,
    Series,
    State,
)

NAME = "1x32x128000-fp16-100"
OTHER = "1x32x157184-bf16-100"
GPU = Environment("NVIDIA Test", "cuda", "0123", 8, "3.12.3", "2.11.0", "3.6.0", "13.0", "580.1", "a" * 40, False)
CPU = Environment("Test CPU", "cpu", None, 2, "3.11.7", "2.13.0", "3.6.0", None, None, "b" * 40, False)


def make_series(
    name: tuple[str, str], process: int, ratio: float, us: float = 10.0, pair=("fused", "reference"), quiet=True
) -> Series:
    """Ten pairs; `ratio` is that of the second to the first."""
    jitter = [1 + 0.001 * (number % 3) for number in range(10)]
    return Series(*name, process, *pair, tuple(us * j for j in jitter), tuple(us * ratio * j for j in jitter), quiet)


COUNTS = {"launches": 1, "synchronizations": 0, "allocations": 0}
CALM = GpuState(1980, 2619, 40, 300.0, (), 0)


def blocks_of(series: Sequence[Series], environment: Environment = GPU) -> tuple[Block, ...]:
    """One of each process and clock, in which nothing was wrong."""
    places = dict.fromkeys((one.workload, one.process, one.clock) for one in series)
    return tuple(Block(*place, "", CALM if environment.device_type == "cuda" else None) for place in places)


def make_run(
    speedups: dict[tuple[str, str], list[float]],
    environment: Environment = GPU,
    fused_us: float = 10.0,
    quiet: bool = True,
    slowdowns: dict[tuple[str, str], list[float]] | None = None,
    moved: float = 1.0,
    **changes,
) -> Run:
    """A run of one speedup per process, by workload and clock; with `slowdowns`, beside a base, whose reference took
    1 / `moved` of the time."""
    names = tuple(dict.fromkeys(workload for workload, _ in speedups))
    checks, series = [], []
    pair = ("fused", "base reference" if slowdowns else "reference")
    for name, values in speedups.items():
        for process, speedup in enumerate(values):
            series.append(make_series(name, process, speedup, fused_us, pair, quiet))
            checks.append(Check(name[0], process, True, "equal"))
    for name, values in (slowdowns or {}).items():
        for process, slowdown in enumerate(values):
            series.append(make_series(name, process, 1 / slowdown, fused_us, ("fused", "base fused"), quiet))
            series.append(make_series(name, process, 1 / moved, 100.0, ("reference", "base reference"), quiet))
    fields = {
        "created": "2026-11-23T12:00:00+00:00",
        "command": "python -m benchmarks run",
        "seconds": 20.0,
        "seed": 0,
        "environment": environment,
        "files": {side: f"/{side}/dllm_kernels/__init__.py" for side in ("head", "base")},
        "base": State("d" * 40, False, "dllm_kernels/__init__.py") if slowdowns else None,
        "workloads": names,
        "skipped": (),
        "clock_methods": {"device_us": "CUPTI", "call_us": "host clock"},
        "checks": tuple(checks),
        "series": tuple(series),
        "blocks": blocks_of(series, environment),
        "counts": {side: dict.fromkeys(names, COUNTS) for side in ("head", "base")},
    }
    return Run(**{**fields, **changes})


def steady(device: float = 15.0, call: float = 4.0, workload: str = NAME) -> dict[tuple[str, str], list[float]]:
    """Four processes that nearly agree."""
    spread = [0.998, 0.999, 1.001, 1.002]
    return {
        (workload, "device_us"): [device * s for s in spread],
        (workload, "call_us"): [call * s for s in spread],
    }


def make_noise(device: float = 0.003, call: float = 0.015, workload: str = NAME) -> NoiseRecord:
    """What 41 processes showed, for every pair."""
    pairs = (
        "fused beside reference",
        "fused beside base reference",
        "fused beside base fused",
        "reference beside base reference",
    )
    clocks = {
        clock: {pair: Noise(deviation, 41) for pair in pairs}
        for clock, deviation in (("device_us", device), ("call_us", call))
    }
    return NoiseRecord(GPU.device, "2026-11-23", "a" * 40, GPU.torch, GPU.triton, GPU.driver, {workload: clocks})


SPREAD = (0.998, 0.999, 1.001, 1.002)


def make_compared(device=1.0, call=1.0, **more):
    """A run beside a base, by how much head takes longer."""
    slowdowns = {
        (NAME, "device_us"): [device * s for s in SPREAD],
        (NAME, "call_us"): [call * s for s in SPREAD],
    }
    return make_run(steady(), slowdowns=slowdowns, **more)


def make_baseline(device=15.0, call=4.0, **changes):
    """Speedups of one workload, measured either way; fused took 10 us on either clock."""
    clocks = {"device_us": BaselineEntry(device, 10.0, 150.0, 0.05), "call_us": BaselineEntry(call, 10.0, 40.0, 0.2)}
    entries = {NAME: {clock: {"reference": one, "base reference": one} for clock, one in clocks.items()}}
    fields = Baseline(GPU.device, "2026-11-01", "c" * 40, "first", GPU.torch, GPU.triton, GPU.driver, entries)
    return dataclasses.replace(fields, **changes)
