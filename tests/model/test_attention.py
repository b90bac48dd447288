"""Patterns equal Hugging Face's, heads add up to the attention's output, removed edges carry nothing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from iclens.core import EditError, IclensError, Site, SiteError, position
from iclens.model.attention import Knockout, attention_patterns, head_dots, head_outputs, record_knockout
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
    before = n_hooks(exact_model)  # transformers leaves some of its own when it gives hidden states
    queries = np.array([0, 7, 5, prompts.tokens.shape[1] - 1])
    for model in (exact_model, eager):
        found = attention_patterns(model, prompts.tokens, (1, 4), queries, batch=batch)
        assert list(found) == [1, 4]
        for layer, pattern in found.items():
            assert pattern.shape == (6, model.n_heads, 4, prompts.tokens.shape[1])
            np.testing.assert_allclose(pattern, wanted[layer].numpy()[:, :, queries], rtol=0, atol=1e-5)
    assert n_hooks(exact_model) == before


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
    before = n_hooks(tiny_model)
    with pytest.raises(error):
        attention_patterns(tiny_model, prompts.tokens, layers, np.array(queries, dtype=int))
    assert n_hooks(tiny_model) == before


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


BLOCKS = 3

SITES = [Site(1, "attn_out"), Site(1, "resid_mid"), Site(BLOCKS - 1, "resid_post")]

END = SITES[-1]

LENGTH = 14

NEAR = 1e-5


@pytest.fixture(params=["sdpa", "eager"])
def model(
    request: pytest.FixtureRequest,
    random_model: Callable[..., LanguageModel],
    tiny_model: LanguageModel,
    in_float64: InFloat64,
) -> LanguageModel:
    """In float64; what is recorded, and the weights of eager attention, are rounded to float32."""
    return in_float64(random_model(tiny_model, 5, blocks=BLOCKS, heads=4, kv_heads=2, kind=request.param))


@pytest.fixture
def tokens(model: LanguageModel, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, model.network.config.vocab_size, (5, LENGTH))


def edges(query: int, keys: list[int], layers: tuple[int, ...] = tuple(range(BLOCKS))) -> Knockout:
    return Knockout(np.full(len(keys), query), np.array(keys, dtype=int), layers)


@pytest.mark.parametrize("batch", [2, 64])
@pytest.mark.parametrize("cuts", [[], [edges(9, [])], [edges(9, [3], ())]])
def test_without_an_edge_nothing_changes(
    model: LanguageModel, tokens: np.ndarray, cuts: list[Knockout], batch: int
) -> None:
    where = np.arange(LENGTH)
    wanted = record(model, tokens, SITES, where)
    found = record_knockout(model, tokens, SITES, where, cuts, batch=batch)
    for site in SITES:
        np.testing.assert_allclose(found[site], wanted[site], rtol=0, atol=NEAR)


def test_a_position_cut_from_all_earlier_ones_is_independent_of_them(
    model: LanguageModel, tokens: np.ndarray, rng: np.random.Generator
) -> None:
    query, other = 9, tokens.copy()
    other[:, :query] = rng.integers(0, model.network.config.vocab_size, (len(tokens), query))
    cut, last = edges(query, list(range(query))), np.array([query])
    here, there = (record_knockout(model, ids, [END], last, [cut])[END] for ids in (tokens, other))
    np.testing.assert_allclose(here, there, rtol=0, atol=NEAR)
    plain = [record(model, ids, [END], last)[END] for ids in (tokens, other)]
    assert np.abs(plain[0] - plain[1]).max() > 0.1
    # one block left as it is lets them through
    some = edges(query, list(range(query)), (0, 2))
    here, there = (record_knockout(model, ids, [END], last, [some])[END] for ids in (tokens, other))
    assert np.abs(here - there).max() > 0.1


def test_one_block_equals_attention_with_the_pattern_renormalised(
    model: LanguageModel, tokens: np.ndarray
) -> None:
    """Without the keys 2 and 5, each head weighs the values of the rest in their old proportions."""
    query, gone, site = 9, [2, 5], Site(1, "z")
    pattern = attention_patterns(model, tokens, (1,), np.array([query]))[1][:, :, 0]
    kept = np.delete(pattern, gone, axis=2)
    share = kept / kept.sum(axis=2, keepdims=True)
    block, entered = model.network.model.layers[1], Site(1, "resid_pre")
    before = torch.as_tensor(record(model, tokens, [entered], np.arange(LENGTH))[entered]).double()
    values = block.self_attn.v_proj(block.input_layernorm(before)).unflatten(-1, (2, 8)).numpy()
    wanted = np.einsum("rhk,rkhd->rhd", share, np.delete(values, gone, axis=1)[:, :, [0, 0, 1, 1]])
    found = record_knockout(model, tokens, [site], np.array([query]), [edges(query, gone, (1,))])[site][:, 0]
    np.testing.assert_allclose(found, wanted.reshape(len(tokens), -1), rtol=0, atol=NEAR)


def test_earlier_positions_and_earlier_blocks_are_as_before(model: LanguageModel, tokens: np.ndarray) -> None:
    cut, where = edges(9, [4, 5], (1,)), np.arange(LENGTH)
    below = [Site(0, "resid_post"), Site(1, "resid_post"), END]
    wanted, found = record(model, tokens, below, where), record_knockout(model, tokens, below, where, [cut])
    np.testing.assert_allclose(found[below[0]], wanted[below[0]], rtol=0, atol=NEAR)
    moved = np.abs(found[below[1]] - wanted[below[1]]).max(axis=(0, 2))
    assert moved[9] > 1e-2 and np.delete(moved, 9).max() < NEAR
    moved = np.abs(found[END] - wanted[END]).max(axis=(0, 2))
    assert moved[:9].max() < NEAR and moved[9:].min() > 1e-4


def test_cuts_act_together(model: LanguageModel, tokens: np.ndarray) -> None:
    last = np.array([9])
    both = record_knockout(model, tokens, [END], last, [edges(9, [2]), edges(9, [5])])[END]
    once = record_knockout(model, tokens, [END], last, [edges(9, [2, 5])])[END]
    np.testing.assert_allclose(both, once, rtol=0, atol=NEAR)
    assert np.abs(both - record_knockout(model, tokens, [END], last, [edges(9, [2])])[END]).max() > 1e-3


def test_within_an_example(tiny_model: LanguageModel, prompts: PromptSet) -> None:
    cut = Knockout.within("lab", ("x", "pre"), (0, 3), (0, 1))
    assert cut.queries.tolist() == [position("lab", j) for j in (0, 0, 3, 3)]
    assert cut.keys.tolist() == [3, 5, 21, 23]
    where, site = prompts.positions("lab"), Site(1, "z")
    moved = record_knockout(tiny_model, prompts.tokens, [site], where, [cut])[site]
    moved = np.abs(moved - record(tiny_model, prompts.tokens, [site], where)[site]).max(axis=(0, 2))
    assert moved[0] > 1e-3 and moved[3] > 1e-3 and moved[1:3].max() < NEAR


@pytest.mark.parametrize(
    ("cuts", "error", "named"),
    [
        ([edges(0, [0])], EditError, "position 0 has no key left"),
        ([edges(2, [0, 1]), edges(2, [2], (1,))], EditError, "block 1"),
        ([edges(3, [4])], EditError, "from 3 to 4"),
        ([edges(LENGTH, [4])], EditError, f"prompts of {LENGTH}"),
        ([edges(4, [-1])], EditError, f"prompts of {LENGTH}"),
        ([edges(4, [1], (BLOCKS,))], SiteError, "blocks 0 to 2"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    model: LanguageModel, tokens: np.ndarray, cuts: list[Knockout], error: type[IclensError], named: str
) -> None:
    with pytest.raises(error, match=named) as refused:
        record_knockout(model, tokens, [END], np.array([4]), cuts)
    assert "\n" not in str(refused.value)


def test_queries_and_keys_are_pairs() -> None:
    with pytest.raises(EditError, match="one key per query"):
        Knockout(np.array([4, 5]), np.array([1]), (0,))
