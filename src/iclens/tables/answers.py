"""AnswerProbs: the model's (or the exact) distribution over answers, with an exact normaliser."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iclens.tables.arrays import Floats, Ints, expect_shape

NUMBERS = tuple(str(n) for n in range(1000))
"""Answers that count as numbers, in the order of the first thousand columns."""


@dataclass(frozen=True)
class AnswerProbs:
    """Log-probabilities of chosen answers over the full vocabulary, in nats.

    Args:
        answers: the answers' text; the numbers 0–999 first, then words.
        log_prob: log P(answer), [... answer]; exp sums to at most 1, the rest is every other token.
    """

    answers: tuple[str, ...]
    log_prob: Floats

    def __post_init__(self) -> None:
        expect_shape(
            "AnswerProbs",
            log_prob=(self.log_prob.reshape(-1, self.log_prob.shape[-1]), ("row", len(self.answers))),
        )

    @property
    def numbers(self) -> Floats:
        """P(n) for n in 0..999, [... 1000]."""
        return np.exp(self.log_prob[..., : len(NUMBERS)])

    def top(self) -> Ints:
        """Index of the most probable answer, [...]."""
        return self.log_prob.argmax(axis=-1)

    def of(self, wanted: np.ndarray) -> Floats:
        """P(wanted answer) for text `wanted` [...]; 0 for text that is not among the answers."""
        index = {answer: i for i, answer in enumerate(self.answers)}
        column = np.vectorize(lambda text: index.get(text, -1), otypes=[np.int64])(wanted)
        found = np.take_along_axis(self.log_prob, np.maximum(column, 0)[..., None], axis=-1)[..., 0]
        return np.where(column >= 0, np.exp(found), 0.0)
