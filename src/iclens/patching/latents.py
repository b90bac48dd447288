"""Single latents from run A into run B, the levels of what a patch carries, and the linear screen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iclens.core import EditError
from iclens.patching.receiver import PatchReceiver
from iclens.schemas import LadderTable, PatchTable, ScreenTable
from iclens.stats import (
    NO_VALUE,
    Estimates,
    benjamini_hochberg,
    control_p,
    means,
    normalised_effects,
    prompt_weights,
)
from iclens.table import Floats, Ints

SCREEN_ERRORS = 2.0
"""Standard errors by which the screening half must tell an effect from 0."""
STEP = 0.05
"""Part of the patch on either side by which the derivative is taken: rounding counts tenfold."""
TOP = 10
"""Latents of largest effect that the linear screen is asked to find."""


def patch_latents(
    receiver: PatchReceiver, *, effects: Floats | None = None, n_tested: int = 12, n_controls: int = 200,
    seed: int = 0, draws: int = 1000,
) -> PatchTable:  # fmt: skip
    """Patch every latent that differs between A and B, and test the largest effects against matched latents.

    Args:
        effects: single effects of `receiver.differing` on every prompt, nats [prompt latent belief]; measured
            here when not given.
        n_tested: at most so many latents are tested, by screened effect.
        n_controls: matched latents per tested latent, or as many as are live.
        seed: of the controls and the bootstrap.

    Returns:
        A row per latent that differs in the test half, and belief; by latent.
    """
    latents, test = receiver.differing, receiver.test
    effects = single_effects(receiver, latents) if effects is None else effects
    expect_effects(receiver, effects, len(latents))
    tested = _screened(effects[receiver.screen], n_tested)
    n, p_value = _controlled(
        receiver, latents[tested], effects[test][:, tested].mean(axis=0), n_controls,
        np.random.default_rng(seed),
    )  # fmt: skip
    q_value = benjamini_hochberg(p_value)
    beliefs, width = receiver.beliefs, len(receiver.beliefs)
    controls = np.full((3, len(latents), width), np.nan)
    controls[:, tested] = np.stack([np.repeat(n[:, None], width, axis=1), p_value, q_value])
    n_compared, control_p, control_q = controls.reshape(3, -1)
    untested = np.where(np.isnan(n_compared), "not tested: not among the screened", "no live control")

    weights = prompt_weights(len(test), draws, np.random.default_rng(seed))
    on_test = effects[test].reshape(len(test), -1)
    base, target = receiver.base[test].mean(axis=0), receiver.target[test].mean(axis=0)
    effect = means(on_test, weights)
    share = normalised_effects(on_test, np.tile(receiver.span[test], len(latents)), weights)
    why = zip(effect.reason, share.reason, np.where(np.isnan(control_p), untested, ""), strict=True)
    rows = len(latents) * width
    return PatchTable({
        "site": [str(receiver.sae.site)] * rows, "role": [receiver.role] * rows,
        "latent": np.repeat(latents, width), "belief": np.tile(beliefs, len(latents)),
        "n_prompts": [len(test)] * rows,
        "n_changed": np.repeat((receiver.change[test][:, latents] != 0).sum(axis=0), width),
        **effect_columns(np.tile(base, len(latents)), np.tile(target, len(latents)), effect, share),
        "screen_effect": effects[receiver.screen].mean(axis=0).ravel(),
        "n_controls": np.nan_to_num(n_compared).astype(int), "control_p": control_p, "q_value": control_q,
        "reason": [reasons(causes) for causes in why],
    })  # fmt: skip


def effect_columns(base: Floats, target: Floats, effect: Estimates, share: Estimates) -> dict[str, Floats]:
    """Columns of an effect and its share of target − base, [row] each."""
    return {
        "base": base, "patched": base + effect.value, "donor": target,
        **effect.columns("effect", "ci"), **share.columns("normalised"),
    }  # fmt: skip


def single_effects(receiver: PatchReceiver, latents: Ints) -> Floats:
    """Effect of each latent's own patch, nats [prompt latent belief]; 0 where it does not differ."""
    along, prompts = receiver.directions(latents), range(len(receiver.tails))
    return np.stack(receiver.effects_of(prompts, (receiver.pushes(i, latents, along) for i in prompts)))


def expect_effects(receiver: PatchReceiver, effects: Floats, n_latents: int) -> None:
    """Refuse effects that are not [prompt latent belief] of a receiver, by an EditError."""
    wanted = (len(receiver.tails), n_latents, len(receiver.beliefs))
    if effects.shape != wanted:
        raise EditError(
            f"single effects of shape {wanted}", f"{effects.shape}",
            "Give what `single_effects` returned for these runs and latents.",
        )  # fmt: skip


def _screened(effects: Floats, n_tested: int) -> Ints:
    """Which latents to test, from effects on the screening half [prompt latent belief]; largest first."""
    mean = np.abs(effects.mean(axis=0))
    error = effects.std(axis=0, ddof=1) / np.sqrt(len(effects))
    clear = np.where(mean >= np.maximum(SCREEN_ERRORS * error, 1e-6), mean, 0.0)
    largest = np.nan_to_num(clear).max(axis=1, initial=0.0)
    order = np.argsort(-largest, kind="stable")[:n_tested]
    return order[largest[order] > 0]


def _controlled(
    receiver: PatchReceiver, latents: Ints, effects: Floats, n_controls: int, rng: np.random.Generator
) -> tuple[Ints, Floats]:
    """Numbers of controls [latent], and p-values [latent belief] of mean effects [latent belief]."""
    drawn = [matched(receiver.density, receiver.mean_active, int(f), n_controls, rng) for f in latents]
    p_value = np.full(effects.shape, np.nan)
    for t, (latent, others) in enumerate(zip(latents, drawn, strict=True)):
        pushed = _control_effects(receiver, int(latent), others)
        if len(others):
            p_value[t] = control_p(np.abs(effects[t]), np.abs(pushed).T)
    p_value[np.isnan(effects)] = np.nan
    return np.array([len(others) for others in drawn], dtype=int), p_value


def matched(density: Floats, mean_active: Floats, latent: int, n: int, rng: np.random.Generator) -> Ints:
    """Random live latents like `latent`: n drawn from the 2n nearest in log density and log mean length.

    Args:
        density: share of positions at which each latent is active, [latent].
        mean_active: mean length that each adds where active, activation × ‖d_f‖, [latent].
        latent: the latent to match; never among the result.
        n: how many; all that are live when there are no more.
    """
    live = np.flatnonzero((density > 0) & (mean_active > 0))
    live = live[live != latent]
    if len(live) <= n:
        return live
    sizes = np.stack([np.log(density[live]), np.log(mean_active[live])])
    centre = sizes.mean(axis=1)
    if density[latent] > 0 and mean_active[latent] > 0:
        centre = np.log([density[latent], mean_active[latent]])
    spread = np.maximum(sizes.std(axis=1), 1e-9)
    distance = np.square((sizes - centre[:, None]) / spread[:, None]).sum(axis=0)
    nearest = live[np.argsort(distance, kind="stable")[: 2 * n]]
    return np.sort(rng.choice(nearest, n, replace=False))


def _control_effects(receiver: PatchReceiver, latent: int, others: Ints) -> Floats:
    """Mean effects of controls over the test half, each pushed as far as `latent` is, [control belief]."""
    length = receiver.directions(np.array([latent])).norm()
    along = length * torch.nn.functional.normalize(receiver.directions(others), dim=1)
    moved = np.full(len(others), latent)
    pushes = (receiver.pushes(int(i), moved, along) for i in receiver.test)
    return np.mean(receiver.effects_of(receiver.test, pushes), axis=0)


def reasons(causes: Iterable[str]) -> str:
    """Distinct reasons as one text."""
    return "; ".join(dict.fromkeys(reason for reason in causes if reason))


def carry_levels(
    receiver: PatchReceiver, patches: PatchTable, *, seed: int = 0, draws: int = 1000
) -> LadderTable:
    """Effects, on every belief, of the levels of what a patch may carry: one latent up to all of A.

    Args:
        patches: of `patch_latents`, which names the best single latent of each belief.

    Returns:
        A row per (level, belief); the single latent is left out where no latent differs.
    """
    test = receiver.test
    weights = prompt_weights(len(test), draws, np.random.default_rng(seed))
    best = [best_single(patches, belief) for belief in receiver.beliefs]
    levels = list(_levels(receiver, sorted({latent for latent in best if latent is not None})))
    effects = receiver.effects_at(test, [delta for _, _, delta in levels])
    parts = []
    for b, belief in enumerate(receiver.beliefs):
        base, target = receiver.base[test, b], receiver.target[test, b]
        for r, (level, latent, _) in enumerate(levels):
            if latent is not None and latent != best[b]:
                continue
            effect = means(effects[:, r, b][:, None], weights)
            share = normalised_effects(effects[:, r, b][:, None], (target - base)[:, None], weights)
            parts.append(LadderTable({
                "site": [str(receiver.sae.site)], "rung": [level],
                "latent": ["" if latent is None else str(latent)], "role": [receiver.role],
                "belief": [belief], "n_prompts": [len(test)],
                **effect_columns(base.mean(keepdims=True), target.mean(keepdims=True), effect, share),
                "reason": [reasons([effect.reason[0], share.reason[0]])],
            }))  # fmt: skip
    return LadderTable.concat(parts)


def best_single(patches: PatchTable, belief: str) -> int | None:
    """The latent whose screened effect goes furthest the other run's way; None where none is defined."""
    rows = patches.where((patches["belief"] == belief) & ~np.isnan(patches["screen_effect"]))
    if not len(rows):
        return None
    way = np.sign(rows["donor"][0] - rows["base"][0])
    return int(rows["latent"][np.argmax(way * rows["screen_effect"])])


def _levels(receiver: PatchReceiver, singles: list[int]) -> Iterator[tuple[str, int | None, Tensor]]:
    """Name, latent and addition [prompt d_in] of every level; one for each of the `singles`."""
    everything, carried = receiver.everything, receiver.all_latents
    for latent in singles:
        alone, prompts = np.array([latent]), range(len(receiver.tails))
        yield "best single latent", latent, torch.cat([receiver.pushes(i, alone) for i in prompts])
    yield "all latents", None, carried
    yield "error only", None, everything - carried
    yield "full activation", None, everything


def linear_screen(receiver: PatchReceiver, latents: Ints, effects: Floats) -> ScreenTable:
    """The linear screen, effect ≈ derivative × patch, against exact effects on the test half.

    Args:
        effects: their exact effects on every prompt, from `single_effects`, nats [prompt latent belief].
    """
    expect_effects(receiver, effects, len(latents))
    along, n = receiver.directions(latents), len(latents)
    steps = (STEP * receiver.pushes(i, latents, along) for i in receiver.test.tolist())
    stepped = np.stack(receiver.effects_of(receiver.test, (torch.cat([step, -step]) for step in steps)))
    linear, exact = (stepped[:, :n] - stepped[:, n:]) / (2 * STEP), effects[receiver.test]
    where = {"site": str(receiver.sae.site), "role": receiver.role}
    rows = [
        where | {"belief": belief} | _screen_figures(latents, exact[..., b], linear[..., b])
        for b, belief in enumerate(receiver.beliefs)
    ]
    return ScreenTable.from_rows(rows)


def _screen_figures(latents: Ints, exact: Floats, linear: Floats) -> dict[str, Any]:
    """How far linear effects miss exact ones, [prompt latent] each, on one belief."""
    row: dict[str, Any] = {
        "n_effects": exact.size, "r2": np.nan, "slope": np.nan, "worst_miss": np.nan, "worst_latent": -1,
        "worst_exact": np.nan, "worst_linear": np.nan, "top_found": np.nan, "reason": "",
    }  # fmt: skip
    if not exact.size or np.isnan(exact).any():
        return row | {"reason": NO_VALUE if exact.size else "no latent differs"}
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
