"""A made-up latent with every section of its page filled."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from iclens.dashboards.records.concepts import BoxView, TuningView
from iclens.dashboards.records.latent import (
    ArmMeans,
    ConceptRow,
    Curve,
    DoseView,
    Histogram,
    LadderView,
    LatentRow,
    LatentView,
    LogitEffect,
    Neighbour,
    PatchRow,
    PromptView,
    ResponseView,
    ScaledPosterior,
    TaskActivation,
    TokenView,
    TrajectoryView,
)
from iclens.schemas import LADDER

ROLES = ("x", "pre", "lab", "close")
EXAMPLES = 16


def curve(rng: np.random.Generator, start: float, stop: float, width: float) -> Curve:
    """A saturating rise with a band."""
    n = np.arange(EXAMPLES)
    mean = start + (stop - start) * n / (n + 3.0) + rng.normal(0, width / 4, EXAMPLES)
    return Curve(n.tolist(), mean.tolist(), (mean - width).tolist(), (mean + width).tolist())


def prompt(rng: np.random.Generator, title: str) -> PromptView:
    """`(28, 59)` lines with activations on `lab` and `pre`, as a trained SAE gives them."""
    tokens = [TokenView("<s>"), TokenView("\n")]
    for j in range(EXAMPLES):
        x = int(rng.integers(50))
        strength = j / EXAMPLES * 2.4
        tokens += [TokenView("("), TokenView(str(x)), TokenView(","), TokenView(" ", strength)]
        tokens += [TokenView(str(2 * x + 3), strength * 0.4), TokenView(")\n")]
    return PromptView(title, tokens)


def latent_page(rng: np.random.Generator, row: LatentRow, hostile: str) -> LatentView:
    """A page with every section filled; `hostile` is put wherever text can stand."""
    specs = [f"{a}x+{b}" for a in (1, 2, 3, 4) for b in (0, 1, 2, 3, 5, 8)]
    tasks = [
        TaskActivation(
            spec + hostile, float(m), float(m) - 0.1, float(m) + 0.1, 64, ("discovery", "held out")[i % 2]
        )
        for i, (spec, m) in enumerate(zip(specs, np.sort(rng.gamma(1.2, 0.5, 24))[::-1], strict=True))
    ]
    trajectories = [
        TrajectoryView(
            role, curve(rng, 0.1, 2 + i, 0.2), curve(rng, 0.1, 0.4, 0.2), 0.12, 0.09, 0.15, 3e-9, "grows"
        )
        for i, role in enumerate(ROLES)
    ]
    reason = hostile or "confound above .65"
    concepts = [
        ConceptRow("double" + hostile, "lab", 0.96, 0.93, 0.98, "3x", 0.61, 1e-6, "double"),
        ConceptRow("odd", "lab", 0.55, 0.49, 0.61, "magnitude", 0.7, 0.4, "", reason),
        ConceptRow("numeric", "lab", math.nan, reason="no word task in this run"),
    ]
    patches = [
        PatchRow(
            belief + hostile,
            -3.1,
            -2.6,
            4.0,
            e,
            e - 0.1,
            e + 0.1,
            -0.2,
            0.18,
            p,
            0.07,
            0.01,
            57,
            64,
            role="pre",
        )
        for belief, e, p in (
            ("numeric", 0.02, 0.62),
            ("odd", -0.31, 0.05),
            ("double", 0.92, 0.0099),
            ("exact", 0.51, 0.0198),
            ("copy", 0.04, 0.5),
        )
    ]
    words = ["59", "\u202e7", " opposite", "\ufffd", hostile or "odd", "113", "7", "999"]
    effects = [LogitEffect(w, 2.2 - 0.2 * i) for i, w in enumerate(words)]
    prompts = [prompt(rng, f"{spec}, task arm{hostile}") for spec in ("2x+3", "2x+5", "2x", "3x+1", "x//2+4")]
    if hostile:
        prompts.append(
            PromptView("hostile", [TokenView(hostile, 2.0), TokenView(f'" onfocus={hostile}', 1.0)])
        )
    doses = np.array([-1, -0.5, 0, 0.5, 1, 1.5, 2])
    pushed = Curve(doses.tolist(), (0.4 * doses).tolist(), (0.3 * doses).tolist(), (0.5 * doses).tolist())
    bins = Histogram(np.linspace(0, 3, 25).tolist(), (900 * np.exp(-np.arange(24) / 6)).astype(int).tolist())
    posterior = curve(rng, 0.1, 2.1, 0.0)
    figures = [("slope", "0.139", "per example" + hostile), ("q", "3.0e−9", "over all latents and roles")]
    xs = list(range(0, 50, 5))
    values = range(0, 100)
    return LatentView(
        row.site,
        row.latent,
        summary="It grows at pre and follows the task's own evidence." + hostile,
        role="pre",
        trajectories=trajectories,
        posterior=ScaledPosterior(Curve.line(posterior.n_seen, posterior.mean), 0.93),
        arms=[
            ArmMeans(arm + hostile, meaning + hostile, rng.gamma(2, 0.4, EXAMPLES).tolist())
            for arm, meaning in (("T", "own labels"), ("P", "permuted labels"), ("D", "one example again"))
        ],
        ladder=LadderView("pre", LADDER, LADDER[2], "it is not linear" + hostile, figures),
        task_role="lab",
        tasks=tasks,
        concepts=concepts,
        tunings=[TuningView("y", [*values], [0.01 * v for v in values], [12] * 100, "R² 0.91." + hostile)],
        boxes=[BoxView(x, y, 10, 0.1 * x, 14) for x in range(0, 50, 10) for y in range(0, 160, 10)],
        patches=patches,
        response=ResponseView(
            xs, [3.0] * 10, [1.5 * x for x in xs], [2.0 * x + 3 for x in xs], "slope 1.50" + hostile
        ),
        prompts=prompts,
        random=[replace(prompts[0], title="drawn at random" + hostile, before=True, after=True)],
        promotes=effects,
        suppresses=[LogitEffect(e.text, -e.value) for e in effects],
        histogram=bins,
        doses=[
            DoseView(n, pushed, "causal" + hostile) for n in ((4, 8) if hostile else ())
        ],  # few are pushed
        close=[Neighbour(row.latent + 1, 0.71), Neighbour(row.latent + 2, 0.55)],
        together=[Neighbour(row.latent + 3, 0.42)],
        follows=["At pre it follows the model's belief." + hostile] if hostile else [],
    )
