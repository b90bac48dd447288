"""Is growth weighted by evidence, and what predicts it? Tables of regressions, tests and accounts."""

from __future__ import annotations

from typing import ClassVar

from iclens.tables.frame import Column, Table


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
