"""Heads and MLPs of every architecture add up: to the residual's change, and to the logits they explain."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from iclens.core import Site
from iclens.model.load import LanguageModel, as_numpy
from iclens.model.run import record
from iclens.patching.heads import (
    Ablation,
    _changes,
    ablation_edits,
    answer_directions,
    direct_by_prompt,
    last_position,
    logit_attributions,
    score_maps,
)
from iclens.patching.receiver import patch_query, query_answers, query_position, up_to_query
from iclens.patching.runs import Runs
from iclens.patching.sweep import logit_lens, sweep

DEPTH, WIDTH = 3, 32
SIZES = {
    "vocab_size": 1078, "hidden_size": WIDTH, "intermediate_size": 40, "num_hidden_layers": DEPTH,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "initializer_range": 0.2,
}  # fmt: skip
GEMMA = SIZES | {"head_dim": 8, "sliding_window": 6, "final_logit_softcapping": None}
KINDS: dict[str, dict[str, Any]] = {
    "llama": SIZES, "qwen2": SIZES, "gemma2": GEMMA | {"attn_logit_softcapping": 2.0}, "gemma3_text": GEMMA,
    "olmo2": SIZES, "phi3": SIZES | {"pad_token_id": None}, "gpt_neox": SIZES,
    "gpt2": {"vocab_size": 1078, "n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "n_positions": 256,
             "initializer_range": 0.2},
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tiny_model: LanguageModel) -> LanguageModel:
    """Random weights in float64, with the shipped tokenizer; no norm or bias stands where it starts."""
    torch.manual_seed(3)
    kind = request.param
    network: Any = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **KINDS[kind]),
        attn_implementation="eager" if kind == "gemma2" else "sdpa",
    )
    with torch.no_grad():
        for values in network.parameters():
            if values.ndim == 1:
                values.add_(0.3 * torch.randn_like(values))
    network.requires_grad_(False).eval().double()
    return LanguageModel(kind, network, tiny_model.tokenizer, DEPTH, True)


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_changes_of_components_add_up_to_that_of_the_residual(
    model: LanguageModel, make_runs: Any, kind: str
) -> None:
    runs = make_runs("S arm")
    tokens, here, last = up_to_query(runs.target), query_position(runs.target), Site(2, "resid_post")
    edits = ablation_edits(model, runs, Ablation(((0, 1), (1, 2)), kind), 32)
    components, change = _changes(model, runs, edits, range(DEPTH), 32)
    before, after = (record(model, tokens, [last], here, edits=some)[last][:, 0] for some in ((), edits))
    np.testing.assert_allclose(change.sum(dim=1), after - before, rtol=1e-4, atol=1e-4)
    assert np.abs(after - before).max() > 1e-3
    assert [c.part for c in components].count("ablated head") == 2
    of_first = sum(c.layer == 0 and c.head >= 0 for c in components)
    assert of_first == (4 if model.adapter.after_attention else 1)
    direct = direct_by_prompt(model, runs, Ablation(((0, 1), (1, 2)), kind))
    assert all(np.isfinite(part).all() for part in direct.sums.values())


def test_heads_mlps_and_the_embedding_explain_the_logits(model: LanguageModel, make_runs: Any) -> None:
    """The final norm's division frozen, and its bias and those of attention added."""
    runs, adapter = make_runs("S arm"), model.adapter
    tokens = up_to_query(runs.target)
    end, ids = np.array([tokens.shape[1] - 1]), model.answer_space()[1].numpy()
    answers = ids[runs.answer.astype(int)]
    read = last_position(model, tokens, reference_layer=2)
    first, last = Site(0, "resid_pre"), Site(DEPTH - 1, "resid_post")
    mlps = [Site(layer, "mlp_out") for layer in range(DEPTH)]
    held = record(model, tokens, [first, last, *mlps], end)
    along = answer_directions(model, answers)
    biases = [adapter.head_weights(block, "o")[1] for block in adapter.layers]
    biases = [np.zeros(WIDTH) if bias is None else as_numpy(bias) for bias in biases]
    parts = [*(held[site][:, 0] for site in (first, *mlps)), sum(biases)[None]]
    others = sum((part * along).sum(axis=1) for part in parts) / read.scale

    def difference(logits: np.ndarray) -> np.ndarray:
        return logits[np.arange(len(answers)), answers] - logits[:, ids].mean(axis=1)

    added = getattr(adapter.final_norm, "bias", None)
    if added is not None:
        constant = np.repeat(as_numpy(adapter.unembedding @ added)[None], len(answers), axis=0)
        others = others + difference(constant)
    found = logit_attributions(model, read, answers).sum(axis=(1, 2)) + others
    with torch.no_grad():
        logits = as_numpy(model.network(torch.as_tensor(tokens)).logits[:, -1])
    np.testing.assert_allclose(found, difference(logits), rtol=1e-4, atol=1e-4)
    for_reference = record(model, tokens, [Site(2, "resid_pre")], end)[Site(2, "resid_pre")][:, 0]
    attention = record(model, tokens, [Site(1, "attn_out")], end)[Site(1, "attn_out")][:, 0]
    wanted = ((attention - biases[1]) * for_reference).sum(axis=1) / read.scale
    np.testing.assert_allclose(score_maps(model, read)[:, 1].sum(axis=1), wanted, rtol=1e-4, atol=1e-4)


def test_the_donors_last_residual_gives_the_donors_answers(model: LanguageModel, make_runs: Any) -> None:
    runs = make_runs("S arm", n_prompts=4)
    patched, base = patch_query(model, runs, [0, DEPTH])
    donors, recipients = (query_answers(model, run, runs.words) for run in (runs.donor, runs.recipient))
    np.testing.assert_allclose(patched[1].log_prob, donors.log_prob, rtol=1e-4, atol=1e-4)
    for read in base:
        np.testing.assert_allclose(read.log_prob, recipients.log_prob, rtol=1e-4, atol=1e-4)
    # the same token enters block 0, at the same position
    np.testing.assert_allclose(patched[0].log_prob, recipients.log_prob, rtol=1e-4, atol=1e-4)
    assert np.abs(donors.log_prob - recipients.log_prob).max() > 0.01
    swept = sweep(model, runs, layers=[DEPTH], draws=20)
    lens = logit_lens(model, Runs(runs.task, runs.donor, runs.donor, runs.donor), layers=[DEPTH], draws=20)
    assert np.isfinite(swept["value"]).all() and np.isfinite(lens["value"]).all()
