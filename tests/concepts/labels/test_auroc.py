import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.stats import norm, rankdata
from sklearn.metrics import roc_auc_score

from iclens.concepts.auroc import auroc, cluster_z, order_entries, resampled_clusters, sides

seeds = st.integers(0, 10_000)


def one(values, positive, stratum=None):
    values, positive = np.array(values, dtype=float)[:, None], np.array(positive, dtype=bool)
    stratum = np.zeros(len(values), dtype=int) if stratum is None else np.array(stratum)
    return auroc(order_entries(csr_array(values), stratum), *sides(positive))[0, 0]


def random_rows(seed, n_rows=60, n_latents=12):
    """Sparse rows with ties, negative values and an all-zero latent."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-2, 5, (n_rows, n_latents)) * (rng.random((n_rows, n_latents)) < 0.5) * 0.25
    values[:, 0] = 0
    positive = rng.random(n_rows) < 0.4
    positive[:2] = True, False
    return values, positive, rng


def by_pairs(values, positive, stratum):
    """The definition: a loop over pairs of one stratum."""
    won, pairs = 0.0, 0
    for i, j in itertools.product(np.flatnonzero(positive), np.flatnonzero(~positive)):
        if stratum[i] == stratum[j]:
            won += (values[i] > values[j]) + (values[i] == values[j]) / 2
            pairs += 1
    return won / pairs


def test_golden_counts_a_tie_as_half() -> None:
    # positives 3, 0; negatives 1, 0: wins 3>1 and 3>0, loss 0<1, tie 0=0
    assert one([3, 1, 0, 0], [1, 0, 1, 0]) == pytest.approx(0.625)


def test_golden_zeros_lie_between_negative_and_positive_values() -> None:
    # positives -1, 0; negatives 0, 2: -1<0, -1<2, 0=0, 0<2
    assert one([-1, 0, 0, 2], [1, 1, 0, 0]) == pytest.approx(0.125)


def test_golden_only_pairs_of_one_stratum_count() -> None:
    values, positive = [5, 4, 1, 0], [1, 0, 1, 0]
    assert one(values, positive, [0, 0, 1, 1]) == pytest.approx(1.0)  # 5>4, 1>0
    assert one(values, positive) == pytest.approx(0.75)  # pooled: 1<4 is lost
    # pairs are pooled, strata are not averaged: 5>4, 5<6 and 1>0 give 2/3, not (1/2 + 1)/2
    assert one([5, 4, 6, 1, 0], [1, 0, 0, 1, 0], [0, 0, 0, 1, 1]) == pytest.approx(2 / 3)


def test_no_pair_is_undefined() -> None:
    assert np.isnan(one([1, 2], [1, 0], [0, 1]))
    assert np.isnan(one([1, 2], [1, 1]))


@given(seeds)
@settings(max_examples=15)
def test_equals_sklearn(seed) -> None:
    values, positive, rng = random_rows(seed)
    weight = rng.integers(1, 4, len(values)).astype(float)
    order = order_entries(csr_array(values), np.zeros(len(values), dtype=int))
    found = auroc(order, (weight * positive)[:, None], (weight * ~positive)[:, None])[:, 0]
    wanted = [roc_auc_score(positive, column, sample_weight=weight) for column in values.T]
    np.testing.assert_allclose(found, wanted, atol=1e-9, rtol=0)
    plain = auroc(order, *sides(positive))[:, 0]
    np.testing.assert_allclose(plain, [roc_auc_score(positive, c) for c in values.T], atol=1e-9, rtol=0)


@given(seeds)
@settings(max_examples=15)
def test_strata_equal_the_loop_over_pairs(seed) -> None:
    values, positive, rng = random_rows(seed, n_rows=40, n_latents=5)
    stratum = rng.integers(10, 13, len(values))
    stratum[:2] = 10
    found = auroc(order_entries(csr_array(values), stratum), *sides(positive))[:, 0]
    np.testing.assert_allclose(found, [by_pairs(c, positive, stratum) for c in values.T], atol=1e-12)


def test_many_columns_are_the_columns_one_by_one(monkeypatch) -> None:
    values, positive, rng = random_rows(1)
    order = order_entries(csr_array(values), rng.integers(0, 3, len(values)))
    weight = rng.integers(0, 3, (len(values), 7)).astype(float)
    p, n = weight * positive[:, None], weight * ~positive[:, None]
    alone = np.column_stack([auroc(order, p[:, [k]], n[:, [k]])[:, 0] for k in range(7)])
    np.testing.assert_allclose(auroc(order, p, n), alone, atol=1e-12)
    monkeypatch.setattr("iclens.concepts.auroc._CELLS", 20)  # a few entries at a time
    np.testing.assert_allclose(auroc(order, p, n), alone, atol=1e-12)


def test_a_stored_zero_is_a_zero() -> None:
    stored = csr_array(
        (np.array([0.0, 0.0, 1.0]), np.array([0, 0, 0]), np.array([0, 1, 2, 3, 3])), shape=(4, 1)
    )
    positive = np.array([True, False, True, False])
    found = auroc(order_entries(stored, np.zeros(4, dtype=int)), *sides(positive))
    assert found[0, 0] == roc_auc_score(positive, [0, 0, 1, 0])


def test_a_bootstrap_column_is_the_resampled_data() -> None:
    values, positive, rng = random_rows(2)
    cluster = np.repeat(np.arange(20), 3)
    times = resampled_clusters(cluster, 5, rng)
    assert (times.sum(axis=0) == len(values)).all()
    assert all(len(np.unique(times[cluster == c], axis=0)) == 1 for c in range(20))
    order = order_entries(csr_array(values), np.zeros(len(values), dtype=int))
    found = auroc(order, times * positive[:, None], times * ~positive[:, None])
    again = np.repeat(np.arange(len(values)), times[:, 3].astype(int))
    wanted = [roc_auc_score(positive[again], column) for column in values[again].T]
    np.testing.assert_allclose(found[:, 3], wanted, atol=1e-6)


@given(seeds)
@settings(max_examples=15)
def test_cluster_z_equals_its_formula(seed) -> None:
    values, positive, rng = random_rows(seed)
    stratum, cluster = rng.integers(0, 3, len(values)), rng.integers(0, 9, len(values))
    cluster[:9] = np.arange(9)
    found = cluster_z(order_entries(csr_array(values), stratum), positive, cluster)
    for latent, column in enumerate(values.T):
        u = np.zeros(9)
        for s in range(3):
            rows = stratum == s
            lift, rank = positive[rows] - positive[rows].mean(), rankdata(column[rows])
            np.add.at(u, cluster[rows], lift * (rank - rank.mean()))
        size = np.sqrt((u**2).sum())
        assert found[latent] == pytest.approx(u.sum() / size if size > 1e-9 else 0.0, abs=1e-9)
    assert (np.abs(found) <= 3 + 1e-9).all()


def test_cluster_z_holds_its_level_where_counting_rows_does_not() -> None:
    """Null: 40 prompts of 12 rows; both the label and half of the activation belong to the prompt."""
    rng = np.random.default_rng(5)
    prompt = np.repeat(np.arange(40), 12)
    positive = (np.arange(40) < 20)[prompt]
    values = rng.standard_normal((40, 600))[prompt] + rng.standard_normal((480, 600))
    order = order_entries(csr_array(values), np.zeros(480, dtype=int))
    with_prompts = norm.sf(cluster_z(order, positive, prompt)) < 0.05
    with_rows = norm.sf(cluster_z(order, positive, np.arange(480))) < 0.05
    assert 0.03 < with_prompts.mean() < 0.07
    assert with_rows.mean() > 0.2


def test_cluster_z_finds_a_real_difference() -> None:
    rng = np.random.default_rng(6)
    positive = (np.arange(40) < 20).repeat(12)
    values = rng.standard_normal((480, 2)) + np.outer(positive, [1.0, -1.0])
    z = cluster_z(
        order_entries(csr_array(values), np.zeros(480, dtype=int)), positive, np.arange(40).repeat(12)
    )
    assert z[0] > 5
    assert z[1] < -5
