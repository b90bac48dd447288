"""Statistics shared by every test: bootstrap over prompts, false discovery rate, splits of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from iclens.core import TableError
from iclens.table import Floats, Ints

_ENDS = (0.025, 0.975)


class Band(NamedTuple):
    """A mean over prompts, its 95 % interval, and the prompts behind it, each [...]."""

    mean: Floats
    low: Floats
    high: Floats
    n_prompts: Ints


def resample_prompts(n_prompts: int, n_resamples: int, rng: np.random.Generator) -> Ints:
    """How often each prompt is drawn in each bootstrap resample, [resample prompt]; rows sum to n_prompts."""
    if n_prompts < 1:
        raise TableError("a bootstrap over prompts", "no prompts", "Give at least one prompt.")
    return rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=n_resamples)


def prompt_band(values: Floats, rng: np.random.Generator, n_resamples: int = 1000) -> Band:
    """Mean over prompts with its 95 % percentile interval from a prompt bootstrap.

    A prompt counts only where its value is finite; a mean over no prompt is NaN.

    Args:
        values: [prompt ...].
        rng: draws the resamples.
        n_resamples: number of bootstrap resamples.

    Returns:
        mean, low, high, n_prompts, each [...].
    """
    flat = values.reshape(len(values), -1).astype(np.float64)
    counted = np.isfinite(flat)
    draws = resample_prompts(len(values), n_resamples, rng).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = (draws @ np.where(counted, flat, 0.0)) / (draws @ counted)
    low, high = _quantiles(resampled)
    shape = values.shape[1:]
    mean = prompt_mean(values)
    return Band(mean, low.reshape(shape), high.reshape(shape), counted.sum(axis=0).reshape(shape))


def prompt_mean(values: Floats) -> Floats:
    """Mean over the prompts with a finite value, [prompt ...] → [...]; NaN where there is none."""
    counted = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counted, values, 0.0).sum(axis=0, dtype=np.float64) / counted.sum(axis=0)


def _quantiles(resampled: Floats) -> Floats:
    """Ends of the 95 % interval over resamples [resample value] that drew a prompt with a value, [2 value].

    NaN where none did.
    """
    drawn = np.isfinite(resampled)
    found, whole = np.full((2, resampled.shape[1]), np.nan), drawn.all(axis=0)
    found[:, whole] = np.quantile(resampled[:, whole], _ENDS, axis=0)
    for i in np.flatnonzero(~whole & drawn.any(axis=0)):
        found[:, i] = np.quantile(resampled[drawn[:, i], i], _ENDS)
    return found


def benjamini_hochberg(p_values: Floats) -> Floats:
    """Adjusted p-values of one family: min over j ≥ i of p_(j) · n / j, at most 1.

    Args:
        p_values: [test]; NaN marks a test that was not made and is not counted.

    Returns:
        [test], NaN where the p-value is.
    """
    adjusted = np.full(p_values.shape, np.nan)
    made = np.flatnonzero(np.isfinite(p_values))
    if made.size:
        order = made[np.argsort(p_values[made])]
        scaled = p_values[order] * made.size / np.arange(1, made.size + 1)
        adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted


def study_q_values(families: Sequence[Floats]) -> list[Floats]:
    """For every test, the smallest q at which the study calls it.

    With a the test's adjusted p within its family, S_(r) the r-th smallest Simes p and m families with a
    test, it is called at q exactly when a ≤ q·R/m, so its q-value is min over r of m · max(a, S_(r)) / r.

    Args:
        families: p-values of each family, [test]; NaN where no test was made.

    Returns:
        q-values in the same shapes, at most 1, NaN where the p-value is.
    """
    adjusted = [benjamini_hochberg(family) for family in families]
    simes = np.sort([np.nanmin(a) for a in adjusted if np.isfinite(a).any()])
    ranks = np.arange(1, len(simes) + 1)
    found = []
    for a in adjusted:
        q = np.full(a.shape, np.nan)
        made = np.isfinite(a)
        if made.any():
            candidates = len(simes) * np.maximum(a[made][:, None], simes) / ranks
            q[made] = np.minimum(candidates.min(axis=1), 1.0)
        found.append(q)
    return found


SHARES = (0.3, 0.4, 0.3)
"""Shares of the prompts that discover, judge the shape and confirm."""
MIN_PAIRS = 10
"""Fewest prompts that discover or confirm: a latent active in fewer pairs is not tested."""


@dataclass(frozen=True)
class Splits:
    """Disjoint prompts, sorted, [prompt] each."""

    discovery: Ints
    shape: Ints
    confirm: Ints


def split_prompts(n_prompts: int, n_examples: int, *, seed: int) -> Splits:
    """A random split; prompt i of every arm falls into the same part.

    A shape needs the covariance of the examples: at least twice as many prompts as examples.

    Args:
        n_prompts: prompt pairs of the study.
        n_examples: examples of each.
        seed: of the split.

    Raises:
        TableError: when a part would be too small, saying how many prompts are needed.
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
