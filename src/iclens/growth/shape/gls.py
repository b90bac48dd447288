"""How far is a mean trajectory from a curve, in the metric of its own covariance?

    Q(g) = N · min_{a, b} (ȳ − a − b·g)ᵀ S⁻¹ (ȳ − a − b·g)

ȳ [example] is the mean over N prompts and S their covariance, so that prompt effects (random levels and
slopes, autocorrelation) are accounted for. With k curve parameters of J examples,
Q · (N − J + k) / ((N − 1)(J − k)) is F(J − k, N − J + k) if the curve is right (Hotelling); the profile of
one parameter is ν · (Λ − 1) ~ F(1, ν), Λ = (1 + Q / (N−1)) / (1 + Q_min / (N−1)), ν = N − 1 − (J − k), as in
Rao's growth curves (1959, Biometrika 46, 49–58).

*Anchored*: where all prompts agree at the first example, as paired arms do before any label is read, the
curves start there: a = 0 and g(n) − g(n_0), and that example drops out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iclens.errors import TableError
from iclens.tables.arrays import Floats, Ints, expect_shape

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
