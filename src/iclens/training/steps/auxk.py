"""AuxK: dead latents learn to explain what the live ones left over.

    ê = a·W_dec over the `aux_k` dead latents with the largest z in each row
    loss = Σ‖ê − e‖² / Σ‖e‖²,   e = u − û held fixed

Their z is used as it is: after a relu, a latent whose z is never positive would get no gradient. So the loss
reaches encoder and decoder of every chosen latent. Only columns of dead latents are computed, densely.
Source: Gao et al. 2024, arXiv 2406.04093, §2.4.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def auxiliary(
    u: Tensor,
    error: Tensor,
    weights: Mapping[str, Tensor],
    aux_k: int,
    chunk: int | None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The auxiliary loss and its gradients.

    Args:
        u: what the encoder reads, [row d_in].
        error: what the live latents left, [row d_out].
        weights: of the dead latents alone: encoder [dead d_in], b_enc [dead], decoder [dead d_out].
        aux_k: dead latents that take part in each row.
        chunk: rows whose pre-activations are held at a time.
        dtype: of the products; that of u by default. Sums over chunks keep the precision of u.

    Returns:
        the loss, and gradients by the names of `weights`.
    """
    dtype = dtype or u.dtype
    encoder, bias, decoder = (weights[name].to(dtype) for name in ("encoder", "b_enc", "decoder"))
    whole = error.square().sum().clamp_min(1e-20)
    loss, gradients = u.new_zeros(()), {name: torch.zeros_like(w) for name, w in weights.items()}
    size = chunk or len(u)
    for rows, left in zip(u.split(size), error.split(size), strict=True):
        some = rows.to(dtype)
        z = torch.addmm(bias, some, encoder.T)
        chosen = _chosen(z, aux_k)
        a = z if chosen is None else z * chosen
        over = (a @ decoder).to(u.dtype) - left
        loss += over.square().sum() / whole
        d_over = (over * (2 / whole)).to(dtype)
        d_z = d_over @ decoder.T
        if chosen is not None:
            d_z *= chosen
        gradients["decoder"] += a.T @ d_over
        gradients["encoder"] += d_z.T @ some
        gradients["b_enc"] += d_z.sum(dim=0)
    return loss, gradients


def _chosen(z: Tensor, k: int) -> Tensor | None:
    """1 at the k largest of each row, 0 elsewhere, [row dead]; None where all are chosen."""
    if k >= z.shape[1]:
        return None
    return torch.zeros_like(z).scatter_(1, z.topk(k, dim=1, sorted=False).indices, 1.0)
