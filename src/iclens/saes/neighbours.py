"""Which latents write almost the same, and which are active together?

    cosine(f, g) = W_dec[f] · W_dec[g] / (|W_dec[f]| |W_dec[g]|)
    correlation(f, g) = Pearson r over tokens of the gated activations

Both look through the whole SAE and name only what is above zero. A latent that is never active, or always
equally, has no correlation, and a decoder row of zero length no cosine: neither is anyone's neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from scipy.sparse import csr_array

from iclens.saes.load import Sae
from iclens.tables.arrays import Floats, Ints

_LEAST_SPREAD = 1e-9
"""Share of a latent's mean square that its variance must exceed; below, it is rounding."""
_CELLS = 1 << 26
"""Cosines held at a time."""


@dataclass(frozen=True)
class Near:
    """A latent's neighbours, nearest first.

    Args:
        latents: which, [neighbour].
        values: cosine or correlation, [neighbour].
    """

    latents: Ints
    values: Floats


@torch.no_grad()
def by_decoder(sae: Sae, latents: Sequence[int], n: int = 6) -> list[Near]:
    """The latents whose decoder rows point most nearly the same way, for each of `latents`.

    Args:
        sae: the SAE.
        latents: which, [latent].
        n: neighbours of each.
    """
    rows = sae.W_dec
    lengths = rows.norm(dim=1).clamp_min(torch.finfo(rows.dtype).tiny).float()
    found = []
    for some in torch.tensor(latents, device=rows.device).split(max(1, _CELLS // sae.d_sae)):
        cosine = (rows[some].float() @ rows.T.float()) / lengths[some, None] / lengths
        found += [
            _nearest(own.cpu().numpy(), int(f), n) for own, f in zip(cosine, some.tolist(), strict=True)
        ]
    return found


def by_activation(activations: csr_array, latents: Sequence[int], n: int = 6) -> list[Near]:
    """The latents whose activations correlate most over tokens, for each of `latents`.

    Args:
        activations: gated, [token latent].
        latents: which, [latent].
        n: neighbours of each.
    """
    held = csr_array(activations).astype(np.float64)
    n_tokens = max(cast("tuple[int, int]", held.shape)[0], 1)
    mean = np.asarray(held.sum(axis=0)).ravel() / n_tokens
    squares = np.asarray(held.power(2).sum(axis=0)).ravel() / n_tokens
    varies = squares - mean**2 > _LEAST_SPREAD * squares
    spread = np.sqrt(np.where(varies, squares - mean**2, np.nan))
    found = []
    columns = held.tocsc()
    for f in latents:
        product = np.asarray((held.T @ columns[:, [f]]).todense()).ravel() / n_tokens - mean * mean[f]
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append(_nearest(product / (spread * spread[f]), f, n))
    return found


def _nearest(values: Floats, own: int, n: int) -> Near:
    """The `n` largest that are above zero, without the latent itself and without undefined ones."""
    held = np.where(np.isfinite(values) & (values > 0), values, -np.inf)
    held[own] = -np.inf
    n = min(n, int(np.isfinite(held).sum()))
    largest = np.argpartition(-held, n - 1)[:n] if n else np.array([], dtype=np.int64)
    order = largest[np.argsort(-held[largest], kind="stable")]
    return Near(order.astype(np.int64), held[order])
