"""Tuning curves, line and waves: by loops, planted, and on nulls."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from iclens.activations import LatentActs
from iclens.concepts.language import rows_of
from iclens.concepts.tuning import Curves, fit_tunings, helix_regression, tuning_curves
from iclens.core import ConfigError, Site, TableError
from iclens.prompts.tasks import parse_task

V = np.arange(100)


def curves(*means, values=V, n_rows=None):
    n_rows = np.full(len(values), 20) if n_rows is None else n_rows
    return Curves(values, np.array(means, dtype=np.float32), n_rows)


def r2_by_lstsq(curve, n_rows, columns):
    """Weighted R² of least squares on a constant and `columns`."""
    root = np.sqrt(n_rows)
    design = np.column_stack([np.ones(len(curve)), *columns]) * root[:, None]
    left = root * curve - design @ np.linalg.lstsq(design, root * curve, rcond=None)[0]
    mean = np.average(curve, weights=n_rows)
    return 1 - (left**2).sum() / (n_rows * (curve - mean) ** 2).sum()


def waves_of(values, period):
    angle = 2 * np.pi * values / period
    return [np.cos(angle)] if period == 2 else [np.cos(angle), np.sin(angle)]


def test_golden_curves() -> None:
    acts = np.array([[2, 0], [4, 0], [0, 3], [0, 3], [5, 5], [9, 9]], dtype=float)
    found = tuning_curves(csr_array(acts), np.array([7, 7, 7, -1, -1, np.nan]), min_rows=2)
    assert found.values.tolist() == [-1, 7]
    assert found.n_rows.tolist() == [2, 3]
    np.testing.assert_allclose(found.mean, [[2.5, 2], [4, 1]])
    assert found.mean.dtype == np.float32
    assert tuning_curves(csr_array(acts), np.array([7, 7, 7, -1, -1, np.nan])).values.tolist() == [7]


def test_curves_refuse_what_is_no_number_of_a_row() -> None:
    with pytest.raises(TableError, match=r"2\.5"):
        tuning_curves(csr_array(np.eye(2)), np.array([1.0, 2.5]))
    with pytest.raises(TableError, match="value"):
        tuning_curves(csr_array(np.eye(2)), np.ones(3))


def test_figures_equal_least_squares() -> None:
    rng = np.random.default_rng(0)
    values, n_rows = np.sort(rng.choice(130, 60, replace=False)) - 20, rng.integers(3, 200, 60)
    means = rng.exponential(size=(3, 60)).astype(np.float32)
    found = helix_regression(curves(*means, values=values, n_rows=n_rows), seed=1, n_null=3)
    assert found.periods == (2, 5, 10, 25, 50, 100)
    parts = {T: waves_of(values, T) for T in found.periods}
    for latent, curve in enumerate(means.astype(float)):
        everything = [values, *(c for columns in parts.values() for c in columns)]
        r2 = r2_by_lstsq(curve, n_rows, everything)
        assert found.r2[latent] == pytest.approx(r2, abs=1e-6)
        assert found.linear_share[latent] == pytest.approx(r2_by_lstsq(curve, n_rows, [values]), abs=1e-6)
        for i, left_out in enumerate(found.periods):
            kept = [values, *(c for T, columns in parts.items() if left_out != T for c in columns)]
            share = r2 - r2_by_lstsq(curve, n_rows, kept)
            assert found.period_share[latent, i] == pytest.approx(share, abs=1e-6)
    np.testing.assert_array_equal(found.parity_share, found.period_share[:, 0])


def test_p_value_counts_orders_in_which_a_value_keeps_its_rows() -> None:
    rng = np.random.default_rng(2)
    n_rows, mean = rng.integers(3, 90, 30), rng.exponential(size=30).astype(np.float32)
    mean += np.float32(0.6) * (np.arange(30) % 2)
    found = helix_regression(curves(mean, values=V[:30], n_rows=n_rows), (2,), seed=5, n_null=40)
    rng = np.random.default_rng(5)
    orders = rng.permuted(np.tile(np.arange(30), (40, 1)), axis=1)
    null = [r2_by_lstsq(mean.astype(float), n_rows, [V[o], (-1.0) ** o]) for o in orders]
    assert found.p_value[0] == pytest.approx((1 + sum(r >= found.r2[0] for r in null)) / 41)
    assert found.null_q95[0] == pytest.approx(np.quantile(null, 0.95), abs=1e-5)


def test_chunks_do_not_matter(monkeypatch) -> None:
    means = np.random.default_rng(3).random((7, 100))
    whole = helix_regression(curves(*means), seed=0, n_null=20)
    monkeypatch.setattr("iclens.concepts.tuning._AT_ONCE", 3)
    parts = helix_regression(curves(*means), seed=0, n_null=20)
    for name in ("r2", "p_value", "null_q95", "period_share"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-6)


# --------------------------------------------------------------------------------------------- planted


def test_planted_kinds_are_told_apart() -> None:
    # cosines: over whole periods a sine leans on the line, and would lose less when left out
    noise = 0.05 * np.random.default_rng(4).standard_normal((4, 100))
    means = np.array([V / 30, V % 2, 1 + np.cos(2 * np.pi * V / 10), 1 + np.cos(2 * np.pi * V / 25)]) + noise
    found = helix_regression(curves(*means), seed=0)
    assert (found.p_value == 1 / 201).all()
    assert found.linear_share[0] > 0.98
    assert found.parity_share[0] < 0.01
    assert found.parity_share[1] > 0.95
    assert found.linear_share[1] < 0.02
    assert found.best_period[1:].tolist() == [2, 10, 25]
    assert (found.period_share[[2, 3], [2, 3]] > 0.95).all()


def test_a_line_and_a_wave_as_long_as_the_range_are_told_apart_by_the_period_share() -> None:
    found = helix_regression(curves(V, np.sin(2 * np.pi * V / 100)), seed=0, n_null=5)
    long = found.periods.index(100)
    assert found.linear_share.tolist() == pytest.approx([1, 6 / np.pi**2], abs=0.01)
    assert found.period_share[0, long] < 1e-6
    assert found.period_share[1, long] > 0.2


def test_a_latent_that_ends_in_three_is_a_sum_of_harmonics() -> None:
    found = helix_regression(curves(V % 10 == 3), (2, 5, 10), seed=0, n_null=5)
    # of the nine waves of a comb, the periods 10 and 5 hold two each and 2 holds one
    np.testing.assert_allclose(found.period_share[0], [1 / 9, 2 / 9, 2 / 9], atol=0.01)
    assert found.r2[0] == pytest.approx(5 / 9, abs=0.01)


# ------------------------------------------------------------------------------------------------ null


@pytest.mark.parametrize("uneven", [False, True])
def test_null_p_values_are_uniform_also_when_values_have_unequal_rows(uneven) -> None:
    """Independent rows: the mean of a rare value is noisy. Four draws, for orders are shared by latents."""
    found = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        weight = 1 / (1 + V) if uneven else np.ones(100)
        value = rng.choice(100, 3000, p=weight / weight.sum()).astype(float)
        acts = rng.exponential(size=(3000, 400)) * (rng.random((3000, 400)) < 0.15)
        fit = helix_regression(tuning_curves(csr_array(acts), value), seed=seed, n_null=100)
        found.append(fit.p_value)
    p_value = np.concatenate(found)
    assert 0.03 < (p_value <= 0.05).mean() < 0.075
    assert 0.45 < (p_value <= 0.5).mean() < 0.55


# --------------------------------------------------------------------------- aliases, refusals, undefined


def test_aliased_and_too_long_periods_are_left_out_and_said() -> None:
    noise = np.random.default_rng(5).random((2, 40))
    assert helix_regression(curves(*noise, values=V[:40]), seed=0, n_null=2).periods == (2, 5, 10, 25)
    even = helix_regression(curves(*noise, values=2 * V[:40]), seed=0, n_null=2)
    assert even.periods == (5, 10, 25, 50)  # (-1)^v is the constant here
    assert np.isnan(even.parity_share).all()
    fives = helix_regression(curves(*noise, values=5 * V[:40]), (2, 5, 10, 25), seed=0, n_null=2)
    assert fives.periods == (2, 25)  # 5 is constant, 10 is the parity of v / 5, as 2 is
    wanted = r2_by_lstsq(noise[0], np.ones(40), [V[:40], (-1.0) ** V[:40], *waves_of(V[:40], 5)])
    assert fives.r2[0] == pytest.approx(wanted, abs=1e-6)


def test_a_period_as_long_as_the_range_is_kept() -> None:
    assert helix_regression(curves(V[:50] % 7, values=V[:50]), seed=0, n_null=2).periods[-1] == 50
    assert helix_regression(curves(V[:49] % 7, values=V[:49]), seed=0, n_null=2).periods[-1] == 25


def test_constant_curves_are_undefined() -> None:
    value = np.random.default_rng(6).integers(0, 100, 3000).astype(float)
    acts = np.tile(np.array([0.1, 0, 7.3]), (3000, 1)).astype(np.float32)
    found = helix_regression(tuning_curves(csr_array(acts), value), seed=0, n_null=5)
    for name in ("r2", "p_value", "null_q95", "linear_share", "parity_share", "best_period"):
        assert np.isnan(getattr(found, name)).all(), name


@pytest.mark.parametrize("n", [0, 1, 5])
def test_too_few_values_are_undefined_and_said(n) -> None:
    found = helix_regression(curves(np.arange(n) ** 2, values=V[:n]), (2, 5), seed=0, n_null=3)
    assert np.isnan(found.r2).all()
    assert f"number of values {n}," in found.reason


def test_a_period_below_two_is_refused() -> None:
    with pytest.raises(ConfigError, match="below 2"):
        helix_regression(curves(V), (1.5, 10), seed=0)


# ----------------------------------------------------------------------------------------------- table


def planted_rows():
    """Fifty prompts of x + 3, of y = x + 3, thirty-two examples each."""
    rng = np.random.default_rng(7)
    x = rng.integers(0, 60, (50, 32))
    return rows_of(np.full(50, "x+3"), x.astype(str), (x + 3).astype(str), {"x+3": parse_task("x+3")})


def as_latents(values) -> LatentActs:
    acts, nothing = csr_array(values.astype(np.float32)), np.zeros((50, 32))
    return LatentActs(
        Site(2, "mlp_out"), "lab", "planted", values.shape[1], 50, 32, acts.indptr.astype(np.int64),
        acts.indices.astype(np.int64), acts.data, nothing, nothing,
    )  # fmt: skip


def test_table() -> None:
    rows = planted_rows()
    late = rows.example >= 4
    values = np.zeros((len(rows), 5))
    values[:, 0] = (rows.y % 2) * late
    values[~late, 1] = 1  # active before the first example that counts
    values[np.flatnonzero(late)[:19], 2] = 1
    values[:, 3] = 2
    values[:, 4] = np.random.default_rng(8).random(len(rows))
    table = fit_tunings(as_latents(values), rows, seed=0, n_null=50)
    frame = table.df.set_index(["of", "latent"]).sort_index()
    assert set(table["site"]) == {"blocks.2.hook_mlp_out"}
    assert set(table["latent"].tolist()) == {0, 3, 4}  # 1 and 2 are active in too few rows that count
    parity = frame.loc[("y", 0)]
    assert (parity["best_period"], parity["p_value"], parity["reason"]) == (2, 1 / 51, "")
    assert parity["parity_share"] == pytest.approx(1, abs=0.01)
    assert frame.loc[("y", 3), "reason"] == "its curve is constant"
    assert np.isnan(frame.loc[("y", 3), ["r2", "p_value", "q_value", "best_share"]].astype(float)).all()
    finite = frame[~frame["p_value"].isna()]
    assert (finite["q_value"] >= finite["p_value"]).all()
    # one family over y, x and y - 2x: two of six p-values are the least (parity of y is that of x)
    least = finite[finite["p_value"] == 1 / 51]
    assert least["q_value"].to_numpy() == pytest.approx(len(finite) / len(least) / 51)


def test_table_refuses_other_rows() -> None:
    with pytest.raises(TableError, match="rows, not"):
        fit_tunings(as_latents(np.ones((1600, 2))), planted_rows().take(np.arange(5)), seed=0)
