"""What was shown before each query? The evidence of every arm's contexts, slot by slot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iclens.errors import TableError
from iclens.tables.arrays import Floats
from iclens.tables.prompts import PromptSet


@dataclass(frozen=True)
class Design:
    """Contexts as evidence.

    Args:
        right: +1 where a slot holds the task's own answer, −1 where another label, 0 where nothing of
            the task, [prompt example slot]; slots at and after the query hold 0.
        new: whether the slot's example is the first of its kind in this context, same axes.
        exact: the ideal learner's log-odds before each query, nats [prompt example]; None if unknown.
    """

    right: Floats
    new: Floats
    exact: Floats | None = None

    def __post_init__(self) -> None:
        if self.right.shape != self.new.shape or self.right.ndim != 3:
            raise TableError("Design", f"{self.right.shape} and {self.new.shape}", "Give equal 3-D arrays.")

    def select(self, prompts: np.ndarray) -> Design:
        """Some of the prompts [prompt]."""
        exact = None if self.exact is None else self.exact[prompts]
        return Design(self.right[prompts], self.new[prompts], exact)


def design_of(prompts: PromptSet, exact: Floats | None = None) -> Design:
    """The design of an arm.

    A probed arm shows the task's own labels; an inline one is right where the label is the task's answer.

    Args:
        prompts: the arm.
        exact: the ideal learner's log-odds, [prompt example].
    """
    n_prompts, n_examples = prompts.x.shape
    if prompts.context_x is not None:
        right = (prompts.context_x != "").astype(float)
        new = _first_of_its_kind(prompts.context_x)
    else:
        label = np.where(prompts.y == prompts.answer, 1.0, -1.0)[:, None, : n_examples - 1]
        before = np.tri(n_examples, n_examples - 1, -1)
        right = label * before
        new = np.broadcast_to(before, (n_prompts, n_examples, n_examples - 1))
    return Design(right, new * (right != 0), exact)


def _first_of_its_kind(context_x: np.ndarray) -> Floats:
    new = np.ones(context_x.shape)
    for slot in range(1, context_x.shape[2]):
        repeated = (context_x[:, :, :slot] == context_x[:, :, slot : slot + 1]).any(axis=2)
        new[:, :, slot] = ~repeated
    return new
