"""Where are x and y at `lab`, and which part of a block writes a concept there?"""

from __future__ import annotations

from typing import ClassVar

from iclens.tables.frame import Column, Table

CREATED = "created by the MLP"
"""The verdict of M3 that claim 3 asks for."""
IN_ATTENTION = "in attention's output, not before"
"""Its verdict where a concept first stands in what attention writes; no ablation is asked for this one."""


class OperandTable(Table):
    """One row per (layer, measure): x and y in the residual that a block's MLP reads at `lab`."""

    KEY = ("layer", "measure")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "layer": Column("int", "block; its resid_mid at lab is read"),
        "measure": Column(
            "str", "overlap of the x- and y-subspaces or of halves (0 to 1), or R2 of the code of x or y"
        ),
        "value": Column("float", "mean squared cosine over half splits, or R2 on prompts not trained on"),
        "ci_low": Column("float", "2.5 % bound: over half splits for overlaps, prompts resampled for R2"),
        "ci_high": Column("float", "97.5 % bound, likewise"),
        "null": Column("float", "mean of the same with the values of x (or y, where no x is used) permuted"),
        "n_rows": Column("int", "rows used (prompt x example at lab)"),
        "reason": Column("str", "why a figure is NaN; else empty"),
    }


class CreationTable(Table):
    """One row per (concept, layer, source): a dense probe of the concept at `lab`, read on held-out tasks.

    `verdict`, `larger` and the difference are of the concept and layer, and repeated on each of its rows.
    """

    KEY = ("concept", "layer", "source")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "concept": Column("str", "what the probe is trained to read"),
        "layer": Column("int", "block"),
        "source": Column(
            "str", "a site of the block, or the last block's resid_post as it is or with a part ablated"
        ),
        "auroc": Column("float", "of the probe's decision values on held-out tasks, within strata"),
        "ci_low": Column("float", "2.5 % bound, held-out prompts resampled"),
        "ci_high": Column("float", "97.5 % bound, held-out prompts resampled"),
        "n_positive": Column("int", "held-out positives (rows)"),
        "n_negative": Column("int", "held-out negatives (rows)"),
        "verdict": Column("str", "what the block's AUROCs say of where the concept comes from"),
        "attention_minus_mlp": Column("float", "AUROC of attn_out minus that of mlp_out"),
        "attention_minus_mlp_low": Column("float", "2.5 % bound, the same prompts resampled in both"),
        "attention_minus_mlp_high": Column("float", "97.5 % bound, likewise"),
        "larger": Column("str", "attention or MLP when the interval excludes 0, else neither; or empty"),
        "reason": Column("str", "why a figure is NaN; else empty"),
    }
