"""Waves read on held-out rows: by closed form, planted, on nulls, and refused."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from iclens.concepts.tuning import fit_subspaces, period_subspaces
from iclens.core import ConfigError, Site, TableError

ASKED = {"seed": 0, "periods": (2, 10), "n_null": 20}


def rows(seed=0, n=900, n_values=60):
    rng = np.random.default_rng(seed)
    value = rng.integers(0, n_values, n).astype(float)
    return rng, value, np.arange(n) < 600, np.arange(n) >= 600


def circle(value, period=10, phase=0.4):
    angle = 2 * np.pi * value / period + phase
    return np.column_stack([1 + np.cos(angle), 1 + np.sin(angle)])


def test_a_period_spread_over_two_latents_is_found_and_needs_both() -> None:
    rng, value, train, held = rows()
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
    rng, value, train, held = rows()
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
    rng, value, train, held = rows()
    acts = 0.5 * rng.standard_normal((900, 30))
    acts[:, [4, 11]] += circle(value, phase=np.pi / 4)
    # a decoy in phase with the cosine, in larger units: it follows one wave more, and both together less
    acts[:, 25] = 30 * (np.cos(2 * np.pi * value / 10) + 0.7 * rng.standard_normal(900))
    acts[:, 20] += np.where(held, 5 * np.cos(2 * np.pi * value / 10), 0)  # on held-out rows only
    (found,) = fit_subspaces(acts, value, train, held, **ASKED | {"periods": (10,)}, n_features=2)
    assert set(found.features.tolist()) == {4, 11}
    assert found.r2 > 0.6


def test_a_code_that_other_tasks_do_not_share_is_not_found() -> None:
    rng, value, train, held = rows()
    acts = circle(value, phase=np.where(train, 0.0, 2.0)[:]) + 0.1 * rng.standard_normal((900, 2))
    (found,) = fit_subspaces(acts, value, train, held, **ASKED | {"periods": (10,)})
    assert found.r2 < 0
    assert np.isnan(found.n_for_90)
    assert found.reason == "r2 is not above 0"


def test_null_p_values_hold_their_level_although_rows_share_values() -> None:
    """Every value has a random code, so rows repeat; nothing is periodic."""
    found = []
    for seed in range(60):
        rng, value, train, held = rows(seed, n=300, n_values=30)
        train, held = np.arange(300) < 180, np.arange(300) >= 180
        acts = rng.standard_normal((30, 12))[value.astype(int)] + 0.5 * rng.standard_normal((300, 12))
        found += [
            s.p_value for s in fit_subspaces(acts, value, train, held, seed=seed, periods=(5, 10), n_null=9)
        ]
    assert (np.array(found) <= 0.1).mean() < 0.18
    assert 0.4 < (np.array(found) <= 0.5).mean() < 0.62


def test_sparse_and_dense_agree_and_units_do_not_matter() -> None:
    rng, value, train, held = rows()
    acts = np.maximum(np.column_stack([circle(value), rng.standard_normal((900, 9))]), 0)
    dense = fit_subspaces(acts, value, train, held, **ASKED)
    sparse = fit_subspaces(csr_array(acts * np.geomspace(0.1, 100, 11)), value, train, held, **ASKED)
    for one, other in zip(dense, sparse, strict=True):
        assert one.r2 == pytest.approx(other.r2, abs=1e-6)
        assert one.p_value == other.p_value


def test_a_rare_latent_is_not_chosen() -> None:
    rng, value, train, held = rows()
    acts = np.maximum(rng.standard_normal((900, 5)), 0)
    acts[:, 2] = 0
    acts[:9, 2] = 1
    for one in fit_subspaces(csr_array(acts), value, train, held, **ASKED):
        assert sorted(one.features.tolist()) == [0, 1, 3, 4]


def test_rows_without_the_number_are_not_used() -> None:
    rng, value, train, held = rows()
    acts = circle(value) + 0.2 * rng.standard_normal((900, 2))
    more = np.concatenate([acts, np.full((50, 2), 99.0)])
    value, extra = np.append(value, np.full(50, np.nan)), np.ones(50, dtype=bool)
    (found,) = fit_subspaces(
        more, value, np.append(train, extra), np.append(held, ~extra), **ASKED | {"periods": (10,)}
    )
    (plain,) = fit_subspaces(acts, value[:900], train, held, **ASKED | {"periods": (10,)})
    assert (found.r2, found.p_value) == (plain.r2, plain.p_value)


def test_undefined_figures_say_why() -> None:
    rng, value, train, held = rows()
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


def test_refusals() -> None:
    _, value, train, held = rows()
    with pytest.raises(TableError, match="trained on"):
        fit_subspaces(np.ones((900, 1)), value, train, held | train, **ASKED)
    with pytest.raises(TableError, match="held"):
        fit_subspaces(np.ones((900, 1)), value, train, held[:-1], **ASKED)
    with pytest.raises(ConfigError, match="below 2"):
        fit_subspaces(np.ones((900, 1)), value, train, held, seed=0, periods=(1,))


def test_table() -> None:
    rng, value, train, held = rows()
    acts = circle(value) + 0.2 * rng.standard_normal((900, 2))
    table = period_subspaces(
        acts, value, train, held, site=Site(3, "resid_post"), role="lab", representation="activation", of="y",
        **ASKED | {"periods": (10, 100)},
    )  # fmt: skip
    (found, long) = table.df.to_dict("records")
    wanted = {"site": "blocks.3.hook_resid_post", "role": "lab", "representation": "activation", "of": "y"}
    wanted |= {
        "period": 10.0,
        "p_value": 1 / 21,
        "n_features": 2,
        "n_for_90": 2,
        "n_train": 600,
        "n_held": 300,
    }
    assert {key: found[key] for key in wanted} == wanted
    assert long["reason"] == "longer than the range of values"
