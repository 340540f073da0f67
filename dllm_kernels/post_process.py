"""The public operation: its contract and the choice of a backend.

One decoding step of a diffusion language model's block: softmax, argmax, threshold, token update and fallback.
Every check (`checks`) comes before anything is launched or written; the backends trust their arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from types import ModuleType

import torch
from torch import Tensor
from torch.compiler import is_compiling

from dllm_kernels import cpu, reference
from dllm_kernels.checks import (
    MAX_EXCLUDE_IDS,
    NO_OUTPUTS,
    OUTPUT_NAMES,
    Outputs,
    as_int,
    check_edit_threshold,
    check_exclude_ids,
    check_layout,
    check_mask_id,
    check_outputs,
    check_tensor,
    check_threshold,
)

BACKENDS = ("auto", "triton", "cpu", "reference")
_BACKEND_OF = {"cuda": "triton", "cpu": "cpu"}  # a device's, by "auto"


def dllm_post_process_fused(
    logits: Tensor,
    input_ids: Tensor,
    mask_id: int,
    threshold: float | Tensor,
    *,
    prompt_mask: Tensor | None = None,
    exclude_ids: Sequence[int] = (),
    edit_threshold: float | None = None,
    confidence: Tensor | None = None,
    tokens: Tensor | None = None,
    accepted: Tensor | None = None,
    remaining: Tensor | None = None,
    workspace: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Commit the confident tokens of one or several blocks, in place in `input_ids`.

    A position that holds `mask_id` outside the prompt is *masked*. Its candidate is the argmax of its logits (the
    lowest id on ties) and its confidence the candidate's softmax probability, in float32. Every masked position with
    `confidence > threshold` takes its candidate; if a block has masked positions and none passes, the one with the
    highest confidence (the lowest position on ties) takes its candidate. No other position changes, but for edits:
    given an `edit_threshold`, a position outside the prompt that is not masked takes its candidate if that is another
    token and `confidence > edit_threshold`. *Open* are the positions that may change: the masked ones, with edits all
    outside the prompt. Rows of other positions have no influence; the first kilobytes of some may be read.

    Odd rows: a row that holds NaN or +inf, or only -inf, has confidence NaN, which never passes and comes last in the
    fallback; its candidate is its first argmax with NaN counting as largest, as in PyTorch.

    Args:
        logits: (L, V) for one block or (B, L, V) for B independent blocks; float16, bfloat16 or float32; the
            vocabulary contiguous, other strides arbitrary. Never written.
        input_ids: (L,) or (B, L), int64 or int32, any strides that do not overlap. Updated in place.
        mask_id: any value of the ids' dtype; it may lie outside the vocabulary.
        threshold: a number, or a float32 tensor (B,) ((1,) for one block) on the same device, read on the device; NaN
            in the tensor accepts nothing and leaves the fallback.
        prompt_mask: bool, shape of `input_ids`: True is never touched, not even where it holds `mask_id`.
        exclude_ids: at most 4 token ids that are never chosen; their probability still counts. Ids outside the
            vocabulary are ignored.
        edit_threshold: a number, or None for no edits. An edit may put `mask_id` in a token's place, unless it is
            excluded.
        confidence: output, float32, shape of `input_ids`, contiguous: the confidence; -inf where not open.
        tokens: output, dtype and shape of `input_ids`, contiguous: the candidate; the present id where not open.
        accepted: output, bool, shape of `input_ids`, contiguous: whether this call committed the position (the
            fallback and edits included).
        remaining: output, int32 (B,) ((1,) for one block), contiguous: masked positions left after the call. This and
            `accepted` may lie in pinned memory of the host instead, which the GPU then writes itself: read it once the
            stream has been waited for.
        workspace: int32, contiguous, at least `workspace_size(logits)` elements, starting on 8 bytes, zero before its
            first use and after every call, for the `triton` backend; not to be shared by calls that can run at the
            same time, which would wait for each other for ever. Default: one per device and stream, by CUDA's handle
            of the stream, and one of its own for every call captured into a CUDA graph. Who makes and destroys streams
            without PyTorch, which keeps its own, passes one: a handle may be given out again while calls still run.
        backend: "triton" (CUDA tensors, or any under Triton's interpreter), "cpu", "reference", or "auto": "triton" on
            CUDA, "cpu" on the CPU.

    Raises:
        TypeError, ValueError: an argument is not as described; nothing was launched or written.
        RuntimeError: the backend cannot run here, with the reason.
    """
    if is_compiling():
        if isinstance(mask_id, bool):  # which the operator's schema would take for an integer
            raise TypeError(f"mask_id: expected an integer; got {mask_id!r}")
        per_block = isinstance(threshold, Tensor)
        torch.ops.dllm_kernels.post_process(
            logits,
            input_ids,
            mask_id,
            0.0 if per_block else threshold,
            threshold if per_block else None,
            prompt_mask,
            list(exclude_ids),
            edit_threshold,
            confidence,
            tokens,
            accepted,
            remaining,
            workspace,
            backend,
        )
        return

    if not isinstance(logits, Tensor):
        raise TypeError(f"logits: expected a tensor; got {type(logits).__name__}")
    if not isinstance(input_ids, Tensor):
        raise TypeError(f"input_ids: expected a tensor; got {type(input_ids).__name__}")
    layout = check_layout(
        logits.dtype, logits.shape, logits.stride(), logits.device,
        input_ids.dtype, input_ids.shape, input_ids.stride(), input_ids.device,
    )  # fmt: skip
    if prompt_mask is not None:
        check_tensor("prompt_mask", prompt_mask, torch.bool, input_ids.shape, logits.device)
    # What comes nearly always is checked here: a function's call takes a fiftieth of the whole.
    if type(mask_id) is not int or not layout.least_id <= mask_id <= layout.largest_id:
        mask_id = check_mask_id(mask_id, input_ids)
    if type(threshold) is not float or threshold != threshold:
        threshold = check_threshold(threshold, layout.blocks, logits.device)
    if type(exclude_ids) is not tuple or exclude_ids:
        exclude_ids = check_exclude_ids(exclude_ids, logits.shape[-1])
    if edit_threshold is not None:
        edit_threshold = check_edit_threshold(edit_threshold)
    outputs = NO_OUTPUTS
    if confidence is not None or tokens is not None or accepted is not None or remaining is not None:
        outputs = (confidence, tokens, accepted, remaining)
        check_outputs(
            outputs, layout, logits, input_ids, prompt_mask=prompt_mask, workspace=workspace, threshold=threshold
        )  # fmt: skip
    if backend == "auto":
        backend = _BACKEND_OF.get(layout.device_type, "reference")
    else:
        _check_backend(backend, logits.device)
    if workspace is not None:
        _check_workspace(workspace, logits, backend)

    if layout.is_empty:
        if remaining is not None:
            with torch.inference_mode():
                remaining.zero_()
    elif backend == "triton":
        _gpu().post_process(
            logits,
            input_ids,
            mask_id,
            threshold,
            prompt_mask,
            exclude_ids,
            outputs,
            workspace,
            layout.plans,
            edit_threshold,
        )
    else:
        _post_process_eager(
            logits, input_ids, mask_id, threshold, edit_threshold, prompt_mask, exclude_ids, outputs, backend
        )


# The specification under the same contract: for tests, and as the denominator of every speedup.
dllm_post_process_reference = partial(dllm_post_process_fused, backend="reference")


def workspace_size(logits: Tensor) -> int:
    """Elements of an int32 workspace that serves `dllm_post_process_fused` for logits of this shape and dtype.

    It also serves every smaller batch or block of the same vocabulary and dtype, and any mixture of them.
    """
    elements: int = _gpu().workspace_size(logits)
    return elements


def warmup(
    vocab: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    block_length: int = 32,
    ids_dtype: torch.dtype = torch.int64,
    threshold_per_block: bool = False,
    prompt_mask: bool = False,
    exclude_ids: int = 0,
    edits: bool = False,
    outputs: Sequence[str] = (),
    device: torch.device | str | int | None = None,
) -> None:
    """Compile what calls of this kind need, so that nothing is compiled while serving.

    One call serves every batch size, mask id, threshold, and stride that keeps the rows' alignment; the arguments say
    which options of `dllm_post_process_fused` will be present (`exclude_ids`: how many; `edits`: an `edit_threshold`;
    `outputs`: the names of those that will be given). Returns when the kernel is loaded on `device` (default: the
    current CUDA device).
    """
    unknown = sorted(set(outputs) - set(OUTPUT_NAMES))
    if unknown:
        raise ValueError(f"outputs: expected names among {', '.join(OUTPUT_NAMES)}; got {', '.join(unknown)}")
    if not 0 <= as_int("exclude_ids", exclude_ids) <= MAX_EXCLUDE_IDS:
        raise ValueError(f"exclude_ids: expected how many there will be, 0 to {MAX_EXCLUDE_IDS}; got {exclude_ids}")
    device = torch.device("cuda" if device is None else device)
    if device.type != "cuda" or not torch.cuda.is_available():
        present = f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no CUDA device"
        raise RuntimeError(f"device: expected a CUDA device to compile for; got {device}; this machine has {present}")
    block = torch.zeros(1, block_length, vocab, dtype=dtype, device=device)
    # Batches that fill the GPU by themselves have a kernel of their own; block after block may be the same memory.
    for batch in (1, -(-_gpu().programs_at_once(device) // block_length)):
        ids = torch.zeros(batch, block_length, dtype=ids_dtype, device=device)
        buffers = {
            "confidence": torch.empty_like(ids, dtype=torch.float32),
            "tokens": torch.empty_like(ids),
            "accepted": torch.empty_like(ids, dtype=torch.bool),
            "remaining": torch.empty(batch, dtype=torch.int32, device=device),
        }
        dllm_post_process_fused(
            block.expand(batch, -1, -1),
            ids,
            mask_id=1,
            threshold=torch.zeros(batch, device=device) if threshold_per_block else 0.0,
            prompt_mask=torch.zeros_like(ids, dtype=torch.bool) if prompt_mask else None,
            exclude_ids=range(exclude_ids),
            edit_threshold=0.0 if edits else None,
            backend="triton",
            **{name: buffers[name] for name in outputs},
        )
    torch.cuda.synchronize(device)


def _post_process_eager(
    logits: Tensor,
    input_ids: Tensor,
    mask_id: int,
    threshold: float | Tensor,
    edit_threshold: float | None,
    prompt_mask: Tensor | None,
    exclude_ids: Sequence[int],
    outputs: Outputs,
    backend: str,
) -> None:
    """The `reference` and `cpu` backends: they differ in how a row's statistics are found."""
    if logits.dim() == 2:
        logits, input_ids = logits.unsqueeze(0), input_ids.unsqueeze(0)
        prompt_mask = None if prompt_mask is None else prompt_mask.unsqueeze(0)
        confidence, tokens, accepted = (None if out is None else out.unsqueeze(0) for out in outputs[:3])
        outputs = (confidence, tokens, accepted, outputs[3])
    with torch.inference_mode():  # without it, tensors that were made under it could not be updated
        masked = input_ids == mask_id
        if prompt_mask is not None:
            masked &= ~prompt_mask
        is_open = masked
        if edit_threshold is not None:
            is_open = torch.ones_like(masked) if prompt_mask is None else ~prompt_mask
        if backend == "cpu" and cpu.is_faster(logits):
            statistics = cpu.row_statistics(logits, is_open, exclude_ids)
        else:
            statistics = reference.row_statistics(logits, exclude_ids)
        reference.commit(statistics, masked, is_open, input_ids, mask_id, threshold, edit_threshold, *outputs)


@cache
def _gpu() -> ModuleType:
    """`dllm_kernels.gpu`, imported on first use, because it loads Triton."""
    try:
        from dllm_kernels import gpu
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "triton":
            raise
        raise RuntimeError(
            "backend: 'triton' needs Triton, which is not installed; install triton, or pass backend='reference'"
        ) from error
    return gpu


def _check_backend(backend: str, device: torch.device) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}; got {backend!r}")
    if backend == "cpu" and device.type != "cpu":
        raise ValueError(f"backend: 'cpu' takes tensors on the CPU; logits are on {device}")
    if backend == "triton" and device.type != "cuda" and not _gpu().INTERPRETED.value:
        machine = "" if torch.cuda.is_available() else ", and this machine has no CUDA device"
        raise ValueError(
            f"backend: 'triton' takes CUDA tensors, or runs under Triton's interpreter (TRITON_INTERPRET=1); "
            f"logits are on {device}{machine}"
        )


def _check_workspace(workspace: Tensor, logits: Tensor, backend: str) -> None:
    if not isinstance(workspace, Tensor):
        raise TypeError(f"workspace: expected a tensor; got {type(workspace).__name__}")
    check_tensor("workspace", workspace, torch.int32, (workspace.numel(),), logits.device, contiguous=True)
    if backend == "triton" and workspace.numel() < workspace_size(logits):
        raise ValueError(
            f"workspace: expected at least {workspace_size(logits)} elements for logits of shape "
            f"{tuple(logits.shape)}; got {workspace.numel()}"
        )
    if workspace.data_ptr() % 8:
        raise ValueError(f"workspace: expected to start on 8 bytes; it starts at {workspace.data_ptr():#x}")


@torch.library.custom_op(
    "dllm_kernels::post_process",
    mutates_args=("input_ids", "confidence", "tokens", "accepted", "remaining", "workspace"),
)
def _post_process_op(
    logits: Tensor,
    input_ids: Tensor,
    mask_id: int,
    threshold: float,
    threshold_per_block: Tensor | None,
    prompt_mask: Tensor | None,
    exclude_ids: Sequence[int],
    edit_threshold: float | None,
    confidence: Tensor | None,
    tokens: Tensor | None,
    accepted: Tensor | None,
    remaining: Tensor | None,
    workspace: Tensor | None,
    backend: str,
) -> None:
    """The operation as `torch.compile` sees it: one opaque call. Eager calls do not pay for it."""
    dllm_post_process_fused(
        logits,
        input_ids,
        mask_id,
        threshold if threshold_per_block is None else threshold_per_block,
        prompt_mask=prompt_mask,
        exclude_ids=exclude_ids,
        edit_threshold=edit_threshold,
        confidence=confidence,
        tokens=tokens,
        accepted=accepted,
        remaining=remaining,
        workspace=workspace,
        backend=backend,
    )


@_post_process_op.register_fake
def _(*_arguments: object) -> None:
    """Nothing is returned, so there is no shape to derive."""
