"""Patterns equal Hugging Face's eager ones; heads' outputs add up to the attention's output."""

from pathlib import Path

import numpy as np
import pytest
import torch

from iclens.core import EditError, Site, SiteError
from iclens.model.attention import attention_patterns, head_dots, head_outputs
from iclens.model.load import LanguageModel, load_model
from iclens.model.run import Edit, record
from iclens.prompts.build import PromptSet

from ..conftest import InFloat64


def n_hooks(model: LanguageModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.network.modules())


@pytest.mark.parametrize("batch", [4, 32])
def test_patterns_equal_eager_hugging_face(
    exact_model: LanguageModel, tiny_folder: Path, in_float64: InFloat64, prompts: PromptSet, batch: int
) -> None:
    eager = in_float64(load_model(tiny_folder, attention="eager"))
    with torch.no_grad():
        wanted = eager.network(torch.as_tensor(prompts.tokens), output_attentions=True).attentions
    queries = np.array([0, 7, 5, prompts.tokens.shape[1] - 1])
    for model in (exact_model, eager):
        found = attention_patterns(model, prompts.tokens, (1, 4), queries, batch=batch)
        assert list(found) == [1, 4]
        for layer, pattern in found.items():
            assert pattern.shape == (6, model.n_heads, 4, prompts.tokens.shape[1])
            np.testing.assert_allclose(pattern, wanted[layer].numpy()[:, :, queries], rtol=0, atol=1e-5)
    assert n_hooks(exact_model) == 0


def test_masses_of_a_query_sum_to_one_and_none_is_later(
    tiny_model: LanguageModel, prompts: PromptSet
) -> None:
    queries = np.arange(prompts.tokens.shape[1])
    pattern = attention_patterns(tiny_model, prompts.tokens[:2], (3,), queries)[3]
    np.testing.assert_allclose(pattern.sum(axis=-1), 1, atol=1e-5)
    assert not np.triu(pattern, 1).any()
    assert (np.tril(pattern) > 0).mean() > 0.49  # a far key may underflow


def test_an_edit_below_changes_the_pattern_and_one_above_does_not(
    tiny_model: LanguageModel, prompts: PromptSet
) -> None:
    last = np.array([prompts.tokens.shape[1] - 1])
    plain = attention_patterns(tiny_model, prompts.tokens, (2,), last)[2]
    below, above = (
        attention_patterns(tiny_model, prompts.tokens, (2,), last, edits=[Edit(Site(k, "z"), "zero", last)])[
            2
        ]
        for k in (1, 2)
    )
    assert np.abs(below - plain).max() > 1e-3
    np.testing.assert_array_equal(above, plain)


def test_edits_with_a_value_per_row_go_with_their_rows(
    exact_model: LanguageModel, prompts: PromptSet, rng: np.random.Generator
) -> None:
    where, last = np.array([9]), np.array([prompts.tokens.shape[1] - 1])
    value = rng.normal(size=(6, 1, exact_model.d_model)).astype(np.float32)
    edit = Edit(Site(1, "resid_pre"), "replace", where, value)
    whole, split = (
        attention_patterns(exact_model, prompts.tokens, (2,), last, edits=[edit], batch=b)[2] for b in (6, 4)
    )
    np.testing.assert_allclose(whole, split, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "queries", "error"),
    [((9,), [3], SiteError), ((1,), [99], EditError), ((1,), [-1], EditError), ((1,), [], EditError)],
)
def test_what_is_not_there_is_refused(
    tiny_model: LanguageModel, prompts: PromptSet, layers: tuple[int], queries: list[int], error: type
) -> None:
    with pytest.raises(error):
        attention_patterns(tiny_model, prompts.tokens, layers, np.array(queries, dtype=int))
    assert n_hooks(tiny_model) == 0


def z_of(model: LanguageModel, prompts: PromptSet, layer: int, edits: tuple[Edit, ...] = ()) -> np.ndarray:
    """Heads' outputs side by side at the last `pre`, [prompt head·d_head]."""
    where = prompts.positions("pre")[-1:]
    return record(model, prompts.tokens, [Site(layer, "z")], where, edits=edits)[Site(layer, "z")][:, 0]


def test_heads_outputs_add_up_to_attn_out(tiny_model: LanguageModel, prompts: PromptSet) -> None:
    where, site = prompts.positions("pre")[-1:], Site(3, "attn_out")
    whole = record(tiny_model, prompts.tokens, [site], where)[site][:, 0]
    heads = head_outputs(tiny_model, 3, z_of(tiny_model, prompts, 3)).numpy()
    assert heads.shape == (len(whole), tiny_model.n_heads, tiny_model.d_model)
    np.testing.assert_allclose(heads.sum(axis=1), whole, rtol=0, atol=1e-5 * np.abs(heads).max())
    assert np.abs(heads[:, 0] - heads[:, 1]).max() > 1e-2


def test_a_zeroed_head_writes_nothing(tiny_model: LanguageModel, prompts: PromptSet) -> None:
    edit = Edit(Site(2, "z"), "zero", prompts.positions("pre"), heads=np.array([1]))
    heads = head_outputs(tiny_model, 2, z_of(tiny_model, prompts, 2, (edit,))).numpy()
    assert not heads[:, 1].any() and np.abs(heads[:, 0]).max() > 0


def test_dots_are_those_of_the_outputs(
    tiny_model: LanguageModel, prompts: PromptSet, rng: np.random.Generator
) -> None:
    z = z_of(tiny_model, prompts, 1)
    directions = rng.normal(size=(6, tiny_model.d_model)).astype(np.float32)
    wanted = np.einsum("rhm,rm->rh", head_outputs(tiny_model, 1, z).numpy(), directions)
    np.testing.assert_allclose(
        head_dots(tiny_model, 1, z, directions), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max()
    )
