"""Numbers and tokens as text that reads the same on every page, and rows for a page's script.

Numbers keep three significant digits, with a true minus sign, and an undefined one is a dash;
`assets/table.js` follows the same rules. Tokens show their white space and everything that would otherwise
be invisible or reorder the line. What no page can hold is spelt out everywhere: control characters, halves
of a surrogate pair, marks that set the direction of text, characters without width, and code points that
are no characters; line breaks and tabs stay, and so do the two joiners that scripts and emoji are written
with.

Rows for a script are assignments in `data/*.js`, because a page from disk cannot fetch. A table of many rows
goes column by column, each column one string: a hundred thousand rows are then read in a fraction of a
second, and a value that is not there costs one byte.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

DASH = "–"
_MINUS = "−"
_VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍", "": "∅"}
_CONTINUES = "·"
_UNFIT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufdd0-\ufdef\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    "\U000e0000-\U000e007f]"
)
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}


def minus(words: str) -> str:
    """Words with a true minus sign before each negative number."""
    return re.sub(r"(?<![\w)\]])-(?=\.?\d)", _MINUS, words)


def three_digits(value: float) -> float | None:
    """`value` rounded as `number` shows it; None where it is not finite."""
    return _rounded(value) if math.isfinite(value) else None


def _rounded(value: float) -> float:
    return float(f"{value:.3g}" if _plain(value) or value == 0 else f"{value:.2g}")


def _plain(value: float) -> bool:
    return 1e-3 <= abs(value) < 1e6


def number(value: float | None) -> str:
    """Three significant digits: 0.0123, 12.3, 4,096; two beyond: 1.2e−5; a dash where undefined."""
    if value is None or math.isnan(value):
        return DASH
    if 1e-3 <= abs(value) < 999:
        return f"{value:#.3g}".rstrip(".").replace("-", _MINUS)
    if math.isinf(value):
        return "∞" if value > 0 else f"{_MINUS}∞"
    value = _rounded(value)
    if value == 0:
        return "0"
    if not _plain(value):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", _MINUS)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}".replace("-", _MINUS)


def count(value: int) -> str:
    """A whole number, in groups of three."""
    return f"{value:,}"


def percent(share: float) -> str:
    """A share as a percentage, as numbers are written: 1.2 %."""
    if math.isnan(share):
        return DASH
    value = float(f"{100 * share:.2g}")
    return f"{value:g} %" if value == 0 or 0.01 <= abs(value) < 1000 else f"{number(value)} %"


def interval(low: float, high: float) -> str:
    """[low, high], or nothing where it is undefined."""
    return "" if math.isnan(low) or math.isnan(high) else f"[{number(low)}, {number(high)}]"


def token_text(token: str, continues: bool) -> str:
    """A token of a prompt; a dot stands for one that only `continues` a character that began before."""
    return _CONTINUES if continues and not token else visible(token)


@lru_cache(maxsize=1 << 16)
def visible(token: str) -> str:
    """Token text with white space drawn and invisible characters spelt out."""
    if token in _VISIBLE:
        return _VISIBLE[token]
    return "".join(_VISIBLE.get(c) or (spelt(c) if unicodedata.category(c) in _HIDDEN else c) for c in token)


def spelt(character: str) -> str:
    """A character by its code point: \\u{202e}."""
    return f"\\u{{{ord(character):x}}}"


def spelt_out(words: str) -> str:
    """Words whose every unfit character is spelt out."""
    return _UNFIT.sub(lambda match: spelt(match.group()), words) if _UNFIT.search(words) else words


# ---------------------------------------------------------------- rows for scripts

_DIGITS = re.compile(r"(\d+)")
_ZERO = re.compile(r"^(-?)0\.")


def shard(name: str, value: Any) -> str:
    """The script `data/<name>.js`, which gives `value` to whoever asked `iclens.need(name)` for it.

    Unfit characters are spelt out, and `<`, `>` and `&` written as escapes, so that text stays inert wherever
    it is put. A number that is not finite is refused; None stands for what is undefined.
    """
    content = json.dumps(_spelt(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        content = content.replace(character, f"\\u{ord(character):04x}")
    return f'"use strict";\niclens.give({json.dumps(name)}, {content});\n'


def _spelt(value: Any) -> Any:
    """Plain values with every unfit character of their texts spelt out."""
    if isinstance(value, str):
        return spelt_out(value)
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
    rounded = three_digits(value)
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
