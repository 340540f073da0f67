"""Made-up runs for the tests of what is done with records."""

from __future__ import annotations

from benchmarks.results import Check, Environment, Run, Series

NAME = "1x32x128000-fp16-100"
OTHER = "1x32x157184-bf16-100"
GPU = Environment("NVIDIA Test", "cuda", 8, "3.12.3", "2.11.0", "3.6.0", "13.0", "580.1", "a" * 40, False)
CPU = Environment("Test CPU", "cpu", 2, "3.11.7", "2.13.0", "3.6.0", None, None, "b" * 40, False)


def make_run(
    speedups: dict[tuple[str, str], list[float]],
    environment: Environment = GPU,
    fused_us: float = 10.0,
    quiet: bool = True,
    **changes,
) -> Run:
    """A run of one speedup per process, by workload and clock, with ten pairs each."""
    names = tuple(dict.fromkeys(workload for workload, _ in speedups))
    checks, series = [], []
    for (workload, clock), values in speedups.items():
        for process, speedup in enumerate(values):
            jitter = [1 + 0.001 * (pair % 3) for pair in range(10)]
            series.append(
                Series(
                    workload,
                    clock,
                    process,
                    tuple(fused_us * j for j in jitter),
                    tuple(fused_us * speedup * j for j in jitter),
                    quiet,
                )
            )
            checks.append(Check(workload, process, True, "equal"))
    fields = {
        "created": "2026-11-23T12:00:00+00:00",
        "command": "python -m benchmarks run",
        "seed": 0,
        "environment": environment,
        "workloads": names,
        "skipped": (),
        "clock_methods": {"device_us": "CUPTI", "call_us": "host clock"},
        "checks": tuple(checks),
        "series": tuple(series),
    }
    return Run(**{**fields, **changes})


def steady(device: float = 15.0, call: float = 4.0, workload: str = NAME) -> dict[tuple[str, str], list[float]]:
    """Four processes that nearly agree."""
    spread = [0.998, 0.999, 1.001, 1.002]
    return {
        (workload, "device_us"): [device * s for s in spread],
        (workload, "call_us"): [call * s for s in spread],
    }
