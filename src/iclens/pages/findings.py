"""What was found, in words: the claims of the post this project starts from, and the cards of the index.

A claim is taken apart into clauses that a table of the run decides; one of them is its core. A claim whose
core fails does not hold, whatever else does; one whose clauses all hold, holds; the rest hold in part. A
clause whose table has no answer is not tested, and counts for neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from iclens.concepts.labels import CANDIDATE
from iclens.concepts.language import IDENTITY
from iclens.core import IclensError
from iclens.pages.growth import ANSWER, growth_counts
from iclens.pages.section import FORMLESS, Frame, Source, records
from iclens.patching.runs import ZERO
from iclens.patching.sets import FULL, GREEDY, HALF
from iclens.patching.sweep import BASE, GIVEN, TARGET
from iclens.patching.sweep import FULL as WHOLE
from iclens.schemas import CREATED, LADDER, PATCH_Q

T = TypeVar("T")
HOLDS, FAILS, UNTESTED = "holds", "does not hold", "not tested"
BACKUP = ("backup", "both")
"""Verdicts of the redundancy ladder in which later heads rise."""
MOVED = 0.5
"""Least P(task on B's own x) after a patch for which the task counts as moved."""
X_ALONE, X_CUT = "x decodable (y unrelated)", "x decodable, lab→x cut (y unrelated)"
"""Measures of M2 that tell x from what y gives away."""
CAUSAL_P = 0.05
"""Largest `control_p`, not corrected for how many latents are moved, of one that moves its own belief."""
STATED = {
    "F1": "Latents grow with the task’s examples, on held-out prompts too.",
    "F2": "Growth adds one equal step per example, rather than saturating.",
    "F3": "Latents grow less where the labels carry no task.",
    "F4": "A new example counts for more than a repeated one.",
    "F5": "The order of the examples matters less than which they are.",
    "F6": "Pushing a growing latent moves the answer more than pushing a random one.",
    "F7": "The growing latents account for a quarter of the belief’s growth or more.",
    "F8": "Latents grow where a supervised direction does, and nowhere else.",
}
"""What each falsifier would refute, said as the claim says it."""


class Clause(NamedTuple):
    """A part of a claim that can be decided: what it says, and the figures that its verdict rests on."""

    asks: str
    verdict: str
    evidence: str
    core: bool = False


class Claim(NamedTuple):
    """A claim: its number, what it says, the page with its figures, its verdict and its clauses."""

    number: int
    claim: str
    page: str
    verdict: str
    clauses: Sequence[Clause]


class Finding(NamedTuple):
    """A card: the answer in a few words, the figures it rests on, and the page with the details, if any."""

    verdict: str
    evidence: str
    where: str = ""
    place: str = ""


# ---------------------------------------------------------------- claims


def claims(source: Source) -> list[Claim]:
    """The three claims, in the post's order: the docstrings of the functions that take them apart."""
    made = []
    pages = {_redundant: "patching.html", _additive: "growth.html", _broken: "concepts.html"}
    for n, (decide, page) in enumerate(pages.items(), start=1):
        clauses, why = tried(decide, source)
        verdict = f"not decided here: {why}" if why else judged(clauses or [])
        made.append(Claim(n, decide.__doc__ or "", page, verdict, clauses or []))
    return made


def tried(make: Callable[[Source], T], source: Source) -> tuple[T | None, str]:
    """What is made of a source, or why it is not there."""
    try:
        return make(source), ""
    except IclensError as cause:
        return None, f"{cause.asked} is {cause.found}"
    except FORMLESS as cause:
        return None, f"what it reads is empty or of another form ({type(cause).__name__})"


def judged(clauses: Sequence[Clause]) -> str:
    """The verdict of a claim."""
    tested = [clause for clause in clauses if clause.verdict != UNTESTED]
    holding = sum(clause.verdict == HOLDS for clause in tested)
    core = [clause for clause in clauses if clause.core]
    if any(clause.verdict == UNTESTED for clause in core) or not tested:
        return "not decided here"
    count = f"{holding} of its {len(tested)} tested clauses {'holds' if holding == 1 else 'hold'}"
    if any(clause.verdict == FAILS for clause in core):
        return f"does not hold here; {count}" if holding else "does not hold here"
    return "holds here" if holding == len(tested) else f"holds here in part: {count}"


def _verdict(held: bool | None) -> str:
    return UNTESTED if held is None else HOLDS if held else FAILS


def _redundant(source: Source) -> list[Clause]:
    """Language models have many redundant attention heads for a task."""
    table = source.results.table("redundancy_ladder")
    ladders = [rows for _, rows in table.groupby(["unit", "kind", "place", "belief"], sort=False)]
    ladder = records(ladders[0]) if ladders else []
    other = "When the layers that bring the task lose their heads, a later layer brings it."
    rise = "Later heads do more once earlier ones are gone (backup)."
    if len(ladder) < 2:
        reason = f"{ladder[0]['reason'] if ladder else 'the redundancy ladder was not asked for'}."
        return [Clause(other, UNTESTED, reason, core=True), Clause(rise, UNTESTED, reason)]
    first, second = ladder[0], ladder[1]
    layer, verdict = second["first_layer"], second["verdict"]
    brings = "none brings it" if math.isnan(layer) else f"that entering block {layer:.0f} brings it"
    evidence = (
        f"The residual entering block {first['first_layer']:.0f} brings it first; without the heads of "
        f"{second['ablated']} {brings}."
    )
    if second["n_controls"]:
        evidence += (
            f" As many other layers taken away leave {second['control_ne_before']:.2f} of the effect, these "
            f"{second['ne_before']:.2f}."
        )
    low, high = second["later_heads_low"], second["later_heads_high"]
    worth = f"{second['later_heads']:+.2f} [{low:+.2f}, {high:+.2f}] nats"
    backup = verdict in BACKUP if verdict else None
    return [
        Clause(other, _verdict(not math.isnan(layer)), evidence, core=True),
        Clause(rise, _verdict(backup), f"Later heads’ rise is worth {worth}; verdict {verdict}."),
    ]


def _additive(source: Source) -> list[Clause]:
    """In-context learning adds features, one Bayesian update per example."""
    growth = source.results.table("growth")
    linear, listed = int(growth["verdict"].isin(LADDER[2:]).sum()), int(growth["shortlisted"].sum())
    named = source.results.facts_of_growth["accounts"].get("verdict", "")
    core = "Some latent adds an equal step per example (certified on its short list)."
    evidence = f"{linear} of {listed} on the short list do. {named}".strip()
    fired = {"fired": False, "did not fire": True}
    return [Clause(core, _verdict(linear > 0 if listed else None), evidence, core=True)] + [
        Clause(STATED[row["falsifier"]], _verdict(fired.get(row["fired"])), row["evidence"])
        for row in records(source.results.table("falsifiers"))
        if row["falsifier"] in STATED
    ]


def _broken(source: Source) -> list[Clause]:
    """MLPs break the task into subtasks, as features as large as their confidence."""
    words, parts = mechanism_words(source), _mechanism(source)
    created = parts.pairs["verdict"].str.startswith(CREATED)
    asked = (
        (
            "MLPs create features of the transformation at the label.",
            bool(created.any()) if len(created) else None,
        ),
        ("Attention brings x to the label.", _brought(parts.operands)),
        (
            "The size of such features is the model’s confidence (in most of them).",
            _most(parts.told["verdict"].eq("confidence")),
        ),
        (
            "Later updates follow where attention looks (in most of them).",
            _most(parts.read["attention_minus_equal_low"].gt(0)),
        ),
    )
    evidence = (words[1], words[0], *words[2:])
    return [
        Clause(claim, _verdict(holds), f"{figures}.", core=n == 0)
        for n, ((claim, holds), figures) in enumerate(zip(asked, evidence, strict=True))
    ]


def _brought(operands: Frame) -> bool | None:
    """Whether x is there, and cutting attention to it takes most of it away."""
    best, left = _x_alone(operands)[1:]
    return None if math.isnan(left) else best > 0 and left < best / 2


def _most(held: pd.Series[bool]) -> bool | None:
    """Whether most rows do; None without any."""
    return bool(np.mean(held) > 0.5) if len(held) else None


# ---------------------------------------------------------------- mechanism


class _Mechanism(NamedTuple):
    """Rows of M1 to M6 that can tell something, each (concept, block) or latent once."""

    operands: Frame
    pairs: Frame
    told: Frame
    read: Frame


def _mechanism(source: Source) -> _Mechanism:
    names = ("operands", "creation", "confidence", "transport")
    operands, created, sure, carried = map(source.results.table, names)
    told = sure[(sure["over"] == "active rows") & (sure["verdict"] != "")]
    read = carried[carried["weights"] == "attention"].dropna(subset=["r2"])
    return _Mechanism(
        operands,
        created[created["verdict"] != "not measured"].drop_duplicates(["concept", "layer"]),
        told.drop_duplicates(["site", "latent"]),
        read.drop_duplicates(["site", "latent"]),
    )


def mechanism_words(source: Source) -> list[str]:
    """What M1 to M6 found, a sentence each: x at lab, creation, sizes, transport."""
    parts = _mechanism(source)
    kinds, sizes = (
        parts.pairs["verdict"].str.split(":").str[0].value_counts(),
        parts.told["verdict"].value_counts(),
    )
    others = ", ".join(f"{n} {kind}" for kind, n in kinds.items() if kind != CREATED)
    rest = ", ".join(f"{n} {kind}" for kind, n in sizes.items() if kind != "confidence")
    beats = int((parts.read["attention_minus_equal_low"] > 0).sum())
    return [
        _x_at_lab(parts.operands),
        f"{kinds.get(CREATED, 0)} of {len(parts.pairs)} (concept, block) pairs are created by the MLP: "
        f"{others or 'none'}",
        f"{sizes.get('confidence', 0)} of {len(parts.told)} latents at lab follow confidence: "
        f"{rest or 'none'}",
        f"Attention weights beat equal weights for certain in {beats} of {len(parts.read)} followed latents",
    ]


def _x_alone(operands: Frame) -> tuple[float, float, float]:
    """Where x itself is read best at lab: block, R², and R² with attention to it cut; NaN where unknown."""
    known = operands.dropna(subset=["value"])
    alone = known[known["measure"] == X_ALONE].sort_values("value")
    if alone.empty:
        return math.nan, math.nan, math.nan
    layer, best = alone[["layer", "value"]].iloc[-1]
    left = known[(known["measure"] == X_CUT) & (known["layer"] == layer)]["value"].tolist()
    return float(layer), float(best), float(left[0]) if left else math.nan


def _x_at_lab(operands: Frame) -> str:
    layer, best, left = _x_alone(operands)
    if math.isnan(layer):
        return "Whether x is at lab was not measured: no task's y is unrelated to x"
    cut = "not measured" if math.isnan(left) else f"{round(left, 2) + 0.0:.2f}"  # + 0.0: no minus before zero
    return (
        f"x itself is read best at block {layer:.0f} (R² {best:.2f} where y says nothing of x), and with "
        f"attention from lab to x cut R² is {cut}"
    )


def confirmed(matrix: Frame) -> Frame:
    """Rows of `specificity` whose latent moves its own belief more than others, and than matched ones do."""
    own = matrix[matrix["own"] & (matrix["latent"] >= 0)]
    sure = own["specific"] & own["specific_standardised"] & (own["control_p"] <= CAUSAL_P)
    return own[sure].drop_duplicates(["site", "role", "latent", "concept"])


# ---------------------------------------------------------------- cards


def cards(source: Source) -> list[tuple[str, Finding]]:
    """Each question with its answer, or with the reason why it has none."""
    made = [(make.__doc__ or "", *tried(make, source)) for make in CARDS]
    return [(question, card or Finding("not there", f"Because {why}.")) for question, card, why in made]


def _grown(source: Source) -> Finding:
    """Do latents grow with the examples seen?"""
    counts, q = growth_counts(source.results.table("growth")), source.config.growth.q
    tested, grows, falls = (int(counts[name].sum()) for name in ("tested", "grows", "falls"))
    most = counts[counts["grows"] > 0].sort_values("grows", ascending=False, kind="stable").head(3)
    where = ", ".join(f"{row['grows']} at {row['site']} {row['role']}" for row in records(most))
    treated, control = source.config.treated, " and ".join(source.config.controls)
    return Finding(
        f"{grows} of {tested} tests grow, {falls} fall" if tested else "not tested",
        f"Paired slope {treated} − {control} over prompts, q ≤ {q} with one error rate for the study. "
        + (f"Most: {where}." if where else "None at any site.")
        + " Growth says nothing about its shape.",
        "latents.html#verdict=grows&sort=-slope",
        "Every latent that grows, steepest first",
    )


def _log_odds(source: Source) -> Finding:
    """Do the log-odds of the task's answer rise by a constant step per example?"""
    fit = source.results.bayes[ANSWER]
    model, exact, agree = fit["model"], fit["exact"], fit["agreement"]
    if model["lam"] is None:
        return Finding("no fit", f"The fit is undefined: {model['reason']}.")
    span = f"Over examples {model['n_first']} to {model['n_last']}"
    evidence = f"{span}: model λ {_interval(model, 'lam')} nats per example"
    if exact["lam"] is None:
        return Finding("no exact posterior to compare with", f"{evidence}; exact: {exact['reason']}.")
    slope = ""
    if agree["slope"] is not None:
        slope = f" Model on exact log-odds: slope {agree['slope']:.2f}, r {agree['r']:.2f}."
    return Finding(
        f"λ {model['lam']:.2f} (exact {exact['lam']:.2f}), r of the line {model['r']:.3f}",
        f"{evidence}, exact posterior {_interval(exact, 'lam')}.{slope}",
    )


def _interval(fit: Mapping[str, Any], name: str) -> str:
    return f"{fit[name]:.3f} [{fit[f'{name}_low']:.3f}, {fit[f'{name}_high']:.3f}]"


def _labelled(source: Source) -> Finding:
    """Which latents answer to a transformation and to nothing else?"""
    table = source.results.table("transforms")
    granted = table[~table["label"].isin(["", CANDIDATE])].drop_duplicates(["site", "latent", "label"])
    candidates = table[table["label"] == CANDIDATE].drop_duplicates(["site", "latent"])
    of_one_task, others = int((granted["label"] == IDENTITY).sum()), granted[granted["label"] != IDENTITY]
    counts = ", ".join(f"{label} {n}" for label, n in others["label"].value_counts().items())
    named = ", ".join(f"{row['site']} {row['latent']}" for row in records(others.head(6)))
    held_out, discovery = (len(source.results.grid[side]) for side in ("held_out", "discovery"))
    verdict = f"{len(others)} latents, for {', '.join(others['label'].unique())}" if len(others) else "none"
    if of_one_task:
        verdict += f"; {of_one_task} stand for one task alone"
    moved = confirmed(source.results.table("specificity"))
    which = ", ".join(
        f"{row['site']} {row['latent']} ({row['concept']}, {row['way']})" for row in records(moved)
    )
    return Finding(
        verdict,
        (f"Labels granted: {counts} ({named}). " if counts else "")
        + f"{len(candidates)} latents are candidates that failed a gate. Measured on {held_out} held-out "
        f"tasks, chosen on {discovery} others. {len(moved)} of those that were moved change their own "
        f"belief most{': ' + which if which else ''}.",
        "concepts.html",
        "All concepts",
    )


def _placed(source: Source) -> Finding:
    """Where does the residual carry the task, and not only the answer?"""
    table = source.results.table("sweep")
    rows = table[(table["recipient"] == ZERO) & (table["role"] == "pre")]
    own, copied = (records(rows[rows["metric"] == name]) for name in ("task on own x", "copy"))
    top, copying = (max(some, key=lambda record: record["value"]) for some in (own, copied))
    beside = next(record for record in copied if record["layer"] == top["layer"])
    verdict = "at no layer of pre"
    if top["ci_low"] > top["base"]:
        verdict = f"{'' if top['value'] >= MOVED else 'weakly, '}entering layer {top['layer']} at pre"
    interval = f"[{top['ci_low']:.3f}, {top['ci_high']:.3f}]"
    return Finding(
        verdict,
        f"There P(task on B's own x) is {top['value']:.3f} {interval} against {top['base']:.3f} unpatched, "
        f"and P(A's answer copied) {beside['value']:.3f}; copying peaks at layer {copying['layer']} with "
        f"{copying['value']:.3f}. Run B: {ZERO}.",
    )


def _moved(source: Source) -> Finding:
    """Does one latent, patched from run A into run B, move a belief?"""
    table = source.results.table("patches")
    if table.empty:
        return Finding("nothing was patched", "No latent differs between the runs.")
    tested = table[table["n_controls"] > 0].drop_duplicates(["site", "latent"])
    n_controls, called = int(table["n_controls"].max()), table[table["q_value"] <= PATCH_Q]
    n_called = len(called.drop_duplicates(["site", "latent"]))
    best = max(records(called), key=lambda row: abs(row["effect"]), default=None)
    strongest = ""
    if best is not None:
        named = f"{best['site']} latent {best['latent']} on {best['belief']}, {best['effect']:+.2f} nats"
        strongest = f"Largest at q ≤ {PATCH_Q}: {named}. {_missed(table, best)}"
    n_tests = int(table.groupby(["site", "role"])["control_p"].count().max())
    least = math.ceil(n_tests / (PATCH_Q * (n_controls + 1)))
    floor = ""
    if not n_called and least > n_tests:
        floor = f"With {n_controls} controls no q can be that small: it takes {math.ceil(1 / PATCH_Q) - 1}. "
    elif not n_called and least > 1:
        floor = (
            f"With {n_controls} controls no q of {n_tests} tests can be that small unless {least} beat "
            "every control. "
        )
    page = source.links.get((best["site"], best["latent"]), "") if best is not None else ""
    return Finding(
        f"{n_called} of {len(tested)} tested latents",
        f"{strongest}Against {n_controls} matched random latents pushed as far. {floor}Run B: "
        f"{source.config.patch.recipient}.",
        page,
        "The page of this latent",
    )


def _missed(table: Frame, best: Mapping[str, Any]) -> str:
    """The tested effect that is larger than the largest called one, if any, and why it is not called."""
    larger = table[(table["effect"].abs() > abs(best["effect"])) & table["q_value"].notna()]
    if larger.empty:
        return ""
    row = records(larger.loc[[larger["effect"].abs().idxmax()]])[0]
    return (
        f"Larger, but not called: {row['site']} latent {row['latent']} on {row['belief']}, "
        f"{row['effect']:+.2f} nats (control p {row['control_p']:.2g}, q {row['q_value']:.2g}). "
    )


def smallest_set(sets: Frame, belief: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The full activation where it moves a belief most, and the smallest greedy set chosen to bring half."""
    sets = sets[(sets["direction"] == "sufficiency") & (sets["belief"] == belief)]
    full = max(records(sets[sets["kind"] == FULL]), key=lambda row: row["effect"], default=None)
    if full is None:
        return None, None
    greedy = sets[(sets["kind"] == GREEDY) & (sets["screen_share"] >= HALF)]
    greedy = greedy[(greedy["site"] == full["site"]) & (greedy["role"] == full["role"])].sort_values("size")
    return full, next(iter(records(greedy)), None)


def _carried(source: Source) -> Finding:
    """How much do few latents bring of what the whole activation brings, chosen to bring half?"""
    sets, belief = source.results.table("sets"), source.config.patch.chosen_for
    full, best = smallest_set(sets, belief)
    if full is None:
        return Finding("nothing was patched", "")
    where = f"{full['site']} {full['role']}"
    most = f"The whole activation moves {belief} most at {where}: {full['effect']:+.2f} nats."
    if best is None:
        greedy = sets[(sets["kind"] == GREEDY) & (sets["site"] == full["site"]) & (sets["belief"] == belief)]
        reached = greedy[greedy["direction"] == "sufficiency"]["share_of_full"].max()
        tried_ = f" The greedy order reaches {reached:.2f} of it." if reached == reached else ""
        return Finding(f"no set of up to {source.config.patch.largest_set} brings half", most + tried_)
    beside = (
        f" that of {best['n_controls']} sets of matched random latents pushed as far "
        f"{best['control_share']:.2f} [{best['control_low']:.2f}, {best['control_high']:.2f}]."
        if best["n_controls"]
        else ""
    )
    return Finding(
        f"{best['size']} at {best['site']} {best['role']} bring {best['share_of_full']:.2f}",
        f"Chosen on half of the prompts; on the others their share is {best['share_of_full']:.2f} "
        f"[{best['share_low']:.2f}, {best['share_high']:.2f}],{beside} {most}",
    )


def _follows(source: Source) -> Finding:
    """Does the patched answer follow run B's own x?"""
    table = source.results.table("response_fits")
    fits = {row["patch"]: row for row in records(table.drop_duplicates("patch"))}
    if WHOLE not in fits:
        return Finding("not asked", "No response curve was drawn.")
    whole = fits[WHOLE]
    named = (("run B", BASE), ("A*", TARGET), ("the greedy set alone", GIVEN))
    slopes = "; ".join(f"{name} {fits[patch]['slope']:.2f}" for name, patch in named if patch in fits)
    return Finding(
        f"slope {whole['slope']:.2f} [{whole['slope_low']:.2f}, {whole['slope_high']:.2f}]",
        f"E[y | x] on x with the whole activation of {whole['site']} patched; {slopes}. It answers f(x) "
        f"first on {100 * whole['top_1_answer']:.0f} % of {whole['n_x']} x. Run B: {whole['recipient']}.",
    )


CARDS = (_grown, _log_odds, _labelled, _placed, _moved, _carried, _follows)
"""What makes the cards of the index; the docstring of each is the question that it answers."""
