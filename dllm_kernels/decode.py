"""Block decoding with any model: semi-autoregressive blocks, each unmasked over several forward passes.

The loop that LLaDA2 decodes by: the sequence is cut into blocks on a fixed grid; the block at hand starts as masks, every
forward pass sees the sequence up to the end of that block and commits tokens of it by `dllm_post_process_fused`, until
no mask is left in it; then the next block starts. The model is a callable from ids (B, T) to logits (B, T, V).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_kernels.post_process import MAX_EXCLUDE_IDS, dllm_post_process_fused

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DecodeStep:
    """What one forward pass did."""

    forward_passes: int  # so far, this one included
    block: int  # index on the grid of blocks
    input_ids: Tensor  # (B, T) up to the block's end: the loop's own memory; clone it to keep it
    masks_left: int  # in this block, over all sequences that still decode


@dataclass(frozen=True)
class DecodeResult:
    """Generated tokens and what they cost."""

    tokens: Tensor  # (B, generation_length): filled with `eos_id` from the first one on
    lengths: Tensor  # (B,) int64: tokens up to and with the first EOS, or up to the first mask that was left
    finished: Tensor  # (B,) bool: False where the bound on forward passes left masks before the end
    forward_passes: int


def decode(
    model: Model,
    prompt_ids: Tensor,
    *,
    mask_id: int,
    generation_length: int,
    block_length: int = 32,
    threshold: float = 0.95,
    eos_id: int | None = None,
    prompt_lengths: Sequence[int] | None = None,
    exclude_ids: Sequence[int] = (),
    max_forward_passes: int | None = None,
    backend: str = "auto",
) -> DecodeResult:
    """Generate `generation_length` tokens after each prompt.

    Args:
        model: ids (B, T) int64 -> logits (B, T, V), float16, bfloat16 or float32; T grows by blocks. It sees masks.
        prompt_ids: (B, P) int64; not changed. A mask id inside a prompt is text and stays.
        mask_id: the mask token; never generated.
        block_length: positions decoded together; blocks lie on multiples of it, so a prompt may end inside one.
        threshold: see `dllm_post_process_fused`.
        eos_id: a sequence ends at the first one of it that has no mask before it.
        prompt_lengths: of each prompt in `prompt_ids`, at least 0 and at most P; the rest of a row is ignored.
        exclude_ids: at most 3 more token ids that are never generated.
        max_forward_passes: a bound; without one the loop ends by itself, since every pass commits a token.
        backend: see `dllm_post_process_fused`.

    Raises:
        TypeError, ValueError: an argument, or what the model returned, is not as described.
    """
    run = _prepare(
        model, prompt_ids, mask_id, generation_length, block_length, threshold, eos_id, prompt_lengths, exclude_ids,
        max_forward_passes, backend,
    )  # fmt: skip
    forward_passes = 0
    for step in _steps(run):
        forward_passes = step.forward_passes
    return _result(run, forward_passes)


def iter_decode(
    model: Model,
    prompt_ids: Tensor,
    *,
    mask_id: int,
    generation_length: int,
    block_length: int = 32,
    threshold: float = 0.95,
    eos_id: int | None = None,
    prompt_lengths: Sequence[int] | None = None,
    exclude_ids: Sequence[int] = (),
    max_forward_passes: int | None = None,
    backend: str = "auto",
) -> Iterator[DecodeStep]:
    """`decode`, one forward pass at a time, for a caller that shows progress or may stop early."""
    return _steps(
        _prepare(
            model, prompt_ids, mask_id, generation_length, block_length, threshold, eos_id, prompt_lengths,
            exclude_ids, max_forward_passes, backend,
        )
    )  # fmt: skip


@dataclass(frozen=True)
class _Run:
    """A decoding run, checked and laid out: sequences (B, T) of prompt, masks to generate, and masks to the grid."""

    model: Model
    sequences: Tensor
    prompt_ends: Tensor  # (B,)
    generation_length: int
    block_length: int
    first_block: int
    mask_id: int
    threshold: float
    eos_id: int | None
    exclude_ids: tuple[int, ...]
    max_forward_passes: float
    backend: str


def _prepare(
    model: Model,
    prompt_ids: Tensor,
    mask_id: int,
    generation_length: int,
    block_length: int,
    threshold: float,
    eos_id: int | None,
    prompt_lengths: Sequence[int] | None,
    exclude_ids: Sequence[int],
    max_forward_passes: int | None,
    backend: str,
) -> _Run:
    if not isinstance(prompt_ids, Tensor) or prompt_ids.dtype != torch.int64:
        got = prompt_ids.dtype if isinstance(prompt_ids, Tensor) else type(prompt_ids).__name__
        raise TypeError(f"prompt_ids: expected an int64 tensor; got {got}")
    if prompt_ids.dim() != 2:
        raise ValueError(f"prompt_ids: expected shape (B, P); got {tuple(prompt_ids.shape)}")
    batch, longest = prompt_ids.shape
    lengths = [longest] * batch if prompt_lengths is None else [int(length) for length in prompt_lengths]
    if len(lengths) != batch or not all(0 <= length <= longest for length in lengths):
        raise ValueError(f"prompt_lengths: expected {batch} values from 0 to {longest}; got {lengths}")
    if generation_length < 0:
        raise ValueError(f"generation_length: expected at least 0; got {generation_length}")
    if block_length < 1:
        raise ValueError(f"block_length: expected at least 1; got {block_length}")
    if max_forward_passes is not None and max_forward_passes < 0:
        raise ValueError(f"max_forward_passes: expected at least 0; got {max_forward_passes}")
    if eos_id == mask_id:
        raise ValueError(f"eos_id: expected another token than mask_id; got {eos_id} for both")
    if len(exclude_ids) >= MAX_EXCLUDE_IDS:
        raise ValueError(f"exclude_ids: expected at most {MAX_EXCLUDE_IDS - 1} ids beside the mask; got {exclude_ids}")

    ends = torch.tensor(lengths, dtype=torch.int64, device=prompt_ids.device)
    blocks = -(-(max(lengths, default=0) + generation_length) // block_length)
    sequences = prompt_ids.new_full((batch, blocks * block_length), mask_id)
    columns = torch.arange(longest, device=prompt_ids.device)
    sequences[:, :longest].copy_(torch.where(columns < ends.unsqueeze(-1), prompt_ids, mask_id)[:, : sequences.shape[1]])
    return _Run(
        model=model,
        sequences=sequences,
        prompt_ends=ends,
        generation_length=generation_length,
        block_length=block_length,
        first_block=min(lengths, default=0) // block_length if generation_length else blocks,
        mask_id=mask_id,
        threshold=threshold,
        eos_id=eos_id,
        exclude_ids=(mask_id, *exclude_ids),
        max_forward_passes=float("inf") if max_forward_passes is None else max_forward_passes,
        backend=backend,
    )


def _steps(run: _Run) -> Iterator[DecodeStep]:
    if run.sequences.shape[0] == 0:
        return
    columns = torch.arange(run.sequences.shape[1], device=run.sequences.device)
    is_prompt = columns < run.prompt_ends.unsqueeze(-1)
    is_beyond = columns >= (run.prompt_ends + run.generation_length).unsqueeze(-1)
    forward_passes = 0
    for block in range(run.first_block, run.sequences.shape[1] // run.block_length):
        end = (block + 1) * run.block_length
        window = slice(end - run.block_length, end)
        # Where a sequence ended, inside the block or before it, it keeps what it has.
        fixed = is_prompt[:, window] | is_beyond[:, window]
        masks_left, ended = _progress(run, fixed, window)
        while masks_left and forward_passes < run.max_forward_passes:
            input_ids = run.sequences[:, :end]
            logits = _logits(run, input_ids)
            dllm_post_process_fused(
                logits[:, window],
                run.sequences[:, window],
                run.mask_id,
                run.threshold,
                prompt_mask=fixed | ended.unsqueeze(-1),
                exclude_ids=run.exclude_ids,
                backend=run.backend,
            )
            forward_passes += 1
            masks_left, ended = _progress(run, fixed, window)
            yield DecodeStep(forward_passes, block, input_ids, masks_left)


def _logits(run: _Run, input_ids: Tensor) -> Tensor:
    logits = run.model(input_ids)
    if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != input_ids.shape:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model: expected logits of shape {(*input_ids.shape, 'V')}; got {got}")
    return logits


def _progress(run: _Run, fixed: Tensor, window: slice) -> tuple[int, Tensor]:
    """Masks that the block still has to lose (the step's one synchronisation), and which sequences ended (B,)."""
    ended = _first_end(run).ne(run.sequences.shape[1])
    open_masks = (run.sequences[:, window] == run.mask_id) & ~fixed & ~ended.unsqueeze(-1)
    return int(open_masks.sum()), ended


def _first_end(run: _Run) -> Tensor:
    """Position of each sequence's first EOS, if no mask comes before it; else the sequence's length (B,)."""
    positions = torch.arange(run.sequences.shape[1], device=run.sequences.device)
    generated = positions >= run.prompt_ends.unsqueeze(-1)
    nowhere = run.sequences.shape[1]
    if run.eos_id is None:
        return torch.full_like(run.prompt_ends, nowhere)
    first_mask = torch.where(generated & (run.sequences == run.mask_id), positions, nowhere).amin(dim=-1)
    first_eos = torch.where(generated & (run.sequences == run.eos_id), positions, nowhere).amin(dim=-1)
    return torch.where(first_eos < first_mask, first_eos, nowhere)


def _result(run: _Run, forward_passes: int) -> DecodeResult:
    offsets = torch.arange(run.generation_length, device=run.sequences.device)
    if run.generation_length == 0:
        tokens = run.sequences[:, :0].clone()
        return DecodeResult(tokens, torch.zeros_like(run.prompt_ends), run.prompt_ends >= 0, forward_passes)
    tokens = run.sequences.gather(1, run.prompt_ends.unsqueeze(-1) + offsets)
    first_mask = torch.where(tokens == run.mask_id, offsets, run.generation_length).amin(dim=-1)
    first_eos = torch.full_like(first_mask, run.generation_length)
    if run.eos_id is not None:
        first_eos = torch.where(tokens == run.eos_id, offsets, run.generation_length).amin(dim=-1)
        ended = first_eos < first_mask
        tokens = torch.where(ended.unsqueeze(-1) & (offsets > first_eos.unsqueeze(-1)), run.eos_id, tokens)
    finished = (first_eos < first_mask) | (first_mask == run.generation_length)
    lengths = torch.where(first_eos < first_mask, first_eos + 1, first_mask)
    return DecodeResult(tokens, lengths, finished, forward_passes)
