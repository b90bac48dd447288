"""Is a latent tuned to a number linearly, by parity, or periodically? Regression of its tuning curve.

    z̄(v) ~ 1 + v + Σ_T [ cos(2πv/T) + sin(2πv/T) ],   T = 2, 5, 10, 25, 50, 100        (T = 2: cos only)

1. The curve is the latent's mean activation at each value of y, x or y − 2x. 2. It is regressed on the
number and its periods, values weighted by their rows. 3. The null puts the values in random order, for all
latents at once. 4. A share is the variance lost when a part is left out. A period above 2 needs two
numbers, so a latent alone cannot carry it: what a latent shows here is its part, and `subspace` reads the
period itself. Enter latents and rows; leave a TuningTable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.stats import false_discovery_control

from iclens.tables.activations import LatentActs
from iclens.tables.arrays import Floats, Ints
from iclens.tables.tuning import TuningTable
from iclens.transforms.rows import FIRST_EXAMPLE, Rows
from iclens.transforms.selectivity import AXES

PERIODS = (2, 5, 10, 25, 50, 100)
LEAST_ROWS, LEAST_VALUES, LEAST_ACTIVE = 3, 12, 20
"""Rows of a value, values of a curve, active rows of a latent: with fewer nothing is said."""
_AT_ONCE = 4096
"""Latents whose random orders are regressed at a time."""


@dataclass(frozen=True)
class Curves:
    """Tuning curves.

    Args:
        value: ascending, [value].
        mean: mean activation, zeros included, [latent value].
        n_rows: rows with that value, [value].
    """

    value: Ints
    mean: Floats
    n_rows: Ints


@dataclass(frozen=True)
class HelixFit:
    """What the regression says of each latent; NaN where its curve is flat.

    Args:
        r2: variance explained, weighted by rows, [latent].
        p_value: [latent].
        null_q95: [latent].
        linear_share: drop-one share of v, [latent].
        period_share: drop-one share of each period, [latent period].
        periods: those that fit into the range of values, [period].
    """

    r2: Floats
    p_value: Floats
    null_q95: Floats
    linear_share: Floats
    period_share: Floats
    periods: tuple[int, ...]


def tuning_curves(acts: csr_array, value: Floats, *, least_rows: int = LEAST_ROWS) -> Curves:
    """Mean activation of every latent at each whole value.

    Args:
        acts: gated activations, [row latent].
        value: [row]; NaN rows are left out.
        least_rows: values with fewer rows are left out.
    """
    used = np.flatnonzero(~np.isnan(value))
    found, place, count = np.unique(value[used].astype(np.int64), return_inverse=True, return_counts=True)
    member = coo_array(
        ((1 / count[place]).astype(np.float32), (place, np.arange(len(used)))), shape=(len(found), len(used))
    ).tocsr()
    kept = count >= least_rows
    mean = cast("csr_array", member @ acts[used]).toarray()[kept]
    return Curves(found[kept], mean.T.astype(np.float32), count[kept])


def helix_regression(
    curves: Curves, periods: tuple[int, ...] = PERIODS, *, seed: int, n_null: int = 200
) -> HelixFit:
    """Variance of each curve explained by the number and its periods, against random orders of the values.

    Args:
        curves: of all latents.
        periods: those longer than the range of the values are left out: they would be a second slope.
        seed: of the random orders.
        n_null: random orders.
    """
    kept = tuple(t for t in periods if t <= np.ptp(curves.value))
    root = np.sqrt(curves.n_rows / curves.n_rows.sum())
    parts = _parts(curves.value, kept)
    whole = _basis(list(parts.values()), root)
    centred = curves.mean - (curves.mean @ root**2)[:, None]
    total = (centred**2) @ root**2
    flat = total <= 1e-12 * np.maximum((curves.mean**2) @ root**2, 1e-30)
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = np.where(flat, np.nan, _explained(centred, whole, root) / total)
        share = {}
        for name in parts:
            rest = _basis([part for other, part in parts.items() if other != name], root)
            share[name] = np.where(flat, np.nan, r2 - _explained(centred, rest, root) / total)
    at_least, q95 = _null(centred, whole, root, r2, n_null, np.random.default_rng(seed))
    period_share = np.stack([share[str(t)] for t in kept], axis=1) if kept else np.empty((len(r2), 0))
    p_value = np.where(flat, np.nan, (1 + at_least) / (1 + n_null))
    return HelixFit(r2, p_value, np.where(flat, np.nan, q95), share["linear"], period_share, kept)


def _parts(value: Ints, periods: tuple[int, ...]) -> dict[str, Floats]:
    """Columns of each part of the regression, name → [value column]."""
    parts: dict[str, Floats] = {"linear": value[:, None].astype(np.float64)}
    for t in periods:
        angle = 2 * np.pi * value / t
        parts[str(t)] = np.stack([np.cos(angle), np.sin(angle)], axis=1)[:, : 1 if t == 2 else 2]
    return parts


def _basis(parts: list[Floats], root: Floats) -> Floats:
    """Orthonormal basis, in the metric of the weights, of the parts less their means, [value basis]."""
    if not parts:
        return np.empty((len(root), 0))
    columns = np.concatenate(parts, axis=1)
    columns = (columns - (root**2) @ columns) * root[:, None]
    size = np.linalg.norm(columns, axis=0)
    left, strength, _ = np.linalg.svd(columns / np.where(size > 0, size, 1), full_matrices=False)
    return left[:, strength > 1e-6]


def _explained(centred: Floats, basis: Floats, root: Floats) -> Floats:
    """Weighted variance inside the basis, [latent]."""
    return (((centred * root) @ basis) ** 2).sum(axis=1)


def _null(
    centred: Floats, basis: Floats, root: Floats, r2: Floats, n_null: int, rng: np.random.Generator
) -> tuple[Ints, Floats]:
    """In how many random orders r² is as large, and its 95 % quantile there, [latent] each.

    The weights stay with the places, so every order is centred and scaled anew.
    """
    orders = [rng.permutation(centred.shape[1]) for _ in range(n_null)]
    count, q95 = np.zeros(len(centred), dtype=np.int64), np.full(len(centred), np.nan)
    for first in range(0, len(centred), _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        found = np.empty((len(centred[some]), n_null), dtype=np.float32)
        for i, order in enumerate(orders):
            moved = centred[some][:, order]
            moved = moved - (moved @ root**2)[:, None]
            total = (moved**2) @ root**2
            with np.errstate(invalid="ignore", divide="ignore"):
                found[:, i] = _explained(moved, basis, root) / total
        with np.errstate(invalid="ignore"):
            count[some] = (found >= r2[some, None] - 1e-6).sum(axis=1)
        q95[some] = np.quantile(found, 0.95, axis=1)
    return count, q95


def fit_tunings(
    acts: LatentActs, rows: Rows, *, seed: int, first_example: int = FIRST_EXAMPLE, n_null: int = 200
) -> TuningTable:
    """The regressions of every latent that is active often enough, on y, x and y − 2x.

    Args:
        acts: activations at one site and role.
        rows: theirs.
        seed: of the random orders.
        first_example: rows count from this example on.
        n_null: random orders.
    """
    seen = np.flatnonzero(rows.example >= first_example)
    used, matrix = rows.take(seen), csr_array(acts.matrix[seen])
    live = np.flatnonzero(np.bincount(matrix.indices, minlength=acts.d_sae) >= LEAST_ACTIVE)
    some = csr_array(matrix.tocsc()[:, live])
    parts = [_one_axis(some, axis, AXES[axis](used), seed, n_null) for axis in AXES]
    n = len(live)
    return TuningTable.concat([
        TuningTable(part | {
            "site": np.full(n, str(acts.site), dtype=object), "role": np.full(n, acts.role, dtype=object),
            "latent": live, "of": np.full(n, axis, dtype=object),
        })
        for axis, part in zip(AXES, parts, strict=True)
    ])  # fmt: skip


def _one_axis(acts: csr_array, axis: str, value: Floats, seed: int, n_null: int) -> dict[str, Floats]:
    """Columns of a TuningTable for one number, without names."""
    curves, n = tuning_curves(acts, value), cast("tuple[int, int]", acts.shape)[1]
    names = (
        "r2",
        "null_q95",
        "p_value",
        "q_value",
        "linear_share",
        "parity_share",
        "best_period",
        "best_share",
    )
    columns: dict[str, Floats] = {name: np.full(n, np.nan) for name in names}
    columns["n_values"], columns["reason"] = np.full(n, len(curves.value)), np.full(n, "", dtype=object)
    if len(curves.value) < LEAST_VALUES:
        columns["reason"][:] = f"{len(curves.value)} values of {axis}, {LEAST_VALUES} needed"
        return columns
    fit = helix_regression(curves, seed=seed, n_null=n_null)
    known = ~np.isnan(fit.p_value)
    columns["reason"][~known] = "the curve is flat"
    for name in ("r2", "null_q95", "p_value", "linear_share"):
        columns[name] = getattr(fit, name).astype(np.float64)
    if known.any():
        columns["q_value"][known] = false_discovery_control(columns["p_value"][known])
    if 2 in fit.periods:
        columns["parity_share"] = fit.period_share[:, fit.periods.index(2)]
    if fit.periods and known.any():
        best = np.nan_to_num(fit.period_share, nan=-1.0).argmax(axis=1)
        columns["best_period"] = np.where(known, np.array(fit.periods, dtype=np.float64)[best], np.nan)
        columns["best_share"] = fit.period_share[np.arange(n), best]
    return columns
