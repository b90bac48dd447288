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

_CELLS = 1 << 20
"""Entries × columns handled at a time, so that a bootstrap stays in the processor's cache."""


@dataclass(frozen=True)
class Ordering:
    """Non-zero entries sorted by latent, stratum and value.

    A *tie* is a run of equal values in one *block*; a block is one latent in one stratum.

    Args:
        n_latents: number of latents.
        stratum: stratum of each row, from 0, [row].
        row: row of each entry, [entry].
        tie: number of its tie, ascending, [entry].
        block: number of its block, ascending, [entry].
        above: whether its value is above zero, [entry].
        block_latent: [block].
        block_stratum: [block].
    """

    n_latents: int
    stratum: Ints
    row: Ints
    tie: Ints
    block: Ints
    above: NDArray[np.bool_]
    block_latent: Ints
    block_stratum: Ints

    def latents(self, first: int, last: int) -> Ordering:
        """The entries of latents `first` … `last` − 1."""
        b0, b1 = np.searchsorted(self.block_latent, (first, last))
        e0, e1 = np.searchsorted(self.block, (b0, b1))
        return Ordering(
            last - first, self.stratum, self.row[e0:e1], self.tie[e0:e1], self.block[e0:e1] - b0,
            self.above[e0:e1], self.block_latent[b0:b1] - first, self.block_stratum[b0:b1],
        )  # fmt: skip


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
    block = key // max(len(levels), 1)
    new_block = np.diff(block, prepend=-1) != 0
    return Ordering(
        n_latents=n_latents,
        stratum=stratum,
        row=row[order],
        tie=np.cumsum(np.diff(key, prepend=-1) != 0) - 1,
        block=np.cumsum(new_block) - 1,
        above=value[order] > 0,
        block_latent=block[new_block] // n_strata,
        block_stratum=block[new_block] % n_strata,
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
    p_all, n_all = _per_stratum(order.stratum, positive), _per_stratum(order.stratum, negative)
    pairs = (p_all * n_all).sum(axis=0)
    excess = np.empty((order.n_latents, positive.shape[1]), dtype=positive.dtype)
    most = max(1, _CELLS // positive.shape[1])
    upto = np.searchsorted(order.block_latent[order.block], np.arange(order.n_latents), side="right")
    first = 0
    while first < order.n_latents:
        before = upto[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(upto, before + most, side="right")))
        excess[first:last] = _excess(order.latents(first, last), positive, negative, p_all, n_all)
        first = last
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, 0.5 + excess / pairs, np.nan)


def _excess(order: Ordering, positive: Floats, negative: Floats, p_all: Floats, n_all: Floats) -> Floats:
    """Σ over strata of pairs won minus half of all pairs, [latent column].

    With C the running weight of negatives over sorted entries, an entry beats C at its tie (half of the
    tie included) and, when it is above zero, every negative that is zero.
    """
    n_blocks = len(order.block_latent)
    of_p, of_n = ((weight.max(axis=1) > 0)[order.row] for weight in (positive, negative))
    p, n = positive[order.row[of_p]], negative[order.row[of_n]]
    running = np.zeros((len(n) + 1, n.shape[1]), dtype=n.dtype)
    np.cumsum(n, axis=0, out=running[1:])
    n_start, n_stop = (
        np.searchsorted(order.block[of_n], np.arange(n_blocks), side) for side in ("left", "right")
    )
    n_zero = n_all[order.block_stratum] - (running[n_stop] - running[n_start])
    n_under = _total(order.block[of_n], ~order.above[of_n], n_blocks) @ n
    add_up = _total(order.block[of_p], np.ones(len(p)), n_blocks)
    p_block = add_up @ p
    p_over = _total(order.block[of_p], order.above[of_p], n_blocks) @ p
    p_zero = p_all[order.block_stratum] - p_block
    low, high = (np.searchsorted(order.tie[of_n], order.tie[of_p], side) for side in ("left", "right"))
    level = running[low]
    level += running[high]
    level *= p
    won = (add_up @ level) / 2 - p_block * running[n_start]
    won += p_over * n_zero + p_zero * (n_under + n_zero / 2)
    won -= p_all[order.block_stratum] * n_all[order.block_stratum] / 2
    return _total(order.block_latent, np.ones(n_blocks), order.n_latents) @ won


def _total(group: Ints, weight: Floats | NDArray[np.bool_], n_groups: int) -> csr_array:
    """The matrix that sums items [item] by ascending group, [group item]."""
    start = np.searchsorted(group, np.arange(n_groups + 1))
    return csr_array((weight.astype(np.float32), np.arange(len(group)), start), shape=(n_groups, len(group)))


def _per_stratum(stratum: Ints, weight: Floats) -> Floats:
    """Total weight of each stratum, [stratum column]."""
    order = np.argsort(stratum, kind="stable")
    return _total(stratum[order], np.ones(len(order)), int(stratum.max(initial=0)) + 1) @ weight[order]


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
    n_blocks = len(order.block_latent)
    n_block = np.bincount(order.block, minlength=n_blocks)
    n_under = np.bincount(order.block, weights=~order.above, minlength=n_blocks)
    of_block = size[order.block_stratum]
    zero_rank = n_under + (of_block - n_block + 1) / 2 - (of_block + 1) / 2
    below, upto = (np.searchsorted(order.tie, order.tie, side) for side in ("left", "right"))
    midrank = (below + upto + 1) / 2 - (n_block.cumsum() - n_block)[order.block]
    midrank += order.above * (of_block - n_block)[order.block] - ((of_block + 1) / 2)[order.block]
    moved = lift[order.row] * (midrank - zero_rank[order.block])
    n_clusters, n_strata = int(cluster.max(initial=0)) + 1, len(size)
    at = (cluster[order.row], order.block_latent[order.block])
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
    return times.T.astype(np.float32)[cluster]
