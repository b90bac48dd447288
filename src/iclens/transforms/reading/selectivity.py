"""What a latent answers to, for a page: its mean per task, its tuning to a number, its map over x and y."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

from iclens.errors import SiteError, TableError
from iclens.tables.activations import LatentActs
from iclens.tables.arrays import Floats, Ints
from iclens.tables.prompts import PromptSet
from iclens.transforms.grid import Rule
from iclens.transforms.rows import FIRST_EXAMPLE, Rows, read_rows

AXES: dict[str, Callable[[Rows], Floats]] = {
    "y": lambda rows: rows.y,
    "x": lambda rows: rows.x,
    "y-2x": lambda rows: rows.y - 2 * rows.x,
}
"""What a latent may be tuned to."""


@dataclass(frozen=True)
class Means:
    """Mean activation of chosen latents in groups of rows.

    Args:
        by: what the groups are: "task", an axis of `AXES`, or "x and y".
        groups: a task's name, a number or a box, [group].
        latent_ids: [latent].
        mean: mean gated activation, zeros included, [latent group].
        n_rows: rows of each group, [group].
    """

    by: str
    groups: NDArray[np.generic]
    latent_ids: Ints
    mean: Floats
    n_rows: Ints


def task_means(
    latents: LatentActs,
    prompts: PromptSet,
    rules: Mapping[str, Rule],
    chosen: Ints,
    *,
    first_example: int = FIRST_EXAMPLE,
) -> Means:
    """Mean activation per task, over rows from `first_example` on; tasks in order of appearance.

    Raises:
        TableError: when `latents` are not of `prompts`, or a task is not among `rules`.
        SiteError: for a latent that does not exist.
    """
    rows, used = _used(latents, prompts, rules, first_example)
    order = list(dict.fromkeys(prompts.task.tolist()))
    place = {name: i for i, name in enumerate(order)}
    group = np.array([place[name] for name in rows.task.tolist()], dtype=np.int64)
    return _grouped("task", np.array(order), group, used, latents, chosen)


def tuning(
    latents: LatentActs, prompts: PromptSet, rules: Mapping[str, Rule], chosen: Ints,
    *, by: str, first_example: int = FIRST_EXAMPLE,
) -> Means:  # fmt: skip
    """Mean activation per value of `by`, over rows where it is a number.

    Args:
        latents: activations at one site and role.
        prompts: theirs.
        rules: task name → task.
        chosen: which latents, [latent].
        by: one of `AXES`.
        first_example: rows count from this example on.

    Raises:
        TableError: for another `by`, or as `task_means`.
        SiteError: for a latent that does not exist.
    """
    if by not in AXES:
        raise TableError(f"tuning by '{by}'", "no such axis", f"Choose one of {', '.join(AXES)}.")
    rows, used = _used(latents, prompts, rules, first_example)
    value = AXES[by](rows)
    known = ~np.isnan(value)
    groups, group = np.unique(value[known].astype(np.int64), return_inverse=True)
    return _grouped(by, groups, group, used[known], latents, chosen)


def operand_map(
    latents: LatentActs, prompts: PromptSet, rules: Mapping[str, Rule], chosen: Ints,
    *, width: int = 10, first_example: int = FIRST_EXAMPLE,
) -> Means:  # fmt: skip
    """Mean activation in boxes of x and y, over rows where both are numbers.

    Args:
        latents: activations at one site and role.
        prompts: theirs.
        rules: task name → task.
        chosen: which latents, [latent].
        width: of a box, in x and in y.
        first_example: rows count from this example on.

    Returns:
        Groups are the boxes' least x and y, [group 2].

    Raises:
        TableError, SiteError: as `task_means`.
    """
    rows, used = _used(latents, prompts, rules, first_example)
    both = np.stack([rows.x, rows.y], axis=1)
    known = ~np.isnan(both).any(axis=1)
    boxes = (both[known] // width * width).astype(np.int64)
    groups, group = np.unique(boxes, axis=0, return_inverse=True)
    return _grouped("x and y", groups, group, used[known], latents, chosen)


def _used(
    latents: LatentActs, prompts: PromptSet, rules: Mapping[str, Rule], first_example: int
) -> tuple[Rows, Ints]:
    if (latents.n_prompts, latents.n_examples) != (prompts.n_prompts, prompts.n_examples):
        raise TableError(
            f"latents of {latents.site.short}",
            "of other prompts than these",
            "Give the latents of `prompts` themselves.",
        )
    rows = read_rows(prompts, latents.role, rules)
    used = np.flatnonzero(rows.example >= first_example)
    return rows.take(used), used


def _grouped(
    by: str, groups: NDArray[np.generic], group: Ints, used: Ints, latents: LatentActs, chosen: Ints
) -> Means:
    chosen = np.asarray(chosen, dtype=np.int64)
    outside = chosen[(chosen < 0) | (chosen >= latents.d_sae)]
    if len(outside):
        raise SiteError(
            f"latent {outside[0]} of {latents.site.short}",
            "no such latent",
            f"Latents run from 0 to {latents.d_sae - 1}.",
        )
    n_rows = np.bincount(group, minlength=len(groups))
    member = coo_array(
        (1.0 / n_rows[group], (group, np.arange(len(used)))), shape=(len(groups), len(used))
    ).tocsr()
    picked = latents.matrix[used].tocsc()[:, chosen].tocsr()
    return Means(by, groups, chosen, (member @ picked).toarray().T, n_rows)
