"""Do the three claims of the post this project starts from hold on the run's model? Clause by clause.

1. Each claim is taken apart into clauses that a table of the run decides; one of them is its core. 2. A claim
whose core fails does not hold, whatever else does; one whose clauses all hold, holds; the rest hold in part.
A clause whose table has no answer is not tested, and counts for neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from iclens.dashboards.records.site import ClaimView, Clause
from iclens.results.read import Results
from iclens.schemas import CREATED, LADDER
from iclens.study.pages.transform_findings import X_ALONE, X_CUT, mechanism_words

Decide = Callable[[Results], list[Clause]]
"""Decides the clauses of one claim."""
HOLDS, FAILS, UNTESTED = "holds", "does not hold", "not tested"
BACKUP = ("backup", "both")
"""Verdicts of the redundancy ladder in which later heads rise."""
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


def claims(of: Callable[[str, Decide], list[Clause]]) -> list[ClaimView]:
    """The three claims, in the post's order.

    Args:
        of: gives the clauses of the claim it is told, by what decides them from a run.
    """
    stated: tuple[tuple[str, Decide], ...] = (
        ("Language models have many redundant attention heads for a task.", _redundant),
        ("In-context learning adds features, one Bayesian update per example.", _additive),
        ("MLPs break the task into subtasks, as features as large as their confidence.", _broken),
    )
    views = []
    for number, (claim, decide) in enumerate(stated, start=1):
        clauses = of(f"claim {number}", decide)
        views.append(ClaimView(number, claim, judged(clauses), clauses))
    return views


def judged(clauses: list[Clause]) -> str:
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


def _redundant(results: Results) -> list[Clause]:
    table = results.table("redundancy_ladder")
    ladders = [rows for _, rows in table.groupby(["unit", "kind", "place", "belief"], sort=False)]
    ladder = ladders[0].to_dict("records") if ladders else []
    page = "patching.html"
    other = "When the layers that bring the task lose their heads, a later layer brings it."
    rise = "Later heads do more once earlier ones are gone (backup)."
    if len(ladder) < 2:
        reason = str(ladder[0]["reason"]) if ladder else "the redundancy ladder was not asked for"
        return [
            Clause(other, UNTESTED, f"{reason}.", page, core=True),
            Clause(rise, UNTESTED, f"{reason}.", page),
        ]
    first, second = ladder[0], ladder[1]
    layer = second["first_layer"]
    found = "none brings it" if math.isnan(layer) else f"that entering block {layer:.0f} brings it"
    said = (
        f"The residual entering block {first['first_layer']:.0f} brings it first; without the heads of "
        f"{second['ablated']} {found}."
    )
    if second["n_controls"]:
        said += (
            f" As many other layers taken away leave {second['control_ne_before']:.2f} of the effect, these "
        )
        said += f"{second['ne_before']:.2f}."
    low, high = second["later_heads_low"], second["later_heads_high"]
    worth = f"{second['later_heads']:+.2f} [{low:+.2f}, {high:+.2f}] nats; verdict {second['verdict']}"
    return [
        Clause(other, _verdict(not math.isnan(layer)), said, page, core=True),
        Clause(
            rise,
            _verdict(second["verdict"] in BACKUP if second["verdict"] else None),
            f"Later heads’ rise is worth {worth}.",
            page,
        ),
    ]


def _additive(results: Results) -> list[Clause]:
    growth, page = results.table("growth"), "growth.html"
    linear = int(growth["verdict"].isin(LADDER[2:]).sum())
    listed = int(growth["shortlisted"].sum())
    named = results.facts_of_growth["accounts"].get("verdict", "")
    core = Clause(
        "Some latent adds an equal step per example (certified on its short list).",
        _verdict(linear > 0 if listed else None),
        f"{linear} of {listed} on the short list do. {named}".strip(),
        page,
        core=True,
    )
    fired = {"fired": False, "did not fire": True}
    return [
        core,
        *(
            Clause(STATED[row["falsifier"]], _verdict(fired.get(row["fired"])), row["evidence"], page)
            for row in results.table("falsifiers").to_dict("records")
            if row["falsifier"] in STATED
        ),
    ]


def _broken(results: Results) -> list[Clause]:
    page = "concepts.html#mlp"
    words = mechanism_words(results)
    created, sure = results.table("creation"), results.table("confidence")
    carried, operands = results.table("transport"), results.table("operands")
    pairs = created[created["verdict"] != "not measured"].drop_duplicates(["concept", "layer"])
    told = sure[(sure["over"] == "active rows") & (sure["verdict"] != "")].drop_duplicates(["site", "latent"])
    read = carried[carried["weights"] == "attention"].dropna(subset=["r2"])
    read = read.drop_duplicates(["site", "latent"])
    return [
        Clause(
            "MLPs create features of the transformation at the label.",
            _verdict(bool(pairs["verdict"].str.startswith(CREATED).any()) if len(pairs) else None),
            f"{words[1]}.",
            page,
            core=True,
        ),
        Clause("Attention brings x to the label.", _verdict(_brought(operands)), f"{words[0]}.", page),
        Clause(
            "The size of such features is the model’s confidence (in most of them).",
            _verdict(_most(told["verdict"].eq("confidence"))),
            f"{words[2]}.",
            page,
        ),
        Clause(
            "Later updates follow where attention looks (in most of them).",
            _verdict(_most(read["attention_minus_equal_low"].gt(0))),
            f"{words[3]}.",
            page,
        ),
    ]


def _brought(operands: pd.DataFrame) -> bool | None:
    """Whether x is there, and cutting attention to it takes most of it away."""
    known = operands.dropna(subset=["value"])
    alone = known[known["measure"] == X_ALONE].sort_values("value")
    if alone.empty:
        return None
    layer, best = alone[["layer", "value"]].iloc[-1]
    left = known[(known["measure"] == X_CUT) & (known["layer"] == layer)]["value"]
    return None if left.empty else bool(best > 0 and left.iloc[0] < best / 2)


def _most(held: pd.Series[bool]) -> bool | None:
    """Whether most rows do; None without any."""
    return bool(np.mean(held) > 0.5) if len(held) else None
