"""The step by different hands, each under the operation's contract as a `BatchDecoder` calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dllm_kernels
from benchmarks import engines

TOLERANCE = 1e-6  # around the threshold, and between two confidences, within which either outcome is right


@dataclass(frozen=True)
class Mode:
    """One way to do the step."""

    name: str
    post_process: Callable[..., None]
    waits: bool  # for the GPU: no graph can hold it
    source: str  # for the reader


def modes() -> dict[str, Mode]:
    """Reference, SGLang's and fused, in this order; SGLang's is its released file, or else its formula."""
    try:
        engines.load_sglang()
        shipped = Mode("sglang", sglang_step, True, f"LowConfidence.step of the wheel of SGLang {engines.SGLANG}")
    except engines.NotFetchedError as error:
        shipped = Mode("sglang", low_confidence_formula, True, f"the formula of SGLang's LowConfidence; {error}")
    found = (
        Mode("reference", reference_step, False, "dllm_post_process_reference, eager PyTorch"),
        shipped,
        Mode("fused", fused_step, False, "dllm_post_process_fused"),
    )
    return {mode.name: mode for mode in found}


def reference_step(*arguments: Any, exclude_ids: Sequence[int], **options: Any) -> None:
    """The reference as an engine would call it: no id is excluded, for which the reference copies all logits."""
    dllm_kernels.dllm_post_process_reference(*arguments, **options)


def fused_step(*arguments: Any, exclude_ids: Sequence[int], **options: Any) -> None:
    """The fused operation, called in the same way."""
    dllm_kernels.dllm_post_process_fused(*arguments, **options)


def sglang_step(
    logits: Tensor,
    input_ids: Tensor,
    mask_id: int,
    threshold: float,
    *,
    prompt_mask: Tensor,
    exclude_ids: Sequence[int],
    remaining: Tensor,
) -> None:
    """SGLang's step on logits in float32, as its logits processor passes them. It excludes no ids."""
    if input_ids.numel():
        engines.sglang_low_confidence(logits.float(), input_ids, mask_id, threshold, prompt_mask)
    remaining.copy_(((input_ids == mask_id) & ~prompt_mask).sum(dim=-1))


def low_confidence_formula(
    logits: Tensor,
    input_ids: Tensor,
    mask_id: int,
    threshold: float,
    *,
    prompt_mask: Tensor,
    exclude_ids: Sequence[int],
    remaining: Tensor,
) -> None:
    """What SGLang's step computes, with the wait for the GPU that it ends in. It excludes no ids."""
    masked = (input_ids == mask_id) & ~prompt_mask
    (~masked.any(dim=-1)).tolist()  # which blocks were done before
    if input_ids.numel():
        tokens = logits.argmax(dim=-1)
        p = torch.softmax(logits.float(), dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        confidence = p.masked_fill(~masked, -torch.inf)
        accepted = confidence > threshold
        best = torch.zeros_like(accepted).scatter_(1, confidence.argmax(dim=-1, keepdim=True), True)
        accepted |= best & masked & ~accepted.any(dim=-1, keepdim=True)
        input_ids.copy_(torch.where(accepted, tokens, input_ids))
    remaining.copy_(((input_ids == mask_id) & ~prompt_mask).sum(dim=-1))


class Agreement:
    """Does every step in all modes on the same logits and ids, counts where they differ, and goes on as the first. What
    a mode says is left must be what it leaves."""

    def __init__(self, chosen: Sequence[Mode]) -> None:
        self.chosen = chosen
        self.steps = self.positions = self.masked = self.accepted = self.undecidable = self.excused = 0
        self.differing = {mode.name: 0 for mode in chosen[1:]}

    def __call__(
        self,
        logits: Tensor,
        input_ids: Tensor,
        mask_id: int,
        threshold: float,
        *,
        prompt_mask: Tensor,
        exclude_ids: Sequence[int],
        remaining: Tensor,
    ) -> None:
        if not input_ids.numel():  # the decoder's check of its arguments
            return
        masked = (input_ids == mask_id) & ~prompt_mask
        confidence = torch.empty(input_ids.shape, dtype=torch.float32, device=input_ids.device)
        dllm_kernels.dllm_post_process_reference(
            logits, input_ids.clone(), mask_id, threshold, prompt_mask=prompt_mask, confidence=confidence
        )  # fmt: skip
        outcomes = {}
        for mode in self.chosen:
            ids, left = input_ids.clone(), remaining.clone()
            mode.post_process(
                logits, ids, mask_id, threshold, prompt_mask=prompt_mask, exclude_ids=exclude_ids, remaining=left
            )
            outcomes[mode.name] = (ids, left)
        ids, left = outcomes[self.chosen[0].name]
        either = undecidable(confidence, masked, threshold)
        for name in self.differing:
            its_ids, its_left = outcomes[name]
            other = its_ids != ids
            miscounted = its_left != ((its_ids == mask_id) & ~prompt_mask).sum(dim=-1)
            self.differing[name] += int((other & ~either).sum()) + int(miscounted.sum())
            self.excused += int((other & either).sum())
        self.steps += 1
        self.positions += masked.numel()
        self.masked += int(masked.sum())
        self.accepted += int((ids != input_ids).sum())
        self.undecidable += int(either.sum())
        input_ids.copy_(ids)
        remaining.copy_(left)


def undecidable(confidence: Tensor, masked: Tensor, threshold: float) -> Tensor:
    """Masked positions (B, L) whose acceptance hangs on the last bits of their confidences (B, L): at the threshold,
    and, where the fallback takes the best of a block, those as good as it."""
    near = masked & ((confidence - threshold).abs() <= TOLERANCE)
    sure = (masked & (confidence > threshold + TOLERANCE)).any(dim=-1, keepdim=True)
    best = confidence.masked_fill(~masked, -torch.inf).amax(dim=-1, keepdim=True)
    as_good = masked & (confidence >= best - TOLERANCE)
    return near | (as_good & ~sure & (as_good.sum(dim=-1, keepdim=True) > 1))
