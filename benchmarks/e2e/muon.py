"""The optimizer Muon in float32 (Keller Jordan and others, "Muon: An optimizer for hidden layers in neural networks",
2024), for the training of the small model on processors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is made orthogonal, or nearly, before each step: here it takes a third of AdamW's steps.

    PyTorch's own is in bfloat16, which takes many times as long on processors that do not compute in it. A group's
    `parts` says how many matrices lie in each parameter, one below the other.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "parts": 1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                average = state.setdefault("average", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(average, group["momentum"])
                matrices = ahead.view(group["parts"], -1, weight.shape[1])
                update = orthogonal(matrices) * max(1, matrices.shape[1] / matrices.shape[2]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update.view_as(weight), alpha=-group["lr"])


def orthogonal(matrices: Tensor) -> Tensor:
    """Of matrices (..., M, N), the singular vectors with singular values of about 1, by five steps of a Newton-Schulz
    iteration with the published coefficients, which take small values up fast."""
    x: Tensor = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x
