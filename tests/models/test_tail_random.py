"""The tail engine on random models of many shapes: equal to one full forward pass per edit, row by row."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from iclens.models.forward import answer_probs
from iclens.models.load import LanguageModel
from iclens.models.tail import WIDTH, Tail, tails_of
from iclens.names import Site
from iclens.tables.edits import Edit

LOGITS = 1e-5


def random_model(like: LanguageModel, seed: int, blocks: int, heads: int, kv_heads: int, kind: str):
    """A Llama with random weights, float32, and the tokenizer of `like`."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=like.network.config.vocab_size, hidden_size=heads * 8, intermediate_size=40,
        num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=8,
        max_position_embeddings=256, initializer_range=0.15, attn_implementation=kind,
    )  # fmt: skip
    network = LlamaForCausalLM(config).eval().requires_grad_(False)
    return LanguageModel("random", network, like.tokenizer, blocks, True)


shapes = st.tuples(
    st.integers(0, 2**31), st.integers(1, 3), st.sampled_from([(1, 1), (2, 1), (4, 2), (4, 4)]),
    st.sampled_from(["sdpa", "eager"]),
)  # fmt: skip


@settings(max_examples=25)
@given(shapes, st.integers(2, 30), st.integers(1, WIDTH + 9), st.data())
def test_rows_equal_full_forward_passes(
    tiny_model: LanguageModel, shape: tuple, length: int, n_rows: int, data: st.DataObject
) -> None:
    seed, blocks, (heads, kv_heads), kind = shape
    model, rng = random_model(tiny_model, seed, blocks, heads, kv_heads, kind), np.random.default_rng(seed)
    tokens = rng.integers(0, model.network.config.vocab_size, length)
    layer = data.draw(st.integers(0, blocks - 1))
    hook = data.draw(st.sampled_from(["resid_pre", "resid_post", "mlp_out"]))
    delta = rng.normal(size=(n_rows, model.d_model)).astype(np.float32)
    delta[0] = 0
    tail = Tail(model, tokens)
    found = tail.added(Site(layer, hook), delta).log_prob
    entry, last = tail.entry(Site(layer, hook)), np.array([length - 1])
    base = tail.run(tail.resid_pre(entry)[None], entry).log_prob[0]
    np.testing.assert_allclose(found[0], base, rtol=1e-6, atol=1e-6)
    for row in {0, n_rows // 2, n_rows - 1}:
        edit = Edit(Site(layer, hook), "add", last, delta[row : row + 1])
        wanted = answer_probs(model, tokens[None], last, edits=[edit]).log_prob[0, 0]
        np.testing.assert_allclose(found[row], wanted, rtol=0, atol=LOGITS)


@settings(max_examples=15)
@given(shapes, st.integers(2, 20), st.integers(2, 20))
def test_the_last_residual_of_a_donor_of_any_length_gives_the_donors_answer(
    tiny_model: LanguageModel, shape: tuple, donor_length: int, length: int
) -> None:
    seed, blocks, (heads, kv_heads), kind = shape
    model, rng = random_model(tiny_model, seed, blocks, heads, kv_heads, kind), np.random.default_rng(seed)
    donor, recipient = (rng.integers(0, 1000, size) for size in (donor_length, length))
    source, tail = Tail(model, donor), Tail(model, recipient)
    found = tail.run(source.resid_pre(blocks)[None], blocks).log_prob[0]
    wanted = answer_probs(model, donor[None], np.array([donor_length - 1])).log_prob[0, 0]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=LOGITS)


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_prompts_prepared_together_are_each_as_alone(tiny_model: LanguageModel, kind: str) -> None:
    model, rng = random_model(tiny_model, 0, 3, 4, 2, kind), np.random.default_rng(0)
    tokens = rng.integers(0, 1000, (7, 20))
    delta = rng.normal(size=(5, model.d_model)).astype(np.float32)
    for row, tail in zip(tokens, tails_of(model, tokens, batch=3), strict=True):
        alone = Tail(model, row).added(Site(0, "resid_post"), delta).log_prob
        np.testing.assert_allclose(
            tail.added(Site(0, "resid_post"), delta).log_prob, alone, rtol=0, atol=LOGITS
        )


def test_rows_do_not_see_each_other(tiny_model: LanguageModel) -> None:
    """The same row beside others, or alone: a mask that let rows see their neighbours would change it."""
    model, rng = random_model(tiny_model, 1, 2, 2, 1, "sdpa"), np.random.default_rng(1)
    tail = Tail(model, rng.integers(0, 1000, 9))
    rows = torch.as_tensor(30 * rng.normal(size=(2 * WIDTH + 3, model.d_model)).astype(np.float32))
    together = tail.run(rows, 0).log_prob
    for i in (0, 1, WIDTH, len(rows) - 1):
        np.testing.assert_allclose(tail.run(rows[i : i + 1], 0).log_prob[0], together[i], rtol=0, atol=LOGITS)


def test_no_rows_give_no_answers(tiny_model: LanguageModel) -> None:
    tail = Tail(tiny_model, np.arange(2, 10))
    assert tail.run(torch.zeros(0, tiny_model.d_model), 1).log_prob.shape == (0, 1000)
