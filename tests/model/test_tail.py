"""The tail engine is exact: rows equal full forward passes with the same edit, alone and together."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iclens.core import EditError, Site, SiteError
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, answer_probs
from iclens.model.tail import WIDTH, Tail, added_together, tails_of
from iclens.prompts.build import PromptSet

from ..conftest import EXACT, InFloat64


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


Random = Callable[..., LanguageModel]

LOGITS = 1e-5

"""Models are in float64, but eager attention rounds its weights to float32 in any model."""

ADDS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


@pytest.fixture(scope="module")
def build(random_model: Random, in_float64: InFloat64) -> Random:
    """Random models in float64, so that rounding is out of the way."""
    return lambda *shape: in_float64(random_model(*shape))


shapes = st.tuples(
    st.integers(0, 2**31), st.integers(1, 3), st.sampled_from([(1, 1), (2, 1), (4, 2), (4, 4)]),
    st.sampled_from(["sdpa", "eager"]),
)  # fmt: skip


@settings(max_examples=25)
@given(shapes, st.integers(2, 30), st.integers(1, WIDTH + 9), st.data())
def test_rows_equal_full_forward_passes(
    tiny_model: LanguageModel,
    build: Random,
    shape: tuple,
    length: int,
    n_rows: int,
    data: st.DataObject,
) -> None:
    seed, blocks, (heads, kv_heads), kind = shape
    model, rng = build(tiny_model, seed, blocks, heads, kv_heads, kind), np.random.default_rng(seed)
    tokens = rng.integers(0, model.network.config.vocab_size, length)
    layer, hook = data.draw(st.integers(0, blocks - 1)), data.draw(st.sampled_from(ADDS))
    delta = rng.normal(size=(n_rows, model.d_model)).astype(np.float32)
    delta[0] = 0
    tail, last = Tail(model, tokens), np.array([length - 1])
    found = tail.added(Site(layer, hook), delta).log_prob
    np.testing.assert_allclose(found[0], tail.base(Site(layer, hook)).log_prob[0], rtol=0, atol=LOGITS)
    np.testing.assert_allclose(
        found[0], answer_probs(model, tokens[None], last).log_prob[0, 0], rtol=0, atol=LOGITS
    )
    for row in {0, n_rows // 2, n_rows - 1}:
        edit = Edit(Site(layer, hook), "add", last, delta[row : row + 1])
        wanted = answer_probs(model, tokens[None], last, edits=[edit]).log_prob[0, 0]
        np.testing.assert_allclose(found[row], wanted, rtol=0, atol=LOGITS)


@settings(max_examples=25)
@given(shapes, st.integers(2, 30), st.integers(1, WIDTH // 3), st.data())
def test_rows_that_change_earlier_positions_equal_full_forward_passes(
    tiny_model: LanguageModel,
    build: Random,
    shape: tuple,
    length: int,
    n_rows: int,
    data: st.DataObject,
) -> None:
    """Any positions of any suffix, from the whole prompt to its last token, each with its own value."""
    seed, blocks, (heads, kv_heads), kind = shape
    model, rng = build(tiny_model, seed, blocks, heads, kv_heads, kind), np.random.default_rng(seed)
    tokens = rng.integers(0, model.network.config.vocab_size, (2, length))
    first = data.draw(st.integers(0, length - 1))
    where = np.array(sorted(data.draw(st.sets(st.integers(first, length - 1), min_size=1, max_size=4))))
    site = Site(data.draw(st.integers(0, blocks - 1)), data.draw(st.sampled_from(ADDS)))
    delta = rng.normal(size=(n_rows, len(where), model.d_model)).astype(np.float32)
    last = np.array([length - 1])
    for prompt, tail in zip(tokens, tails_of(model, tokens, first=first), strict=True):
        found = tail.added(site, delta, positions=where).log_prob
        assert found.shape == (n_rows, 1000)
        for row in {0, n_rows - 1}:
            edit = Edit(site, "add", where, delta[row])
            wanted = answer_probs(model, prompt[None], last, edits=[edit]).log_prob[0, 0]
            np.testing.assert_allclose(found[row], wanted, rtol=0, atol=LOGITS)
    same = tail.added(site, np.repeat(delta[:, :1], len(where), axis=1), positions=where).log_prob
    np.testing.assert_allclose(
        tail.added(site, delta[:, 0], positions=where).log_prob, same, rtol=0, atol=LOGITS
    )


def test_in_bfloat16_a_row_is_as_far_from_float32_as_the_full_forward(
    tiny_model: LanguageModel, random_model: Random
) -> None:
    model, rng = random_model(tiny_model, 3, 3, 4, 2, "sdpa"), np.random.default_rng(3)
    tokens, site, last = rng.integers(0, 1000, 20), Site(1, "resid_post"), np.array([19])
    delta = rng.normal(size=(9, model.d_model)).astype(np.float32)
    exact = Tail(model, tokens).added(site, delta).log_prob
    half = replace(model, network=copy.deepcopy(model.network).to(torch.bfloat16))
    ours = Tail(half, tokens).added(site, delta).log_prob
    edits = [Edit(site, "add", last, row[None]) for row in delta]
    full = np.stack([answer_probs(half, tokens[None], last, edits=[e]).log_prob[0, 0] for e in edits])
    rms = np.sqrt(np.square(full - exact).mean())
    assert 0 < rms < 0.2
    assert np.sqrt(np.square(ours - exact).mean()) < 1.5 * rms


@settings(max_examples=15)
@given(shapes, st.integers(2, 20), st.integers(2, 20))
def test_the_last_residual_of_a_donor_of_any_length_gives_the_donors_answer(
    tiny_model: LanguageModel, build: Random, shape: tuple, donor_length: int, length: int
) -> None:
    seed, blocks, (heads, kv_heads), kind = shape
    model, rng = build(tiny_model, seed, blocks, heads, kv_heads, kind), np.random.default_rng(seed)
    donor, recipient = (rng.integers(0, 1000, size) for size in (donor_length, length))
    source, tail = Tail(model, donor), Tail(model, recipient)
    found = tail.run(source.resid_pre(blocks)[None], blocks).log_prob[0]
    wanted = answer_probs(model, donor[None], np.array([donor_length - 1])).log_prob[0, 0]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=LOGITS)


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_prompts_prepared_together_are_each_as_alone(
    tiny_model: LanguageModel, build: Random, kind: str
) -> None:
    model, rng = build(tiny_model, 0, 3, 4, 2, kind), np.random.default_rng(0)
    tokens = rng.integers(0, 1000, (7, 20))
    delta = rng.normal(size=(5, model.d_model)).astype(np.float32)
    for row, tail in zip(tokens, tails_of(model, tokens, batch=3), strict=True):
        alone = Tail(model, row).added(Site(0, "resid_post"), delta).log_prob
        np.testing.assert_allclose(
            tail.added(Site(0, "resid_post"), delta).log_prob, alone, rtol=0, atol=LOGITS
        )


def test_rows_do_not_see_each_other(tiny_model: LanguageModel, build: Random) -> None:
    """The same row beside others, or alone: a mask that let rows see their neighbours would change it."""
    model, rng = build(tiny_model, 1, 2, 2, 1, "sdpa"), np.random.default_rng(1)
    tail = Tail(model, rng.integers(0, 1000, 9))
    rows = torch.as_tensor(30 * rng.normal(size=(2 * WIDTH + 3, model.d_model)).astype(np.float32))
    together = tail.run(rows, 0).log_prob
    for i in (0, 1, WIDTH, len(rows) - 1):
        np.testing.assert_allclose(tail.run(rows[i : i + 1], 0).log_prob[0], together[i], rtol=0, atol=LOGITS)


def test_no_rows_give_no_answers(tiny_model: LanguageModel) -> None:
    tail = Tail(tiny_model, np.arange(2, 10))
    assert tail.run(torch.zeros(0, tiny_model.d_model), 1).log_prob.shape == (0, 1000)


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("hook", ["resid_pre", "resid_mid", "resid_post", "mlp_out"])
@pytest.mark.parametrize("suffix", [1, 5])
def test_each_prompt_has_the_answers_it_has_alone(
    tiny_model: LanguageModel, random_model: Random, in_float64: InFloat64, hook: str, kind: str, suffix: int
) -> None:
    """Also at the last block, with no row, with more rows than a sequence holds, and in tiny batches."""
    model, rng = in_float64(random_model(tiny_model, 5, 3, 4, 2, kind)), np.random.default_rng(5)
    tokens = rng.integers(0, 1000, (5, 20))
    counts = (3, 0, 150, 1, 64)
    deltas = [torch.as_tensor(rng.normal(size=(n, model.d_model)).astype(np.float32)) for n in counts]
    where = np.array([20 - suffix])
    for layer in (0, 2):
        site, tails = Site(layer, hook), tails_of(model, tokens, first=20 - suffix)
        found = added_together(tails, site, deltas, where)
        for tail in tails:
            tail.memory = 2**18
        assert tails[0].rows_at_once() < 60
        narrow = added_together(tails, site, deltas, where)
        for tail, delta, wide, few in zip(tails, deltas, found, narrow, strict=True):
            alone = tail.added(site, delta, positions=where).log_prob
            assert wide.log_prob.shape == (len(delta), 1000)
            np.testing.assert_allclose(wide.log_prob, alone, rtol=0, atol=1e-5)
            np.testing.assert_allclose(few.log_prob, alone, rtol=0, atol=1e-5)


def test_prompts_of_other_lengths_are_refused(tiny_model: LanguageModel) -> None:
    tails = [Tail(tiny_model, np.arange(2, end)) for end in (9, 10)]
    with pytest.raises(EditError, match="their lengths differ"):
        added_together(tails, Site(1, "mlp_out"), [torch.zeros(1, tiny_model.d_model)] * 2)
    assert added_together([], Site(1, "mlp_out"), []) == []
