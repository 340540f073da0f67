"""The asv suite: every workload on every judged clock, from one record per commit.

`python -m benchmarks bench` names its record in DLLM_KERNELS_RECORD, so that history holds the samples that were
judged; without one (`asv run A..B`, `asv continuous`) the commit that asv has installed is measured here, by the same
rules. asv starts a process for every benchmark and parameter, so nothing here imports PyTorch at the top.

asv takes lower for better, so regressions are looked for in `relative`, fused / reference, and in the fused times;
`speedup`, reference / fused, is there to be read.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measure, results, workloads

RECORD = "DLLM_KERNELS_RECORD"
CLOCKS = ("device_us", "call_us")

# Workload and clock; then "fused" and "reference", pair by pair.
Samples = dict[tuple[str, str], dict[str, list[float]]]


def setup_cache() -> Samples:
    """The samples of the commit that asv has installed."""
    path = os.environ.get(RECORD)
    run = _recorded(Path(path), os.environ["ASV_COMMIT"]) if path else _measured()
    failed = [f"{check.workload}: {check.detail}" for check in run.checks if not check.passed]
    if failed:
        raise RuntimeError("wrong results, so their times count for nothing: " + "; ".join(failed))
    samples: Samples = {}
    for one in run.series:
        if (one.implementation, one.beside) == ("fused", "reference"):
            both = samples.setdefault((one.workload, one.clock), {"fused": [], "reference": []})
            both["fused"] += one.us
            both["reference"] += one.beside_us
    return samples


setup_cache.timeout = 1800  # type: ignore[attr-defined]  # asv's name, in seconds: a GPU-less machine measures slowly


def _recorded(path: Path, commit: str) -> results.Run:
    run = results.load(results.Run, path)
    if run.environment.commit != commit or run.environment.dirty:
        state = " with uncommitted changes" if run.environment.dirty else ""
        raise results.RecordError(f"{path}: measured at {run.environment.commit}{state}; asv asks for {commit}")
    return run


def _measured() -> results.Run:
    import importlib.util

    found = importlib.util.find_spec("dllm_kernels")
    if found is None or not Path(str(found.origin)).is_relative_to(sys.prefix):
        raise RuntimeError(f"dllm_kernels: expected asv's own installation below {sys.prefix}; found {found}")
    chosen, _ = workloads.select(None, gpu=measure.has_gpu())
    return measure.measure(chosen)


def _needs_samples(samples: Samples, workload: str, clock: str) -> None:
    if (workload, clock) not in samples:
        # By this asv leaves a gap in the curve; anything else it counts as a failed benchmark.
        raise NotImplementedError(f"{workload} has no samples on {clock} here")


def track_fused_us(samples: Samples, workload: str, clock: str) -> dict[str, Any]:
    """The fused operation."""
    return _as_asv(samples[workload, clock]["fused"])


def track_reference_us(samples: Samples, workload: str, clock: str) -> dict[str, Any]:
    """The PyTorch reference."""
    return _as_asv(samples[workload, clock]["reference"])


def track_relative(samples: Samples, workload: str, clock: str) -> dict[str, Any]:
    """Time of the fused operation as a share of the reference's, pair by pair: lower is better, as asv expects."""
    both = samples[workload, clock]
    return _as_asv([fused / reference for fused, reference in zip(both["fused"], both["reference"], strict=True)])


def track_speedup(samples: Samples, workload: str, clock: str) -> dict[str, Any]:
    """Time of the reference as a multiple of the fused operation's, pair by pair: higher is better; for reading."""
    both = samples[workload, clock]
    return _as_asv([reference / fused for fused, reference in zip(both["fused"], both["reference"], strict=True)])


def _as_asv(samples: list[float]) -> dict[str, Any]:
    """asv takes the median and an interval from a result of this form, whatever the benchmark's kind."""
    return {"samples": samples, "number": 1}


# Unit of each series, and whether less of it is better (for asv's viewers; asv itself takes less for better always).
SERIES: dict[str, tuple[Callable[..., Any], str, bool]] = {
    "track_fused_us": (track_fused_us, "µs", True),
    "track_reference_us": (track_reference_us, "µs", True),
    "track_relative": (track_relative, "of the reference", True),
    "track_speedup": (track_speedup, "x", False),
}
for benchmark, unit, less_is_better in SERIES.values():
    options: dict[str, Any] = {
        "params": [list(workloads.WORKLOADS), list(CLOCKS)],
        "param_names": ["workload", "clock"],
        "setup": _needs_samples,
        "unit": unit,
        "less_is_better": less_is_better,
        "version": "1",  # of the meaning; asv would otherwise drop the history at every edit of the source
    }
    vars(benchmark).update(options)
