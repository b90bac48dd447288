"""Muon for matrices, AdamW for the rest, stepped as one.

Muon (Jordan et al. 2024) replaces the momentum of a matrix by the nearest semi-orthogonal matrix,
found with five Newton–Schulz steps. torch.optim.Muon runs these in bfloat16, which is slow on a
CPU without bf16 units, and one matrix at a time; here matrices of one shape go through together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """The semi-orthogonal polar factor of each matrix of g[batch, row, col], approximately."""
    a, b, c = _COEFFICIENTS
    x = g / (g.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; the step of a matrix is lr·√max(1, rows/cols).

    Args:
        params: matrices only.
        lr: learning rate.
        momentum: Nesterov momentum.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every matrix from its gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for (rows, cols), members in by_shape.items():
                updates = []
                for p in members:
                    if p.grad is None:
                        raise RuntimeError("step before backward")
                    velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
                    velocity.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(torch.lerp(p.grad, velocity, group["momentum"]))
                scale = group["lr"] * max(1.0, rows / cols) ** 0.5
                for p, update in zip(members, orthogonalise(torch.stack(updates)), strict=True):
                    p.add_(update, alpha=-scale)


def build_optimisers(model: nn.Module, matrix_lr: float, other_lr: float) -> tuple[Muon, torch.optim.AdamW]:
    """Muon over the matrices inside blocks, AdamW over everything else."""
    inside = [p for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2]
    chosen = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return Muon(inside, matrix_lr), torch.optim.AdamW(rest, other_lr, betas=(0.9, 0.98), weight_decay=0.0)
