"""What does the index of a run show? Its tables as the plain records of the pages; nothing is tested here."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from iclens.dashboards.records.site import BeliefCurve, Curve, Fact, Finding, GrowthCount, QualityRow
from iclens.patching.runs import ZERO
from iclens.prompts.beliefs import BAND
from iclens.results.read import Results
from iclens.schemas import FALLS, LADDER
from iclens.study.pages.latent_rows import ANSWER, Address
from iclens.study.pages.patch_findings import carried, follows, moved
from iclens.study.pages.transform_findings import labelled

MOVED = 0.5
"""Least P(task on B's own x) after a patch for which the task counts as moved."""


def meanings(results: Results) -> dict[str, str]:
    """Every belief's definition in words, the declared ones after the five of every study."""
    task, slope = results.config.prompts.task, results.config.prompts.rule.slope
    band = f"P(|y − {slope}x| ≤ {BAND} | number)" if slope is not None else "undefined: the task has no slope"
    return {
        "numeric": "P(any number)",
        "odd": "P(y odd | number)",
        "double": band,
        "exact": f"P({task} applied to x)",
        "copy": "P(the label of the example just before)",
    } | {belief.name: belief.meaning for belief in results.config.declared}


def provenance(results: Results) -> list[Fact]:
    """What was run."""
    card = results.card
    versions = ", ".join(f"{name} {value}" for name, value in card["versions"].items())
    seeds = ", ".join(f"{name} {value}" for name, value in card["seeds"].items())
    prompts = results.config.prompts
    return [
        Fact("task", prompts.task),
        Fact("prompts", f"{prompts.n_prompts} of {prompts.n_examples} examples in each arm"),
        Fact("arms", ", ".join(prompts.arms)),
        Fact("model", f"{card['model folder']['name']} ({card['model']})"),
        Fact("SAEs", ", ".join(f"{site} {fact['sae_id']}" for site, fact in card["saes"].items())),
        Fact("config", card["config"]),
        Fact("iclens", f"{card['iclens']['version']}, commit {card['iclens']['commit'][:13]}"),
        Fact("versions", f"python {card['python']}, {versions}"),
        Fact("dtype and device", f"{card['dtype']}, {card['device']}"),
        Fact("seeds", seeds),
        Fact("run", results.path.name),
    ]


def quality_rows(quality: pd.DataFrame) -> list[QualityRow]:
    """One record per SAE."""
    return [
        QualityRow(
            site=row["site"], sae_id=row["sae_id"], d_sae=int(row["d_sae"]),
            k=None if math.isnan(row["k"]) else int(row["k"]), l0=row["l0"], fvu=row["fvu"],
            ce_recovered=row["ce_recovered"], ce_recovered_pre=row["ce_recovered_pre"], dead=row["dead"],
            n_tokens=int(row["n_tokens"]), mismatch=row["mismatch"],
        )
        for row in quality.to_dict("records")
    ]  # fmt: skip


def belief_curves(results: Results) -> list[BeliefCurve]:
    """One panel per belief that is defined, that of the task's own answer first."""
    table, treated, control = results.table("beliefs"), results.config.treated, results.config.controls[0]
    words, panels = meanings(results), []
    for belief in sorted(results.config.belief_names, key=lambda belief: belief != ANSWER):
        own, other = (
            table[(table["belief"] == belief) & (table["arm"] == arm)] for arm in (treated, control)
        )
        own = own[own["n_prompts"] > 0]
        if own.empty:
            continue
        exact = Curve.line(own["n_seen"].tolist(), own["exact_mean"].tolist())
        panels.append(
            BeliefCurve(
                belief,
                words[belief],
                model=_curve(own),
                exact=exact if np.isfinite(exact.mean).any() else None,
                control=_curve(other[other["n_prompts"] > 0]),
            )
        )
    return panels


def growth_counts(growth: pd.DataFrame) -> list[GrowthCount]:
    """How many latents grow and fall at each site and role."""
    flags = growth[["site", "role"]].assign(
        tested=growth["q_value"].notna(),
        grows=growth["verdict"].isin(LADDER[1:]),
        falls=growth["verdict"] == FALLS,
    )
    counts = flags.groupby(["site", "role"], sort=False).sum().reset_index()
    return [
        GrowthCount(
            str(row["site"]), str(row["role"]), int(row["tested"]), int(row["grows"]), int(row["falls"])
        )
        for row in counts.to_dict("records")
    ]


def notes(results: Results) -> list[str]:
    """Limits that a reader should know."""
    treated = results.arms[0]
    found = [
        f"Growth is the slope of arm {treated} minus its controls; what rises as a control falls says so.",
        "Logit effects read the direct path from the latent to the unembedding only.",
        "Density, top prompts and histograms come from prompts of the task grid, BOS left out.",
    ]
    if reason := results.beliefs_of(treated)[2]:
        found.append(f"No exact posterior is drawn: {reason}.")
    return found


def cards(address: Address) -> dict[str, Callable[[Results], Finding]]:
    """What each card is about, and what fills it from a run: a verdict in words, and its figures.

    Args:
        address: of a latent's page.
    """
    return {
        "growth": _grown,
        "log-odds": _additive,
        "labels": labelled,
        "the residual": _placed,
        "single latents": partial(moved, address=address),
        "sets of latents": carried,
        "answers by x": follows,
    }


def _grown(results: Results) -> Finding:
    counts, q = growth_counts(results.table("growth")), results.config.growth.q
    tested, grows, falls = (
        sum(getattr(c, name) for c in counts) for name in ("n_tested", "n_grows", "n_falls")
    )
    most = sorted((c for c in counts if c.n_grows), key=lambda c: -c.n_grows)[:3]
    where = ", ".join(f"{c.n_grows} at {c.site} {c.role}" for c in most)
    treated, control = results.config.treated, " and ".join(results.config.controls)
    return Finding(
        "Do latents grow with the examples seen?",
        f"{grows} of {tested} tests grow, {falls} fall" if tested else "not tested",
        f"Paired slope {treated} − {control} over prompts, q ≤ {q} with one error rate for the study. "
        + (f"Most: {where}." if where else "None at any site.")
        + " Growth says nothing about its shape.",
        "latents.html#verdict=grows&sort=-slope",
        "Every latent that grows, steepest first",
    )


def _additive(results: Results) -> Finding:
    fit = results.bayes["exact"]
    model, exact, agree = fit["model"], fit["exact"], fit["agreement"]
    question = "Do the log-odds of the task's answer rise by a constant step per example?"
    if model["lam"] is None:
        return Finding(question, "no fit", f"The fit is undefined: {model['reason']}.")
    span = f"Over examples {model['n_first']} to {model['n_last']}"
    evidence = f"{span}: model λ {_interval(model, 'lam')} nats per example"
    if exact["lam"] is None:
        return Finding(
            question, "no exact posterior to compare with", f"{evidence}; exact: {exact['reason']}."
        )
    slope = ""
    if agree["slope"] is not None:
        slope = f" Model on exact log-odds: slope {agree['slope']:.2f}, r {agree['r']:.2f}."
    return Finding(
        question,
        f"λ {model['lam']:.2f} (exact {exact['lam']:.2f}), r of the line {model['r']:.3f}",
        f"{evidence}, exact posterior {_interval(exact, 'lam')}.{slope}",
    )


def _placed(results: Results) -> Finding:
    table = results.table("sweep")
    rows = table[(table["recipient"] == ZERO) & (table["role"] == "pre")]
    own, copied = (rows[rows["metric"] == name].to_dict("records") for name in ("task on own x", "copy"))
    top, copying = (max(records, key=lambda record: record["value"]) for records in (own, copied))
    beside = next(record for record in copied if record["layer"] == top["layer"])
    found = "at no layer of pre"
    if top["ci_low"] > top["base"]:
        found = f"{'' if top['value'] >= MOVED else 'weakly, '}entering layer {top['layer']} at pre"
    interval = f"[{top['ci_low']:.3f}, {top['ci_high']:.3f}]"
    return Finding(
        "Where does the residual carry the task, and not only the answer?",
        found,
        f"There P(task on B's own x) is {top['value']:.3f} {interval} against {top['base']:.3f} unpatched, "
        f"and P(A's answer copied) {beside['value']:.3f}; copying peaks at layer {copying['layer']} with "
        f"{copying['value']:.3f}. Run B: {ZERO}.",
    )


def _curve(rows: pd.DataFrame) -> Curve:
    return Curve(*(rows[name].tolist() for name in ("n_seen", "mean", "ci_low", "ci_high")))


def _interval(fit: dict[str, Any], name: str) -> str:
    return f"{fit[name]:.3f} [{fit[f'{name}_low']:.3f}, {fit[f'{name}_high']:.3f}]"
