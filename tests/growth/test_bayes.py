"""Odds identities, fits of log-odds, evidence regressions, tests over arms, and the belief table."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclens.core import BELIEFS, TableError
from iclens.growth.bayes import (
    agreement,
    bayes_tests,
    belief_table,
    duplicates,
    evidence_regression,
    evidence_step,
    fit_log_odds,
    linear_part,
    order,
    predicted_shapes,
    reversal,
    separability,
)

FOUR = np.arange(4)
N, J = 60, 12


def posterior_curve(prior: float, c: float, n: np.ndarray) -> np.ndarray:
    return predicted_shapes(prior, c, n).posterior


def test_golden_steps_tell_the_scales_apart() -> None:
    shapes = predicted_shapes(0.2, 0.8, FOUR)
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


@pytest.mark.parametrize(
    ("prior", "c"), [(0.0, 0.8), (1.0, 0.8), (0.2, 0.0), (0.2, 1.0), (0.2, float("nan"))]
)
def test_certainty_has_no_log_odds(prior: float, c: float) -> None:
    with pytest.raises(TableError, match="strictly between 0 and 1"):
        posterior_curve(prior, c, FOUR)


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


def llr(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).exponential(1.0, (N, J))


def learner(
    evidence: np.ndarray, by_evidence: float, by_count: float, noise: float = 0.3, seed: int = 1
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    steps = by_evidence * evidence + by_count
    total = np.concatenate([np.zeros((N, 1)), steps[:, :-1].cumsum(axis=1)], axis=1)
    return total + noise * rng.standard_normal((N, J)) + rng.standard_normal((N, 1))


@pytest.mark.parametrize(
    ("by_evidence", "by_count", "said"),
    [(0.8, 0.0, "evidence"), (0.0, 0.5, "count"), (0.8, 0.5, "both"), (0.0, 0.0, "neither")],
)
def test_planted_learners_are_told_apart(by_evidence: float, by_count: float, said: str) -> None:
    given = llr()
    fit = evidence_regression({"T": learner(given, by_evidence, by_count)[None]}, {"T": given})
    assert fit.weighting == [said]
    assert fit.evidence_low[0] <= by_evidence <= fit.evidence_high[0]
    assert fit.count_low[0] <= by_count <= fit.count_high[0]
    assert (fit.n_prompts, fit.n_increments) == (N, N * (J - 1))


def test_intervals_cover_and_false_evidence_is_rare() -> None:
    covered, false = 0, 0
    for seed in range(200):
        given = llr(seed)
        fit = evidence_regression({"T": learner(given, 0.0, 0.5, seed=seed)[None]}, {"T": given})
        covered += bool(fit.evidence_low[0] <= 0 <= fit.evidence_high[0])
        false += bool(fit.evidence_low[0] > 0)
    assert 0.91 <= covered / 200 <= 0.985
    assert false / 200 <= 0.055


def test_many_read_outs_are_what_each_is_alone() -> None:
    given = llr()
    held = np.stack([learner(given, 0.8, 0.0), learner(given, 0.0, 0.5, seed=2)])
    together = evidence_regression({"T": held}, {"T": given})
    alone = [evidence_regression({"T": row[None]}, {"T": given}).evidence[0] for row in held]
    np.testing.assert_allclose(together.evidence, alone)


def test_a_copier_from_near_examples_is_told_from_who_weighs_evidence() -> None:
    given, rng = llr(), np.random.default_rng(5)
    near = {"T": rng.random((N, J))}
    copier = learner(given, 0.0, 0.4) + np.pad(near["T"][:, :-1], ((0, 0), (1, 0))).cumsum(axis=1)
    fit = evidence_regression({"T": np.stack([copier, learner(given, 0.8, 0.0)])}, {"T": given}, near)
    assert fit.similarity_low[0] <= 1.0 <= fit.similarity_high[0] and fit.similarity_low[0] > 0.5
    assert fit.similarity_low[1] <= 0.0 <= fit.similarity_high[1]
    assert fit.weighting == ["count", "evidence"]
    alone = evidence_regression({"T": copier[None]}, {"T": given})
    assert np.isnan(alone.similarity[0]) and np.isfinite(alone.evidence[0])
    even = evidence_regression({"T": copier[None]}, {"T": given}, {"T": np.full((N, J), 0.3)})
    np.testing.assert_allclose(even.evidence, alone.evidence)


def test_nearness_stands_in_the_row_of_the_evidence_test() -> None:
    given = llr()
    near = {"T": np.random.default_rng(5).random((N, J))}
    rows = [
        bayes_tests({"T": learner(given, 1.0, 0.0)}, {"T": given}, response="model", similarity=known)
        for known in (near, None)
    ]
    said = [str(row["meaning"][row["test"] == "evidence"][0]) for row in rows]
    assert "nearest example" in said[0] and "nearest example" not in said[1]


def test_what_cannot_be_told_apart_has_a_reason() -> None:
    flat = np.ones((N, J))
    assert "same evidence" in evidence_regression({"T": learner(flat, 1, 0)[None]}, {"T": flat}).reason
    by_age = np.tile(np.arange(J, dtype=float), (N, 1))
    assert "apart from count" in evidence_regression({"T": learner(by_age, 1, 0)[None]}, {"T": by_age}).reason
    unknown = np.full((N, J), np.nan)
    assert "8 needed" in evidence_regression({"T": learner(flat, 1, 0)[None]}, {"T": unknown}).reason
    with pytest.raises(TableError, match="not finite"):
        evidence_regression({"T": np.full((1, N, J), np.nan)}, {"T": flat})


def test_duplicates_by_hand() -> None:
    n = np.arange(J, dtype=float)
    distinct = n + 0.01 * np.random.default_rng(0).standard_normal((N, J))
    half = distinct.copy()
    half[:, 2:] = distinct[:, 1:2] + 0.5 * (distinct[:, 2:] - distinct[:, 1:2])
    found = duplicates(distinct, half)
    assert found["estimate"] == pytest.approx(0.5) and found["low"] == pytest.approx(0.5)
    assert duplicates(distinct, distinct)["verdict"] == "repeated examples add as much as new ones"


def test_order_is_told_from_sets() -> None:
    rng = np.random.default_rng(0)
    sets = rng.standard_normal((1, N, J))
    exchangeable = order(np.repeat(sets, 4, axis=0) + 1e-3 * rng.standard_normal((4, N, J)))
    assert float(exchangeable["high"]) < 0.01  # type: ignore[arg-type]
    ordered = order(0.2 * np.repeat(sets, 4, axis=0) + rng.standard_normal((4, N, J)))
    assert float(ordered["low"]) > 1  # type: ignore[arg-type]


def test_reversal_and_hints_by_hand() -> None:
    n = np.arange(J, dtype=float)
    kept = np.tile(n, (N, 1)) + 0.01 * np.random.default_rng(0).standard_normal((N, J))
    switched = kept.copy()
    switched[:, J // 2 :] = kept[:, J // 2 : J // 2 + 1] * np.linspace(1, 0, J - J // 2)
    assert reversal(kept, switched)["estimate"] == pytest.approx(1.0, abs=0.01)
    prior = separability(kept, kept - 2, 2)
    assert prior["verdict"] == "the hint acts as a prior" and prior["estimate"] == pytest.approx(1.0)
    overcome = separability(kept, kept - 2 * np.exp(-n / 3), 2)
    assert overcome["verdict"] == "the hint is overcome"


def test_missing_arms_are_rows_with_a_reason() -> None:
    given = llr()
    table = bayes_tests({"T": learner(given, 1.0, 0.0)}, {"T": given}, response="model")
    assert len(table) == 7 and (table["response"] == "model").all()
    tested = dict(zip(table["test"], table["verdict"], strict=True))
    assert tested["evidence"] == "increments follow the evidence, not the count"
    assert tested["duplicates"] == "not tested"
    assert "arm D" in table["reason"][0]


def test_without_an_exact_posterior_every_test_of_it_has_a_reason() -> None:
    unknown = np.full((N, J), np.nan)
    table = bayes_tests({"T": unknown, "D": unknown}, {"T": llr()}, response="exact posterior")
    assert set(table["verdict"]) == {"not tested"} and all(table["reason"])


def test_a_ratio_to_nothing_is_undefined() -> None:
    rng = np.random.default_rng(0)
    still = rng.standard_normal((N, J))
    found = duplicates(still, still + 1)
    assert np.isnan(float(found["estimate"])) and "not clearly different from 0" in str(found["reason"])  # type: ignore[arg-type]


def test_belief_table_has_means_beside_the_exact_ones() -> None:
    rng = np.random.default_rng(1)
    model = rng.standard_normal((40, 3, 5))
    model[..., BELIEFS.index("copy")] = np.nan
    exact = model + 1
    table = belief_table(np.arange(3), {"T": model, "S": model - 2}, exact={"T": exact}).df
    row = table.query("belief == 'odd' and arm == 'T' and n_seen == 2").iloc[0]
    odd = model[:, 2, BELIEFS.index("odd")]
    assert row["mean"] == pytest.approx(odd.mean())
    assert row["exact_mean"] == pytest.approx(odd.mean() + 1)
    assert row["probability"] == pytest.approx((1 / (1 + np.exp(-odd))).mean())
    assert row["ci_low"] < row["mean"] < row["ci_high"]
    assert row["n_prompts"] == 40 and row["reason"] == ""
    copy = table.query("belief == 'copy'")
    assert (copy["reason"] == "undefined on every prompt").all() and copy["mean"].isna().all()
    control = table.query("arm == 'S' and belief == 'odd'")
    assert (control["reason"] == "no exact posterior").all() and control["exact_mean"].isna().all()
    assert len(table) == 2 * 3 * 5


def test_exact_mean_runs_over_the_same_prompts() -> None:
    model, exact = np.zeros((3, 1, 5)), np.arange(15.0).reshape(3, 1, 5)
    model[2, 0, 0] = np.nan
    table = belief_table(np.arange(1), {"T": model}, exact={"T": exact}).df
    assert table.loc[0, "exact_mean"] == pytest.approx((0 + 5) / 2)


def test_belief_axes_must_agree() -> None:
    with pytest.raises(TableError, match="prompt"):
        belief_table(np.arange(3), {"T": np.zeros((4, 3, 5))}, exact={"T": np.zeros((5, 3, 5))})
