"""The lens ends where the model does, and starts at the token's own embedding."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from iclens.core import BELIEFS, EditError, ModelError, Site, SiteError
from iclens.model.load import LanguageModel
from iclens.model.run import record, unembed
from iclens.patching.receiver import query_answers, up_to_query
from iclens.patching.runs import Runs
from iclens.patching.sweep import (
    PROBABILITIES,
    effects,
    lens_answers,
    lens_logits,
    logit_lens,
    readouts,
    unnormalised_logits,
)
from iclens.schemas import LensTable
from iclens.table import Floats

Make = Callable[..., Runs]
LOG_ODDS = tuple(f"log-odds of {belief}" for belief in BELIEFS)


def value(table: LensTable, role: str, layer: int, metric: str) -> float:
    row = table.where((table["role"] == role) & (table["layer"] == layer) & (table["metric"] == metric))
    assert len(row) == 1
    return float(row["value"][0])


def last_residuals(model: LanguageModel, runs: Runs) -> Floats:
    site, tokens = Site(model.n_blocks - 1, "resid_post"), up_to_query(runs.target)
    return record(model, tokens, [site], np.array([tokens.shape[1] - 1]))[site][:, 0]


def test_the_last_layer_is_the_models_own_answer(tiny_model: LanguageModel, make_runs: Make) -> None:
    runs = make_runs("S arm")
    table = logit_lens(tiny_model, runs)
    own = readouts(query_answers(tiny_model, runs.target, runs.words), runs)
    for metric, name in zip((*PROBABILITIES, *effects(runs)), (*PROBABILITIES, *LOG_ODDS), strict=True):
        assert value(table, "pre", tiny_model.n_blocks, name) == pytest.approx(own[metric].mean(), abs=1e-4)
    assert len(table) == 9 * (tiny_model.n_blocks + 1)
    last, first = (value(table, "pre", layer, "task on own x") for layer in (tiny_model.n_blocks, 0))
    assert last > 0.5 > 10 * first


def test_layer_0_knows_its_token_only(tiny_model: LanguageModel, make_runs: Make) -> None:
    runs = make_runs("S arm")
    table = logit_lens(tiny_model, runs, roles=("open", "pre"), layers=(0, 2))
    embedding = tiny_model.network.model.embed_tokens(torch.as_tensor(up_to_query(runs.target)[:, -1]))
    wanted = readouts(lens_answers(tiny_model, embedding.detach().numpy(), runs.words), runs)
    assert value(table, "pre", 0, LOG_ODDS[0]) == pytest.approx(wanted[effects(runs)[0]].mean(), abs=1e-5)
    assert value(table, "open", 0, LOG_ODDS[0]) != pytest.approx(
        value(table, "pre", 0, LOG_ODDS[0]), abs=1e-2
    )
    assert set(table["layer"]) == {0, 2} and set(table["role"]) == {"open", "pre"}
    assert (table["ci_low"] <= table["value"] + 1e-12).all() and (
        table["ci_high"] >= table["value"] - 1e-12
    ).all()


def test_logits_in_float32_are_the_models(tiny_model: LanguageModel, make_runs: Make) -> None:
    resid = last_residuals(tiny_model, make_runs("S arm"))
    with torch.no_grad():
        wanted = unembed(tiny_model.network, torch.as_tensor(resid)).numpy()
    np.testing.assert_allclose(lens_logits(tiny_model, resid), wanted, atol=1e-4)


def test_without_the_division_order_stays_and_probabilities_do_not(
    tiny_model: LanguageModel, make_runs: Make
) -> None:
    resid = last_residuals(tiny_model, make_runs("S arm"))
    with_norm, without = lens_logits(tiny_model, resid), unnormalised_logits(tiny_model, resid)
    np.testing.assert_array_equal(with_norm.argmax(axis=1), without.argmax(axis=1))
    scale = np.sqrt((resid.astype(float) ** 2).mean(axis=1) + 1e-6)
    np.testing.assert_allclose(with_norm * scale[:, None], without, rtol=1e-3, atol=1e-2)
    assert np.abs(with_norm - without).max() > 0.1


def test_what_is_not_there_is_refused(tiny_model: LanguageModel, make_runs: Make) -> None:
    runs = make_runs("S arm", n_prompts=2)
    with pytest.raises(SiteError, match="unknown"):
        logit_lens(tiny_model, runs, roles=("before",))
    with pytest.raises(EditError, match="layers run from 0 to 6"):
        logit_lens(tiny_model, runs, layers=(7,))
    with pytest.raises(ModelError, match="blocks are loaded"):
        logit_lens(replace(tiny_model, whole=False), runs)
