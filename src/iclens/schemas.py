"""Every result table: its columns with types, units and meanings, and the key of a row."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from iclens.table import Column, Ints, Table

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


_DOSE_EFFECT = "nats of the belief per natural growth of the latent (dose 1), from all doses"


class DoseTable(Table):
    """One row per pushed latent, belief and number of examples in context; pushed at the query's `pre`.

    A latent's natural growth is how much its activation in the task's arm rises from these examples to the
    last one, on prompts other than those that are pushed. Doses run from −1 to 2 natural growths.
    """

    KEY = ("site", "role", "latent", "belief", "n_examples")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "where the latent's decoder direction is added, by its TransformerLens name"),
        "role": Column("str", "token that is pushed: `pre`"),
        "latent": Column("int", "latent id"),
        "belief": Column("str", "which read-out of the logits, in log-odds"),
        "n_examples": Column("int", "examples in context"),
        "n_prompts": Column("int", "prompts that are pushed"),
        "growth": Column("float", "its natural growth, activation × decoder norm"),
        "slope": Column("float", _DOSE_EFFECT),
        "slope_low": Column("float", "lower end of its 95 % t interval over prompts"),
        "slope_high": Column("float", "upper end"),
        "quadratic_share": Column(
            "float", "share of the dose-response's variance over doses −1 to 1 that is its k² term's"
        ),
        "share": Column(
            "float",
            "exchange rate: slope ÷ the belief's own growth from these examples to the last one, a ratio of "
            "means; NaN where that growth's interval includes 0",
        ),
        "share_low": Column("float", "lower end of its 95 % prompt-bootstrap interval"),
        "share_high": Column("float", "upper end"),
        "off_role": Column(
            "float", "the effect of dose 1 when it is put at `comma` instead; NaN if not asked"
        ),
        "n_controls": Column("int", "matched random latents pushed as far; 0 when not compared"),
        "control_p": Column("float", "(1 + controls that raise the belief as much) / (1 + n_controls)"),
        "q_value": Column("float", "Benjamini–Hochberg over the pushed latents of the study, by belief"),
        "causal": Column("bool", "whether it moves the belief linearly, upwards and beyond its controls"),
        "reason": Column("str", "why not, or why a value is NaN; empty otherwise"),
    }


class DoseCurveTable(Table):
    """One row per pushed latent, belief, number of examples in context and dose: context × dose."""

    KEY = ("site", "latent", "belief", "n_examples", "dose")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "where, by its TransformerLens name"),
        "latent": Column("int", "latent id"),
        "belief": Column("str", "which read-out of the logits, in log-odds"),
        "n_examples": Column("int", "examples in context"),
        "dose": Column("float", "natural growths added; 0 is the base"),
        "effect": Column("float", "pushed − base, mean over prompts, nats"),
        "ci_low": Column("float", "lower end of its 95 % prompt-bootstrap interval"),
        "ci_high": Column("float", "upper end"),
        "n_prompts": Column("int", "prompts that are pushed"),
        "reason": Column("str", "why a value is NaN; empty otherwise"),
    }


class InjectionTable(Table):
    """One row per site, belief and what is injected at `pre`: does the site's own growth move the belief?

    Everything injected is a mean over prompts that are not pushed, so it carries the task and no answer.
    """

    KEY = ("site", "injected", "belief", "n_examples")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "where, by its TransformerLens name"),
        "injected": Column(
            "str", 'for example "short-listed latents", "all latents", "error only" or "full activation"'
        ),
        "belief": Column("str", "which read-out of the logits, in log-odds"),
        "n_examples": Column("int", "examples in context"),
        "n_prompts": Column("int", "prompts that are pushed"),
        "effect": Column("float", "pushed − base, mean over prompts, nats"),
        "ci_low": Column("float", "lower end of its 95 % prompt-bootstrap interval"),
        "ci_high": Column("float", "upper end"),
        "share": Column(
            "float", "effect ÷ the belief's own growth; NaN where that is below 1 nat or unclear"
        ),
        "share_low": Column("float", "lower end of its 95 % prompt-bootstrap interval"),
        "share_high": Column("float", "upper end"),
        "reason": Column("str", "why a value is NaN; empty otherwise"),
    }


class ClosureTable(Table):
    """One row per site and belief: how much of the belief's growth the pushed latents account for."""

    KEY = ("site", "belief", "n_examples")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "where, by its TransformerLens name"),
        "belief": Column("str", "which read-out of the logits, in log-odds"),
        "n_examples": Column("int", "examples in context"),
        "n_prompts": Column("int", "prompts that are pushed"),
        "growth": Column("float", "the belief's own growth from these examples to the last one, nats"),
        "n_latents": Column("int", "latents pushed one by one"),
        "closure": Column("float", "sum of their slopes ÷ the belief's growth"),
        "closure_low": Column("float", "lower end of its 95 % prompt-bootstrap interval"),
        "closure_high": Column("float", "upper end"),
        "joint": Column("float", "the same when they are pushed together, at dose 1"),
        "n_listed": Column("int", "short-listed latents of the site at `pre`"),
        "listed": Column("float", "the same when all of these are pushed together"),
        "reason": Column("str", "why a value is NaN; empty otherwise"),
    }


class InteractionTable(Table):
    """One row per pair of pushed latents: does the effect of both equal the sum of their effects?"""

    KEY = ("site", "latent", "other", "belief")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "where, by its TransformerLens name"),
        "latent": Column("int", "one latent"),
        "other": Column("int", "the other"),
        "belief": Column("str", "which read-out of the logits, in log-odds"),
        "effect": Column("float", "effect of the one at dose 1, nats"),
        "other_effect": Column("float", "effect of the other at dose 1, nats"),
        "both": Column("float", "effect of both, nats"),
        "interaction": Column("float", "both − one − other, nats"),
        "interaction_low": Column("float", "lower end of its 95 % t interval over prompts"),
        "interaction_high": Column("float", "upper end"),
        "n_prompts": Column("int", "prompts that are pushed"),
    }


class EvidenceTable(Table):
    """One row per short-listed latent: its increments regressed on the evidence of the example just read."""

    KEY = ("site", "role", "latent")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "site, by its TransformerLens name"),
        "role": Column("str", "token of each example"),
        "latent": Column("int", "latent id"),
        "evidence": Column("float", "Δ pre-activation × decoder norm per nat of label evidence"),
        "evidence_low": Column("float", "lower end of its 95 % interval, clustered by prompt"),
        "evidence_high": Column("float", "upper end"),
        "count": Column("float", "Δ per example at no evidence, at the mean age and nearness"),
        "count_low": Column("float", "lower end of its 95 % interval"),
        "count_high": Column("float", "upper end"),
        "similarity": Column(
            "float",
            "Δ from the farthest to the nearest example before a query; NaN for inputs that are no numbers",
        ),
        "similarity_low": Column("float", "lower end of its 95 % interval"),
        "similarity_high": Column("float", "upper end"),
        "n_prompts": Column("int", "prompts"),
        "n_increments": Column("int", "increments, over all arms"),
        "weighting": Column("str", '"evidence", "count", "both" or "neither"; empty when undefined'),
        "reason": Column("str", "why it is undefined; empty otherwise"),
    }


class BayesTestTable(Table):
    """One row per test of how a read-out takes evidence: duplicates, order, reversal, prior, increments."""

    KEY = ("test", "response")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "test": Column("str", "what was tested"),
        "response": Column(
            "str",
            '"model" or "exact posterior" (log-odds of the task\'s answer), or a latent: site, role and id',
        ),
        "arms": Column("str", "arms compared"),
        "estimate": Column("float", "the quantity that `meaning` names"),
        "low": Column("float", "lower end of its 95 % interval over prompts"),
        "high": Column("float", "upper end"),
        "meaning": Column("str", "what the estimate is, with the value that Bayes predicts"),
        "verdict": Column("str", "the answer in words"),
        "reason": Column("str", "why it is undefined; empty otherwise"),
    }


class LatentAccountTable(Table):
    """One row per short-listed latent and account, fitted to all arms at once; see AccountTable."""

    KEY = ("site", "role", "latent", "account")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "site, by its TransformerLens name"),
        "role": Column("str", "token of each example"),
        "latent": Column("int", "latent id"),
        "account": Column("str", "its name"),
        "behind": Column("float", "held-out log-likelihood behind the best account, nats per prompt"),
        "behind_low": Column("float", "lower end of its 95 % interval over prompts"),
        "behind_high": Column("float", "upper end"),
        "parameter": Column("str", "its fitted parameters"),
        "r2": Column("float", "share of the arms' mean pre-activations that it explains, held-out prompts"),
        "named": Column(
            "bool", "whether it is the simplest of those that the data do not separate from the best"
        ),
        "arms": Column("str", "arms compared"),
    }


class AccountTable(Table):
    """One row per account of growth, fitted to all arms at once and judged on held-out prompts."""

    KEY = ("account",)
    COLUMNS: ClassVar[dict[str, Column]] = {
        "account": Column("str", "its name"),
        "behind": Column("float", "held-out log-likelihood behind the best account, nats per prompt"),
        "behind_low": Column("float", "lower end of its 95 % interval over prompts"),
        "behind_high": Column("float", "upper end"),
        "parameter": Column("str", "its fitted parameters"),
        "r2": Column("float", "share of the arms' mean log-odds that it explains on the held-out prompts"),
        "says": Column("str", "what the account says, in words"),
    }


class ConfidenceTable(Table):
    """Two rows per (site, latent, concept): over all rows at `lab`, and over those where it is active.

    Every r is a rank correlation of the latent's activation. Both partial ones hold x, the number of examples
    seen and the concept's own label fixed.
    """

    KEY = ("site", "latent", "concept", "over")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "hook name of the site"),
        "latent": Column("int", "latent of the SAE at that site"),
        "concept": Column("str", "the concept whose label is held fixed"),
        "over": Column("str", "all rows or active rows (prompt x example at lab, x and y numbers)"),
        "n_rows": Column("int", "rows used"),
        "n_prompts": Column("int", "prompts with a row that was used"),
        "r": Column("float", "Spearman's, with the log-probability that the model gave the label shown"),
        "r_low": Column("float", "2.5 % bound of `r`, prompts resampled"),
        "r_high": Column("float", "97.5 % bound of `r`, prompts resampled"),
        "r_given_magnitude": Column("float", "the same with y, x, example number and label held fixed"),
        "r_given_magnitude_low": Column("float", "2.5 % bound of `r_given_magnitude`, prompts resampled"),
        "r_given_magnitude_high": Column("float", "97.5 % bound of `r_given_magnitude`, prompts resampled"),
        "magnitude_r": Column("float", "with y, the log-probability, x, example number and label held fixed"),
        "magnitude_r_low": Column("float", "2.5 % bound of `magnitude_r`, prompts resampled"),
        "magnitude_r_high": Column("float", "97.5 % bound of `magnitude_r`, prompts resampled"),
        "verdict": Column("str", "confidence, magnitude, both or neither; empty where a figure is undefined"),
        "reason": Column("str", "why a figure is NaN, or what kept a name from being given; else empty"),
    }


class TransportTable(Table):
    """Four rows per (site, latent, concept): what reaches later `pre` tokens, by four predictions of it."""

    KEY = ("site", "latent", "concept", "layer", "weights")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "hook name of the site"),
        "latent": Column("int", "latent of the SAE at that site"),
        "concept": Column("str", "the concept for which the latent is shown"),
        "layer": Column("int", "block whose attention reads the site"),
        "weights": Column(
            "str", "prediction: attention, equal, or attention with the mean z or with other prompts' z"
        ),
        "slope": Column("float", "of what the heads write along the latent's image, on the predicted part"),
        "r2": Column("float", "squared correlation of the two over (prompt, query)"),
        "r2_low": Column("float", "2.5 % bound of `r2`, prompts resampled"),
        "r2_high": Column("float", "97.5 % bound of `r2`, prompts resampled"),
        "attention_minus_equal": Column("float", "r2 minus that of equal weights; on the row of attention"),
        "attention_minus_equal_low": Column("float", "2.5 % bound of it, the same prompts resampled in both"),
        "attention_minus_equal_high": Column("float", "97.5 % bound of it, likewise"),
        "lab_attention": Column("float", "mean attention of a query to all earlier labels, over the heads"),
        "n_rows": Column("int", "(prompt, query) pairs used"),
        "n_prompts": Column("int", "prompts used"),
        "reason": Column("str", "why a figure is NaN, or why it says little; else empty"),
    }


VERDICTS = ("none", "grows", "falls")
"""Verdicts of the detection gate; "none" also where nothing could be tested (see the row's reason)."""


class GrowthTable(Table):
    """One row per site, role and latent: does its paired trajectory T − S rise with the examples seen?"""

    KEY = ("site", "role", "latent")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "site, by its TransformerLens name"),
        "role": Column("str", "token of each example"),
        "latent": Column("int", "latent id"),
        "slope": Column(
            "float", "mean over prompts of the slope of T − S, activation × decoder norm per example"
        ),
        "ci_low": Column("float", "lower end of its 95 % t interval over prompts"),
        "ci_high": Column("float", "upper end"),
        "p_value": Column("float", "one-sided p for growth; near 1 speaks for a fall"),
        "q_value": Column(
            "float", "smallest q at which the study calls this latent, in the direction of its slope"
        ),
        "n_prompts": Column("int", "prompt pairs"),
        "n_active": Column("int", "prompt pairs in which the latent is active in either arm"),
        "verdict": Column("str", "none, grows or falls"),
        "reason": Column("str", "why an undefined statistic is NaN; empty otherwise"),
    }

    def significant(self, q: float = 0.05) -> GrowthTable:
        """The rows, growing or falling, that hold at false discovery rate `q`."""
        return self.where(self["q_value"] <= q)

    def growing(self) -> GrowthTable:
        """The rows whose verdict is "grows"."""
        return self.where(self["verdict"] == "grows")

    @property
    def latent_ids(self) -> Ints:
        """Distinct latents of the rows, sorted; meaningful for the rows of one site."""
        return np.unique(self["latent"])


class BeliefTable(Table):
    """One row per belief, arm and number of examples seen, read at `pre`; means over prompts."""

    KEY = ("belief", "arm", "n_seen")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "belief": Column("str", "one of names.BELIEFS"),
        "arm": Column("str", "arm of the prompts"),
        "n_seen": Column("int", "examples seen"),
        "mean": Column("float", "mean of the model's log-odds, nats"),
        "ci_low": Column("float", "lower end of its 95 % prompt-bootstrap interval, nats"),
        "ci_high": Column("float", "upper end, nats"),
        "exact_mean": Column("float", "mean of the exact posterior's log-odds on the same prompts, nats"),
        "probability": Column("float", "mean of the model's probability"),
        "probability_low": Column("float", "lower end of its 95 % prompt-bootstrap interval"),
        "probability_high": Column("float", "upper end"),
        "exact_probability": Column("float", "mean of the exact posterior's probability on the same prompts"),
        "n_prompts": Column("int", "prompts on which the belief is defined"),
        "reason": Column("str", "why a value is NaN; empty otherwise"),
    }


class AgreementTable(Table):
    """One row per arm and belief: the model's log-odds on the exact ones, over prompts and examples."""

    KEY = ("arm", "belief")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "arm": Column("str", "arm of the prompts"),
        "belief": Column("str", "one of names.BELIEFS, or `task`: P(the task) fitted with guess and lapse"),
        "slope": Column("float", "1 for an exact learner; below 1 the model moves less than it should"),
        "slope_low": Column("float", "lower end of its 95 % prompt-bootstrap interval"),
        "slope_high": Column("float", "upper end"),
        "intercept": Column("float", "the model's log-odds where the exact ones are 0, nats"),
        "r": Column("float", "correlation"),
        "n_prompts": Column("int", "prompts with at least one finite pair"),
        "goal_met": Column("bool", "whether slope is 1 ± .05 and r at least .98"),
        "reason": Column("str", "why the values are NaN; empty otherwise"),
    }


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


class LensTable(Table):
    """What the residual would answer if the model ended there: one row per role, layer and metric."""

    KEY = ("role", "layer", "n_seen", "metric")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "role": Column("str", "token of the query whose residual is read; after `pre` the label is in view"),
        "layer": Column(
            "int", "block whose resid_pre is read, 0 for the embedding; n_blocks, the last resid_post"
        ),
        "n_seen": SweepTable.COLUMNS["n_seen"],
        "metric": Column(
            "str",
            '"task on own x" = P(f(x_B)), "copy" = P(f(x_A)), "top-1 task on own x" and "top-1 copy" = share '
            'of prompts whose most probable answer that is, "log-odds of <belief>"',
        ),
        "scale": Column("str", '"probability" or "nats"'),
        "value": Column("float", "the metric through the final norm and unembedding, mean over prompts"),
        "ci_low": Column("float", "lower end of its interval"),
        "ci_high": Column("float", "upper end of its interval"),
        "n_prompts": Column("int", "prompts averaged"),
    }


class HeadScoreTable(Table):
    """Every head at the query's `pre`: what it writes and where it looks; one row per layer and head."""

    KEY = ("layer", "head", "n_seen")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "layer": Column("int", "block"),
        "head": Column("int", "head"),
        "reference_layer": Column(
            "int",
            "block whose resid_pre the score is taken against; a head in it or later writes nothing into it",
        ),
        "n_seen": Column("int", "examples in the context"),
        "score": Column(
            "float",
            "dot of the head's output and the reference / the run's final-norm scale, mean over prompts",
        ),
        "score_low": Column("float", "lower end of its interval"),
        "score_high": Column("float", "upper end of its interval"),
        "attribution": Column(
            "float",
            "what the head's output adds to logit f(x_B) − mean logit of the numbers 0–999, with the final "
            "norm frozen at the run's own scale; nats, mean over prompts",
        ),
        "label_mass": Column("float", "attention to the y tokens of the examples, mean over prompts"),
        "label_mass_low": Column("float", "lower end of its interval"),
        "label_mass_high": Column("float", "upper end of its interval"),
        "label_share": Column("float", "mean label_mass / mean attention outside BOS; NaN where that is 0"),
        "own_x_mass": Column("float", "attention to the query's x, mean over prompts"),
        "bos_mass": Column("float", "attention to BOS, mean over prompts"),
        "n_prompts": Column("int", "prompts averaged"),
        "reason": Column("str", "why a value of the row is NaN; empty otherwise"),
    }


class ProbeTable(Table):
    """One row per (site, role, concept, representation, k); every AUROC is of held-out tasks."""

    KEY = ("site", "role", "concept", "representation", "k")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "hook name of the site"),
        "role": Column("str", "token of the example that was read"),
        "concept": Column("str", "what was read"),
        "representation": Column("str", "what it was read from, or the control"),
        "k": Column("int", "features that the probe may use; -1: all"),
        "auroc": Column("float", "P(higher on a positive than on a matched negative), mean over folds"),
        "ci_low": Column("float", "2.5 % bound of `auroc`, a t interval over folds; approximate"),
        "ci_high": Column("float", "97.5 % bound of `auroc`, likewise"),
        "minus_dense": Column("float", "AUROC minus that of the dense probe, mean over folds"),
        "minus_dense_low": Column("float", "2.5 % bound of `minus_dense`, a paired t interval over folds"),
        "minus_dense_high": Column("float", "97.5 % bound of `minus_dense`, likewise"),
        "verdict": Column("str", "below dense, as dense or above dense; empty for dense and controls"),
        "n_folds": Column("int", "held-out folds of whole tasks that were measured"),
        "n_rows": Column("int", "rows (prompt x example) used, training and held-out"),
        "n_tasks": Column("int", "tasks used"),
        "reason": Column("str", "why a figure is NaN, or how many folds could not be measured; else empty"),
    }


class QualityTable(Table):
    """One row per SAE, measured on tokens that it was not trained on; `saes.quality` defines each figure."""

    KEY = ("site",)
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "where the SAE reads, by its TransformerLens name"),
        "sae_id": Column("str", "fingerprint of the SAE"),
        "d_sae": Column("int", "number of latents"),
        "k": Column("float", "active latents that the SAE allows per token; NaN where it sets no number"),
        "l0": Column("float", "mean number of active latents per token"),
        "fvu": Column("float", "fraction of variance unexplained, over all measured tokens"),
        "fvu_pre": Column("float", "the same over the `pre` positions only, about their own mean"),
        "ce_base": Column("float", "next-token cross-entropy of the model as it is, nats per token"),
        "ce_spliced": Column("float", "the same with the site replaced by its reconstruction"),
        "ce_zeroed": Column("float", "the same with the site set to zero"),
        "ce_recovered": Column("float", "(ce_zeroed − ce_spliced) / (ce_zeroed − ce_base), all next tokens"),
        "ce_recovered_pre": Column("float", "the same over predictions made at `pre` only"),
        "kl": Column("float", "KL(model ‖ model with the reconstruction), nats per prediction"),
        "kl_pre": Column("float", "the same over predictions made at `pre` only"),
        "dead": Column("float", "fraction of latents active on none of the measured tokens"),
        "n_tokens": Column("int", "tokens measured"),
        "mismatch": Column("str", "in what the SAE does not fit the model, used all the same; else empty"),
        "reason": Column("str", "why a figure is NaN; empty when none is"),
    }


class FidelityTable(Table):
    """One row per SAE and role, the role `all` standing for every measured token."""

    KEY = ("site", "role")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "where the SAE reads, by its TransformerLens name"),
        "sae_id": Column("str", "fingerprint of the SAE"),
        "role": Column("str", "which token of each example; `all` for every measured token"),
        "l0": Column("float", "mean number of active latents per token"),
        "fvu": Column("float", "fraction of variance unexplained, about the role's own mean"),
        "kl": Column("float", "KL(model ‖ model with the reconstruction) of predictions made there, nats"),
        "ce_base": Column("float", "next-token cross-entropy there of the model as it is, nats"),
        "ce_spliced": Column("float", "the same with the site replaced by its reconstruction everywhere"),
        "ce_zeroed": Column("float", "the same with the site set to zero everywhere"),
        "ce_recovered": Column("float", "(ce_zeroed − ce_spliced) / (ce_zeroed − ce_base)"),
        "n_tokens": Column("int", "tokens measured"),
        "reason": Column("str", "why a figure is NaN; empty when none is"),
    }


class DensityTable(Table):
    """Histogram of latents by density, one row per SAE and bin; dead latents in the first, `high` 0."""

    KEY = ("site", "low")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "where the SAE reads, by its TransformerLens name"),
        "sae_id": Column("str", "fingerprint of the SAE"),
        "low": Column("float", "densities above this (share of measured tokens on which a latent is active)"),
        "high": Column("float", "up to and including this"),
        "n_latents": Column("int", "latents in the bin"),
    }


_ABLATED = Column("str", "heads and layers whose output z is replaced, all in one run")
_KIND = Column("str", "by what: zero, the mean over length-matched recipients, or resample, the prompt's own")
_PLACE = Column("str", "where: the query's `pre`, or all positions")
_BELIEF = Column("str", "which read-out of the logits, in log-odds")
_PROMPTS = Column("int", "prompts averaged")
_LOW, _HIGH = Column("float", "lower end of its interval"), Column("float", "upper end of its interval")
_REASON = Column("str", "why a value of the row is NaN, or what keeps it from being plain; empty otherwise")


class DirectTable(Table):
    """Direct effects of an ablation at the query's `pre` of A*: one row per component and belief."""

    KEY = ("ablated", "kind", "place", "reader", "part", "component", "n_seen", "belief")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "ablated": _ABLATED,
        "kind": _KIND,
        "place": _PLACE,
        "reader": Column(
            "int", "layer whose residual the outputs are put into; n_blocks stands for the final norm"
        ),
        "part": Column(
            "str",
            '"total" (TE), "ablated" (DE, these heads together), "compensation" (CE = TE − DE), '
            '"later heads", "later MLPs", "later" (both together), the first and last also "…, given '
            'the loss"; then one component each: "ablated head", "later head", "later MLP"',
        ),
        "component": Column("str", "the single component, `L3H1` or `L3.mlp`; empty for a sum"),
        "layer": Column("int", "its block; -1 for a sum"),
        "head": Column("int", "its head; -1 for an MLP or a sum"),
        "n_seen": Column("int", "examples in the context"),
        "belief": _BELIEF,
        "base": Column("float", "mean log-odds of A* without the ablation, nats"),
        "effect": Column(
            "float",
            "log-odds with only this component's own output at `pre` as in the ablated run − base, mean; "
            "given the loss: log-odds of the ablated run − those with these outputs as in A*",
        ),
        "ci_low": _LOW,
        "ci_high": _HIGH,
        "ratio": Column(
            "float",
            "effect / DE, a ratio of means; of the compensation, −1 is a loss wholly made up and 0 is none; "
            "NaN where |DE| is below 1 nat or its interval includes 0",
        ),
        "ratio_low": _LOW,
        "ratio_high": _HIGH,
        "n_prompts": _PROMPTS,
        "reason": _REASON,
    }


class RedundancyTable(Table):
    """Heads ablated together against one at a time, in A*: one row per set and belief."""

    KEY = ("ablated", "kind", "place", "n_seen", "belief")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "ablated": _ABLATED,
        "kind": _KIND,
        "place": _PLACE,
        "n_units": Column("int", "entries of the set (heads, or layers) that are also ablated alone"),
        "n_seen": Column("int", "examples in the context"),
        "belief": _BELIEF,
        "base": Column("float", "mean log-odds of A* without an ablation, nats"),
        "joint": Column("float", "effect of the whole set, nats"),
        "joint_low": _LOW,
        "joint_high": _HIGH,
        "singles": Column("float", "sum of the effects of its entries ablated alone, nats"),
        "singles_low": _LOW,
        "singles_high": _HIGH,
        "index": Column(
            "float",
            "joint − singles, nats of log-odds: below 0 the entries stand in for each other (redundant), "
            "above 0 they need each other (a chain), at 0 they add up",
        ),
        "index_low": _LOW,
        "index_high": _HIGH,
        "span": Column("float", "mean(A* − B), un-ablated: what the context is worth to the belief, nats"),
        "n_prompts": _PROMPTS,
        "reason": _REASON,
    }


class RedundancyLadderTable(Table):
    """Ablate what carries the task, sweep again, ablate what took over: one row per step from 0, intact."""

    KEY = ("unit", "kind", "place", "belief", "step")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "step": Column("int", "how many times something was added to the ablated set; 0 is the intact model"),
        "unit": Column("str", '"layer" or "heads": what a step adds'),
        "added": Column("str", "what this step added; empty at step 0"),
        "ablated": _ABLATED,
        "kind": _KIND,
        "place": _PLACE,
        "recipient": Column("str", 'run B, un-ablated: "zero examples", or the length-matched S or R arm'),
        "n_seen": Column("int", "examples in the donor's context"),
        "belief": _BELIEF,
        "first_layer": Column(
            "float",
            "L*: first layer whose residual at `pre`, from the ablated donor, has NE ≥ 0.5; NaN where none",
        ),
        "first_low": Column("float", "lower end of its interval; NaN where no layer works there"),
        "first_high": Column("float", "upper end of its interval; NaN where no layer works there"),
        "ne": Column("float", "NE = mean(patched − B) / mean(A* − B) at L*; the largest where L* is NaN"),
        "ne_low": _LOW,
        "ne_high": _HIGH,
        "own": Column("float", "P(f(x_B)) of the patched recipient there, mean"),
        "copy": Column("float", "P(f(x_A)) of the patched recipient there, mean"),
        "before_layer": Column("float", "L* of the step before; NaN at step 0"),
        "ne_before": Column("float", "NE that is left at that layer"),
        "ne_before_low": _LOW,
        "ne_before_high": _HIGH,
        "donor": Column(
            "float", "P(f(x_A)), the ablated donor's belief in its own answer; mean over prompts"
        ),
        "donor_low": _LOW,
        "donor_high": _HIGH,
        "n_controls": Column("int", "control sets: as many other heads of the same layers, or other layers"),
        "control_ne_before": Column("float", "NE left at `before_layer` under a control set, mean over sets"),
        "control_ne_least": Column("float", "least of them"),
        "control_ne_greatest": Column("float", "greatest of them"),
        "control_moved": Column(
            "float", "share of control sets whose L* is later than `before_layer`, or is gone"
        ),
        "control_donor": Column("float", "P(f(x_A)) of the donor under a control set, mean over sets"),
        "total": Column("float", "effect of the ablation on A*'s belief (TE), nats"),
        "direct": Column("float", "direct effect of the ablated heads (DE), nats"),
        "later_heads": Column("float", "direct effect of the change in all later heads together, nats"),
        "later_heads_low": _LOW,
        "later_heads_high": _HIGH,
        "later_heads_given_loss": Column(
            "float", "the same given the loss: what that is worth to the ablated run"
        ),
        "later_heads_given_loss_low": _LOW,
        "later_heads_given_loss_high": _HIGH,
        "later": Column("float", "direct effect of the change in all later heads and MLPs together, nats"),
        "later_low": _LOW,
        "later_high": _HIGH,
        "verdict": Column(
            "str",
            'of the set against the intact model: "delay", "backup", "both", "neither" or "undecided"; empty '
            "at step 0",
        ),
        "n_prompts": _PROMPTS,
        "reason": _REASON,
    }


_PATCH = (
    '"base" = B, "A*", and patches of B: "full activation", "all latents" (B\'s error kept), "error only", '
    '"given latents"'
)


class ResponseTable(Table):
    """Response curve: one row per site, patch and x."""

    KEY = ("task", "site", "patch", "latents", "recipient", "n_seen", "x")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "task": Column("str", "spec of the donor's rule, f"),
        "site": Column("str", "what is patched at the query's `pre`; of base and A*, what they stand beside"),
        "patch": Column("str", _PATCH),
        "latents": Column(
            "str", "ids of the given latents, patched at once, separated by spaces; else empty"
        ),
        "recipient": Column("str", 'run B: "zero examples", or the length-matched "S arm" or "R arm"'),
        "n_seen": Column("int", "examples in the donor's context"),
        "x": Column("int", "run B's query"),
        "answer": Column("str", "the task's own answer to it, f(x)"),
        "scaled": Column(
            "str", "a·x for a task a·x + b; empty without a slope or where it is not among 0–999"
        ),
        "n_donors": Column("int", "pairs of runs with this x"),
        "mean": Column("float", "E[y | x, y a number] = Σ y P(y) / Σ P(y) over y = 0–999, mean over donors"),
        "sd": Column("float", "standard deviation of E[y | x, y a number] over donors; NaN with one donor"),
        "top_1": Column("str", "the answer of the largest P, P averaged over donors"),
        "rank": Column("int", "1 + answers of larger P than f(x)"),
        "rank_scaled": Column("float", "1 + answers of larger P than a·x; NaN where `scaled` is empty"),
        "p_answer": Column("float", "P(f(x)), mean over donors"),
        "p_scaled": Column("float", "P(a·x), mean over donors; NaN where `scaled` is empty"),
        "p_copy": Column(
            "float",
            "P(an answer of the donors that lent values); of f(x_A) for an instance, mean over donors",
        ),
        "p_number": Column("float", "P(any number of 0–999), mean over donors"),
        "reason": Column("str", "why a value of the row is NaN; empty otherwise"),
    }


class ResponseFitTable(Table):
    """Response curve in a few numbers: one row per site and patch, intervals a 95 % bootstrap over x."""

    KEY = ("task", "site", "patch", "latents", "recipient", "n_seen")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "task": ResponseTable.COLUMNS["task"],
        "site": ResponseTable.COLUMNS["site"],
        "patch": ResponseTable.COLUMNS["patch"],
        "latents": ResponseTable.COLUMNS["latents"],
        "recipient": ResponseTable.COLUMNS["recipient"],
        "n_seen": ResponseTable.COLUMNS["n_seen"],
        "n_x": Column("int", "points of the curve"),
        "slope": Column("float", "least-squares slope of E[y | x, y a number] on x"),
        "slope_low": Column("float", "lower end of its interval"),
        "slope_high": Column("float", "upper end of its interval"),
        "intercept": Column("float", "value of the fitted line at x = 0"),
        "intercept_low": Column("float", "lower end of its interval"),
        "intercept_high": Column("float", "upper end of its interval"),
        "slope_change": Column("float", "slope − slope of base, x resampled together; 0 for base itself"),
        "slope_change_low": Column("float", "lower end of its interval"),
        "slope_change_high": Column("float", "upper end of its interval"),
        "top_1_answer": Column("float", "share of x whose top-1 answer is f(x)"),
        "top_5_answer": Column("float", "share of x with f(x) among the five most probable answers"),
        "top_1_scaled": Column("float", "share of x whose top-1 answer is a·x; NaN for a task without slope"),
        "top_5_scaled": Column("float", "share of x with a·x among the five; NaN for a task without slope"),
        "top_1_odd": Column("float", "share of x whose top-1 answer is an odd number"),
        "reason": Column("str", "why a value of the row is NaN; empty otherwise"),
    }


_WAY = (
    "\"sufficiency\": B receives A's values; \"necessity\": A* (A's context, B's query) receives B's, which "
    "takes from the belief"
)


class SetTable(Table):
    """Sets of latents moved together: one row per way, kind of set, size and belief."""

    KEY = ("site", "role", "direction", "kind", "size", "chosen_for", "belief")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "where the decoder directions are added"),
        "role": PatchTable.COLUMNS["role"],
        "direction": Column("str", _WAY),
        "kind": Column(
            "str",
            'how members were chosen, on the screening half: "by own effect" (largest single effects first), '
            '"greedy" (each adds most to those before it), "all latents"; beside them "neurons" (of the MLP '
            'that writes here, by own effect), "difference of means" and "full activation"',
        ),
        "size": Column("int", "members; 1 for the difference of means, 0 for the full activation"),
        "members": Column("str", "their ids, in the order they were chosen; empty beyond 64"),
        "chosen_for": Column("str", "the belief by which members were chosen"),
        "belief": Column("str", "which read-out of the logits, in log-odds"),
        "n_prompts": Column("int", "prompts of the test half"),
        "base": Column("float", "mean log-odds of the receiver, nats"),
        "effect": Column("float", "mean of patched − base over prompts, nats"),
        "ci_low": Column("float", "lower end of its interval"),
        "ci_high": Column("float", "upper end of its interval"),
        "normalised": Column(
            "float", "effect / (other run − receiver), a ratio of means; NaN where the guard fails"
        ),
        "normalised_low": Column("float", "lower end of its interval"),
        "normalised_high": Column("float", "upper end of its interval"),
        "share_of_full": Column(
            "float", "effect / effect of the full activation there, a ratio of means; NaN below 1 nat"
        ),
        "share_low": Column("float", "lower end of its interval"),
        "share_high": Column("float", "upper end of its interval"),
        "screen_share": Column(
            "float",
            "share of the full activation's effect on `chosen_for`, screening half: by it sizes are chosen",
        ),
        "n_controls": Column(
            "int", "sets of as many matched random latents, each pushed as far; 0 where none was drawn"
        ),
        "control_share": Column("float", "mean share_of_full of these sets"),
        "control_low": Column("float", "2.5th percentile of it over the sets"),
        "control_high": Column("float", "97.5th percentile"),
        "control_p": Column("float", "(1 + sets at least as far from 0) / (1 + n_controls)"),
        "reason": Column("str", "why a value of the row is NaN; empty otherwise"),
    }


class ControlTable(Table):
    """The same latents elsewhere, from elsewhere, or backwards: one row per latent, control and belief."""

    KEY = ("site", "role", "latents", "control", "belief")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "where the latent's decoder direction is added"),
        "role": PatchTable.COLUMNS["role"],
        "latents": Column("str", "the latent's id, or those of a greedy set"),
        "control": Column(
            "str",
            '"own" (the patch itself), "wrong role <role>" (the same addition at another token), "wrong task '
            '<task>" (donor values of another task), "sign flip" (the addition subtracted)',
        ),
        "belief": Column("str", "which read-out of the logits, in log-odds"),
        "n_prompts": Column("int", "prompts of the test half"),
        "effect": Column("float", "mean of patched − base over prompts, nats"),
        "ci_low": Column("float", "lower end of its interval"),
        "ci_high": Column("float", "upper end of its interval"),
        "reason": Column("str", "why a value is NaN, or why the control cannot tell; empty otherwise"),
    }


class ScreenTable(Table):
    """How far a linear screen is from the exact effects: one row per site, role and belief."""

    KEY = ("site", "role", "belief")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "where the decoder directions are added"),
        "role": PatchTable.COLUMNS["role"],
        "belief": Column("str", "which read-out of the logits, in log-odds"),
        "n_effects": Column("int", "latents × prompts compared"),
        "r2": Column(
            "float", "1 − Σ(exact − linear)² / Σ(exact − mean exact)²; negative where a constant does better"
        ),
        "slope": Column("float", "least-squares slope of exact on linear effects"),
        "worst_miss": Column("float", "largest |exact − linear| of a single patch, nats"),
        "worst_latent": Column("int", "the latent in which it is"),
        "worst_exact": Column("float", "that patch's exact effect, nats"),
        "worst_linear": Column("float", "that patch's linear effect, nats"),
        "top_found": Column(
            "float",
            "share of the 10 latents of largest exact mean effect among the linear screen's 10; NaN up to 10",
        ),
        "reason": Column("str", "why a value of the row is NaN; empty otherwise"),
    }


class ShapeTable(Table):
    """One row per short-listed latent: the shape of its mean paired pre-activation, on the shape prompts."""

    KEY = ("site", "role", "latent")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "site, by its TransformerLens name"),
        "role": Column("str", "token of each example"),
        "latent": Column("int", "latent id"),
        "n_prompts": Column("int", "prompt pairs of the shape split"),
        "growth": Column(
            "float", "mean paired rise from the first to the last example, pre-activation × decoder norm"
        ),
        "snr": Column("float", "that rise ÷ the standard deviation of one prompt's value at an example"),
        "exponent": Column("float", "p̂ of a + b·n^p"),
        "exponent_low": Column("float", "lower end of its 90 % profile interval"),
        "exponent_high": Column("float", "upper end"),
        "best_curve": Column("str", "family with the smallest BIC"),
        "curve_parameter": Column("str", "its parameter"),
        "step_margin": Column("float", "BIC of the best step − BIC of the line; above 0 the step loses"),
        "lack_of_fit_p": Column("float", "Hotelling's p that the power curve is right"),
        "own_steps_p": Column("float", "p that prompts climb straight, against steps at places of their own"),
        "certified": Column("bool", "whether the additive certificate is granted"),
        "reason": Column("str", "why it is not; empty otherwise"),
    }


class ConfirmTable(Table):
    """One row per short-listed latent: the paired slope on prompts that no choice was made on."""

    KEY = ("site", "role", "latent")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "site, by its TransformerLens name"),
        "role": Column("str", "token of each example"),
        "latent": Column("int", "latent id"),
        "n_prompts": Column("int", "prompt pairs of the confirm split"),
        "discovery_slope": Column("float", "paired slope that put it on the list, per example"),
        "confirm_slope": Column("float", "paired slope here, gated activation × decoder norm per example"),
        "confirm_low": Column("float", "lower end of its 95 % t interval over prompts"),
        "confirm_high": Column("float", "upper end"),
        "confirm_p": Column("float", "one-sided p of growth, Holm over the short list"),
        "shrinkage": Column("float", "confirm ÷ discovery slope"),
        "own_slope": Column("float", "slope of the task's arm alone, no control subtracted"),
        "own_low": Column("float", "lower end of its 95 % t interval over prompts"),
        "reason": Column("str", "why a value is NaN; empty otherwise"),
    }


class SpecificityTable(Table):
    """One row per site, role, way, concept, latent and belief; intervals are 95 % bootstraps over prompts.

    Margins stand in the row of the concept's own belief alone.
    """

    KEY = ("site", "role", "way", "concept", "latent", "belief")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "hook name of the site"),
        "role": Column(
            "str",
            "token at which the latent is moved: of the query or the last example before it; for "
            '"ablate all" of every example up to there',
        ),
        "way": Column(
            "str",
            '"ablate": set to 0 in A* at one token; "ablate all": the same at that token of every example; '
            '"mean": set to B\'s value in A*; "patch": set to A\'s value in B',
        ),
        "concept": Column("str", "what the latent was labelled with"),
        "label": Column("str", 'the label that was granted, "candidate", or "joint" for latent -1'),
        "latent": Column("int", "latent id; -1: all chosen latents of the concept moved together"),
        "belief": Column("str", "which read-out of the logits, in log-odds"),
        "own": Column("bool", "whether that is the belief that the concept names"),
        "base": Column("float", "mean log-odds without the change, nats"),
        "effect": Column("float", "mean of changed - base over prompts, nats"),
        "ci_low": Column("float", "lower end of the effect's interval"),
        "ci_high": Column("float", "upper end of the effect's interval"),
        "control_sd": Column(
            "float", "root mean square of the controls' mean effects on this belief, nats; pushed as far"
        ),
        "standardised": Column("float", "effect / control_sd"),
        "control_p": Column("float", "(1 + controls whose |mean effect| is as large) / (1 + n_controls)"),
        "n_controls": Column("int", "matched random live latents (or sets of as many) compared with"),
        "against": Column("str", "beliefs that the margin is taken over, separated by spaces"),
        "rival": Column("str", "the one of these that is moved most, nats"),
        "margin": Column("float", "|effect| on own - largest |effect| on a rival, nats"),
        "margin_low": Column("float", "lower end of its interval; the largest is taken in each resample"),
        "margin_high": Column("float", "upper end of its interval"),
        "specific": Column("bool", "margin_low > 0, by more than float32 resolves"),
        "margin_standardised": Column("float", "the same margin of standardised effects"),
        "margin_standardised_low": Column("float", "lower end of its interval, control_sd held fixed"),
        "margin_standardised_high": Column("float", "upper end of its interval"),
        "specific_standardised": Column("bool", "the same of the standardised margin"),
        "n_active": Column("int", "prompts in which the change is not 0 (at some example)"),
        "n_prompts": Column("int", "prompts averaged"),
        "reason": Column("str", "why a value of the row is NaN, or its effect exactly 0; empty otherwise"),
    }


class StabilityTable(Table):
    """One row per labelled (site, role, latent, concept) and other set of SAEs."""

    KEY = ("site", "role", "latent", "concept", "other")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "hook name of the site"),
        "role": Column("str", "token of the example that was read"),
        "latent": Column("int", "labelled latent of the SAE at that site"),
        "concept": Column("str", "what it was asked"),
        "other": Column("str", "name of the other set of SAEs"),
        "other_d_sae": Column("int", "latents of the other SAE at that site; -1 when it has none there"),
        "match": Column("int", "latent of the other SAE that correlates most; -1 when there is none"),
        "correlation": Column("float", "Pearson correlation of the two activations over the same rows"),
        "match_label": Column("str", "the match's own label for the same concept; empty when it has none"),
        "stable": Column("bool", "correlation is at least `least` and the match is granted the same label"),
        "reason": Column("str", "why there is no match, or why the match is not stable; empty when it is"),
    }


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


class TuningTable(Table):
    """One row per (site, role, latent, of): the curve of mean activation by a number, as line and waves."""

    KEY = ("site", "role", "latent", "of")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "hook name of the site"),
        "role": Column("str", "token of the example that was read"),
        "latent": Column("int", "latent of the SAE at that site"),
        "of": Column("str", "the number: y, x or y-2x"),
        "n_values": Column("int", "values of the number on the curve"),
        "r2": Column("float", "share of the curve's variance that line and waves explain, values by rows"),
        "null_q95": Column("float", "95 % quantile of r2 when the order of the values is random"),
        "p_value": Column("float", "(1 + random orders with r2 as large) / (1 + random orders)"),
        "q_value": Column("float", "Benjamini-Hochberg over the rows that were fitted together"),
        "linear_share": Column("float", "share of the curve's variance that a line alone explains"),
        "parity_share": Column(
            "float", "share lost without the period 2; NaN where it is no column of its own"
        ),
        "best_period": Column("float", "period whose waves lose most when left out, units of the number"),
        "best_share": Column("float", "share lost when that period is left out"),
        "reason": Column("str", "why a figure is undefined, or empty"),
    }


class SubspaceTable(Table):
    """One row per (site, role, representation, of, period): a wave read linearly on held-out tasks."""

    KEY = ("site", "role", "representation", "of", "period")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "hook name of the site"),
        "role": Column("str", "token of the example that was read"),
        "representation": Column("str", "what it was read from: latents or activation"),
        "of": Column("str", "the number: y, x or y-2x"),
        "period": Column("float", "period of the wave, units of the number"),
        "r2": Column("float", "1 - SSE/SST on held-out tasks, cosine and sine pooled; can be below 0"),
        "p_value": Column("float", "(1 + random relabellings with r2 as large) / (1 + relabellings)"),
        "n_features": Column("int", "features that were read, chosen on the training tasks"),
        "n_for_90": Column("float", "fewest of 1, 2, 4 ... of them that reach 90 % of r2; NaN if r2 <= 0"),
        "n_train": Column("int", "rows (prompt x example) of discovery tasks"),
        "n_held": Column("int", "rows of held-out tasks"),
        "reason": Column("str", "why a figure is undefined, or empty"),
    }


LADDER = (
    "none",
    "grows",
    "grows linearly",
    "grows with evidence",
    "causally additive",
    "accounts for belief",
)
"""Verdicts of a latent, each of which needs all before it; a latent that falls stands beside the ladder."""

FALLS = "falls"
"""Verdict of a latent whose paired trajectory falls: not the hypothesis, but worth a page."""


class VerdictTable(Table):
    """One row per site, role and latent: what each test found, the rung it reaches, and why not the next one.

    The gates behind detection are asked of the short list only; elsewhere their columns are NaN or empty.
    """

    KEY = ("site", "role", "latent")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "site, by its TransformerLens name"),
        "role": Column("str", "token of each example"),
        "latent": Column("int", "latent id"),
        "verdict": Column("str", 'rung of the ladder, or "falls"'),
        "reason": Column("str", "why the verdict is not one rung higher, in words"),
        "slope": Column("float", "discovery: mean paired slope, activation × decoder norm per example"),
        "ci_low": Column("float", "lower end of its 95 % t interval over prompts"),
        "ci_high": Column("float", "upper end"),
        "p_value": Column("float", "discovery: one-sided p for growth, the largest over the controls"),
        "q_value": Column("float", "smallest q at which the study calls it, in the direction of its slope"),
        "n_prompts": Column("int", "prompt pairs of the discovery split"),
        "n_active": Column("int", "of these, pairs in which the latent is active in either arm"),
        "shortlisted": Column("bool", "whether the gates behind detection were asked"),
        "exponent": Column("float", "shape: p̂ of a + b·n^p in the mean paired pre-activation"),
        "exponent_low": Column("float", "lower end of its 90 % profile interval"),
        "exponent_high": Column("float", "upper end"),
        "best_curve": Column("str", "the trajectory model with the smallest BIC"),
        "evidence": Column("float", "Δ pre-activation × decoder norm per nat of label evidence"),
        "evidence_low": Column("float", "lower end of its 95 % interval, clustered by prompt"),
        "evidence_high": Column("float", "upper end"),
        "count": Column("float", "Δ pre-activation × decoder norm per example at no evidence"),
        "dose_effect": Column(
            "float", "nats of the task's answer per natural growth of the latent, at `pre`"
        ),
        "dose_low": Column("float", "lower end of its 95 % interval over prompts"),
        "dose_high": Column("float", "upper end"),
        "control_p": Column("float", "(1 + matched random latents at least as strong) / (1 + their number)"),
        "share": Column("float", "dose effect ÷ the belief's natural growth on the same prompts"),
        "confirm_slope": Column("float", "the paired slope on the confirm split"),
        "confirm_p": Column("float", "its p in the discovered direction, Holm over the short list"),
        "shrinkage": Column("float", "confirm ÷ discovery slope; below 1 the discovery was lucky"),
        "own_slope": Column("float", "confirm: slope of the task's arm alone, no control subtracted"),
        "own_low": Column("float", "lower end of its 95 % t interval over prompts"),
    }

    def growing(self) -> VerdictTable:
        """The rows that grow: any rung above "none"."""
        return self.where(np.isin(self["verdict"], LADDER[1:]))

    def at_least(self, rung: str) -> VerdictTable:
        """The rows at or above a rung of `LADDER`."""
        return self.where(np.isin(self["verdict"], LADDER[LADDER.index(rung) :]))

    @property
    def latent_ids(self) -> Ints:
        """Distinct latents of the rows, sorted; meaningful for the rows of one site."""
        return np.unique(self["latent"])


class FalsifierTable(Table):
    """One row per way in which the claim of additive Bayesian feature growth can fail, and whether it did."""

    KEY = ("falsifier",)
    COLUMNS: ClassVar[dict[str, Column]] = {
        "falsifier": Column("str", "F1 to F8"),
        "question": Column("str", "what was asked, in words"),
        "fired": Column("str", '"fired", "did not fire" or "not tested"'),
        "evidence": Column("str", "the figures it rests on, in one sentence"),
    }
