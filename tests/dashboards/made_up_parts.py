"""Made-up records of the pages of patching and of how it was computed, and the claims of the index."""

from __future__ import annotations

import math

import numpy as np

from iclens.dashboards.records.how import Command, HowView, Named, SelfTest, StageRow, TestGroup
from iclens.dashboards.records.latent import Curve
from iclens.dashboards.records.mechanism import Figure
from iclens.dashboards.records.patching import (
    AnswersView,
    EffectRow,
    EffectsView,
    Grid,
    HeadRow,
    JointRow,
    LadderStep,
    Line,
    LinesView,
    PatchingView,
    RedundancyLadder,
    SingleRow,
    SinglesView,
    SweepCell,
    SweepView,
)
from iclens.dashboards.records.site import ClaimView, Clause

from .made_up_latent import ROLES, curve

NAN = math.nan
HASH = "cb8ff8e66942c46064472d7427fed376737480bfebfefb57d57ba4e8591f95c4"


def sweep(rng: np.random.Generator, title: str, peak: int) -> SweepView:
    """A heat map with one band of layers at `pre`."""
    cells = [
        SweepCell(role, layer, float(np.clip((0.95 if role == "pre" and layer == peak else 0.03), 0, 1)))
        for role in ROLES
        for layer in range(7)
    ]
    return SweepView(title, "12-example donor of 2x+3, 64 pairs", cells)


def heads(hostile: str) -> SweepView:
    """The heat map of heads set to zero."""
    columns = ("0", "2", "10", "all")
    cells = [SweepCell(head, layer, 0.1 * layer) for head in columns for layer in range(6)]
    return SweepView("Heads set to zero, pre" + hostile, "unablated .98" + hostile, cells, "block", "head")


def patching(rng: np.random.Generator, hostile: str) -> PatchingView:
    """Every part of the page; a few values are undefined."""
    effects = EffectsView(
        "L2.resid_post at pre" + hostile,
        "24 prompts." + hostile,
        [
            EffectRow("all latents" + hostile, Figure(7.8, 7.6, 8.0)),
            EffectRow("error only", Figure(NAN, reason="not measured" + hostile), "open"),
        ],
    )
    sizes = Curve([1, 2, 8], [0.0, 0.1, 0.5], [NAN, 0.0, 0.4], [NAN, 0.2, 0.6])
    lines = [Line("greedy" + hostile, "first", sizes), Line("random", "random", Curve.line([1, 8], [0, 0.1]))]
    levels = [("all latents" + hostile, 0.98), ("difference of means", 0.97)]
    sets = LinesView(
        "L2.resid_post at pre" + hostile, "50 random sets", lines, "members", "share", levels, "log2"
    )
    graded = LinesView("By examples", "64 prompts", [Line("exact", "model", curve(rng, 0, 1, 0.05))])
    steps = [
        LadderStep(0, "", 3.0, Figure(0.83, 0.8, 0.85), Figure(NAN), NAN, NAN, 0, Figure(0.99), Figure(NAN)),
        LadderStep(
            1, "L2" + hostile, NAN, Figure(0.02, 0.01, 0.03), Figure(0.02), 0.74, 0.82, 3, Figure(0.02),
            Figure(-0.5), "neither" + hostile, "no layer brings half" + hostile,
        ),
    ]  # fmt: skip
    single = SingleRow("L1.mlp_out", 0, Figure(0.07, 0.01, 0.12), 0.01, 3, 24, 0.03, 0.16, 200, hostile)
    return PatchingView(
        sweeps=[
            sweep(rng, "Task applied to B’s own x" + hostile, 3),
            sweep(rng, "The same, in the plain twin", 9),
            sweep(rng, "A’s answer copied", 6),
        ],
        heads=[heads(hostile)],
        belief="exact" + hostile,
        graded=graded,
        lens=[sweep(rng, "What the residual would answer" + hostile, 5)],
        strongest=[
            HeadRow(
                "L2H2" + hostile, Figure(-10.7), Figure(58.0), 0.05, Figure(0.91), 0.92, 1e-18, 0.014, hostile
            )
        ],
        direct=effects,
        joint=[
            JointRow("L0 L1" + hostile, Figure(-10.6), Figure(-5.6), Figure(-4.9), "stand in" + hostile, 8.1)
        ],
        ladders=[RedundancyLadder("Ladder" + hostile, "64 prompts", "No layer does." + hostile, steps)],
        rungs=[effects],
        sets=[sets, LinesView("L1.mlp_out at pre", "", reason="No share is defined: below 1 nat." + hostile)],
        singles=[SinglesView("pre" + hostile, "The 2 of largest effect." + hostile, [single])],
        controls=[effects],
        screens=effects,
        responses=[
            AnswersView(
                "A*" + hostile, "4 donors", Curve.line([0, 1], [3.1, 5.2]), Curve.line([0, 1], [3, 5]), 2, 3
            )
        ],
        grids={
            "sets": Grid(("set", "share", "why undefined"), [("greedy", 0.495, hostile), ("all", NAN, "")])
        },
        said={"sets": "Chosen on half of the prompts." + hostile},
        reasons={"direct": "One head has none." + hostile},
    )


def how(hostile: str) -> HowView:
    """Two stages, one of them without a record, and a self-test of every verdict."""
    tests = [
        SelfTest(f"Does it hold?{hostile}", verdict, "n^0.30" + hostile, "Fires when yes." + hostile)
        for verdict in ("fired", "passed", "not asked")
    ]
    stages = [
        StageRow(
            "sweep" + hostile, "10_sweep", "done" + hostile, 20.81, HASH, [Named("config", HASH)],
            [Named("best layer" + hostile, "3" + hostile)], [Named("sweep.parquet" + hostile, HASH)],
            "iclens sweep RUN" + hostile,
        ),
        StageRow("patch", "11_patch", "no record: 11_patch/stage.json is missing or damaged"),
    ]  # fmt: skip
    return HowView(
        config="study: demo\nprompts:\n  n: 64" + hostile,
        run="20260101T000000Z-00000000",
        stages=stages,
        commands=[Command("iclens study RUN/config.yaml" + hostile, "everything" + hostile)],
        hashes=[Named("model" + hostile, "fc6bd3d101d03fa7")],
        versions=[Named("torch", "2.13.0" + hostile)],
        seeds=[Named("sweep.seed", "2")],
        tests=[TestGroup("the growth claim" + hostile, "It does not prove it." + hostile, tests)],
        measured=[Named("manifest", HASH)],
    )


def claims(hostile: str) -> list[ClaimView]:
    """A claim with a clause of every verdict."""
    clauses = [
        Clause(
            f"Does it {verdict}?{hostile}",
            verdict,
            "Slope 0.41 [0.38, 0.44]." + hostile,
            "growth.html",
            i == 0,
        )
        for i, verdict in enumerate(("holds", "does not hold", "not tested"))
    ]
    return [ClaimView(1, "Growth adds" + hostile, "half of it holds" + hostile, clauses)]
