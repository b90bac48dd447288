"""Slopes: how fast a latent's paired difference T − S rises with the examples seen, prompt by prompt.

    d_ij = z_ij(treated) − z_ij(control)        prompt i, example j; z is the gated activation
    b_i  = Σ_j w_j d_ij,   w_j = (n_j − n̄) / Σ_j (n_j − n̄)²        least squares over n_j = j

All latents at once from the active entries: rows of W hold the weights of one prompt, b = W (Z_T − Z_S).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.sparse import csc_array, csr_array, eye_array, kron

from iclens.errors import TableError
from iclens.tables.activations import LatentActs
from iclens.tables.arrays import Floats, Ints


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
        return stats.t.ppf(0.975, self.n_prompts - 1) * self.sd / np.sqrt(self.n_prompts)

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
