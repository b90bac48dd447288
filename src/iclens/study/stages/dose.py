"""The short list pushed along its decoder directions, confirm prompts → dose-responses and closure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control

from iclens.growth.dose import causal_reasons
from iclens.names import Site
from iclens.patching.dose import PUSHABLE, closure_table, dose_table, interaction_table, prepare
from iclens.study.bench import Bench, beliefs_file
from iclens.study.config import StudyConfig
from iclens.study.growth_inputs import splits_of
from iclens.study.stages.detect import SHORTLIST
from iclens.study.stages.shape import by_place
from iclens.tables.activations import select_prompts
from iclens.tables.arrays import Floats, Ints
from iclens.tables.dose import ClosureTable, DoseTable, InteractionTable
from iclens.tables.growth import GrowthTable

DOSE, CLOSURE, INTERACTIONS = "dose.parquet", "closure.parquet", "interactions.parquet"
ROLE = "pre"


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write `dose.parquet`, `closure.parquet` and `interactions.parquet`."""
    chosen = by_place(GrowthTable.load(bench.of("detect") / SHORTLIST))
    listed = {site: ids for (site, role), ids in chosen.items() if role == ROLE and site.hook in PUSHABLE}
    skipped = sorted({site.short for site, role in chosen if role != ROLE or site.hook not in PUSHABLE})
    section = bench.config.growth
    doses, closures, pairs = [], [], []
    for site, ids in listed.items() if section.dose_latents else ():
        found = _pushed(bench, site, ids, section.dose_latents)
        for part, kept in zip(found, (doses, closures, pairs), strict=True):
            kept += part
    table = judged(DoseTable.concat(doses), first_examples(bench.config))
    table.save(folder / DOSE)
    ClosureTable.concat(closures).save(folder / CLOSURE)
    InteractionTable.concat(pairs).save(folder / INTERACTIONS)
    return {
        "latents pushed": len(set(zip(table["site"], table["latent"], strict=True))),
        "causal for the task's answer": int(table["causal"][table["belief"] == "exact"].sum()),
        "short-listed, not pushed (another role, or no residual)": skipped,
    }


def first_examples(config: StudyConfig) -> int:
    """Examples in context at which latents are pushed and compared with matched ones."""
    return config.growth.dose_examples or max(1, config.prompts.n_examples // 4)


def _pushed(
    bench: Bench, site: Site, listed: Ints, n: int
) -> tuple[list[DoseTable], list[ClosureTable], list[InteractionTable]]:
    config, splits = bench.config, splits_of(bench.config)
    prompts = splits.confirm[: config.growth.dose_prompts]
    arm = bench.prompts(config.treated).select(prompts)
    final = bench.arrays("track", beliefs_file(config.treated))["model"][prompts, -1]
    others = np.concatenate([splits.discovery, splits.shape])
    doses, closures, pairs = [], [], []
    first = first_examples(config)
    for n_examples in sorted({first, config.prompts.n_examples // 2}):
        growth = natural_growth(bench, site, listed, others, n_examples)
        bed = prepare(bench.model, bench.saes[site], arm, n_examples, final)
        acts = (
            select_prompts(bench.latents(config.treated, site, ROLE), others) if n_examples == first else None
        )
        table, slopes = dose_table(
            bed,
            listed[:n],
            growth[:n],
            acts,
            n_controls=config.growth.n_controls,
            seed=config.growth.split_seed,
        )
        doses.append(table)
        closures.append(closure_table(bed, slopes, listed[:n], growth[:n], (listed, growth)))
        if n_examples == first:
            pairs.append(interaction_table(bed, listed[:n], growth[:n]))
    return doses, closures, pairs


def natural_growth(bench: Bench, site: Site, latents: Ints, prompts: Ints, n_examples: int) -> Floats:
    """Mean rise of the task arm's activation from `n_examples` to the last example, [latent].

    The control's own movement is not subtracted: the belief to be explained is the task arm's.
    """
    own = bench.latents(bench.config.treated, site, ROLE).dense(latents)[:, prompts].astype(np.float64)
    return (own[:, :, -1] - own[:, :, n_examples]).mean(axis=1)


def judged(table: DoseTable, n_examples: int) -> DoseTable:
    """The table with q-values over the study's latents, by belief, and the causal verdicts."""
    columns = {name: table[name].copy() for name in DoseTable.COLUMNS}
    for belief in dict.fromkeys(table["belief"].tolist()):
        rows = np.flatnonzero(
            (table["belief"] == belief)
            & (table["n_examples"] == n_examples)
            & np.isfinite(table["control_p"])
        )
        if not rows.size:
            continue
        columns["q_value"][rows] = false_discovery_control(table["control_p"][rows], method="bh")
        reasons = causal_reasons(
            table["slope_low"][rows],
            table["slope_high"][rows],
            table["quadratic_share"][rows],
            columns["q_value"][rows],
        )
        columns["reason"][rows] = reasons
        columns["causal"][rows] = [reason == "" for reason in reasons]
    return DoseTable(columns)
