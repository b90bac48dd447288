"""LatentActs on a grid of tasks → TransformTable: which latents answer to which concept, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iclens.activations import LatentActs
from iclens.concepts.labels import CANDIDATE, Gates, best_of, granted, identify_all, role_mass, stability
from iclens.concepts.language import IDENTITY, TaskGrid, read_rows, slope_marginals
from iclens.concepts.tuning import AXES, fit_tunings, operand_map, task_means, tuning
from iclens.core import Site
from iclens.schemas import (
    MassTable,
    OperandMapTable,
    StabilityTable,
    TransformTable,
    TuningCurveTable,
    TuningTable,
)
from iclens.study.bench import Bench, load_saes_of
from iclens.study.grid import asked_concepts, grid_prompts, task_grid
from iclens.study.store import save_arrays, save_json, save_prompts
from iclens.track import Place, Tracked, track

TASK_MEANS, GRID = "task_means.safetensors", "grid.json"


def tracked_grid(bench: Bench, saes: Any = None) -> Tracked:
    """Every latent on the grid's prompts, at `transforms.roles`."""
    config = bench.config
    prompts = grid_prompts(
        config, bench.model.tokenizer, n_prompts=config.grid.n_prompts, seed=config.grid.seed
    )
    roles, batch = tuple(config.transforms.roles), config.track.batch
    return track(bench.model, bench.saes if saes is None else saes, prompts, roles=roles, batch=batch)


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write the labels, what they rest on, and the grid: its split, prompts and means by task."""
    grid, tracked = task_grid(bench.config), tracked_grid(bench)
    prompts = tracked.prompts
    table = _identified(bench, tracked, grid)
    marginals = slope_marginals(read_rows(prompts, "lab", grid.rules))
    save_prompts(prompts, folder, "grid")
    save_json(folder / GRID, grid.declared() | {"y marginals of slopes": marginals})
    tasks = list(dict.fromkeys(prompts.task.tolist()))
    save_arrays(folder / TASK_MEANS, _means(tracked, grid), tasks=tasks)
    table.save(folder / "transforms.parquet")
    _masses(tracked.latents, bench.config.transforms.seed).save(folder / "masses.parquet")
    fits = [
        fit_tunings(acts, read_rows(prompts, acts.role, grid.rules), seed=bench.config.transforms.seed)
        for acts in tracked.latents.values()
    ]
    TuningTable.concat(fits).save(folder / "tunings.parquet")
    curves, maps = _shown(table, tracked, grid, bench.config.transforms.shown)
    curves.save(folder / "tuning_curves.parquet")
    maps.save(folder / "operand_maps.parquet")
    steady = _stability(bench, table, tracked, grid)
    steady.save(folder / "stability.parquet")
    return {
        "latents with a label": dict(Counter(label for _, _, label in _distinct(granted(table)))),
        "candidates": len({pair[:2] for pair in _distinct(table.where(table["label"] == CANDIDATE))}),
        "tasks": {"discovery": len(grid.discovery), "held out": len(grid.held_out)},
        "labels found in other SAEs": _share(steady),
        "no label possible (V)": _confounded(table) or "none",
    }


def _distinct(table: TransformTable) -> set[tuple[str, int, str]]:
    """Site, latent and label, whatever the role."""
    return set(zip(table["site"].tolist(), table["latent"].tolist(), table["label"].tolist(), strict=True))


def _confounded(table: TransformTable) -> list[str]:
    """Concepts whose design is so confounded at a role that no label can be granted there."""
    beyond = table.where((table["confounding"] > Gates().confounding) & (table["concept"] != IDENTITY))
    return sorted({f"{c} at {r}" for c, r in zip(beyond["concept"], beyond["role"], strict=True)})


def _identified(bench: Bench, tracked: Tracked, grid: TaskGrid) -> TransformTable:
    section = bench.config.transforms
    return identify_all(
        list(tracked.latents.values()), tracked.prompts, asked_concepts(bench.config), grid=grid,
        seed=section.seed, q=section.q,
    )  # fmt: skip


def _means(tracked: Tracked, grid: TaskGrid) -> dict[str, np.ndarray]:
    """Mean activation by task, `<site> <role>` → [latent task]."""
    means = {
        f"{site.short} {role}": task_means(acts, tracked.prompts, grid.rules, np.arange(acts.d_sae)).mean
        for (site, role), acts in tracked.latents.items()
    }
    return {name: values.astype(np.float32) for name, values in means.items()}


def _masses(latents: dict[Place, LatentActs], seed: int) -> MassTable:
    """Detection and execution, where both roles are followed."""
    sites = [site for site, role in latents if role == "lab" and (site, "pre") in latents]
    return MassTable.concat(
        [role_mass(latents[site, "lab"], latents[site, "pre"], seed=seed) for site in sites]
    )


def _shown(
    table: TransformTable, tracked: Tracked, grid: TaskGrid, n: int
) -> tuple[TuningCurveTable, OperandMapTable]:
    """Tuning curves and operand maps of the best latents of each concept."""
    curves: list[TuningCurveTable] = []
    maps: list[OperandMapTable] = []
    for row in best_of(table, n):
        place = {name: row[name] for name in ("concept", "site", "role", "latent")}
        acts = tracked.latents[Site.parse(row["site"]), row["role"]]
        one = (acts, tracked.prompts, grid.rules, np.array([row["latent"]]))
        for axis in AXES:
            found = tuning(*one, by=axis)
            curves.append(TuningCurveTable(_repeated(place | {"of": axis}, len(found.groups)) | {
                "value": found.groups, "mean": found.mean[0], "n_rows": found.n_rows,
            }))  # fmt: skip
        found = operand_map(*one, width=WIDTH)
        boxes = {"x": found.groups[:, 0], "y": found.groups[:, 1], "mean": found.mean[0]}
        repeated = _repeated(place | {"width": WIDTH}, len(found.groups))
        maps.append(OperandMapTable(repeated | boxes | {"n_rows": found.n_rows}))
    return TuningCurveTable.concat(curves), OperandMapTable.concat(maps)


WIDTH = 10
"""Of a box of an operand map."""


def _repeated(values: dict[str, Any], n: int) -> dict[str, Any]:
    return {name: np.full(n, value, dtype=object) for name, value in values.items()}


def _stability(bench: Bench, table: TransformTable, tracked: Tracked, grid: TaskGrid) -> StabilityTable:
    """Whether each label is granted again in the other SAE sets that the config names."""
    others: dict[str, tuple[TransformTable, Sequence[LatentActs]]] = {}
    for name in bench.config.transforms.other_saes:
        again = tracked_grid(bench, load_saes_of(bench, name))
        others[name] = (_identified(bench, again, grid), list(again.latents.values()))
    return stability(table, list(tracked.latents.values()), others)


def _share(steady: StabilityTable) -> str:
    if not len(steady):
        return "not asked: transforms.other_saes names none, or no label is granted"
    return f"{int(steady['stable'].sum())} of {len(steady)}"
