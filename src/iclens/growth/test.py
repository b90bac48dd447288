"""The detection gate (H1): does a latent's paired trajectory rise with the examples seen?

1. Per prompt, the slope over examples of T − S: what position and content do alike in both arms cancels.
2. One-sample one-sided t across prompts; prompts are the unit of inference. With several controls the
largest p counts: growth has to be beyond every one of them.
3. Latents active in fewer than `MIN_ACTIVE` prompt pairs are not tested, and say so.
4. Benjamini–Hochberg within each site × role × direction, with one error rate for the study (`multiplicity`).

"grows" is the hypothesis; "falls" is the same test of the mirrored slopes, in families of its own, and is
charged for. The verdict says nothing about the shape of the growth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from iclens.errors import TableError
from iclens.growth.multiplicity import study_q_values
from iclens.growth.slopes import SlopeMoments, check_comparable, slope_moments
from iclens.names import Site
from iclens.tables.activations import LatentActs
from iclens.tables.arrays import Floats
from iclens.tables.growth import GrowthTable
from iclens.tables.pairing import check_pairing
from iclens.tables.prompts import PromptSet

MIN_ACTIVE = 10
"""Fewest prompt pairs with the latent active that are tested; the filter ignores which arm is which."""

Place = tuple[Site, str]
"""A site and a role."""


def test_growth(
    treated: LatentActs,
    control: LatentActs | Sequence[LatentActs],
    *,
    q: float = 0.05,
    decoder_norm: Floats | None = None,
) -> GrowthTable:
    """Verdicts for the latents of one site and role, taken as the whole study.

    Args:
        treated: arm T.
        control: arm S on the paired prompts; or several controls, of which the first gives the slopes shown.
        q: false discovery rate.
        decoder_norm: length that one unit of each latent adds, [latent], 1 by default; scales slopes, not p.

    Returns:
        One row per latent of the SAE.

    Raises:
        TableError: when the arms are not comparable, two of them hold identical activations, or there is no
            control.
    """
    controls = [control] if isinstance(control, LatentActs) else list(control)
    if not controls:
        raise TableError(
            "paired arms", "no control", "Give `control` an arm that is paired with the task's, such as S."
        )
    for first, second in combinations(controls, 2):
        check_comparable(first, second)
    return _verdicts([(treated, [slope_moments(treated, other) for other in controls], decoder_norm)], q)


def test_arms(
    treated: Mapping[Place, LatentActs],
    control: Mapping[Place, LatentActs] | Sequence[Mapping[Place, LatentActs]],
    *,
    prompts: Sequence[PromptSet],
    q: float = 0.05,
    decoder_norms: Mapping[Site, Floats] | None = None,
) -> GrowthTable:
    """Verdicts for every site and role of a study, with one error rate for all of them.

    Args:
        treated: (site, role) → arm T.
        control: (site, role) → arm S; or several controls, of which the first gives the slopes shown.
        prompts: the prompts of the arms, in that order.
        q: P(any discovery) when nothing grows, and the false discovery rate within families.
        decoder_norms: site → length that one unit of each latent adds, [latent].

    Raises:
        TableError: when the arms are unpaired, cover different places, or two of them hold identical
            activations.
    """
    controls = [control] if isinstance(control, Mapping) else list(control)
    if len(prompts) != 1 + len(controls) or not controls:
        raise TableError(
            "paired arms",
            f"{len(prompts)} prompt sets, {len(controls)} controls",
            "Give at least one control, and `prompts` of the task's arm and then of each control.",
        )
    check_pairing(prompts)
    for other in controls:
        if treated.keys() != other.keys() or not treated:
            raise TableError(
                "paired arms",
                f"{len(treated)} and {len(other)} sites × roles",
                "Track every arm at the same sites and roles.",
            )
    for place, acts in treated.items():
        if (acts.n_prompts, acts.n_examples) != prompts[0].x.shape:
            raise TableError(
                f"latents at {place[0].short} {place[1]}",
                f"{acts.n_prompts} prompts of {acts.n_examples} examples",
                f"The prompts given are {prompts[0].n_prompts} of {prompts[0].n_examples}: track these.",
            )
    for first, second in combinations(controls, 2):
        for place, acts in first.items():
            check_comparable(acts, second[place])
    norms = decoder_norms or {}
    measured = [
        (acts, [slope_moments(acts, other[key]) for other in controls], norms.get(key[0]))
        for key, acts in treated.items()
    ]
    return _verdicts(measured, q)


Measured = tuple[LatentActs, list[SlopeMoments], Floats | None]
"""Latents of a place, their slopes against every control, and their decoder norms."""


def _verdicts(measured: Sequence[Measured], q: float) -> GrowthTable:
    families: list[Floats] = []
    for _, against, _ in measured:
        tested = np.all([(m.n_active >= MIN_ACTIVE) & (m.n_differing > 0) for m in against], axis=0)
        for p in ([m.p_rising() for m in against], [m.p_falling() for m in against]):
            families.append(np.where(tested, np.max(p, axis=0), np.nan))
    q_values = study_q_values(families)
    parts = []
    for i, (acts, against, decoder_norm) in enumerate(measured):
        moments = against[0]
        rises = moments.mean > 0
        q_value = np.where(rises, q_values[2 * i], q_values[2 * i + 1])
        called = q_value <= q
        tested = np.isfinite(families[2 * i])
        scale = np.ones(acts.d_sae) if decoder_norm is None else _check_norm(decoder_norm, acts)
        slope = np.where(moments.n_active > 0, moments.mean * scale, np.nan)
        half_width = np.where(tested, moments.half_width * scale, np.nan)
        columns = {
            "site": np.full(acts.d_sae, str(acts.site)),
            "role": np.full(acts.d_sae, acts.role),
            "latent": np.arange(acts.d_sae),
            "slope": slope,
            "ci_low": slope - half_width,
            "ci_high": slope + half_width,
            "p_value": families[2 * i],
            "q_value": q_value,
            "n_prompts": np.full(acts.d_sae, moments.n_prompts),
            "n_active": moments.n_active,
            "verdict": np.where(called, np.where(rises, "grows", "falls"), "none"),
            "reason": _reasons(against),
        }
        parts.append(GrowthTable(columns))
    return GrowthTable.concat(parts)


def _check_norm(decoder_norm: Floats, acts: LatentActs) -> Floats:
    if decoder_norm.shape != (acts.d_sae,):
        raise TableError(
            f"decoder_norm at {acts.site.short}",
            f"shape {decoder_norm.shape}",
            f"Give one number for each of the SAE's {acts.d_sae} latents.",
        )
    return decoder_norm


def _reasons(against: Sequence[SlopeMoments]) -> np.ndarray:
    """Why a latent was not tested, [latent], against the control it is least active with; else empty."""
    least = np.argmin([m.n_active for m in against], axis=0)
    n_active = np.choose(least, [m.n_active for m in against])
    n_differing = np.min([m.n_differing for m in against], axis=0)
    few = [
        f"active in {n} of {against[0].n_prompts} prompt pairs, {MIN_ACTIVE} needed"
        for n in range(MIN_ACTIVE)
    ]
    silent = "never active in the tested arm"
    known = np.array(["", "never active", "the arms do not differ", *few, silent], dtype=object)
    code = np.where(
        n_active >= MIN_ACTIVE,
        np.where(n_differing == 0, 2, 0),
        3 + np.minimum(n_active, MIN_ACTIVE - 1),
    )
    elsewhere = np.max([m.n_active for m in against], axis=0) > 0
    return known[np.where(n_active == 0, np.where(elsewhere, len(known) - 1, 1), code)]
