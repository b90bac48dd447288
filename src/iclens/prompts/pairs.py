"""Pairs: texts x and y that make a task, shipped with the package or read from a file.

A file of pairs is one of

    colours.jsonl    {"x": "sky", "y": "blue"}, an object to a line
    colours.csv      sky,blue, a row to a pair below the header x,y
    colours.yaml     sky: blue, a mapping

Every text is taken as it is written. What can be no task is refused in one line: an empty text, one with a
space around it or a control character in it, two answers to one x, fewer than two pairs.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import yaml

from iclens.core import TaskError

PREFIX = "pairs:"
"""How the spec of a task of pairs begins."""
FILE = re.compile(rf"{PREFIX}(.+\.(?:jsonl|csv|yaml))")
"""A spec that names a file of pairs; its path is the group."""
LARGEST = 999
"""Greatest answer that is a number: beliefs are read over 0 to 999."""
_NUMBER = re.compile("[0-9]{1,18}")
_LONGEST = 60
"""Characters of a text that an error shows."""
_CONTROL = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of line breaks, other control characters and halves of characters."""

Row = tuple[str, object, object]
"""Where a pair stands, its x and its y."""


@dataclass(frozen=True)
class Pairs:
    """Pairs that ship with the package, as `pairs.yaml` has them."""

    about: str  # what y is of x, in one line
    x: str  # kind of x, in words; tasks of one kind can be rivals
    y: str  # kind of y, in words
    pairs: Mapping[str, str]  # x → y
    held_out: Mapping[str, str]  # further pairs, of other x


@cache
def shipped() -> Mapping[str, Pairs]:
    """Name → the pairs that ship with the package."""
    text = (files("iclens.prompts") / "pairs.yaml").read_text(encoding="utf-8")
    return {name: Pairs(**parts) for name, parts in yaml.load(text, yaml.BaseLoader).items()}


def parse_pairs(content: bytes, path: str) -> dict[str, str]:
    """x → y of a file's content; its path says of which form it is, and names it in errors.

    Raises:
        TaskError: when it is not of the form, or its pairs can be no task.
    """
    subject = f"pairs of '{path}'"
    try:
        text = content.decode("utf-8-sig")
        rows = list(_READERS[Path(path).suffix](text, subject))
    except (ValueError, RecursionError, csv.Error, yaml.YAMLError) as cause:
        line = " ".join(str(cause).split())
        remedy = "Write text in UTF-8, of the form that the file's name says."
        raise TaskError(subject, f"unreadable ({line[:300]})", remedy) from cause
    return checked(rows, subject)


def checked(rows: Iterable[Row], subject: str) -> dict[str, str]:
    """x → y of pairs that can be a task, in their order; a pair that stands twice counts once.

    Raises:
        TaskError: beginning with `subject`, for pairs that can be none.
    """
    known: dict[str, str] = {}
    for where, *cells in rows:
        x, y = (_text(cell, name, where, subject) for name, cell in zip("xy", cells, strict=True))
        if y.isdigit() and y not in map(str, range(LARGEST + 1)):
            remedy = f"An answer in digits is a number from 0 to {LARGEST}, without zeros before it."
            raise TaskError(f"{subject}, {where}", f"y is {_shown(y)}", remedy)
        if known.setdefault(x, y) != y:
            both = f"x {_shown(x)} has two answers, {_shown(known[x])} and {_shown(y)}"
            raise TaskError(f"{subject}, {where}", both, "Give every x one y.")
    if len(known) < 2:
        raise TaskError(subject, f"{len(known)} of them", "Give at least two, of different x.")
    return known


def _text(cell: object, name: str, where: str, subject: str) -> str:
    """A cell as text."""
    if isinstance(cell, bool) or not isinstance(cell, str | int):
        wrong, remedy = f"is {_shown(cell)}", "Write a text or a whole number."
    else:
        text = str(cell)
        wrong = (
            "is empty" if not text.strip()
            else "holds a line break or another control character" if _broken(text)
            else "has a space before or after it" if text != text.strip()
            else "is a number, but not of 1 to 18 digits 0 to 9" if _odd_number(text)
            else ""
        )  # fmt: skip
        if not wrong:
            return text
        wrong += f" ({_shown(text)})" if text else ""
        remedy = "Write words or a number on one line, with no space around them."
    raise TaskError(f"{subject}, {where}", f"{name} {wrong}", remedy)


def _odd_number(text: str) -> bool:
    return text.isdigit() and not _NUMBER.fullmatch(text)


def _broken(text: str) -> bool:
    return any(unicodedata.category(character) in _CONTROL for character in text)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


# ------------------------------------------------------------------------------------------ forms of files


def _json_lines(text: str, subject: str) -> Iterator[Row]:
    # Not splitlines: JSON may hold some of the characters at which that splits.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict) or not {"x", "y"} <= row.keys():
                remedy = 'Write an object to a line, {"x": "sky", "y": "blue"}.'
                raise TaskError(f"{subject}, line {number}", "no object with x and y", remedy)
            yield f"line {number}", row["x"], row["y"]


def _table(text: str, subject: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = next(reader, [])
    if not {"x", "y"} <= {*header}:
        remedy = "Its first line names the columns: x,y."
        raise TaskError(subject, f"no columns x and y in {_shown(','.join(header))}", remedy)
    for row in reader:
        if row and len(row) != len(header):
            found = f"{len(row)} values for {len(header)} columns"
            remedy = "Give each column one; put a text that holds a comma in double quotes."
            raise TaskError(f"{subject}, line {reader.line_num}", found, remedy)
        if row:
            yield f"line {reader.line_num}", row[header.index("x")], row[header.index("y")]


def _mapping(text: str, subject: str) -> Iterator[Row]:
    # Nodes rather than a loaded mapping, which would keep the last of several equal keys.
    root = yaml.compose(text, yaml.BaseLoader)
    if not isinstance(root, yaml.MappingNode):
        raise TaskError(subject, "no mapping", "Write lines such as `sky: blue`.")
    for key, value in root.value:
        where = f"line {key.start_mark.line + 1}"
        if not (isinstance(key, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode)):
            raise TaskError(f"{subject}, {where}", "more than a text", "Write lines such as `sky: blue`.")
        yield where, key.value, value.value


_READERS: dict[str, Callable[[str, str], Iterator[Row]]] = {
    ".jsonl": _json_lines, ".csv": _table, ".yaml": _mapping,
}  # fmt: skip
"""Suffix of a file's name → its pairs, one after the other."""
