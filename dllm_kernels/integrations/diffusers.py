"""diffusers' `BlockRefinementScheduler` with the fused step, for `LLaDA2Pipeline`.

    pipe.scheduler = FusedBlockRefinementScheduler.from_config(pipe.scheduler.config)

One pass over the logits, and no synchronisation in a step; the scheduler that diffusers ships waits for the device
several times for every sequence of the batch. What the pipeline itself waits for stays. docs/engines.md has more.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dllm_kernels import dllm_post_process_fused
from dllm_kernels.integrations import require, row_statistics, unmask

TESTED = ("0.42.1",)
require("diffusers", TESTED)  # before anything of it is imported, which another version may not have

from diffusers.configuration_utils import register_to_config  # noqa: E402
from diffusers.schedulers.scheduling_block_refinement import (  # noqa: E402
    BlockRefinementScheduler,
    BlockRefinementSchedulerOutput,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: E402, F401 - by it a saved pipeline is loaded


class FusedBlockRefinementScheduler(BlockRefinementScheduler):
    """`BlockRefinementScheduler`, fused: the same arguments, outputs and tokens.

    Greedy decoding with a mask token is fused. Sampling (a temperature above zero) draws tokens by the shipped
    scheduler's code, from all but the mask, and commits them without its synchronisations; the mode without a mask
    token is the shipped one.

    Args:
        compatible: follow the shipped scheduler in its defects too: the mask token may be chosen or drawn, and rows
            that hold NaN are committed first. The other arguments are the shipped scheduler's.
    """

    @register_to_config
    def __init__(
        self,
        block_length: int = 32,
        num_inference_steps: int = 32,
        threshold: float = 0.95,
        editing_threshold: float | None = None,
        minimal_topk: int = 1,
        compatible: bool = False,
    ) -> None:
        super().__init__(
            block_length=block_length,
            num_inference_steps=num_inference_steps,
            threshold=threshold,
            editing_threshold=editing_threshold,
            minimal_topk=minimal_topk,
        )
        self._counts: list[int] | None = None

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None, block_length: int | None = None
    ) -> None:
        super().set_timesteps(num_inference_steps, device, block_length)
        if block_length is None:
            block_length = self.config.block_length
        # The shipped scheduler's are on the device, from where each step fetches one.
        self._counts = self.get_num_transfer_tokens(block_length, num_inference_steps).tolist()

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        mask_token_id: int | None = None,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        sampling_method: str = "auto",
        threshold: float | None = None,
        editing_threshold: float | None = None,
        minimal_topk: int | None = None,
        prompt_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Commit and edit tokens of a block; see `BlockRefinementScheduler.step`."""
        if mask_token_id is None:
            return super().step(
                model_output,
                timestep,
                sample,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                sampling_method=sampling_method,
                threshold=threshold,
                editing_threshold=editing_threshold,
                minimal_topk=minimal_topk,
                prompt_mask=prompt_mask,
                generator=generator,
                return_dict=return_dict,
            )
        threshold = float(self.config.threshold) if threshold is None else threshold
        if editing_threshold is None:
            editing_threshold = self.config.editing_threshold
        edits_above = math.inf if editing_threshold is None else float(editing_threshold)
        if not edits_above > 0.0:
            edits_above = math.inf
        compatible = self.config.compatible
        count = None if self._counts is None else self._counts[min(int(timestep), len(self._counts) - 1)]
        is_sampled = sampling_method == "multinomial" or (sampling_method == "auto" and temperature != 0.0)
        is_greedy = temperature == 0.0 or (temperature > 0.0 and not is_sampled)
        is_number = type(threshold) in (int, float) and threshold == threshold
        if is_greedy and count == 1 and is_number and not compatible:
            found = _commit_one(model_output, sample, mask_token_id, threshold, edits_above, prompt_mask)
            return BlockRefinementSchedulerOutput(*found) if return_dict else found
        if is_greedy:
            excluded = () if compatible else (mask_token_id,)
            confidence, tokens = row_statistics(model_output, exclude_ids=excluded)
        else:
            tokens, confidence = self._sample_from_logits(
                model_output if compatible else _without_token(model_output, mask_token_id),
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                generator=generator,
                use_multinomial=is_sampled,
            )

        masked = sample == mask_token_id
        committed = torch.zeros_like(masked)
        if count is not None:
            committed = unmask(confidence, masked, threshold, count, nan_first=compatible)
        edited = torch.zeros_like(masked)
        if edits_above < math.inf:
            edited = ~masked & (confidence > edits_above) & (tokens != sample)
            if prompt_mask is not None:
                edited &= ~prompt_mask
        new_sample = torch.where(committed | edited, tokens, sample)

        found = (new_sample, committed, edited, tokens, confidence, model_output)
        return BlockRefinementSchedulerOutput(*found) if return_dict else found

    @staticmethod
    def check_eos_finished(
        cur_x: Tensor,
        sampled_tokens: Tensor,
        final_transfer: Tensor,
        finished: Tensor,
        eos_token_id: int,
        mask_token_id: int,
        prompt_length: int,
    ) -> Tensor:
        """Which sequences have just been finished, in place in `finished`: see `BlockRefinementScheduler`."""
        positions = torch.arange(cur_x.shape[1], device=cur_x.device)
        nowhere = cur_x.shape[1]
        first_end = torch.where(cur_x == eos_token_id, positions, nowhere).amin(dim=-1)
        is_mask = (cur_x == mask_token_id) & (positions >= prompt_length)
        first_mask = torch.where(is_mask, positions, nowhere).amin(dim=-1)
        came_now = ((sampled_tokens == eos_token_id) & final_transfer).any(dim=-1)
        finished |= came_now & (first_end >= prompt_length) & (first_end < nowhere) & (first_mask > first_end)
        return finished


def _commit_one(
    logits: Tensor,
    sample: Tensor,
    mask_id: int,
    threshold: float,
    edits_above: float,
    prompt_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What a step returns whose schedule asks for one token of each block: the operation itself."""
    shape, device = sample.shape, sample.device
    new_sample = torch.empty(shape, dtype=torch.int64, device=device).copy_(sample)
    tokens, accepted = torch.empty_like(new_sample), torch.empty_like(new_sample, dtype=torch.bool)
    confidence = torch.empty_like(new_sample, dtype=torch.float32)
    dllm_post_process_fused(
        logits,
        new_sample,
        mask_id,
        threshold,
        edit_threshold=edits_above,  # infinite where there are none: every position is read, and told of
        exclude_ids=(mask_id,),
        confidence=confidence,
        tokens=tokens,
        accepted=accepted,
    )
    if edits_above == math.inf:
        return new_sample, accepted, torch.zeros_like(accepted), tokens, confidence, logits
    committed = accepted & (sample == mask_id)
    edited = accepted ^ committed
    if prompt_mask is not None:  # of whose positions the scheduler tells too, and the operation would not
        edited &= ~prompt_mask
        new_sample = torch.where(committed | edited, tokens, sample)
    return new_sample, committed, edited, tokens, confidence, logits


def _without_token(logits: Tensor, token: int) -> Tensor:
    """Logits from which that token is not drawn: a copy, unless it lies outside the vocabulary."""
    if not 0 <= token < logits.shape[-1]:
        return logits
    others = logits.clone()
    others[..., token] = -math.inf
    return others
