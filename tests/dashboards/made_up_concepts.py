"""A made-up page of concepts with every part filled."""

from __future__ import annotations

import math

import numpy as np

from iclens.dashboards.records.concepts import (
    BoxView,
    ConceptsView,
    ConceptView,
    MovedRow,
    MovedView,
    ProbeRow,
    ProbeView,
    ShownLatent,
    TuningView,
)
from iclens.dashboards.records.mechanism import (
    CarriedRow,
    CreationRow,
    CreationView,
    Figure,
    OperandRow,
    OperandsView,
    PeriodRow,
    SizeRow,
)

NAN = math.nan
NAMES = ("double", "odd", "numeric", "offset", "difference", "ratio", "magnitude", "task identity")


def shown(rng: np.random.Generator, i: int, concept: str, site: str, latent: int, end: str) -> ShownLatent:
    """A latent with everything measured; odd ones are tuned to odd values."""
    y = np.arange(0, 100)
    means = np.where(y % 2 == 1, 1.4, 0.1) * (1 + y / 200) + rng.normal(0, 0.05, 100).clip(-0.05)
    x = np.arange(0, 50)
    boxes = [
        BoxView(a, b, 10, 0.0 if (a + b) % 30 == 0 else float(rng.gamma(1.5, 0.5)), 14)
        for a in range(0, 50, 10)
        for b in range(0, 160, 10)
        if b >= a
    ]
    rivals = [Figure(float(v), float(v) - 0.04, float(v) + 0.04) for v in rng.uniform(0.42, 0.8, len(NAMES))]
    rivals[NAMES.index(concept)] = Figure(0.953, 0.93, 0.97)
    rivals[-1] = Figure(NAN, reason="no task at AUROC 0.75 on the discovery prompts" + end)
    return ShownLatent(
        site, "lab" if i % 2 else "pre", latent, concept if i == 0 else "candidate",
        "" if i == 0 else f"magnitude 0.712 above 0.65; lower bound 0.841 below 0.85{end}",
        rivals[NAMES.index(concept)], 0.961, "magnitude" + end, 0.612, 0.341, 0.31, "ratio", 2.21, 0.354,
        0.71, 3e-9, works_at="detection" if i else "", lab_share=0.97, found_again=i, looked_in=2 if i else 0,
        rivals=rivals,
        tunings=[
            TuningView("y", y.tolist(), means.tolist(), [12] * 100, "R² 0.91." + end),
            TuningView("x", x.tolist(), rng.uniform(0.5, 0.9, 50).tolist(), [24] * 50),
            TuningView("y-2x", list(range(-40, 41)), rng.uniform(0, 1, 81).tolist(), list(range(1, 82))),
        ],
        boxes=boxes,
    )  # fmt: skip


def moved(rows: list[str], end: str) -> MovedView:
    """Effects on five beliefs; the first row is confirmed."""
    beliefs = ("numeric", "odd", "double", "exact", "copy" + end)
    return MovedView("ablate", "set to 0" + end, beliefs, "odd", [
        MovedRow(
            name, "pre",
            [Figure(e, e - 0.1, e + 0.1) for e in (0.01, -0.92, -0.12, -0.31)]
            + [Figure(NAN, reason="undefined at a query" + end)],
            Figure(0.8, 0.6, 1.0), "double", 0.024, 40, 60, 64,
            "" if i == 0 else "random latents move it as far",
        )
        for i, name in enumerate(rows)
    ])  # fmt: skip


def concept(rng: np.random.Generator, name: str, keys: list[tuple[str, int]], end: str) -> ConceptView:
    """A concept with four latents, probes and a causal matrix."""
    sizes = ["1", "2", "4", "8", "16", "32", "all"]
    rise = [Figure(a, a - 0.03, a + 0.03) for a in (0.71, 0.78, 0.84, 0.9, 0.93, 0.94, 0.95)]
    alone = [*[Figure(NAN)] * 6, Figure(0.981, 0.97, 0.99)]
    few = [*rise[:6], Figure(NAN, reason="only 6 features" + end)]
    rows = [ProbeRow("latents" + end, rise), ProbeRow("PCA", few), ProbeRow("dense", alone)]
    said = "The whole activation beats the best probe of latents (32 latents) by 0.041." + end
    probes = ProbeView("L2.mlp_out", "pre", sizes, rows, said, 1500, 44)
    latents = [shown(rng, i, name, site, latent, end) for i, (site, latent) in enumerate(keys)]
    return ConceptView(
        name, f"the meaning of {name}" + end, f"1 latent granted the label, 3 candidates.{end}", 1, 3, 0.953,
        1, 4, ["magnitude", "input magnitude" + end], latents, probes,
        [moved([one.name for one in latents] + ["L2.mlp_out, all together"], end)] if name == "odd" else [],
        matrices_reason="No latent was moved." if name != "odd" else "",
    )  # fmt: skip


def make_page(keys: list[tuple[str, int]], end: str = "") -> ConceptsView:
    """Seven concepts with four latents each, one with nothing, and every part of the mechanism."""
    rng = np.random.default_rng(0)
    concepts = [concept(rng, name, keys, end) for name in NAMES[:-1]]
    concepts.append(
        ConceptView(
            NAMES[-1], "the task is one and no other",
            "No latent is granted the label, and none is a candidate.",
            probes_reason="No probe was trained: it has many sides." + end,
            matrices_reason="No latent was moved: none is granted the label.",
        )
    )  # fmt: skip
    sources = ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "end", "end, MLP ablated"]
    creation = [
        CreationView(name + (end if name != "odd" else ""), sources, [
            CreationRow(
                layer, [Figure(a, a - 0.02, a + 0.02) for a in (0.51, 0.52, 0.55, 0.91, 0.92, 0.97, 0.54)],
                "created by the MLP" + end, Figure(-0.39, -0.42, -0.36), "MLP",
            )
            for layer in range(3)
        ], name == "odd")
        for name in NAMES[:2]
    ]  # fmt: skip
    measured = [Figure(0.41, 0.36, 0.44), Figure(NAN, reason="60 rows needed" + end), Figure(0.2, 0.1, 0.3)]
    r = [Figure(v, v - 0.05, v + 0.05) for v in (0.31, 0.12, 0.62)]
    carried = [Figure(v, v - 0.05, v + 0.05) for v in (0.71, 0.32, 0.4, 0.1)]
    return ConceptsView(
        concepts, "Latents were chosen on 40 tasks and judged on 22 others." + end,
        [PeriodRow("L2.mlp_out lab", "latents" + end, "y", 10.0, Figure(0.61), 0.048, "16", 64)],
        OperandsView([0, 1, 2], [OperandRow("x decodable" + end, measured, [0.01, NAN, -0.02])]),
        creation,
        [SizeRow("odd", *keys[0], "all rows", *r, "magnitude", "" + end, 4096)],
        [CarriedRow("odd", *keys[0], 3, carried, Figure(0.39, 0.3, 0.45), 0.21, "")],
        ["attention", "equal", "attention, mean z", "attention, other prompts' z" + end],
    )  # fmt: skip
