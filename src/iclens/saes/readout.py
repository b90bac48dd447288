"""Which tokens a latent speaks for: its decoder direction read through the unembedding.

    logit effect of latent f on token t = (d_f / ‖d_f‖ ⊙ g) · W_U[t] − mean over tokens

d_f is what one unit of the latent adds (`saes.directions`), g the final norm's weight. The norm also divides
by the token's own length, which scales all effects of one token alike; effects are therefore logits per unit
of length that the latent adds to the residual stream, up to that factor: the same in every writing of the
SAE, and 0 for a latent that adds nothing. Subtracting the mean changes no probability. Only the direct path
is read; blocks above the site may add to it or undo it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from iclens.errors import SiteError
from iclens.models.load import LanguageModel
from iclens.saes.directions import decoder_directions
from iclens.saes.load import Sae
from iclens.tables.arrays import Ints

TokenEffect = tuple[str, float]


@dataclass(frozen=True)
class LogitEffects:
    """The tokens that a latent raises and lowers most on the direct path.

    Args:
        latent: its index.
        top: (token text, logit effect), largest first.
        bottom: (token text, logit effect), smallest first.
    """

    latent: int
    top: tuple[TokenEffect, ...]
    bottom: tuple[TokenEffect, ...]


@torch.no_grad()
def logit_effects(
    model: LanguageModel, sae: Sae, latents: Sequence[int] | Ints, n: int = 8
) -> list[LogitEffects]:
    """Top and bottom tokens of each latent.

    Args:
        model: gives the final norm's weight, the unembedding and the tokens' text.
        sae: an SAE whose site adds to the residual stream.
        latents: which latents, [latent].
        n: tokens at either end.

    Raises:
        SiteError: for a latent that the SAE does not have.
    """
    chosen = [int(latent) for latent in latents]
    strange = [latent for latent in chosen if not 0 <= latent < sae.d_sae]
    if strange:
        raise SiteError(
            f"latent {strange[0]} of {sae.site.short}", f"the SAE has {sae.d_sae}", "Choose a smaller one."
        )
    gain, unembedding = model.network.model.norm.weight.float(), model.network.lm_head.weight.float()
    directions = normalize(decoder_directions(sae, np.array(chosen)), dim=1).to(gain.device)
    effects = (directions * gain) @ unembedding.T
    effects = effects - effects.mean(dim=1, keepdim=True)
    n = min(n, effects.shape[1])
    high, low = effects.topk(n, dim=1), effects.topk(n, dim=1, largest=False)

    def named(ids: torch.Tensor, values: torch.Tensor) -> tuple[TokenEffect, ...]:
        pairs = zip(ids.tolist(), values.tolist(), strict=True)
        return tuple((str(model.tokenizer.decode([ident])), value) for ident, value in pairs)

    return [
        LogitEffects(latent, named(high.indices[i], high.values[i]), named(low.indices[i], low.values[i]))
        for i, latent in enumerate(chosen)
    ]
