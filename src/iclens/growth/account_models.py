"""What do the accounts of growth say? Each turns a context into one number φ_θ(context).

A context is a `Design`: per slot +1 for the task's own answer, −1 for another label, 0 for nothing, and
whether the slot's example is new. φ is linear in the read-out's scale (log-odds, or a pre-activation).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from iclens.growth.design import Design
from iclens.tables.arrays import Floats

Grid = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Account:
    """One account.

    Args:
        name: of it.
        says: what it says, in words.
        grid: its θ, one tuple each.
        symbols: their names.
        predict: φ of a design at one θ, [prompt example].
    """

    name: str
    says: str
    grid: tuple[tuple[float, ...], ...]
    symbols: tuple[str, ...]
    predict: Callable[[Design, tuple[float, ...]], Floats]


def _nothing(design: Design, _: tuple[float, ...]) -> Floats:
    return np.zeros(design.right.shape[:2])


def _counting(design: Design, _: tuple[float, ...]) -> Floats:
    return design.right.sum(axis=2)


def _two_distinct(design: Design, _: tuple[float, ...]) -> Floats:
    distinct, wrong = (design.new * (design.right > 0)).sum(axis=2), (design.right < 0).any(axis=2)
    return np.where(wrong, 0.0, np.minimum(distinct, 2.0) / 2)


def _latch(design: Design, theta: tuple[float, ...]) -> Floats:
    return ((design.right > 0).sum(axis=2) >= theta[0]).astype(float)


def _composite(design: Design, theta: tuple[float, ...]) -> Floats:
    weight, slow, fast = theta
    net = (design.right * design.new).sum(axis=2)
    return -np.logaddexp(np.log(weight) - slow * net, np.log1p(-weight) - fast * net)


def _discounted(design: Design, theta: tuple[float, ...]) -> Floats:
    count = design.right.sum(axis=2)
    return np.sign(count) * np.abs(count) ** (1 - theta[0])


def _pooling(design: Design, theta: tuple[float, ...]) -> Floats:
    return design.right.sum(axis=2) / (np.abs(design.right).sum(axis=2) + theta[0])


def _recency(design: Design, theta: tuple[float, ...]) -> Floats:
    """Σ r^(examples shown since) · right; slots without an example do not count as time."""
    shown = np.abs(design.right)
    since = shown[:, :, ::-1].cumsum(axis=2)[:, :, ::-1] - shown
    return (theta[0] ** since * design.right).sum(axis=2)


def _change_point(design: Design, theta: tuple[float, ...]) -> Floats:
    """Log-odds of a learner for whom the task may change with probability h before each example."""
    hazard, step = theta
    belief = np.zeros(design.right.shape[:2])
    for slot in range(design.right.shape[2]):
        label = design.right[:, :, slot]
        p = (1 - hazard) / (1 + np.exp(-np.clip(belief, -30, 30))) + hazard / 2
        moved = np.log(p) - np.log1p(-p) + step * label
        belief = np.where(label != 0, moved, belief)
    return belief


EXACT, BEHAVIOUR = "exact posterior", "the model's belief"
"""Accounts that take log-odds which were not fitted here: the ideal learner's, the model's own."""
FROZEN: Mapping[str, Callable[[Design], Floats | None]] = {
    EXACT: lambda design: design.exact,
    BEHAVIOUR: lambda design: design.behaviour,
}
"""Account → its curve in a design, [prompt example], or None where there is none."""


def _frozen(name: str) -> Callable[[Design, tuple[float, ...]], Floats]:
    def predict(design: Design, _: tuple[float, ...]) -> Floats:
        curve = FROZEN[name](design)
        return _nothing(design, ()) if curve is None else curve

    return predict


NONE: Grid = ((),)
RATES: Grid = tuple((float(rate),) for rate in np.linspace(0.1, 0.9, 9))
SINKS: Grid = tuple((kappa,) for kappa in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0))
SWITCHES: Grid = ((1.0,), (2.0,), (3.0,))
HAZARDS: Grid = tuple(product((0.02, 0.05, 0.1, 0.2, 0.4), (0.3, 0.6, 1.0, 1.5, 2.5)))
ALTERNATIVES: Grid = tuple(product((0.01, 0.05, 0.2, 0.5), (0.0, 0.1, 0.3), (0.8, 1.5, 3.0)))
ACCOUNTS = (
    Account("nothing", "no arm changes it", NONE, (), _nothing),
    Account("counting", "every example adds the same, repeated or not: a sum pool", NONE, (), _counting),
    Account("ideal Bayes", "two distinct examples settle it, repeats add nothing", NONE, (), _two_distinct),
    Account("latch", "it switches at the s-th right label and stays", SWITCHES, ("s",), _latch),
    Account(
        "composite Bayes",
        "exact against several alternatives: new examples add less and less",
        ALTERNATIVES,
        ("w", "slow", "fast"),
        _composite,
    ),
    Account("discounted", "the count to the power 1 − α", RATES, ("α",), _discounted),
    Account("attention pooling", "share of right labels, with a sink of weight κ", SINKS, ("κ",), _pooling),
    Account("recency", "a leaky sum: each example counts r times the next one", RATES, ("r",), _recency),
    Account(
        "change-point Bayes",
        "the task may change with probability h at any example",
        HAZARDS,
        ("h", "λ"),
        _change_point,
    ),
    Account(EXACT, "the declared mixture's own posterior, frozen", NONE, (), _frozen(EXACT)),
    Account(BEHAVIOUR, "the model's own log-odds of the answer in each prompt", NONE, (), _frozen(BEHAVIOUR)),
)
"""Every account that is compared."""
