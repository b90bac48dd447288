"""VerdictTable and FalsifierTable: how far each latent gets on the ladder, and what refutes the claim."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from iclens.tables.arrays import Ints
from iclens.tables.frame import Column, Table

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
