"""Arms of a design, each as data: what its labels are, or what its contexts are made of.

Prompts of equal (seed, index) have the same queries at the same `n_seen` in every arm; what differs is what
the model was shown before. An *inline* arm changes labels: `pre` of example j is a query that has seen j
examples. A *probed* arm changes the context itself, so every query gets a sequence of its own: arm T's j-th
query after a context of j examples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from iclens.core import TaskError, nearest
from iclens.prompts.pairs import PREFIX, shipped
from iclens.prompts.tasks import Task, default_inputs, expand, parse_task

Rng = np.random.Generator
HINTED = 2
"""Examples at the start of Q- and Q0 that carry the hint."""
RIVALS = tuple(expand("{1..5}x+{0..11}"))
"""Tasks whose agreement makes an example ambiguous (A-, A+)."""
OF_TEN = 10
"""Labels of which N# makes # wrong, where answers are words."""
FILLER = ""
"""Stands in a context for a slot that is filled with newlines."""


@dataclass(frozen=True)
class Shown:
    """What an arm is made from, for one prompt."""

    task: Task
    rival: Task | None  # the other task of arms that show two
    x: list[str]  # the queries' inputs, [example]
    own: list[str]  # the task's own labels of them, [example]
    pool: Sequence[str]  # every allowed input
    number: int = 0  # the number in the arm's code

    @property
    def n(self) -> int:
        """Examples of the prompt."""
        return len(self.x)

    def answers(self) -> list[str]:
        """Every answer of the task over its inputs, sorted as text."""
        return sorted({y for value in self.pool for y in self.task.outcomes(value)})

    def numbers(self, arm: str) -> list[int]:
        """The answers as numbers, in the order of the text."""
        answers = self.answers()
        if not all(y.isdigit() for y in answers):
            raise TaskError(
                f"arm {arm} of task '{self.task.name}'",
                "its answers are words",
                "This arm needs a task of numbers: leave it out of the arms (prompts.arms in a study).",
            )
        return [int(y) for y in answers]

    def rival_labels(self, first: int, last: int) -> list[str]:
        """The rival's labels of examples `first` … `last` − 1."""
        if self.rival is None:
            raise TaskError(
                f"arms of task '{self.task.name}'",
                "no rival task",
                "Set `rival` (prompts.rival in a study) to a second task.",
            )
        return [self.rival.answer(x) for x in self.x[first:last]]


Pair = tuple[str, str]
Labels = Callable[[Shown, Rng], list[str]]
Contexts = Callable[[Shown, Rng], list[list[Pair]]]


@dataclass(frozen=True)
class Arm:
    """One arm: an inline one has `labels`, a probed one has `contexts`."""

    code: str  # as it is written in a config, for example "N5"
    meaning: str  # what it shows, in words
    stream: int  # number of its random stream; T, S and R keep the ones they always had
    labels: Labels | None = None
    contexts: Contexts | None = None  # the context before each query
    number: int = 0  # the number in the code
    needs_rival: bool = False  # whether it shows a second task

    @property
    def probed(self) -> bool:
        """Whether every query has a sequence of its own."""
        return self.contexts is not None


def parse_arm(code: str) -> Arm:
    """The arm of a code."""
    match = re.fullmatch(r"([NCE])([1-9]\d*)", code)
    key = f"{match[1]}#" if match else code
    if key not in ARMS:
        known = [k.replace("#", "2") for k in ARMS]
        raise TaskError(f"arm '{code}'", "unknown", f"{nearest(code, known)}; one of {', '.join(known)}.")
    arm, number = ARMS[key], int(match[2]) if match else 0
    stream = arm.stream + (100 * number if key == "E#" else 0)
    meaning = arm.meaning.replace("#", str(number))
    return replace(arm, code=code, meaning=meaning, stream=stream, number=number)


def other_task(spec: str, studied: Task, inputs: Sequence[str] | None = None) -> Task:
    """A task whose values can stand against those of the studied one: one answer per x, the same inputs.

    `inputs` are the x that the prompts may hold; the studied task's default inputs when not given.
    """
    task = parse_task(spec)
    asked = (default_inputs(studied) if inputs is None else inputs) if task.inputs or studied.inputs else ()
    cause = (
        "it is the studied task itself" if task.name == studied.name
        else "it has several answers at an x" if not task.deterministic
        else f"its x are {task.domain}s, not {studied.domain}s" if task.domain != studied.domain
        else _unanswered(task, asked)
    )  # fmt: skip
    if cause:
        raise TaskError(
            f"task '{spec}' as a control",
            cause,
            "Name another task with one answer per x on the same inputs, or none.",
        )
    return task


def _unanswered(task: Task, inputs: Iterable[str]) -> str:
    """That the task has no answer at one of the inputs, in words; "" where it has one at each."""
    for x in inputs:
        try:
            task.outcomes(x)
        except TaskError:
            return f"it has no answer at x '{x}'"
    return ""


def default_rival(task: Task) -> Task:
    """A task like this one that it can be told from.

    The same family with another slope or constant; of pairs that ship, the first others of the same kind of x
    that have every x.
    """
    if task.family in ("affine", "approx") and task.slope is not None and task.offset is not None:
        return parse_task(f"{task.slope + 1}x{max(task.offset - 2, 0):+d}")
    swaps = {"odd": "even", "even": "odd", "word:opposite": "word:same", "word:same": "word:opposite",
             "letter:next": "letter:previous", "letter:previous": "letter:next"}  # fmt: skip
    if task.name in swaps:
        return parse_task(swaps[task.name])
    if (own := shipped().get(task.name.removeprefix(PREFIX))) is not None and task.inputs:
        for name, other in shipped().items():
            if other is not own and other.x == own.x and {*task.inputs} <= {*other.pairs, *other.held_out}:
                return parse_task(f"{PREFIX}{name}")
    if task.domain == "number" and task.answers == "number" and not task.inputs:
        return parse_task("x+5")
    raise TaskError(
        f"a rival of '{task.name}'",
        "none suggests itself",
        "Set `rival` (prompts.rival in a study) to another task on the same inputs.",
    )


# ------------------------------------------------------------------------------------ labels of inline arms


def _deranged(shown: Shown, rng: Rng) -> list[str]:
    order = rng.permutation(shown.n)
    while shown.n > 1 and (order == np.arange(shown.n)).any():
        order = rng.permutation(shown.n)
    return [shown.own[i] for i in order]


def _uniform(shown: Shown, rng: Rng) -> list[str]:
    options = shown.answers()
    return [options[i] for i in rng.integers(0, len(options), shown.n)]


def _odd(shown: Shown, rng: Rng) -> list[str]:
    numbers = shown.numbers("O")
    options = [n for n in range(min(numbers), max(numbers) + 1) if n % 2]
    if not options:
        raise TaskError(
            f"arm O of task '{shown.task.name}'",
            "no odd answer in its range",
            "Leave it out of the arms (prompts.arms in a study).",
        )
    return [str(options[i]) for i in rng.integers(0, len(options), shown.n)]


def _own_then_rival(shown: Shown, _: Rng) -> list[str]:
    return shown.own[: shown.n // 2] + shown.rival_labels(shown.n // 2, shown.n)


def _rival_then_own(shown: Shown, _: Rng) -> list[str]:
    return shown.rival_labels(0, shown.n // 2) + shown.own[shown.n // 2 :]


def _rival_hint(shown: Shown, _: Rng) -> list[str]:
    return shown.rival_labels(0, HINTED) + shown.own[HINTED:]


def _neutral_hint(shown: Shown, rng: Rng) -> list[str]:
    return _uniform(shown, rng)[:HINTED] + shown.own[HINTED:]


def _noisy(shown: Shown, rng: Rng) -> list[str]:
    if not all(y.isdigit() for y in shown.answers()):
        return _noisy_words(shown, rng)
    moved = np.array([int(y) for y in shown.own]) + np.rint(rng.normal(0, shown.number, shown.n))
    return [str(int(y)) for y in np.clip(moved, 0, 999)]


def _noisy_words(shown: Shown, rng: Rng) -> list[str]:
    """Each label with probability number / 10 another answer, uniform among those that are wrong at its x.

    The draws do not depend on the number, so a label that one number makes wrong is wrong at every greater.
    """
    code = f"arm N{shown.number} of task '{shown.task.name}'"
    if shown.number > OF_TEN - 1:
        raise TaskError(
            code,
            "its answers are words",
            f"Of words, N1 to N{OF_TEN - 1} say how many labels of {OF_TEN} are wrong.",
        )
    answers = shown.answers()
    labels = []
    for x, own, chance, drawn in zip(shown.x, shown.own, *rng.random((2, shown.n)), strict=True):
        wrong = [y for y in answers if y not in shown.task.outcomes(x)]
        if not wrong:
            raise TaskError(
                code, f"no answer is wrong at x='{x}'", "Leave it out of the arms (prompts.arms in a study)."
            )
        labels.append(wrong[int(drawn * len(wrong))] if chance < shown.number / OF_TEN else own)
    return labels


def _one_wrong(shown: Shown, rng: Rng) -> list[str]:
    if shown.number >= shown.n:
        raise TaskError(
            f"arm C{shown.number}",
            f"prompts have {shown.n} examples",
            f"The number is of an example: C0 to C{shown.n - 1}.",
        )
    options = [y for y in shown.answers() if y != shown.own[shown.number]]
    if not options:
        raise TaskError(
            f"arm C{shown.number} of task '{shown.task.name}'",
            "every answer of the task is the same",
            "It has no wrong label: leave the arm out (prompts.arms in a study).",
        )
    labels = list(shown.own)
    labels[shown.number] = options[rng.integers(0, len(options))]
    return labels


# ---------------------------------------------------------------------------------- contexts of probed arms


def _own_examples(order: Callable[[int, Rng], Iterable[int]]) -> Contexts:
    """Before the n-th query, the prompt's own examples in an order that n gives."""
    return lambda shown, rng: [[(shown.x[i], shown.own[i]) for i in order(n, rng)] for n in range(shown.n)]


def _late(shown: Shown, rng: Rng) -> list[list[Pair]]:
    contexts = enumerate(_own_examples(lambda n, _: range(n))(shown, rng))
    return [[(FILLER, FILLER)] * (shown.n - 1 - n) + context for n, context in contexts]


def _by_ambiguity(shown: Shown, rng: Rng, arm: str, step: int) -> list[list[Pair]]:
    """Inputs that are no query, from the one that most rival tasks answer alike to the one that fewest do.

    With `step` −1, the other way round.
    """
    left = [x for x in shown.pool if x not in set(shown.x)]
    if len(left) < 2 * (shown.n - 1) or shown.task.domain != "number":
        raise TaskError(
            f"arm {arm} of task '{shown.task.name}'", f"{len(left)} inputs beside the queries",
            f"It needs {2 * (shown.n - 1)} numbers: lower n_examples, or allow more inputs.",
        )  # fmt: skip
    rivals = [parse_task(spec) for spec in RIVALS]
    shared = [sum(r.answer(x) == shown.task.answer(x) for r in rivals) for x in left]
    order = np.lexsort((rng.random(len(left)), -np.array(shared)))[::step]
    pairs = [(left[i], shown.task.answer(left[i])) for i in order[: shown.n - 1]]
    return [pairs[:n] for n in range(shown.n)]


ARMS: dict[str, Arm] = {
    arm.code: arm
    for arm in (
        Arm("T", "the task's own labels", 2, lambda shown, _: list(shown.own)),
        Arm("S", "the same labels, deranged within the prompt", 3, _deranged),
        Arm("R", "labels drawn uniformly from the task's answers", 4, _uniform),
        Arm("O", "random odd labels in the task's range", 5, _odd),
        Arm("D", "the first example again and again", 6, contexts=_own_examples(lambda n, _: [0] * n)),
        Arm("D2", "the first two examples in turn", 7, contexts=_own_examples(lambda n, _: np.arange(n) % 2)),
        Arm("W", "the task's labels, in the second half a rival's", 8, _own_then_rival, needs_rival=True),
        Arm("Wr", "a rival's labels, in the second half the task's", 9, _rival_then_own, needs_rival=True),
        Arm("E#", "the same examples before each query, in order #", 10,
            contexts=_own_examples(lambda n, rng: rng.permutation(n))),
        Arm("P", "newlines, then the examples, the query always in the last place", 11, contexts=_late),
        Arm("Q-", "two examples of a rival first", 12, _rival_hint, needs_rival=True),
        Arm("Q0", "two examples with random labels first", 13, _neutral_hint),
        Arm("A-", "other inputs, whose answer many rival tasks share", 14,
            contexts=partial(_by_ambiguity, arm="A-", step=1)),
        Arm("A+", "other inputs, whose answer few rival tasks share", 15,
            contexts=partial(_by_ambiguity, arm="A+", step=-1)),
        Arm("N#", "label noise: a rounded normal of standard deviation # added; of words, # of 10 wrong", 16,
            _noisy),
        Arm("C#", "one wrong label, at example #", 17, _one_wrong),
    )
}  # fmt: skip
"""Arms by code; # stands for a number."""
