"""Exact AUROC of every latent at once, from sparse rows.

    AUROC = Σ_s [ #(z₊ > z₋) + ½ #(z₊ = z₋) ] / Σ_s P_s N_s          pairs within stratum s only

1. `order_entries` sorts the active entries by latent, stratum and value, once; the zeros of a latent in a
stratum are one block of ties that is never stored. 2. `auroc` counts pairs for any weighting of the
rows, so a bootstrap replicate is a column of weights. 3. `cluster_z` tests the same numerator with
prompts as the unit. With one stratum and unit weights this is sklearn's `roc_auc_score`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from iclens.tables.arrays import Floats, Ints

_CELLS = 1 << 21
"""Entries × columns handled at a time, which bounds the memory of a bootstrap."""


@dataclass(frozen=True)
class Ordering:
    """Non-zero entries sorted by latent, stratum and value.

    A *tie* is a run of equal values in one *block*; a block is one latent in one stratum.

    Args:
        n_latents: number of latents.
        stratum: stratum of each row, from 0, [row].
        row: row of each entry, [entry].
        tie_start: first entry of each tie, [tie].
        above: whether the tie's value is above zero, [tie].
        block_start: first tie of each block, [block].
        block_latent: [block].
        block_stratum: [block].
    """

    n_latents: int
    stratum: Ints
    row: Ints
    tie_start: Ints
    above: NDArray[np.bool_]
    block_start: Ints
    block_latent: Ints
    block_stratum: Ints

    @property
    def tie_block(self) -> Ints:
        """Block of each tie, [tie]."""
        return np.repeat(
            np.arange(len(self.block_start)), np.diff(self.block_start, append=len(self.tie_start))
        )


def order_entries(acts: csr_array, stratum: Ints) -> Ordering:
    """Sort the entries of `acts` [row latent] within strata [row]; stored zeros count as zeros."""
    _, stratum = np.unique(stratum, return_inverse=True)
    n_rows, n_latents = cast("tuple[int, int]", acts.shape)
    n_strata = int(stratum.max(initial=0)) + 1
    stored = acts.data != 0
    row = np.repeat(np.arange(n_rows), np.diff(acts.indptr))[stored]
    latent, value = acts.indices[stored].astype(np.int64), acts.data[stored]
    levels, level = np.unique(value, return_inverse=True)
    key = (latent * n_strata + stratum[row]) * max(len(levels), 1) + level
    order = np.argsort(key, kind="stable")
    key = key[order]
    tie_start = np.flatnonzero(np.diff(key, prepend=-1))
    block = key[tie_start] // max(len(levels), 1)
    block_start = np.flatnonzero(np.diff(block, prepend=-1))
    return Ordering(
        n_latents=n_latents,
        stratum=stratum,
        row=row[order],
        tie_start=tie_start,
        above=value[order][tie_start] > 0,
        block_start=block_start,
        block_latent=block[block_start] // n_strata,
        block_stratum=block[block_start] % n_strata,
    )


def sides(positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Unit weights of positives and of the others, each [row 1], as `auroc` takes them."""
    return positive[:, None].astype(np.float64), (~positive)[:, None].astype(np.float64)


def auroc(order: Ordering, positive: Floats, negative: Floats) -> Floats:
    """P(z₊ > z₋) + ½ P(z₊ = z₋) over pairs of one stratum, for each latent and column of weights.

    Args:
        order: the sorted entries.
        positive: weight of each row as a positive, [row column].
        negative: weight of each row as a negative, [row column].

    Returns:
        [latent column]; NaN in a column without a pair.
    """
    out = np.empty((order.n_latents, positive.shape[1]))
    step = max(1, _CELLS // max(len(order.row), 1))
    for first in range(0, positive.shape[1], step):
        columns = slice(first, first + step)
        out[:, columns] = _auroc_columns(order, positive[:, columns], negative[:, columns])
    return out


def _auroc_columns(order: Ordering, positive: Floats, negative: Floats) -> Floats:
    p_all, n_all = _per_stratum(order.stratum, positive), _per_stratum(order.stratum, negative)
    pairs = (p_all * n_all).sum(axis=0)
    won = np.zeros((order.n_latents, positive.shape[1]))
    if len(order.row):
        p = np.add.reduceat(positive[order.row], order.tie_start, axis=0)
        n = np.add.reduceat(negative[order.row], order.tie_start, axis=0)
        p_total, n_total = p_all[order.block_stratum], n_all[order.block_stratum]
        n_zero = n_total - np.add.reduceat(n, order.block_start, axis=0)
        p_zero = p_total - np.add.reduceat(p, order.block_start, axis=0)
        below = n.cumsum(axis=0) - n
        below -= below[order.block_start][order.tie_block]
        above = order.above[:, None]
        beaten = np.add.reduceat(p * (below + n / 2), order.block_start, axis=0)
        beaten += np.add.reduceat(p * above, order.block_start, axis=0) * n_zero
        beaten += p_zero * (np.add.reduceat(n * ~above, order.block_start, axis=0) + n_zero / 2)
        first = np.flatnonzero(np.diff(order.block_latent, prepend=-1))
        won[order.block_latent[first]] = np.add.reduceat(beaten - p_total * n_total / 2, first, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, 0.5 + won / pairs, np.nan)


def _per_stratum(stratum: Ints, weight: Floats) -> Floats:
    """Total weight of each stratum, [stratum column]."""
    total = np.zeros((int(stratum.max(initial=0)) + 1, weight.shape[1]))
    np.add.at(total, stratum, weight)
    return total


def cluster_z(order: Ordering, positive: NDArray[np.bool_], cluster: Ints) -> Floats:
    """z of AUROC − ½ with clusters as the unit: a sign-flip test of the clusters' rank scores.

        u_c = Σ_{i ∈ c} (l_i − l̄_s)(r_i − r̄_s),   z = Σ_c u_c / √(Σ_c u_c²)

    l is 1 on positives, r the midrank within the stratum s of row i; Σ_c u_c is the numerator of
    AUROC − ½. Under the null each u_c is as likely negative as positive.

    Args:
        order: the sorted entries of exactly these rows.
        positive: [row].
        cluster: cluster of each row, from 0, [row].

    Returns:
        [latent]; 0 for a latent that is constant. |z| is at most √(number of clusters).
    """
    size = np.bincount(order.stratum)
    lift = positive - (np.bincount(order.stratum, weights=positive) / size)[order.stratum]
    count = np.diff(order.tie_start, append=len(order.row))
    before = count.cumsum() - count
    before -= before[order.block_start][order.tie_block] if len(count) else 0
    n_block, n_under = (
        np.bincount(order.tie_block, weights=w, minlength=len(order.block_start))
        for w in (count, count * ~order.above)
    )
    n_zero = size[order.block_stratum] - n_block
    centre = (size[order.block_stratum] + 1) / 2
    zero_rank = n_under + (n_zero + 1) / 2 - centre
    rank = before + (count + 1) / 2 + (order.above * n_zero[order.tie_block]) - centre[order.tie_block]
    tie = np.repeat(np.arange(len(count)), count)
    moved = lift[order.row] * (rank - zero_rank[order.tie_block])[tie]
    n_clusters, n_strata = int(cluster.max(initial=0)) + 1, len(size)
    at = (cluster[order.row], order.block_latent[order.tie_block][tie])
    scores = coo_array((moved, at), shape=(n_clusters, order.n_latents)).toarray()
    at = (order.block_stratum, order.block_latent)
    zero_ranks = coo_array((zero_rank, at), shape=(n_strata, order.n_latents)).toarray()
    lifts = np.zeros((n_clusters, n_strata))
    np.add.at(lifts, (cluster, order.stratum), lift)
    scores += lifts @ zero_ranks
    total, spread = scores.sum(axis=0), np.sqrt((scores**2).sum(axis=0))
    still = spread <= 1e-12 * len(order.stratum) ** 2
    return np.where(still, 0.0, total / np.where(still, 1.0, spread))


def resampled_clusters(cluster: Ints, n_resamples: int, rng: np.random.Generator) -> Floats:
    """How often each row is drawn when whole clusters are drawn with replacement, [row resample]."""
    n_clusters = int(cluster.max(initial=0)) + 1
    times = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=n_resamples)
    return times.T[cluster].astype(np.float64)
