"""What do latents do at every token of a few prompts, and which of them are worth showing?

Only the entries that are active leave a site's encoding, and one site's are held at a time, so that wide SAEs
fit. Enter a model, SAEs and tokens; leave active latents, and orders to choose from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, zip_longest

import numpy as np
from scipy.sparse import csr_array

from iclens.models.forward import record
from iclens.models.load import LanguageModel
from iclens.names import Site
from iclens.saes.encode import encode_rows
from iclens.saes.load import Sae
from iclens.tables.arrays import Floats, Ints


def latents_at_tokens(
    model: LanguageModel, saes: Mapping[Site, Sae], runs: Sequence[Ints], batch: int = 128
) -> Iterator[tuple[Site, list[csr_array]]]:
    """Active latents at every token of several sets of prompts, site by site.

    Args:
        model: the model.
        saes: site → its SAE.
        runs: token ids of each set, [row pos].
        batch: rows per forward pass.

    Yields:
        A site, and for each set its gated activations, sparse [row·pos latent], pos fastest.
    """
    recorded = [record(model, ids, list(saes), np.arange(ids.shape[1]), batch=batch) for ids in runs]
    for site, sae in saes.items():
        parts = [held.pop(site).reshape(-1, model.d_model) for held in recorded]
        latents = encode_rows(sae, np.concatenate(parts)).latents
        ends = np.cumsum([0, *(len(part) for part in parts)])
        yield site, [csr_array(latents[start:stop]) for start, stop in pairwise(ends.tolist())]


def in_turn(lists: Mapping[str, Sequence[int]], n: int) -> dict[int, str]:
    """The first `n` latents of several orders, taken in turn.

    Args:
        lists: why a latent is worth it → latents, the best first.
        n: at most so many.

    Returns:
        latent → why it was taken, in the order of taking.
    """
    taken: dict[int, str] = {}
    for turn in zip_longest(*lists.values()):
        for why, latent in zip(lists, turn, strict=True):
            if latent is not None and latent not in taken and len(taken) < n:
                taken[int(latent)] = why
    return taken


def strongest(activations: csr_array, scale: Floats) -> Ints:
    """Latents that are active anywhere in `activations` [row latent], the largest peak × `scale` first."""
    peak = activations.max(axis=0).toarray().ravel() * scale
    order = np.argsort(-peak, kind="stable")
    return order[: np.count_nonzero(peak > 0)]


def most_changed(a: csr_array, b: csr_array, scale: Floats) -> Ints:
    """Latents whose activation differs between rows `a` and `b` [row latent], the largest change first."""
    change = abs(a - b)
    return strongest(csr_array(change), scale)
