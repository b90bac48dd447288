"""Whole residuals from run A into run B → SweepTable: where the task sits, and where only the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from iclens.patching.heads import WHOLE_LAYER, ablate_heads
from iclens.patching.runs import ZERO, build_runs
from iclens.patching.sweep import graded, sweep
from iclens.study.bench import Bench
from iclens.tables.patches import HeadTable, SweepTable

SWEEP, GRADED, HEADS = "sweep.parquet", "graded.parquet", "heads.parquet"
HEADLINE, MATCHED = "task on own x", "S arm"


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write `sweep.parquet` (both recipients), `graded.parquet` (best layer at `pre`) and `heads.parquet`."""
    section, prompts = bench.config.sweep, bench.config.prompts
    drawn = {"n_prompts": section.n_prompts, "seed": section.seed, "inputs": prompts.inputs}
    runs = {
        recipient: build_runs(
            bench.model.tokenizer, prompts.rule, recipient=recipient,
            donor_examples=section.donor_examples, **drawn,
        )
        for recipient in (ZERO, MATCHED)
    }  # fmt: skip
    roles = {ZERO: ("pre",), MATCHED: tuple(section.roles)}
    table = SweepTable.concat([
        sweep(bench.model, runs[recipient], roles=roles[recipient], layers=section.layers, seed=section.seed)
        for recipient in runs
    ])  # fmt: skip
    table.save(folder / SWEEP)
    at_pre = table.where((table["recipient"] == ZERO) & (table["metric"] == HEADLINE))
    best = int(np.nanargmax(at_pre["value"]))
    layer = int(at_pre["layer"][best])
    counts = sorted(
        {n for n in (0, 1, 2, 4, 8, 12, 15) if n <= section.donor_examples} | {section.donor_examples}
    )
    graded(bench.model, prompts.rule, layer=layer, counts=counts, **drawn).save(folder / GRADED)
    heads = HeadTable.concat(
        [
            ablate_heads(bench.model, runs[MATCHED], kind=kind, place=place, seed=section.seed)
            for kind, place in section.ablations
        ]
    )
    heads.save(folder / HEADS)
    return {
        "best layer at pre, zero-example recipient": layer,
        "P(task on own x) there": round(float(at_pre["value"][best]), 4),
        "without the patch": round(float(at_pre["base"][best]), 4),
        "head that the answer needs most": _worst(heads),
    }


def _worst(heads: HeadTable) -> str:
    """The head without which P(task on own x) falls most, in words."""
    single = heads.where((heads["metric"] == HEADLINE) & (heads["head"] != WHOLE_LAYER))
    if not len(single):
        return "not ablated"
    i = int(single["effect"].argmin())
    return (
        f"layer {single['layer'][i]} head {single['head'][i]}, {single['kind'][i]} at {single['place'][i]}: "
        f"{single['base'][i]:.3f} to {single['ablated'][i]:.3f}"
    )
