"""Tuning of latents to numbers: mean activation by task and value, lines and waves, periods of subspaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csc_array, csr_array, issparse
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from iclens.activations import LatentActs
from iclens.concepts.auroc import STILL, Matrix, column_moments
from iclens.concepts.language import FIRST_EXAMPLE, Rows, read_rows
from iclens.core import ConfigError, Site, TableError, check_latent
from iclens.prompts.build import PromptSet
from iclens.prompts.tasks import Task
from iclens.schemas import SubspaceTable, TuningTable
from iclens.stats import benjamini_hochberg
from iclens.table import Floats, Ints, expect_shape

AXES: dict[str, Callable[[Rows], Floats]] = {
    "y": lambda rows: rows.y,
    "x": lambda rows: rows.x,
    "y-2x": lambda rows: rows.y - 2 * rows.x,
}
"""What a latent may be tuned to."""


# ----------------------------------------------------------------------------------- means of chosen latents


@dataclass(frozen=True)
class Means:
    """Mean gated activation, zeros included, of some or all latents in groups of rows."""

    groups: NDArray[Any]  # a task's name or a number, [group]; of an operand map a box, [group 2]
    mean: Floats  # [latent group]
    n_rows: Ints  # [group]


def task_means(
    latents: LatentActs, prompts: PromptSet, rules: Mapping[str, Task], chosen: Ints,
    *, first_example: int = FIRST_EXAMPLE,
) -> Means:  # fmt: skip
    """Mean activation of the `chosen` latents per task, in order of appearance, from `first_example` on."""
    order = list(dict.fromkeys(prompts.task.tolist()))
    number = {name: i for i, name in enumerate(order)}
    means = _means(
        latents, prompts, rules, chosen, first_example,
        lambda rows: np.array([number[name] for name in rows.task.tolist()], dtype=np.float64),
    )  # fmt: skip
    return replace(means, groups=np.array(order)[means.groups])


def tuning(
    latents: LatentActs, prompts: PromptSet, rules: Mapping[str, Task], chosen: Ints,
    *, by: str, first_example: int = FIRST_EXAMPLE,
) -> Means:  # fmt: skip
    """Mean activation of the `chosen` latents per value of `by` (of `AXES`), where it is a number."""
    if by not in AXES:
        raise TableError(f"tuning by '{by}'", "no such axis", f"Choose one of {', '.join(AXES)}.")
    return _means(latents, prompts, rules, chosen, first_example, AXES[by])


def operand_map(
    latents: LatentActs, prompts: PromptSet, rules: Mapping[str, Task], chosen: Ints,
    *, width: int = 10, first_example: int = FIRST_EXAMPLE,
) -> Means:  # fmt: skip
    """Mean activation of the `chosen` latents in boxes of x and y, over rows where both are numbers.

    A box is `width` wide in x and in y; groups are the boxes' least x and y, [group 2].
    """
    return _means(
        latents, prompts, rules, chosen, first_example,
        lambda rows: np.stack([rows.x, rows.y], axis=1) // width * width,
    )  # fmt: skip


def _means(
    latents: LatentActs, prompts: PromptSet, rules: Mapping[str, Task], chosen: Ints, first_example: int,
    of: Callable[[Rows], Floats],
) -> Means:  # fmt: skip
    """Means over the rows from `first_example` on that have one value of `of`, NaN or [row ...]."""
    if (latents.n_prompts, latents.n_examples) != (prompts.n_prompts, prompts.n_examples):
        remedy = "Give the latents of `prompts` themselves."
        raise TableError(f"latents of {latents.site.short}", "of other prompts than these", remedy)
    chosen = np.asarray(chosen, dtype=np.int64)
    for latent in (chosen.min(initial=0), chosen.max(initial=0)):
        check_latent(latents.site, latent, latents.d_sae)
    rows = read_rows(prompts, latents.role, rules)
    value = of(rows)
    known = ~np.isnan(value).reshape(len(rows), -1).any(axis=1)
    used = np.flatnonzero((rows.example >= first_example) & known)
    groups, group = np.unique(value[used].astype(np.int64), axis=0, return_inverse=True)
    group = group.reshape(-1)
    n_rows = np.bincount(group, minlength=len(groups))
    at = (group, np.arange(len(used)))
    member = coo_array((1.0 / n_rows[group], at), shape=(len(groups), len(used))).tocsr()  # [group used]
    picked = latents.matrix[used].tocsc()[:, chosen].tocsr()  # [used latent]
    return Means(groups, (member @ picked).toarray().T, n_rows)


# ---------------------------------------------------------------------------- line and waves of every latent

PERIODS = (2, 5, 10, 25, 50, 100)
"""Periods that other work found in numbers' representations: parity, the last digit, and coarser ones."""
_LINE = -1  # group of the constant and of v; the others are numbers of periods
_ALIASED = 1e-6  # norm of what is left of a unit column below which the earlier columns determine it
_CONSTANT = 1e-10  # share of a curve's mean square below which its variance is rounding, curves being float32
_TIE = 1e-5  # two shares of variance closer than this are equal: null figures are float32
_AT_ONCE = 4096  # latents that are fitted at a time


@dataclass(frozen=True)
class HelixFit:
    """Line and waves fitted to every curve; shares are of the curve's variance over values, by rows."""

    # those fitted, [period]: not longer than the range of the values and not aliased with an earlier one
    periods: tuple[float, ...]
    r2: Floats  # share explained by all of it, [latent]; NaN, as everything else, where the curve is constant
    p_value: Floats  # of r2 against curves whose values are in random order, [latent]
    null_q95: Floats  # 95 % quantile of r2 over random orders, [latent]
    linear_share: Floats  # share that a line alone explains, [latent]
    parity_share: Floats  # the period share of 2, [latent]; NaN when 2 is not among `periods`
    period_share: Floats  # share lost when that period is left out, [latent period]
    best_period: Floats  # the period of the largest share, [latent]; NaN when there is none
    reason: str = ""  # why nothing was fitted, or empty


def tuning_curves(acts: csr_array, value: Floats, min_rows: int = 3) -> Means:
    """Mean gated activation [row latent] of every latent at every value that at least `min_rows` rows have.

    `value` is a whole number, or NaN where the row is not used, [row].
    """
    expect_shape("tuning_curves", acts=(cast("Any", acts), ("row", "latent")), value=(value, ("row",)))
    used = np.flatnonzero(~np.isnan(value))
    known = value[used]
    if len(strange := known[known != np.round(known)]):
        remedy = "Give whole numbers, and NaN for rows that are not used."
        raise TableError(f"tuning to {strange[0]}", "no whole number", remedy)
    values, place, n_rows = np.unique(known.astype(np.int64), return_inverse=True, return_counts=True)
    kept = n_rows >= min_rows
    enough = kept[place]
    group = (np.cumsum(kept) - 1)[place[enough]]  # value of each row that counts, renumbered
    values, n_rows = values[kept], n_rows[kept]
    share = (1.0 / n_rows[group]).astype(np.float32)
    n_all, _ = cast("tuple[int, int]", acts.shape)
    member = coo_array((share, (group, used[enough])), shape=(len(values), n_all)).tocsr()
    mean = csr_array(member @ acts.astype(np.float32, copy=False)).toarray().T
    return Means(values, mean, n_rows)


def waves(value: Floats | Ints, period: float) -> Floats:
    """cos(2πv/T) and sin(2πv/T), [item 2]; of the period 2 only the cosine, (−1)^v, [item 1]."""
    angle = 2 * np.pi * np.asarray(value, dtype=np.float64) / period
    return np.cos(angle)[:, None] if period == 2 else np.column_stack([np.cos(angle), np.sin(angle)])


def fits_in(periods: Sequence[float], values: Floats | Ints) -> list[float]:
    """The periods that are not longer than the range of the values, max − min + 1."""
    if any(period < 2 for period in periods):
        remedy = "Give periods of 2 and longer: whole numbers show no shorter one."
        raise ConfigError(f"periods {list(periods)}", "one is below 2", remedy)
    span = int(values.max()) - int(values.min()) + 1 if len(values) else 0
    return [float(period) for period in periods if period <= span]


def helix_regression(
    curves: Means, periods: Sequence[float] = PERIODS, *, seed: int, n_null: int = 200
) -> HelixFit:
    """Shares of every curve's variance explained by a line and by waves, and p-values by random order.

        r² = 1 − Σ_v n_v (c_v − ĉ_v)² / Σ_v n_v (c_v − c̄)²,    share of T = r² − r² without the waves of T

    The line comes first: `linear_share` is the r² of the line alone, because on a range of 100 a line and
    the long waves are so alike that an exactly linear curve would lose only a fifth without its line. For
    the same reason a sine as long as the range has a linear share of .6; its period share tells it apart.
    A random order gives each curve value, with its rows, the place of another; the same orders serve all
    latents. p says that the order of the values matters, which a smooth bump achieves as well as a wave, and
    is at least 1/(1 + n_null). A column that earlier `periods` determine on these values is dropped.
    """
    columns, group, kept = _design(curves, periods)
    n_latents = len(curves.mean)
    shares = np.full((n_latents, 4 + len(kept)), np.nan)
    reason = ""
    if len(curves.groups) <= columns.shape[1]:
        reason = f"number of values {len(curves.groups)}, more than {columns.shape[1]} needed"
    else:
        root = np.sqrt(curves.n_rows / curves.n_rows.sum())  # values weigh as their rows, [value]

        def basis(design: Floats, n_before: int = 1) -> Floats:
            """What the columns after the first `n_before` span beyond these, orthonormal [value column]."""
            return np.linalg.qr(root[:, None] * design)[0][:, n_before:]

        bases = [basis(columns), basis(columns[:, :2])]
        for number in range(len(kept)):
            own = group == number
            bases.append(basis(np.column_stack([columns[:, ~own], columns[:, own]]), (~own).sum()))
        orders = np.random.default_rng(seed).permuted(np.tile(np.arange(len(root)), (n_null, 1)), axis=1)
        null = np.linalg.qr(root[:, None] * columns[orders])[0][:, :, 1:]  # [order value column]
        null = np.ascontiguousarray(null.transpose(2, 1, 0), dtype=np.float32)
        for first in range(0, n_latents, _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            shares[part] = _shares(curves.mean[part].astype(np.float64), root, bases, null)
    r2, p_value, null_q95, linear = shares[:, :4].T
    period_share = shares[:, 4:]
    parity, best = np.full(n_latents, np.nan), np.full(n_latents, np.nan)
    if 2.0 in kept:
        parity = period_share[:, kept.index(2.0)]
    if kept:
        largest = np.asarray(kept)[np.nan_to_num(period_share, nan=-1.0).argmax(axis=1)]
        best = np.where(np.isnan(r2), np.nan, largest)
    return HelixFit(tuple(kept), r2, p_value, null_q95, linear, parity, period_share, best, reason)


def _design(curves: Means, periods: Sequence[float]) -> tuple[Floats, Ints, list[float]]:
    """Columns independent of earlier ones [value column], their groups [column], the periods kept."""
    value = curves.groups.astype(np.float64)
    root = np.sqrt(curves.n_rows.astype(np.float64))
    offered = [(_LINE, np.ones(len(value))), (_LINE, value - value.mean() if len(value) else value)]
    inside = fits_in(periods, curves.groups)
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
        for _ in range(2):  # Gram-Schmidt twice, so that rounding leaves nothing of the earlier columns
            left = left - basis @ (basis.T @ left)
        if np.linalg.norm(left) > _ALIASED:
            basis = np.column_stack([basis, left / np.linalg.norm(left)])
            kept.append(column)
            groups.append(number)
    named = [number for number in dict.fromkeys(groups) if number != _LINE]
    group = np.array([named.index(number) if number != _LINE else _LINE for number in groups], dtype=np.int64)
    columns = np.column_stack(kept) if kept else np.empty((len(value), 0))
    return columns, group, [inside[number] for number in named]


def _shares(mean: Floats, root: Floats, bases: Sequence[Floats], null: Floats) -> Floats:
    """r2, p, null quantile, then the share of every further basis: [latent figure]; NaN if constant.

    Args:
        mean: curves, [latent value].
        root: square roots of the values' weights, [value].
        bases: orthonormal without the constant, the first of the whole model, [value column] each.
        null: that of the whole model for each random order of the values, float32 [column value order].
    """
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
    latents: LatentActs, rows: Rows, *, seed: int, periods: Sequence[float] = PERIODS, n_null: int = 200,
    min_rows: int = 3, min_active: int = 20, first_example: int = FIRST_EXAMPLE,
) -> TuningTable:  # fmt: skip
    """Tuning of every latent to y, x and y − 2x; multiplicity is over all of these.

    Only values of `min_rows` rows count, and latents that are not zero in `min_active` used rows; p is at
    least 1/(1 + n_null).
    """
    acts = latents.matrix
    n_rows, n_latents = cast("tuple[int, int]", acts.shape)
    if len(rows) != n_rows:
        what = f"tuning at {latents.site.short} '{latents.role}'"
        remedy = "Give the rows that `read_rows` makes of the prompts of these latents."
        raise TableError(what, f"{len(rows)} rows, not {n_rows}", remedy)
    parts: list[dict[str, Any]] = []
    for of, read in AXES.items():
        value = np.where(rows.example >= first_example, read(rows), np.nan)
        values, n_of_value = np.unique(value[~np.isnan(value)], return_counts=True)
        counted = np.isin(value, values[n_of_value >= min_rows])  # rows whose value enough rows have
        stored = np.repeat(counted, np.diff(acts.indptr)) & (acts.data != 0)
        n_active = np.bincount(acts.indices[stored], minlength=n_latents)
        chosen = np.flatnonzero(n_active >= min_active)
        curves = tuning_curves(csr_array(acts[:, chosen]), value, min_rows)
        fit = helix_regression(curves, periods, seed=seed, n_null=n_null)
        fitted, best_share = ~np.isnan(fit.r2), np.full(len(chosen), np.nan)
        lost = "no period is as short as the range of values"
        if fit.periods:
            best_share[fitted] = fit.period_share[fitted].max(axis=1)
            lost = "" if 2.0 in fit.periods else "no column of period 2"
        names = {"site": str(latents.site), "role": latents.role, "of": of, "n_values": len(curves.groups)}
        parts.append(
            vars(fit) | {key: np.full(len(chosen), name, dtype=object) for key, name in names.items()} | {
                "latent": chosen, "best_share": best_share,
                "reason": np.where(fitted, lost, fit.reason or "its curve is constant").astype(object),
            }
        )  # fmt: skip
    names = TuningTable.COLUMNS.keys() - {"q_value"}
    columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    return TuningTable(columns | {"q_value": benjamini_hochberg(columns["p_value"])})


# ------------------------------------------------------------------------------------- subspaces of a period

SIZES = (1, 2, 4, 8, 16, 32, 64)  # numbers of features among which the fewest that do are sought
ENOUGH = 0.9  # share of the r² of all chosen features that the fewest have to reach
FEWEST_ACTIVE = 10  # training rows on which a sparse feature must be active to be chosen
FEWEST_ROWS, FEWEST_VALUES = 30, 10
"""Rows on each side, and values that both sides have, below which nothing is fitted."""
_PENALTIES = (1e-4, 1e-2, 1.0)
"""Ridge penalties per training row to choose from, by leave-one-out error on the training rows."""


@dataclass(frozen=True)
class PeriodSubspace:
    """How well the wave of one period can be read on held-out tasks."""

    period: float  # in units of the number
    r2: float = np.nan  # of cosine and sine together on held-out rows; NaN where undefined
    p_value: float = np.nan  # of r2 against renamed values
    # the chosen features, the largest standardised coefficient first, [feature]
    features: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    # fewest of `SIZES` of them, in this order, that reach `ENOUGH` of r2; NaN unless r2 > 0. It is sought on
    # the held-out rows, and so describes them.
    n_for_90: float = np.nan
    reason: str = ""  # why figures are NaN, or empty


@dataclass(frozen=True)
class _Sides:
    """Rows of both sides, [row feature], and the number of each row's value, [row]."""

    train: csc_array | Floats
    held: csc_array | Floats
    train_value: Ints
    held_value: Ints
    spread: (
        Floats  # variance over the training rows, 0 where constant, or sparse and rarely active, [feature]
    )
    sums: Any  # sum over the training rows of each value, [value feature]: gives correlations with any wave


def fit_subspaces(
    acts: Matrix, value: Floats, train: NDArray[np.bool_], held: NDArray[np.bool_],
    *, seed: int, periods: Sequence[float] = PERIODS, n_null: int = 50, n_features: int = 64,
) -> list[PeriodSubspace]:  # fmt: skip
    """Held-out r² of the wave of each period, its p-value, and how few features suffice.

    Args:
        acts: the representation, [row feature].
        value: the number, NaN where the row is not used, [row].
        train, held: rows of discovery tasks, and of held-out tasks, [row].
        n_null: number of times the values are renamed, alike for all periods; p is at least 1/(1 + n_null).
        n_features: features that are chosen at most.
    """
    expect_shape(
        "fit_subspaces", acts=(cast("Any", acts), ("row", "feature")), value=(value, ("row",)),
        train=(train, ("row",)), held=(held, ("row",)),
    )  # fmt: skip
    if (train & held).any():
        remedy = "Give `train` and `held` without a row in common: rows of other tasks."
        raise TableError("rows to read periods on", "some are trained on", remedy)
    known = ~np.isnan(value)
    fitted, read = np.flatnonzero(train & known), np.flatnonzero(held & known)
    inside = fits_in(periods, np.concatenate([value[fitted], value[read]]))
    shared = len(np.intersect1d(value[fitted], value[read]))
    reason = "" if shared >= FEWEST_VALUES else f"{shared} values on both sides, {FEWEST_VALUES} needed"
    for name, side in (("held-out", read), ("discovery", fitted)):
        if len(side) < FEWEST_ROWS:
            reason = f"{len(side)} {name} rows, {FEWEST_ROWS} needed"
    if reason:
        return [PeriodSubspace(float(period), reason=reason) for period in periods]
    values, place = np.unique(value[known], return_inverse=True)
    number = np.zeros(len(value), dtype=np.int64)
    number[known] = place
    sides = _sides(acts, fitted, read, number, len(values))
    if not sides.spread.any():
        reason = "every feature is constant or active on too few rows"
        return [PeriodSubspace(float(period), reason=reason) for period in periods]
    rng = np.random.default_rng(seed)
    renamed = [rng.permutation(len(values)) for _ in range(n_null)]
    return [
        _fit_period(sides, waves(values, period), float(period), renamed, n_features)
        if period in inside
        else PeriodSubspace(float(period), reason="longer than the range of values")
        for period in periods
    ]


def _sides(acts: Matrix, fitted: Ints, read: Ints, number: Ints, n_values: int) -> _Sides:
    kept = [cast("Any", acts[rows]).astype(np.float64) for rows in (fitted, read)]
    train, tested = (csc_array(part) if issparse(part) else part for part in kept)
    _, spread = column_moments(train)
    at = (number[fitted], np.arange(len(fitted)))
    member = coo_array((np.ones(len(fitted)), at), shape=(n_values, len(fitted))).tocsr()
    if isinstance(train, csc_array):
        feature = np.repeat(np.arange(len(spread)), np.diff(train.indptr))
        spread[np.bincount(feature[train.data != 0], minlength=len(spread)) < FEWEST_ACTIVE] = 0.0
    return _Sides(train, tested, number[fitted], number[read], spread, member @ train)


def _fit_period(
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
    share = np.bincount(sides.train_value, minlength=len(target)) / n_rows  # of the training rows, [value]
    lift = target - share @ target
    lift = lift / np.sqrt(np.maximum(share @ lift**2, STILL))
    shared = ((np.asarray(sides.sums.T @ lift) / n_rows) ** 2).sum(axis=1)
    live = np.flatnonzero(sides.spread > 0)
    follows = shared[live] / sides.spread[live]
    return np.sort(live[np.argsort(-follows, kind="stable")[:n_features]])


def _read(sides: _Sides, chosen: Ints, target: Floats) -> tuple[float, Floats]:
    """r² on the held-out rows of a ridge regression on the training rows, and coefficient sizes [feature]."""
    train, tested = (
        part.toarray() if issparse(part) else part
        for part in (cast("Any", side)[:, chosen] for side in (sides.train, sides.held))
    )
    wanted, truth = target[sides.train_value], target[sides.held_value]
    scaler = StandardScaler().fit(train)
    ridge = RidgeCV(alphas=[len(wanted) * each for each in _PENALTIES])
    predicted = ridge.fit(scaler.transform(train), wanted).predict(scaler.transform(tested))
    total = ((truth - truth.mean(axis=0)) ** 2).sum()
    r2 = 1 - ((truth - predicted.reshape(truth.shape)) ** 2).sum() / total if total > 0 else np.nan
    return float(r2), np.linalg.norm(np.reshape(cast("Floats", ridge.coef_), (-1, len(chosen))), axis=0)


def period_subspaces(
    acts: Matrix, value: Floats, train: NDArray[np.bool_], held: NDArray[np.bool_],
    *, site: Site, role: str, representation: str, of: str, seed: int,
    periods: Sequence[float] = PERIODS, n_null: int = 50, n_features: int = 64,
) -> SubspaceTable:  # fmt: skip
    """`fit_subspaces` as a table, a row per period; `representation` names what is read, `of` the number."""
    fits = fit_subspaces(
        acts, value, train, held, seed=seed, periods=periods, n_null=n_null, n_features=n_features
    )
    known = ~np.isnan(value)
    names = {"site": str(site), "role": role, "representation": representation, "of": of}
    names |= {"n_train": int((train & known).sum()), "n_held": int((held & known).sum())}
    return SubspaceTable.from_rows(vars(one) | names | {"n_features": len(one.features)} for one in fits)
