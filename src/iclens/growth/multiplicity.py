"""Multiplicity: many latents at many sites and roles, and one error rate for the study.

A family is one site × role × direction. 1. Within a family, Benjamini–Hochberg gives adjusted p-values; the
smallest of them is the family's Simes p. 2. Across families, Benjamini–Hochberg at q on the Simes p-values
selects R of m families. 3. Within a selected family, Benjamini–Hochberg runs at q·R/m.

When nothing grows anywhere, any discovery is a false selection, so P(any discovery) ≤ q over the whole study;
and the false discovery rate averaged over the selected families is ≤ q. A study of one family is plain
Benjamini–Hochberg. Source: Benjamini & Bogomolov (2014), J. R. Stat. Soc. B 76, 297–318.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iclens.tables.arrays import Floats


def benjamini_hochberg(p_values: Floats) -> Floats:
    """Adjusted p-values of one family: min over j ≥ i of p_(j) · n / j, at most 1.

    Args:
        p_values: [test]; NaN marks a test that was not made and is not counted.

    Returns:
        [test], NaN where the p-value is.
    """
    adjusted = np.full(p_values.shape, np.nan)
    made = np.flatnonzero(np.isfinite(p_values))
    if made.size:
        order = made[np.argsort(p_values[made])]
        scaled = p_values[order] * made.size / np.arange(1, made.size + 1)
        adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted


def study_q_values(families: Sequence[Floats]) -> list[Floats]:
    """For every test, the smallest q at which the study calls it.

    With a the test's adjusted p within its family, S_(r) the r-th smallest Simes p and m families with a
    test, it is called at q exactly when a ≤ q·R/m, so its q-value is min over r of m · max(a, S_(r)) / r.

    Args:
        families: p-values of each family, [test]; NaN where no test was made.

    Returns:
        q-values in the same shapes, at most 1, NaN where the p-value is.
    """
    adjusted = [benjamini_hochberg(family) for family in families]
    simes = np.sort([np.nanmin(a) for a in adjusted if np.isfinite(a).any()])
    ranks = np.arange(1, len(simes) + 1)
    found = []
    for a in adjusted:
        q = np.full(a.shape, np.nan)
        made = np.isfinite(a)
        if made.any():
            candidates = len(simes) * np.maximum(a[made][:, None], simes) / ranks
            q[made] = np.minimum(candidates.min(axis=1), 1.0)
        found.append(q)
    return found
