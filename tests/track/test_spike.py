"""The shipped model, prompts to verdicts: growth planted in it is found, relabelled arms hold none."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from iclens.core import Site, TableError
from iclens.growth.detect import test_arms as judge_study
from iclens.growth.detect import test_growth as judge
from iclens.growth.shape import fit_shapes
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, record
from iclens.prompts.build import PromptSet
from iclens.saes.load import Sae
from iclens.tracking import latent_inputs, pre_activations, track
from planted import WRONG, null_discoveries
from spike import OWN, ROLE, SIZES, measure_spikes, raised, spike

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


def test_the_spike_is_the_curve_along_the_decoder_directions(tiny_model, saes, halves) -> None:
    """Against itself, an arm differs by exactly what was added, read through the encoder."""
    sae, arm = saes[SITE], halves[0]
    latents, amplitude = np.array([4, 90]), np.array([30.0, 10.0])
    made = spike(tiny_model, sae, arm, arm, latents=latents, amplitude=amplitude, curve=RAMP**2)
    directions = sae.W_dec[latents].numpy()
    read = directions @ sae.network.W_enc[:, latents].numpy()
    wanted = (amplitude @ read)[:, None, None] * (RAMP**2)
    plain = pre_activations(tiny_model, saes, arm, {(SITE, ROLE): latents})[SITE, ROLE]
    near = 1e-5 * np.abs(plain).max()  # differences of float32 numbers as large as these
    np.testing.assert_allclose(made.paired, np.broadcast_to(wanted, (2, N, J)), rtol=0, atol=near)
    nothing = spike(tiny_model, sae, arm, halves[1], latents=latents, amplitude=0 * amplitude, curve=RAMP)
    other = pre_activations(tiny_model, saes, halves[1], {(SITE, ROLE): latents})[SITE, ROLE]
    np.testing.assert_allclose(nothing.paired, plain - other, rtol=0, atol=near)


def test_no_spike_leaves_the_tracked_latents_and_nothing_grows(tiny_model, saes, halves) -> None:
    arm, control = halves
    made = spike(
        tiny_model, saes[SITE], arm, control, latents=np.array([4]), amplitude=np.zeros(1), curve=RAMP
    )
    for acts, prompts in ((made.acts, arm), (made.control, control)):
        kept = track(tiny_model, {SITE: saes[SITE]}, prompts, roles=[ROLE]).latents[SITE, ROLE]
        assert abs(acts.matrix - kept.matrix).max() < 1e-4
    assert len(judge(made.acts, made.control).significant()) == 0


def test_spiked_latents_are_found_and_few_others(tiny_model, saes, halves) -> None:
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("site", [SITE, Site(1, "mlp_out")])
def test_a_spike_added_to_the_recording_is_the_spike_in_the_model(
    tiny_model: LanguageModel, saes: dict[Site, Sae], halves: tuple[PromptSet, PromptSet],
    dtype: torch.dtype, site: Site,
) -> None:  # fmt: skip
    """To the last bit, so that one pass of the model serves every shape."""
    model = replace(tiny_model, network=deepcopy(tiny_model.network).to(dtype))
    arm, where = halves[0].select(np.arange(40)), halves[0].positions(ROLE)
    latents, amplitude = np.array([4, 90]), np.array([30.0, 10.0])
    directions = saes[site].W_dec[latents].numpy()
    added = (RAMP**2)[:, None] * (amplitude @ directions)
    edit = Edit(site, "add", where, added.astype(np.float32))
    wanted = record(model, arm.tokens, [site], where, edits=(edit,))[site]
    plain = record(model, arm.tokens, [site], where)[site]
    how = {"latents": latents, "amplitude": amplitude, "dtype": dtype}
    found = raised(plain, saes[site], curve=RAMP**2, **how)
    assert np.array_equal(found, wanted) and not np.array_equal(found, plain)
    each = raised(plain, saes[site], curve=np.tile(RAMP**2, (40, 1)), **how)
    assert np.array_equal(each, wanted)
    if dtype == torch.float32:
        made = spike(
            model, saes[site], arm, halves[1].select(np.arange(40)),
            latents=latents, amplitude=amplitude, curve=RAMP**2,
        )  # fmt: skip
        other = pre_activations(model, saes, halves[1].select(np.arange(40)), {(site, ROLE): latents})
        z = latent_inputs(saes[site], found.reshape(-1, found.shape[2]), latents).reshape(40, J, 2)
        np.testing.assert_allclose(z.transpose(2, 0, 1) - other[site, ROLE], made.paired, atol=1e-4)


def test_spikes_of_every_shape_are_measured_the_same_way_twice(tiny_model, saes, build) -> None:
    prompts = build("S", n_prompts=256, seed=8)
    how = {"n_prompts": 64, "n_latents": 3, "n_runs": 2, "seed": 1, "snr": 6.0}
    rows = measure_spikes(tiny_model, saes[SITE], prompts, **how)  # type: ignore[arg-type]
    assert rows == measure_spikes(tiny_model, saes[SITE], prompts, **how)  # type: ignore[arg-type]
    found = {row.quantity: row for row in rows}
    assert found["linear spikes certified"].figure >= 0.7
    assert found["step spikes not certified"].figure == 1
    assert found["spikes certified, each prompt steps by itself"].figure == 0
    worst = found["false certificate, spiked"]
    assert worst.figure <= 0.2 and "on 24 other spikes" in worst.detail
    assert f"worst of {(len(WRONG) + 1) * len(SIZES)}" in worst.detail
    assert any(f": {shape}, snr·√N" in worst.detail for shape in (*WRONG, OWN))
    assert all(0 <= row.figure <= 1 for row in rows)


def test_too_few_prompts_or_live_latents_are_refused(tiny_model, saes, halves) -> None:
    with pytest.raises(TableError, match="spikes on 100 prompts and as many others: the arm has 128"):
        measure_spikes(tiny_model, saes[SITE], halves[0], n_prompts=100)
    with pytest.raises(TableError, match=r"500 spikes at once .* live latents"):
        measure_spikes(tiny_model, saes[SITE], halves[0], n_prompts=64, n_latents=500)


def test_spikes_whose_axes_do_not_agree_are_refused(tiny_model, saes, halves, build) -> None:
    arm, one = halves[0], {"latents": np.array([1]), "amplitude": np.ones(1)}
    with pytest.raises(TableError, match="Give 16 values"):
        spike(tiny_model, saes[SITE], arm, arm, **one, curve=RAMP[:5])
    with pytest.raises(TableError, match="latent"):
        spike(tiny_model, saes[SITE], arm, arm, latents=np.array([1, 2]), amplitude=np.ones(1), curve=RAMP)
    probed = build("D", n_prompts=4)
    with pytest.raises(TableError, match="own sequence"):
        spike(tiny_model, saes[SITE], probed, probed, **one, curve=RAMP)


def test_true_arms_grow_at_pre_and_hold_together(arms) -> None:
    treated, control = arms
    table = judge_study(treated.latents, control.latents, prompts=(treated.prompts, control.prompts)).df
    assert len(table) == 6 * 4 * 192
    grows = table.query("verdict == 'grows'")
    assert len(grows.query("role == 'pre'")) >= 20
    assert (grows["slope"] > 0).all() and (grows["ci_low"] > 0).all() and (grows["q_value"] <= 0.05).all()
    untested = table["q_value"].isna()
    assert (table.loc[untested, "reason"] != "").all() and (table.loc[~untested, "reason"] == "").all()


def test_relabelled_arms_make_a_discovery_in_at_most_three_of_twenty_runs(arms) -> None:
    treated, control = arms
    counts = null_discoveries(
        treated.latents, control.latents, prompts=(treated.prompts, control.prompts), n_runs=20, seed=0
    )
    assert (counts > 0).sum() <= 3
