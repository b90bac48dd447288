"""Which prompts may decide what? Discovery finds, shape judges, confirm is read once, after the claim."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iclens.errors import TableError
from iclens.tables.arrays import Ints

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
