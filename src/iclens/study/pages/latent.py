"""What does the page of a latent show? Rows of the run's tables, and what it was seen to do, per latent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from iclens.concepts.labels import CANDIDATE
from iclens.core import Site
from iclens.dashboards.records.latent import (
    ConceptRow,
    LatentRow,
    LatentView,
    Neighbour,
    PatchRow,
    ResponseView,
    TaskActivation,
)
from iclens.dashboards.text import interval, number
from iclens.patching.sweep import BASE, GIVEN, TARGET
from iclens.results.read import Results
from iclens.saes.encode import Near
from iclens.study.pages import latent_growth
from iclens.study.pages.latent_rows import ANSWER, Address, clearest_first
from iclens.study.pages.seen import Seen

TABLES = (
    *("growth", "transforms", "patches", "dose", "dose_curves", "latent_accounts", "specificity"),
    *("responses", "response_fits"),
)
"""Tables whose rows of one latent stand on its page."""
WAYS = {
    "ablate": "Taken out of run A",
    "ablate all": "Taken out of run A at every example,",
    "mean": "Set to run B’s value in run A",
}
"""Other ways of moving a latent, in words."""
UNPUSHED = "Pushed are the first of the short list at pre of each site."
UNASKED = "Response curves are drawn for the tested latents of the site that carries most."
SILENT = "It is active on none of the searched prompts."


def tuned_roles(results: Results, latents: Mapping[Site, Sequence[int]]) -> dict[Site, dict[int, str]]:
    """Site → latent → the role at which its best concept is told, where its tuning is read."""
    transforms = results.table("transforms").dropna(subset=["auroc"])
    granted = ~transforms["label"].isin(["", CANDIDATE])
    order = transforms.assign(granted=granted).sort_values(["granted", "auroc"], ascending=False)
    best = order.drop_duplicates(["site", "latent"])
    roles: dict[Any, str] = best.set_index(["site", "latent"])["role"].to_dict()
    first = results.config.transforms.roles[0]
    return {site: {f: roles.get((site.short, f), first) for f in ids} for site, ids in latents.items()}


def latent_views(
    results: Results, site: Site, roles: Mapping[int, str], seen: Seen, address: Address
) -> list[LatentView]:
    """The pages of some latents of a site.

    Args:
        results: the run.
        site: theirs.
        roles: latent → the role at which its tuning was read.
        seen: what they were seen to do.
        address: of any latent's page.
    """
    latents = list(roles)
    rows = {name: _by_latent(results.table(name), site, latents) for name in TABLES[:-2]}
    curves = latent_growth.trajectories(results, site, latents)
    first = {f: clearest_first(rows["growth"][f])["role"].iloc[0] for f in latents}
    clearest = {f: next(view for view in curves[f] if view.role == first[f]) for f in latents}
    arms = latent_growth.arm_means(results, site, {f: clearest[f].role for f in latents})
    exact = latent_growth.posterior(results)
    answered = responses(results, site)
    views = []
    for latent in latents:
        own = {name: rows[name][latent] for name in rows}
        best = clearest[latent]
        verdict = own["growth"][own["growth"]["role"] == best.role].to_dict("records")[0]
        concepts = [_concept(row) for row in _best_roles(own["transforms"]).to_dict("records")]
        patches = [_patch(row) for row in own["patches"].to_dict("records")]
        views.append(
            LatentView(
                site.short,
                latent,
                summary=_summary(latent_growth.standing(best), concepts, patches, results.patch_role),
                role=best.role,
                trajectories=curves[latent],
                posterior=latent_growth.scaled_posterior(exact, best.task),
                arms=arms[latent],
                ladder=latent_growth.ladder({str(k): v for k, v in verdict.items()}),
                task_role=roles[latent],
                tasks=_tasks(results, site, roles[latent], latent),
                concepts=concepts,
                tunings=seen.tunings.get(latent, []),
                boxes=seen.boxes.get(latent, []),
                patches=patches,
                response=answered.get(latent),
                prompts=seen.prompts.get(latent, []),
                random=seen.random.get(latent, []),
                promotes=seen.promotes.get(latent, []),
                suppresses=seen.suppresses.get(latent, []),
                histogram=seen.histograms.get(latent),
                reasons=_reasons(results, site, latent, own, seen),
                moved=moved_words(own["specificity"]),
                doses=latent_growth.doses(own["dose"], own["dose_curves"]),
                follows=latent_growth.follows(own["latent_accounts"]),
                close=_neighbours(site, seen.close.get(latent), address),
                together=_neighbours(site, seen.together.get(latent), address),
            )
        )
    return views


def exported(view: LatentView, row: LatentRow) -> dict[str, Any]:
    """What other tools read of a latent with a page: its tokens, logits and activations, as plain values."""
    prompts = [
        {
            "title": prompt.title,
            "tokens": [token.text for token in prompt.tokens],
            "values": [token.value for token in prompt.tokens],
        }
        for prompt in view.prompts
    ]
    bins = view.histogram
    counts = {"edges": [], "counts": []} if bins is None else {"edges": bins.edges, "counts": bins.counts}
    return {
        "site": view.site,
        "latent": view.latent,
        "density": row.density,
        "top_tokens": [[effect.text, effect.value] for effect in view.promotes],
        "bottom_tokens": [[effect.text, effect.value] for effect in view.suppresses],
        "histogram": counts,
        "prompts": prompts,
    }


def _by_latent(table: pd.DataFrame, site: Site, latents: Sequence[int]) -> dict[int, pd.DataFrame]:
    here = table[(table["site"] == site.short) & table["latent"].isin(latents)]
    groups = dict(iter(here.groupby("latent", sort=False)))
    return {latent: groups.get(latent, here.iloc[:0]) for latent in latents}


def _reasons(
    results: Results, site: Site, latent: int, own: Mapping[str, pd.DataFrame], seen: Seen
) -> dict[str, str]:
    """Section → why it is empty."""
    reasons = {"doses": UNPUSHED, "response": UNASKED, "neighbours": SILENT}
    if own["patches"].empty:
        patches = results.table("patches")
        patched = patches[patches["role"] == results.patch_role]["site"].eq(site.short).any()
        reasons["patches"] = (
            f"At {results.config.patch.roles[0]} its activation is the same in run A and run B."
            if patched
            else f"{site.short} was not patched."
        )
    if seen.reason:
        reasons |= dict.fromkeys(("prompts", "histogram", "logits", "neighbours", "tunings"), seen.reason)
    elif not seen.prompts.get(latent):
        reasons["prompts"] = reasons["histogram"] = SILENT
    return reasons


def _summary(standing: str, concepts: Sequence[ConceptRow], patches: Sequence[PatchRow], role: str) -> str:
    """What is known of a latent, in a few sentences; of its patches, those at a role."""
    labels = list(dict.fromkeys(c.label for c in concepts if c.label not in ("", CANDIDATE)))
    said = [standing, f"It is labelled {', '.join(labels)}." if labels else "No label was granted."]
    own = (p for p in patches if p.belief == ANSWER and p.role == role and math.isfinite(p.effect))
    answer = next(own, None)
    if answer is None:
        said.append(f"It was not patched at {role}.")
    else:
        beside = f", control p {number(answer.control_p)}" if math.isfinite(answer.control_p) else ""
        change = f"{number(answer.effect)} {interval(answer.ci_low, answer.ci_high)} nats{beside}"
        said.append(f"Patched from run A into run B at {role} it changes the answer’s log-odds by {change}.")
    return " ".join(said)


def _tasks(results: Results, site: Site, role: str, latent: int) -> list[TaskActivation]:
    means, names = results.task_means
    held_out = set(results.grid["held_out"])
    row, n = means[f"{site.short} {role}"][latent], results.config.grid.n_prompts
    return [
        TaskActivation(name, float(mean), n_prompts=n, split="held out" if name in held_out else "discovery")
        for name, mean in zip(names, row, strict=True)
    ]


def _best_roles(concepts: pd.DataFrame) -> pd.DataFrame:
    """One row per concept: at the role where it has a label, or else is told best."""
    granted = ~concepts["label"].isin(["", CANDIDATE])
    order = concepts.assign(granted=granted).sort_values(["granted", "auroc"], ascending=False)
    best = order.drop_duplicates("concept").set_index("concept")
    return best.loc[list(dict.fromkeys(concepts["concept"]))].reset_index()


def _concept(row: Mapping[Any, Any]) -> ConceptRow:
    return ConceptRow(
        row["concept"], row["role"], row["auroc"], row["ci_low"], row["ci_high"], row["worst_confound"],
        row["confound_auroc"], row["q_value"], row["label"], row["reason"],
    )  # fmt: skip


def _patch(row: Mapping[Any, Any]) -> PatchRow:
    counts = {name: int(row[name]) for name in ("n_changed", "n_prompts")}
    effect = {name: row[name] for name in ("base", "patched", "donor", "effect", "ci_low", "ci_high")}
    tests = {name: row[name] for name in ("control_p", "normalised", "q_value")}
    return PatchRow(row["belief"], **effect, **tests, **counts, reason=row["reason"], role=row["role"])


def responses(results: Results, site: Site) -> dict[int, ResponseView]:
    """Latent → how the answer follows x when it alone is patched, at the site that carries most."""
    table, fits = (t[t["site"] == site.short] for t in map(results.table, TABLES[-2:]))
    curves = {patch: rows.sort_values("x") for patch, rows in table.groupby("patch", sort=False)}
    if not {BASE, TARGET, GIVEN} <= set(curves):
        return {}
    lines = {row["latents"]: row for row in fits[fits["patch"] == GIVEN].to_dict("records")}
    base, target = (curves[name]["mean"].tolist() for name in (BASE, TARGET))
    found = {}
    for members, rows in curves[GIVEN].groupby("latents", sort=False):
        if str(members).isdigit():
            line, mean = lines[members], rows["mean"].tolist()
            words = f"Slope {number(line['slope'])} {interval(line['slope_low'], line['slope_high'])}"
            changed = (
                f", changed by {number(line['slope_change'])} "
                f"{interval(line['slope_change_low'], line['slope_change_high'])}."
            )
            found[int(str(members))] = ResponseView(rows["x"].tolist(), base, mean, target, words + changed)
    return found


def moved_words(rows: pd.DataFrame) -> list[str]:
    """What moving a latent in other ways than from A to B does to the belief that its concept names."""
    own = rows[rows["own"].astype(bool) & (rows["way"] != "patch") & rows["reason"].eq("")]
    found = []
    for row in own.drop_duplicates(["role", "way", "belief"]).to_dict("records"):
        if row["way"] in WAYS:
            effect = (
                f"{number(row['effect'])} {interval(row['ci_low'], row['ci_high'])} nats on {row['belief']}"
            )
            beside = f"control p {number(row['control_p'])} beside {row['n_controls']} matched latents"
            where = f"{WAYS[row['way']]} at {row['role']}"
            found.append(f"{where}: {effect}, of {number(row['base'])} without the change; {beside}.")
    return found


def _neighbours(site: Site, near: Near | None, address: Address) -> list[Neighbour]:
    if near is None:
        return []
    pairs = zip(near.latents.tolist(), near.values.tolist(), strict=True)
    return [Neighbour(latent, value, address(site.short, latent)) for latent, value in pairs]
