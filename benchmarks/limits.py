"""What bounds every implementation, as far as was found, measured beside them: reading the logits, a launch, a call.

The floor of a workload is the fastest way found to read the logits of as many rows as are masked, once: of kernels that
only take maxima, with rows cut in different ways, and of `torch.amax` and `torch.sum`. All here are called as
implementations are (`benchmarks.implementations`) and leave the ids alone.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

from benchmarks.implementations import Step

if TYPE_CHECKING:
    import triton.language as tl
    from torch import Tensor

# How fast a device model reads from its memory: the floor of 128x32x157184-fp32-100 on the device's clock on
# 2026-11-28, torch 2.11.0+cu130: kernel-<device>.json in benchmarks/evidence, of the H200 kernel-whole-rows-. Noted
# once, so that a series of shares of it moves with the kernel alone. On 2026-11-30 another H200 read the bfloat16 one
# at 4640 and the float32 one at 4680 (kernel-nvidia-h200.json there).
READ_GB_PER_S = {"NVIDIA H100 80GB HBM3": 3060.0, "NVIDIA H200": 4570.0}

FLOOR, EMPTY_KERNEL, PLAIN_CALL = "floor", "empty kernel", "x.add_(1)"

WARPS, SHARES, UNROLL = (4, 8), (1, 2, 4, 8, 16), (2, 4, 8)
# Of a launch with rows cut into shares. Many, because the last programs to start leave less of the GPU idle the shorter
# they are: 128x32x157184 fp32, whose rows the kernel halves, took it 835 us on an H100, where whole rows were read in
# 841.
MOST_PROGRAMS = 2**14


def readers(masked_rows: int, logits: Tensor) -> dict[str, Step]:
    """Ways to read the first `masked_rows` rows of every block of such logits (B, L, V) once, by name."""
    if logits.is_cuda and not masked_rows:
        return {EMPTY_KERNEL: _empty_kernel}  # a launch, which a call that reads nothing takes, too
    found: dict[str, Step] = {
        "torch.amax": lambda logits, *_: logits[:, :masked_rows].amax(dim=-1),
        "torch.sum": lambda logits, *_: logits[:, :masked_rows].sum(dim=-1),
    }
    return found | maxima_kernels(masked_rows, logits) if logits.is_cuda else found


def maxima_kernels(masked_rows: int, logits: Tensor) -> dict[str, Step]:
    """Those of `readers` that are written in Triton: each returns the shares' maxima, float32 (B * rows * shares,)."""
    rows = logits.shape[0] * masked_rows
    return {
        f"maxima, {warps} warps, {shares} shares a row, {unroll} tiles at a time": functools.partial(
            _maxima, masked_rows, warps, shares, unroll
        )
        for warps, shares, unroll in itertools.product(WARPS, SHARES, UNROLL)
        if shares == 1 or rows * shares <= MOST_PROGRAMS
    }


def others(logits: Tensor) -> dict[str, Step]:
    """A kernel that does nothing, where there is a GPU; and PyTorch's addition to one element."""
    import torch

    element = torch.zeros(1, device=logits.device)
    found: dict[str, Step] = {PLAIN_CALL: lambda *_: element.add_(1)}
    return {EMPTY_KERNEL: _empty_kernel, **found} if logits.is_cuda else found


def _empty_kernel(logits: Tensor, *_: Any) -> None:
    _kernels()[0][(1,)](logits)


def _maxima(masked_rows: int, warps: int, shares: int, unroll: int, logits: Tensor, *_: Any) -> Tensor:
    import torch

    blocks, _rows, vocab = logits.shape
    width = 16 // logits.element_size()  # of a thread's vector: 16 bytes
    tiles_of_row = -(-vocab // (32 * warps * width))
    maxima = torch.empty(blocks * masked_rows * shares, device=logits.device)
    _kernels()[1][(maxima.numel(),)](
        logits, maxima, vocab, masked_rows, logits.stride(0), logits.stride(1), -(-tiles_of_row // shares), shares,
        THREADS=32 * warps, WIDTH=width, UNROLL=unroll, num_warps=warps,
    )  # fmt: skip
    return maxima


@functools.cache
def _kernels() -> tuple[Any, Any]:
    """Made on first use: asv imports this module on machines without Triton."""
    global tl  # where Triton looks for the names in a kernel
    import triton
    import triton.language as tl

    @triton.jit
    def nothing(logits_ptr):  # type: ignore[no-untyped-def]
        pass

    @triton.jit  # type: ignore[untyped-decorator]
    def maxima(  # type: ignore[no-untyped-def]
        logits_ptr, maxima_ptr, V, ROWS, stride_b, stride_l, tiles, shares,
        THREADS: tl.constexpr, WIDTH: tl.constexpr, UNROLL: tl.constexpr,
    ):  # fmt: skip
        program = tl.program_id(0)
        row = program // shares
        row_ptr = logits_ptr + (row // ROWS).to(tl.int64) * stride_b + (row % ROWS).to(tl.int64) * stride_l
        first = (program % shares) * tiles * THREADS * WIDTH
        offs = tl.arange(0, THREADS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
        maxima = tl.full((THREADS, WIDTH), float("-inf"), tl.float32)
        whole = tl.minimum(tl.maximum(V - first, 0) // (THREADS * WIDTH), tiles)
        for tile in tl.range(0, whole, loop_unroll_factor=UNROLL):
            maxima = tl.maximum(maxima, tl.load(row_ptr + first + tile * THREADS * WIDTH + offs).to(tl.float32))
        if whole < tiles:
            columns = first + whole * THREADS * WIDTH + offs
            logits = tl.load(row_ptr + columns, mask=columns < V, other=float("-inf"))
            maxima = tl.maximum(maxima, logits.to(tl.float32))
        tl.store(maxima_ptr + program, tl.max(tl.max(maxima, 1), 0))

    return nothing, maxima
