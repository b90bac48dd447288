"""Frozen claims, dose-responses, the ladder gate by gate, and the falsifiers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclens.core import Site, TableError
from iclens.growth.verdict import (
    DOSES,
    FALSIFIERS,
    KEY,
    MOST_QUADRATIC,
    Claim,
    Figures,
    Found,
    Manifest,
    ask,
    causal_reasons,
    confirm,
    fit_doses,
    judge,
)
from iclens.schemas import LADDER
from iclens.stats import Interval

PLACE = (Site(2, "mlp_out"), "pre")
PROMPTS = np.arange(20, 60)


def manifest(n: int = 2) -> Manifest:
    claims = tuple(Claim("L2.mlp_out", "pre", latent, 0.2, "grows") for latent in range(n))
    return Manifest(claims, tuple(PROMPTS.tolist()), "a study")


def rising(slopes: list[float], noise: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(0)
    n = np.arange(8)
    return np.array(slopes)[:, None, None] * n + noise * rng.standard_normal((len(slopes), 40, 8))


def test_what_grows_is_confirmed_and_shrinkage_is_a_ratio_of_slopes() -> None:
    table = confirm(manifest(), {PLACE: rising([0.1, 0.0])}, PROMPTS)
    assert table["confirm_p"][0] < 0.001 < 0.05 < table["confirm_p"][1]
    assert table["confirm_slope"][0] == pytest.approx(0.1, abs=0.02)
    assert table["shrinkage"][0] == pytest.approx(table["confirm_slope"][0] / 0.2)
    assert table["confirm_low"][0] < 0.1 < table["confirm_high"][0]


def test_equal_arms_are_undefined_with_a_reason() -> None:
    table = confirm(manifest(1), {PLACE: np.zeros((1, 40, 8))}, PROMPTS)
    assert np.isnan(table["confirm_p"][0]) and "do not differ" in table["reason"][0]


def test_other_prompts_or_missing_claims_are_refused() -> None:
    with pytest.raises(TableError, match="other prompts"):
        confirm(manifest(), {PLACE: rising([0.1, 0.0])}, PROMPTS + 1)
    with pytest.raises(TableError, match="claims are missing"):
        confirm(manifest(), {PLACE: rising([0.1])}, PROMPTS)


def test_a_frozen_manifest_comes_back_and_an_edited_one_does_not(tmp_path: Path) -> None:
    file, one = tmp_path / "manifest.json", manifest()
    assert one.freeze(file) == one.sha256
    assert Manifest.thaw(file) == one
    assert replace(one, study="another").sha256 != one.sha256
    file.write_text(file.read_text().replace('"pre",1', '"pre",7'))
    with pytest.raises(TableError, match="changed after it was frozen"):
        Manifest.thaw(file)
    file.write_text("nothing\n")
    with pytest.raises(TableError, match="unreadable"):
        Manifest.thaw(file)


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


SITE = "blocks.2.hook_mlp_out"
TOP = {
    "certified": True, "confirm_p": 0.001, "own_low": 0.05, "evidence_low": 0.1, "causal": True,
}  # fmt: skip


def found(
    detected: str = "grows", shortlisted: bool = True, closure: float = 0.4, **changes: object
) -> Found:
    """One latent that passes every gate but for the changes."""
    key = dict(zip(KEY, (SITE, "pre", 7), strict=True))
    facts = TOP | changes
    detection = {
        **key, "slope": 0.2, "ci_low": 0.1, "ci_high": 0.3, "p_value": 1e-6, "q_value": 1e-4, "n_prompts": 77,
        "n_active": 70, "verdict": detected, "reason": "",
    }  # fmt: skip
    shape = {
        **key, "exponent": 1.0, "exponent_low": 0.9, "exponent_high": 1.1, "best_curve": "linear",
        "certified": facts["certified"], "reason": "the interval of p reaches 0.5",
    }  # fmt: skip
    evidence = {
        **key, "evidence": 0.2, "evidence_low": facts["evidence_low"], "evidence_high": 0.3, "count": 0.0,
        "reason": "",
    }  # fmt: skip
    dose = {
        **key, "dose_effect": 0.3, "dose_low": 0.2, "dose_high": 0.4, "control_p": 0.01, "share": 0.1,
        "causal": facts["causal"], "reason": "no stronger than matched latents",
    }  # fmt: skip
    confirm = {
        **key, "confirm_slope": 0.18, "confirm_p": facts["confirm_p"], "shrinkage": 0.9, "own_slope": 0.1,
        "own_low": facts["own_low"], "reason": "",
    }  # fmt: skip
    frames = [pd.DataFrame([row] if shortlisted else []) for row in (shape, evidence, dose, confirm)]
    columns = [list(row) for row in (shape, evidence, dose, confirm)]
    frames = [frame.reindex(columns=c) for frame, c in zip(frames, columns, strict=True)]
    return Found(pd.DataFrame([detection]), *frames, {SITE: (closure, "closure 0.10 [0.05, 0.15]")})


def verdict(**changes: object) -> tuple[str, str]:
    table = judge(found(**changes))  # type: ignore[arg-type]
    return table["verdict"][0], table["reason"][0]


def test_a_latent_that_passes_every_gate_stands_on_the_top_rung() -> None:
    assert verdict() == ("accounts for belief", "")


@pytest.mark.parametrize(
    ("changes", "rung", "why"),
    [
        ({"confirm_p": 0.2}, "grows", "not confirmed on held-out prompts (Holm p 0.2)"),
        ({"own_low": -0.1}, "grows", "only against its control does it clearly rise"),
        ({"certified": False}, "grows", "the interval of p reaches 0.5"),
        ({"evidence_low": -0.1}, "grows linearly", "its increments do not follow the evidence"),
        ({"causal": False}, "grows with evidence", "no stronger than matched latents"),
        ({"closure": 0.1}, "causally additive", "closure 0.10 [0.05, 0.15]"),
        ({"detected": "none"}, "none", "no paired growth (q 0.0001)"),
        ({"detected": "falls"}, "falls", "it falls beside its control"),
        ({"shortlisted": False}, "grows", "not on the short list"),
    ],
)
def test_the_first_gate_that_fails_gives_rung_and_reason(changes, rung, why) -> None:
    got, reason = verdict(**changes)
    assert got == rung
    assert reason.startswith(why)


def test_a_gate_above_does_not_excuse_one_below() -> None:
    table = judge(found(certified=False, evidence_low=-0.1))
    assert table["verdict"][0] == "grows"
    assert table["evidence_low"][0] == -0.1, "what it would have passed stays in its columns"


def test_rungs_can_be_asked_for_from_below() -> None:
    table = judge(found(causal=False))
    assert [len(table.at_least(rung)) for rung in LADDER] == [1, 1, 1, 1, 0, 0]
    assert len(table.growing()) == 1
    assert np.isfinite(table["exponent"][0]) and bool(table["shortlisted"][0])


SOUND = Figures(
    n_tested=900, n_grows=80, n_confirmed=60, n_shortlisted=70, n_rising=200, n_own=40,
    n_sublinear=5, n_shaped=70,
    belief_exponent=Interval(1.0, 0.9, 1.1), duplicates=Interval(0.2, 0.1, 0.3),
    evidence=Interval(0.9, 0.8, 1.0), order=Interval(0.1, 0.05, 0.2), n_dosed=12, n_causal=9,
    closure=Interval(0.6, 0.5, 0.7), closure_site="L2.mlp_out", n_directions=6, n_directions_grow=6,
)  # fmt: skip
BROKEN = {
    "F1": replace(SOUND, n_confirmed=0),
    "F2": replace(SOUND, belief_exponent=Interval(0.5, 0.4, 0.7)),
    "F3": replace(SOUND, n_own=0),
    "F4": replace(SOUND, duplicates=Interval(1.0, 0.9, 1.1), evidence=Interval(0.0, -0.1, 0.1)),
    "F5": replace(SOUND, order=Interval(2.0, 1.5, 2.6)),
    "F6": replace(SOUND, n_causal=0),
    "F7": replace(SOUND, closure=Interval(0.1, 0.05, 0.15)),
    "F8": replace(SOUND, n_only_direction=1),
}


def fired(figures: Figures) -> dict[str, str]:
    table = ask(figures)
    return dict(zip(table["falsifier"], table["fired"], strict=True))


def test_nothing_fires_on_growth_as_claimed() -> None:
    assert fired(SOUND) == dict.fromkeys(BROKEN, "did not fire")
    assert [name for name, _, _ in FALSIFIERS] == list(BROKEN)


@pytest.mark.parametrize("name", BROKEN)
def test_each_fires_alone_on_its_own_failure(name: str) -> None:
    assert fired(BROKEN[name]) == dict.fromkeys(BROKEN, "did not fire") | {name: "fired"}


def test_most_latents_sublinear_fires_as_the_belief_does() -> None:
    assert fired(replace(SOUND, n_sublinear=36))["F2"] == "fired"
    assert fired(replace(SOUND, n_sublinear=35))["F2"] == "did not fire"


def test_what_was_not_measured_is_not_tested_and_says_what_it_needs() -> None:
    table = ask(Figures())
    assert set(table["fired"]) == {"not tested"}
    assert all(text.endswith((".", "…")) and len(text) > 10 for text in table["evidence"])


def test_the_figures_stand_in_the_sentence() -> None:
    table = ask(SOUND)
    row = list(table["falsifier"]).index("F7")
    assert table["evidence"][row] == (
        "At L2.mlp_out, the best site, the pushed latents account for 0.60 [0.50, 0.70] of the answer's "
        "growth."
    )
