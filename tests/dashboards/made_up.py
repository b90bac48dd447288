"""A made-up study of realistic size and shape, with hostile text wherever a study puts text."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from iclens.dashboards.records.growth import (
    AccountRow,
    AdditiveView,
    ArmCurve,
    FalsifierRow,
    FollowRow,
    InjectionRow,
    RungCount,
)
from iclens.dashboards.records.site import (
    BeliefCurve,
    Curve,
    Fact,
    Finding,
    GrowthCount,
    LatentRow,
    QualityRow,
    SiteView,
)
from iclens.schemas import LADDER

from .made_up_concepts import make_page
from .made_up_latent import EXAMPLES, ROLES, curve, latent_page
from .made_up_parts import claims, how, patching
from .made_up_prompts import make_prompts

HOSTILE = "</script><img src=x onerror=alert(1)>"
SITES = tuple(f"L{layer}.{hook}" for layer in (1, 2, 3) for hook in ("resid_post", "mlp_out"))


def make_rows(rng: np.random.Generator, per_site: int) -> list[LatentRow]:
    """`per_site` latents for every site; the first few grow."""
    rows = []
    for site in SITES:
        for latent in range(per_site):
            grows = latent < per_site // 20 + 1
            rows.append(
                LatentRow(
                    site,
                    latent,
                    float(rng.beta(1, 30)),
                    ROLES[latent % 4],
                    float(rng.normal(0.2 if grows else 0, 0.05)),
                    float(10 ** -rng.uniform(2, 14)) if grows else float(rng.uniform(0.05, 1)),
                    "grows" if grows else "none",
                    ("double", "candidate", "")[latent % 3] if grows else "",
                    "double" if grows else "",
                    float(rng.uniform(0.5, 1)) if grows else math.nan,
                    "exact" if grows else "",
                    float(rng.normal(0, 0.5)) if grows else math.nan,
                    float(rng.uniform(0.01, 1)) if grows else math.nan,
                    ("exact posterior", "counting", "")[latent % 3] if grows else "",
                    ("causal", "not causal")[latent % 2] if grows else "",
                )
            )
    return sorted(rows, key=lambda row: row.q_value)


def additive(rng: np.random.Generator, hostile: str) -> AdditiveView:
    """Two arms, every rung, three accounts and two falsifiers."""
    arms = [
        ArmCurve("T" + hostile, "own labels" + hostile, curve(rng, -4.6, 4.1, 0.3), curve(rng, -4.6, 5, 0.0)),
        ArmCurve(
            "D", "one example again and again", curve(rng, -4.6, 0, 0.3), agreement="slope .91" + hostile
        ),
    ]
    rungs = [RungCount(site, rung, 3 * i) for site in SITES for i, rung in enumerate(reversed(LADDER))]
    accounts = [
        AccountRow(name + hostile, behind, 0.8 * behind, 1.2 * behind, "what it says" + hostile)
        for name, behind in (("exact posterior", 0.0), ("attention pooling", 3.2), ("counting", 41.0))
    ]
    falsifiers = [
        FalsifierRow("F1", "Is there no paired growth?" + hostile, "did not fire", "214 latents grow."),
        FalsifierRow("F7", "Is the closure below 25 %?", "fired", "Closure 0.11 [0.07, 0.16]." + hostile),
    ]
    follows = [FollowRow("the model's belief" + hostile, 1234, "as the model believes" + hostile, 0.4)]
    parts = ("short-listed latents", "all latents", "error only", "full activation" + hostile)
    injections = [
        InjectionRow(site, part, 0.4 * i - 0.1, 0.4 * i - 0.3, 0.4 * i + 0.1, math.nan)
        for site in SITES[:3]
        for i, part in enumerate(parts)
    ]
    said = "Fitted on half of the prompts." + hostile
    return AdditiveView(
        arms, rungs, accounts, said, falsifiers, follows, injections, "After 4 examples." + hostile
    )


def make_view(per_site: int = 40, n_pages: int = 4, hostile: str = HOSTILE) -> SiteView:
    """The study; `hostile` stands in all its texts and on the first of its pages."""
    rng = np.random.default_rng(0)
    rows = make_rows(rng, per_site)
    rows[0] = replace(
        rows[0], verdict="grows" + hostile, label=hostile, concept=hostile, belief=hostile, follows=hostile
    )
    beliefs = [
        BeliefCurve(
            name + hostile,
            meaning + hostile,
            curve(rng, start, stop, 0.25),
            Curve.line(list(range(EXAMPLES)), (start + (stop + 1.5 - start) * np.arange(16) / 18).tolist()),
            curve(rng, start, start + 0.3, 0.25),
        )
        for name, meaning, start, stop in (
            ("numeric", "the answer is a number", 2.0, 6.0),
            ("odd", "the answer is odd, given a number", 0.1, 3.9),
            ("double", "the answer lies within 5 of 2x", -2.4, 3.3),
            ("exact", "the answer is the task’s own", -4.6, 4.1),
            ("copy", "the answer is the donor’s", -5.0, -4.8),
        )
    ]
    counts = [
        GrowthCount(site, role, per_site, int(rng.integers(4, 60)), int(rng.integers(0, 20)))
        for site in SITES
        for role in ROLES
    ]
    return SiteView(
        title="In-context learning in icl-tiny" + hostile,
        question="Does in-context learning add features, one Bayesian update per example, and which?",
        claims=claims(hostile),
        findings=[
            Finding(
                "Do latents grow with the examples?",
                "Yes: 214 of 6,144" + hostile,
                "At q = .05 against paired permuted labels; 9 fall.",
            ),
            Finding(
                "Is the growth additive in log-odds?",
                "Partly",
                "Fitted λ = 0.41 nats per example, [0.38, 0.44]; it saturates after 8.",
            ),
            Finding(
                "Does any single latent carry the task?",
                "No",
                "The largest single effect is 0.92 nats of the 7.1 between B and A.",
            ),
        ],
        provenance=[
            Fact("model", "icl-tiny, sha256 41c8e0d2b7f95a13"),
            Fact("SAE set" + hostile, "icl-tiny-saes"),
            Fact("versions", "iclens 0.1.0, torch 2.13.0"),
            Fact("seeds", "prompts 0, split 1"),
            Fact("date", "2026-01-01 00:00 UTC"),
        ],
        quality=[
            QualityRow(site, f"{i:016x}", 1024, 32, 32.0, 0.041, 0.987, 0.991, 0.013, 65536)
            for i, site in enumerate(SITES)
        ],
        beliefs=beliefs,
        patching=patching(rng, hostile),
        growth=counts,
        additive=additive(rng, hostile),
        concepts=make_page([row.key for row in rows[:4]], hostile),
        prompts=make_prompts([row.key for row in rows[:6]], hostile),
        how=how(hostile),
        latents=rows,
        pages=[latent_page(rng, row, hostile if i == 0 else "") for i, row in enumerate(rows[:n_pages])],
        pages_reason="Pages are written for the latents with the lowest q at any site and role.",
        notes=["The model is small and its tasks are declared: nothing here generalises by itself."],
    )
