"""The odds identities, and fits of log-odds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclens.core import TableError
from iclens.growth.bayes import (
    agreement,
    evidence_step,
    fit_log_odds,
    linear_part,
    predicted_shapes,
)

N = np.arange(4)


def posterior_curve(prior: float, c: float, n: np.ndarray) -> np.ndarray:
    return predicted_shapes(prior, c, n).posterior


def test_golden_posterior() -> None:
    assert np.allclose(posterior_curve(0.2, 0.8, N), [0.2, 0.5, 0.8, 16 / 17])


def test_golden_steps_tell_the_scales_apart() -> None:
    shapes = predicted_shapes(0.2, 0.8, N)
    assert np.allclose(np.diff(shapes.log_odds), [1.386, 1.386, 1.386], atol=5e-4)
    assert np.allclose(np.diff(shapes.log_posterior), [0.916, 0.470, 0.163], atol=5e-4)
    assert evidence_step(0.8) == pytest.approx(1.386, abs=5e-4)
    assert np.allclose(shapes.posterior, np.exp(shapes.log_posterior))


@given(st.floats(0.01, 0.99), st.floats(0.05, 0.95))
def test_the_closed_form_is_bayes_step_by_step(prior: float, c: float) -> None:
    a = np.array([prior])
    for n in range(12):
        assert np.allclose(posterior_curve(prior, c, np.array([n])), a, rtol=1e-9)
        a = a * c / (a * c + (1 - a) * (1 - c))


@given(st.floats(0.01, 0.99), st.floats(0.55, 0.99))
def test_log_posterior_is_concave_and_log_odds_linear(prior: float, c: float) -> None:
    shapes = predicted_shapes(prior, c, np.arange(10))
    assert (np.diff(shapes.log_posterior, 2) <= 1e-12).all()
    assert np.allclose(np.diff(shapes.log_odds, 2), 0, atol=1e-9)


def test_evidence_for_neither_side_leaves_the_prior() -> None:
    assert np.allclose(posterior_curve(0.3, 0.5, N), 0.3)


@pytest.mark.parametrize(
    ("prior", "c"), [(0.0, 0.8), (1.0, 0.8), (0.2, 0.0), (0.2, 1.0), (0.2, float("nan"))]
)
def test_certainty_has_no_log_odds(prior: float, c: float) -> None:
    with pytest.raises(TableError, match="strictly between 0 and 1"):
        posterior_curve(prior, c, N)


def curves(
    rng: np.random.Generator, n_prompts: int, lo_0: float, lam: float, n_examples: int = 10
) -> np.ndarray:
    """Linear log-odds with prompt-wise intercepts and slopes, and noise, [prompt example]."""
    n = np.arange(n_examples)
    lines = lo_0 + rng.standard_normal((n_prompts, 1)) + (lam + 0.2 * rng.standard_normal((n_prompts, 1))) * n
    return lines + 0.3 * rng.standard_normal(lines.shape)


def test_fit_recovers_prior_and_evidence_exactly_without_noise() -> None:
    log_odds = np.broadcast_to(predicted_shapes(0.2, 0.8, np.arange(8)).log_odds, (5, 8))
    fit = fit_log_odds(np.arange(8), log_odds)
    assert fit.lo_0 == pytest.approx(np.log(0.25))
    assert fit.lam == pytest.approx(np.log(4))
    assert (fit.n_first, fit.n_last, fit.n_prompts, fit.reason) == (0, 7, 5, "")
    assert fit.r == pytest.approx(1)


def test_intervals_cover() -> None:
    rng = np.random.default_rng(0)
    fits = [
        fit_log_odds(np.arange(10), curves(rng, 60, -3, 0.7), n_resamples=400, seed=i) for i in range(200)
    ]
    assert np.mean([f.lam_low <= 0.7 <= f.lam_high for f in fits]) == pytest.approx(0.95, abs=0.045)
    assert np.mean([f.lo_0_low <= -3 <= f.lo_0_high for f in fits]) == pytest.approx(0.95, abs=0.045)


def test_fit_is_over_the_linear_part_and_says_which() -> None:
    n = np.arange(16)
    mean = np.minimum(-4 + 0.8 * n, 1.6)  # linear to n = 7, then flat
    part = linear_part(n, mean)
    assert part is not None and part.start == 0 and 8 <= part.stop <= 10
    fit = fit_log_odds(n, np.broadcast_to(mean, (3, 16)))
    assert (fit.n_first, fit.n_last) == (part.start, part.stop - 1)
    assert fit.lam == pytest.approx(0.8, abs=0.08)
    assert fit_log_odds(n, np.broadcast_to(mean, (3, 16)), over=slice(0, 16)).lam < 0.5


def test_a_belief_undefined_before_any_example_is_fitted_after_it() -> None:
    log_odds = curves(np.random.default_rng(1), 30, -2, 0.5)
    log_odds[:, 0] = np.nan
    fit = fit_log_odds(np.arange(10), log_odds)
    assert (fit.n_first, fit.n_prompts) == (1, 30)


def test_prompts_with_holes_are_left_out() -> None:
    log_odds = curves(np.random.default_rng(2), 30, -2, 0.5)
    log_odds[4, 3] = np.nan
    assert fit_log_odds(np.arange(10), log_odds).n_prompts == 29


@pytest.mark.parametrize("values", [np.full((5, 8), np.nan), np.tile([0.0, 1, -1, 2, -2, 1, 0, -1], (5, 1))])
def test_no_linear_part_is_nan_with_a_reason(values: np.ndarray) -> None:
    fit = fit_log_odds(np.arange(8), values)
    assert np.isnan(fit.lam) and np.isnan(fit.lo_0_low)
    assert "no linear part" in fit.reason


def test_one_prompt_has_no_interval() -> None:
    fit = fit_log_odds(np.arange(8), np.arange(8.0)[None])
    assert np.isnan(fit.lam) and "1 prompts" in fit.reason


def test_order_of_prompts_does_not_change_the_fit() -> None:
    log_odds = curves(np.random.default_rng(3), 40, -3, 0.7)
    one, other = fit_log_odds(np.arange(10), log_odds), fit_log_odds(np.arange(10), log_odds[::-1])
    assert (one.lo_0, one.lam) == pytest.approx((other.lo_0, other.lam))


def test_agreement_finds_slope_and_intercept() -> None:
    exact = curves(np.random.default_rng(4), 50, -3, 0.7)
    found = agreement(exact, 0.6 * exact - 1)
    assert (found.slope, found.intercept, found.r) == pytest.approx((0.6, -1, 1))
    assert found.slope_low == pytest.approx(0.6) and found.slope_high == pytest.approx(0.6)
    noisy = agreement(exact, 0.6 * exact + np.random.default_rng(5).standard_normal(exact.shape))
    assert noisy.slope_low < 0.6 < noisy.slope_high and noisy.slope_high - noisy.slope_low < 0.2


def test_agreement_skips_what_is_undefined() -> None:
    exact = curves(np.random.default_rng(6), 50, -3, 0.7)
    model = 2 * exact
    model[:, 0] = np.nan
    exact[3] = np.nan
    found = agreement(exact, model)
    assert found.slope == pytest.approx(2) and found.n_prompts == 49
    nothing = agreement(np.full((4, 3), np.nan), np.ones((4, 3)))
    assert np.isnan(nothing.slope) and nothing.reason == "fewer than two prompts"
    assert agreement(np.ones((4, 3)), np.ones((4, 3))).reason == "the exact log-odds do not vary"


def test_axes_must_agree() -> None:
    with pytest.raises(TableError, match="example"):
        fit_log_odds(np.arange(5), np.zeros((3, 6)))
