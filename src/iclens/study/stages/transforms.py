"""What do the labelled latents rest on and do? Probes, the causal matrix, and what MLPs write at `lab`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from iclens.concepts.confidence import confidence
from iclens.concepts.labels import TASK_IDENTITY, best_of
from iclens.concepts.language import CONCEPTS, IDENTITY, TaskGrid, read_rows
from iclens.concepts.mlp import creation, operands
from iclens.concepts.transport import READ_BY_THE_NEXT, transport
from iclens.core import Site
from iclens.patching.receiver import gather
from iclens.patching.runs import Runs, build_runs
from iclens.patching.specificity import ablate_everywhere, specificity
from iclens.schemas import (
    ConfidenceTable,
    CreationTable,
    OperandTable,
    SpecificityTable,
    TransformTable,
    TransportTable,
)
from iclens.study.bench import Bench
from iclens.study.grid import asked_concepts, task_grid
from iclens.study.probing import probe_tables
from iclens.study.stages.identify import tracked_grid
from iclens.study.stages.patch import TAIL_HOOKS
from iclens.track import Tracked

LAB = "lab"
EVERYWHERE_CONTROLS = 19
"""Controls, at most, of an ablation at every example, by full passes; with 19, p can be .05."""
OWN_ANSWER = "exact"
"""The belief that reads the identity of the study's own task."""


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write probes and period subspaces, the causal matrix, and the tables of the MLP decomposition."""
    for layer in bench.config.transforms.layers or ():
        bench.model.check_site(Site(layer, "mlp_out"))
    grid, tracked = task_grid(bench.config), tracked_grid(bench)
    table = TransformTable.load(bench.of("identify") / "transforms.parquet")
    probes, subspaces = probe_tables(bench, tracked, grid, table)
    probes.save(folder / "probes.parquet")
    subspaces.save(folder / "subspaces.parquet")
    matrix = _causal_matrix(bench, table)
    matrix.save(folder / "specificity.parquet")
    read, created = _decomposed(bench, tracked, grid)
    read.save(folder / "operands.parquet")
    created.save(folder / "creation.parquet")
    sure, carried = _followed(bench, tracked, grid, table)
    sure.save(folder / "confidence.parquet")
    carried.save(folder / "transport.parquet")
    return _summary(matrix, created, sure) | {"sites not moved or followed": _left_out(bench)}


def _causal_matrix(bench: Bench, table: TransformTable) -> SpecificityTable:
    """Each concept's best latents, moved where they were found; those at `lab` at every example as well.

    All of it in runs of the study's own task, so of task identities only this task's are moved.
    """
    section = bench.config.transforms
    own = {one.name: one.belief for one in asked_concepts(bench.config) if one.belief}
    own = {name: belief for name, belief in own.items() if belief in bench.config.belief_names}
    own[IDENTITY] = OWN_ANSWER
    elsewhere = (table["concept"] == IDENTITY) & (table["of"] != bench.config.prompts.rule.name)
    by_place: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
    for row in best_of(table.where(~elsewhere), section.shown):
        by_place.setdefault((row["site"], row["role"]), []).append(
            (row["latent"], row["concept"], row["label"])
        )
    parts, runs = [], _runs(bench)
    for (site, role), chosen in by_place.items():
        sae = bench.saes[Site.parse(site)]
        if sae.site.hook not in TAIL_HOOKS:
            continue
        both = [
            gather(bench.model, sae, runs, role=role, direction=direction, seed=section.seed)
            for direction in ("necessity", "sufficiency")
        ]
        parts.append(specificity(both, chosen, own, n_controls=section.n_controls, seed=section.seed))
        if role == LAB:
            parts.append(ablate_everywhere(
                bench.model, sae, runs, chosen, own, role=role,
                n_controls=min(EVERYWHERE_CONTROLS, section.n_controls), seed=section.seed,
            ))  # fmt: skip
    return SpecificityTable.concat(parts)


def _left_out(bench: Bench) -> list[str] | str:
    """Followed sites at which latents cannot be moved, or whose values no next block reads."""
    able = set(TAIL_HOOKS) & set(READ_BY_THE_NEXT)
    return [site.short for site in bench.saes if site.hook not in able] or "none"


def _runs(bench: Bench) -> Runs:
    """Runs A and B of the study's task, B as long as A."""
    section, prompts = bench.config.transforms, bench.config.prompts
    return build_runs(
        bench.model.tokenizer, prompts.rule, recipient="S arm", n_prompts=section.n_pairs,
        donor_examples=section.donor_examples, seed=section.seed, inputs=prompts.inputs,
        declared=bench.config.declared,
    )  # fmt: skip


def _decomposed(bench: Bench, tracked: Tracked, grid: TaskGrid) -> tuple[OperandTable, CreationTable]:
    """M1 to M4 at every block."""
    seed, batch = bench.config.transforms.seed, bench.config.track.batch
    rows = read_rows(tracked.prompts, LAB, grid.rules)
    layers = bench.config.transforms.layers or list(range(bench.model.n_blocks))
    asked = [one for one in asked_concepts(bench.config) if one is not TASK_IDENTITY]
    read = operands(bench.model, tracked.prompts, rows, layers=layers, seed=seed, batch=batch)
    created = creation(
        bench.model, tracked.prompts, rows, asked, grid, layers=layers, seed=seed, batch=batch,
        max_rows=2 * bench.config.transforms.probe_rows,
    )  # fmt: skip
    return read, created


def _followed(
    bench: Bench, tracked: Tracked, grid: TaskGrid, table: TransformTable
) -> tuple[ConfidenceTable, TransportTable]:
    """M5 and M6 of the best latents at `lab`."""
    section = bench.config.transforms
    best = best_of(table, section.shown, role=LAB)
    chosen = [(Site.parse(row["site"]), row["latent"], row["concept"]) for row in best]
    read = [one for one in chosen if one[0].hook in READ_BY_THE_NEXT]
    rows = read_rows(tracked.prompts, LAB, grid.rules)
    at_lab = [acts for (_, role), acts in tracked.latents.items() if role == LAB]
    known = [one for one in asked_concepts(bench.config) if one is not TASK_IDENTITY]
    sure = confidence(
        at_lab, chosen, label_log_prob(tracked), rows, seed=section.seed, concepts=known or CONCEPTS
    )
    carried = transport(bench.model, bench.saes, bench.prompts(bench.config.treated), read, seed=section.seed)
    return sure, carried


def label_log_prob(tracked: Tracked) -> np.ndarray:
    """The model's log P of the label shown, read at `pre` before it, nats [prompt example]."""
    place = {answer: i for i, answer in enumerate(tracked.probs.answers)}
    index = np.vectorize(place.__getitem__, otypes=[np.int64])(tracked.prompts.y)
    return np.take_along_axis(tracked.probs.log_prob, index[..., None], axis=2)[..., 0]


def _summary(matrix: SpecificityTable, created: CreationTable, sure: ConfidenceTable) -> dict[str, Any]:
    """What the stage says when it is done."""
    own = matrix.where(matrix["own"] & (matrix["latent"] >= 0) & (matrix["n_active"] > 0))
    active = sure.where(sure["over"] == "active rows")
    blocks = created.where(created["source"] == "mlp_out")["verdict"].astype(str)
    return {
        "latents that move their own belief most, controls aside": (
            f"{_n(own.where(own['specific']))} of {_n(own)}"
        ),
        "concepts at lab, by block": _counted(verdict.split(":")[0] for verdict in blocks),
        "sizes of active latents at lab": _counted(
            kind or "not told" for kind in active["verdict"].astype(str)
        ),
    }


def _n(table: SpecificityTable) -> int:
    """How many latents have a row."""
    return len(set(zip(table["site"].tolist(), table["latent"].tolist(), strict=True)))


def _counted(texts: Iterable[str]) -> dict[str, int]:
    return dict(Counter(texts).most_common())
