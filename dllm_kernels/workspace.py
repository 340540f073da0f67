"""Device memory that the Triton backend keeps between calls, for partial results.

A workspace is a flat int32 tensor that is zero before a call and zero again after it, so one workspace serves calls of
any shape that fits.

Eager calls share one workspace per device and stream, where they run in order. A call captured into a CUDA graph gets
one of its own, because graphs captured on one stream may replay side by side. The first `_KEPT_ELEMENTS` of a device
are given away for good. What comes after returns to a pool when the last graph that uses it is destroyed: CUDA tells so
by a thread of its own, which wakes at every replay of such a graph and makes it 2 us longer (docs/kernel.md). Whoever
captures thousands of calls, and again and again, gives workspaces of their own.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 2**20  # captured workspaces are cut from zeroed chunks of 4 MiB
_KEPT_ELEMENTS = 2**22  # 16 MiB: 3,900 captured calls of one block of 32 positions, or 124 of 128 such blocks
_LINE = 32  # elements: a captured workspace has its 128 bytes of the L2 cache for itself

_lock = threading.Lock()
_eager: dict[tuple[int, int], Tensor] = {}


def acquire(device: torch.device, stream: int, elements: int) -> Tensor:
    """A workspace of at least `elements` for a call on `stream`, the current one of `device`, the current CUDA
    device."""
    if torch._C._cuda_isCurrentStreamCapturing():  # what torch.cuda asks in turn
        return _captured(device, elements)
    key = (device.index, stream)
    workspace = _eager.get(key)
    if workspace is None or workspace.numel() < elements:
        with _lock:
            workspace = _eager.get(key)  # another thread may have been here
            if workspace is None or workspace.numel() < elements:
                workspace = _zeros(_round_up(elements), torch.cuda.current_stream(device))
                _eager[key] = workspace
    return workspace


def _zeros(elements: int, stream: torch.cuda.Stream, wait: bool = False) -> Tensor:
    """Zeroed memory that belongs to `stream`, allocated, and if asked for waited for, by a thread of its own.

    `torch.cuda.use_mem_pool` and torch.compile's "reduce-overhead" direct all allocations of a thread into a pool whose
    memory they take back, though we still hold it. And a thread that has declared itself relaxed may allocate and wait
    while another captures a graph.
    """

    def allocate() -> Tensor:
        mode = ctypes.c_int(_CAPTURE_MODE_RELAXED)
        _check(_libcuda().cuThreadExchangeStreamCaptureMode(ctypes.byref(mode)))
        with torch.cuda.stream(stream):
            memory = torch.zeros(elements, dtype=torch.int32, device=stream.device)
        if wait:
            stream.synchronize()
        return memory

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(allocate).result()


def _round_up(elements: int) -> int:
    """Powers of two from 4 KiB on, so that a growing batch does not reallocate at every step."""
    return max(1024, 1 << (elements - 1).bit_length())


@dataclass(frozen=True)
class _Captured:
    """A workspace used by captured calls, and the semaphore that is posted when no graph needs it any more."""

    workspace: Tensor
    released: int  # address of a sem_t, never freed: a graph may be destroyed while the process exits


_kept_by_device: dict[int, int] = {}  # elements that were given away for good
_kept_chunks: list[Tensor] = []  # which hold them: graphs know addresses alone
_captured_by_device: dict[int, list[_Captured]] = {}
_free_by_device: dict[int, Tensor] = {}


def _captured(device: torch.device, elements: int) -> Tensor:
    """A zeroed workspace that the graph under capture owns, for good or until it is destroyed."""
    elements = -(-elements // _LINE) * _LINE
    with _lock:
        kept = _kept_by_device.get(device.index, 0) + elements
        if kept <= _KEPT_ELEMENTS:
            _kept_by_device[device.index] = kept
            return _cut_zeroed(device, elements)
        elements = _round_up(elements)
        in_use = _captured_by_device.setdefault(device.index, [])
        for entry in in_use:
            if entry.workspace.numel() == elements and _libc().sem_trywait(entry.released) == 0:
                break
        else:
            entry = _Captured(_cut_zeroed(device, elements), _new_semaphore())
            in_use.append(entry)
        _post_when_destroyed(torch.cuda.current_stream(device).cuda_stream, entry.released)
        return entry.workspace


def _cut_zeroed(device: torch.device, elements: int) -> Tensor:
    """Zeroed memory from outside the graph's pool, cleared before this returns, without a node in the graph."""
    free = _free_by_device.get(device.index)
    if free is None or free.numel() < elements:
        free = _zeros(max(elements, _CHUNK_ELEMENTS), _own_stream(device), wait=True)
        _kept_chunks.append(free)
    _free_by_device[device.index] = free[elements:]
    return free[:elements]


@functools.cache
def _own_stream(device: torch.device) -> torch.cuda.ExternalStream:
    """A stream of the current device that nobody else has: PyTorch's are 32, handed out in turn, and one of them may be
    under capture."""
    handle = ctypes.c_void_p()
    _check(_libcuda().cuStreamCreate(ctypes.byref(handle), _STREAM_NON_BLOCKING))
    return torch.cuda.ExternalStream(handle.value, device)  # type: ignore[no-untyped-call]


# CUDA driver API, cuda.h: values and signatures.
_STREAM_NON_BLOCKING = 1
_CAPTURE_MODE_RELAXED = 2
_USER_OBJECT_NO_DESTRUCTOR_SYNC = 1
_GRAPH_USER_OBJECT_MOVE = 1


@functools.cache
def _libcuda() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.sem_init.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint)
    libc.sem_trywait.argtypes = (ctypes.c_void_p,)
    return libc


def _check(status: int) -> None:
    if status != 0:
        raise RuntimeError(f"the CUDA driver refused a call while a graph was captured: CUresult {status}")


def _new_semaphore() -> int:
    address: int = _libc().malloc(32)  # sizeof(sem_t) on 64-bit Linux
    _libc().sem_init(address, 0, 0)
    return address


def _post_when_destroyed(stream: int, semaphore: int) -> None:
    """Have the graph under capture on `stream`, and every executable made of it, post `semaphore` at its end.

    CUDA runs such destructors on a thread of its own, where neither CUDA nor Python may be called; sem_post may.
    """
    status, graph, user_object = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    libcuda = _libcuda()
    _check(
        libcuda.cuStreamGetCaptureInfo_v2(
            ctypes.c_void_p(stream), ctypes.byref(status), None, ctypes.byref(graph), None, None
        )
    )
    destructor = ctypes.cast(_libc().sem_post, ctypes.c_void_p)
    _check(
        libcuda.cuUserObjectCreate(
            ctypes.byref(user_object), ctypes.c_void_p(semaphore), destructor, 1, _USER_OBJECT_NO_DESTRUCTOR_SYNC
        )
    )
    _check(libcuda.cuGraphRetainUserObject(graph, user_object, 1, _GRAPH_USER_OBJECT_MOVE))
