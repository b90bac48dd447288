"""Are these arms of one design? Same seed, task and queries, other contexts, no query in its own context."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iclens.errors import TableError
from iclens.tables.prompts import PromptSet


def check_pairing(sets: Sequence[PromptSet]) -> None:
    """Raise unless prompt i of every arm asks the same queries after contexts of its own.

    Args:
        sets: the arms; the first is the one that the others are paired with.

    Raises:
        TableError: naming the arm and what is wrong.
    """
    first = sets[0]
    for i, other in enumerate(sets):
        _check_queries(other)
        for what in ("seed", "tokenizer", "task", "x"):
            if not np.array_equal(getattr(first, what), getattr(other, what)):
                raise TableError(
                    f"arms {first.arm} and {other.arm}",
                    f"unpaired: {what} differs",
                    "Build both for one task, with one tokenizer, seed and set of inputs.",
                )
        for before in sets[:i]:
            if _same_text(before, other):
                raise TableError(
                    f"arms {before.arm} and {other.arm}",
                    "every label is the same",
                    "They show the same: leave one of them out.",
                )


def _same_text(one: PromptSet, other: PromptSet) -> bool:
    """Whether both show the model the same tokens before every query."""
    if one.probes is None and other.probes is None:
        return np.array_equal(one.y, other.y)
    if one.probes is None or other.probes is None:
        return False
    return np.array_equal(one.probes, other.probes)


def _check_queries(prompts: PromptSet) -> None:
    """No query's input stands in its own context."""
    if prompts.context_x is None:
        shown, n = prompts.x, prompts.n_examples
        repeated = np.array([len(set(row)) < n for row in shown.tolist()])
    else:
        repeated = (prompts.context_x == prompts.x[:, :, None]).any(axis=(1, 2))
    if repeated.any():
        raise TableError(
            f"arm {prompts.arm}",
            f"a query of prompt {int(repeated.argmax())} stands in its own context",
            "Every x of a prompt has to be another: give distinct inputs.",
        )
