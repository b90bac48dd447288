"""Beliefs that a study declares beside the five of `names.BELIEFS`: logit contrasts, concepts of a task.

    against:3x+1    P(own answer) ÷ (P(own answer) + P(3x+1's answer)): its log-odds are a logit difference
    near:3x         P(|y − 3x| ≤ 5 | number)        near:3x~2    the same within 2
    among:word:size P(an answer that the task word:size ever gives), over the whole vocabulary
    y%5=3           P(y mod 5 = 3 | number)
    y<50   y>=50    P(y < 50 | number), P(y ≥ 50 | number)

A spec is data, as a task's or an arm's is; from Python, any `DeclaredBelief` with its own `read` will do.
The model's answers and the exact posterior's go through the same `read`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from iclens.errors import TaskError, nearest
from iclens.names import BELIEFS
from iclens.tables.answers import NUMBERS, AnswerProbs
from iclens.tables.arrays import Floats, Strings
from iclens.tasks.rules import Task, default_inputs
from iclens.tasks.spec import parse_task

EXAMPLES = ("against:3x+1", "near:3x", "near:3x~2", "among:word:size", "y%5=3", "y<50", "y>=50")
"""One valid spec of every kind."""
BAND = 5
"""Half-width of a band around a task's answer, when none is given; that of `double`."""
Read = Callable[[AnswerProbs, Strings, Strings], Floats]
_N = np.arange(len(NUMBERS))


@dataclass(frozen=True)
class DeclaredBelief:
    """A read-out of the answers at `pre`.

    Args:
        name: as declared; a column of every table of beliefs.
        meaning: what it is, in words.
        read: (answers [... answer], x [...], the task's own answer [...]) → its probability [...], NaN where
            it is undefined.
        words: given the inputs, the answers that are no numbers which it has to see.
    """

    name: str
    meaning: str
    read: Read
    words: Callable[[Sequence[str]], tuple[str, ...]] = lambda _: ()


def parse_belief(spec: str) -> DeclaredBelief:
    """The belief that `spec` declares.

    Raises:
        TaskError: naming the nearest valid form.
    """
    text = spec.replace(" ", "")
    kind, _, rest = text.partition(":")
    if kind == "against" and rest:
        return _against(text, parse_task(rest))
    if kind == "among" and rest:
        return _among(text, parse_task(rest))
    if kind == "near" and (match := re.fullmatch(r"([^~]+)(?:~(\d+))?", rest)):
        return _near(text, parse_task(match[1]), int(match[2] or BAND))
    if (match := re.fullmatch(r"y%([1-9]\d*)=(\d+)", text)) and int(match[2]) < int(match[1]):
        modulus, rest_ = int(match[1]), int(match[2])
        return _numbers(text, f"P(y mod {modulus} = {rest_} | number)", _N % modulus == rest_)
    if match := re.fullmatch(r"y(<|>=)(\d+)", text):
        below = match[1] == "<"
        said = f"P(y {'<' if below else '≥'} {match[2]} | number)"
        return _numbers(text, said, (int(match[2]) > _N) == below)
    raise TaskError(f"belief '{spec}'", "no such belief", nearest(text, (*EXAMPLES, *BELIEFS)) + ".")


def check_declared(specs: Sequence[str], task: Task) -> tuple[DeclaredBelief, ...]:
    """The declared beliefs of a study of `task`.

    Raises:
        TaskError: for an unknown spec, a name that stands twice, or a contrast of the task with itself.
    """
    found = tuple(parse_belief(spec) for spec in specs)
    names = [*BELIEFS, *(belief.name for belief in found)]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise TaskError(f"belief '{twice[0]}'", "it stands twice", "List each belief once.")
    if f"against:{task.name}" in names:
        raise TaskError(f"belief 'against:{task.name}'", "the studied task itself", "Name another task.")
    return found


def belief_names(declared: Sequence[DeclaredBelief]) -> tuple[str, ...]:
    """Names along the belief axis: the five of every study, then the declared ones."""
    return (*BELIEFS, *(belief.name for belief in declared))


def _against(name: str, other: Task) -> DeclaredBelief:
    def read(probs: AnswerProbs, x: Strings, answer: Strings) -> Floats:
        rival = _answers(other, x)
        own, beside = probs.of(answer), probs.of(rival)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(rival == "", np.nan, own / (own + beside))

    said = f"P(own answer) against P({other.name}'s answer), of these two; even odds where they agree"
    return DeclaredBelief(name, said, read, lambda inputs: _words(other, inputs))


def _among(name: str, other: Task) -> DeclaredBelief:
    domain = default_inputs(other.domain)

    def read(probs: AnswerProbs, x: Strings, answer: Strings) -> Floats:
        given = dict.fromkeys(y for value in domain for y in other.outcomes(value))
        return np.sum([probs.of(np.full(x.shape, y)) for y in given], axis=0)

    return DeclaredBelief(name, f"P(an answer of {other.name})", read, lambda _: _words(other, domain))


def _near(name: str, centre: Task, width: int) -> DeclaredBelief:
    def read(probs: AnswerProbs, x: Strings, answer: Strings) -> Floats:
        text = _answers(centre, x)
        known = np.char.isdigit(text)
        middle = np.where(known, text, "0").astype(int)
        band = np.abs(_N - middle[..., None]) <= width
        return np.where(known, _share(probs, band), np.nan)

    return DeclaredBelief(name, f"P(|y − ({centre.name})| ≤ {width} | number)", read)


def _numbers(name: str, meaning: str, among: np.ndarray) -> DeclaredBelief:
    return DeclaredBelief(name, meaning, lambda probs, x, answer: _share(probs, among))


def _share(probs: AnswerProbs, among: np.ndarray) -> Floats:
    numbers = probs.numbers
    with np.errstate(invalid="ignore", divide="ignore"):
        return (numbers * among).sum(axis=-1) / numbers.sum(axis=-1)


def _answers(task: Task, x: Strings) -> Strings:
    """A task's answer to every x, "" where it has none."""
    found = {}
    for value in np.unique(x).tolist():
        try:
            found[value] = task.answer(value)
        except TaskError:
            found[value] = ""
    return np.array([found[value] for value in x.ravel().tolist()], dtype=str).reshape(x.shape)


def _words(task: Task, inputs: Sequence[str]) -> tuple[str, ...]:
    given = dict.fromkeys(_answers(task, np.array(inputs)).tolist())
    return tuple(y for y in given if y and not y.isdigit())
