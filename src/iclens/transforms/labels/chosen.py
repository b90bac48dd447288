"""Which latents are looked into further? The best of each concept in a TransformTable."""

from __future__ import annotations

from typing import Any

import numpy as np

from iclens.tables.transforms import TransformTable

CANDIDATE = "candidate"


def granted(table: TransformTable) -> TransformTable:
    """The rows whose label is granted."""
    return table.where(~np.isin(table["label"].astype(str), ("", CANDIDATE)))


def best_of(table: TransformTable, n: int, *, role: str | None = None) -> list[dict[str, Any]]:
    """The `n` best latents of each concept: granted labels first, then candidates, each by AUROC.

    Args:
        table: of several sites and roles.
        n: latents of each concept, over all places; fewer where fewer have a label.
        role: only at this role; any when not given.

    Returns:
        A row per latent: `concept`, `site`, `role`, `latent`, `label`, `auroc`, `sign`.
    """
    label = table["label"].astype(str)
    at = np.ones(len(table), dtype=bool) if role is None else table["role"] == role
    rows = np.flatnonzero((label != "") & at)
    order = rows[np.lexsort((-table["auroc"][rows], label[rows] == CANDIDATE))]
    taken: dict[str, int] = {}
    found = []
    for i in order:
        concept = str(table["concept"][i])
        taken[concept] = taken.get(concept, 0) + 1
        if taken[concept] <= n:
            names = ("concept", "site", "role", "label")
            found.append(
                {name: str(table[name][i]) for name in names}
                | {"latent": int(table["latent"][i]), "sign": int(table["sign"][i])}
                | {"auroc": float(table["auroc"][i])}
            )
    return sorted(found, key=lambda row: list(taken).index(row["concept"]))
