"""The relabelled null: how many discoveries does the whole test make when no arm is the treated one?

For each prompt a fair coin decides which of its two arms is called T, at every site and role at once.
Whatever the latents do, nothing can then grow in "T" rather than "S", and every discovery is false.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack

from iclens.growth.test import Place, test_arms
from iclens.tables.activations import LatentActs
from iclens.tables.arrays import Ints
from iclens.tables.prompts import PromptSet

Arm = Mapping[Place, LatentActs]


def null_discoveries(
    treated: Arm,
    control: Arm,
    *,
    prompts: tuple[PromptSet, PromptSet],
    n_runs: int,
    seed: int,
    q: float = 0.05,
) -> Ints:
    """Discoveries (growing or falling) of the whole test in each run with arms relabelled at random.

    Args:
        treated: (site, role) → arm T.
        control: (site, role) → arm S.
        prompts: the prompts of both arms.
        n_runs: number of relabellings.
        seed: of the relabelling.
        q: as in `test_arms`.

    Returns:
        [run]; at most a share q of the runs should have any, up to the error of counting n_runs of them.

    Raises:
        TableError: as `test_arms`.
    """
    rng = np.random.default_rng(seed)
    counts = []
    for _ in range(n_runs):
        swapped = rng.random(prompts[0].n_prompts) < 0.5
        table = test_arms(*relabelled(treated, control, swapped), prompts=prompts, q=q)
        counts.append(len(table.significant(q)))
    return np.array(counts)


def relabelled(
    treated: Arm, control: Arm, swapped: NDArray[np.bool_]
) -> tuple[dict[Place, LatentActs], dict[Place, LatentActs]]:
    """Both arms with the prompts marked in `swapped` [prompt] exchanged, at every site and role."""
    pairs = {place: (acts, control[place]) for place, acts in treated.items()}
    first = {place: _mixed(one, other, swapped) for place, (one, other) in pairs.items()}
    second = {place: _mixed(other, one, swapped) for place, (one, other) in pairs.items()}
    return first, second


def _mixed(own: LatentActs, other: LatentActs, swapped: NDArray[np.bool_]) -> LatentActs:
    """`own` with the marked prompts taken from `other`."""
    rows = np.arange(own.n_prompts * own.n_examples)
    both = csr_array(vstack([own.matrix, other.matrix], format="csr"))
    taken = csr_array(both[rows + len(rows) * np.repeat(swapped, own.n_examples)])
    return replace(
        own,
        indptr=taken.indptr,
        index=taken.indices,
        value=taken.data,
        error_sq=np.where(swapped[:, None], other.error_sq, own.error_sq),
        total_sq=np.where(swapped[:, None], other.total_sq, own.total_sq),
        by_latent=None,
    )
