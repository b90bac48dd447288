"""Controls of a patch: the same addition elsewhere, from another task, backwards."""

from dataclasses import replace

import numpy as np
import pytest

from iclens.core import EditError, SiteError, position
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, answer_probs
from iclens.patching.latents import single_effects
from iclens.patching.receiver import gather, read_lent, up_to_query
from iclens.patching.sets import joint, patch_controls
from iclens.prompts.beliefs import AnswerProbs, parse_belief
from iclens.schemas import ControlTable

from ..conftest import MakeRuns, MakeSae

PUSH = 1e-5
"""The model is in float64; what is added is a float32 of the SAE."""


def effect(table: ControlTable, latents: str, control: str, belief: str = "exact") -> float:
    rows = (table["latents"] == latents) & (table["control"] == control) & (table["belief"] == belief)
    (found,) = table["effect"][rows]
    return float(found)


def test_controls_are_what_their_names_say(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    runs = replace(make_runs(n_prompts=12), declared=(parse_belief("against:3x"),))
    held = gather(exact_model, make_sae(), runs)
    one, pair = held.differing[:1], held.differing[1:3]
    table = patch_controls(
        held, [one, pair], wrong=make_runs(n_prompts=12, task="4x+5"), roles=("x", "comma")
    )
    name = str(one[0])
    both = f"{pair[0]} {pair[1]}"
    assert set(table["control"]) == {
        "own", "sign flip", "wrong role x", "wrong role comma", "wrong task 4x+5"
    }  # fmt: skip
    own = single_effects(held, one)[held.test].mean(axis=0)[0]
    for b, belief in enumerate(held.beliefs):
        assert effect(table, name, "own", belief) == pytest.approx(own[b], abs=PUSH)
    assert held.beliefs[-1] == "against:3x"
    flipped = np.mean([held.effects(int(i), -joint(held, pair)[int(i)][None])[0, 3] for i in held.test])
    assert effect(table, both, "sign flip") == pytest.approx(flipped, abs=PUSH)
    tokens = up_to_query(runs.recipient)[held.test]
    where, end = np.array([position("x", runs.recipient.n_examples - 1)]), np.array([tokens.shape[1] - 1])
    edit = Edit(held.sae.site, "add", where, joint(held, pair)[held.test][:, None].numpy())
    words = tuple(held.tails[0].answers[1000:])
    probs = answer_probs(exact_model, tokens, end, edits=[edit], extra=words)
    after = [
        read_lent(AnswerProbs(probs.answers, probs.log_prob[k]), runs, i, held.lent[i])
        for k, i in enumerate(held.test.tolist())
    ]
    wanted = (np.concatenate(after) - held.base[held.test]).mean(axis=0)
    for b, belief in enumerate(held.beliefs):
        assert effect(table, both, "wrong role x", belief) == pytest.approx(wanted[b], abs=PUSH)
    assert effect(table, both, "wrong role x") != pytest.approx(effect(table, both, "own"), abs=1e-3)


def test_values_of_the_same_task_are_its_own_and_of_another_are_not(
    exact_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    runs = make_runs(n_prompts=12)
    held = gather(exact_model, make_sae(), runs)
    groups = [held.differing]
    name = " ".join(str(f) for f in held.differing)
    alike = patch_controls(held, groups, wrong=runs, roles=())
    assert effect(alike, name, "wrong task 2x+3") == pytest.approx(effect(alike, name, "own"), abs=PUSH)
    other = patch_controls(held, groups, wrong=make_runs(n_prompts=12, task="x+7"), roles=())
    assert effect(other, name, "wrong task x+7") != pytest.approx(effect(other, name, "own"), abs=1e-3)


def test_controls_that_cannot_be_made_are_one_line(
    tiny_model: LanguageModel, make_runs: MakeRuns, make_sae: MakeSae
) -> None:
    held = gather(tiny_model, make_sae(), make_runs())
    groups = [held.differing[:1]]
    with pytest.raises(EditError, match="other queries"):
        patch_controls(held, groups, wrong=make_runs(n_prompts=7))
    with pytest.raises(SiteError, match="Nearest: comma"):
        patch_controls(held, groups, roles=("coma",))
    needed = gather(tiny_model, make_sae(), make_runs(), direction="necessity")
    with pytest.raises(EditError, match="direction='sufficiency'"):
        patch_controls(needed, groups, wrong=make_runs())
