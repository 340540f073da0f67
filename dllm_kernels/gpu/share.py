"""Reading a program's share of a row: its maximum, the sum of its exponentials, and its best candidate.

One pass over the logits, a tile of 16-byte vectors at a time, each tile asked for while those before it are worked on:
one or two tiles ahead in registers or, where rows fill the GPU, three in shared memory (`is_copied`).
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

NO_TOKEN = tl.constexpr(2**31 - 1)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Up to here LOG2E * maximum is rounded by less than 2.5e-4, which a factor of first order corrects to 1e-8. Shares with
# larger maxima take the slow path, which subtracts first.
MAX_SCALED_LOGIT = tl.constexpr(4096.0)
LOWEST = tl.constexpr(-1e30)  # what running maxima begin at: finite, so that differences are never NaN
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
# In shared memory, each for a tile: one that is worked on, and three that are on their way. A power of two.
STAGES = tl.constexpr(4)
# Only by versions of Triton whose layouts are known to be what `_copied_tile` needs (tests/test_compiled.py).
COPIES = tl.constexpr(triton.__version__.startswith("3.6."))


@triton.constexpr_function
def _compute_capability():
    """Of the NVIDIA GPU that this is compiled for, times ten; 0 for anything else."""
    target = None if INTERPRETED else tl.target_info.current_target()
    return target.arch if target is not None and target.backend == "cuda" else 0


@triton.jit
def finite_or_zero(maximum):
    """What can be subtracted from logits below `maximum`: exp(-inf - -inf) would be NaN."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit
def product(left, right):
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
def _ordered(values):
    """Integers in the order of the floats they are made of, which are not NaN; its own inverse but for the type."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)  # of -0.0, which equals it, those of 0.0
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def key_of(values, index):
    """Of all such keys the largest is that of the largest value, and of its lowest index."""
    return key_of_ordered(_ordered(values), index)


@triton.jit
def key_of_ordered(ordered, index):
    """`key_of` for what is ordered as integers are."""
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def value_of(key):
    ordered = (key >> 32).to(tl.int32)
    return tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)


@triton.jit
def index_of(key):
    return 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32)


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
def _larger_bfloat16(left, right):
    return tl.inline_asm_elementwise("max.bf16x2 $0, $1, $2;", "=r,r,r", [left, right], tl.int32, is_pure=True, pack=1)


@triton.jit
def _larger_float16(left, right):
    return tl.inline_asm_elementwise("max.f16x2 $0, $1, $2;", "=r,r,r", [left, right], tl.int32, is_pure=True, pack=1)


@triton.jit
def _maxima(words, logits, dtype: tl.constexpr):
    """Of each thread's logits, which it holds in these words too: those of 16 bits are compared in pairs. NaN is passed
    over, but where all is."""
    if dtype == tl.float32 or _compute_capability() < 90:
        return tl.max(logits, 1)
    else:
        if dtype == tl.bfloat16:
            pair = tl.reduce(words, 1, _larger_bfloat16)
        else:
            pair = tl.reduce(words, 1, _larger_float16)
        return tl.max(_float32(pair[:, None], dtype), 1)


@triton.jit
def load_tile(
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


@triton.constexpr_function
def is_copied(aligned, vectors, early):
    """Whether tiles come through shared memory, three ahead, and not through registers.

    Where rows fill the GPU, memory is then read with 97 instead of 95 % of the best reader's bandwidth; of few rows,
    reading the copies costs more than it gains (H200, docs/kernel.md). Compute capability 10.x has as much shared
    memory, 12.x less than half; before 9.0 nothing was measured.
    """
    return COPIES and 90 <= _compute_capability() < 120 and aligned and vectors == 2 and not early


@triton.constexpr_function
def _stages_of(stage_bytes):
    """PTX that sets shared memory aside and gives its address. It names it, so a kernel has it once."""
    return f".shared .align 16 .b8 dllm_stages[{STAGES.value * stage_bytes}];\nmov.u32 $0, dllm_stages; // $1"


# PTX of copies into shared memory (cp.async). Each thread copies what it will read itself and sees its own copies once
# it has waited for them, so that no barrier is needed.
_COPY = tl.constexpr(
    """{
    .reg .pred present;
    setp.ne.s32 present, $3, 0;
    @present cp.async.cg.shared.global [$1], [$2], 16;
    mov.b32 $0, 0;
    }"""
)
_END_GROUP = tl.constexpr("cp.async.commit_group;\nmov.b32 $0, 0; // $1")
# For all groups but the last three.
_WAIT = tl.constexpr(f"cp.async.wait_group {STAGES.value - 1};\nmov.b32 $0, 0; // $1")
_READ = tl.constexpr("ld.shared.v4.b32 {$0, $1, $2, $3}, [$8];")


@triton.jit
def _run(asm: tl.constexpr):
    """PTX without arguments, for what it does."""
    tl.inline_asm_elementwise(asm, "=r,r", [0], tl.int32, is_pure=False, pack=1)


@triton.jit
def reserve_stages(THREADS: tl.constexpr):
    """Each thread's place (THREADS,) in the first of the stages of two vectors a thread: addresses in shared memory."""
    base = tl.inline_asm_elementwise(_stages_of(THREADS * 32), "=r,r", [0], tl.int32, is_pure=False, pack=1)
    return base + tl.arange(0, THREADS) * 16


@triton.jit
def _copy_tile(stages, ptr, tile, tiles, THREADS: tl.constexpr, WIDTH: tl.constexpr):
    """Ask for a tile of two vectors a thread, of `tiles` from `ptr` on, into its stage: a group of its own, even if
    there is no such tile."""
    stage = stages + (tile & (STAGES - 1)) * THREADS * 32
    address = (ptr + tile * THREADS * WIDTH * 2 + tl.arange(0, THREADS) * WIDTH).to(tl.int64)
    present = tl.full((THREADS,), 0, tl.int32) + (tile < tiles).to(tl.int32)
    for vector in tl.static_range(2):
        places = [stage + vector * THREADS * 16, address + vector * THREADS * 16, present]
        tl.inline_asm_elementwise(_COPY, "=r,r,l,r", places, tl.int32, is_pure=False, pack=1)
    _run(_END_GROUP)


@triton.jit
def _copied_tile(stages, tile, anchor, THREADS: tl.constexpr):
    """The words (THREADS, 8) of a tile, once it has come.

    A thread must get the words that it has copied, in a layout of four words a thread at least. That is the layout of a
    vector that was loaded: of `anchor` (THREADS, 4), which serves for nothing else. The tests look for it in what
    Triton makes of the kernel. Triton may do the reads twice, which is why waiting stands apart.
    """
    _run(_WAIT)
    stage = stages + (tile & (STAGES - 1)) * THREADS * 32
    constraints: tl.constexpr = "=r,=r,=r,=r,r,r,r,r,r,r,r,r"
    first = tl.inline_asm_elementwise(_READ, constraints, [anchor, stage[:, None]], tl.int32, is_pure=False, pack=4)
    stage += THREADS * 16
    second = tl.inline_asm_elementwise(_READ, constraints, [anchor, stage[:, None]], tl.int32, is_pure=False, pack=4)
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
    tile_maximum = _maxima(words, logits, dtype)
    maximum = tl.maximum(maximum, tile_maximum)
    old_shift = shift
    shift = product(maximum, LOG2E)
    factor = _exp2(old_shift - shift)
    scaled = product(exp_sum, factor)
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
    """`read_share` where fast arithmetic will not do: for NaN, infinities, and very large logits.

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

    shift = finite_or_zero(maximum)
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
def count_whole_tiles(logits, ALIGNED: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Of so many logits to the row's end: those that can be read by vectors, without touching what lies beyond it."""
    if not ALIGNED:
        logits -= WIDTH
    return tl.maximum(logits, 0) // TILE


@triton.jit
def read_share(
    row_ptr, first, tiles, early, is_first_tile, stages, V, exclude_0, exclude_1, exclude_2, exclude_3,
    EXCLUDED: tl.constexpr, ALIGNED: tl.constexpr, THREADS: tl.constexpr, WIDTH: tl.constexpr, VECTORS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Maximum and sum of exponentials of one share of a row, and its best candidate's logit and id.

    `early` holds words that were read before it was known which share this is: its first tile's, or another's.
    `stages` are those of `reserve_stages` where tiles are copied.
    """
    TILE: tl.constexpr = THREADS * WIDTH * VECTORS
    dtype: tl.constexpr = row_ptr.dtype.element_ty
    # The next tile is asked for before a tile is worked on, but in a loop of one block of instructions ptxas does so
    # late, when the registers of the tile before are free (docs/kernel.md). After a branch it comes first, for eight
    # moves a tile, and of 16 bits with ids excluded for more than 64 registers. Two tiles in one block take no
    # moves, and are faster where shares have few tiles, which are read early; of float32 with a second tile on its way.
    # Copies need no branch; two tiles in one block save arithmetic, but spill with ids excluded.
    COPIED: tl.constexpr = is_copied(ALIGNED, VECTORS, EARLY)
    TWO_AHEAD: tl.constexpr = EARLY and ALIGNED and dtype == tl.float32
    BY_TWO: tl.constexpr = (EARLY and ALIGNED) or (COPIED and not EXCLUDED)
    BRANCHES: tl.constexpr = EARLY if dtype == tl.float32 else not (EXCLUDED or BY_TWO)
    maximum = tl.full((THREADS,), LOWEST, tl.float32)
    shift = maximum * LOG2E
    exp_sum = tl.zeros((THREADS,), tl.float32)
    error = tl.zeros((THREADS,), tl.float32)
    best = tl.full((THREADS,), float("-inf"), tl.float32)
    best_tile = tl.zeros((THREADS,), tl.int32)
    best_words = _words_of_minus_infinity(dtype, THREADS, VECTORS)
    whole_tiles = count_whole_tiles(V - first, ALIGNED, WIDTH, TILE)
    whole_tiles = tl.minimum(whole_tiles, tiles)
    ahead = early
    later = early
    if COPIED:
        anchor = _load_vector(row_ptr + first, V < 0, ALIGNED, THREADS)  # nothing: see `_copied_tile`
        for tile in tl.static_range(STAGES - 1):
            _copy_tile(stages, row_ptr + first, tile, whole_tiles, THREADS, WIDTH)
    else:
        if not is_first_tile:
            ahead = load_tile(row_ptr, first, whole_tiles > 0, ALIGNED, THREADS, WIDTH, VECTORS)
        if TWO_AHEAD:
            later = load_tile(row_ptr, first + TILE, whole_tiles > 1, ALIGNED, THREADS, WIDTH, VECTORS)
    for tile in tl.range(0, whole_tiles, loop_unroll_factor=2 if BY_TWO else 1):
        words = ahead
        start = first + (tile + 1) * TILE
        if COPIED:
            # Into the stage of the tile before this one. A thread's reads and copies of a place go through shared
            # memory in their order, and a copy comes hundreds of cycles after it was asked for.
            _copy_tile(stages, row_ptr + first, tile + (STAGES - 1), whole_tiles, THREADS, WIDTH)
            words = _copied_tile(stages, tile, anchor, THREADS)
        elif TWO_AHEAD:
            ahead = later
            later = load_tile(row_ptr, start + TILE, tile + 2 < whole_tiles, ALIGNED, THREADS, WIDTH, VECTORS)
        elif not BRANCHES:
            ahead = load_tile(row_ptr, start, tile + 1 < whole_tiles, ALIGNED, THREADS, WIDTH, VECTORS)
        elif tile + 1 < whole_tiles:
            ahead = load_tile(row_ptr, start, True, ALIGNED, THREADS, WIDTH, VECTORS)
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
    # Of each warp first, where a maximum and a minimum of 32 bits are one instruction each (redux).
    ordered = tl.reshape(_ordered(best), (THREADS // 32, 32))
    top = tl.max(ordered, 1)
    columns = tl.where(ordered == top[:, None], tl.reshape(column, (THREADS // 32, 32)), NO_TOKEN)
    key = tl.max(key_of_ordered(top, tl.min(columns, 1)), 0)
    share_best = value_of(key)
    share_token = index_of(key)
    share_maximum = tl.max(maximum, 0) if EXCLUDED else tl.maximum(share_best, LOWEST)
    share_shift = product(share_maximum, LOG2E)
    share_sum = tl.sum(exp_sum * _exp2(shift - share_shift), 0)
    # From a sum over 2 ** (logits * LOG2E - shift) to one over exp(logits - maximum): shift was rounded, by so little
    # that 2 ** -rounding is 1 - rounding * ln(2).
    share_sum *= 1.0 - _scaled_difference(share_maximum, share_shift) * LN2
    nothing = share_best == float("-inf")
    extreme = (tl.abs(share_maximum) > MAX_SCALED_LOGIT) & ~nothing
    share_maximum = tl.where(nothing, float("-inf"), share_maximum)
    if EXCLUDED:
        # A vector may hold nothing but excluded ids, which shows where all candidates of a share are -inf. A share that
        # lies beyond the row has none either, and is right as it is.
        extreme = extreme | (nothing & (first < V))
    if (share_sum != share_sum) | extreme:
        offs = tl.arange(0, THREADS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
        share_maximum, share_sum, share_best, share_token = _reread_share(
            row_ptr, first, tiles * VECTORS, offs, V, exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED,
            THREADS * WIDTH,
        )  # fmt: skip
    return share_maximum, share_sum, share_best, share_token
