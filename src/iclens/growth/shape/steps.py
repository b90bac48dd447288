"""Does each prompt climb the line, or does it make one step at a place of its own?

The mean of such steps is straight; the prompts are not. For prompt i and a step at place τ,

    r_iτ = g_τᵀ W u_i / √(g_τᵀ W g_τ)      T_i = Σ_τ (r_iτ³ − 3 r_iτ)      p: one-sided t of T over prompts

u_i is the prompt's trajectory minus the mean over prompts, g_τ = 1[n ≥ τ], and W the inverse of the prompts'
covariance, with every line in n projected out, so that a prompt's own level and slope, of whatever
distribution, drop out. r is the best linear reading of a step there, in units of its spread; the third
Hermite polynomial of it is what steps up add and the covariance cannot hold.

T is symmetric about 0, and p valid, where prompts climb straight and their noise is either symmetric (normal
with any covariance; the difference of two arms alike but for the growth) or reversible in n: turned about, a
step up is a step down, and the covariance is averaged with its own reversal so that W does not tell the two
apart. Skewed noise that changes with n is neither, and is refused too often.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from iclens.growth.shape.gls import FLAT
from iclens.tables.arrays import Floats, Ints

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
