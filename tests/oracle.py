"""The contract in float64, row by row in plain Python, and the check of a backend's answer against it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-6


@dataclass
class Band:
    """Rows checked, and those whose outcome is undecidable in float32."""

    rows: int = 0
    met: int = 0


BAND = Band()


def row(logits: Tensor, exclude_ids: Sequence[int] = ()) -> tuple[float, int]:
    """Confidence and candidate of one row (V,)."""
    values = logits.to("cpu", torch.float64)
    candidates = [token for token in range(len(values)) if token not in exclude_ids]
    allowed = values[torch.tensor(candidates)]
    nans = allowed.isnan().nonzero()
    place = int(nans[0]) if len(nans) else int((allowed == allowed.max()).nonzero()[0])
    token = candidates[place]
    if values.isnan().any() or values.max().isinf():
        return math.nan, token
    weights = torch.exp(values - values.max())
    return float(weights[token] / weights.sum()), token


@dataclass
class Outcome:
    """What a call left behind, all on the CPU: ids (B, L) and the optional outputs."""

    input_ids: Tensor
    confidence: Tensor | None = None
    tokens: Tensor | None = None
    accepted: Tensor | None = None
    remaining: Tensor | None = None


def check(
    outcome: Outcome,
    logits: Tensor,
    input_ids: Tensor,
    mask_id: int,
    thresholds: Sequence[float],
    prompt_mask: Tensor | None = None,
    exclude_ids: Sequence[int] = (),
    edit_threshold: float | None = None,
) -> None:
    """Assert that `outcome` follows the contract for logits (B, L, V) and the ids before the call (B, L)."""
    is_open = input_ids == mask_id if edit_threshold is None else torch.ones_like(input_ids, dtype=torch.bool)
    if prompt_mask is not None:
        is_open &= ~prompt_mask
    for block, threshold in enumerate(thresholds):
        rows = {
            position: row(logits[block, position], exclude_ids) for position in is_open[block].nonzero()[:, 0].tolist()
        }
        _check_block(outcome, block, rows, input_ids[block], mask_id, threshold, edit_threshold)


def _check_block(
    outcome: Outcome,
    block: int,
    rows: dict[int, tuple[float, int]],
    before: Tensor,
    mask_id: int,
    threshold: float,
    edit_threshold: float | None,
) -> None:
    where = f"block {block}"
    after = outcome.input_ids[block].tolist()
    before_list = before.tolist()
    confidence = {position: p for position, (p, _) in rows.items() if before_list[position] == mask_id}
    sure = {position for position, p in confidence.items() if p > threshold + TOLERANCE}
    unsure = {position for position, p in confidence.items() if abs(p - threshold) <= TOLERANCE}
    BAND.rows += len(rows)
    BAND.met += len(unsure)

    # A candidate may equal the mask id; then `accepted` alone tells whether the position was committed.
    committed = {position for position in rows if after[position] != before_list[position]}
    silent = {position for position in confidence if rows[position][1] == mask_id}
    if outcome.accepted is not None:
        committed = set(outcome.accepted[block].nonzero()[:, 0].tolist())
        assert committed <= set(rows), f"{where}: accepted {committed - set(rows)}, which were not open"
        silent = set()

    for position, token in enumerate(after):
        expected = rows[position][1] if position in committed else before_list[position]
        assert token == expected, f"{where}, position {position}: expected id {expected}, got {token}"
    edited = committed - set(confidence)
    committed &= set(confidence)
    if edit_threshold is not None:
        differing = {
            position: p
            for position, (p, token) in rows.items()
            if position not in confidence and token != before_list[position]
        }
        _check_edits(where, edited, differing, edit_threshold)
    if sure:
        assert sure - silent <= committed, f"{where}: {sure - silent - committed} passed and were not committed"
        assert committed <= sure | unsure, f"{where}: {committed - sure - unsure} committed below the threshold"
    elif confidence and not (committed and committed <= unsure) and not (unsure & silent):
        _check_fallback(where, committed, confidence, silent)

    _check_outputs(outcome, block, rows, before_list, mask_id)


def _check_edits(where: str, edited: set[int], differing: dict[int, float], edit_threshold: float) -> None:
    """`differing` holds position and confidence of what is open, not masked, and has another candidate."""
    sure = {position for position, p in differing.items() if p > edit_threshold + TOLERANCE}
    unsure = {position for position, p in differing.items() if abs(p - edit_threshold) <= TOLERANCE}
    BAND.met += len(unsure)
    assert sure <= edited, f"{where}: {sure - edited} passed and were not edited"
    assert edited <= sure | unsure, f"{where}: {edited - sure - unsure} edited below the threshold, or to the same"


def _check_fallback(where: str, committed: set[int], confidence: dict[int, float], silent: set[int]) -> None:
    numbers = [p for p in confidence.values() if not math.isnan(p)]
    if numbers:
        allowed = {position for position, p in confidence.items() if p >= max(numbers) - TOLERANCE}
    else:
        allowed = {min(confidence)}
    BAND.met += len(allowed) - 1
    if not committed:
        assert allowed & silent, f"{where}: nothing passed and nothing fell back; expected one of {allowed}"
        return
    assert len(committed) == 1, f"{where}: the fallback committed {committed}"
    assert committed <= allowed, f"{where}: the fallback took {committed}, expected one of {allowed}"


def _check_outputs(
    outcome: Outcome, block: int, rows: dict[int, tuple[float, int]], before: list[int], mask_id: int
) -> None:
    for position, token_before in enumerate(before):
        where = f"block {block}, position {position}"
        p, token = rows.get(position, (-math.inf, token_before))
        if outcome.confidence is not None:
            got = float(outcome.confidence[block, position])
            same = got == p or (math.isnan(got) and math.isnan(p)) or abs(got - p) <= TOLERANCE
            assert same, f"{where}: expected confidence {p}, got {got}"
        if outcome.tokens is not None:
            assert int(outcome.tokens[block, position]) == token, f"{where}: wrong candidate"
    if outcome.remaining is not None:
        left = sum(int(outcome.input_ids[block, position]) == mask_id for position in rows)
        assert int(outcome.remaining[block]) == left, f"block {block}: expected {left} remaining"
