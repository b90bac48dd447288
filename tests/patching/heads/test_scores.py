"""Scores add up to dots of whole layers, logit attributions to the logit difference, masses to 1."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from iclens.core import EditError, Site, SiteError, position
from iclens.model.attention import attention_patterns
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, record
from iclens.patching.heads import (
    answer_directions,
    head_scores,
    last_position,
    logit_attributions,
    score_maps,
)
from iclens.patching.receiver import layer_site, up_to_query
from iclens.patching.runs import Runs
from iclens.patching.sweep import lens_logits

Make = Callable[..., Runs]


def test_scores_of_a_layer_add_up_to_the_dot_of_its_attention(
    tiny_model: LanguageModel, make_runs: Make
) -> None:
    runs, reference = make_runs("S arm"), 4
    tokens = up_to_query(runs.target)
    sites = [Site(layer, "attn_out") for layer in range(tiny_model.n_blocks)]
    end, more = np.array([tokens.shape[1] - 1]), [layer_site(tiny_model, 4), layer_site(tiny_model, 6)]
    held = {site: values[:, 0] for site, values in record(tiny_model, tokens, [*sites, *more], end).items()}
    scale = np.sqrt((held[more[1]].astype(float) ** 2).mean(axis=1) + 1e-6)
    maps = score_maps(tiny_model, last_position(tiny_model, tokens, reference_layer=reference))
    table = head_scores(tiny_model, runs, reference_layer=reference)
    for layer, site in enumerate(sites):
        wanted = (held[site] * held[more[0]]).sum(axis=1) / scale
        np.testing.assert_allclose(maps[:, layer].sum(axis=1), wanted, rtol=1e-4, atol=1e-4)
        assert table["score"][table["layer"] == layer].sum() == pytest.approx(
            wanted.mean(), rel=1e-3, abs=1e-4
        )
    assert len(table) == 24 and set(table["reference_layer"]) == {4}
    assert (table["score_low"] <= table["score"]).all() and (table["score"] <= table["score_high"]).all()


def test_direct_effects_and_the_rest_are_the_logit_difference(
    tiny_model: LanguageModel, make_runs: Make
) -> None:
    """embedding + Σ heads + Σ MLPs, each along the answer, is what the model's logits say."""
    runs = make_runs("S arm")
    tokens = up_to_query(runs.target)
    end = np.array([tokens.shape[1] - 1])
    _, ids = tiny_model.answer_space()
    answers = ids.numpy()[runs.own.astype(int)]
    read = last_position(tiny_model, tokens, reference_layer=2)
    first, last = Site(0, "resid_pre"), Site(tiny_model.n_blocks - 1, "resid_post")
    mlps = [Site(layer, "mlp_out") for layer in range(tiny_model.n_blocks)]
    held = record(tiny_model, tokens, [first, last, *mlps], end)
    along = answer_directions(tiny_model, answers)
    others = sum((held[site][:, 0] * along).sum(axis=1) for site in (first, *mlps)) / read.scale
    logits = lens_logits(tiny_model, held[last][:, 0])
    wanted = logits[np.arange(len(answers)), answers] - logits[:, ids.numpy()].mean(axis=1)
    found = logit_attributions(tiny_model, read, answers).sum(axis=(1, 2)) + others
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)
    table = head_scores(tiny_model, runs, reference_layer=2)
    assert table["attribution"].sum() == pytest.approx((wanted - others).mean(), rel=1e-3, abs=1e-3)


def test_a_zeroed_head_has_score_0_and_no_direct_effect(tiny_model: LanguageModel, make_runs: Make) -> None:
    tokens = up_to_query(make_runs("S arm").target)
    last = np.array([tokens.shape[1] - 1])
    edit = Edit(Site(2, "z"), "zero", last, heads=np.array([2]))
    read = last_position(tiny_model, tokens, reference_layer=4, edits=[edit])
    maps, plain = score_maps(tiny_model, read), score_maps(tiny_model, last_position(
        tiny_model, tokens, reference_layer=4
    ))  # fmt: skip
    assert not maps[:, 2, 2].any()
    assert not logit_attributions(tiny_model, read, np.full(len(tokens), 5))[:, 2, 2].any()
    assert np.abs(plain[:, 2, 2]).max() > 1e-2
    assert (
        np.abs(maps[:, 1] * read.scale[:, None] - plain[:, 1] * read.scale[:, None]).max() > 1e-3
    )  # reference


def test_masses_are_those_of_the_pattern(tiny_model: LanguageModel, make_runs: Make) -> None:
    runs = make_runs("S arm")
    tokens = up_to_query(runs.target)
    table = head_scores(tiny_model, runs, reference_layer=3, layers=(1, 3))
    pattern = attention_patterns(tiny_model, tokens, (3,), np.array([tokens.shape[1] - 1]))[3][:, 1, 0]
    row = table.where((table["layer"] == 3) & (table["head"] == 1))
    labels = [position("lab", example) for example in range(4)]
    mass, bos = pattern[:, labels].sum(axis=1).mean(), pattern[:, 0].mean()
    assert row["label_mass"][0] == pytest.approx(mass, abs=1e-6)
    assert row["bos_mass"][0] == pytest.approx(bos, abs=1e-6)
    assert row["own_x_mass"][0] == pytest.approx(pattern[:, position("x", 4)].mean(), abs=1e-6)
    assert row["label_share"][0] == pytest.approx(mass / (1 - bos), rel=1e-5)
    assert (table["label_mass"] + table["own_x_mass"] + table["bos_mass"] < 1 + 1e-6).all()
    assert len(table) == 8 and (table["reason"] == "").all() and table["label_mass"].max() > 0.3


def test_attention_on_bos_alone_gives_no_share(
    tiny_model: LanguageModel, make_runs: Make, monkeypatch
) -> None:
    import iclens.patching.heads as scores

    def sink(
        model: LanguageModel, tokens: np.ndarray, layers: tuple[int, ...], *_: object, **__: object
    ) -> dict:
        pattern = np.zeros((len(tokens), model.n_heads, 1, tokens.shape[1]), dtype=np.float32)
        pattern[..., 0] = 1
        return dict.fromkeys(layers, pattern)

    monkeypatch.setattr(scores, "attention_patterns", sink)
    table = head_scores(tiny_model, make_runs("S arm", n_prompts=2), reference_layer=3)
    assert np.isnan(table["label_share"]).all() and set(table["reason"]) == {scores.ON_BOS}


def test_word_answers_have_a_direct_effect(tiny_model: LanguageModel, make_runs: Make) -> None:
    runs = make_runs("S arm", task="word:parity", n_prompts=3)
    assert runs.words
    table = head_scores(tiny_model, runs, reference_layer=3)
    assert np.isfinite(table["attribution"]).all() and table["attribution"].max() > 0.1


def test_layers_that_are_not_there_are_refused(tiny_model: LanguageModel, make_runs: Make) -> None:
    runs = make_runs("S arm", n_prompts=2)
    with pytest.raises(EditError, match="layers run from 0 to 6"):
        head_scores(tiny_model, runs, reference_layer=8)
    with pytest.raises(SiteError):
        head_scores(tiny_model, runs, reference_layer=3, layers=(6,))
    assert torch.is_grad_enabled()
