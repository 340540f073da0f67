"""The asv suite: every workload on every judged clock, from one record per commit.

`python -m benchmarks bench` names its record in DLLM_KERNELS_RECORD, so that history holds the numbers that were judged;
without one (`asv run A..B`, `asv continuous`) the commit at hand is measured here, by the same rules.

asv takes lower as better, so regressions are looked for in `relative`, fused / reference, and in absolute times;
`speedup`, reference / fused, is there to be read.
"""

import math
import os
from pathlib import Path

from benchmarks.workloads import WORKLOADS

RECORD = "DLLM_KERNELS_RECORD"


class PostProcess:
    params = (list(WORKLOADS), ["device_us", "call_us"])
    param_names = ("workload", "clock")
    timeout = 900

    def setup_cache(self):
        from benchmarks import measure, results, workloads

        if RECORD in os.environ:
            run = results.load_run(Path(os.environ[RECORD]))
        else:
            import torch

            chosen, skipped = workloads.select(None, gpu=torch.cuda.is_available())
            run = measure.measure(chosen, skipped=skipped)
        samples = {}
        for one in run.series:
            fused, reference = samples.setdefault((one.workload, one.clock), ([], []))
            fused.extend(one.fused)
            reference.extend(one.reference)
        return samples

    setup_cache.timeout = 900

    def track_fused(self, samples, workload, clock):
        return _microseconds(samples, workload, clock, 0)

    def track_reference(self, samples, workload, clock):
        return _microseconds(samples, workload, clock, 1)

    def track_relative(self, samples, workload, clock):
        pairs = _pairs(samples, workload, clock)
        return _result([fused / reference for fused, reference in pairs])

    def track_speedup(self, samples, workload, clock):
        pairs = _pairs(samples, workload, clock)
        return _result([reference / fused for fused, reference in pairs])

    track_fused.unit = track_reference.unit = "µs"
    track_relative.unit = "fused/reference"
    track_speedup.unit = "reference/fused"


def _pairs(samples, workload, clock):
    return list(zip(*samples.get((workload, clock), ((), ())), strict=True))


def _microseconds(samples, workload, clock, side):
    return _result([pair[side] for pair in _pairs(samples, workload, clock)])


def _result(values):
    """What asv stores: raw samples give it its confidence interval; NaN is its "not available"."""
    return {"samples": values, "number": 1} if values else math.nan
