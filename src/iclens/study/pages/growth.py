"""What does the index show about the growth claim? The run's verdicts, arms, accounts and falsifiers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from iclens.dashboards.records.growth import (
    AccountRow,
    AdditiveView,
    ArmCurve,
    FalsifierRow,
    FollowRow,
    InjectionRow,
    RungCount,
)
from iclens.dashboards.records.latent import Curve
from iclens.growth.accounts import ACCOUNTS
from iclens.prompts.arms import parse_arm
from iclens.results.read import Results
from iclens.schemas import LADDER

BELIEF = "exact"
"""The belief that the claim is about: the task's own answer."""


def additive(results: Results) -> AdditiveView:
    """Everything of the run that bears on the claim."""
    accounts = results.table("accounts")
    return AdditiveView(
        arms=arm_curves(results),
        rungs=rung_counts(results.table("growth")),
        accounts=[
            AccountRow(row["account"], row["behind"], row["behind_low"], row["behind_high"], row["says"])
            for row in accounts.sort_values("behind", kind="stable").to_dict("records")
        ],
        accounts_note=accounts_note(results),
        falsifiers=[FalsifierRow(**row) for row in _records(results.table("falsifiers"))],
        follows=follow_rows(results.table("latent_accounts")),
        injections=injection_rows(results),
        injections_note=injections_note(results),
    )


def arm_curves(results: Results) -> list[ArmCurve]:
    """The answer's log-odds by examples seen, arm by arm."""
    beliefs, agreement = results.table("beliefs"), results.table("agreement")
    curves = []
    for arm in results.arms:
        rows = beliefs[(beliefs["belief"] == BELIEF) & (beliefs["arm"] == arm) & (beliefs["n_prompts"] > 0)]
        exact = Curve.line(rows["n_seen"].tolist(), rows["exact_mean"].tolist())
        agree = _records(agreement[(agreement["arm"] == arm) & (agreement["belief"] == BELIEF)])[0]
        known = bool(np.isfinite(exact.mean).any())
        curves.append(
            ArmCurve(
                arm,
                parse_arm(arm).meaning,
                Curve(*(rows[name].tolist() for name in ("n_seen", "mean", "ci_low", "ci_high"))),
                exact if known else None,
                f"model on exact: slope {agree['slope']:.2f}, r {agree['r']:.2f}" if known else "",
            )
        )
    return curves


def rung_counts(growth: pd.DataFrame) -> list[RungCount]:
    """Rows by site and rung."""
    counts = growth.groupby(["site", "verdict"], sort=False).size()
    return [
        RungCount(site, rung, int(counts.get((site, rung), 0)))
        for site in dict.fromkeys(growth["site"].tolist())
        for rung in LADDER
    ]


def follow_rows(accounts: pd.DataFrame) -> list[FollowRow]:
    """How many short-listed rows, latent × role, each account is named for, the most frequent first."""
    says = {account.name: account.says for account in ACCOUNTS}
    named = accounts[accounts["named"]]
    shares = {str(name): rows["r2"].median() for name, rows in named.groupby("account")}
    counts = named["account"].value_counts()
    return [FollowRow(str(name), int(n), says[str(name)], shares[str(name)]) for name, n in counts.items()]


def injection_rows(results: Results) -> list[InjectionRow]:
    """Every part of a site's growth, added after the first number of examples at which latents are pushed."""
    rows = _answer_rows(results, "injections")
    names = ("site", "injected", "effect", "ci_low", "ci_high", "share")
    return [InjectionRow(*(row[name] for name in names)) for row in _records(rows)]


def injections_note(results: Results) -> str:
    """After how many examples growth is added, what it is, and what the answer gains by itself."""
    closure = _answer_rows(results, "closure")
    if closure.empty:
        return ""
    first = closure.iloc[0]
    return (
        f"After {first['n_examples']} examples, what a site gains on other prompts up to the last example is "
        f"added at pre, whole and in parts. The examples themselves raise the answer's log-odds by "
        f"{first['growth']:.2f} nats: what the whole gain does not do there, no sum over its latents can."
    )


def _answer_rows(results: Results, table: str) -> pd.DataFrame:
    found = results.table(table)
    found = found[found["belief"] == BELIEF]
    return found[found["n_examples"] == results.config.pushed_after]


def accounts_note(results: Results) -> str:
    """On which arms the accounts were compared, and whether the best stands out."""
    found = results.facts_of_growth["accounts"]
    arms = f"{len(found['arms'])} arms ({', '.join(found['arms'])})"
    return (
        f"Each account predicts the answer's log-odds in {arms} with shared parameters, fitted on half of "
        f"the prompts and judged on the other half. {found['verdict']}"
    )


def _records(frame: pd.DataFrame) -> list[Any]:
    return frame.to_dict("records")
