"""What CUPTI, through PyTorch's profiler, and Triton's hooks tell of calls: GPU time, activities, machine code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_loaded: dict[int, Path] = {}  # kernels' handles and machine code, as Triton loads them


def watch_loaded_kernels() -> None:
    import triton

    def note(_module: Any, function: int, _name: str, files: dict[str, str], _hash: str) -> None:
        _loaded[function] = Path(next(path for name, path in files.items() if name.endswith(".cubin")))

    triton.knobs.runtime.kernel_load_end_hook.add(note)


@contextmanager
def launched_kernels() -> Iterator[list[Path]]:
    """The machine code of the Triton kernels that are launched meanwhile and were loaded under `start`'s eyes."""
    import triton

    kernels: list[Path] = []

    def note(launch: Any) -> None:
        if code := _loaded.get(launch.get()["function"]):
            kernels.append(code)

    triton.knobs.runtime.launch_enter_hook.add(note)
    try:
        yield kernels
    finally:
        triton.knobs.runtime.launch_enter_hook.remove(note)


class Profiler:
    """PyTorch's, for activities of the GPU, CUDA's functions, and the ranges of `record_function`.

    Not for operators, which `torch.profiler` cannot be told to leave out: with them, the blocks on the device's clock
    took 32 s of a run of everything on an H200, and 23 and 26 without.
    """

    def __init__(self) -> None:
        self.events: Sequence[Any] = ()  # Kineto's, once it has ended

    def __enter__(self) -> Profiler:
        from torch._C._autograd import _enable_profiler, _prepare_profiler
        from torch._C._profiler import (
            ProfilerActivity,
            ProfilerConfig,
            ProfilerState,
            RecordScope,
            _ExperimentalConfig,
        )

        activities = {ProfilerActivity.CPU, ProfilerActivity.CUDA}
        config = ProfilerConfig(ProfilerState.KINETO, False, False, False, False, False, _ExperimentalConfig())
        _prepare_profiler(config, activities)
        _enable_profiler(config, activities, {RecordScope.USER_SCOPE})  # type: ignore[call-arg]  # it has no such type
        return self

    def __exit__(self, *_: object) -> None:
        import torch
        from torch._C._autograd import _disable_profiler

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.events = _disable_profiler().events()


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
    index = 0
    for start, duration in sorted(activity):
        while index < count and ends[index] <= start:
            index += 1
        if index < count and starts[index] <= start:
            busy_ns[index] += duration
    if not all(busy_ns):
        raise RuntimeError(f"CUPTI reported no GPU activity for {busy_ns.count(0)} of {count} calls")
    return [ns / 1e3 for ns in busy_ns]


def inside(events: Sequence[Any], named: str, *, gpu: bool) -> list[str]:
    """Names of what happened on the GPU, or on the host, inside a named host range."""
    from torch._C._autograd import DeviceType

    (outer,) = (e for e in events if e.name() == named and e.device_type() == DeviceType.CPU)
    start, end = outer.start_ns(), outer.start_ns() + outer.duration_ns()
    return [
        event.name()
        for event in events
        if (event.device_type() != DeviceType.CPU) is gpu
        and start <= event.start_ns() < end
        and not event.name().startswith(("sample", "call"))
    ]
