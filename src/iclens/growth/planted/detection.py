"""Operating characteristics of the growth test, measured on planted trajectories (G1).

Each function plants, runs the product's own test and counts; none has an estimator of its own. A *run* is a
study of fresh prompts.
"""

from __future__ import annotations

import numpy as np

from iclens.growth.bayes import fit_log_odds
from iclens.growth.confirm import Claim, Manifest, confirm
from iclens.growth.planted.rows import CalibrationRow, at_least, at_most, coverage
from iclens.growth.planted.trajectories import (
    WRONG,
    as_latent_acts,
    curve,
    growth,
    noise,
    plant,
)
from iclens.growth.shape.certificate import fit_shapes, profile_interval
from iclens.growth.shape.curves import POWERS
from iclens.growth.shape.gls import distances, means_of
from iclens.growth.splits import split_prompts
from iclens.growth.test import test_growth
from iclens.names import Site
from iclens.tables.activations import select_prompts
from iclens.tables.arrays import Floats
from iclens.tables.shapes import ShapeTable

Q = 0.05
N_PROMPTS, N_EXAMPLES, N_LATENTS = 256, 16, 100
SNRS = (0.75, 1.5, 3.0, 6.0)
"""Growth in standard deviations at which false certificates are looked for."""
PLACE = (Site(0, "resid_post"), "pre")
NULLS = {"nothing": ("null", 0.0), "position only": ("drift", 3.0), "content only": ("content", 3.0)}
"""What is planted where nothing grows: shape and size."""
SIZES = {"n_prompts": N_PROMPTS, "n_examples": N_EXAMPLES}
SHAPED = 200
"""Latents per shape, signal-to-noise ratio and run."""


def measure_nulls(seed: int, n_runs: int) -> list[CalibrationRow]:
    """The whole pipeline where nothing grows: no task, drift with position, content that only moves."""
    rows = []
    for name, shape, snr in (
        ("nothing", "null", 0.0),
        ("position only", "drift", 3.0),
        ("content only", "content", 3.0),
    ):
        found = [discoveries(shape, snr, seed=seed + run) for run in range(n_runs)]
        hits, certified = (sum(run[i] > 0 for run in found) for i in (0, 1))
        said = f"{n_runs} whole pipelines; certified and confirmed in {certified}"
        rows.append(at_most(f"any discovery: {name}", 0.05, hits, n_runs, said))
    return rows


def discoveries(shape: str, snr: float, *, seed: int) -> tuple[int, int]:
    """Latents called on the discovery split, and those of them certified and confirmed on the others."""
    treated, control = (
        as_latent_acts(arm)
        for arm in plant(
            shape,
            n_latents=N_LATENTS,
            n_prompts=N_PROMPTS,
            n_examples=N_EXAMPLES,
            snr=snr,
            seed=seed,
            common=0.3,
        )
    )
    splits = split_prompts(N_PROMPTS, N_EXAMPLES, seed=seed)
    table = test_growth(*(select_prompts(arm, splits.discovery) for arm in (treated, control)), q=Q)
    called, grows = table.significant(Q), table.growing()
    if not len(grows):
        return len(called), 0
    ids = grows["latent"]
    paired = treated.dense(ids) - control.dense(ids)
    shapes = shapes_of(paired[:, splits.shape])
    claims = tuple(
        Claim(PLACE[0].short, PLACE[1], int(latent), float(slope), "grows")
        for latent, slope in zip(ids, grows["slope"], strict=True)
    )
    manifest = Manifest(claims, tuple(int(p) for p in splits.confirm), "planted")
    held = confirm(manifest, {PLACE: paired[:, splits.confirm]}, splits.confirm)
    return len(called), int((shapes["certified"] & (held["confirm_p"] <= Q)).sum())


def measure_discovery(seed: int, n_runs: int) -> list[CalibrationRow]:
    """False discovery rate with correlated latents, a fifth of which grow weakly; recall of 1 SD growth."""
    false, hits = [], 0
    for run in range(n_runs):
        n_grow = N_LATENTS // 5
        sizes = (N_LATENTS, N_PROMPTS, N_EXAMPLES)
        rng = np.random.default_rng([seed, run])
        treated, control = (noise(rng, *sizes, common=0.3) for _ in range(2))
        treated[:n_grow] += growth(rng, "linear", n_grow, N_PROMPTS, N_EXAMPLES, 0.35)
        called = test_growth(as_latent_acts(treated), as_latent_acts(control), q=Q).significant(Q)["latent"]
        false.append((called >= n_grow).mean() if len(called) else 0.0)
        full = plant("linear", n_latents=20, **SIZES, snr=1.0, seed=seed + run)
        hits += len(test_growth(*(as_latent_acts(arm) for arm in full), q=Q).growing())
    rate, error = float(np.mean(false)), float(np.std(false, ddof=1) / np.sqrt(n_runs))
    return [
        CalibrationRow("false discovery rate, correlated latents", "≤ .06", rate, error,
                       rate <= 0.06 + 2 * error, f"{n_runs} studies, a fifth of the latents grow by .35 SD"),
        at_least("recall of growth by 1 SD", 0.95, hits, 20 * n_runs, "256 prompts of 16 examples"),
    ]  # fmt: skip


def measure_certificates(seed: int, n_runs: int) -> list[CalibrationRow]:
    """False certificates over every wrong shape and signal-to-noise ratio, and power at snr·√N = 48."""
    n = SHAPED * n_runs
    worst, at = -1, ""
    for shape in (*WRONG, "drift", "content"):
        for snr in SNRS:
            hits = sum(_certified(shape, snr, N_PROMPTS, seed + run) for run in range(n_runs))
            if hits > worst:
                worst, at = hits, f"worst: {shape} at snr {snr:g}; {n} latents of each"
    rows = [at_most("false additive certificate", 0.05, worst, n, at)]
    for n_prompts, snr in ((256, 3.0), (2304, 1.0)):
        granted = sum(_certified("linear", snr, n_prompts, seed + run) for run in range(n_runs))
        rows.append(
            at_least("power of the certificate", 0.80, granted, n, f"{n_prompts} prompts at snr {snr:g}")
        )
    return rows


def _certified(shape: str, snr: float, n_prompts: int, seed: int) -> int:
    treated, control = plant(
        shape, n_latents=SHAPED, n_prompts=n_prompts, n_examples=N_EXAMPLES, snr=snr, seed=seed
    )
    # Half of the paired difference's noise is the control's: scaled so that snr is that of the difference.
    return int(shapes_of(treated - control if shape in ("drift", "content") else treated)["certified"].sum())


def shapes_of(values: Floats) -> ShapeTable:
    """Shapes of planted latents [latent prompt example]."""
    return fit_shapes(np.arange(values.shape[2]), values, place=PLACE, latent_ids=np.arange(len(values)))


def measure_coverage(seed: int, n_runs: int) -> list[CalibrationRow]:
    """Coverage of 95 % intervals: of the exponent p, and of LO_0 and λ."""
    rows = []
    for shape, truth in (("linear", 1.0), ("power .75", 0.75)):
        hits = 0
        for run in range(n_runs):
            values, _ = plant(shape, n_latents=SHAPED, **SIZES, snr=3.0, seed=seed + run)
            (_, means), *_ = means_of(values)[0]
            n = np.arange(N_EXAMPLES, dtype=float)
            power = distances(means, np.array([n**p for p in POWERS]))
            ends = profile_interval(means, N_EXAMPLES, power, 0.95)
            hits += int(((ends.low <= truth) & (truth <= ends.high)).sum())
        rows.append(coverage(f"coverage of p, {shape}", hits, SHAPED * n_runs, "256 prompts at snr 3"))
    inside = np.zeros(2, dtype=int)
    n_fits = 4 * n_runs * 25
    line = -3 + 6 * curve("linear", N_EXAMPLES)
    for run in range(n_fits):
        rng = np.random.default_rng([seed, 7, run])
        own = 1 + 0.2 * rng.standard_normal((N_PROMPTS, 1))
        values = noise(rng, 1, N_PROMPTS, N_EXAMPLES)[0] + own * line
        fit = fit_log_odds(
            np.arange(N_EXAMPLES), values, over=slice(0, N_EXAMPLES), n_resamples=400, seed=run
        )
        inside += [fit.lo_0_low <= -3 <= fit.lo_0_high, fit.lam_low <= 6 / (N_EXAMPLES - 1) <= fit.lam_high]
    rows += [coverage(f"coverage of {name}", int(hit), n_fits, "256 prompts") for name, hit in
             zip(("LO_0", "λ"), inside, strict=True)]  # fmt: skip
    return rows
