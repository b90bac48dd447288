"""Are latents at tokens those of a dense encoding, and are orders to choose from as they say?"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from iclens.core import Site
from iclens.model.load import LanguageModel
from iclens.prompts.build import PromptSet
from iclens.saes.load import Sae
from iclens.tracking import Tracked, in_turn, latents_at_tokens, most_changed, strongest, token_activations

from .conftest import steady


def test_each_run_gets_its_own_tokens(
    exact_model: LanguageModel, saes: dict[Site, Sae], arms: tuple[Tracked, Tracked]
) -> None:
    prompts: PromptSet = arms[0].prompts
    runs = [prompts.tokens[:3, :40], prompts.tokens[3:5, :6]]
    found = dict(latents_at_tokens(exact_model, saes, runs, batch=2))
    assert list(found) == list(saes)
    for i, ids in enumerate(runs):
        dense = token_activations(exact_model, saes, ids)
        for site, parts in found.items():
            assert parts[i].shape == (ids.size, saes[site].d_sae)
            steady(parts[i].toarray().T, dense[site].toarray().T)


def test_orders_are_taken_in_turn_and_each_latent_once() -> None:
    lists = {"changed": [4, 7, 9], "grows": [7], "active": [4, 1, 2, 3]}
    assert in_turn(lists, 5) == {4: "changed", 7: "grows", 1: "active", 9: "changed", 2: "active"}
    assert list(in_turn(lists, 5)) == [4, 7, 1, 9, 2]
    assert list(in_turn(lists, 2)) == [4, 7]
    assert in_turn({"changed": [], "active": []}, 3) == {}


def test_strongest_is_by_peak_in_units_of_the_residual_and_leaves_the_silent_out() -> None:
    acts = csr_array([[1.0, 0.0, 3.0, 0.0], [2.0, 0.0, 0.0, 1.5]])
    assert strongest(acts, np.ones(4)).tolist() == [2, 0, 3]
    assert strongest(acts, np.array([1.0, 9.0, 0.1, 2.0])).tolist() == [3, 0, 2]


def test_most_changed_is_by_the_largest_difference_at_one_token() -> None:
    a = csr_array([[5.0, 1.0, 0.0, 2.0], [0.0, 1.0, 0.0, 2.0]])
    b = csr_array([[5.0, 0.0, 4.0, 0.0], [0.0, 0.0, 0.0, 2.5]])
    assert most_changed(a, b, np.ones(4)).tolist() == [2, 3, 1]  # 0 is the same in both
