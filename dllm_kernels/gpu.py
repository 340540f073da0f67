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
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from dllm_kernels import workspace as workspaces

MAX_PROGRAMS = 2**31 - 1  # of a launch's first dimension
# Rows are split until there are so many programs (measured as CONFIGS below): 4x32x157184 bf16 takes 14.3 us with the
# 5 splits of this value, 14.8 with 4. Rows that fill the GPU are left whole: 32x32x157184 bf16, with 4 warps, takes
# 116.1 us with 1 split, 118.4 with 2.
PROGRAMS_PER_PROCESSOR = 4
# Positions that the last program combines at a time. Few are rounded up until every thread has a share of its own:
# threads that hold copies write the same shared memory at once.
MAX_BLOCK_L = 256
MAX_VOCAB = 2**30  # so that columns and tile ends fit int32

# int32 words of a partial result: row maximum, sum of exponentials, candidate's logit, candidate's id.
FIELDS = tl.constexpr(4)
NO_TOKEN = tl.constexpr(2**31 - 1)
# In the fallback, a confidence of NaN comes after every probability, and a row that is not masked after that.
RANK_NAN = tl.constexpr(-1.0)
RANK_UNMASKED = tl.constexpr(-2.0)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Up to here LOG2E * maximum is rounded by less than 2.5e-4, which a factor of first order corrects to 1e-8. Shares with
# larger maxima take the slow path, which subtracts first.
MAX_SCALED_LOGIT = tl.constexpr(4096.0)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


class Config(NamedTuple):
    """How a row is cut: at most `max_splits` programs, each over tiles of one 16-byte vector per thread."""

    max_vocab: int
    max_splits: int
    num_warps: int
    unroll: int  # tiles whose loads are issued together


# The first line whose max_vocab holds the vocabulary counts. Measured on one H100 80GB HBM3 (torch 2.11.0, triton
# 3.6.0) in a CUDA graph with warm L2, all rows masked, over warps 4 and 8, splits 4 to 16, unroll 2 and 4:
CONFIGS = (
    # One tile: a share more would only be one more partial result to combine.
    Config(max_vocab=1024, max_splits=1, num_warps=4, unroll=1),
    # 1x32x128000 fp16 6.8 us (splits of 4: 7.0, of 16: 9.5), 1x32x157184 fp32 7.9 (4 warps 14.0), 128x32x157184 bf16
    # 448 (4 warps or unroll 2: 456). 1x32x157184 bf16 takes 7.6 and would take 7.2 with 4 splits.
    Config(max_vocab=MAX_VOCAB, max_splits=8, num_warps=8, unroll=4),
)


@triton.jit
def _finite_or_zero(maximum):
    """What can be subtracted from logits below `maximum`: exp(-inf - -inf) would be NaN."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit
def _shift_of(maximum):
    """LOG2E * maximum, rounded; 0 where `maximum` is -inf.

    The selection comes last so that ptxas cannot merge the product into a later subtraction, which would undo the
    rounding that all terms of a sum must share.
    """
    return tl.where(maximum == float("-inf"), 0.0, maximum * LOG2E)


@triton.jit
def _exp2(exponents):
    """2 ** exponents, with results below 2**-126 flushed to zero: tl.exp2 spends two multiplications on those."""
    if INTERPRETED:
        return tl.exp2(exponents)
    return libdevice.exp2(exponents)


@triton.jit
def _scaled_difference(logits, shift):
    """logits * LOG2E - shift, rounded once. The interpreter has no fused multiply-add, but it has float64."""
    if INTERPRETED:
        return (logits.to(tl.float64) * LOG2E - shift).to(tl.float32)
    return tl.fma(logits, LOG2E, -shift)


@triton.jit
def _exp2_of(logits, shift):
    """2 ** (logits * LOG2E - shift), one fused multiply-add and one exponential.

    A shift of round(maximum * LOG2E) is as good as the exact one, if all of a sum use the same: the product is not
    rounded before the subtraction.
    """
    return _exp2(_scaled_difference(logits, shift))


@triton.jit
def _load_masked(ids_ptr, prompt_ptr, positions, mask_id, L, stride_ids_l: tl.int64, stride_prompt_l: tl.int64):
    """Which of a block's positions are masked."""
    in_block = positions < L
    masked = in_block & (tl.load(ids_ptr + positions * stride_ids_l, mask=in_block, other=0) == mask_id)
    if prompt_ptr is not None:
        masked = masked & (tl.load(prompt_ptr + positions * stride_prompt_l, mask=in_block, other=1) == 0)
    return masked


@triton.jit
def _count_masked(
    first_masked, ids_ptr, prompt_ptr, mask_id, L, stride_ids_l: tl.int64, stride_prompt_l: tl.int64,
    BLOCK_L: tl.constexpr,
):  # fmt: skip
    """Masked positions of a block, given which of its first BLOCK_L are."""
    count = tl.sum(first_masked.to(tl.int32), 0)
    start = BLOCK_L
    while start < L:
        positions = start + tl.arange(0, BLOCK_L)
        masked = _load_masked(ids_ptr, prompt_ptr, positions, mask_id, L, stride_ids_l, stride_prompt_l)
        count += tl.sum(masked.to(tl.int32), 0)
        start += BLOCK_L
    return count


@triton.jit
def _is_candidate(columns, V, exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED: tl.constexpr):
    candidate = columns < V
    if EXCLUDED:
        candidate &= (columns != exclude_0) & (columns != exclude_1) & (columns != exclude_2) & (columns != exclude_3)
    return candidate


@triton.jit
def _fold_tile(
    logits, columns, tile, maximum, exp_sum, error, best, best_tile, V, exclude_0, exclude_1, exclude_2, exclude_3,
    EXCLUDED: tl.constexpr,
):  # fmt: skip
    """Online softmax: one more tile (THREADS, WIDTH) into the running values (THREADS,), each held by one thread.

    `error` is what rounding has added to `exp_sum` (Kahan's summation): beside a peak, a hundred tiles may all round
    the same way. The selection keeps the compiler from merging product and sum, and a sum of nothing from becoming NaN.
    """
    tile_maximum = tl.max(logits, 1)
    new_maximum = tl.maximum(maximum, tile_maximum)
    old_shift = _shift_of(maximum)
    shift = _shift_of(new_maximum)
    factor = tl.where(maximum == float("-inf"), 0.0, _exp2(old_shift - shift))
    scaled = tl.where(maximum == float("-inf"), 0.0, exp_sum * factor)
    addend = tl.sum(_exp2_of(logits, shift[:, None]), 1) - tl.where(maximum == float("-inf"), 0.0, error * factor)
    exp_sum = scaled + addend
    error = (exp_sum - scaled) - addend
    if EXCLUDED:
        candidate = _is_candidate(columns, V, exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED)
        tile_maximum = tl.max(tl.where(candidate, logits, float("-inf")), 1)
    best_tile = tl.where(tile_maximum > best, tile, best_tile)
    best = tl.maximum(best, tile_maximum)
    return new_maximum, exp_sum, error, best, best_tile


@triton.jit
def _load_tile(row_ptr, columns, V):
    return tl.load(row_ptr + columns, mask=columns < V, other=float("-inf")).to(tl.float32)


@triton.jit
def _reread_share(
    row_ptr, first, tiles, offs, V, exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """`_read_share` where fast arithmetic will not do: for NaN, infinities, and very large logits.

    The candidate is the first NaN if there is one, else the first maximum: hardware maxima skip NaN and the
    interpreter's propagate it, so nothing of the first pass is used.
    """
    first_nan = NO_TOKEN
    maximum = float("-inf")
    best = float("-inf")
    best_token = NO_TOKEN
    tile = 0
    while tile < tiles:
        columns = first + tile * TILE + offs
        logits = _load_tile(row_ptr, columns, V)
        candidate = _is_candidate(columns, V, exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED)
        is_nan = logits != logits
        first_nan = tl.minimum(first_nan, _min(tl.where(candidate & is_nan, columns, NO_TOKEN)))
        numbers = tl.where(is_nan, float("-inf"), logits)
        maximum = tl.maximum(maximum, _max(numbers))
        tile_best = _max(tl.where(candidate, numbers, float("-inf")))
        token = _min(tl.where(candidate & (logits == tile_best), columns, NO_TOKEN))
        if (tile_best > best) | (best_token == NO_TOKEN):
            best = tile_best
            best_token = token
        tile += 1
    if first_nan != NO_TOKEN:
        best = float("nan")
        best_token = first_nan

    shift = _finite_or_zero(maximum)
    exp_sum = 0.0
    tile = 0
    while tile < tiles:
        logits = _load_tile(row_ptr, first + tile * TILE + offs, V)
        exp_sum += tl.sum(tl.sum(tl.exp(logits - shift), 1), 0)
        tile += 1
    return maximum, exp_sum, best, best_token


@triton.jit
def _max(tile):
    return tl.max(tl.max(tile, 1), 0)


@triton.jit
def _min(tile):
    return tl.min(tl.min(tile, 1), 0)


@triton.jit
def _read_share(
    row_ptr, first, tiles, V, exclude_0, exclude_1, exclude_2, exclude_3,
    EXCLUDED: tl.constexpr, UNROLL: tl.constexpr, THREADS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Maximum and sum of exponentials of one share of a row, and its best candidate's logit and id.

    The candidate's id is found last, by a second look at the one tile that holds it, which is still in the cache.
    """
    TILE: tl.constexpr = THREADS * WIDTH
    offs = tl.arange(0, THREADS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    maximum = tl.full((THREADS,), float("-inf"), tl.float32)
    exp_sum = tl.zeros((THREADS,), tl.float32)
    error = tl.zeros((THREADS,), tl.float32)
    best = maximum
    best_tile = tl.zeros((THREADS,), tl.int32)
    whole_tiles = tl.minimum(tl.maximum(V - first, 0) // TILE, tiles)
    for tile in tl.range(0, whole_tiles, loop_unroll_factor=UNROLL):
        columns = first + tile * TILE + offs
        logits = tl.load(row_ptr + columns).to(tl.float32)
        maximum, exp_sum, error, best, best_tile = _fold_tile(
            logits, columns, tile, maximum, exp_sum, error, best, best_tile, V,
            exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED,
        )  # fmt: skip
    if whole_tiles < tiles:
        columns = first + whole_tiles * TILE + offs
        maximum, exp_sum, error, best, best_tile = _fold_tile(
            _load_tile(row_ptr, columns, V), columns, whole_tiles, maximum, exp_sum, error, best, best_tile, V,
            exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED,
        )  # fmt: skip

    share_maximum = tl.max(maximum, 0)
    shift = _shift_of(share_maximum)
    share_sum = tl.sum(exp_sum * _exp2(_shift_of(maximum) - shift), 0)
    # From a sum over 2 ** (logits * LOG2E - shift) to one over exp(logits - maximum): shift was rounded, by so little
    # that 2 ** -rounding is 1 - rounding * ln(2).
    share_sum *= 1.0 - _scaled_difference(_finite_or_zero(share_maximum), shift) * LN2
    share_best = tl.max(best, 0)
    columns = first + tl.min(tl.where(best == share_best, best_tile, tiles), 0) * TILE + offs
    candidate = _is_candidate(columns, V, exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED)
    logits = _load_tile(row_ptr, columns, V)
    share_token = _min(tl.where(candidate & (logits == share_best), columns, NO_TOKEN))
    if (share_sum != share_sum) | (tl.abs(share_maximum) > MAX_SCALED_LOGIT):
        share_maximum, share_sum, share_best, share_token = _reread_share(
            row_ptr, first, tiles, offs, V, exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED, TILE
        )
    return share_maximum, share_sum, share_best, share_token


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
    # The selection keeps ptxas from merging the product into the sum, which threads that hold copies of a row would
    # each round in their own way: rows of equal bits would no longer tie.
    weights = tl.where(present, sums * tl.exp(maxima - shift[:, None]), 0.0)
    total = tl.sum(weights, 1)
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
    stride_logits_b: tl.int64,  # in units of ALIGNMENT, so that the compiler knows the rows' alignment
    stride_logits_l: tl.int64,
    stride_ids_b: tl.int64,
    stride_ids_l: tl.int64,
    stride_prompt_b: tl.int64,
    stride_prompt_l: tl.int64,
    stride_threshold: tl.int64,
    EXCLUDED: tl.constexpr,
    ALIGNMENT: tl.constexpr,  # elements; every row starts at a multiple of it
    SPLITS: tl.constexpr,
    UNROLL: tl.constexpr,
    THREADS: tl.constexpr,
    WIDTH: tl.constexpr,
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

    first_masked = _load_masked(ids_ptr, prompt_ptr, tl.arange(0, BLOCK_L), mask_id, L, stride_ids_l, stride_prompt_l)
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
                    masked_rows = _count_masked(
                        first_masked, ids_ptr, prompt_ptr, mask_id, L, stride_ids_l, stride_prompt_l, BLOCK_L
                    )
                    if masked_rows == 0:
                        tl.store(remaining_ptr + block, 0)
        return

    row_start = (block * stride_logits_b + position * stride_logits_l) * ALIGNMENT
    share_maximum, share_sum, share_best, share_token = _read_share(
        logits_ptr + row_start, split * tiles * (THREADS * WIDTH), tiles, V,
        exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED, UNROLL, THREADS, WIDTH,
    )  # fmt: skip
    masked_rows = _count_masked(first_masked, ids_ptr, prompt_ptr, mask_id, L, stride_ids_l, stride_prompt_l, BLOCK_L)
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
        tl.debug_barrier()  # several threads may hold a position: all have read its id before one writes it
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


def _config(vocab: int) -> Config:
    if vocab > MAX_VOCAB:
        raise ValueError(f"logits: expected a vocabulary of at most {MAX_VOCAB} tokens on 'triton'; got {vocab}")
    return next(config for config in CONFIGS if vocab <= config.max_vocab)


def workspace_size(logits: Tensor) -> int:
    """See `dllm_kernels.workspace_size`."""
    *batch, vocab = logits.shape
    return workspaces.size(partial_words=FIELDS.value * math.prod(batch) * _config(vocab).max_splits)


@functools.cache
def _cut(rows: int, vocab: int, itemsize: int, device: torch.device) -> tuple[int, int]:
    """Programs per row and tiles per program: as few programs as fill the GPU."""
    config = _config(vocab)
    processors = 1 if device.type != "cuda" else torch.cuda.get_device_properties(device).multi_processor_count
    tile = 32 * config.num_warps * 16 // itemsize
    total_tiles = -(-vocab // tile)
    splits = min(config.max_splits, total_tiles, -(-PROGRAMS_PER_PROCESSOR * processors // rows))
    tiles = -(-total_tiles // splits)
    return -(-total_tiles // tiles), tiles


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
    config = _config(vocab)
    splits, tiles = _cut(rows, vocab, logits.element_size(), device)
    if rows * splits > MAX_PROGRAMS:
        raise ValueError(f"logits: expected at most {MAX_PROGRAMS // splits} positions on 'triton'; got {rows}")
    if workspace is None:
        workspace = workspaces.acquire(device, workspace_size(logits))

    # The stride of an absent batch is 0: there is one block.
    logits_strides = logits.stride() if batch else (0, *logits.stride())
    ids_strides = input_ids.stride() if batch else (0, *input_ids.stride())
    prompt_strides: tuple[int, ...] = (0, 0)
    if prompt_mask is not None:
        prompt_strides = prompt_mask.stride() if batch else (0, *prompt_mask.stride())
    alignment = 16 // logits.element_size()
    if logits_strides[0] % alignment or logits_strides[1] % alignment:
        alignment = 1
    thresholds = threshold if isinstance(threshold, Tensor) else None
    threads = 32 * config.num_warps
    excluded = (*exclude_ids, -1, -1, -1, -1)
    _post_process_kernel[(rows * splits,)](
        logits,
        input_ids,
        prompt_mask,
        thresholds,
        *outputs,
        workspace,
        mask_id,
        threshold if thresholds is None else 0.0,
        *excluded[:4],
        block_length,
        vocab,
        splits,
        tiles,
        workspaces.tickets_start(workspace),
        logits_strides[0] // alignment,
        logits_strides[1] // alignment,
        *ids_strides,
        *prompt_strides,
        0 if thresholds is None else thresholds.stride(0),
        EXCLUDED=bool(exclude_ids),
        ALIGNMENT=alignment,
        SPLITS=config.max_splits,
        UNROLL=config.unroll,
        THREADS=threads,
        WIDTH=16 // logits.element_size(),
        BLOCK_L=min(max(1 << (block_length - 1).bit_length(), threads // config.max_splits), MAX_BLOCK_L),
        num_warps=config.num_warps,
    )
