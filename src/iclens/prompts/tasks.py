"""Tasks: rules and pairs that give y for x, how they are written, and the words that some of them use."""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from iclens.core import TaskError, nearest
from iclens.prompts.pairs import FILE, PREFIX, checked, parse_pairs, shipped

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
    # x of a task of pairs, from which its prompts are drawn. Empty for a rule, whose domain has them.
    inputs: tuple[str, ...] = field(default=(), compare=False, repr=False)
    # further x of a task of pairs, for prompts on which nothing was chosen
    held_out: tuple[str, ...] = field(default=(), compare=False, repr=False)
    kind: str = field(default="", compare=False)  # of x, in words, where pairs that ship say it

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
                "no pair has this x" if self.inputs else f"not a {self.domain}",
                f"Its inputs have to be {'x of its pairs' if self.inputs else f'{self.domain}s'}.",
            ) from cause
        if not outcomes:
            raise TaskError(
                f"task '{self.name}' at x={x}",
                "no answer in 0..999",
                "Choose inputs (prompts.numbers in a study) at which the answer is from 0 to 999.",
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


def default_inputs(task: Task | str, numbers: range = range(50)) -> tuple[str, ...]:
    """The inputs of a task, or of a domain by its name.

    Those of pairs are the pairs' own; those of a domain are `numbers`, the 26 letters, or the words with
    opposites.
    """
    if isinstance(task, Task) and task.inputs:
        return task.inputs
    domain = task if isinstance(task, str) else task.domain
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


EXAMPLES = ("2x+3", "3x", "x+5", "2x+3~5", "x//2+4", "50-x", "x%7", "7", *NAMED, f"{PREFIX}capital")
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


def pairs_task(name: str, pairs: Mapping[str, str] | str | Path) -> Task:
    """A task of your own pairs, with one answer to every x.

    No spec names it: a study, which names its tasks in YAML, takes the spec of a file, `pairs:colours.csv`.

    Args:
        name: what tables and errors call it, after `pairs:`; not that of pairs that ship.
        pairs: x → y, as texts; or the path of a `.jsonl`, `.csv` or `.yaml` file of them.

    Raises:
        TaskError: for a name that is taken, a file that cannot be read, and pairs that can be no task.
    """
    spec = f"{PREFIX}{name}"
    taken = name in shipped() or FILE.fullmatch(spec)
    if taken or not name or name != " ".join(name.split()):
        raise TaskError(
            f"pairs by the name {name!r}",
            "what a spec already names" if taken else "no name on one line",
            "Give one of your own, such as 'colours'.",
        )
    if isinstance(pairs, Mapping):
        rows = ((f"pair {n}", x, y) for n, (x, y) in enumerate(pairs.items(), 1))
        return _of_pairs(spec, checked(rows, f"task '{spec}'"))
    return _of_pairs(spec, _read(str(pairs)))


def _of_pairs(spec: str, pairs: Mapping[str, str], held_out: Mapping[str, str] | None = None) -> Task:
    every = {**pairs, **(held_out or {})}
    domain, answers = ("number" if all(text.isdigit() for text in texts) else "word"
                       for texts in (every, every.values()))  # fmt: skip
    return Task(
        spec, domain, "word", answers, lambda x: {every[x]: 1.0}, inputs=tuple(pairs),
        held_out=tuple(held_out or ()),
    )  # fmt: skip


def _read(path: str) -> dict[str, str]:
    """The pairs of a file, which is read each time and parsed once for each content."""
    if not FILE.fullmatch(f"{PREFIX}{path}"):
        remedy = "Give a file whose name ends with .jsonl, .csv or .yaml."
        raise TaskError(f"pairs of '{path}'", "of no known form", remedy)
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as cause:
        reason = getattr(cause, "strerror", None) or cause
        found = "no such file" if isinstance(cause, FileNotFoundError) else f"unreadable ({reason})"
        remedy = "Name a file, as seen from the current folder."
        raise TaskError(f"pairs of '{path}'", found, remedy) from cause
    return _parsed(content, path)


_parsed = lru_cache(maxsize=64)(parse_pairs)


def _parse_pairs(spec: str) -> Task:
    name = spec.removeprefix(PREFIX).strip()
    if FILE.fullmatch(f"{PREFIX}{name}"):
        return _of_pairs(f"{PREFIX}{name}", _read(name))
    if name not in shipped():
        known = nearest(spec, [f"{PREFIX}{one}" for one in shipped()])
        raise TaskError(f"task '{spec}'", "no such pairs", f"{known}; or name a .jsonl, .csv or .yaml file.")
    known = shipped()[name]
    return replace(_of_pairs(f"{PREFIX}{name}", known.pairs, known.held_out), kind=known.x)


def parse_task(spec: str) -> Task:
    """The task that `spec` names.

    Spaces and a `y=` in front are ignored; `x+0` and `1x` are written canonically as `x`, `x//2+0` as `x//2`.
    `pairs:NAME` are pairs that ship, `pairs:FILE` those of a `.jsonl`, `.csv` or `.yaml` file.

    Raises:
        TaskError: naming the nearest valid form; for pairs that cannot be read or can be no task.
    """
    if spec.strip().startswith(PREFIX):
        return _parse_pairs(spec.strip())
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
    known = dict.fromkeys((*EXAMPLES, *(f"{PREFIX}{name}" for name in shipped())))
    raise TaskError(f"task '{spec}'", "no such task", nearest(text, known) + ".")


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
