"""The tail engine is exact: it equals a full forward pass with the same edit."""

import numpy as np
import pytest
import torch

from iclens.core import EditError, Site, SiteError
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, answer_probs
from iclens.model.tail import Tail, tails_of
from iclens.prompts.build import PromptSet

from ..conftest import EXACT


@pytest.fixture
def query(prompts: PromptSet) -> np.ndarray:
    """One prompt up to its last `pre`, [1 pos]."""
    return prompts.tokens[:1, : prompts.positions("pre")[-1] + 1]


def full(model: LanguageModel, query: np.ndarray, edits: list[Edit]) -> np.ndarray:
    last = np.array([query.shape[1] - 1])
    return answer_probs(model, query, last, edits=edits).log_prob[0, 0]


def edited(site: Site, query: np.ndarray, kind: str, value: np.ndarray) -> list[Edit]:
    return [Edit(site, kind, np.array([query.shape[1] - 1]), value)]


def test_an_unedited_tail_equals_the_full_forward(exact_model: LanguageModel, query: np.ndarray) -> None:
    tail = Tail(exact_model, query[0])
    for layer in range(exact_model.n_blocks + 1):
        found = tail.run(tail.resid_pre(layer)[None], layer).log_prob[0]
        np.testing.assert_allclose(found, full(exact_model, query, []), rtol=0, atol=EXACT)


def test_a_replaced_residual_equals_the_full_forward(
    exact_model: LanguageModel, query: np.ndarray, rng: np.random.Generator
) -> None:
    tail, n = Tail(exact_model, query[0]), exact_model.n_blocks
    for layer in range(n + 1):
        site = Site(layer, "resid_pre") if layer < n else Site(n - 1, "resid_post")
        rows = rng.normal(size=(3, exact_model.d_model)).astype(np.float32)
        found = tail.run(torch.as_tensor(rows), layer).log_prob
        for row, log_prob in zip(rows, found, strict=True):
            wanted = full(exact_model, query, edited(site, query, "replace", row))
            np.testing.assert_allclose(log_prob, wanted, rtol=0, atol=EXACT)


@pytest.mark.parametrize("hook", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"])
@pytest.mark.parametrize("layer", [0, 2, 5])
def test_an_addition_equals_the_full_forward(
    exact_model: LanguageModel, query: np.ndarray, rng: np.random.Generator, hook: str, layer: int
) -> None:
    delta = rng.normal(size=(2, exact_model.d_model)).astype(np.float32)
    found = Tail(exact_model, query[0]).added(Site(layer, hook), delta).log_prob
    for row, log_prob in zip(delta, found, strict=True):
        wanted = full(exact_model, query, edited(Site(layer, hook), query, "add", row))
        np.testing.assert_allclose(log_prob, wanted, rtol=0, atol=EXACT)


@pytest.mark.parametrize("hook", ["mlp_in", "z"])
def test_an_addition_that_does_not_enter_the_residual_is_refused(
    exact_model: LanguageModel, query: np.ndarray, hook: str
) -> None:
    with pytest.raises(EditError, match="no addition to the residual"):
        Tail(exact_model, query[0]).added(Site(1, hook), np.zeros((1, exact_model.d_model)))


def test_positions_that_the_rows_do_not_hold_are_refused(
    exact_model: LanguageModel, query: np.ndarray
) -> None:
    end = query.shape[1] - 1
    (tail,) = tails_of(exact_model, query, first=end - 3)
    delta = np.zeros((1, exact_model.d_model))
    for where in ([end - 4], [end + 1], []):
        with pytest.raises(EditError, match=f"rows hold positions {end - 3} to {end}"):
            tail.added(Site(1, "mlp_out"), delta, positions=np.array(where, dtype=int))
    with pytest.raises(EditError, match="the suffix has 4"):
        tail.run(torch.zeros(1, exact_model.d_model), 1)
    with pytest.raises(EditError, match=f"{end + 1} positions"):
        tails_of(exact_model, query, first=end + 1)


def test_rows_are_taken_in_batches_that_fit_the_memory(exact_model: LanguageModel, query: np.ndarray) -> None:
    delta = np.random.default_rng(0).normal(size=(40, exact_model.d_model))
    wide, narrow = (Tail(exact_model, query[0], memory=memory) for memory in (2**30, 2**20))
    assert 1 <= narrow.rows_at_once() < 40 < wide.rows_at_once()
    (suffix,) = tails_of(exact_model, query, first=query.shape[1] - 12)
    suffix.memory = narrow.memory
    assert 1 <= suffix.rows_at_once() < narrow.rows_at_once()
    for hook in ("resid_post", "resid_mid"):
        one, other = (tail.added(Site(2, hook), delta).log_prob for tail in (wide, narrow))
        np.testing.assert_allclose(one, other, rtol=0, atol=EXACT)
    block, seen = exact_model.network.model.layers[2], []
    tail = Tail(exact_model, query[0], memory=1)
    handle = block.mlp.register_forward_pre_hook(lambda _module, args: seen.append(len(args[0])))
    try:
        tail.added(Site(2, "resid_mid"), delta)
    finally:
        handle.remove()
    assert seen == [1] * 40


def test_a_site_the_model_lacks_is_refused(exact_model: LanguageModel, query: np.ndarray) -> None:
    with pytest.raises(SiteError):
        Tail(exact_model, query[0]).entry(Site(exact_model.n_blocks, "resid_post"))


def test_words_are_read_beside_the_numbers(exact_model: LanguageModel, query: np.ndarray) -> None:
    tail = Tail(exact_model, query[0], ("hot", "cold"))
    found = tail.run(tail.resid_pre(0)[None], 0)
    assert found.answers[-2:] == ("hot", "cold")
    assert found.log_prob.shape == (1, 1002)
