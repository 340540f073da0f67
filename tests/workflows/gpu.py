"""`python -m benchmarks` of the checkout in the working directory, on an H100 that is not there.

Everything is that checkout's but the samples: every workload takes the times of the checkout's own baseline of the
device, longer by what the measured state of the package plants in `dllm_kernels/planted.py`:
{"fused": 1.1, "reference": 1.0, "workloads": [...]} (all, if left out). Nothing else of the package is looked at, and
the tenth of a percent by which processes and samples differ is drawn from the seed.
"""

from __future__ import annotations

import datetime
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path.cwd()))

from benchmarks import __main__ as cli
from benchmarks import measure, results, session
from benchmarks.measure.machine import commit_of
from benchmarks.results import Block, Check, Environment, GpuState, Run, Series

DEVICE = "NVIDIA H100 80GB HBM3"
PAIRS = 11
DEVIATION = 0.001
CALM = GpuState(1980, 2619, 40, 300.0, (), 0)
COUNTS = {"launches": 1, "synchronizations": 0, "allocations": 0, "peak_bytes": 4096}


def planted(side: Any, workload: str, implementation: str) -> float:
    folder = Path.cwd() if side is None or side.folder is None else side.folder
    file = folder / "dllm_kernels" / "planted.py"
    if not file.exists():
        return 1.0
    plan = json.loads(file.read_text())
    return float(plan.get(implementation, 1.0)) if workload in plan.get("workloads", [workload]) else 1.0


def made_up(
    chosen: Sequence[Any], *, head: Any, base: Any, skipped: Sequence[Any], processes: int, seed: int,
    first_process: int = 0, clocks: Any = None, progress: Any = None, waiting: Any = None,
) -> Run:  # fmt: skip
    baseline = results.load(results.Baseline, results.device_path(session.BASELINES, DEVICE))
    draw = random.Random(f"{seed} {first_process}")
    checks, series = [], []
    for workload in chosen:
        for process in range(first_process, first_process + processes):
            asked = tuple(sorted(clocks[workload.name])) if clocks else None
            checks.append(Check(workload.name, process, True, "equal", clocks=asked))
            for clock, pairs in baseline.entries[workload.name].items():
                if not checks[-1].covers(clock):
                    continue
                entry = pairs["base reference"]
                # The speedup is what a baseline holds: processes whose hosts differ have medians of another ratio.
                us = {"fused": entry.fused_us, "reference": entry.fused_us * entry.speedup}
                sides = [("fused", head, "fused", "", None), ("fused", head, "reference", "", head)]
                if base is not None:
                    sides = [
                        ("fused", head, "fused", "base ", base),
                        ("fused", head, "reference", "base ", base),
                        ("reference", head, "reference", "base ", base),
                    ]
                for implementation, side, beside, whose, other in sides:
                    if other is None:
                        continue
                    own = us[implementation] * planted(side, workload.name, implementation) * draw.gauss(1, DEVIATION)
                    its = us[beside] * planted(other, workload.name, beside)
                    series.append(
                        Series(
                            workload.name, clock, process, implementation, f"{whose}{beside}",
                            tuple(own * draw.gauss(1, DEVIATION) for _ in range(PAIRS)),
                            tuple(its * draw.gauss(1, DEVIATION) for _ in range(PAIRS)), True,
                        )
                    )  # fmt: skip
    commit, dirty = (head.state.commit, head.state.dirty) if head.state else commit_of(Path.cwd() / "dllm_kernels")
    return Run(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command="python -m benchmarks " + " ".join(sys.argv[1:]),
        files=dict.fromkeys(("head", "base"), "dllm_kernels/__init__.py"),
        seed=seed,
        environment=Environment(
            DEVICE,
            "cuda",
            "0123",
            16,
            "3.12.3",
            baseline.torch,
            baseline.triton,
            "13.0",
            baseline.driver,
            commit,
            dirty,
        ),
        base=base.state if base else None,
        workloads=tuple(workload.name for workload in chosen),
        skipped=(),
        clock_methods={"device_us": "made up", "call_us": "made up"},
        checks=tuple(checks),
        series=tuple(series),
        blocks=tuple(
            Block(one.workload, one.process, clock, "", CALM) for one in checks for clock in ("device_us", "call_us")
        ),
        counts={side: {one.name: COUNTS for one in chosen} for side in ("head", "base")},
        seconds=1.0,
    )


measure.measure = made_up
measure.has_gpu = lambda: True
measure.device = lambda: DEVICE

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
