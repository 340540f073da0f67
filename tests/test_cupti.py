"""Times on the device's clock are summed up by the call that they belong to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks.measure.cupti import Profiler, device_us_of_ranges


def _event(name, start, duration, *, gpu):
    from torch._C._autograd import DeviceType

    return SimpleNamespace(
        name=lambda: name,
        start_ns=lambda: start,
        duration_ns=lambda: duration,
        device_type=lambda: DeviceType.CUDA if gpu else DeviceType.CPU,
    )


def test_gpu_time_is_that_of_the_range_it_falls_into():
    events = [
        _event("sample 0", 1000, 500, gpu=False),
        _event("sample 1", 2000, 500, gpu=False),
        _event("cudaLaunchKernel", 1010, 10, gpu=False),
        _event("kernel", 1100, 50, gpu=True),
        _event("kernel", 1200, 30, gpu=True),
        _event("prepare ids", 1800, 999, gpu=True),
        _event("sample 1", 2000, 400, gpu=True),
        _event("Memcpy", 2100, 70, gpu=True),
    ]
    assert device_us_of_ranges(events, "sample ", 2) == [0.08, 0.07]
    with pytest.raises(RuntimeError, match="no GPU activity for 1 of 3 calls"):
        device_us_of_ranges(events, "sample ", 3)


def test_ranges_are_noted_and_operators_are_not():
    with Profiler() as profile:
        for number in range(2):
            with torch.profiler.record_function(f"sample {number}"):
                torch.ones(1).add_(1)
    names = [event.name() for event in profile.events]
    assert [name for name in names if name.startswith("sample")] == ["sample 0", "sample 1"]
    assert not [name for name in names if name.startswith("aten::")]
