"""Rendering: examples as text, the tokens of each span of it, one BOS, and the token ids of answers.

A prompt is tokenised once, as a whole. A token belongs to the span that holds the last of its characters
that is no space: ` cold` in `(hot, cold)` to y, and `(h` of `(hot` to x.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, cast
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from iclens.core import PADDING, SIX_TOKENS, SPANS, TEMPLATE, Layout, TaskError, TokenizerError, nearest

Pair = tuple[str, str]
Ids = NDArray[np.int64]
_TRIED: tuple[Pair, ...] = (("28", "59"), ("7", "17"), ("86", "175"), ("0", "999"))
"""Examples with numbers of one, two and three digits, on which a tokenizer is tried."""
_BESIDE = "7"
"""What stands at the other place of the example in which a text is tried."""


@dataclass(frozen=True)
class Template:
    """How an example is written: what stands before x, between x and y, and after y."""

    open: str
    separator: str
    close: str

    def spans(self, x: str, y: str) -> tuple[str, ...]:
        """The texts of an example, one for each of `core.SPANS`."""
        return self.open, x, self.separator, y, self.close

    def text(self, x: str, y: str) -> str:
        """An example."""
        return "".join(self.spans(x, y))

    @property
    def name(self) -> str:
        """`(x, y)` for one of `TEMPLATES`; of another, its text with the places of x and y in braces."""
        line = self.text("x", "y").removesuffix("\n")
        return line if _NAMED.get(line) == self else self.text("{x}", "{y}")


_NAMED = {
    line: Template(line[0], line[2:-2], f"{line[-1]}\n") for line in (TEMPLATE, "[x, y]", "{x: y}", "<x; y>")
}
TEMPLATES: Mapping[str, Template] = MappingProxyType(_NAMED)
"""Name → template; `core.TEMPLATE` is the default."""
DEFAULT = TEMPLATES[TEMPLATE]


class Tokenizer(Protocol):
    """What rendering needs of a Hugging Face tokenizer, besides its `bos_token_id`."""

    def __call__(self, text: Any, **options: Any) -> Any: ...  # noqa: D102
    def convert_ids_to_tokens(self, ids: list[int]) -> Any: ...  # noqa: D102
    def get_vocab(self) -> dict[str, int]: ...  # noqa: D102


def parse_template(name: str) -> Template:
    """The template of a name such as `[x, y]`, or of a text such as `Q: {x}\\nA: {y}\\n`.

    Raises:
        TaskError: when it is neither, or nothing stands between x and y or behind y.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    before, x, rest = name.partition("{x}")
    separator, y, close = rest.partition("{y}")
    if not (x and y) or "{x}" in rest or "{y}" in before + close:
        raise TaskError(
            f"template {name!r}", "unknown",
            f"{nearest(name, TEMPLATES, n=1)}; or a text with {{x}} and then {{y}}, each once.",
        )  # fmt: skip
    if not separator or not close:
        raise TaskError(
            f"template {name!r}", f"nothing stands {'behind {y}' if separator else 'between {x} and {y}'}",
            "Write something there, such as a space or a newline.",
        )  # fmt: skip
    return Template(before, separator, close)


def render(pairs: Sequence[Pair], template: Template = DEFAULT) -> str:
    """The text of examples: a newline, then a line such as `(x, y)\\n` for each."""
    return "\n" + "".join(template.text(x, y) for x, y in pairs)


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text alone, without what the tokenizer puts before or after a sequence."""
    return _ids(tokenizer, text, special=False)


def _ids(tokenizer: Tokenizer, text: str, *, special: bool) -> list[int]:
    return list(_tokenised(tokenizer, text, add_special_tokens=special).input_ids)


def _tokenised(tokenizer: Tokenizer, text: str | list[str], **options: bool) -> Any:
    try:
        return tokenizer(text, verbose=False, **options)
    except Exception as cause:
        shown = repr((text if isinstance(text, str) else text[0])[:40])
        if isinstance(cause, NotImplementedError):  # slow tokenizers have no offsets
            raise TokenizerError(
                f"prompts such as {shown}", "the tokenizer does not say where its tokens begin and end",
                "Give the model folder a tokenizer.json.",
            ) from cause  # fmt: skip
        if type(cause) is not Exception:  # the bare class is how a vocabulary without <unk> refuses a text
            raise
        raise TokenizerError(
            f"the tokens of {shown}", f"the tokenizer has none ({cause})",
            "Use a model whose tokenizer knows every text, or one of the characters that it knows.",
        ) from cause  # fmt: skip


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer itself puts before a text, and after it."""
    alone, whole = (_ids(tokenizer, _BESIDE, special=special) for special in (False, True))
    starts = (at for at in range(len(whole)) if whole[at : at + len(alone)] == alone)
    start = next(starts, 0)
    return whole[:start], whole[start + len(alone) :]


def bos_id(tokenizer: Tokenizer) -> int | None:
    """The token that a sequence begins with; None where the tokenizer has none.

    It is what the tokenizer itself puts before a text. Where it puts nothing there, or its `bos_token` among
    others, it is that token; but none where the tokenizer's config says so (`add_bos_token`), or where its
    chat template writes that token out, as the begin of a turn.
    """
    before, _ = _around(tokenizer)
    made: Any = cast("Any", tokenizer)  # what follows is set on the class of tokenizers only while running
    named = made.bos_token_id
    if before and named not in before:
        return before[0]
    if not before and named is not None:
        declared = (getattr(made, "init_kwargs", None) or {}).get("add_bos_token")
        begins_turns = str(getattr(made, "bos_token", None)) in (getattr(made, "chat_template", None) or "")
        return None if declared is False or begins_turns else named
    return named


def bos_in_words(tokenizer: Tokenizer) -> str:
    """What sequences begin with, for a log or a card."""
    bos = bos_id(tokenizer)
    if bos is None:
        return "none"
    before, after = _around(tokenizer)
    piece = tokenizer.convert_ids_to_tokens([bos])[0]
    own = "" if (before, after) == ([bos], []) else (
        f" (the tokenizer by itself puts {tokenizer.convert_ids_to_tokens(before)} before a text and "
        f"{tokenizer.convert_ids_to_tokens(after)} after it)"
    )  # fmt: skip
    return f"{piece}, id {bos}, once{own}"


@dataclass(frozen=True)
class Split:
    """Tokens of one prompt, and the span of each."""

    ids: Ids  # without BOS, [pos]
    # 0 for what stands before the first example, then 1 + 5 × example + number of the span, [pos]
    span: NDArray[np.int64]

    def counts(self, examples: int) -> NDArray[np.int64]:
        """Tokens of each span of each example, [example span]."""
        return np.bincount(self.span, minlength=1 + len(SPANS) * examples)[1:].reshape(examples, -1)


def split(
    tokenizer: Tokenizer, prompts: Sequence[Sequence[Pair]], template: Template = DEFAULT
) -> list[Split]:
    """The tokens of prompts, each tokenised as a whole, and which span of which example each belongs to.

    Raises:
        TokenizerError: when an x or a y has no token of its own, or a token is unknown, naming the first such
            example and its tokens; or when the tokenizer does not say where its tokens are.
    """
    if not prompts:
        return []
    texts = [render(pairs, template) for pairs in prompts]
    encoded = _tokenised(tokenizer, texts, add_special_tokens=False, return_offsets_mapping=True)
    unknown = getattr(tokenizer, "unk_token_id", None)
    out = []
    _refuse_changed(tokenizer, texts)
    for pairs, text, ids, offsets in zip(
        prompts, texts, encoded.input_ids, encoded.offset_mapping, strict=True
    ):
        made = _owned(text, [s for x, y in pairs for s in template.spans(x, y)], ids, offsets)
        counts = made.counts(len(pairs))
        lacking = (counts[:, SPANS.index("x")] == 0) | (counts[:, SPANS.index("y")] == 0)
        strange = np.maximum(made.span[made.ids == unknown] - 1, 0) // len(SPANS)
        lacking |= np.isin(np.arange(len(pairs)), strange)
        if lacking.any():
            example = int(lacking.argmax())
            own = made.ids[(made.span - 1) // len(SPANS) == example].tolist()
            line = template.text(*pairs[example]).replace("\n", r"\n")
            raise TokenizerError(
                f"tokens of x and of y in '{line}'",
                f"the tokenizer gives {tokenizer.convert_ids_to_tokens(own)}",
                "Use inputs and answers that it knows, or another template.",
            )
        out.append(made)
    return out


def _refuse_changed(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Refuse texts that the tokenizer changes before it splits them, but for a space before them."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is None:
        return
    for text in texts:
        read = normalizer.normalize_str(text).replace("▁", " ")  # as sentencepiece writes spaces
        if read.lstrip(" ") != text.lstrip(" "):
            raise TokenizerError(
                f"prompts such as {text[:40]!r}", f"the tokenizer reads them as {read[:40]!r}",
                "Use inputs and answers that it leaves as they are, or another model.",
            )  # fmt: skip


def _owned(text: str, spans: Sequence[str], ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> Split:
    """The span of each token of a text, from where its characters begin and end."""
    lengths = np.array([len(text) - sum(map(len, spans)), *map(len, spans)])
    span_of = np.repeat(np.arange(len(lengths)), lengths)  # [character]
    at = np.arange(len(text))
    visible = np.maximum.accumulate(np.where([not c.isspace() for c in text], at, -1))
    begin, end = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    last = np.maximum(end - 1, 0)
    seen = visible[last]
    # A token of spaces alone belongs to the span of the last of them.
    owner = span_of[np.where(seen >= begin, seen, last)]
    return Split(np.array(ids, dtype=np.int64), np.maximum.accumulate(owner))


def layout_of(splits: Sequence[Split], bos: int | None) -> Layout:
    """The narrowest layout that has room for some prompts.

    Raises:
        TokenizerError: when the token before y is part of x in some examples and not in others.
    """
    widths, prefix = np.zeros(len(SPANS), dtype=np.int64), 0
    fewest = np.iinfo(np.int64).max
    for one in splits:
        counts = one.counts(-(-int(one.span.max(initial=0)) // len(SPANS)))
        if len(counts):
            widths = np.maximum(widths, counts.max(axis=0))
            fewest = min(fewest, int(counts[:, SPANS.index("separator")].min()))
        prefix = max(prefix, int((one.span == 0).sum()))
    if widths[SPANS.index("separator")] and not fewest:
        raise TokenizerError(
            "the token before y",
            "in some examples it is part of x, in others it is not",
            "Use a template with a mark between x and y, such as (x, y).",
        )
    return Layout((bos is not None) + prefix, *widths.tolist())


def laid_out(splits: Sequence[Split], layout: Layout, bos: int | None, examples: int) -> Ids:
    """Prompts of so many examples in the columns of a layout that has room for them, [prompt column]."""
    ends = np.concatenate(
        [
            [layout.prefix],
            layout.prefix
            + (layout.example * np.arange(examples)[:, None] + np.cumsum(layout.widths)).ravel(),
        ]
    )  # the column behind each span, [span]
    out = np.full((len(splits), layout.length(examples)), PADDING, dtype=np.int64)
    if bos is not None:
        out[:, 0] = bos
    for row, one in zip(out, splits, strict=True):
        n_tokens = np.bincount(one.span, minlength=len(ends))
        last = np.cumsum(n_tokens)[one.span]  # the token behind those of the span, [pos]
        row[ends[one.span] - last + np.arange(len(one.ids))] = one.ids
    return out


def encode_examples(tokenizer: Tokenizer, pairs: Sequence[Pair], template: Template = DEFAULT) -> Ids:
    """Token ids of BOS, if there is one, a newline and the examples, without padding, as [pos].

    `pairs` are x and y of each example.

    Raises:
        TokenizerError: as `split`.
    """
    bos = bos_id(tokenizer)
    (one,) = split(tokenizer, [pairs], template)
    return np.concatenate([np.array([] if bos is None else [bos], dtype=np.int64), one.ids])


def answer_ids(tokenizer: Tokenizer, answers: Sequence[str], template: Template = DEFAULT) -> Ids:
    """The first token of each answer as it stands in an example, [answer]: what is predicted at `pre`."""
    splits = split(tokenizer, [[(_BESIDE, answer)] for answer in answers], template)
    y = 1 + SPANS.index("y")
    return np.array([one.ids[one.span == y][0] for one in splits], dtype=np.int64)


def six_tokens(tokenizer: Tokenizer, template: Template = DEFAULT) -> bool:
    """Whether numbers of one, two and three digits are one token each, and examples of them six."""
    try:
        bos, splits = bos_id(tokenizer), split(tokenizer, [_TRIED], template)
    except TokenizerError:
        return False
    counts = splits[0].counts(len(_TRIED))
    return layout_of(splits, bos) == SIX_TOKENS and bool((counts == SIX_TOKENS.widths).all())


def check_six_tokens(tokenizer: Tokenizer) -> None:
    """Raise a TokenizerError unless examples of numbers are `core.SIX_TOKENS`."""
    if not six_tokens(tokenizer):
        x, y = _TRIED[0]
        tokens = tokenizer.convert_ids_to_tokens(text_ids(tokenizer, DEFAULT.text(x, y)))
        bos = "" if bos_id(tokenizer) is not None else ", and has no BOS"
        raise TokenizerError(
            f"BOS, a newline and six tokens for each example of numbers, such as ({x}, {y})",
            f"the tokenizer gives {tokens}{bos}",
            "Use a model whose tokenizer does, as Llama-3's; or train on running text (data.kind: text).",
        )


_TAKEN: WeakKeyDictionary[Tokenizer, tuple[int, str]] = WeakKeyDictionary()
"""Fingerprints of tokenizers, each beside the number of tokens that it had."""


def fingerprint(tokenizer: Tokenizer) -> str:
    """sha256 over the vocabulary, 16 hex digits; taken once, and again when tokens were added."""
    n_tokens = len(cast("Any", tokenizer))
    known = _TAKEN.get(tokenizer)
    if known is None or known[0] != n_tokens:
        vocabulary = sorted(tokenizer.get_vocab().items())
        known = n_tokens, hashlib.sha256(repr(vocabulary).encode()).hexdigest()[:16]
        _TAKEN[tokenizer] = known
    return known[1]
