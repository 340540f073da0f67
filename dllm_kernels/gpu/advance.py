"""`Slots.advance` as one launch, a program for every slot: see `dllm_kernels.decode.slots`, which specifies it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from dllm_kernels.gpu import can_depend

if TYPE_CHECKING:
    from dllm_kernels.decode.slots import Slots


def advance(slots: Slots, mask_id: int, eos_id: int | None) -> None:
    block_length = slots.blocks.shape[1]
    dependent = can_depend()
    options = {"launch_pdl": True} if dependent else {}
    advance_kernel[(len(slots.blocks),)](
        slots.blocks,
        slots.fixed,
        slots.starts,
        slots.prompt_ends,
        slots.ends,
        slots.remaining,
        slots.complete,
        slots.running,
        slots.passes,
        slots.ended,
        slots.told,  # written across the bus: a copy after the kernel would take longer than the kernel
        slots.tokens,
        mask_id,
        0 if eos_id is None else eos_id,
        block_length,
        slots.tokens.shape[1],
        HAS_EOS=eos_id is not None,
        BLOCK_L=triton.next_power_of_2(block_length),
        DEPENDENT=dependent,
        num_warps=1,  # which reads all that it writes before it does
        **options,
    )


@triton.jit(do_not_specialize=["mask_id", "eos_id"])
def advance_kernel(
    blocks_ptr,
    fixed_ptr,
    starts_ptr,
    prompt_ends_ptr,
    ends_ptr,
    remaining_ptr,
    complete_ptr,
    running_ptr,
    passes_ptr,
    ended_ptr,
    told_ptr,
    tokens_ptr,
    mask_id,
    eos_id,
    block_length,
    tokens_stride,
    HAS_EOS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    if DEPENDENT:  # on the step's results
        tl.extra.cuda.gdc_wait()
    slot = tl.program_id(0).to(tl.int64)
    running = tl.load(running_ptr + slot) != 0
    complete = tl.load(complete_ptr + slot) != 0
    left = tl.load(remaining_ptr + slot)
    start = tl.load(starts_ptr + slot)
    end = tl.load(ends_ptr + slot)
    first = tl.load(prompt_ends_ptr + slot) // block_length * block_length
    columns = tl.arange(0, BLOCK_L)
    inside = columns < block_length
    ids = tl.load(blocks_ptr + slot * block_length + columns, mask=inside, other=0)
    fixed = tl.load(fixed_ptr + slot * block_length + columns, mask=inside, other=1) != 0
    tl.store(tokens_ptr + slot * tokens_stride + start - first + columns, ids, mask=inside & running)

    done = (left == 0) & (start + block_length >= end)
    if HAS_EOS:
        masked = (ids == mask_id) & ~fixed
        ended = (ids == eos_id) & ~fixed & (tl.cumsum(masked.to(tl.int32), 0) == 0)
        done = done | (tl.max(ended.to(tl.int32), 0) != 0)
    done = done & running
    onward = running & complete & ~done
    tl.store(complete_ptr + slot, running & ~done & ~complete & (left == 0))
    tl.store(running_ptr + slot, running & ~done)
    passes = tl.load(passes_ptr + slot) + 1
    tl.store(passes_ptr + slot, passes, mask=running)
    known = tl.where(done, passes, tl.load(ended_ptr + slot))
    tl.store(ended_ptr + slot, known)
    tl.store(told_ptr + slot, known)

    tl.store(starts_ptr + slot, start + block_length, mask=onward)
    fresh = tl.zeros_like(ids) + mask_id
    behind = start + block_length + columns >= end
    tl.store(blocks_ptr + slot * block_length + columns, fresh, mask=inside & onward)
    tl.store(fixed_ptr + slot * block_length + columns, behind, mask=inside & onward)
