"""The specification of the operation, in eager PyTorch.

Two steps, both batched and free of host synchronisation, on any device:
`row_statistics` reads the logits, `commit` decides and updates. The other backends replace the first step
or both; this file says what their results must be.

The decoding rule is the confidence rule of LLaDA2 and SGLang's `LowConfidence`: commit every masked position
whose top probability exceeds the threshold, and at least one position per block. Edits are those of LLaDA2.1 and
SGLang's `JointThreshold`: a token that is there already gives way to another one above a threshold of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Logits that fill a 16-byte vector in every dtype. CUDA's reductions begin with the part of a row before the next such
# boundary, so equal rows of another length would add up in different orders and no longer tie.
_ALIGNED = 8


def row_statistics(logits: Tensor, exclude_ids: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Confidence (float32) and candidate (int64) of each position, both (B, L), from logits (B, L, V).

    The candidate is the lowest id among the largest logits outside `exclude_ids`, NaN counting as largest; the
    confidence is its softmax probability over the whole row, which is NaN for a row that holds NaN or +inf, or
    only -inf.
    """
    vocab = logits.shape[-1]
    excluded = [token for token in exclude_ids if 0 <= token < vocab]
    allowed = logits.clone() if excluded else logits
    for token in excluded:
        allowed[..., token] = -torch.inf
    candidates = allowed.argmax(dim=-1)
    # An excluded id can only have won when every other logit is -inf: then the lowest allowed id is the answer.
    lowest_allowed = next(token for token in range(vocab) if token not in excluded)
    for token in excluded:
        candidates = torch.where(candidates == token, lowest_allowed, candidates)
    if logits.is_cuda and vocab % _ALIGNED:
        logits = torch.nn.functional.pad(logits, (0, -vocab % _ALIGNED), value=-torch.inf)
    probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)
    # torch.softmax adds a row up in a few running sums: the whole row is 6e-6 off at 30522 logits on a CPU, 1.4e-6 at
    # 128000 on an H100. torch.sum adds pairwise, so what the row adds up to corrects it.
    total = probabilities.sum(dim=-1)
    return probabilities.gather(-1, candidates.unsqueeze(-1)).squeeze(-1) / total, candidates


def commit(
    statistics: tuple[Tensor, Tensor],
    masked: Tensor,
    is_open: Tensor,
    input_ids: Tensor,
    mask_id: int,
    threshold: float | Tensor,
    edit_threshold: float | None = None,
    confidence: Tensor | None = None,
    tokens: Tensor | None = None,
    accepted: Tensor | None = None,
    remaining: Tensor | None = None,
) -> None:
    """Accept or fall back, per block, and write `input_ids` (B, L) and the outputs that were given.

    `is_open` (B, L) says which positions may change: with an `edit_threshold` more than those that are `masked` (B, L),
    otherwise the same. `threshold` is a number or a float32 tensor (B,).
    A confidence of NaN never passes and comes last in the fallback, the lowest position first.
    """
    probability, candidates = statistics
    candidates = candidates.to(input_ids.dtype)
    if isinstance(threshold, Tensor):
        threshold = threshold.unsqueeze(-1)
    passed = masked & (probability > threshold)

    rank = torch.where(masked, probability.nan_to_num(nan=-1.0), -2.0)
    is_best = torch.zeros_like(masked).scatter_(-1, rank.argmax(dim=-1, keepdim=True), True)
    fallback = is_best & masked & ~passed.any(dim=-1, keepdim=True)

    committed = passed | fallback
    if edit_threshold is not None:
        committed |= is_open & ~masked & (probability > edit_threshold) & (candidates != input_ids)
    if confidence is not None:
        confidence.copy_(torch.where(is_open, probability, -torch.inf))
    if tokens is not None:
        tokens.copy_(torch.where(is_open, candidates, input_ids))
    if accepted is not None:
        accepted.copy_(committed, non_blocking=True)  # to the host, perhaps
    input_ids.copy_(torch.where(committed, candidates, input_ids))
    if remaining is not None:
        remaining.copy_((is_open & (input_ids == mask_id)).sum(dim=-1), non_blocking=True)
