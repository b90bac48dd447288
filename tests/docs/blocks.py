"""Which code blocks does a page of the documentation hold? Fenced ones by language, indented ones apart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "checkpoints/**/*.md", "sae_configs/*.md", "analysis/*.md")
    for path in ROOT.glob(pattern)
)
_FENCE = re.compile(r"^( *)(`{3,}|~{3,})\s*(\S*)")
_LIST = re.compile(r"^\s*([-*+]|\d+\.)\s")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        page: the file that holds it.
        line: of its first line of text, from 1.
        language: first word of the info string; empty when there is none.
        text: what stands inside, as far left as the fence.
        follows: whether nothing but blank lines stands between it and the block before.
    """

    page: Path
    line: int
    language: str
    text: str
    follows: bool = field(default=False)

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def fenced(page: Path, text: str) -> Iterator[Block]:
    """The fenced blocks of a page's text, in order.

    Raises:
        ValueError: for a fence that is never closed.
    """
    lines, number, previous_end = text.splitlines(), 0, None
    while number < len(lines):
        opened = _FENCE.match(lines[number])
        if not opened:
            if lines[number].strip():
                previous_end = None
            number += 1
            continue
        indent, fence, language = opened.groups()
        start = number + 1
        number = start
        while number < len(lines) and not re.match(
            rf"^ *{re.escape(fence[0])}{{{len(fence)},}}\s*$", lines[number]
        ):
            number += 1
        if number == len(lines):
            raise ValueError(f"{page}:{start}: the fence is never closed")
        inside = "\n".join(line.removeprefix(indent) for line in lines[start:number])
        yield Block(page, start + 1, language, inside + "\n", follows=previous_end is not None)
        previous_end, number = number, number + 1


def indented(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of every line of an indented block: four spaces after a blank line, not in a list."""
    inside, blank, in_list, fence = False, True, False, ""
    for number, line in enumerate(text.splitlines(), start=1):
        opened = _FENCE.match(line)
        if opened and not inside:
            fence = "" if fence and opened[2].startswith(fence) else fence or opened[2]
            continue
        if fence:
            continue
        if not line.strip():
            blank = True
            continue
        if not line.startswith("    "):
            inside, in_list = False, bool(_LIST.match(line)) or (in_list and line.startswith(" "))
        elif (inside or blank) and not in_list:
            inside = True
            yield number, line.strip()
        blank = False
