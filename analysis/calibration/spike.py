"""G5: growth planted in a real model, along decoder directions, to see whether the tests find it and only it.

    h ← h + g(n) · a_f · d_f        at `pre` of every example, in one arm's forward pass

1. Prompts that hold no task (S) are recorded at a site with chosen latents spiked, others as they are.
2. Both go through the SAE. 3. The growth test compares them.
A spike is added at the very site that is recorded, and the same bits come out when it is added to what was
recorded without it (`raised`), so `measure_spikes` runs the model once for all shapes of G1.
Runs on any model and SAE; what answers beside the spiked latents is superposition, and is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from iclens.activations import Activations, LatentActs
from iclens.core import TableError
from iclens.growth.detect import test_growth
from iclens.growth.shape import fit_shapes
from iclens.model.load import LanguageModel, as_numpy
from iclens.model.run import Edit, apply_edit, record
from iclens.prompts.build import PromptSet
from iclens.saes.encode import decoder_directions, encode
from iclens.saes.load import Sae
from iclens.table import Floats, Ints, expect_shape
from iclens.tracking import latent_inputs
from planted import WRONG, CalibrationRow, at_least, at_most, stated
from planted import curve as planted_curve

ROLE = "pre"
SIZES = (12.0, 16.0, 20.0, 24.0, 32.0, 48.0)
"""snr·√N at which wrong shapes are spiked, as in the planted search; at 48 certificates are promised."""
OWN = "own step"
"""The shape that steps at another place in every prompt."""


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
        raise TableError(
            "a spike's curve", f"shape {curve.shape}", f"Give {arm.n_examples} values, one for each example."
        )
    where = arm.positions(ROLE)
    edit = _edit(sae, where, latents, amplitude, curve)
    spiked = record(model, arm.tokens, [sae.site], where, edits=(edit,), batch=batch)[sae.site]
    plain = record(model, control.tokens, [sae.site], where, batch=batch)[sae.site]
    one, other = (_inputs(sae, held, latents) for held in (spiked, plain))
    encoded = [encode(sae, Activations(sae.site, ROLE, held)) for held in (spiked, plain)]
    return Spiked(encoded[0], encoded[1], one - other, np.asarray(latents))


def raised(
    values: Floats, sae: Sae, *, latents: Ints, amplitude: Floats, curve: Floats, dtype: torch.dtype
) -> Floats:
    """Recorded activations as they are with a spike, float32 [prompt example d_model].

    Args:
        values: recorded at the SAE's site without the spike, [prompt example d_model].
        sae: the SAE of the site.
        latents: which latents' directions, [latent].
        amplitude: added at g = 1, activation units [latent].
        curve: g over examples seen, [example], or of each prompt, [prompt example].
        dtype: in which the model adds, its own.
    """
    edit = _edit(sae, np.arange(values.shape[1]), latents, amplitude, curve)
    return as_numpy(apply_edit(edit, torch.as_tensor(values).to(dtype)))


def _edit(sae: Sae, where: Ints, latents: Ints, amplitude: Floats, curve: Floats) -> Edit:
    directions = as_numpy(decoder_directions(sae, latents))
    added = curve[..., None] * (amplitude @ directions)
    return Edit(sae.site, "add", where, added.astype(np.float32))


def _inputs(sae: Sae, values: Floats, latents: Ints) -> Floats:
    """Pre-activations of chosen latents, [latent prompt example], of values [prompt example d_model]."""
    z = latent_inputs(sae, values.reshape(-1, values.shape[-1]), latents)
    return z.reshape(*values.shape[:2], len(latents)).transpose(2, 0, 1)


def own_gain(sae: Sae, latents: Ints) -> Floats:
    """Rise of each latent's pre-activation per unit of its own decoder direction, [latent]."""
    directions = as_numpy(decoder_directions(sae, latents))
    raised = latent_inputs(sae, directions, latents) - latent_inputs(sae, 0 * directions, latents)
    return np.diag(raised)


@dataclass(frozen=True)
class Bench:
    """One site as the model has it, and the SAE under test.

    Args:
        sae: the SAE.
        values: activations of all prompts at `ROLE`, [prompt example d_model].
        dtype: of the model.
        live: latents active at more than 2 % of prompts per example, [latent].
    """

    sae: Sae
    values: Floats
    dtype: torch.dtype
    live: Ints


@dataclass(frozen=True)
class Draw:
    """Latents to be spiked at once, and prompts in two halves.

    Args:
        latents: [latent].
        arm, control: prompts of the spiked half and of the other, [prompt].
        amplitude: that raises a latent's pre-activation by a standard deviation of the difference, [latent].
        places: of each spiked prompt's own step, examples seen, [prompt].
    """

    latents: Ints
    arm: Ints
    control: Ints
    amplitude: Floats
    places: Ints


def measure_spikes(
    model: LanguageModel, sae: Sae, arm: PromptSet, *,
    n_prompts: int = 256, n_latents: int = 5, n_runs: int = 4, snr: float = 3.0, seed: int = 0,
    batch: int = 128,
) -> list[CalibrationRow]:  # fmt: skip
    """Are spiked latents found, is their shape seen, and what else answers?

    Random live latents are spiked so that each one's pre-activation rises by `snr` standard deviations of
    itself, what it hears of the other spiked ones left aside. Linearly, to see that growth is found and
    certified; and in every shape of `planted.trajectories` that a certificate must not be given to, at every
    size of `SIZES`. The worst three of these are looked for in `n_runs` draws and measured in four times as
    many others: the largest of many noisy shares would be too large. Each draw takes prompts anew, but where
    the arm or the live latents are few they return, and the figures vary by more than binomially.

    Args:
        model: the model.
        sae: an SAE of it.
        arm: prompts without a task, arm S, to draw from; some are spiked, others are their control. Two arms
            with other labels would differ by their labels' order as well.
        n_prompts: prompts that are spiked in each draw, and of their control.
        n_latents: spiked at once.
        n_runs: draws of latents in which growth is detected and the worst shape looked for.
        snr: size of the spike.
        seed: of the draws.
        batch: prompts per forward pass.

    Raises:
        TableError: when the arm has fewer than 2 · `n_prompts` prompts, or fewer than `n_latents` are live.
    """
    if arm.n_prompts < 2 * n_prompts:
        raise TableError(
            f"spikes on {n_prompts} prompts and as many others", f"the arm has {arm.n_prompts}",
            "Give more prompts, or a smaller n_prompts.",
        )  # fmt: skip
    bench = _bench(model, sae, arm, n_latents, batch)
    draws = [_draw(bench, n_prompts, n_latents, (seed, run)) for run in range(5 * n_runs)]
    searched, fresh = draws[:n_runs], draws[n_runs:]
    on, n = f"{sae.site.short}, {n_prompts} prompts, snr {snr:g}", n_latents * len(fresh)
    detected = [_detected(bench, draw, snr) for draw in searched]
    hits, beside = (np.array(part) for part in zip(*detected, strict=True))
    linear, step, own = (_certified(bench, fresh, shape, snr) for shape in ("linear", "mid step", OWN))
    return [
        stated("spiked growth found, gated", int(hits.sum()), n_latents * n_runs, f"{on}; linear"),
        at_least("linear spikes certified", 0.80, linear, n, on),
        at_least("step spikes not certified", 0.95, n - step, n, on),
        at_most("spikes certified, each prompt steps by itself", 0.05, own, n, on),
        _worst(bench, searched, fresh),
        CalibrationRow("latents that answer beside the spiked", "stated", float(beside.mean()),
                       float(beside.std() / np.sqrt(len(beside))), True, f"{on}; share of the SAE"),
    ]  # fmt: skip


def _bench(model: LanguageModel, sae: Sae, arm: PromptSet, n_latents: int, batch: int) -> Bench:
    values = record(model, arm.tokens, [sae.site], arm.positions(ROLE), batch=batch)[sae.site]
    acts = encode(sae, Activations(sae.site, ROLE, values))
    live = np.flatnonzero(np.bincount(acts.index, minlength=sae.d_sae) > 0.02 * arm.n_prompts)
    if len(live) < n_latents:
        raise TableError(
            f"{n_latents} spikes at once at {sae.site.short}",
            f"{len(live)} live latents", "Lower n_latents, or give more prompts.",
        )  # fmt: skip
    return Bench(sae, values, model.network.dtype, live)


def _draw(bench: Bench, n_prompts: int, n_latents: int, seed: tuple[int, int]) -> Draw:
    rng = np.random.default_rng(seed)
    latents = rng.choice(bench.live, n_latents, replace=False)
    arm, control = rng.permutation(len(bench.values))[: 2 * n_prompts].reshape(2, n_prompts)
    plain = [_inputs(bench.sae, bench.values[part], latents) for part in (arm, control)]
    amplitude = (plain[0] - plain[1]).std(axis=(1, 2)) / own_gain(bench.sae, latents)
    places = rng.integers(1, bench.values.shape[1], n_prompts)
    return Draw(latents, arm, control, amplitude, places)


def _spiked(bench: Bench, draw: Draw, shape: str, snr: float) -> Floats:
    """Activations of the spiked half, [prompt example d_model]."""
    n_examples = bench.values.shape[1]
    if shape == OWN:
        g = (np.arange(n_examples) >= draw.places[:, None]).astype(float)
    else:
        g = planted_curve(shape, n_examples)
    return raised(
        bench.values[draw.arm], bench.sae,
        latents=draw.latents, amplitude=snr * draw.amplitude, curve=g, dtype=bench.dtype,
    )  # fmt: skip


def _detected(bench: Bench, draw: Draw, snr: float) -> tuple[int, float]:
    """Linear spikes that are found, and other latents that answer, as a share of the SAE."""
    site = bench.sae.site
    acts, control = (
        encode(bench.sae, Activations(site, ROLE, held))
        for held in (_spiked(bench, draw, "linear", snr), bench.values[draw.control])
    )
    grows = test_growth(acts, control).growing()["latent"]
    found = int(np.isin(draw.latents, grows).sum())
    return found, (len(grows) - found) / bench.sae.d_sae


def _certified(bench: Bench, draws: list[Draw], shape: str, snr: float) -> int:
    """Spikes of a shape that are certified."""
    sae = bench.sae
    paired = np.concatenate([
        _inputs(sae, _spiked(bench, draw, shape, snr), draw.latents)
        - _inputs(sae, bench.values[draw.control], draw.latents)
        for draw in draws
    ])  # fmt: skip
    ids = np.concatenate([draw.latents for draw in draws])
    table = fit_shapes(np.arange(paired.shape[2]), paired, place=(sae.site, ROLE), latent_ids=ids)
    return int(table["certified"].sum())


def _worst(bench: Bench, searched: list[Draw], fresh: list[Draw]) -> CalibrationRow:
    """The wrong shape that is certified most often, looked for in some draws and measured in others."""
    root = np.sqrt(len(fresh[0].arm))
    cells = [(shape, clear) for shape in (*WRONG, OWN) for clear in SIZES]
    seen = [_certified(bench, searched, shape, clear / root) for shape, clear in cells]
    worst = [cells[i] for i in np.argsort(seen, kind="stable")[-3:]]
    found = [_certified(bench, fresh, shape, clear / root) for shape, clear in worst]
    shape, clear = worst[int(np.argmax(found))]
    n = sum(len(draw.latents) for draw in fresh)
    said = f"{bench.sae.site.short}, worst of {len(cells)}: {shape}, snr·√N {clear:g}; on {n} other spikes"
    return at_most("false certificate, spiked", 0.05, max(found), n, said)
