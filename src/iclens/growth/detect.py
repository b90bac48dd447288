"""Growth detection: paired slopes of run T against its control, one error rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats
from scipy.sparse import csc_array, csr_array, eye_array, kron

from iclens.activations import LatentActs
from iclens.core import Site, TableError
from iclens.prompts.build import PromptSet, check_pairing
from iclens.schemas import GrowthTable
from iclens.stats import half_width, study_q_values
from iclens.table import Floats, Ints


@dataclass(frozen=True)
class SlopeMoments:
    """What the test needs to know of the per-prompt slopes of every latent.

    Args:
        n_prompts: prompt pairs.
        mean: mean slope over prompts, activation per example, [latent].
        sd: standard deviation over prompts (n − 1), [latent].
        n_active: prompt pairs in which the latent is active in either arm, [latent].
        n_differing: prompt pairs whose slope is not zero, [latent].
    """

    n_prompts: int
    mean: Floats
    sd: Floats
    n_active: Ints
    n_differing: Ints

    @property
    def t(self) -> Floats:
        """t = mean / (sd / √n), [latent]; ±inf where all prompts have one slope, 0 where that is zero."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = self.mean / (self.sd / np.sqrt(self.n_prompts))
        return np.where(self.n_differing == 0, 0.0, t)

    @property
    def half_width(self) -> Floats:
        """Half-width of the 95 % t interval of the mean slope, [latent]."""
        return half_width(self.sd, self.n_prompts)

    def p_rising(self) -> Floats:
        """One-sided p for mean > 0: the larger of the t tail and 2^−n_differing, [latent].

        Under the null that the arms are exchangeable, the signs of the slopes are fair coins, and no test can
        honestly go below the chance that all coins agree; with few differing prompts the t tail alone would.
        """
        return np.maximum(stats.t.sf(self.t, self.n_prompts - 1), 0.5 ** self.n_differing.astype(float))

    def p_falling(self) -> Floats:
        """One-sided p for mean < 0, [latent]."""
        return np.maximum(stats.t.cdf(self.t, self.n_prompts - 1), 0.5 ** self.n_differing.astype(float))


def check_comparable(treated: LatentActs, control: LatentActs) -> None:
    """Raise unless the two arms are the same latents on equally many prompts, and not the same activations.

    Raises:
        TableError: naming what differs, or that nothing does.
    """
    for what in ("site", "role", "sae_id", "d_sae", "n_prompts", "n_examples"):
        one, other = getattr(treated, what), getattr(control, what)
        if one != other:
            raise TableError(
                f"paired arms at {treated.site.short}",
                f"{what} {one} and {other}",
                "Track both arms with one SAE, at one site and role, on as many prompts and examples.",
            )
    if treated.index.size and (treated.matrix - control.matrix).count_nonzero() == 0:
        raise TableError(
            f"paired arms at {treated.site.short} {treated.role}",
            "both hold identical activations",
            "Give two arms that were tracked each on its own prompts.",
        )


def check_finite(acts: LatentActs) -> None:
    """Raise if an activation is NaN or infinite; of a mapped store, this is the first look at all of them.

    Raises:
        TableError: naming the first such latent and its prompt.
    """
    finite = np.isfinite(acts.value)
    if not finite.all():
        entry = int(np.argmin(finite))
        prompt = (int(np.searchsorted(acts.indptr, entry, side="right")) - 1) // acts.n_examples
        raise TableError(
            f"activations at {acts.site.short} {acts.role}",
            f"NaN or infinite in latent {int(acts.index[entry])}, prompt {prompt}",
            "Read the model in float32 (model.dtype), or leave the SAE out, and track again.",
        )


def slope_moments(treated: LatentActs, control: LatentActs) -> SlopeMoments:
    """Moments over prompts of every latent's paired slope.

    Args:
        treated: the task's arm, usually T.
        control: its paired arm, usually S.

    Raises:
        TableError: when activations are not finite, the arms are not comparable, or slopes undefined (fewer
            than 2 examples or prompts).
    """
    for acts in (treated, control):
        check_finite(acts)
    check_comparable(treated, control)
    if treated.n_examples < 2 or treated.n_prompts < 2:
        raise TableError(
            f"growth at {treated.site.short}",
            f"{treated.n_prompts} prompts of {treated.n_examples} examples",
            "Give at least two prompts of two examples.",
        )
    prompts = eye_array(treated.n_prompts, format="csr")
    centred = np.arange(treated.n_examples) - (treated.n_examples - 1) / 2
    weights = csr_array(kron(prompts, (centred / (centred**2).sum())[None], format="csr"))
    members = csr_array(kron(prompts, np.ones((1, treated.n_examples)), format="csr"))
    slopes = csc_array(weights @ (treated.matrix.astype(float) - control.matrix.astype(float)))
    slopes.eliminate_zeros()
    used = csc_array(members @ (abs(treated.matrix) + abs(control.matrix)))
    n = treated.n_prompts
    n_differing = np.diff(slopes.indptr)
    mean = np.asarray(slopes.sum(axis=0)) / n
    # Two passes: the sum of squares minus n·mean² would lose every digit where slopes are nearly equal.
    latent = np.repeat(np.arange(treated.d_sae), n_differing)
    squares = np.bincount(latent, (slopes.data - mean[latent]) ** 2, minlength=treated.d_sae)
    sd = np.sqrt((squares + (n - n_differing) * mean**2) / (n - 1))
    return SlopeMoments(n, mean, sd, np.diff(used.indptr), n_differing)


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
