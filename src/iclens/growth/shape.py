"""Shape certificates: additive, saturating, a step or a ramp, by generalised least squares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import expit, log_expit

from iclens.core import Site, TableError
from iclens.schemas import ShapeTable
from iclens.table import Floats, Ints, expect_shape

FLAT = 1e-9
"""Variance, as a share of the largest, below which prompts agree at an example."""
CHUNK = 256
"""Latents handled at a time; bounds the memory."""


@dataclass(frozen=True)
class Means:
    """Mean trajectories and the inverse of their prompts' covariance, for latents of one pattern.

    Args:
        n_prompts: prompts behind them.
        examples: examples that are used, [used].
        anchored: whether the curves start at the first example, which is then not used.
        mean: [latent used].
        weights: S⁻¹ [latent used used]; the intercept is projected out unless anchored.
    """

    n_prompts: int
    examples: Ints
    anchored: bool
    mean: Floats
    weights: Floats


@dataclass(frozen=True)
class Distances:
    """Q and b of every curve, [latent curve]."""

    q: Floats
    slope: Floats


def means_of(values: Floats) -> tuple[list[tuple[Ints, Means]], dict[int, str]]:
    """Means of all latents by their pattern, and why a latent has none.

    Args:
        values: paired differences, [latent prompt example].

    Returns:
        (latents [chosen], their means) for anchored and other latents; latent → reason.

    Raises:
        TableError: for a value that is not finite, or too few prompts.
    """
    sizes = expect_shape("trajectories", values=(values, ("latent", "prompt", "example")))
    n_prompts, n_examples = sizes["prompt"], sizes["example"]
    if not np.isfinite(values).all():
        latent, prompt, example = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise TableError(
            f"trajectory of latent {latent} of the list",
            f"NaN or infinite at prompt {prompt}, example {example}",
            "Run `iclens track RUN` again; if it stays, read the model in float32 (model.dtype).",
        )  # fmt: skip
    if n_prompts < n_examples + 2 or n_examples < 4:
        raise TableError(
            f"a shape from {n_prompts} prompts of {n_examples} examples", "too few",
            "Give at least four examples and two prompts more than examples.",
        )  # fmt: skip
    variance = values.var(axis=1)
    flat = variance <= FLAT * variance.max(axis=1, keepdims=True)
    reasons = {
        int(i): "prompts do not differ at some examples" for i in np.flatnonzero(flat[:, 1:].any(axis=1))
    }
    usable = np.array([i not in reasons for i in range(len(values))], dtype=bool)
    found = []
    for anchored in (False, True):
        chosen = np.flatnonzero(usable & (flat[:, 0] == anchored))
        if chosen.size:
            found.append((chosen, _means(values[chosen], anchored)))
    return found, reasons


def _means(values: Floats, anchored: bool) -> Means:
    used = np.arange(int(anchored), values.shape[2])
    kept = values[:, :, used].astype(np.float64)
    if anchored:
        kept = kept - values[:, :, :1]
    n = kept.shape[1]
    mean = kept.mean(axis=1)
    centred = kept - mean[:, None]
    covariance = np.einsum("fpj,fpk->fjk", centred, centred, optimize=True) / (n - 1)
    weights = np.linalg.pinv(covariance, hermitian=True)
    if not anchored:
        ones = weights.sum(axis=2)
        level = ones.sum(axis=1)[:, None, None]
        # Where every prompt's values sum to one constant, the level is known and nothing is left of it.
        known = level <= FLAT * np.abs(weights).sum(axis=(1, 2), keepdims=True)
        projected = ones[:, :, None] * ones[:, None, :] / np.where(known, 1.0, level)
        weights = weights - np.where(known, 0.0, projected)
    return Means(n, used, anchored, mean, weights)


def distances(means: Means, curves: Floats) -> Distances:
    """Q and b of every curve.

    Args:
        means: of some latents.
        curves: [curve example], over all examples.
    """
    g = curves - curves[:, :1] if means.anchored else curves
    g = g[:, means.examples]
    pulled = means.weights @ means.mean[:, :, None]
    total = means.n_prompts * (means.mean[:, None] @ pulled)[:, 0, 0]
    cross = (pulled[:, :, 0] @ g.T) * means.n_prompts
    norm = np.einsum("fcj,cj->fc", g[None] @ means.weights, g, optimize=True) * means.n_prompts
    # Against what each curve could weigh itself: beside n^5 of many examples, n^.3 would look flat.
    most = np.diagonal(means.weights, axis1=1, axis2=2).max(axis=1)
    flat = norm <= 1e-12 * means.n_prompts * most[:, None] * np.square(g).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(flat, 0.0, cross / norm)
    return Distances(np.maximum(total[:, None] - slope * cross, 0.0), slope)


POWERS: Floats = np.geomspace(0.05, 5.0, 161)
"""Exponents on which the profile is taken."""


@dataclass(frozen=True)
class Family:
    """One family of trajectories.

    Args:
        name: of the family.
        parameters: the θ of each of its curves, in words, [curve].
        curves: g(n; θ), [curve example].
        n_free: parameters beside a: b and θ.
    """

    name: str
    parameters: tuple[str, ...]
    curves: Floats
    n_free: int


def families(n_seen: Ints, fixed: Mapping[str, Floats] | None = None) -> tuple[Family, ...]:
    """Every family on these numbers of examples; a family without a curve there is left out.

    Args:
        n_seen: examples seen, rising, [example].
        fixed: name → curve [example] to compare with, such as a belief measured beforehand.

    Raises:
        TableError: when a fixed curve has another length or is not finite.
    """
    n = np.asarray(n_seen, dtype=float)
    last = n[-1]
    breaks = n[1:-1]
    widths, starts, steps = np.geomspace(0.3, last / 2, 8), np.linspace(-6, 2, 9), np.geomspace(0.1, 3, 8)
    kappas, taus = np.geomspace(0.25, 8 * last, 28), np.geomspace(0.4, 4 * last, 28)
    found = [
        Family("constant", ("",), np.zeros((1, len(n))), 0),
        Family("linear", ("",), n[None], 1),
        _grid("power", "p", POWERS, lambda p: n**p, 2),
        Family("log", ("",), np.log1p(n)[None], 1),
        _grid("hyperbolic", "κ", kappas, lambda k: n / (n + k), 2),
        _grid("exponential", "τ", taus, lambda t: -np.expm1(-n / t), 2),
        _grid("step", "s", n[1:], lambda s: (n >= s).astype(float), 2),
        _grid("hinge", "s", breaks, lambda s: np.maximum(0.0, n - s), 2),
        _grid("plateau", "s", breaks, lambda s: np.minimum(n, s), 2),
        _pairs("logistic", ("m", "w"), breaks, widths, lambda m, w: expit((n - m) / w)),
        _pairs("log-posterior", ("l_0", "λ"), starts, steps, lambda start, step: log_expit(start + step * n)),
    ]  # fmt: skip
    for name, curve in (fixed or {}).items():
        if curve.shape != n.shape or not np.isfinite(curve).all():
            raise TableError(
                f"fixed curve '{name}'",
                f"shape {curve.shape}",
                f"Give {len(n)} finite values, one per example.",
            )
        found.append(Family(name, ("",), curve[None].astype(float), 1))
    return tuple(family for family in found if len(family.curves))


def _grid(name: str, symbol: str, grid: Floats, curve: Callable[[float], Floats], n_free: int) -> Family:
    curves = np.array([curve(float(value)) for value in grid])
    return Family(name, tuple(f"{symbol} {value:.3g}" for value in grid), curves, n_free)


def _pairs(
    name: str, symbols: tuple[str, str], one: Floats, other: Floats, curve: Callable[[float, float], Floats]
) -> Family:
    grid = [(float(a), float(b)) for a in one for b in other]
    words = tuple(f"{symbols[0]} {a:.3g}, {symbols[1]} {b:.3g}" for a, b in grid)
    return Family(name, words, np.array([curve(a, b) for a, b in grid]), 3)


BLOCK = 2**20
"""Values handled at a time; bounds the memory."""
BLIND = 1e-6
"""Spread of T below which the prompts tell nothing; r has spread 1."""


def own_steps_p(n_seen: Ints, values: Floats) -> Floats:
    """p against steps up at every prompt's own place, of latents whose prompts climb a line, [latent].

    It is 1 where the prompts tell nothing: all are straight, or there are fewer than four examples.

    Args:
        n_seen: examples seen, rising, [example].
        values: paired differences, finite, of at least two prompts, [latent prompt example].
    """
    line = np.stack([np.ones(len(n_seen)), np.asarray(n_seen, dtype=float)], axis=1)
    off_line = np.eye(len(n_seen)) - line @ np.linalg.pinv(line)
    size = max(1, BLOCK // max(1, values[0].size)) if len(values) else 1
    parts = [_p(values[start : start + size], off_line) for start in range(0, len(values), size)]
    return np.concatenate(parts) if parts else np.empty(0)


def _p(values: Floats, off_line: Floats) -> Floats:
    """p of a block of latents. `off_line` takes every line in n out of a trajectory, [example example]."""
    n_prompts, n_examples = values.shape[1:]
    apart = values.astype(np.float64)
    apart -= apart.mean(axis=1, keepdims=True)
    whole = np.einsum("fpj,fpk->fjk", apart, apart, optimize=True) / (n_prompts - 1)
    bent = off_line @ whole @ off_line
    straight = np.trace(bent, axis1=1, axis2=2) <= FLAT * np.trace(whole, axis1=1, axis2=2)
    weights = np.linalg.pinv((bent + bent[:, ::-1, ::-1]) / 2, rcond=FLAT, hermitian=True)
    steps = np.tri(n_examples, n_examples - 1, -1)
    read = weights @ (off_line @ steps)
    power = np.einsum("fjt,jt->ft", read, off_line @ steps)
    seen = power > FLAT * power.max(axis=1, keepdims=True)
    read *= np.where(seen, 1 / np.sqrt(np.where(seen, power, 1.0)), 0.0)[:, None]
    r = apart @ read
    third = ((r * r - 3) * r).sum(axis=2)
    spread = third.std(axis=1, ddof=1)
    blind = straight | (spread <= BLIND)
    t = np.sqrt(n_prompts) * third.mean(axis=1) / np.where(blind, 1.0, spread)
    return np.where(blind, 1.0, stats.t.sf(t, n_prompts - 1))


ADDITIVE = (0.8, 1.25)
"""Exponents that count as additive."""
LEVEL = 0.90
"""Of the profile interval in the table: an end outside says saturation or acceleration at 5 %."""
GRANTED = 0.975
"""Of the profile interval that has to lie inside for a certificate."""
FIT_LEVEL = 0.01
"""Smallest p, of lack of fit and against prompts' own steps, that the certificate accepts."""


@dataclass(frozen=True)
class Profile:
    """Exponents of latents: estimate and interval, [latent] each; ends of the grid where it is left."""

    exponent: Floats
    low: Floats
    high: Floats


def fit_shapes(
    n_seen: Ints,
    values: Floats,
    *,
    place: tuple[Site, str],
    latent_ids: Ints,
    fixed: Mapping[str, Floats] | None = None,
) -> ShapeTable:
    """The shape of each latent's mean paired trajectory.

    Args:
        n_seen: examples seen, rising, [example].
        values: paired differences T − control of pre-activations, [latent prompt example].
        place: site and role, for the table.
        latent_ids: [latent].
        fixed: name → curve [example] to compare with; see `curves.families`.

    Raises:
        TableError: for a value that is not finite, or too few prompts or examples.
    """
    compared = families(n_seen, fixed)
    columns = _empty(place, latent_ids, values)
    patterns, reasons = means_of(values) if len(values) else ([], {})
    for chosen, means in patterns:
        for start in range(0, len(chosen), CHUNK):
            part = slice(start, start + CHUNK)
            few = Means(
                means.n_prompts, means.examples, means.anchored, means.mean[part], means.weights[part]
            )
            for name, found in _judged(few, compared, values[chosen[part]], n_seen).items():
                columns[name][chosen[part]] = found
    for latent, reason in reasons.items():
        columns["reason"][latent] = reason
    return ShapeTable(columns)


def profile_interval(means: Means, n_examples: int, power: Distances, level: float) -> Profile:
    """The exponent and its profile interval.

    Args:
        means: of some latents.
        n_examples: examples of a prompt, anchored one included.
        power: distances of the curves of `POWERS`.
        level: of the interval, for example .9.
    """
    nu = means.n_prompts - 1 - (n_examples - 1 - 2)
    q = np.where(power.slope > 0, power.q, np.inf)
    best = q.argmin(axis=1)
    rows = np.arange(len(q))
    smallest = q[rows, best]
    limit = (1 + smallest / (means.n_prompts - 1)) * (1 + stats.f.ppf(level, 1, nu) / nu)
    inside = (1 + q / (means.n_prompts - 1)) <= limit[:, None]
    exponent = np.where(np.isfinite(smallest), _vertex(q, best), np.nan)
    ends = _crossings(q, (limit - 1) * (means.n_prompts - 1), inside)
    return Profile(exponent, *(np.where(np.isfinite(smallest), end, np.nan) for end in ends))


def _vertex(q: Floats, best: Ints) -> Floats:
    """Minimum of the parabola through the best exponent and its neighbours, on the log scale."""
    rows, logs = np.arange(len(q)), np.log(POWERS)
    middle = np.clip(best, 1, len(POWERS) - 2)
    left, centre, right = (q[rows, middle + d] for d in (-1, 0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = 0.5 * (left - right) / (left - 2 * centre + right)
    step = logs[1] - logs[0]
    shift = np.where(np.isfinite(shift) & (best == middle), np.clip(shift, -1, 1), 0.0)
    return np.exp(logs[best] + step * shift)


def _crossings(q: Floats, bound: Floats, inside: np.ndarray) -> tuple[Floats, Floats]:
    """Where Q crosses `bound` at the outermost inside points, by linear interpolation on the log scale."""
    logs, rows = np.log(POWERS), np.arange(len(q))
    ends = []
    for first, outward in (
        (inside.argmax(axis=1), -1),
        (len(POWERS) - 1 - inside[:, ::-1].argmax(axis=1), 1),
    ):
        beside = np.clip(first + outward, 0, len(POWERS) - 1)
        here, there = q[rows, first], q[rows, beside]
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (bound - here) / (there - here)
        share = np.where((beside == first) | ~np.isfinite(share), 0.0, np.clip(share, 0, 1))
        ends.append(np.exp(logs[first] + share * (logs[beside] - logs[first])))
    return ends[0], ends[1]


def _judged(
    means: Means, compared: tuple[Family, ...], values: Floats, n_seen: Ints
) -> dict[str, np.ndarray]:
    """Columns of the table for latents of one pattern."""
    n_examples, used = len(n_seen), means.examples
    found = {family.name: distances(means, family.curves) for family in compared}
    n, spare = means.n_prompts, n_examples - 1
    bic = np.stack(
        [n * np.log1p(found[f.name].q.min(axis=1) / (n - 1)) + f.n_free * np.log(n) for f in compared]
    )
    names = [family.name for family in compared]
    best = bic.argmin(axis=0)
    at = [int(found[names[b]].q[i].argmin()) for i, b in enumerate(best)]
    profile, wide = (profile_interval(means, n_examples, found["power"], level) for level in (LEVEL, GRANTED))
    freedom = spare - 2
    statistic = found["power"].q.min(axis=1) * (n - freedom) / ((n - 1) * freedom)
    columns = {
        "growth": means.mean[:, -1] - (0.0 if means.anchored else means.mean[:, 0]),
        "exponent": profile.exponent,
        "exponent_low": profile.low,
        "exponent_high": profile.high,
        "best_curve": np.array([names[b] for b in best], dtype=object),
        "curve_parameter": np.array(
            [compared[b].parameters[i] for b, i in zip(best, at, strict=True)], dtype=object
        ),
        "step_margin": bic[names.index("step")] - bic[names.index("linear")],
        "lack_of_fit_p": stats.f.sf(statistic, freedom, n - freedom),
        "own_steps_p": own_steps_p(np.asarray(n_seen)[used], values[:, :, used]),
    }
    columns["snr"] = columns["growth"] / values.std(axis=1, ddof=1)[:, means.examples].mean(axis=1)
    rises = found["linear"].slope[:, 0] > 0
    columns["reason"] = _reasons(columns, rises, wide)
    columns["certified"] = columns["reason"] == ""
    return columns


def _reasons(columns: dict[str, np.ndarray], rises: np.ndarray, wide: Profile) -> np.ndarray:
    """Why the certificate is not granted, [latent]; empty where it is. `wide` has the interval it needs."""
    reasons = []
    for i, rising in enumerate(rises):
        p, low, high = (float(columns[name][i]) for name in ("exponent", "exponent_low", "exponent_high"))
        shown = f"exponent {p:.2f} [{low:.2f}, {high:.2f}]"
        fit_p = float(columns["lack_of_fit_p"][i])
        if not rising or not np.isfinite(p):
            reasons.append("it does not rise on the shape prompts")
        elif high < ADDITIVE[0]:
            reasons.append(f"it saturates: {shown}, best {columns['best_curve'][i]}")
        elif low > ADDITIVE[1]:
            reasons.append(f"it accelerates: {shown}, best {columns['best_curve'][i]}")
        elif columns["step_margin"][i] <= 0:
            reasons.append(f"a step fits as well as a line; {shown}")
        elif not (wide.low[i] > ADDITIVE[0] and wide.high[i] < ADDITIVE[1]):
            shown = f"exponent {p:.2f}, {100 * GRANTED:g} % interval [{wide.low[i]:.2f}, {wide.high[i]:.2f}]"
            reasons.append(f"shape undetermined: {shown} is not inside (0.8, 1.25)")
        elif fit_p < FIT_LEVEL:
            reasons.append(f"no power of n fits (lack of fit p {fit_p:.1g}); best {columns['best_curve'][i]}")
        elif columns["own_steps_p"][i] < FIT_LEVEL:
            own = f"p {columns['own_steps_p'][i]:.1g}"
            reasons.append(f"prompts step at places of their own, or by unequal amounts ({own}); {shown}")
        else:
            reasons.append("")
    return np.array(reasons, dtype=object)


def _empty(place: tuple[Site, str], latent_ids: Ints, values: Floats) -> dict[str, np.ndarray]:
    n = len(values)
    columns: dict[str, np.ndarray] = {
        "site": np.full(n, str(place[0]), dtype=object),
        "role": np.full(n, place[1], dtype=object),
        "latent": np.asarray(latent_ids),
        "n_prompts": np.full(n, values.shape[1]),
        "certified": np.zeros(n, dtype=bool),
    }
    for name, column in ShapeTable.COLUMNS.items():
        if name not in columns:
            blank = np.full(n, "", dtype=object) if column.kind == "str" else np.full(n, np.nan)
            columns[name] = blank
    return columns
