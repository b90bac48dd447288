"""LatentActs on a grid of tasks → TransformTable: which latents answer to which concept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from iclens.study.bench import Bench
from iclens.study.grid import grid_prompts, task_grid
from iclens.study.store import save_arrays, save_json, save_prompts
from iclens.tracking.track import track
from iclens.transforms.identify import identify_all
from iclens.transforms.selectivity import task_means

TRANSFORMS, TASK_MEANS, GRID = "transforms.parquet", "task_means.safetensors", "grid.json"


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write `transforms.parquet`, `grid.json` (the split), the grid's prompts and means by task."""
    section, grid = bench.config.transforms, task_grid(bench.config)
    prompts = grid_prompts(
        bench.config, bench.model.tokenizer, n_prompts=section.n_prompts, seed=section.seed
    )
    save_prompts(prompts, folder, "grid")
    save_json(folder / GRID, grid.declared())
    tracked = track(
        bench.model, bench.saes, prompts, roles=tuple(section.roles), batch=bench.config.track.batch
    )
    table = identify_all(list(tracked.latents.values()), prompts, grid=grid, seed=section.seed, q=section.q)
    table.save(folder / TRANSFORMS)
    means = {
        f"{site.short} {role}": task_means(acts, prompts, grid.rules, np.arange(acts.d_sae)).mean.astype(
            np.float32
        )
        for (site, role), acts in tracked.latents.items()
    }
    save_arrays(folder / TASK_MEANS, means, tasks=list(dict.fromkeys(prompts.task.tolist())))
    granted = table.where((table["label"] != "") & (table["label"] != "candidate"))
    labels, counts = np.unique(granted["label"].astype(str), return_counts=True)
    return {
        "labels": dict(zip(labels.tolist(), counts.tolist(), strict=True)),
        "candidates": int((table["label"] == "candidate").sum()),
        "tasks": {"discovery": len(grid.discovery), "held out": len(grid.held_out)},
    }
