"""Means by hand; line and waves by least squares, planted and on nulls; subspaces of a period."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from iclens.concepts.language import rows_of
from iclens.concepts.tuning import (
    Means,
    fit_subspaces,
    fit_tunings,
    helix_regression,
    operand_map,
    period_subspaces,
    task_means,
    tuning,
    tuning_curves,
)
from iclens.core import PREFIX_LENGTH, TOKENS_PER_EXAMPLE, ConfigError, Site, SiteError, TableError
from iclens.prompts.build import PromptSet
from iclens.prompts.tasks import parse_task

# ---------------------------------------------------------------------------------- means by task and value

RULES = {name: parse_task(name) for name in ("3x", "word:parity")}
X = np.array([["1", "2", "2"], ["5", "4", "2"], ["0", "1", "2"]])
Y = np.array([["3", "6", "6"], ["odd", "even", "even"], ["0", "3", "6"]])
TOKENS = np.zeros((3, PREFIX_LENGTH + 3 * TOKENS_PER_EXAMPLE), dtype=np.int64)
PROMPTS = PromptSet(np.array(["3x", "word:parity", "3x"]), "T", X, Y, Y, TOKENS, 0, "none")
#                  3x          word        3x
FIRST = np.array([[9.0, 1, 3], [9, 0, 4], [9, 0, 2]]).ravel()
SECOND = np.array([[9.0, 0, 0], [9, 5, 0], [9, 0, 0]]).ravel()


@pytest.fixture
def acts(as_latents):
    return as_latents(np.column_stack([np.zeros(9), FIRST, SECOND]), 3)


def test_task_means_golden(acts) -> None:
    means = task_means(acts, PROMPTS, RULES, np.array([1, 2]), first_example=1)
    assert means.groups.tolist() == ["3x", "word:parity"]
    assert means.n_rows.tolist() == [4, 2]
    # zeros count: (1 + 3 + 0 + 2) / 4, not / 3; the first example is left out
    np.testing.assert_allclose(means.mean, [[1.5, 2.0], [0.0, 2.5]])


@pytest.mark.parametrize(
    ("by", "groups", "n_rows", "mean"),
    [
        ("y", [3, 6], [1, 3], [0.0, 2.0]),  # words have no place on the axis
        ("x", [1, 2, 4], [1, 4, 1], [0.0, 2.5, 0.0]),
        # 6 - 4, 6 - 4 | words | 3 - 2, 6 - 4 with activations 1, 3 | 0, 2
        ("y-2x", [1, 2], [1, 3], [0.0, 2.0]),
    ],
)
def test_tuning_golden(acts, by, groups, n_rows, mean) -> None:
    means = tuning(acts, PROMPTS, RULES, np.array([1, 0]), by=by, first_example=1)
    assert (means.groups.tolist(), means.n_rows.tolist()) == (groups, n_rows)
    np.testing.assert_allclose(means.mean, [mean, np.zeros(len(groups))])


def test_operand_map_golden(acts) -> None:
    """Boxes of width 2: x 2, y 6 holds three rows (1, 3, 2), x 0, y 2 one (0)."""
    found = operand_map(acts, PROMPTS, RULES, np.array([1, 2]), width=2, first_example=1)
    assert found.groups.tolist() == [[0, 2], [2, 6]]
    assert found.n_rows.tolist() == [1, 3]
    np.testing.assert_allclose(found.mean, [[0.0, 2.0], [0.0, 0.0]])


def test_unknown_axis_latent_or_prompts_are_refused(acts) -> None:
    with pytest.raises(TableError, match="Choose one of y, x, y-2x"):
        tuning(acts, PROMPTS, RULES, np.array([0]), by="z")
    with pytest.raises(SiteError, match="0 to 2"):
        task_means(acts, PROMPTS, RULES, np.array([3]))
    with pytest.raises(TableError, match="other prompts"):
        task_means(acts, PROMPTS.select(np.array([0, 1])), RULES, np.array([0]))


# ------------------------------------------------------------------------------------------ line and waves

V = np.arange(100)


def curves(*means, values=V, n_rows=None):
    n_rows = np.full(len(values), 20) if n_rows is None else n_rows
    return Means(values, np.array(means, dtype=np.float32), n_rows)


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
    assert found.groups.tolist() == [-1, 7]
    assert found.n_rows.tolist() == [2, 3]
    np.testing.assert_allclose(found.mean, [[2.5, 2], [4, 1]])
    assert found.mean.dtype == np.float32
    assert tuning_curves(csr_array(acts), np.array([7, 7, 7, -1, -1, np.nan])).groups.tolist() == [7]


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
    assert helix_regression(curves(V[:50] % 7, values=V[:50]), seed=0, n_null=2).periods[-1] == 50
    assert helix_regression(curves(V[:49] % 7, values=V[:49]), seed=0, n_null=2).periods[-1] == 25
    assert helix_regression(curves(*noise, values=V[:40]), seed=0, n_null=2).periods == (2, 5, 10, 25)
    even = helix_regression(curves(*noise, values=2 * V[:40]), seed=0, n_null=2)
    assert even.periods == (5, 10, 25, 50)  # (-1)^v is the constant here
    assert np.isnan(even.parity_share).all()
    fives = helix_regression(curves(*noise, values=5 * V[:40]), (2, 5, 10, 25), seed=0, n_null=2)
    assert fives.periods == (2, 25)  # 5 is constant, 10 is the parity of v / 5, as 2 is
    wanted = r2_by_lstsq(noise[0], np.ones(40), [V[:40], (-1.0) ** V[:40], *waves_of(V[:40], 5)])
    assert fives.r2[0] == pytest.approx(wanted, abs=1e-6)


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


# ----------------------------------------------------------------------------------------------- table


def planted_rows():
    """Fifty prompts of x + 3, of y = x + 3, thirty-two examples each."""
    rng = np.random.default_rng(7)
    x = rng.integers(0, 60, (50, 32))
    return rows_of(np.full(50, "x+3"), x.astype(str), (x + 3).astype(str), {"x+3": parse_task("x+3")})


def test_tuning_table(as_latents) -> None:
    rows = planted_rows()
    late = rows.example >= 4
    values = np.zeros((len(rows), 5))
    values[:, 0] = (rows.y % 2) * late
    values[~late, 1] = 1  # active before the first example that counts
    values[np.flatnonzero(late)[:19], 2] = 1
    values[:, 3] = 2
    values[:, 4] = np.random.default_rng(8).random(len(rows))
    table = fit_tunings(as_latents(values, 32), rows, seed=0, n_null=50)
    frame = table.df.set_index(["of", "latent"]).sort_index()
    assert set(table["site"]) == {"blocks.1.hook_mlp_out"}
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

    with pytest.raises(TableError, match="rows, not"):
        fit_tunings(as_latents(values, 32), rows.take(np.arange(5)), seed=0)


# ------------------------------------------------------------------------------------- subspaces of a period

ASKED = {"seed": 0, "periods": (2, 10), "n_null": 20}


def sides(seed=0, n=900, n_values=60):
    rng = np.random.default_rng(seed)
    value = rng.integers(0, n_values, n).astype(float)
    return rng, value, np.arange(n) < 600, np.arange(n) >= 600


def circle(value, period=10, phase=0.4):
    angle = 2 * np.pi * value / period + phase
    return np.column_stack([1 + np.cos(angle), 1 + np.sin(angle)])


def test_a_period_spread_over_two_latents_is_found_and_needs_both() -> None:
    rng, value, train, held = sides()
    noise = np.maximum(rng.standard_normal((900, 100)), 0)
    acts = np.column_stack([circle(value) + 0.2 * rng.standard_normal((900, 2)), noise])
    parity, ten = fit_subspaces(csr_array(acts), value, train, held, **ASKED)
    assert ten.r2 > 0.8
    assert ten.p_value == 1 / 21
    assert set(ten.features[:2].tolist()) == {0, 1}
    assert ten.n_for_90 == 2
    assert parity.r2 < 0.1
    (half,) = fit_subspaces(csr_array(acts[:, 1:]), value, train, held, **ASKED | {"periods": (10,)})
    assert 0.3 < half.r2 < 0.6


def test_golden_r2_is_that_of_least_squares_around_the_held_out_mean() -> None:
    rng, value, train, held = sides()
    acts = circle(value) + rng.standard_normal((900, 2))
    value[held] = np.minimum(value[held], 33)  # the held-out mean is not the training mean
    (found,) = fit_subspaces(acts, value, train, held, **ASKED | {"periods": (10,)})
    target = circle(value, phase=0.0) - 1
    design = np.column_stack([np.ones(900), acts])
    told = design @ np.linalg.lstsq(design[train], target[train], rcond=None)[0]
    missed = ((target - told)[held] ** 2).sum()
    apart = ((target[held] - target[held].mean(axis=0)) ** 2).sum()
    assert found.r2 == pytest.approx(1 - missed / apart, abs=5e-3)


def test_features_are_chosen_on_training_rows_whatever_their_phase_and_units() -> None:
    rng, value, train, held = sides()
    acts = 0.5 * rng.standard_normal((900, 30))
    acts[:, [4, 11]] += circle(value, phase=np.pi / 4)
    # a decoy in phase with the cosine, in larger units: it follows one wave more, and both together less
    acts[:, 25] = 30 * (np.cos(2 * np.pi * value / 10) + 0.7 * rng.standard_normal(900))
    acts[:, 20] += np.where(held, 5 * np.cos(2 * np.pi * value / 10), 0)  # on held-out rows only
    (found,) = fit_subspaces(acts, value, train, held, **ASKED | {"periods": (10,)}, n_features=2)
    assert set(found.features.tolist()) == {4, 11}
    assert found.r2 > 0.6


def test_a_code_that_other_tasks_do_not_share_is_not_found() -> None:
    rng, value, train, held = sides()
    acts = circle(value, phase=np.where(train, 0.0, 2.0)[:]) + 0.1 * rng.standard_normal((900, 2))
    (found,) = fit_subspaces(acts, value, train, held, **ASKED | {"periods": (10,)})
    assert found.r2 < 0
    assert np.isnan(found.n_for_90)
    assert found.reason == "r2 is not above 0"


def test_null_p_values_hold_their_level_although_rows_share_values() -> None:
    """Every value has a random code, so rows repeat; nothing is periodic."""
    found = []
    for seed in range(60):
        rng, value, train, held = sides(seed, n=300, n_values=30)
        train, held = np.arange(300) < 180, np.arange(300) >= 180
        acts = rng.standard_normal((30, 12))[value.astype(int)] + 0.5 * rng.standard_normal((300, 12))
        found += [
            s.p_value for s in fit_subspaces(acts, value, train, held, seed=seed, periods=(5, 10), n_null=9)
        ]
    assert (np.array(found) <= 0.1).mean() < 0.18
    assert 0.4 < (np.array(found) <= 0.5).mean() < 0.62


def test_a_rare_latent_is_not_chosen() -> None:
    rng, value, train, held = sides()
    acts = np.maximum(rng.standard_normal((900, 5)), 0)
    acts[:, 2] = 0
    acts[:9, 2] = 1
    for one in fit_subspaces(csr_array(acts), value, train, held, **ASKED):
        assert sorted(one.features.tolist()) == [0, 1, 3, 4]


def test_rows_without_the_number_are_not_used() -> None:
    rng, value, train, held = sides()
    acts = circle(value) + 0.2 * rng.standard_normal((900, 2))
    more = np.concatenate([acts, np.full((50, 2), 99.0)])
    value, extra = np.append(value, np.full(50, np.nan)), np.ones(50, dtype=bool)
    (found,) = fit_subspaces(
        more, value, np.append(train, extra), np.append(held, ~extra), **ASKED | {"periods": (10,)}
    )
    (plain,) = fit_subspaces(acts, value[:900], train, held, **ASKED | {"periods": (10,)})
    assert (found.r2, found.p_value) == (plain.r2, plain.p_value)


def test_undefined_figures_say_why() -> None:
    rng, value, train, held = sides()
    acts = rng.standard_normal((900, 3))
    assert fit_subspaces(acts, value, train, held, seed=0, periods=(100,))[0].reason.startswith("longer")
    even = fit_subspaces(acts, 2 * value, train, held, **ASKED)
    assert (even[0].reason, np.isnan(even[0].r2)) == ("its wave is constant on one side", True)
    assert np.isfinite(even[1].r2)
    few = fit_subspaces(acts, value, train, held & (np.arange(900) < 629), **ASKED)
    assert {one.reason for one in few} == {"29 held-out rows, 30 needed"}
    apart = fit_subspaces(acts, value + 1000 * held, train, held, **ASKED)
    assert {one.reason for one in apart} == {"0 values on both sides, 10 needed"}
    still = fit_subspaces(np.ones((900, 3)), value, train, held, **ASKED)
    assert all("constant" in one.reason for one in still)


def test_refused_sides_and_periods() -> None:
    _, value, train, held = sides()
    with pytest.raises(TableError, match="trained on"):
        fit_subspaces(np.ones((900, 1)), value, train, held | train, **ASKED)
    with pytest.raises(TableError, match="held"):
        fit_subspaces(np.ones((900, 1)), value, train, held[:-1], **ASKED)
    with pytest.raises(ConfigError, match="below 2"):
        helix_regression(curves(V), (1.5, 10), seed=0)
    with pytest.raises(ConfigError, match="below 2"):
        fit_subspaces(np.ones((900, 1)), value, train, held, seed=0, periods=(1,))


def test_subspace_table() -> None:
    rng, value, train, held = sides()
    acts = circle(value) + 0.2 * rng.standard_normal((900, 2))
    table = period_subspaces(
        acts, value, train, held, site=Site(3, "resid_post"), role="lab", representation="activation", of="y",
        **ASKED | {"periods": (10, 100)},
    )  # fmt: skip
    (found, long) = table.df.to_dict("records")
    wanted = {"site": "blocks.3.hook_resid_post", "role": "lab", "representation": "activation", "of": "y"}
    wanted |= {"period": 10.0, "p_value": 1 / 21, "n_features": 2, "n_for_90": 2}
    wanted |= {"n_train": 600, "n_held": 300}
    assert {key: found[key] for key in wanted} == wanted
    assert long["reason"] == "longer than the range of values"
