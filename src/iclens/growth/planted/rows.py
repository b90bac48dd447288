"""What did a check against planted truth measure, and was its demand met?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class CalibrationRow:
    """One figure of a calibration.

    Args:
        quantity: what was measured.
        demand: what it has to be, in words, for example "≤ .05".
        figure: the measured value.
        mc_error: its Monte-Carlo standard error.
        met: whether the demand holds, up to two Monte-Carlo errors where the demand is a rate.
        detail: on what, in a few words.
    """

    quantity: str
    demand: str
    figure: float
    mc_error: float
    met: bool
    detail: str = ""


def at_most(quantity: str, bound: float, hits: int, n: int, detail: str = "") -> CalibrationRow:
    """A share of hits that should not exceed `bound`; two binomial errors at the bound are allowed for."""
    share, slack = hits / n, 2 * binomial_error(bound, n)
    return CalibrationRow(
        quantity, f"≤ {bound:g}", share, binomial_error(share, n), share <= bound + slack, detail
    )


def at_least(quantity: str, bound: float, hits: int, n: int, detail: str = "") -> CalibrationRow:
    """A share of hits that should reach `bound`; two binomial errors at the bound are allowed for."""
    share, slack = hits / n, 2 * binomial_error(bound, n)
    return CalibrationRow(
        quantity, f"≥ {bound:g}", share, binomial_error(share, n), share >= bound - slack, detail
    )


def stated(quantity: str, hits: int, n: int, detail: str = "") -> CalibrationRow:
    """A share of hits that no demand is made of."""
    share = hits / n
    return CalibrationRow(quantity, "stated", share, binomial_error(share, n), True, detail)


def coverage(quantity: str, hits: int, n: int, detail: str = "") -> CalibrationRow:
    """Share of 95 % intervals that hold the truth; .93 to .97, up to two binomial errors."""
    share, slack = hits / n, 2 * binomial_error(0.95, n)
    met = 0.93 - slack <= share <= 0.97 + slack
    return CalibrationRow(quantity, ".93 to .97", share, binomial_error(share, n), met, detail)


def binomial_error(share: float, n: int) -> float:
    """Standard error of a share of n independent runs."""
    return float(np.sqrt(share * (1 - share) / n))
