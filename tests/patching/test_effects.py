"""Effects: goldens that tell the right formula from its rivals, guards, and the interval's coverage."""

import numpy as np
import pytest

from iclens.patching.receiver import control_p_value, means, normalised_effects, resamples


def draws(n_prompts: int, n: int = 2000, seed: int = 0) -> np.ndarray:
    return resamples(n_prompts, n, np.random.default_rng(seed))


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def test_a_normalised_effect_is_a_ratio_of_means() -> None:
    # the mean of ratios would be .4, the inverse ratio 3
    found = normalised_effects(column(1, 3), column(2, 10), draws(2))
    assert found.value[0] == pytest.approx(1 / 3)
    assert found.reason == ("",)


def test_the_whole_span_is_an_effect_of_one_without_spread() -> None:
    span = column(2, 3, 7, 4)
    found = normalised_effects(span, span, draws(4))
    assert (found.value[0], found.low[0], found.high[0]) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(
    ("span", "needle"),
    [
        (column(0.9, 0.95, 0.9, 0.95), "less than 1 nat"),
        (column(-30, 30, 40, -34), "includes 0"),
        (column(2, np.nan, 2, 2), "undefined"),
    ],
)
def test_a_weak_denominator_gives_nan_and_a_reason(span: np.ndarray, needle: str) -> None:
    found = normalised_effects(column(1, 1, 1, 1), span, draws(4))
    assert np.isnan([found.value[0], found.low[0], found.high[0]]).all()
    assert needle in found.reason[0]


def test_a_negative_span_is_as_good_as_a_positive_one() -> None:
    found = normalised_effects(column(-1, -2), column(-4, -8), draws(2))
    assert found.value[0] == pytest.approx(0.25)


def test_columns_keep_their_own_reason() -> None:
    effect, span = np.ones((4, 3)), np.array([[5.0, 0.1, np.nan]] * 4)
    found = normalised_effects(effect, span, draws(4))
    assert [bool(reason) for reason in found.reason] == [False, True, True]
    assert found.value[0] == pytest.approx(0.2)


def test_equal_prompts_leave_no_interval() -> None:
    found = means(column(2, 2, 2), draws(3))
    assert (found.value[0], found.low[0], found.high[0]) == pytest.approx((2, 2, 2))


def test_an_undefined_read_out_is_nan_with_a_reason() -> None:
    found = means(np.array([[1.0, np.nan], [2.0, 3.0]]), draws(2))
    assert found.reason == ("", "undefined for this task")
    assert np.isnan(found.value[1]) and not np.isnan(found.value[0])


def test_the_interval_of_a_mean_covers_it() -> None:
    rng, hits, runs = np.random.default_rng(0), 0, 400
    for seed in range(runs):
        found = means(rng.exponential(size=(48, 1)), draws(48, 400, seed))
        hits += int(found.low[0] <= 1 <= found.high[0])
    assert 0.90 <= hits / runs <= 0.97


@pytest.mark.parametrize(
    ("effect", "p_value"),
    [(2.0, 3 / 4), (-2.0, 3 / 4), (4.0, 1 / 4), (0.0, 1.0)],  # one-sided rivals give 2/4 for 2.0
)
def test_control_p_value_is_two_sided_and_never_zero(effect: float, p_value: float) -> None:
    assert control_p_value(effect, np.array([-3.0, 1.0, 2.0])) == pytest.approx(p_value)


def test_resamples_are_weights() -> None:
    weights = draws(7, 50)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_array_equal(weights, draws(7, 50))
