"""The task grid: which tasks a concept is sought on, and which are held out to confirm it.

On one task everything is collinear (2x+3 is odd, doubled, offset and numeric at once), so concepts are
identified on a grid that crosses slopes and offsets, beside tasks of other families. 1. `DEFAULT_SPECS`
or a list from a config names the tasks. 2. `split_grid` divides them, whole tasks at a time, into
discovery (the direction is chosen) and held-out (every figure is measured). 3. The caller builds
prompts of each task and joins them; `PromptSet.task` then names the task of each prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np

from iclens.errors import TaskError
from iclens.tables.arrays import Floats, Strings

SLOPES, OFFSETS = (1, 2, 3, 4, 5, 10), (-7, -3, -1, 0, 1, 2, 3, 5, 8, 10)
"""Of the default affine tasks, every slope with every offset."""

DEFAULT_SPECS = (
    *(f"{a}x{b:+d}" for a in SLOPES for b in OFFSETS),
    *("x~5", "2x~2", "2x~5", "2x+3~5", "3x~5"),
    *("5", "17", "48", "60"),
    *("50-x", "51-x", "54-x", "57-x"),
    *("x//2", "x//2+1", "x//2+4", "x//2+5"),
    *("x%2", "x%3", "x%5", "x%7", "x%10"),
    *("odd", "even", "random"),
    *("word:parity", "word:size", "letter:nth", "letter:next", "letter:previous", "letter:index"),
    *("word:opposite", "word:same"),
)
"""The default grid: a factorial of slopes and offsets, beside noisy, parity-only, rule-less and word
tasks."""


class Rule(Protocol):
    """What a concept needs to know of a task; `tasks.rules.Task` has it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def domain(self) -> str: ...  # noqa: D102
    @property
    def family(self) -> str: ...  # noqa: D102
    @property
    def answers(self) -> str: ...  # noqa: D102
    @property
    def slope(self) -> int | None: ...  # noqa: D102
    @property
    def offset(self) -> int | None: ...  # noqa: D102
    @property
    def deterministic(self) -> bool: ...  # noqa: D102


class SlopeRows(Protocol):
    """What `slope_marginals` needs of rows; `transforms.rows.Rows` has it."""

    @property
    def family(self) -> Strings: ...  # noqa: D102
    @property
    def slope(self) -> Floats: ...  # noqa: D102
    @property
    def y(self) -> Floats: ...  # noqa: D102


@dataclass(frozen=True)
class TaskGrid:
    """Tasks, divided by task and never by prompt.

    Args:
        rules: name → task, of both sides.
        discovery: names of the tasks on which directions are chosen.
        held_out: names of the tasks on which figures are measured.
        seed: of the split.

    Raises:
        TaskError: when the two sides overlap, one is empty, or together they are not `rules`.
    """

    rules: Mapping[str, Rule]
    discovery: tuple[str, ...]
    held_out: tuple[str, ...]
    seed: int

    def __post_init__(self) -> None:
        both = [*self.discovery, *self.held_out]
        if not self.discovery or not self.held_out:
            raise TaskError(
                "task grid",
                "one side of the split is empty",
                "Give at least two tasks of one kind (grid.tasks in a study), such as {1..2}x+{0..3}.",
            )
        if len(set(both)) != len(both) or set(both) != set(self.rules):
            raise TaskError(
                "task grid",
                "the two sides do not divide the tasks",
                "Name each task of `rules` once, in `discovery` or in `held_out`.",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Every task, discovery first."""
        return (*self.discovery, *self.held_out)

    def declared(self) -> dict[str, object]:
        """The split as plain data, for a run's record."""
        return {"seed": self.seed, "discovery": list(self.discovery), "held_out": list(self.held_out)}


def split_grid(rules: Sequence[Rule], *, seed: int, held_out: float = 0.5) -> TaskGrid:
    """Divide tasks at random within kinds, so that each kind stands on both sides.

    A kind is a family with its slope and, for affine tasks, the parity of the offset. A kind of one
    task serves discovery: nothing could confirm it.

    Args:
        rules: distinct tasks.
        seed: of the split.
        held_out: share of each kind that is held out, in (0, 1), rounded half up.

    Raises:
        TaskError: when a task stands twice, the share is no share, or no kind has two tasks.
    """
    if not 0 < held_out < 1:
        raise TaskError(
            f"held-out share {held_out}",
            "not between 0 and 1",
            "Give a share between 0 and 1, for example 0.5.",
        )
    named = {rule.name: rule for rule in rules}
    if len(named) != len(rules):
        names = [rule.name for rule in rules]
        twice = next(name for name in names if names.count(name) > 1)
        raise TaskError(f"task '{twice}'", "stands twice in the grid", "List each task once.")
    kinds: dict[tuple[object, ...], list[str]] = {}
    for rule in rules:
        kinds.setdefault(_kind(rule), []).append(rule.name)
    rng = np.random.default_rng(seed)
    discovery: list[str] = []
    confirm: list[str] = []
    for members in kinds.values():
        n_held = min(max(int(held_out * len(members) + 0.5), 1), len(members) - 1)
        drawn = set(rng.permutation(len(members))[:n_held].tolist())
        for i, name in enumerate(members):
            (confirm if i in drawn else discovery).append(name)
    return TaskGrid(MappingProxyType(named), tuple(discovery), tuple(confirm), seed)


def _kind(rule: Rule) -> tuple[object, ...]:
    if rule.family == "affine":
        return (rule.family, rule.slope, (rule.offset or 0) % 2)
    if rule.family == "approx":
        return (rule.family, rule.slope)
    return (rule.family, rule.domain, rule.answers)


def slope_marginals(rows: SlopeRows) -> dict[str, float]:
    """How far apart the answers of affine tasks of different slopes lie, over decades of y.

        TV(a, a') = ½ Σ_d |P(d | slope a) − P(d | slope a')|        0: the same marginal, 1: no overlap

    Returns:
        Pair of slopes → total variation distance, and the largest of them. Comparisons within decades of y
        do not see this distance; what it says is for how many rows they find no match.
    """
    used = (rows.family == "affine") & ~np.isnan(rows.y)
    slope, decade = rows.slope[used], (rows.y[used] // 10).astype(np.int64)
    slopes = np.unique(slope)
    if not len(slopes):
        return {}
    counts = np.stack(
        [np.bincount(decade[slope == a] - decade.min(), minlength=np.ptp(decade) + 1) for a in slopes]
    )
    share = counts / counts.sum(axis=1, keepdims=True)
    found = {
        f"{a:g} and {b:g}": float(np.abs(share[i] - share[i + 1 + j]).sum() / 2)
        for i, a in enumerate(slopes)
        for j, b in enumerate(slopes[i + 1 :])
    }
    return found | {"largest": max(found.values(), default=0.0)}
