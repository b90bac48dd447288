"""How good would a linear screen be, where single-latent effects are measured exactly?

    linear effect = (effect of +5 % of the patch − effect of −5 %) / 10 %        the derivative along it

Exact effects cost little, since only latents that differ need a row; the screen is a diagnostic of how far
from linear the model is between the receiver and the donor, and of what a gradient method would have missed.
"""

from __future__ import annotations

import numpy as np
import torch

from iclens.patching.effects import UNDEFINED
from iclens.patching.latents.gather import LatentRuns
from iclens.patching.latents.single import expect_effects
from iclens.tables.arrays import Floats, Ints
from iclens.tables.sets import ScreenTable

STEP = 0.05
"""Part of the patch on either side by which the derivative is taken: rounding counts tenfold."""
TOP = 10


def linear_screen(held: LatentRuns, latents: Ints, effects: Floats) -> ScreenTable:
    """The linear screen against exact effects, on the test half.

    Args:
        held: the runs.
        latents: [latent].
        effects: their exact effects on every prompt, from `single_effects`, nats [prompt latent belief].
    """
    expect_effects(held, effects, len(latents))
    along = held.directions(latents)
    steps = (STEP * held.pushes(i, latents, along) for i in held.test.tolist())
    found = np.stack(held.effects_of(held.test, (torch.cat([step, -step]) for step in steps)))
    linear = (found[:, : len(latents)] - found[:, len(latents) :]) / (2 * STEP)
    exact = effects[held.test]
    rows = [_row(held, latents, b, exact[..., b], linear[..., b]) for b in range(len(held.beliefs))]
    return ScreenTable({name: [row[name] for row in rows] for name in ScreenTable.COLUMNS})


def _row(held: LatentRuns, latents: Ints, b: int, exact: Floats, linear: Floats) -> dict[str, object]:
    """One belief's row, from effects [prompt latent]."""
    row: dict[str, object] = {
        "site": str(held.sae.site), "role": held.role, "belief": held.beliefs[b], "n_effects": exact.size,
        "r2": np.nan, "slope": np.nan, "worst_miss": np.nan, "worst_latent": -1, "worst_exact": np.nan,
        "worst_linear": np.nan, "top_found": np.nan, "reason": "",
    }  # fmt: skip
    if not exact.size or np.isnan(exact).any():
        return row | {"reason": UNDEFINED if exact.size else "no latent differs"}
    spread = np.square(exact - exact.mean()).sum()
    if spread == 0:
        return row | {"reason": "all effects are equal"}
    miss = np.abs(exact - linear)
    prompt, worst = np.unravel_index(miss.argmax(), miss.shape)
    best = [set(np.argsort(-np.abs(part.mean(axis=0)))[:TOP].tolist()) for part in (exact, linear)]
    return row | {
        "r2": 1 - np.square(miss).sum() / spread,
        "slope": float((exact * linear).sum() / max(np.square(linear).sum(), 1e-300)),
        "top_found": len(best[0] & best[1]) / TOP if len(latents) > TOP else np.nan,
        "worst_miss": miss.max(), "worst_latent": int(latents[worst]), "worst_exact": exact[prompt, worst],
        "worst_linear": linear[prompt, worst],
    }  # fmt: skip
