"""G6: planted codes for parity, a band and being a number, with controlled confounding between them.

Each row is one answer of one task; a latent is its concept's indicator times a gain, plus noise. With
confounding V, the concept agrees with its confound in a share (1 + V)/2 of the rows: 0 is a crossed design, 1
cannot be told apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iclens.errors import TableError
from iclens.tables.arrays import Floats, Ints

CONCEPTS = ("parity", "band", "numeric")


@dataclass(frozen=True)
class Codes:
    """Planted latents.

    Args:
        concept: concept of each latent; "none" where it codes for nothing, [latent].
        values: activations, [latent row].
        truth: concept → whether it holds in each row, [row].
        confound: concept → the other property that travels with it, [row].
        task: task of each row, [row].
    """

    concept: np.ndarray
    values: Floats
    truth: dict[str, np.ndarray]
    confound: dict[str, np.ndarray]
    task: Ints


def plant_codes(
    *, n_latents: int, n_tasks: int, n_rows: int, confounding: float, snr: float, seed: int
) -> Codes:
    """Latents of which a quarter each code for a concept, and a quarter for none.

    Args:
        n_latents: in all.
        n_tasks: tasks, over which rows are spread evenly.
        n_rows: rows in all.
        confounding: V, from 0 to 1.
        snr: gain ÷ standard deviation of the noise.
        seed: of everything.

    Raises:
        TableError: for a confounding outside [0, 1].
    """
    if not 0 <= confounding <= 1:
        raise TableError(f"confounding {confounding}", "not from 0 to 1", "Give the share V.")
    rng = np.random.default_rng(seed)
    concept = np.resize(np.array([*CONCEPTS, "none"]), n_latents)
    truth = {name: rng.random(n_rows) < 0.5 for name in CONCEPTS}
    agree = {name: rng.random(n_rows) < (1 + confounding) / 2 for name in CONCEPTS}
    confound = {name: np.where(agree[name], truth[name], ~truth[name]) for name in CONCEPTS}
    nothing = np.zeros(n_rows, dtype=bool)
    signal = np.stack([truth.get(str(name), nothing) for name in concept])
    values = np.where(signal, snr, 0.0) + rng.standard_normal((n_latents, n_rows))
    return Codes(concept, values, truth, confound, np.arange(n_rows) % n_tasks)
