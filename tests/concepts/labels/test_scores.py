"""Effect size, mutual information, overlap and confounding: by hand, by sklearn, by loops, and on a null."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.metrics import cohen_kappa_score, mutual_info_score

from iclens.concepts.auroc import confounding, overlap_weights, scores
from iclens.core import TableError

seeds = st.integers(0, 10_000)


def one(values, positive, stratum=None):
    """The three figures of one latent."""
    values, positive = np.array(values, dtype=float)[:, None], np.array(positive, dtype=bool)
    stratum = np.zeros(len(values), dtype=int) if stratum is None else np.array(stratum)
    found = scores(csr_array(values), positive, stratum)
    return found.effect_size[0], found.mutual_info_nats[0], found.overlap[0]


def random_rows(seed, n_rows=60, n_latents=8, n_strata=3):
    """Sparse rows with ties and negative values; the first latent is silent, the second always the same."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-2, 5, (n_rows, n_latents)) * (rng.random((n_rows, n_latents)) < 0.6) * 0.25
    values[:, 0], values[:, 1] = 0, 0.3
    positive, stratum = rng.random(n_rows) < 0.3, rng.integers(5, 5 + n_strata, n_rows)
    positive[:2], stratum[:2] = (True, False), 5
    return values, positive, stratum


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


# ------------------------------------------------------------------------------------------- by hand


def test_golden_weights() -> None:
    # stratum 0: 1 positive, 3 negatives; stratum 1: 1 and 1; stratum 2: positives alone, of no use
    positive = np.array([1, 0, 0, 0, 1, 0, 1, 1], dtype=bool)
    found = overlap_weights(positive, np.array([0, 0, 0, 0, 1, 1, 2, 2]))
    # before scaling 3/4 | 1/4 1/4 1/4 | 1/2 | 1/2: each side 5/4
    np.testing.assert_allclose(found, np.array([0.75, 0.25, 0.25, 0.25, 0.5, 0.5, 0, 0]) / 2.5)


def test_golden_effect_size() -> None:
    # positives 4, 2: mean 3, variance 1; negatives 1, 0, 2, 1: mean 1, variance 1/2
    assert one([4, 2, 1, 0, 2, 1], [1, 1, 0, 0, 0, 0])[0] == pytest.approx(2 / np.sqrt(0.75))


def test_golden_effect_size_compares_within_strata() -> None:
    # pooled, the positives are lower; in each stratum they are higher by 1
    values, positive, stratum = [9, 8, 8, 8, 1, 1, 1, 0], [1, 0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1, 1]
    effect, _, _ = one(values, positive, stratum)
    # weights 3/4 on the one, 1/4 on the three: positives 9 and 1, negatives 8 and 0, half and half
    assert effect == pytest.approx(1 / 4)
    assert one(values, positive)[0] < -0.5


def test_golden_mutual_information() -> None:
    # active 1 < 2 < 3 fill the thirds; the rest is silent: each bin has one label only, so I = ln 2
    _, info, _ = one([3, 2, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0])
    assert info == pytest.approx(np.log(2) - (4 - 1) / (2 * 6))
    # two active entries fill the outer thirds: three bins
    _, info, _ = one([2, 1, 0, 0], [1, 0, 1, 0])
    assert info == pytest.approx(0.5 * np.log(2) - (3 - 1) / (2 * 4))


def test_golden_ties_share_the_bin_of_their_mean_rank() -> None:
    # 1 1 1 1 5 5: mean ranks 2.5 and 5.5 of 6 give thirds 1 and 3; labels ++-- +-: nothing is said
    assert one([1, 1, 1, 1, 5, 5], [1, 1, 0, 0, 1, 0])[1] == pytest.approx(-1 / (2 * 6))
    # the same with 5 on positives: p(5, +) = 1/3, p(1, +) = 1/6, p(1, -) = 1/2
    wanted = (1 / 3) * np.log(2) + (1 / 6) * np.log((1 / 6) / (1 / 3)) + 0.5 * np.log(0.5 / (1 / 3))
    assert one([1, 1, 1, 1, 5, 5], [1, 0, 0, 0, 1, 1])[1] == pytest.approx(wanted - 1 / 12)


def test_golden_overlap_is_a_difference_of_rates() -> None:
    # active on 2 of 3 positives and 1 of 6 negatives
    assert one([5, 0.1, 0, 2, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0, 0])[2] == pytest.approx(0.5)
    assert one([0, 0, 3, 3], [1, 1, 0, 0])[2] == pytest.approx(-1)
    # a value below zero is not active
    assert one([-1, -2, 0, 0], [1, 1, 0, 0])[2] == 0


# ----------------------------------------------------------------------------------- loops and sklearn


@given(seeds)
@settings(max_examples=25)
def test_equal_to_loops(seed) -> None:
    values, positive, stratum = random_rows(seed)
    found = scores(csr_array(values.astype(np.float32)), positive, stratum)
    weight = weights_by_loop(positive, stratum)
    np.testing.assert_allclose(overlap_weights(positive, stratum), weight, atol=1e-12)
    n = weight.sum() ** 2 / (weight**2).sum()
    for latent, column in enumerate(values.astype(np.float32).astype(float).T):
        mean = [np.average(column[side], weights=weight[side]) for side in (positive, ~positive)]
        spread = [
            np.average((column[side] - m) ** 2, weights=weight[side])
            for side, m in zip((positive, ~positive), mean, strict=True)
        ]
        if latent < 2:
            assert np.isnan(found.effect_size[latent])
        else:
            wanted = (mean[0] - mean[1]) / np.sqrt(sum(spread) / 2)
            assert found.effect_size[latent] == pytest.approx(wanted, abs=1e-9)
        bins, info, n_bins = thirds_by_loop(column, weight > 0), 0.0, 0
        for b in range(4):
            n_bins += weight[bins == b].sum() > 0
            for side in (positive, ~positive):
                p = weight[(bins == b) & side].sum()
                info += p * np.log(p / (weight[bins == b].sum() * weight[side].sum())) if p > 0 else 0.0
        assert found.mutual_info_nats[latent] == pytest.approx(info - (n_bins - 1) / (2 * n), abs=1e-9)


@given(seeds)
@settings(max_examples=25)
def test_overlap_equals_sklearn(seed) -> None:
    values, positive, stratum = random_rows(seed)
    weight = weights_by_loop(positive, stratum)
    found = scores(csr_array(values), positive, stratum).overlap
    wanted = [cohen_kappa_score(positive, column > 0, sample_weight=weight) for column in values.T]
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_mutual_information_equals_sklearn() -> None:
    values, _, _ = random_rows(4, n_rows=80)
    positive = np.arange(80) % 2 == 0
    found = scores(csr_array(values), positive, np.zeros(80, dtype=int)).mutual_info_nats
    for latent, column in enumerate(values.T):
        bins = thirds_by_loop(column, np.ones(80, dtype=bool))
        wanted = mutual_info_score(positive, bins) - (len(np.unique(bins)) - 1) / (2 * 80)
        assert found[latent] == pytest.approx(wanted, abs=1e-12)


# ------------------------------------------------------------------------------- invariance and identities


def test_neither_order_nor_unused_rows_nor_units_matter() -> None:
    values, positive, stratum = random_rows(7)
    plain = scores(csr_array(values), positive, stratum)
    order = np.random.default_rng(0).permutation(len(values))
    # a stratum of positives alone, with values that would move every figure and every bin
    more = np.concatenate([values[order], np.full((9, values.shape[1]), 50.0)])
    labels, strata = np.append(positive[order], [True] * 9), np.append(stratum[order], [99] * 9)
    again = scores(csr_array(3 * more), labels, -7 * strata)
    for name in ("effect_size", "mutual_info_nats", "overlap"):
        np.testing.assert_allclose(getattr(again, name), getattr(plain, name), atol=1e-9)


def test_reversed_labels_reverse_the_signed_figures() -> None:
    values, positive, stratum = random_rows(8)
    plain, other = (scores(csr_array(values), label, stratum) for label in (positive, ~positive))
    np.testing.assert_allclose(other.effect_size, -plain.effect_size)
    np.testing.assert_allclose(other.overlap, -plain.overlap, atol=1e-12)
    np.testing.assert_allclose(other.mutual_info_nats, plain.mutual_info_nats, atol=1e-12)


def test_a_stored_zero_is_a_zero() -> None:
    entries = (np.array([0.0, 1.0, 0.0]), np.array([0, 0, 0]), np.array([0, 1, 2, 3, 3]))
    stored = csr_array(entries, shape=(4, 1))
    positive, stratum = np.array([True, True, False, False]), np.zeros(4, dtype=int)
    found = scores(stored, positive, stratum)
    plain = scores(csr_array(np.array([[0.0], [1], [0], [0]])), positive, stratum)
    for name in ("effect_size", "mutual_info_nats", "overlap"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))


# ------------------------------------------------------------------------------------- null and undefined


def test_mutual_information_of_a_null_is_zero_in_the_mean_and_uncorrected_is_not() -> None:
    rng = np.random.default_rng(3)
    values = rng.exponential(size=(400, 500)) * (rng.random((400, 500)) < 0.4)
    positive, stratum = rng.random(400) < 0.3, rng.integers(0, 3, 400)
    found = scores(csr_array(values), positive, stratum).mutual_info_nats
    n = 1 / (overlap_weights(positive, stratum) ** 2).sum()
    bias = 3 / (2 * n)
    assert abs(found.mean()) < 0.15 * bias
    assert (found < 0).mean() > 0.3


def test_undefined_figures_are_nan_and_never_infinite() -> None:
    effect, info, overlap = one([2, 2, 0, 0], [1, 1, 0, 0])  # constant on each side: d is unbounded
    assert np.isnan(effect)
    assert info == pytest.approx(np.log(2) - 1 / 8)
    assert overlap == pytest.approx(1)
    assert np.isnan(one([0.3, 0.3, 0.3], [1, 0, 0])[0])
    assert np.isnan(one([1, 2, 3], [1, 0, 0], [0, 1, 1])).all()  # no stratum has both
    assert np.isnan(one([1, 2, 3], [1, 1, 1])).all()


def test_axes_must_agree() -> None:
    with pytest.raises(TableError, match="positive"):
        scores(csr_array(np.eye(3)), np.array([True, False]), np.zeros(3, dtype=int))
    with pytest.raises(TableError, match="labels"):
        confounding(np.array([True, False]), np.zeros(2, dtype=int), np.ones((3, 1), dtype=int))


# ----------------------------------------------------------------------------------------- confounding


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
    found = confounding(positive, np.zeros(8, dtype=int), labels)
    # the last: 2/8 1/8 | 1/8 3/8, so phi = (6 - 1) / sqrt(3 * 4 * 3 * 4)
    wanted = [1, 1, 0.5, 0, 1, np.nan, np.nan, 5 / 12]
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_confounding_is_what_matching_leaves() -> None:
    """Within strata the two are independent; pooled they are not."""
    positive = np.array([1, 1, 0, 0] + [1] * 6 + [0, 0], dtype=bool)
    confound = np.array([-1, -1, -1, -1] + [1] * 6 + [1, 1])
    stratum = np.array([0] * 4 + [1] * 8)
    assert confounding(positive, stratum, confound[:, None])[0] == pytest.approx(0, abs=1e-12)
    pooled = confounding(positive, np.zeros(12, dtype=int), confound[:, None])[0]
    # balanced sides: P(confound | +) = 6/8, P(confound | -) = 2/4, hence phi = .25 / (2 sqrt(.625 * .375))
    assert pooled == pytest.approx(0.25 / (2 * np.sqrt(0.625 * 0.375)))


def test_confounding_without_confounds_or_pairs() -> None:
    positive = np.array([True, False])
    assert confounding(positive, np.zeros(2, dtype=int), np.empty((2, 0), dtype=int)).shape == (0,)
    assert np.isnan(confounding(positive, np.array([0, 1]), np.array([[1], [-1]]))).all()
