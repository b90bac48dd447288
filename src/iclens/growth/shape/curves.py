"""Which trajectories are compared? Each family a + b·g(n; θ), with its θ on a grid.

    constant        0                    hinge        max(0, n − s)
    linear          n                    plateau      min(n, s)
    power           n^p                  step         1[n ≥ s]
    log             log(1 + n)           logistic     σ((n − m) / w): also a posterior σ(l_0 + λn)
    hyperbolic      n / (n + κ)          log-posterior  log σ(l_0 + λn)
    exponential     1 − exp(−n / τ): also a leaky sum with rate exp(−1/τ)

Two names for one set of curves would be two chances for it, so each set stands here once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, log_expit

from iclens.errors import TableError
from iclens.tables.arrays import Floats, Ints

POWERS: Floats = np.geomspace(0.05, 5.0, 161)
"""Exponents on which the profile is taken."""


@dataclass(frozen=True)
class Family:
    """One family of trajectories.

    Args:
        name: of the family.
        parameters: the θ of each of its curves, in words, [curve].
        curves: g(n; θ), [curve example].
        n_free: parameters beside a: b and θ.
    """

    name: str
    parameters: tuple[str, ...]
    curves: Floats
    n_free: int


def families(n_seen: Ints, fixed: Mapping[str, Floats] | None = None) -> tuple[Family, ...]:
    """Every family on these numbers of examples; a family without a curve there is left out.

    Args:
        n_seen: examples seen, rising, [example].
        fixed: name → curve [example] to compare with, such as a belief measured beforehand.

    Raises:
        TableError: when a fixed curve has another length or is not finite.
    """
    n = np.asarray(n_seen, dtype=float)
    last = n[-1]
    breaks = n[1:-1]
    widths, starts, steps = np.geomspace(0.3, last / 2, 8), np.linspace(-6, 2, 9), np.geomspace(0.1, 3, 8)
    kappas, taus = np.geomspace(0.25, 8 * last, 28), np.geomspace(0.4, 4 * last, 28)
    found = [
        Family("constant", ("",), np.zeros((1, len(n))), 0),
        Family("linear", ("",), n[None], 1),
        _grid("power", "p", POWERS, lambda p: n**p, 2),
        Family("log", ("",), np.log1p(n)[None], 1),
        _grid("hyperbolic", "κ", kappas, lambda k: n / (n + k), 2),
        _grid("exponential", "τ", taus, lambda t: -np.expm1(-n / t), 2),
        _grid("step", "s", n[1:], lambda s: (n >= s).astype(float), 2),
        _grid("hinge", "s", breaks, lambda s: np.maximum(0.0, n - s), 2),
        _grid("plateau", "s", breaks, lambda s: np.minimum(n, s), 2),
        _pairs("logistic", ("m", "w"), breaks, widths, lambda m, w: expit((n - m) / w)),
        _pairs("log-posterior", ("l_0", "λ"), starts, steps, lambda start, step: log_expit(start + step * n)),
    ]  # fmt: skip
    for name, curve in (fixed or {}).items():
        if curve.shape != n.shape or not np.isfinite(curve).all():
            raise TableError(
                f"fixed curve '{name}'",
                f"shape {curve.shape}",
                f"Give {len(n)} finite values, one per example.",
            )
        found.append(Family(name, ("",), curve[None].astype(float), 1))
    return tuple(family for family in found if len(family.curves))


def _grid(name: str, symbol: str, grid: Floats, curve: Callable[[float], Floats], n_free: int) -> Family:
    curves = np.array([curve(float(value)) for value in grid])
    return Family(name, tuple(f"{symbol} {value:.3g}" for value in grid), curves, n_free)


def _pairs(
    name: str, symbols: tuple[str, str], one: Floats, other: Floats, curve: Callable[[float, float], Floats]
) -> Family:
    grid = [(float(a), float(b)) for a in one for b in other]
    words = tuple(f"{symbols[0]} {a:.3g}, {symbols[1]} {b:.3g}" for a, b in grid)
    return Family(name, words, np.array([curve(a, b) for a, b in grid]), 3)
