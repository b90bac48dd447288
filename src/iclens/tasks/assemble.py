"""Assembling tokens of drawn contexts from tables, without running the tokenizer on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iclens.errors import TokenizerError
from iclens.names import PREFIX_LENGTH, ROLES, TOKENS_PER_EXAMPLE
from iclens.tables.arrays import Ints
from iclens.tasks.mixture import Contexts, Mixture
from iclens.tasks.rendering import Tokenizer, encode, token_id

_FIXED = {"open": "(", "comma": ",", "pre": " ", "close": ")\n"}


@dataclass(frozen=True)
class TokenTable:
    """Token ids of everything that contexts are made of.

    Args:
        prefix: BOS and the newline, [PREFIX_LENGTH].
        example: ids of the roles that never change; 0 at `x` and `lab`, [role].
        inputs: id of each input, [input].
        answers: id of each answer, [answer].
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
        """Look every id up once.

        Raises:
            TokenizerError: when an input or answer is not a single token.
        """
        fixed = np.array([token_id(tokenizer, _FIXED[role]) if role in _FIXED else 0 for role in ROLES])
        x, y = (np.array([token_id(tokenizer, word) for word in words]) for words in (inputs, answers))
        first = encode(tokenizer, [(inputs[0], answers[0])])
        if not np.array_equal(first[PREFIX_LENGTH:], _fill(fixed, x[0], y[0])):
            raise TokenizerError(
                "tokens looked up one by one", "they differ within an example", "Use `encode`."
            )
        return cls(first[:PREFIX_LENGTH], fixed, x, y)

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
