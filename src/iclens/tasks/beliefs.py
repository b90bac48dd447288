"""Beliefs: five read-outs of a distribution over answers, as probability and log-odds.

    numeric = P(any number)              odd    = P(y odd | number)
    double  = P(|y − a·x| ≤ 5 | number)  exact  = P(the task's own answer)
    copy    = P(a given other answer, usually the donor's)

`double` is the task's own slope band: a is the task's slope (2 for 2x+3); it is undefined (NaN) for a
task without a slope or an x that is not a number. The same functions read the model's logits and the
exact posterior, so the two are comparable.
"""

from __future__ import annotations

import numpy as np

from iclens.names import BELIEFS
from iclens.tables.answers import NUMBERS, AnswerProbs
from iclens.tables.arrays import Floats, Strings
from iclens.tasks.rules import Task

BAND = 5
"""Half-width of the `double` band around a·x."""
_N = np.arange(len(NUMBERS))


def read_beliefs(
    probs: AnswerProbs, task: Task, x: Strings, answer: Strings, copied: Strings | None = None
) -> Floats:
    """Probability of every belief, in the order of `names.BELIEFS`.

    Args:
        probs: distribution over answers, [... answer].
        task: gives the slope of the `double` band.
        x: query input, [...].
        answer: the task's own answer, [...].
        copied: the answer whose copying is asked about, [...]; without it `copy` is NaN.

    Returns:
        [... belief].
    """
    numbers = probs.numbers
    numeric = numbers.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        odd = numbers[..., 1::2].sum(axis=-1) / numeric
        double = (numbers * _band(task, x)).sum(axis=-1) / numeric
    double = np.where(_has_band(task, x), double, np.nan)
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


def _has_band(task: Task, x: Strings) -> np.ndarray:
    return np.char.isdigit(x) & (task.slope is not None and task.domain == "number")


def _band(task: Task, x: Strings) -> np.ndarray:
    value = np.where(np.char.isdigit(x), x, "0").astype(int)
    return np.abs(_N - (task.slope or 0) * value[..., None]) <= BAND
