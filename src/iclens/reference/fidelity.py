"""Figures of a model against the exact learner: what is reported, and how it comes from paired answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclens.tables.arrays import Floats
from iclens.tables.frame import Column, Table
from iclens.tasks.beliefs import log_odds

_CERTAIN = 1e-6
"""Exact probabilities closer than this to 0 or 1 have no log-odds worth comparing."""


class ShotTable(Table):
    """A condition by number of examples seen."""

    COLUMNS: ClassVar[dict[str, Column]] = {
        "condition": Column("str", "which contexts"),
        "n_seen": Column("int", "examples before the query"),
        "top1": Column("float", "share of contexts whose most probable answer is one the task gives at x"),
        "exact_top1": Column("float", "the same of the exact predictive"),
        "p_correct": Column("float", "mean P(an answer that the task gives at x), model"),
        "exact_p_correct": Column("float", "the same, exact"),
        "kl": Column("float", "mean KL(exact || model) over answers, nats"),
        "r": Column(
            "float", "Pearson correlation of log-odds of P(correct), model with exact, over contexts"
        ),
        "n_contexts": Column("int", "contexts"),
        "reason": Column("str", "why r is undefined, or empty"),
    }


class FidelityTable(Table):
    """A condition over all numbers of examples seen."""

    COLUMNS: ClassVar[dict[str, Column]] = {
        "condition": Column("str", "which contexts"),
        "kl": Column("float", "mean KL(exact || model) over answers, contexts and examples, nats"),
        "kl_se": Column("float", "its standard error over contexts, nats"),
        "r": Column("float", "Pearson correlation of log-odds of P(correct), model with exact"),
        "slope": Column("float", "least-squares slope of the model's log-odds of P(correct) on the exact"),
        "r_beliefs": Column("float", "correlation of log-odds over numeric, odd, double and exact together"),
        "slope_beliefs": Column("float", "slope over these beliefs together"),
        "n_contexts": Column("int", "contexts"),
        "reason": Column("str", "why a figure is undefined, or empty"),
    }


class TaskTable(Table):
    """Every task by itself, noiseless."""

    COLUMNS: ClassVar[dict[str, Column]] = {
        "task": Column("str", "the contexts' task"),
        "n_seen": Column("int", "examples seen where top1 and p_correct are read"),
        "top1": Column("float", "share of contexts whose most probable answer is one the task gives at x"),
        "exact_top1": Column("float", "the same of the exact predictive"),
        "p_correct": Column("float", "mean P(an answer that the task gives at x), model"),
        "exact_p_correct": Column("float", "the same, exact"),
        "kl": Column("float", "mean KL(exact || model) over answers and all examples, nats"),
        "n_contexts": Column("int", "contexts"),
    }


@dataclass(frozen=True)
class Readings:
    """What the model and the exact learner answer in one condition.

    Args:
        condition: its name.
        top1, exact_top1: whether the most probable answer is one the task gives at x, [context example].
        p_correct, exact_p_correct: P(an answer the task gives at x), [context example].
        kl: KL(exact || model) in nats, [context example].
        beliefs, exact_beliefs: probabilities, [context example belief], beliefs numeric odd double exact.
    """

    condition: str
    top1: Floats
    exact_top1: Floats
    p_correct: Floats
    exact_p_correct: Floats
    kl: Floats
    beliefs: Floats
    exact_beliefs: Floats

    def by_shots(self) -> ShotTable:
        """One row per number of examples seen."""
        n_contexts, n_examples = self.kl.shape
        fits = [_line(self.exact_p_correct[:, j], self.p_correct[:, j]) for j in range(n_examples)]
        means = {
            name: getattr(self, name).mean(axis=0)
            for name in ("top1", "exact_top1", "p_correct", "exact_p_correct", "kl")
        }
        return ShotTable(
            means
            | {
                "condition": [self.condition] * n_examples,
                "n_seen": np.arange(n_examples),
                "r": [r for r, _, _ in fits],
                "n_contexts": [n_contexts] * n_examples,
                "reason": [reason for _, _, reason in fits],
            }
        )

    def overall(self) -> FidelityTable:
        """One row."""
        per_context = self.kl.mean(axis=1)
        r, slope, reason = _line(self.exact_p_correct, self.p_correct)
        r_beliefs, slope_beliefs, reason_beliefs = _line(self.exact_beliefs, self.beliefs)
        spread = per_context.std(ddof=1) if len(per_context) > 1 else np.nan
        row = {
            "condition": self.condition, "kl": per_context.mean(), "kl_se": spread / len(per_context) ** 0.5,
            "r": r, "slope": slope, "r_beliefs": r_beliefs, "slope_beliefs": slope_beliefs,
            "n_contexts": len(per_context), "reason": reason or reason_beliefs,
        }  # fmt: skip
        return FidelityTable({name: [value] for name, value in row.items()})


@dataclass(frozen=True)
class Evaluation:
    """The figures of a model.

    Args:
        shots: by condition and examples seen.
        overall: by condition.
        seed: of the contexts.
    """

    shots: ShotTable
    overall: FidelityTable
    seed: int


def _line(exact: Floats, ours: Floats) -> tuple[float, float, str]:
    """Correlation and slope of log-odds, ours on exact, and why they are undefined."""
    usable = np.isfinite(ours) & (exact > _CERTAIN) & (exact < 1 - _CERTAIN)
    a, b = log_odds(exact[usable]), log_odds(ours[usable])
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan, np.nan, f"{len(a)} log-odds that are finite, or all alike"
    a, b = a - a.mean(), b - b.mean()
    return (
        float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())),
        float((a * b).sum() / (a**2).sum()),
        "",
    )
