"""Shape certificates: additive, saturating, a step or a ramp, from mean paired trajectories.

How far a mean ȳ [example] over N prompts is from a curve g, in the metric of the prompts' covariance S, so
that prompts' own levels and slopes and autocorrelation are accounted for:

    Q(g) = N · min_{a, b} (ȳ − a − b·g)ᵀ S⁻¹ (ȳ − a − b·g)

With k curve parameters of J examples, Q · (N − J + k) / ((N − 1)(J − k)) is F(J − k, N − J + k) if the curve
is right (Hotelling). The profile of one parameter is ν · (Λ − 1) ~ F(1, ν) with ν = N − 1 − (J − k) and
Λ = (1 + Q / (N − 1)) / (1 + Q_min / (N − 1)). Source: Rao (1959), Biometrika 46, 49–58.

*Anchored*: where all prompts agree at the first example, as paired arms do before any label is read, the
curves start there: a = 0 and g(n) − g(n_0), and that example drops out.

A certificate is granted where 1. the mean rises (b > 0); 2. the 97.5 % profile interval of the exponent p
of a + b·n^p lies inside (.8, 1.25); 3. no step fits as well as the line, by BIC; 4. the power curve's lack
of fit has p ≥ .01; 5. prompt by prompt, steps at places of their own, whose mean is straight, have p ≥ .01.
What stays unseen: unequal updates that are small or lie evenly about their mean; and prompts that bend in
opposite ways, some early and some late. Rates of false and missed certificates: docs/growth.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import stats
from scipy.special import expit, log_expit

from iclens.core import Site, TableError
from iclens.schemas import ShapeTable
from iclens.table import Floats, Ints, expect_shape

ADDITIVE = (0.8, 1.25)
"""Exponents that count as additive."""
LEVEL = 0.90
"""Of the profile interval in the table: an end outside says saturation or acceleration at 5 %."""
GRANTED = 0.975
"""Of the profile interval that has to lie inside for a certificate."""
FIT_LEVEL = 0.01
"""Smallest p, of lack of fit and against prompts' own steps, that the certificate accepts."""
FLAT = 1e-9
"""Variance, as a share of the largest, below which prompts agree at an example."""
CHUNK, BLOCK = 256, 2**20
"""Latents that are fitted at a time, and values in which steps are looked for; they bound the memory."""


def fit_shapes(
    n_seen: Ints, values: Floats, *, place: tuple[Site, str], latent_ids: Ints,
    fixed: Mapping[str, Floats] | None = None,
) -> ShapeTable:  # fmt: skip
    """The shape of each latent's mean paired trajectory.

    Args:
        n_seen: examples seen, rising, [example].
        values: paired differences T − control of pre-activations, [latent prompt example].
        place: site and role, for the table.
        latent_ids: [latent].
        fixed: name → curve [example] to compare with, such as a belief measured on other prompts.

    Raises:
        TableError: for a value that is not finite, or too few prompts or examples.
    """
    compared = families(n_seen, fixed)
    n_latents = len(values)
    blank = {"str": "", "bool": False}
    columns: dict[str, np.ndarray] = {
        name: np.full(n_latents, blank.get(column.kind, np.nan), dtype=object)
        for name, column in ShapeTable.COLUMNS.items()
    }
    columns |= {"latent": np.asarray(latent_ids), "n_prompts": np.full(n_latents, values.shape[1])}
    columns["site"][:], columns["role"][:] = str(place[0]), place[1]
    patterns, reasons = means_of(values) if n_latents else ([], {})
    for chosen, means in patterns:
        for start in range(0, len(chosen), CHUNK):
            part = slice(start, start + CHUNK)
            judged = _judged(means.select(part), compared, values[chosen[part]], n_seen)
            for name, column in judged.items():
                columns[name][chosen[part]] = column
    for latent, reason in reasons.items():
        columns["reason"][latent] = reason
    return ShapeTable(columns)


# ------------------------------------------------------------------------- generalised least squares


@dataclass(frozen=True)
class Means:
    """Mean trajectories and the inverse of their prompts' covariance, for latents of one pattern."""

    n_prompts: int  # prompts behind them
    examples: Ints  # examples that are used, [used]
    anchored: bool  # whether the curves start at the first example, which is then not used
    mean: Floats  # [latent used]
    weights: Floats  # S⁻¹ [latent used used]; the intercept is projected out unless anchored

    def select(self, latents: slice) -> Means:
        """Some of the latents."""
        return Means(self.n_prompts, self.examples, self.anchored, self.mean[latents], self.weights[latents])


@dataclass(frozen=True)
class Distances:
    """Q and b of every curve, [latent curve]."""

    q: Floats
    slope: Floats


def means_of(values: Floats) -> tuple[list[tuple[Ints, Means]], dict[int, str]]:
    """Means of latents by pattern (latents [chosen], means), and latent → reason why one has none.

    `values` are paired differences, [latent prompt example].
    """
    sizes = expect_shape("trajectories", values=(values, ("latent", "prompt", "example")))
    n_prompts, n_examples = sizes["prompt"], sizes["example"]
    if not np.isfinite(values).all():
        latent, prompt, example = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        what = f"trajectory of latent {latent} of the list"
        remedy = "Run `iclens track RUN` again; if it stays, read the model in float32 (model.dtype)."
        raise TableError(what, f"NaN or infinite at prompt {prompt}, example {example}", remedy)
    if n_prompts < n_examples + 2 or n_examples < 4:
        remedy = "Give at least four examples and two prompts more than examples."
        raise TableError(f"a shape from {n_prompts} prompts of {n_examples} examples", "too few", remedy)
    variance = values.var(axis=1)
    flat = variance <= FLAT * variance.max(axis=1, keepdims=True)
    unusable = flat[:, 1:].any(axis=1)
    patterns = []
    for anchored in (False, True):
        chosen = np.flatnonzero(~unusable & (flat[:, 0] == anchored))
        if chosen.size:
            patterns.append((chosen, _means(values[chosen], anchored)))
    reason = "prompts do not differ at some examples"
    return patterns, dict.fromkeys(np.flatnonzero(unusable).tolist(), reason)


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
        # S⁻¹ − S⁻¹1 1ᵀS⁻¹ / 1ᵀS⁻¹1 projects the intercept out.
        ones = weights.sum(axis=2)
        level = ones.sum(axis=1)[:, None, None]
        # Where every prompt's values sum to one constant, the level is known and nothing is left of it.
        known = level <= FLAT * np.abs(weights).sum(axis=(1, 2), keepdims=True)
        projected = ones[:, :, None] * ones[:, None, :] / np.where(known, 1.0, level)
        weights = weights - np.where(known, 0.0, projected)
    return Means(n, used, anchored, mean, weights)


def distances(means: Means, curves: Floats) -> Distances:
    """Q and b of every curve, given over all examples, [curve example]."""
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


# ------------------------------------------------------------------------------ families of curves

POWERS: Floats = np.geomspace(0.05, 5.0, 161)
"""Exponents on which the profile is taken."""


@dataclass(frozen=True)
class Family:
    """One family of trajectories."""

    name: str  # of the family
    parameters: tuple[str, ...]  # the θ of each of its curves, in words, [curve]
    curves: Floats  # g(n; θ), [curve example]
    n_free: int  # parameters beside a: b and θ


def families(n_seen: Ints, fixed: Mapping[str, Floats] | None = None) -> tuple[Family, ...]:
    """Every family a + b·g(n; θ) on these numbers of examples, θ on a grid; one without a curve is left out.

    A logistic is also a posterior σ(l_0 + λn), an exponential a leaky sum with rate exp(−1/τ): two names for
    one set of curves would be two chances for it, so each set stands here once. `fixed` has further curves
    to compare with by name, [example] each.
    """
    n = np.asarray(n_seen, dtype=float)
    last, breaks = n[-1], n[1:-1]
    widths, starts, steps = np.geomspace(0.3, last / 2, 8), np.linspace(-6, 2, 9), np.geomspace(0.1, 3, 8)
    kappas, taus = np.geomspace(0.25, 8 * last, 28), np.geomspace(0.4, 4 * last, 28)
    compared = [
        Family("constant", ("",), np.zeros((1, len(n))), 0),
        Family("linear", ("",), n[None], 1),
        _family("power", {"p": POWERS}, lambda p: n**p),
        Family("log", ("",), np.log1p(n)[None], 1),
        _family("hyperbolic", {"κ": kappas}, lambda k: n / (n + k)),
        _family("exponential", {"τ": taus}, lambda t: -np.expm1(-n / t)),
        _family("step", {"s": n[1:]}, lambda s: (n >= s).astype(float)),
        _family("hinge", {"s": breaks}, lambda s: np.maximum(0.0, n - s)),
        _family("plateau", {"s": breaks}, lambda s: np.minimum(n, s)),
        _family("logistic", {"m": breaks, "w": widths}, lambda m, w: expit((n - m) / w)),
        _family("log-posterior", {"l_0": starts, "λ": steps}, lambda l_0, step: log_expit(l_0 + step * n)),
    ]
    for name, curve in (fixed or {}).items():
        if curve.shape != n.shape or not np.isfinite(curve).all():
            remedy = f"Give {len(n)} finite values, one per example."
            raise TableError(f"fixed curve '{name}'", f"shape {curve.shape}", remedy)
        compared.append(Family(name, ("",), curve[None].astype(float), 1))
    return tuple(family for family in compared if len(family.curves))


def _family(name: str, grids: Mapping[str, Iterable[float]], curve: Callable[..., Floats]) -> Family:
    """The curves of every combination of parameters; `grids` gives the values of each by its symbol."""
    thetas = [tuple(float(value) for value in theta) for theta in product(*grids.values())]
    words = tuple(", ".join(f"{s} {v:.3g}" for s, v in zip(grids, theta, strict=True)) for theta in thetas)
    return Family(name, words, np.array([curve(*theta) for theta in thetas]), 1 + len(grids))


# --------------------------------------------------------------------------- steps of single prompts

BLIND = 1e-6
"""Spread of T below which the prompts tell nothing; r has spread 1."""


def own_steps_p(n_seen: Ints, values: Floats) -> Floats:
    """p against steps up at every prompt's own place, of latents whose prompts climb a line, [latent].

    For prompt i and a step at place τ, of paired differences `values` [latent prompt example],

        r_iτ = g_τᵀ W u_i / √(g_τᵀ W g_τ)      T_i = Σ_τ (r_iτ³ − 3 r_iτ)      p: one-sided t of T over
        prompts

    u_i is the prompt's trajectory minus the mean over prompts, g_τ = 1[n ≥ τ], and W the inverse of the
    prompts' covariance, with every line in n projected out: a prompt's own level and slope drop out. r is
    the best linear reading of a step there, in units of its spread; its third Hermite polynomial is what
    steps up add and the covariance cannot hold. p is valid where prompts climb straight and their noise is
    symmetric or reversible in n; skewed noise that changes with n is neither, and is refused too often.

    It is 1 where the prompts tell nothing: all are straight, or there are fewer than four examples.
    """
    line = np.stack([np.ones(len(n_seen)), np.asarray(n_seen, dtype=float)], axis=1)
    off_line = np.eye(len(n_seen)) - line @ np.linalg.pinv(line)
    size = max(1, BLOCK // max(1, values[0].size)) if len(values) else 1
    parts = [_own_steps(values[start : start + size], off_line) for start in range(0, len(values), size)]
    return np.concatenate(parts) if parts else np.empty(0)


def _own_steps(values: Floats, off_line: Floats) -> Floats:
    """p of a block of latents. `off_line` takes every line in n out of a trajectory, [example example]."""
    n_prompts, n_examples = values.shape[1:]
    apart = values.astype(np.float64)
    apart -= apart.mean(axis=1, keepdims=True)
    whole = np.einsum("fpj,fpk->fjk", apart, apart, optimize=True) / (n_prompts - 1)
    bent = off_line @ whole @ off_line
    straight = np.trace(bent, axis1=1, axis2=2) <= FLAT * np.trace(whole, axis1=1, axis2=2)
    # Averaged with its own reversal, so that W does not tell a step up from a step down turned about.
    weights = np.linalg.pinv((bent + bent[:, ::-1, ::-1]) / 2, rcond=FLAT, hermitian=True)
    steps = np.tri(n_examples, n_examples - 1, -1)
    read = weights @ (off_line @ steps)  # [latent example place]
    power = np.einsum("fjt,jt->ft", read, off_line @ steps)
    visible = power > FLAT * power.max(axis=1, keepdims=True)
    read *= np.where(visible, 1 / np.sqrt(np.where(visible, power, 1.0)), 0.0)[:, None]
    r = apart @ read  # [latent prompt place]
    third = ((r * r - 3) * r).sum(axis=2)
    spread = third.std(axis=1, ddof=1)
    blind = straight | (spread <= BLIND)
    t = np.sqrt(n_prompts) * third.mean(axis=1) / np.where(blind, 1.0, spread)
    return np.where(blind, 1.0, stats.t.sf(t, n_prompts - 1))


# ------------------------------------------------------------------------------- the certificate


@dataclass(frozen=True)
class Profile:
    """Exponents of latents: estimate and interval, [latent] each; ends of the grid where it is left."""

    exponent: Floats
    low: Floats
    high: Floats


def profile_interval(means: Means, n_examples: int, power: Distances, level: float) -> Profile:
    """The exponent and its profile interval of that `level`, from the distances of the curves of `POWERS`.

    `n_examples` counts the anchored one too.
    """
    nu = means.n_prompts - 1 - (n_examples - 1 - 2)
    q = np.where(power.slope > 0, power.q, np.inf)
    best = q.argmin(axis=1)
    smallest = q[np.arange(len(q)), best]
    limit = (1 + smallest / (means.n_prompts - 1)) * (1 + stats.f.ppf(level, 1, nu) / nu)
    inside = (1 + q / (means.n_prompts - 1)) <= limit[:, None]
    exponent, ends = _vertex(q, best), _crossings(q, (limit - 1) * (means.n_prompts - 1), inside)
    return Profile(*(np.where(np.isfinite(smallest), part, np.nan) for part in (exponent, *ends)))


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
    logs, rows, last = np.log(POWERS), np.arange(len(q)), len(POWERS) - 1
    ends = []
    for first, outward in ((inside.argmax(axis=1), -1), (last - inside[:, ::-1].argmax(axis=1), 1)):
        beyond = np.clip(first + outward, 0, last)
        here, there = q[rows, first], q[rows, beyond]
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (bound - here) / (there - here)
        share = np.where((beyond == first) | ~np.isfinite(share), 0.0, np.clip(share, 0, 1))
        ends.append(np.exp(logs[first] + share * (logs[beyond] - logs[first])))
    return ends[0], ends[1]


def _judged(
    means: Means, compared: tuple[Family, ...], values: Floats, n_seen: Ints
) -> dict[str, np.ndarray]:
    """Columns of the table for latents of one pattern."""
    n, n_examples, used = means.n_prompts, len(n_seen), means.examples
    fits = {family.name: distances(means, family.curves) for family in compared}
    bic = {
        family.name: n * np.log1p(fits[family.name].q.min(axis=1) / (n - 1)) + family.n_free * np.log(n)
        for family in compared
    }
    best = [compared[b] for b in np.stack(list(bic.values())).argmin(axis=0)]
    profile, wide = (profile_interval(means, n_examples, fits["power"], level) for level in (LEVEL, GRANTED))
    freedom = n_examples - 3  # examples but a, b and p
    statistic = fits["power"].q.min(axis=1) * (n - freedom) / ((n - 1) * freedom)
    growth = means.mean[:, -1] - (0.0 if means.anchored else means.mean[:, 0])
    parameters = [family.parameters[fits[family.name].q[i].argmin()] for i, family in enumerate(best)]
    columns = {
        "growth": growth, "exponent": profile.exponent, "exponent_low": profile.low,
        "exponent_high": profile.high,
        "best_curve": np.array([family.name for family in best], dtype=object),
        "curve_parameter": np.array(parameters, dtype=object),
        "step_margin": bic["step"] - bic["linear"],
        "lack_of_fit_p": stats.f.sf(statistic, freedom, n - freedom),
        "own_steps_p": own_steps_p(np.asarray(n_seen)[used], values[:, :, used]),
        "snr": growth / values.std(axis=1, ddof=1)[:, used].mean(axis=1),
    }  # fmt: skip
    columns["reason"] = _reasons(columns, fits["linear"].slope[:, 0] > 0, wide)
    columns["certified"] = columns["reason"] == ""
    return columns


def _reasons(columns: dict[str, np.ndarray], rises: np.ndarray, wide: Profile) -> np.ndarray:
    """Why the certificate is not granted, [latent]; empty where it is. `wide` has the interval it needs."""
    reasons = []
    for i, rising in enumerate(rises):
        p, low, high = (float(columns[name][i]) for name in ("exponent", "exponent_low", "exponent_high"))
        fit_p, steps_p = (float(columns[name][i]) for name in ("lack_of_fit_p", "own_steps_p"))
        shown, best = f"exponent {p:.2f} [{low:.2f}, {high:.2f}]", columns["best_curve"][i]
        if not rising or not np.isfinite(p):
            reason = "it does not rise on the shape prompts"
        elif high < ADDITIVE[0]:
            reason = f"it saturates: {shown}, best {best}"
        elif low > ADDITIVE[1]:
            reason = f"it accelerates: {shown}, best {best}"
        elif columns["step_margin"][i] <= 0:
            reason = f"a step fits as well as a line; {shown}"
        elif not (wide.low[i] > ADDITIVE[0] and wide.high[i] < ADDITIVE[1]):
            shown = f"exponent {p:.2f}, {100 * GRANTED:g} % interval [{wide.low[i]:.2f}, {wide.high[i]:.2f}]"
            reason = f"shape undetermined: {shown} is not inside (0.8, 1.25)"
        elif fit_p < FIT_LEVEL:
            reason = f"no power of n fits (lack of fit p {fit_p:.1g}); best {best}"
        elif steps_p < FIT_LEVEL:
            reason = f"prompts step at places of their own, or by unequal amounts (p {steps_p:.1g}); {shown}"
        else:
            reason = ""
        reasons.append(reason)
    return np.array(reasons, dtype=object)
