"""Effects and their uncertainty, with prompts as the unit.

1. A read-out is a value per prompt. 2. A mean's interval resamples prompts; the same resamples serve every
read-out, so ratios stay paired. 3. A normalised effect is a ratio of means, given only where its denominator
is well away from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iclens.patching.runs import Runs
from iclens.tables.answers import AnswerProbs
from iclens.tables.arrays import Floats
from iclens.tasks.beliefs import log_odds
from iclens.tasks.declared import read_all

LEVEL = (2.5, 97.5)
"""Percentiles of a 95 % interval."""
UNDEFINED = "undefined for this task"
LEAST_SPAN = 1.0
"""Least |donor − base| in nats for which a normalised effect is given."""


@dataclass(frozen=True)
class Estimates:
    """Means (or ratios of means) over prompts with their intervals.

    Args:
        value, low, high: [column]; NaN where undefined.
        reason: why a column is NaN, empty otherwise, [column].
    """

    value: Floats
    low: Floats
    high: Floats
    reason: tuple[str, ...]


def resamples(n_prompts: int, draws: int, rng: np.random.Generator) -> Floats:
    """Bootstrap weights of prompts, [draw prompt]; each row sums to 1."""
    return rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=draws) / n_prompts


def means(values: Floats, weights: Floats) -> Estimates:
    """Means of `values` [prompt column] with intervals under `weights` [draw prompt]; NaN in, NaN out."""
    low, high = np.percentile(weights @ values, LEVEL, axis=0)
    reason = tuple(UNDEFINED if np.isnan(column).any() else "" for column in values.T)
    return Estimates(values.mean(axis=0), low, high, reason)


def normalised_effects(effect: Floats, span: Floats, weights: Floats) -> Estimates:
    """Ratios of means, NE = mean(patched − base) / mean(donor − base).

    Args:
        effect: patched − base, [prompt column], nats.
        span: donor − base, [prompt column], nats.
        weights: [draw prompt].

    Returns:
        NaN with a reason unless |mean span| ≥ `LEAST_SPAN` and the span's interval excludes 0.
    """
    whole = means(span, weights)
    undefined = np.isnan(whole.value) | np.isnan(effect).any(axis=0)
    short = np.abs(whole.value) < LEAST_SPAN
    straddles = (whole.low <= 0) & (whole.high >= 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.percentile((weights @ effect) / (weights @ span), LEVEL, axis=0)
        found = np.stack([effect.mean(axis=0) / whole.value, low, high])
    found[:, undefined | short | straddles] = np.nan
    causes = (
        UNDEFINED,
        f"A* and B differ by less than {LEAST_SPAN:g} nat",
        "the interval of A* − B includes 0",
    )
    flags = np.stack([undefined, short, straddles], axis=1)
    return Estimates(
        found[0], found[1], found[2], tuple(causes[row.argmax()] if row.any() else "" for row in flags)
    )


def control_p_value(effect: float, controls: Floats) -> float:
    """Two-sided p = (1 + #{|control| ≥ |effect|}) / (1 + #controls)."""
    return float((1 + (np.abs(controls) >= abs(effect)).sum()) / (1 + len(controls)))


def belief_log_odds(probs: AnswerProbs, runs: Runs, prompts: Sequence[int] | np.ndarray) -> Floats:
    """Log-odds of every belief about the recipient's query, in nats.

    Args:
        probs: [row answer], or [row … answer].
        runs: gives the task, x_B, f(x_B), f(x_A) and the beliefs.
        prompts: which prompt each row belongs to, [row].

    Returns:
        [row … belief].
    """
    which = np.asarray(prompts)
    own, x, copied = (
        np.broadcast_to(text[which].reshape(-1, *[1] * (probs.log_prob.ndim - 2)), probs.log_prob.shape[:-1])
        for text in (runs.own, runs.x_B, runs.copied)
    )
    return log_odds(read_all(probs, runs.task, x, own, copied, runs.declared))
