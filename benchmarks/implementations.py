"""What the fused operation is held beside: the same step as others do it, where they are present.

Each is called as `(logits, input_ids, mask_id, threshold)` with logits (B, L, V), which it must not write, and ids
(B, L), which it updates in place.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_BY_BLOCK = "formula, block by block"

Step = Callable[..., Any]


@dataclass(frozen=True)
class Implementation:
    """A way to do the step."""

    name: str
    step: Step
    sha256: str | None = None  # of the file that a peer came from


def present() -> list[Implementation]:
    """Those that can be imported here, beside the package's own. To be asked anew for every shape: see
    `compiled_formula`."""
    found = [
        Implementation(BLOCK_BY_BLOCK, block_by_block),
        Implementation("formula, torch.compile", compiled_formula()),
    ]
    if importlib.util.find_spec("flashinfer"):
        found.append(Implementation("formula, FlashInfer's softmax", flashinfer_softmax))
    return found


def peer(place: str) -> Implementation:
    """The function named by `FILE.py:FUNCTION`; the file is run.

    Raises:
        ValueError: there is no such file, it is not Python's, or it has no such function.
    """
    file, _, function = place.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"--peer: expected FILE.py:FUNCTION of a file that exists; got {place!r}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}_{digest[:8]}", path)
    assert spec is not None  # for a name that ends in .py there is one
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and torch.compile look for it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a stranger's file: it may raise anything, or leave
        raise ValueError(f"--peer: {path.name} cannot be imported: {type(error).__name__}: {error}") from error
    step = getattr(module, function, None)
    if not callable(step):
        raise ValueError(f"--peer: expected {path.name} to have a function {function!r}; it has none")
    return Implementation(f"{path.stem}.{function}", step, digest)


def block_by_block(logits: Tensor, input_ids: Tensor, mask_id: int, threshold: float) -> None:
    """The formula that the project began with: a block at a time, the host waiting to learn whether one was accepted,
    as engines did it."""
    import torch

    for block, ids in zip(logits, input_ids, strict=True):
        masked = ids == mask_id
        candidates = block.argmax(dim=-1)
        probabilities = torch.softmax(block.float(), dim=-1)
        chance = probabilities.gather(-1, candidates.unsqueeze(-1)).squeeze(-1)
        confidence = torch.where(masked, chance, -torch.inf)
        accepted = confidence > threshold
        if accepted.sum().item() == 0 and masked.any().item():
            accepted[confidence.argmax()] = True
        ids.copy_(torch.where(accepted, candidates, ids))


def compiled_formula() -> Step:
    """The formula for all blocks at once, by torch.compile.

    Forgets what was compiled before: after eight shapes of one function PyTorch would compile no more.
    """
    import torch

    torch.compiler.reset()
    compiled: Any = torch.compile(_formula, dynamic=False, fullgraph=True)

    def step(logits: Tensor, input_ids: Tensor, mask_id: int, threshold: float) -> None:
        input_ids.copy_(compiled(logits, input_ids, mask_id, threshold))

    return step


def flashinfer_softmax(logits: Tensor, input_ids: Tensor, mask_id: int, threshold: float) -> None:
    """The formula for all blocks at once, with FlashInfer's softmax, which takes rows of float32
    (docs.flashinfer.ai, flashinfer.sampling.softmax)."""
    import flashinfer

    probabilities = flashinfer.sampling.softmax(logits.float().flatten(0, 1)).view(logits.shape)
    input_ids.copy_(_new_ids(probabilities, input_ids, mask_id, threshold))


def _formula(logits: Tensor, input_ids: Tensor, mask_id: int, threshold: float) -> Tensor:
    import torch

    return _new_ids(torch.softmax(logits.float(), dim=-1), input_ids, mask_id, threshold)


def _new_ids(probabilities: Tensor, input_ids: Tensor, mask_id: int, threshold: float) -> Tensor:
    import torch

    masked = input_ids == mask_id
    chance, candidates = probabilities.max(dim=-1)
    confidence = torch.where(masked, chance, -torch.inf)
    accepted = confidence > threshold
    fallback = torch.zeros_like(accepted).scatter_(-1, confidence.argmax(dim=-1, keepdim=True), True)
    accepted = torch.where(accepted.any(dim=-1, keepdim=True), accepted, fallback & masked)
    return torch.where(accepted, candidates, input_ids)
