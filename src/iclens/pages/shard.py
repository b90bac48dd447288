"""Rows for a page's script: an assignment in `data/*.js`, because a page from disk cannot fetch.

A table of many rows goes column by column, each column one string: a hundred thousand rows are then read in
a fraction of a second, and a value that is not there costs one byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from iclens.pages import text

_DIGITS = re.compile(r"(\d+)")
_ZERO = re.compile(r"^(-?)0\.")


def shard(name: str, value: Any) -> str:
    """The script `data/<name>.js`, which gives `value` to whoever asked `iclens.need(name)` for it.

    Unfit characters are spelt out, and `<`, `>` and `&` written as escapes, so that text stays inert wherever
    it is put.

    Args:
        name: of the shard, with forward slashes.
        value: plain lists, dictionaries, strings and finite numbers; None where undefined.

    Raises:
        ValueError: for a number that is not finite.
    """
    content = json.dumps(_spelt(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        content = content.replace(character, f"\\u{ord(character):04x}")
    return f'"use strict";\niclens.give({json.dumps(name)}, {content});\n'


def _spelt(value: Any) -> Any:
    """Plain values with every unfit character of their texts spelt out."""
    if isinstance(value, str):
        return text.spelt_out(value)
    if isinstance(value, dict):
        return {key: _spelt(inner) for key, inner in value.items()}
    return [_spelt(inner) for inner in value] if isinstance(value, list | tuple) else value


def joined(values: Iterable[str]) -> str:
    """A column of a shard: its values with a space between; an empty one is undefined."""
    return " ".join(values)


def number_column(values: Iterable[float]) -> str:
    """A column of numbers, at the three digits that pages show."""
    return joined(map(_short, values))


def _short(value: float) -> str:
    """The number without what says nothing: `.012`, `-3`, `1.6e-7`; "" where it is undefined."""
    rounded = text.three_digits(value)
    if rounded is None:
        return ""
    if rounded.is_integer() and abs(rounded) < 1e6:
        return str(int(rounded))
    return _ZERO.sub(r"\1.", repr(rounded)).replace("e-0", "e-")


def word_column(values: Sequence[str]) -> tuple[list[str], str]:
    """A column of words: the different ones in reading order, and each row's place among them; "" has none.

    Reading order puts `L10` after `L2`, so that a script sorts by the place alone.
    """
    words = sorted(set(values) - {""}, key=_reading_order)
    place = {"": ""} | {word: str(i) for i, word in enumerate(words)}
    return words, joined(place[value] for value in values)


def _reading_order(word: str) -> tuple[list[tuple[int, int, str]], str]:
    parts = [part for part in _DIGITS.split(word.casefold()) if part]
    return [_number_order(part) if part.isdecimal() else (1, 0, part) for part in parts], word


def _number_order(digits: str) -> tuple[int, int, str]:
    """The order of a whole number of any length: of two, the longer is the larger."""
    significant = digits.lstrip("0")
    return 0, len(significant), significant
