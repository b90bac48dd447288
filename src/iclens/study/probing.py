"""How well can each concept be read, from few latents or from everything? A study's probes.

1. For each concept, the site and role at which a single latent told it best on the discovery tasks. 2.
There, the raw activation and the block's MLP neurons are recorded in some prompts of every task. 3.
`reading.probes` reads the concept from latents, neurons, principal components and the whole activation,
on tasks never trained on; `reading.subspace` looks for periods of y. Enter tracked latents and a
TransformTable; leave tables.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from iclens.concepts.labels import TASK_IDENTITY
from iclens.concepts.language import FIRST_EXAMPLE, Concept, Rows, TaskGrid, read_rows
from iclens.concepts.probes import probe
from iclens.concepts.tuning import period_subspaces
from iclens.core import Site
from iclens.model.run import record, record_neurons
from iclens.schemas import ProbeTable, SubspaceTable, TransformTable
from iclens.study.bench import Bench
from iclens.study.grid import asked_concepts
from iclens.track import Tracked

MAX_FOLDS = 6
"""Folds of a probe at most; each holds out whole tasks."""
PERIODS_OF = "odd"
"""The concept whose best place is asked for periods of y beyond 2."""


def probe_tables(
    bench: Bench, tracked: Tracked, grid: TaskGrid, table: TransformTable
) -> tuple[ProbeTable, SubspaceTable]:
    """Probes of every concept at its best place, and period subspaces at that of `PERIODS_OF`."""
    probes, subspaces = [], []
    for one in asked_concepts(bench.config):
        place = None if one is TASK_IDENTITY else best_place(table, one)
        if place is not None:
            found = _probed(bench, tracked, grid, one, place)
            probes.append(found[0])
            subspaces += found[1:]
    return ProbeTable.concat(probes), SubspaceTable.concat(subspaces)


def best_place(table: TransformTable, one: Concept) -> tuple[Site, str] | None:
    """Where a latent told a concept best on the discovery tasks; None where it was not measured."""
    rows = table.where((table["concept"] == one.name) & ~np.isnan(table["discovery_auroc"]))
    if not len(rows):
        return None
    best = int(rows["discovery_auroc"].argmax())
    return Site.parse(str(rows["site"][best])), str(rows["role"][best])


def _probed(
    bench: Bench, tracked: Tracked, grid: TaskGrid, one: Concept, place: tuple[Site, str]
) -> tuple[ProbeTable, *tuple[SubspaceTable, ...]]:
    (site, role), section = place, bench.config.transforms
    rows = read_rows(tracked.prompts, role, grid.rules)
    some = _some_prompts(rows, one, section.probe_rows)
    used = np.isin(rows.prompt, some) & (rows.example >= FIRST_EXAMPLE)
    kept = rows.take(used)
    seen = (np.arange(tracked.prompts.n_examples) >= FIRST_EXAMPLE).nonzero()[0]
    tokens, positions = tracked.prompts.tokens[some], tracked.prompts.positions(role)[seen]
    batch = bench.config.track.batch
    activation = record(bench.model, tokens, [site], positions, batch=batch)[site]
    neurons = record_neurons(bench.model, tokens, site.layer, positions, batch=batch)
    latents = csr_array(tracked.latents[place].matrix[np.flatnonzero(used)])
    read = {
        "latents": latents,
        "neurons": neurons.reshape(len(kept), -1),
        "activation": activation.reshape(len(kept), -1),
    }
    probes = probe(
        read,
        one,
        kept,
        site=str(site),
        role=role,
        seed=section.seed,
        max_rows=section.probe_rows,
        max_folds=MAX_FOLDS,
    )
    if one.name != PERIODS_OF:
        return (probes,)
    sides = [np.isin(kept.task, names) for names in (grid.discovery, grid.held_out)]
    subspaces = [
        period_subspaces(
            read[name], kept.y, *sides, site=site, role=role, representation=name, of="y", seed=section.seed
        )
        for name in ("latents", "activation")
    ]
    return (probes, *subspaces)


def _some_prompts(rows: Rows, one: Concept, n_rows: int) -> np.ndarray:
    """Prompts, ascending, with about twice `n_rows` rows that the concept uses, as many of each task."""
    label = one.contrast.label(rows)
    used = (label != 0) & (rows.example >= FIRST_EXAMPLE)
    prompts, first = np.unique(rows.prompt[used], return_index=True)
    task = rows.task[used][first]
    per_prompt = max(1.0, used.sum() / max(len(prompts), 1))
    each = max(2, round(2 * n_rows / per_prompt / max(len(np.unique(task)), 1)))
    return np.sort(np.concatenate([prompts[task == name][:each] for name in np.unique(task)]))
