"""TransformTable: which latent answers to which concept, and to nothing else."""

from __future__ import annotations

from typing import ClassVar

from iclens.tables.frame import Column, Table


class TransformTable(Table):
    """One row per (site, role, latent, concept); every figure but `discovery_auroc` is of held-out tasks."""

    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "hook name of the site"),
        "role": Column("str", "token of the example that was read"),
        "latent": Column("int", "latent of the SAE at that site"),
        "concept": Column("str", "what was asked of the latent"),
        "sign": Column("int", "+1: higher on positives, -1: on negatives; chosen on discovery tasks"),
        "auroc": Column("float", "P(higher on a positive than on a matched negative) in direction `sign`"),
        "ci_low": Column("float", "2.5 % bound of `auroc`, prompts resampled"),
        "ci_high": Column("float", "97.5 % bound of `auroc`, prompts resampled"),
        "discovery_auroc": Column("float", "the same AUROC on the discovery tasks, at least .5"),
        "worst_confound": Column("str", "the confound that the latent answers to most"),
        "confound_auroc": Column("float", "max(a, 1 - a) of that confound with the concept held fixed"),
        "selectivity": Column("float", "auroc - confound_auroc"),
        "p_value": Column("float", "one-sided, for auroc > .5 in the direction `sign`; prompts are the unit"),
        "q_value": Column("float", "Benjamini-Hochberg over all rows that were identified together"),
        "n_positive": Column("int", "held-out rows (prompt x example) that are positives"),
        "n_negative": Column("int", "held-out rows that are negatives"),
        "label": Column("str", "the concept's name when every gate is passed, 'candidate', or empty"),
        "reason": Column("str", "the gate that failed, or why a statistic is undefined"),
    }  # fmt: skip
