"""The Triton backend: one launch per call, one pass over the logits of masked rows.

A program reads one share of one row's vocabulary and leaves four numbers (maximum, sum of exponentials, best candidate
and its id) in the workspace. The last program of a block to finish, found by a ticket counter, combines the shares,
decides and writes. Rows that are not masked leave at once and take no ticket: every program counts the block's masked
rows itself, so it knows which ticket is the last.

Memory model. A block's last program may read partial results and write ids only after every other program of the block
has stored its own and read the ids. Each program orders its accesses before its ticket by a barrier of all its threads
(`tl.debug_barrier`; Triton 3.6.0 emits none by itself before an atomic) and an acquire-release atomic at GPU scope; the
last ticket acquires them all.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm_kernels import workspace as workspaces

MAX_PROGRAMS = 2**31 - 1  # of a launch's first dimension
PROGRAMS_PER_PROCESSOR = 4
MAX_BLOCK_L = 256  # positions that the last program combines at a time
MAX_VOCAB = 2**30  # so that columns and tile ends fit int32

# int32 words of a partial result: row maximum, sum of exponentials, candidate's logit, candidate's id.
FIELDS = tl.constexpr(4)
NO_TOKEN = tl.constexpr(2**31 - 1)
# In the fallback, a confidence of NaN comes after every probability, and a row that is not masked after that.
RANK_NAN = tl.constexpr(-1.0)
RANK_UNMASKED = tl.constexpr(-2.0)


class Config(NamedTuple):
    """How a row is cut: at most `max_splits` programs, each over tiles of `tile_rows` x `tile_columns` logits."""

    max_vocab: int
    max_splits: int
    tile_rows: int
    tile_columns: int
    num_warps: int


# By bytes per logit; the first line whose max_vocab holds the vocabulary counts. tile_columns gives each thread one
# 16-byte vector per tile row, so that reducing over tile rows needs no exchange between threads.
CONFIGS = {
    2: (
        Config(1024, 1, 1, 1024, 4),
        Config(4096, 1, 4, 1024, 4),
        Config(2**31 - 1, 16, 4, 1024, 4),
    ),
    4: (
        Config(1024, 1, 2, 512, 4),
        Config(4096, 1, 8, 512, 4),
        Config(2**31 - 1, 16, 8, 512, 4),
    ),
}


@triton.jit
def _finite_or_zero(maximum):
    """What can be subtracted from logits below `maximum`: exp(-inf - -inf) would be NaN."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit
def _load_masked(
    ids_ptr, prompt_ptr, positions, mask_id, L, stride_ids_l: tl.int64, stride_prompt_l: tl.int64
):
    """Which of a block's positions are masked."""
    in_block = positions < L
    masked = in_block & (tl.load(ids_ptr + positions * stride_ids_l, mask=in_block, other=0) == mask_id)
    if prompt_ptr is not None:
        masked = masked & (tl.load(prompt_ptr + positions * stride_prompt_l, mask=in_block, other=1) == 0)
    return masked


@triton.jit
def _count_masked(
    ids_ptr, prompt_ptr, mask_id, L, stride_ids_l: tl.int64, stride_prompt_l: tl.int64, BLOCK_L: tl.constexpr
):
    count = 0
    start = 0
    while start < L:
        positions = start + tl.arange(0, BLOCK_L)
        masked = _load_masked(ids_ptr, prompt_ptr, positions, mask_id, L, stride_ids_l, stride_prompt_l)
        count += tl.sum(masked.to(tl.int32), 0)
        start += BLOCK_L
    return count


@triton.jit
def _load_tile(row_ptr, offs, first, V, TILE: tl.constexpr):
    """Logits `first + offs` as float32, -inf beyond the vocabulary. Only a row's last tile pays for a mask."""
    if first + TILE <= V:
        tile = tl.load(row_ptr + first + offs)
    else:
        tile = tl.load(row_ptr + first + offs, mask=first + offs < V, other=float("-inf"))
    return tile.to(tl.float32)


@triton.jit
def _is_candidate(columns, V, exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED: tl.constexpr):
    candidate = columns < V
    if EXCLUDED:
        candidate &= (columns != exclude_0) & (columns != exclude_1) & (columns != exclude_2) & (columns != exclude_3)
    return candidate


@triton.jit
def _candidate_by_rescan(
    row_ptr, offs, first, tiles, V, exclude_0, exclude_1, exclude_2, exclude_3,
    EXCLUDED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A share's candidate where it holds NaN or +inf: the first NaN if there is one, else the first maximum.

    Hardware maxima skip NaN and the interpreter's propagate it, so nothing of the first pass is used.
    """
    first_nan = NO_TOKEN
    best = float("-inf")
    best_token = NO_TOKEN
    tile = 0
    while tile < tiles:
        columns = first + tile * TILE + offs
        logits = _load_tile(row_ptr, offs, first + tile * TILE, V, TILE)
        candidate = _is_candidate(columns, V, exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED)
        is_nan = logits != logits
        first_nan = tl.minimum(first_nan, tl.min(tl.min(tl.where(candidate & is_nan, columns, NO_TOKEN), 0), 0))
        numbers = tl.where(candidate & (logits == logits), logits, float("-inf"))
        tile_best = tl.max(tl.max(numbers, 0), 0)
        token = tl.min(tl.min(tl.where(candidate & (logits == tile_best), columns, NO_TOKEN), 0), 0)
        if (tile_best > best) | (best_token == NO_TOKEN):
            best = tile_best
            best_token = token
        tile += 1
    if first_nan != NO_TOKEN:
        best = float("nan")
        best_token = first_nan
    return best, best_token


@triton.jit
def _read_share(
    row_ptr, first, tiles, V, exclude_0, exclude_1, exclude_2, exclude_3,
    EXCLUDED: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Maximum and sum of exponentials of one share of a row, and its best candidate's logit and id.

    Online softmax, kept per column of the tile until the end. The candidate's id is found afterwards, by a second look
    at the one tile that holds it, which is still in the cache.
    """
    TILE: tl.constexpr = TILE_ROWS * TILE_COLUMNS
    offs = tl.arange(0, TILE_ROWS)[:, None] * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)[None, :]
    maximum = tl.full((TILE_COLUMNS,), float("-inf"), tl.float32)  # (TILE_COLUMNS,), like all below
    exp_sum = tl.zeros((TILE_COLUMNS,), tl.float32)
    best = tl.full((TILE_COLUMNS,), float("-inf"), tl.float32)
    best_tile = tl.zeros((TILE_COLUMNS,), tl.int32)
    tile = 0
    while tile < tiles:
        start = first + tile * TILE
        logits = _load_tile(row_ptr, offs, start, V, TILE)  # (TILE_ROWS, TILE_COLUMNS)
        tile_maximum = tl.max(logits, 0)
        tile_best = tile_maximum
        if EXCLUDED:
            end = start + TILE
            excluded_here = (exclude_0 >= start) & (exclude_0 < end)
            excluded_here |= (exclude_1 >= start) & (exclude_1 < end)
            excluded_here |= (exclude_2 >= start) & (exclude_2 < end)
            excluded_here |= (exclude_3 >= start) & (exclude_3 < end)
            if excluded_here:
                candidate = _is_candidate(start + offs, V, exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED)
                tile_best = tl.max(tl.where(candidate, logits, float("-inf")), 0)
        best_tile = tl.where(tile_best > best, tile, best_tile)
        best = tl.maximum(best, tile_best)
        new_maximum = tl.maximum(maximum, tile_maximum)
        shift = _finite_or_zero(new_maximum)
        exp_sum = exp_sum * tl.exp(maximum - shift) + tl.sum(tl.exp(logits - shift[None, :]), 0)
        maximum = new_maximum
        tile += 1

    share_maximum = tl.max(maximum, 0)
    shift = _finite_or_zero(share_maximum)
    share_sum = tl.sum(exp_sum * tl.exp(maximum - shift), 0)
    share_best = tl.max(best, 0)
    share_tile = tl.min(tl.where(best == share_best, best_tile, tiles), 0)
    start = first + share_tile * TILE
    candidate = _is_candidate(start + offs, V, exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED)
    logits = _load_tile(row_ptr, offs, start, V, TILE)
    token = tl.min(tl.min(tl.where(candidate & (logits == share_best), start + offs, NO_TOKEN), 0), 0)
    if share_sum != share_sum:
        share_best, token = _candidate_by_rescan(
            row_ptr, offs, first, tiles, V, exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED, TILE
        )
    return share_maximum, share_sum, share_best, token


@triton.jit
def _combine_shares(partials_ptr, positions, masked, L, splits, SPLITS: tl.constexpr):
    """Confidence and candidate of each masked row from the partial results of its shares."""
    share = tl.arange(0, SPLITS)[None, :]
    offs = positions[:, None] * splits + share
    present = masked[:, None] & (share < splits)
    field = (L * splits).to(tl.int64)
    maxima = tl.load(partials_ptr + offs, present, 0, cache_modifier=".cg").to(tl.float32, bitcast=True)
    sums = tl.load(partials_ptr + field + offs, present, 0, cache_modifier=".cg").to(tl.float32, bitcast=True)
    bests = tl.load(partials_ptr + 2 * field + offs, present, 0, cache_modifier=".cg").to(tl.float32, bitcast=True)
    tokens = tl.load(partials_ptr + 3 * field + offs, present, NO_TOKEN, cache_modifier=".cg")
    maxima = tl.where(present, maxima, float("-inf"))
    bests = tl.where(present, bests, float("-inf"))

    shift = _finite_or_zero(tl.max(maxima, 1))
    total = tl.sum(sums * tl.exp(maxima - shift[:, None]), 1)
    is_nan = bests != bests
    numbers = tl.where(is_nan, float("-inf"), bests)
    best = tl.max(numbers, 1)
    any_nan = tl.max(is_nan.to(tl.int32), 1) > 0
    wins = tl.where(any_nan[:, None], is_nan, numbers == best[:, None])
    token = tl.min(tl.where(wins, tokens, NO_TOKEN), 1)
    # Of an all -inf row this is 0 / 0, of one with NaN or +inf the total is NaN.
    return tl.exp(best - shift) / total, token


@triton.jit(
    do_not_specialize=[
        "mask_id", "threshold", "exclude_0", "exclude_1", "exclude_2", "exclude_3", "L", "splits", "tiles",
        "tickets_start", "stride_logits_b", "stride_logits_l", "stride_ids_b", "stride_ids_l", "stride_prompt_b",
        "stride_prompt_l", "stride_threshold",
    ],
    do_not_specialize_on_alignment=[
        "ids_ptr", "prompt_ptr", "threshold_ptr", "confidence_ptr", "tokens_ptr", "accepted_ptr", "remaining_ptr",
        "workspace_ptr",
    ],
)  # fmt: skip
def _post_process_kernel(
    logits_ptr,  # (B, L, V)
    ids_ptr,  # (B, L)
    prompt_ptr,  # (B, L) or None
    threshold_ptr,  # (B,) or None
    confidence_ptr,  # (B, L) or None
    tokens_ptr,  # (B, L) or None
    accepted_ptr,  # (B, L) or None
    remaining_ptr,  # (B,) or None
    workspace_ptr,  # partial results (B, FIELDS, L, splits), and one ticket per block from tickets_start
    mask_id: tl.int64,
    threshold: tl.float32,
    exclude_0: tl.int32,
    exclude_1: tl.int32,
    exclude_2: tl.int32,
    exclude_3: tl.int32,
    L: tl.int32,
    V: tl.int32,
    splits: tl.int32,
    tiles: tl.int32,
    tickets_start: tl.int64,
    stride_logits_b: tl.int64,
    stride_logits_l: tl.int64,
    stride_ids_b: tl.int64,
    stride_ids_l: tl.int64,
    stride_prompt_b: tl.int64,
    stride_prompt_l: tl.int64,
    stride_threshold: tl.int64,
    EXCLUDED: tl.constexpr,
    ALIGNMENT: tl.constexpr,  # elements every row starts at a multiple of
    SPLITS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    program = tl.program_id(0)
    split = program % splits
    row = program // splits
    position = row % L
    block = (row // L).to(tl.int64)
    ids_ptr += block * stride_ids_b
    if prompt_ptr is not None:
        prompt_ptr += block * stride_prompt_b

    token = tl.load(ids_ptr + position * stride_ids_l)
    masked = token == mask_id
    if prompt_ptr is not None:
        masked = masked & (tl.load(prompt_ptr + position * stride_prompt_l) == 0)
    if not masked:
        if split == 0:
            if confidence_ptr is not None:
                tl.store(confidence_ptr + row, float("-inf"))
            if tokens_ptr is not None:
                tl.store(tokens_ptr + row, token)
            if accepted_ptr is not None:
                tl.store(accepted_ptr + row, 0)
            if remaining_ptr is not None:
                # A block without masks has no last program. If masks were counted as gone because the last
                # program is writing at this moment, then it writes the same 0.
                if position == 0:
                    if _count_masked(ids_ptr, prompt_ptr, mask_id, L, stride_ids_l, stride_prompt_l, BLOCK_L) == 0:
                        tl.store(remaining_ptr + block, 0)
        return

    masked_rows = _count_masked(ids_ptr, prompt_ptr, mask_id, L, stride_ids_l, stride_prompt_l, BLOCK_L)

    row_start = block * tl.multiple_of(stride_logits_b, ALIGNMENT) + position * tl.multiple_of(
        stride_logits_l, ALIGNMENT
    )
    share_maximum, share_sum, share_best, share_token = _read_share(
        logits_ptr + row_start, split * tiles * (TILE_ROWS * TILE_COLUMNS), tiles, V,
        exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED, TILE_ROWS, TILE_COLUMNS,
    )  # fmt: skip
    field = (L * splits).to(tl.int64)
    partials_ptr = workspace_ptr + block * FIELDS * field
    partial_ptr = partials_ptr + position * splits + split
    tl.store(partial_ptr, share_maximum.to(tl.int32, bitcast=True))
    tl.store(partial_ptr + field, share_sum.to(tl.int32, bitcast=True))
    tl.store(partial_ptr + 2 * field, share_best.to(tl.int32, bitcast=True))
    tl.store(partial_ptr + 3 * field, share_token)

    ticket_ptr = workspace_ptr + tickets_start + block
    tl.debug_barrier()
    ticket = tl.atomic_add(ticket_ptr, 1, sem="acq_rel", scope="gpu")
    if ticket != masked_rows * splits - 1:
        return
    tl.store(ticket_ptr, 0)

    if threshold_ptr is not None:
        threshold = tl.load(threshold_ptr + block * stride_threshold)
    passed_rows = 0
    left = masked_rows
    best_rank = RANK_UNMASKED
    best_position = 0
    best_token = 0
    start = 0
    while start < L:
        positions = start + tl.arange(0, BLOCK_L)
        chunk_masked = _load_masked(ids_ptr, prompt_ptr, positions, mask_id, L, stride_ids_l, stride_prompt_l)
        confidence, candidate = _combine_shares(partials_ptr, positions, chunk_masked, L, splits, SPLITS)
        passed = chunk_masked & (confidence > threshold)
        rows = block * L + positions
        tl.store(ids_ptr + positions * stride_ids_l, candidate.to(ids_ptr.dtype.element_ty), mask=passed)
        if confidence_ptr is not None:
            tl.store(confidence_ptr + rows, confidence, mask=chunk_masked)
        if tokens_ptr is not None:
            tl.store(tokens_ptr + rows, candidate.to(tokens_ptr.dtype.element_ty), mask=chunk_masked)
        if accepted_ptr is not None:
            tl.store(accepted_ptr + rows, passed, mask=chunk_masked)
        passed_rows += tl.sum(passed.to(tl.int32), 0)
        left -= tl.sum((passed & (candidate != mask_id)).to(tl.int32), 0)

        rank = tl.where(confidence == confidence, confidence, RANK_NAN)
        rank = tl.where(chunk_masked, rank, RANK_UNMASKED)
        chunk_rank = tl.max(rank, 0)
        if chunk_rank > best_rank:
            best_rank = chunk_rank
            best_position = tl.min(tl.where(rank == chunk_rank, positions, L), 0)
            best_token = tl.sum(tl.where(positions == best_position, candidate, 0), 0)
        start += BLOCK_L

    if passed_rows == 0:
        tl.store(ids_ptr + best_position * stride_ids_l, best_token.to(ids_ptr.dtype.element_ty))
        if accepted_ptr is not None:
            tl.debug_barrier()  # another thread may have stored False there
            tl.store(accepted_ptr + block * L + best_position, 1)
        left -= (best_token != mask_id).to(tl.int32)
    if remaining_ptr is not None:
        tl.store(remaining_ptr + block, left)


INTERPRETED = not isinstance(_post_process_kernel, triton.runtime.JITFunction)


def _config(vocab: int, itemsize: int) -> Config:
    return next(config for config in CONFIGS[itemsize] if vocab <= config.max_vocab)


def workspace_size(logits: Tensor) -> int:
    """See `dllm_kernels.workspace_size`."""
    rows = logits[..., 0].numel()
    config = _config(logits.shape[-1], logits.element_size())
    return workspaces.size(partial_words=FIELDS.value * rows * config.max_splits)


def _cut(rows: int, vocab: int, config: Config, processors: int) -> tuple[int, int]:
    """Programs per row and tiles per program: as few programs as fill the GPU."""
    total_tiles = triton.cdiv(vocab, config.tile_rows * config.tile_columns)
    splits = min(config.max_splits, total_tiles, triton.cdiv(PROGRAMS_PER_PROCESSOR * processors, rows))
    tiles = triton.cdiv(total_tiles, splits)
    return triton.cdiv(total_tiles, tiles), tiles


@functools.cache
def _processors(device: torch.device) -> int:
    return 1 if device.type != "cuda" else torch.cuda.get_device_properties(device).multi_processor_count


def post_process(
    logits: Tensor,
    input_ids: Tensor,
    mask_id: int,
    threshold: float | Tensor,
    prompt_mask: Tensor | None,
    exclude_ids: Sequence[int],
    outputs: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    workspace: Tensor | None,
) -> None:
    """The checked call of `dllm_kernels.post_process`: at least one position, exclude ids inside the vocabulary."""
    device = logits.device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            post_process(logits, input_ids, mask_id, threshold, prompt_mask, exclude_ids, outputs, workspace)
        return
    *batch, block_length, vocab = logits.shape
    rows = input_ids.numel()
    if vocab > MAX_VOCAB:
        raise ValueError(f"logits: expected a vocabulary of at most {MAX_VOCAB} tokens on 'triton'; got {vocab}")
    config = _config(vocab, logits.element_size())
    splits, tiles = _cut(rows, vocab, config, _processors(device))
    if rows * splits > MAX_PROGRAMS:
        raise ValueError(f"logits: expected at most {MAX_PROGRAMS // splits} positions on 'triton'; got {rows}")
    if workspace is None:
        workspace = workspaces.acquire(device, workspace_size(logits))

    # The stride of an absent batch is 0: there is one block.
    logits_strides = logits.stride() if batch else (0, *logits.stride())
    ids_strides = input_ids.stride() if batch else (0, *input_ids.stride())
    prompt_strides = (0, 0)
    if prompt_mask is not None:
        prompt_strides = prompt_mask.stride() if batch else (0, *prompt_mask.stride())
    alignment = 16 // logits.element_size()
    aligned = (logits_strides[0] % alignment | logits_strides[1] % alignment) == 0
    per_block = isinstance(threshold, Tensor)
    excluded = (*exclude_ids, -1, -1, -1, -1)
    _post_process_kernel[(rows * splits,)](
        logits,
        input_ids,
        prompt_mask,
        threshold if per_block else None,
        *outputs,
        workspace,
        mask_id,
        0.0 if per_block else threshold,
        *excluded[:4],
        block_length,
        vocab,
        splits,
        tiles,
        workspaces.tickets_start(workspace),
        *logits_strides[:2],
        *ids_strides,
        *prompt_strides,
        threshold.stride(0) if per_block else 0,
        EXCLUDED=bool(exclude_ids),
        ALIGNMENT=alignment if aligned else 1,
        SPLITS=config.max_splits,
        TILE_ROWS=config.tile_rows,
        TILE_COLUMNS=config.tile_columns,
        BLOCK_L=min(triton.next_power_of_2(block_length), MAX_BLOCK_L),
        num_warps=config.num_warps,
    )
