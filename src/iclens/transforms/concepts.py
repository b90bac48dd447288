"""Concepts: what a latent may code, against matched negatives and the confounds it has to beat.

A *contrast* labels rows +1, −1 or 0 (not used). A *concept* is a contrast, the stratum within which
positives are compared with negatives (so that the two differ in nothing but the concept), and the
confounds: other contrasts on the same rows, measured with the concept held fixed.

| concept   | positive            | negative                | matched on  |
|-----------|---------------------|-------------------------|-------------|
| `double`  | slope 2             | slope 1, 3 or 4         | decade of y |
| `odd`     | y odd               | y even                  | decade of y |
| `numeric` | y a number          | y a word, x a number    | decade of x |
| `offset`  | offset at least 7   | offset at most 4        | slope       |

A single task's identity is not among them: no held-out task could confirm it. `selectivity.task_means`
shows it instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iclens.errors import SiteError, nearest
from iclens.tables.arrays import Floats, Ints
from iclens.transforms.rows import Rows

SMALL_OFFSET = 4
LARGE_OFFSET = 7


@dataclass(frozen=True)
class Contrast:
    """A named labelling of rows.

    Args:
        name: what the positives have.
        label: rows → +1, −1 or 0 (not used), [row].
    """

    name: str
    label: Callable[[Rows], Ints]


@dataclass(frozen=True)
class Concept:
    """What is asked of a latent.

    Args:
        contrast: positives and negatives; its name is the concept's.
        meaning: one line for a page.
        stratum: rows → integer; only rows of equal stratum are compared, [row].
        confounds: what the latent must not answer to.
    """

    contrast: Contrast
    meaning: str
    stratum: Callable[[Rows], Ints]
    confounds: tuple[Contrast, ...]

    @property
    def name(self) -> str:
        """The concept's name."""
        return self.contrast.name


def signed(positive: NDArray[np.bool_], negative: NDArray[np.bool_]) -> Ints:
    """+1 on positives, −1 on negatives, 0 elsewhere."""
    return positive.astype(np.int64) - negative.astype(np.int64)


def _parity(value: Floats) -> Ints:
    known = ~np.isnan(value)
    odd = np.nan_to_num(value) % 2 == 1
    return signed(known & odd, known & ~odd)


def _large(value: Floats) -> Ints:
    """Above the median of these rows, or not."""
    known = ~np.isnan(value)
    if not known.any():
        return np.zeros(len(value), dtype=np.int64)
    above = np.nan_to_num(value) > np.median(value[known])
    return signed(known & above, known & ~above)


def _late_digit(rows: Rows) -> Ints:
    known = ~np.isnan(rows.y)
    late = np.nan_to_num(rows.y) % 10 >= 5
    return signed(known & late, known & ~late)


def _sloped(rows: Rows) -> NDArray[np.bool_]:
    return np.isin(rows.family, ("affine", "approx"))


def _slope(positive: int, negative: tuple[int, ...]) -> Callable[[Rows], Ints]:
    return lambda rows: signed(
        _sloped(rows) & (rows.slope == positive), _sloped(rows) & np.isin(rows.slope, negative)
    )


def _offset(rows: Rows) -> Ints:
    affine = rows.family == "affine"
    return signed(affine & (rows.offset >= LARGE_OFFSET), affine & (rows.offset <= SMALL_OFFSET))


DOUBLE = Contrast("double", _slope(2, (1, 3, 4)))
TRIPLE = Contrast("slope 3", _slope(3, (1, 4)))
SINGLE = Contrast("slope 1", _slope(1, (3, 4)))
OFFSET = Contrast("offset", _offset)
ODD = Contrast("odd", lambda rows: _parity(rows.y))
ODD_INPUT = Contrast("odd input", lambda rows: _parity(rows.x))
NUMERIC = Contrast(
    "numeric", lambda rows: signed(rows.numeric_x & rows.numeric_y, rows.numeric_x & ~rows.numeric_y)
)
MAGNITUDE = Contrast("magnitude", lambda rows: _large(rows.y))
INPUT_MAGNITUDE = Contrast("input magnitude", lambda rows: _large(rows.x))
LAST_DIGIT = Contrast("last digit", _late_digit)
DIFFERENCE = Contrast("y minus x", lambda rows: _large(np.where(rows.slope == 1, np.nan, rows.y - rows.x)))

CONCEPTS: tuple[Concept, ...] = (
    Concept(
        DOUBLE,
        "the rule doubles x, whatever it adds",
        lambda rows: rows.decade("y"),
        (TRIPLE, SINGLE, OFFSET, ODD, MAGNITUDE, INPUT_MAGNITUDE),
    ),
    Concept(
        ODD,
        "y is odd",
        lambda rows: rows.decade("y"),
        (ODD_INPUT, LAST_DIGIT, DOUBLE, OFFSET, MAGNITUDE, INPUT_MAGNITUDE),
    ),
    Concept(
        NUMERIC,
        "y is a number and not a word",
        lambda rows: rows.decade("x"),
        (INPUT_MAGNITUDE, ODD_INPUT, MAGNITUDE, ODD, DOUBLE),
    ),
    Concept(
        OFFSET,
        f"the rule adds at least {LARGE_OFFSET} rather than at most {SMALL_OFFSET}",
        lambda rows: np.nan_to_num(rows.slope, nan=-1).astype(np.int64),
        (INPUT_MAGNITUDE, MAGNITUDE, ODD, DIFFERENCE, DOUBLE),
    ),
)


def concept(name: str) -> Concept:
    """The concept of that name.

    Raises:
        SiteError: naming the nearest one.
    """
    known = {c.name: c for c in CONCEPTS}
    if name not in known:
        raise SiteError(f"concept '{name}'", "unknown", nearest(name, known))
    return known[name]
