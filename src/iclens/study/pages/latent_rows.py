"""Which latents get a page, and what does the table say of each? A row for every latent of every site."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any

import pandas as pd

from iclens.concepts.labels import CANDIDATE
from iclens.concepts.language import IDENTITY
from iclens.core import Site, SiteError
from iclens.dashboards.records.latent import LatentRow
from iclens.results.read import Results, known
from iclens.schemas import FALLS, LADDER

Address = Callable[[str, int], str]
"""The address of the page of a site's latent, "" without one."""
ANSWER = "exact"
"""The belief that pushes are judged by: the task's own answer."""
LEAST_R2 = 0.1
"""Least share of a latent's means that an account has to explain for the latent to follow it."""
PAGES_REASON = (
    "Of each site, latents with a label that is not one task's, then in turn the clearest growth, the best "
    "concept, the largest tested patch effect, until {n} latents are chosen; others get one when "
    "dashboard.latents of the config names them."
)
_KEY = ["site", "latent"]


def ranked(results: Results, site: Site, n: int) -> list[int]:
    """The `n` latents of a site that get a page: best of growth, concepts and patches, taken in turn."""
    growth, transforms, patches = map(results.table, ("growth", "transforms", "patches"))
    patches = patches[patches["role"] == results.patch_role]
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


def with_pages(results: Results) -> dict[Site, list[int]]:
    """Site → its latents that get a page: named by `dashboard.latents`, labelled with a concept, ranked.

    Raises:
        SiteError: when it names a site that is not followed, or a latent that the SAE does not have.
    """
    section, facts = results.config.dashboard, results.facts["saes"]
    asked: dict[str, list[int]] = {}
    for name, latents in section.latents.items():
        site = known("site", Site.parse(name).short, [place.short for place in results.sites])
        d_sae = facts[site]["d_sae"]
        strange = [latent for latent in latents if not 0 <= latent < d_sae]
        if strange:
            where = f"dashboard.latents: latent {strange[0]} of {site}"
            raise SiteError(where, f"its SAE has {d_sae}", f"Latents run from 0 to {d_sae - 1}.")
        asked[site] = latents
    transforms = results.table("transforms")
    concepts = transforms[~transforms["label"].isin(["", CANDIDATE, IDENTITY])]
    labelled = {str(site): rows["latent"].unique().tolist() for site, rows in concepts.groupby("site")}
    return {
        site: list(
            dict.fromkeys(
                [
                    *asked.get(site.short, ()),
                    *labelled.get(site.short, ()),
                    *ranked(results, site, section.pages_per_site),
                ]
            )
        )
        for site in results.sites
    }


def latent_rows(
    results: Results, density: Mapping[str, Any], table: Callable[[str], pd.DataFrame] | None = None
) -> list[LatentRow]:
    """A row for every latent of every site, clearest growth first.

    Args:
        results: the run.
        density: site (short) → share of tokens on which each latent is active, [latent].
        table: gives a table by name, the run's own by default.
    """
    table = results.table if table is None else table
    growth = clearest_first(table("growth")).drop_duplicates(_KEY)
    transforms = table("transforms")
    rank = transforms["label"].map(lambda label: 0 if label in ("", "candidate") else 1)
    best = (
        transforms.assign(rank=rank).sort_values(["rank", "auroc"], ascending=False).dropna(subset=["auroc"])
    )
    best = best.drop_duplicates(_KEY).set_index(_KEY)
    patches = table("patches")
    patches = patches[patches["role"] == results.config.patch.roles[0]]
    answer = patches[patches["belief"] == ANSWER].set_index(_KEY)["effect"].rename("answer")
    moved = patches.assign(size=patches["effect"].abs()).dropna(subset=["effect"])
    moved = moved.sort_values("size", ascending=False).drop_duplicates(_KEY).set_index(_KEY)
    found = growth.merge(_followed(table("latent_accounts")), on=[*_KEY, "role"], how="left").set_index(_KEY)
    found = found[["role", "slope", "q_value", "verdict", "follows"]]
    found = found.join(best[["label", "concept", "auroc"]]).join(moved[["belief", "effect", "control_p"]])
    found = found.join(answer).join(_pushed(table("dose")))
    text = ["role", "verdict", "label", "concept", "belief", "follows", "causal"]
    found[text] = found[text].astype(object).fillna("")
    found.loc[found["q_value"].isna(), "role"] = ""
    rows = []
    for values in found.reset_index().to_dict("records"):
        site, latent = str(values.pop("site")), int(values.pop("latent"))
        rows.append(
            LatentRow(site, latent, float(density[site][latent]), **{str(k): v for k, v in values.items()})
        )
    return rows


def clearest_first(growth: pd.DataFrame) -> pd.DataFrame:
    """Rows of the growth table in the order in which they are shown, a latent's best role before its others.

    A latent's best role is where it gets furthest up the ladder; one that grows at one role and falls at
    another is a growing one. The smallest q comes first; of equal ones what grows, and the steepest.
    """
    height = growth["verdict"].map({rung: i for i, rung in enumerate(LADDER)} | {FALLS: 0.5})
    best = height.groupby([growth[name] for name in _KEY]).transform("max")
    order = growth.assign(beside=height < best, low=-height, size=-growth["slope"].abs())
    order = order.sort_values(["beside", "q_value", "low", "size"], na_position="last", kind="stable")
    return order.drop(columns=["beside", "low", "size"])


def _followed(accounts: pd.DataFrame) -> pd.DataFrame:
    """The account that is named for each latent at each role."""
    named = accounts[accounts["named"].astype(bool) & (accounts["r2"] >= LEAST_R2)]
    return named.rename(columns={"account": "follows"})[[*_KEY, "role", "follows"]]


def _pushed(dose: pd.DataFrame) -> pd.DataFrame:
    """Whether pushing a latent moves the answer, after any number of examples."""
    dose = dose[dose["belief"] == ANSWER]
    return dose.groupby(_KEY)["causal"].any().map({True: "causal", False: "not causal"}).to_frame()
