"""Rendering: examples as text and tokens, and the check that every example has six tokens.

The prompt is BOS, a newline, then lines `(x, y)\\n`, or those of another *template* with the same six roles.
A tokenizer that does not give `(` x `,` space y `)\\n` one token each is refused, with the string it split
differently. Whether a template is supported is decided by the tokenizer at hand, by trying it, not by a list.
A word that joins the space before it is *spelled* with a space of its own: `(24,  even)\\n`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from iclens.errors import TaskError, TokenizerError, nearest
from iclens.names import PREFIX_LENGTH, ROLES, TEMPLATE, TOKENS_PER_EXAMPLE

Pair = tuple[str, str]
Place = Literal["x", "y"]
_CHECKED: tuple[Pair, ...] = (("28", "59"), ("7", "17"), ("86", "175"), ("0", "999"))
"""Examples with numbers of one, two and three digits, on which a tokenizer is tried."""
_BESIDE = _CHECKED[0]
"""What stands at the other place of the example in which a text is tried."""


@dataclass(frozen=True)
class Template:
    """How an example is written: what stands around x and y. `pre` is one space in every template.

    Args:
        open: before x.
        comma: after x.
        close: after y, the newline included.
    """

    open: str
    comma: str
    close: str

    def pieces(self, x: str, y: str) -> list[str]:
        """The six pieces of an example, [role]."""
        return [self.open, x, self.comma, " ", y, self.close]

    @property
    def name(self) -> str:
        """The line as it is written with the letters x and y, such as `(x, y)`."""
        return "".join(self.pieces("x", "y")).removesuffix("\n")


TEMPLATES: Mapping[str, Template] = MappingProxyType({
    made.name: made
    for made in (
        Template("(", ",", ")\n"),
        Template("[", ",", "]\n"),
        Template("{", ":", "}\n"),
        Template("<", ";", ">\n"),
    )
})  # fmt: skip
"""Name → template; `names.TEMPLATE` is the default."""
DEFAULT = TEMPLATES[TEMPLATE]


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


def parse_template(name: str) -> Template:
    """The template of a name such as `[x, y]`.

    Raises:
        TaskError: naming the nearest one.
    """
    if name not in TEMPLATES:
        raise TaskError(f"template {name!r}", "unknown", f"{nearest(name, TEMPLATES, n=1)}.")
    return TEMPLATES[name]


def render(pairs: Sequence[Pair], template: Template = DEFAULT) -> str:
    """The text of examples: a newline, then a line such as `(x, y)\\n` for each."""
    return "\n" + "".join("".join(template.pieces(x, y)) for x, y in pairs)


def encode(tokenizer: Tokenizer, pairs: Sequence[Pair], template: Template = DEFAULT) -> NDArray[np.int64]:
    """Token ids of BOS, a newline and the examples, as [pos].

    Args:
        tokenizer: must give six tokens to an example.
        pairs: x and y of each example.
        template: how the examples are written.

    Raises:
        TokenizerError: naming the first example that is not six tokens, and how it was split.
    """
    ids = list(tokenizer(render(pairs, template)).input_ids)
    for example, pair in enumerate(pairs):
        start = PREFIX_LENGTH + TOKENS_PER_EXAMPLE * example
        cell = ids[start : start + TOKENS_PER_EXAMPLE]
        pieces = [tokenizer.decode([i]) for i in cell]
        if pieces != template.pieces(*pair):
            line = "".join(template.pieces(*pair)).replace("\n", r"\n")
            roles = " ".join(ROLES)
            other = "" if template == DEFAULT else ", or a template it supports"
            raise TokenizerError(
                f"six tokens for '{line}'",
                f"the tokenizer gives {tokenizer.convert_ids_to_tokens(cell)}",
                f"Use x and y that are single tokens after BOS and a newline (roles {roles}){other}.",
            )
    if len(ids) != PREFIX_LENGTH + TOKENS_PER_EXAMPLE * len(pairs):
        raise TokenizerError(
            "prompt length", f"{len(ids)} tokens for {len(pairs)} examples", "The tokenizer must add one BOS."
        )
    return np.array(ids, dtype=np.int64)


def spelling(
    tokenizer: Tokenizer, texts: Iterable[str], place: Place, template: Template = DEFAULT
) -> dict[str, str]:
    """How each text is written at a place of an example: as it is, or with a space of its own before it.

    A text is respelled only where an example with it is not six tokens and one with the spelled text is: in
    `(24,  even)` the second space belongs to the token ` even`, and the first stands alone at `pre`. A number
    stays as it is, untried; `encode` refuses one that is no token. The spelling of a text depends on no other
    text, so it is the same in every call.

    Args:
        tokenizer: decides, by being tried on an example with each distinct text and a number beside it.
        texts: x or y of examples.
        place: which of them, x or y.
        template: how the examples are written.

    Returns:
        Text → spelled text.

    Raises:
        TokenizerError: naming the first text that fits neither way, and how both were split.
    """
    found = {}
    for text in dict.fromkeys(texts):
        spaced = f" {text}"
        if text.isdigit() or (refused := _refusal(tokenizer, text, place, template)) is None:
            found[text] = text
        elif (again := _refusal(tokenizer, spaced, place, template)) is None:
            found[text] = spaced
        else:
            raise TokenizerError(
                f"{refused.asked}, or with a space before {text!r}",
                f"{refused.found}; with the space {again.found}",
                refused.remedy,
            )
    return found


def _refusal(tokenizer: Tokenizer, text: str, place: Place, template: Template) -> TokenizerError | None:
    """Why an example with `text` at `place` is not six tokens; None where it is."""
    x, y = _BESIDE
    try:
        encode(tokenizer, [(text, y) if place == "x" else (x, text)], template)
    except TokenizerError as error:
        return error
    return None


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


def check_tokenizer(tokenizer: Tokenizer, template: Template = DEFAULT) -> None:
    """Assert the six-token layout for one-, two- and three-digit numbers.

    Raises:
        TokenizerError: naming the string and its pieces.
    """
    encode(tokenizer, _CHECKED, template)


def supported_templates(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Names of the templates that this tokenizer splits into six tokens, found by trying `check_tokenizer`.

    It is tried on numbers; `encode` still refuses a word that is no token of its own.
    """
    found = []
    for name, template in TEMPLATES.items():
        try:
            check_tokenizer(tokenizer, template)
        except TokenizerError:
            continue
        found.append(name)
    return tuple(found)


def fingerprint(tokenizer: Tokenizer) -> str:
    """sha256 over the vocabulary, 16 hex digits."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(repr(vocabulary).encode()).hexdigest()[:16]
