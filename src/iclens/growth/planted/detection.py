"""Operating characteristics of the growth test, measured on planted trajectories (G1).

Each function plants, runs the product's own test and counts; none has an estimator of its own. A *run* is a
study of fresh prompts.
"""

from __future__ import annotations

import numpy as np

from iclens.growth.bayes import fit_log_odds
from iclens.growth.confirm import Claim, Manifest, confirm
from iclens.growth.planted.rows import CalibrationRow, at_least, at_most, coverage, stated
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
CLEAR = (12.0, 16.0, 20.0, 24.0, 32.0, 48.0, 96.0)
"""snr·√N at which false certificates are looked for: from hardly seen to certain."""
SHAPED_PROMPTS = (102, 256)
"""Prompts that judge the shape: the shape split of a study of 256, and all of them."""
PLACE = (Site(0, "resid_post"), "pre")
NULLS = {"nothing": ("null", 0.0), "position only": ("drift", 3.0), "content only": ("content", 3.0)}
"""What is planted where nothing grows: shape and size."""
SIZES = {"n_prompts": N_PROMPTS, "n_examples": N_EXAMPLES}
SCREENED, SHAPED = 100, 200
"""Latents per run: of each wrong shape while the worst is looked for, and where a figure is measured."""
Cell = tuple[str, float, int]
"""A shape, its snr·√N and the number of prompts."""
FRESH = 1_000_000
"""Between the seeds of the search for the worst shape and those of its figure."""


def measure_nulls(seed: int, n_runs: int) -> list[CalibrationRow]:
    """The whole pipeline where nothing grows: no task, drift with position, content that only moves."""
    rows = []
    for name, (shape, snr) in NULLS.items():
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
    """False certificates of the worst wrong shape, and at snr·√N = 48 power and prompts' own shapes.

    The worst three of all shapes, sizes and numbers of prompts are looked for on some latents and measured on
    others: the largest of many noisy shares would be too large.
    """
    cells: list[Cell] = [
        (shape, clear, n)
        for shape in (*WRONG, "drift", "content")
        for clear in CLEAR
        for n in SHAPED_PROMPTS
    ]  # fmt: skip
    searched = [sum(_certified(cell, SCREENED, seed + run) for run in range(n_runs)) for cell in cells]
    worst = [cells[i] for i in np.argsort(searched, kind="stable")[-3:]]
    runs = range(seed + FRESH, seed + FRESH + 4 * n_runs)
    found = {cell: sum(_certified(cell, SHAPED, run) for run in runs) for cell in worst}
    shape, clear, n_prompts = max(found, key=lambda cell: found[cell])
    n = 4 * SHAPED * n_runs
    said = f"worst of {len(cells)}: {shape}, {n_prompts} prompts, snr·√N {clear:g}; on {n} other latents"
    rows = [at_most("false additive certificate", 0.05, max(found.values()), n, said)]
    n = SHAPED * n_runs
    for n_prompts in (256, 2304):
        linear, steps, bends = (
            sum(_certified((shape, 48.0, n_prompts), SHAPED, seed + run) for run in range(n_runs))
            for shape in ("linear", "own step", "own bend")
        )
        said = f"{n_prompts} prompts at snr {48 / n_prompts**0.5:g}"
        rows.append(at_least("power of the certificate", 0.80, linear, n, said))
        rows.append(at_most("certified, though each prompt steps by itself", 0.05, steps, n, said))
        rows.append(stated("certified, though prompts bend opposite ways", bends, n, said))
    return rows


def _certified(cell: Cell, n_latents: int, seed: int) -> int:
    """Latents of a shape that are certified."""
    shape, clear, n_prompts = cell
    treated, control = plant(
        shape,
        n_latents=n_latents,
        n_prompts=n_prompts,
        n_examples=N_EXAMPLES,
        snr=clear / np.sqrt(n_prompts),
        seed=seed,
    )
    # The planted noise stands for that of the difference, in which snr is told; these two are differences.
    values = treated - control if shape in ("drift", "content") else treated
    return int(shapes_of(values)["certified"].sum())


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
