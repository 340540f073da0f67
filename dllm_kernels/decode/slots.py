"""What continuous batches keep on the device: the block that every slot is at, and what a step makes of it.

A step needs no word of the host: a slot whose block is finished goes on to its next block by itself, and says when its
sequence is.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slots:
    """Of S slots with blocks of L positions."""

    blocks: Tensor  # (S, L) int64: the block at hand
    fixed: Tensor  # (S, L) bool: prompt, or behind the sequence's end
    starts: Tensor  # (S,) int64: position of the block's first token
    prompt_ends: Tensor  # (S,) int64: position of the first token to be generated
    ends: Tensor  # (S,) int64: position after the last one
    remaining: Tensor  # (S,) int32: masks left in the block
    complete: Tensor  # (S,) bool: the block had no mask left before the forward pass, which cached it as it will stay
    running: Tensor  # (S,) bool
    passes: Tensor  # (S,) int32: forward passes that the sequence has taken part in
    ended: Tensor  # (S,) int32: how many those were when it ended, until the slot is filled anew; 0 before
    told: Tensor  # (S,) int32: `ended` after a step, for the host: in its memory, pinned if the others are a GPU's
    tokens: Tensor  # (S, T) int64: the blocks so far, from that on in which the prompt ends

    @classmethod
    def empty(cls, slots: int, block_length: int, generation_length: int, device: torch.device) -> Slots:
        blocks = -(-(block_length - 1 + generation_length) // block_length)
        whole = torch.zeros(slots, dtype=torch.int64, device=device)
        counts = torch.zeros(slots, dtype=torch.int32, device=device)
        flags = torch.zeros(slots, dtype=torch.bool, device=device)
        return cls(
            blocks=torch.zeros(slots, block_length, dtype=torch.int64, device=device),
            fixed=torch.ones(slots, block_length, dtype=torch.bool, device=device),
            starts=whole,
            prompt_ends=whole.clone(),
            ends=whole.clone(),
            remaining=counts,
            complete=flags,
            running=flags.clone(),
            passes=counts.clone(),
            ended=counts.clone(),
            told=torch.zeros(slots, dtype=torch.int32, pin_memory=device.type == "cuda"),
            tokens=torch.zeros(slots, blocks * block_length, dtype=torch.int64, device=device),
        )

    def fill(self, slot: int, last_ids: Tensor, prompt_end: int, end: int, mask_id: int) -> None:
        """Start a sequence: `last_ids` (n,) int64, the prompt's last n < L ids, begin its first block."""
        block_length = self.blocks.shape[1]
        start = prompt_end - len(last_ids)
        positions = torch.arange(start, start + block_length, device=self.blocks.device)
        self.blocks[slot].fill_(mask_id)
        self.blocks[slot, : len(last_ids)] = last_ids
        self.fixed[slot] = (positions < prompt_end) | (positions >= end)
        self.starts[slot].fill_(start)
        self.prompt_ends[slot].fill_(prompt_end)
        self.ends[slot].fill_(end)
        for state, value in ((self.complete, 0), (self.running, 1), (self.passes, 0), (self.ended, 0)):
            state[slot].fill_(value)

    def advance(self, mask_id: int, eos_id: int | None) -> None:
        """After a step's token update, which has left `remaining`: keep the tokens, end sequences that have ended, and
        take those on to their next block whose block was cached complete."""
        if self.blocks.is_cuda and _has_triton():
            from dllm_kernels.gpu.advance import advance

            advance(self, mask_id, eos_id)
        else:
            self.advance_eager(mask_id, eos_id)

    def advance_eager(self, mask_id: int, eos_id: int | None) -> None:
        """`advance` in PyTorch: the specification, and what other devices run."""
        block_length = self.blocks.shape[1]
        positions = self.starts.unsqueeze(-1) + torch.arange(block_length, device=self.blocks.device)
        first = self.prompt_ends // block_length * block_length
        places = (positions - first.unsqueeze(-1)).clamp(0, self.tokens.shape[1] - 1)
        kept = torch.where(self.running.unsqueeze(-1), self.blocks, self.tokens.gather(1, places))
        self.tokens.scatter_(1, places, kept)

        done = (self.remaining == 0) & (self.starts + block_length >= self.ends)
        if eos_id is not None:
            masked = (self.blocks == mask_id) & ~self.fixed
            ended = (self.blocks == eos_id) & ~self.fixed & (masked.cumsum(dim=-1) == 0)
            done |= ended.any(dim=-1)
        done &= self.running
        onward = self.running & self.complete & ~done
        self.complete.copy_(self.running & ~done & ~self.complete & (self.remaining == 0))
        self.passes.add_(self.running)
        self.ended.copy_(torch.where(done, self.passes, self.ended))
        self.told.copy_(self.ended, non_blocking=True)
        self.running.logical_and_(~done)

        self.starts.add_(onward * block_length)
        behind = positions + block_length >= self.ends.unsqueeze(-1)
        self.blocks.copy_(torch.where(onward.unsqueeze(-1), mask_id, self.blocks))
        self.fixed.copy_(torch.where(onward.unsqueeze(-1), behind, self.fixed))


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
