"""Does a latent work where a label is read, or where the answer is predicted? Detection and execution.

    lab share = Σ z at `lab` / (Σ z at `lab` + Σ z at `pre`)        over the grid's prompts

A *detector* has its mass on `lab`, where the example's label has just been read; an *executor* has it on
`pre`, where the next one is predicted. Both sums run over the same examples, so each role has as many
tokens.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array, csr_array

from iclens.errors import TableError
from iclens.tables.activations import LatentActs
from iclens.tables.arrays import Ints
from iclens.tables.transforms import MassTable
from iclens.transforms.concepts import DETECTION, EXECUTION
from iclens.transforms.labels.auroc import resampled_clusters
from iclens.transforms.rows import FIRST_EXAMPLE

SHARE = 0.9
"""Least share of the mass, at the interval's near end, that makes a detector or an executor."""
FEWEST = 20
"""Active rows below which nothing is said."""


def role_mass(
    lab: LatentActs, pre: LatentActs, *, seed: int, first_example: int = FIRST_EXAMPLE, n_resamples: int = 200
) -> MassTable:
    """Where each latent has its mass.

    Args:
        lab: activations at `lab`.
        pre: activations of the same latents on the same prompts at `pre`.
        seed: of the prompt bootstrap.
        first_example: rows count from this example on.
        n_resamples: bootstrap resamples of prompts.

    Raises:
        TableError: when the two are of other sites, SAEs or prompts.
    """
    for what in ("site", "sae_id", "n_prompts", "n_examples"):
        if getattr(lab, what) != getattr(pre, what):
            raise TableError(
                f"mass at {lab.site.short}",
                f"{what} differs between roles",
                "Give one SAE's latents at `lab` and `pre` of the same prompts.",
            )
    sums = [_by_prompt(acts, first_example) for acts in (lab, pre)]
    times = resampled_clusters(np.arange(lab.n_prompts), n_resamples, np.random.default_rng(seed)).T
    share = _share(*(np.asarray(part.sum(axis=0), dtype=np.float64) for part in sums))
    again = _share(*(times @ part for part in sums))
    known = ~np.isnan(share)
    low, high = np.full(len(share), np.nan), np.full(len(share), np.nan)
    if known.any():
        low[known], high[known] = np.nanquantile(again[:, known], (0.025, 0.975), axis=0)
    n_active = sum(_active_rows(acts, first_example) for acts in (lab, pre))
    told = known & (n_active >= FEWEST)
    kind = np.full(len(share), "", dtype=object)
    kind[told & (low >= SHARE)], kind[told & (high <= 1 - SHARE)] = DETECTION, EXECUTION
    reason = np.where(told, "", f"active in fewer than {FEWEST} rows").astype(object)
    columns = {"lab_share": share, "ci_low": low, "ci_high": high, "n_active": n_active, "kind": kind}
    site = np.full(len(share), str(lab.site), dtype=object)
    return MassTable(columns | {"site": site, "latent": np.arange(lab.d_sae), "reason": reason})


def _active_rows(acts: LatentActs, first_example: int) -> Ints:
    """Rows that count in which each latent is active, [latent]."""
    example = np.repeat(np.arange(len(acts.indptr) - 1) % acts.n_examples, np.diff(acts.indptr))
    return np.bincount(acts.index[example >= first_example], minlength=acts.d_sae)


def _by_prompt(acts: LatentActs, first_example: int) -> csr_array:
    """Summed activation of each latent in each prompt, float32 [prompt latent]."""
    rows = np.arange(acts.n_prompts * acts.n_examples)
    used = rows[rows % acts.n_examples >= first_example]
    at = (used // acts.n_examples, used)
    member = coo_array((np.ones(len(used), np.float32), at), shape=(acts.n_prompts, len(rows))).tocsr()
    return csr_array(member @ acts.matrix)


def _share(lab: np.ndarray, pre: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.where(lab + pre > 0, lab / (lab + pre), np.nan)
