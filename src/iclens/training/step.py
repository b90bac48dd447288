"""One TopK SAE and its training step.

Training sees u = s·(x − m): m the mean activation, s such that E‖u‖² = d_in. With W_dec rows of unit length,

    z = u·W_enc + b_enc            a = relu(z) at the k largest z, 0 elsewhere
    û = a·W_dec + b_dec            loss = mean over rows of ‖u − û‖² / d_in  +  c·AuxK

AuxK lets the `aux_k` largest dead latents explain the remaining error u − û (Gao et al. 2024, arXiv
2406.04093). `export` undoes m and s exactly in the weights: the saved SAE reads raw activations, has unit
decoder rows, and latents in raw activation units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from iclens.training.config import Optimisation


@dataclass(frozen=True)
class Scaling:
    """u = factor · (x − mean).

    Args:
        mean: [d_in].
        factor: scalar.
    """

    mean: Tensor
    factor: float

    @classmethod
    def of(cls, x: Tensor) -> Scaling:
        """The scaling for which rows x [row d_in] have mean 0 and mean squared length d_in."""
        mean = x.float().mean(dim=0)
        square = (x.float() - mean).square().sum(dim=1).mean()
        return cls(mean, float((x.shape[1] / square.clamp_min(1e-20)).sqrt()))

    def apply(self, x: Tensor) -> Tensor:
        """Scaled rows, [row d_in]."""
        return (x.float() - self.mean) * self.factor


@dataclass(frozen=True)
class Weights:
    """An SAE in sae_lens' layout: z = (x − b_dec)·W_enc + b_enc, x̂ = a·W_dec + b_dec."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor


class TopKStep:
    """An SAE in training.

    Args:
        scaling: of its site.
        d_sae: number of latents.
        k: active latents per row.
        settings: rates and losses.
        rows: activations that set the size of the first encoder, [row d_in].
        generator: draws the first weights, on the CPU.
    """

    def __init__(
        self,
        scaling: Scaling,
        d_sae: int,
        k: int,
        settings: Optimisation,
        rows: Tensor,
        generator: torch.Generator,
    ) -> None:
        self.scaling, self.k, self.settings = scaling, k, settings
        device, d_in = rows.device, rows.shape[1]
        noise = torch.randn(d_sae, d_in, generator=generator).to(device)
        self.W_dec = F.normalize(noise, dim=1).requires_grad_()
        self.W_enc = (
            self._encoder_scale(scaling.apply(rows[:4096])) * self.W_dec.detach().T
        ).requires_grad_()
        self.b_enc = torch.zeros(d_sae, device=device, requires_grad=True)
        self.b_dec = torch.zeros(d_in, device=device, requires_grad=True)
        self.idle = torch.zeros(d_sae, dtype=torch.int64, device=device)
        parameters = [self.W_enc, self.b_enc, self.W_dec, self.b_dec]
        self.optimiser = torch.optim.Adam(parameters, lr=settings.lr, betas=(0.9, 0.99), fused=True)

    @torch.no_grad()
    def _encoder_scale(self, u: Tensor) -> float:
        """c for which an encoder c·W_decᵀ reconstructs rows u [row d_in] best: ⟨u, û⟩ / ⟨û, û⟩ at c = 1."""
        top, index = (u @ self.W_dec.T).topk(self.k, dim=1, sorted=False)
        u_hat = F.embedding_bag(index, self.W_dec, per_sample_weights=top.relu(), mode="sum")
        return float((u * u_hat).sum() / u_hat.square().sum())

    @property
    def dead(self) -> Tensor:
        """Latents idle for `dead_after_tokens` tokens, [d_sae]."""
        return self.idle >= self.settings.dead_after_tokens

    def update(self, x: Tensor, rate: float) -> dict[str, float]:
        """One step on raw activations x [row d_in] at `rate` times the peak learning rate.

        Returns:
            fvu, l0, dead (fraction) and aux of this batch, before the step.
        """
        u = self.scaling.apply(x)
        z = u @ self.W_enc + self.b_enc
        top, index = z.topk(self.k, dim=1, sorted=False)
        value = top.relu()
        u_hat = F.embedding_bag(index, self.W_dec, per_sample_weights=value, mode="sum") + self.b_dec
        error_sq = (u - u_hat).square().sum(dim=1)
        loss = error_sq.mean() / u.shape[1]
        dead = self.dead
        aux = self._aux_loss(z, dead, (u - u_hat).detach())
        (loss + self.settings.aux_coefficient * aux).backward()
        self._step(rate)
        self._count(index, value.detach(), len(x))
        centred = (u - u.mean(dim=0)).square().sum().clamp_min(1e-20)
        return {
            "fvu": float(error_sq.detach().sum() / centred),
            "l0": float((value.detach() > 0).sum() / len(x)),
            "dead": float(dead.float().mean()),
            "aux": float(aux.detach()),
        }

    def _aux_loss(self, z: Tensor, dead: Tensor, error: Tensor) -> Tensor:
        """‖error − ê‖² / ‖error‖², ê the error as explained by the largest dead latents; 0 without any.

        Their z is used as it is: after a relu, a latent whose z is never positive would get no gradient.
        """
        n_dead = int(dead.sum())
        if not n_dead or not self.settings.aux_coefficient:
            return z.new_zeros(())
        names = dead.nonzero()[:, 0]
        top, place = z[:, names].topk(min(self.settings.aux_k, n_dead), dim=1, sorted=False)
        explained = F.embedding_bag(names[place], self.W_dec, per_sample_weights=top, mode="sum")
        return (explained - error).square().sum() / error.square().sum().clamp_min(1e-20)

    @torch.no_grad()
    def _step(self, rate: float) -> None:
        """Adam; the decoder's gradient along its own rows is dropped, and its rows are made unit again."""
        gradient = self.W_dec.grad
        if gradient is not None:
            gradient -= (gradient * self.W_dec).sum(dim=1, keepdim=True) * self.W_dec
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.W_dec.copy_(F.normalize(self.W_dec, dim=1))

    @torch.no_grad()
    def _count(self, index: Tensor, value: Tensor, n_rows: int) -> None:
        self.idle += n_rows
        self.idle[index[value > 0]] = 0

    @torch.no_grad()
    def export(self) -> Weights:
        """Weights for raw activations.

        z and a are divided by s: (x − b)·W_enc + b_enc/s with b = m + b_dec/s; the bias that sae_lens
        subtracts before encoding is added back through b_enc.
        """
        s = self.scaling.factor
        b_dec = self.scaling.mean + self.b_dec / s
        b_enc = self.b_enc / s + (b_dec - self.scaling.mean) @ self.W_enc
        return Weights(self.W_enc.detach().clone(), b_enc, self.W_dec.detach().clone(), b_dec)
