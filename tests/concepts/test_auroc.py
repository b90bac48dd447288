"""Matched AUROC, its test, and the figures beside it: by hand, by scikit-learn, by loops, and on nulls."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.stats import norm, rankdata
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from iclens.concepts.auroc import (
    auroc,
    cluster_z,
    confounding,
    matched_auroc,
    order_entries,
    overlap_weights,
    resampled_auroc,
    resampled_clusters,
    scores,
)
from iclens.core import TableError

seeds = st.integers(0, 10_000)
FIGURES = ("effect_size", "mutual_info_nats", "overlap")


def one_latent(values, positive, stratum=None):
    """Activations, labels and strata of one latent, as the functions take them."""
    stratum = np.zeros(len(values), dtype=int) if stratum is None else np.array(stratum)
    return csr_array(np.array(values, dtype=float)[:, None]), np.array(positive, dtype=bool), stratum


def random_rows(seed, n_rows=60, n_latents=8, n_strata=3):
    """Sparse rows with ties and negative values; the first latent is silent, the second always the same."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-2, 5, (n_rows, n_latents)) * (rng.random((n_rows, n_latents)) < 0.6) * 0.25
    values[:, 0], values[:, 1] = 0, 0.3
    positive, stratum = rng.random(n_rows) < 0.3, rng.integers(5, 5 + n_strata, n_rows)
    positive[:2], stratum[:2] = (True, False), 5
    return values, positive, stratum


def test_a_stored_zero_is_a_zero() -> None:
    stored = csr_array((np.array([0.0, 1.0, 0.0]), np.array([0, 0, 0]), np.array([0, 1, 2, 3, 3])))
    plain, positive, stratum = one_latent([0, 1, 0, 0], [1, 1, 0, 0])
    np.testing.assert_array_equal(*(matched_auroc(acts, positive, stratum) for acts in (stored, plain)))
    one, other = (scores(acts, positive, stratum) for acts in (stored, plain))
    for name in FIGURES:
        np.testing.assert_array_equal(one[name], other[name])


# ---------------------------------------------------------------------------------------------------- AUROC


@pytest.mark.parametrize(
    ("values", "positive", "stratum", "wanted"),
    [
        # positives 3, 0; negatives 1, 0: wins 3>1 and 3>0, loss 0<1, tie 0=0 counts half
        ([3, 1, 0, 0], [1, 0, 1, 0], None, 0.625),
        # zeros lie between: positives -1, 0; negatives 0, 2: -1<0, -1<2, 0=0, 0<2
        ([-1, 0, 0, 2], [1, 1, 0, 0], None, 0.125),
        ([5, 4, 1, 0], [1, 0, 1, 0], [0, 0, 1, 1], 1.0),  # 5>4, 1>0
        ([5, 4, 1, 0], [1, 0, 1, 0], None, 0.75),  # pooled: 1<4 is lost
        # pairs are pooled, strata are not averaged: 5>4, 5<6 and 1>0 give 2/3, not (1/2 + 1)/2
        ([5, 4, 6, 1, 0], [1, 0, 0, 1, 0], [0, 0, 0, 1, 1], 2 / 3),
        ([1, 2], [1, 0], [0, 1], np.nan),  # no pair
        ([1, 2], [1, 1], None, np.nan),
    ],
)
def test_golden_aurocs(values, positive, stratum, wanted) -> None:
    assert matched_auroc(*one_latent(values, positive, stratum))[0] == pytest.approx(wanted, nan_ok=True)


@given(seeds)
@settings(max_examples=15)
def test_aurocs_equal_sklearn_and_a_loop_over_pairs_of_a_stratum(seed) -> None:
    values, positive, stratum = random_rows(seed, n_rows=40, n_latents=5)
    weight = np.random.default_rng(seed).integers(1, 4, len(values)).astype(float)
    order = order_entries(csr_array(values), np.zeros(len(values), dtype=int))
    weighted = auroc(order, (weight * positive)[:, None], (weight * ~positive)[:, None])[:, 0]
    wanted = [roc_auc_score(positive, column, sample_weight=weight) for column in values.T]
    np.testing.assert_allclose(weighted, wanted, atol=1e-9, rtol=0)
    pairs = itertools.product(np.flatnonzero(positive), np.flatnonzero(~positive))
    matched = np.array([(i, j) for i, j in pairs if stratum[i] == stratum[j]]).T
    high, low = values[matched[0]], values[matched[1]]
    wanted = ((high > low) + (high == low) / 2).mean(axis=0)
    np.testing.assert_allclose(matched_auroc(csr_array(values), positive, stratum), wanted, atol=1e-12)


def test_many_columns_are_the_columns_one_by_one(monkeypatch) -> None:
    values, positive, stratum = random_rows(1)
    order = order_entries(csr_array(values), stratum)
    weight = np.random.default_rng(0).integers(0, 3, (len(values), 7)).astype(float)
    p, n = weight * positive[:, None], weight * ~positive[:, None]
    alone = np.column_stack([auroc(order, p[:, [k]], n[:, [k]])[:, 0] for k in range(7)])
    np.testing.assert_allclose(auroc(order, p, n), alone, atol=1e-12)
    monkeypatch.setattr("iclens.concepts.auroc._CELLS", 20)  # a few entries at a time
    np.testing.assert_allclose(auroc(order, p, n), alone, atol=1e-12)


def test_a_bootstrap_column_is_the_resampled_data() -> None:
    values, positive, _ = random_rows(2)
    cluster = np.repeat(np.arange(20), 3)
    times = resampled_clusters(cluster, 5, np.random.default_rng(2))
    assert (times.sum(axis=0) == len(values)).all()
    assert all(len(np.unique(times[cluster == c], axis=0)) == 1 for c in range(20))
    order = order_entries(csr_array(values), np.zeros(len(values), dtype=int))
    drawn = np.repeat(np.arange(len(values)), times[:, 3].astype(int))
    wanted = [roc_auc_score(positive[drawn], column) for column in values[drawn].T]
    np.testing.assert_allclose(resampled_auroc(order, positive, times)[:, 3], wanted, atol=1e-6)


@given(seeds)
@settings(max_examples=15)
def test_cluster_z_equals_its_formula(seed) -> None:
    values, positive, stratum = random_rows(seed)
    cluster = np.random.default_rng(seed).integers(0, 9, len(values))
    cluster[:9] = np.arange(9)
    z = cluster_z(order_entries(csr_array(values), stratum), positive, cluster)
    for latent, column in enumerate(values.T):
        u = np.zeros(9)
        for s in np.unique(stratum):
            rows = stratum == s
            lift, rank = positive[rows] - positive[rows].mean(), rankdata(column[rows])
            np.add.at(u, cluster[rows], lift * (rank - rank.mean()))
        size = np.sqrt((u**2).sum())
        assert z[latent] == pytest.approx(u.sum() / size if size > 1e-9 else 0.0, abs=1e-9)
    assert (np.abs(z) <= 3 + 1e-9).all()


def test_cluster_z_holds_its_level_where_counting_rows_does_not_and_finds_a_difference() -> None:
    """Null: 40 prompts of 12 rows; both the label and half of the activation belong to the prompt."""
    rng = np.random.default_rng(5)
    prompt = np.repeat(np.arange(40), 12)
    positive = (np.arange(40) < 20)[prompt]
    values = rng.standard_normal((40, 600))[prompt] + rng.standard_normal((480, 600))
    values = np.column_stack([values, rng.standard_normal((480, 2)) + np.outer(positive, [1.0, -1.0])])
    order = order_entries(csr_array(values), np.zeros(480, dtype=int))
    by_prompt, by_row = (cluster_z(order, positive, c) for c in (prompt, np.arange(480)))
    assert 0.03 < (norm.sf(by_prompt[:600]) < 0.05).mean() < 0.07
    assert (norm.sf(by_row[:600]) < 0.05).mean() > 0.2
    assert by_prompt[600] > 5 and by_prompt[601] < -5


# -------------------------------------------------------------- effect size, mutual information and overlap


def figures(*given_rows):
    """The three figures of one latent."""
    found = scores(*one_latent(*given_rows))
    return tuple(found[name][0] for name in FIGURES)


def weights_by_loop(positive, stratum):
    weight = np.zeros(len(positive))
    for i in range(len(positive)):
        mates = stratum == stratum[i]
        weight[i] = (mates & (positive != positive[i])).sum() / mates.sum()
    for side in (positive, ~positive):
        weight[side] /= 2 * weight[side].sum()
    return weight


def thirds_by_loop(column, used):
    """0 for zero, else 1, 2 or 3: by the mean rank, ties together, among the non-zero used entries."""
    entries = [column[i] for i in range(len(column)) if used[i] and column[i] != 0]
    bins = np.zeros(len(column), dtype=int)
    for i in range(len(column)):
        if used[i] and column[i] != 0:
            below = sum(v < column[i] for v in entries)
            upto = sum(v <= column[i] for v in entries)
            bins[i] = 1 + int(3 * (below + upto) / 2 / len(entries))
    return bins


@given(seeds)
@settings(max_examples=20)
def test_scores_equal_loops_and_sklearn(seed) -> None:
    values, positive, stratum = random_rows(seed)
    found = scores(csr_array(values.astype(np.float32)), positive, stratum)
    weight = weights_by_loop(positive, stratum)
    np.testing.assert_allclose(overlap_weights(positive, stratum), weight, atol=1e-12)
    n = weight.sum() ** 2 / (weight**2).sum()
    kappa = [cohen_kappa_score(positive, column > 0, sample_weight=weight) for column in values.T]
    np.testing.assert_allclose(found["overlap"], kappa, atol=1e-9)
    assert np.isnan(found["effect_size"][:2]).all()
    for latent, column in enumerate(values.astype(np.float32).astype(float).T):
        if latent >= 2:
            mean = [np.average(column[side], weights=weight[side]) for side in (positive, ~positive)]
            spread = [
                np.average((column[side] - m) ** 2, weights=weight[side])
                for side, m in zip((positive, ~positive), mean, strict=True)
            ]
            wanted = (mean[0] - mean[1]) / np.sqrt(sum(spread) / 2)
            assert found["effect_size"][latent] == pytest.approx(wanted, abs=1e-9)
        bins, info, n_bins = thirds_by_loop(column, weight > 0), 0.0, 0
        for b in range(4):
            n_bins += weight[bins == b].sum() > 0
            for side in (positive, ~positive):
                p = weight[(bins == b) & side].sum()
                info += p * np.log(p / (weight[bins == b].sum() * weight[side].sum())) if p > 0 else 0.0
        assert found["mutual_info_nats"][latent] == pytest.approx(info - (n_bins - 1) / (2 * n), abs=1e-9)


def test_neither_order_nor_unused_rows_nor_units_matter_and_labels_give_the_sign() -> None:
    values, positive, stratum = random_rows(7)
    plain, reversed_ = (scores(csr_array(values), label, stratum) for label in (positive, ~positive))
    order = np.random.default_rng(0).permutation(len(values))
    # a stratum of positives alone, with values that would move every figure and every bin
    more = np.concatenate([values[order], np.full((9, values.shape[1]), 50.0)])
    labels, strata = np.append(positive[order], [True] * 9), np.append(stratum[order], [99] * 9)
    again = scores(csr_array(3 * more), labels, -7 * strata)
    for name, sign in zip(FIGURES, (-1, 1, -1), strict=True):
        np.testing.assert_allclose(again[name], plain[name], atol=1e-9)
        np.testing.assert_allclose(reversed_[name], sign * plain[name], atol=1e-12)


def test_mutual_information_of_a_null_is_zero_in_the_mean_and_uncorrected_is_not() -> None:
    rng = np.random.default_rng(3)
    values = rng.exponential(size=(400, 500)) * (rng.random((400, 500)) < 0.4)
    positive, stratum = rng.random(400) < 0.3, rng.integers(0, 3, 400)
    info = scores(csr_array(values), positive, stratum)["mutual_info_nats"]
    bias = 3 * (overlap_weights(positive, stratum) ** 2).sum() / 2
    assert abs(info.mean()) < 0.15 * bias
    assert (info < 0).mean() > 0.3


def test_undefined_figures_are_nan_and_never_infinite() -> None:
    effect, info, overlap = figures([2, 2, 0, 0], [1, 1, 0, 0])  # constant on each side: d is unbounded
    assert np.isnan(effect)
    assert (info, overlap) == pytest.approx((np.log(2) - 1 / 8, 1))
    assert np.isnan(figures([0.3, 0.3, 0.3], [1, 0, 0])[0])
    assert np.isnan(figures([1, 2, 3], [1, 0, 0], [0, 1, 1])).all()  # no stratum has both
    assert np.isnan(figures([1, 2, 3], [1, 1, 1])).all()


# ----------------------------------------------------------------------------------------------- confounding


def test_golden_confounding() -> None:
    positive = np.array([1, 1, 1, 1, 0, 0, 0, 0], dtype=bool)
    labels = np.array([
        [1, 1, 1, 1, -1, -1, -1, -1],
        [-1, -1, -1, -1, 1, 1, 1, 1],
        [1, 1, 1, -1, 1, -1, -1, -1],
        [1, 1, -1, -1, 1, 1, -1, -1],
        [1, 1, 0, 0, -1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, -1, -1, 1, 0, 0, 0, 0],
        [0, 1, 1, -1, 1, -1, -1, -1],
    ]).T  # fmt: skip
    # the last: 2/8 1/8 | 1/8 3/8, so phi = (6 - 1) / sqrt(3 * 4 * 3 * 4)
    wanted = [1, 1, 0.5, 0, 1, np.nan, np.nan, 5 / 12]
    one_stratum = np.zeros(8, dtype=int)
    np.testing.assert_allclose(confounding(positive, one_stratum, labels), wanted, atol=1e-12)
    assert confounding(positive, one_stratum, labels[:, :0]).shape == (0,)
    assert np.isnan(confounding(positive, positive.astype(int), labels)).all()  # no stratum has both


def test_confounding_is_what_matching_leaves() -> None:
    """Within strata the two are independent; pooled they are not."""
    positive = np.array([1, 1, 0, 0] + [1] * 6 + [0, 0], dtype=bool)
    confound = np.array([-1, -1, -1, -1] + [1] * 6 + [1, 1])
    stratum = np.array([0] * 4 + [1] * 8)
    assert confounding(positive, stratum, confound[:, None])[0] == pytest.approx(0, abs=1e-12)
    pooled = confounding(positive, np.zeros(12, dtype=int), confound[:, None])[0]
    # balanced sides: P(confound | +) = 6/8, P(confound | -) = 2/4, hence phi = .25 / (2 sqrt(.625 * .375))
    assert pooled == pytest.approx(0.25 / (2 * np.sqrt(0.625 * 0.375)))


def test_axes_must_agree() -> None:
    with pytest.raises(TableError, match="positive"):
        scores(csr_array(np.eye(3)), np.array([True, False]), np.zeros(3, dtype=int))
    with pytest.raises(TableError, match="labels"):
        confounding(np.array([True, False]), np.zeros(2, dtype=int), np.ones((3, 1), dtype=int))
