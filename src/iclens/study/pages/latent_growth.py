"""How does a latent move over the examples, and how far does it get on the ladder? Parts of its page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from iclens.activations import Trajectories
from iclens.core import Site
from iclens.dashboards.records.latent import (
    ArmMeans,
    Curve,
    DoseView,
    LadderView,
    ScaledPosterior,
    TrajectoryView,
)
from iclens.dashboards.text import interval, number
from iclens.prompts.arms import parse_arm
from iclens.results.read import Results
from iclens.schemas import FALLS, LADDER
from iclens.study.pages.latent_rows import ANSWER, LEAST_R2

Row = Mapping[str, Any]


def trajectories(results: Results, site: Site, latents: Sequence[int]) -> dict[int, list[TrajectoryView]]:
    """Latent → its mean activation at each role, in the tested arm and its control, and the test on it."""
    treated, control = results.config.treated, results.config.controls[0]
    ids, norms = np.array(latents, dtype=np.int64), results.decoder_norms[site.short]
    growth = results.table("growth")
    growth = growth[(growth["site"] == site.short) & growth["latent"].isin(latents)]
    growth = growth.set_index(["role", "latent"])
    tests: dict[Any, Any] = {key: row for key, row in growth.to_dict("index").items()}
    views: dict[int, list[TrajectoryView]] = {latent: [] for latent in latents}
    for role in results.roles:
        curves = []
        for arm in (treated, control):
            beliefs, _, _ = results.beliefs_of(arm)
            of = Trajectories.of(
                results.latents(arm, site, role), ids, arm=arm, beliefs=beliefs,
                belief_names=results.config.belief_names, decoder_norm=norms,
            )  # fmt: skip
            summary = of.summary(seed=results.config.prompts.seed)
            curves.append({latent: curve(rows) for latent, rows in summary.groupby("latent")})
        for latent in latents:
            test = tests[role, latent]
            names = ("slope", "ci_low", "ci_high", "q_value", "verdict", "reason")
            task, beside = (found[latent] for found in curves)
            views[latent].append(TrajectoryView(role, task, beside, **{name: test[name] for name in names}))
    return views


def arm_means(results: Results, site: Site, roles: Mapping[int, str]) -> dict[int, list[ArmMeans]]:
    """Latent → its mean activation over the examples in every arm, at its role.

    Args:
        results: the run.
        site: of the latents.
        roles: latent → role.
    """
    norms = results.decoder_norms[site.short]
    found: dict[int, list[ArmMeans]] = {latent: [] for latent in roles}
    for role in dict.fromkeys(roles.values()):
        chosen = np.array([latent for latent, own in roles.items() if own == role], dtype=np.int64)
        for arm in results.arms:
            means = results.latents(arm, site, role).dense(chosen).mean(axis=1) * norms[chosen, None]
            for latent, mean in zip(chosen.tolist(), means.tolist(), strict=True):
                found[latent].append(ArmMeans(arm, parse_arm(arm).meaning, mean))
    return found


def posterior(results: Results) -> tuple[list[float], list[float]]:
    """n_seen and the exact posterior's mean log-odds of the answer in the tested arm; empty where unknown."""
    beliefs = results.table("beliefs")
    rows = beliefs[(beliefs["belief"] == ANSWER) & (beliefs["arm"] == results.arms[0])]
    rows = rows[np.isfinite(rows["exact_mean"])]
    return rows["n_seen"].tolist(), rows["exact_mean"].tolist()


def scaled_posterior(known: tuple[list[float], list[float]], task: Curve) -> ScaledPosterior | None:
    """The exact posterior's log-odds fitted to a latent's means; None where it is unknown or they are flat.

        minimise over a, b:  Σ_n (mean(n) − a − b·LO_exact(n))²

    Args:
        known: n_seen and log-odds, as `posterior` gives them.
        task: the latent's means.
    """
    at = dict(zip(*known, strict=True))
    seen = [n for n in task.n_seen if n in at and math.isfinite(task.at(n))]
    means = np.array([task.at(n) for n in seen])
    if len(seen) < 3 or np.ptp(means) == 0:
        return None
    design = np.column_stack([np.ones(len(seen)), [at[n] for n in seen]])
    weights, *_ = np.linalg.lstsq(design, means, rcond=None)
    fitted = design @ weights
    r2 = 1 - float(((means - fitted) ** 2).sum() / ((means - means.mean()) ** 2).sum())
    return ScaledPosterior(Curve.line(seen, fitted.tolist()), r2)


def ladder(row: Row) -> LadderView:
    """Where a latent stands, from its row of the table `growth`."""
    figures = []
    if math.isfinite(row["confirm_slope"]):
        value = f"{number(row['confirm_slope'])}, Holm p {number(row['confirm_p'])}"
        figures.append(("slope on held-out prompts", value, "per example, after the claim was frozen"))
    if math.isfinite(row["own_slope"]):
        figures.append(("own slope", number(row["own_slope"]), "tested arm alone, no control subtracted"))
    if math.isfinite(row["exponent"]):
        value = f"{number(row['exponent'])} {interval(row['exponent_low'], row['exponent_high'])}"
        figures.append(("exponent", value, "of a + b·n^p; 1 is one equal step per example"))
    if row["best_curve"]:
        figures.append(("best curve", str(row["best_curve"]), "smallest BIC of the curves tried"))
    if math.isfinite(row["evidence"]):
        value = f"{number(row['evidence'])} {interval(row['evidence_low'], row['evidence_high'])}"
        figures.append(
            (
                "step per nat of evidence",
                value,
                f"of a label; a label without any adds {number(row['count'])}",
            )
        )
    if math.isfinite(row["dose_effect"]):
        value = f"{number(row['dose_effect'])} {interval(row['dose_low'], row['dose_high'])} nats"
        figures.append(("effect of its own growth", value, f"control p {number(row['control_p'])}"))
    return LadderView(row["role"], LADDER, row["verdict"], row["reason"], figures)


def doses(dose: pd.DataFrame, curves: pd.DataFrame) -> list[DoseView]:
    """Effects on the answer's log-odds, for each number of examples in context.

    Args:
        dose: the latent's rows of the table `dose`.
        curves: its rows of `dose_curves`.
    """
    views = []
    for row in dose[dose["belief"] == ANSWER].to_dict("records"):
        at = curves[(curves["belief"] == ANSWER) & (curves["n_examples"] == row["n_examples"])]
        pushed = Curve(*(at[name].tolist() for name in ("dose", "effect", "ci_low", "ci_high")))
        judged = "causal" if row["causal"] else str(row["reason"])
        slope = f"{number(row['slope'])} {interval(row['slope_low'], row['slope_high'])}"
        views.append(DoseView(int(row["n_examples"]), pushed, f"{slope} nats per natural growth; {judged}"))
    return views


def follows(accounts: pd.DataFrame) -> list[str]:
    """The account that is named for a latent at each role, and over which arms."""
    found = []
    for role, rows in accounts.groupby("role", sort=False):
        best = rows[rows["named"]].iloc[0]
        at = f", {best['parameter']}" if best["parameter"] else ""
        named = f"{best['account']}{at}, with R² {number(best['r2'])} over arms {best['arms']}"
        if best["r2"] >= LEAST_R2:
            found.append(f"At {role} it follows {named}.")
        else:
            found.append(f"At {role} it follows none of the accounts; the nearest is {named}.")
    return found


def standing(view: TrajectoryView) -> str:
    """Whether a latent grows, and how sure that is, in a sentence."""
    if not math.isfinite(view.q_value):
        return f"Growth was not tested: {view.reason}." if view.reason else "Growth was not tested."
    sure = f"slope {number(view.slope)} {interval(view.ci_low, view.ci_high)}, q {number(view.q_value)}"
    known = [value for value in view.task.mean if math.isfinite(value)]
    alone = f" The task arm alone goes from {number(known[0])} to {number(known[-1])}." if known else ""
    beside = "beside the control arm" if view.verdict in (FALLS, LADDER[0]) else "beyond the control arms"
    said = "does not grow" if view.verdict == LADDER[0] else view.verdict
    return f"At {view.role} it {said} {beside} ({sure}).{alone}"


def curve(rows: pd.DataFrame) -> Curve:
    """A mean with its band, from rows of n_seen, mean, ci_low and ci_high."""
    return Curve(*(rows[name].tolist() for name in ("n_seen", "mean", "ci_low", "ci_high")))
