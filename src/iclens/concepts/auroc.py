"""Matched AUROC of latents against concepts, its bootstrap, confounds, and the figures beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csc_array, csr_array
from scipy.special import rel_entr
from scipy.stats import norm

from iclens.concepts.language import Concept, Rows
from iclens.schemas import TransformTable
from iclens.stats import interval, resample_prompts
from iclens.table import Floats, Ints, expect_shape

Matrix = csr_array | Floats
_CELLS = 1 << 20  # entries × columns handled at a time, so that a bootstrap stays in the processor's cache


@dataclass(frozen=True)
class Ordering:
    """Non-zero entries sorted by latent, stratum and value.

    A *tie* is a run of equal values in one *block*; a block is one latent in one stratum.
    """

    n_latents: int
    stratum: Ints  # stratum of each row, from 0, [row]
    row: Ints  # [entry]
    tie: Ints  # number of its tie, ascending, [entry]
    block: Ints  # number of its block, ascending, [entry]
    above: NDArray[np.bool_]  # whether its value is above zero, [entry]
    block_latent: Ints  # [block]
    block_stratum: Ints  # [block]

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


def matched_auroc(acts: csr_array, positive: NDArray[np.bool_], stratum: Ints) -> Floats:
    """`auroc` of every column of `acts` [row latent] with the rows as they are, [latent]."""
    return auroc(order_entries(acts, stratum), *sides(positive))[:, 0]


def auroc(order: Ordering, positive: Floats, negative: Floats) -> Floats:
    """P(z₊ > z₋) + ½ P(z₊ = z₋) over pairs of one stratum, for each latent and column of weights.

    `positive` and `negative` weigh each row on either side, [row column]. As [latent column]; NaN in a
    column without a pair.
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
    """z of AUROC − ½ with clusters [row] as the unit: a sign-flip test of their rank scores, [latent].

        u_c = Σ_{i ∈ c} (l_i − l̄_s)(r_i − r̄_s),   z = Σ_c u_c / √(Σ_c u_c²)

    l is 1 on positives, r the midrank within the stratum s of row i; Σ_c u_c is the numerator of
    AUROC − ½. Under the null each u_c is as likely negative as positive. 0 for a latent that is constant;
    |z| is at most √(number of clusters).
    """
    size = np.bincount(order.stratum)  # [stratum]
    lift = positive - (np.bincount(order.stratum, weights=positive) / size)[order.stratum]  # [row]
    n_blocks = len(order.block_latent)
    n_block = np.bincount(order.block, minlength=n_blocks)  # entries of each block, [block]
    n_under = np.bincount(order.block, weights=~order.above, minlength=n_blocks)  # those below zero
    of_block = size[order.block_stratum]
    # Zeros are not stored: they share one midrank per block. Scores are summed as if every row were zero,
    # and what the entries differ from that is added.
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
    return resample_prompts(n_clusters, n_resamples, rng).T.astype(np.float32)[cluster]


def resampled_auroc(order: Ordering, positive: NDArray[np.bool_], times: Floats) -> Floats:
    """`auroc` with each row counted as often as it is drawn, `times` [row resample], as [latent resample]."""
    return auroc(order, times * positive[:, None], times * ~positive[:, None])


# ------------------------------------------------------------------------------- figures beside the AUROC

_THIRDS = 3
STILL = 1e-12  # share of the mean square below which a variance is rounding


def column_moments(values: Matrix | csc_array) -> tuple[Floats, Floats]:
    """Mean and variance of each column of [row column], zeros included; the variance of a constant is 0."""
    mean, square = np.asarray(values.mean(axis=0)), np.asarray((values**2).mean(axis=0))
    variance = square - mean**2
    return mean, np.where(variance > STILL * square, variance, 0.0)


@dataclass(frozen=True)
class _Entries:
    """Non-zero activations of the rows with a weight, [entry] each; weights of one side sum to 1/2."""

    latent: Ints
    value: Floats
    weight: Floats
    positive: NDArray[np.bool_]
    n_latents: int

    def total(self, values: Floats, some: NDArray[np.bool_] | slice = slice(None)) -> Floats:
        """Sum over the entries of each latent, or over some of them, [latent]."""
        return np.bincount(self.latent[some], values[some], self.n_latents).astype(np.float64)


def overlap_weights(positive: NDArray[np.bool_], stratum: Ints) -> Floats:
    """Weights under which positives and negatives have the same distribution over strata, [row].

        w = N_s / (P_s + N_s) on a positive,   P_s / (P_s + N_s) on a negative,   then Σ w = 1/2 on each side

    P_s and N_s count the positives and negatives of stratum s. A stratum weighs most where the two are
    balanced, and nothing where one of them is missing; all weights are 0 when no stratum has both.
    """
    _, stratum = np.unique(stratum, return_inverse=True)
    n_positive, n_negative = (np.bincount(stratum, weights=side) for side in (positive, ~positive))
    n = n_positive + n_negative
    weight = np.where(positive, (n_negative / n)[stratum], (n_positive / n)[stratum])
    total = weight[positive].sum()
    return weight / (2 * total) if total > 0 else np.zeros(len(positive))


def scores(acts: csr_array, positive: NDArray[np.bool_], stratum: Ints) -> dict[str, Floats]:
    """Columns `effect_size` d, `mutual_info_nats` I and `overlap` κ of every latent with the label, [latent].

        d = (m₊ − m₋) / √((v₊ + v₋) / 2)                      m, v: weighted mean and (population) variance
        I = Σ p(b, l) log[p(b, l) / (p(b) p(l))] − (B − 1)/(2n)            (Miller–Madow, two labels)
        κ = (p_o − p_e) / (1 − p_e) = P(active | positive) − P(active | negative)

    The bins b are "inactive" (zero) and the thirds of the latent's non-zero entries on the used rows, by
    rank; equal values share a bin (that of their mean rank). B counts the bins that occur, n is Kish's
    (Σw)²/Σw² over all rows; it counts rows, so rows that repeat each other leave a bias. Active means above
    zero; negative values may occur. Both labels weigh 1/2, hence p_e = 1/2 and κ is a difference of rates.
    d is NaN where the activation is constant on positives and on negatives, also when the two constants
    differ. I of no relation is 0 in the mean and not clipped. All are NaN when no stratum has both labels.
    """
    n_rows, n_latents = cast("tuple[int, int]", acts.shape)
    expect_shape("scores", positive=(positive, (n_rows,)), stratum=(stratum, (n_rows,)))
    weight = overlap_weights(positive, stratum)
    if not weight.any():
        return {name: np.full(n_latents, np.nan) for name in ("effect_size", "mutual_info_nats", "overlap")}
    row = np.repeat(np.arange(n_rows), np.diff(acts.indptr))
    used = (acts.data != 0) & (weight[row] > 0)
    row = row[used]
    entries = _Entries(
        acts.indices[used].astype(np.int64), acts.data[used].astype(np.float64), weight[row], positive[row],
        n_latents,
    )  # fmt: skip
    lift = np.where(entries.positive, 2.0, -2.0) * entries.weight
    return {
        "effect_size": _effect_size(entries), "mutual_info_nats": _mutual_info(entries, positive, weight),
        "overlap": entries.total(lift, entries.value > 0),
    }  # fmt: skip


def confounding(positive: NDArray[np.bool_], stratum: Ints, labels: Ints) -> Floats:
    """Cramér's V of the concept's label and each confound's, 0 (unrelated) to 1 (one and the same).

        V = |p₁₁ p₀₀ − p₁₀ p₀₁| / √(p₁· p₀· p·₁ p·₀)

    The shares p are of the overlap weights of all rows, over the rows that the confound labels +1 or −1, not
    0 [row confound]. NaN where only one label of either occurs among the rows with a weight.
    """
    expect_shape(
        "confounding", positive=(positive, ("row",)), stratum=(stratum, ("row",)),
        labels=(labels, ("row", "confound")),
    )  # fmt: skip
    weight = overlap_weights(positive, stratum)
    weights = [weight * side for side in (positive, ~positive)]
    (both, left), (right, neither) = ([side @ (labels * sign > 0) for sign in (1, -1)] for side in weights)
    margins = (both + left) * (right + neither) * (both + right) * (left + neither)
    known = margins > 0
    apart = np.abs(both * neither - left * right)
    return np.where(known, apart / np.sqrt(np.where(known, margins, 1.0)), np.nan)


def _effect_size(entries: _Entries) -> Floats:
    moments = []
    for side in (entries.positive, ~entries.positive):
        weight = 2 * entries.weight
        stored = entries.total(weight, side)
        mean = entries.total(weight * entries.value, side)
        variance = entries.total(weight * (entries.value - mean[entries.latent]) ** 2, side)
        variance += np.maximum(1 - stored, 0) * mean**2  # the zeros, which are not stored
        moments.append((mean, np.where(variance > STILL * (variance + mean**2), variance, 0.0)))
    (high, spread), (low, spread_low) = moments
    pooled = (spread + spread_low) / 2
    return np.where(pooled > 0, (high - low) / np.sqrt(np.where(pooled > 0, pooled, 1.0)), np.nan)


def _mutual_info(entries: _Entries, positive: NDArray[np.bool_], weight: Floats) -> Floats:
    """Of inactive and thirds with the label, bias-corrected, nats [latent]."""
    cell = (entries.latent * _THIRDS + _third(entries)) * 2 + entries.positive
    shape = (entries.n_latents, _THIRDS, 2)
    mass = np.bincount(cell, entries.weight, np.prod(shape)).astype(np.float64).reshape(shape)
    count = np.bincount(cell, minlength=np.prod(shape)).reshape(shape)
    n_side = np.bincount(positive[weight > 0], minlength=2)
    # What is left over of a side is rounding, not weight, when no row of it is inactive.
    inactive = np.where(n_side > count.sum(axis=1), 0.5 - mass.sum(axis=1), 0.0)
    joint = np.concatenate([inactive[:, None], mass], axis=1)  # [latent bin label]
    of_bin = joint.sum(axis=2)
    n_effective = weight.sum() ** 2 / (weight**2).sum()
    information = rel_entr(joint, of_bin[:, :, None] / 2).sum(axis=(1, 2))
    return information - ((of_bin > 0).sum(axis=1) - 1) / (2 * n_effective)


def _third(entries: _Entries) -> Ints:
    """0, 1 or 2 by rank within the latent, [entry]: ⌊3 (mean rank − ½) / n⌋."""
    order = np.lexsort((entries.value, entries.latent))
    latent, value = entries.latent[order], entries.value[order]
    new_latent = np.diff(latent, prepend=-1) != 0
    new_tie = new_latent | (np.diff(value, prepend=0.0) != 0)
    ends = []  # of each entry's latent, then of its tie: the first entry, and the one after the last
    for new in (new_latent, new_tie):
        starts, run = np.flatnonzero(new), np.cumsum(new) - 1
        ends.append((starts[run], np.append(starts[1:], len(new))[run]))
    (first, last), (low, high) = ends
    third = np.empty(len(order), dtype=np.int64)
    third[order] = _THIRDS * (low + high - 2 * first) // (2 * (last - first))
    return third


# ------------------------------------------------------------------ one concept on both sides of the grid


@dataclass(frozen=True)
class Split:
    """The rows that one concept uses on one side of the grid, [used]."""

    used: Ints  # which of all rows
    rows: Rows
    positive: NDArray[np.bool_]
    stratum: Ints  # only rows of equal stratum are compared

    @property
    def prompt(self) -> Ints:
        """Prompt of each row, renumbered from 0, [used]."""
        return np.unique(self.rows.prompt, return_inverse=True)[1]

    @property
    def matched(self) -> NDArray[np.bool_]:
        """Whether a row of the other label stands in the row's stratum, [used]."""
        _, stratum = np.unique(self.stratum, return_inverse=True)
        n_positive = np.bincount(stratum, weights=self.positive)
        n_negative = np.bincount(stratum) - n_positive
        return np.where(self.positive, n_negative[stratum], n_positive[stratum]) > 0

    def too_few(self, side: str, fewest_prompts: int) -> str:
        """Why its prompts with positives, or with negatives, are too few; empty when they are enough."""
        for what, mask in (("positives", self.positive), ("negatives", ~self.positive)):
            n_prompts = len(np.unique(self.rows.prompt[mask]))
            if n_prompts < fewest_prompts:
                return f"{what} in {n_prompts} {side} prompts, {fewest_prompts} needed"
        return ""

    def unmatched(self, side: str) -> str:
        """Why no two of its rows can be compared; empty when some can."""
        return "" if self.matched.any() else f"no {side} positive has a matched negative"


def split_rows(rows: Rows, concept: Concept, wanted: NDArray[np.bool_]) -> Split:
    """The rows that `concept` uses among the `wanted` [row], those of one side of the grid."""
    chosen = np.flatnonzero(wanted)
    label = concept.contrast.label(rows.take(chosen))
    used = chosen[label != 0]
    kept = rows.take(used)
    return Split(used, kept, label[label != 0] > 0, concept.stratum(kept))


_BLANKS: dict[str, tuple[Any, type]] = {
    "float": (np.nan, np.float64), "int": (0, np.int64), "str": ("", object),
}  # fmt: skip


def blank_columns(n_latents: int, reason: str = "") -> dict[str, NDArray[Any]]:
    """Columns of a TransformTable where nothing is measured: NaN, 0 and empty, column → [latent]."""
    columns = {
        name: np.full(n_latents, *_BLANKS[column.kind]) for name, column in TransformTable.COLUMNS.items()
    }
    columns["sign"][:], columns["reason"][:] = 1, reason
    return columns


def measure(
    concept: Concept, acts: csr_array, discovery: Split, held_out: Split,
    *, seed: int, n_resamples: int, fewest_prompts: int,
) -> dict[str, NDArray[Any]]:  # fmt: skip
    """Columns of a TransformTable for one concept at one site and role, before multiplicity and gates.

    1. On discovery tasks the AUROC chooses each latent's direction. 2. Everything else is measured on
    held-out tasks in that direction: AUROC, its interval from resampled prompts, p, confounds and scores.
    `reason` says why nothing could be measured, and is empty where it was.
    """
    _, n_latents = cast("tuple[int, int]", acts.shape)
    reason = (
        discovery.too_few("discovery", fewest_prompts) or discovery.unmatched("discovery")
        or held_out.too_few("held-out", fewest_prompts) or held_out.unmatched("held-out")
    )  # fmt: skip
    columns = blank_columns(n_latents, reason)
    positive, matched = held_out.positive, held_out.matched
    for side, mask in (("positive", matched & positive), ("negative", matched & ~positive)):
        columns[f"n_{side}"][:] = mask.sum()
        columns[f"n_{side}_tasks"][:] = len(np.unique(held_out.rows.task[mask]))
    if reason:
        return columns
    chosen, kept = (cast("csr_array", acts[side.used]) for side in (discovery, held_out))
    direction = matched_auroc(chosen, discovery.positive, discovery.stratum)
    sign = np.where(direction < 0.5, -1, 1)
    order = order_entries(kept, held_out.stratum)
    value = auroc(order, *sides(positive))[:, 0]
    times = resampled_clusters(held_out.prompt, n_resamples, np.random.default_rng(seed))
    again = resampled_auroc(order, positive, times)
    low, high = interval(np.where(sign[:, None] > 0, again, 1 - again).T)
    columns |= _confounds(concept, kept, held_out) | scores(kept, positive, held_out.stratum)
    return columns | {
        "sign": sign, "auroc": np.where(sign > 0, value, 1 - value), "ci_low": low, "ci_high": high,
        "discovery_auroc": np.maximum(direction, 1 - direction),
        "p_value": norm.sf(sign * cluster_z(order, positive, held_out.prompt)),
    }  # fmt: skip


def _confounds(concept: Concept, acts: csr_array, held_out: Split) -> dict[str, NDArray[Any]]:
    """Columns on a concept's confounds: how each latent answers to them, and how the design ties them to it.

    A latent's answer is max(a, 1 − a) over rows that are equal in the concept's label and in what it holds
    fixed; the worst confound and its figure are shown, beside the names of those that cannot be measured.
    """
    _, n_latents = cast("tuple[int, int]", acts.shape)
    names = np.array([confound.name for confound in concept.confounds], dtype=object)
    labels = np.array([confound.label(held_out.rows) for confound in concept.confounds], dtype=np.int64)
    labels = labels.reshape(-1, len(held_out.rows)).T  # [row confound]
    columns = {name: blank for name, blank in blank_columns(n_latents).items() if "confound" in name}
    design = confounding(held_out.positive, held_out.stratum, labels)
    if not np.isnan(design).all():
        most = int(np.nanargmax(design))
        columns["confounding"][:], columns["confounded_with"][:] = design[most], names[most]
    strength = np.full((n_latents, len(names)), np.nan)
    if len(names):
        order = order_entries(acts, 2 * concept.fixed(held_out.rows) + held_out.positive)
        answer = auroc(order, (labels > 0).astype(np.float64), (labels < 0).astype(np.float64))
        strength = np.fmax(answer, 1 - answer)
    known = ~np.isnan(strength).any(axis=0)
    columns["unmeasured"] = np.full(n_latents, ", ".join(names[~known]), dtype=object)
    if known.any():
        worst = strength[:, known].argmax(axis=1)
        columns["worst_confound"] = names[known][worst]
        columns["confound_auroc"] = strength[:, known][np.arange(n_latents), worst]
    return columns
