"""Which latent answers to which concept and to nothing else, at which token, and to which values."""

from __future__ import annotations

from typing import ClassVar

from iclens.tables.frame import Column, Table


class TransformTable(Table):
    """One row per (site, role, latent, concept); every figure but `discovery_auroc` is of held-out tasks.

    For `task identity`, whose task no other could confirm, they are of held-out prompts.
    """

    KEY = ("site", "role", "latent", "concept")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "hook name of the site"),
        "role": Column("str", "token of the example that was read"),
        "latent": Column("int", "latent of the SAE at that site"),
        "concept": Column("str", "what was asked of the latent"),
        "of": Column("str", "the task that `task identity` is about; empty for other concepts"),
        "sign": Column("int", "+1: higher on positives, -1: on negatives; chosen on discovery tasks"),
        "auroc": Column("float", "P(higher on a positive than on a matched negative) in direction `sign`"),
        "ci_low": Column("float", "2.5 % bound of `auroc`, prompts resampled"),
        "ci_high": Column("float", "97.5 % bound of `auroc`, prompts resampled"),
        "discovery_auroc": Column("float", "the same AUROC on the discovery tasks, at least .5"),
        "worst_confound": Column("str", "the confound that the latent answers to most"),
        "confound_auroc": Column("float", "max(a, 1 - a) of that confound with the concept held fixed"),
        "selectivity": Column("float", "auroc - confound_auroc"),
        "confounding": Column("float", "largest Cramer's V, in the design, of the concept and a confound"),
        "confounded_with": Column("str", "that confound"),
        "effect_size": Column("float", "Cohen's d, positives minus negatives, matched by overlap weights"),
        "mutual_info_nats": Column("float", "of activation (off, thirds) and concept, bias-corrected, nats"),
        "overlap": Column("float", "Cohen's kappa of being active and the concept; negative where reversed"),
        "p_value": Column("float", "one-sided, for auroc > .5 in the direction `sign`; prompts are the unit"),
        "q_value": Column("float", "Benjamini-Hochberg over all rows that were identified together"),
        "unmeasured": Column("str", "confounds that no held-out rows could measure"),
        "n_positive": Column("int", "held-out positives (prompt x example) that have a matched negative"),
        "n_negative": Column("int", "held-out negatives that have a matched positive"),
        "n_positive_tasks": Column("int", "tasks that these positives are of"),
        "n_negative_tasks": Column("int", "tasks that these negatives are of"),
        "label": Column("str", "the concept's name when every gate is passed, 'candidate', or empty"),
        "reason": Column("str", "the gate that failed, or why a statistic is undefined"),
    }  # fmt: skip


class MassTable(Table):
    """One row per (site, latent): whether it works where labels are read or where answers are predicted."""

    KEY = ("site", "latent")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "hook name of the site"),
        "latent": Column("int", "latent of the SAE at that site"),
        "lab_share": Column("float", "activation summed at lab, over that at lab and pre together"),
        "ci_low": Column("float", "2.5 % bound of `lab_share`, prompts resampled"),
        "ci_high": Column("float", "97.5 % bound of `lab_share`, prompts resampled"),
        "n_active": Column("int", "rows (prompt x example) at lab or pre in which it is active"),
        "kind": Column("str", "detection (nearly all at lab), execution (nearly all at pre), or empty"),
        "reason": Column("str", "why nothing is said, or empty"),
    }  # fmt: skip


class TuningCurveTable(Table):
    """One row per (concept, site, role, latent, of, value): mean activation of a shown latent."""

    KEY = ("concept", "site", "role", "latent", "of", "value")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "concept": Column("str", "the concept for which the latent is shown"),
        "site": Column("str", "hook name of the site"),
        "role": Column("str", "token of the example that was read"),
        "latent": Column("int", "latent of the SAE at that site"),
        "of": Column("str", "y, x or y-2x"),
        "value": Column("int", "the value"),
        "mean": Column(
            "float",
            "mean gated activation over rows with that value, zeros included, in the latent's own units",
        ),
        "n_rows": Column("int", "rows with that value"),
    }  # fmt: skip


class OperandMapTable(Table):
    """One row per (concept, site, role, latent, x, y): mean activation over a box of inputs and labels."""

    KEY = ("concept", "site", "role", "latent", "x", "y")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "concept": Column("str", "the concept for which the latent is shown"),
        "site": Column("str", "hook name of the site"),
        "role": Column("str", "token of the example that was read"),
        "latent": Column("int", "latent of the SAE at that site"),
        "x": Column("int", "least x of the box"),
        "y": Column("int", "least y of the box"),
        "width": Column("int", "width of the box in x and in y"),
        "mean": Column(
            "float",
            "mean gated activation over the rows in the box, zeros included, in the latent's own units",
        ),
        "n_rows": Column("int", "rows in the box"),
    }  # fmt: skip
