"""The page of concepts: latents, tuning, probes and effects of each, and what MLPs do at `lab`.

Shown are the latents whose tuning a run kept, the best of each concept; what was measured of them is found
in the tables by site, role and latent.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from iclens.concepts.labels import CANDIDATE
from iclens.concepts.language import IDENTITY, Concept
from iclens.pages.draw import Line, lines_chart, map_chart, tag, tick_text
from iclens.pages.findings import CAUSAL_P, confirmed, mechanism_words
from iclens.pages.section import (
    NAN,
    Across,
    Cell,
    Columns,
    Frame,
    Page,
    Panel,
    Row,
    Section,
    Source,
    figure,
    grid,
    latent,
    missing,
    paragraph,
    records,
    shade,
)
from iclens.pages.text import DASH, count, interval, number, percent
from iclens.study.grid import asked_concepts

ALL, JOINT = -1, -1
"""A probe of every feature; all chosen latents of a concept, moved together."""
PARITY = "odd"
"""The concept that parity claims are about."""
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
RAMP = Markup('<span class="ramp" aria-hidden="true">{}</span>').format(
    Markup("").join(Markup('<b class="a{}"> </b>').format(step) for step in range(1, 9))
)
"""The steps of colour, in a legend."""


# ---------------------------------------------------------------- tuning


def tuning_panel(
    rows: Sequence[Row], of: str, name: str, role: str, words: str = "", group: str = ""
) -> Panel:
    """Mean activation of a latent at a role by one number `of`, "y", "x" or "y-2x".

    A dot stands for each row of value, mean and n_rows, for neighbours may differ much; `words` are what a
    regression of the curve says, `group` the latents whose panels are unfolded together.
    """
    by, x, y = of.replace("-", " − "), [row["value"] for row in rows], [row["mean"] for row in rows]
    top = max(((m, v) for v, m in zip(x, y, strict=True) if math.isfinite(m)), default=None)
    peak = "undefined" if top is None else f"largest {number(top[0])} at {tick_text(top[1])}"
    label = f"Mean activation of {name} at {role} by {of}: {peak}."
    fewest, most = (pick((row["n_rows"] for row in rows), default=0) for pick in (min, max))
    each = count(fewest) if fewest == most else f"{count(fewest)} to {count(most)}"
    caption = f"{len(x)} values, {each} row{'' if most == 1 else 's'} each"
    return Panel(
        f"by {by}",
        caption,
        lines_chart([Line(of, "dots", x, y)], "", by, said=label),
        under=words,
        group=group,
    )


def map_panel(boxes: Sequence[Row], name: str, role: str, group: str = "") -> Panel:
    """Mean activation of a latent at a role by box of x and y: rows of x, y, width and mean."""
    width = int(boxes[0]["width"])
    top = max((box for box in boxes if math.isfinite(box["mean"])), key=lambda box: box["mean"], default=None)
    peak = "never active"
    if top is not None and top["mean"] > 0:
        spans = " and ".join(f"{axis} {top[axis]} to {top[axis] + width - 1}" for axis in ("x", "y"))
        peak = f"largest {number(top['mean'])}, {spans}"
    chart = map_chart([(box["x"], box["y"], box["mean"]) for box in boxes], width,
                      f"Mean activation of {name} at {role} by x and y: {peak}.")  # fmt: skip
    return Panel("by x and y", peak, chart, under=f"Boxes of {width} × {width}.", group=group)


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


# ---------------------------------------------------------------- one concept


def _latents(rows: Frame) -> set[tuple[str, int]]:
    return set(zip(rows["site"].tolist(), rows["latent"].tolist(), strict=True))


def labelled(rows: Frame) -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
    """Latents that are granted the label at any role, and the other candidates."""
    granted = _latents(rows[~rows["label"].isin(["", CANDIDATE])])
    return granted, _latents(rows[rows["label"] == CANDIDATE]) - granted


def verdict_words(rows: Frame) -> str:
    """How many latents are granted the label, how many are candidates, and what most of these lack."""
    granted, candidates = labelled(rows)
    if not (granted or candidates):
        return _nothing(rows)
    said = f"{_counted(len(granted), 'latent')} granted the label, {_counted(len(candidates), 'candidate')}; "
    said += "the best of them below."
    said = said[0].upper() + said[1:]
    best = rows[rows["label"] == CANDIDATE].sort_values("auroc", ascending=False)
    best = best.drop_duplicates(["site", "latent"])
    own = [row for row in records(best) if (row["site"], row["latent"]) in candidates]
    failed = Counter(gate for row in own for gate in gates_of(row["reason"]))
    if not failed:
        return said
    gate, n = failed.most_common(1)[0]
    return f"{said} What candidates failed most often: {gate} ({n} of {len(own)})."


def _nothing(rows: Frame) -> str:
    measured = rows.dropna(subset=["auroc"])
    if rows.empty:
        return "Nothing can be said of this concept: it was not asked of any latent."
    if measured.empty:
        why = Counter(rows["reason"]).most_common(1)[0][0]
        if rows["discovery_auroc"].isna().all():
            return f"Nothing can be said of this concept: {why}."
        return f"No latent is granted the label, and none is a candidate: {why}."
    best = records(measured.nlargest(1, "auroc"))[0]
    span = f"{number(best['auroc'])} {interval(best['ci_low'], best['ci_high'])}".strip()
    return (
        f"No latent is granted the label, and none is a candidate. The largest AUROC of {len(measured):,} "
        f"measured is {span}, {best['site']} · {best['latent']} at {best['role']}: "
        f"{best['reason'] or 'no gate is named'}."
    )


def gates_of(reason: str) -> list[str]:
    """The failed gates that a reason names, each once, in words."""
    named = [
        next((words for pattern, words in GATES if re.match(pattern, part)), part)
        for part in reason.split("; ")
        if part
    ]
    return list(dict.fromkeys(named))


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}" if n else f"no {what}"


def kept(table: Frame, source: Source, concept: str) -> Frame:
    """Rows of a table about the latents whose tuning was kept for a concept, in that order."""
    curves = source.rows("tuning_curves")
    keys = curves[curves["concept"] == concept][KEY].drop_duplicates()
    return keys.merge(table, on=[name for name in KEY if name in table])


def shown(table: Frame, source: Source, concept: str) -> Frame:
    """Those latents with their row of the TransformTable, their mass and their stability."""
    rows = kept(table[table["concept"] == concept], source, concept)
    masses = source.rows("masses")[["site", "latent", "kind", "lab_share"]]
    rows = rows.merge(masses, on=["site", "latent"], how="left").fillna({"kind": ""})
    stable = source.rows("stability")
    stable = stable[stable["concept"] == concept].groupby(KEY)["stable"].agg(["sum", "size"]).reset_index()
    rows = rows.merge(stable, on=KEY, how="left").fillna({"sum": 0, "size": 0})
    return rows.assign(place=_places(rows))


def _places(rows: Frame) -> list[str]:
    """At which token latents are read, and of which task those of one task are."""
    tasks = [f" task {of}" if of else "" for of in rows["of"]]
    return [f"at {role}{task}" for role, task in zip(rows["role"], tasks, strict=True)]


def rivals(table: Frame, source: Source, concept: str) -> Frame:
    """What each of those latents tells of every concept, its own first."""
    rows = kept(table, source, concept)
    own = rows["concept"] == concept
    rows = rows[own.groupby([rows[name] for name in KEY]).transform("any")]
    rows = rows.assign(place=_places(rows), other=rows["concept"] != concept)
    return rows.sort_values("other", kind="stable")


def _label(row: Row) -> Cell:
    absent = "active where it is absent" if row["effect_size"] < 0 else ""
    why = "; ".join(filter(None, (absent, row["reason"])))
    return Cell(row["label"] or "none", small=why, strong=row["label"] not in ("", CANDIDATE))


def _works(row: Row) -> Cell:
    at_lab = "" if math.isnan(row["lab_share"]) else f"{percent(row['lab_share'])} at lab"
    return Cell(row["kind"], small=at_lab)


LABEL_COLUMNS: Columns = {
    "latent": latent("{place}"), "label": _label, "AUROC": figure("auroc"), "discovery": "discovery_auroc",
    "worst confound": figure("confound_auroc", "worst_confound", ends=""), "selectivity": "selectivity",
    "V in the design": figure("confounding", "confounded_with", ends=""),
    "d": "effect_size", "MI, nats": "mutual_info_nats", "κ": "overlap", "q": "q_value", "works as": _works,
    "found again": lambda row: f"{row['sum']:.0f} of {row['size']:.0f}" if row["size"] else "–",
}  # fmt: skip


def tuning_panels(table: Frame, source: Source, concept: str) -> list[Panel]:
    """Mean activation of the shown latents by y, x, y − 2x, and by x and y."""
    fits = {(*(row[name] for name in KEY), row["of"]): row for row in records(source.rows("tunings"))}
    maps, panels = source.rows("operand_maps"), []
    maps = {key: records(own) for key, own in maps[maps["concept"] == concept].groupby(KEY)}
    for key, own in table.groupby(KEY, sort=False):
        site, role, latent_ = key
        name = f"{site} · {latent_}"
        at = {"role": str(role), "group": f"{name} at {role}"}
        for of, rows in own.groupby("of", sort=False):
            words = tuning_words(fits[*key, of]) if (*key, of) in fits else ""
            panels.append(tuning_panel(records(rows.sort_values("value")), str(of), name, words=words, **at))
        panels += [map_panel(maps[key], name, **at)] if key in maps else []
    return panels


def _auroc(kind: str = "") -> Any:
    """Cells of an AUROC, shaded by how far it is above chance."""
    return lambda row: figure("auroc", kind=f"{shade(row['auroc'])} {kind}".strip())(row)  # type: ignore[operator]


def rival_columns(concept: str, names: Sequence[str]) -> Columns:
    """How well each shown latent tells every concept of the page, its own framed."""
    columns: dict[str, Any] = {"latent": latent("{place}")}
    for name in names:
        own, kind = (", own", "own") if name == concept else ("", "")
        unasked = Cell(NAN, reason="not asked at this token", kind=kind)
        columns[name] = Across("concept", _auroc(kind), f"{{}}{own}", [name], unasked)
    return columns


def by_size(rows: Frame, source: Source) -> Columns:
    """Probes by what they read and by the number of features, all of them last."""
    sizes = sorted(set(rows["k"]), key=lambda k: (k == ALL, k))
    heading = lambda k: "all" if k == ALL else str(k)  # noqa: E731
    return {"read from": "representation", "sizes": Across("k", _auroc(), heading, sizes)}


def sparse_words(rows: Frame) -> str:
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
    apart = "and the whole activation are not told apart: latents minus whole"
    return f"The best probe of latents ({size}) {apart} {by}."


PROBE_NOTE = (
    "AUROC of logistic probes at {site} {role}, by the number of features they may use, on tasks they were "
    "not trained on ({n_tasks:,} tasks, {n_rows:,} rows; intervals over folds, approximate). Random labels "
    "must come out near .5. That a probe can read a concept does not say that the model uses it."
)


def unconfirmed(own: Row) -> str:
    """Why a latent is not a cause of its own belief; "" when it is, as `findings.confirmed` says.

    `own` is its row of a SpecificityTable for the belief that its concept names.
    """
    if own["n_active"] == 0:
        return "not tested: it is active in none of these runs"
    why = []
    if math.isnan(own["margin"]):
        why.append(own["reason"] or "there is no rival belief")
    elif not own["specific"]:
        why.append(
            f"{own['rival']} is moved {'more' if own['margin'] <= 0 else 'as much within the interval'}"
        )
    elif not own["specific_standardised"]:
        why.append("a rival is moved as much in units of what random latents do to it")
    if math.isnan(own["control_p"]):
        why.append("no control was moved")
    elif own["control_p"] > CAUSAL_P:
        few = 1 / (1 + own["n_controls"]) > CAUSAL_P
        why.append(
            f"{own['n_controls']} controls are too few for p ≤ {CAUSAL_P}"
            if few
            else "random latents move it as far"
        )
    return "; ".join(dict.fromkeys(why))


def moved(rows: Frame, source: Source, concept: str) -> Frame:
    """What moving latents of a concept does to every belief; its concept's own comes first."""
    rows = rows[rows["concept"] == concept]
    order = rows.groupby(["way", *KEY], sort=False).ngroup()
    named = rows["belief"].isin(rows[rows["own"].astype(bool)]["belief"])
    rows = rows.assign(order=order, other=~rows["own"].astype(bool), kind=named.map({True: "own", False: ""}))
    rows["members"] = [
        ", all together" if row["latent"] == JOINT else f" · {row['latent']}" for row in records(rows)
    ]
    return rows.sort_values(["order", "other"], kind="stable")


def _effect(row: Row) -> Cell:
    return Cell(row["effect"], row["ci_low"], row["ci_high"], row["reason"], kind=row["kind"])


def _confirmed(row: Row) -> Cell:
    why = unconfirmed(row) if row["own"] else "no belief names this concept, so nothing can confirm it"
    return Cell("no", small=why) if why else Cell("yes", strong=True)


def _margin(row: Row) -> Cell:
    if not row["own"]:
        return Cell(NAN)
    rival = f"over {row['rival']}" if row["rival"] else ""
    return Cell(row["margin"], row["margin_low"], row["margin_high"], row["reason"], small=rival)


def matrix_columns(rows: Frame, source: Source) -> Columns:
    """A line for each latent, a column for each belief; that of the concept is framed."""
    beliefs = dict.fromkeys(rows.sort_index()["belief"])
    own = set(rows[rows["own"].astype(bool)]["belief"])
    undefined = "this belief is not defined at every query"
    controls = lambda row: f"{count(int(row['n_controls']))} controls"  # noqa: E731
    columns: dict[str, Any] = {
        "latent": lambda row: Cell(f"{row['site']}{row['members']}", small=row["role"]),
        "confirmed?": _confirmed, "margin": _margin,
        "control p": lambda row: Cell(row["control_p"] if row["own"] else NAN, small=controls(row)),
    }  # fmt: skip
    for name in beliefs:
        kind, heading = ("own", "{}, own") if name in own else ("", "{}")
        columns[name] = Across("belief", _effect, heading, [name], Cell(NAN, reason=undefined, kind=kind))
    return columns


MATRIX_NOTE = (
    "Change of each belief’s log-odds in nats, with a 95 % interval over prompts; framed is the belief "
    "that the concept names. Margin: size of the effect on it minus the largest on a rival belief; it "
    "has to be above 0 in nats, and in units of what random latents do to each belief. Control p: share "
    "of matched random latents that move it as far. Effects are those of the study’s own task; on "
    "another they may differ. Runs and controls are of their own; the page of patching has others, and "
    "so other figures. Of task identities only the study’s own task’s are moved, so that other latents "
    "may stand here than above."
)


def concept_sections(one: Concept, place: int, names: Sequence[str]) -> list[Section]:
    """Everything about one concept, `place` on the page, where `names` are all its concepts."""
    name = one.name
    unprobed = (
        "which task it is has as many answers as tasks, and a probe reads a concept with two sides"
        if name == IDENTITY
        else "no latent could be measured on the discovery tasks, so that no place is best"
    )
    confounds = ", ".join(confound.name for confound in one.confounds)
    intro = f"{one.meaning[:1].upper()}{one.meaning[1:]}."
    none = "No latent is shown: none passed even the gates of a candidate."

    def own(table: Frame, source: Source) -> Frame:
        return table[table["concept"] == name]

    return [
        Section(
            name,
            "transforms",
            id=f"concept-{place}",
            nav=name, where=own, chart=None, columns={},
            intro=f"{intro} Its latents must not answer to: {confounds}." if confounds else intro,
            say=lambda rows, source: verdict_words(rows), empty="It was not asked of any latent.",
        ),
        Section(
            "Latents", "transforms", level=3, where=lambda rows, source: shown(rows, source, name),
            chart=None, columns=LABEL_COLUMNS, values="", kind="compact", empty=none,
            under="AUROC on held-out tasks (task identity: on held-out prompts of the same tasks), with a "
            "95 % interval over prompts; discovery: the same on the tasks that chose the latent and its "
            "direction. V: how far the tasks themselves tie the concept to a confound. d, MI and κ: effect "
            "size, mutual information, agreement of being active with the concept beyond chance. Works as: "
            "detection where nearly all activation is at lab, execution where it is at pre. Found again: "
            "other SAEs in which the same label was granted to a matching latent; a dash where none was "
            "asked.",
        ),
        Section(
            "What they are tuned to", "tuning_curves", level=3, where=own, columns={}, shape="tuned",
            panels=lambda rows, source: tuning_panels(rows, source, name), empty=none,
            intro=Markup(
                "Fuller in a map: larger; 0 {} its largest mean; outlined: not above 0; blank: no examples."
            ).format(RAMP),
            under="Mean activation over all tasks of the grid, zeros included. Tasks that share a value of "
            "y differ in x, so a curve over y also shows x; the label above holds such things fixed, a "
            "curve does not.",
        ),
        Section(
            "Confusion with the other concepts", "transforms", level=3, chart=None, values="", kind="cells",
            where=lambda rows, source: rivals(rows, source, name), per=tuple(KEY), empty=none,
            columns=rival_columns(name, names),
            under="AUROC of the same latent, at the same token, for every concept against that concept’s "
            "own matched negatives; framed is its own. A second high value need not be a confusion: "
            "concepts that share examples are told by the same latent, and the worst confound above is "
            "measured with the concept held fixed.",
        ),
        Section(
            "How well it can be read at all", "probes", level=3, where=own, chart=None, values="",
            kind="cells", say=lambda rows, source: sparse_words(rows), columns=by_size,
            per=("representation",), under=PROBE_NOTE,
            empty=f"No probe was trained: {unprobed}.",
        ),
        Section(
            "What moving them does", "specificity", level=3,
            where=lambda rows, source: moved(rows, source, name), chart=None, values="", kind="cells",
            apart="way", apart_words=WAYS, per=tuple(KEY), columns=matrix_columns,
            empty="No latent was moved: none is granted the label or a candidate.", under=MATRIX_NOTE,
        ),
    ]  # fmt: skip


# ---------------------------------------------------------------- overview


def overview(source: Source) -> Markup:
    """One row per concept."""
    asked = asked_concepts(source.config)
    if not asked:
        return missing("No concept was asked for in this run.")
    transforms, effects = source.results.table("transforms"), source.results.table("specificity")
    rows = []
    for place, one in enumerate(asked, start=1):
        own, moves = transforms[transforms["concept"] == one.name], effects[effects["concept"] == one.name]
        singles = moves[moves["own"] & (moves["latent"] != JOINT) & (moves["n_active"] > 0)]
        causes = Cell("–", small="none moved" if one.belief or moves["own"].any() else "no belief")
        if len(singles):
            causes = Cell(f"{len(_latents(confirmed(moves)))} of {len(_latents(singles))}")
        granted, candidates = labelled(own)
        rows.append({
            "concept": tag("a", one.name, href=f"#concept-{place}"), "meaning": one.meaning,
            "granted": len(granted), "candidates": len(candidates), "best AUROC": float(own["auroc"].max()),
            "confirmed of moved, in any way": causes,
        })  # fmt: skip
    note = (
        "Counted are latents, whatever the token at which they were read. The best AUROC is the largest of "
        "all latents on held-out tasks, so it flatters."
    )
    table = grid("Overview of concepts", {name: name for name in rows[0]}, rows, kind="")
    return table + paragraph("under", note)


def overview_words(rows: Frame, source: Source) -> str:
    """What a label and a confirmed latent are, and on which tasks they were asked."""
    held_out, discovery = (len(source.results.grid[side]) for side in ("held_out", "discovery"))
    return (
        "A label says that a latent tells a concept on tasks that took no part in finding it, and answers "
        "to none of its confounds; a candidate failed at least one of these gates. A latent is confirmed "
        "when moving it changes the concept’s own belief more than its rivals, in nats and in units of what "
        f"matched random latents do, and further than these change it. Latents were chosen on {discovery} "
        f"tasks and judged on {held_out} others."
    )


# ---------------------------------------------------------------- mechanism


def _chance(row: Row) -> str:
    return "" if math.isnan(row["value"]) else f"chance {number(row['null'])}"


def by_block(table: Frame, source: Source) -> Frame:
    """Rows from the first block to the last."""
    return table.sort_values("layer", kind="stable")


def parity(table: Frame, source: Source) -> Frame:
    """The blocks at which parity was read, with the reason of any of their figures."""
    own = table[table["concept"] == PARITY].sort_values("layer")
    why = own.groupby("layer")["reason"].transform(lambda some: next(filter(None, some), ""))
    return own.assign(reason=why).drop_duplicates("layer")


def carried(table: Frame, source: Source) -> Frame:
    """What sizes at `lab` predict, with what is said of the kinds of weights that can tell."""
    said = table["reason"].where(table["r2"].notna(), "")
    keys = [table[name] for name in ("concept", "site", "latent")]
    note = said.groupby(keys).transform(lambda some: "; ".join(dict.fromkeys(filter(None, some))))
    return table.assign(note=note)


def answers(source: Source) -> Markup:
    """What M1 to M6 found, a sentence each."""
    return Markup("\n").join(paragraph("verdict", f"{sentence}.") for sentence in mechanism_words(source))


PERIODS = Section(
    "Periods of a number", "subspaces", id="periods", nav="Periods", chart=None, kind="cells", values="",
    intro="A number may be kept as angles: cos and sin of 2πv ∕ T for some periods T. One latent can carry "
    "T = 2, which is parity; a longer period needs several features together. Shown is how much of each "
    "period a regression on several features explains on held-out tasks.",
    columns={
        "at": "{site} {role}", "read from": "representation", "of": "of",
        "period": lambda row: Cell(tick_text(row["period"])),
        "R²": figure("r2"), "p": "p_value",
        "features for 90 % of it": lambda row: Cell(
            f"{row['n_for_90']:.0f}" if row["n_for_90"] > 0 else DASH,
            small=f"of {count(int(row['n_features']))}",
        ),
    },
    under="p: share of relabellings of the values that do as well. R² below 0 is worse than a constant; a "
    "dash stands where it is not above 0. That a period can be read does not say that the model computes "
    "with it.",
)  # fmt: skip
MECHANISM = (
    Section(
        "What MLPs do where labels are read", id="mlp", nav="MLPs", body=answers,
        intro="At lab the model has x and y before it. Here is where they stand, which part of a block "
        "writes a concept, and what becomes of it.",
    ),
    Section(
        "M1 and M2. Are x and y there, each in a place of its own?", "operands", level=3, chart=None,
        kind="cells", values="", per=("measure",), where=by_block,
        columns={
            "measure": "measure", "blocks": Across("layer", figure("value", _chance), "block {}"),
        },
        under="Of the residual that each block’s MLP reads at lab. Chance: the mean with x dealt anew over "
        "the rows; it is high where few directions hold most of the variance. Overlap: 0 when the x- and "
        "y-directions are at right angles, 1 when they are the same; the two halves’ overlap is the "
        "ceiling. Decodable: R² of a code of the number on prompts not trained on; with attention from lab "
        "to x cut, what is left came another way, for a task’s y gives x away, so read the lines on tasks "
        "whose y says nothing of x. Being readable there does not show that the MLP reads it.",
    ),
    Section(
        "M3. Where is a concept created?", "creation", level=3, chart=None, kind="cells", values="",
        where=by_block, apart="concept", per=("layer",),
        columns=lambda rows, source: {
            "block": lambda row: str(row["layer"]),
            "sources": Across("source", _auroc(), values=[*dict.fromkeys(source.rows("creation")["source"])]),
            "verdict": "verdict",
        },
        intro="AUROC, on held-out tasks, of a probe trained at each site around a block. Created by the "
        "MLP: not to be read in resid_mid, to be read in mlp_out, and at the end of the model gone when "
        "this MLP is ablated and not when the block’s attention is. A probe that fails does not show that "
        "the concept is absent, only that it cannot be read linearly.",
    ),
    Section(
        "M4. Parity: attention or MLP?", "creation", level=3, where=parity, chart=None, kind="cells",
        values="", empty="Parity was not read around the blocks in this run.",
        columns={
            "block": lambda row: str(row["layer"]),
            "AUROC of attn_out − mlp_out": figure("attention_minus_mlp"),
            "larger": lambda row: row["larger"] or "–",
        },
        under="Two-sided, both read on the same resampled prompts. The larger is where parity is easier to "
        "read, which need not be where it is computed.",
    ),
    Section(
        "M5. Is a latent’s size the model’s confidence?", "confidence", level=3, chart=None, kind="cells",
        values="",
        columns={
            "concept": "concept", "latent": latent(), "over": "over", "r with log P(y)": figure("r"),
            "given y": figure("r_given_magnitude"), "r with y, given log P(y)": figure("magnitude_r"),
            "rows": "n_rows",
            "size is": lambda row: Cell(row["verdict"], small="" if math.isnan(row["r"]) else row["reason"]),
        },
        under="The best latents of each concept at lab, candidates included, on the prompts of the grid. "
        "Rank correlations of the activation at lab with the log-probability that the model gave the label "
        "before it saw it, and with the label’s magnitude; both partial ones hold x, the example number "
        "and the concept’s label fixed. A correlation does not say which causes which.",
    ),
    Section(
        "M6. Does it reach later answers?", "transport", level=3, chart=None, kind="cells", values="",
        where=carried, per=("concept", "site", "latent"),
        columns={
            "concept": "concept", "latent": latent(), "block": "layer",
            "weights": Across("weights", figure("r2"), "r², {}"),
            "attention − equal": figure("attention_minus_equal"), "attention to labels": "lab_attention",
            "note": lambda row: tag("small", row["note"]),
        },
        under="The same latents on prompts of the study’s own task alone, where some are never active. "
        "Squared correlation of what the next block’s heads write at later pre tokens, along the latent’s "
        "image, with what its sizes at the earlier labels predict. The prediction is one summand of what "
        "it predicts, so that a positive r² is no finding: compare attention with equal weights, with the "
        "mean size and with other prompts’ sizes. It follows one block only.",
    ),
)  # fmt: skip


def sections(source: Source) -> list[Section]:
    """The overview, every concept that was asked, and the mechanism."""
    asked = asked_concepts(source.config)
    names = [one.name for one in asked]
    first = Section("Overview", id="overview", nav="Overview", intro=overview_words, body=overview)
    own = [
        section for place, one in enumerate(asked, start=1) for section in concept_sections(one, place, names)
    ]
    return [first, *own, PERIODS, *MECHANISM]


CONCEPTS = Page(
    "concepts.html", "Concepts", "Concepts",
    "Which latents answer to one concept and to nothing else, which numbers they are tuned to, what moving "
    "them does, and "
    "which part of the model writes the concept.", sections,
)  # fmt: skip
