"""Prompt bootstrap, intervals, p-values, false discovery and splits, by hand and on noise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclens.core import TableError
from iclens.stats import (
    benjamini_hochberg,
    control_p,
    half_width,
    holm,
    interval,
    means,
    normalised_effects,
    prompt_band,
    prompt_weights,
    ratio_of_means,
    ratios_of_means,
    resample_prompts,
    sample_and_resamples,
    sample_interval,
    split_prompts,
    study_q_values,
)

NAN = np.nan
p_values = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12).map(np.array)


def test_resamples_keep_the_number_of_prompts() -> None:
    draws = resample_prompts(7, 50, np.random.default_rng(0))
    assert draws.shape == (50, 7) and (draws.sum(axis=1) == 7).all()
    both = sample_and_resamples(7, 50, np.random.default_rng(0))
    assert (both[0] == 1).all() and (both[1:] == draws).all()
    with pytest.raises(TableError, match="no prompts"):
        resample_prompts(0, 5, np.random.default_rng(0))


def test_an_interval_leaves_undefined_resamples_out() -> None:
    values = np.random.default_rng(1).normal(size=(200, 3))
    values[:150, 1] = NAN
    values[:, 2] = NAN
    ends = interval(values)
    np.testing.assert_array_equal(ends[:, 0], np.quantile(values[:, 0], [0.025, 0.975]))
    np.testing.assert_array_equal(ends[:, 1], np.quantile(values[150:, 1], [0.025, 0.975]))
    assert np.isnan(ends[:, 2]).all() and np.isnan(interval(values[:0])).all()
    assert interval(values[:, :, None]).shape == (2, 3, 1)


def test_a_figure_of_the_sample_has_the_interval_of_its_resamples() -> None:
    values = np.concatenate([[9.0], np.linspace(0, 40, 41), [NAN]])
    found = sample_interval(values)
    assert found.known and (found.value, found.low, found.high) == (9, 1, 39)
    assert str(found) == "9.00 [1.00, 39.00]"
    undefined = sample_interval(np.array([NAN, 1.0, 2.0]))
    assert not undefined.known and np.isnan([undefined.low, undefined.high]).all()


def test_a_band_is_the_quantiles_of_the_resampled_means_of_defined_prompts() -> None:
    values = np.random.default_rng(3).normal(size=(12, 2, 3))
    values[:, 0, 1] = NAN
    values[1:, 1, 2] = NAN
    band = prompt_band(values, np.random.default_rng(0), 200)
    draws = resample_prompts(12, 200, np.random.default_rng(0))
    means = np.einsum("rp,pi->ri", draws, values[:, :, 0]) / 12
    np.testing.assert_allclose(band.mean[:, 0], values[:, :, 0].mean(axis=0))
    np.testing.assert_allclose([band.low[:, 0], band.high[:, 0]], np.quantile(means, [0.025, 0.975], axis=0))
    assert np.isnan([band.mean[0, 1], band.low[0, 1], band.high[0, 1]]).all() and band.n_prompts[0, 1] == 0
    # One prompt with a value: every resample that drew it has its value as the mean.
    np.testing.assert_allclose([band.low[1, 2], band.high[1, 2]], values[0, 1, 2])
    assert band.n_prompts[1, 2] == 1


def test_a_band_covers_the_mean() -> None:
    rng = np.random.default_rng(0)
    band = prompt_band(rng.standard_normal((100, 600)) + 2, rng)
    assert 0.91 <= ((band.low <= 2) & (band.high >= 2)).mean() <= 0.97


def test_a_ratio_is_of_means_and_undefined_over_nothing() -> None:
    rng = np.random.default_rng(0)
    bottom, top = 4 + rng.standard_normal(60), rng.standard_normal(60)
    exact = ratio_of_means(0.25 * bottom, bottom)
    np.testing.assert_allclose([exact.value, exact.low, exact.high], 0.25)
    assert ratio_of_means(-2 * bottom, -bottom).value == pytest.approx(2)
    ratio = ratio_of_means(top, bottom, seed=3)
    assert ratio.value == pytest.approx(top.mean() / bottom.mean())
    assert ratio.low < ratio.value < ratio.high
    assert ratio == ratio_of_means(top, bottom, seed=3)
    unclear = ratio_of_means(top, rng.standard_normal(60))
    assert np.isnan([unclear.value, unclear.low, unclear.high]).all()
    draws = resample_prompts(60, 1000, np.random.default_rng(3))
    value, low, high = ratios_of_means(np.stack([top, top], 1), np.stack([bottom, top], 1), draws / 60)
    assert (value[0], low[0], high[0]) == pytest.approx((ratio.value, ratio.low, ratio.high))
    assert value[1] == low[1] == high[1] == 1


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def weights(n_prompts: int, n_resamples: int = 2000, seed: int = 0) -> np.ndarray:
    return prompt_weights(n_prompts, n_resamples, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("effect", "span", "value"),
    [
        (column(1, 3), column(2, 10), 1 / 3),  # the mean of ratios would be .4, the inverse ratio 3
        (column(2, 3, 7, 4), column(2, 3, 7, 4), 1),
        (column(-1, -2), column(-4, -8), 0.25),
    ],
)
def test_a_normalised_effect_is_a_ratio_of_means(effect: np.ndarray, span: np.ndarray, value: float) -> None:
    found = normalised_effects(effect, span, weights(len(effect)))
    assert found.value[0] == pytest.approx(value) and found.reason == ("",)
    if value == 1:
        assert (found.low[0], found.high[0]) == pytest.approx((1, 1))


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        (column(0.9, 0.95, 0.9, 0.95), "the span is less than 1 nat"),
        (column(-30, 30, 40, -34), "the interval of it includes 0"),
        (column(2, np.nan, 2, 2), "undefined for this task"),
    ],
)
def test_a_weak_denominator_gives_nan_and_a_reason(span: np.ndarray, reason: str) -> None:
    """Every column has its own."""
    both = np.hstack([span, column(5, 5, 5, 5)])
    found = normalised_effects(np.ones((4, 2)), both, weights(4), ("the span is", "it"))
    assert np.isnan([found.value[0], found.low[0], found.high[0]]).all()
    assert found.value[1] == pytest.approx(0.2) and found.reason == (reason, "")


def test_means_have_intervals_and_undefined_ones_a_reason() -> None:
    equal = means(column(2, 2, 2), weights(3))
    assert (equal.value[0], equal.low[0], equal.high[0]) == pytest.approx((2, 2, 2))
    found = means(np.array([[1.0, np.nan], [2.0, 3.0]]), weights(2))
    assert found.reason == ("", "undefined for this task")
    assert np.isnan(found.value[1]) and not np.isnan(found.value[0])
    assert list(found.columns("effect", "ci")) == ["effect", "ci_low", "ci_high"]
    assert list(found.columns("share")) == ["share", "share_low", "share_high"]
    rng, hits = np.random.default_rng(0), 0
    for seed in range(400):
        drawn = means(rng.exponential(size=(48, 1)), weights(48, 400, seed))
        hits += int(drawn.low[0] <= 1 <= drawn.high[0])
    assert 0.90 <= hits / 400 <= 0.97


def test_control_p_counts_controls_that_are_at_least_as_large() -> None:
    controls = np.array([[0.1, -0.5, 0.2], [0.1, -0.5, 0.2]])
    np.testing.assert_allclose(control_p(np.array([0.3, -9.0]), controls), [1 / 4, 4 / 4])
    np.testing.assert_allclose(control_p(np.array([0.1]), controls[:1]), [3 / 4])
    assert control_p(0.15, controls[0]) == pytest.approx(2 / 4)


def test_half_width_is_students() -> None:
    assert half_width(np.array(2.0), 3) == pytest.approx(4.302652729696142 * 2 / np.sqrt(3))


def test_adjusted_p_values_by_hand() -> None:
    # Sorted .005 .01 .03 .04, times 4 / rank: .02 .02 .04 .04.
    # Bonferroni would give .02 .04 .12 .16, Holm .02 .03 .06 .06.
    p = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(benjamini_hochberg(p), [0.02, 0.04, 0.04, 0.02])
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, 0.02])
    # .04·2/1 = .08 and .05·2/2 = .05: the step-up minimum gives .05 to both.
    np.testing.assert_allclose(benjamini_hochberg(np.array([[0.04], [0.05]])), [[0.05], [0.05]])


@pytest.mark.parametrize("adjusted", [benjamini_hochberg, holm])
def test_tests_not_made_are_not_counted(adjusted) -> None:
    np.testing.assert_allclose(adjusted(np.array([0.01, NAN, 0.5])), [0.02, NAN, 0.5])
    assert np.isnan(adjusted(np.array([NAN]))).all()


@given(p_values)
def test_a_study_of_one_family_is_plain_benjamini_hochberg(p: np.ndarray) -> None:
    for families in ([p], [p, np.array([NAN, NAN])]):
        np.testing.assert_allclose(study_q_values(families)[0], benjamini_hochberg(p))


def two_step(families: list[np.ndarray], q: float) -> list[np.ndarray]:
    """The procedure as its paper states it: select families by BH on Simes p, then BH at q·R/m in each."""
    simes = []
    for p in families:
        ordered = np.sort(p)
        simes.append((ordered * len(p) / np.arange(1, len(p) + 1)).min())
    m = len(simes)
    ordered = np.sort(simes)
    passing = [r for r in range(1, m + 1) if ordered[r - 1] <= q * r / m]
    level = q * max(passing, default=0) / m
    called = []
    for p in families:
        ordered = np.sort(p)
        below = [i for i in range(1, len(p) + 1) if ordered[i - 1] <= level * i / len(p)]
        called.append(p <= ordered[max(below) - 1] if below and level > 0 else np.zeros(len(p), bool))
    return called


@given(st.lists(p_values, min_size=1, max_size=5), st.sampled_from([0.01, 0.05, 0.2, 0.5]))
def test_q_values_reproduce_the_two_steps(families: list[np.ndarray], q: float) -> None:
    for q_value, called in zip(study_q_values(families), two_step(families, q), strict=True):
        certain = np.abs(q_value - q) > 1e-9
        assert ((q_value <= q) == called)[certain].all()


def test_many_families_of_pure_noise_rarely_give_any_discovery() -> None:
    rng = np.random.default_rng(0)
    runs = [study_q_values(list(rng.random((48, 40)))) for _ in range(400)]
    shares = np.mean([any((q <= 0.05).any() for q in run) for run in runs])
    within_only = np.mean(
        [any((benjamini_hochberg(p) <= 0.05).any() for p in rng.random((48, 40))) for _ in range(100)]
    )
    assert shares <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert within_only > 0.7  # Benjamini–Hochberg in each family alone does not control the study


def test_splits_are_disjoint_complete_and_the_same_again() -> None:
    one, again = (split_prompts(101, 8, seed=3) for _ in range(2))
    parts = [one.discovery, one.shape, one.confirm]
    assert [len(part) for part in parts] == [30, 40, 31]
    assert sorted(np.concatenate(parts).tolist()) == list(range(101))
    assert np.array_equal(one.shape, again.shape)
    assert not np.array_equal(one.shape, split_prompts(101, 8, seed=4).shape)


@pytest.mark.parametrize(("n_prompts", "n_examples", "needed"), [(33, 4, 34), (79, 16, 80)])
def test_too_few_prompts_are_refused_with_the_number_needed(
    n_prompts: int, n_examples: int, needed: int
) -> None:
    with pytest.raises(TableError, match=f"Give at least {needed} prompts"):
        split_prompts(n_prompts, n_examples, seed=0)
    split_prompts(needed, n_examples, seed=0)
