"""Tasks: rules that give y for x, how they are written, and the words that some of them use."""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from iclens.core import TaskError, nearest

LETTERS = tuple(string.ascii_lowercase)

OPPOSITE_PAIRS = (
    ("hot", "cold"), ("up", "down"), ("left", "right"), ("old", "new"), ("fast", "slow"),
    ("tall", "short"), ("day", "night"), ("open", "closed"), ("hard", "soft"), ("light", "dark"),
    ("rich", "poor"), ("wet", "dry"), ("full", "empty"), ("high", "low"), ("near", "far"),
    ("good", "bad"), ("early", "late"), ("push", "pull"), ("win", "lose"), ("buy", "sell"),
)  # fmt: skip
OPPOSITE = {a: b for a, b in OPPOSITE_PAIRS} | {b: a for a, b in OPPOSITE_PAIRS}
WORDS = tuple(OPPOSITE)
LABEL_WORDS = ("even", "odd", "small", "big")
VOCABULARIES = (LETTERS, WORDS, LABEL_WORDS)
"""Words that belong together: all of one are spelled alike (`render.spelling`)."""


Outcomes = Mapping[str, float]
DOMAINS = ("number", "letter", "word")
RANDOM_RANGE = range(100)
"""Answers of `odd`, `even` and `random` are uniform over the members of this range."""


@dataclass(frozen=True)
class Task:
    """A rule and what can be said about it."""

    name: str  # the canonical spec, for example `2x+3`; two tasks are equal when their names are
    domain: str = field(compare=False)  # kind of x, one of `DOMAINS`
    # affine, approx, constant, reflection, half, modulo, parity, random, word
    family: str = field(compare=False)
    answers: str = field(compare=False)  # "number" or "word"
    rule: Callable[[str], Outcomes] = field(compare=False, repr=False)  # x → probability of each answer
    # a of an (approximate) affine rule; centres the `double` band. None elsewhere.
    slope: int | None = field(default=None, compare=False)
    # b of an (approximate) affine rule. None elsewhere.
    offset: int | None = field(default=None, compare=False)

    def outcomes(self, x: str) -> Outcomes:
        """P(y | x, task) over answers, summing to 1.

        Raises:
            TaskError: when the rule has no non-negative answer at `x`, or `x` is of another kind.
        """
        try:
            outcomes = self.rule(x)
        except (KeyError, ValueError) as cause:
            raise TaskError(
                f"task '{self.name}' at x='{x}'",
                f"not a {self.domain}",
                f"Its inputs have to be {self.domain}s.",
            ) from cause
        if not outcomes:
            raise TaskError(
                f"task '{self.name}' at x={x}",
                "no answer in 0..999",
                "Choose inputs (prompts.inputs in a study) at which the answer is from 0 to 999.",
            )
        return outcomes

    def answer(self, x: str) -> str:
        """The most probable answer at `x` (the only one of a deterministic rule)."""
        outcomes = self.outcomes(x)
        return max(outcomes, key=lambda y: outcomes[y])

    @property
    def deterministic(self) -> bool:
        """Whether every x has exactly one answer."""
        return self.family not in ("approx", "parity", "random")


def default_inputs(domain: str, numbers: range = range(50)) -> tuple[str, ...]:
    """The inputs of a domain: `numbers`, the 26 letters, or the words with opposites."""
    if domain == "number":
        return tuple(str(n) for n in numbers)
    return LETTERS if domain == "letter" else WORDS


def _uniform(ys: Iterable[int]) -> Outcomes:
    """Equal probability over the numbers from 0 to 999; empty when none is."""
    kept = [y for y in ys if 0 <= y <= 999]
    return {str(y): 1.0 / len(kept) for y in kept}


def _numeric(
    name: str, family: str, answers: Callable[[int], Iterable[int]], slope: int | None = None,
    offset: int | None = None,
) -> Task:  # fmt: skip
    """A task of numbers: y uniform over the `answers` to x, those outside 0 … 999 left out."""
    return Task(name, "number", family, "number", lambda x: _uniform(answers(int(x))), slope, offset)


def _affine(slope: int, offset: int, spread: int) -> Task:
    """y = slope·x + offset, or uniform on that ± spread."""
    name = (str(slope) if slope > 1 else "") + "x" + _signed(offset)
    if not spread:
        return _numeric(name, "affine", lambda x: [slope * x + offset], slope, offset)
    around = range(offset - spread, offset + spread + 1)
    return _numeric(f"{name}~{spread}", "approx", lambda x: [slope * x + b for b in around], slope, offset)


def _wordy(name: str, domain: str, answers: str, rule: Callable[[str], str]) -> Task:
    return Task(name, domain, "word", answers, lambda x: {rule(x): 1.0})


NAMED: dict[str, Task] = {
    task.name: task
    for task in (
        _numeric("odd", "parity", lambda x: [y for y in RANDOM_RANGE if y % 2]),
        _numeric("even", "parity", lambda x: [y for y in RANDOM_RANGE if y % 2 == 0]),
        _numeric("random", "random", lambda x: RANDOM_RANGE),
        _wordy("word:opposite", "word", "word", lambda x: OPPOSITE[x]),
        _wordy("word:same", "word", "word", lambda x: WORDS[WORDS.index(x)]),
        _wordy("word:parity", "number", "word", lambda x: ("even", "odd")[int(x) % 2]),
        _wordy("word:size", "number", "word", lambda x: "small" if int(x) < 25 else "big"),
        _wordy("letter:nth", "number", "word", lambda x: LETTERS[int(x) % 26]),
        _wordy("letter:next", "letter", "word", lambda x: LETTERS[(LETTERS.index(x) + 1) % 26]),
        _wordy("letter:previous", "letter", "word", lambda x: LETTERS[LETTERS.index(x) - 1]),
        _wordy("letter:index", "letter", "number", lambda x: str(LETTERS.index(x) + 1)),
    )
}
"""Tasks that are a name rather than a formula."""


EXAMPLES = ("2x+3", "3x", "x+5", "2x+3~5", "x//2+4", "50-x", "x%7", "7", *NAMED)
"""One valid spec of every kind."""

_AFFINE = re.compile(r"(\d*)\*?x([+-]\d+)?(?:~(\d+))?", re.ASCII)
_FORMS: tuple[tuple[re.Pattern[str], Callable[..., Task]], ...] = (
    (
        re.compile(r"x//(0*[1-9]\d*)([+-]\d+)?", re.ASCII),
        lambda d, b=0: _numeric(f"x//{d}{_signed(b)}", "half", lambda x: [x // d + b]),
    ),
    (re.compile(r"x%(0*[1-9]\d*)", re.ASCII), lambda m: _numeric(f"x%{m}", "modulo", lambda x: [x % m])),
    (re.compile(r"(\d+)-x", re.ASCII), lambda c: _numeric(f"{c}-x", "reflection", lambda x: [c - x], -1, c)),
    (re.compile(r"(\d+)", re.ASCII), lambda c: _numeric(f"{c}", "constant", lambda x: [c], 0, c)),
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
            return _affine(slope, offset, spread)
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
