"""The CPU backend: only the rows that can change, a few at a time while they are in the cache.

The reference writes float32 copies of all logits to memory and reads them back several times, and torch's argmax is not
vectorised. Here torch's softmax over spans of the vocabulary gives every span's sum of exponentials (the reciprocal of
its largest weight), and the candidate is looked for only in the span that holds the row's maximum. A row's result
depends on nothing but its own values, so equal rows tie. Nothing is kept between calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Logits under one softmax, which adds them up in as many running sums as a vector has elements. Where every addition
# rounds the same way, a peak beside equal logits, that puts the confidence off by 4e-7 on AVX-512, 9e-7 on AVX2 and, in
# spans of 64, 7e-7 without; spans of 512 by 2e-6 and 4e-6, for 10 % less time.
SPAN = 128 if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else 64

# Measured on two cores with 1 MiB of second-level cache each, torch 2.13, as ratios within one process.
# Elements of a piece, 2 MiB in float32. 32x157184 float32 takes 1.2 times as long in pieces of 2**18 and 4 times in one
# piece; 2**20 are as fast there, but lose half of the speed where that is the whole call.
PIECE_ELEMENTS = 2**19
# Some 30 small operations cost 0.1 ms whatever they work on, and each row costs a little. Beside the reference, all
# masked, AVX2, what lies just above both limits: 2x32x33000 float32 1.08 times as fast, 1x32x65537 1.11, 8x32x33000
# 2.1; 2x32x8200 1.03 in the 16-bit types, where the reference's argmax is slow, and 1x32x16384 1.2. Below: 32x32x6000
# float32 0.87, 1x32x33000 0.87, 8x32x2048 bfloat16 0.90, 1x32x8192 0.91.
MIN_ELEMENTS = {torch.float32: 2**21, torch.bfloat16: 2**19, torch.float16: 2**19}
MIN_VOCAB = {torch.float32: 2**15, torch.bfloat16: 2**13, torch.float16: 2**13}


def is_faster(logits: Tensor) -> bool:
    """Whether `row_statistics` is faster here than the reference's, whatever is masked."""
    return logits.numel() >= MIN_ELEMENTS[logits.dtype] and logits.shape[-1] >= MIN_VOCAB[logits.dtype]


def row_statistics(logits: Tensor, is_open: Tensor, exclude_ids: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """As `reference.row_statistics` where `is_open` (B, L); elsewhere confidence and candidate are 0.

    `exclude_ids` lie inside the vocabulary and leave a token.
    """
    rows = is_open.nonzero(as_tuple=True)
    maxima, sums = _span_statistics(logits, rows)
    maximum = maxima.amax(dim=-1, keepdim=True)
    total = (sums * torch.exp(maxima - maximum)).sum(dim=-1, dtype=torch.float64)

    for span in {token // SPAN for token in exclude_ids}:
        maxima[:, span] = _allowed(logits, rows, torch.full_like(rows[0], span), exclude_ids)[0].amax(dim=-1)
    best, span_of = maxima.max(dim=-1)  # the first span on ties; NaN counts as largest
    values, columns = _allowed(logits, rows, span_of, exclude_ids)
    chosen = columns.gather(-1, values.argmax(dim=-1, keepdim=True))[:, 0]
    lowest_allowed = next(token for token in range(logits.shape[-1]) if token not in exclude_ids)
    for token in exclude_ids:  # chosen only where all others are -inf
        chosen = torch.where(chosen == token, lowest_allowed, chosen)

    confidence = torch.zeros(is_open.shape, dtype=torch.float32)
    candidates = torch.zeros(is_open.shape, dtype=torch.int64)
    confidence[rows] = (torch.exp(best - maximum[:, 0]) / total).float()
    candidates[rows] = chosen
    return confidence, candidates


def _span_statistics(logits: Tensor, rows: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Maximum of each span of the rows, and the sum of exp(logit - maximum) over it: (N, spans) float32 each."""
    count, vocab = len(rows[0]), logits.shape[-1]
    spans = -(-vocab // SPAN)
    maxima = torch.empty(count, spans)
    peaks = torch.empty(count, spans)  # the largest weight of a span's softmax: exp(0) / sum
    rows_at_once = max(1, min(count, PIECE_ELEMENTS // vocab))
    readable = logits.dtype == torch.float32 and vocab == spans * SPAN  # without a copy: 1.8 times as fast
    piece = torch.full((0 if readable else rows_at_once, spans * SPAN), -torch.inf)  # the end of each row stays so
    weights = torch.empty(rows_at_once, spans, SPAN)
    for first in range(0, count, rows_at_once):
        now = slice(first, min(first + rows_at_once, count))
        size = now.stop - first
        values = _rows(logits, rows[0][now], rows[1][now])
        if not readable:
            piece[:size, :vocab] = values
            values = piece[:size]
        values = values.view(size, spans, SPAN)
        torch.amax(values, dim=-1, out=maxima[now])
        torch.softmax(values, dim=-1, out=weights[:size])
        torch.amax(weights[:size], dim=-1, out=peaks[now])
    return maxima, torch.where(maxima == -torch.inf, 0.0, peaks.reciprocal())  # softmax makes NaN of a span of -inf


def _rows(logits: Tensor, blocks: Tensor, positions: Tensor) -> Tensor:
    """The given rows of logits, (N, V): a view if they are neighbours in one block."""
    first, last = int(positions[0]), int(positions[-1])
    if int(blocks[0]) == int(blocks[-1]) and last - first == len(positions) - 1:
        return logits[int(blocks[0]), first : last + 1]
    return logits[blocks, positions]


def _allowed(
    logits: Tensor, rows: tuple[Tensor, ...], spans: Tensor, exclude_ids: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Logits of one span of each row, -inf where excluded, and their ids; the last id stands in beyond the end."""
    columns = (spans.unsqueeze(-1) * SPAN + torch.arange(SPAN)).clamp_(max=logits.shape[-1] - 1)
    values = logits[rows[0].unsqueeze(-1), rows[1].unsqueeze(-1), columns].float()
    for token in exclude_ids:
        values.masked_fill_(columns == token, -torch.inf)
    return values, columns
