"""Beliefs: log-odds read from answer probabilities, for tasks, rival tasks and predicates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from iclens.core import BELIEFS, TaskError, nearest
from iclens.prompts.tasks import Task, default_inputs, parse_task
from iclens.table import Floats, Ints, Strings, expect_shape

NUMBERS = tuple(str(n) for n in range(1000))
"""Answers that count as numbers, in the order of the first thousand columns."""


@dataclass(frozen=True)
class AnswerProbs:
    """Log-probabilities of chosen answers over the full vocabulary, in nats."""

    answers: tuple[str, ...]  # the numbers 0–999 first, where these are read, then words
    log_prob: Floats  # [... answer]; exp sums to at most 1, the rest is every other token

    def __post_init__(self) -> None:
        rows = self.log_prob.reshape(-1, self.log_prob.shape[-1])
        expect_shape("AnswerProbs", log_prob=(rows, ("row", len(self.answers))))

    @property
    def has_numbers(self) -> bool:
        """Whether every number from 0 to 999 is among the answers."""
        return self.answers[: len(NUMBERS)] == NUMBERS

    @property
    def numbers(self) -> Floats:
        """P(n) for n in 0..999, [... 1000]; NaN where not every number is read."""
        if not self.has_numbers:
            return np.broadcast_to(np.nan, (*self.log_prob.shape[:-1], len(NUMBERS)))
        return np.exp(self.log_prob[..., : len(NUMBERS)])

    def top(self) -> Ints:
        """Index of the most probable answer, [...]."""
        return self.log_prob.argmax(axis=-1)

    def of(self, wanted: np.ndarray) -> Floats:
        """P(wanted answer) for text `wanted` [...]; 0 for text that is not among the answers."""
        index = {answer: i for i, answer in enumerate(self.answers)}
        column = np.vectorize(lambda text: index.get(text, -1), otypes=[np.int64])(wanted)
        log_prob = np.take_along_axis(self.log_prob, np.maximum(column, 0)[..., None], axis=-1)[..., 0]
        return np.where(column >= 0, np.exp(log_prob), 0.0)


BAND = 5
"""Half-width of the `double` band around a·x."""
_N = np.arange(len(NUMBERS))


def read_beliefs(
    probs: AnswerProbs, task: Task, x: Strings, answer: Strings, copied: Strings | None = None
) -> Floats:
    """Probability of every belief [... belief], in the order of `core.BELIEFS`, from [... answer].

    x is the query's input, `answer` the task's own answer and `copied` the one whose copying is asked about,
    [...] each; without it `copy` is NaN. The task gives the slope of the `double` band.
    """
    numbers = probs.numbers
    numeric = numbers.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        odd = numbers[..., 1::2].sum(axis=-1) / numeric
        double = (numbers * _near(x, BAND, task.slope or 0)).sum(axis=-1) / numeric
    has_band = np.char.isdigit(x) & (task.slope is not None and task.domain == "number")
    double = np.where(has_band, double, np.nan)
    exact = probs.of(answer)
    copy = np.full(exact.shape, np.nan) if copied is None else probs.of(copied)
    return np.stack([numeric, odd, double, exact, copy], axis=-1)


def log_odds(probability: Floats, floor: float = 1e-9) -> Floats:
    """log(p / (1 − p)) in nats, p clipped to [floor, 1 − floor]; NaN stays NaN."""
    # In float32, 1 − floor rounds to 1 and the log-odds of a sure model to infinity.
    p = np.clip(np.asarray(probability, dtype=np.float64), floor, 1 - floor)
    return np.log(p) - np.log1p(-p)


def belief_index(name: str) -> int:
    """Column of a belief in `read_beliefs`."""
    return BELIEFS.index(name)


def _near(centre: Strings, width: int, slope: int = 1) -> np.ndarray:
    """Numbers within `width` of slope × the number in the text, 0 where it is none, [... 1000]."""
    value = np.where(np.char.isdigit(centre), centre, "0").astype(int)
    return np.abs(_N - slope * value[..., None]) <= width


EXAMPLES = ("against:3x+1", "near:3x", "near:3x~2", "among:word:size", "y%5=3", "y<50", "y>=50")
"""One valid spec of every kind."""
Read = Callable[[AnswerProbs, Strings, Strings], Floats]


@dataclass(frozen=True)
class DeclaredBelief:
    """A read-out of the answers at `pre`."""

    name: str  # as declared; a column of every table of beliefs
    meaning: str  # what it is, in words
    read: (
        Read  # (answers [... answer], x [...], own answer [...]) → its probability [...], NaN where undefined
    )
    words: tuple[str, ...] = ()  # answers that are no numbers which it has to see


def parse_belief(spec: str, inputs: Sequence[str] | None = None) -> DeclaredBelief:
    """The belief that `spec` declares; its name is the canonical spec.

    Args:
        spec: one of the forms above.
        inputs: x that the prompts may hold; the defaults of each task's domain when not given.
    """
    text = spec.replace(" ", "")
    kind, _, rest = spec.strip().partition(":")  # a path may hold spaces
    kind = kind.strip()
    if kind == "against" and rest:
        return _against(_single(spec, rest), inputs)
    if kind == "among" and rest:
        return _among(parse_task(rest), inputs)
    if kind == "near" and (match := re.fullmatch(r"([^~]+)(?:~(\d+))?", rest)):
        return _near_task(_single(spec, match[1]), int(match[2] or BAND))
    if (match := re.fullmatch(r"y%([1-9]\d*)=(\d+)", text)) and int(match[2]) < int(match[1]):
        modulus, left = int(match[1]), int(match[2])
        meaning = f"P(y mod {modulus} = {left} | number)"
        return _numbers(text, meaning, _N % modulus == left)
    if match := re.fullmatch(r"y(<|>=)(\d+)", text):
        below, cut = match[1] == "<", int(match[2])
        meaning = f"P(y {'<' if below else '≥'} {cut} | number)"
        return _numbers(text, meaning, (cut > _N) == below)
    raise TaskError(f"belief '{spec}'", "no such belief", nearest(text, (*EXAMPLES, *BELIEFS)) + ".")


def check_declared(
    specs: Sequence[str], task: Task, inputs: Sequence[str] | None = None
) -> tuple[DeclaredBelief, ...]:
    """The declared beliefs of a study of `task`.

    Args:
        inputs: x that the prompts may hold; the defaults of the task's domain when not given.
    """
    inputs_read = default_inputs(task) if inputs is None else tuple(inputs)
    beliefs = tuple(parse_belief(spec, inputs_read) for spec in specs)
    names = [*BELIEFS, *(belief.name for belief in beliefs)]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise TaskError(
            f"belief '{twice[0]}'",
            "it stands twice",
            "List each belief once; the five of every study need not be listed.",
        )
    if f"against:{task.name}" in names:
        raise TaskError(
            f"belief 'against:{task.name}'",
            "the studied task itself",
            "Declare it against a task that gives other answers.",
        )
    for belief in beliefs:
        _expect_to_vary(belief, task, inputs_read)
    return beliefs


def _expect_to_vary(belief: DeclaredBelief, task: Task, inputs: Sequence[str]) -> None:
    """Refuse a belief that no answer could move, tried on all numbers and words at even odds."""
    own = _answers(task, np.array(inputs))
    answers = (*NUMBERS, *dict.fromkeys([y for y in own.tolist() if not y.isdigit()]), *belief.words)
    even = AnswerProbs(answers, np.full((len(inputs), len(answers)), -np.log(len(answers))))
    value = belief.read(even, np.array(inputs), own)
    if np.isnan(value).all():
        raise TaskError(
            f"belief '{belief.name}'",
            "it has no value on any input",
            "Leave it out, or declare it of a task that has answers on these inputs.",
        )
    known = value[np.isfinite(value)]
    if (known <= 0).all() or (known >= 1).all():
        raise TaskError(
            f"belief '{belief.name}'",
            f"always {known[0]:g}, whatever the answer",
            "Leave it out, or declare one that holds for some of the answers 0 to 999 and not for others.",
        )


def _single(spec: str, other: str) -> Task:
    """The task `other` of a belief that needs one answer at every x."""
    task = parse_task(other)
    if not task.deterministic:
        raise TaskError(
            f"belief '{spec}'",
            f"'{task.name}' has several answers at an x",
            "Name a task with one answer per x, such as 3x+1.",
        )
    return task


def belief_names(declared: Sequence[DeclaredBelief]) -> tuple[str, ...]:
    """Names along the belief axis: the five of every study, then the declared ones."""
    return (*BELIEFS, *(belief.name for belief in declared))


def read_all(
    probs: AnswerProbs, task: Task, x: Strings, answer: Strings, copied: Strings | None,
    declared: Sequence[DeclaredBelief],
) -> Floats:  # fmt: skip
    """Probability of the five beliefs and the `declared` ones, [... belief] in the order of `belief_names`.

    The other arguments are those of `read_beliefs`.
    """
    beside = [belief.read(probs, x, answer)[..., None] for belief in declared]
    return np.concatenate([read_beliefs(probs, task, x, answer, copied), *beside], axis=-1)


def _against(other: Task, inputs: Sequence[str] | None) -> DeclaredBelief:
    def read(probs: AnswerProbs, x: Strings, answer: Strings) -> Floats:
        rival = _answers(other, x)
        own, beside = probs.of(answer), probs.of(rival)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(rival == "", np.nan, own / (own + beside))

    meaning = f"P(own answer) against P({other.name}'s answer), of these two; even odds where they agree"
    given = _answers(other, np.array(default_inputs(other) if inputs is None else inputs))
    return DeclaredBelief(f"against:{other.name}", meaning, read, _words(given.tolist()))


def _among(other: Task, inputs: Sequence[str] | None) -> DeclaredBelief:
    numbers = [x for x in inputs or () if x.isdigit()] if other.domain == "number" else []
    domain = numbers or default_inputs(other)
    given: dict[str, None] = {}
    for value in domain:
        try:
            given |= dict.fromkeys(other.outcomes(value))
        except TaskError:
            continue

    def read(probs: AnswerProbs, x: Strings, answer: Strings) -> Floats:
        return np.sum([np.zeros(x.shape), *(probs.of(np.full(x.shape, y)) for y in given)], axis=0)

    return DeclaredBelief(f"among:{other.name}", f"P(an answer of {other.name})", read, _words(given))


def _near_task(centre: Task, width: int) -> DeclaredBelief:
    def read(probs: AnswerProbs, x: Strings, answer: Strings) -> Floats:
        text = _answers(centre, x)
        near = _near(text, min(width, len(NUMBERS)))
        return np.where(np.char.isdigit(text), _share(probs, near), np.nan)

    name = f"near:{centre.name}" + (f"~{width}" if width != BAND else "")
    return DeclaredBelief(name, f"P(|y − ({centre.name})| ≤ {width} | number)", read)


def _numbers(name: str, meaning: str, among: np.ndarray) -> DeclaredBelief:
    return DeclaredBelief(name, meaning, lambda probs, x, answer: _share(probs, among))


def _share(probs: AnswerProbs, among: np.ndarray) -> Floats:
    numbers = probs.numbers
    with np.errstate(invalid="ignore", divide="ignore"):
        return (numbers * among).sum(axis=-1) / numbers.sum(axis=-1)


def _answers(task: Task, x: Strings) -> Strings:
    """A task's answer to every x, however x is spelled; "" where it has none."""
    answers = {}
    for value in np.unique(x).tolist():
        try:
            answers[value] = task.answer(value.lstrip(" "))
        except TaskError:
            answers[value] = ""
    return np.array([answers[value] for value in x.ravel().tolist()], dtype=str).reshape(x.shape)


def _words(given: Iterable[str]) -> tuple[str, ...]:
    return tuple(y for y in dict.fromkeys(given) if y and not y.isdigit())
