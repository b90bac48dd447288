"""Task specs: strings such as `2x+3`, `50-x`, `x//2+4`, `x%7`, `2x~5`, `odd`, `word:opposite`.

1. A named task is looked up. 2. Otherwise the formula grammars are tried in order. 3. A spec that
fits none raises a TaskError with the nearest valid form.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

from iclens.errors import TaskError, nearest
from iclens.tasks import rules
from iclens.tasks.rules import NAMED, Task

EXAMPLES = ("2x+3", "3x", "x+5", "2x+3~5", "x//2+4", "50-x", "x%7", "7", *NAMED)
"""One valid spec of every kind."""

_AFFINE = re.compile(r"(\d*)\*?x([+-]\d+)?(?:~(\d+))?", re.ASCII)
_FORMS: tuple[tuple[re.Pattern[str], Callable[..., Task]], ...] = (
    (
        re.compile(r"x//(0*[1-9]\d*)([+-]\d+)?", re.ASCII),
        lambda d, b=0: rules.half(f"x//{d}{_signed(b)}", d, b),
    ),
    (re.compile(r"x%(0*[1-9]\d*)", re.ASCII), lambda m: rules.modulo(f"x%{m}", m)),
    (re.compile(r"(\d+)-x", re.ASCII), lambda c: rules.reflection(f"{c}-x", c)),
    (re.compile(r"(\d+)", re.ASCII), lambda c: rules.constant(f"{c}", c)),
)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def parse_task(spec: str) -> Task:
    """The task that `spec` names.

    Spaces and a `y=` in front are ignored; `x+0` and `1x` are written canonically as `x`, `x//2+0` as `x//2`.

    Raises:
        TaskError: naming the nearest valid form.
    """
    text = spec.replace(" ", "").removeprefix("y=")
    if text in NAMED:
        return NAMED[text]
    if match := _AFFINE.fullmatch(text):
        slope, offset, spread = int(match[1] or 1), int(match[2] or 0), int(match[3] or 0)
        if slope:
            name = (str(slope) if slope > 1 else "") + "x" + _signed(offset)
            if spread:
                return rules.approximate(f"{name}~{spread}", slope, offset, spread)
            return rules.affine(name, slope, offset)
    for pattern, build in _FORMS:
        if match := pattern.fullmatch(text):
            return build(*(int(number) for number in match.groups() if number))
    raise TaskError(f"task '{spec}'", "no such task", nearest(text, EXAMPLES) + ".")


def _signed(offset: int) -> str:
    return f"{offset:+d}" if offset else ""


def expand(pattern: str) -> list[str]:
    """Specs of a pattern with ranges: `{1..2}x+{0..1}` gives `1x+0`, `1x+1`, `2x+0`, `2x+1`."""
    parts = _RANGE.split(pattern)
    literals = parts[::3]
    ranges = [range(int(a), int(b) + 1) for a, b in zip(parts[1::3], parts[2::3], strict=True)]
    return [
        literals[0] + "".join(f"{n}{text}" for n, text in zip(combo, literals[1:], strict=True))
        for combo in itertools.product(*ranges)
    ]
