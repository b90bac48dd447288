"""Rendering: examples as text and tokens, and the check that every example has six tokens.

The prompt is BOS, a newline, then lines `(x, y)\\n`. A tokenizer that does not give `(` x `,` space
y `)\\n` one token each is refused, with the string it split differently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from iclens.errors import TokenizerError
from iclens.names import PREFIX_LENGTH, ROLES, TOKENS_PER_EXAMPLE

Pair = tuple[str, str]


class Tokenizer(Protocol):
    """What rendering needs of a Hugging Face tokenizer."""

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Any:
        """Encode text."""
        ...

    def convert_ids_to_tokens(self, ids: list[int]) -> Any:
        """The pieces as the vocabulary spells them."""
        ...

    def decode(self, token_ids: list[int]) -> Any:
        """The pieces as text."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Every piece and its id."""
        ...


def render(pairs: Sequence[Pair]) -> str:
    """The text of examples: a newline, then `(x, y)\\n` for each."""
    return "\n" + "".join(f"({x}, {y})\n" for x, y in pairs)


def encode(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> NDArray[np.int64]:
    """Token ids of BOS, a newline and the examples, as [pos].

    Raises:
        TokenizerError: naming the first example that is not six tokens, and how it was split.
    """
    ids = list(tokenizer(render(pairs)).input_ids)
    for example, pair in enumerate(pairs):
        start = PREFIX_LENGTH + TOKENS_PER_EXAMPLE * example
        cell = ids[start : start + TOKENS_PER_EXAMPLE]
        pieces = [tokenizer.decode([i]) for i in cell]
        if pieces != ["(", pair[0], ",", " ", pair[1], ")\n"]:
            raise TokenizerError(
                f"six tokens for '({pair[0]}, {pair[1]})\\n'",
                f"the tokenizer gives {tokenizer.convert_ids_to_tokens(cell)}",
                f"Use x and y that are single tokens after BOS and a newline (roles {' '.join(ROLES)}).",
            )
    if len(ids) != PREFIX_LENGTH + TOKENS_PER_EXAMPLE * len(pairs):
        raise TokenizerError(
            "prompt length", f"{len(ids)} tokens for {len(pairs)} examples", "The tokenizer must add one BOS."
        )
    return np.array(ids, dtype=np.int64)


def token_id(tokenizer: Tokenizer, text: str) -> int:
    """The id of `text` as a single token inside an example.

    Raises:
        TokenizerError: when it is not a single token.
    """
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    if len(ids) != 1 or tokenizer.decode(ids) != text:
        raise TokenizerError(
            f"'{text}' as one token",
            f"it is {tokenizer.convert_ids_to_tokens(ids)}",
            "Choose another answer.",
        )
    return ids[0]


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Assert the six-token layout for one-, two- and three-digit numbers.

    Raises:
        TokenizerError: naming the string and its pieces.
    """
    encode(tokenizer, [("28", "59"), ("7", "17"), ("86", "175"), ("0", "999")])


def fingerprint(tokenizer: Tokenizer) -> str:
    """sha256 over the vocabulary, 16 hex digits."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(repr(vocabulary).encode()).hexdigest()[:16]
