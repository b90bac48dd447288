"""How is each latent tuned to a number: by its size, its parity, or a longer period?

1. `tuning_curves` takes the mean activation of every latent at every value of the number. 2.
`helix_regression` fits each curve by a line and by waves of given periods, and again with the values in
random order. 3. `fit_tunings` does both for y, x and y − 2x at one site and role.

    c(v) ≈ β₀ + β₁ v + Σ_T [ α_T cos(2πv/T) + γ_T sin(2πv/T) ]

by least squares, values weighted by their rows. What enters: latents and the rows they were read in. What
leaves: a `TuningTable`.

A period above 2 needs two numbers, a cosine and a sine, so it is a property of a subspace and not of one
latent: one latent can follow the period in one phase only, and `subspace` measures whether several latents
hold it. A narrow tuning ("ends in 3") is a sum of waves of 10, 5, 3⅓ …, so its best period may be a divisor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.stats import false_discovery_control

from iclens.errors import ConfigError, TableError
from iclens.tables.activations import LatentActs
from iclens.tables.arrays import Floats, Ints, expect_shape
from iclens.tables.tuning import TuningTable
from iclens.transforms.reading.selectivity import AXES
from iclens.transforms.rows import FIRST_EXAMPLE, Rows

PERIODS = (2, 5, 10, 25, 50, 100)
"""Periods that other work found in numbers' representations: parity, the last digit, and coarser ones."""
_LINE = -1
"""Group of the constant and of v; the others are numbers of periods."""
_ALIASED = 1e-6
"""Norm of what is left of a unit column below which the earlier columns determine it."""
_CONSTANT = 1e-10
"""Share of a curve's mean square below which its variance is rounding, curves being float32."""
_TIE = 1e-5
"""Two shares of variance closer than this are equal: null figures are float32."""
_AT_ONCE = 4096
"""Latents that are fitted at a time."""


@dataclass(frozen=True)
class Curves:
    """Mean activation of every latent at every value of a number.

    Args:
        values: ascending, [value].
        mean: mean gated activation, zeros included, float32 [latent value].
        n_rows: rows of each value, [value].
    """

    values: Ints
    mean: Floats
    n_rows: Ints


@dataclass(frozen=True)
class HelixFit:
    """Line and waves fitted to every curve; shares are of the curve's variance over values, by rows.

    Args:
        periods: those fitted, [period]: not longer than the range of the values and not aliased with an
            earlier one.
        r2: share explained by all of it, [latent]; NaN, as everything else, where the curve is constant.
        p_value: of r2 against curves whose values are in random order, [latent].
        null_q95: 95 % quantile of r2 over random orders, [latent].
        linear_share: share that a line alone explains, [latent].
        parity_share: the period share of 2, [latent]; NaN when 2 is not among `periods`.
        period_share: share lost when that period is left out, [latent period].
        best_period: the period of the largest share, [latent]; NaN when there is none.
        reason: why nothing was fitted, or empty.
    """

    periods: tuple[float, ...]
    r2: Floats
    p_value: Floats
    null_q95: Floats
    linear_share: Floats
    parity_share: Floats
    period_share: Floats
    best_period: Floats
    reason: str = ""


def tuning_curves(acts: csr_array, value: Floats, min_rows: int = 3) -> Curves:
    """Mean gated activation of every latent at every value that enough rows have.

    Args:
        acts: [row latent].
        value: a whole number, or NaN where the row is not used, [row].
        min_rows: least number of rows of a value.

    Raises:
        TableError: when the axes disagree or a value is no whole number.
    """
    expect_shape("tuning_curves", acts=(cast("Any", acts), ("row", "latent")), value=(value, ("row",)))
    used = np.flatnonzero(~np.isnan(value))
    held = value[used]
    if not (held == np.round(held)).all():
        strange = held[held != np.round(held)][0]
        raise TableError(
            f"tuning to {strange}",
            "no whole number",
            "Give whole numbers, and NaN for rows that are not used.",
        )
    values, place, n_rows = np.unique(held.astype(np.int64), return_inverse=True, return_counts=True)
    kept = n_rows >= min_rows
    enough = kept[place]
    group = (np.cumsum(kept) - 1)[place[enough]]
    values, n_rows = values[kept], n_rows[kept]
    share = (1.0 / n_rows[group]).astype(np.float32)
    n_all, _ = cast("tuple[int, int]", acts.shape)
    member = coo_array((share, (group, used[enough])), shape=(len(values), n_all)).tocsr()
    mean = csr_array(member @ acts.astype(np.float32, copy=False)).toarray().T
    return Curves(values, mean, n_rows)


def waves(value: Floats | Ints, period: float) -> Floats:
    """cos(2πv/T) and sin(2πv/T), [item 2]; of the period 2 only the cosine, (−1)^v, [item 1]."""
    angle = 2 * np.pi * np.asarray(value, dtype=np.float64) / period
    return np.cos(angle)[:, None] if period == 2 else np.column_stack([np.cos(angle), np.sin(angle)])


def fits_in(periods: Sequence[float], values: Floats | Ints) -> list[float]:
    """The periods that are not longer than the range of the values, max − min + 1.

    Raises:
        ConfigError: for a period below 2, which whole numbers cannot show.
    """
    if any(period < 2 for period in periods):
        raise ConfigError(
            f"periods {list(periods)}",
            "one is below 2",
            "Give periods of 2 and longer: whole numbers show no shorter one.",
        )
    span = int(values.max()) - int(values.min()) + 1 if len(values) else 0
    return [float(period) for period in periods if period <= span]


def helix_regression(
    curves: Curves, periods: Sequence[float] = PERIODS, *, seed: int, n_null: int = 200
) -> HelixFit:
    """Shares of every curve's variance explained by a line and by waves, and p-values by random order.

        r² = 1 − Σ_v n_v (c_v − ĉ_v)² / Σ_v n_v (c_v − c̄)²,    share of T = r² − r² without the waves of T

    The line comes first: `linear_share` is the r² of the line alone, because on a range of 100 a line and
    the long waves are so alike that an exactly linear curve would lose only a fifth without its line. For
    the same reason a sine as long as the range has a linear share of .6; its period share tells it apart.
    A random order gives each curve value, with its rows, the place of another; the same orders serve all
    latents. p says that the order of the values matters, which a smooth bump achieves as well as a wave, and
    is at least 1/(1 + n_null).

    Args:
        curves: of every latent.
        periods: in this order; a column that the earlier ones determine on these values is dropped.
        seed: of the random orders.
        n_null: number of random orders.

    Raises:
        ConfigError: for a period below 2.
    """
    columns, group, kept = _design(curves, periods)
    n_latents = len(curves.mean)
    shares = np.full((n_latents, 4 + len(kept)), np.nan)
    reason = ""
    if len(curves.values) <= columns.shape[1]:
        reason = f"number of values {len(curves.values)}, more than {columns.shape[1]} needed"
    else:
        root = np.sqrt(curves.n_rows / curves.n_rows.sum())
        bases = [_basis(columns, root)[:, 1:], _basis(columns[:, :2], root)[:, 1:]]
        bases += [_last(columns, root, group == number) for number in range(len(kept))]
        null = _null_bases(columns, root, n_null, np.random.default_rng(seed))
        for first in range(0, n_latents, _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            shares[part] = _shares(curves.mean[part].astype(np.float64), root, bases, null)
    r2, p_value, null_q95, linear = shares[:, :4].T
    period_share = shares[:, 4:]
    parity = period_share[:, kept.index(2.0)] if 2.0 in kept else np.full(n_latents, np.nan)
    best = np.full(n_latents, np.nan)
    if kept:
        tops = np.asarray(kept)[np.nan_to_num(period_share, nan=-1.0).argmax(axis=1)]
        best = np.where(np.isnan(r2), np.nan, tops)
    return HelixFit(tuple(kept), r2, p_value, null_q95, linear, parity, period_share, best, reason)


def _design(curves: Curves, periods: Sequence[float]) -> tuple[Floats, Ints, list[float]]:
    """Columns independent of earlier ones [value column], their groups [column], the periods kept."""
    value = curves.values.astype(np.float64)
    root = np.sqrt(curves.n_rows.astype(np.float64))
    offered = [(_LINE, np.ones(len(value))), (_LINE, value - value.mean() if len(value) else value)]
    inside = fits_in(periods, curves.values)
    offered += [(i, column) for i, period in enumerate(inside) for column in waves(value, period).T]
    kept: list[Floats] = []
    groups: list[int] = []
    basis = np.empty((len(value), 0))
    for number, column in offered:
        left = root * column
        size = np.linalg.norm(left)
        if size <= _ALIASED * np.linalg.norm(root):
            continue
        left = left / size
        for _ in range(2):
            left = left - basis @ (basis.T @ left)
        if np.linalg.norm(left) > _ALIASED:
            basis = np.column_stack([basis, left / np.linalg.norm(left)])
            kept.append(column)
            groups.append(number)
    named = [number for number in dict.fromkeys(groups) if number != _LINE]
    group = np.array([named.index(number) if number != _LINE else _LINE for number in groups], dtype=np.int64)
    columns = np.column_stack(kept) if kept else np.empty((len(value), 0))
    return columns, group, [inside[number] for number in named]


def _basis(columns: Floats, root: Floats) -> Floats:
    """Orthonormal columns that span root · `columns` in their order, [value column]."""
    return np.linalg.qr(root[:, None] * columns)[0]


def _last(columns: Floats, root: Floats, mine: NDArray[np.bool_]) -> Floats:
    """What the columns in `mine` [column] span beyond the others, [value column]."""
    ordered = np.column_stack([columns[:, ~mine], columns[:, mine]])
    return _basis(ordered, root)[:, (~mine).sum() :]


def _null_bases(columns: Floats, root: Floats, n_null: int, rng: np.random.Generator) -> Floats:
    """The basis without its constant for each random order of the values, float32 [column value order]."""
    orders = rng.permuted(np.tile(np.arange(len(root)), (n_null, 1)), axis=1)
    bases = np.linalg.qr(root[:, None] * columns[orders])[0]
    return np.ascontiguousarray(bases[:, :, 1:].transpose(2, 1, 0), dtype=np.float32)


def _shares(mean: Floats, root: Floats, bases: Sequence[Floats], null: Floats) -> Floats:
    """r2, p, null quantile, then the share of every further basis: [latent figure]; NaN if constant."""
    weighted = mean * root
    centred = weighted - np.outer(weighted @ root, root)
    total = (centred**2).sum(axis=1)
    moving = np.flatnonzero(total > _CONSTANT * (weighted**2).sum(axis=1))
    out = np.full((len(mean), len(bases) + 2), np.nan)
    if not len(moving):
        return out
    unit = centred[moving] / np.sqrt(total[moving])[:, None]
    r2, *others = (((unit @ basis) ** 2).sum(axis=1) for basis in bases)
    narrow, by_chance = unit.astype(np.float32), np.zeros((len(moving), null.shape[2]), dtype=np.float32)
    for column in null:
        along = narrow @ column
        by_chance += np.square(along, out=along)
    reached = (by_chance >= (r2 - _TIE)[:, None]).sum(axis=1)
    out[moving, 0] = r2
    out[moving, 1] = (1 + reached) / (1 + null.shape[2])
    out[moving, 2] = np.quantile(by_chance, 0.95, axis=1) if null.shape[2] else np.nan
    out[moving, 3:] = np.column_stack(others)
    return out


def fit_tunings(
    latents: LatentActs,
    rows: Rows,
    *,
    seed: int,
    periods: Sequence[float] = PERIODS,
    n_null: int = 200,
    min_rows: int = 3,
    min_active: int = 20,
    first_example: int = FIRST_EXAMPLE,
) -> TuningTable:
    """Tuning of every latent to y, x and y − 2x; multiplicity is over all of these.

    Args:
        latents: activations at one site and role.
        rows: theirs, [prompt·example].
        seed: of the random orders.
        periods: as for `helix_regression`.
        n_null: number of random orders; p is at least 1/(1 + n_null).
        min_rows: least number of rows of a value.
        min_active: least number of used rows in which a latent is not zero; others are left out.
        first_example: rows count from this example on.

    Raises:
        TableError: when `rows` are not those of `latents`.
        ConfigError: for a period below 2.
    """
    acts = latents.matrix
    n_rows, _ = cast("tuple[int, int]", acts.shape)
    if len(rows) != n_rows:
        raise TableError(
            f"tuning at {latents.site.short} '{latents.role}'", f"{len(rows)} rows, not {n_rows}",
            "Give the rows that `read_rows` makes of the prompts of these latents.",
        )  # fmt: skip
    parts = []
    for of, read in AXES.items():
        value = np.where(rows.example >= first_example, read(rows), np.nan)
        chosen = np.flatnonzero(_n_active(acts, value, min_rows) >= min_active)
        curves = tuning_curves(csr_array(acts[:, chosen]), value, min_rows)
        columns = _columns(curves, helix_regression(curves, periods, seed=seed, n_null=n_null))
        names = {"site": str(latents.site), "role": latents.role, "of": of}
        repeated = {key: np.full(len(chosen), name, dtype=object) for key, name in names.items()}
        parts.append(repeated | {"latent": chosen} | columns)
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    known = ~np.isnan(joined["p_value"])
    q_value = np.full(len(known), np.nan)
    if known.any():
        q_value[known] = false_discovery_control(joined["p_value"][known])
    return TuningTable(joined | {"q_value": q_value})


def _n_active(acts: csr_array, value: Floats, min_rows: int) -> Ints:
    """Rows in which each latent is not zero, among those whose value enough rows have, [latent]."""
    values, n_rows = np.unique(value[~np.isnan(value)], return_counts=True)
    used = np.isin(value, values[n_rows >= min_rows])
    stored = np.repeat(used, np.diff(acts.indptr)) & (acts.data != 0)
    return np.bincount(acts.indices[stored], minlength=cast("tuple[int, int]", acts.shape)[1])


def _columns(curves: Curves, fit: HelixFit) -> dict[str, Any]:
    """Columns of a TuningTable from one fit, [latent] each."""
    n_latents, fitted = len(fit.r2), ~np.isnan(fit.r2)
    best_share = np.full(n_latents, np.nan)
    if fit.periods:
        best_share[fitted] = fit.period_share[fitted].max(axis=1)
    lost = "" if fit.periods else "no period is as short as the range of values"
    if fit.periods and 2.0 not in fit.periods:
        lost = "no column of period 2"
    why = np.where(fitted, lost, fit.reason or "its curve is constant").astype(object)
    return {
        "n_values": np.full(n_latents, len(curves.values)), "r2": fit.r2, "null_q95": fit.null_q95,
        "p_value": fit.p_value, "linear_share": fit.linear_share, "parity_share": fit.parity_share,
        "best_period": fit.best_period, "best_share": best_share, "reason": why,
    }  # fmt: skip
