"""The statistics of every test: prompt bootstrap, intervals, p-values, false discovery, splits of prompts.

The prompt is the unit of inference: resamples draw whole prompts, never examples or tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from iclens.core import TableError
from iclens.table import Floats, Ints

N_RESAMPLES = 1000
ENDS = (0.025, 0.975)
"""Quantiles at the ends of a 95 % interval."""


# ----------------------------------------------------------------------------------------- bootstrap


class Band(NamedTuple):
    """A mean over prompts, its 95 % interval, and the prompts behind it, each [...]."""

    mean: Floats
    low: Floats
    high: Floats
    n_prompts: Ints


@dataclass(frozen=True)
class Interval:
    """One figure and its interval; NaN where it was not measured."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def known(self) -> bool:
        """Whether it was measured."""
        return math.isfinite(self.value)

    def columns(self, name: str) -> dict[str, float]:
        """Columns `<name>`, `<name>_low` and `<name>_high` of a table's row."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


UNDEFINED = Interval()
"""A figure that was not measured."""


def resample_prompts(n_prompts: int, n_resamples: int, rng: np.random.Generator) -> Floats:
    """How often each prompt is drawn in each bootstrap resample, [resample prompt]; rows sum to n_prompts."""
    if n_prompts < 1:
        raise TableError("a bootstrap over prompts", "no prompts", "Give at least one prompt.")
    drawn = rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=n_resamples)
    return drawn.astype(np.float64)


def sample_and_resamples(n_prompts: int, n_resamples: int, rng: np.random.Generator) -> Floats:
    """`resample_prompts` below the sample itself, each prompt once, [1 + resample prompt]."""
    return np.concatenate([np.ones((1, n_prompts)), resample_prompts(n_prompts, n_resamples, rng)])


def interval(resampled: Floats) -> Floats:
    """Ends of the 95 % percentile interval, [resample ...] → [2 ...], of the resamples that are not NaN.

    NaN where all are, or there are none.
    """
    flat = resampled.reshape(len(resampled), math.prod(resampled.shape[1:]))
    defined = ~np.isnan(flat)
    ends = np.full((2, flat.shape[1]), np.nan)
    some, whole = defined.any(axis=0), defined.all(axis=0)
    ends[:, some & whole] = np.quantile(flat[:, some & whole], ENDS, axis=0) if len(flat) else np.nan
    for column in np.flatnonzero(some & ~whole):
        ends[:, column] = np.quantile(flat[defined[:, column], column], ENDS)
    return ends.reshape(2, *resampled.shape[1:])


def sample_interval(values: Floats) -> Interval:
    """A figure of `sample_and_resamples`, [1 + resample]; without ends where the sample's own is NaN."""
    low, high = interval(values[1:]) if not np.isnan(values[0]) else (math.nan, math.nan)
    return Interval(float(values[0]), float(low), float(high))


def prompt_mean(values: Floats) -> Floats:
    """Mean over the prompts with a finite value, [prompt ...] → [...]; NaN where there is none."""
    counted = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counted, values, 0.0).sum(axis=0, dtype=np.float64) / counted.sum(axis=0)


def prompt_band(values: Floats, rng: np.random.Generator, n_resamples: int = N_RESAMPLES) -> Band:
    """Mean over prompts with its 95 % percentile interval from a prompt bootstrap, [prompt ...] → [...].

    A prompt counts only where its value is finite; a mean over no prompt is NaN.
    """
    flat = values.reshape(len(values), -1).astype(np.float64)
    counted = np.isfinite(flat)
    draws = resample_prompts(len(values), n_resamples, rng)
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = (draws @ np.where(counted, flat, 0.0)) / (draws @ counted)
    shape = values.shape[1:]
    low, high = interval(resampled).reshape(2, *shape)
    return Band(prompt_mean(values), low, high, counted.sum(axis=0).reshape(shape))


def ratios_of_means(top: Floats, bottom: Floats, draws: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean of `top` ÷ mean of `bottom` with its 95 % interval, [prompt ...] → [...] each.

    `draws` are of `resample_prompts`, or a multiple of them, [resample prompt].
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = interval((draws @ top) / (draws @ bottom))
        return top.mean(axis=0) / bottom.mean(axis=0), low, high


def ratio_of_means(top: Floats, bottom: Floats, seed: int = 0) -> Interval:
    """`ratios_of_means` of one figure, [prompt] each, over `N_RESAMPLES` resamples.

    NaN where the interval of the bottom's mean holds 0, so that the ratio's sign is unclear.
    """
    draws = resample_prompts(len(top), N_RESAMPLES, np.random.default_rng(seed))
    least, most = interval(draws @ bottom)
    if least <= 0 <= most:
        return UNDEFINED
    return Interval(*(float(figure) for figure in ratios_of_means(top, bottom, draws)))


NO_VALUE = "undefined for this task"
"""Why a mean over prompts is NaN: some prompt has no value."""
LEAST_SPAN = 1.0
"""Least |mean span| in nats for which a share of it is given."""
TO_TARGET = ("A* and B differ by", "A* − B")
"""A span in words: before "less than 1 nat", and as what an interval is of."""


@dataclass(frozen=True)
class Estimates:
    """Means, or ratios of means, over prompts with their 95 % intervals, [column] each; NaN with a reason."""

    value: Floats
    low: Floats
    high: Floats
    reason: tuple[str, ...]

    def columns(self, name: str, ends: str = "") -> dict[str, Floats]:
        """Table columns `name`, and of the ends `ends`_low and `ends`_high; `name`_low, … by default."""
        return {name: self.value, f"{ends or name}_low": self.low, f"{ends or name}_high": self.high}


def prompt_weights(n_prompts: int, n_resamples: int, rng: np.random.Generator) -> Floats:
    """Weight of each prompt in each bootstrap resample, [resample prompt]; rows sum to 1."""
    return resample_prompts(n_prompts, n_resamples, rng) / n_prompts


def means(values: Floats, weights: Floats) -> Estimates:
    """Means of `values` [prompt column] with intervals under `weights` [resample prompt]; NaN in, NaN out."""
    low, high = interval(weights @ values)
    reason = tuple(NO_VALUE if np.isnan(column).any() else "" for column in values.T)
    return Estimates(values.mean(axis=0), low, high, reason)


def normalised_effects(
    effect: Floats, span: Floats, weights: Floats, named: tuple[str, str] = TO_TARGET
) -> Estimates:
    """Ratios of means, NE = mean(patched − base) / mean(span), the span most often donor − base.

    NaN with a reason unless |mean span| ≥ `LEAST_SPAN` and the span's interval excludes 0.
    Effect and span are [prompt column] in nats, weights [resample prompt]; `named` is the span in words.
    """
    whole = means(span, weights)
    undefined = np.isnan(whole.value) | np.isnan(effect).any(axis=0)
    short = np.abs(whole.value) < LEAST_SPAN
    straddles = (whole.low <= 0) & (whole.high >= 0)
    ratios = np.stack(ratios_of_means(effect, span, weights))
    ratios[:, undefined | short | straddles] = np.nan
    causes = NO_VALUE, f"{named[0]} less than {LEAST_SPAN:g} nat", f"the interval of {named[1]} includes 0"
    flags = np.stack([undefined, short, straddles], axis=1)
    reason = tuple(causes[row.argmax()] if row.any() else "" for row in flags)
    return Estimates(ratios[0], ratios[1], ratios[2], reason)


# -------------------------------------------------------------------------------- intervals and tests


def half_width(sd: Floats, n: int) -> Floats:
    """Half-width of the 95 % t interval of a mean of n values with standard deviation `sd` (n − 1)."""
    return stats.t.ppf(ENDS[1], n - 1) * sd / np.sqrt(n)


def control_p(effect: Floats | float, controls: Floats) -> Floats:
    """p of an effect [...] among controls [... control]: (1 + those at least as large) / (1 + their number).

    One-sided; two-sided for absolute values of both.
    """
    beaten = (controls >= np.asarray(effect)[..., None]).sum(axis=-1)
    return (1 + beaten) / (1 + controls.shape[-1])


def benjamini_hochberg(p_values: Floats) -> Floats:
    """Adjusted p-values of one family, any shape; NaN marks a test that was not made and is not counted."""
    adjusted = np.full(p_values.shape, np.nan)
    made = np.isfinite(p_values)
    if made.any():
        adjusted[made] = stats.false_discovery_control(p_values[made])
    return adjusted


def holm(p_values: Floats) -> Floats:
    """Holm's adjusted p-values, [test]; NaN marks a test that was not made and is not counted."""
    adjusted = np.full(len(p_values), np.nan)
    made = np.flatnonzero(np.isfinite(p_values))
    order = made[np.argsort(p_values[made], kind="stable")]
    scaled = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def study_q_values(families: Sequence[Floats]) -> list[Floats]:
    """For every test, the smallest q at which the study calls it.

    1. Within a family, Benjamini–Hochberg gives adjusted p-values; the smallest is the family's Simes p. 2.
    Across families, Benjamini–Hochberg at q on the Simes p-values selects R of m. 3. Within a selected
    family, Benjamini–Hochberg runs at q·R/m. When nothing grows anywhere, P(any discovery) ≤ q over the
    whole study; and the false discovery rate averaged over the selected families is ≤ q. Source: Benjamini
    & Bogomolov (2014), J. R. Stat. Soc. B 76, 297–318.

    With a the test's adjusted p within its family, S_(r) the r-th smallest Simes p and m families with a
    test, it is called at q exactly when a ≤ q·R/m, so its q-value is min over r of m · max(a, S_(r)) / r.
    It is at most 1, and NaN where no test was made.
    """
    adjusted = [benjamini_hochberg(family) for family in families]
    simes = np.sort([np.nanmin(a) for a in adjusted if np.isfinite(a).any()])
    ranks = np.arange(1, len(simes) + 1)
    q_values = []
    for a in adjusted:
        q = np.full(a.shape, np.nan)
        made = np.isfinite(a)
        if made.any():
            candidates = len(simes) * np.maximum(a[made][:, None], simes) / ranks
            q[made] = np.minimum(candidates.min(axis=1), 1.0)
        q_values.append(q)
    return q_values


# ------------------------------------------------------------------------------------------- splits


SHARES = (0.3, 0.4, 0.3)
"""Shares of the prompts that discover, judge the shape and confirm."""
MIN_PAIRS = 10
"""Fewest prompts that discover or confirm: a latent active in fewer pairs is not tested."""


@dataclass(frozen=True)
class Splits:
    """Disjoint prompts, sorted, [prompt] each; confirm is read once, after the claims are frozen."""

    discovery: Ints
    shape: Ints
    confirm: Ints


def split_prompts(n_prompts: int, n_examples: int, *, seed: int) -> Splits:
    """A random split; prompt i of every arm falls into the same part.

    A shape needs the covariance of the examples: at least twice as many prompts as examples.
    """
    sizes = np.floor(np.array(SHARES) * n_prompts).astype(int)
    if sizes[0] < MIN_PAIRS or sizes[1] < 2 * n_examples:
        needed = int(np.ceil(max(MIN_PAIRS / SHARES[0], 2 * n_examples / SHARES[1])))
        raise TableError(
            f"growth from {n_prompts} prompts of {n_examples} examples",
            f"{sizes[0]} to discover and {sizes[1]} to judge the shape",
            f"Give at least {needed} prompts.",
        )
    order = np.random.default_rng(seed).permutation(n_prompts)
    ends = (sizes[0], sizes[0] + sizes[1])
    discovery, shape, confirm = (np.sort(part) for part in np.split(order, ends))
    return Splits(discovery, shape, confirm)
