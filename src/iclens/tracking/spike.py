"""G5: growth planted in a real model, along decoder directions, to see whether the tests find it and only it.

    h ← h + g(n) · a_f · d_f        at `pre` of every example, in one arm's forward pass

1. Prompts that hold no task (S) are recorded at a site with chosen latents spiked, others as they are.
2. Both go through the SAE. 3. The growth test compares them.
Runs on any model and SAE; what answers beside the spiked latents is superposition, and is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iclens.errors import TableError
from iclens.growth.planted.rows import CalibrationRow, at_least, stated
from iclens.growth.shape.certificate import fit_shapes
from iclens.growth.test import test_growth
from iclens.models.forward import record
from iclens.models.load import LanguageModel
from iclens.saes.encode import encode
from iclens.saes.load import Sae
from iclens.tables.activations import Activations, LatentActs
from iclens.tables.arrays import Floats, Ints, expect_shape
from iclens.tables.edits import Edit
from iclens.tables.prompts import PromptSet
from iclens.tracking.pre_activations import latent_inputs

ROLE = "pre"


@dataclass(frozen=True)
class Spiked:
    """One site with planted growth.

    Args:
        acts: active latents of the spiked arm.
        control: those of the arm it is compared with.
        paired: pre-activations of the spiked latents, spiked − control, [latent prompt example].
        latents: the spiked latents, [latent].
    """

    acts: LatentActs
    control: LatentActs
    paired: Floats
    latents: Ints


def spike(
    model: LanguageModel, sae: Sae, arm: PromptSet, control: PromptSet, *,
    latents: Ints, amplitude: Floats, curve: Floats, batch: int = 128,
) -> Spiked:  # fmt: skip
    """Add growth along decoder directions at the SAE's site, and encode.

    Args:
        model: the model.
        sae: the SAE of the site.
        arm: prompts that are spiked, inline.
        control: prompts they are compared with, inline, paired.
        latents: which latents' directions, [latent].
        amplitude: added at g = 1, activation units [latent].
        curve: g over examples seen, [example].
        batch: prompts per forward pass.

    Raises:
        TableError: when the axes do not agree.
    """
    expect_shape("a spike", latents=(latents, ("latent",)), amplitude=(amplitude, ("latent",)))
    if curve.shape != (arm.n_examples,):
        raise TableError("a spike's curve", f"shape {curve.shape}", f"Give {arm.n_examples} values.")
    where = arm.positions(ROLE)
    directions = sae.W_dec[np.asarray(latents)].float().cpu().numpy()
    added = curve[:, None] * (amplitude @ directions)
    edit = Edit(sae.site, "add", where, added.astype(np.float32))
    spiked = record(model, arm.tokens, [sae.site], where, edits=(edit,), batch=batch)[sae.site]
    plain = record(model, control.tokens, [sae.site], where, batch=batch)[sae.site]
    shape = (*spiked.shape[:2], len(latents))
    rows = [latent_inputs(sae, held.reshape(-1, held.shape[-1]), latents) for held in (spiked, plain)]
    one, other = (part.reshape(shape).transpose(2, 0, 1) for part in rows)
    encoded = [encode(sae, Activations(sae.site, ROLE, held)) for held in (spiked, plain)]
    return Spiked(encoded[0], encoded[1], one - other, np.asarray(latents))


def own_gain(sae: Sae, latents: Ints) -> Floats:
    """Rise of each latent's pre-activation per unit of its own decoder direction, [latent]."""
    directions = sae.W_dec[np.asarray(latents)].float().cpu().numpy()
    raised = latent_inputs(sae, directions, latents) - latent_inputs(sae, 0 * directions, latents)
    return np.diag(raised)


def measure_spikes(
    model: LanguageModel, sae: Sae, arm: PromptSet, *,
    n_latents: int = 5, n_runs: int = 4, snr: float = 3.0, seed: int = 0,
) -> list[CalibrationRow]:  # fmt: skip
    """Are spiked latents found, is their shape seen, and what else answers?

    Random live latents are spiked linearly, so that each one's pre-activation rises by `snr` standard
    deviations of itself, what it hears of the other spiked ones left aside; and, to see that not all is
    called additive, as a step in the middle.

    Args:
        model: the model.
        sae: an SAE of it.
        arm: prompts without a task, arm S; one half is spiked, the other is its control. Two arms with other
            labels would differ by their labels' order as well.
        n_latents: spiked at once.
        n_runs: draws of latents.
        snr: size of the spike.
        seed: of the draws.
    """
    half = arm.n_prompts // 2
    arm, control = arm.select(np.arange(half)), arm.select(np.arange(half, 2 * half))
    n = np.arange(arm.n_examples, dtype=float)
    curves = {"linear": n / n[-1], "mid step": (n >= n[-1] / 2).astype(float)}
    plain = spike(
        model, sae, arm, control, latents=np.arange(1), amplitude=np.zeros(1), curve=curves["linear"]
    )
    live = np.flatnonzero(np.bincount(plain.acts.index, minlength=sae.d_sae) > 0.02 * plain.acts.n_prompts)
    found = {name: 0 for name in curves}
    certified, beside = {name: 0 for name in curves}, []
    for run in range(n_runs):
        latents = np.random.default_rng([seed, run]).choice(live, n_latents, replace=False)
        base = spike(
            model, sae, arm, control, latents=latents, amplitude=np.zeros(n_latents), curve=curves["linear"]
        )
        amplitude = snr * base.paired.std(axis=(1, 2)) / own_gain(sae, latents)
        for name, curve in curves.items():
            made = spike(model, sae, arm, control, latents=latents, amplitude=amplitude, curve=curve)
            grows = test_growth(made.acts, made.control).growing()["latent"]
            found[name] += int(np.isin(latents, grows).sum())
            shapes = fit_shapes(n.astype(int), made.paired, place=(sae.site, ROLE), latent_ids=latents)
            certified[name] += int(shapes["certified"].sum())
            beside.append(float((~np.isin(grows, latents)).sum()) / sae.d_sae)
    total, on = n_latents * n_runs, f"{sae.site.short}, {arm.n_prompts} prompts, snr {snr:g}"
    return [
        stated("spiked growth found, gated", found["linear"], total, f"{on}; linear"),
        at_least("linear spikes certified", 0.80, certified["linear"], total, on),
        at_least("step spikes not certified", 0.95, total - certified["mid step"], total, on),
        CalibrationRow("latents that answer beside the spiked", "stated", float(np.mean(beside)),
                       float(np.std(beside) / np.sqrt(len(beside))), True, f"{on}; share of the SAE"),
    ]  # fmt: skip
