"""Single latents from run A into run B, and the linear screen before them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import false_discovery_control
from torch import Tensor

from iclens.core import EditError
from iclens.patching.receiver import (
    UNDEFINED,
    LatentRuns,
    control_p_value,
    means,
    normalised_effects,
    resamples,
)
from iclens.schemas import LadderTable, PatchTable, ScreenTable
from iclens.table import Floats, Ints

SCREEN_ERRORS = 2.0
"""Standard errors by which the screening half must tell an effect from 0."""


@dataclass(frozen=True)
class Tested:
    """Control p-values of the tested latents.

    Args:
        latents: tested latent ids, [tested].
        p_value: [tested belief].
        q_value: [tested belief].
        n_controls: [tested].
    """

    latents: Ints
    p_value: Floats
    q_value: Floats
    n_controls: Ints


def patch_latents(
    held: LatentRuns, *, effects: Floats | None = None, n_tested: int = 12, n_controls: int = 200,
    seed: int = 0, draws: int = 1000,
) -> PatchTable:  # fmt: skip
    """Patch every latent that differs between A and B, and test the largest effects against matched latents.

    Args:
        held: the runs, from `gather`.
        effects: single effects of `held.differing` on every prompt, nats [prompt latent belief]; measured
            here when not given.
        n_tested: at most so many latents are tested, by screened effect.
        n_controls: matched latents per tested latent, or as many as are live.
        seed: of the controls and the bootstrap.
        draws: bootstrap resamples.

    Returns:
        A row per latent that differs in the test half, and belief; by latent.
    """
    latents = held.differing
    effects = single_effects(held, latents) if effects is None else effects
    expect_effects(held, effects)
    chosen = _screened(effects[held.screen], n_tested)
    tested = _test(
        held, latents[chosen], effects[held.test][:, chosen], n_controls, np.random.default_rng(seed)
    )
    weights = resamples(len(held.test), draws, np.random.default_rng(seed))
    return _table(held, latents, effects, tested, weights)


def single_effects(held: LatentRuns, latents: Ints) -> Floats:
    """Effect of each latent's own patch on every belief, nats [prompt latent belief]; 0 where none differs.

    Args:
        held: runs A and B.
        latents: [latent].
    """
    along = held.directions(latents)
    everyone = range(len(held.tails))
    return np.stack(held.effects_of(everyone, (held.pushes(i, latents, along) for i in everyone)))


def expect_effects(held: LatentRuns, effects: Floats, n_latents: int | None = None) -> None:
    """Refuse effects that are not [prompt latent belief] of these runs.

    Args:
        held: the runs.
        effects: what was given.
        n_latents: latents that they are of; `held.differing` when not given.

    Raises:
        EditError: when they have another shape.
    """
    n = len(held.differing) if n_latents is None else n_latents
    wanted = (len(held.tails), n, len(held.beliefs))
    if effects.shape != wanted:
        raise EditError(
            f"single effects of shape {wanted}",
            f"{effects.shape}",
            "Give what `single_effects` returned for these runs and latents.",
        )


def _screened(effects: Floats, n_tested: int) -> Ints:
    """Which latents to test, from effects on the screening half [prompt latent belief]; largest first."""
    mean = np.abs(effects.mean(axis=0))
    error = effects.std(axis=0, ddof=1) / np.sqrt(len(effects))
    clear = np.where(mean >= np.maximum(SCREEN_ERRORS * error, 1e-6), mean, 0.0)
    largest = np.nan_to_num(clear).max(axis=1, initial=0.0)
    order = np.argsort(-largest, kind="stable")[:n_tested]
    return order[largest[order] > 0]


def _test(
    held: LatentRuns, latents: Ints, effects: Floats, n_controls: int, rng: np.random.Generator
) -> Tested:
    """Compare effects on the test half [prompt tested belief] with those of matched live latents."""
    controls = [matched(held.density, held.mean_active, int(f), n_controls, rng) for f in latents]
    p_value = np.full((len(latents), len(held.beliefs)), np.nan)
    for t, (latent, others) in enumerate(zip(latents, controls, strict=True)):
        pushed = _control_effects(held, int(latent), others)
        own = effects[:, t].mean(axis=0)
        for b in np.flatnonzero(~np.isnan(own)):
            p_value[t, b] = control_p_value(own[b], pushed[:, b]) if len(others) else np.nan
    q_value, known = np.full_like(p_value, np.nan), ~np.isnan(p_value)
    if known.any():
        q_value[known] = false_discovery_control(p_value[known], method="bh")
    return Tested(latents, p_value, q_value, np.array([len(others) for others in controls], dtype=int))


def matched(density: Floats, mean_active: Floats, latent: int, n: int, rng: np.random.Generator) -> Ints:
    """Random live latents like `latent`: n drawn from the 2n nearest in log density and log mean length.

    Args:
        density: share of positions at which each latent is active, [latent].
        mean_active: mean length that each adds where active, activation × ‖d_f‖, [latent].
        latent: the latent to match; never among the result.
        n: how many; all that are live when there are no more.
        rng: of the draw.
    """
    live = np.flatnonzero((density > 0) & (mean_active > 0))
    live = live[live != latent]
    if len(live) <= n:
        return live
    like = np.stack([np.log(density[live]), np.log(mean_active[live])])
    own = like.mean(axis=1)
    if density[latent] > 0 and mean_active[latent] > 0:
        own = np.log([density[latent], mean_active[latent]])
    spread = np.maximum(like.std(axis=1), 1e-9)
    distance = np.square((like - own[:, None]) / spread[:, None]).sum(axis=0)
    nearest = live[np.argsort(distance, kind="stable")[: 2 * n]]
    return np.sort(rng.choice(nearest, n, replace=False))


def _control_effects(held: LatentRuns, latent: int, others: Ints) -> Floats:
    """Mean effects of controls over the test half, each pushed as far as `latent` is, [control belief]."""
    length = held.directions(np.array([latent])).norm()
    along = length * torch.nn.functional.normalize(held.directions(others), dim=1)
    own = np.full(len(others), latent)
    pushes = (held.pushes(int(i), own, along) for i in held.test)
    return np.mean(held.effects_of(held.test, pushes), axis=0)


def _table(held: LatentRuns, latents: Ints, effects: Floats, tested: Tested, weights: Floats) -> PatchTable:
    """A row per latent and belief, from effects [prompt latent belief] on all prompts."""
    width, n = len(held.beliefs), len(latents) * len(held.beliefs)

    def spread(values: Floats) -> Floats:
        """[… belief] repeated for every latent, as [… latent·belief]."""
        return np.tile(values, len(latents))

    on_test = effects[held.test].reshape(len(held.test), -1)
    base, target = held.base[held.test], held.target[held.test]
    effect, share = means(on_test, weights), normalised_effects(on_test, spread(target - base), weights)
    controls = np.full((3, len(latents), width), np.nan)
    place = np.searchsorted(latents, tested.latents)
    controls[:, place] = np.stack([
        np.repeat(tested.n_controls[:, None], width, axis=1), tested.p_value, tested.q_value
    ])  # fmt: skip
    n_controls, p_value, q_value = controls.reshape(3, -1)
    untested = np.where(np.isnan(n_controls), "not tested: not among the screened", "no live control")
    why = zip(effect.reason, share.reason, np.where(np.isnan(p_value), untested, ""), strict=True)
    return PatchTable({
        "site": [str(held.sae.site)] * n, "role": [held.role] * n, "latent": np.repeat(latents, width),
        "belief": spread(np.array(held.beliefs)), "n_prompts": [len(held.test)] * n,
        "n_changed": np.repeat((held.change[held.test][:, latents] != 0).sum(axis=0), width),
        "base": spread(base.mean(axis=0)), "patched": spread(base.mean(axis=0)) + effect.value,
        "donor": spread(target.mean(axis=0)), "effect": effect.value,
        "ci_low": effect.low, "ci_high": effect.high,
        "normalised": share.value, "normalised_low": share.low, "normalised_high": share.high,
        "screen_effect": effects[held.screen].mean(axis=0).ravel(),
        "n_controls": np.nan_to_num(n_controls).astype(int), "control_p": p_value, "q_value": q_value,
        "reason": [reasons(found) for found in why],
    })  # fmt: skip


def reasons(found: Iterable[str]) -> str:
    """Distinct reasons as one text."""
    return "; ".join(dict.fromkeys(reason for reason in found if reason))


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
        _ladder_row(held, rung, latent, b, effects[:, r, b], weights)
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


def _ladder_row(
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
    rows = [_screen_row(held, latents, b, exact[..., b], linear[..., b]) for b in range(len(held.beliefs))]
    return ScreenTable({name: [row[name] for row in rows] for name in ScreenTable.COLUMNS})


def _screen_row(held: LatentRuns, latents: Ints, b: int, exact: Floats, linear: Floats) -> dict[str, object]:
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
