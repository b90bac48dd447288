"""Are the built-in model's heads redundant: does the task survive without those that carry it, and how?

1. Heads are ablated one by one on one draw of prompts; those that the answer needs are chosen there. 2. On
another draw they are ablated together and alone: is the joint effect more than the sum? 3. Direct effects say
who loses the task and whether later components make up for it; the residual sweep from an ablated donor says
whether the task only comes later. 4. The ladder: ablate what carries the task, sweep again, ablate what took
over, beside as many other heads or layers. All of it in the model and in its plain twin. What is said at the
end, also of the post's claims, is read off these numbers.

    python analysis/03_redundant_heads.py [--model FOLDER] [--twin FOLDER] [--task SPEC] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd

from iclens import (
    BELIEFS,
    LEAST_RISE,
    WORKS,
    Ablation,
    IclensError,
    LanguageModel,
    Runs,
    Task,
    Verdict,
    ablate_heads,
    ablation_edits,
    arrival,
    build_runs,
    direct_effects,
    iterative_ablation,
    judge,
    load_model,
    parse_task,
    prompt_weights,
    redundancy_index,
    schemas,
)

ROOT = Path(__file__).resolve().parents[1]
STRONG = 1.0
"""Nats of log-odds: a head whose loss costs less is not needed, an index nearer to 0 is not discussed."""
MOST_HEADS = 4
KEPT = 0.5
"""Share of the intact donor's P(own answer) from which an ablated donor still gives it."""
Heads = tuple[tuple[int, int], ...]  # of (layer, head)
ZERO = "zero examples"
WHOLE_LAYER = -1
"""Head of the rows in which all heads of a layer are ablated."""
LATER_PARTS = ("later heads", "later heads, given the loss")
LADDERS = (("zero", "pre", ZERO), ("mean", "pre", "S arm"), ("zero", "all positions", ZERO))
"""Kind, place and recipient; the recorded experiments are the first."""


def options() -> argparse.Namespace:
    """What to run, from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=ROOT / "checkpoints" / "icl-tiny", help="model folder")
    parser.add_argument(
        "--twin", default=ROOT / "checkpoints" / "icl-tiny-twin", help="its plain twin's folder"
    )
    parser.add_argument("--task", default="2x+3", help="the donor's task")
    parser.add_argument("--belief", default="exact", choices=BELIEFS, help="on which a layer works")
    parser.add_argument("--donors", type=int, default=12, help="examples in the donor's context")
    parser.add_argument("--prompts", type=int, default=32, help="pairs of runs")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the prompts that choose; the next one measures"
    )
    parser.add_argument("--out", type=Path, help="folder for the figures; none are drawn without it")
    return parser.parse_args()


@dataclass(frozen=True)
class Finding:
    """What was measured on one model.

    Args:
        name: of the model.
        belief: in whose log-odds.
        heads: single ablations on the prompts that choose.
        needed: the heads that the answer needs, strongest first.
        index: joint against single effects of these heads, and of layers two by two.
        direct: direct effects of ablating the needed heads.
        verdicts: ablation in words → delay, backup, both or neither.
        rises: joint direct effect of later heads, read at every layer above each ablated layer.
        ladders: one for each of `LADDERS`, by layers, and the first by heads.
        curves: NE by layer at each step of the first ladder.
    """

    name: str
    belief: str
    heads: schemas.HeadTable
    needed: Heads
    index: schemas.RedundancyTable
    direct: schemas.DirectTable
    verdicts: dict[str, Verdict]
    rises: pd.DataFrame
    ladders: list[schemas.RedundancyLadderTable]
    curves: pd.DataFrame


def needed_heads(table: schemas.HeadTable, belief: str) -> Heads:
    """Heads whose loss costs at least `STRONG` nats, its interval below 0; else the strongest."""
    rows = table.where((table["metric"] == f"effect on {belief}") & (table["head"] != WHOLE_LAYER))
    order = np.argsort(rows["effect"], kind="stable")[:MOST_HEADS]
    sure = [i for i in order if rows["effect"][i] <= -STRONG and rows["ci_high"][i] < 0] or order[:1]
    return tuple((int(rows["layer"][i]), int(rows["head"][i])) for i in sure)


def examine(name: str, model: LanguageModel, task: Task, asked: argparse.Namespace) -> Finding:
    """Choose heads on one draw of prompts; measure everything else on the next."""

    def draw(recipient: str, seed: int) -> Runs:
        return build_runs(
            model.tokenizer, task, recipient=recipient, n_prompts=asked.prompts, donor_examples=asked.donors,
            seed=seed,
        )  # fmt: skip

    belief, runs = asked.belief, {kind: draw(kind, asked.seed + 1) for kind in (ZERO, "S arm")}
    heads = ablate_heads(model, draw(ZERO, asked.seed))
    needed = needed_heads(heads, belief)
    layers = [((i, WHOLE_LAYER), (i + 1, WHOLE_LAYER)) for i in range(model.n_blocks - 1)]
    index = schemas.RedundancyTable.concat(
        [
            redundancy_index(model, runs[ZERO], Ablation(some), beliefs=[belief])
            for some in ([needed, *layers] if len(needed) > 1 else layers)
        ]
    )
    singles = [((i, WHOLE_LAYER),) for i in range(model.n_blocks)]
    hidden = index.where((index["index"] <= -STRONG) & (index["index_high"] < 0))
    judged = [needed, *singles, *(Ablation.parse(text).heads for text in hidden["ablated"])]
    verdicts = {
        Ablation(some).text: judge(model, runs[ZERO], Ablation(some), belief=belief) for some in judged
    }
    ladders = [
        iterative_ablation(model, runs[recipient], belief=belief, kind=kind, place=place)
        for kind, place, recipient in LADDERS
    ]
    ladders.append(iterative_ablation(model, runs[ZERO], belief=belief, unit="heads", n_heads=1))
    direct = direct_effects(model, runs[ZERO], Ablation(needed), beliefs=[belief])
    curves = ladder_curves(model, runs[ZERO], ladders[0], belief)
    rises = later_heads(model, runs[ZERO], singles, belief)
    return Finding(name, belief, heads, needed, index, direct, verdicts, rises, ladders, curves)


def later_heads(model: LanguageModel, runs: Runs, sets: Sequence[Heads], belief: str) -> pd.DataFrame:
    """Direct effect of all later heads together, also given the loss, read at each layer above a set."""
    parts = []
    for some in sets:
        for reader in range(some[-1][0] + 2, model.n_blocks + 1):
            table = direct_effects(model, runs, Ablation(some), reader=reader, beliefs=[belief])
            parts.append(table.where(np.isin(table["part"], LATER_PARTS)).df)
    return pd.concat(parts, ignore_index=True)


def ladder_curves(
    model: LanguageModel, runs: Runs, ladder: schemas.RedundancyLadderTable, belief: str
) -> pd.DataFrame:
    """NE by layer at every step of a ladder, with intervals."""
    weights = prompt_weights(runs.donor.n_prompts, 1000, np.random.default_rng(0))
    parts = []
    for text in ladder["ablated"]:
        edits = ablation_edits(model, runs, Ablation.parse(text)) if text else ()
        swept = arrival(model, runs, belief, edits)
        ne = swept.normalised(weights)
        frame = {"layer": swept.layers, "ne": ne.value, "low": ne.low, "high": ne.high}
        parts.append(pd.DataFrame(frame | {"own": swept.own.mean(axis=0), "ablated": text or "nothing"}))
    return pd.concat(parts, ignore_index=True)


def interval(value: float, low: float, high: float) -> str:
    """A number with its 95 % interval."""
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def print_tables(found: Finding) -> None:
    """The numbers, aligned."""
    print("\n  single heads, zeroed at pre: effect in nats (rows: layers; last column: the whole layer)")
    rows = found.heads.df.query(f"metric == 'effect on {found.belief}'")
    grid = rows.pivot(index="layer", columns="head", values="effect").round(2)
    grid = grid[[*(c for c in grid.columns if c != WHOLE_LAYER), WHOLE_LAYER]].rename(
        columns={WHOLE_LAYER: "all"}
    )
    print(grid.to_string(index_names=False))
    print("\n  joint against single (nats)")
    shown = ["ablated", "joint", "singles", "index", "index_low", "index_high"]
    print(found.index.df[shown].round(2).to_string(index=False))
    print(f"\n  direct effects of ablating {found.direct['ablated'][0]} (nats)")
    parts = found.direct.df
    largest = parts[parts["layer"] >= 0].assign(size=lambda f: f["effect"].abs()).nlargest(6, "size")
    both = pd.concat([parts[parts["layer"] < 0], largest.drop(columns="size")])
    print(both[["part", "component", "effect", "ci_low", "ci_high", "ratio"]].round(2).to_string(index=False))
    print("\n  verdicts")
    for text, said in found.verdicts.items():
        print(f"  {text:<24}{said.name:<10}{said.reason}")
    columns = [
        *("step", "added", "first_layer", "ne", "own", "ne_before", "control_ne_before", "control_ne_least"),
        *("donor", "control_donor", "total", "direct", "later_heads", "verdict", "reason"),
    ]
    for ladder in found.ladders:
        head = ladder.df.iloc[0]
        print(f"\n  ladder by {head['unit']}, {head['kind']} at {head['place']}, into {head['recipient']}")
        print(ladder.df[columns].round(2).to_string(index=False))


def needs(found: Finding) -> list[str]:
    """What the single and joint ablations say."""
    rows = found.heads.where(found.heads["metric"] == f"effect on {found.belief}")
    said = []
    for layer, head in found.needed:
        row = rows.where((rows["layer"] == layer) & (rows["head"] == head))
        effect = interval(row["effect"][0], row["ci_low"][0], row["ci_high"][0])
        said.append(f"L{layer}H{head} {effect}")
    enough = rows["effect"][(rows["head"] != WHOLE_LAYER)] <= -STRONG
    start = "The answer needs" if enough.any() else "No single head is needed; the strongest is"
    sentences = [
        f"{start} {', '.join(said)} nats; {int(enough.sum())} of {len(enough)} heads cost 1 nat or more."
    ]
    index = found.index
    for i in np.flatnonzero(np.abs(index["index"]) >= STRONG):
        worth = f"the context is worth {index['span'][i]:.2f}"
        if index["index"][i] < 0:
            how = "they stand in for each other"
            if -index["joint"][i] > index["span"][i]:
                how += f", and not for the task alone ({worth})"
        else:
            how = "they need each other"
            if index["reason"][i]:
                how += f", each taking what there is to lose ({worth})"
        sure = index["index_low"][i] * index["index_high"][i] > 0
        shown = interval(index["index"][i], index["index_low"][i], index["index_high"][i])
        sentences.append(
            f"{index['ablated'][i]}: joint {index['joint'][i]:.2f}, singles {index['singles'][i]:.2f}, "
            f"index {shown} nats: {how}{'' if sure else ', if at all'}."
        )
    return sentences


def mechanism(found: Finding) -> list[str]:
    """What the direct effects and sweeps say."""
    direct = found.direct
    part = {name: direct.where(direct["part"] == name) for name in set(direct["part"])}
    total, own, later = (part[name]["effect"][0] for name in ("total", "ablated", "later MLPs"))
    rise, gone = part["later heads"], direct["ablated"][0]
    most = found.rises.sort_values("effect").iloc[-1]
    sentences = [
        f"Without {gone} the belief moves by {total:.2f} nats; by the heads' own output at the final norm "
        f"{own:.2f}, by later MLPs {later:.2f}, by later heads "
        f"{interval(rise['effect'][0], rise['ci_low'][0], rise['ci_high'][0])}.",
        f"Over layers ablated and layers read at, '{most['part']}' rises most without {most['ablated']}, "
        f"read at {most['reader']}: {interval(most['effect'], most['ci_low'], most['ci_high'])} nats.",
    ]
    kinds: dict[str, list[str]] = {}
    for text, said in found.verdicts.items():
        kinds.setdefault(f"{said.name} ({said.reason})" if said.reason else said.name, []).append(text)
    sentences += [f"{kind}: {', '.join(texts)}." for kind, texts in kinds.items()]
    return sentences


def ladder_words(ladder: schemas.RedundancyLadderTable) -> str:
    """A ladder in one sentence."""
    where = f"By {ladder['unit'][0]}, {ladder['kind'][0]} at {ladder['place'][0]}: "
    if len(ladder) == 1:
        return f"{where}no step, since {ladder['reason'][0] or 'nothing could be ablated'}."
    steps = []
    for i in range(len(ladder)):
        layer = ladder["first_layer"][i]
        at = (
            f"layer {layer:.0f}"
            if np.isfinite(layer)
            else f"no layer works (NE {ladder['ne'][i]:.2f} at most)"
        )
        control = ladder["control_ne_before"][i]
        beside = (
            f", while {ladder['n_controls'][i]} control sets leave NE {control:.2f} "
            f"({ladder['control_ne_least'][i]:.2f} at least) against {ladder['ne_before'][i]:.2f}"
            if np.isfinite(control)
            else ""
        )
        added = ladder["added"][i]
        steps.append(f"{f'then without {added}' if added else 'intact'} {at}{beside}")
    return where + "; ".join(steps) + f". The donor's own answer ends at P {ladder['donor'][-1]:.3f}."


def claims(found: Finding) -> list[str]:
    """The post's claims on this model, each with the number that decides it."""
    ladder = found.ladders[0]
    if len(ladder) == 1:
        return [f"The post's claims cannot be put to {found.name}: {ladder['reason'][0]}."]
    intact, first, last = ladder["donor"][0], ladder["donor"][1], ladder["donor"][-1]
    moved = [v for v in ladder["first_layer"][1:] if np.isfinite(v) and v > ladder["first_layer"][0]]
    backups = [t for t, v in found.verdicts.items() if v.name in ("backup", "both")]
    backups += [
        t for t, v in zip(ladder["ablated"], ladder["verdict"], strict=True) if v in ("backup", "both")
    ]
    gone = not np.isfinite(ladder["first_layer"][-1])

    def held(yes: bool) -> str:
        return "holds" if yes else "FAILS here"

    without = ladder["added"][1]
    redundant = found.index.where((found.index["index"] <= -STRONG) & (found.index["index_high"] < 0))
    sure = found.rises[(found.rises["ci_low"] > 0) & (found.rises["effect"] >= LEAST_RISE)]
    return [
        f"'Many heads are redundant for the task' {held(len(redundant) > len(found.index) / 2)}: "
        f"the joint effect exceeds the sum by {STRONG:g} nat in {len(redundant)} of {len(found.index)} sets"
        + (f" ({', '.join(redundant['ablated'])})." if len(redundant) else "."),
        f"'Ablating the layer that carries the task leaves the answer' {held(first >= KEPT * intact)}: "
        f"P(own answer) {intact:.3f} intact, {first:.3f} without {without}.",
        f"'The first layer that works then moves later' {held(bool(moved))}: "
        + (f"from {ladder['first_layer'][0]:.0f} to {moved[0]:.0f}." if moved else
           f"without {without} no layer has NE ≥ {WORKS:g}."),
        f"'Backup heads take over' {held(bool(backups))}: "
        + (f"later heads rise without {', '.join(dict.fromkeys(backups))}." if backups else
           f"no verdict is backup, and later heads rise by {LEAST_RISE:g} nats or more at {len(sure)} of "
           f"{len(found.rises)} places."),
        f"'With no layer left the answer is still right' {held(gone and last >= KEPT * intact)}: "
        + (f"P(own answer) {last:.3f} at the ladder's end." if gone else "the ladder does not get there."),
    ]  # fmt: skip


def figures(found: Finding, folder: Path) -> list[Path]:
    """Single heads, the ladder's sweeps and the direct effects, as standalone SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    name = found.name.lower()
    single = found.heads.df.query(f"metric == 'effect on {found.belief}'").assign(
        which=lambda f: f["head"].map(lambda h: "all" if h == WHOLE_LAYER else str(h)),
        text=lambda f: [f"{e:.1f}" for e in np.round(f["effect"].to_numpy(), 1) + 0.0],
    )
    base = alt.Chart(single).encode(
        x=alt.X("which:N", title="head", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("layer:O", sort="descending"),
    )
    limit = float(np.abs(single["effect"]).max())
    fill = alt.Color("effect:Q", title="nats", scale=alt.Scale(scheme="redblue", domain=[-limit, limit]))
    heads = base.mark_rect().encode(color=fill) + base.mark_text(fontSize=10).encode(text="text:N")
    lines = alt.Chart(found.curves).encode(
        x=alt.X("layer:O"), color=alt.Color("ablated:N", title="ablated donor")
    )
    sweep = lines.mark_errorband(opacity=0.25).encode(
        y=alt.Y("low:Q", title="NE, patched into the un-ablated run"), y2="high:Q"
    ) + lines.mark_line(point=True).encode(y="ne:Q")
    rule = alt.Chart(pd.DataFrame({"ne": [WORKS]})).mark_rule(strokeDash=[4, 3]).encode(y="ne:Q")
    parts = found.direct.df.assign(what=lambda f: f["component"].where(f["component"] != "", f["part"]))
    parts = parts[(parts["layer"] < 0) | (parts["effect"].abs() > 0.02)]
    bars = alt.Chart(parts).encode(y=alt.Y("what:N", sort=list(parts["what"]), title=None))
    direct = bars.mark_bar().encode(
        x=alt.X("effect:Q", title="effect of its change, nats"), color=alt.Color("part:N", legend=None)
    ) + bars.mark_rule(strokeWidth=2).encode(x="ci_low:Q", x2="ci_high:Q")
    drawn = {
        "heads": (heads, f"{found.name}: one head's output zeroed at pre, effect on '{found.belief}'"),
        "ladder": (sweep + rule, f"{found.name}: where the task arrives as layers are ablated"),
        "direct": (direct, f"{found.name}: direct effects without {found.direct['ablated'][0]}"),
    }
    paths = []
    for what, (chart, title) in drawn.items():
        paths.append(folder / f"{name}_{what}.svg")
        chart.properties(title=title, width=320).save(paths[-1])
    return paths


def report(found: Finding, asked: argparse.Namespace) -> None:
    """Print a finding."""
    drawn = f"{asked.donors}-example donors, {asked.prompts} prompts"
    print(f"\n{found.name}: {asked.task}, {drawn}, belief '{found.belief}'")
    print_tables(found)
    print()
    for sentence in (*needs(found), *mechanism(found), *map(ladder_words, found.ladders), *claims(found)):
        print(f"  {sentence}")
    if asked.out is not None:
        print("  figures: " + ", ".join(path.name for path in figures(found, asked.out)))


def main() -> int:
    """Examine the model and its twin."""
    asked = options()
    try:
        task = parse_task(asked.task)
        for name, folder in (("Model", asked.model), ("Twin", asked.twin)):
            report(examine(name, load_model(folder), task, asked), asked)
    except IclensError as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
