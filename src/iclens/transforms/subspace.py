"""Is a period of y carried by several features together? Ridge regression, read on held-out tasks.

    (cos, sin)(2πv/T) ~ features        fitted on discovery tasks, R² = 1 − SSE / SST on held-out tasks

1. Features are ranked on the discovery rows by how well each alone follows one of the two targets. 2. The
best of them enter a ridge regression whose penalty is chosen by its own leave-one-out error. 3. The null
gives every value of v another one, the same on both sides, and fits anew, so that what repeats still
repeats. SST is taken around the mean of the held-out rows themselves. Enter rows and features; leave a
SubspaceTable.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse
from sklearn.feature_selection import r_regression
from sklearn.linear_model import RidgeCV

from iclens.names import Site
from iclens.tables.arrays import Floats, Ints
from iclens.tables.tuning import SubspaceTable
from iclens.transforms.helix import PERIODS

N_FEATURES = 64
"""Features that enter at most."""
SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of features that are tried, to see how few are enough."""
ENOUGH = 0.9
_PENALTIES = (1.0, 10.0, 100.0, 1000.0)


def period_subspaces(
    features: csr_array | NDArray[np.floating], value: Floats, train: NDArray[np.bool_],
    held: NDArray[np.bool_], *, site: Site, role: str, representation: str, of: str, seed: int,
    periods: tuple[int, ...] = PERIODS, n_null: int = 20,
) -> SubspaceTable:  # fmt: skip
    """How much of each period of a number can be read from several features.

    Args:
        features: [row feature].
        value: the number of each row, NaN where there is none, [row].
        train: rows of discovery tasks, [row].
        held: rows of held-out tasks, [row].
        site: where the features were read.
        role: at which token.
        representation: what they are.
        of: name of the number.
        seed: of the relabellings.
        periods: those longer than the range of the values are left out.
        n_null: relabellings.
    """
    known = ~np.isnan(value)
    train, held = train & known, held & known
    named = {"site": str(site), "role": role, "representation": representation, "of": of}
    counts = {"n_train": int(train.sum()), "n_held": int(held.sum())}
    kept = [t for t in periods if known.any() and t <= np.ptp(value[known])]
    if min(counts.values()) < 2 * N_FEATURES or not kept:
        why = f"{counts['n_train']} and {counts['n_held']} rows, {2 * N_FEATURES} of each needed"
        empty = {"period": np.nan, "r2": np.nan, "p_value": np.nan, "n_features": 0, "n_for_90": -1}
        return _table([named | counts | empty | {"reason": why}])
    sides = [_standard(features, train, rows) for rows in (train, held)]
    rng = np.random.default_rng(seed)
    distinct, place = np.unique(value[known], return_inverse=True)
    drawn = [distinct[rng.permutation(len(distinct))] for _ in range(n_null)]
    found = []
    for period in kept:
        r2, n_for_90 = _read(sides, value, (train, held), period)
        other = value.copy()
        beaten = 0
        for relabelled in drawn:
            other[known] = relabelled[place]
            beaten += _read(sides, other, (train, held), period)[0] >= r2
        found.append(named | counts | {
            "period": float(period), "r2": r2, "p_value": (1 + beaten) / (1 + n_null),
            "n_features": min(N_FEATURES, sides[0].shape[1]), "n_for_90": n_for_90, "reason": "",
        })  # fmt: skip
    return _table(found)


def _table(rows: list[dict[str, Any]]) -> SubspaceTable:
    return SubspaceTable({name: [row[name] for row in rows] for name in SubspaceTable.COLUMNS})


def _standard(features: Any, train: NDArray[np.bool_], rows: NDArray[np.bool_]) -> Floats:
    """The rows' features, of mean 0 and variance 1 over the training rows; constant ones are left out."""
    if issparse(features):
        active = np.bincount(features[np.flatnonzero(train)].indices, minlength=features.shape[1])
        often = np.flatnonzero(active >= 10)
        features = cast("csr_array", features.tocsc()[:, often]).toarray()
    mean, size = features[train].mean(axis=0), features[train].std(axis=0)
    return ((features[rows] - mean) / np.where(size > 0, size, 1))[:, size > 0]


def _read(
    sides: list[Floats], value: Floats, masks: tuple[NDArray[np.bool_], ...], period: int
) -> tuple[float, int]:
    """R² on held-out rows with all features that enter, and the fewest that reach `ENOUGH` of it."""
    angle = 2 * np.pi * value / period
    target = np.stack([np.cos(angle), np.sin(angle)], axis=1)[:, : 1 if period == 2 else 2]
    wanted, asked = (target[rows] for rows in masks)
    order = _ranked(sides[0], wanted)
    r2 = {size: _r2(sides, wanted, asked, order[:size]) for size in SIZES if size <= len(order)}
    whole = r2[max(r2)]
    enough = [size for size, found in r2.items() if whole > 0 and found >= ENOUGH * whole]
    return whole, min(enough, default=-1)


def _ranked(features: Floats, target: Floats) -> Ints:
    follows = np.max([np.abs(r_regression(features, column)) for column in target.T], axis=0)
    return np.argsort(-follows, kind="stable")


def _r2(sides: list[Floats], wanted: Floats, asked: Floats, chosen: Ints) -> float:
    fit = RidgeCV(_PENALTIES).fit(sides[0][:, chosen], wanted)
    missed = asked - fit.predict(sides[1][:, chosen]).reshape(asked.shape)
    return float(1 - (missed**2).sum() / ((asked - asked.mean(axis=0)) ** 2).sum())
