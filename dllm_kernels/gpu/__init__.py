"""The Triton backend: one launch per call, one pass over the logits of masked rows.

Here are the configurations and the launch; `kernel` is what runs, `share` how it reads a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from dllm_kernels import workspace as workspaces
from dllm_kernels.checks import NO_OUTPUTS, Outputs
from dllm_kernels.gpu.kernel import COUNTER_WORDS, SUMMARY_WORDS, post_process_kernel
from dllm_kernels.gpu.share import INTERPRETED

MAX_GRID = 2**16 - 1  # of a launch's second and third dimension: a block's parts, and blocks
# Few rows are split into as many programs as run at the same time; for many see ROUNDS.
PROGRAMS_PER_PROCESSOR = 4
INTERPRETED_PROCESSORS = 16  # that Triton's interpreter is taken to have
# A thread's, with which so many programs of eight warps fit on a processor of NVIDIA's. Few rows with ids excluded are
# held to it, but for float32 on 16 bytes: left alone, 16 bits on any byte take 103 to 117 and some calls on 16 bytes 79
# (sm_90), so that two or three programs fit; 12x32x50257 then takes 26.0 us instead of 19.7 (H200). On other GPUs it
# has not been measured; on sm_120 rows on any byte spill up to 33 registers for it.
REGISTERS = 64
# Most positions of a part: blocks that are longer than a configuration takes whole have several, of about the same
# length. Parts of 64 or 128 are 2 to 38 % slower (docs/kernel.md). Few positions are rounded up until every thread has
# a share of its own: threads that hold copies write the same shared memory at once.
MAX_PART_L = 32
MAX_VOCAB = 2**30  # so that columns and tile ends fit int32

RESULT_WORDS = 4  # int32 words of the workspace: a share's row maximum, sum of exponentials, candidate's logit and id


class Config(NamedTuple):
    """How a row is cut: at most `max_splits` programs, each over tiles of some 16-byte vectors per thread, and over
    `least_tiles` or more."""

    max_vocab: int
    max_splits: int
    num_warps: int
    vectors: int
    early: bool  # read the first tile before it is known whether the row is masked
    whole: int  # positions of the longest block that is not cut into parts
    least_tiles: int = 1


# The first line whose max_vocab holds the vocabulary counts. Measured on one H100 80GB HBM3 (torch 2.11.0, triton
# 3.6.0) in a CUDA graph, all rows masked; docs/kernel.md has what else was tried:
CONFIGS = (
    # One tile: a share more would only be one more partial result to combine.
    Config(max_vocab=1024, max_splits=1, num_warps=4, vectors=1, early=False, whole=32),
    # 1x32x128000 fp16 with warm L2 4.5 us (read early: 4.8 without; 4 splits of 16 warps: 0.6 more), cold 6.2.
    # In parts rows keep their shares, so that the fewer are masked, the fewer programs have work: of 256 positions 6 %
    # masked take 14 us instead of 8 (H200, docs/kernel.md).
    Config(max_vocab=MAX_VOCAB, max_splits=8, num_warps=8, vectors=2, early=True, whole=256),
)
# Where rows alone fill the GPU, by bytes of a logit, so that a tile is of 2048 logits: 128x32x157184 bf16 takes 426 us
# with 4 warps, 442 with 8; fp32 in two shares 848 with 4, 836 with 8. Read early, 6 % of the rows masked take 44 us
# instead of 36.
MANY_ROWS = {
    2: Config(max_vocab=MAX_VOCAB, max_splits=8, num_warps=4, vectors=2, early=False, whole=32, least_tiles=8),
    4: Config(max_vocab=MAX_VOCAB, max_splits=8, num_warps=8, vectors=2, early=False, whole=32, least_tiles=8),
}
# Such rows are split too, into as many programs as run at the same time this many times: the last ones to start leave
# much of the GPU idle, less of it the shorter they are. 20x32x157184 bf16 takes 71 us in eight shares and 77 whole. But
# programs that no share is dealt to cost their start: 6 % of the rows of 128x32 take 33.6 us whole, 35.4 in two shares,
# 39.6 in four.
ROUNDS = 16


def _config(vocab: int) -> Config:
    if vocab > MAX_VOCAB:
        raise ValueError(f"logits: expected a vocabulary of at most {MAX_VOCAB} tokens on 'triton'; got {vocab}")
    return next(config for config in CONFIGS if vocab <= config.max_vocab)


def workspace_size(logits: Tensor) -> int:
    """See `dllm_kernels.workspace_size`."""
    *batch, vocab = logits.shape
    # A counter for every position, though a part needs one: the others pay for what parts come to, and for the results
    # of a position that some parts have less than others. So it is as long as parts have 17 positions and more.
    elements: int = math.prod(batch) * (RESULT_WORDS * _config(vocab).max_splits + COUNTER_WORDS.value)
    return elements


def programs_at_once(device: torch.device) -> int:
    """Programs that a GPU is counted on to run at the same time; so many rows, and more, are `MANY_ROWS`."""
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
        prompt_mask: Tensor | None,
        thresholds: Tensor | None,
        excluded: bool,
    ) -> None:
        *batch, block_length, vocab = logits.shape
        device, logits_strides, ids_strides = logits.device, logits.stride(), input_ids.stride()
        prompt_strides = None if prompt_mask is None else prompt_mask.stride()
        blocks = math.prod(batch)
        rows = blocks * block_length
        config, splits = _config(vocab), programs_at_once(device) // rows
        if rows >= programs_at_once(device) and config.max_splits > 1:
            config, splits = MANY_ROWS[logits.element_size()], ROUNDS * programs_at_once(device) // rows
        threads, width = 32 * config.num_warps, 16 // logits.element_size()
        total_tiles = -(-vocab // (threads * width * config.vectors))
        # The largest power of two: programs find their row and share by bits.
        splits_bits = max(1, min(config.max_splits, total_tiles // config.least_tiles, splits)).bit_length() - 1
        parts = -(-block_length // MAX_PART_L) if block_length > config.whole else 1
        if parts > MAX_GRID:
            raise ValueError(
                f"logits: expected blocks of at most {MAX_GRID * MAX_PART_L} positions on 'triton'; got {block_length}"
            )
        part_length = -(-block_length // parts)
        programs = part_length << splits_bits
        # Grids, each with its first block.
        self.launches = tuple(
            (programs, parts, min(blocks - first, MAX_GRID), first) for first in range(0, blocks, MAX_GRID)
        )
        words = blocks * parts * programs
        slot_words = COUNTER_WORDS.value + (SUMMARY_WORDS.value if parts > 1 else 0)
        self.workspace_elements = RESULT_WORDS * words + slot_words * blocks * parts
        # The stride of an absent batch is 0: there is one block.
        if not batch:
            logits_strides, ids_strides = (0, *logits_strides), (0, *ids_strides)
            prompt_strides = None if prompt_strides is None else (0, *prompt_strides)
        aligned = logits_on_16_bytes and logits_strides[0] % width == logits_strides[1] % width == 0
        alignment = width if aligned else 1
        self.scalars = (
            block_length,
            part_length,
            vocab,
            splits_bits,
            -(-total_tiles >> splits_bits),  # tiles
            total_tiles,
            words,
            logits_strides[0] // alignment,
            logits_strides[1] // alignment,
            *ids_strides,
            *(prompt_strides or (0, 0)),
            0 if thresholds is None else thresholds.stride(0),
        )
        self.warps = config.num_warps
        is_held = excluded and config.early and not (aligned and logits.dtype == torch.float32)
        self.max_registers = REGISTERS if is_held else None
        self.constants = (
            excluded,
            alignment,
            config.max_splits,  # SPLITS
            config.vectors,
            config.early,
            threads,
            width,
            max(1 << (part_length - 1).bit_length(), threads // config.max_splits),  # BLOCK_L
            parts > 1,  # PARTED
        )
        # As `launch` is given them, with DEPENDENT, which is compiled in and not read again.
        self.scalars_and_constants = (*self.scalars, *self.constants, True)
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
_NONE_EXCLUDED: tuple[int, ...] = (-1, -1, -1, -1)
_NO_POINTERS: tuple[int | None, ...] = (None,) * 6


def _is_for_nvidia() -> bool:
    return not INTERPRETED and triton.runtime.driver.active.get_current_target().backend == "cuda"


def can_depend() -> bool:
    """Whether a launch may begin while the one before is about to end: programmatic dependent launch, from sm_90 on
    (CUDA C++ programming guide).
    """
    return _is_for_nvidia() and triton.runtime.driver.active.get_current_target().arch >= 90


def post_process(
    logits: Tensor,
    input_ids: Tensor,
    mask_id: int,
    threshold: float | Tensor,
    prompt_mask: Tensor | None,
    exclude_ids: Sequence[int],
    outputs: Outputs,
    workspace: Tensor | None,
    plans: dict[Any, _Plan],
    edit_threshold: float | None = None,
) -> None:
    """The checked call of `dllm_kernels.post_process`: at least one position, exclude ids inside the vocabulary.

    `plans` are those of calls with logits and ids of this dtype, shape, strides and device, to be kept.
    """
    device = logits.device
    is_cuda = logits.is_cuda  # else a CPU, under Triton's interpreter; `device.type` would make a string at every call
    if is_cuda and device.index != torch._C._cuda_getDevice():
        with torch.cuda.device(device):
            post_process(
                logits, input_ids, mask_id, threshold, prompt_mask, exclude_ids, outputs, workspace, plans,
                edit_threshold,
            )  # fmt: skip
        return
    logits_start = logits.data_ptr()
    on_16_bytes = logits_start % 16 == 0
    key: Any = on_16_bytes
    thresholds, number, excluded, pointers = None, threshold, _NONE_EXCLUDED, _NO_POINTERS
    # A call without options, as in a loop of one's own, is spared what they take: on an H200 the host is
    # done 8 % sooner (docs/kernel.md).
    if (
        outputs is not NO_OUTPUTS
        or type(threshold) is not float
        or prompt_mask is not None
        or exclude_ids
        or edit_threshold is not None
    ):
        confidence, tokens, accepted, remaining = outputs
        if isinstance(threshold, Tensor):
            thresholds, number = threshold, 0.0
        if exclude_ids:
            excluded = (*exclude_ids, *_NONE_EXCLUDED)[:4]
        key = (
            on_16_bytes,
            None if prompt_mask is None else prompt_mask.stride(),
            None if thresholds is None else thresholds.stride(0),
            bool(exclude_ids),
            edit_threshold is None,
            confidence is None,  # what is absent is compiled out
            tokens is None,
            accepted is None,
            remaining is None,
        )
        pointers = (
            None if prompt_mask is None else prompt_mask.data_ptr(),
            None if thresholds is None else thresholds.data_ptr(),
            None if confidence is None else confidence.data_ptr(),
            None if tokens is None else tokens.data_ptr(),
            None if accepted is None else accepted.data_ptr(),
            None if remaining is None else remaining.data_ptr(),
        )
    plan = plans.get(key)
    if plan is None:
        plan = plans[key] = _Plan(logits, input_ids, on_16_bytes, prompt_mask, thresholds, bool(exclude_ids))
    # The pointer; torch.cuda.current_stream() takes 10 us to wrap it.
    stream = torch._C._cuda_getCurrentRawStream(device.index) if is_cuda else 0
    if workspace is None:
        elements = plan.workspace_elements
        if is_cuda:
            workspace = workspaces.acquire(device, stream, elements)
        else:
            workspace = torch.zeros(elements, dtype=torch.int32)
    # Triton keeps a chain of hooks in each, but takes a bare function, too, or None.
    before, after = _runtime.launch_enter_hook, _runtime.launch_exit_hook
    if plan.launch is None or getattr(before, "calls", before) or getattr(after, "calls", after):
        dependent = can_depend()
        options: dict[str, Any] = {"launch_pdl": True} if dependent else {}
        if plan.max_registers is not None and _is_for_nvidia():
            options["maxnreg"] = plan.max_registers
        for *grid, first_block in plan.launches:
            compiled = post_process_kernel[tuple(grid)](
                logits, input_ids, prompt_mask, thresholds, *outputs, workspace, mask_id, number,
                edit_threshold, *excluded, first_block, *plan.scalars, *plan.constants, dependent, num_warps=plan.warps,
                **options,
            )  # fmt: skip
        if is_cuda:
            plan.keep(compiled)
        return
    for programs, parts, blocks, first_block in plan.launches:
        plan.launch(
            programs,
            parts,
            blocks,
            stream,
            *plan.compiled,
            logits_start,
            input_ids.data_ptr(),
            *pointers,
            workspace.data_ptr(),
            mask_id,
            number,
            edit_threshold,
            *excluded,
            first_block,
            *plan.scalars_and_constants,
        )
