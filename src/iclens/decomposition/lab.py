"""Which rows at `lab` are measured, which prompts share inputs, and how many layers are recorded at a time?

1. `counted_examples` checks that rows are those of the prompts. 2. `input_groups` and `dealt_inputs` keep
prompts of equal inputs together when something is fitted on some prompts and read on others. 3.
`layer_groups` divides layers so that their activations fit into memory. 4. `figure` and `undefined` write a
row of an `OperandTable`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from iclens.errors import TableError
from iclens.tables.arrays import Floats, Ints, Strings
from iclens.tables.prompts import PromptSet
from iclens.transforms.rows import Rows

LAB = "lab"
HELD = 2**30
"""Bytes of activations that are held at a time; more are recorded in several passes."""


def counted_examples(prompts: PromptSet, rows: Rows, first_example: int) -> list[int]:
    """The examples from `first_example` on, or a TableError when `rows` are not those of `prompts`."""
    if len(rows) != prompts.n_prompts * prompts.n_examples or (rows.task != _repeated(prompts)).any():
        raise TableError(
            f"{len(rows)} rows of {prompts.n_prompts} prompts", "they are not these prompts'",
            "Give the rows that `read_rows` makes of these prompts.",
        )  # fmt: skip
    if not 0 <= first_example < prompts.n_examples:
        raise TableError(
            f"rows from example {first_example} on",
            f"prompts of {prompts.n_examples}",
            f"Choose first_example from 0 to {prompts.n_examples - 1}, or build longer prompts.",
        )
    return list(range(first_example, prompts.n_examples))


def _repeated(prompts: PromptSet) -> Strings:
    return np.repeat(prompts.task, prompts.n_examples)


def input_groups(prompts: PromptSet) -> Ints:
    """Which prompts show the same inputs in the same order, [prompt]: a number that they share.

    Prompts of equal seed and index do so in every task that allows the same inputs. What one of them is read
    with must not have been fitted on another: the examples before `lab` would tell it x.
    """
    return np.unique(prompts.x, axis=0, return_inverse=True)[1].reshape(-1)


def positions(prompts: PromptSet, examples: Sequence[int]) -> Ints:
    """Token index of `lab` in these examples, [example]."""
    return prompts.positions(LAB)[list(examples)]


def layer_groups(layers: Sequence[int], size: int) -> Iterator[list[int]]:
    """Layers that are recorded in one pass, `size` float32 each, `HELD` bytes together at most."""
    most = max(1, HELD // (4 * max(size, 1)))
    for start in range(0, len(layers), most):
        yield list(layers[start : start + most])


def dealt_inputs(task: Strings, inputs: Ints, n_folds: int, rng: np.random.Generator) -> Ints:
    """Whole groups of prompts dealt to folds at random, those of each task evenly, [row].

    Args:
        task: task of each row, [row].
        inputs: prompts of equal inputs as one group, [row].
        n_folds: number of folds.
        rng: deals.
    """
    names, first, of_row = np.unique(inputs, return_index=True, return_inverse=True)
    fold = np.zeros(len(names), dtype=np.int64)
    for name in np.unique(task):
        own = rng.permutation(np.flatnonzero(task[first] == name))
        fold[own] = (np.arange(len(own)) + rng.integers(n_folds)) % n_folds
    return fold[of_row]


def figure(value: float, again: Floats, null: float, n_rows: int) -> dict[str, Any]:
    """One row of an OperandTable: a value, its 95 % interval from other draws [draw], and its null."""
    low, high = np.quantile(again, (0.025, 0.975))
    return {"value": value, "ci_low": low, "ci_high": high, "null": null, "n_rows": n_rows, "reason": ""}


def undefined(reason: str, n_rows: int) -> dict[str, Any]:
    """One row of an OperandTable where nothing can be measured."""
    return dict.fromkeys(("value", "ci_low", "ci_high", "null"), np.nan) | {
        "n_rows": n_rows, "reason": reason,
    }  # fmt: skip
