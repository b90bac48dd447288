"""GrowthTable and BeliefTable: which latents grow with examples, and how beliefs do."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from iclens.tables.arrays import Ints
from iclens.tables.frame import Column, Table

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
