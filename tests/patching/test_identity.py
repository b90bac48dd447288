"""An edit that changes nothing changes no answer, through every public path; a lost SAE error would.

Donor and recipient are the same runs, or a value is replaced by itself: the same numbers go through the same
batch, and the effect is 0 to the bit on any machine. Where a batch differs it is 0 up to float64's rounding.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from iclens.core import ROLES, EditError, Site, position
from iclens.model.run import Edit, answer_probs, edited_answers, record
from iclens.model.tail import tails_of
from iclens.patching.heads import Ablation, ablate_heads, direct_effects, head_scores
from iclens.patching.latents import carry_levels, patch_latents, single_effects
from iclens.patching.receiver import DIRECTIONS, prepare_patch, up_to_query
from iclens.patching.redundancy import redundancy_index
from iclens.patching.runs import Runs, check_tokenizer
from iclens.patching.sets import patch_controls, patch_sets
from iclens.patching.sweep import logit_lens, sweep

from ..conftest import EXACT
from .conftest import same

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_in", "mlp_out", "z")
MOVED = 1e-3
"""Less than what an edit that changes something does here, nats."""


@pytest.mark.parametrize("hook", SITES)
@pytest.mark.parametrize("role", ROLES)
def test_what_is_replaced_by_itself_changes_no_logit(tiny_model, make_runs, hook, role):
    tokens, where = up_to_query(make_runs().recipient), np.array([position(role, 2)])
    end, site = np.array([tokens.shape[1] - 1]), Site(1, hook)
    own = record(tiny_model, tokens, [site], where)[site]
    base = answer_probs(tiny_model, tokens, end).log_prob
    for kind, value in (("resample", own), ("replace", own), ("add", np.zeros_like(own))):
        found = edited_answers(tiny_model, tokens, end, [Edit.at(site, kind, role, [2], value)])
        assert found.fired == (len(tokens),)
        np.testing.assert_array_equal(found.answers.log_prob, base)
    away = edited_answers(tiny_model, tokens, end, [Edit.at(site, "add", role, [2], 20 * own)])
    assert np.abs(away.answers.log_prob - base).max() > MOVED


@pytest.mark.parametrize("hook", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"])
def test_adding_nothing_in_the_tail_changes_no_logit(exact_model, make_runs, hook):
    tokens = up_to_query(make_runs().recipient)
    end = tokens.shape[1] - 1
    base = answer_probs(exact_model, tokens, np.array([end])).log_prob[:, 0]
    for first in (end, end - 7):
        for tail, wanted in zip(tails_of(exact_model, tokens, first=first), base, strict=True):
            found = tail.added(Site(2, hook), np.zeros((3, exact_model.d_model)), positions=np.array([first]))
            np.testing.assert_allclose(found.log_prob, np.tile(wanted, (3, 1)), rtol=0, atol=EXACT)
            np.testing.assert_allclose(tail.base(Site(2, hook)).log_prob[0], wanted, rtol=0, atol=EXACT)


def test_a_donor_that_is_the_recipient_moves_no_residual_and_no_head(tiny_model, make_runs):
    runs, itself = make_runs(), same(make_runs())
    swept = sweep(tiny_model, itself)
    effects = [swept["value"] - np.where(swept["scale"] == "nats", 0, swept["base"])]
    effects.append(ablate_heads(tiny_model, itself, kind="resample", place="all positions")["effect"])
    np.testing.assert_array_equal(np.nan_to_num(np.concatenate(effects)), 0)
    # At `pre` alone, blocks go on at one position, and round otherwise than over the whole prompt.
    at_pre = ablate_heads(tiny_model, itself, kind="resample", place="pre")["effect"]
    np.testing.assert_allclose(np.nan_to_num(at_pre), 0, atol=1e-4)
    moved = sweep(tiny_model, runs)
    assert np.nanmax(np.abs(moved["value"][moved["scale"] == "nats"])) > MOVED


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("site", ["L2.resid_post", "L2.mlp_out", "L3.resid_mid"])
def test_a_donor_that_is_the_recipient_moves_no_latent(tiny_model, make_runs, make_sae, site, direction):
    receiver = prepare_patch(
        tiny_model, make_sae(site), same(make_runs()), donor_value="instance", direction=direction
    )
    effects = single_effects(receiver, np.arange(5))
    assert (effects == 0).all()
    table = patch_latents(receiver)
    assert len(table) == 0
    controls = patch_controls(receiver, [np.array([0, 3])])
    assert {"wrong role comma", "wrong role x"} < set(controls["control"])
    for found in (carry_levels(receiver, table), patch_sets(receiver, effects[:, :0]), controls):
        np.testing.assert_array_equal(np.nan_to_num(found["effect"]), 0)


def test_a_splice_that_drops_the_error_would_fail_here(tiny_model, make_runs, make_sae):
    """The identity of sae_lens' default: the site is replaced by the SAE's reconstruction of it."""
    tokens, sae = up_to_query(make_runs().recipient), make_sae()
    end = np.array([tokens.shape[1] - 1])
    held = torch.as_tensor(record(tiny_model, tokens, [sae.site], end)[sae.site][:, 0])
    dropped = sae.network(held)[:, None].numpy()
    kept = dropped + (held - sae.reconstruct(held, sae.encode(held)))[:, None].numpy()
    base = answer_probs(tiny_model, tokens, end).log_prob
    for value, changes in ((dropped, True), (kept, False)):
        found = answer_probs(tiny_model, tokens, end, edits=[Edit(sae.site, "resample", end, value)])
        assert (np.abs(found.log_prob - base).max() > 0.1) == changes


def test_runs_that_would_leak_or_mix_tokenizers_are_one_line(tiny_model, make_runs, make_sae):
    runs = make_runs()
    x = runs.donor.x.copy()
    x[3, 1] = runs.x_B[3]
    with pytest.raises(EditError, match=f"x = {runs.x_B[3]}: the donor's context shows it"):
        replace(runs, donor=replace(runs.donor, x=x))
    with pytest.raises(EditError, match="with one model's tokenizer"):
        replace(runs, donor=replace(runs.donor, tokenizer="0" * 16))
    foreign = Runs(runs.task, *(
        replace(part, tokenizer="0" * 16) for part in (runs.donor, runs.recipient, runs.target)
    ))  # fmt: skip
    with pytest.raises(EditError, match=f"runs of tokenizer {'0' * 16}"):
        check_tokenizer(tiny_model.tokenizer, foreign)
    with pytest.raises(EditError, match=f"runs of tokenizer {'0' * 16}"):
        prepare_patch(tiny_model, make_sae(), foreign)
    for asked in (sweep, ablate_heads, logit_lens, partial(head_scores, reference_layer=2)):
        with pytest.raises(EditError, match=f"runs of tokenizer {'0' * 16}"):
            asked(tiny_model, foreign)
    for asked in (direct_effects, redundancy_index):
        with pytest.raises(EditError, match=f"runs of tokenizer {'0' * 16}"):
            asked(tiny_model, foreign, Ablation.parse("L1"))
