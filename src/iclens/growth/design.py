"""What was shown before each query? The evidence of every arm's contexts, slot by slot."""

from __future__ import annotations

from collections.abc import Callable
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
        behaviour: the model's own log-odds there, which a latent may follow; None for the model itself.
    """

    right: Floats
    new: Floats
    exact: Floats | None = None
    behaviour: Floats | None = None

    def __post_init__(self) -> None:
        if self.right.shape != self.new.shape or self.right.ndim != 3:
            raise TableError(
                "Design",
                f"{self.right.shape} and {self.new.shape}",
                "Give `right` and `new` as arrays [prompt example slot] of one shape.",
            )

    def select(self, prompts: np.ndarray) -> Design:
        """Some of the prompts [prompt]."""
        return self._at(lambda values: values[prompts])

    def after_labels(self) -> Design:
        """What was shown when a label had been read, instead of before its query; of an inline arm.

        The last example's is not known: one example fewer.
        """
        return self._at(lambda values: values[:, 1:])

    def _at(self, part: Callable[[np.ndarray], np.ndarray]) -> Design:
        curves = (None if curve is None else part(curve) for curve in (self.exact, self.behaviour))
        return Design(part(self.right), part(self.new), *curves)


def design_of(prompts: PromptSet, exact: Floats | None = None, behaviour: Floats | None = None) -> Design:
    """The design of an arm.

    A probed arm shows the task's own labels; an inline one is right where the label is the task's answer.

    Args:
        prompts: the arm.
        exact: the ideal learner's log-odds, [prompt example].
        behaviour: the model's own, [prompt example].
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
    return Design(right, new * (right != 0), exact, behaviour)


def _first_of_its_kind(context_x: np.ndarray) -> Floats:
    new = np.ones(context_x.shape)
    for slot in range(1, context_x.shape[2]):
        repeated = (context_x[:, :, :slot] == context_x[:, :, slot : slot + 1]).any(axis=2)
        new[:, :, slot] = ~repeated
    return new
