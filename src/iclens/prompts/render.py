"""Rendering: text of examples as tokens, one BOS, and the token ids of answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from iclens.core import PREFIX_LENGTH, ROLES, TEMPLATE, TOKENS_PER_EXAMPLE, TaskError, TokenizerError, nearest
from iclens.prompts.tasks import VOCABULARIES

Pair = tuple[str, str]
Place = Literal["x", "y"]
_CHECKED: tuple[Pair, ...] = (("28", "59"), ("7", "17"), ("86", "175"), ("0", "999"))
"""Examples with numbers of one, two and three digits, on which a tokenizer is tried."""
_BESIDE = _CHECKED[0]
"""What stands at the other place of the example in which a text is tried."""
_TRIED = "7"
"""A text on which it is seen what a tokenizer puts around one."""


@dataclass(frozen=True)
class Template:
    """How an example is written: what stands around x and y. `pre` is one space in every template."""

    open: str  # before x
    comma: str  # after x
    close: str  # after y, the newline included

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
"""Name → template; `core.TEMPLATE` is the default."""
DEFAULT = TEMPLATES[TEMPLATE]


class Tokenizer(Protocol):
    """What rendering needs of a Hugging Face tokenizer, besides its `bos_token_id`."""

    def __call__(self, text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> Any: ...  # noqa: D102
    def convert_ids_to_tokens(self, ids: list[int]) -> Any: ...  # noqa: D102
    def decode(self, token_ids: list[int]) -> Any: ...  # noqa: D102
    def get_vocab(self) -> dict[str, int]: ...  # noqa: D102


def parse_template(name: str) -> Template:
    """The template of a name such as `[x, y]`."""
    if name not in TEMPLATES:
        raise TaskError(f"template {name!r}", "unknown", f"{nearest(name, TEMPLATES, n=1)}.")
    return TEMPLATES[name]


def render(pairs: Sequence[Pair], template: Template = DEFAULT) -> str:
    """The text of examples: a newline, then a line such as `(x, y)\\n` for each."""
    return "\n" + "".join("".join(template.pieces(x, y)) for x, y in pairs)


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text alone, without what the tokenizer puts before or after a sequence."""
    return _ids(tokenizer, text, special=False)


def _ids(tokenizer: Tokenizer, text: str, *, special: bool) -> list[int]:
    try:
        return list(tokenizer(text, add_special_tokens=special, verbose=False).input_ids)
    except Exception as cause:
        if type(cause) is not Exception:  # the bare class is how a vocabulary without <unk> refuses a text
            raise
        raise TokenizerError(
            f"the tokens of {text[:40]!r}", f"the tokenizer has none ({cause})",
            "Use a model whose tokenizer knows every text, or one of the characters that it knows.",
        ) from cause  # fmt: skip


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer itself puts before a text, and after it."""
    alone, whole = (_ids(tokenizer, _TRIED, special=special) for special in (False, True))
    starts = (at for at in range(len(whole)) if whole[at : at + len(alone)] == alone)
    start = next(starts, 0)
    return whole[:start], whole[start + len(alone) :]


def bos_id(tokenizer: Tokenizer) -> int | None:
    """The token that a sequence begins with; None where the tokenizer has none.

    It is what the tokenizer itself puts before a text, and its `bos_token` where it puts nothing there or
    that token among others.
    """
    before, _ = _around(tokenizer)
    named = cast("Any", tokenizer).bos_token_id  # set on the class of tokenizers only while running
    return before[0] if before and named not in before else named


def bos_in_words(tokenizer: Tokenizer) -> str:
    """What sequences begin with, for a log or a card."""
    bos = bos_id(tokenizer)
    if bos is None:
        return "none, as neither the tokenizer nor the model's config names one"
    before, after = _around(tokenizer)
    piece = tokenizer.convert_ids_to_tokens([bos])[0]
    own = "" if (before, after) == ([bos], []) else (
        f" (the tokenizer by itself puts {tokenizer.convert_ids_to_tokens(before)} before a text and "
        f"{tokenizer.convert_ids_to_tokens(after)} after it)"
    )  # fmt: skip
    return f"{piece}, id {bos}, once{own}"


def encode_examples(
    tokenizer: Tokenizer, pairs: Sequence[Pair], template: Template = DEFAULT
) -> NDArray[np.int64]:
    """Token ids of BOS, a newline and the examples, as [pos]; `pairs` are x and y of each.

    Raises:
        TokenizerError: where there is no BOS, or naming the first example that is not six tokens, and how it
            was split.
    """
    bos = bos_id(tokenizer)
    if bos is None:
        raise TokenizerError(
            "prompts, which begin with BOS", "neither the tokenizer nor the model's config names a BOS token",
            "Name it: bos_token in tokenizer_config.json, or bos_token_id in config.json.",
        )  # fmt: skip
    ids = text_ids(tokenizer, render(pairs, template))
    texts = _texts(tokenizer, ids)
    if texts[:1] != ["\n"]:
        raise TokenizerError(
            "prompts, which begin with a newline",
            f"the tokenizer gives {tokenizer.convert_ids_to_tokens(ids[:2])} for their begin",
            "Use a model whose tokenizer keeps a newline as one token, and puts no space before a text.",
        )
    for example, pair in enumerate(pairs):
        start = 1 + TOKENS_PER_EXAMPLE * example
        pieces = template.pieces(*pair)
        if texts[start : start + TOKENS_PER_EXAMPLE] != pieces:
            raise _split(tokenizer, "".join(pieces), ids[start:], texts[start:], template)
    if (n_ids := 1 + len(ids)) != PREFIX_LENGTH + TOKENS_PER_EXAMPLE * len(pairs):
        raise TokenizerError(
            "prompt length", f"{n_ids} tokens for {len(pairs)} examples",
            "Use a model whose tokenizer adds nothing to a text.",
        )  # fmt: skip
    return np.array([bos, *ids], dtype=np.int64)


def _texts(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """What each token adds to the text before it, [pos].

    Decoded alone, a token may lose the space that it begins with; one that the vocabulary spells as it is
    decoded has none, though a tokenizer without a decoder would join it with one.
    """
    if not ids:
        return []
    first, added = tokenizer.decode(ids[:1]), {}
    distinct = list(set(ids))
    for i, piece in zip(distinct, tokenizer.convert_ids_to_tokens(distinct), strict=True):
        plain = piece == tokenizer.decode([i])
        added[i] = piece if plain else tokenizer.decode([ids[0], i]).removeprefix(first)
    return [first, *(added[i] for i in ids[1:])]


def _split(
    tokenizer: Tokenizer, line: str, ids: list[int], texts: list[str], template: Template
) -> TokenizerError:
    """Why an example, which begins at the first of `ids`, is refused: all tokens of its line are shown."""
    count, read = 0, ""
    while count < len(ids) and "\n" not in read and len(read) <= 2 * len(line):
        read += texts[count]
        count += 1
    visible = line.replace("\n", r"\n")
    changed = "" if read == line else f", which read {read!r}"
    other = "" if template == DEFAULT else ", or a template that the tokenizer supports"
    return TokenizerError(
        f"six tokens for '{visible}'",
        f"the tokenizer gives {tokenizer.convert_ids_to_tokens(ids[:count])}{changed}",
        f"Use a task and inputs whose x and y this tokenizer gives one token each{other}.",
    )


def spelling(
    tokenizer: Tokenizer, texts: Iterable[str], place: Place, template: Template = DEFAULT
) -> dict[str, str]:
    """How each text is written at a place of an example: as it is, or with a space of its own before it.

    In `(24,  even)` the second space belongs to the token ` even`, and the first stands alone at `pre`. Words
    of one of `tasks.VOCABULARIES` are all written in one way, the one in which more of the vocabulary make an
    example of six tokens (as they are, where both do equally); other texts are decided together in the same
    way. So the spelling of a word of a vocabulary depends on no other text: it is the same in every arm, task
    and call. A number stays as it is, untried; `encode` refuses one that is no token.

    Returns:
        Text → spelled text.
    """
    asked = list(dict.fromkeys(texts))
    written = {text: text for text in asked if text.isdigit()}
    words = [text for text in asked if text not in written]
    strangers = tuple(word for word in words if not any(word in known for known in VOCABULARIES))
    for vocabulary in (*VOCABULARIES, strangers):
        given = [word for word in words if word in vocabulary]
        if given:
            written |= _alike(tokenizer, given, vocabulary, place, template)
    return {text: written[text] for text in asked}


def _alike(
    tokenizer: Tokenizer, words: list[str], vocabulary: tuple[str, ...], place: Place, template: Template
) -> dict[str, str]:
    """The spelling of some words of a vocabulary; raises as `spelling`."""
    refused = {
        way: {word: _refusal(tokenizer, way + word, place, template) for word in vocabulary}
        for way in ("", " ")
    }
    ways = sorted(refused, key=lambda way: sum(error is not None for error in refused[way].values()))
    misfits = [word for word in words if refused[ways[0]][word] is not None]
    for word in misfits:
        plain, spaced = refused[""][word], refused[" "][word]
        if plain is not None and spaced is not None:
            raise TokenizerError(
                f"{plain.asked}, or with a space before {word!r}",
                f"{plain.found}; with the space {spaced.found}",
                plain.remedy,
            )
    if misfits:
        how = ("as they are", "with a space before them")
        fit, unfit = how if ways[0] == "" else how[::-1]
        raise TokenizerError(
            f"words at {place} that are written alike",
            f"most fit {fit}, and {', '.join(map(repr, misfits))} only {unfit}",
            "Leave these out of the inputs, or choose a task of other words.",
        )
    return {word: ways[0] + word for word in words}


def _refusal(tokenizer: Tokenizer, text: str, place: Place, template: Template) -> TokenizerError | None:
    """Why an example with `text` at `place` is not six tokens; None where it is."""
    x, y = _BESIDE
    try:
        encode_examples(tokenizer, [(text, y) if place == "x" else (x, text)], template)
    except TokenizerError as error:
        return error
    return None


def answer_ids(tokenizer: Tokenizer, answers: Sequence[str]) -> NDArray[np.int64]:
    """Ids of answers as they stand at `lab` of an example, [answer]."""
    examples = encode_examples(tokenizer, [(_BESIDE[0], answer) for answer in answers])
    return examples[PREFIX_LENGTH:].reshape(-1, TOKENS_PER_EXAMPLE)[:, ROLES.index("lab")]


def check_tokenizer(tokenizer: Tokenizer, template: Template = DEFAULT) -> None:
    """Assert the six-token layout for one-, two- and three-digit numbers."""
    try:
        encode_examples(tokenizer, _CHECKED, template)
    except TokenizerError as error:
        if bos_id(tokenizer) is None:
            raise
        raise TokenizerError(
            error.asked, error.found,
            f"Prompts need a tokenizer that gives each of {', '.join(ROLES)} one token, as Llama-3's does; "
            "SAEs of running text (data.kind: text, without data.prompts) can be trained with any.",
        ) from None  # fmt: skip


def supported_templates(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Names of the templates that this tokenizer splits into six tokens, found by trying `check_tokenizer`.

    It is tried on numbers; `encode` still refuses a word that is no token of its own.
    """
    supported = []
    for name, template in TEMPLATES.items():
        try:
            check_tokenizer(tokenizer, template)
        except TokenizerError:
            continue
        supported.append(name)
    return tuple(supported)


def fingerprint(tokenizer: Tokenizer) -> str:
    """sha256 over the vocabulary, 16 hex digits."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(repr(vocabulary).encode()).hexdigest()[:16]
