"""A sliding window is honoured wherever attention is computed: everything equals transformers' own run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from iclens.core import ModelError, Site
from iclens.model.attention import Knockout, attention_patterns, head_outputs, record_knockout
from iclens.model.load import LanguageModel, load_model
from iclens.model.run import Edit, answer_probs, record, record_and_answer, run_blocks, run_to_end, unembed
from iclens.model.tail import Tail, added_together, tails_of
from iclens.training.data import recorder

Save = Callable[..., Path]
LENGTH = 40
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
WINDOWS = [1, 5, LENGTH - 1, LENGTH, LENGTH + 1, None]
"""Shorter than, as long as and longer than the prompt; none at all."""


@pytest.fixture
def tokens() -> np.ndarray:
    ids = np.random.default_rng(7).integers(1, 1000, (3, LENGTH))
    ids[:, 0] = 0
    return ids


@pytest.fixture
def windowed(saved_model: Save) -> Callable[..., LanguageModel]:
    def load(window: int | None, **options: Any) -> LanguageModel:
        return load_model(saved_model("mistral", name=f"window-{window}", sliding_window=window), **options)

    return load


def theirs(model: LanguageModel, tokens: np.ndarray) -> Any:
    """Transformers' own run of the same folder, with eager attention."""
    network: Any = AutoModelForCausalLM.from_pretrained(model.name, attn_implementation="eager").eval()
    with torch.no_grad():
        return network(torch.as_tensor(tokens), output_attentions=True, output_hidden_states=True)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("window", WINDOWS)
def test_logits_are_those_of_transformers(
    windowed: Callable[..., LanguageModel], tokens: np.ndarray, window: int | None, attention: str
) -> None:
    model = windowed(window, attention=attention)
    wanted = theirs(model, tokens).logits
    with torch.no_grad():
        every = run_blocks(model.network, model.embed(tokens), 0, model.n_blocks)
        some = run_to_end(model.network, model.embed(tokens), torch.tensor([3, LENGTH - 1]))
        torch.testing.assert_close(unembed(model.network, every), wanted, **CLOSE)
        torch.testing.assert_close(unembed(model.network, some), wanted[:, [3, LENGTH - 1]], **CLOSE)


def test_the_window_matters(windowed: Callable[..., LanguageModel], tokens: np.ndarray) -> None:
    narrow, wide = (theirs(windowed(window), tokens).logits for window in (5, None))
    assert (narrow - wide).abs().max() > 1  # else the tests here would show nothing


@pytest.mark.parametrize("window", [1, 5, None])
def test_recordings_are_the_hidden_states(
    windowed: Callable[..., LanguageModel], tokens: np.ndarray, window: int | None
) -> None:
    model, sites, every = (
        windowed(window),
        [Site(layer, "resid_pre") for layer in range(3)],
        np.arange(LENGTH),
    )
    hidden = theirs(model, tokens).hidden_states
    found = [record(model, tokens, sites, every), recorder(model)(tokens, sites)]
    found += [values for values, _ in record_and_answer(model, tokens, sites, every, np.array([9]))]
    for values in found:
        for site in sites:
            torch.testing.assert_close(torch.as_tensor(values[site]), hidden[site.layer], **CLOSE)


@pytest.mark.parametrize("window", [1, 5, None])
def test_patterns_are_those_of_transformers(
    windowed: Callable[..., LanguageModel], tokens: np.ndarray, window: int | None
) -> None:
    model, queries = windowed(window), np.array([0, 4, 5, LENGTH - 1])
    found, wanted = attention_patterns(model, tokens, [0, 2], queries), theirs(model, tokens).attentions
    for layer in (0, 2):
        np.testing.assert_allclose(found[layer], wanted[layer][:, :, queries], **CLOSE)


@pytest.mark.parametrize("first", [0, 12, LENGTH - 3, LENGTH - 1])
@pytest.mark.parametrize("window", [1, 5, 30, None])
def test_a_tail_sees_no_further_than_the_model(
    windowed: Callable[..., LanguageModel], tokens: np.ndarray, window: int | None, first: int
) -> None:
    model, site = windowed(window, dtype=torch.float64), Site(0, "resid_post")
    rng, where = np.random.default_rng(1), np.unique([first, LENGTH - 1])
    deltas = [rng.normal(size=(n, 32)) for n in (4, 7)]
    tails = tails_of(model, tokens[:2], first=first)
    together = added_together(tails, site, [torch.as_tensor(delta) for delta in deltas], where)
    for row, (tail, delta, shared) in enumerate(zip(tails, deltas, together, strict=True)):
        alone = tail.added(site, delta, positions=where).log_prob
        repeated = np.repeat(tokens[row : row + 1], len(delta), axis=0)
        edit = Edit(site, "add", where, np.repeat(delta[:, None], len(where), axis=1))
        whole = answer_probs(model, repeated, np.array([LENGTH - 1]), edits=[edit]).log_prob[:, 0]
        np.testing.assert_allclose(alone, whole, rtol=0, atol=1e-5)
        np.testing.assert_allclose(shared.log_prob, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [5, None])
def test_a_cut_of_nothing_seen_changes_nothing(
    windowed: Callable[..., LanguageModel], tokens: np.ndarray, window: int | None
) -> None:
    model, sites, every = windowed(window), [Site(2, "resid_post")], np.arange(LENGTH)
    far = Knockout(np.array([30]), np.array([2]), (0, 1, 2))
    near = Knockout(np.array([30]), np.array([28]), (0, 1, 2))
    uncut = record(model, tokens, sites, every)[sites[0]]
    differs = [
        np.abs(record_knockout(model, tokens, sites, every, [cut])[sites[0]] - uncut).max()
        for cut in (far, near)
    ]
    assert differs[1] > 0.01
    assert differs[0] < 1e-4 if window else differs[0] > 1e-3


@pytest.mark.parametrize("window", [5, None])
def test_heads_add_up_to_what_attention_writes(
    windowed: Callable[..., LanguageModel], tokens: np.ndarray, window: int | None
) -> None:
    model, at = windowed(window), np.array([LENGTH - 1])
    found = record(model, tokens, [Site(1, "z"), Site(1, "attn_out")], at)
    heads = head_outputs(model, 1, found[Site(1, "z")][:, 0]).sum(dim=1)
    np.testing.assert_allclose(heads.numpy(), found[Site(1, "attn_out")][:, 0], **CLOSE)
    removed = Edit(Site(1, "z"), "zero", at, heads=np.arange(4))
    silent = record(model, tokens, [Site(1, "attn_out")], at, edits=[removed])[Site(1, "attn_out")]
    np.testing.assert_allclose(silent, 0, atol=1e-6)


def rewritten(folder: Path, **keys: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    return folder


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("layers", "window"), [
    (["sliding_attention"] * 3, 5), (["full_attention"] * 3, 5), (["full_attention"] * 3, None), (None, 5),
])  # fmt: skip
def test_the_types_of_layers_are_honoured(
    saved_model: Save, tokens: np.ndarray, layers: list[str] | None, window: int | None, attention: str
) -> None:
    """Transformers reads a Mistral that states `layer_types`, null too, as a Ministral."""
    folder = rewritten(saved_model("mistral", head_dim=8), sliding_window=window, layer_types=layers)
    model = load_model(folder, attention=attention)
    plain = window if layers != ["full_attention"] * 3 else None
    same = load_model(saved_model("mistral", name="plain", head_dim=8, sliding_window=plain))
    with torch.no_grad():
        found = unembed(model.network, run_blocks(model.network, model.embed(tokens), 0, model.n_blocks))
    wanted = theirs(model if window else same, tokens).logits  # without a window their Ministral cannot run
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert load_model(folder, blocks=2).n_blocks == 2
    assert same.fingerprint == model.fingerprint


@pytest.mark.parametrize("run", [
    lambda model, ids: record(model, ids, [Site(0, "resid_post")], np.array([1])),
    lambda model, ids: answer_probs(model, ids, np.array([1])),
    lambda model, ids: next(record_and_answer(model, ids, [Site(0, "z")], np.array([1]), np.array([1]))),
    lambda model, ids: attention_patterns(model, ids, [0], np.array([1])),
    lambda model, ids: record_knockout(model, ids, [Site(0, "z")], np.array([1]), []),
    lambda model, ids: Tail(model, ids[0]),
    lambda model, ids: recorder(model)(ids, [Site(0, "z")]),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_prompt_longer_than_the_model_or_beyond_its_vocabulary_is_refused(
    saved_model: Save, run: Callable[[LanguageModel, np.ndarray], object], kind: str
) -> None:
    model = load_model(saved_model(kind, max_position_embeddings=64))
    run(model, np.ones((2, 64), dtype=np.int64))
    with pytest.raises(ModelError, match=r"65 tokens, the model has 64 positions"):
        run(model, np.ones((2, 65), dtype=np.int64))
    for wrong in (-2, 1078):  # -1 is padding in training
        with pytest.raises(ModelError, match=rf"token {wrong} in .* tokens 0 to 1077"):
            run(model, np.full((2, 10), wrong))
