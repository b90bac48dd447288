"""What do the index cards say of transformation features? Labels, causes, and what MLPs write."""

from __future__ import annotations

import pandas as pd

from iclens.concepts.labels import CANDIDATE
from iclens.concepts.language import IDENTITY
from iclens.dashboards.records.site import Finding
from iclens.results.read import Results
from iclens.schemas import CREATED

X_ALONE, X_CUT = "x decodable (y unrelated)", "x decodable, lab→x cut (y unrelated)"
"""Measures of M2 that tell x from what y gives away."""
CAUSAL_P = 0.05
"""Largest `control_p`, not corrected for how many latents are moved, of one that moves its own belief."""


def labelled(results: Results) -> Finding:
    """Which latents answer to one concept alone."""
    table = results.table("transforms")
    granted = table[~table["label"].isin(["", CANDIDATE])].drop_duplicates(["site", "latent", "label"])
    candidates = table[table["label"] == CANDIDATE].drop_duplicates(["site", "latent"])
    of_one_task = int((granted["label"] == IDENTITY).sum())
    others = granted[granted["label"] != IDENTITY]
    counts = ", ".join(f"{label} {n}" for label, n in others["label"].value_counts().items())
    named = ", ".join(f"{row['site']} {row['latent']}" for row in others.head(6).to_dict("records"))
    held_out, discovery = (len(results.grid[side]) for side in ("held_out", "discovery"))
    verdict = f"{len(others)} latents, for {', '.join(others['label'].unique())}" if len(others) else "none"
    if of_one_task:
        verdict += f"; {of_one_task} stand for one task alone"
    moved = confirmed(results.table("specificity"))
    which = ", ".join(
        f"{row['site']} {row['latent']} ({row['concept']}, {row['way']})" for row in moved.to_dict("records")
    )
    return Finding(
        "Which latents answer to a transformation and to nothing else?",
        verdict,
        (f"Labels granted: {counts} ({named}). " if counts else "")
        + f"{len(candidates)} latents are candidates that failed a gate. Measured on {held_out} held-out "
        f"tasks, chosen on {discovery} others. {len(moved)} of those that were moved change their own "
        f"belief most{': ' + which if which else ''}.",
        "concepts.html",
        "All concepts",
    )


def confirmed(matrix: pd.DataFrame) -> pd.DataFrame:
    """Latents that move their own belief more than others, raw and beside matched latents, at `CAUSAL_P`.

    Args:
        matrix: the table `specificity`.
    """
    own = matrix[matrix["own"] & (matrix["latent"] >= 0)]
    sure = own["specific"] & own["specific_standardised"] & (own["control_p"] <= CAUSAL_P)
    return own[sure].drop_duplicates(["site", "role", "latent", "concept"])


def mechanism_words(results: Results) -> list[str]:
    """What M1 to M6 found, a sentence each: x at lab, creation, sizes, transport."""
    operands, created = results.table("operands"), results.table("creation")
    sure, carried = results.table("confidence"), results.table("transport")
    pairs = created[created["verdict"] != "not measured"].drop_duplicates(["concept", "layer"])
    kinds = pairs["verdict"].str.split(":").str[0].value_counts()
    others = ", ".join(f"{n} {kind}" for kind, n in kinds.items() if kind != CREATED)
    told = sure[(sure["over"] == "active rows") & (sure["verdict"] != "")].drop_duplicates(["site", "latent"])
    sizes = told["verdict"].value_counts()
    rest = ", ".join(f"{n} {kind}" for kind, n in sizes.items() if kind != "confidence")
    read = (
        carried[carried["weights"] == "attention"].dropna(subset=["r2"]).drop_duplicates(["site", "latent"])
    )
    beats = int((read["attention_minus_equal_low"] > 0).sum())
    return [
        _x_at_lab(operands),
        f"{kinds.get(CREATED, 0)} of {len(pairs)} (concept, block) pairs are created by the MLP: "
        f"{others or 'none'}",
        f"{sizes.get('confidence', 0)} of {len(told)} latents at lab follow confidence: {rest or 'none'}",
        f"Attention weights beat equal weights for certain in {beats} of {len(read)} followed latents",
    ]


def _x_at_lab(operands: pd.DataFrame) -> str:
    """Where x itself is read best at lab, and what is left of it with attention to it cut."""
    known = operands.dropna(subset=["value"])
    alone = known[known["measure"] == X_ALONE].sort_values("value")
    if alone.empty:
        return "Whether x is at lab was not measured: no task's y is unrelated to x"
    layer, best = alone[["layer", "value"]].iloc[-1]
    left = known[(known["measure"] == X_CUT) & (known["layer"] == layer)]["value"].tolist()
    cut = f"{round(left[0], 2) + 0.0:.2f}" if left else "not measured"  # + 0.0: no minus before zero
    return (
        f"x itself is read best at block {layer:.0f} (R² {best:.2f} where y says nothing of x), and with "
        f"attention from lab to x cut R² is {cut}"
    )
