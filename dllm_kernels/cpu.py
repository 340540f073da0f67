"""The CPU backend: the statistics of masked rows only, one cache-sized piece of the vocabulary at a time.

The reference writes float32 copies of all logits to memory and reads them back several times, and torch's argmax is not
vectorised. Here a piece is read once from memory and stays in the cache for its maxima, exponentials and sum, and the
candidate is looked for only among the `SPAN` logits that hold a row's maximum. Nothing is kept between calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SPAN = 512  # logits under one maximum: torch.amax over them is vectorised
# Elements of a piece: 2 MiB in float32. On two cores with 1 MiB of second-level cache each, 32x128000 float32 takes
# 1.8 ms in pieces of 2**17 to 2**20 elements, and 6 ms and more in one.
PIECE_ELEMENTS = 2**19
MAX_ROWS = 128  # at a time, so that a piece has at least 4096 columns and torch's cost per operation stays small


def row_statistics(logits: Tensor, masked: Tensor, exclude_ids: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """As `reference.row_statistics` where `masked` (B, L); elsewhere confidence and candidate are 0."""
    batch, length, vocab = logits.shape
    confidence = torch.zeros(batch, length, dtype=torch.float32)
    candidates = torch.zeros(batch, length, dtype=torch.int64)
    if logits.stride(0) != length * logits.stride(1) and batch > 1:
        for block in range(batch):
            one = slice(block, block + 1)
            confidence[one], candidates[one] = row_statistics(logits[one], masked[one], exclude_ids)
        return confidence, candidates
    flat = logits.as_strided((batch * length, vocab), (logits.stride(1), 1), logits.storage_offset())
    masked_rows = masked.flatten().nonzero()[:, 0]
    for first in range(0, len(masked_rows), MAX_ROWS):
        rows = masked_rows[first : first + MAX_ROWS]
        confidence.view(-1)[rows], candidates.view(-1)[rows] = _statistics(flat, rows, exclude_ids)
    return confidence, candidates


def _statistics(logits: Tensor, rows: Tensor, exclude_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Confidence and candidate of the given rows (at least one) of logits (N, V)."""
    vocab = logits.shape[-1]
    count = len(rows)
    if int(rows[-1]) - int(rows[0]) == count - 1:
        logits, rows = logits[int(rows[0]) : int(rows[-1]) + 1], torch.arange(count)
    width = max(SPAN, PIECE_ELEMENTS // count // SPAN * SPAN)
    starts = range(0, vocab, width)
    spans = torch.empty(count, -(-vocab // SPAN))  # the maximum of each
    maxima = torch.empty(count, len(starts))
    sums = torch.empty(count, len(starts))
    for piece, start in enumerate(starts):
        columns = logits[:, start : start + width]
        if len(logits) == count:
            values = columns.to(torch.float32, copy=True)
        else:
            values = columns.index_select(0, rows).float()
        piece_spans = spans[:, start // SPAN : (start + width) // SPAN]
        _span_maxima(values, piece_spans)
        maxima[:, piece] = piece_spans.amax(dim=-1)
        values.sub_(_finite_or_zero(maxima[:, piece : piece + 1])).exp_()
        sums[:, piece] = values.sum(dim=-1)

    maximum = maxima.amax(dim=-1, keepdim=True)
    shift = _finite_or_zero(maximum)
    total = (sums * torch.exp(maxima - shift)).sum(dim=-1)
    for span in {token // SPAN for token in exclude_ids}:
        spans[:, span] = _allowed(logits, rows, torch.full((count,), span), exclude_ids)[0].amax(dim=-1)
    best, span_of = spans.max(dim=-1)  # the first span on ties; NaN counts as largest
    values, columns = _allowed(logits, rows, span_of, exclude_ids)
    candidates = columns.gather(-1, values.argmax(dim=-1, keepdim=True))[:, 0]
    lowest_allowed = next(token for token in range(vocab) if token not in exclude_ids)
    for token in exclude_ids:  # chosen only where all others are -inf
        candidates = torch.where(candidates == token, lowest_allowed, candidates)
    return torch.exp(best - shift[:, 0]) / total, candidates


def _span_maxima(values: Tensor, spans: Tensor) -> None:
    whole = values.shape[-1] // SPAN
    spans[:, :whole] = values[:, : whole * SPAN].unflatten(-1, (whole, SPAN)).amax(dim=-1) if whole else 0
    if whole < spans.shape[-1]:
        spans[:, whole] = values[:, whole * SPAN :].amax(dim=-1)


def _finite_or_zero(maxima: Tensor) -> Tensor:
    """What can be subtracted from logits below `maxima`: exp(-inf - -inf) would be NaN."""
    return maxima.masked_fill(maxima == -torch.inf, 0.0)


def _allowed(logits: Tensor, rows: Tensor, spans: Tensor, exclude_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits of one span a row, -inf where excluded, and their columns; the last column stands in beyond the end."""
    columns = (spans.unsqueeze(-1) * SPAN + torch.arange(SPAN)).clamp_(max=logits.shape[-1] - 1)
    values = logits[rows.unsqueeze(-1), columns].float()
    for token in exclude_ids:
        values.masked_fill_(columns == token, -torch.inf)
    return values, columns
