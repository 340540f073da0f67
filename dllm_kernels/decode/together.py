"""Block decoding with any model: semi-autoregressive blocks, each unmasked over several forward passes.

The loop that LLaDA2 decodes by: the sequence is cut into blocks on a fixed grid; the block at hand starts as masks,
every forward pass sees the sequence up to the end of that block and commits tokens of it by `dllm_post_process_fused`,
until no mask is left in it; then the next block starts. The model is a callable from ids (B, T) to logits (B, T, V).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dllm_kernels.checks import MAX_EXCLUDE_IDS, as_int, as_ints, at_least
from dllm_kernels.post_process import dllm_post_process_fused

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DecodeStep:
    """What one forward pass did."""

    forward_passes: int  # so far, this one included
    block: int  # index on the grid of blocks
    input_ids: Tensor  # (B, T) up to the block's end: the loop's own memory; clone it to keep it
    masks_left: int  # in this block, over all sequences that still decode
    _run: _Run = field(repr=False)

    def result(self) -> DecodeResult:
        """What `decode` returns if no further forward pass is made; call it before the next step."""
        return _result(self._run, self.forward_passes)


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
    threshold: float | Tensor = 0.95,
    eos_id: int | None = None,
    prompt_lengths: Sequence[int] | None = None,
    exclude_ids: Sequence[int] = (),
    max_forward_passes: int | None = None,
    backend: str = "auto",
) -> DecodeResult:
    """Generate `generation_length` tokens after each prompt.

    Args:
        model: ids (B, T) int64 -> logits (B, T, V), float16, bfloat16 or float32; T grows by blocks. It sees
            the masks, must not write the ids, and runs without gradients.
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
    threshold: float | Tensor = 0.95,
    eos_id: int | None = None,
    prompt_lengths: Sequence[int] | None = None,
    exclude_ids: Sequence[int] = (),
    max_forward_passes: int | None = None,
    backend: str = "auto",
) -> Iterator[DecodeStep]:
    """`decode`, one forward pass at a time, for a caller that shows progress or may stop early.

    The arguments are checked at the call, before the first step; `DecodeStep.result` is what has been generated so far.
    """
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
    mask_id: int
    threshold: float | Tensor
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
    threshold: float | Tensor,
    eos_id: int | None,
    prompt_lengths: Sequence[int] | None,
    exclude_ids: Sequence[int],
    max_forward_passes: int | None,
    backend: str,
) -> _Run:
    if not callable(model):
        raise TypeError(f"model: expected a callable from ids to logits; got {model!r}")
    if not isinstance(prompt_ids, Tensor) or prompt_ids.dtype != torch.int64:
        got = prompt_ids.dtype if isinstance(prompt_ids, Tensor) else type(prompt_ids).__name__
        raise TypeError(f"prompt_ids: expected an int64 tensor; got {got}")
    if prompt_ids.dim() != 2:
        raise ValueError(f"prompt_ids: expected shape (B, P); got {tuple(prompt_ids.shape)}")
    batch, longest = prompt_ids.shape
    lengths = [longest] * batch if prompt_lengths is None else as_ints("prompt_lengths", prompt_lengths)
    if len(lengths) != batch or not all(0 <= length <= longest for length in lengths):
        raise ValueError(f"prompt_lengths: expected {batch} values from 0 to {longest}; got {lengths}")
    generation_length = at_least("generation_length", generation_length, 0)
    block_length = at_least("block_length", block_length, 1)
    if max_forward_passes is not None:
        max_forward_passes = at_least("max_forward_passes", max_forward_passes, 0)
    mask_id = as_int("mask_id", mask_id)
    if eos_id is not None:
        eos_id = as_int("eos_id", eos_id)
        if eos_id == mask_id:
            raise ValueError(f"eos_id: expected another token than mask_id; got {eos_id} for both")
        if not 0 <= eos_id < 2**63:
            raise ValueError(f"eos_id: expected a token id, an int64 from 0 on; got {eos_id}")
    exclude_ids = as_ints("exclude_ids", exclude_ids)
    if len(exclude_ids) >= MAX_EXCLUDE_IDS:
        raise ValueError(f"exclude_ids: expected at most {MAX_EXCLUDE_IDS - 1} ids beside the mask; got {exclude_ids}")

    # Blocks without positions: the operation's checks of what it will be given, before the model runs.
    dllm_post_process_fused(
        prompt_ids.new_empty((batch, 0, 2 * MAX_EXCLUDE_IDS), dtype=torch.float32),
        prompt_ids.new_empty((batch, 0)),
        mask_id,
        threshold,
        exclude_ids=(mask_id, *exclude_ids),
        backend=backend,
    )

    ends = torch.tensor(lengths, dtype=torch.int64, device=prompt_ids.device)
    blocks = -(-(max(lengths, default=0) + generation_length) // block_length)
    sequences = prompt_ids.new_full((batch, blocks * block_length), mask_id)
    columns = torch.arange(longest, device=prompt_ids.device)
    prompts = torch.where(columns < ends.unsqueeze(-1), prompt_ids, mask_id)[:, : sequences.shape[1]]
    sequences[:, : prompts.shape[1]] = prompts
    return _Run(
        model=model,
        sequences=sequences,
        prompt_ends=ends,
        generation_length=generation_length,
        block_length=block_length,
        mask_id=mask_id,
        threshold=threshold,
        eos_id=eos_id,
        exclude_ids=(mask_id, *exclude_ids),
        max_forward_passes=float("inf") if max_forward_passes is None else max_forward_passes,
        backend=backend,
    )


def _steps(run: _Run) -> Iterator[DecodeStep]:
    positions = torch.arange(run.sequences.shape[1], device=run.sequences.device)
    starts = run.prompt_ends.unsqueeze(-1)
    fixed = (positions < starts) | (positions >= starts + run.generation_length)
    remaining = torch.empty_like(run.prompt_ends, dtype=torch.int32)
    ended = torch.zeros_like(run.prompt_ends, dtype=torch.bool)
    decoding = [True] * len(remaining)
    forward_passes = 0
    for block, masks in enumerate(_masks(run)):
        window = slice(block * run.block_length, (block + 1) * run.block_length)
        left = sum(row for row, goes_on in zip(masks, decoding, strict=True) if goes_on)
        while left:
            if forward_passes >= run.max_forward_passes:
                return
            input_ids = run.sequences[:, : window.stop]
            dllm_post_process_fused(
                _logits(run, input_ids)[:, window],
                run.sequences[:, window],
                run.mask_id,
                run.threshold,
                prompt_mask=fixed[:, window] | ended.unsqueeze(-1),
                exclude_ids=run.exclude_ids,
                remaining=remaining,
                backend=run.backend,
            )
            forward_passes += 1
            ended |= _ends(run, run.sequences[:, window], fixed[:, window])
            # The step's one wait for the device.
            rows, over = torch.stack((remaining.masked_fill(ended, 0), ended.to(torch.int32))).tolist()
            left, decoding = sum(rows), [not row for row in over]
            yield DecodeStep(forward_passes, block, input_ids, left, run)


def _masks(run: _Run) -> list[list[int]]:
    """Of each block, how many positions each sequence has to generate in it."""
    edges = range(0, run.sequences.shape[1], run.block_length)
    spans = [(start, start + run.generation_length) for start in run.prompt_ends.tolist()]
    return [[max(0, min(stop, edge + run.block_length) - max(start, edge)) for start, stop in spans] for edge in edges]


def _ends(run: _Run, block: Tensor, fixed: Tensor) -> Tensor:
    """Which sequences end in this block (B, L): at an EOS with no mask before it, here or, as blocks come in turn,
    in an earlier one (B,)."""
    if run.eos_id is None:
        return torch.zeros_like(fixed[:, :0]).any(dim=-1)
    masked = (block == run.mask_id) & ~fixed
    return ((block == run.eos_id) & ~fixed & (masked.cumsum(dim=-1) == 0)).any(dim=-1)


def _logits(run: _Run, input_ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits = run.model(input_ids)
    if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != input_ids.shape:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model: expected logits of shape {(*input_ids.shape, 'V')}; got {got}")
    return logits


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
