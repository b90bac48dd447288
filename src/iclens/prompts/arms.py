"""Which arms does a design have? Each as data: what its labels are, or what its contexts are made of.

Prompts of equal (seed, index) have the same queries at the same `n_seen` in every arm; what differs is what
the model was shown before. An *inline* arm changes labels: `pre` of example j is a query that has seen j
examples. A *probed* arm changes the context itself, so every query gets a sequence of its own: arm T's j-th
query after a context of j examples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from iclens.core import TaskError, nearest
from iclens.prompts.tasks import Task, expand, parse_task

Rng = np.random.Generator
HINTED = 2
"""Examples at the start of Q- and Q0 that carry the hint."""
RIVALS = tuple(expand("{1..5}x+{0..11}"))
"""Tasks whose agreement makes an example ambiguous (A-, A+)."""
FILLER = ""
"""Stands in a context for a slot that is filled with newlines."""


@dataclass(frozen=True)
class Shown:
    """What an arm is made from, for one prompt.

    Args:
        task: the task.
        rival: the other task of arms that show two.
        x: the queries' inputs, [example].
        own: the task's own labels of them, [example].
        pool: every allowed input.
        number: the number in the arm's code, or 0.
    """

    task: Task
    rival: Task | None
    x: list[str]
    own: list[str]
    pool: Sequence[str]
    number: int = 0


Labels = Callable[[Shown, Rng], list[str]]
Contexts = Callable[[Shown, Rng], list[list[tuple[str, str]]]]


@dataclass(frozen=True)
class Arm:
    """One arm.

    Args:
        code: as it is written in a config, for example "N5".
        meaning: what it shows, in words.
        stream: number of its random stream; T, S and R keep the ones they always had.
        labels: the labels of an inline arm; None for a probed one.
        contexts: the context before each query of a probed arm; None for an inline one.
        number: the number in the code, or 0.
        needs_rival: whether it shows a second task.
    """

    code: str
    meaning: str
    stream: int
    labels: Labels | None = None
    contexts: Contexts | None = None
    number: int = 0
    needs_rival: bool = False

    @property
    def probed(self) -> bool:
        """Whether every query has a sequence of its own."""
        return self.contexts is not None


def parse_arm(code: str) -> Arm:
    """The arm of a code.

    Raises:
        TaskError: naming the nearest code.
    """
    match = re.fullmatch(r"([NCE])([1-9]\d*)", code)
    key = f"{match[1]}#" if match else code
    if key not in ARMS:
        known = [k.replace("#", "2") for k in ARMS]
        raise TaskError(f"arm '{code}'", "unknown", f"{nearest(code, known)}; one of {', '.join(known)}.")
    arm, number = ARMS[key], int(match[2]) if match else 0
    stream = arm.stream + (100 * number if key == "E#" else 0)
    meaning = arm.meaning.replace("#", str(number))
    return Arm(code, meaning, stream, arm.labels, arm.contexts, number, arm.needs_rival)


def other_task(spec: str, studied: Task) -> Task:
    """A task whose values can stand against those of the studied one: one answer per x, the same inputs.

    Raises:
        TaskError: when it could not serve.
    """
    task = parse_task(spec)
    cause = (
        "it is the studied task itself" if task.name == studied.name
        else "it has several answers at an x" if not task.deterministic
        else f"its x are {task.domain}s, not {studied.domain}s" if task.domain != studied.domain
        else ""
    )  # fmt: skip
    if cause:
        raise TaskError(
            f"task '{spec}' as a control",
            cause,
            "Name another task with one answer per x on the same inputs, or none.",
        )
    return task


def default_rival(task: Task) -> Task:
    """A task like this one that it can be told from: same family, other slope or constant.

    Raises:
        TaskError: when none suggests itself.
    """
    if task.family in ("affine", "approx") and task.slope is not None and task.offset is not None:
        return parse_task(f"{task.slope + 1}x{max(task.offset - 2, 0):+d}")
    swaps = {"odd": "even", "even": "odd", "word:opposite": "word:same", "word:same": "word:opposite",
             "letter:next": "letter:previous", "letter:previous": "letter:next"}  # fmt: skip
    if task.name in swaps:
        return parse_task(swaps[task.name])
    if task.domain == "number" and task.answers == "number":
        return parse_task("x+5")
    raise TaskError(
        f"a rival of '{task.name}'",
        "none suggests itself",
        "Set `rival` (prompts.rival in a study) to another task on the same inputs.",
    )


def _own(shown: Shown, _: Rng) -> list[str]:
    return list(shown.own)


def _deranged(shown: Shown, rng: Rng) -> list[str]:
    n = len(shown.x)
    order = rng.permutation(n)
    while n > 1 and (order == np.arange(n)).any():
        order = rng.permutation(n)
    return [shown.own[i] for i in order]


def _uniform(shown: Shown, rng: Rng) -> list[str]:
    options = sorted({y for value in shown.pool for y in shown.task.outcomes(value)})
    return [options[i] for i in rng.integers(0, len(options), len(shown.x))]


def _numbers(shown: Shown, arm: str) -> list[int]:
    """The task's answers over its inputs, as numbers."""
    found = sorted({y for value in shown.pool for y in shown.task.outcomes(value)})
    if not all(y.isdigit() for y in found):
        raise TaskError(
            f"arm {arm} of task '{shown.task.name}'",
            "its answers are words",
            "This arm needs a task of numbers: leave it out of the arms (prompts.arms in a study).",
        )
    return [int(y) for y in found]


def _odd(shown: Shown, rng: Rng) -> list[str]:
    found = _numbers(shown, "O")
    options = [n for n in range(min(found), max(found) + 1) if n % 2]
    if not options:
        raise TaskError(
            f"arm O of task '{shown.task.name}'",
            "no odd answer in its range",
            "Leave it out of the arms (prompts.arms in a study).",
        )
    return [str(options[i]) for i in rng.integers(0, len(options), len(shown.x))]


def _rival_label(shown: Shown, x: str) -> str:
    if shown.rival is None:
        raise TaskError(
            f"arms of task '{shown.task.name}'",
            "no rival task",
            "Set `rival` (prompts.rival in a study) to a second task.",
        )
    return shown.rival.answer(x)


def _own_then_rival(shown: Shown, _: Rng) -> list[str]:
    half = len(shown.x) // 2
    return [*shown.own[:half], *(_rival_label(shown, x) for x in shown.x[half:])]


def _rival_then_own(shown: Shown, _: Rng) -> list[str]:
    half = len(shown.x) // 2
    return [*(_rival_label(shown, x) for x in shown.x[:half]), *shown.own[half:]]


def _rival_hint(shown: Shown, _: Rng) -> list[str]:
    return [*(_rival_label(shown, x) for x in shown.x[:HINTED]), *shown.own[HINTED:]]


def _neutral_hint(shown: Shown, rng: Rng) -> list[str]:
    return [*_uniform(shown, rng)[:HINTED], *shown.own[HINTED:]]


def _noisy(shown: Shown, rng: Rng) -> list[str]:
    _numbers(shown, f"N{shown.number}")
    moved = np.array([int(y) for y in shown.own]) + np.rint(rng.normal(0, shown.number, len(shown.x)))
    return [str(int(y)) for y in np.clip(moved, 0, 999)]


def _one_wrong(shown: Shown, rng: Rng) -> list[str]:
    if shown.number >= len(shown.x):
        raise TaskError(
            f"arm C{shown.number}",
            f"prompts have {len(shown.x)} examples",
            f"The number is of an example: C0 to C{len(shown.x) - 1}.",
        )
    options = sorted(
        {y for value in shown.pool for y in shown.task.outcomes(value)} - {shown.own[shown.number]}
    )
    if not options:
        raise TaskError(
            f"arm C{shown.number} of task '{shown.task.name}'",
            "every answer of the task is the same",
            "It has no wrong label: leave the arm out (prompts.arms in a study).",
        )
    labels = list(shown.own)
    labels[shown.number] = options[rng.integers(0, len(options))]
    return labels


def _from(shown: Shown, indices: Sequence[int]) -> list[tuple[str, str]]:
    return [(shown.x[i], shown.own[i]) for i in indices]


def _repeated(shown: Shown, _: Rng) -> list[list[tuple[str, str]]]:
    return [_from(shown, [0] * n) for n in range(len(shown.x))]


def _alternated(shown: Shown, _: Rng) -> list[list[tuple[str, str]]]:
    return [_from(shown, [i % 2 for i in range(n)]) for n in range(len(shown.x))]


def _reordered(shown: Shown, rng: Rng) -> list[list[tuple[str, str]]]:
    return [_from(shown, rng.permutation(n).tolist()) for n in range(len(shown.x))]


def _late(shown: Shown, _: Rng) -> list[list[tuple[str, str]]]:
    last = len(shown.x) - 1
    return [[(FILLER, FILLER)] * (last - n) + _from(shown, range(n)) for n in range(len(shown.x))]


def _by_ambiguity(shown: Shown, rng: Rng, arm: str) -> list[tuple[str, str]]:
    """Inputs that are no query, from the one that most rival tasks answer alike to the one that fewest do."""
    left = [x for x in shown.pool if x not in set(shown.x)]
    if len(left) < 2 * (len(shown.x) - 1) or shown.task.domain != "number":
        raise TaskError(
            f"arm {arm} of task '{shown.task.name}'", f"{len(left)} inputs beside the queries",
            f"It needs {2 * (len(shown.x) - 1)} numbers: lower n_examples, or allow more inputs.",
        )  # fmt: skip
    rivals = [parse_task(spec) for spec in RIVALS]
    shared = [sum(r.answer(x) == shown.task.answer(x) for r in rivals) for x in left]
    order = np.lexsort((rng.random(len(left)), -np.array(shared)))
    return [(left[i], shown.task.answer(left[i])) for i in order]


def _ambiguous(shown: Shown, rng: Rng) -> list[list[tuple[str, str]]]:
    order = _by_ambiguity(shown, rng, "A-")[: len(shown.x) - 1]
    return [order[:n] for n in range(len(shown.x))]


def _diagnostic(shown: Shown, rng: Rng) -> list[list[tuple[str, str]]]:
    order = _by_ambiguity(shown, rng, "A+")[::-1][: len(shown.x) - 1]
    return [order[:n] for n in range(len(shown.x))]


ARMS: dict[str, Arm] = {
    arm.code: arm
    for arm in (
        Arm("T", "the task's own labels", 2, _own),
        Arm("S", "the same labels, deranged within the prompt", 3, _deranged),
        Arm("R", "labels drawn uniformly from the task's answers", 4, _uniform),
        Arm("O", "random odd labels in the task's range", 5, _odd),
        Arm("D", "the first example again and again", 6, contexts=_repeated),
        Arm("D2", "the first two examples in turn", 7, contexts=_alternated),
        Arm("W", "the task's labels, in the second half a rival's", 8, _own_then_rival, needs_rival=True),
        Arm("Wr", "a rival's labels, in the second half the task's", 9, _rival_then_own, needs_rival=True),
        Arm("E#", "the same examples before each query, in order #", 10, contexts=_reordered),
        Arm("P", "newlines, then the examples, the query always in the last place", 11, contexts=_late),
        Arm("Q-", "two examples of a rival first", 12, _rival_hint, needs_rival=True),
        Arm("Q0", "two examples with random labels first", 13, _neutral_hint),
        Arm("A-", "other inputs, whose answer many rival tasks share", 14, contexts=_ambiguous),
        Arm("A+", "other inputs, whose answer few rival tasks share", 15, contexts=_diagnostic),
        Arm("N#", "label noise: a rounded normal of standard deviation # added", 16, _noisy),
        Arm("C#", "one wrong label, at example #", 17, _one_wrong),
    )
}
"""Arms by code; # stands for a number."""
