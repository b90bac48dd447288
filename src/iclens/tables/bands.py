"""Bands: means over prompts with intervals that resample prompts, the unit of inference."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from iclens.errors import TableError
from iclens.tables.arrays import Floats, Ints


class Band(NamedTuple):
    """A mean over prompts, its 95 % interval, and the prompts behind it, each [...]."""

    mean: Floats
    low: Floats
    high: Floats
    n_prompts: Ints


def resample_prompts(n_prompts: int, n_resamples: int, rng: np.random.Generator) -> Ints:
    """How often each prompt is drawn in each bootstrap resample, [resample prompt]; rows sum to n_prompts."""
    if n_prompts < 1:
        raise TableError("a bootstrap over prompts", "no prompts", "Give at least one.")
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
    filled = np.where(counted, flat, 0.0)
    draws = resample_prompts(len(values), n_resamples, rng).astype(np.float64)
    n_prompts = counted.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(axis=0) / n_prompts
        resampled = (draws @ filled) / (draws @ counted)
    low, high = (_quantile(resampled, q) for q in (0.025, 0.975))
    shape = values.shape[1:]
    return Band(mean.reshape(shape), low.reshape(shape), high.reshape(shape), n_prompts.reshape(shape))


def _quantile(resampled: Floats, q: float) -> Floats:
    """Quantile over resamples [resample column], NaN where any resample holds no prompt at all."""
    return np.quantile(resampled, q, axis=0) if resampled.shape[1] else np.empty(0)
