"""The kernel: programs deal a block's masked rows among themselves, and the last one decides and writes.

The masked rows of a block, with edits all rows outside the prompt, are dealt among its programs: each reads one share
of one row's vocabulary and publishes what it found in the workspace: maximum, sum of exponentials, best candidate and
its id. The last program of a block waits for what the others publish, combines the shares, decides, writes, and clears
the workspace for the next call.

A long block is dealt out into n parts, the i-th of them position i and every n-th after it. Each is read and decided
like a block of its own, but for the fallback: the last program of a part publishes what the part has come to, and that
of the last part falls back if no part has accepted a token.

Memory model. A result is two 64-bit words, each stored at once by a relaxed atomic and never zero, so a word that is
not zero is all there: no fence. Programs that no share is dealt to count themselves. A program publishes, or counts
itself, because of the ids that it has read; so the last program, which overwrites ids after it has heard of all others,
cannot be seen by those reads (the PTX memory model's "no thin air"). With edits it alone reads ids. It waits for
programs of lower index alone, and GPUs start programs in order.

Of parts each overwrites its own ids, but for the fallback, which the last part writes once it has heard of all: a part
names it because of the ids that it has read, and what else it reads of that id it does not use, since the position is
open. `accepted` of a part's fallback is written by the last part alone: stores of two programs have no order.
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
    key_of_ordered,
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
RANK_ACCEPTED = tl.constexpr(2**30)  # of a part that accepts a token, so that the block does not fall back
# int32 words of a part's slot in the workspace: its counter, on 64 bits, and where a block has several what it came to.
COUNTER_WORDS = tl.constexpr(2)
SUMMARY_WORDS = tl.constexpr(4)


@triton.jit
def _load_open(
    ids_ptr, prompt_ptr, positions, mask_id, length, stride_ids_l: tl.int64, stride_prompt_l: tl.int64,
    EDITED: tl.constexpr,
):  # fmt: skip
    """Which of a part's positions are open to change, so that their rows are read: the masked ones; with edits, all
    outside the prompt.
    """
    in_part = positions < length
    is_open = in_part
    if not EDITED:
        is_open = in_part & (tl.load(ids_ptr + positions * stride_ids_l, mask=in_part, other=0) == mask_id)
    if prompt_ptr is not None:
        is_open = is_open & (tl.load(prompt_ptr + positions * stride_prompt_l, mask=in_part, other=1) == 0)
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


@triton.jit
def _collect_rows(
    results_ptr, words, counter_ptr, idle, is_open, rows, shares, BLOCK_L: tl.constexpr, SPLITS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Wait for the shares of the rows of open positions and clear them; confidence and candidate of each (BLOCK_L,).

    More positions than are combined `AT_ONCE` come in halves, of even and of odd ones, one after the other.
    """
    if BLOCK_L > AT_ONCE:
        HALF: tl.constexpr = BLOCK_L // 2
        even_open, odd_open = tl.split(tl.reshape(is_open, (HALF, 2)))
        even_rows, odd_rows = tl.split(tl.reshape(rows, (HALF, 2)))
        even_confidence, even_candidate = _collect_rows(
            results_ptr, words, counter_ptr, idle, even_open, even_rows, shares, HALF, SPLITS, AT_ONCE
        )
        odd_confidence, odd_candidate = _collect_rows(
            results_ptr, words, counter_ptr, idle, odd_open, odd_rows, shares, HALF, SPLITS, AT_ONCE
        )
        confidence = tl.reshape(tl.join(even_confidence, odd_confidence), (BLOCK_L,))
        candidate = tl.reshape(tl.join(even_candidate, odd_candidate), (BLOCK_L,))
        return confidence, candidate
    else:
        share = tl.arange(0, SPLITS)[None, :]
        there = is_open[:, None] & (share < shares)
        first_ptrs = results_ptr + rows[:, None] * shares + share
        sums, bests = _await(first_ptrs, first_ptrs + words, counter_ptr, there, idle)
        tl.debug_barrier()  # several threads may wait for a word: all have seen it before one clears it
        tl.store(first_ptrs, tl.zeros(there.shape, tl.int64), mask=there)
        tl.store(first_ptrs + words, tl.zeros(there.shape, tl.int64), mask=there)
        return _combine_shares(sums, bests)


@triton.jit
def _publish_part(counter_ptr, rank, places, fallback, candidate, left):
    """What a part of a block has come to: its fallback's rank, place in the block and id, or that it has accepted some;
    and how many are left masked if it does not fall back."""
    place = tl.sum(tl.where(fallback, places, 0), 0)
    token = tl.sum(tl.where(fallback, candidate, 0), 0)
    summary_ptr = counter_ptr.to(tl.pointer_type(tl.int64)) + 1
    # Neither is zero: ranks start below it, ids are stored one higher.
    tl.atomic_xchg(summary_ptr, key_of_ordered(rank - RANK_UNMASKED + 1, place), sem="relaxed")
    tl.atomic_xchg(summary_ptr + 1, ((token + 1).to(tl.int64) << 32) | left, sem="relaxed")


@triton.jit
def _fall_back(
    counter_ptr, idle, ids_ptr, stride_ids_l: tl.int64, mask_id: tl.int64, accepted_ptr, THREADS: tl.constexpr
):
    """By the last program of a block in parts: wait for them, and write the block's fallback if none has accepted.

    `counter_ptr` and `idle` are those of its own part, `ids_ptr` and `accepted_ptr` the block's. Returns how many
    positions are left masked.
    """
    parts = tl.num_programs(1)
    SLOT: tl.constexpr = (COUNTER_WORDS + SUMMARY_WORDS) // 2
    summaries_ptr = counter_ptr.to(tl.pointer_type(tl.int64)) + (1 - parts) * SLOT + 1
    top = tl.full((), 0, tl.int64)
    top_token = 0
    left = 0
    first = 0
    while first < parts:
        part = first + tl.arange(0, THREADS)[:, None]
        there = part < parts
        key_ptrs = summaries_ptr + part * SLOT
        # The counter still stands at `idle`: it is cleared after this.
        keys, others = _await(key_ptrs, key_ptrs + 1, counter_ptr, there, idle)
        tl.debug_barrier()  # as for the shares' words
        tl.store(key_ptrs, tl.zeros(there.shape, tl.int64), mask=there)
        tl.store(key_ptrs + 1, tl.zeros(there.shape, tl.int64), mask=there)
        keys = tl.where(there, keys, 0)
        others = tl.where(there, others, 0)
        left += tl.sum(tl.sum(others.to(tl.int32), 1), 0)
        if accepted_ptr is not None:
            tl.store(accepted_ptr + index_of(keys), 0, mask=there & _is_fallback(keys))
        chunk_top = tl.max(tl.max(keys, 1), 0)
        if chunk_top > top:
            top = chunk_top
            top_token = tl.max(tl.max(tl.where(keys == top, (others >> 32).to(tl.int32) - 1, 0), 1), 0)
        first += THREADS
    if _is_fallback(top):
        tl.store(ids_ptr + index_of(top) * stride_ids_l, top_token.to(ids_ptr.dtype.element_ty))
        if accepted_ptr is not None:
            tl.debug_barrier()  # another thread may have stored 0 there
            tl.store(accepted_ptr + index_of(top), 1)
        left -= (top_token != mask_id).to(tl.int32)
    return left


@triton.jit
def _is_fallback(keys):
    """Of a part's key: whether it names a token to fall back to."""
    ranks = (keys >> 32).to(tl.int32) - 1 + RANK_UNMASKED
    return (ranks > RANK_UNMASKED) & (ranks < RANK_ACCEPTED)


@triton.jit(
    do_not_specialize=[
        "mask_id", "threshold", "exclude_0", "exclude_1", "exclude_2", "exclude_3", "first_block", "L",
        "part_length", "splits_bits", "tiles", "total_tiles", "words", "stride_logits_b", "stride_logits_l",
        "stride_ids_b", "stride_ids_l", "stride_prompt_b", "stride_prompt_l", "stride_threshold",
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
    workspace_ptr,  # zeros of 64 bits; results (2, words), then a counter for each part, with a summary if PARTED
    mask_id: tl.int64,
    threshold: tl.float32,
    edit_threshold,  # float32 or None, which a parameter with a type could not be
    exclude_0: tl.int32,
    exclude_1: tl.int32,
    exclude_2: tl.int32,
    exclude_3: tl.int32,
    first_block: tl.int64,
    L: tl.int32,
    part_length: tl.int32,
    V: tl.int32,
    splits_bits: tl.int32,  # of 2 ** splits_bits shares a row where all are masked
    tiles: tl.int32,  # of such a share
    total_tiles: tl.int32,  # of a row
    words: tl.int64,  # of all parts of all blocks, part_length * 2 ** splits_bits each
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
    PARTED: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    TILE: tl.constexpr = THREADS * WIDTH * VECTORS
    ALIGNED: tl.constexpr = ALIGNMENT > 1
    EDITED: tl.constexpr = edit_threshold is not None
    # Of 256 positions at once the last program's combining takes 93 registers and more (sm_90), with which two programs
    # fit on a processor; of 64 at a time 64, or with edits and outputs up to 79 (docs/kernel.md, "Long blocks").
    AT_ONCE: tl.constexpr = BLOCK_L if BLOCK_L <= 128 else 64
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    block = first_block + tl.program_id(2)
    slot = block  # of the workspace
    length = L
    slot_words = COUNTER_WORDS
    if PARTED:
        part = tl.program_id(1)
        parts = tl.num_programs(1)
        slot = block * parts + part
        length = part_length - (part >= L - (part_length - 1) * parts).to(tl.int32)
        slot_words = COUNTER_WORDS + SUMMARY_WORDS
    if DEPENDENT:  # on what ran before, whose results are read from here on
        tl.extra.cuda.gdc_wait()
    block_ids_ptr = ids_ptr + block * stride_ids_b
    block_stride_ids_l = stride_ids_l
    ids_ptr = block_ids_ptr
    if prompt_ptr is not None:
        prompt_ptr += block * stride_prompt_b
    if PARTED:  # from here on its own positions
        ids_ptr += part * stride_ids_l
        logits_ptr += part * stride_logits_l * ALIGNMENT
        stride_ids_l *= parts
        stride_logits_l *= parts
        if prompt_ptr is not None:
            prompt_ptr += part * stride_prompt_l
            stride_prompt_l *= parts
    positions = tl.arange(0, BLOCK_L)
    is_open = _load_open(ids_ptr, prompt_ptr, positions, mask_id, length, stride_ids_l, stride_prompt_l, EDITED)
    if threshold_ptr is not None:
        threshold = tl.load(threshold_ptr + block * stride_threshold)
    results_ptr = workspace_ptr.to(tl.pointer_type(tl.int64)) + slot * programs
    counter_ptr = workspace_ptr + 4 * words + slot_words * slot

    position = program >> splits_bits
    first = (program & ((1 << splits_bits) - 1)) * tiles * TILE
    early = tl.full((THREADS, 4 * VECTORS), 0, tl.int32)
    if EARLY:
        row_start = (block * stride_logits_b + position * stride_logits_l) * ALIGNMENT
        present = count_whole_tiles(V - first, ALIGNED, WIDTH, TILE) > 0
        if PARTED:  # some have a position less than there are programs for
            present = present & (position < length)
        early = load_tile(logits_ptr + row_start, first, present, ALIGNED, THREADS, WIDTH, VECTORS)
    stages = reserve_stages(THREADS) if is_copied(ALIGNED, VECTORS, EARLY) else None
    count = tl.sum(is_open.to(tl.int32), 0)
    shares = 1 << splits_bits
    dealt = count < part_length
    reads = position < count
    if dealt:
        if not PARTED:  # of all parts rows are cut alike, so that those of equal bits tie
            shares = tl.minimum(programs // tl.maximum(count, 1), SPLITS)
        row = program // shares  # of those that are open
        reads = row < count
        position = tl.sum((tl.cumsum(is_open.to(tl.int32), 0) <= row).to(tl.int32), 0)
        tiles = (total_tiles + shares - 1) // shares
        first = (program - row * shares) * tiles * TILE
    if reads:
        row_start = (block * stride_logits_b + position * stride_logits_l) * ALIGNMENT
        share_maximum, share_sum, share_best, share_token = read_share(
            logits_ptr + row_start, first, tiles, early, EARLY and not dealt, stages, V,
            exclude_0, exclude_1, exclude_2, exclude_3, EXCLUDED, ALIGNED, THREADS, WIDTH, VECTORS, EARLY,
        )  # fmt: skip
        # Neither is zero: a maximum of 0.0 has a sum of at least 1.
        tl.atomic_xchg(results_ptr + program, _word(share_maximum, share_sum), sem="relaxed")
        tl.atomic_xchg(results_ptr + words + program, _word(share_best, share_token + 1), sem="relaxed")
    elif count > 0:
        tl.debug_barrier()  # every warp reads the ids: all have done so before one thread tells
        tl.atomic_add(counter_ptr, 1, sem="relaxed")
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
    if program != programs - 1:
        return

    # One turn: BLOCK_L holds all positions. As a loop that could read ids again it keeps what Triton 3.6 and its ptxas
    # make of the rest as fast as it is: without, one block of 16 bits takes up to 14 % longer (H200, docs/kernel.md).
    left = 0
    idle = 0
    turn = 0
    while turn < length:
        positions = turn + tl.arange(0, BLOCK_L)
        if turn > 0:
            is_open = _load_open(ids_ptr, prompt_ptr, positions, mask_id, length, stride_ids_l, stride_prompt_l, EDITED)
        in_part = positions < length
        is_masked = is_open
        if EDITED:
            ids = tl.load(ids_ptr + positions * stride_ids_l, mask=in_part, other=0)
            is_masked = is_open & (ids == mask_id)
        confidence = tl.full((BLOCK_L,), float("-inf"), tl.float32)
        candidate = tl.zeros((BLOCK_L,), tl.int32)
        passed = is_masked
        fallback = is_masked
        part_rank = RANK_UNMASKED
        if count > 0:
            rows = positions
            if dealt:
                rows = tl.cumsum(is_open.to(tl.int32), 0) - 1
                idle = programs - count * shares
            confidence, candidate = _collect_rows(
                results_ptr, words, counter_ptr, idle, is_open, rows, shares, BLOCK_L, SPLITS, AT_ONCE
            )
            # In the order of confidences, which are not negative; then NaN, then what is not masked.
            rank = tl.where(confidence == confidence, confidence.to(tl.int32, bitcast=True), RANK_NAN)
            rank = tl.where(is_masked, rank, RANK_UNMASKED)
            top_rank = tl.max(rank, 0)
            top_position = tl.min(tl.where(rank == top_rank, positions, L), 0)
            accepting = (top_rank >= 0) & (top_rank.to(tl.float32, bitcast=True) > threshold)
            passed = is_masked & (confidence > threshold)
            fallback = (not accepting) & (positions == top_position)
            if EDITED:  # there may be open positions, and none that is masked
                fallback = fallback & is_masked
            if PARTED:
                part_rank = tl.where(accepting, RANK_ACCEPTED, top_rank)
            else:
                passed = passed | fallback
            if EDITED:
                differs = candidate.to(ids.dtype) != ids
                passed = passed | (is_open & (ids != mask_id) & differs & (confidence > edit_threshold))
        places = positions * parts + part if PARTED else positions
        outputs = block * L + places
        if tokens_ptr is not None:
            token = tl.load(ids_ptr + positions * stride_ids_l, mask=in_part, other=0)
            token = tl.where(is_open, candidate.to(token.dtype), token)
            tl.store(tokens_ptr + outputs, token.to(tokens_ptr.dtype.element_ty), mask=in_part)
        tl.debug_barrier()  # several threads may hold a position: all have read its id before one writes it
        tl.store(ids_ptr + positions * stride_ids_l, candidate.to(ids_ptr.dtype.element_ty), mask=passed)
        if confidence_ptr is not None:
            tl.store(confidence_ptr + outputs, tl.where(is_open, confidence, float("-inf")), mask=in_part)
        if accepted_ptr is not None:
            # Of the part's fallback `_fall_back` tells, alone: stores of two programs have no order.
            told = in_part & ~fallback if PARTED else in_part
            tl.store(accepted_ptr + outputs, passed, mask=told)
        if remaining_ptr is not None:
            if EDITED:
                stays = tl.where(passed, candidate.to(ids.dtype), ids)
                left += tl.sum((is_open & (stays == mask_id)).to(tl.int32), 0)
            else:
                left += tl.sum((is_masked & ~(passed & (candidate != mask_id))).to(tl.int32), 0)
        if PARTED:
            _publish_part(counter_ptr, part_rank, places, fallback, candidate, left)
        turn += BLOCK_L

    if PARTED:
        if part != parts - 1:
            tl.store(counter_ptr, 0)
            return
        if accepted_ptr is not None:
            accepted_ptr += block * L
        left = _fall_back(counter_ptr, idle, block_ids_ptr, block_stride_ids_l, mask_id, accepted_ptr, THREADS)
    tl.store(counter_ptr, 0)
    if remaining_ptr is not None:
        tl.store(remaining_ptr + block, left)
