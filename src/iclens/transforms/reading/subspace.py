"""Is a number held in a circle of several features? Waves of its values, read linearly on held-out tasks.

1. `fit_subspaces` takes the cosine and sine of a number for each period (for 2 its parity). 2. On rows of
discovery tasks alone, the features that follow them most are chosen and a ridge regression is fitted. 3. It
is read on rows of held-out tasks. 4. The values are renamed at random, alike on both sides, and everything
is chosen, fitted and read again. 5. `period_subspaces` writes the table.

    r² = 1 − Σ |w(v) − ŵ|² / Σ |w(v) − w̄|²,    w = (cos, sin)(2πv/T),  w̄ the mean over held-out rows

What enters: a representation of rows, the number, and which rows are of discovery and of held-out tasks.
What leaves: a `SubspaceTable`. A wave that can be read is there; that the model uses it is not shown. The
null keeps which rows share a value and loses which values are near each other: a smooth code of magnitude
alone beats it at long periods, and is told from a wave by the short ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csc_array, csr_array, issparse
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from iclens.errors import TableError
from iclens.names import Site
from iclens.tables.arrays import Floats, Ints, expect_shape
from iclens.tables.tuning import SubspaceTable
from iclens.transforms.reading.helix import PERIODS, fits_in, waves

Matrix = csr_array | Floats
SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of features among which the fewest that do are sought."""
ENOUGH = 0.9
"""Share of the r² of all chosen features that the fewest have to reach."""
FEWEST_ACTIVE = 10
"""Training rows on which a sparse feature must be active to be chosen."""
FEWEST_ROWS, FEWEST_VALUES = 30, 10
"""Rows on each side, and values that both sides have, below which nothing is fitted."""
_PENALTIES = (1e-4, 1e-2, 1.0)
"""Ridge penalties per training row to choose from, by leave-one-out error on the training rows."""
_STILL = 1e-12


@dataclass(frozen=True)
class PeriodSubspace:
    """How well the wave of one period can be read on held-out tasks.

    Args:
        period: in units of the number.
        r2: of cosine and sine together on held-out rows; NaN where undefined.
        p_value: of r2 against renamed values.
        features: the chosen features, the largest standardised coefficient first, [feature].
        n_for_90: fewest of `SIZES` of them, in this order, that reach `ENOUGH` of r2; NaN unless r2 > 0. It
            is sought on the held-out rows, and so describes them.
        reason: why figures are NaN, or empty.
    """

    period: float
    r2: float = np.nan
    p_value: float = np.nan
    features: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    n_for_90: float = np.nan
    reason: str = ""


@dataclass(frozen=True)
class _Sides:
    """Rows of both sides; `train_value` and `held_value` are numbers of distinct values, [row].

    `spread` is the variance of each feature over the training rows, 0 where it is constant, or sparse and
    active on few of them. `sums` is its sum over the training rows of each value [value feature], from which
    the correlations with any wave follow.
    """

    train: csc_array | Floats
    held: csc_array | Floats
    train_value: Ints
    held_value: Ints
    spread: Floats
    sums: Any


def fit_subspaces(
    acts: Matrix,
    value: Floats,
    train: NDArray[np.bool_],
    held: NDArray[np.bool_],
    *,
    seed: int,
    periods: Sequence[float] = PERIODS,
    n_null: int = 50,
    n_features: int = 64,
) -> list[PeriodSubspace]:
    """Held-out r² of the wave of each period, its p-value, and how few features suffice.

    Args:
        acts: the representation, [row feature].
        value: the number, NaN where the row is not used, [row].
        train: rows of discovery tasks, [row].
        held: rows of held-out tasks, [row].
        seed: of the renamed values; all periods share them.
        periods: in units of the number.
        n_null: number of times the values are renamed; p is at least 1/(1 + n_null).
        n_features: features that are chosen at most.

    Raises:
        TableError: when the axes disagree, or a row is on both sides.
        ConfigError: for a period below 2.
    """
    expect_shape(
        "fit_subspaces", acts=(cast("Any", acts), ("row", "feature")), value=(value, ("row",)),
        train=(train, ("row",)), held=(held, ("row",)),
    )  # fmt: skip
    if (train & held).any():
        raise TableError(
            "rows to read periods on",
            "some are trained on",
            "Give `train` and `held` without a row in common: rows of other tasks.",
        )
    known = ~np.isnan(value)
    fitted, read = np.flatnonzero(train & known), np.flatnonzero(held & known)
    inside = fits_in(periods, np.concatenate([value[fitted], value[read]]))
    lack = _lack(value[fitted], value[read])
    if lack:
        return [PeriodSubspace(float(period), reason=lack) for period in periods]
    values, place = np.unique(value[known], return_inverse=True)
    number = np.zeros(len(value), dtype=np.int64)
    number[known] = place
    sides = _sides(acts, fitted, read, number, len(values))
    if not sides.spread.any():
        return [
            PeriodSubspace(float(period), reason="every feature is constant or active on too few rows")
            for period in periods
        ]
    rng = np.random.default_rng(seed)
    renamed = [rng.permutation(len(values)) for _ in range(n_null)]
    return [
        _one(sides, waves(values, period), float(period), renamed, n_features)
        if period in inside
        else PeriodSubspace(float(period), reason="longer than the range of values")
        for period in periods
    ]


def _lack(fitted: Floats, read: Floats) -> str:
    for name, side in (("discovery", fitted), ("held-out", read)):
        if len(side) < FEWEST_ROWS:
            return f"{len(side)} {name} rows, {FEWEST_ROWS} needed"
    n_shared = len(np.intersect1d(fitted, read))
    return "" if n_shared >= FEWEST_VALUES else f"{n_shared} values on both sides, {FEWEST_VALUES} needed"


def _sides(acts: Matrix, fitted: Ints, read: Ints, number: Ints, n_values: int) -> _Sides:
    kept = [cast("Any", acts[rows]).astype(np.float64) for rows in (fitted, read)]
    train, tested = (csc_array(part) if issparse(part) else part for part in kept)
    squares = np.asarray((train**2).mean(axis=0))
    spread = squares - np.asarray(train.mean(axis=0)) ** 2
    at = (number[fitted], np.arange(len(fitted)))
    member = coo_array((np.ones(len(fitted)), at), shape=(n_values, len(fitted))).tocsr()
    spread = np.where(spread > _STILL * squares, spread, 0.0)
    if isinstance(train, csc_array):
        active = np.bincount(np.repeat(np.arange(len(spread)), np.diff(train.indptr))[train.data != 0])
        spread[: len(active)][active < FEWEST_ACTIVE] = 0.0
        spread[len(active) :] = 0.0
    return _Sides(train, tested, number[fitted], number[read], spread, member @ train)


def _one(
    sides: _Sides, target: Floats, period: float, renamed: Sequence[Ints], n_features: int
) -> PeriodSubspace:
    """One period; `target` is its wave at each distinct value, [value 1|2]."""
    if any(not np.ptp(target[side], axis=0).any() for side in (sides.train_value, sides.held_value)):
        return PeriodSubspace(period, reason="its wave is constant on one side")
    chosen = _chosen(sides, target, n_features)
    r2, weight = _read(sides, chosen, target)
    ordered = chosen[np.argsort(-weight, kind="stable")]
    by_chance = [_read(sides, _chosen(sides, w, n_features), w)[0] for w in (target[p] for p in renamed)]
    p_value = (1 + sum(other >= r2 for other in by_chance)) / (1 + len(renamed))
    if not r2 > 0:
        return PeriodSubspace(period, r2, p_value, ordered, reason="r2 is not above 0")
    sizes = [size for size in SIZES if size < len(ordered)]
    enough = (size for size in sizes if _read(sides, ordered[:size], target)[0] >= ENOUGH * r2)
    return PeriodSubspace(period, r2, p_value, ordered, float(next(enough, len(ordered))))


def _chosen(sides: _Sides, target: Floats, n_features: int) -> Ints:
    """The features that follow the wave most on the training rows, in ascending order, [feature].

    By the squared correlations with cosine and sine, summed, so that the phase does not matter.
    """
    n_rows = len(sides.train_value)
    seen = np.bincount(sides.train_value, minlength=len(target)) / n_rows
    lift = target - seen @ target
    lift = lift / np.sqrt(np.maximum(seen @ lift**2, _STILL))
    shared = ((np.asarray(sides.sums.T @ lift) / n_rows) ** 2).sum(axis=1)
    live = np.flatnonzero(sides.spread > 0)
    follows = shared[live] / sides.spread[live]
    return np.sort(live[np.argsort(-follows, kind="stable")[:n_features]])


def _read(sides: _Sides, chosen: Ints, target: Floats) -> tuple[float, Floats]:
    """r² on the held-out rows of a ridge regression on the training rows, and coefficient sizes [feature]."""
    train, tested = (_dense(part[:, chosen]) for part in (sides.train, sides.held))
    wanted, truth = target[sides.train_value], target[sides.held_value]
    scaler = StandardScaler().fit(train)
    ridge = RidgeCV(alphas=[len(wanted) * each for each in _PENALTIES])
    found = ridge.fit(scaler.transform(train), wanted).predict(scaler.transform(tested))
    total = ((truth - truth.mean(axis=0)) ** 2).sum()
    r2 = 1 - ((truth - found.reshape(truth.shape)) ** 2).sum() / total if total > 0 else np.nan
    return float(r2), np.linalg.norm(np.reshape(cast("Floats", ridge.coef_), (-1, len(chosen))), axis=0)


def _dense(values: Any) -> Floats:
    return values.toarray() if issparse(values) else values


def period_subspaces(
    acts: Matrix,
    value: Floats,
    train: NDArray[np.bool_],
    held: NDArray[np.bool_],
    *,
    site: Site,
    role: str,
    representation: str,
    of: str,
    seed: int,
    periods: Sequence[float] = PERIODS,
    n_null: int = 50,
    n_features: int = 64,
) -> SubspaceTable:
    """Held-out r² of the wave of each period of a number, as a table with a row per period.

    Args:
        acts: the representation, [row feature].
        value: the number, NaN where the row is not used, [row].
        train: rows of discovery tasks, [row].
        held: rows of held-out tasks, [row].
        site: where the representation was recorded.
        role: token of the example.
        representation: what it is, for example "latents" or "activation".
        of: what the number is, for example "y".
        seed: of the renamed values.
        periods: in units of the number.
        n_null: number of times the values are renamed.
        n_features: features that are chosen at most.

    Raises:
        TableError: when the axes disagree, or a row is on both sides.
        ConfigError: for a period below 2.
    """
    found = fit_subspaces(
        acts, value, train, held, seed=seed, periods=periods, n_null=n_null, n_features=n_features
    )
    known = ~np.isnan(value)
    names = {"site": str(site), "role": role, "representation": representation, "of": of}
    names |= {"n_train": int((train & known).sum()), "n_held": int((held & known).sum())}
    rows = [
        names | {
            "period": one.period, "r2": one.r2, "p_value": one.p_value, "n_features": len(one.features),
            "n_for_90": one.n_for_90, "reason": one.reason,
        }
        for one in found
    ]  # fmt: skip
    return SubspaceTable({key: [row[key] for row in rows] for key in SubspaceTable.COLUMNS})
