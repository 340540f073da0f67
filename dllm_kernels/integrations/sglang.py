"""SGLang's decoding algorithms with the fused step: `--dllm-algorithm FusedLowConfidence` or `FusedJointThreshold`.

SGLang calls `register` in every process, through its plug-in entry point. The algorithms are SGLang's own, with their
configuration and states; only a step is done by the fused operation: one pass over the logits, ids updated in place,
and one synchronisation, the flags that `step` has to return. How to switch it on: docs/engines.md.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dllm_kernels import dllm_post_process_fused, warmup
from dllm_kernels.integrations import require, row_statistics, unmask

TESTED = ("0.5.23",)
require("sglang", TESTED)  # before anything of it is imported, which another version may not have

from sglang.srt.dllm import algorithm  # noqa: E402
from sglang.srt.dllm.algorithm.joint_threshold import JointThreshold  # noqa: E402
from sglang.srt.dllm.algorithm.low_confidence import LowConfidence  # noqa: E402

logger = logging.getLogger(__name__)
REPLACE = "DLLM_KERNELS_REPLACE_SHIPPED"  # environment variable: 1 puts these classes in the shipped ones' place


def register() -> None:
    """Add the algorithms to those that SGLang knows; if the environment variable `REPLACE` is 1, under the shipped
    names as well. Nothing is logged, because SGLang calls this before it sets its log up; an algorithm does when it is
    made.

    Raises:
        ValueError: the variable is neither 0 nor 1. The algorithms are known by their own names all the same.
    """
    fused_classes = (FusedLowConfidence, FusedJointThreshold)
    for fused in fused_classes:
        algorithm.algo_name_to_cls[fused.__name__] = fused
    replace = os.environ.get(REPLACE) or "0"
    if replace not in ("0", "1"):
        raise ValueError(f"{REPLACE}: expected 0 or 1; got {replace!r}")
    if replace == "1":
        for fused in fused_classes:
            algorithm.algo_name_to_cls[fused.__name__.removeprefix("Fused")] = fused


class FusedLowConfidence(LowConfidence):
    """`LowConfidence`, fused. `compatible: true` in the algorithm's configuration follows it in its defects too."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        _check_numbers(threshold=self.threshold)
        self.compatible = _is_compatible(config)
        self._flags = _HostMemory(torch.bool)
        self._is_compiled = False
        _tell(self)

    def step(self, forward_batch: Any, full_logits: Tensor, states: list[Any]) -> list[bool]:
        logits, input_ids = _blocks(self, forward_batch, full_logits)
        prompt_mask = forward_batch.dllm_prompt_mask
        accepted = self._flags.of(tuple(input_ids.shape))
        if self.compatible:
            masked = input_ids == self.mask_id
            if prompt_mask is not None:
                masked &= ~prompt_mask
            confidence, candidates = row_statistics(logits, masked)
            unmasked = unmask(confidence, masked, self.threshold, 1, nan_first=True)
            input_ids.copy_(torch.where(unmasked, candidates, input_ids))
            accepted.copy_(unmasked, non_blocking=True)
        else:
            if not self._is_compiled:
                self._is_compiled = _compile(logits, input_ids, self.mask_id, edits=False)
            dllm_post_process_fused(
                logits,
                input_ids,
                self.mask_id,
                self.threshold,
                prompt_mask=prompt_mask,
                exclude_ids=(self.mask_id,),
                accepted=accepted,
            )
        _wait(input_ids.device)
        # A block with masks loses one in every step, so where nothing was accepted there was none.
        return [not changed for changed in accepted.any(dim=-1).tolist()]


class FusedJointThreshold(JointThreshold):
    """`JointThreshold`, fused. `compatible: true` in the algorithm's configuration follows it in its defects too.

    States are those that the shipped one keeps per request, whatever `vectorized_decoding` says.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        _check_numbers(
            threshold=self.threshold,
            edit_threshold=self.edit_threshold,
            max_post_edit_steps=self.max_post_edit_steps,
            penalty_lambda=self.penalty_lambda,
        )
        if not self.fdfo and not isinstance(self.max_post_edit_steps, int):  # SGLang's loop counts up to it
            raise TypeError(
                "max_post_edit_steps: expected a whole number in the algorithm's configuration with --no-dllm-fdfo; "
                f"got {self.max_post_edit_steps!r}"
            )
        self.compatible = _is_compatible(config)
        self.vectorized_decoding = self._use_shared_state = False
        self._flags = _HostMemory(torch.bool)
        self._ids = _HostMemory(torch.int64)
        self._is_compiled = False
        _tell(self)

    def step(self, forward_batch: Any, full_logits: Tensor, states: list[Any]) -> list[bool]:
        if not states:
            return []
        logits, input_ids = _blocks(self, forward_batch, full_logits)
        if self.penalty_lambda > 0:
            _penalise_repetition(logits, input_ids, self.penalty_lambda)
        prompt_mask = _stacked([state["prompt_mask"] for state in states])
        closed = self._closed(prompt_mask, input_ids, states)
        if self.compatible:
            unmasked, changed = self._update_compatibly(logits, input_ids, prompt_mask, closed)
        else:
            unmasked, changed = self._update(logits, input_ids, closed)
        for state, has_unmasked, has_changed in zip(states, unmasked, changed, strict=True):
            if state["finished"]:
                continue
            # A block with masks loses one in every step, so where none was lost there was none.
            state["post_edit_steps"] += not has_unmasked
            is_spent = not has_unmasked and state["post_edit_steps"] > self.max_post_edit_steps
            state["finished"] = not has_changed or is_spent
        return [state["finished"] for state in states]

    def _closed(self, prompt_mask: Tensor, input_ids: Tensor, states: list[dict[str, Any]]) -> Tensor:
        """Positions (B, L) that may not change: prompts, finished blocks, and blocks without masks that have had their
        edits.
        """
        finished = [state["finished"] for state in states]
        spent = [state["post_edit_steps"] + 1 > self.max_post_edit_steps for state in states]
        if not any(finished) and not any(spent):
            return prompt_mask
        is_finished, is_spent = _on_device([finished, spent], input_ids.device)
        rests: Tensor = is_finished | (is_spent & ~self._masked(input_ids, prompt_mask).any(dim=-1))
        return prompt_mask | rests.unsqueeze(-1)

    def _masked(self, input_ids: Tensor, prompt_mask: Tensor) -> Tensor:
        masked: Tensor = (input_ids == self.mask_id) & ~prompt_mask
        return masked

    def _update(self, logits: Tensor, input_ids: Tensor, closed: Tensor) -> tuple[list[bool], list[bool]]:
        """Unmask and edit, in place; of each block, whether a mask was replaced, and whether anything has changed."""
        if not self._is_compiled:
            self._is_compiled = _compile(logits, input_ids, self.mask_id, edits=True)
        flags = self._flags.of((2, *input_ids.shape))
        unmasked, changed = flags
        before = self._ids.of(tuple(input_ids.shape))
        before.copy_(input_ids, non_blocking=True)
        dllm_post_process_fused(
            logits,
            input_ids,
            self.mask_id,
            self.threshold,
            prompt_mask=closed,
            exclude_ids=(self.mask_id,),
            edit_threshold=self.edit_threshold,
            accepted=changed,
        )
        _wait(input_ids.device)
        torch.eq(before, self.mask_id, out=unmasked)
        unmasked.logical_and_(changed)
        has_unmasked, has_changed = flags.any(dim=-1).tolist()
        return has_unmasked, has_changed

    def _update_compatibly(
        self, logits: Tensor, input_ids: Tensor, prompt_mask: Tensor, closed: Tensor
    ) -> tuple[list[bool], list[bool]]:
        """As `_update`, by the shipped rules, to which a mask that is chosen for itself is replaced too."""
        masked = self._masked(input_ids, prompt_mask) & ~closed
        confidence, candidates = row_statistics(logits, ~closed)
        edited = ~masked & ~closed & (confidence > self.edit_threshold) & (candidates != input_ids)
        unmasked = unmask(confidence, masked, self.threshold, 1, nan_first=True)
        changed = unmasked | edited
        input_ids.copy_(torch.where(changed, candidates, input_ids))
        flags = self._flags.of((2, *input_ids.shape))
        flags.copy_(torch.stack((unmasked, changed)), non_blocking=True)
        _wait(input_ids.device)
        has_unmasked, has_changed = flags.any(dim=-1).tolist()
        return has_unmasked, has_changed


class _HostMemory:
    """Memory of one dtype that the GPU writes itself, kept from step to step.

    It is read, used again and given back only after the wait of the step that had it written: of writes by a kernel
    PyTorch knows nothing.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._memory: Tensor | None = None
        self._views: dict[tuple[int, ...], Tensor] = {}  # slicing anew takes as long as the launch

    def of(self, shape: tuple[int, ...]) -> Tensor:
        view = self._views.get(shape)
        return self._new_view(shape) if view is None else view

    def _new_view(self, shape: tuple[int, ...]) -> Tensor:
        elements = math.prod(shape)
        with torch.inference_mode(False):  # what is made under it can be written under it alone
            if self._memory is None or self._memory.numel() < elements:
                self._views.clear()
                self._memory = torch.empty(elements, dtype=self._dtype, pin_memory=torch.cuda.is_available())
            self._views[shape] = self._memory[:elements].view(shape)
        return self._views[shape]


def _compile(logits: Tensor, input_ids: Tensor, mask_id: int, *, edits: bool) -> bool:
    """What any later step may need, at the first one, which SGLang makes before it serves: kernels for few requests and
    for many, and those of `LowConfidence` for prompts and none. True when that is done."""
    if logits.device.type == "cuda":
        for prompt_mask in (True,) if edits else (True, False):
            warmup(
                logits.shape[-1],
                dtype=logits.dtype,
                block_length=logits.shape[1],
                ids_dtype=input_ids.dtype,
                prompt_mask=prompt_mask,
                exclude_ids=int(0 <= mask_id < logits.shape[-1]),
                edits=edits,
                outputs=("accepted",),
                device=logits.device,
            )
    return True


def _wait(device: torch.device) -> None:
    """For the flags: the one synchronisation of a step."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _tell(decoder: Any) -> None:
    """Say in SGLang's log which class decodes: the command line may have asked for it by the shipped name."""
    logger.info("dllm-kernels' %s decodes", type(decoder).__name__)


def _is_compatible(config: Any) -> bool:
    compatible = config.algorithm_config.get("compatible", False)
    if not isinstance(compatible, bool):
        raise TypeError(f"compatible: expected true or false in the algorithm's configuration; got {compatible!r}")
    return compatible


def _check_numbers(**configured: object) -> None:
    """When the server starts: at the first request, what cannot be compared with would end SGLang's scheduler."""
    for key, value in configured.items():
        if not _is_number(value):
            raise TypeError(f"{key}: expected a number in the algorithm's configuration; got {value!r}")


def _is_number(value: object) -> bool:
    """That floats can be compared with: no NaN, and no integer beyond all of them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max or abs(value) == math.inf


def _blocks(owner: Any, forward_batch: Any, full_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, L, V) and ids (B, L) as views of what SGLang holds flat."""
    shape = (forward_batch.batch_size, owner.block_size)
    return full_logits.view(*shape, full_logits.shape[-1]), forward_batch.input_ids.view(shape)


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """(B, L) of B masks (L,); one alone is not copied."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


def _penalise_repetition(logits: Tensor, input_ids: Tensor, penalty: float) -> None:
    """Take `penalty` from the logit that repeats the token before, in place, as `JointThreshold` does."""
    before = input_ids[:, :-1].unsqueeze(-1)
    logits[:, 1:].scatter_add_(2, before, torch.full_like(before, -penalty, dtype=logits.dtype))


def _on_device(flags: Sequence[Sequence[bool]], device: torch.device) -> Tensor:
    """Without waiting for the device, which a copy from memory that is not pinned would."""
    on_host = torch.tensor(flags, pin_memory=device.type == "cuda")
    return on_host.to(device, non_blocking=True)
