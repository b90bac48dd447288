"""Does the lens over the whole vocabulary say what the model says, and what the lens over answers says?"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from iclens.core import EditError, ModelError, position
from iclens.model.load import LanguageModel, load_model
from iclens.patching.receiver import up_to_query
from iclens.patching.runs import build_runs
from iclens.patching.sweep import lens_answers, lens_tokens
from iclens.prompts.tasks import parse_task


def test_after_the_last_block_it_is_the_model(tiny_model: LanguageModel) -> None:
    runs = build_runs(tiny_model.tokenizer, parse_task("2x+3"), n_prompts=4, donor_examples=5, seed=1)
    ids, at = up_to_query(runs.target), position("pre", 5)
    asked = np.array([tiny_model.tokenizer.convert_tokens_to_ids(y) for y in runs.own])
    found = lens_tokens(tiny_model, ids, at, asked, n_top=4)
    with torch.no_grad():
        logits = tiny_model.network(torch.as_tensor(ids)).logits[:, at].double()
    want = logits.softmax(dim=-1).numpy()
    assert found.layers == tuple(range(tiny_model.n_blocks + 1))
    assert found.top.shape == (4, tiny_model.n_blocks + 1, 4)
    np.testing.assert_array_equal(found.top[:, -1], np.argsort(-want, axis=1)[:, :4])
    np.testing.assert_allclose(found.top_prob[:, -1], -np.sort(-want, axis=1)[:, :4], atol=1e-5)
    np.testing.assert_allclose(found.asked_prob[:, -1], want[np.arange(4), asked], atol=1e-5)


def test_every_layer_is_read_as_answers_are(tiny_model: LanguageModel) -> None:
    runs = build_runs(tiny_model.tokenizer, parse_task("2x+3"), n_prompts=2, donor_examples=3, seed=2)
    ids, at = up_to_query(runs.target), position("pre", 3)
    asked = np.array([tiny_model.tokenizer.convert_tokens_to_ids(y) for y in runs.own])
    found = lens_tokens(tiny_model, ids, at, asked, layers=(1, 3))
    assert found.layers == (1, 3)
    with torch.no_grad():
        states = tiny_model.network(torch.as_tensor(ids), output_hidden_states=True).hidden_states
    for k, layer in enumerate(found.layers):  # hidden_states[L] enters block L
        answers = lens_answers(tiny_model, states[layer][:, at].numpy())
        np.testing.assert_allclose(found.asked_prob[:, k], answers.of(runs.own), atol=1e-5)
    assert (np.diff(found.top_prob, axis=-1) <= 0).all()


def test_refusals(tiny_model: LanguageModel) -> None:
    ids = np.zeros((1, 3), dtype=int)
    with pytest.raises(EditError, match="layers run from 0"):
        lens_tokens(tiny_model, ids, 2, np.array([5]), layers=(99,))
    part = load_model(tiny_model.name, blocks=2)
    with pytest.raises(ModelError, match="only 2 blocks"):
        lens_tokens(part, ids, 2, np.array([5]))
