"""Does an SAE fit a model? Every way in which it does not, in words.

An SAE is refused on a model when one of these holds (`docs/saes.md` says why these values):

    width     d_in or d_out is not the model's d_model; nothing can be measured then, so it cannot be forced
    model     it was trained on another model, by `models.identity`
    L0        measured / stated outside [1/3, 3]; none stated: below 1, or more active latents than dimensions
    length    it states the mean length of its training's activations: measured / stated outside [1/3, 3]
    FVU       above 0.8: it explains less than a fifth of the variance
"""

from __future__ import annotations

import math

from iclens.models.identity import other_model
from iclens.models.load import LanguageModel
from iclens.saes.load import Sae

L0_FACTOR = 3.0
"""How far the measured L0 may be from the stated one, either way."""
LENGTH_FACTOR = 3.0
"""How far the measured mean length of activations may be from the stated one, either way."""
WORST_FVU = 0.8
"""The largest fraction of variance unexplained with which an SAE still fits."""


def mismatches(
    sae: Sae, model: LanguageModel, l0: float, fvu: float, length: float = math.nan
) -> tuple[str, ...]:
    """In what an SAE does not fit a model; empty when it fits.

    Args:
        sae: loaded for this model's width.
        model: what it was measured on.
        l0: measured mean number of active latents per token.
        fvu: measured fraction of variance unexplained, all tokens.
        length: measured mean length of the activations that it reads; NaN leaves it unchecked.
    """
    found = [
        other_model(sae.model, sae.model_fingerprint, model), _l0(sae, l0), _length(sae, length), _fvu(fvu),
    ]  # fmt: skip
    return tuple(text for text in found if text)


def _l0(sae: Sae, l0: float) -> str:
    if sae.l0:
        ratio = l0 / sae.l0
        return "" if 1 / L0_FACTOR <= ratio <= L0_FACTOR else f"L0 is {l0:.3g}, its makers state {sae.l0:.3g}"
    return "" if 1 <= l0 <= sae.d_in else f"L0 is {l0:.3g} of {sae.d_in} dimensions"


def _length(sae: Sae, length: float) -> str:
    if sae.mean_length is None or math.isnan(length):
        return ""
    if 1 / LENGTH_FACTOR <= length / sae.mean_length <= LENGTH_FACTOR:
        return ""
    return f"activations have a mean length of {length:.3g}, its files state {sae.mean_length:.3g}"


def _fvu(fvu: float) -> str:
    if math.isnan(fvu):
        return "FVU is undefined: its site does not vary over the prompts"
    return "" if fvu <= WORST_FVU else f"FVU is {fvu:.3g}, above {WORST_FVU}"
