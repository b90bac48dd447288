"""The corrected mathematics: what one update per example predicts, and what a belief's log-odds do.

    A_i = P(task | i examples),  c = P(observation | task),  1 − c = P(observation | not task)
    A_{i+1} = A_i c / (A_i c + (1 − A_i)(1 − c))
    LO_n = log(A_n / (1 − A_n)) = LO_0 + n·λ,   λ = log(c / (1 − c)),   A_n = σ(LO_0 + nλ)

What adds is the log-odds: A is a sigmoid in n, log A concave, log-odds linear. Logarithms are natural (nats).
Only (LO_0, λ) is identified from a curve; a composite alternative makes exact Bayes sublinear, so a curve
that bends does not refute Bayes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iclens.errors import TableError
from iclens.tables.arrays import Floats, Ints, expect_shape
from iclens.tables.bands import resample_prompts

LINEAR_R2 = 0.98
"""Share of a mean curve's variance that a line must explain over its linear part."""
MIN_POINTS = 4
"""Fewest examples in a linear part."""


@dataclass(frozen=True)
class Shapes:
    """One posterior on three scales, each [n].

    Args:
        posterior: A_n, a sigmoid.
        log_posterior: log A_n in nats, concave.
        log_odds: LO_n in nats, linear.
    """

    posterior: Floats
    log_posterior: Floats
    log_odds: Floats


@dataclass(frozen=True)
class BayesFit:
    """LO_n = lo_0 + n·lam on the log-odds scale (nats), with 95 % prompt-bootstrap intervals.

    Args:
        lo_0: log-odds before any example, extrapolated from the linear part.
        lo_0_low, lo_0_high: its interval.
        lam: nats per example.
        lam_low, lam_high: its interval.
        r: correlation of the mean curve with n_seen over the linear part.
        n_first, n_last: examples seen at the ends of the linear part.
        n_prompts: prompts with finite log-odds throughout it.
        reason: why the fit is NaN; empty otherwise.
    """

    lo_0: float
    lo_0_low: float
    lo_0_high: float
    lam: float
    lam_low: float
    lam_high: float
    r: float
    n_first: int
    n_last: int
    n_prompts: int
    reason: str


@dataclass(frozen=True)
class Agreement:
    """The model's log-odds regressed on the exact ones, pooled over prompts and examples; nats on both axes.

    Args:
        slope: 1 for an exact learner; below 1 the model moves less than it should.
        slope_low, slope_high: 95 % prompt-bootstrap interval.
        intercept: the model's log-odds where the exact ones are 0.
        r: correlation.
        n_prompts: prompts with at least one finite pair.
        reason: why the values are NaN; empty otherwise.
    """

    slope: float
    slope_low: float
    slope_high: float
    intercept: float
    r: float
    n_prompts: int
    reason: str


def update(prior: Floats, evidence_task: Floats, evidence_other: Floats) -> Floats:
    """One step of Bayes: A c / (A c + (1 − A) c′), c = P(observation | task), c′ = P(… | not task)."""
    return prior * evidence_task / (prior * evidence_task + (1 - prior) * evidence_other)


def evidence_step(c: float) -> float:
    """λ = log(c / (1 − c)), nats per example.

    Raises:
        TableError: unless 0 < c < 1.
    """
    _open_unit("evidence c", c)
    return float(np.log(c) - np.log1p(-c))


def posterior_curve(prior: float, c: float, n: Ints) -> Floats:
    """A_n = σ(LO_0 + nλ), [n].

    Args:
        prior: A_0.
        c: P(observation | task).
        n: examples seen, [n].

    Raises:
        TableError: unless both probabilities are inside (0, 1).
    """
    return predicted_shapes(prior, c, n).posterior


def predicted_shapes(prior: float, c: float, n: Ints) -> Shapes:
    """The posterior, its log and its log-odds after n examples.

    Raises:
        TableError: unless both probabilities are inside (0, 1).
    """
    _open_unit("prior", prior)
    log_odds = np.log(prior) - np.log1p(-prior) + np.asarray(n) * evidence_step(c)
    log_posterior = -np.logaddexp(0.0, -log_odds)
    return Shapes(np.exp(log_posterior), log_posterior, log_odds)


def linear_part(n_seen: Ints, mean_log_odds: Floats) -> slice | None:
    """The longest run of examples over which a line explains `LINEAR_R2` of the mean curve's variance.

    Among runs of one length the earliest is taken; a flat curve counts as linear.

    Args:
        n_seen: [example].
        mean_log_odds: [example], nats.

    Returns:
        The run as a slice of the example axis, or None when none has `MIN_POINTS` finite points.
    """
    size = len(n_seen)
    for length in range(size, MIN_POINTS - 1, -1):
        for start in range(size - length + 1):
            run = slice(start, start + length)
            if _explained(n_seen[run].astype(float), mean_log_odds[run]) >= LINEAR_R2:
                return run
    return None


def fit_log_odds(
    n_seen: Ints, log_odds: Floats, *, over: slice | None = None, n_resamples: int = 1000, seed: int = 0
) -> BayesFit:
    """(LO_0, λ) of a belief by least squares over the linear part of its mean log-odds.

    Args:
        n_seen: [example].
        log_odds: [prompt example], nats.
        over: the linear part as a slice of the example axis. By default `linear_part` of these log-odds; to
            compare two curves, give both the linear part of the exact one, in which no model had a say.
        n_resamples: prompt-bootstrap resamples; the linear part stays as it is in each.
        seed: of the resampling.

    Raises:
        TableError: when the axes do not agree.
    """
    expect_shape("fit_log_odds", n_seen=(n_seen, ("example",)), log_odds=(log_odds, ("prompt", "example")))
    if over is None:
        over = linear_part(n_seen, _mean_curve(log_odds))
        if over is None:
            return _no_fit(0, f"no linear part of {MIN_POINTS} or more examples")
    n, curves = n_seen[over].astype(float), log_odds[:, over]
    curves = curves[np.isfinite(curves).all(axis=1)]
    if len(curves) < 2 or len(n) < 2:
        return _no_fit(len(curves), f"{len(curves)} prompts and {len(n)} examples, two of each needed")
    weights = (n - n.mean()) / ((n - n.mean()) ** 2).sum()
    slopes = curves @ weights
    fits = np.stack([curves.mean(axis=1) - slopes * n.mean(), slopes], axis=1)
    lo_0, lam = fits.mean(axis=0)
    draws = resample_prompts(len(curves), n_resamples, np.random.default_rng(seed)) / len(curves)
    low, high = np.quantile(draws @ fits, [0.025, 0.975], axis=0)
    return BayesFit(
        float(lo_0), float(low[0]), float(high[0]), float(lam), float(low[1]), float(high[1]),
        _correlation(n, curves.mean(axis=0)), int(n[0]), int(n[-1]), len(curves), "",
    )  # fmt: skip


def agreement(exact: Floats, model: Floats, *, n_resamples: int = 1000, seed: int = 0) -> Agreement:
    """How the model's log-odds follow the exact posterior's.

    Args:
        exact: exact log-odds, [prompt example], nats.
        model: the model's on the same prompts, [prompt example], nats.
        n_resamples: prompt-bootstrap resamples.
        seed: of the resampling.

    Raises:
        TableError: when the axes do not agree.
    """
    expect_shape("agreement", exact=(exact, ("prompt", "example")), model=(model, ("prompt", "example")))
    both = np.isfinite(exact) & np.isfinite(model)
    used = both.any(axis=1)
    x, y, w = (np.where(both, a, 0.0)[used] for a in (exact, model, both.astype(float)))
    n_prompts = int(used.sum())
    if n_prompts < 2 or np.ptp(exact[both]) == 0:
        reason = "fewer than two prompts" if n_prompts < 2 else "the exact log-odds do not vary"
        return Agreement(np.nan, np.nan, np.nan, np.nan, np.nan, n_prompts, reason)
    # The slope needs five sums over prompts, so a resample is one weighted sum of per-prompt sums.
    sums: Floats = np.stack([a.sum(axis=1) for a in (w, x, y, x * x, x * y)], axis=1)
    slope, intercept = _line(sums.sum(axis=0))
    draws = resample_prompts(n_prompts, n_resamples, np.random.default_rng(seed)).astype(float)
    slopes, _ = _line(draws @ sums)
    low, high = np.nanquantile(slopes, [0.025, 0.975])
    r = _correlation(exact[both], model[both])
    return Agreement(float(slope), float(low), float(high), float(intercept), r, n_prompts, "")


def _line(sums: Floats) -> tuple[Floats, Floats]:
    """Slope and intercept from Σ1, Σx, Σy, Σx², Σxy as [... 5]."""
    n, x, y, xx, xy = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = (n * xy - x * y) / (n * xx - x * x)
        return slope, (y - slope * x) / n


def _mean_curve(log_odds: Floats) -> Floats:
    """Mean [example] over the prompts defined wherever any is; NaN at an example defined on no prompt."""
    somewhere = np.isfinite(log_odds).any(axis=0)
    whole = log_odds[np.isfinite(log_odds[:, somewhere]).all(axis=1)]
    return whole.mean(axis=0) if len(whole) else np.full(log_odds.shape[1], np.nan)


def _explained(x: Floats, y: Floats) -> float:
    """R² of the least-squares line; 1 for a flat curve, NaN with a hole."""
    if np.isnan(y).any():
        return float("nan")
    if np.ptp(y) == 0:
        return 1.0
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def _correlation(x: Floats, y: Floats) -> float:
    """Pearson's r; NaN when either side is constant."""
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) > 0 and np.ptp(y) > 0 else float("nan")


def _no_fit(n_prompts: int, reason: str) -> BayesFit:
    nan = float("nan")
    return BayesFit(nan, nan, nan, nan, nan, nan, nan, -1, -1, n_prompts, reason)


def _open_unit(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise TableError(name, f"{value}", "It has to be strictly between 0 and 1.")
