"""The machine that measures: what it is, in what state its GPU is, and that one run at a time uses it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.results import Environment, GpuState

IMAGE = "DLLM_KERNELS_IMAGE"  # environment variable that the Dockerfile sets
# NVML's reasons for lower clocks that slow a kernel down, nvml.h; the others are idleness and settings.
THROTTLE_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


def describe_environment() -> Environment:
    """Where this process runs, and which commit of the package it measures. Starts CUDA, where there is a GPU."""
    import torch

    import dllm_kernels

    commit, dirty = commit_of(Path(dllm_kernels.__file__).parent)
    gpu = current_gpu()
    return Environment(
        device=torch.cuda.get_device_name() if gpu else cpu_name(),
        device_type="cuda" if gpu else "cpu",
        device_hash=gpu.uuid_hash if gpu else None,
        cpu_cores=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=_version("triton"),
        cuda=torch.version.cuda,
        driver=gpu.driver if gpu else None,
        commit=commit,
        dirty=dirty,
        image=os.environ.get(IMAGE) or None,
    )


class Gpu:
    """One GPU as the driver's management library sees it (NVML, through `nvidia-ml-py`)."""

    def __init__(self, uuid: str) -> None:
        import pynvml

        pynvml.nvmlInit()
        self._nvml = pynvml
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        self.uuid_hash = hashlib.sha256(uuid.encode()).hexdigest()[:16]
        self.driver = str(pynvml.nvmlSystemGetDriverVersion())

    def state(self, ours: Collection[int]) -> GpuState:
        """Clocks, temperature, power, reasons for lower clocks, and how many processes but `ours` compute there."""
        nvml, handle = self._nvml, self._handle
        reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        pids = {process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)}
        # In a container, NVML may tell the host's process ids: then only their number says anything.
        foreign = len(pids - set(ours)) if pids & set(ours) else max(0, len(pids) - len(ours))
        return GpuState(
            sm_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            memory_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            temperature_c=nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            power_w=nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            throttled=tuple(text for bit, text in THROTTLE_REASONS.items() if reasons & bit),
            foreign_processes=foreign,
        )

    def question(self, name: str, *arguments: Any) -> Any:
        """Ask NVML `nvmlDeviceGet` + name; None where this GPU or driver does not answer it."""
        try:
            return getattr(self._nvml, f"nvmlDeviceGet{name}")(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None


def current_gpu() -> Gpu | None:
    """The one that PyTorch uses, whatever CUDA_VISIBLE_DEVICES says."""
    import torch

    return Gpu(f"GPU-{torch.cuda.get_device_properties(0).uuid}") if torch.cuda.is_available() else None


@contextmanager
def lock(name: str, waiting: Callable[[str], None] | None = None) -> Iterator[int]:
    """Hold the machine's lock of that name: two runs on one GPU would measure each other.

    What is yielded is the open file. A process that is given it holds the lock too, until it ends.
    """
    descriptor = _open_lock(name)
    try:
        if not locked(descriptor):
            if waiting:
                waiting("another run measures here: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def cores(count: int) -> Iterator[list[int | None]]:
    """Processors for `count` pairs of processes, one a pair, that no other run uses; None where there is no such."""
    free: list[int | None] = []
    with ExitStack() as stack:
        for core in sorted(os.sched_getaffinity(0), reverse=True) if hasattr(os, "sched_getaffinity") else ():
            if len(free) < count:
                descriptor = _open_lock(f"core-{core}")
                stack.callback(os.close, descriptor)
                free += [core] if locked(descriptor) else []
        yield ((free or [None]) * count)[:count]


def _open_lock(name: str) -> int:
    # Containers have no folder of temporary files in common: they are told of another.
    path = Path(os.environ.get("DLLM_KERNELS_LOCKS", tempfile.gettempdir())) / f"dllm-kernels-{name}.lock"
    try:
        return os.open(path, os.O_RDONLY)  # one that another user created, too
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)


def locked(descriptor: int) -> bool:
    """Whether the lock of an open file or folder could be taken at once. It ends when that is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def waited_ns() -> int:
    """How long this process's threads have been ready to run without a processor; 0 where the kernel does not say."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[1])
        except (OSError, IndexError):  # a thread that ended meanwhile
            continue
    return total


def commit_of(folder: Path) -> tuple[str | None, bool]:
    """HEAD of the checkout that `folder` lies in, and whether it is changed: a tracked file anywhere, or a file in
    `folder` that git neither tracks nor ignores, which Python might import; (None, True) where none is known.

    A copy that travels without its repository says in DLLM_KERNELS_COMMIT which commit it is a copy of.
    """
    head, tracked, changes, others = (
        _git(folder, *arguments)
        for arguments in (
            ("rev-parse", "HEAD"),
            ("ls-files", "."),
            ("status", "--porcelain", "--untracked-files=no"),
            ("ls-files", "--others", "--exclude-standard", "."),
        )
    )
    if head and tracked and changes is not None:
        return head, bool(changes or others)
    named = os.environ.get("DLLM_KERNELS_COMMIT")
    return (named, False) if named else (None, True)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints in `folder`; None where it fails or is missing."""
    try:
        result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def cpu_name() -> str:
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
