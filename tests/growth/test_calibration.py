"""The calibration script runs, small, and the planted demands hold on seeds that nothing was developed on."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planted import (
    SHAPES,
    as_latent_acts,
    at_least,
    at_most,
    coverage,
    curve,
    discoveries,
    measure_certificates,
    measure_coverage,
    plant,
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


@pytest.mark.parametrize("shape", SHAPES)
def test_planted_means_are_the_curves(shape: str) -> None:
    treated, control = plant(shape, n_latents=1, n_prompts=20_000, n_examples=8, snr=2.0, seed=0)
    np.testing.assert_allclose((treated - control).mean(axis=(0, 1)), 2 * curve(shape, 8), atol=0.06)


def test_gated_latents_show_what_lies_above_the_threshold() -> None:
    values = np.array([[[-2.0, -0.5, 1.0]]])
    assert as_latent_acts(values).dense().tolist() == [[[0.0, 0.5, 2.0]]]


@pytest.mark.parametrize("shape", ["own step", "own bend"])
def test_prompts_that_climb_their_own_way_have_a_straight_mean(shape: str) -> None:
    treated, _ = plant(shape, n_latents=1, n_prompts=20_000, n_examples=8, snr=2.0, seed=0)
    np.testing.assert_allclose(treated.mean(axis=(0, 1)), 2 * curve("linear", 8), atol=0.06)


def test_noise_is_as_autocorrelated_as_asked() -> None:
    values, _ = plant("null", n_latents=1, n_prompts=20_000, n_examples=8, snr=0, seed=0, rho=0.8)
    steps = np.corrcoef(values[0, :, 3], values[0, :, 4])[0, 1]
    assert steps == pytest.approx(0.8, abs=0.02) and values.std() == pytest.approx(1, abs=0.02)
