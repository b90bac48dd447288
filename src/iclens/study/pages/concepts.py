"""What does the page of concepts show? A run's tables on concepts as plain records; nothing is tested here.

1. Shown are the latents whose tuning a run kept: the best of each concept. 2. What was measured of them is
found in the tables by site, role and latent. 3. Verdicts are put into words. Enter a run's results; leaves a
`ConceptsView`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from iclens.concepts.labels import CANDIDATE
from iclens.concepts.language import IDENTITY, Concept
from iclens.dashboards.records.concepts import (
    BoxView,
    ConceptsView,
    ConceptView,
    MovedRow,
    MovedView,
    ProbeRow,
    ProbeView,
    ShownLatent,
    TuningView,
)
from iclens.dashboards.records.mechanism import Figure
from iclens.dashboards.text import interval, number
from iclens.results.read import Results
from iclens.study.grid import asked_concepts
from iclens.study.pages.mechanism import (
    auroc_of,
    carried_rows,
    creation_views,
    operands_view,
    period_rows,
    records,
    size_rows,
)
from iclens.study.pages.transform_findings import CAUSAL_P, confirmed, mechanism_words

ALL, JOINT = -1, -1
"""A probe of every feature; all chosen latents of a concept, moved together."""
TABLES = (
    "transforms", "masses", "tunings", "tuning_curves", "operand_maps", "stability", "probes", "subspaces",
    "specificity", "operands", "creation", "confidence", "transport",
)  # fmt: skip
WAYS = {
    "ablate": "set to 0 in run A, at one token",
    "ablate all": "set to 0 in run A, at that token of every example",
    "mean": "set to run B’s value in run A",
    "patch": "set to run A’s value in run B",
}
"""Ways of moving latents in words."""
GATES = (
    (r"AUROC [\d.]+ below", "the AUROC is too low"),
    (r"lower bound [\d.]+ below", "the AUROC’s lower bound is too low"),
    (r"no confound can be measured", "no confound can be measured"),
    (r"design confounds it with", "the tasks tie the concept to a confound"),
    (r"q [\d.]+ above", "q is too high"),
    (r".* [\d.]+ above [\d.]+", "it answers to a confound"),
)
"""How a failed gate is written in `TransformTable.reason`, and its name in words; the first that matches."""
KEY = ["site", "role", "latent"]
Row = Mapping[str, Any]


def concepts(results: Results) -> ConceptsView:
    """Everything that a run found on its concepts."""
    asked = asked_concepts(results.config)
    tables = {name: results.table(name) for name in TABLES}
    held_out, discovery = (len(results.grid[side]) for side in ("held_out", "discovery"))
    carried, weights = carried_rows(tables["transport"])
    return ConceptsView(
        concepts=[_concept(one, [each.name for each in asked], tables) for one in asked],
        tasks=f"Latents were chosen on {discovery} tasks and judged on {held_out} others.",
        periods=period_rows(tables["subspaces"]),
        operands=operands_view(tables["operands"]),
        creation=creation_views(tables["creation"]),
        sizes=size_rows(tables["confidence"]),
        carried=carried,
        weights=weights,
        answers=mechanism_words(results),
    )


def _concept(one: Concept, names: Sequence[str], tables: Mapping[str, pd.DataFrame]) -> ConceptView:
    rows, moved, probes = (
        tables[name][tables[name]["concept"] == one.name] for name in ("transforms", "specificity", "probes")
    )
    matrices = moved_views(moved)
    singles = moved[moved["own"] & (moved["latent"] != JOINT) & (moved["n_active"] > 0)]
    granted, candidates = _labelled(rows)
    return ConceptView(
        one.name,
        one.meaning,
        verdict_words(rows),
        granted=len(granted),
        candidates=len(candidates),
        best_auroc=float(rows["auroc"].max()),
        confirmed=len(_latents(confirmed(moved))) if one.belief or moved["own"].any() else None,
        moved=len(_latents(singles)),
        confounds=[confound.name for confound in one.confounds],
        latents=shown_latents(one.name, names, tables),
        probes=None if probes.empty else probe_view(probes),
        matrices=matrices,
        probes_reason="" if len(probes) else f"No probe was trained: {_unprobed(one.name)}.",
        matrices_reason="" if matrices else "No latent was moved: none is granted the label or a candidate.",
    )


def _unprobed(name: str) -> str:
    if name == IDENTITY:
        return "which task it is has as many answers as tasks, and a probe reads a concept with two sides"
    return "no latent could be measured on the discovery tasks, so that no place is best"


def _latents(rows: pd.DataFrame) -> set[tuple[str, int]]:
    return set(zip(rows["site"].tolist(), rows["latent"].tolist(), strict=True))


def _labelled(rows: pd.DataFrame) -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
    """Latents that are granted the label at any role, and the other candidates."""
    granted = _latents(rows[~rows["label"].isin(["", CANDIDATE])])
    return granted, _latents(rows[rows["label"] == CANDIDATE]) - granted


def verdict_words(rows: pd.DataFrame) -> str:
    """How many labels of one concept are granted, how many latents are candidates, and what most lack.

    Args:
        rows: the concept's rows of a TransformTable.
    """
    granted, candidates = _labelled(rows)
    if not (granted or candidates):
        return _nothing(rows)
    said = f"{_counted(len(granted), 'latent')} granted the label, {_counted(len(candidates), 'candidate')}; "
    said += "the best of them below."
    said = said[0].upper() + said[1:]
    kept = rows[rows["label"] == CANDIDATE].sort_values("auroc", ascending=False)
    own = [key in candidates for key in zip(kept["site"], kept["latent"], strict=True)]
    kept = kept[own].drop_duplicates(["site", "latent"])
    failed = Counter(gate for text in kept["reason"] for gate in gates_of(text))
    if not failed:
        return said
    gate, n = failed.most_common(1)[0]
    return f"{said} What candidates failed most often: {gate} ({n} of {len(kept)})."


def _nothing(rows: pd.DataFrame) -> str:
    measured = rows.dropna(subset=["auroc"])
    if rows.empty:
        return "Nothing can be said of this concept: it was not asked of any latent."
    if measured.empty:
        why = Counter(rows["reason"]).most_common(1)[0][0]
        if rows["discovery_auroc"].isna().all():
            return f"Nothing can be said of this concept: {why}."
        return f"No latent is granted the label, and none is a candidate: {why}."
    best = records(measured.nlargest(1, "auroc"))[0]
    about = f"{best['site']} · {best['latent']} at {best['role']}"
    span = f"{number(best['auroc'])} {interval(best['ci_low'], best['ci_high'])}".strip()
    return (
        f"No latent is granted the label, and none is a candidate. The largest AUROC of {len(measured):,} "
        f"measured is {span}, {about}: {best['reason'] or 'no gate is named'}."
    )


def gates_of(reason: str) -> list[str]:
    """The failed gates that a reason names, each once, in words."""
    found = [
        next((words for pattern, words in GATES if re.match(pattern, part)), part)
        for part in reason.split("; ")
        if part
    ]
    return list(dict.fromkeys(found))


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}" if n else f"no {what}"


def shown_latents(
    concept: str, names: Sequence[str], tables: Mapping[str, pd.DataFrame]
) -> list[ShownLatent]:
    """The latents of a concept whose tuning was kept, and all that was measured of them.

    Args:
        concept: which.
        names: every concept of the page.
        tables: by name.
    """
    kept = tables["tuning_curves"]
    keys = kept[kept["concept"] == concept][KEY].drop_duplicates()
    if keys.empty:
        return []
    near = {name: tables[name].merge(keys, on=KEY) for name in (
        "transforms", "tunings", "tuning_curves", "operand_maps", "stability",
    )}  # fmt: skip
    near = {
        name: rows[rows["concept"] == concept] if name != "transforms" and "concept" in rows else rows
        for name, rows in near.items()
    }
    masses = _by(tables["masses"].merge(keys[["site", "latent"]].drop_duplicates()), ["site", "latent"])
    found = []
    for site, role, latent in keys.itertuples(index=False):
        at = {name: _at(rows, site, role, latent) for name, rows in near.items()}
        mass = masses.get((site, latent), {"kind": "", "lab_share": math.nan})
        own = {row["concept"]: row for row in records(at["transforms"])}
        steady = at["stability"]
        found.append(
            ShownLatent(
                str(site), str(role), int(latent), **_label(own[concept]),
                works_at=mass["kind"], lab_share=mass["lab_share"],
                found_again=int(steady["stable"].sum()), looked_in=len(steady),
                rivals=[_rival(own.get(name)) for name in names],
                tunings=_tunings(at["tuning_curves"], at["tunings"]),
                boxes=[
                    BoxView(b["x"], b["y"], b["width"], b["mean"], b["n_rows"])
                    for b in records(at["operand_maps"])
                ],
            )
        )  # fmt: skip
    return found


def _label(row: Row) -> dict[str, Any]:
    """Fields of a shown latent that stand in its row of the TransformTable."""
    same = ("label", "reason", "discovery_auroc", "confound_auroc", "selectivity", "confounding")
    same = (*same, "confounded_with", "effect_size", "overlap", "q_value", "of")
    named = {name: row[name] for name in same}
    return named | {
        "auroc": auroc_of(row), "confound": row["worst_confound"], "mutual_info": row["mutual_info_nats"],
    }  # fmt: skip


def _rival(row: Row | None) -> Figure:
    return Figure(math.nan, reason="not asked at this token") if row is None else auroc_of(row)


def _tunings(curves: pd.DataFrame, fits: pd.DataFrame) -> list[TuningView]:
    fitted, found = {row["of"]: row for row in records(fits)}, []
    for of, own in curves.groupby("of", sort=False):
        rows = own.sort_values("value")
        words = tuning_words(fitted[of]) if of in fitted else ""
        columns = (rows[name].tolist() for name in ("value", "mean", "n_rows"))
        found.append(TuningView(str(of), *columns, words=words))
    return found


def tuning_words(fit: Row) -> str:
    """What a regression of a tuning curve says: fit, null, the line alone, what is lost without a period."""
    if math.isnan(fit["r2"]):
        return f"No regression: {fit['reason']}."
    lost = {"parity": "parity_share"}
    if not math.isnan(fit["best_period"]) and fit["best_period"] != 2:
        lost[f"period {fit['best_period']:g}"] = "best_share"
    known = {what: fit[name] for what, name in lost.items() if not math.isnan(fit[name])}
    parts = [f"{number(share)} without {what}" for what, share in known.items()]
    said = f"R² {number(fit['r2'])}, in random order below {number(fit['null_q95'])}"
    said = f"{said}; q {number(fit['q_value'])}. A line alone explains {number(fit['linear_share'])}."
    return f"{said} Lost: {', '.join(parts)}." if parts else said


def probe_view(rows: pd.DataFrame) -> ProbeView:
    """Probes of one concept, representations × numbers of features."""
    sizes = sorted(set(rows["k"]), key=lambda k: (k == ALL, k))
    first = rows.iloc[0]
    found = []
    for name, own in rows.groupby("representation", sort=False):
        by_size = {row["k"]: row for row in records(own)}
        found.append(ProbeRow(str(name), [
            auroc_of(by_size[k]) if k in by_size else Figure(math.nan) for k in sizes
        ]))  # fmt: skip
    return ProbeView(
        first["site"], first["role"], ["all" if k == ALL else str(k) for k in sizes], found,
        sparse_words(rows), int(first["n_rows"]), int(first["n_tasks"]),
    )  # fmt: skip


def sparse_words(rows: pd.DataFrame) -> str:
    """How the best probe of few latents compares with one of the whole activation."""
    latents = rows[(rows["representation"] == "latents") & rows["minus_dense"].notna()]
    few = latents[latents["k"] != ALL]
    latents = latents if few.empty else few
    if latents.empty:
        why = rows["reason"][rows["reason"] != ""]
        return f"Latents and the whole activation cannot be compared{': ' + why.iloc[0] if len(why) else ''}."
    best = records(latents.nlargest(1, "auroc"))[0]
    size = "all latents" if best["k"] == ALL else _counted(int(best["k"]), "latent")
    less, low, high = (best[f"minus_dense{end}"] for end in ("", "_low", "_high"))
    if best["verdict"] == "below dense":
        by = f"{number(-less)} {interval(-high, -low)}"
        return f"The whole activation beats the best probe of latents ({size}) by {by}."
    by = f"{number(less)} {interval(low, high)}"
    if best["verdict"] == "above dense":
        return f"The best probe of latents ({size}) beats the whole activation by {by}."
    said = f"The best probe of latents ({size}) and the whole activation are not told apart"
    return f"{said}: latents minus whole {by}."


def moved_views(rows: pd.DataFrame) -> list[MovedView]:
    """The causal matrix of one concept, one for each way of moving latents.

    Args:
        rows: the concept's rows of a SpecificityTable.
    """
    views = []
    for way, own in rows.groupby("way", sort=False):
        beliefs = list(dict.fromkeys(own["belief"]))
        named = own[own["own"]]["belief"]
        moved = [_moved(records(group), beliefs) for _, group in own.groupby(KEY, sort=False)]
        views.append(
            MovedView(
                str(way), WAYS.get(str(way), ""), beliefs, "" if named.empty else str(named.iloc[0]), moved
            )
        )
    return views


def _moved(rows: Sequence[Row], beliefs: Sequence[str]) -> MovedRow:
    first, by_belief = rows[0], {row["belief"]: row for row in rows}
    undefined = Figure(math.nan, reason="this belief is not defined at every query")
    effects = [_effect(by_belief[name]) if name in by_belief else undefined for name in beliefs]
    own = next((row for row in rows if row["own"]), None)
    joint = first["latent"] == JOINT
    name = f"{first['site']}, all together" if joint else f"{first['site']} · {first['latent']}"
    counts = {name: int(first[name]) for name in ("n_controls", "n_active", "n_prompts")}
    if own is None:
        why = "no belief names this concept, so nothing can confirm it"
        return MovedRow(name, first["role"], effects, Figure(math.nan), "", math.nan, **counts, why=why)
    why = unconfirmed(own)
    margin = Figure(own["margin"], own["margin_low"], own["margin_high"], own["reason"])
    return MovedRow(
        name, first["role"], effects, margin, own["rival"], own["control_p"], **counts, why=why
    )  # fmt: skip


def _effect(row: Row) -> Figure:
    return Figure(row["effect"], row["ci_low"], row["ci_high"], row["reason"])


def unconfirmed(own: Row) -> str:
    """Why a latent is not a cause of its own belief; "" when it is, as `transform_findings.confirmed` says.

    Args:
        own: its row of a SpecificityTable for the belief that its concept names.
    """
    if own["n_active"] == 0:
        return "not tested: it is active in none of these runs"
    why = []
    if math.isnan(own["margin"]):
        why.append(own["reason"] or "there is no rival belief")
    elif not own["specific"]:
        moved_more = own["margin"] <= 0
        why.append(f"{own['rival']} is moved {'more' if moved_more else 'as much within the interval'}")
    elif not own["specific_standardised"]:
        why.append("a rival is moved as much in units of what random latents do to it")
    if math.isnan(own["control_p"]):
        why.append("no control was moved")
    elif own["control_p"] > CAUSAL_P:
        few = 1 / (1 + own["n_controls"]) > CAUSAL_P
        why.append(
            f"{own['n_controls']} controls are too few for p ≤ {CAUSAL_P}" if few
            else "random latents move it as far"
        )  # fmt: skip
    return "; ".join(dict.fromkeys(why))


def _at(rows: pd.DataFrame, site: Any, role: Any, latent: Any) -> pd.DataFrame:
    return rows[(rows["site"] == site) & (rows["role"] == role) & (rows["latent"] == latent)]


def _by(rows: pd.DataFrame, key: list[str]) -> dict[tuple[Any, ...], Row]:
    return {tuple(row[name] for name in key): row for row in records(rows)}
