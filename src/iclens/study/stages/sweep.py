"""Whole residuals from run A into run B → SweepTable; and which heads bring the task to where it sits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from iclens.core import ROLES
from iclens.patching.heads import WHOLE_LAYER, Ablation, Heads, ablate_heads, direct_effects, head_scores
from iclens.patching.redundancy import redundancy_index, redundancy_ladder
from iclens.patching.runs import ZERO, Runs, build_runs
from iclens.patching.sweep import graded, logit_lens, sweep
from iclens.schemas import DirectTable, HeadTable, RedundancyLadderTable, RedundancyTable, SweepTable
from iclens.study.bench import Bench
from iclens.table import Table

SWEEP, GRADED, HEADS, LENS, SCORES = (
    f"{name}.parquet" for name in ("sweep", "graded", "heads", "lens", "head_scores")
)
DIRECT, INDEX, LADDER = "direct.parquet", "redundancy.parquet", "redundancy_ladder.parquet"
HEADLINE, MATCHED = "task on own x", "S arm"
IN_QUERY = ROLES[: ROLES.index("pre") + 1]
NEEDED = 1.0
"""Nats of the belief from which the loss of a head counts."""


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write both recipients' sweeps, the best layer at `pre` by examples, the lens, and all of the heads."""
    section, rule = bench.config.sweep, bench.config.prompts.rule
    drawn = {"n_prompts": section.n_prompts, "seed": section.seed, "inputs": bench.config.prompts.inputs}
    runs = _runs(bench, section.seed)
    roles = {ZERO: ("pre",), MATCHED: tuple(section.roles)}
    table = SweepTable.concat([
        sweep(bench.model, runs[recipient], roles=roles[recipient], layers=section.layers, seed=section.seed)
        for recipient in runs
    ])  # fmt: skip
    at_pre = table.where((table["recipient"] == ZERO) & (table["metric"] == HEADLINE))
    best = int(np.nanargmax(at_pre["value"]))
    layer, most = int(at_pre["layer"][best]), section.donor_examples
    counts = sorted({n for n in (0, 1, 2, 4, 8, 12, 15) if n <= most} | {most})
    written: dict[str, Table] = {
        SWEEP: table,
        GRADED: graded(bench.model, rule, layer=layer, counts=counts, **drawn),
        LENS: logit_lens(bench.model, runs[MATCHED], roles=IN_QUERY, seed=section.seed),
    } | _heads(bench, runs[MATCHED], layer)
    for file, found in written.items():
        found.save(folder / file)
    return {
        "best layer at pre, zero-example recipient": layer,
        "P(task on own x) there": round(float(at_pre["value"][best]), 4),
        "without the patch": round(float(at_pre["base"][best]), 4),
        "head that the answer needs most": _worst(written[HEADS]),
        "layers taken away until none brings the task": _ladder(written[LADDER]),
    }


def _runs(bench: Bench, seed: int) -> dict[str, Runs]:
    """Runs of both recipients, with equal donors."""
    section = bench.config.sweep
    return {
        recipient: build_runs(
            bench.model.tokenizer, bench.config.prompts.rule, recipient=recipient,
            n_prompts=section.n_prompts, donor_examples=section.donor_examples, seed=seed,
            inputs=bench.config.prompts.inputs, declared=bench.config.declared,
        )
        for recipient in (ZERO, MATCHED)
    }  # fmt: skip


def _heads(bench: Bench, runs: Runs, layer: int) -> dict[str, Table]:
    """Every table on heads; `layer` is where the task works at `pre`.

    Heads are chosen on the sweep's prompts by the first ablation, and looked into, by the same ablation, on
    others. The ladder sets heads to zero at `pre`, as the recorded experiments do.
    """
    model, section = bench.model, bench.config.sweep
    heads = HeadTable.concat([
        ablate_heads(model, runs, kind=kind, place=place, seed=section.seed)
        for kind, place in section.ablations
    ])  # fmt: skip
    needed, fresh = needed_heads(heads, section.belief, section.n_needed), _runs(bench, section.seed + 1)
    kind, place = section.ablations[0] if section.ablations else ("zero", "pre")
    pairs = [((i, WHOLE_LAYER), (i + 1, WHOLE_LAYER)) for i in range(model.n_blocks - 1)]
    alone = {"runs": fresh[MATCHED], "seed": section.seed}
    index = [
        redundancy_index(model, ablation=Ablation(some, kind, place), **alone)
        for some in [*([needed] if len(needed) > 1 else []), *pairs]
    ]
    ladder = []
    if section.ladder_steps:
        ladder.append(redundancy_ladder(
            model, fresh[ZERO], belief=section.belief, max_steps=section.ladder_steps,
            n_controls=section.ladder_controls, seed=section.seed,
        ))  # fmt: skip
    direct = [direct_effects(model, ablation=Ablation(needed, kind, place), **alone)] if needed else []
    return {
        HEADS: heads,
        SCORES: head_scores(model, runs, reference_layer=layer, seed=section.seed),
        INDEX: RedundancyTable.concat(index), DIRECT: DirectTable.concat(direct),
        LADDER: RedundancyLadderTable.concat(ladder),
    }  # fmt: skip


def needed_heads(table: HeadTable, belief: str, most: int) -> Heads:
    """Single heads whose loss under the first ablation costs the belief `NEEDED` or more, strongest first."""
    rows = table.where((table["metric"] == f"effect on {belief}") & (table["head"] != WHOLE_LAYER))
    if not len(rows):
        return ()
    first = (rows["kind"] == rows["kind"][0]) & (rows["place"] == rows["place"][0])
    rows = rows.where(first & (rows["effect"] <= -NEEDED) & (rows["ci_high"] < 0))
    order = np.argsort(rows["effect"], kind="stable")[:most]
    return tuple((int(rows["layer"][i]), int(rows["head"][i])) for i in order)


def _worst(heads: Any) -> str:
    """The head without which P(task on own x) falls most, in words."""
    single = heads.where((heads["metric"] == HEADLINE) & (heads["head"] != WHOLE_LAYER))
    if not len(single):
        return "not ablated"
    i = int(single["effect"].argmin())
    return (
        f"layer {single['layer'][i]} head {single['head'][i]}, {single['kind'][i]} at {single['place'][i]}: "
        f"{single['base'][i]:.3f} to {single['ablated'][i]:.3f}"
    )


def _ladder(table: Any) -> str:
    """The ladder's steps in words."""
    if not len(table):
        return "not asked"
    last = len(table) - 1
    if not last:
        return table["reason"][0] or "no layer works even without"
    end = "none works" if np.isnan(table["first_layer"][last]) else f"layer {table['first_layer'][last]:.0f}"
    return f"{table['ablated'][last]}: {end}; {table['verdict'][last]}"
