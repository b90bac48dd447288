"""Whole residuals from run A into run B → SweepTable: where the task sits, and where only the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from iclens.patching.runs import ZERO, build_runs
from iclens.patching.sweep import graded, sweep
from iclens.study.bench import Bench
from iclens.tables.patches import SweepTable

SWEEP, GRADED = "sweep.parquet", "graded.parquet"
HEADLINE = "task on own x"


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write `sweep.parquet` (both recipients) and `graded.parquet` (best layer at `pre`)."""
    section, prompts = bench.config.sweep, bench.config.prompts
    drawn = {"n_prompts": section.n_prompts, "seed": section.seed, "inputs": prompts.inputs}
    parts = []
    for recipient, roles in ((ZERO, ("pre",)), ("S arm", tuple(section.roles))):
        runs = build_runs(
            bench.model.tokenizer,
            prompts.rule,
            recipient=recipient,
            donor_examples=section.donor_examples,
            **drawn,
        )
        parts.append(sweep(bench.model, runs, roles=roles, layers=section.layers, seed=section.seed))
    table = SweepTable.concat(parts)
    table.save(folder / SWEEP)
    at_pre = table.where((table["recipient"] == ZERO) & (table["metric"] == HEADLINE))
    best = int(np.nanargmax(at_pre["value"]))
    layer = int(at_pre["layer"][best])
    counts = sorted(
        {n for n in (0, 1, 2, 4, 8, 12, 15) if n <= section.donor_examples} | {section.donor_examples}
    )
    graded(bench.model, prompts.rule, layer=layer, counts=counts, **drawn).save(folder / GRADED)
    return {
        "best layer at pre, zero-example recipient": layer,
        "P(task on own x) there": round(float(at_pre["value"][best]), 4),
        "without the patch": round(float(at_pre["base"][best]), 4),
    }
