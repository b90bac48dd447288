"""Planted latents and prompts, without a model."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.sparse import csr_array

from iclens.activations import LatentActs
from iclens.core import Site
from iclens.prompts.build import PromptSet

Planted = Callable[..., LatentActs]
Prompts = Callable[[int, int], tuple[PromptSet, PromptSet]]
SITE = Site(2, "resid_post")


def _planted(values: np.ndarray, site: Site = SITE, role: str = "pre", sae_id: str = "oracle") -> LatentActs:
    d_sae, n_prompts, n_examples = values.shape
    rows = csr_array(values.reshape(d_sae, -1).T)
    zeros = np.zeros((n_prompts, n_examples))
    return LatentActs(
        site, role, sae_id, d_sae, n_prompts, n_examples, rows.indptr, rows.indices, rows.data, zeros, zeros
    )


def _pair(n_prompts: int, n_examples: int) -> tuple[PromptSet, PromptSet]:
    x = np.tile(np.arange(n_examples).astype(str), (n_prompts, 1))
    y = np.char.add("1", x)
    tokens = np.zeros((n_prompts, 2 + 6 * n_examples), dtype=np.int64)
    task = np.full(n_prompts, "x+10")
    return (
        PromptSet(task, "T", x, y, y, tokens, 3, "tok"),
        PromptSet(task, "S", x, y[:, ::-1], y, tokens, 3, "tok"),
    )


@pytest.fixture(scope="session")
def planted() -> Planted:
    """Dense activations [latent prompt example] as LatentActs."""
    return _planted


@pytest.fixture(scope="session")
def pair() -> Prompts:
    """Prompts of arms T and S, paired."""
    return _pair
