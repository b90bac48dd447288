"""Losses of transcoders: a latent read at one site, written at another.

    a = relu(u·W_enc + b_enc), or JumpReLU of it         v̂ = a·W_dec + b_dec (+ W_skip·u)
    loss = mean over rows of ‖v − v̂‖²  +  sparsity

Sparsity is l1·Σ a·‖W_dec‖ for relu and l0·‖a‖₀ with a straight-through threshold for JumpReLU: the losses and
defaults of sae_lens' standard and JumpReLU SAEs, whose autograd functions are used. Sources: Dunefsky et al.
2024, arXiv 2406.11944; skip connection Paulo et al. 2025, arXiv 2501.18823; JumpReLU Rajamanoharan et al.
2024, arXiv 2407.14435.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from sae_lens import JumpReLUTranscoder, SkipTranscoder, Transcoder
from sae_lens.saes.jumprelu_sae import JumpReLU, Step
from torch import Tensor

_L1 = {"l1_coefficient": 1.0, "l1_warm_up_steps": 0}
_L0 = {
    "l0_coefficient": 1.0,
    "l0_warm_up_steps": 0,
    "jumprelu_init_threshold": 0.01,
    "jumprelu_bandwidth": 0.05,
}
OPTIONS: dict[str, dict[str, float]] = {"transcoder": _L1, "skip_transcoder": _L1, "jumprelu_transcoder": _L0}
"""Options of each architecture, with sae_lens' defaults for SAEs of that kind."""


def transcoder_loss(
    network: Transcoder, u: Tensor, v: Tensor, options: Mapping[str, float], steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss with a gradient, prediction v̂ [row d_out] and latents a [row d_sae].

    Args:
        network: a transcoder of sae_lens.
        u: what it reads, [row d_in].
        v: what it predicts, [row d_out].
        options: every option of its architecture.
        steps: already taken; decides how far a coefficient has warmed up.
    """
    kind = "l0" if isinstance(network, JumpReLUTranscoder) else "l1"
    warm_up = options[f"{kind}_warm_up_steps"]
    coefficient = options[f"{kind}_coefficient"] * (min(1.0, steps / warm_up) if warm_up else 1.0)
    z = u @ network.W_enc + network.b_enc
    if isinstance(network, JumpReLUTranscoder):
        with torch.no_grad():
            network.threshold.clamp_(min=0)
        gate = (network.threshold, options["jumprelu_bandwidth"], False)
        a, sparsity = JumpReLU.apply(z, *gate), Step.apply(z, *gate).sum(dim=1)
    else:
        a = z.relu()
        sparsity = a @ network.W_dec.norm(dim=1)
    predicted = network.decode(a)
    if isinstance(network, SkipTranscoder):
        predicted = predicted + u @ network.W_skip.T
    loss = (v - predicted).square().sum(dim=1).mean() + coefficient * sparsity.mean()
    return loss, predicted.detach(), a.detach()
