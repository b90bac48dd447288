"""G6: planted codes for parity, a band and being a number, with controlled confounding.

    a row is one answer of one task: y = a·x + b, written in digits or in letters
    parity: y is odd        band: |y − 2x| ≤ 5        numeric: written in digits

Each concept agrees with the same confound, y above the grid's median, in a share (1 + V)/2 of the rows, so
that Cramér's V between the two is V: 0 is a crossed design, at 1 they cannot be told apart. A latent is its
concept's indicator times a gain, plus noise; some code for the confound, and some for nothing. Whatever else
x and y are is as the task makes it: answers in the band are never above 205.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iclens.errors import TableError
from iclens.tables.arrays import Floats, Ints

CONCEPTS = ("parity", "band", "numeric")
CONFOUND = "large"
NOTHING = "none"
BAND = 5
SLOPES, OFFSETS = (1, 2, 3, 4, 5, 10), (-7, -3, -1, 0, 1, 2, 3, 5, 8, 10)
INPUTS = np.arange(10, 98)
"""Two-digit x, so that every y is a number from 0 to 999."""


@dataclass(frozen=True)
class Codes:
    """Planted latents.

    Args:
        kind: a concept, `CONFOUND` or `NOTHING`, [latent].
        values: activations, [latent row].
        truth: concept or `CONFOUND` → whether it holds in each row, [row].
        slope, offset: a and b of the task of each row, [row].
        task: their number in the grid of `SLOPES` × `OFFSETS`, [row].
        x, y: input and answer of each row, [row].
    """

    kind: np.ndarray
    values: Floats
    truth: dict[str, np.ndarray]
    slope: Ints
    offset: Ints
    task: Ints
    x: Ints
    y: Ints


def plant_codes(*, n_latents: int, n_rows: int, confounding: float, snr: float, seed: int) -> Codes:
    """Latents of which a fifth each code for a concept, for the confound and for nothing.

    Args:
        n_latents: in all.
        n_rows: rows in all.
        confounding: V between every concept and the confound, from 0 to 1.
        snr: gain ÷ standard deviation of the noise.
        seed: of everything.

    Raises:
        TableError: for a confounding outside [0, 1].
    """
    if not 0 <= confounding <= 1:
        raise TableError(f"confounding {confounding}", "not from 0 to 1", "Give a share from 0 to 1.")
    rng = np.random.default_rng(seed)
    large = rng.random(n_rows) < 0.5
    agree = rng.random((len(CONCEPTS), n_rows)) < (1 + confounding) / 2
    truth = {name: np.where(same, large, ~large) for name, same in zip(CONCEPTS, agree, strict=True)}
    truth[CONFOUND] = large
    task, x = _rows(truth["parity"], truth["band"], large, rng)
    slope, offset = np.array(SLOPES)[task // len(OFFSETS)], np.array(OFFSETS)[task % len(OFFSETS)]
    kind = np.resize(np.array([*CONCEPTS, CONFOUND, NOTHING]), n_latents)
    signal = np.stack([truth.get(str(name), np.zeros(n_rows, dtype=bool)) for name in kind])
    values = np.where(signal, snr, 0.0) + rng.standard_normal((n_latents, n_rows))
    return Codes(kind, values, truth, slope, offset, task, x, slope * x + offset)


def _rows(
    odd: np.ndarray, band: np.ndarray, large: np.ndarray, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """For each row, a task and an input whose answer is odd, in the band and large as asked, [row] each.

    Every task that has such an input is equally probable, then every such input of it.
    """
    slope, offset = np.repeat(SLOPES, len(OFFSETS)), np.tile(OFFSETS, len(SLOPES))
    y = slope[:, None] * INPUTS + offset[:, None]
    halfway = np.median(y)
    held = 4 * (y % 2) + 2 * (np.abs(y - 2 * INPUTS) <= BAND) + (y > halfway)
    asked = 4 * odd + 2 * band + large
    task, x = np.empty(len(asked), dtype=int), np.empty(len(asked), dtype=int)
    for stratum in np.unique(asked):
        fits, rows = held == stratum, np.flatnonzero(asked == stratum)
        task[rows] = rng.choice(np.flatnonzero(fits.any(axis=1)), len(rows))
        x[rows] = [rng.choice(INPUTS[fits[one]]) for one in task[rows]]
    return task, x
