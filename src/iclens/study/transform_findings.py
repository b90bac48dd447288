"""What do the index cards say of transformation features? Labels, causes, and what MLPs write."""

from __future__ import annotations

import pandas as pd

from iclens.dashboards.view import Finding
from iclens.study.results import Results
from iclens.tables.decomposition import CREATED
from iclens.transforms.concepts import IDENTITY
from iclens.transforms.labels.chosen import CANDIDATE

CAUSAL_P = 0.05
"""Largest `control_p`, not corrected for how many latents are moved, of one that moves its own belief."""


def transform_findings(results: Results) -> list[Finding]:
    """Two cards: which latents answer to one concept alone, and claim 3 of the post."""
    return [_labelled(results), _made_by_mlps(results)]


def _labelled(results: Results) -> Finding:
    table = results.table("transforms")
    granted = table[~table["label"].isin(["", CANDIDATE])].drop_duplicates(["site", "latent", "label"])
    candidates = table[table["label"] == CANDIDATE].drop_duplicates(["site", "latent"])
    of_one_task = int((granted["label"] == IDENTITY).sum())
    others = granted[granted["label"] != IDENTITY]
    counts = ", ".join(f"{label} {n}" for label, n in others["label"].value_counts().items())
    held_out, discovery = (len(results.grid[side]) for side in ("held_out", "discovery"))
    verdict = f"{len(others)} latents" if len(others) else "none"
    if of_one_task:
        verdict += f"; {of_one_task} stand for one task alone"
    moved = confirmed(results.table("specificity"))
    return Finding(
        "Which latents answer to a transformation and to nothing else?",
        verdict,
        (f"Labels granted: {counts}. " if counts else "")
        + f"{len(candidates)} latents are candidates that failed a gate. Measured on {held_out} held-out "
        f"tasks, chosen on {discovery} others. {len(moved)} of those that were moved change their own "
        "belief most.",
    )


def confirmed(matrix: pd.DataFrame) -> pd.DataFrame:
    """Latents that move their own belief more than others, raw and beside matched latents, at `CAUSAL_P`.

    Args:
        matrix: the table `specificity`.
    """
    own = matrix[matrix["own"] & (matrix["latent"] >= 0)]
    sure = own["specific"] & own["specific_standardised"] & (own["control_p"] <= CAUSAL_P)
    return own[sure].drop_duplicates(["site", "role", "latent", "concept"])


def _made_by_mlps(results: Results) -> Finding:
    created, sure = results.table("creation"), results.table("confidence")
    pairs = created.drop_duplicates(["concept", "layer"])
    measured = pairs[pairs["verdict"] != "not measured"]
    made = measured[measured["verdict"] == CREATED]
    sizes = sure[sure["over"] == "active rows"]
    told = sizes[sizes["verdict"] != ""]
    counts = ", ".join(f"{n} {kind}" for kind, n in told["verdict"].value_counts().items())
    where = ", ".join(f"{c} at L{layer}" for c, layer in zip(made["concept"], made["layer"], strict=True))
    return Finding(
        "Do MLPs break x → y into features as large as the model's confidence? (claim 3)",
        f"{len(made)} of {len(measured)} appear in an MLP; {int((told['verdict'] == 'confidence').sum())} of "
        f"{len(told)} latents follow confidence",
        (f"Created by the MLP: {where}. " if where else "No concept is created by any block's MLP at lab. ")
        + (f"Sizes of active latents at lab: {counts}." if counts else "No latent at lab was followed."),
    )
