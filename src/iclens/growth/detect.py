"""Growth detection: paired slopes of run T against its control, one error rate for the whole study.

1. Per prompt, the least-squares slope over examples of T − S: what position and content do alike in both arms
   cancels. With d_ij = z_ij(T) − z_ij(S), prompt i, example j, z the gated activation:

       b_i  = Σ_j w_j d_ij,   w_j = (n_j − n̄) / Σ_j (n_j − n̄)²

2. One-sample one-sided t across prompts, the unit of inference. With several controls the largest p counts.
3. Latents active in fewer than `MIN_ACTIVE` prompt pairs are not tested, and say so.
4. One family per site, role and direction, one error rate for all (`stats.study_q_values`). "falls" is the
   same test of the mirrored slopes, in families of its own. The verdict says nothing about the shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats
from scipy.sparse import csc_array, csr_array, eye_array, kron

from iclens.activations import LatentActs, Place
from iclens.core import Site, TableError
from iclens.prompts.build import PromptSet, check_pairing
from iclens.schemas import GrowthTable
from iclens.stats import half_width, study_q_values
from iclens.table import Floats, Ints

MIN_ACTIVE = 10
"""Fewest prompt pairs with the latent active that are tested; the filter ignores which arm is which."""


@dataclass(frozen=True)
class SlopeMoments:
    """Moments over prompts of the paired slopes of every latent."""

    n_prompts: int  # prompt pairs
    mean: Floats  # mean slope, activation per example, [latent]
    sd: Floats  # standard deviation (n − 1), [latent]
    n_active: Ints  # prompt pairs in which the latent is active in either arm, [latent]
    n_differing: Ints  # prompt pairs whose slope is not zero, [latent]

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


def slope_moments(treated: LatentActs, control: LatentActs) -> SlopeMoments:
    """Moments over prompts of every latent's paired slope, arm T against a control."""
    for acts in (treated, control):
        acts.check_finite()  # of a mapped store, the first look at all of them
    _check_comparable(treated, control)
    n, n_examples = treated.n_prompts, treated.n_examples
    if n_examples < 2 or n < 2:
        sizes = f"{n} prompts of {n_examples} examples"
        raise TableError(
            f"growth at {treated.site.short}", sizes, "Give at least two prompts of two examples."
        )
    # Matrices are [prompt·example latent]; `weights` takes each prompt's slope, [prompt prompt·example].
    centred = np.arange(n_examples) - (n_examples - 1) / 2
    prompts = eye_array(n, format="csr")
    weights = csr_array(kron(prompts, (centred / (centred**2).sum())[None], format="csr"))
    members = csr_array(kron(prompts, np.ones((1, n_examples)), format="csr"))
    slopes = csc_array(weights @ (treated.matrix.astype(float) - control.matrix.astype(float)))
    slopes.eliminate_zeros()
    used = csc_array(members @ (abs(treated.matrix) + abs(control.matrix)))
    n_differing = np.diff(slopes.indptr)
    mean = np.asarray(slopes.sum(axis=0)) / n
    # Two passes: the sum of squares minus n·mean² would lose every digit where slopes are nearly equal.
    latent = np.repeat(np.arange(treated.d_sae), n_differing)
    squares = np.bincount(latent, (slopes.data - mean[latent]) ** 2, minlength=treated.d_sae)
    sd = np.sqrt((squares + (n - n_differing) * mean**2) / (n - 1))
    return SlopeMoments(n, mean, sd, np.diff(used.indptr), n_differing)


def _check_comparable(treated: LatentActs, control: LatentActs) -> None:
    """Raise unless both arms are the same latents on as many prompts, and not the same activations."""
    for what in ("site", "role", "sae_id", "d_sae", "n_prompts", "n_examples"):
        values = getattr(treated, what), getattr(control, what)
        if values[0] != values[1]:
            remedy = "Track both arms with one SAE, at one site and role, on as many prompts and examples."
            raise TableError(
                f"paired arms at {treated.site.short}", f"{what} {values[0]} and {values[1]}", remedy
            )
    if treated.index.size and (treated.matrix - control.matrix).count_nonzero() == 0:
        arms = f"paired arms at {treated.site.short} {treated.role}"
        remedy = "Give two arms that were tracked each on its own prompts."
        raise TableError(arms, "both hold identical activations", remedy)


def test_growth(
    treated: LatentActs,
    control: LatentActs | Sequence[LatentActs],
    *,
    q: float = 0.05,
    decoder_norm: Floats | None = None,
) -> GrowthTable:
    """Verdicts for the latents of one site and role, taken as the whole study: a row per latent of the SAE.

    Args:
        control: arm S on the paired prompts; or several controls, of which the first gives the slopes shown.
        q: false discovery rate.
        decoder_norm: length that one unit of each latent adds, [latent], 1 by default; scales slopes, not p.

    Raises:
        TableError: when the arms are not comparable, two hold identical activations, or no control is given.
    """
    controls = [control] if isinstance(control, LatentActs) else list(control)
    if not controls:
        remedy = "Give `control` an arm that is paired with the task's, such as S."
        raise TableError("paired arms", "no control", remedy)
    place = (treated.site, treated.role)
    norms = {} if decoder_norm is None else {treated.site: decoder_norm}
    return _verdicts({place: treated}, [{place: other} for other in controls], q, norms)


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
        control: (site, role) → arm S; or several controls, of which the first gives the slopes shown.
        prompts: of the treated arm and of each control, in that order.
        q: P(any discovery) when nothing grows, and the false discovery rate within families.
        decoder_norms: site → length that one unit of each latent adds, [latent].
    """
    controls = [control] if isinstance(control, Mapping) else list(control)
    if len(prompts) != 1 + len(controls) or not controls:
        sets = f"{len(prompts)} prompt sets, {len(controls)} controls"
        remedy = "Give at least one control, and `prompts` of the task's arm and then of each control."
        raise TableError("paired arms", sets, remedy)
    check_pairing(prompts)
    for other in controls:
        if treated.keys() != other.keys() or not treated:
            places = f"{len(treated)} and {len(other)} sites × roles"
            raise TableError("paired arms", places, "Track every arm at the same sites and roles.")
    for (site, role), acts in treated.items():
        if (acts.n_prompts, acts.n_examples) != prompts[0].x.shape:
            what = f"latents at {site.short} {role}"
            remedy = f"The prompts given are {prompts[0].n_prompts} of {prompts[0].n_examples}: track these."
            raise TableError(what, f"{acts.n_prompts} prompts of {acts.n_examples} examples", remedy)
    return _verdicts(treated, controls, q, decoder_norms or {})


def _verdicts(
    treated: Mapping[Place, LatentActs], controls: Sequence[Mapping[Place, LatentActs]], q: float,
    norms: Mapping[Site, Floats],
) -> GrowthTable:  # fmt: skip
    for first, second in combinations(controls, 2):
        for place, acts in first.items():
            _check_comparable(acts, second[place])
    measured = {p: [slope_moments(acts, other[p]) for other in controls] for p, acts in treated.items()}
    families: list[Floats] = []  # of each place, rising and falling
    for against in measured.values():
        tested = np.all([(m.n_active >= MIN_ACTIVE) & (m.n_differing > 0) for m in against], axis=0)
        for p in ([m.p_rising() for m in against], [m.p_falling() for m in against]):
            families.append(np.where(tested, np.max(p, axis=0), np.nan))
    q_values = study_q_values(families)
    parts = []
    for i, ((site, role), against) in enumerate(measured.items()):
        first, n, p_value = against[0], treated[site, role].d_sae, families[2 * i]
        rises = first.mean > 0
        q_value = np.where(rises, q_values[2 * i], q_values[2 * i + 1])
        scale = norms.get(site, np.ones(n))
        if scale.shape != (n,):
            remedy = f"Give one number for each of the SAE's {n} latents."
            raise TableError(f"decoder_norm at {site.short}", f"shape {scale.shape}", remedy)
        slope = np.where(first.n_active > 0, first.mean * scale, np.nan)
        half = np.where(np.isfinite(p_value), first.half_width * scale, np.nan)
        verdict = np.where(q_value <= q, np.where(rises, "grows", "falls"), "none")
        parts.append(GrowthTable({
            "site": np.full(n, str(site)), "role": np.full(n, role), "latent": np.arange(n),
            "slope": slope, "ci_low": slope - half, "ci_high": slope + half, "p_value": p_value,
            "q_value": q_value, "n_prompts": np.full(n, first.n_prompts), "n_active": first.n_active,
            "verdict": verdict, "reason": _reasons(against),
        }))  # fmt: skip
    return GrowthTable.concat(parts)


def _reasons(against: Sequence[SlopeMoments]) -> np.ndarray:
    """Why a latent was not tested, [latent], against the control it is least active with; else empty."""
    n_active = np.array([m.n_active for m in against])
    least, most = n_active.min(axis=0), n_active.max(axis=0)
    differs = np.min([m.n_differing for m in against], axis=0) > 0
    pairs = f"of {against[0].n_prompts} prompt pairs, {MIN_ACTIVE} needed"
    few = ["never active", *(f"active in {n} {pairs}" for n in range(1, MIN_ACTIVE)), ""]
    reason = np.array(few, dtype=object)[np.minimum(least, MIN_ACTIVE)]
    reason[(least == 0) & (most > 0)] = "never active in the tested arm"
    reason[(least >= MIN_ACTIVE) & ~differs] = "the arms do not differ"
    return reason
