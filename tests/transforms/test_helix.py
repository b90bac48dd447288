import numpy as np
import pytest
from scipy.sparse import csr_array

from iclens.tasks.spec import parse_task
from iclens.transforms.helix import Curves, fit_tunings, helix_regression, tuning_curves
from iclens.transforms.rows import rows_of

V = np.arange(100)


def curves(*columns, n_rows=None):
    mean = np.stack(columns).astype(np.float32)
    return Curves(V, mean, np.full(100, 5) if n_rows is None else n_rows)


def test_curves_are_means_with_zeros_and_leave_rare_values_out() -> None:
    acts = csr_array(np.array([[2.0, 0], [0, 0], [4, 6], [9, 9], [1, 1]]))
    value = np.array([3.0, 3, 3, 7, np.nan])
    found = tuning_curves(acts, value, least_rows=2)
    assert (found.value.tolist(), found.n_rows.tolist()) == ([3], [3])
    np.testing.assert_allclose(found.mean, [[2.0], [2.0]])


def test_r2_and_shares_against_least_squares() -> None:
    """Weighted least squares by hand, with every part left out in turn."""
    rng = np.random.default_rng(0)
    weight = rng.integers(3, 40, 100)
    curve = 0.02 * V + (V % 2) + np.cos(2 * np.pi * V / 10) + 0.3 * rng.standard_normal(100)
    found = helix_regression(curves(curve, n_rows=weight), (2, 10), seed=0, n_null=5)

    def r2(*parts):
        design = np.stack([np.ones(100), *parts], axis=1) * np.sqrt(weight)[:, None]
        fit = design @ np.linalg.lstsq(design, curve * np.sqrt(weight), rcond=None)[0]
        mean = np.average(curve, weights=weight)
        return 1 - ((fit - curve * np.sqrt(weight)) ** 2).sum() / (weight * (curve - mean) ** 2).sum()

    linear, odd = V.astype(float), np.cos(np.pi * V)
    ten = [np.cos(2 * np.pi * V / 10), np.sin(2 * np.pi * V / 10)]
    whole = r2(linear, odd, *ten)
    assert found.r2[0] == pytest.approx(whole, abs=1e-5)
    assert found.linear_share[0] == pytest.approx(whole - r2(odd, *ten), abs=1e-5)
    np.testing.assert_allclose(
        found.period_share[0], [whole - r2(linear, *ten), whole - r2(linear, odd)], atol=1e-5
    )


def test_what_each_kind_of_latent_shows() -> None:
    found = helix_regression(
        curves(V * 0.1, V % 2, 1 + np.cos(2 * np.pi * V / 10), np.ones(100), 3 + np.cos(2 * np.pi * V / 25)),
        seed=0,
    )
    assert found.linear_share[0] > 0.7
    assert found.period_share[0].max() < 0.2
    assert found.period_share[1, 0] == pytest.approx(1, abs=1e-3)
    assert abs(found.linear_share[1]) < 1e-3
    assert [found.periods[i] for i in found.period_share[[2, 4]].argmax(axis=1)] == [10, 25]
    assert (found.p_value[[0, 1, 2, 4]] == 1 / 201).all()
    assert np.isnan([found.r2[3], found.p_value[3], found.linear_share[3]]).all()


def test_random_orders_make_a_null() -> None:
    noise = np.random.default_rng(1).random((400, 100))
    found = helix_regression(curves(*noise), seed=2, n_null=400)
    assert 0.02 < (found.p_value <= 0.05).mean() < 0.09
    assert abs((found.r2 > found.null_q95).mean() - 0.05) < 0.035


def test_periods_beyond_the_range_are_left_out() -> None:
    short = Curves(V[:30], np.random.default_rng(0).random((1, 30)).astype(np.float32), np.full(30, 4))
    assert helix_regression(short, seed=0, n_null=3).periods == (2, 5, 10, 25)


def test_table_of_a_site(as_latents) -> None:
    rules = {"x": parse_task("x")}
    x = np.random.default_rng(3).integers(0, 60, (40, 20)).astype(str)
    rows = rows_of(np.full(40, "x"), x, x, rules)
    odd, rare = rows.y % 2 == 1, np.arange(800) < 15
    acts = as_latents(np.column_stack([odd, rare, rows.y / 60, np.zeros(800)]), 20)
    frame = fit_tunings(acts, rows, seed=0).df
    assert sorted(frame["latent"].unique()) == [0, 2]  # the others are active in fewer than 20 rows
    of_y = frame[frame["of"] == "y"].set_index("latent")
    assert of_y.loc[0, "best_period"] == 2
    assert of_y.loc[0, "parity_share"] > 0.95
    assert of_y.loc[2, "linear_share"] > 0.5
    assert (of_y["q_value"] <= 0.01).all()
    assert set(frame[frame["of"] == "y-2x"]["reason"]) == {""}


def test_too_few_values_say_so(as_latents) -> None:
    rules = {"7": parse_task("7")}
    x = np.random.default_rng(3).integers(0, 60, (10, 20)).astype(str)
    rows = rows_of(np.full(10, "7"), x, np.full((10, 20), "7"), rules)
    frame = fit_tunings(as_latents(np.ones((200, 1)), 20), rows, seed=0).df
    of_y = frame[frame["of"] == "y"]
    assert np.isnan(of_y["r2"]).all()
    assert set(of_y["reason"]) == {"1 values of y, 12 needed"}
