"""How often is the answer right without the task, and wrong with it? Guess, lapse and the belief behind.

    P(correct) = g + (1 − g − d) · A        A = (P(correct) − g) / (1 − g − d)

g is P(correct) with no example, d is 1 − P(correct) where the task is forced (a whole prompt of examples),
both on prompts of their own: fitted from the curve that they correct, they would make any curve a posterior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iclens.errors import TableError
from iclens.tables.arrays import Floats
from iclens.tables.bands import prompt_band

LEAST_SPAN = 0.1
"""Least 1 − g − d for which a belief behind the answers is given."""


@dataclass(frozen=True)
class Calibration:
    """Guess and lapse with 95 % prompt-bootstrap intervals.

    Args:
        guess, guess_low, guess_high: P(correct) with no example.
        lapse, lapse_low, lapse_high: P(wrong) where the task is forced.
        n_prompts: prompts behind them.
        reason: why they cannot be used; empty when they can.
    """

    guess: float
    guess_low: float
    guess_high: float
    lapse: float
    lapse_low: float
    lapse_high: float
    n_prompts: int
    reason: str


def calibrate(zero_shot: Floats, forced: Floats, *, seed: int = 0) -> Calibration:
    """Guess and lapse.

    Args:
        zero_shot: P(correct) with no example, [prompt].
        forced: P(correct) where the task is forced, [prompt].
        seed: of the bootstrap.

    Raises:
        TableError: when there are no prompts.
    """
    if len(zero_shot) == 0 or len(forced) == 0:
        raise TableError(
            "a calibration", "no prompts", "Give `zero_shot` and `forced` at least one prompt each."
        )
    rng = np.random.default_rng(seed)
    guess, lapse = prompt_band(zero_shot[:, None], rng), prompt_band(1 - forced[:, None], rng)
    span = float(1 - guess.mean[0] - lapse.mean[0])
    reason = "" if span >= LEAST_SPAN else f"1 − guess − lapse is {span:.2f}, {LEAST_SPAN} needed"
    ends = [[float(part[0]) for part in (band.mean, band.low, band.high)] for band in (guess, lapse)]
    (g, g_low, g_high), (d, d_low, d_high) = ends
    return Calibration(g, g_low, g_high, d, d_low, d_high, len(zero_shot), reason)


def task_belief(p_correct: Floats, calibration: Calibration, floor: float = 1e-3) -> Floats:
    """Log-odds of A behind the answers, nats; A is clipped to [floor, 1 − floor], NaN without a calibration.

    Args:
        p_correct: [...].
        calibration: of other prompts.
        floor: of A; the forced prompts cannot tell A from 1 more finely than their own spread.
    """
    if calibration.reason:
        return np.full(np.shape(p_correct), np.nan)
    span = 1 - calibration.guess - calibration.lapse
    belief = np.clip((p_correct - calibration.guess) / span, floor, 1 - floor)
    return np.log(belief) - np.log1p(-belief)
