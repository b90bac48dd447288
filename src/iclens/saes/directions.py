"""What does one unit of a latent add? Decoder directions, as the SAE itself decodes.

    d_f = decode(e_f) − decode(0)

Adding Δa · d_f to what an SAE reads changes its latent by Δa where the decoder is affine, which
`check_decoder` tries on real activations.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from iclens.errors import SaeError
from iclens.saes.formats.parts import NORMALISATIONS
from iclens.saes.load import Sae
from iclens.tables.arrays import Ints

_ONE_HOT_ROWS = 256
"""Latents decoded at a time."""


def decoder_directions(sae: Sae, latents: Ints) -> Tensor:
    """What one unit of each latent adds to the decoded, decode(e_f) − decode(0), [latent d_in].

    Raises:
        SaeError: for a latent that the SAE does not have.
    """
    strange = [int(latent) for latent in latents if not 0 <= latent < sae.d_sae]
    if strange:
        raise SaeError(f"latent {strange[0]} of {sae.site.short}", f"it has {sae.d_sae}", "Choose another.")
    ids = torch.as_tensor(np.asarray(latents), device=sae.W_dec.device)
    nothing = sae.decode(sae.W_dec.new_zeros(1, sae.d_sae))
    parts = [nothing[:0]]
    for some in ids.split(_ONE_HOT_ROWS):
        one_hot = sae.W_dec.new_zeros(len(some), sae.d_sae)
        one_hot[torch.arange(len(some)), some] = 1.0
        parts.append(sae.decode(one_hot) - nothing)
    return torch.cat(parts)


def check_decoder(sae: Sae, first: Tensor, second: Tensor) -> None:
    """Refuse an SAE for which adding Δa · d_f is not the same as changing the latent by Δa.

    Args:
        sae: the SAE.
        first: gated activations on which this is tried, [row d_sae].
        second: others.

    Raises:
        SaeError: when its decoder is not affine, or it normalises its input by constants that were never
            folded into its weights.
    """
    if sae.normalisation not in NORMALISATIONS:
        raise SaeError(
            f"moving latents of the SAE at {sae.site.short}", f"it normalises inputs ({sae.normalisation})",
            "Fold it first.",
        )  # fmt: skip
    nothing = sae.decode(torch.zeros_like(first))
    one, other, both = sae.decode(first), sae.decode(second), sae.decode(first + second)
    excess = (both - one - other + nothing).abs().max()
    if not bool(excess <= 1e-3 * (one.abs().max() + other.abs().max())):
        raise SaeError(
            f"moving latents of the SAE at {sae.site.short}", "its decoder is not affine", "Use another SAE."
        )
