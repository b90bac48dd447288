"""The page of patching: what run A has to give to run B so that B answers as A would."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from iclens.pages.draw import NAN
from iclens.pages.section import (
    Across,
    Cell,
    Choose,
    Columns,
    Frame,
    Page,
    Panel,
    Row,
    Section,
    Source,
    figure,
    latent,
    records,
    share,
)
from iclens.pages.text import number
from iclens.patching.heads import WHOLE_LAYER
from iclens.patching.sets import ALL, FULL, GREEDY, MEANS, NEURONS, OWN
from iclens.patching.sweep import BASE, GIVEN, TARGET
from iclens.table import Axis, Curves, Heat, Points

HEADLINE, COPY = "task on own x", "copy"
SWEPT = {HEADLINE: "Task applied to B's own x", COPY: "A's own answer copied"}
"""Sweep metrics that get a heat map."""
READ = {HEADLINE: "The task’s answer to its own x", COPY: "Run A’s answer"}
"""The same of the logit lens."""
REPLACED = {
    "zero": "Heads set to zero",
    "mean": "Heads set to their mean without a task",
    "resample": "Heads set to run B's",
}
"""Kinds of ablation in words."""
STRONGEST, SINGLES = 12, 15
"""Heads, and components after them, that are shown; single latents at each role."""
SUMS = {
    "total": "total (TE)", "ablated": "these heads, direct (DE)", "compensation": "compensation (TE − DE)",
    "later heads": "later heads", "later MLPs": "later MLPs", "later": "later heads and MLPs",
    "later heads, given the loss": "later heads, given loss",
    "later, given the loss": "later, given the loss",
}  # fmt: skip
"""Parts of an ablation's effect that are no single component, and their names."""
VERDICTS = {
    "delay": "delay: the task arrives later, and nothing after it gives back what was lost",
    "backup": "backup: later heads give back part of what was lost",
    "both": "delay and backup: the task arrives later, and later heads give back part of what was lost",
    "neither": "neither delay nor backup: nothing else takes over",
    "undecided": "undecided: too little was lost to tell",
}
"""What the redundancy ladder can find, in words."""
WAYS = {"sufficiency": "A’s values into B", "necessity": "B’s values into A*"}
"""Directions of a set's patch in words."""
SETS = {GREEDY: "task", OWN: "third", NEURONS: "control", ALL: "level", MEANS: "level"}
"""Kinds of set that are drawn, and how; those of one size are drawn across."""
PATCHED = {BASE: "Run B, not patched", TARGET: "A*, not patched", GIVEN: "The greedy set alone"}
"""Patches of a response curve whose names need words."""
EFFECT = Axis("effect", "change in log-odds, nats", "ci_low", "ci_high")
NATS: Columns = {"effect, nats": "effect", "low": "ci_low", "high": "ci_high"}
WHY: Columns = {"why undefined": "reason"}


def of_sweep(source: Source) -> str:
    """The belief that ablations are about."""
    return source.config.sweep.belief


def of_patch(source: Source) -> str:
    """The belief that sets of latents were chosen for."""
    return source.config.patch.chosen_for


DONOR = "{config.sweep.donor_examples} examples of {config.prompts.task}"


# ---------------------------------------------------------------- residual


def named(metrics: Mapping[str, str]) -> Choose:
    """Rows of some metrics with their names, in this order."""
    order = list(metrics)

    def where(table: Frame, source: Source) -> Frame:
        rows = table[table["metric"].isin(order)]
        rows = rows.sort_values("metric", key=lambda column: column.map(order.index), kind="stable")
        bases = rows.groupby(["metric", "recipient"])["base"] if "recipient" in rows else None
        unpatched = {} if bases is None else {"unpatched": bases.transform("mean")}
        return rows.assign(name=rows["metric"].map(metrics), **unpatched)

    return where


GRADED = {
    "task": "patched: task on B’s own x", "control": "patched: A’s answer copied",
    "exact": "A*, not patched: task on its own x",
}  # fmt: skip
"""Kinds of line of the best layer's patch by the donor's examples."""


def graded(table: Frame, source: Source) -> Frame:
    """The patch's two measures by the donor's examples, beside A* without one."""
    own, copied = (table[table["metric"] == name] for name in (HEADLINE, COPY))
    bare = own.assign(value=own["unpatched"], ci_low=own["unpatched_low"], ci_high=own["unpatched_high"])
    parts = {"task": own, "control": copied, "exact": bare}
    return pd.concat([part.assign(line=line, name=GRADED[line]) for line, part in parts.items()])


RESIDUAL = (
    Section(
        "Where does the residual carry the task?", "sweep", id="sweep", nav="Residual", shape="heat",
        intro="The residual stream at one role of run A replaces that of run B, before each block in turn; "
        "the last block is on top, and the fuller the colour, the larger the value. Run A holds "
        f"{DONOR}; means over {{config.sweep.n_prompts}} prompts. High in the last layers says nothing: "
        f"there "
        "the donor’s own answer arrives in any model.",
        where=named(SWEPT), each=("metric", "recipient"),
        caption=f"Whole residual of run A ({DONOR}) into run B, mean over {{config.sweep.n_prompts}} "
        f"prompts; "
        "without the patch {unpatched:.3f}. Role pre is the query's own, other roles are those of every "
        "example.",
        look={"down": "patched before block"}, title="{name} (run B: {recipient})", columns={},
    ),
    Section(
        "Does the patch grow with the donor’s examples?", "graded", id="graded", nav="By examples", level=3,
        drawn=graded, columns={}, title="Residual entering block {layer} at {role}",
        caption="Run B: {recipient}; mean over {n_prompts} prompts, band 95 %.",
        chart=Curves(
            Axis("n_seen", "examples in the donor’s context"),
            Axis("value", "probability", "ci_low", "ci_high"), (),
        ),
        intro="At the best layer of the sweep, donors with more and more examples lend their residual, "
        "beside A*, which holds as many examples and is not patched.",
        legend=GRADED,
    ),
    Section(
        "What would the residual answer on its way?", "lens", id="lens", nav="Logit lens", shape="heat",
        intro="The residual of A* at each layer and token of the query is read through the final norm and "
        "the unembedding, as if the model ended there; nothing is patched. After pre the label is in view.",
        where=named(READ), each=("metric",), look={"down": "entering block"}, columns={}, title="{name}",
        caption="Mean over {n_prompts} prompts with {n_seen} examples.",
    ),
)  # fmt: skip


# ---------------------------------------------------------------- heads


def lost(table: Frame, source: Source) -> Frame:
    """By how much the task's answer falls without each head."""
    rows = table[table["metric"] == HEADLINE]
    heads = ["all" if head == WHOLE_LAYER else str(head) for head in rows["head"]]
    fallen = {"effect": -rows["effect"], "ci_low": -rows["ci_high"], "ci_high": -rows["ci_low"]}
    return rows.assign(head=heads, name=rows["kind"].map(REPLACED), **fallen)


def _ablated(source: Source) -> Frame:
    """Effects of single heads on the belief, of the first way of ablating them."""
    table = source.rows("heads")
    rows = table[(table["metric"] == f"effect on {of_sweep(source)}") & (table["head"] != WHOLE_LAYER)]
    if rows.empty:
        return rows
    kind, place = rows[["kind", "place"]].iloc[0]
    return rows[(rows["kind"] == kind) & (rows["place"] == place)]


def strongest(table: Frame, source: Source) -> Frame:
    """Heads with what their loss costs, the costliest first; by what they add where none was ablated."""
    losses = _ablated(source)[["layer", "head", "effect", "ci_low", "ci_high"]]
    rows = table.merge(losses, on=["layer", "head"], how="left") if len(table) else table.assign(effect=NAN)
    order = rows["attribution" if losses.empty else "effect"].abs()
    return rows.iloc[(-order).argsort(kind="stable")].head(STRONGEST)


def strongest_intro(table: Frame, source: Source) -> str:
    """By what heads are ordered."""
    rows = _ablated(source)
    by = "what it adds to the answer, as no head was ablated"
    if len(rows):
        first = rows.iloc[0]
        by = f"what its loss costs ({REPLACED[first['kind']].lower()}, {first['place']})"
    return f"What each head writes at the query’s pre and where it looks; in the order of {by}."


def direct(table: Frame, source: Source) -> Frame:
    """The sums of an ablation's effect on the belief, then its strongest components."""
    rows = table[table["belief"] == of_sweep(source)]
    is_sum, order = rows["part"].isin(SUMS), list(SUMS)
    sums = rows[is_sum].sort_values("part", key=lambda part: part.map(order.index))
    single = (
        rows[~is_sum].sort_values("effect", key=lambda column: -column.abs(), kind="stable").head(STRONGEST)
    )
    return pd.concat([
        sums.assign(name=sums["part"].map(SUMS), mark="full"),
        single.assign(name=single["component"], mark="open"),
    ])  # fmt: skip


HEADS = (
    Section(
        "Which heads does the answer need?", "heads", id="heads", nav="Heads", shape="heat",
        intro="One head’s output in A* is replaced; shown is by how much P(the task’s answer) falls, in "
        "column "
        f"“all” for every head of the layer at once. Run A* holds {DONOR} and asks run B’s query; means over "
        "{config.sweep.n_prompts} prompts. A head that others can stand in for shows little here.",
        where=lost, each=("kind", "place"), look={"down": "block", "across": "head"}, columns={},
        chart=Heat("head", ("layer",), Axis("effect", "probability")), title="{name}, {place}",
        caption="Mean over {n_prompts} prompts with {n_seen} examples; unablated {base:.3f}.",
    ),
    Section(
        "The heads that matter most", "head_scores", id="strongest", level=3, where=strongest, chart=None,
        values="", intro=strongest_intro,
        columns={
            "head": "L{layer}H{head}",
            "its loss, nats": lambda row: Cell(
                row["effect"], row["ci_low"], row["ci_high"], "this head was not ablated"
            ),
            "adds to the answer, nats": "attribution", "score": figure("score"),
            "looks at labels": share("label_mass"), "outside BOS": share("label_share"),
            "at its own x": share("own_x_mass"), "at BOS": share("bos_mass"), **WHY,
        },
        under="Its loss: change of the task belief’s log-odds without it. Adds: direct path to the "
        "answer’s logit over the mean number’s, with the final norm frozen. Score: its output on the "
        "residual where the task works. Looks: share of its attention; 0 below .01 %.",
    ),
    Section(
        "Through what does their loss act?", "direct", id="direct", level=3, where=direct,
        intro="The needed heads are ablated, and one part at a time is put into the final residual as it "
        "then is: the heads themselves (direct effect), later heads, later MLPs. Filled: sums; open: the "
        "strongest single components. A sum of parts need not be the whole.",
        chart=Points(EFFECT, ("name",)),
        caption="Replaced by {kind} at {place}; mean over {n_prompts} prompts that took no part in choosing "
        "the heads, 95 % intervals.",
        title="{ablated} ablated: effects on {belief}", whole=True, values="Every component",
        columns={
            "component": lambda row: row["component"] or "sum", "part": "part",
            "belief": "belief", **NATS, "ratio to DE": "ratio", **WHY,
        },
    ),
)  # fmt: skip


# ---------------------------------------------------------------- redundancy


def joint_marks(table: Frame, source: Source) -> Frame:
    """Two marks for each set: the sum of its effects alone (open), and all of it at once."""
    said = [
        f"{row['ablated']} {number(row['joint'])} together, {number(row['singles'])} as a sum"
        for row in records(table)
    ]
    rows = table.assign(words=[number(value) for value in table["index"]], said=said)
    parts = [
        rows.assign(value=rows[name], low=rows[f"{name}_low"], high=rows[f"{name}_high"], mark=mark)
        for name, mark in (("singles", "open"), ("joint", "full"))
    ]
    return pd.concat(parts).sort_index(kind="stable")


def joint_words(row: Row) -> Cell:
    """What the difference of joint and single ablations says."""
    said = "they add up"
    if not (math.isfinite(row["index_low"]) and math.isfinite(row["index_high"])):
        said = "undefined"
    elif row["index_high"] < 0:
        said = "they stand in for each other"
    elif row["index_low"] > 0:
        said = "they cannot add up" if row["reason"] else "they need each other"
    return Cell(said, small=row["reason"])


LADDER = ["unit", "kind", "place", "belief"]


def ladder_marks(steps: Frame, source: Source) -> Frame:
    """What the residual still brings at each step, what is left where it worked before, and the controls."""
    steps = steps.assign(
        name=[f"without {ablated}" if ablated else "intact" for ablated in steps["ablated"]],
        words=["none works" if math.isnan(n) else f"layer {n:.0f}" for n in steps["first_layer"]],
        value=steps["ne"], low=steps["ne_low"], high=steps["ne_high"], mark="full",
        range_low=steps["control_ne_least"], range_high=steps["control_ne_greatest"],
    )  # fmt: skip
    steps = steps.assign(said=[_step_words(row) for row in records(steps)])
    left = steps.assign(value=steps["ne_before"], low=NAN, high=NAN, mark="open")
    return pd.concat([left, steps]).sort_index(kind="stable")


def _step_words(row: Row) -> str:
    beside = "" if math.isnan(row["control_ne_least"]) else (
        f", {number(row['control_ne_least'])} to {number(row['control_ne_greatest'])} in {row['n_controls']} "
        "control sets"
    )  # fmt: skip
    left = "" if math.isnan(row["ne_before"]) else f", left where it worked before {number(row['ne_before'])}"
    return f"{row['name']}: {number(row['ne'])}{left}{beside}"


def ladder_words(steps: Frame) -> str:
    """The verdict of one redundancy ladder."""
    first, last = steps.iloc[0], steps.iloc[-1]
    if len(steps) == 1:
        why = f": {first['reason']}" if first["reason"] else ""
        return f"The ladder ends before its first step{why}."
    intact, ends = (
        "no layer" if math.isnan(step["first_layer"]) else f"layer {step['first_layer']:.0f}"
        for step in (first, last)
    )
    verdict = VERDICTS.get(last["verdict"], last["verdict"])
    return f"Intact, {intact} works first; without {last['ablated']}, {ends} does. Verdict: {verdict}."


def _controls_of_step(row: Row) -> str:
    if not row["n_controls"]:
        return "–"
    return f"{row['n_controls']}: {number(row['control_ne_least'])} to {number(row['control_ne_greatest'])}"


REDUNDANCY = (
    Section(
        "Do heads stand in for each other?", "redundancy", id="redundancy", nav="Redundancy",
        intro="Sets of heads, and neighbouring layers, are ablated together and one at a time: where "
        "together costs more than the sum, each hid the other’s loss.",
        where={"belief": of_sweep}, drawn=joint_marks, values="",
        title="Together (filled) and as a sum of single ablations (open)", label="Joint and single ablations",
        chart=Points(
            Axis("value", "change in log-odds, nats; right: difference", "low", "high"), ("ablated",)
        ),
        columns={
            "ablated": "ablated", "together, nats": figure("joint"),
            "sum of single, nats": figure("singles"), "difference": figure("index"),
            "the context is worth": "span", "so": joint_words,
        },
    ),
    Section(
        "The redundancy ladder", "redundancy_ladder", id="ladder", level=3, drawn=ladder_marks,
        each=tuple(LADDER),
        intro="What carries the task is taken away, the sweep is run again, what took over is taken away, "
        "until no layer brings the task. Beside each step, as much else was taken away. Filled: what the "
        "first working layer, named at the right, brings; open: what is left at the layer that worked the "
        "step before; grey: left there in control sets, least to greatest.",
        say=lambda rows, source: "\n".join(ladder_words(own) for _, own in rows.groupby(LADDER, sort=False)),
        title=lambda rows, source: f"Ladder of {rows['unit'].iloc[0].replace('layer', 'layers')}",
        caption="Replaced by {kind} at {place}; run B: {recipient}; mean over {n_prompts} prompts with "
        "{n_seen} examples; shares of what the context is worth to {belief}; a layer works from .5 on.",
        chart=Points(Axis("value", "share of what the context is worth", "low", "high"), ("name",)),
        values="",
        columns={
            "without": lambda row: row["ablated"] or "nothing",
            "first layer that works": lambda row: (
                "none" if math.isnan(row["first_layer"]) else int(row["first_layer"])
            ),
            "it brings": figure("ne"), "left where it worked before": figure("ne_before"),
            "control sets": _controls_of_step, "donor’s own answer": figure("donor"),
            "later heads, nats": figure("later_heads"),
            "verdict": lambda row: Cell(row["verdict"], small=row["reason"]),
        },
    ),
)  # fmt: skip


# ---------------------------------------------------------------- latents


def _received(rows: Frame, source: Source) -> str:
    patch = source.config.patch
    value = (
        "the mean of A’s values over other prompts" if patch.donor_value == "task mean" else "A’s own value"
    )
    return (
        "The best single latent, all latents with B’s SAE error kept, that error alone, and the full "
        f"activation are moved, site by site; effects are on the log-odds of {of_patch(source)}, all on one "
        f"scale. Run B: {patch.recipient}; it receives {value}, at {' and '.join(patch.roles)}, from run A "
        f"with {patch.donor_examples} examples. Half of the prompts chose what is shown, the other half "
        "measured it."
    )


def _rung(row: Row) -> str:
    return f"best latent, {row['latent']}" if row["latent"] else row["rung"]


def rungs(table: Frame, source: Source) -> Frame:
    """Effects on the belief, each with its name."""
    rows = table[table["belief"] == of_patch(source)]
    worth = [number(gain) for gain in rows["donor"] - rows["base"]]
    return rows.assign(name=[_rung(row) for row in records(rows)], worth=worth)


def chosen_sets(table: Frame, source: Source) -> Frame:
    """Sets that were chosen for the belief, and judged by it."""
    belief, order = of_patch(source), list(WAYS)
    rows = table[(table["belief"] == belief) & (table["chosen_for"] == belief)]
    rows = rows.sort_values("direction", key=lambda column: column.map(order.index), kind="stable")
    whole = rows["effect"].where(rows["kind"] == FULL)
    keys = [rows[name] for name in ("direction", "site", "role")]
    return rows.assign(way=rows["direction"].map(WAYS), full_effect=whole.groupby(keys).transform("first"))


def set_curves(table: Frame, source: Source) -> Frame:
    """Share of the full activation's effect by number of members: a curve for each kind of set."""
    random = table[
        (table["kind"] == GREEDY) & table["share_of_full"].notna() & table["control_share"].notna()
    ]
    random = random.assign(
        name="random sets, 95 % of them", line="random", share_of_full=random["control_share"],
        share_low=random["control_low"], share_high=random["control_high"],
    )  # fmt: skip
    kinds = [table[table["kind"] == kind].assign(name=kind, line=line) for kind, line in SETS.items()]
    return pd.concat([*kinds, random])


def sets_caption(rows: Frame, source: Source) -> str:
    """On how many prompts, beside how many random sets, and what the full activation moves."""
    shares = rows[rows["share_of_full"].notna()]
    if shares.empty:
        return f"No share is defined: {rows['reason'].iloc[0] or 'no reason is kept'}."
    random, whole = shares[shares["line"] == "random"], rows["full_effect"].dropna()
    moved = f" Full activation: {whole.iloc[0]:+.2f} nats." if len(whole) else ""
    beside = f"; {random['n_controls'].max()} random sets of each size" if len(random) else ""
    return f"{rows['n_prompts'].iloc[0]} prompts of the test half, 95 % intervals{beside}.{moved}"


def singles(table: Frame, source: Source) -> Frame:
    """The latents of largest effect on the belief, role by role."""
    rows = table[(table["belief"] == of_patch(source)) & table["effect"].notna()]
    rows = rows.sort_values("effect", key=lambda column: -column.abs(), kind="stable")
    of = rows.groupby("role", sort=False)["effect"].transform("size")
    rows = rows.assign(
        of=of, name=[f"{site} · {latent}" for site, latent in zip(rows["site"], rows["latent"], strict=True)],
        mark=rows["n_controls"].gt(0).map({True: "full", False: "open"}),
    )  # fmt: skip
    roles = {role: i for i, role in enumerate(dict.fromkeys(rows["role"]))}
    rows = rows.groupby("role", sort=False).head(SINGLES)
    rows = rows.assign(shown=rows.groupby("role")["role"].transform("size"))
    return rows.sort_values("role", key=lambda column: column.map(roles), kind="stable")


def controls(table: Frame, source: Source) -> Frame:
    """What the largest set of each site does elsewhere, with another task's values, and backwards."""
    rows = table[table["belief"] == of_patch(source)]
    rows = rows.assign(n=rows["latents"].str.split().map(len), name=rows["control"],
                       mark=rows["control"].eq("own").map({True: "full", False: "open"}))  # fmt: skip
    largest = rows.sort_values("n", ascending=False, kind="stable").drop_duplicates(["site", "role"])
    return rows.merge(largest[["site", "role", "latents"]])


def screens_caption(rows: Frame, source: Source) -> str:
    """The worst miss of a linear screen."""
    caption = "1: as good as the exact effects; 0: no better than their mean."
    known = records(rows[rows["worst_miss"].notna()])
    if not known:
        return caption
    worst = max(known, key=lambda row: row["worst_miss"])
    return (
        f"{caption} Worst miss: {number(worst['worst_miss'])} nats, {worst['site']} latent "
        f"{worst['worst_latent']} (exact {number(worst['worst_exact'])}, linear "
        f"{number(worst['worst_linear'])})."
    )


PLACE: Columns = {"site": "site", "role": "role"}
LATENTS = (
    Section(
        "How much of it do latents carry together?", "ladder", id="latents", nav="Latents together",
        intro=_received, where=rungs, each=("site", "role"), title="{site} at {role}",
        caption="{n_prompts} prompts; the context is worth {worth} nats.", chart=Points(EFFECT, ("name",)),
        whole=True, values="Every belief",
        columns={
            **PLACE, "what is moved": _rung, "belief": "belief", **NATS, "share of A* − B": "normalised",
            **WHY,
        },
    ),
    Section(
        "How few latents do it?", "sets", id="sets", level=3, where=chosen_sets, drawn=set_curves,
        each=("direction", "site", "role"), title="{site} at {role}: {way}", caption=sets_caption,
        look={"log2": True},
        chart=Curves(
            Axis("size", "members of the set"),
            Axis("share_of_full", "share of the full effect", "share_low", "share_high"), (),
        ),
        intro="Latents are moved together, chosen greedily or by their own effect on one half of the "
        "prompts; shown is the share of the full activation’s effect on the other half, beside neurons of "
        "the MLP that writes there, and random sets of matched latents pushed as far.",
        legend={
            "task": "greedy", "third": "by own effect", "control": "neurons",
            "random": "random sets, 95 % of them",
        },
        values="Every set",
        columns={
            **PLACE, "way": "way", "set": "kind", "size": "size",
            "effect, nats": "effect", "share": "share_of_full", "low": "share_low", "high": "share_high",
            "random sets": "control_share", "random low": "control_low", "random high": "control_high",
            "p": "control_p", **WHY,
        },
    ),
    Section(
        "Does a single latent move the belief?", "patches", id="singles", nav="Single latents",
        where=singles, each=("role",), title="At {role}",
        intro="Every latent whose activation differs between A and B was moved alone; effects are on the "
        "log-odds of {config.patch.chosen_for}. The {config.patch.n_tested} of largest effect on the "
        "screening half of each site were compared with {config.patch.n_controls} matched random latents "
        "pushed as far; q is corrected over these, within the site. Filled: compared.",
        caption="The {shown} of largest effect on {belief}, of {of:,} that differ between A and B.",
        chart=Points(EFFECT, ("name",)), values="",
        columns=lambda rows, source: {
            "latent": latent(),
            **({"role": "role"} if rows["role"].nunique() > 1 else {}),
            "effect, nats": figure("effect"), "share of A* − B": "normalised",
            "differs in": "{n_changed} of {n_prompts}", "p": "control_p",
            "q": "q_value", "what to know": "reason",
        },
    ),
    Section(
        "Is it this task at this place?", "patch_controls", id="controls", nav="Controls",
        intro="At each site the set chosen to bring half of the full effect (or else the largest tried), "
        "and each tested latent, is put at another token of the query, given another task’s values, and "
        "turned round; an effect that survives is not about this task at this place. One scale for all "
        "sites.",
        where=controls, each=("site", "role"), title="{site} at {role}: {latents}",
        chart=Points(EFFECT, ("name",)), whole=True, caption="{n_prompts} prompts.",
        values="Every control, single latents included",
        columns={
            **PLACE, "latents": "latents", "patch": "control", "belief": "belief", **NATS,
            "what to know": "reason",
        },
    ),
    Section(
        "Would a linear screen have found them?", "screens", id="screens", nav="Linear screen", level=3,
        intro="Exact effects of single patches are compared with a first-order estimate; all effects on "
        "this page are exact, this only says what the short cut would have missed.",
        where={"belief": of_patch}, caption=screens_caption, chart=Points(Axis("r2", "R²"), ("site", "role")),
        whole=True, title="R² of the linear screen on {belief}", values="Every belief",
        columns={
            **PLACE, "belief": "belief", "effects": "n_effects", "R²": "r2", "slope": "slope",
            "worst miss, nats": "worst_miss", "its latent": lambda row: str(row["worst_latent"]),
            "exact": "worst_exact", "linear": "worst_linear", "top 10 found": "top_found", **WHY,
        },
    ),
)  # fmt: skip


# ---------------------------------------------------------------- answers by x

CURVE = ["task", "site", "patch", "latents", "recipient", "n_seen"]


def _patch_name(row: Row) -> str:
    """What was patched, in words."""
    if row["latents"].isdigit():
        return f"Latent {row['latents']} alone"
    return PATCHED.get(row["patch"]) or str(row["patch"]).capitalize()


def response_curves(table: Frame, source: Source) -> Frame:
    """Answers by x, their fitted line and the task's own answers, for each patch."""
    fits = source.rows("response_fits")[[*CURVE, "slope", "intercept"]]
    rows = table.merge(fits.drop_duplicates(CURVE), on=CURVE, how="left")
    rows["title"] = [_patch_name(row) for row in records(rows)]
    rows["donors"] = rows.groupby(CURVE)["n_donors"].transform("max")
    low, high = rows["mean"] - rows["sd"], rows["mean"] + rows["sd"]
    dots = rows.assign(name="E[y | x]", line="dots", y=rows["mean"], low=low, high=high)
    at_ends = rows.groupby(CURVE)["x"].transform(lambda x: x.isin([x.min(), x.max()]))
    fitted = rows.assign(name="fitted line", line="fit", y=rows["intercept"] + rows["slope"] * rows["x"])
    own = [float(y) if y.isdecimal() else NAN for y in rows["answer"]]
    return pd.concat([dots, fitted[at_ends], rows.assign(name="the task’s own answer", line="exact", y=own)])


def response_caption(rows: Frame, source: Source) -> str:
    """What was patched, and the line through its answers."""
    first = rows.iloc[0]
    which = f" Latents {first['latents']}." if " " in first["latents"] else ""
    fit = f"Slope {number(first['slope'])}, intercept {number(first['intercept'])}."
    return f"{first['site']} at pre; {first['donors']} donors for each x.{which} {fit}"


def curves_by_x(table: Frame, source: Source) -> Frame:
    """Answers by x, each with the name of its curve."""
    names = [f"{_patch_name(row)}, {row['site']}" for row in records(table)]
    return table.assign(curve=names).sort_values("x", kind="stable")


ANSWERS = (
    Section(
        "Does the patched answer follow run B’s own x?", "responses", id="responses", nav="Answers by x",
        intro="Run B asks about every x, with donors that show none of them; each dot is E[y | x] over "
        "numbers, with its spread over donors. If the task moved, the line follows the task’s own answers; "
        "if an answer was copied, it is flat.",
        drawn=response_curves, each=tuple(CURVE), title="{title}", caption=response_caption, marked=False,
        chart=Curves(Axis("x", "x of run B’s query"), Axis("y", "E[y | x]", "low", "high"), ()),
        legend={"dots": "E[y | x]", "fit": "fitted line", "exact": "the task’s own answer"},
        where=curves_by_x, per=("x",), values="Values by x",
        columns={"x": "x", "f(x)": "answer", "curves": Across("curve", "mean", otherwise=NAN)},
    ),
    Section(
        "", "response_fits", level=3, chart=None,
        values="Fitted lines, and how often the answer is the task’s own",
        columns={
            "patch": _patch_name, "site": "site", "x asked": "n_x", "slope": figure("slope"),
            "intercept": figure("intercept"),
            "change of slope": figure("slope_change"), "f(x) first": "top_1_answer",
            "f(x) in the first 5": "top_5_answer", "a·x first": "top_1_scaled", "odd first": "top_1_odd",
            **WHY,
        },
    ),
)  # fmt: skip

PATCHING = Page(
    "patching.html", "Patching", "Patching",
    "What run A, with examples, has to give to run B, without them, so that B answers as A would.",
    (*RESIDUAL, *HEADS, *REDUNDANCY, *LATENTS, *ANSWERS),
)  # fmt: skip


def headline(source: Source) -> Sequence[Panel]:
    """The first heat map of the sweep."""
    return RESIDUAL[0].drawn_panels(source)[:1]
