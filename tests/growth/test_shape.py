"""The certificate is given to what adds and to nothing else; the exponent is found where it is known."""

import numpy as np
import pytest

from iclens.errors import TableError
from iclens.growth.planted.trajectories import WRONG, curve, plant
from iclens.growth.shape.certificate import fit_shapes
from iclens.growth.shape.curves import families
from iclens.names import Site
from iclens.tables.shapes import ShapeTable

PLACE = (Site(1, "mlp_out"), "pre")


def fitted(values: np.ndarray, **options: object) -> ShapeTable:
    n = np.arange(values.shape[2])
    return fit_shapes(n, values, place=PLACE, latent_ids=np.arange(len(values)), **options)  # type: ignore[arg-type]


def planted(shape: str, snr: float = 3.0, n_latents: int = 60, n_prompts: int = 256) -> np.ndarray:
    return plant(shape, n_latents=n_latents, n_prompts=n_prompts, snr=snr, seed=5)[0]


def test_a_line_is_certified_and_its_exponent_is_one() -> None:
    table = fitted(planted("linear"))
    assert table["certified"].mean() >= 0.8
    inside = (table["exponent_low"] <= 1) & (table["exponent_high"] >= 1)
    assert inside.mean() >= 0.8
    np.testing.assert_allclose(np.median(table["exponent"]), 1, atol=0.05)
    np.testing.assert_allclose(np.median(table["snr"]), 3, atol=0.5)
    assert (table["reason"][table["certified"]] == "").all()


@pytest.mark.parametrize("shape", WRONG)
def test_no_wrong_shape_is_certified_often(shape: str) -> None:
    table = fitted(planted(shape))
    assert table["certified"].mean() <= 0.1
    assert (table["reason"][~table["certified"]] != "").all()


@pytest.mark.parametrize(
    ("shape", "named"),
    [("mid step", "step"), ("hinge", "hinge"), ("plateau", "plateau"), ("null", "constant")],
)
def test_a_clear_shape_is_named(shape: str, named: str) -> None:
    assert (fitted(planted(shape, snr=6.0))["best_curve"] == named).mean() >= 0.9


def test_a_known_exponent_is_estimated_without_noise() -> None:
    rng = np.random.default_rng(0)
    values = 5 * curve("power .75", 16) + 1e-3 * rng.standard_normal((1, 64, 16))
    table = fitted(values)
    assert table["exponent"][0] == pytest.approx(0.75, abs=0.01)
    assert table["exponent_high"][0] - table["exponent_low"][0] < 0.05


def test_a_curve_at_the_edge_of_additive_is_seldom_certified() -> None:
    """On the 90 % interval 7 % of these logistic curves were certified; 95 % is asked for."""
    rates = {}
    for shape, clear in (("hyperbolic 2J", 32.0), ("logistic", 20.0)):
        rates[shape] = fitted(planted(shape, snr=clear / 16, n_latents=1000))["certified"].mean()
    assert max(rates.values()) <= 0.05, rates
    table = fitted(planted("linear", snr=1.5, n_latents=200))
    between = (table["exponent_low"] > 0.8) & (table["exponent_high"] < 1.25) & ~table["certified"]
    assert any("95 % interval" in reason for reason in table["reason"][between])


def test_few_prompts_leave_the_shape_undetermined() -> None:
    table = fitted(planted("linear", snr=1.0, n_prompts=40))
    assert table["certified"].mean() < 0.2
    assert any(text.startswith("shape undetermined") for text in table["reason"])


def test_arms_that_agree_before_the_first_label_anchor_the_curve() -> None:
    values = planted("linear", n_latents=20)
    values = values - values[:, :, :1] * 0
    values[:, :, 0] = 0.0
    table = fitted(values)
    assert np.isfinite(table["exponent"]).all()


def test_values_that_sum_to_a_constant_are_no_obstacle() -> None:
    values = planted("linear", n_latents=3)
    values = values - values.mean(axis=2, keepdims=True)
    assert np.isfinite(fitted(values)["exponent"]).all()


def test_a_flat_latent_has_a_reason() -> None:
    values = planted("linear", n_latents=2)
    values[1] = 0.0
    table = fitted(values)
    assert np.isnan(table["exponent"][1]) and "do not differ" in table["reason"][1]


def test_a_fixed_curve_wins_when_it_is_the_truth() -> None:
    bumpy = np.array([0, 1, 1, 3, 3, 3, 4, 8, 8, 8, 9, 9, 9, 9, 10, 10.0])
    rng = np.random.default_rng(0)
    values = bumpy + rng.standard_normal((5, 128, 16))
    assert (fitted(values, fixed={"belief": bumpy})["best_curve"] == "belief").all()
    with pytest.raises(TableError, match="fixed curve 'belief'"):
        families(np.arange(16), {"belief": bumpy[:5]})


def test_permuting_prompts_changes_nothing() -> None:
    values = planted("power .75", n_latents=4)
    order = np.random.default_rng(1).permutation(values.shape[1])
    one, other = fitted(values), fitted(values[:, order])
    assert (one["best_curve"] == other["best_curve"]).all() and (one["reason"] == other["reason"]).all()
    np.testing.assert_allclose(one["exponent"], other["exponent"], rtol=1e-6)


def test_bad_values_and_too_few_prompts_are_refused_in_one_line() -> None:
    values = planted("linear", n_latents=2, n_prompts=30)
    values[1, 4, 2] = np.nan
    with pytest.raises(TableError, match="latent 1 of the list: NaN or infinite at prompt 4, example 2"):
        fitted(values)
    with pytest.raises(TableError, match="a shape from 10 prompts of 16 examples"):
        fitted(planted("linear", n_latents=2, n_prompts=10))


def test_no_latents_give_an_empty_table() -> None:
    assert len(fitted(np.empty((0, 40, 16)))) == 0
