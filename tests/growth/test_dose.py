"""Dose-responses: exact lines and curves, intervals, and reasons."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclens.core import TableError
from iclens.growth.verdict import DOSES, MOST_QUADRATIC, causal_reasons, fit_doses


def curves(slope: float, curvature: float, n_prompts: int = 5) -> np.ndarray:
    return np.tile(slope * DOSES + curvature * DOSES**2, (1, n_prompts, 1))


def test_golden_fit() -> None:
    """r = 2k + k², by hand: share = (1/5) / (4/3 + 1/5) = 3/23."""
    fit = fit_doses(curves(2.0, 1.0))
    assert fit.slope[0] == pytest.approx(2.0)
    assert fit.low[0] == pytest.approx(2.0) and fit.high[0] == pytest.approx(2.0)
    assert fit.quadratic_share[0] == pytest.approx(3 / 23)


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.1, 5))
def test_the_share_knows_neither_sign_nor_unit(slope: float, curvature: float, unit: float) -> None:
    share = fit_doses(curves(slope, curvature)).quadratic_share[0]
    assert 0 <= share <= 1
    assert fit_doses(curves(slope, -curvature)).quadratic_share[0] == pytest.approx(share, abs=1e-9)
    assert fit_doses(unit * curves(slope, curvature)).quadratic_share[0] == pytest.approx(share, abs=1e-9)


def test_a_line_has_no_quadratic_share_and_a_parabola_nothing_else() -> None:
    assert fit_doses(curves(1.0, 0.0)).quadratic_share[0] == pytest.approx(0, abs=1e-12)
    assert fit_doses(curves(0.0, 1.0)).quadratic_share[0] == pytest.approx(1)
    assert fit_doses(curves(0.0, 0.0)).quadratic_share[0] == 0
    shares = [fit_doses(curves(1.0, c)).quadratic_share[0] for c in (0.42, 0.44, -0.42, -0.44)]
    assert [share > MOST_QUADRATIC for share in shares] == [False, True, False, True]


def test_slopes_are_each_prompts_own_and_the_interval_is_over_prompts() -> None:
    own = np.array([1.0, 2.0, 4.0])
    fit = fit_doses((own[:, None] * DOSES)[None])
    np.testing.assert_allclose(fit.slopes[0], own)
    half = 4.302652729696142 * own.std(ddof=1) / np.sqrt(3)
    np.testing.assert_allclose([fit.low[0], fit.high[0]], [own.mean() - half, own.mean() + half])


def test_too_few_prompts_or_doses_are_refused() -> None:
    with pytest.raises(TableError, match="at least 2 prompts and 3 doses"):
        fit_doses(np.zeros((1, 1, 6)))
    with pytest.raises(TableError, match="at least 2 prompts and 3 doses"):
        fit_doses(np.zeros((1, 4, 2)), np.array([0.5, 1.0]))
    with pytest.raises(TableError, match="dose"):
        fit_doses(np.zeros((1, 4, 5)))


def test_the_first_demand_that_fails_is_the_reason() -> None:
    nan = np.nan
    found = causal_reasons(
        np.array([0.1, -0.1, 0.1, 0.1, 0.1, nan]), np.array([0.2, 0.2, 0.2, 0.2, 0.2, nan]),
        np.array([0.0, 0.9, 0.2, 0.0, 0.0, 0.0]), np.array([0.01, 0.01, 0.01, 0.2, nan, 0.01]),
    )  # fmt: skip
    assert found[0] == ""
    assert found[1].startswith("pushing it does not raise the belief: [-0.1, 0.2]")
    assert found[2] == "its dose-response is not linear: k² makes up 20%"
    assert found[3] == "not beyond matched random latents (q 0.2)"
    assert found[4].startswith("not beyond matched random latents")
    assert found[5] == "its effect is undefined"
