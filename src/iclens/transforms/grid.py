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

OFFSETS = (0, 1, 2, 3, 4, 7, 8, 9, 10, 11)
"""Offsets of the default affine tasks: as many even as odd, as many small as large."""

DEFAULT_SPECS = (
    *(f"{a}x+{b}" for a in range(1, 6) for b in OFFSETS),
    *("x~5", "2x~2", "2x~5", "2x+3~5", "3x~5"),
    *("5", "17", "48", "60"),
    *("50-x", "51-x", "54-x", "57-x"),
    *("x//2", "x//2+1", "x//2+4", "x//2+5"),
    *("x%2", "x%3", "x%5", "x%7", "x%10"),
    *("odd", "even", "random"),
    *("word:parity", "word:size", "letter:nth"),
)
"""The default grid; every x is a number, so that only the rule and its answers differ."""


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
                "task grid", "one side of the split is empty", "Give at least two tasks of one kind."
            )
        if len(set(both)) != len(both) or set(both) != set(self.rules):
            raise TaskError(
                "task grid", "the two sides do not divide the tasks", "Put each task on one side."
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
        raise TaskError(f"held-out share {held_out}", "not between 0 and 1", "Give for example 0.5.")
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
