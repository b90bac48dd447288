"""Assembling tokens of drawn contexts from tables, without running the tokenizer on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iclens.names import PREFIX_LENGTH, ROLES, TOKENS_PER_EXAMPLE
from iclens.tables.arrays import Ints
from iclens.tasks.mixture import Contexts, Mixture
from iclens.tasks.rendering import Tokenizer, encode, spelling


@dataclass(frozen=True)
class TokenTable:
    """Token ids of everything that contexts are made of.

    Args:
        prefix: BOS and the newline, [PREFIX_LENGTH].
        example: ids of one example, of which the roles beside `x` and `lab` never change, [role].
        inputs: id of each input at `x`, as it is spelled there, [input].
        answers: id of each answer at `lab`, [answer].
    """

    prefix: Ints
    example: Ints
    inputs: Ints
    answers: Ints

    @classmethod
    def of(cls, mixture: Mixture, tokenizer: Tokenizer) -> TokenTable:
        """The table of a mixture's inputs and answers; raises as `of_words`."""
        return cls.of_words(mixture.inputs, mixture.answers, tokenizer)

    @classmethod
    def of_words(cls, inputs: Sequence[str], answers: Sequence[str], tokenizer: Tokenizer) -> TokenTable:
        """Look every id up once, in an example.

        Raises:
            TokenizerError: when an input or answer is not a single token.
        """
        at_x, at_y = spelling(tokenizer, inputs, "x"), spelling(tokenizer, answers, "y")
        xs, ys = [at_x[text] for text in inputs], [at_y[text] for text in answers]
        ids = encode(tokenizer, [*((x, ys[0]) for x in xs), *((xs[0], y) for y in ys)])
        cells = ids[PREFIX_LENGTH:].reshape(-1, TOKENS_PER_EXAMPLE)
        return cls(
            ids[:PREFIX_LENGTH], cells[0],
            cells[: len(xs), ROLES.index("x")], cells[len(xs) :, ROLES.index("lab")],
        )  # fmt: skip

    def assemble(self, contexts: Contexts) -> Ints:
        """Token ids of drawn contexts, equal to `rendering.encode` of each, as [context pos]."""
        n_contexts = len(contexts.x)
        cells = _fill(self.example, self.inputs[contexts.x], self.answers[contexts.y])
        prefix = np.broadcast_to(self.prefix, (n_contexts, PREFIX_LENGTH))
        return np.concatenate([prefix, cells.reshape(n_contexts, -1)], axis=1)


def _fill(example: Ints, x: Ints, y: Ints) -> Ints:
    """The six ids of each example, [... role]."""
    cells = np.broadcast_to(example, (*np.shape(x), TOKENS_PER_EXAMPLE)).copy()
    cells[..., ROLES.index("x")] = x
    cells[..., ROLES.index("lab")] = y
    return cells
