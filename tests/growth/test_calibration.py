"""The calibration kit plants what it says, and its demands hold on seeds that nothing was developed on."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from iclens.core import Site, TableError
from iclens.growth.detect import test_arms as judge_study
from iclens.growth.verdict import DOSES, fit_doses
from planted import (
    CONCEPTS,
    CONFOUND,
    N_EACH,
    NOTHING,
    OFFSETS,
    SHAPES,
    SLOPES,
    Codes,
    as_latent_acts,
    at_least,
    at_most,
    coverage,
    curve,
    discoveries,
    measure_certificates,
    measure_coverage,
    measure_readout,
    null_discoveries,
    plant,
    plant_codes,
    plant_readout,
    relabelled,
)

SCRIPT = Path(__file__).resolve().parents[2] / "analysis" / "calibration" / "growth.py"


@pytest.mark.slow
def test_the_short_table_prints_every_demand() -> None:
    command = [sys.executable, str(SCRIPT), "--short", "--seed", "30000"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0].startswith("quantity")
    for quantity in (
        "any discovery: nothing", "any discovery: position only", "any discovery: content only",
        "false discovery rate", "recall of growth", "false additive certificate", "power of the certificate",
        "coverage of p", "coverage of λ", "coverage of the dose slope", "bias of the normalised effect",
        "growers without an effect flagged", "mechanism named: latch", "spiked growth found",
        "certified, though each prompt steps", "certified, though prompts bend", "false certificate, spiked",
        "any discovery: relabelled arms of the model", "fitted on exact log-odds, arm Q0",
    ):  # fmt: skip
        assert any(line.startswith(quantity) for line in lines), quantity
    planted = [
        line for line in lines if line.startswith(("false additive", "power of", "recall", "mechanism"))
    ]
    assert all("  yes  " in line for line in planted)


def test_certificates_and_coverage_on_a_fresh_seed() -> None:
    rows = [*measure_certificates(31_000, 1), *measure_coverage(31_000, 1)[:2]]
    assert [row.quantity for row in rows if not row.met] == []


def test_a_whole_pipeline_finds_growth_and_confirms_it() -> None:
    called, certified = discoveries("linear", 8.0, seed=32_000)
    assert called >= 95 and certified >= 50
    assert discoveries("mid step", 8.0, seed=32_000)[1] <= 5


def test_rows_know_when_a_demand_is_missed() -> None:
    assert at_most("x", 0.05, 10, 200).met and not at_most("x", 0.05, 30, 200).met
    assert at_least("x", 0.95, 190, 200).met and not at_least("x", 0.95, 150, 200).met
    assert coverage("x", 190, 200).met and not coverage("x", 160, 200).met
    assert at_most("x", 0.05, 10, 200).mc_error == pytest.approx(np.sqrt(0.05 * 0.95 / 200))


@pytest.mark.parametrize("shape", [*SHAPES, "own step", "own bend"])
def test_planted_means_are_the_curves(shape: str) -> None:
    """Prompts that climb each its own way have a straight mean."""
    treated, control = plant(shape, n_latents=1, n_prompts=20_000, n_examples=8, snr=2.0, seed=0)
    wanted = 2 * curve("linear" if shape.startswith("own") else shape, 8)
    np.testing.assert_allclose((treated - control).mean(axis=(0, 1)), wanted, atol=0.06)


def test_gated_latents_show_what_lies_above_the_threshold() -> None:
    values = np.array([[[-2.0, -0.5, 1.0]]])
    assert as_latent_acts(values).dense().tolist() == [[[0.0, 0.5, 2.0]]]


def test_noise_is_as_autocorrelated_as_asked() -> None:
    values, _ = plant("null", n_latents=1, n_prompts=20_000, n_examples=8, snr=0, seed=0, rho=0.8)
    steps = np.corrcoef(values[0, :, 3], values[0, :, 4])[0, 1]
    assert steps == pytest.approx(0.8, abs=0.02) and values.std() == pytest.approx(1, abs=0.02)


def codes(confounding: float, seed: int = 0) -> Codes:
    return plant_codes(n_latents=20, n_rows=8000, confounding=confounding, snr=3.0, seed=seed)


def test_truth_is_what_the_answers_are() -> None:
    held = codes(0.3)
    assert (held.y == held.slope * held.x + held.offset).all()
    assert (held.truth["parity"] == (held.y % 2 == 1)).all()
    assert (held.truth["band"] == (np.abs(held.y - 2 * held.x) <= 5)).all()
    halfway = np.median([a * x + b for a in SLOPES for b in OFFSETS for x in range(10, 98)])
    assert (held.truth[CONFOUND] == (held.y > halfway)).all()
    assert held.y.min() >= 0 and held.y.max() < 1000
    assert len(np.unique(held.task)) == len(SLOPES) * len(OFFSETS) >= 60


@pytest.mark.parametrize("confounding", [0.0, 0.5, 0.9, 1.0])
def test_confounding_is_cramers_v(confounding: float) -> None:
    held = codes(confounding, seed=3)
    for concept in CONCEPTS:
        v = np.corrcoef(held.truth[concept], held.truth[CONFOUND])[0, 1]
        assert v == pytest.approx(confounding, abs=0.03)
        assert held.truth[concept].mean() == pytest.approx(0.5, abs=0.03)


def test_latents_code_for_their_kind_alone() -> None:
    held = codes(0.0)
    assert set(held.kind) == {*CONCEPTS, CONFOUND, NOTHING}
    for kind, values in zip(held.kind, held.values, strict=True):
        gaps = {name: values[truth].mean() - values[~truth].mean() for name, truth in held.truth.items()}
        for name, gap in gaps.items():
            assert gap == pytest.approx(3.0 if name == kind else 0.0, abs=0.15)


def test_the_seed_decides_everything_and_v_is_a_share() -> None:
    assert (codes(0.5, 1).values == codes(0.5, 1).values).all()
    assert not (codes(0.5, 1).x == codes(0.5, 2).x).all()
    for wrong in (-0.1, 1.1):
        with pytest.raises(TableError, match="share from 0 to 1"):
            codes(wrong)


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


def test_every_demand_is_met_at_another_seed() -> None:
    rows = measure_readout(4321, 60)
    assert [row.quantity for row in rows if not row.met] == []
    assert [row.demand for row in rows] == [".93 to .97", ".93 to .97", "≤ .05", "≥ 0.95", "≥ 0.9"]
    assert rows == measure_readout(4321, 60)


N, J, D = 96, 8, 60


def study(planted, seed: int) -> tuple[dict, dict]:
    """Six places of correlated, sparse latents, a third of which truly grow in T."""
    rng = np.random.default_rng(seed)
    treated, control = {}, {}
    for layer in (1, 2, 3):
        for role in ("pre", "lab"):
            shared = rng.standard_normal((2, 1, N, J))
            own = rng.standard_normal((2, D, N, J))
            levels = 0.7 * shared + own - np.linspace(-1, 2.5, D)[:, None, None]
            levels[0, ::3] += 0.25 * np.arange(J)
            place = (Site(layer, "mlp_out"), role)
            treated[place] = planted(np.maximum(levels[0], 0), *place)
            control[place] = planted(np.maximum(levels[1], 0), *place)
    return treated, control


def test_true_arms_are_discovered_and_relabelled_ones_are_not(planted, pair) -> None:
    treated, control = study(planted, 1)
    prompts = pair(N, J)
    assert len(judge_study(treated, control, prompts=prompts).growing()) > 50
    counts = null_discoveries(treated, control, prompts=prompts, n_runs=60, seed=0)
    assert counts.shape == (60,)
    assert (counts > 0).sum() <= 3 + 5  # .05 of 60, and three standard errors


def test_relabelling_swaps_whole_prompts_everywhere(planted) -> None:
    treated, control = study(planted, 3)
    swapped = np.random.default_rng(0).random(N) < 0.5
    one, other = relabelled(treated, control, swapped)
    for place, acts in treated.items():
        before, after = acts.dense(), one[place].dense()
        assert (after[:, ~swapped] == before[:, ~swapped]).all()
        assert (after[:, swapped] == control[place].dense()[:, swapped]).all()
    back, _ = relabelled(one, other, swapped)
    assert all((back[place].dense() == acts.dense()).all() for place, acts in treated.items())
