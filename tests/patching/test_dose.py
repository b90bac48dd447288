"""Pushing latents: equal to a full forward pass, to first order the direct logit effect; sums that close."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from iclens.activations import Activations, LatentActs
from iclens.core import BELIEFS, EditError, SaeError, Site, TableError, position
from iclens.growth.verdict import DOSES
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, answer_probs, record, unembed
from iclens.patching.dose import (
    OFF_ROLES,
    closure_table,
    curve_table,
    dose_table,
    injection_table,
    interaction_table,
    joint_push,
    natural_parts,
    off_role_effect,
    prepare_push,
    responses,
)
from iclens.patching.receiver import Receiver
from iclens.prompts.build import PromptSet, build_prompts
from iclens.prompts.tasks import parse_task
from iclens.saes.encode import encode
from iclens.saes.load import Sae
from iclens.stats import control_p
from iclens.tracking import belief_log_odds

from ..conftest import EXACT
from .conftest import D_SAE

N, SHOWN = 6, 3
LATENTS = np.array([3, 40, 77])
GROWTH = np.array([60.0, 30.0, -40.0])
OWN = BELIEFS.index("exact")
PUSH = 1e-3
"""What rounding a push to the SAE's float32 may do in a model in float64: it moves the push by some 2e-7 of
itself, and its effect, of up to 26 nats, by no more than a few times that share."""


def arm_of(model: LanguageModel, arm: str = "T", task: str = "2x+3", n: int = N) -> PromptSet:
    return build_prompts(model.tokenizer, parse_task(task), arm=arm, n_prompts=n, n_examples=9, seed=4)


def beliefs_of(model: LanguageModel, prompts: PromptSet, edits: tuple[Edit, ...] = ()) -> np.ndarray:
    """Log-odds at every `pre` in one full forward pass, [prompt example belief]."""
    return belief_log_odds(
        answer_probs(model, prompts.tokens, prompts.positions("pre"), edits=edits), prompts
    )


def prepared(
    model: LanguageModel, sae: Sae, prompts: PromptSet | None = None, shown: int = SHOWN
) -> Receiver:
    held = arm_of(model) if prompts is None else prompts
    return prepare_push(model, sae, held, shown, beliefs_of(model, held)[:, -1])


def tracked(model: LanguageModel, sae: Sae) -> LatentActs:
    prompts = arm_of(model)
    held = record(model, prompts.tokens, [sae.site], prompts.positions("pre"))[sae.site]
    return encode(sae, Activations(sae.site, "pre", held))


def pushed(model: LanguageModel, sae: Sae, delta: np.ndarray, role: str = "pre") -> np.ndarray:
    """Beliefs after a full forward pass with the push at one role of the query, nats [prompt belief]."""
    where = np.array([position(role, SHOWN)])
    edit = Edit(sae.site, "add", where, delta[None].astype(np.float64))
    return beliefs_of(model, arm_of(model), (edit,))[:, SHOWN]


@pytest.mark.parametrize("settings", [{}, {"rescale_acts_by_decoder_norm": True}])
@pytest.mark.parametrize("site", ["L0.resid_pre", "L2.resid_post", "L3.mlp_out"])
def test_pushes_equal_a_full_forward_pass_with_the_edit(exact_model, make_sae, site, settings):
    sae = make_sae(site, **settings)
    sae.network.W_dec.mul_(1.7)
    receiver = prepared(exact_model, sae)
    found = responses(receiver, LATENTS, GROWTH)
    unit = torch.zeros(1, D_SAE)
    for i, latent in enumerate(LATENTS):
        one = unit.clone()
        one[0, latent] = 1.0
        direction = (sae.decode(one) - sae.decode(unit))[0].numpy()
        for k in (0, 3, 5):
            wanted = pushed(exact_model, sae, DOSES[k] * GROWTH[i] * direction) - receiver.base
            np.testing.assert_allclose(found[i, :, k], wanted, rtol=1e-5, atol=PUSH)
    assert np.abs(found).max() > 0.1


def test_dose_zero_is_the_base_and_the_base_is_the_full_forward_pass(exact_model, make_sae):
    receiver = prepared(exact_model, make_sae())
    beliefs = beliefs_of(exact_model, receiver.prompts)
    np.testing.assert_allclose(receiver.base, beliefs[:, SHOWN], rtol=0, atol=EXACT)
    np.testing.assert_array_equal(responses(receiver, LATENTS, GROWTH, np.zeros(2)), 0)
    np.testing.assert_allclose(receiver.span, beliefs[:, -1] - receiver.base, rtol=0, atol=EXACT)


def test_just_before_the_unembedding_slopes_are_the_direct_logit_effect(exact_model, make_sae):
    """The gradient of the answer's log-odds along δ·d, by autograd through norm and unembedding alone."""
    last = Site(exact_model.n_blocks - 1, "resid_post")
    sae, small = make_sae(str(last)), 0.2 * np.abs(GROWTH)
    receiver = prepared(exact_model, sae)
    table, slopes = dose_table(receiver, LATENTS, small, None, n_controls=0, seed=0)
    resid = torch.stack([tail.resid_pre(exact_model.n_blocks) for tail in receiver.tails]).requires_grad_(
        True
    )
    answers, ids = exact_model.answer_space()
    own = torch.tensor([answers.index(y) for y in receiver.prompts.answer[:, SHOWN]])
    log_p = torch.log_softmax(unembed(exact_model.network, resid), dim=-1)[torch.arange(N), ids[own]]
    (log_p - torch.log1p(-log_p.exp())).sum().backward()
    assert resid.grad is not None
    analytic = small[:, None] * (sae.W_dec[LATENTS].double() @ resid.grad.T).numpy()
    np.testing.assert_allclose(slopes[..., OWN], analytic, rtol=0.02, atol=2e-4)
    assert np.abs(analytic).max() > 0.01
    rows = table.where(table["belief"] == "exact")
    np.testing.assert_allclose(rows["slope"], analytic.mean(axis=1), rtol=0.02, atol=2e-4)
    assert (rows["quadratic_share"] < 0.01).all()


def test_the_off_role_push_is_a_fired_edit_at_that_role(exact_model, make_sae):
    sae = make_sae()
    receiver = prepared(exact_model, sae)
    delta = 100 * sae.W_dec[7]
    found = off_role_effect(receiver, delta)
    wanted = (pushed(exact_model, sae, delta.numpy(), OFF_ROLES[0]) - receiver.base).mean(axis=0)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=PUSH)
    at_pre = receiver.effects_on_all(delta[None])[0].mean(axis=0)
    assert np.abs(found).max() > 1e-3
    assert not np.allclose(found, at_pre, atol=1e-2)


def test_the_table_states_shares_controls_and_every_belief(tiny_model, make_sae):
    sae = make_sae()
    receiver, acts = prepared(tiny_model, sae), tracked(tiny_model, sae)
    latents = np.unique(acts.index)[:2]
    table, slopes = dose_table(receiver, latents, np.ones(2), acts, n_controls=12, seed=3)
    assert tuple(table["belief"]) == BELIEFS * 2
    assert set(table["n_controls"]) == {12}
    np.testing.assert_allclose(table["slope"], slopes.mean(axis=1).ravel(), atol=1e-9)
    np.testing.assert_allclose(table["control_p"] * 13, np.round(table["control_p"] * 13), atol=1e-9)
    assert (table["slope_low"] < table["slope"]).all() and (table["slope"] < table["slope_high"]).all()
    rates = table["slope"] / np.tile(receiver.span.mean(axis=0), 2)
    known = np.isfinite(table["share"])
    assert known.any()
    np.testing.assert_allclose(table["share"][known], rates[known])
    again, _ = dose_table(receiver, latents, np.ones(2), acts, n_controls=12, seed=3)
    assert again.df.equals(table.df)


def test_controls_are_pushed_as_far_and_the_same_way(tiny_model, make_sae):
    sae = make_sae()
    sae.network.W_dec.mul_(torch.linspace(0.5, 3, D_SAE)[:, None])
    receiver, acts = prepared(tiny_model, sae), tracked(tiny_model, sae)
    live = np.unique(acts.index)
    for growth in (40.0, -40.0):
        table, _ = dose_table(receiver, live[:1], np.array([growth]), acts, n_controls=D_SAE, seed=0)
        own = receiver.effects_on_all(growth * sae.W_dec[live[:1]])[0].mean(axis=0)
        units = torch.nn.functional.normalize(sae.W_dec[live[1:]], dim=1)
        others = receiver.effects_on_all(growth * sae.W_dec[live[0]].norm() * units).mean(axis=1)
        assert set(table["n_controls"]) == {len(live) - 1}
        np.testing.assert_allclose(table["control_p"], control_p(own, others.T))


def test_curves_hold_the_base_and_every_dose(tiny_model, make_sae):
    receivers = [prepared(tiny_model, make_sae(), shown=shown) for shown in (2, 5)]
    parts = [(receiver, responses(receiver, LATENTS, GROWTH)) for receiver in receivers]
    table = curve_table(*(parts[0][0], LATENTS, parts[0][1]))
    one = table.where((table["latent"] == 40) & (table["belief"] == "exact"))
    assert one["dose"].tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]
    np.testing.assert_allclose(one["effect"], np.insert(parts[0][1][1, :, :, OWN].mean(axis=0), 2, 0.0))
    assert one["ci_low"][2] == one["ci_high"][2] == 0
    assert set(one["n_examples"]) == {2}
    assert not np.allclose(parts[0][1], parts[1][1], atol=1e-3)


def test_before_the_first_label_copy_is_undefined_and_says_so(tiny_model, make_sae):
    receiver = prepared(tiny_model, make_sae(), shown=0)
    table, slopes = dose_table(receiver, LATENTS, GROWTH, None, n_controls=0, seed=0)
    copy = table["belief"] == "copy"
    assert np.isnan(table["slope"][copy]).all() and np.isfinite(table["slope"][~copy]).all()
    assert set(table["reason"][copy]) == {"undefined for this task"}
    assert np.isnan(slopes[..., BELIEFS.index("copy")]).all()
    curves = curve_table(receiver, LATENTS, responses(receiver, LATENTS, GROWTH))
    assert (np.isnan(curves["effect"]) == (curves["belief"] == "copy")).all()


def test_a_belief_that_some_prompts_lack_is_undefined_in_every_table(tiny_model, make_sae):
    whole = prepared(tiny_model, make_sae())
    natural = whole.span
    natural[:3, OWN] = np.nan
    receiver = replace(whole, target=whole.base + natural)
    effects = responses(receiver, LATENTS, GROWTH)
    table, slopes = dose_table(receiver, LATENTS, GROWTH, None, n_controls=0, seed=0, effects=effects)
    closure = closure_table(receiver, slopes, LATENTS, GROWTH, (LATENTS, GROWTH))
    curves = curve_table(receiver, LATENTS, effects)
    for found, columns in (
        (table, ("slope", "slope_low", "share", "share_high")),
        (closure, ("closure", "closure_low", "closure_high", "joint", "listed")),
        (curves, ("effect", "ci_low", "ci_high")),
    ):
        rows = found.where(found["belief"] == "exact")
        assert all(np.isnan(rows[column]).all() for column in columns)
        assert set(rows["reason"]) == {f"undefined on 3 of {N} prompts"}
        others = found.where(found["belief"] == "numeric")
        assert np.isfinite(others[columns[0]]).all()
    assert np.isnan(slopes[..., OWN]).all()
    assert "exact" not in interaction_table(receiver, LATENTS, GROWTH)["belief"]


def test_a_share_is_not_stated_where_the_belief_does_not_grow(tiny_model, make_sae):
    grown = prepared(tiny_model, make_sae())
    flat = replace(grown, target=grown.base + np.where(np.arange(N)[:, None] % 2, 1.0, -1.0))
    table, slopes = dose_table(flat, LATENTS, GROWTH, None, n_controls=0, seed=0)
    assert np.isnan(table["share"]).all() and np.isfinite(table["slope"]).all()
    closure = closure_table(flat, slopes, LATENTS, GROWTH, (LATENTS, GROWTH))
    assert np.isnan(closure["closure"]).all()
    assert set(closure["reason"]) == {"the belief does not grow from here"}


def test_closure_is_the_sum_of_slopes_over_the_natural_growth(exact_model, make_sae):
    receiver = prepared(exact_model, make_sae())
    _, slopes = dose_table(receiver, LATENTS, GROWTH, None, n_controls=0, seed=0)
    listed = (np.array([3, 40, 77, 5]), np.array([60.0, 30.0, -40.0, 20.0]))
    table = closure_table(receiver, slopes, LATENTS, GROWTH, listed)
    row = table.where(table["belief"] == "exact")
    grown = receiver.span[:, OWN].mean()
    assert row["closure"][0] == pytest.approx(slopes[..., OWN].sum(axis=0).mean() / grown)
    both = receiver.effects_on_all(torch.as_tensor(joint_push(receiver, LATENTS, GROWTH))[None].float())[
        0, :, OWN
    ]
    assert row["joint"][0] == pytest.approx(both.mean() / grown, rel=1e-4)
    assert (row["n_latents"][0], row["n_listed"][0]) == (3, 4)
    assert row["listed"][0] != row["joint"][0]


def test_two_pushes_that_cancel_interact_by_minus_the_sum_of_their_effects(tiny_model, make_sae):
    receiver = prepared(tiny_model, make_sae())
    table = interaction_table(receiver, np.array([3, 3]), np.array([60.0, -60.0]))
    np.testing.assert_array_equal(table["both"], 0)
    np.testing.assert_allclose(table["interaction"], -(table["effect"] + table["other_effect"]), atol=1e-12)
    assert np.abs(table["interaction"]).max() > 1e-3
    assert (table["interaction_low"] <= table["interaction"]).all()


def test_small_pushes_do_not_interact(exact_model, make_sae):
    receiver = prepared(exact_model, make_sae())
    large, small = (
        interaction_table(receiver, LATENTS, scale * GROWTH).where(np.arange(10) % 5 == OWN)
        for scale in (8, 0.1)
    )
    relative = [
        np.abs(t["interaction"]).max() / np.abs([t["effect"], t["other_effect"]]).max()
        for t in (large, small)
    ]
    assert relative[1] < 0.02 < relative[0]


def test_the_parts_of_the_natural_growth_add_up_and_are_injected_as_they_are(exact_model, make_sae):
    sae, others = make_sae(), arm_of(exact_model, n=2 * N).select(np.arange(N, 2 * N))
    parts = natural_parts(exact_model, sae, others, SHOWN, batch=4)
    np.testing.assert_allclose(parts["all latents"] + parts["error only"], parts["full activation"])
    held = record(exact_model, others.tokens, [sae.site], others.positions("pre"))[sae.site].astype(float)
    wanted = (held[:, -1] - held[:, SHOWN]).mean(axis=0)
    np.testing.assert_allclose(parts["full activation"], wanted, atol=1e-4)
    receiver = prepared(exact_model, sae)
    table = injection_table(receiver, {"nothing": np.zeros(exact_model.d_model), **parts})
    assert tuple(dict.fromkeys(table["injected"])) == ("nothing", *parts)
    np.testing.assert_array_equal(table["effect"][table["injected"] == "nothing"], 0)
    whole = table.where((table["injected"] == "full activation") & (table["belief"] == "exact"))
    edit = Edit(sae.site, "add", np.array([position("pre", SHOWN)]), parts["full activation"][None])
    direct = beliefs_of(exact_model, receiver.prompts, (edit,))[:, SHOWN, OWN] - receiver.base[:, OWN]
    assert whole["effect"][0] == pytest.approx(direct.mean(), abs=PUSH)
    assert whole["share"][0] == pytest.approx(direct.mean() / receiver.span[:, OWN].mean(), rel=1e-4)
    undefined = np.isnan(table["share"])
    assert (table["reason"][undefined] != "").all() and (table["reason"][~undefined] == "").all()


def test_pushes_that_cannot_be_made_are_refused(tiny_model, make_sae):
    for hook in ("resid_mid", "attn_out", "mlp_in"):
        with pytest.raises(EditError, match="does not add to the residual"):
            prepared(tiny_model, make_sae(f"L2.{hook}"))
    for shown in (-1, 8):
        with pytest.raises(EditError, match="Choose n_examples from 0 to 7"):
            prepared(tiny_model, make_sae(), shown=shown)
    with pytest.raises(EditError, match="Choose n_examples from 0 to 7"):
        natural_parts(tiny_model, make_sae(), arm_of(tiny_model), 8)
    with pytest.raises(SaeError, match="normalises inputs"):
        prepared(tiny_model, make_sae(normalize_activations="layer_norm"))
    with pytest.raises(SaeError, match="transcoder"):
        prepared(tiny_model, replace(make_sae(), target=Site(3, "mlp_out")))
    with pytest.raises(SaeError, match="width 64"):
        prepared(tiny_model, replace(make_sae(), d_in=64))
    held = arm_of(tiny_model, "D")
    with pytest.raises(TableError, match="own sequence"):
        prepare_push(tiny_model, make_sae(), held, SHOWN, np.zeros((N, len(BELIEFS))))


def test_word_tasks_are_pushed_too(tiny_model, make_sae):
    prompts = arm_of(tiny_model, task="word:opposite")
    receiver = prepare_push(tiny_model, make_sae(), prompts, SHOWN, np.zeros((N, len(BELIEFS))))
    table, _ = dose_table(receiver, LATENTS, GROWTH, None, n_controls=0, seed=0)
    double = table["belief"] == "double"
    assert np.isnan(table["slope"][double]).all() and np.isfinite(table["slope"][~double]).all()
