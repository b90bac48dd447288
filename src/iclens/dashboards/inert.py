"""Which characters can no page hold, or would hide or reorder what stands beside them?

They are spelt out in every record before anything is drawn, as tokens spell them (`\\u{202e}`): control
characters, halves of a surrogate pair, marks that set the direction of text, characters without width, and
code points that are no characters. What then reaches a page can be written as UTF-8, HTML, SVG and JSON.
Line breaks and tabs stay, and so do the two joiners that scripts and emoji are written with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from functools import cache
from operator import is_
from typing import Any, TypeVar

from iclens.dashboards.text import spelt

Record = TypeVar("Record")
_PLAIN = {float, int, bool}
_UNFIT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufdd0-\ufdef\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    "\U000e0000-\U000e007f]"
)


def inert(record: Record) -> Record:
    """A record, text, or collection of them with every unfit character spelt out; itself when it has none.

    Args:
        record: frozen dataclasses, sequences and mappings of them, strings; anything else is left alone.

    Returns:
        The same, of the same type.
    """
    found: Record = _inert(record)
    return found


def _inert(record: Any) -> Any:
    kind = record.__class__
    if kind in _PLAIN:
        return record
    if kind is str:
        return _UNFIT.sub(lambda match: spelt(match.group()), record) if _UNFIT.search(record) else record
    if kind is list or kind is tuple:
        if set(map(type, record)) <= _PLAIN:
            return record
        parts = [_inert(part) for part in record]
        return record if all(map(is_, parts, record)) else kind(parts)
    if isinstance(record, Mapping):
        pairs = {_inert(key): _inert(value) for key, value in record.items()}
        return record if all(pairs.get(key) is value for key, value in record.items()) else pairs
    if is_record(kind):
        changed = {
            name: fresh for name, value in vars(record).items() if (fresh := _inert(value)) is not value
        }
        return replace(record, **changed) if changed else record
    return record


@cache
def is_record(kind: type) -> bool:
    """Whether a class is a dataclass."""
    return is_dataclass(kind)
