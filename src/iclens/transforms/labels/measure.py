"""Measuring one concept on every latent of a site and role.

1. `split_rows` keeps the rows that a concept uses on one side of the grid. 2. `measure` chooses each
latent's direction on the discovery rows. 3. On the held-out rows it takes the AUROC against matched
negatives, its interval over resampled prompts, a p-value with prompts as the unit, the worst
confound, comparing only rows with equal concept label, how far the design itself confounds the two, and
the figures of `scores`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import norm

from iclens.tables.arrays import Floats, Ints
from iclens.transforms.concepts import Concept
from iclens.transforms.labels.auroc import auroc, cluster_z, order_entries, resampled_clusters, sides
from iclens.transforms.labels.scores import confounding, scores
from iclens.transforms.rows import Rows

UNDEFINED = (
    "auroc", "ci_low", "ci_high", "discovery_auroc", "confound_auroc", "p_value",
    "confounding", "effect_size", "mutual_info_nats", "overlap",
)  # fmt: skip
"""Columns that are NaN where there is too little to measure."""
COUNTS = ("n_positive", "n_negative", "n_positive_tasks", "n_negative_tasks")
"""Columns that count what is compared."""


@dataclass(frozen=True)
class Split:
    """The rows that one concept uses on one side of the grid.

    Args:
        rows: the used rows.
        acts: their activations, [row latent].
        positive: [row].
        stratum: only rows of equal stratum are compared, [row].
    """

    rows: Rows
    acts: csr_array
    positive: NDArray[np.bool_]
    stratum: Ints

    @property
    def prompt(self) -> Ints:
        """Prompt of each row, renumbered from 0, [row]."""
        return np.unique(self.rows.prompt, return_inverse=True)[1]

    @property
    def matched(self) -> NDArray[np.bool_]:
        """Whether a row of the other side stands in the row's stratum, [row]."""
        _, stratum = np.unique(self.stratum, return_inverse=True)
        n_positive = np.bincount(stratum, weights=self.positive)
        other = np.where(
            self.positive, np.bincount(stratum)[stratum] - n_positive[stratum], n_positive[stratum]
        )
        return other > 0

    def n_prompts(self, side: NDArray[np.bool_]) -> int:
        """Prompts with a row in `side` [row]."""
        return len(np.unique(self.rows.prompt[side]))


def split_rows(rows: Rows, acts: csr_array, concept: Concept, wanted: NDArray[np.bool_]) -> Split:
    """The rows that `concept` uses among the `wanted` [row].

    Args:
        rows: every row of a role.
        acts: their activations, [row latent].
        concept: labels the rows and gives their stratum.
        wanted: rows of one side of the grid, [row].
    """
    chosen = np.flatnonzero(wanted)
    label = concept.contrast.label(rows.take(chosen))
    used = chosen[label != 0]
    kept = rows.take(used)
    return Split(kept, cast("csr_array", acts[used]), label[label != 0] > 0, concept.stratum(kept))


def measure(
    concept: Concept, found: Split, held: Split, *, seed: int, n_resamples: int, fewest_prompts: int
) -> dict[str, Any]:
    """Columns of a TransformTable for one concept at one site and role, before multiplicity and gates.

    Args:
        concept: what is asked.
        found: discovery rows.
        held: held-out rows.
        seed: of the prompt bootstrap.
        n_resamples: bootstrap resamples of prompts.
        fewest_prompts: prompts with positives, and with negatives, that each side must have.

    Returns:
        column → [latent]; `reason` says why nothing could be measured, and is empty where it was.
    """
    _, n_latents = cast("tuple[int, int]", held.acts.shape)
    matched = held.matched
    columns: dict[str, Any] = {
        f"n_{side}{what}": np.full(n_latents, count)
        for side, mask in (("positive", held.positive), ("negative", ~held.positive))
        for what, count in (
            ("", (matched & mask).sum()), ("_tasks", len(np.unique(held.rows.task[matched & mask])))
        )
    }  # fmt: skip
    lack = _lack(found, held, fewest_prompts)
    if lack:
        texts = {"worst_confound": "", "confounded_with": "", "unmeasured": "", "reason": lack}
        columns |= {name: np.full(n_latents, text, dtype=object) for name, text in texts.items()}
        columns |= {name: np.full(n_latents, np.nan) for name in UNDEFINED}
        return columns | {"sign": np.ones(n_latents, dtype=np.int64)}
    chosen = auroc(order_entries(found.acts, found.stratum), *sides(found.positive))[:, 0]
    sign = np.where(chosen < 0.5, -1, 1)
    order = order_entries(held.acts, held.stratum)
    measured = auroc(order, *sides(held.positive))[:, 0]
    times = resampled_clusters(held.prompt, n_resamples, np.random.default_rng(seed))
    again = auroc(order, times * held.positive[:, None], times * ~held.positive[:, None])
    again = np.where(sign[:, None] > 0, again, 1 - again)[:, ~np.isnan(again[0])]
    low, high = np.quantile(again, (0.025, 0.975), axis=1)
    labels = np.array([confound.label(held.rows) for confound in concept.confounds], dtype=np.int64)
    labels = labels.reshape(-1, len(held.rows)).T
    worst, confound, unmeasured = _worst_confound(concept, held, labels)
    design, with_ = _most_confounded(concept, held, labels)
    found_out = scores(held.acts, held.positive, held.stratum)
    return columns | {
        "sign": sign,
        "auroc": np.where(sign > 0, measured, 1 - measured),
        "ci_low": low,
        "ci_high": high,
        "discovery_auroc": np.maximum(chosen, 1 - chosen),
        "worst_confound": worst,
        "confound_auroc": confound,
        "unmeasured": np.full(n_latents, unmeasured, dtype=object),
        "confounding": np.full(n_latents, design),
        "confounded_with": np.full(n_latents, with_, dtype=object),
        "effect_size": found_out.effect_size,
        "mutual_info_nats": found_out.mutual_info_nats,
        "overlap": found_out.overlap,
        "p_value": norm.sf(sign * cluster_z(order, held.positive, held.prompt)),
        "reason": np.full(n_latents, "", dtype=object),
    }


def _lack(found: Split, held: Split, fewest_prompts: int) -> str:
    for where, side in (("discovery", found), ("held-out", held)):
        for what, mask in (("positives", side.positive), ("negatives", ~side.positive)):
            if side.n_prompts(mask) < fewest_prompts:
                return f"{what} in {side.n_prompts(mask)} {where} prompts, {fewest_prompts} needed"
        if not side.matched.any():
            return f"no {where} positive has a matched negative"
    return ""


def _most_confounded(concept: Concept, held: Split, labels: Ints) -> tuple[float, str]:
    """The largest Cramér's V between the concept and one of its confounds [row confound], and which one."""
    found = confounding(held.positive, held.stratum, labels)
    if np.isnan(found).all():
        return np.nan, ""
    most = int(np.nanargmax(found))
    return float(found[most]), concept.confounds[most].name


def _worst_confound(concept: Concept, held: Split, labels: Ints) -> tuple[NDArray[np.object_], Floats, str]:
    """Name and max(a, 1 − a) of the confound [row confound] answered to most, and which cannot be measured.

    Only rows are compared that are equal in the concept's label and in what it holds fixed.
    """
    _, n_latents = cast("tuple[int, int]", held.acts.shape)
    names = np.array([confound.name for confound in concept.confounds], dtype=object)
    order = order_entries(held.acts, 2 * concept.fixed(held.rows) + held.positive)
    strength = np.full((n_latents, len(names)), np.nan)
    if len(names):
        found = auroc(order, (labels > 0).astype(np.float64), (labels < 0).astype(np.float64))
        strength = np.fmax(found, 1 - found)
    known = ~np.isnan(strength).any(axis=0)
    unmeasured = ", ".join(names[~known])
    if not known.any():
        return np.full(n_latents, "", dtype=object), np.full(n_latents, np.nan), unmeasured
    worst = strength[:, known].argmax(axis=1)
    return names[known][worst], strength[:, known][np.arange(n_latents), worst], unmeasured
