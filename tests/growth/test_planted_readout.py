"""The planted read-out holds what it says, and the dose statistics recover it."""

import numpy as np

from iclens.growth.verdict import DOSES, fit_doses
from planted import N_EACH, measure_readout, plant_readout


def test_what_is_planted() -> None:
    planted = plant_readout(0, n_prompts=4000)
    assert (
        planted.kind.tolist()
        == ["read grower"] * N_EACH + ["unread grower"] * N_EACH + ["read, no growth"] * N_EACH
    )
    assert (planted.truth[planted.kind == "read, no growth"] == 0).all()
    unread = planted.truth[planted.kind == "unread grower"]
    assert (unread != 0).all() and np.abs(unread).max() < 0.25
    np.testing.assert_allclose(
        planted.responses.mean(axis=1) @ DOSES / (DOSES @ DOSES), planted.truth, atol=0.05
    )
    assert abs(planted.natural.mean() / planted.truth.sum() - 1) < 0.03
    assert 0.05 < planted.controls.std() < 0.09


def test_curvature_leaves_the_slope_at_dose_zero() -> None:
    planted = plant_readout(1, n_prompts=4000, curvature=0.8)
    fit, read = fit_doses(planted.responses), planted.kind == "read grower"
    np.testing.assert_allclose(fit.slope, planted.truth, atol=0.06)
    np.testing.assert_allclose(fit.quadratic_share[read], 0.64 / 5 / (1 / 3 + 0.64 / 5), atol=0.05)


def test_the_interval_alone_would_call_growers_that_are_not_read() -> None:
    """Which is why the matched random latents are needed: see the next test."""
    called = [
        (fit_doses(planted.responses).low[planted.kind == "unread grower"] > 0).mean()
        for planted in map(plant_readout, range(40))
    ]
    assert np.mean(called) > 0.1


def test_every_demand_is_met_at_another_seed() -> None:
    rows = measure_readout(4321, 60)
    assert [row.quantity for row in rows if not row.met] == []
    assert [row.demand for row in rows] == [".93 to .97", ".93 to .97", "≤ .05", "≥ 0.95", "≥ 0.9"]
    assert rows == measure_readout(4321, 60)
