"""One SAE can be written in many ways; what is said in the site's units is the same in all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from iclens.core import SaeError, Site
from iclens.growth.detect import test_growth as growth_of
from iclens.patching.dose import dose_table, joint_push, natural_parts, prepare_push
from iclens.patching.latents import patch_latents
from iclens.patching.receiver import DIRECTIONS, prepare_patch
from iclens.patching.specificity import ablate_all_examples, specificity
from iclens.prompts.build import build_prompts
from iclens.prompts.tasks import parse_task
from iclens.saes.encode import by_decoder, decoder_directions, decoder_lengths, encode_rows, logit_effects
from iclens.saes.load import Sae
from iclens.saes.parts import build
from iclens.table import Table
from iclens.tracking import latent_inputs, track
from spike import own_gain

D_SAE, K, SITE = 64, 8, Site(2, "resid_post")
EVERYONE = np.arange(D_SAE)
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Written:
    """An SAE as it might be stored: architecture, weights, and further settings of its config."""

    architecture: str
    weights: Weights
    options: dict[str, Any]

    def sae(self) -> Sae:
        """As it is used."""
        network = build(self.architecture, self.weights, site=SITE, model=None, **self.options)
        k = self.options.get("k")
        return Sae(SITE, "0" * 16, 128, D_SAE, k, network.requires_grad_(False).eval(), Path())


def sizes(low: float, high: float) -> Tensor:
    """A factor per latent, from `low` to `high` in no order."""
    factors = torch.logspace(np.log10(low), np.log10(high), D_SAE)
    return factors[torch.randperm(D_SAE, generator=torch.Generator().manual_seed(1))]


def plain(architecture: str, normalised: str) -> Written:
    """Random weights with rows of length 1."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.nn.functional.normalize(torch.randn(D_SAE, 128, generator=generator), dim=1)
    weights = {"W_dec": rows, "W_enc": rows.T.contiguous(), "b_dec": torch.zeros(128)}
    bias = 0.2 * torch.randn(D_SAE, generator=generator) - (0.0 if architecture == "topk" else 1.0)
    if architecture == "gated":
        weights |= {
            "b_gate": bias,
            "b_mag": bias + 0.3,
            "r_mag": 0.2 * torch.randn(D_SAE, generator=generator),
        }
    else:
        weights["b_enc"] = bias
    if architecture == "jumprelu":
        weights["threshold"] = torch.rand(D_SAE, generator=generator)
    options = {"k": K} if architecture == "topk" else {}
    return Written(architecture, weights, options | {"normalize_activations": normalised})


def scaled(written: Written, factors: Tensor) -> Written:
    """Activations `factors` times as large, and rows as much shorter."""
    up = {
        name: written.weights[name] * factors for name in written.weights.keys() - {"W_dec", "b_dec", "r_mag"}
    }
    rows = written.weights["W_dec"] / factors[:, None]
    return Written(written.architecture, written.weights | up | {"W_dec": rows}, written.options)


def rescaling(written: Written, factors: Tensor) -> Written:
    """Rows of any length, which `rescale_acts_by_decoder_norm` takes out again."""
    down = {name: written.weights[name] / factors for name in ("W_enc", "b_enc")}
    rows = written.weights["W_dec"] * factors[:, None]
    options = written.options | {"rescale_acts_by_decoder_norm": True}
    return Written(written.architecture, written.weights | down | {"W_dec": rows}, options)


REWRITTEN: dict[str, tuple[str, Callable[[Written], Written]]] = {
    "topk, rescaled rows of any length": ("topk", lambda w: rescaling(w, sizes(0.05, 20))),
    "topk, a training checkpoint's rows": ("topk", lambda w: rescaling(w, torch.full((D_SAE,), 0.1))),
    "topk, all latents tripled": ("topk", lambda w: scaled(w, torch.full((D_SAE,), 3.0))),
    "standard, rows of any length": ("standard", lambda w: scaled(w, sizes(0.05, 20))),
    "standard, short rows": ("standard", lambda w: scaled(w, sizes(50, 100))),
    "jumprelu, rows of any length": ("jumprelu", lambda w: scaled(w, sizes(0.05, 20))),
    "gated, rows of any length": ("gated", lambda w: scaled(w, sizes(0.05, 20))),
}
NORMALISED = ("none", "layer_norm", "constant_norm_rescale")


PATCHED = [(name, "none") for name in REWRITTEN] + [
    (name, kind) for name in ("topk, rescaled rows of any length", "standard, rows of any length")
    for kind in NORMALISED[1:]
]  # fmt: skip
"""Not every pair, because a patch takes seconds."""


@pytest.fixture(params=NORMALISED)
def normalised(request):
    return request.param


@pytest.fixture(params=REWRITTEN)
def twins(request, normalised):
    """One SAE, written twice."""
    return written_twice(request.param, normalised)


def written_twice(rewritten: str, normalised: str) -> tuple[Sae, Sae]:
    """With rows of length 1, and as `REWRITTEN` says."""
    architecture, rewrite = REWRITTEN[rewritten]
    written = plain(architecture, normalised)
    return written.sae(), rewrite(written).sae()


@pytest.fixture(scope="module")
def arms(tiny_model):
    """Arms T and S."""
    task = parse_task("2x+3")
    arm, control = (
        build_prompts(tiny_model.tokenizer, task, arm=arm, n_prompts=16, n_examples=5, seed=2) for arm in "TS"
    )
    return arm, control


def agree(one: Table, other: Table, *, rtol: float = 2e-3, atol: float = 2e-4) -> None:
    """Refuse tables that differ by more than rounding."""
    assert len(one) == len(other) > 0
    for name, column in one.COLUMNS.items():
        if column.kind == "float":
            np.testing.assert_allclose(one[name], other[name], rtol=rtol, atol=atol, err_msg=name)
        else:
            assert one[name].tolist() == other[name].tolist(), name


def rows_of(n: int) -> np.ndarray:
    """Activations of different lengths, [row d_in]."""
    rng = np.random.default_rng(5)
    return (rng.uniform(1, 9, (n, 1)) * rng.standard_normal((n, 128))).astype(np.float32)


def test_what_latents_add_at_the_site_is_the_same(twins):
    x = rows_of(40)
    added, inputs, rebuilt = [], [], []
    for sae in twins:
        lengths = decoder_lengths(sae)
        np.testing.assert_allclose(lengths, decoder_directions(sae, EVERYONE).norm(dim=1), rtol=1e-6)
        encoded = encode_rows(sae, x)
        added.append(encoded.latents.toarray() * lengths)
        inputs.append(latent_inputs(sae, x, EVERYONE) * lengths)
        parts = encoded.latents.toarray() @ decoder_directions(sae, EVERYONE).numpy()
        nothing = sae.reconstruct(torch.tensor(x), torch.zeros(len(x), D_SAE)).numpy()
        rebuilt.append(sae.reconstruct(torch.tensor(x), sae.encode(torch.tensor(x))).numpy())
        np.testing.assert_allclose(parts + nothing, rebuilt[-1], rtol=1e-3, atol=1e-3)
        active = encoded.latents.toarray() > 0
        assert 0.02 < active.mean() < 0.9
        np.testing.assert_allclose(inputs[-1][active], added[-1][active], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(*added, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(*inputs, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(*rebuilt, rtol=1e-3, atol=1e-3)


def test_growth_is_the_same(tiny_model, arms, twins):
    tables = []
    for sae in twins:
        latents = [track(tiny_model, {SITE: sae}, arm, roles=("pre",)).latents[SITE, "pre"] for arm in arms]
        tables.append(growth_of(latents[0], latents[1], decoder_norm=decoder_lengths(sae)))
    agree(*tables)
    assert np.isfinite(tables[0]["p_value"]).sum() > 5


def test_slopes_of_a_normalising_sae_are_of_what_it_adds(tiny_model, arms, normalised):
    """Worked out from the reconstruction with one latent at a time, in the site's units."""
    from iclens.model.run import record

    sae, n = plain("standard", normalised).sae(), np.arange(5) - 2.0
    latents = [track(tiny_model, {SITE: sae}, arm, roles=("pre",)).latents[SITE, "pre"] for arm in arms]
    table = growth_of(latents[0], latents[1], decoder_norm=decoder_lengths(sae))
    tried = np.argsort(-np.nan_to_num(np.abs(table["slope"])))[:3]
    for latent in tried.tolist():
        lengths = []
        for arm in arms:
            x = torch.tensor(record(tiny_model, arm.tokens, [SITE], arm.positions("pre"))[SITE]).flatten(0, 1)
            alone = torch.zeros(len(x), D_SAE)
            nothing = sae.reconstruct(x, alone)
            alone[:, latent] = sae.encode(x)[:, latent]
            lengths.append((sae.reconstruct(x, alone) - nothing).norm(dim=1).reshape(16, 5).numpy())
        slope = ((lengths[0] - lengths[1]) @ n / (n**2).sum()).mean()
        assert table["slope"][latent] == pytest.approx(slope, rel=1e-3, abs=1e-4)
    assert abs(table["slope"][tried]).min() > 1e-3


def test_logit_effects_are_the_same(tiny_model, twins):
    found = []
    for sae in twins:
        effects = logit_effects(tiny_model, sae, EVERYONE, n=3)
        values = np.array([[value for _, value in effect.top] for effect in effects])
        found.append(values)
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-4)
    if twins[1].network.cfg.to_dict().get("rescale_acts_by_decoder_norm"):
        np.testing.assert_allclose(decoder_lengths(twins[1]), 1, rtol=1e-5)


def test_neighbours_and_gain_are_the_same(twins):
    near = [by_decoder(sae, EVERYONE.tolist(), n=4) for sae in twins]
    for one, other in zip(*near, strict=True):
        np.testing.assert_allclose(one.values, other.values, rtol=1e-4)
    if twins[0].normalisation == "none":  # else a direction alone says nothing of its length
        one, other = (own_gain(sae, EVERYONE) for sae in twins)
        np.testing.assert_allclose(one, other, rtol=1e-3)


@pytest.mark.parametrize(("rewritten", "normalised"), PATCHED)
def test_single_patches_sets_of_latents_and_their_controls_are_the_same(
    exact_model, make_runs, rewritten, normalised
):
    runs, tables, moved, ablated = make_runs(n_prompts=6), [], [], []
    for sae in written_twice(rewritten, normalised):
        held = [prepare_patch(exact_model, sae, runs, direction=direction) for direction in DIRECTIONS]
        tables.append(patch_latents(held[0], n_tested=3, n_controls=6, seed=0))
        chosen = [(int(latent), "double", "candidate") for latent in held[0].differing[:2]]
        own = {"double": "double"}
        moved.append(specificity(held, chosen, own, n_controls=4, seed=0))
        ablated.append(ablate_all_examples(exact_model, sae, runs, chosen, own, role="lab", n_controls=4))
    for pair in (tables, moved, ablated):
        agree(*pair)
    assert (tables[0]["n_controls"] > 0).any()


@pytest.mark.parametrize("rewritten", REWRITTEN)
def test_doses_their_controls_and_closure_are_the_same(exact_model, arms, rewritten):
    """Latents are pushed where the SAE takes activations as they are."""
    arm, parts, tables, pushes = arms[0], [], [], []
    some = arm.select(np.arange(4))
    for sae in written_twice(rewritten, "none"):
        acts = track(exact_model, {SITE: sae}, arm, roles=("pre",)).latents[SITE, "pre"]
        values = acts.dense().astype(np.float64)
        latents = np.flatnonzero((values[:, :, -1] != values[:, :, 2]).any(axis=1))[:3]
        growth = (values[latents, :, -1] - values[latents, :, 2]).mean(axis=1)
        bed = prepare_push(exact_model, sae, some, 2, np.zeros((4, 5)))
        table, _ = dose_table(bed, latents, growth, acts, n_controls=6, seed=0)
        tables.append(table)
        pushes.append(joint_push(bed, latents, growth))
        parts.append(natural_parts(exact_model, sae, arm, 2))
    agree(*tables)
    np.testing.assert_allclose(*pushes, rtol=1e-3, atol=1e-5)
    for name, part in parts[0].items():
        np.testing.assert_allclose(part, parts[1][name], rtol=1e-3, atol=1e-4)
    assert np.abs(tables[0]["growth"]).min() > 0


def test_an_sae_that_decodes_otherwise_is_refused():
    sae = plain("standard", "none").sae()
    decode = sae.network.decode
    sae.network.decode = lambda latents: 1.1 * decode(latents)
    for asked in (decoder_lengths, lambda sae: decoder_directions(sae, np.array([1]))):
        with pytest.raises(SaeError, match=r"L2\.resid_post: its decoder is not affine in the rows of W_dec"):
            asked(sae)
