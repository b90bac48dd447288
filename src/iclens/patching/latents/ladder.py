"""How much of run A must a patch carry: one latent, all latents, the SAE's error, or everything?

    best single latent   (a_f^A − a_f^B) · scale_B · d_f, f chosen on the screening half
    all latents          scale_B · (decode(a^A) − decode(a^B)): B keeps its own error
    error only           what is left: error^A − error^B, and for an SAE that normalises its input what comes
                         of the change in its scale and mean
    full activation      h^A − h^B, the sum of the two above

All rungs are read on the test half and use the same donor values as the single-latent patches.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from iclens.patching.effects import means, normalised_effects, resamples
from iclens.patching.latents.gather import LatentRuns
from iclens.patching.latents.single import reasons
from iclens.tables.arrays import Floats
from iclens.tables.patches import LadderTable, PatchTable


def patch_ladder(held: LatentRuns, patches: PatchTable, *, seed: int = 0, draws: int = 1000) -> LadderTable:
    """Every rung's effect on every belief.

    Args:
        held: the runs, as given to `patch_latents`.
        patches: its result, which names the best single latent of each belief.
        seed: of the bootstrap.
        draws: bootstrap resamples.

    Returns:
        A row per (rung, belief); the single rung is left out where no latent differs.
    """
    weights = resamples(len(held.test), draws, np.random.default_rng(seed))
    best = [best_single(patches, belief) for belief in held.beliefs]
    rungs = list(_rungs(held, sorted({latent for latent in best if latent is not None})))
    additions = torch.stack([delta for _, _, delta in rungs], dim=1)
    effects = np.stack(held.effects_of(held.test, (additions[int(i)] for i in held.test)))
    return LadderTable.concat([
        _row(held, rung, latent, b, effects[:, r, b], weights)
        for b in range(len(held.beliefs))
        for r, (rung, latent, _) in enumerate(rungs)
        if latent is None or latent == best[b]
    ])  # fmt: skip


def best_single(patches: PatchTable, belief: str) -> int | None:
    """The latent whose screened effect goes furthest the other run's way; None where none is defined."""
    rows = patches.where((patches["belief"] == belief) & ~np.isnan(patches["screen_effect"]))
    if not len(rows):
        return None
    way = np.sign(rows["donor"][0] - rows["base"][0])
    return int(rows["latent"][np.argmax(way * rows["screen_effect"])])


def _rungs(held: LatentRuns, singles: list[int]) -> Iterator[tuple[str, int | None, Tensor]]:
    """Name, latent and addition [prompt d_in] of every rung; one single rung per latent of `singles`."""
    everything, carried = held.everything, held.all_latents
    for latent in singles:
        alone = np.array([latent])
        yield "best single latent", latent, torch.cat([held.pushes(i, alone) for i in range(len(held.tails))])
    yield "all latents", None, carried
    yield "error only", None, everything - carried
    yield "full activation", None, everything


def _row(
    held: LatentRuns, rung: str, latent: int | None, b: int, effects: Floats, weights: Floats
) -> LadderTable:
    """One row from the effects of a rung on belief `b`, [test prompt]."""
    base, target = held.base[held.test, b], held.target[held.test, b]
    effect = means(effects[:, None], weights)
    share = normalised_effects(effects[:, None], (target - base)[:, None], weights)
    return LadderTable({
        "site": [str(held.sae.site)], "rung": [rung], "latent": ["" if latent is None else str(latent)],
        "role": [held.role], "belief": [held.beliefs[b]], "n_prompts": [len(effects)], "base": [base.mean()],
        "patched": base.mean() + effect.value, "donor": [target.mean()], "effect": effect.value,
        "ci_low": effect.low, "ci_high": effect.high, "normalised": share.value, "normalised_low": share.low,
        "normalised_high": share.high, "reason": [reasons([effect.reason[0], share.reason[0]])],
    })  # fmt: skip
