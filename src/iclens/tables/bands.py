"""Bands: means over prompts with intervals that resample prompts, the unit of inference."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from iclens.errors import TableError
from iclens.tables.arrays import Floats, Ints

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
