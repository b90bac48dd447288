"""What does the page of a latent show, and which latents get one? Rows of the run's tables, per latent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd

from iclens.dashboards.records.site import (
    ConceptRow,
    Curve,
    DoseView,
    Histogram,
    LatentRow,
    LatentView,
    LogitEffect,
    PatchRow,
    PromptView,
    TaskActivation,
    TokenView,
    TrajectoryView,
)
from iclens.names import Site
from iclens.study.results import Results
from iclens.tables.trajectories import Trajectories

ANSWER = "exact"
"""The belief that pushes are shown for."""
UNPUSHED = "Pushed are the first of the short list at pre of each site."
PAGES_REASON = (
    "Of each site, in turn: the clearest growth, the best concept, the largest tested patch effect, "
    "until {n} latents are chosen."
)


@dataclass(frozen=True)
class Seen:
    """What a site's latents did on the shown prompts.

    Args:
        density: share of tokens on which each is active, BOS left out, [latent].
        prompts: latent → its top prompts.
        histograms: latent → counts of its non-zero activations.
        promotes, suppresses: latent → tokens whose logit rises or falls most.
    """

    density: Any
    prompts: Mapping[int, list[PromptView]]
    histograms: Mapping[int, Histogram]
    promotes: Mapping[int, list[LogitEffect]]
    suppresses: Mapping[int, list[LogitEffect]]


def ranked(results: Results, site: Site, n: int) -> list[int]:
    """The `n` latents of a site that get a page: best of growth, concepts and patches, taken in turn."""
    growth, transforms, patches = results.table("growth"), results.table("transforms"), results.patched
    growth, transforms, patches = (t[t["site"] == site.short] for t in (growth, transforms, patches))
    granted = (~transforms["label"].isin(["", "candidate"])).astype(int)
    lists = [
        growth.assign(size=growth["slope"].abs()).sort_values(["q_value", "size"], ascending=[True, False]),
        transforms.assign(granted=granted).sort_values(["granted", "auroc"], ascending=False),
        patches.assign(size=patches["effect"].abs()).sort_values(
            ["control_p", "size"], ascending=[True, False]
        ),
    ]
    known = [
        frame.dropna(subset=[column])
        for frame, column in zip(lists, ("q_value", "auroc", "effect"), strict=True)
    ]
    orders = [frame["latent"].drop_duplicates().tolist() for frame in known]
    merged = dict.fromkeys(latent for turn in zip_longest(*orders) for latent in turn if latent is not None)
    return [int(latent) for latent in list(merged)[:n]]


def latent_rows(results: Results, density: Mapping[str, Any]) -> list[LatentRow]:
    """A row for every latent of every site, clearest growth first.

    Args:
        results: the run.
        density: site (short) → share of tokens on which each latent is active, [latent].
    """
    key = ["site", "latent"]
    growth = (
        results.table("growth").sort_values("q_value", na_position="last").drop_duplicates(key).set_index(key)
    )
    transforms = results.table("transforms")
    rank = transforms["label"].map(lambda label: 0 if label in ("", "candidate") else 1)
    best = (
        transforms.assign(rank=rank).sort_values(["rank", "auroc"], ascending=False).dropna(subset=["auroc"])
    )
    best = best.drop_duplicates(key).set_index(key)
    patches = results.patched
    moved = patches.assign(size=patches["effect"].abs()).dropna(subset=["effect"])
    moved = moved.sort_values("size", ascending=False).drop_duplicates(key).set_index(key)
    found = growth[["role", "slope", "q_value", "verdict"]].join(best[["label", "concept", "auroc"]])
    found = found.join(moved[["belief", "effect", "control_p"]])
    text = ["role", "verdict", "label", "concept", "belief"]
    found[text] = found[text].fillna("")
    found.loc[found["q_value"].isna(), "role"] = ""
    rows = []
    for values in found.reset_index().to_dict("records"):
        site, latent = str(values.pop("site")), int(values.pop("latent"))
        rows.append(
            LatentRow(site, latent, float(density[site][latent]), **{str(k): v for k, v in values.items()})
        )
    return rows


def latent_views(results: Results, site: Site, latents: list[int], seen: Seen) -> list[LatentView]:
    """The pages of some latents of a site."""
    trajectories = _trajectories(results, site, latents)
    transforms, patches = results.table("transforms"), results.patched
    transforms, patches = (t[t["site"] == site.short] for t in (transforms, patches))
    dose, curves, accounts = (results.table(name) for name in ("dose", "dose_curves", "latent_accounts"))
    dose, curves, accounts = (t[t["site"] == site.short] for t in (dose, curves, accounts))
    patched = set(patches["latent"])
    views = []
    for latent in latents:
        concepts = transforms[transforms["latent"] == latent]
        role = _best_role(concepts, results.config.transforms.roles[0])
        own = patches[patches["latent"] == latent]
        doses = _doses(dose[dose["latent"] == latent], curves[curves["latent"] == latent])
        reasons = {} if doses else {"doses": UNPUSHED}
        if latent not in patched:
            reasons["patches"] = (
                f"At `{results.config.patch.roles[0]}` its activation is the same in run A and run B."
                if patched
                else f"{site.short} was not patched."
            )
        if not seen.prompts.get(latent):
            reasons["prompts"] = reasons["histogram"] = "It is active on none of the searched prompts."
        views.append(
            LatentView(
                site.short,
                latent,
                trajectories=trajectories[latent],
                task_role=role,
                tasks=_tasks(results, site, role, latent),
                concepts=[_concept(row) for row in concepts.to_dict("records")],
                patches=[_patch(row) for row in own.to_dict("records")],
                prompts=seen.prompts.get(latent, []),
                promotes=seen.promotes.get(latent, []),
                suppresses=seen.suppresses.get(latent, []),
                histogram=seen.histograms.get(latent),
                reasons=reasons,
                doses=doses,
                follows=_follows(accounts[accounts["latent"] == latent]),
            )
        )
    return views


def top_prompts(
    activations: Any, latent: int, tokens: list[list[str]], titles: list[str], n: int
) -> list[PromptView]:
    """The prompts on which a latent is most active at any token, strongest first.

    Args:
        activations: sparse CSC [prompt·pos, latent], pos fastest.
        latent: which.
        tokens: text of every token, [prompt][pos].
        titles: [prompt].
        n: at most so many.
    """
    column = activations[:, [latent]].toarray().reshape(len(tokens), -1)
    peak = column.max(axis=1)
    order = [int(i) for i in np.argsort(-peak, kind="stable")[:n] if peak[i] > 0]
    return [
        PromptView(
            titles[i], [TokenView(text, float(v)) for text, v in zip(tokens[i], column[i], strict=True)]
        )
        for i in order
    ]


def histogram(activations: Any, latent: int, bins: int = 20) -> Histogram | None:
    """Counts of a latent's non-zero activations, or None where it has none."""
    values = activations[:, [latent]].data
    values = values[values > 0]
    if not len(values):
        return None
    counts, edges = np.histogram(values, bins=bins, range=(0.0, float(values.max())))
    return Histogram([float(edge) for edge in edges], [int(count) for count in counts])


def _trajectories(results: Results, site: Site, latents: list[int]) -> dict[int, list[TrajectoryView]]:
    treated, control = results.arms[:2]
    ids, norms = np.array(latents, dtype=np.int64), results.decoder_norms[site.short]
    growth = results.table("growth")
    growth = growth[growth["site"] == site.short].set_index(["role", "latent"])
    tests: dict[Any, Any] = {key: row for key, row in growth.to_dict("index").items()}
    views: dict[int, list[TrajectoryView]] = {latent: [] for latent in latents}
    for role in results.roles:
        curves = []
        for arm in (treated, control):
            beliefs, _, _ = results.beliefs_of(arm)
            of = Trajectories.of(
                results.latents(arm, site, role),
                ids,
                arm=arm,
                beliefs=beliefs,
                belief_names=results.config.belief_names,
                decoder_norm=norms,
            )
            summary = of.summary(seed=results.config.prompts.seed)
            curves.append({latent: _curve(summary[summary["latent"] == latent]) for latent in latents})
        for latent in latents:
            test = tests[role, latent]
            names = ("slope", "ci_low", "ci_high", "q_value", "verdict", "reason")
            task, beside = (curve[latent] for curve in curves)
            views[latent].append(TrajectoryView(role, task, beside, **{name: test[name] for name in names}))
    return views


def _tasks(results: Results, site: Site, role: str, latent: int) -> list[TaskActivation]:
    means, names = results.task_means
    held_out = set(results.grid["held_out"])
    row, n = means[f"{site.short} {role}"][latent], results.config.grid.n_prompts
    return [
        TaskActivation(name, float(mean), n_prompts=n, split="held out" if name in held_out else "discovery")
        for name, mean in zip(names, row, strict=True)
    ]


def _best_role(concepts: pd.DataFrame, otherwise: str) -> str:
    known = concepts.dropna(subset=["auroc"]).sort_values("auroc", ascending=False)
    return otherwise if known.empty else str(known["role"].iloc[0])


def _concept(row: Mapping[Any, Any]) -> ConceptRow:
    return ConceptRow(
        row["concept"], row["role"], row["auroc"], row["ci_low"], row["ci_high"], row["worst_confound"],
        row["confound_auroc"], row["q_value"], row["label"], row["reason"],
    )  # fmt: skip


def _patch(row: Mapping[Any, Any]) -> PatchRow:
    counts = {name: int(row[name]) for name in ("n_changed", "n_prompts")}
    effect = {name: row[name] for name in ("base", "patched", "donor", "effect", "ci_low", "ci_high")}
    tests = {name: row[name] for name in ("control_p", "normalised", "q_value")}
    return PatchRow(row["belief"], **effect, **tests, **counts, reason=row["reason"])


def _doses(dose: pd.DataFrame, curves: pd.DataFrame) -> list[DoseView]:
    """Effects on the answer's log-odds, for each number of examples in context."""
    views = []
    for row in dose[dose["belief"] == ANSWER].to_dict("records"):
        at = curves[(curves["belief"] == ANSWER) & (curves["n_examples"] == row["n_examples"])]
        curve = Curve(*(at[name].tolist() for name in ("dose", "effect", "ci_low", "ci_high")))
        judged = "causal" if row["causal"] else str(row["reason"])
        slope = (
            f"{row['slope']:.3g} nats per natural growth [{row['slope_low']:.3g}, {row['slope_high']:.3g}]"
        )
        views.append(DoseView(int(row["n_examples"]), curve, f"{slope}; {judged}"))
    return views


def _follows(accounts: pd.DataFrame) -> list[str]:
    """The account that is named at each role, and over which arms."""
    found = []
    for role, rows in accounts.groupby("role", sort=False):
        best = rows[rows["named"]].iloc[0]
        at = f", {best['parameter']}" if best["parameter"] else ""
        named = f"{best['account']}{at} (R² {best['r2']:.2f})"
        found.append(f"At {role} it follows best, over arms {best['arms']}: {named}.")
    return found


def _curve(rows: pd.DataFrame) -> Curve:
    return Curve(*(rows[name].tolist() for name in ("n_seen", "mean", "ci_low", "ci_high")))
