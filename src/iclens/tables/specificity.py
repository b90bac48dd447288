"""SpecificityTable: does a labelled latent move the belief that its concept names more than the others?"""

from __future__ import annotations

from typing import ClassVar

from iclens.tables.frame import Column, Table


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
