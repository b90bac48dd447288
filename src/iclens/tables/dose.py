"""What pushing growing latents does to the beliefs.

DoseTable judges each latent, DoseCurveTable holds the curves behind it, ClosureTable and InjectionTable say
how much of the beliefs' growth is accounted for, InteractionTable whether two latents add.
"""

from __future__ import annotations

from typing import ClassVar

from iclens.tables.frame import Column, Table

_EFFECT = "nats of the belief per natural growth of the latent (dose 1), from all doses"


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
        "slope": Column("float", _EFFECT),
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
