"""Latents at every token, for pages that show prompts as coloured tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.sparse import csr_array, vstack

from iclens.models.forward import record
from iclens.models.load import LanguageModel
from iclens.names import Site
from iclens.saes.encode import encode_rows
from iclens.saes.load import Sae
from iclens.tables.arrays import Ints


def token_activations(
    model: LanguageModel, saes: Mapping[Site, Sae], tokens: Ints, batch: int = 128
) -> dict[Site, csr_array]:
    """Gated activation of every latent at every token.

    Args:
        model: the model.
        saes: site → its SAE.
        tokens: [row pos].
        batch: rows per forward pass.

    Returns:
        site → sparse [row·pos, d_sae], pos fastest.
    """
    everywhere = np.arange(tokens.shape[1])
    parts: dict[Site, list[csr_array]] = {site: [] for site in saes}
    for start in range(0, len(tokens), batch):
        recorded = record(model, tokens[start : start + batch], list(saes), everywhere, batch=batch)
        for site, sae in saes.items():
            parts[site].append(encode_rows(sae, recorded[site].reshape(-1, model.d_model)).latents)
    return {site: csr_array(vstack(found, format="csr")) for site, found in parts.items()}
