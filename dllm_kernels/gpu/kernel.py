"""The kernel: programs deal a block's masked rows among themselves, and the last one decides and writes.

The masked rows of a block, with edits all rows outside the prompt, are dealt among its programs: each reads one share
of one row's vocabulary and publishes what it found in the workspace: maximum, sum of exponentials, best candidate and
its id. The last program of a block waits for what the others publish, combines the shares, decides, writes, and clears
the workspace for the next call.

Memory model. A result is two 64-bit words, each stored at once by a relaxed atomic and never zero, so a word that is
not zero is all there: no fence. Programs that no share is dealt to count themselves. A program publishes, or counts
itself, because of the ids that it has read; so the last program, which overwrites ids after it has heard of all others,
cannot be seen by those reads (the PTX memory model's "no thin air"). With edits it alone reads ids. It waits for
programs of lower index alone, and GPUs start programs in order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dllm_kernels.gpu.share import (
    INTERPRETED,
    count_whole_tiles,
    finite_or_zero,
    index_of,
    is_copied,
    key_of,
    load_tile,
    product,
    read_share,
    reserve_stages,
    value_of,
)

# Words where there is no share: -inf and a sum of 0, -inf and no token.
ABSENT_SUM = tl.constexpr(0xFF80000000000000 - 2**64)
ABSENT_BEST = tl.constexpr(0xFF80000080000000 - 2**64)
MOST_POLLS = tl.constexpr(2**27)  # a minute or two, after which what is waited for will not come
# In the fallback, a confidence of NaN comes after every probability, and a row that is not masked after that.
RANK_NAN = tl.constexpr(-1)
RANK_UNMASKED = tl.constexpr(-2)


@triton.jit
def _load_open(
    ids_ptr, prompt_ptr, positions, mask_id, L, stride_ids_l: tl.int64, stride_prompt_l: tl.int64, EDITED: tl.constexpr
):
    """Which of a block's positions are open to change, so that their rows are read: the masked ones; with edits, all
    outside the prompt.
    """
    in_block = positions < L
    is_open = in_block
    if not EDITED:
        is_open = in_block & (tl.load(ids_ptr + positions * stride_ids_l, mask=in_block, other=0) == mask_id)
    if prompt_ptr is not None:
        is_open = is_open & (tl.load(prompt_ptr + positions * stride_prompt_l, mask=in_block, other=1) == 0)
    return is_open


@triton.jit
def _word(high, low):
    """Two 32-bit values in one that is stored at once."""
    return (high.to(tl.int32, bitcast=True).to(tl.int64) << 32) | low.to(tl.uint32, bitcast=True).to(tl.int64)


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
    shift = finite_or_zero(tl.max(maxima, 1))
    sums = sums.to(tl.uint32).to(tl.float32, bitcast=True)
    # Rounded before it is added: threads that hold copies of a row would else each round in their own way, and rows of
    # equal bits no longer tie.
    total = tl.sum(product(sums, tl.exp(maxima - shift[:, None])), 1)
    key = tl.max(key_of(_high(bests), bests.to(tl.int32) - 1), 1)  # NaN, all of the same bits, comes above all
    # Of an all -inf row this is 0 / 0, of one with NaN or +inf the total is NaN.
    return tl.exp(value_of(key) - shift) / total, index_of(key)


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
def post_process_kernel(
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
    edit_threshold,  # float32 or None, which a parameter with a type could not be
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
    EDITED: tl.constexpr = edit_threshold is not None
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    block = first_block + tl.program_id(1)
    if DEPENDENT:  # on what ran before, whose results are read from here on
        tl.extra.cuda.gdc_wait()
    ids_ptr += block * stride_ids_b
    if prompt_ptr is not None:
        prompt_ptr += block * stride_prompt_b
    chunk_open = _load_open(
        ids_ptr, prompt_ptr, tl.arange(0, BLOCK_L), mask_id, L, stride_ids_l, stride_prompt_l, EDITED
    )
    if threshold_ptr is not None:
        threshold = tl.load(threshold_ptr + block * stride_threshold)
    results_ptr = workspace_ptr.to(tl.pointer_type(tl.int64)) + block * programs
    counter_ptr = workspace_ptr + 4 * words + 2 * block

    position = program >> splits_bits
    first = (program & ((1 << splits_bits) - 1)) * tiles * TILE
    early = tl.full((THREADS, 4 * VECTORS), 0, tl.int32)
    if EARLY:
        row_start = (block * stride_logits_b + position * stride_logits_l) * ALIGNMENT
        present = count_whole_tiles(V - first, ALIGNED, WIDTH, TILE) > 0
        early = load_tile(logits_ptr + row_start, first, present, ALIGNED, THREADS, WIDTH, VECTORS)
    stages = reserve_stages(THREADS) if is_copied(ALIGNED, VECTORS, EARLY) else None
    count = tl.sum(chunk_open.to(tl.int32), 0)
    shares = 1 << splits_bits
    dealt = DEALT and count < L
    if DEALT:
        reads = position < count
        if dealt:
            shares = tl.minimum(programs // tl.maximum(count, 1), SPLITS)
            row = program // shares  # of those that are open
            reads = row < count
            position = tl.sum((tl.cumsum(chunk_open.to(tl.int32), 0) <= row).to(tl.int32), 0)
            tiles = (total_tiles + shares - 1) // shares
            first = (program - row * shares) * tiles * TILE
    else:
        reads = position < L
        if not EDITED:
            reads = tl.load(ids_ptr + position * stride_ids_l) == mask_id
        if prompt_ptr is not None:
            reads = reads & (tl.load(prompt_ptr + position * stride_prompt_l) == 0)
    if reads:
        row_start = (block * stride_logits_b + position * stride_logits_l) * ALIGNMENT
        share_maximum, share_sum, share_best, share_token = read_share(
            logits_ptr + row_start, first, tiles, early, EARLY and not dealt, stages, V,
            exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED, ALIGNED, THREADS, WIDTH, VECTORS, EARLY,
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
            chunk_open = _load_open(ids_ptr, prompt_ptr, positions, mask_id, L, stride_ids_l, stride_prompt_l, EDITED)
        chunk_masked = chunk_open
        if EDITED:
            ids = tl.load(ids_ptr + positions * stride_ids_l, mask=in_block, other=0)
            chunk_masked = chunk_open & (ids == mask_id)
        confidence = tl.full((BLOCK_L,), float("-inf"), tl.float32)
        candidate = tl.zeros((BLOCK_L,), tl.int32)
        passed = chunk_masked
        if (count > 0) | (not DEALT):
            rows = positions
            idle = 0
            if dealt:
                rows = tl.cumsum(chunk_open.to(tl.int32), 0) - 1
                idle = programs - count * shares
            share = tl.arange(0, SPLITS)[None, :]
            there = chunk_open[:, None] & (share < shares)
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
                fallback = (not accepting) & (positions == chunk_position)
                if EDITED:  # a block may have open positions, and none that is masked
                    fallback = fallback & chunk_masked
                passed = passed | fallback
            elif (not accepting) & (chunk_rank > top_rank):
                top_rank = chunk_rank
                top_position = chunk_position
                top_token = tl.sum(tl.where(positions == chunk_position, candidate, 0), 0)
            if EDITED:
                differs = candidate.to(ids.dtype) != ids
                passed = passed | (chunk_open & (ids != mask_id) & differs & (confidence > edit_threshold))
        outputs = block * L + positions
        if tokens_ptr is not None:
            token = tl.load(ids_ptr + positions * stride_ids_l, mask=in_block, other=0)
            token = tl.where(chunk_open, candidate.to(token.dtype), token)
            tl.store(tokens_ptr + outputs, token.to(tokens_ptr.dtype.element_ty), mask=in_block)
        tl.debug_barrier()  # several threads may hold a position: all have read its id before one writes it
        tl.store(ids_ptr + positions * stride_ids_l, candidate.to(ids_ptr.dtype.element_ty), mask=passed)
        if confidence_ptr is not None:
            tl.store(confidence_ptr + outputs, tl.where(chunk_open, confidence, float("-inf")), mask=in_block)
        if accepted_ptr is not None:
            tl.store(accepted_ptr + outputs, passed, mask=in_block)
        if remaining_ptr is not None:
            if EDITED:
                stays = tl.where(passed, candidate.to(ids.dtype), ids)
                left += tl.sum((chunk_open & (stays == mask_id)).to(tl.int32), 0)
            else:
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
