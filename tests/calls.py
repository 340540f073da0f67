"""Calls of the operation as the tests make them: on every backend, with everything that may be poisoned poisoned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dllm_kernels import dllm_post_process_fused, workspace_size
from tests import oracle
from tests.conftest import HAS_GPU

DEVICE = "cuda" if HAS_GPU else "cpu"
# (backend, device): without a GPU, "triton" runs under its interpreter.
BACKENDS = [("reference", "cpu"), ("cpu", "cpu"), ("triton", DEVICE)] + ([("reference", "cuda")] if HAS_GPU else [])
ALL_OUTPUTS = ("confidence", "tokens", "accepted", "remaining")


@dataclass
class Case:
    """Arguments of one call, on the CPU: logits (B, L, V), input_ids (B, L)."""

    logits: Tensor
    input_ids: Tensor
    mask_id: int
    threshold: float | Tensor = 0.9
    prompt_mask: Tensor | None = None
    exclude_ids: Sequence[int] = field(default=())
    edit_threshold: float | None = None

    def thresholds(self) -> list[float]:
        if isinstance(self.threshold, Tensor):
            return self.threshold.tolist()
        return [self.threshold] * len(self.input_ids)


def make_case(
    batch: int,
    block_length: int,
    vocab: int,
    *,
    dtype: torch.dtype = torch.float32,
    ids_dtype: torch.dtype = torch.int64,
    masked_share: float = 0.6,
    mask_id: int | None = None,
    seed: int = 0,
    **options: object,
) -> Case:
    """Half of the rows unsure, half with one logit that stands out more or less."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, block_length, vocab, generator=generator) * 2
    peaks = torch.randint(vocab, (batch, block_length, 1), generator=generator)
    heights = torch.rand(batch, block_length, 1, generator=generator) * 30 - 10
    logits = logits.scatter_add(-1, peaks, heights.clamp(min=0))
    mask_id = vocab if mask_id is None else mask_id
    input_ids = torch.randint(vocab, (batch, block_length), generator=generator)
    input_ids = input_ids.masked_fill(input_ids == mask_id, (mask_id + 1) % max(vocab, 2))
    masked = torch.rand(batch, block_length, generator=generator) < masked_share
    input_ids = input_ids.masked_fill(masked, mask_id)
    return Case(logits.to(dtype), input_ids.to(ids_dtype), mask_id, **options)  # type: ignore[arg-type]


def poisoned_outputs(input_ids: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    outputs = {
        "confidence": torch.full(input_ids.shape, 7.0, device=input_ids.device),
        "tokens": torch.full_like(input_ids, -77),
        "accepted": torch.ones_like(input_ids, dtype=torch.bool),
        "remaining": torch.full((input_ids.shape[0],), -77, dtype=torch.int32, device=input_ids.device),
    }
    return {name: outputs[name] for name in names}


def call(case: Case, backend: str, device: str, outputs: Sequence[str] = ALL_OUTPUTS) -> oracle.Outcome:
    """Run `case` and return what it left behind."""
    logits, input_ids = case.logits.to(device), case.input_ids.to(device, copy=True)
    kept = logits.clone()
    given = poisoned_outputs(input_ids, outputs)
    workspace = None
    if backend == "triton" and input_ids.numel():
        workspace = torch.zeros(workspace_size(logits), dtype=torch.int32, device=device)
    threshold = case.threshold.to(device) if isinstance(case.threshold, Tensor) else case.threshold
    prompt_mask = None if case.prompt_mask is None else case.prompt_mask.to(device)
    dllm_post_process_fused(
        logits,
        input_ids,
        case.mask_id,
        threshold,
        prompt_mask=prompt_mask,
        exclude_ids=case.exclude_ids,
        edit_threshold=case.edit_threshold,
        workspace=workspace,
        backend=backend,
        **given,
    )
    torch.testing.assert_close(logits, kept, rtol=0, atol=0, equal_nan=True, msg="logits were written")
    if workspace is not None:
        assert not workspace.any(), "partial results were not cleared"
    return oracle.Outcome(input_ids.cpu(), **{name: tensor.cpu() for name, tensor in given.items()})


def check(case: Case, backend: str, device: str, outputs: Sequence[str] = ALL_OUTPUTS) -> oracle.Outcome:
    """Run `case` and hold it against the oracle."""
    outcome = call(case, backend, device, outputs)
    oracle.check(
        outcome, case.logits, case.input_ids, case.mask_id, case.thresholds(), case.prompt_mask, case.exclude_ids,
        case.edit_threshold,
    )  # fmt: skip
    return outcome
