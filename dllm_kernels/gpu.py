"""The Triton backend: one launch per call, one pass over the logits of masked rows.

A program reads one share of one row's vocabulary and publishes what it found in the workspace: maximum, sum of
exponentials, best candidate and its id. Programs of rows that are not masked leave at once. The last program of a block
waits for what the others publish, combines the shares, decides, writes, and clears the workspace for the next call.

Memory model. A result is two 64-bit words, each stored at once by a relaxed atomic and never zero, so a word that is
not zero is all there: no fence, no counter. A program publishes because it has read a masked id; so the last program,
which overwrites ids after it has seen all results, cannot be seen by those reads (the PTX memory model's "no thin
air"). It waits for programs of lower index alone, and GPUs start programs in order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from dllm_kernels import workspace as workspaces

MAX_PROGRAMS = 2**31 - 1  # of a launch's first dimension
# Rows are split into as many programs as run at the same time: 4x32x157184 bf16 takes 11.9 us with the 4 splits of this
# value, 17.8 with 5, whose last programs wait for the first (measured as CONFIGS below).
PROGRAMS_PER_PROCESSOR = 4
INTERPRETED_PROCESSORS = 16  # that Triton's interpreter is taken to have
# Positions that the last program combines at a time. Few are rounded up until every thread has a share of its own:
# threads that hold copies write the same shared memory at once.
MAX_BLOCK_L = 256
MAX_VOCAB = 2**30  # so that columns and tile ends fit int32

# int32 words of a partial result: row maximum and sum of exponentials, candidate's logit and id.
RESULT_WORDS = 4
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
# 3.6.0) in a CUDA graph, all rows masked:
CONFIGS = (
    # One tile: a share more would only be one more partial result to combine.
    Config(max_vocab=1024, max_splits=1, num_warps=4, unroll=1),
    # 1x32x128000 fp16 with warm L2 5.8 us (splits of 4: 6.0, of 16 with 4 warps: 6.9; unroll 8: 6.3), cold 7.5.
    Config(max_vocab=MAX_VOCAB, max_splits=8, num_warps=8, unroll=4),
)
# Where rows alone fill the GPU: 128x32x157184 bf16 takes 439 us with 4 warps, 450 with 8.
MANY_ROWS = Config(max_vocab=MAX_VOCAB, max_splits=1, num_warps=4, unroll=4)


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
def _ordered(values):
    """Integers in the order of the floats they are made of, which are not NaN; its own inverse but for the type."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)  # of -0.0, which equals it, those of 0.0
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _key(values, index):
    """Of all such keys the largest is that of the largest value, and of its lowest index."""
    return (_ordered(values).to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def _value_of(key):
    ordered = (key >> 32).to(tl.int32)
    return tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)


@triton.jit
def _index_of(key):
    return 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def _word(high, low):
    """Two 32-bit values in one that is stored at once."""
    return (high.to(tl.int32, bitcast=True).to(tl.int64) << 32) | low.to(tl.uint32, bitcast=True).to(tl.int64)


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
    # Where nothing was found yet the sum is 0, or NaN, which hardware maxima do not tell of.
    scaled = tl.where(maximum == float("-inf"), exp_sum, exp_sum * factor)
    addend = tl.sum(_exp2_of(logits, shift[:, None]), 1) - tl.where(maximum == float("-inf"), 0.0, error * factor)
    exp_sum = scaled + addend
    error = (exp_sum - scaled) - addend
    if EXCLUDED:
        candidate = _is_candidate(columns, V, exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED)
        tile_maximum = tl.max(tl.where(candidate, logits, float("-inf")), 1)
    best_tile = tl.where(tile_maximum > best, tile, best_tile)
    best = tl.maximum(best, tile_maximum) if EXCLUDED else new_maximum
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

    The candidate's id is found last, by a second look at the one vector that holds it: of vectors with equal maxima,
    the one that begins first.
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

    key = tl.max(_key(best, first + best_tile * TILE + tl.arange(0, THREADS) * WIDTH), 0)
    share_best = _value_of(key)
    columns = _index_of(key) + tl.arange(0, WIDTH)
    candidate = _is_candidate(columns, V, exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED)
    share_token = tl.min(tl.where(candidate & (_load_tile(row_ptr, columns, V) == share_best), columns, NO_TOKEN), 0)
    share_maximum = tl.max(maximum, 0) if EXCLUDED else share_best
    shift = _shift_of(share_maximum)
    scaled = tl.where(maximum == float("-inf"), exp_sum, exp_sum * _exp2(_shift_of(maximum) - shift))
    share_sum = tl.sum(scaled, 0)
    # From a sum over 2 ** (logits * LOG2E - shift) to one over exp(logits - maximum): shift was rounded, by so little
    # that 2 ** -rounding is 1 - rounding * ln(2).
    share_sum *= 1.0 - _scaled_difference(_finite_or_zero(share_maximum), shift) * LN2
    extreme = (tl.abs(share_maximum) > MAX_SCALED_LOGIT) & (share_maximum != float("-inf"))
    if EXCLUDED:  # a vector may hold nothing but excluded ids, which shows where all candidates are -inf
        extreme = extreme | (share_best == float("-inf"))
    if (share_sum != share_sum) | extreme:
        share_maximum, share_sum, share_best, share_token = _reread_share(
            row_ptr, first, tiles, offs, V, exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED, TILE
        )
    return share_maximum, share_sum, share_best, share_token


@triton.jit
def _published(results_ptr, positions, masked, splits, words, SPLITS: tl.constexpr):
    """Wait until every share of the masked rows is published, take the results and clear their places."""
    share = tl.arange(0, SPLITS)[None, :]
    offs = positions[:, None] * splits + share
    present = masked[:, None] & (share < splits)
    sums = tl.full(offs.shape, 1, tl.int64)
    bests = sums
    waiting = 1
    while waiting > 0:
        sums = tl.load(results_ptr + offs, present, 1, volatile=True)
        bests = tl.load(results_ptr + words + offs, present, 1, volatile=True)
        waiting = tl.max(tl.max(((sums == 0) | (bests == 0)).to(tl.int32), 1), 0)
    tl.store(results_ptr + offs, tl.zeros(offs.shape, tl.int64), present)
    tl.store(results_ptr + words + offs, tl.zeros(offs.shape, tl.int64), present)
    return present, sums, bests


@triton.jit
def _combine_shares(present, sums, bests):
    """Confidence and candidate of each row from what was published of its shares."""
    maxima = tl.where(present, (sums >> 32).to(tl.int32).to(tl.float32, bitcast=True), float("-inf"))
    sums = sums.to(tl.uint32).to(tl.float32, bitcast=True)
    tokens = bests.to(tl.int32) - 1
    bests = tl.where(present, (bests >> 32).to(tl.int32).to(tl.float32, bitcast=True), float("-inf"))

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
    token = tl.min(tl.where(wins & present, tokens, NO_TOKEN), 1)
    # Of an all -inf row this is 0 / 0, of one with NaN or +inf the total is NaN.
    return tl.exp(best - shift) / total, token


@triton.jit(
    do_not_specialize=[
        "mask_id", "threshold", "exclude_0", "exclude_1", "exclude_2", "exclude_3", "L", "splits", "tiles",
        "words", "stride_logits_b", "stride_logits_l", "stride_ids_b", "stride_ids_l", "stride_prompt_b",
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
    workspace_ptr,  # zeros; results (2, B, L, splits) of 64 bits
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
    words: tl.int64,  # B * L * splits
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
    results_ptr = workspace_ptr.to(tl.pointer_type(tl.int64))
    ids_ptr += block * stride_ids_b
    if prompt_ptr is not None:
        prompt_ptr += block * stride_prompt_b

    # The last program needs this when it waits; to load it now takes no time.
    chunk_masked = _load_masked(ids_ptr, prompt_ptr, tl.arange(0, BLOCK_L), mask_id, L, stride_ids_l, stride_prompt_l)
    if threshold_ptr is not None:
        threshold = tl.load(threshold_ptr + block * stride_threshold)
    masked = tl.load(ids_ptr + position * stride_ids_l) == mask_id
    if prompt_ptr is not None:
        masked = masked & (tl.load(prompt_ptr + position * stride_prompt_l) == 0)
    if masked:
        row_start = (block * stride_logits_b + position * stride_logits_l) * ALIGNMENT
        share_maximum, share_sum, share_best, share_token = _read_share(
            logits_ptr + row_start, split * tiles * (THREADS * WIDTH), tiles, V,
            exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED, UNROLL, THREADS, WIDTH,
        )  # fmt: skip
        # Neither is zero: a maximum of 0.0 has a sum of at least 1.
        tl.atomic_xchg(results_ptr + program, _word(share_maximum, share_sum), sem="relaxed")
        tl.atomic_xchg(results_ptr + words + program, _word(share_best, share_token + 1), sem="relaxed")
    if (position != L - 1) | (split != splits - 1):
        return

    results_ptr += block * L * splits
    left = 0
    accepting = False
    best_rank = RANK_UNMASKED
    best_position = 0
    best_token = 0
    start = 0
    while start < L:
        positions = start + tl.arange(0, BLOCK_L)
        in_block = positions < L
        if start > 0:
            chunk_masked = _load_masked(ids_ptr, prompt_ptr, positions, mask_id, L, stride_ids_l, stride_prompt_l)
        confidence = tl.full((BLOCK_L,), float("-inf"), tl.float32)
        candidate = tl.zeros((BLOCK_L,), tl.int32)
        if tl.max(chunk_masked.to(tl.int32), 0) > 0:
            present, sums, bests = _published(results_ptr, positions, chunk_masked, splits, words, SPLITS)
            confidence, candidate = _combine_shares(present, sums, bests)
            rank = tl.where(confidence == confidence, confidence, RANK_NAN)
            key = tl.max(_key(tl.where(chunk_masked, rank, RANK_UNMASKED), positions), 0)
            chunk_rank = _value_of(key)
            accepting = accepting | ((chunk_rank >= 0) & (chunk_rank > threshold))
            if (not accepting) & (chunk_rank > best_rank):
                best_rank = chunk_rank
                best_position = _index_of(key)
                best_token = tl.sum(tl.where(positions == best_position, candidate, 0), 0)
        passed = chunk_masked & (confidence > threshold)
        rows = block * L + positions
        if tokens_ptr is not None:
            token = tl.load(ids_ptr + positions * stride_ids_l, mask=in_block, other=0)
            token = tl.where(chunk_masked, candidate.to(token.dtype), token)
            tl.store(tokens_ptr + rows, token.to(tokens_ptr.dtype.element_ty), mask=in_block)
        tl.debug_barrier()  # several threads may hold a position: all have read its id before one writes it
        tl.store(ids_ptr + positions * stride_ids_l, candidate.to(ids_ptr.dtype.element_ty), mask=passed)
        if confidence_ptr is not None:
            tl.store(confidence_ptr + rows, tl.where(chunk_masked, confidence, float("-inf")), mask=in_block)
        if accepted_ptr is not None:
            tl.store(accepted_ptr + rows, passed, mask=in_block)
        if remaining_ptr is not None:
            left += tl.sum((chunk_masked & ~(passed & (candidate != mask_id))).to(tl.int32), 0)
        start += BLOCK_L

    if (not accepting) & (best_rank > RANK_UNMASKED):
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
    return RESULT_WORDS * math.prod(batch) * _config(vocab).max_splits


def programs_at_once(device: torch.device) -> int:
    """Programs that a GPU runs at the same time; from so many rows on, none is split."""
    if device.type != "cuda":
        return PROGRAMS_PER_PROCESSOR * INTERPRETED_PROCESSORS
    return PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


def _cut(rows: int, vocab: int, itemsize: int, device: torch.device) -> tuple[Config, int, int]:
    """How rows are cut, with programs per row and tiles per program: as few programs as fill the GPU."""
    config = _config(vocab)
    if rows >= programs_at_once(device) and config.max_splits > 1:
        config = MANY_ROWS
    total_tiles = -(-vocab // (32 * config.num_warps * 16 // itemsize))
    splits = max(1, min(config.max_splits, total_tiles, programs_at_once(device) // rows))
    tiles = -(-total_tiles // splits)
    return config, -(-total_tiles // tiles), tiles


class _Plan:
    """What a launch needs besides pointers and values, worked out once for every layout of arguments."""

    def __init__(
        self,
        logits_shape: tuple[int, ...],
        logits_strides: tuple[int, ...],
        itemsize: int,
        ids_strides: tuple[int, ...],
        prompt_strides: tuple[int, ...] | None,
        threshold_stride: int | None,
        excluded: bool,
        device: torch.device,
    ) -> None:
        *batch, block_length, vocab = logits_shape
        rows = math.prod(logits_shape[:-1])
        config, splits, tiles = _cut(rows, vocab, itemsize, device)
        self.programs = rows * splits
        if self.programs > MAX_PROGRAMS:
            raise ValueError(f"logits: expected at most {MAX_PROGRAMS // splits} positions on 'triton'; got {rows}")
        self.workspace_elements = RESULT_WORDS * self.programs
        # The stride of an absent batch is 0: there is one block.
        if not batch:
            logits_strides, ids_strides = (0, *logits_strides), (0, *ids_strides)
            prompt_strides = None if prompt_strides is None else (0, *prompt_strides)
        width = 16 // itemsize
        alignment = 1 if logits_strides[0] % width or logits_strides[1] % width else width
        self.scalars = (
            block_length,
            vocab,
            splits,
            tiles,
            self.programs,  # words
            logits_strides[0] // alignment,
            logits_strides[1] // alignment,
            *ids_strides,
            *(prompt_strides or (0, 0)),
            threshold_stride or 0,
        )
        threads = 32 * config.num_warps
        self.warps = config.num_warps
        self.constants = (
            excluded,
            alignment,
            config.max_splits,  # SPLITS
            config.unroll,
            threads,
            width,
            min(max(1 << (block_length - 1).bit_length(), threads // config.max_splits), MAX_BLOCK_L),  # BLOCK_L
        )
        self.launch: Callable[..., None] | None = None  # once compiled
        self.compiled: tuple[Any, ...] = ()  # that `launch` is given before the kernel's arguments

    def keep(self, compiled: Any) -> None:
        """Have later calls launch this kernel directly, where that is known to work."""
        if INTERPRETED or torch.version.hip or not triton.__version__.startswith(_DIRECT_VERSIONS):
            return
        launcher = compiled.run
        if launcher.global_scratch_size or launcher.profile_scratch_size:
            return
        self.compiled = (
            compiled.function, launcher.launch_cooperative_grid, launcher.launch_pdl, None, None,
            compiled.packed_metadata, None, None, None,
        )  # fmt: skip
        self.launch = launcher.launch


# Triton's versions whose launcher's arguments are those that `_Plan.keep` gives. With any other, and where hooks
# listen, every call goes by Triton's front door, which takes 10 to 20 us to find out which kernel is asked for.
_DIRECT_VERSIONS = ("3.6.",)
_runtime = triton.knobs.runtime


def _listening(hook: Any) -> bool:
    """Of a chain of hooks, whether there is one in it; Triton also takes a bare function, or None."""
    return bool(getattr(hook, "calls", hook))


@functools.lru_cache(maxsize=4096)
def _plan(compiled_for: tuple[Any, ...], *layout: Any) -> _Plan:
    """`compiled_for` holds what else Triton compiles a kernel for: dtypes, which tensors there are, their alignment."""
    return _Plan(*layout)


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
    if device.type == "cuda" and device.index != torch._C._cuda_getDevice():
        with torch.cuda.device(device):
            post_process(logits, input_ids, mask_id, threshold, prompt_mask, exclude_ids, outputs, workspace)
        return
    thresholds = threshold if isinstance(threshold, Tensor) else None
    confidence, tokens, accepted, remaining = outputs
    logits_start = logits.data_ptr()
    plan = _plan(
        (
            logits.dtype, input_ids.dtype, logits_start % 16 == 0, confidence is None, tokens is None, accepted is None,
            remaining is None,
        ),
        logits.shape,
        logits.stride(),
        logits.element_size(),
        input_ids.stride(),
        None if prompt_mask is None else prompt_mask.stride(),
        None if thresholds is None else thresholds.stride(0),
        bool(exclude_ids),
        device,
    )  # fmt: skip
    if workspace is None:
        workspace = workspaces.acquire(device, plan.workspace_elements)
    number = threshold if thresholds is None else 0.0
    excluded = (*exclude_ids, -1, -1, -1, -1)[:4] if exclude_ids else (-1, -1, -1, -1)
    if plan.launch is None or _listening(_runtime.launch_enter_hook) or _listening(_runtime.launch_exit_hook):
        compiled = _post_process_kernel[(plan.programs,)](
            logits, input_ids, prompt_mask, thresholds, *outputs, workspace,
            mask_id, number, *excluded, *plan.scalars, *plan.constants, num_warps=plan.warps,
        )  # fmt: skip
        if device.type == "cuda":
            plan.keep(compiled)
        return
    plan.launch(
        plan.programs,
        1,
        1,
        torch._C._cuda_getCurrentRawStream(device.index),
        *plan.compiled,
        logits_start,
        input_ids.data_ptr(),
        None if prompt_mask is None else prompt_mask.data_ptr(),
        None if thresholds is None else thresholds.data_ptr(),
        None if confidence is None else confidence.data_ptr(),
        None if tokens is None else tokens.data_ptr(),
        None if accepted is None else accepted.data_ptr(),
        None if remaining is None else remaining.data_ptr(),
        workspace.data_ptr(),
        mask_id,
        number,
        *excluded,
        *plan.scalars,
        *plan.constants,
    )
