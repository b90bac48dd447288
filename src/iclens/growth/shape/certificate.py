"""Is growth additive, or does it only look so? The additive certificate, latent by latent.

Granted where all hold, on the mean trajectory's generalised least squares fit (`gls`):
1. it rises (b > 0); 2. the 97.5 % profile interval of the exponent p of a + b·n^p lies inside (.8, 1.25);
3. no step fits as well as the line, by BIC; 4. Hotelling's lack-of-fit of the power curve has p ≥ .01;
5. prompt by prompt, steps at places of their own (`steps`), whose mean is straight, have p ≥ .01.
Where the interval is wide, the honest verdict is "shape undetermined", with p̂ and the interval. The table
shows the 90 % interval, each end of which errs in 5 %: a certificate on that one was false for 7 % of
logistic curves at snr·√N = 20 (256 prompts, 2,000 latents), on the 95 % interval for 2 %, and there still for
6 % of n / (n + 2J) curves spiked through one SAE of the built-in model.
1 to 4 look at the mean, 5 at the prompts' third moments, which any skew of a prompt's increments shifts: a
latent that follows evidence by unequal, skewed updates can be refused too; it does not add one equal update
per example. What stays unseen: unequal updates that are small or lie evenly about their mean; and prompts
that bend in opposite ways, some early and some late, so that mean and skew are those of a line.
Rates of false and missed certificates: docs/growth.md, measured by analysis/benchmarks/growth_calibration.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from iclens.growth.shape.curves import POWERS, Family, families
from iclens.growth.shape.gls import CHUNK, Distances, Means, distances, means_of
from iclens.growth.shape.steps import own_steps_p
from iclens.names import Site
from iclens.tables.arrays import Floats, Ints
from iclens.tables.shapes import ShapeTable

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
