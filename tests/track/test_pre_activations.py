"""Pre-activations are what the gate is put on, in every arm."""

import numpy as np
import pytest
import torch

from iclens.core import SaeError, Site
from iclens.model.load import LanguageModel
from iclens.model.run import record
from iclens.prompts.build import build_prompts
from iclens.prompts.tasks import parse_task
from iclens.saes.load import Sae
from iclens.tracking import latent_inputs, pre_activations, track

from .conftest import sampled_sae

SITE = Site(2, "resid_post")


@pytest.fixture(scope="module")
def sae(tiny_model: LanguageModel) -> Sae:
    rows = np.random.default_rng(0).standard_normal((400, tiny_model.d_model)).astype(np.float32)
    return sampled_sae(SITE, rows, seed=1)


def prompts(model: LanguageModel, arm: str, n: int = 5):
    return build_prompts(model.tokenizer, parse_task("2x+3"), arm=arm, n_prompts=n, n_examples=4, seed=3)


def test_active_latents_show_their_pre_activation_and_others_a_smaller_one(sae: Sae) -> None:
    x = np.random.default_rng(1).standard_normal((20, sae.d_in)).astype(np.float32)
    z = latent_inputs(sae, x, np.arange(sae.d_sae))
    gated = sae.encode(torch.tensor(x)).numpy()
    active = gated > 0
    np.testing.assert_allclose(z[active], gated[active], rtol=1e-4, atol=1e-5)
    smallest = np.where(active, gated, np.inf).min(axis=1, keepdims=True)
    assert (z <= smallest + 1e-5)[~active].all()


@pytest.mark.parametrize("arm", ["T", "D", "P"])
def test_trajectories_hold_the_gated_ones_where_these_are_active(
    tiny_model: LanguageModel, sae: Sae, arm: str
) -> None:
    asked, some = prompts(tiny_model, arm), np.array([3, 100, 7])
    z = pre_activations(tiny_model, {SITE: sae}, asked, {(SITE, "pre"): some, (SITE, "x"): some[:1]}, batch=2)
    tracked = track(tiny_model, {SITE: sae}, asked, roles=("pre", "x"), batch=3)
    gated = tracked.latents[SITE, "pre"].dense(some)
    np.testing.assert_allclose(z[SITE, "pre"][gated > 0], gated[gated > 0], rtol=1e-3, atol=1e-3)
    assert z[SITE, "x"].shape == (1, 5, 4)


def test_a_probed_query_is_read_in_its_own_sequence(tiny_model: LanguageModel, sae: Sae) -> None:
    asked, latent = prompts(tiny_model, "D"), np.array([5])
    z = pre_activations(tiny_model, {SITE: sae}, asked, {(SITE, "pre"): latent})[SITE, "pre"]
    assert asked.probes is not None
    last = record(tiny_model, asked.probes[:, 3], [SITE], np.array([2 + 6 * 3 + 3]))[SITE][:, 0]
    np.testing.assert_allclose(z[0, :, 3], latent_inputs(sae, last, latent)[:, 0], rtol=1e-4, atol=1e-4)


def test_a_site_without_an_sae_is_refused(tiny_model: LanguageModel, sae: Sae) -> None:
    with pytest.raises(SaeError, match=r"L1\.mlp_out: no SAE is given"):
        pre_activations(
            tiny_model, {SITE: sae}, prompts(tiny_model, "T"), {(Site(1, "mlp_out"), "pre"): np.array([0])}
        )
