"""Planted growth in the shipped model: it is what was asked, it is found, and little else is."""

import numpy as np
import pytest

from iclens.errors import TableError
from iclens.growth.shape.certificate import fit_shapes
from iclens.growth.test import test_growth as judge
from iclens.models.load import LanguageModel
from iclens.names import Site
from iclens.saes.load import Sae
from iclens.tables.prompts import PromptSet
from iclens.tracking.pre_activations import pre_activations
from iclens.tracking.spike import ROLE, measure_spikes, spike
from iclens.tracking.track import track

from .conftest import Build

SITE = Site(2, "resid_post")
N, J = 128, 16
RAMP = np.arange(J) / (J - 1)


@pytest.fixture(scope="module")
def halves(build: Build) -> tuple[PromptSet, PromptSet]:
    """Two halves of an arm without a task: nothing but a spike can make one of them grow."""
    held = build("S", n_prompts=2 * N, seed=31)
    return held.select(np.arange(N)), held.select(np.arange(N, 2 * N))


def often_active(tiny_model: LanguageModel, sae: Sae, prompts: PromptSet, n: int) -> np.ndarray:
    acts = track(tiny_model, {SITE: sae}, prompts, roles=[ROLE]).latents[SITE, ROLE]
    return np.argsort(-np.bincount(acts.index, minlength=sae.d_sae), kind="stable")[:n]


def test_the_spike_is_the_curve_along_the_decoder_directions(
    tiny_model: LanguageModel, saes: dict[Site, Sae], halves: tuple[PromptSet, PromptSet]
) -> None:
    """Against itself, an arm differs by exactly what was added, read through the encoder."""
    sae, arm = saes[SITE], halves[0]
    latents, amplitude = np.array([4, 90]), np.array([30.0, 10.0])
    made = spike(tiny_model, sae, arm, arm, latents=latents, amplitude=amplitude, curve=RAMP**2)
    directions = sae.W_dec[latents].numpy()
    read = directions @ sae.network.W_enc[:, latents].numpy()
    wanted = (amplitude @ read)[:, None, None] * (RAMP**2)
    np.testing.assert_allclose(made.paired, np.broadcast_to(wanted, (2, N, J)), atol=1e-3)
    plain = pre_activations(tiny_model, saes, arm, {(SITE, ROLE): latents})[SITE, ROLE]
    nothing = spike(tiny_model, sae, arm, halves[1], latents=latents, amplitude=0 * amplitude, curve=RAMP)
    other = pre_activations(tiny_model, saes, halves[1], {(SITE, ROLE): latents})[SITE, ROLE]
    np.testing.assert_allclose(nothing.paired, plain - other, atol=1e-4)


def test_no_spike_leaves_the_tracked_latents_and_nothing_grows(
    tiny_model: LanguageModel, saes: dict[Site, Sae], halves: tuple[PromptSet, PromptSet]
) -> None:
    arm, control = halves
    made = spike(
        tiny_model, saes[SITE], arm, control, latents=np.array([4]), amplitude=np.zeros(1), curve=RAMP
    )
    for acts, prompts in ((made.acts, arm), (made.control, control)):
        kept = track(tiny_model, {SITE: saes[SITE]}, prompts, roles=[ROLE]).latents[SITE, ROLE]
        assert abs(acts.matrix - kept.matrix).max() < 1e-4
    assert len(judge(made.acts, made.control).significant()) == 0


def test_spiked_latents_are_found_and_few_others(
    tiny_model: LanguageModel, saes: dict[Site, Sae], halves: tuple[PromptSet, PromptSet]
) -> None:
    arm, control = halves
    latents = often_active(tiny_model, saes[SITE], arm, 5)
    base = spike(tiny_model, saes[SITE], arm, control, latents=latents, amplitude=np.zeros(5), curve=RAMP)
    amplitude = 3 * base.paired.std(axis=(1, 2))
    made = spike(tiny_model, saes[SITE], arm, control, latents=latents, amplitude=amplitude, curve=RAMP)
    grows = judge(made.acts, made.control).growing().latent_ids
    assert set(latents) <= set(grows)
    assert len(set(grows) - set(latents)) < 0.25 * saes[SITE].d_sae
    step = spike(
        tiny_model, saes[SITE], arm, control, latents=latents, amplitude=amplitude, curve=(RAMP > 0.5) * 1.0
    )
    certified = [
        int(fit_shapes(np.arange(J), one.paired, place=(SITE, ROLE), latent_ids=latents)["certified"].sum())
        for one in (made, step)
    ]
    assert certified[0] > certified[1] == 0


def test_spikes_are_measured_the_same_way_twice(
    tiny_model: LanguageModel, saes: dict[Site, Sae], build: Build
) -> None:
    prompts = build("S", n_prompts=128, seed=8)
    rows = measure_spikes(tiny_model, saes[SITE], prompts, n_latents=3, n_runs=2, seed=1)
    assert rows == measure_spikes(tiny_model, saes[SITE], prompts, n_latents=3, n_runs=2, seed=1)
    steps = next(row for row in rows if row.quantity == "step spikes not certified")
    assert steps.met and steps.figure == 1
    assert all(0 <= row.figure <= 1 for row in rows)


def test_spikes_whose_axes_do_not_agree_are_refused(
    tiny_model: LanguageModel, saes: dict[Site, Sae], halves: tuple[PromptSet, PromptSet], build: Build
) -> None:
    arm, one = halves[0], {"latents": np.array([1]), "amplitude": np.ones(1)}
    with pytest.raises(TableError, match="Give 16 values"):
        spike(tiny_model, saes[SITE], arm, arm, **one, curve=RAMP[:5])
    with pytest.raises(TableError, match="latent"):
        spike(tiny_model, saes[SITE], arm, arm, latents=np.array([1, 2]), amplitude=np.ones(1), curve=RAMP)
    probed = build("D", n_prompts=4)
    with pytest.raises(TableError, match="own sequence"):
        spike(tiny_model, saes[SITE], probed, probed, **one, curve=RAMP)
