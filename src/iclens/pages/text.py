"""Numbers and tokens as text that reads the same on every page.

Numbers keep three significant digits, with a true minus sign, and an undefined one is a dash;
`assets/table.js` follows the same rules. Tokens show their white space and everything that would otherwise
be invisible or reorder the line. What no page can hold is spelt out everywhere: control characters, halves
of a surrogate pair, marks that set the direction of text, characters without width, and code points that
are no characters; line breaks and tabs stay, and so do the two joiners that scripts and emoji are written
with.
"""

from __future__ import annotations

import math
import re
import unicodedata
from functools import lru_cache

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
