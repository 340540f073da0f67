"""The Triton backend: one launch per call, one pass over the logits of masked rows.

The masked rows of a block are dealt among its programs: each reads one share of one row's vocabulary and publishes what
it found in the workspace: maximum, sum of exponentials, best candidate and its id. The last program of a block waits
for what the others publish, combines the shares, decides, writes, and clears the workspace for the next call.

Memory model. A result is two 64-bit words, each stored at once by a relaxed atomic and never zero, so a word that is
not zero is all there: no fence. Programs that no share is dealt to count themselves. A program publishes, or counts
itself, because of the ids that it has read; so the last program, which overwrites ids after it has heard of all others,
cannot be seen by those reads (the PTX memory model's "no thin air"). It waits for programs of lower index alone, and
GPUs start programs in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from dllm_kernels import workspace as workspaces

MAX_PROGRAMS = 2**31 - 1  # of a launch's first dimension: those of one block
MAX_BLOCKS = 2**16 - 1  # of a launch's second dimension
# Rows are split into as many programs as run at the same time.
PROGRAMS_PER_PROCESSOR = 4
INTERPRETED_PROCESSORS = 16  # that Triton's interpreter is taken to have
# Positions that the last program combines at a time. Few are rounded up until every thread has a share of its own:
# threads that hold copies write the same shared memory at once. Rows of longer blocks are not dealt.
MAX_BLOCK_L = 256
MAX_VOCAB = 2**30  # so that columns and tile ends fit int32

# int32 words of the workspace: a share's row maximum, sum of exponentials, candidate's logit and id; a block's number
# of programs that have counted themselves.
RESULT_WORDS = 4
COUNTER_WORDS = 2
NO_TOKEN = tl.constexpr(2**31 - 1)
# Words where there is no share: -inf and a sum of 0, -inf and no token.
ABSENT_SUM = tl.constexpr(0xFF80000000000000 - 2**64)
ABSENT_BEST = tl.constexpr(0xFF80000080000000 - 2**64)
MOST_POLLS = tl.constexpr(2**27)  # a minute or two, after which what is waited for will not come
# In the fallback, a confidence of NaN comes after every probability, and a row that is not masked after that.
RANK_NAN = tl.constexpr(-1)
RANK_UNMASKED = tl.constexpr(-2)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Up to here LOG2E * maximum is rounded by less than 2.5e-4, which a factor of first order corrects to 1e-8. Shares with
# larger maxima take the slow path, which subtracts first.
MAX_SCALED_LOGIT = tl.constexpr(4096.0)
LOWEST = tl.constexpr(-1e30)  # what running maxima begin at: finite, so that differences are never NaN
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


class Config(NamedTuple):
    """How a row is cut: at most `max_splits` programs, each over tiles of some 16-byte vectors per thread."""

    max_vocab: int
    max_splits: int
    num_warps: int
    vectors: int
    early: bool  # read the first tile before it is known whether the row is masked


# The first line whose max_vocab holds the vocabulary counts. Measured on one H100 80GB HBM3 (torch 2.11.0, triton
# 3.6.0) in a CUDA graph, all rows masked; docs/kernel.md has what else was tried:
CONFIGS = (
    # One tile: a share more would only be one more partial result to combine.
    Config(max_vocab=1024, max_splits=1, num_warps=4, vectors=1, early=False),
    # 1x32x128000 fp16 with warm L2 4.5 us (read early: 4.8 without; 4 splits of 16 warps: 0.6 more), cold 6.2.
    Config(max_vocab=MAX_VOCAB, max_splits=8, num_warps=8, vectors=2, early=True),
)
# Where rows alone fill the GPU: 128x32x157184 bf16 takes 426 us with 4 warps, 442 with 8; read early, 6 % of the rows
# masked take 44 us instead of 36.
MANY_ROWS = Config(max_vocab=MAX_VOCAB, max_splits=8, num_warps=4, vectors=2, early=False)


@triton.jit
def _finite_or_zero(maximum):
    """What can be subtracted from logits below `maximum`: exp(-inf - -inf) would be NaN."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit
def _product(left, right):
    """left * right, rounded; the compiler would merge a plain product into a later sum, which rounds otherwise."""
    if INTERPRETED:
        return left * right
    if tl.target_info.is_cuda():
        return libdevice.mul_rn(left, right)
    return left * right


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
def _is_inside(column, start, length):
    return (column >= start) & (column < start + length)


@triton.jit
def _offsets(THREADS: tl.constexpr, WIDTH: tl.constexpr, VECTORS: tl.constexpr):
    """Columns of a thread's logits of a tile, from the first, in the order in which `_float32` leaves them."""
    HALVES: tl.constexpr = WIDTH // 4
    logit = tl.arange(0, VECTORS * WIDTH)
    word = logit // HALVES
    return word % VECTORS * THREADS * WIDTH + word // VECTORS * HALVES + logit % HALVES


@triton.jit
def _words(logits):
    """Logits (THREADS, n) as the 32-bit words (THREADS, n or n / 2) that they are read as."""
    if logits.dtype == tl.float32:
        return logits.to(tl.int32, bitcast=True)
    else:
        pairs = tl.reshape(logits.to(tl.int16, bitcast=True), (logits.shape[0], logits.shape[1] // 2, 2))
        low, high = tl.split(pairs)
        return (high.to(tl.int32) << 16) | (low.to(tl.int32) & 0xFFFF)


@triton.jit
def _float32(words, dtype: tl.constexpr):
    """The logits in words (THREADS, 4 * VECTORS), as float32. Of bfloat16 the halves are taken, an instruction each."""
    if dtype == tl.float32:
        return words.to(tl.float32, bitcast=True)
    else:
        if dtype == tl.bfloat16:
            low = (words << 16).to(tl.float32, bitcast=True)
            high = (words & -65536).to(tl.float32, bitcast=True)
        else:
            low = words.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
            high = (words >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        return tl.reshape(tl.join(low, high), (words.shape[0], words.shape[1] * 2))


@triton.jit
def _load_tile(
    row_ptr, start, present, ALIGNED: tl.constexpr, THREADS: tl.constexpr, WIDTH: tl.constexpr, VECTORS: tl.constexpr
):
    """The words (THREADS, 4 * VECTORS) of a tile that lies in the row, if it is `present`."""
    first = _load_vector(row_ptr + start, present, ALIGNED, THREADS)
    if VECTORS == 1:
        return first
    else:
        second = _load_vector(row_ptr + start + THREADS * WIDTH, present, ALIGNED, THREADS)
        return tl.reshape(tl.join(first, second), (THREADS, 8))


@triton.jit
def _load_vector(ptr, present, ALIGNED: tl.constexpr, THREADS: tl.constexpr):
    """16 bytes a thread, as words (THREADS, 4). Where they do not start on 16 bytes, up to 14 bytes before and after
    are read with them.
    """
    if ALIGNED:
        words = tl.arange(0, THREADS)[:, None] * 4 + tl.arange(0, 4)[None, :]
        return tl.load(ptr.to(tl.pointer_type(tl.int32)) + words, mask=present, other=0)
    else:
        address = ptr.to(tl.int64)
        beyond = (address & 15).to(tl.int32)  # bytes
        aligned = tl.multiple_of((address - beyond).to(tl.pointer_type(tl.int64)), 16)
        halves = tl.arange(0, THREADS)[:, None] * 2 + tl.arange(0, 2)[None, :]
        a, b = tl.split(tl.load(aligned + halves, mask=present, other=0))
        c, d = tl.split(tl.load(aligned + 2 + halves, mask=present & (beyond > 0), other=0))
        if beyond >= 8:
            a, b, c = b, c, d
        shift = (beyond % 8 * 8).to(tl.int64)
        return _words_of_halves(_shifted(a, b, shift), _shifted(b, c, shift))


@triton.jit
def _shifted(low, high, shift):
    """64 bits of 128, from `shift` on, which is less than 64."""
    return (low.to(tl.uint64, bitcast=True) >> shift).to(tl.int64, bitcast=True) | ((high << 1) << (63 - shift))


@triton.jit
def _words_of_halves(first, second):
    """(THREADS,) of 64 bits each as words (THREADS, 4)."""
    halves = tl.join(first, second)
    return tl.reshape(tl.join(halves.to(tl.int32), (halves >> 32).to(tl.int32)), (first.shape[0], 4))


@triton.jit
def _load_last_tile(row_ptr, start, V, THREADS: tl.constexpr, WIDTH: tl.constexpr, VECTORS: tl.constexpr):
    """The words (THREADS, 4 * VECTORS) of a tile that the row may end in: from V on, -inf."""
    columns = start + tl.arange(0, THREADS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    first = _words(tl.load(row_ptr + columns, mask=columns < V, other=float("-inf")))
    if VECTORS == 1:
        return first
    else:
        columns += THREADS * WIDTH
        second = _words(tl.load(row_ptr + columns, mask=columns < V, other=float("-inf")))
        return tl.reshape(tl.join(first, second), (THREADS, 8))


@triton.jit
def _fold_tile(
    words, first, tile, maximum, shift, exp_sum, error, best, best_tile, best_words, V,
    exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED: tl.constexpr, dtype: tl.constexpr, THREADS: tl.constexpr,
    WIDTH: tl.constexpr, VECTORS: tl.constexpr,
):  # fmt: skip
    """Online softmax: one more tile into the running values (THREADS,), each held by one thread, which keeps the words
    (THREADS, 4 * VECTORS) with its best candidate.

    `error` is what rounding has added to `exp_sum` (Kahan's summation): beside a peak, a hundred tiles may all round
    the same way.
    """
    logits = _float32(words, dtype)
    tile_maximum = tl.max(logits, 1)
    maximum = tl.maximum(maximum, tile_maximum)
    old_shift = shift
    shift = _product(maximum, LOG2E)
    factor = _exp2(old_shift - shift)
    scaled = _product(exp_sum, factor)
    addend = tl.sum(_exp2_of(logits, shift[:, None]), 1) - error * factor
    exp_sum = scaled + addend
    error = (exp_sum - scaled) - addend
    if EXCLUDED:
        TILE: tl.constexpr = THREADS * WIDTH * VECTORS
        start = first + tile * TILE
        if (
            _is_inside(exclude_0, start, TILE)
            | _is_inside(exclude_1, start, TILE)
            | _is_inside(exclude_2, start, TILE)
            | _is_inside(exclude_3, start, TILE)
        ):
            thread = start + tl.arange(0, THREADS)[:, None] * WIDTH
            offsets = _offsets(THREADS, WIDTH, VECTORS)[None, :]
            logits = tl.where((offsets == exclude_0 - thread) | (offsets == exclude_1 - thread), float("-inf"), logits)
            logits = tl.where((offsets == exclude_2 - thread) | (offsets == exclude_3 - thread), float("-inf"), logits)
            tile_maximum = tl.max(logits, 1)
            words = _words(logits.to(dtype))
    better = tile_maximum > best
    best_tile = tl.where(better, tile, best_tile)
    best_words = tl.where(better[:, None], words, best_words)
    best = tl.maximum(best, tile_maximum)
    return maximum, shift, exp_sum, error, best, best_tile, best_words


@triton.jit
def _load_logits(row_ptr, columns, V):
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
        logits = _load_logits(row_ptr, columns, V)
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
        logits = _load_logits(row_ptr, first + tile * TILE + offs, V)
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
def _words_of_minus_infinity(dtype: tl.constexpr, THREADS: tl.constexpr, VECTORS: tl.constexpr):
    if dtype == tl.float32:
        return tl.full((THREADS, 4 * VECTORS), 0xFF800000 - 2**32, tl.int32)
    elif dtype == tl.bfloat16:
        return tl.full((THREADS, 4 * VECTORS), 0xFF80FF80 - 2**32, tl.int32)
    else:
        return tl.full((THREADS, 4 * VECTORS), 0xFC00FC00 - 2**32, tl.int32)


@triton.jit
def _whole_tiles(logits, ALIGNED: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Of so many logits to the row's end: those that can be read by vectors, without touching what lies beyond it."""
    if not ALIGNED:
        logits -= WIDTH
    return tl.maximum(logits, 0) // TILE


@triton.jit
def _read_share(
    row_ptr, first, tiles, early, is_first_tile, V, exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED: tl.constexpr,
    ALIGNED: tl.constexpr, THREADS: tl.constexpr, WIDTH: tl.constexpr, VECTORS: tl.constexpr,
):  # fmt: skip
    """Maximum and sum of exponentials of one share of a row, and its best candidate's logit and id.

    `early` holds words that were read before it was known which share this is: its first tile's, or another's.
    """
    TILE: tl.constexpr = THREADS * WIDTH * VECTORS
    dtype: tl.constexpr = row_ptr.dtype.element_ty
    maximum = tl.full((THREADS,), LOWEST, tl.float32)
    shift = maximum * LOG2E
    exp_sum = tl.zeros((THREADS,), tl.float32)
    error = tl.zeros((THREADS,), tl.float32)
    best = tl.full((THREADS,), float("-inf"), tl.float32)
    best_tile = tl.zeros((THREADS,), tl.int32)
    best_words = _words_of_minus_infinity(dtype, THREADS, VECTORS)
    whole_tiles = _whole_tiles(V - first, ALIGNED, WIDTH, TILE)
    whole_tiles = tl.minimum(whole_tiles, tiles)
    ahead = early
    if not is_first_tile:
        ahead = _load_tile(row_ptr, first, whole_tiles > 0, ALIGNED, THREADS, WIDTH, VECTORS)
    for tile in tl.range(0, whole_tiles):
        words = ahead
        start = first + (tile + 1) * TILE
        ahead = _load_tile(row_ptr, start, tile + 1 < whole_tiles, ALIGNED, THREADS, WIDTH, VECTORS)
        maximum, shift, exp_sum, error, best, best_tile, best_words = _fold_tile(
            words, first, tile, maximum, shift, exp_sum, error, best, best_tile, best_words, V,
            exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED, dtype, THREADS, WIDTH, VECTORS,
        )  # fmt: skip
    tile = whole_tiles
    while (tile < tiles) & (first + tile * TILE < V):
        words = _load_last_tile(row_ptr, first + tile * TILE, V, THREADS, WIDTH, VECTORS)
        maximum, shift, exp_sum, error, best, best_tile, best_words = _fold_tile(
            words, first, tile, maximum, shift, exp_sum, error, best, best_tile, best_words, V,
            exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED, dtype, THREADS, WIDTH, VECTORS,
        )  # fmt: skip
        tile += 1

    logits = _float32(best_words, dtype)
    offset = tl.min(tl.where(logits == best[:, None], _offsets(THREADS, WIDTH, VECTORS)[None, :], TILE), 1)
    column = first + best_tile * TILE + tl.arange(0, THREADS) * WIDTH + offset
    key = tl.max(_key(best, column), 0)
    share_best = _value_of(key)
    share_token = _index_of(key)
    share_maximum = tl.max(maximum, 0) if EXCLUDED else tl.maximum(share_best, LOWEST)
    share_shift = _product(share_maximum, LOG2E)
    share_sum = tl.sum(exp_sum * _exp2(shift - share_shift), 0)
    # From a sum over 2 ** (logits * LOG2E - shift) to one over exp(logits - maximum): shift was rounded, by so little
    # that 2 ** -rounding is 1 - rounding * ln(2).
    share_sum *= 1.0 - _scaled_difference(share_maximum, share_shift) * LN2
    nothing = share_best == float("-inf")
    extreme = (tl.abs(share_maximum) > MAX_SCALED_LOGIT) & ~nothing
    share_maximum = tl.where(nothing, float("-inf"), share_maximum)
    if EXCLUDED:  # a vector may hold nothing but excluded ids, which shows where all candidates are -inf
        extreme = extreme | nothing
    if (share_sum != share_sum) | extreme:
        offs = tl.arange(0, THREADS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
        share_maximum, share_sum, share_best, share_token = _reread_share(
            row_ptr, first, tiles * VECTORS, offs, V, exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED,
            THREADS * WIDTH,
        )  # fmt: skip
    return share_maximum, share_sum, share_best, share_token


# PTX of `_await`, for one share of a row. A relaxed load of the GPU's scope passes the L1 cache.
_AWAIT = tl.constexpr(
    f"""{{
    .reg .pred there, missing;
    .reg .u32 tries, counted;
    mov.u32 tries, 0;
    mov.b64 $0, {ABSENT_SUM.value};
    mov.b64 $1, {ABSENT_BEST.value};
    setp.ne.s32 there, $5, 0;
    again:
    @there ld.relaxed.gpu.global.b64 $0, [$2];
    @there ld.relaxed.gpu.global.b64 $1, [$3];
    ld.relaxed.gpu.global.u32 counted, [$4];
    setp.eq.s64 missing, $0, 0;
    setp.eq.or.s64 missing, $1, 0, missing;
    setp.ne.or.u32 missing, counted, $6, missing;
    @!missing bra done;
    add.u32 tries, tries, 1;
    setp.lt.u32 missing, tries, {MOST_POLLS.value};
    @missing bra again;
    trap;
    done:
    }}"""
)


@triton.jit
def _await(first_ptrs, second_ptrs, counter_ptr, there, idle):
    """Wait until the shares that are `there` (rows, SPLITS) are published and `idle` programs have counted themselves;
    their words, and neutral ones for the others.

    Whatever keeps them from coming, such as ids that others change meanwhile, ends in an error of CUDA's.
    """
    if not INTERPRETED and tl.target_info.is_cuda():
        return tl.inline_asm_elementwise(
            _AWAIT,
            "=&l,=&l,l,l,l,r,r",
            [first_ptrs.to(tl.int64), second_ptrs.to(tl.int64), counter_ptr.to(tl.int64), there.to(tl.int32), idle],
            dtype=(tl.int64, tl.int64),
            is_pure=False,
            pack=1,
        )
    else:
        sums = tl.full(there.shape, ABSENT_SUM, tl.int64)
        bests = tl.full(there.shape, ABSENT_BEST, tl.int64)
        missing = 1
        while missing > 0:
            sums = tl.load(first_ptrs, there, ABSENT_SUM, volatile=True)
            bests = tl.load(second_ptrs, there, ABSENT_BEST, volatile=True)
            missing = tl.max(tl.max(((sums == 0) | (bests == 0)).to(tl.int32), 1), 0)
            missing += (tl.load(counter_ptr, volatile=True) != idle).to(tl.int32)
        return sums, bests


@triton.jit
def _high(word):
    return (word >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _combine_shares(sums, bests):
    """Confidence and candidate of each row from the words of its shares (rows, SPLITS)."""
    maxima = _high(sums)
    shift = _finite_or_zero(tl.max(maxima, 1))
    sums = sums.to(tl.uint32).to(tl.float32, bitcast=True)
    # Rounded before it is added: threads that hold copies of a row would else each round in their own way, and rows of
    # equal bits no longer tie.
    total = tl.sum(_product(sums, tl.exp(maxima - shift[:, None])), 1)
    key = tl.max(_key(_high(bests), bests.to(tl.int32) - 1), 1)  # NaN, all of the same bits, comes above all
    # Of an all -inf row this is 0 / 0, of one with NaN or +inf the total is NaN.
    return tl.exp(_value_of(key) - shift) / total, _index_of(key)


@triton.jit(
    do_not_specialize=[
        "mask_id", "threshold", "exclude_0", "exclude_1", "exclude_2", "exclude_3", "first_block", "L", "splits_bits",
        "tiles", "total_tiles", "words", "stride_logits_b", "stride_logits_l", "stride_ids_b", "stride_ids_l",
        "stride_prompt_b", "stride_prompt_l", "stride_threshold",
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
    workspace_ptr,  # zeros; results (2, words) of 64 bits, then counters (B,) of 32 on 64
    mask_id: tl.int64,
    threshold: tl.float32,
    exclude_0: tl.int32,
    exclude_1: tl.int32,
    exclude_2: tl.int32,
    exclude_3: tl.int32,
    first_block: tl.int64,
    L: tl.int32,
    V: tl.int32,
    splits_bits: tl.int32,  # of 2 ** splits_bits shares a row where all are masked
    tiles: tl.int32,  # of such a share
    total_tiles: tl.int32,  # of a row
    words: tl.int64,  # B * L * 2 ** splits_bits
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
    VECTORS: tl.constexpr,
    EARLY: tl.constexpr,
    THREADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_L: tl.constexpr,
    DEALT: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    TILE: tl.constexpr = THREADS * WIDTH * VECTORS
    ALIGNED: tl.constexpr = ALIGNMENT > 1
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    block = first_block + tl.program_id(1)
    if DEPENDENT:  # on what ran before, whose results are read from here on
        tl.extra.cuda.gdc_wait()
    ids_ptr += block * stride_ids_b
    if prompt_ptr is not None:
        prompt_ptr += block * stride_prompt_b
    chunk_masked = _load_masked(ids_ptr, prompt_ptr, tl.arange(0, BLOCK_L), mask_id, L, stride_ids_l, stride_prompt_l)
    if threshold_ptr is not None:
        threshold = tl.load(threshold_ptr + block * stride_threshold)
    results_ptr = workspace_ptr.to(tl.pointer_type(tl.int64)) + block * programs
    counter_ptr = workspace_ptr + 4 * words + 2 * block

    position = program >> splits_bits
    first = (program & ((1 << splits_bits) - 1)) * tiles * TILE
    early = tl.full((THREADS, 4 * VECTORS), 0, tl.int32)
    if EARLY:
        row_start = (block * stride_logits_b + position * stride_logits_l) * ALIGNMENT
        present = _whole_tiles(V - first, ALIGNED, WIDTH, TILE) > 0
        early = _load_tile(logits_ptr + row_start, first, present, ALIGNED, THREADS, WIDTH, VECTORS)
    count = tl.sum(chunk_masked.to(tl.int32), 0)
    shares = 1 << splits_bits
    dealt = DEALT and count < L
    if DEALT:
        masked = position < count
        if dealt:
            shares = tl.minimum(programs // tl.maximum(count, 1), SPLITS)
            row = program // shares  # of those that are masked
            masked = row < count
            position = tl.sum((tl.cumsum(chunk_masked.to(tl.int32), 0) <= row).to(tl.int32), 0)
            tiles = (total_tiles + shares - 1) // shares
            first = (program - row * shares) * tiles * TILE
    else:
        masked = tl.load(ids_ptr + position * stride_ids_l) == mask_id
        if prompt_ptr is not None:
            masked = masked & (tl.load(prompt_ptr + position * stride_prompt_l) == 0)
    if masked:
        row_start = (block * stride_logits_b + position * stride_logits_l) * ALIGNMENT
        share_maximum, share_sum, share_best, share_token = _read_share(
            logits_ptr + row_start, first, tiles, early, EARLY and not dealt, V,
            exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED, ALIGNED, THREADS, WIDTH, VECTORS,
        )  # fmt: skip
        # Neither is zero: a maximum of 0.0 has a sum of at least 1.
        tl.atomic_xchg(results_ptr + program, _word(share_maximum, share_sum), sem="relaxed")
        tl.atomic_xchg(results_ptr + words + program, _word(share_best, share_token + 1), sem="relaxed")
    elif DEALT and count > 0:
        tl.debug_barrier()  # every warp reads the ids: all have done so before one thread tells
        tl.atomic_add(counter_ptr, 1, sem="relaxed")
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
    if program != programs - 1:
        return

    left = 0
    accepting = False
    top_rank = RANK_UNMASKED
    top_position = 0
    top_token = 0
    start = 0
    while start < L:
        positions = start + tl.arange(0, BLOCK_L)
        in_block = positions < L
        if start > 0:
            chunk_masked = _load_masked(ids_ptr, prompt_ptr, positions, mask_id, L, stride_ids_l, stride_prompt_l)
        confidence = tl.full((BLOCK_L,), float("-inf"), tl.float32)
        candidate = tl.zeros((BLOCK_L,), tl.int32)
        passed = chunk_masked
        if (count > 0) | (not DEALT):
            rows = positions
            idle = 0
            if dealt:
                rows = tl.cumsum(chunk_masked.to(tl.int32), 0) - 1
                idle = programs - count * shares
            share = tl.arange(0, SPLITS)[None, :]
            there = chunk_masked[:, None] & (share < shares)
            first_ptrs = results_ptr + rows[:, None] * shares + share
            sums, bests = _await(first_ptrs, first_ptrs + words, counter_ptr, there, idle)
            tl.debug_barrier()  # several threads may wait for a word: all have seen it before one clears it
            tl.store(first_ptrs, tl.zeros(there.shape, tl.int64), mask=there)
            tl.store(first_ptrs + words, tl.zeros(there.shape, tl.int64), mask=there)
            confidence, candidate = _combine_shares(sums, bests)
            # In the order of confidences, which are not negative; then NaN, then what is not masked.
            rank = tl.where(confidence == confidence, confidence.to(tl.int32, bitcast=True), RANK_NAN)
            rank = tl.where(chunk_masked, rank, RANK_UNMASKED)
            chunk_rank = tl.max(rank, 0)
            chunk_position = tl.min(tl.where(rank == chunk_rank, positions, L), 0)
            accepting = accepting | ((chunk_rank >= 0) & (chunk_rank.to(tl.float32, bitcast=True) > threshold))
            passed = chunk_masked & (confidence > threshold)
            if DEALT:
                passed = passed | ((not accepting) & (positions == chunk_position))
            elif (not accepting) & (chunk_rank > top_rank):
                top_rank = chunk_rank
                top_position = chunk_position
                top_token = tl.sum(tl.where(positions == chunk_position, candidate, 0), 0)
        outputs = block * L + positions
        if tokens_ptr is not None:
            token = tl.load(ids_ptr + positions * stride_ids_l, mask=in_block, other=0)
            token = tl.where(chunk_masked, candidate.to(token.dtype), token)
            tl.store(tokens_ptr + outputs, token.to(tokens_ptr.dtype.element_ty), mask=in_block)
        tl.debug_barrier()  # several threads may hold a position: all have read its id before one writes it
        tl.store(ids_ptr + positions * stride_ids_l, candidate.to(ids_ptr.dtype.element_ty), mask=passed)
        if confidence_ptr is not None:
            tl.store(confidence_ptr + outputs, tl.where(chunk_masked, confidence, float("-inf")), mask=in_block)
        if accepted_ptr is not None:
            tl.store(accepted_ptr + outputs, passed, mask=in_block)
        if remaining_ptr is not None:
            left += tl.sum((chunk_masked & ~(passed & (candidate != mask_id))).to(tl.int32), 0)
        start += BLOCK_L

    if DEALT:
        tl.store(counter_ptr, 0)
    elif (not accepting) & (top_rank > RANK_UNMASKED):
        tl.store(ids_ptr + top_position * stride_ids_l, top_token.to(ids_ptr.dtype.element_ty))
        if accepted_ptr is not None:
            tl.debug_barrier()  # another thread may have stored False there
            tl.store(accepted_ptr + block * L + top_position, 1)
        left -= (top_token != mask_id).to(tl.int32)
    if remaining_ptr is not None:
        tl.store(remaining_ptr + block, left)


def _config(vocab: int) -> Config:
    if vocab > MAX_VOCAB:
        raise ValueError(f"logits: expected a vocabulary of at most {MAX_VOCAB} tokens on 'triton'; got {vocab}")
    return next(config for config in CONFIGS if vocab <= config.max_vocab)


def workspace_size(logits: Tensor) -> int:
    """See `dllm_kernels.workspace_size`."""
    *batch, vocab = logits.shape
    return math.prod(batch) * (RESULT_WORDS * _config(vocab).max_splits + COUNTER_WORDS)


def programs_at_once(device: torch.device) -> int:
    """Programs that a GPU runs at the same time; from so many rows on, none is split."""
    if device.type != "cuda":
        return PROGRAMS_PER_PROCESSOR * INTERPRETED_PROCESSORS
    return PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


class _Plan:
    """What a launch needs besides pointers and values, worked out once for every layout of arguments."""

    def __init__(
        self,
        logits: Tensor,
        input_ids: Tensor,
        logits_on_16_bytes: bool,
        prompt_strides: tuple[int, ...] | None,
        threshold_stride: int | None,
        excluded: bool,
    ) -> None:
        *batch, block_length, vocab = logits.shape
        device, logits_strides, ids_strides = logits.device, logits.stride(), input_ids.stride()
        blocks = math.prod(batch)
        rows = blocks * block_length
        config = _config(vocab)
        if rows >= programs_at_once(device) and config.max_splits > 1:
            config = MANY_ROWS
        threads, width = 32 * config.num_warps, 16 // logits.element_size()
        total_tiles = -(-vocab // (threads * width * config.vectors))
        # The largest power of two: programs find their row and share by bits.
        splits_bits = max(1, min(config.max_splits, total_tiles, programs_at_once(device) // rows)).bit_length() - 1
        programs = block_length << splits_bits
        if programs > MAX_PROGRAMS:
            raise ValueError(
                f"logits: expected blocks of at most {MAX_PROGRAMS >> splits_bits} positions on 'triton'; "
                f"got {block_length}"
            )
        # Grids, each with its first block.
        self.launches = tuple(
            (programs, min(blocks - first, MAX_BLOCKS), first) for first in range(0, blocks, MAX_BLOCKS)
        )
        words = blocks * programs
        self.workspace_elements = RESULT_WORDS * words + COUNTER_WORDS * blocks
        # The stride of an absent batch is 0: there is one block.
        if not batch:
            logits_strides, ids_strides = (0, *logits_strides), (0, *ids_strides)
            prompt_strides = None if prompt_strides is None else (0, *prompt_strides)
        aligned = logits_on_16_bytes and logits_strides[0] % width == logits_strides[1] % width == 0
        alignment = width if aligned else 1
        self.scalars = (
            block_length,
            vocab,
            splits_bits,
            -(-total_tiles >> splits_bits),  # tiles
            total_tiles,
            words,
            logits_strides[0] // alignment,
            logits_strides[1] // alignment,
            *ids_strides,
            *(prompt_strides or (0, 0)),
            threshold_stride or 0,
        )
        self.warps = config.num_warps
        self.constants = (
            excluded,
            alignment,
            config.max_splits,  # SPLITS
            config.vectors,
            config.early,
            threads,
            width,
            min(max(1 << (block_length - 1).bit_length(), threads // config.max_splits), MAX_BLOCK_L),  # BLOCK_L
            block_length <= MAX_BLOCK_L,  # DEALT
        )
        self.launch: Callable[..., None] | None = None  # once compiled
        self.compiled: tuple[Any, ...] = ()  # that `launch` is given before the kernel's arguments

    def keep(self, compiled: Any) -> None:
        """Have later calls launch this kernel directly, where that is known to work."""
        if torch.version.hip or not triton.__version__.startswith(_DIRECT_VERSIONS):
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


def _can_depend() -> bool:
    """Whether a launch may begin while the one before is about to end: programmatic dependent launch, from sm_90 on
    (CUDA C++ programming guide).
    """
    if INTERPRETED:
        return False
    target = triton.runtime.driver.active.get_current_target()
    return bool(target.backend == "cuda" and target.arch >= 90)


def _listening(hook: Any) -> bool:
    """Of a chain of hooks, whether there is one in it; Triton also takes a bare function, or None."""
    return bool(getattr(hook, "calls", hook))


def post_process(
    logits: Tensor,
    input_ids: Tensor,
    mask_id: int,
    threshold: float | Tensor,
    prompt_mask: Tensor | None,
    exclude_ids: Sequence[int],
    outputs: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    workspace: Tensor | None,
    plans: dict[Any, _Plan],
) -> None:
    """The checked call of `dllm_kernels.post_process`: at least one position, exclude ids inside the vocabulary.

    `plans` are those of calls with logits and ids of this dtype, shape, strides and device, to be kept.
    """
    device = logits.device
    if device.type == "cuda" and device.index != torch._C._cuda_getDevice():
        with torch.cuda.device(device):
            post_process(logits, input_ids, mask_id, threshold, prompt_mask, exclude_ids, outputs, workspace, plans)
        return
    thresholds = threshold if isinstance(threshold, Tensor) else None
    confidence, tokens, accepted, remaining = outputs
    logits_start = logits.data_ptr()
    key = (
        logits_start % 16 == 0,
        None if prompt_mask is None else prompt_mask.stride(),
        None if thresholds is None else thresholds.stride(0),
        bool(exclude_ids),
        confidence is None,  # what is absent is compiled out
        tokens is None,
        accepted is None,
        remaining is None,
    )
    plan = plans.get(key)
    if plan is None:
        plan = plans[key] = _Plan(logits, input_ids, *key[:4])
    if workspace is None:
        workspace = workspaces.acquire(device, plan.workspace_elements)
    number = threshold if thresholds is None else 0.0
    excluded = (*exclude_ids, -1, -1, -1, -1)[:4] if exclude_ids else (-1, -1, -1, -1)
    if plan.launch is None or _listening(_runtime.launch_enter_hook) or _listening(_runtime.launch_exit_hook):
        dependent = _can_depend()
        options = {"launch_pdl": True} if dependent else {}
        for programs, blocks, first_block in plan.launches:
            compiled = _post_process_kernel[(programs, blocks)](
                logits, input_ids, prompt_mask, thresholds, *outputs, workspace, mask_id, number, *excluded,
                first_block, *plan.scalars, *plan.constants, dependent, num_warps=plan.warps, **options,
            )  # fmt: skip
        if device.type == "cuda":
            plan.keep(compiled)
        return
    for programs, blocks, first_block in plan.launches:
        plan.launch(
            programs,
            blocks,
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
            first_block,
            *plan.scalars,
            *plan.constants,
            True,  # DEPENDENT: compiled in, and not read again
        )
