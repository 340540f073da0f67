"""Random steps beside an engine's own: how many of which vocabularies, and where float32 cannot decide what they do."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from tests.oracle import TOLERANCE

STEPS = int(os.environ.get("ENGINE_STEPS", "10000"))
# Vocabularies and steps. The small ones bring many cases; in those that engines serve, the sum of a row is long enough
# for the engines' own softmax to err by more than TOLERANCE.
SIZES = {
    "small": ((8, 33, 70), STEPS),
    "30522": ((30522,), math.ceil(STEPS / 50)),
    "157184": ((157184,), math.ceil(STEPS / 1000)),
}


class Confidence:
    """The probability of the best token of every position (B, L): by the float32 softmax of the engines, and exact."""

    def __init__(self, logits: Tensor) -> None:
        self.engine = torch.softmax(logits.float(), dim=-1).amax(dim=-1).double()
        self.exact = torch.softmax(logits.double(), dim=-1).amax(dim=-1)

    def is_near(self, threshold: float) -> bool:
        """Whether for any position the threshold lies between the two, or within TOLERANCE of them."""
        low, high = torch.minimum(self.engine, self.exact), torch.maximum(self.engine, self.exact)
        return bool(((low - TOLERANCE <= threshold) & (threshold <= high + TOLERANCE)).any())

    def is_above(self) -> Tensor:
        """(B, L, L): whether a position's is above another's by more than TOLERANCE, in both. NaN is above numbers."""
        engine, exact = (p.nan_to_num(nan=2.0) for p in (self.engine, self.exact))
        gaps = (p.unsqueeze(-1) - p.unsqueeze(-2) for p in (engine, exact))
        return torch.minimum(*gaps) > TOLERANCE
