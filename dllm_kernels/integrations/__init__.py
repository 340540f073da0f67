"""The fused step inside inference engines, one module per engine, imported by nothing but the engine or its user.

What an engine's own step does wrong is put right, unless the module's compatibility mode is asked for: a mask token
that comes out best would be committed, and the block never be finished; a row that holds NaN would be committed before
every sound one. Here the mask is never chosen, and NaN comes last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import metadata

import torch
from torch import Tensor

from dllm_kernels import dllm_post_process_fused


def require(distribution: str, tested: Sequence[str]) -> None:
    """See that an engine is installed, in a version that its module was tested with; of which build (0.5.23+cu130) does
    not matter.

    Raises:
        RuntimeError: it is not; the message names the version found and those tested.
    """
    expected = f"{distribution}: expected version {' or '.join(tested)}, which dllm-kernels was tested with"
    try:
        found = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise RuntimeError(f"{expected}; it is not installed: pip install {distribution}=={tested[-1]}") from None
    if found.partition("+")[0] not in tested:
        raise RuntimeError(f"{expected}; found {found}: pip install {distribution}=={tested[-1]}")


def row_statistics(
    logits: Tensor, is_read: Tensor | None = None, exclude_ids: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """Confidence (float32) and candidate (int64) of every position, or of those that are read: (B, L) each.

    Where a position is not read, its confidence is -inf and its candidate 0. For rules that are not the operation's.
    """
    ids = torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    confidence, candidates = torch.empty_like(ids, dtype=torch.float32), torch.empty_like(ids)
    dllm_post_process_fused(
        logits,
        ids,  # a scratch: everything that is read is "masked", and what is committed does not matter
        0,
        math.inf,
        prompt_mask=None if is_read is None else ~is_read,
        exclude_ids=exclude_ids,
        confidence=confidence,
        tokens=candidates,
    )
    return confidence, candidates


def unmask(confidence: Tensor, masked: Tensor, threshold: float, count: int, *, nan_first: bool) -> Tensor:
    """Which masked positions (B, L) of each block are committed: those above the threshold if they are `count` or more,
    else the `count` most confident, the lowest position on ties.

    A confidence of NaN is never above the threshold, and comes first or last in the other case.
    """
    passed = masked & (confidence > threshold)
    ranks = confidence if nan_first else confidence.nan_to_num(nan=-1.0)
    ranks = torch.where(masked, ranks, -math.inf)
    order = ranks.sort(dim=-1, descending=True, stable=True).indices  # NaN counts as largest
    most_confident = torch.zeros_like(masked).scatter_(-1, order[..., :count], True) & masked
    return torch.where(passed.sum(dim=-1, keepdim=True) >= count, passed, most_confident)
