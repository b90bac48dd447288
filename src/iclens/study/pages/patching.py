"""What does the page of patching show? A run's tables on residuals and heads; latents are in `patched`.

1. `Tables` reads a table, and keeps why a part of the page is empty when it cannot; 2. each part becomes
plain records; 3. what was done is said in a sentence per part.

Enter a run's results; leaves a `PatchingView`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from iclens.dashboards.records.latent import Curve
from iclens.dashboards.records.mechanism import Figure
from iclens.dashboards.records.patching import (
    EffectRow,
    EffectsView,
    HeadRow,
    JointRow,
    LadderStep,
    Line,
    LinesView,
    PatchingView,
    RedundancyLadder,
    SweepCell,
    SweepView,
)
from iclens.patching.heads import WHOLE_LAYER
from iclens.results.read import Results
from iclens.study.pages import patched
from iclens.study.pages.patch_tables import Row, Tables, curve_of, figure_of, records

SWEPT = {
    "task on own x": "Task applied to B's own x",
    "copy": "A's own answer copied",
}
"""Sweep metrics that get a heat map."""
HEADLINE = "task on own x"
REPLACED = {
    "zero": "Heads set to zero",
    "mean": "Heads set to their mean without a task",
    "resample": "Heads set to run B's",
}
"""Kinds of ablation in words."""
STRONGEST = 12
"""Heads, and components after them, that are shown."""
SUMS = {
    "total": "total (TE)", "ablated": "these heads, direct (DE)", "compensation": "compensation (TE − DE)",
    "later heads": "later heads", "later MLPs": "later MLPs", "later": "later heads and MLPs",
    "later heads, given the loss": "later heads, given loss",
    "later, given the loss": "later, given the loss",
}  # fmt: skip
"""Parts of an ablation's effect that are no single component, and their names."""
VERDICTS = {
    "delay": "delay: the task arrives later, and nothing after it gives back what was lost",
    "backup": "backup: later heads give back part of what was lost",
    "both": "delay and backup: the task arrives later, and later heads give back part of what was lost",
    "neither": "neither delay nor backup: nothing else takes over",
    "undecided": "undecided: too little was lost to tell",
}
"""What the redundancy ladder can find, in words."""


def patching(results: Results) -> PatchingView:
    """Everything that a run's patching found."""
    tables = Tables(results)
    latents = patched.parts(tables)
    return PatchingView(
        sweeps=sweep_maps(tables),
        heads=head_maps(tables),
        belief=results.config.patch.chosen_for,
        graded=graded_lines(tables),
        lens=lens_maps(tables),
        strongest=strongest_heads(tables),
        direct=direct_effects(tables),
        joint=joint_rows(tables),
        ladders=ladders(tables),
        grids=tables.grids,
        said=_said(results) | tables.said,
        reasons=tables.reasons,
        **latents,
    )


def _said(results: Results) -> dict[str, str]:
    sweep = results.config.sweep
    examples = f"{sweep.donor_examples} examples of {results.config.prompts.task}"
    return {
        "sweep": f"Run A holds {examples}; means over {sweep.n_prompts} prompts.",
        "heads": f"Run A* holds {examples} and asks run B’s query; means over {sweep.n_prompts} prompts.",
    } | patched.said(results)


def sweep_maps(tables: Tables) -> list[SweepView]:
    """A heat map per headline metric and recipient."""
    table, section = tables.of("sweep", "sweep"), tables.config.sweep
    donor = f"{section.donor_examples} examples of {tables.config.prompts.task}"
    what = f"Whole residual of run A ({donor}) into run B"
    where = "Role pre is the query's own, other roles are those of every example."
    views = []
    for metric, title in SWEPT.items():
        for recipient in table["recipient"].unique():
            rows = table[(table["metric"] == metric) & (table["recipient"] == recipient)]
            cells = _cells(rows)
            unpatched = f"mean over {section.n_prompts} prompts; without the patch {rows['base'].mean():.3f}"
            views.append(SweepView(f"{title} (run B: {recipient})", f"{what}, {unpatched}. {where}", cells))
    return views


def head_maps(tables: Tables) -> list[SweepView]:
    """A heat map of how far the task's answer falls without each head, for each kind and place."""
    table = tables.of("heads", "heads")
    table = table[table["metric"] == HEADLINE]
    views = []
    for (kind, place), rows in table.groupby(["kind", "place"], sort=False):
        cells = [
            SweepCell(
                "all" if row["head"] == WHOLE_LAYER else str(row["head"]), row["layer"],
                -row["effect"], -row["ci_high"], -row["ci_low"],
            )
            for row in records(rows)
        ]  # fmt: skip
        first = rows.iloc[0]
        caption = (
            f"Mean over {first['n_prompts']} prompts with {first['n_seen']} examples; unablated "
            f"{first['base']:.3f}."
        )
        views.append(SweepView(f"{REPLACED[str(kind)]}, {place}", caption, cells, "block", "head"))
    return views


def lens_maps(tables: Tables) -> list[SweepView]:
    """What the residual of A* would answer, layers × roles, as a heat map per headline metric."""
    table = tables.of("lens", "lens")
    views = []
    for metric, title in (("task on own x", "The task’s answer to its own x"), ("copy", "Run A’s answer")):
        rows = table[table["metric"] == metric]
        if rows.empty:
            continue
        caption = f"Mean over {rows['n_prompts'].iloc[0]} prompts with {rows['n_seen'].iloc[0]} examples."
        views.append(SweepView(title, caption, _cells(rows), "entering block"))
    return views


def graded_lines(tables: Tables) -> LinesView | None:
    """The best layer's patch by the donor's examples, beside A* without one."""
    table = tables.of("graded", "graded")
    if table.empty:
        return None
    own, copied = (table[table["metric"] == name] for name in (HEADLINE, "copy"))
    first = table.iloc[0]
    unpatched = Curve(*(own[n].tolist() for n in ("n_seen", "unpatched", "unpatched_low", "unpatched_high")))
    lines = [
        Line("patched: task on B’s own x", "first", curve_of(own)),
        Line("patched: A’s answer copied", "second", curve_of(copied)),
        Line("A*, not patched: task on its own x", "model", unpatched),
    ]
    tables.put(
        "graded",
        ("donor’s examples", *(line.name for line in lines)),
        [
            (n, *(line.curve.mean[i] for line in lines))
            for i, n in enumerate(own["n_seen"].astype(int).tolist())
        ],
    )
    caption = f"Run B: {first['recipient']}; mean over {first['n_prompts']} prompts, band 95 %."
    return LinesView(
        f"Residual entering block {first['layer']} at {first['role']}",
        caption, lines, axis="examples in the donor’s context",
    )  # fmt: skip


def strongest_heads(tables: Tables) -> list[HeadRow]:
    """The heads whose loss costs most; by what they add to the answer where none was ablated."""
    table, ablated = tables.of("head_scores", "strongest"), tables.of("heads", "losses")
    effects = ablated[
        (ablated["metric"] == f"effect on {tables.config.sweep.belief}") & (ablated["head"] != WHOLE_LAYER)
    ]
    if len(effects):
        kind, place = effects[["kind", "place"]].iloc[0]
        effects = effects[(effects["kind"] == kind) & (effects["place"] == place)]
        tables.said["strongest"] = f"{REPLACED[str(kind)].lower()}, {place}"
    losses = {(row["layer"], row["head"]): figure_of(row, "effect", "ci") for row in records(effects)}
    none = Figure(math.nan, reason="this head was not ablated")
    rows = [_head(row, losses.get((row["layer"], row["head"]), none)) for row in records(table)]

    def size(row: HeadRow) -> float:
        value = row.loss.value if losses else row.attribution
        return -abs(value) if math.isfinite(value) else math.inf

    return sorted(rows, key=size)[:STRONGEST]


def _head(row: Row, loss: Figure) -> HeadRow:
    return HeadRow(
        f"L{row['layer']}H{row['head']}", loss, figure_of(row, "score", "score"), row["attribution"],
        figure_of(row, "label_mass", "label_mass"), row["label_share"], row["own_x_mass"], row["bos_mass"],
        row["reason"],
    )  # fmt: skip


def direct_effects(tables: Tables) -> EffectsView | None:
    """The sums of an ablation's effect on the belief, then its strongest components."""
    table, belief = tables.of("direct", "direct"), tables.config.sweep.belief
    table = table[table["belief"] == belief]
    if table.empty:
        return None
    order = {part: i for i, part in enumerate(SUMS)}
    sums = table[table["part"].isin(SUMS)].sort_values("part", key=lambda part: part.map(order))
    single = table[~table["part"].isin(SUMS)].assign(size=lambda rows: rows["effect"].abs())
    single = single.sort_values("size", ascending=False, kind="stable").head(STRONGEST)
    rows = [EffectRow(SUMS[row["part"]], figure_of(row, "effect", "ci")) for row in records(sums)]
    rows += [EffectRow(row["component"], figure_of(row, "effect", "ci"), "open") for row in records(single)]
    first = table.iloc[0]
    tables.said["direct"] = first["ablated"]
    tables.put("direct",
        ("component", "part", "effect, nats", "low", "high", "ratio to DE", "why undefined"),
        [
            (row["component"] or "sum", row["part"], row["effect"], row["ci_low"], row["ci_high"],
             row["ratio"], row["reason"])
            for row in records(table)
        ],
    )  # fmt: skip
    caption = (
        f"Replaced by {first['kind']} at {first['place']}; mean over {first['n_prompts']} prompts that took "
        "no part in choosing the heads, 95 % intervals."
    )
    return EffectsView(f"{first['ablated']} ablated: effects on {belief}", caption, rows)


def joint_rows(tables: Tables) -> list[JointRow]:
    """Every set of heads or layers, ablated together and alone."""
    table = tables.of("redundancy", "joint")
    table = table[table["belief"] == tables.config.sweep.belief]
    return [
        JointRow(
            row["ablated"], figure_of(row, "joint", "joint"), figure_of(row, "singles", "singles"),
            figure_of(row, "index", "index"), _joint_words(row), row["span"], row["reason"],
        )
        for row in records(table)
    ]  # fmt: skip


def _joint_words(row: Row) -> str:
    if not math.isfinite(row["index_low"]) or not math.isfinite(row["index_high"]):
        return "undefined"
    if row["index_high"] < 0:
        return "they stand in for each other"
    if row["index_low"] > 0:
        return "they cannot add up" if row["reason"] else "they need each other"
    return "they add up"


def ladders(tables: Tables) -> list[RedundancyLadder]:
    """Every redundancy ladder with its verdict in words."""
    table = tables.of("redundancy_ladder", "ladders")
    views = []
    for (unit, kind, place, belief), rows in table.groupby(["unit", "kind", "place", "belief"], sort=False):
        steps = [_step(row) for row in records(rows)]
        first = rows.iloc[0]
        views.append(
            RedundancyLadder(
                f"Ladder of {'layers' if unit == 'layer' else unit}",
                f"Replaced by {kind} at {place}; run B: {first['recipient']}; mean over "
                f"{first['n_prompts']} prompts with {first['n_seen']} examples; shares of what the context "
                f"is worth to {belief}.",
                _ladder_words(steps),
                steps,
            )
        )
    return views


def _step(row: Row) -> LadderStep:
    return LadderStep(
        int(row["step"]), row["ablated"], row["first_layer"], figure_of(row, "ne", "ne"),
        figure_of(row, "ne_before", "ne_before"), row["control_ne_least"], row["control_ne_greatest"],
        int(row["n_controls"]), figure_of(row, "donor", "donor"),
        figure_of(row, "later_heads", "later_heads"), row["verdict"], row["reason"],
    )  # fmt: skip


def _ladder_words(steps: Sequence[LadderStep]) -> str:
    first, last = steps[0], steps[-1]
    if len(steps) == 1:
        why = f": {first.reason}" if first.reason else ""
        return f"The ladder ends before its first step{why}."
    intact, ends = (
        "no layer" if math.isnan(step.first_layer) else f"layer {step.first_layer:.0f}"
        for step in (first, last)
    )
    verdict = VERDICTS.get(last.verdict, last.verdict)
    return f"Intact, {intact} works first; without {last.ablated}, {ends} does. Verdict: {verdict}."


def _cells(rows: pd.DataFrame) -> list[SweepCell]:
    return [
        SweepCell(row["role"], row["layer"], row["value"], row["ci_low"], row["ci_high"])
        for row in records(rows)
    ]
