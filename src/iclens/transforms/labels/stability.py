"""Stability: is a labelled latent found again, with its label, in other SAEs of the same site?

1. Labelled rows of a TransformTable are grouped by site and role. 2. In every other set of SAEs, the latent
whose activation over the same rows correlates most is the match. 3. The label is stable in that set when the
correlation is high enough and the match is granted the same label there.

What enters: the table and latents of one set of SAEs, and the same of others, tracked on the same prompts.
What leaves: a `StabilityTable`. A match is the best of many latents, so its correlation is above zero even by
chance; the label asked of it is what was measured on held-out tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from scipy.sparse import csc_array

from iclens.errors import TableError
from iclens.tables.activations import LatentActs
from iclens.tables.arrays import Floats, Ints
from iclens.tables.stability import StabilityTable
from iclens.tables.transforms import TransformTable

NO_LABEL = ("", "candidate")
_AT_ONCE = 64
"""Labelled latents that are compared with all others at a time."""


def stability(
    table: TransformTable,
    own: Sequence[LatentActs],
    others: Mapping[str, tuple[TransformTable, Sequence[LatentActs]]],
    *,
    least: float = 0.8,
) -> StabilityTable:
    """The best-correlated latent of every other set of SAEs for each labelled latent, and its label.

    Args:
        table: labels of one set of SAEs.
        own: its activations, one per site and role.
        others: name of a set → its labels and activations on the same prompts.
        least: least correlation of a stable label.

    Returns:
        A row per labelled row of `table` and other set; a set without that site and role has match −1.

    Raises:
        TableError: when labelled latents have no activations, or two sets are of other prompts.
    """
    label = table["label"]
    found: list[dict[str, Any]] = []
    labelled = np.flatnonzero(~np.isin(label.astype(str), NO_LABEL))
    places = list(dict.fromkeys(zip(table["site"][labelled], table["role"][labelled], strict=True)))
    for site, role in places:
        at = labelled[(table["site"][labelled] == site) & (table["role"][labelled] == role)]
        mine = _at(own, site, role)
        if mine is None:
            raise TableError(
                f"stability at {site} '{role}'",
                "no activations",
                "Give `own` the latents of every site and role that `table` labels.",
            )
        for name, (given, acts) in others.items():
            labels = _labels(given, site, role)
            matches = _matches(mine, _at(acts, site, role), table["latent"][at], name)
            for row, (match, correlation, d_sae, reason) in zip(at, matches, strict=True):
                concept, wanted = str(table["concept"][row]), str(label[row])
                said = labels.get((match, concept), "")
                stable = correlation >= least and said == wanted
                found.append(
                    {
                        "site": site, "role": role, "latent": table["latent"][row], "concept": concept,
                        "other": name, "other_d_sae": d_sae, "match": match, "correlation": correlation,
                        "match_label": said, "stable": stable,
                        "reason": reason or ("" if stable else _failed(correlation, least, said, wanted)),
                    }
                )  # fmt: skip
    return StabilityTable({key: [row[key] for row in found] for key in StabilityTable.COLUMNS})


def _at(acts: Sequence[LatentActs], site: str, role: str) -> LatentActs | None:
    return next((a for a in acts if str(a.site) == site and a.role == role), None)


def _matches(
    mine: LatentActs, theirs: LatentActs | None, latents: Ints, name: str
) -> list[tuple[int, float, int, str]]:
    """(match, correlation, d_sae, reason) of each of `latents` in the other SAE."""
    place = f"{mine.site.short} at '{mine.role}'"
    if theirs is None:
        return [(-1, np.nan, -1, f"no SAE for {place}")] * len(latents)
    shape = (mine.n_prompts, mine.n_examples)
    if (theirs.n_prompts, theirs.n_examples) != shape:
        raise TableError(
            f"latents of '{name}' for {place}",
            f"{theirs.n_prompts} prompts of {theirs.n_examples} examples, not {shape[0]} of {shape[1]}",
            "Track the same prompts with every set.",
        )
    latent_ids, place_of = np.unique(latents, return_inverse=True)
    match, best = best_matches(csc_array(mine.matrix), csc_array(theirs.matrix), latent_ids)
    reasons = np.where(match < 0, "the latent, or every latent of the other SAE, is constant", "")
    return [(int(match[i]), float(best[i]), theirs.d_sae, str(reasons[i])) for i in place_of]


def best_matches(mine: csc_array, theirs: csc_array, latents: Ints) -> tuple[Ints, Floats]:
    """The latent of `theirs` with the greatest Pearson correlation over all rows, and that correlation.

        r = (⟨a b⟩ − ⟨a⟩⟨b⟩) / √((⟨a²⟩ − ⟨a⟩²)(⟨b²⟩ − ⟨b⟩²))

    Args:
        mine: activations, [row latent].
        theirs: activations over the same rows, [row latent].
        latents: columns of `mine` that are matched, [latent].

    Returns:
        Match and correlation, each [latent]; −1 and NaN where a correlation is undefined.
    """
    mine, theirs = csc_array(mine[:, latents].astype(np.float64)), csc_array(theirs.astype(np.float64))
    n_rows, _ = cast("tuple[int, int]", theirs.shape)
    (mean_a, spread_a), (mean_b, spread_b) = _moments(mine), _moments(theirs)
    match, best = np.full(len(latents), -1, dtype=np.int64), np.full(len(latents), np.nan)
    if not spread_b.any():
        return match, best
    for first in range(0, len(latents), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        joint = (mine[:, part].T @ theirs).toarray() / n_rows - mean_a[part, None] * mean_b
        scale = spread_a[part, None] * spread_b
        r = np.where(scale > 0, joint / np.where(scale > 0, scale, 1.0), -np.inf)
        top = r.argmax(axis=1)
        known = spread_a[part] > 0
        match[part] = np.where(known, top, -1)
        best[part] = np.where(known, np.clip(r[np.arange(len(top)), top], -1, 1), np.nan)
    return match, best


def _moments(acts: csc_array) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each column, [latent]; 0 spread where a column is constant."""
    mean, square = np.asarray(acts.mean(axis=0)), np.asarray((acts**2).mean(axis=0))
    variance = square - mean**2
    return mean, np.sqrt(np.where(variance > 1e-12 * square, variance, 0.0))


def _labels(given: TransformTable, site: str, role: str) -> dict[tuple[int, str], str]:
    """(latent, concept) → label at one site and role; pairs without a label are left out."""
    at = np.flatnonzero((given["site"] == site) & (given["role"] == role) & (given["label"] != ""))
    return {(int(given["latent"][i]), str(given["concept"][i])): str(given["label"][i]) for i in at}


def _failed(correlation: float, least: float, said: str, label: str) -> str:
    failed = [f"correlation {correlation:.3f} below {least:.2f}"] if not correlation >= least else []
    if said != label:
        failed.append(f"the match is labelled '{said}'" if said else "the match is not labelled")
    return "; ".join(failed)
