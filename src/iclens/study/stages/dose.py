"""The short list pushed along its decoder directions, confirm prompts → dose-responses and closure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control

from iclens.activations import select_prompts
from iclens.core import Site
from iclens.growth.verdict import causal_reasons
from iclens.patching.dose import (
    PUSHABLE,
    closure_table,
    curve_table,
    dose_table,
    injection_table,
    interaction_table,
    joint_push,
    natural_parts,
    prepare,
    responses,
)
from iclens.schemas import (
    ClosureTable,
    DoseCurveTable,
    DoseTable,
    GrowthTable,
    InjectionTable,
    InteractionTable,
)
from iclens.study.bench import Bench, beliefs_file
from iclens.study.config import StudyConfig
from iclens.study.growth_inputs import splits_of
from iclens.study.stages.detect import SHORTLIST
from iclens.study.stages.shape import by_place
from iclens.table import Floats, Ints, Table

DOSE, CLOSURE, INTERACTIONS = "dose.parquet", "closure.parquet", "interactions.parquet"
CURVES, INJECTIONS = "dose_curves.parquet", "injections.parquet"
WRITTEN: dict[str, type[Table]] = {
    DOSE: DoseTable, CURVES: DoseCurveTable, CLOSURE: ClosureTable, INJECTIONS: InjectionTable,
    INTERACTIONS: InteractionTable,
}  # fmt: skip
"""File → its table."""
ROLE = "pre"


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write the tables of `WRITTEN`."""
    chosen = by_place(GrowthTable.load(bench.of("detect") / SHORTLIST))
    pushable = [
        (site, role)
        for site, role in chosen
        if role == ROLE and site.hook in PUSHABLE and bench.saes[site].normalisation == "none"
    ]
    listed = {place[0]: chosen[place] for place in pushable}
    skipped = [f"{site.short} {role}" for site, role in chosen if (site, role) not in pushable]
    section = bench.config.growth
    parts: dict[str, list[Any]] = {file: [] for file in WRITTEN}
    for site, ids in listed.items() if section.dose_latents else ():
        for n_examples in context_sizes(bench.config):
            for file, part in _pushed(bench, site, ids, n_examples).items():
                parts[file].append(part)
    tables: dict[str, Any] = {file: kind.concat(parts[file]) for file, kind in WRITTEN.items()}
    tables[DOSE] = table = judged(tables[DOSE], bench.config.pushed_after)
    for file, found in tables.items():
        found.save(folder / file)
    return {
        "latents pushed": len(set(zip(table["site"], table["latent"], strict=True))),
        "causal for the task's answer": int(table["causal"][table["belief"] == "exact"].sum()),
        "short-listed, not pushed (another role, no residual, or an SAE that normalises its input)": skipped,
    }


def context_sizes(config: StudyConfig) -> list[int]:
    """Numbers of examples in context at which latents are pushed: context × dose."""
    return sorted({config.pushed_after, config.prompts.n_examples // 2})


def _pushed(bench: Bench, site: Site, listed: Ints, n_examples: int) -> dict[str, Table]:
    """What pushing a site's short-listed latents does after `n_examples`; file → table.

    Controls and pairs are asked for at the first number of examples only.
    """
    config, splits = bench.config, splits_of(bench.config)
    section, first = config.growth, n_examples == config.pushed_after
    prompts = splits.confirm[: section.dose_prompts]
    arm = bench.prompts(config.treated)
    final = bench.arrays("track", beliefs_file(config.treated))["model"][prompts, -1]
    others = np.concatenate([splits.discovery, splits.shape])
    growth = natural_growth(bench, site, listed, others, n_examples)
    bed = prepare(bench.model, bench.saes[site], arm.select(prompts), n_examples, final, config.declared)
    acts = select_prompts(bench.latents(config.treated, site, ROLE), others) if first else None
    ids, own = listed[: section.dose_latents], growth[: section.dose_latents]
    effects = responses(bed, ids, own)
    table, slopes = dose_table(
        bed, ids, own, acts, n_controls=section.n_controls, seed=section.split_seed, effects=effects
    )
    injected = {"short-listed latents": joint_push(bed, listed, growth)} | natural_parts(
        bench.model, bench.saes[site], arm.select(others), n_examples, config.track.batch
    )
    found: dict[str, Table] = {
        DOSE: table,
        CURVES: curve_table(bed, ids, effects, seed=section.split_seed),
        CLOSURE: closure_table(bed, slopes, ids, own, (listed, growth)),
        INJECTIONS: injection_table(bed, injected, seed=section.split_seed),
    }
    return found | {INTERACTIONS: interaction_table(bed, ids, own)} if first else found


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
            table["control_p"][rows] <= (1 + 1e-9) / (1 + table["n_controls"][rows]),
        )
        columns["reason"][rows] = reasons
        columns["causal"][rows] = [reason == "" for reason in reasons]
    alone = np.isnan(table["control_p"]) & (columns["reason"] == "")
    columns["reason"][alone] = "not compared with matched latents"
    return DoseTable(columns)
