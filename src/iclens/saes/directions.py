"""Decoder directions: what one unit of a latent adds, the one scale on which latents are compared.

    d_f = decode(e_f) − decode(0)  =  W_dec[f], or W_dec[f] / ‖W_dec[f]‖ with `rescale_acts_by_decoder_norm`

1. The formula gives the directions of any latents at once. 2. Each time, the SAE's own decode of all latents
together has to agree with it. Adding Δa · d_f to what an SAE reads changes its latent by Δa where the decoder
is affine, which `check_decoder` tries on real activations.

The same SAE can be written in many ways: rows of W_dec of any length, with latents scaled the other way
round. Activations, and whatever is per unit of activation, then differ; activation × ‖d_f‖ does not. An SAE
that normalises its input decodes in units of its own; `Sae.scale` gives their length at the site, row by row,
and `encode_rows` and `latent_inputs` have it in the activations that they give.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from iclens.errors import SaeError
from iclens.models.load import as_numpy
from iclens.saes.formats.parts import NORMALISATIONS
from iclens.saes.load import Sae
from iclens.tables.arrays import Floats, Ints


@torch.no_grad()
def decoder_directions(sae: Sae, latents: Ints) -> Tensor:
    """What one unit of each latent adds to the decoded, decode(e_f) − decode(0), [latent d_in].

    Raises:
        SaeError: for a latent that the SAE does not have, or an SAE that decodes otherwise than by `_rows`.
    """
    strange = [int(latent) for latent in latents if not 0 <= latent < sae.d_sae]
    if strange:
        raise SaeError(
            f"latent {strange[0]} of {sae.site.short}", f"it has {sae.d_sae}",
            f"Choose one of 0 to {sae.d_sae - 1}.",
        )  # fmt: skip
    return _rows(sae)[torch.as_tensor(np.asarray(latents, dtype=np.int64), device=sae.W_dec.device)]


@torch.no_grad()
def decoder_lengths(sae: Sae) -> Floats:
    """‖d_f‖: the length that one unit of each latent adds, in the SAE's own units, float32 [latent].

    Raises:
        SaeError: for an SAE that decodes otherwise than by `_rows`.
    """
    return as_numpy(_rows(sae).norm(dim=1))


def _rows(sae: Sae) -> Tensor:
    """d_f of every latent, [latent d_in], found equal to what the SAE decodes of all of them together."""
    rows = sae.W_dec
    if getattr(getattr(sae.network, "cfg", None), "rescale_acts_by_decoder_norm", False):
        rows = torch.nn.functional.normalize(rows, dim=1)
    sizes = torch.linspace(1, 2, sae.d_sae, dtype=rows.dtype, device=rows.device)[None]
    decoded = (sae.decode(sizes) - sae.decode(torch.zeros_like(sizes))).reshape(1, -1)
    if not bool((decoded - sizes @ rows).norm() <= 1e-3 * decoded.norm()):
        raise SaeError(
            f"directions of the SAE at {sae.site.short}", "its decoder is not affine in the rows of W_dec",
            "Give an SAE with x̂ = latents @ W_dec + b_dec.",
        )  # fmt: skip
    return rows


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
            f"Give one that normalises by one of {', '.join(NORMALISATIONS)}.",
        )  # fmt: skip
    nothing = sae.decode(torch.zeros_like(first))
    one, other, both = sae.decode(first), sae.decode(second), sae.decode(first + second)
    excess = (both - one - other + nothing).abs().max()
    if not bool(excess <= 1e-3 * (one.abs().max() + other.abs().max())):
        raise SaeError(
            f"moving latents of the SAE at {sae.site.short}",
            "its decoder is not affine",
            "Give an SAE with x̂ = latents @ W_dec + b_dec.",
        )
