"""What does the page of patching show of latents? Sets, single latents, their controls, answers by x."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from iclens.dashboards.records.latent import Curve
from iclens.dashboards.records.mechanism import Figure
from iclens.dashboards.records.patching import (
    AnswersView,
    EffectRow,
    EffectsView,
    Line,
    LinesView,
    SingleRow,
    SinglesView,
)
from iclens.dashboards.text import number
from iclens.patching.sets import ALL, FULL, GREEDY, MEANS, NEURONS, OWN
from iclens.patching.sweep import BASE, GIVEN, TARGET
from iclens.results.read import Results
from iclens.study.pages.patch_tables import Row, Tables, curve_of, figure_of, records

SHOWN = 15
"""Single latents that are shown at each role."""
WAYS = {"sufficiency": "A’s values into B", "necessity": "B’s values into A*"}
"""Directions of a set's patch in words."""
CURVES = ((GREEDY, "first"), (OWN, "third"), (NEURONS, "second"))
"""Kinds of set that are drawn over their size, and how."""
LEVELS = (ALL, MEANS)
"""Kinds of set that have one size."""
PATCHED = {
    BASE: "Run B, not patched",
    TARGET: "A*, not patched",
    GIVEN: "The greedy set alone",
}
"""Patches of a response curve whose names need words."""
MARKS = {"own": "full"}
"""How controls are marked; the others are open."""
FITS = {
    "slope": ("slope", "slope_low", "slope_high"),
    "intercept": ("intercept", "intercept_low", "intercept_high"),
    "change of slope": ("slope_change", "slope_change_low", "slope_change_high"),
}
"""Columns of the table of fits that have an interval."""


def parts(tables: Tables) -> dict[str, Any]:
    """Fields of a `PatchingView` that are about latents."""
    return {
        "rungs": rungs(tables),
        "sets": set_lines(tables),
        "singles": singles(tables),
        "controls": controls(tables),
        "screens": screens(tables),
        "responses": responses(tables),
    }


def said(results: Results) -> dict[str, str]:
    """What was done, in a sentence for each part."""
    patch = results.config.patch
    value = (
        "the mean of A’s values over other prompts" if patch.donor_value == "task mean" else "A’s own value"
    )
    half = "Half of the prompts chose what is shown, the other half measured it."
    return {
        "latents": f"Run B: {patch.recipient}; it receives {value}, at {' and '.join(patch.roles)}, from run "
        f"A with {patch.donor_examples} examples. {half}",
        "singles": f"The {patch.n_tested} of largest effect on the screening half of each site were compared "
        f"with {patch.n_controls} matched random latents pushed as far; q is corrected over these, "
        "within the site.",
    }


def rungs(tables: Tables) -> list[EffectsView]:
    """Single latent, all latents, error and full activation, a chart for each site and role."""
    table, belief = tables.of("ladder", "rungs"), tables.config.patch.chosen_for
    tables.put("rungs",
        ("site", "role", "what is moved", "belief", "effect, nats", "low", "high", "share of A* − B",
         "why undefined"),
        [
            (row["site"], row["role"], _rung(row), row["belief"], row["effect"], row["ci_low"],
             row["ci_high"], row["normalised"], row["reason"])
            for row in records(table)
        ],
    )  # fmt: skip
    views = []
    for (site, role), rows in table[table["belief"] == belief].groupby(["site", "role"], sort=False):
        first = rows.iloc[0]
        worth = f"the context is worth {number(first['donor'] - first['base'])} nats"
        effects = [EffectRow(_rung(row), figure_of(row, "effect", "ci")) for row in records(rows)]
        views.append(EffectsView(f"{site} at {role}", f"{first['n_prompts']} prompts; {worth}.", effects))
    return views


def _rung(row: Row) -> str:
    return f"best latent, {row['latent']}" if row["latent"] else row["rung"]


def set_lines(tables: Tables) -> list[LinesView]:
    """Share of the full activation's effect by number of latents, for each site, role and direction."""
    table, belief = tables.of("sets", "sets"), tables.config.patch.chosen_for
    table = table[(table["belief"] == belief) & (table["chosen_for"] == belief)]
    tables.put("sets",
        ("site", "role", "way", "set", "size", "effect, nats", "share", "low", "high", "random sets",
         "random low", "random high", "p", "why undefined"),
        [
            (row["site"], row["role"], WAYS[row["direction"]], row["kind"], row["size"], row["effect"],
             *(row[name] for name in ("share_of_full", "share_low", "share_high", "control_share")),
             *(row[name] for name in ("control_low", "control_high", "control_p")), row["reason"])
            for row in records(table)
        ],
    )  # fmt: skip
    keys = table[["direction", "site", "role"]].drop_duplicates().sort_values(
        "direction", key=lambda column: column.map(list(WAYS).index), kind="stable"
    )  # fmt: skip
    return [
        _set_view(table[(table["site"] == site) & (table["role"] == role) & (table["direction"] == way)])
        for way, site, role in keys.itertuples(index=False)
    ]


def _set_view(rows: pd.DataFrame) -> LinesView:
    """The curves of one site, role and direction."""
    first = rows.iloc[0]
    title = f"{first['site']} at {first['role']}: {WAYS[first['direction']]}"
    shares = rows[rows["share_of_full"].notna()]
    if shares.empty:
        return LinesView(title, "", reason=f"No share is defined: {first['reason'] or 'no reason is kept'}.")
    lines = [
        Line(kind, how, curve_of(shares[shares["kind"] == kind], "size", "share_of_full", "share"))
        for kind, how in CURVES
        if (shares["kind"] == kind).any()
    ]
    random = shares[(shares["kind"] == GREEDY) & shares["control_share"].notna()]
    if len(random):
        lines.append(
            Line("random sets, 95 % of them", "random", curve_of(random, "size", "control_share", "control"))
        )
    levels = [(row["kind"], row["share_of_full"]) for row in records(shares[shares["kind"].isin(LEVELS)])]
    whole = shares[shares["kind"] == FULL]["effect"]
    moved = f" Full activation: {whole.iloc[0]:+.2f} nats." if len(whole) else ""
    many = random["n_controls"].max() if len(random) else 0
    beside = f"; {many} random sets of each size" if many else ""
    caption = f"{first['n_prompts']} prompts of the test half, 95 % intervals{beside}.{moved}"
    return LinesView(
        title, caption, lines, axis="members of the set", unit="share of the full effect", levels=levels,
        scale="log2",
    )  # fmt: skip


def singles(tables: Tables) -> list[SinglesView]:
    """The latents of largest effect on the belief, role by role."""
    table, belief = tables.of("patches", "singles"), tables.config.patch.chosen_for
    table = table[(table["belief"] == belief) & table["effect"].notna()]
    table = table.assign(size=table["effect"].abs()).sort_values("size", ascending=False, kind="stable")
    views = []
    for role in dict.fromkeys(table["role"].tolist()):
        rows = table[table["role"] == role]
        shown = [_single(row) for row in records(rows.head(SHOWN))]
        caption = (
            f"The {len(shown)} of largest effect on {belief}, of {len(rows):,} that differ between A and B."
        )
        views.append(SinglesView(str(role), caption, shown))
    return views


def _single(row: Row) -> SingleRow:
    return SingleRow(
        row["site"], int(row["latent"]), figure_of(row, "effect", "ci"), row["normalised"],
        int(row["n_changed"]), int(row["n_prompts"]), row["control_p"], row["q_value"],
        int(row["n_controls"]), row["reason"],
    )  # fmt: skip


def controls(tables: Tables) -> list[EffectsView]:
    """What the greedy set of each site does elsewhere, with another task's values, and backwards."""
    table, belief = tables.of("patch_controls", "controls"), tables.config.patch.chosen_for
    table = table[table["belief"] == belief]
    tables.put("controls",
        ("site", "role", "latents", "patch", "effect, nats", "low", "high", "what to know"),
        [
            (row["site"], row["role"], row["latents"], row["control"], row["effect"], row["ci_low"],
             row["ci_high"], row["reason"])
            for row in records(table)
        ],
    )  # fmt: skip
    views = []
    for (site, role), rows in table.groupby(["site", "role"], sort=False):
        sizes = rows["latents"].str.split().map(len)
        rows = rows[rows["latents"] == rows["latents"].iloc[int(sizes.to_numpy().argmax())]]
        first = rows.iloc[0]
        effects = [
            EffectRow(row["control"], figure_of(row, "effect", "ci"), MARKS.get(row["control"], "open"))
            for row in records(rows)
        ]
        title = f"{site} at {role}: {'latents' if ' ' in first['latents'] else 'latent'} {first['latents']}"
        views.append(EffectsView(title, f"{first['n_prompts']} prompts.", effects))
    return views


def screens(tables: Tables) -> EffectsView | None:
    """How far a linear screen is from the exact effects on the belief, site by site."""
    table, belief = tables.of("screens", "screens"), tables.config.patch.chosen_for
    tables.put("screens",
        ("site", "role", "belief", "effects", "R²", "slope", "worst miss, nats", "its latent", "exact",
         "linear", "top 10 found", "why undefined"),
        [
            (row["site"], row["role"], row["belief"], row["n_effects"], row["r2"], row["slope"],
             row["worst_miss"], str(row["worst_latent"]), row["worst_exact"], row["worst_linear"],
             row["top_found"], row["reason"])
            for row in records(table)
        ],
    )  # fmt: skip
    table = table[table["belief"] == belief]
    if table.empty:
        return None
    rows = [
        EffectRow(f"{row['site']} {row['role']}", Figure(row["r2"], reason=row["reason"]))
        for row in records(table)
    ]
    known = records(table[table["worst_miss"].notna()])
    caption = "1: as good as the exact effects; 0: no better than their mean."
    if known:
        worst = max(known, key=lambda row: row["worst_miss"])
        exact, linear = number(worst["worst_exact"]), number(worst["worst_linear"])
        caption += (
            f" Worst miss: {number(worst['worst_miss'])} nats, {worst['site']} latent "
            f"{worst['worst_latent']} (exact {exact}, linear {linear})."
        )
    return EffectsView(f"R² of the linear screen on {belief}", caption, rows, "R²")


def responses(tables: Tables) -> list[AnswersView]:
    """Answers by x, a chart for each patch with its fitted line."""
    table, fits = tables.of("responses", "responses"), tables.of("response_fits", "fits")
    key = ["task", "site", "patch", "latents", "recipient", "n_seen"]
    fitted = {tuple(row[name] for name in key): row for row in records(fits)}
    _put_fits(tables, records(fits))
    views, columns = [], {}
    for group, rows in table.groupby(key, sort=False):
        held, row = (
            {name: str(value) for name, value in zip(key, group, strict=True)},
            fitted.get(tuple(group)),
        )
        answers = [float(text) if text.isdecimal() else math.nan for text in rows["answer"].tolist()]
        mean, spread = rows["mean"], rows["sd"]
        points = Curve(rows["x"].tolist(), mean.tolist(), (mean - spread).tolist(), (mean + spread).tolist())
        slope, intercept = (math.nan, math.nan) if row is None else (row["slope"], row["intercept"])
        which = f" Latents {held['latents']}." if " " in held["latents"] else ""
        views.append(AnswersView(
            _patch_name(held["patch"], held["latents"]),
            f"{held['site']} at pre; {int(rows['n_donors'].max())} donors for each x.{which}",
            points, Curve.line(rows["x"].tolist(), answers), slope, intercept,
        ))  # fmt: skip
        columns[f"{_patch_name(held['patch'], held['latents'])}, {held['site']}"] = dict(
            zip(rows["x"], mean, strict=True)
        )
    if len(table):
        asked = table.drop_duplicates("x").sort_values("x")
        tables.put(
            "responses",
            ("x", "f(x)", *columns),
            [
                (x, answer, *(curve.get(x, math.nan) for curve in columns.values()))
                for x, answer in zip(asked["x"].tolist(), asked["answer"].tolist(), strict=True)
            ],
        )
    return views


def _patch_name(patch: str, latents: str) -> str:
    """What was patched, in words."""
    if latents.isdigit():
        return f"Latent {latents} alone"
    return PATCHED.get(patch, patch.capitalize())


def _put_fits(tables: Tables, rows: list[dict[str, Any]]) -> None:
    """Keep the fitted lines, and how often the answer is the task's own."""
    shares = {
        "f(x) first": "top_1_answer", "f(x) in the first 5": "top_5_answer", "a·x first": "top_1_scaled",
        "odd first": "top_1_odd",
    }  # fmt: skip
    bounds = [heading for name in FITS for heading in (name, "low", "high")]
    tables.put(
        "fits",
        ("patch", "site", "x asked", *bounds, *shares, "why undefined"),
        [
            (_patch_name(row["patch"], row["latents"]), row["site"], row["n_x"],
             *(row[column] for columns in FITS.values() for column in columns),
             *(row[column] for column in shares.values()), row["reason"])
            for row in rows
        ],
    )  # fmt: skip
