"""What patching found: SweepTable, GradedTable, PatchTable and LadderTable.

Run A (donor) holds examples of the task, run B (recipient) does not, A* is A's context with B's query.
Every interval is a 95 % bootstrap over prompts, and every row names the scale it is on.
"""

from __future__ import annotations

from typing import ClassVar

from iclens.tables.frame import Column, Table

_METRIC = (
    '"task on own x" = P(f(x_B)), "copy" = P(f(x_A)), "top-1 task on own x" and "top-1 copy" = share of '
    'prompts whose most probable answer that is, "effect on <belief>" = mean rise of the belief\'s log-odds'
)
_ROLE = "at which token: of the query; for `lab` and `close`, of the last example before it"
PATCH_Q = 0.05
"""False discovery rate at which a patch effect is called."""
_EFFECT = "mean of patched − base over prompts, nats"


class SweepTable(Table):
    """Whole-residual replacement A→B: one row per role, layer and metric."""

    KEY = ("role", "layer", "recipient", "n_seen", "metric")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "role": Column(
            "str", "what is replaced: `pre` of the query, or this role in every example of the context"
        ),
        "layer": Column("int", "block whose resid_pre is replaced; n_blocks stands for the last resid_post"),
        "recipient": Column("str", 'run B: "zero examples", or the length-matched "S arm" or "R arm"'),
        "n_seen": Column("int", "examples in the donor's context"),
        "metric": Column("str", _METRIC),
        "scale": Column("str", '"probability" or "nats"'),
        "value": Column("float", "the metric with the patch, mean over prompts"),
        "ci_low": Column("float", "lower end of its interval"),
        "ci_high": Column("float", "upper end of its interval"),
        "base": Column("float", "the same without the patch (for an effect: the mean log-odds without it)"),
        "n_prompts": Column("int", "prompts averaged"),
    }


class HeadTable(Table):
    """Heads of A* ablated: one row per kind, place, layer, head and metric."""

    KEY = ("kind", "place", "layer", "head", "n_seen", "metric")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "kind": Column("str", "what replaces the head's output: zero, its mean over recipients, or resample"),
        "place": Column("str", "where: the query's `pre`, or all positions"),
        "layer": Column("int", "block"),
        "head": Column("int", "head; -1 stands for all heads of the layer at once"),
        "n_seen": Column("int", "examples in the context"),
        "metric": Column("str", _METRIC),
        "scale": Column("str", '"probability" or "nats"'),
        "base": Column("float", "the metric (for an effect: the log-odds) without the ablation, mean"),
        "ablated": Column("float", "the same with it"),
        "effect": Column("float", "ablated − base, mean over prompts"),
        "ci_low": Column("float", "lower end of its 95 % prompt-bootstrap interval"),
        "ci_high": Column("float", "upper end"),
        "n_prompts": Column("int", "prompts averaged"),
    }


class GradedTable(Table):
    """One site's patch by the donor's number of examples, beside the unpatched curve."""

    KEY = ("role", "layer", "recipient", "n_seen", "metric")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "role": SweepTable.COLUMNS["role"],
        "layer": SweepTable.COLUMNS["layer"],
        "recipient": SweepTable.COLUMNS["recipient"],
        "n_seen": SweepTable.COLUMNS["n_seen"],
        "metric": SweepTable.COLUMNS["metric"],
        "scale": SweepTable.COLUMNS["scale"],
        "value": SweepTable.COLUMNS["value"],
        "ci_low": SweepTable.COLUMNS["ci_low"],
        "ci_high": SweepTable.COLUMNS["ci_high"],
        "unpatched": Column("float", "the metric of A* (as many examples in context, B's query), no patch"),
        "unpatched_low": Column("float", "lower end of its interval"),
        "unpatched_high": Column("float", "upper end of its interval"),
        "n_prompts": SweepTable.COLUMNS["n_prompts"],
    }


class PatchTable(Table):
    """Single-latent patches A→B: one row per latent whose activation differs and belief."""

    KEY = ("site", "role", "latent", "belief")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "where the latent's decoder direction is added"),
        "role": Column("str", _ROLE),
        "latent": Column("int", "latent id"),
        "belief": Column(
            "str",
            "which read-out of the logits, in log-odds; `copy` asks for the answers of donors that lent",
        ),
        "n_prompts": Column("int", "prompts of the test half, over which effects are averaged"),
        "n_changed": Column("int", "of these, prompts in which the latent's activation differs"),
        "base": Column("float", "mean log-odds of B, nats"),
        "patched": Column("float", "mean log-odds of B with the latent set to its donor value, nats"),
        "donor": Column("float", "mean log-odds of A*, nats"),
        "effect": Column("float", _EFFECT),
        "ci_low": Column("float", "lower end of the effect's interval"),
        "ci_high": Column("float", "upper end of the effect's interval"),
        "normalised": Column("float", "effect / (donor − base), a ratio of means; NaN where the guard fails"),
        "normalised_low": Column("float", "lower end of its interval"),
        "normalised_high": Column("float", "upper end of its interval"),
        "screen_effect": Column(
            "float", "the same effect on the screening half, nats; it chose what is tested"
        ),
        "n_controls": Column("int", "matched random live latents compared with; 0 when not tested"),
        "control_p": Column(
            "float", "(1 + controls at least as far from 0) / (1 + n_controls); NaN when not tested"
        ),
        "q_value": Column("float", "Benjamini–Hochberg over the tested latents × beliefs"),
        "reason": Column("str", "why a value of the row is NaN; empty otherwise"),
    }


class LadderTable(Table):
    """How much of A a patch must carry: one row per rung and belief, on the test half."""

    KEY = ("site", "role", "rung", "belief")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "where"),
        "role": Column("str", _ROLE),
        "rung": Column(
            "str",
            '"best single latent" (of the screening half), "all latents" (B\'s error kept), "error only", '
            '"full activation"',
        ),
        "latent": Column("str", "the single latent's id; empty for the other rungs"),
        "belief": Column("str", "which read-out of the logits, in log-odds"),
        "n_prompts": Column("int", "prompts averaged"),
        "base": Column("float", "mean log-odds of B, nats"),
        "patched": Column("float", "mean log-odds of the patched B, nats"),
        "donor": Column("float", "mean log-odds of A*, nats"),
        "effect": Column("float", _EFFECT),
        "ci_low": Column("float", "lower end of the effect's interval"),
        "ci_high": Column("float", "upper end of the effect's interval"),
        "normalised": Column("float", "effect / (donor − base); NaN where the guard fails"),
        "normalised_low": Column("float", "lower end of its interval"),
        "normalised_high": Column("float", "upper end of its interval"),
        "reason": Column("str", "why a value of the row is NaN; empty otherwise"),
    }
