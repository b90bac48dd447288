"""Latents at roles, beliefs at `pre`: one model pass, and the numbers that separate passes give."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from iclens.activations import Activations
from iclens.core import BELIEFS, ROLES, ModelError, SaeError, Site, SiteError, TableError
from iclens.model.run import answer_probs, record
from iclens.prompts.beliefs import log_odds
from iclens.prompts.build import joined
from iclens.saes.encode import encode
from iclens.tracking import (
    TRACKED_ROLES,
    belief_log_odds,
    direction_growth,
    in_turn,
    latent_inputs,
    most_changed,
    pre_activations,
    strongest,
    token_activations,
    track,
)  # fmt: skip

from .conftest import sampled_sae, steady

SITE = Site(2, "resid_post")


def test_every_site_and_role_is_followed(arms, saes) -> None:
    treated, _ = arms
    assert treated.latents.keys() == {(site, role) for site in saes for role in TRACKED_ROLES}
    for (site, role), latents in treated.latents.items():
        assert (latents.site, latents.role) == (site, role)
        assert (latents.n_prompts, latents.n_examples) == (64, 16)
        assert len(latents.index) <= 64 * 16 * saes[site].k
        assert (latents.value > 0).all()


def test_one_pass_gives_what_separate_passes_give(exact_model, saes, build) -> None:
    prompts = build("T", n_prompts=6, n_examples=5)
    tracked = track(exact_model, saes, prompts)
    probs = answer_probs(exact_model, prompts.tokens, prompts.positions("pre"))
    assert np.allclose(tracked.probs.log_prob, probs.log_prob, atol=1e-5)
    for role in TRACKED_ROLES:
        values = record(exact_model, prompts.tokens, [SITE], prompts.positions(role))[SITE]
        expected = encode(saes[SITE], Activations(SITE, role, values))
        found = tracked.latents[SITE, role]
        kept = steady(found.dense(), expected.dense())
        assert np.allclose(found.error_sq[kept], expected.error_sq[kept], rtol=1e-3)
        assert np.allclose(found.total_sq, expected.total_sq, rtol=1e-4)


def test_the_model_runs_once_a_batch_whatever_the_sites(tiny_model, saes, build) -> None:
    runs = []
    handle = tiny_model.network.model.layers[0].register_forward_hook(lambda *_: runs.append(1))
    try:
        track(tiny_model, saes, build("T", n_prompts=6, n_examples=4), batch=4)
    finally:
        handle.remove()
    assert len(runs) == 2


def test_the_batch_changes_nothing(exact_model, saes, build) -> None:
    prompts = build("S", n_prompts=7, n_examples=5)
    one, other = (track(exact_model, saes, prompts, batch=size) for size in (3, 7))
    for place, latents in one.latents.items():
        steady(latents.dense(), other.latents[place].dense())
        assert np.allclose(latents.total_sq, other.latents[place].total_sq, rtol=1e-4)
    assert np.allclose(one.probs.log_prob, other.probs.log_prob, atol=1e-5)


def test_the_order_of_prompts_moves_rows_only(exact_model, saes, build) -> None:
    prompts = build("T", n_prompts=6, n_examples=4)
    order = np.array([3, 1, 5, 0, 2, 4])
    one, other = track(exact_model, saes, prompts), track(exact_model, saes, prompts.select(order))
    for place, latents in one.latents.items():
        steady(latents.dense()[:, order], other.latents[place].dense())


def test_arms_agree_until_the_first_label(arms) -> None:
    """`x` and `pre` of example 0 come before any label: T and S are the same there, and differ later."""
    treated, control = arms
    for site, role in treated.latents:
        one, other = treated.latents[site, role].dense(), control.latents[site, role].dense()
        if role in ("x", "pre"):
            assert np.allclose(one[..., 0], other[..., 0], atol=1e-3)
    assert not np.allclose(one, other, atol=1e-1)


def test_tracking_leaves_nothing_behind(tiny_model, saes, build) -> None:
    state = torch.random.get_rng_state()
    with torch.enable_grad():
        track(tiny_model, saes, build("T", n_prompts=2, n_examples=3))
        assert torch.is_grad_enabled()
    assert torch.equal(torch.random.get_rng_state(), state)
    for module in tiny_model.network.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_chosen_roles_once_each(tiny_model, saes, build) -> None:
    tracked = track(
        tiny_model, {SITE: saes[SITE]}, build("T", n_prompts=2, n_examples=3), roles=("lab", "lab")
    )
    assert list(tracked.latents) == [(SITE, "lab")]


def test_words_among_the_answers_are_read(tiny_model, saes, build) -> None:
    tracked = track(tiny_model, {SITE: saes[SITE]}, build("T", 4, 8, "word:parity"), roles=("pre",))
    assert set(tracked.probs.answers[1000:]) == {"odd", "even"}


def test_refusals(tiny_model, saes, build) -> None:
    prompts = build("T", n_prompts=2, n_examples=3)
    with pytest.raises(SaeError, match="no SAE"):
        track(tiny_model, {}, prompts)
    with pytest.raises(SiteError, match="role 'label'"):
        track(tiny_model, saes, prompts, roles=("label",))
    with pytest.raises(SiteError, match="blocks 0 to"):
        track(tiny_model, {Site(40, "mlp_out"): saes[SITE]}, prompts)
    with pytest.raises(ModelError, match="are loaded"):
        track(replace(tiny_model, whole=False), saes, prompts)


def test_beliefs_read_by_hand(arms) -> None:
    treated, _ = arms
    prompts = treated.prompts
    found = belief_log_odds(treated.probs, prompts)
    numbers = np.exp(treated.probs.log_prob[..., :1000].astype(float))
    values = np.arange(1000)
    numeric = numbers.sum(axis=-1)
    x = prompts.x.astype(int)
    own = np.take_along_axis(numbers, (2 * x + 3)[..., None], axis=-1)[..., 0]
    last = np.take_along_axis(numbers[:, 1:], prompts.y[:, :-1].astype(int)[..., None], axis=-1)[..., 0]
    band = np.abs(values - 2 * x[..., None]) <= 5
    by_hand = {
        "numeric": numeric,
        "odd": numbers[..., values % 2 == 1].sum(axis=-1) / numeric,
        "double": (numbers * band).sum(axis=-1) / numeric,
        "exact": own,
    }
    for name, probability in by_hand.items():
        assert np.allclose(found[..., BELIEFS.index(name)], log_odds(probability), atol=1e-3), name
    copy = found[..., BELIEFS.index("copy")]
    assert np.isnan(copy[:, 0]).all()
    assert np.allclose(copy[:, 1:], log_odds(last), atol=1e-3)


def test_beliefs_follow_each_prompts_own_task(exact_model, saes, build) -> None:
    two = build("T", 3, 6, "2x+3"), build("T", 3, 6, "50-x")
    tracked = [track(exact_model, {SITE: saes[SITE]}, p, roles=("pre",)) for p in two]
    together = joined(two, "T")
    joint = track(exact_model, {SITE: saes[SITE]}, together, roles=("pre",))
    apart = np.concatenate([belief_log_odds(t.probs, t.prompts) for t in tracked])
    assert np.allclose(belief_log_odds(joint.probs, together), apart, atol=1e-3, equal_nan=True)


def test_a_given_answer_can_be_asked_about(arms) -> None:
    treated, _ = arms
    found = belief_log_odds(treated.probs, treated.prompts, copied=treated.prompts.answer)
    assert np.array_equal(found[..., BELIEFS.index("copy")], found[..., BELIEFS.index("exact")])


def test_display_agrees_with_tracking_at_the_roles(exact_model, saes, build) -> None:
    prompts = build("T", n_prompts=3, n_examples=4)
    tracked = track(exact_model, saes, prompts, roles=ROLES)
    shown = token_activations(exact_model, saes, prompts.tokens, batch=2)
    for (site, role), latents in tracked.latents.items():
        tokens = shown[site].toarray().reshape(3, -1, saes[site].d_sae)
        steady(tokens[:, prompts.positions(role)].transpose(2, 0, 1), latents.dense())


def test_two_runs_give_the_same_bytes(tiny_model, saes, build) -> None:
    prompts = build("T", n_prompts=5, n_examples=4)
    one, other = (track(tiny_model, saes, prompts, batch=3).latents for _ in range(2))
    for place, latents in one.items():
        for name in ("indptr", "index", "value", "error_sq", "total_sq"):
            assert getattr(latents, name).tobytes() == getattr(other[place], name).tobytes()


def test_roles_and_examples_of_a_probed_arm_stay_apart(exact_model, saes, build) -> None:
    """Each query's own pass, over several batches, fills the cells of its example at every role."""
    prompts = build("D", n_prompts=5, n_examples=4)
    assert prompts.probed
    tracked = track(exact_model, {SITE: saes[SITE]}, prompts, batch=2)
    for one in prompts.passes():
        for role in TRACKED_ROLES:
            values = record(exact_model, one.tokens, [SITE], one.positions(role))[SITE]
            expected = encode(saes[SITE], Activations(SITE, role, values))
            found = tracked.latents[SITE, role]
            kept = steady(found.dense()[..., one.examples], expected.dense())
            assert np.allclose(found.error_sq[:, one.examples][kept], expected.error_sq[kept], rtol=1e-3)


def test_an_activation_that_is_not_finite_is_refused(tiny_model, saes, build) -> None:
    def spoil(_module, _args, output):
        if len(output) == 1:  # the last prompt stands in a batch of its own
            output = output.clone()
            output[0, 5] = torch.nan
        return output

    handle = tiny_model.network.model.layers[0].register_forward_hook(spoil)
    try:
        with pytest.raises(TableError, match="arm T: NaN or infinite in prompt 4"):
            track(tiny_model, saes, build("T", n_prompts=5, n_examples=4), batch=2)
    finally:
        handle.remove()


def test_orders_are_taken_in_turn_and_each_latent_once() -> None:
    lists = {"changed": [4, 7, 9], "grows": [7], "active": [4, 1, 2, 3]}
    assert in_turn(lists, 5) == {4: "changed", 7: "grows", 1: "active", 9: "changed", 2: "active"}
    assert list(in_turn(lists, 5)) == [4, 7, 1, 9, 2]
    assert list(in_turn(lists, 2)) == [4, 7]
    assert in_turn({"changed": [], "active": []}, 3) == {}


def test_strongest_is_by_peak_in_units_of_the_residual_and_leaves_the_silent_out() -> None:
    acts = csr_array([[1.0, 0.0, 3.0, 0.0], [2.0, 0.0, 0.0, 1.5]])
    assert strongest(acts, np.ones(4)).tolist() == [2, 0, 3]
    assert strongest(acts, np.array([1.0, 9.0, 0.1, 2.0])).tolist() == [3, 0, 2]


def test_most_changed_is_by_the_largest_difference_at_one_token() -> None:
    a = csr_array([[5.0, 1.0, 0.0, 2.0], [0.0, 1.0, 0.0, 2.0]])
    b = csr_array([[5.0, 0.0, 4.0, 0.0], [0.0, 0.0, 0.0, 2.5]])
    assert most_changed(a, b, np.ones(4)).tolist() == [2, 3, 1]  # 0 is the same in both


# ------------------------------------------------------------------ directions along which the arms differ

EARLY = Site(1, "resid_post")


@pytest.fixture(scope="module")
def few(build):
    return [build(arm, n_prompts=10, n_examples=5, seed=3) for arm in "TS"]


def test_projections_are_those_of_the_difference_of_means(tiny_model, few) -> None:
    fit, test = np.arange(4), np.arange(4, 10)
    found = direction_growth(tiny_model, *few, [EARLY], fit=fit, test=test, batch=3)[EARLY]
    one, other = (record(tiny_model, arm.tokens, [EARLY], arm.positions("pre"))[EARLY] for arm in few)
    difference = one.astype(float) - other
    u = difference[fit, -1].mean(axis=0)
    np.testing.assert_allclose(found, difference[test] @ u / np.linalg.norm(u), rtol=1e-4, atol=1e-4)
    assert np.abs(found[:, 0]).max() < 1e-3, "before any example the arms are one text"


def test_a_prompt_that_gave_the_direction_is_not_tested(tiny_model, few) -> None:
    with pytest.raises(TableError, match="prompt 3 both fits and tests"):
        direction_growth(tiny_model, *few, [EARLY], fit=np.arange(4), test=np.arange(3, 6))


def test_equal_arms_are_refused(tiny_model, few) -> None:
    with pytest.raises(TableError, match="activations are equal"):
        direction_growth(tiny_model, few[0], few[0], [EARLY], fit=np.arange(4), test=np.arange(4, 6))


# ------------------------------------------------------------------ pre-activations: what the gate is put on


@pytest.fixture(scope="module")
def sae(tiny_model):
    rows = np.random.default_rng(0).standard_normal((400, tiny_model.d_model)).astype(np.float32)
    return sampled_sae(SITE, rows, seed=1)


def test_active_latents_show_their_pre_activation_and_others_a_smaller_one(sae) -> None:
    x = np.random.default_rng(1).standard_normal((20, sae.d_in)).astype(np.float32)
    z = latent_inputs(sae, x, np.arange(sae.d_sae))
    gated = sae.encode(torch.tensor(x)).numpy()
    active = gated > 0
    np.testing.assert_allclose(z[active], gated[active], rtol=1e-4, atol=1e-5)
    smallest = np.where(active, gated, np.inf).min(axis=1, keepdims=True)
    assert (z <= smallest + 1e-5)[~active].all()


@pytest.mark.parametrize("arm", ["T", "D", "P"])
def test_trajectories_hold_the_gated_ones_where_these_are_active(tiny_model, sae, build, arm: str) -> None:
    asked, some = build(arm, n_prompts=5, n_examples=4, seed=3), np.array([3, 100, 7])
    z = pre_activations(tiny_model, {SITE: sae}, asked, {(SITE, "pre"): some, (SITE, "x"): some[:1]}, batch=2)
    tracked = track(tiny_model, {SITE: sae}, asked, roles=("pre", "x"), batch=3)
    gated = tracked.latents[SITE, "pre"].dense(some)
    np.testing.assert_allclose(z[SITE, "pre"][gated > 0], gated[gated > 0], rtol=1e-3, atol=1e-3)
    assert z[SITE, "x"].shape == (1, 5, 4)


def test_a_probed_query_is_read_in_its_own_sequence(tiny_model, sae, build) -> None:
    asked, latent = build("D", n_prompts=5, n_examples=4, seed=3), np.array([5])
    z = pre_activations(tiny_model, {SITE: sae}, asked, {(SITE, "pre"): latent})[SITE, "pre"]
    assert asked.probes is not None
    last = record(tiny_model, asked.probes[:, 3], [SITE], np.array([2 + 6 * 3 + 3]))[SITE][:, 0]
    np.testing.assert_allclose(z[0, :, 3], latent_inputs(sae, last, latent)[:, 0], rtol=1e-4, atol=1e-4)


def test_a_site_without_an_sae_is_refused(tiny_model, sae, build) -> None:
    with pytest.raises(SaeError, match=r"L1\.mlp_out: no SAE is given"):
        pre_activations(tiny_model, {SITE: sae}, build("T"), {(Site(1, "mlp_out"), "pre"): np.array([0])})
