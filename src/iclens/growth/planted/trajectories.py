"""G1: latents whose trajectory is known, with the noise of real ones, to check a growth test against.

    z_ij = snr · g(n_j) · (1 + s_i) + e_ij        e: autocorrelated with ρ, variance 1; s_i: a prompt's own

g rises by 1 in all, so that `snr` is the total growth in standard deviations of one value. Latents may share
a common factor. The control arm has the noise without the growth; `drift` has the growth in both arms,
`content` moves with the labels wherever they stand. Where only the mean is straight: `own step` steps at
another place in every prompt, `own bend` rises early in some prompts, 2n − n², and late in others, n². Enter
a shape's name; leave arms as arrays or LatentActs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy.sparse import csr_array

from iclens.errors import TableError, nearest
from iclens.names import Site
from iclens.tables.activations import LatentActs
from iclens.tables.arrays import Floats

RHO, SLOPE_SD = 0.5, 0.3
"""Autocorrelation of the noise from one example to the next, and spread of prompts' growth about 1."""
Curve = Callable[[Floats], Floats]

SHAPES: Mapping[str, Curve] = {
    "linear": lambda n: n,
    "power .9": lambda n: n**0.9,
    "power .75": lambda n: n**0.75,
    "power .5": lambda n: n**0.5,
    "hyperbolic 3": lambda n: n / (n + 3),
    "hyperbolic J": lambda n: n / (n + n[-1] + 1),
    "hyperbolic 2J": lambda n: n / (n + 2 * (n[-1] + 1)),
    "exponential": lambda n: -np.expm1(-4 * n / n[-1]),
    "early step": lambda n: (n >= 2).astype(float),
    "mid step": lambda n: (n >= n[-1] / 2).astype(float),
    "hinge": lambda n: np.maximum(0.0, n - n[-1] / 2),
    "plateau": lambda n: np.minimum(n, n[-1] / 2),
    "logistic": lambda n: 1 / (1 + np.exp(-(n - n[-1] / 2) / (n[-1] / 8))),
    "convex": lambda n: n**2,
    "decay": lambda n: np.exp(-3 * n / n[-1]),
    "null": lambda n: 0 * n,
}
"""Shapes by name; g over examples seen, scaled to a range of 1 when planted."""
ADDITIVE = ("linear", "power .9")
"""Shapes that an additive certificate may be given to: exponent inside (.8, 1.25)."""
WRONG = tuple(name for name in SHAPES if name not in ADDITIVE)
"""Shapes that it must not be given to."""


def curve(shape: str, n_examples: int) -> Floats:
    """g over examples seen, range 1, [example].

    Raises:
        TableError: naming the nearest shape.
    """
    if shape not in SHAPES:
        raise TableError(f"planted shape '{shape}'", "unknown", nearest(shape, tuple(SHAPES)) + ".")
    g = SHAPES[shape](np.arange(n_examples, dtype=float))
    return g / np.ptp(g) if np.ptp(g) > 0 else g


def noise(
    rng: np.random.Generator,
    n_latents: int,
    n_prompts: int,
    n_examples: int,
    common: float = 0.0,
    rho: float = RHO,
) -> Floats:
    """Autocorrelated noise of unit spread, [latent prompt example].

    Args:
        rng: source of randomness.
        n_latents: latents.
        n_prompts: prompts.
        n_examples: examples of each.
        common: share of the variance that all latents have in common.
        rho: correlation of one example's noise with the next.
    """
    shared = _autocorrelated(rng, rho, 1, n_prompts, n_examples)
    own = _autocorrelated(rng, rho, n_latents, n_prompts, n_examples)
    return np.sqrt(common) * shared + np.sqrt(1 - common) * own


def _autocorrelated(rng: np.random.Generator, rho: float, *shape: int) -> Floats:
    out = rng.standard_normal(shape)
    for j in range(1, shape[-1]):
        out[..., j] = rho * out[..., j - 1] + np.sqrt(1 - rho**2) * out[..., j]
    return out


def growth(
    rng: np.random.Generator,
    shape: str,
    n_latents: int,
    n_prompts: int,
    n_examples: int,
    snr: float,
    slope_sd: float = SLOPE_SD,
) -> Floats:
    """The planted rise of each prompt, [latent prompt example]; `slope_sd` is its spread over prompts."""
    own = 1 + slope_sd * rng.standard_normal((n_latents, n_prompts, 1))
    if shape == "own step":
        place = rng.integers(1, n_examples, (n_latents, n_prompts, 1))
        return snr * own * (np.arange(n_examples) >= place)
    if shape == "own bend":
        ramp = curve("linear", n_examples)
        late = rng.random((n_latents, n_prompts, 1)) < 0.5
        return snr * own * np.where(late, ramp**2, 2 * ramp - ramp**2)
    return snr * own * curve(shape, n_examples)


def plant(
    shape: str,
    *,
    n_latents: int,
    n_prompts: int,
    n_examples: int = 16,
    snr: float,
    seed: int,
    common: float = 0.0,
    rho: float = RHO,
    slope_sd: float = SLOPE_SD,
) -> tuple[Floats, Floats]:
    """Treated and control arm, [latent prompt example] each.

    Args:
        shape: a key of `SHAPES`, "drift" (both arms rise), "content" (labels in another order), "own step"
            (a step at another place in every prompt) or "own bend" (early in some prompts, late in others).
        n_latents: latents.
        n_prompts: prompts.
        n_examples: examples of each.
        snr: total growth ÷ standard deviation of one value.
        seed: of everything.
        common: share of the noise that all latents have in common.
        rho: correlation of one example's noise with the next.
        slope_sd: spread over prompts of a latent's growth, as a share of it.

    Raises:
        TableError: for an unknown shape.
    """
    rng = np.random.default_rng(seed)
    sizes = (n_latents, n_prompts, n_examples)
    one, other = (noise(rng, *sizes, common=common, rho=rho) for _ in range(2))
    if shape == "drift":
        rise = snr * curve("linear", n_examples)
        return one + rise, other + rise
    if shape == "content":
        moved = snr * rng.standard_normal(sizes)
        order = np.argsort(rng.random(sizes[1:]), axis=1)
        return moved, np.take_along_axis(moved, np.broadcast_to(order, sizes), axis=2)
    return one + growth(rng, shape, *sizes, snr, slope_sd), other


def as_latent_acts(values: Floats, *, role: str = "pre", threshold: float = -1.0) -> LatentActs:
    """Pre-activations as tracking would give them: what lies above a threshold, sparse.

    Args:
        values: [latent prompt example].
        role: for the table.
        threshold: of the gate.
    """
    d_sae, n_prompts, n_examples = values.shape
    rows = csr_array(np.maximum(values - threshold, 0).reshape(d_sae, -1).T)
    zeros = np.zeros((n_prompts, n_examples))
    return LatentActs(
        Site(0, "resid_post"), role, "planted", d_sae, n_prompts, n_examples,
        rows.indptr, rows.indices, np.asarray(rows.data, dtype=float), zeros, zeros,
    )  # fmt: skip
