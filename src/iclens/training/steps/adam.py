"""Adam on gradients that were computed by hand.

    m ← β₁m + (1−β₁)g      v ← β₂v + (1−β₂)g²      p ← p − lr · m̂ / (√v̂ + ε),   m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ)

torch's own fused kernel does the arithmetic, so that every step equals `torch.optim.Adam`'s, moments of idle
latents included. Moments may be stored as bfloat16: they are widened, stepped and rounded block by block.
With β₂ = 0.99 a moment changes by more than bfloat16's rounding per step, so that it can still decay.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam

BETAS = (0.9, 0.99)
EPSILON = 1e-8
_BLOCK = 1 << 22
"""Parameters whose moments are widened at a time."""


class Adam:
    """Parameters with their moments.

    Args:
        parameters: by name, contiguous; changed in place.
        moment_dtype: in which the moments are stored.
        betas: β₁ and β₂.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        moment_dtype: torch.dtype,
        betas: tuple[float, float] = BETAS,
    ) -> None:
        self.parameters, self.betas, self.steps = dict(parameters), betas, 0
        stored = {
            name: p.dtype if moment_dtype == torch.float32 else moment_dtype for name, p in parameters.items()
        }
        self.moments = {
            f"{moment}.{name}": torch.zeros_like(p, dtype=stored[name])
            for name, p in self.parameters.items()
            for moment in ("exp_avg", "exp_avg_sq")
        }

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], lr: float) -> None:
        """One step of every parameter that has a gradient, at learning rate `lr`.

        `steps` counts it from its first change on, so that it says whether anything was changed.
        """
        self.steps += 1
        for name, gradient in gradients.items():
            p = self.parameters[name]
            m, v = (self.moments[f"{moment}.{name}"] for moment in ("exp_avg", "exp_avg_sq"))
            if m.dtype == p.dtype:
                self._fused(p, gradient, m, v, lr)
                continue
            flat = (x.view(-1).split(_BLOCK) for x in (p, gradient.contiguous(), m, v))
            for some_p, some_g, some_m, some_v in zip(*flat, strict=True):
                wide_m, wide_v = some_m.to(p.dtype), some_v.to(p.dtype)
                self._fused(some_p, some_g, wide_m, wide_v, lr)
                some_m.copy_(wide_m)
                some_v.copy_(wide_v)

    def _fused(self, p: Tensor, gradient: Tensor, m: Tensor, v: Tensor, lr: float) -> None:
        steps = torch.full((), float(self.steps - 1), dtype=torch.float32, device=p.device)
        adam(
            [p], [gradient], [m], [v], [], [steps], fused=True, amsgrad=False, beta1=self.betas[0],
            beta2=self.betas[1], lr=lr, weight_decay=0.0, eps=EPSILON, maximize=False,
        )  # fmt: skip


@torch.no_grad()
def clip(gradients: Mapping[str, Tensor], longest: float) -> None:
    """Shorten the gradients in place, all by one factor, to a joint length of at most `longest`."""
    lengths = torch.stack([gradient.norm() for gradient in gradients.values()])
    factor = (longest / lengths.norm().clamp_min(1e-20)).clamp_max(1)
    for gradient in gradients.values():
        gradient.mul_(factor)
