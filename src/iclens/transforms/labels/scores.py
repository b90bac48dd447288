"""How strongly do a latent's activation and a concept go together, beside AUROC? Of all latents at once.

1. Rows get *overlap weights*, so that positives and negatives have one distribution over strata. 2. Three
figures are taken from the stored entries alone: Cohen's d, the mutual information of activation and label,
and Cohen's kappa of being active and the label. 3. `confounding` says, with the same weights, how far the
design itself lets the concept and a confound go together.

What enters: activations of the rows that a concept uses, their labels and strata. What leaves: `Scores`, an
array per figure. None of them has an interval here, and rows of one prompt are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import rel_entr

from iclens.tables.arrays import Floats, Ints, expect_shape

_THIRDS = 3
_STILL = 1e-12
"""Share of the mean square below which a variance is rounding."""


@dataclass(frozen=True)
class Scores:
    """Figures of each latent, [latent]; all NaN when no stratum has both positives and negatives.

    Args:
        effect_size: Cohen's d; NaN where the activation is constant on positives and on negatives, also when
            the two constants differ (d is then unbounded). Never infinite.
        mutual_info_nats: bias-corrected mutual information of binned activation and label, nats; of no
            relation it is 0 in the mean, so it can be slightly negative, and it is not clipped.
        overlap: Cohen's kappa of being active and the label; negative where active on negatives.
    """

    effect_size: Floats
    mutual_info_nats: Floats
    overlap: Floats


@dataclass(frozen=True)
class _Entries:
    """Non-zero activations of the rows with a weight, [entry] each; weights of one side sum to 1/2."""

    latent: Ints
    value: Floats
    weight: Floats
    positive: NDArray[np.bool_]


def overlap_weights(positive: NDArray[np.bool_], stratum: Ints) -> Floats:
    """Weights under which positives and negatives have the same distribution over strata.

        w = N_s / (P_s + N_s) on a positive,   P_s / (P_s + N_s) on a negative,   then Σ w = 1/2 on each side

    P_s and N_s count the positives and negatives of stratum s. A stratum weighs most where the two are
    balanced, and nothing where one of them is missing.

    Args:
        positive: [row].
        stratum: [row].

    Returns:
        [row]; 0 throughout when no stratum has both.
    """
    _, stratum = np.unique(stratum, return_inverse=True)
    n_positive, n_negative = (np.bincount(stratum, weights=side) for side in (positive, ~positive))
    n = n_positive + n_negative
    weight = np.where(positive, (n_negative / n)[stratum], (n_positive / n)[stratum])
    total = weight[positive].sum()
    return weight / (2 * total) if total > 0 else np.zeros(len(positive))


def scores(acts: csr_array, positive: NDArray[np.bool_], stratum: Ints) -> Scores:
    """Effect size, mutual information and overlap of every latent with the label.

        d = (m₊ − m₋) / √((v₊ + v₋) / 2)                      m, v: weighted mean and (population) variance
        I = Σ p(b, l) log[p(b, l) / (p(b) p(l))] − (B − 1)/(2n)            (Miller–Madow, two labels)
        κ = (p_o − p_e) / (1 − p_e) = P(active | positive) − P(active | negative)

    The bins b are "inactive" (zero) and the thirds of the latent's non-zero entries on the used rows, by
    rank; equal values share a bin (that of their mean rank). B counts the bins that occur, n is Kish's
    (Σw)²/Σw² over all rows; it counts rows, so rows that repeat each other leave a bias. Active means above
    zero. Both labels weigh 1/2, hence p_e = 1/2 and κ is a difference of rates.

    Args:
        acts: gated activations, [row latent]; zeros need not be stored, negative values may occur.
        positive: [row].
        stratum: only rows of equal stratum are compared, [row].

    Raises:
        TableError: when the axes disagree.
    """
    n_rows, n_latents = cast("tuple[int, int]", acts.shape)
    expect_shape("scores", positive=(positive, (n_rows,)), stratum=(stratum, (n_rows,)))
    weight = overlap_weights(positive, stratum)
    if not weight.any():
        return Scores(*(np.full(n_latents, np.nan) for _ in range(3)))
    entries = _entries(acts, positive, weight)
    lift = np.where(entries.positive, 2.0, -2.0) * entries.weight
    active = entries.value > 0
    return Scores(
        effect_size=_effect_size(entries, n_latents),
        mutual_info_nats=_mutual_info(entries, n_latents, positive, weight),
        overlap=_sum(entries.latent[active], lift[active], n_latents),
    )


def confounding(positive: NDArray[np.bool_], stratum: Ints, labels: Ints) -> Floats:
    """Cramér's V of the concept's label and each confound's, 0 (unrelated) to 1 (one and the same).

        V = |p₁₁ p₀₀ − p₁₀ p₀₁| / √(p₁· p₀· p·₁ p·₀)

    The shares p are of the overlap weights of all rows, over the rows that the confound labels.

    Args:
        positive: the concept's label, [row].
        stratum: [row].
        labels: +1, −1 or 0 (unused) of each confound, [row confound].

    Returns:
        [confound]; NaN where only one label of either occurs among the rows with a weight.

    Raises:
        TableError: when the axes disagree.
    """
    expect_shape(
        "confounding", positive=(positive, ("row",)), stratum=(stratum, ("row",)),
        labels=(labels, ("row", "confound")),
    )  # fmt: skip
    weight = overlap_weights(positive, stratum)
    sides = [weight * side for side in (positive, ~positive)]
    (both, left), (right, neither) = ([side @ (labels * sign > 0) for sign in (1, -1)] for side in sides)
    margins = (both + left) * (right + neither) * (both + right) * (left + neither)
    known = margins > 0
    apart = np.abs(both * neither - left * right)
    return np.where(known, apart / np.sqrt(np.where(known, margins, 1.0)), np.nan)


def _entries(acts: csr_array, positive: NDArray[np.bool_], weight: Floats) -> _Entries:
    row = np.repeat(np.arange(len(positive)), np.diff(acts.indptr))
    used = (acts.data != 0) & (weight[row] > 0)
    row = row[used]
    value = acts.data[used].astype(np.float64)
    return _Entries(acts.indices[used].astype(np.int64), value, weight[row], positive[row])


def _sum(place: Ints, values: Floats, n_places: int) -> Floats:
    return np.bincount(place, weights=values, minlength=n_places).astype(np.float64)


def _effect_size(entries: _Entries, n_latents: int) -> Floats:
    moments = []
    for side in (entries.positive, ~entries.positive):
        latent, value, weight = entries.latent[side], entries.value[side], 2 * entries.weight[side]
        stored = _sum(latent, weight, n_latents)
        mean = _sum(latent, weight * value, n_latents)
        apart = weight * (value - mean[latent]) ** 2
        variance = _sum(latent, apart, n_latents)
        variance += np.maximum(1 - stored, 0) * mean**2
        moments.append((mean, np.where(variance > _STILL * (variance + mean**2), variance, 0.0)))
    (high, spread), (low, spread_low) = moments
    pooled = (spread + spread_low) / 2
    return np.where(pooled > 0, (high - low) / np.sqrt(np.where(pooled > 0, pooled, 1.0)), np.nan)


def _mutual_info(entries: _Entries, n_latents: int, positive: NDArray[np.bool_], weight: Floats) -> Floats:
    """Of inactive and thirds with the label, bias-corrected, nats [latent]."""
    cell = (entries.latent * _THIRDS + _third(entries)) * 2 + entries.positive
    shape, size = (n_latents, _THIRDS, 2), n_latents * _THIRDS * 2
    mass = _sum(cell, entries.weight, size).reshape(shape)
    count = np.bincount(cell, minlength=size).reshape(shape)
    n_side = np.bincount(positive[weight > 0], minlength=2)
    # What is left over of a side is rounding, not weight, when no row of it is inactive.
    inactive = np.where(n_side > count.sum(axis=1), 0.5 - mass.sum(axis=1), 0.0)
    joint = np.concatenate([inactive[:, None], mass], axis=1)
    of_bin = joint.sum(axis=2)
    n_bins = (of_bin > 0).sum(axis=1)
    n_effective = weight.sum() ** 2 / (weight**2).sum()
    found = rel_entr(joint, of_bin[:, :, None] / 2).sum(axis=(1, 2))
    return found - (n_bins - 1) / (2 * n_effective)


def _third(entries: _Entries) -> Ints:
    """0, 1 or 2 by rank within the latent, [entry]: ⌊3 (mean rank − ½) / n⌋."""
    order = np.lexsort((entries.value, entries.latent))
    latent, value = entries.latent[order], entries.value[order]
    new_latent = np.diff(latent, prepend=-1) != 0
    new_tie = new_latent | (np.diff(value, prepend=0.0) != 0)
    (first, last), (low, high) = (_runs(new) for new in (new_latent, new_tie))
    third = np.empty(len(order), dtype=np.int64)
    third[order] = _THIRDS * (low + high - 2 * first) // (2 * (last - first))
    return third


def _runs(new: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """First entry of each entry's run, and the one after its last, [entry] each; `new` starts a run."""
    starts = np.flatnonzero(new)
    run = np.cumsum(new) - 1
    return starts[run], np.append(starts[1:], len(new))[run]
