"""Which latents carry the task from run A to run B, how few of them, and are they this task's?

1. The residual sweep says at which layer's `pre` run B best applies the task to its own x. 2. At sites around
it every latent that differs is patched alone, then sets of them: by own effect, greedily, all; beside as
many matched random latents, neurons, and the difference of means; and back, B's values into A*. 3. The
smallest set with half of the full activation's effect is put at a wrong role, taken from a wrong task, and
turned round. 4. The answer as a function of x, before and after. All of it in the model and in its plain
twin, on which SAEs are trained first. What is said at the end is read off these numbers.

    python analysis/04_patch_latents.py [--model FOLDER] [--twin FOLDER] [--task SPEC] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import yaml

from iclens import (
    IclensError,
    LanguageModel,
    Sae,
    Site,
    Task,
    build_runs,
    carry_levels,
    default_inputs,
    linear_screen,
    load_model,
    load_saes,
    parse_task,
    parse_train_config,
    patch_controls,
    patch_latents,
    patch_sets,
    prepare_patch,
    response_curve,
    response_fits,
    runs_by_query,
    schemas,
    single_effects,
    sweep,
    train_saes,
)

ROOT = Path(__file__).resolve().parents[1]
BELIEF = "exact"
NOTHING = 0.05
"""Share of the full activation's effect that random sets may have."""
LEAST = 1.0
"""Nats that the full activation must bring for shares of it to mean anything."""
ZERO = "zero examples"
OWN, GREEDY, ALL = "by own effect", "greedy", "all latents"
NEURONS, MEANS, FULL = "neurons", "difference of means", "full activation"
"""Kinds of sets."""
HALF = 0.5
"""Share of the full activation's effect from which a set carries it."""
TWIN_TOKENS = 200_000
"""Activations on which each of the twin's SAEs is trained."""


def options() -> argparse.Namespace:
    """What to run, from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shipped = ROOT / "checkpoints"
    parser.add_argument("--model", default=shipped / "icl-tiny", help="model folder")
    parser.add_argument("--saes", default=shipped / "icl-tiny-saes", help="its SAEs")
    parser.add_argument("--twin", default=shipped / "icl-tiny-twin", help="its plain twin's folder")
    parser.add_argument("--task", default="2x+3", help="the donor's task")
    parser.add_argument("--wrong", default="4x+7", help="the task of the control")
    parser.add_argument("--donors", type=int, default=12, help="examples in the donor's context")
    parser.add_argument("--prompts", type=int, default=64, help="pairs of runs; half choose, half measure")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--out", type=Path, help="folder for the figures; none are drawn without it")
    return parser.parse_args()


@dataclass(frozen=True)
class Place:
    """What was measured at one site's `pre`."""

    site: Site
    ladder: pd.DataFrame
    sets: schemas.SetTable
    controls: schemas.ControlTable | None
    screen: schemas.ScreenTable
    smallest: tuple[int, ...]


@dataclass(frozen=True)
class Finding:
    """What was measured on one model.

    Args:
        name: of the model.
        own: P(f(x_B)) after the whole-residual patch at `pre`, by layer.
        places: sites, from first to last.
        curve: response curve at the site that carries most.
        fits: lines through it.
    """

    name: str
    own: np.ndarray
    places: tuple[Place, ...]
    curve: schemas.ResponseTable
    fits: schemas.ResponseFitTable

    @property
    def best(self) -> Place:
        """The place whose full activation moves the belief most."""
        return max(self.places, key=lambda place: effect_of(place.sets, FULL))


def rows_of(table: schemas.SetTable, kind: str, direction: str = "sufficiency") -> schemas.SetTable:
    """A kind of set's rows on the headline belief, by size."""
    return table.where(
        (table["kind"] == kind) & (table["direction"] == direction) & (table["belief"] == BELIEF)
    )


def effect_of(table: schemas.SetTable, kind: str) -> float:
    """Effect of the largest set of a kind, nats."""
    return float(rows_of(table, kind)["effect"][-1])


def smallest(table: schemas.SetTable) -> tuple[int, ...]:
    """The fewest latents of the greedy order with half of the full activation's effect, if any have it."""
    rows = rows_of(table, GREEDY)
    enough = np.flatnonzero(rows["screen_share"] >= HALF)
    return tuple(int(f) for f in str(rows["members"][enough[0]]).split()) if len(enough) else ()


def twin_saes(folder: Path, sites: list[str], out: Path) -> Path:
    """SAEs of the twin, trained as the shipped ones were, for fewer tokens."""
    recipe = yaml.safe_load((ROOT / "sae_configs" / "icl_tiny.yaml").read_text(encoding="utf-8"))
    recipe["model"]["name"], recipe["saes"]["sites"] = str(folder), sites
    recipe["training"]["tokens"], recipe["held_out"]["contexts"] = TWIN_TOKENS, 32
    return train_saes(parse_train_config(recipe), out / "twin-saes")


def examine(name: str, model: LanguageModel, saes: dict[Site, Sae], asked: argparse.Namespace) -> Finding:
    """Sweep, patch at every site of `saes`, and draw the response curve at the one that carries most."""
    task, wrong = parse_task(asked.task), parse_task(asked.wrong)
    drawn = {"n_prompts": asked.prompts, "donor_examples": asked.donors, "seed": asked.seed}
    swept = sweep(model, build_runs(model.tokenizer, task, recipient=ZERO, **drawn), seed=asked.seed)
    own = swept.where((swept["role"] == "pre") & (swept["metric"] == "task on own x"))["value"]
    places = tuple(measure(model, sae, task, wrong, drawn) for sae in saes.values())
    best = max(places, key=lambda place: effect_of(place.sets, FULL))
    by_x = runs_by_query(
        model.tokenizer, task, default_inputs(task), donors=4, donor_examples=asked.donors,
        seed=asked.seed,
    )  # fmt: skip
    sets = [best.smallest] if best.smallest else []
    curve = response_curve(model, saes[best.site], by_x, sets=sets, seed=asked.seed)
    return Finding(name, own, places, curve, response_fits(curve, seed=asked.seed))


def measure(model: LanguageModel, sae: Sae, task: Task, wrong: Task, drawn: dict[str, int]) -> Place:
    """Latents at one site into a length-matched recipient with deranged labels, and back."""
    runs, others = (
        build_runs(model.tokenizer, rule, recipient="S arm", **drawn) for rule in (task, wrong)
    )  # fmt: skip
    receiver = prepare_patch(model, sae, runs, seed=drawn["seed"])
    effects = single_effects(receiver, receiver.differing)
    sets = patch_sets(receiver, effects, chosen_for=BELIEF, seed=drawn["seed"])
    needed = prepare_patch(model, sae, runs, direction="necessity", seed=drawn["seed"])
    back = patch_sets(needed, single_effects(needed, needed.differing), chosen_for=BELIEF, seed=drawn["seed"])
    few = smallest(sets)
    patches = patch_latents(receiver, effects=effects, n_tested=6, seed=drawn["seed"])
    ladder = carry_levels(receiver, patches, seed=drawn["seed"]).df
    controls = None
    if few:
        controls = patch_controls(receiver, [np.array(few)], wrong=others, seed=drawn["seed"])
    screen = linear_screen(receiver, receiver.differing, effects)
    return Place(sae.site, ladder, schemas.SetTable.concat([sets, back]), controls, screen, few)


def print_place(place: Place) -> None:
    """The ladder, the cumulative curves and the controls."""
    print(f"\n  {place.site.short} pre: effects on {BELIEF}, nats [95 % interval], test half")
    for row in place.ladder[place.ladder["belief"] == BELIEF].to_dict("records"):
        print(f"    {row['rung']:<22}{row['effect']:+7.2f} [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]")
    for direction in ("sufficiency", "necessity"):
        print(f"    {direction}: share of the full activation's effect, beside matched random sets")
        for kind in (OWN, GREEDY, ALL, NEURONS, MEANS):
            cells = [
                f"{r['size']}: {r['share_of_full']:.2f}"
                + (f" ({r['control_share']:+.2f})" if r["n_controls"] else "")
                for r in rows_of(place.sets, kind, direction).df.to_dict("records")
                if kind != GREEDY or r["n_controls"]
            ]
            print(f"      {kind:<20}{'  '.join(cells)}")
    if place.controls is not None:
        table = place.controls.where(place.controls["belief"] == BELIEF)
        print(f"    the {len(place.smallest)} latents {' '.join(map(str, place.smallest))}")
        for row in table.df.to_dict("records"):
            span = f"[{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]"
            print(f"      {row['control']:<20}{row['effect']:+7.2f} {span}")
    found = place.screen.where(place.screen["belief"] == BELIEF)
    print(
        f"    a linear screen would have R² {found['r2'][0]:.2f}, its worst miss "
        f"{found['worst_miss'][0]:.2f} nats, and {10 * found['top_found'][0]:.0f} of the 10 largest latents"
    )


def words(found: Finding) -> list[str]:
    """What the numbers say, one sentence each."""
    layer, best = int(found.own.argmax()), found.best
    full = effect_of(best.sets, FULL)
    said = [
        f"A whole residual at pre moves the task best at layer {layer}: P(task on B's own x) "
        f"{found.own[layer]:.2f}, into zero examples.",
        f"Of the sites with SAEs {best.site.short} carries most: its full activation {full:+.2f} nats.",
        few_words(best),
    ]
    slopes = ", ".join(f"{r['patch']} {r['slope']:.2f}" for r in found.fits.df.to_dict("records"))
    slope = f"The slope of E[y | x] on x is: {slopes}."
    if full < LEAST:
        return [*said, slope]
    single = best.ladder[(best.ladder["belief"] == BELIEF) & (best.ladder["rung"] == "best single latent")]
    if len(single):
        alone = single["effect"].iloc[0]
        verdict = "one latent carries half of it" if alone >= HALF * full else "no one latent carries half"
        said.append(f"The best single latent brings {alone:+.2f} nats: {verdict}.")
    neuron, means, every = (rows_of(best.sets, kind) for kind in (NEURONS, MEANS, ALL))
    if len(neuron):
        said.append(
            f"{neuron['size'][-1]} neurons bring {neuron['share_of_full'][-1]:.2f} of it, the difference of "
            f"means {means['share_of_full'][0]:.2f}, all latents {every['share_of_full'][0]:.2f}."
        )
    back = rows_of(best.sets, GREEDY, "necessity")
    if len(back):
        taken, random = back["share_of_full"][-1], back["control_share"][-1]
        verdict = "not specific" if back["control_high"][-1] >= taken else "specific"
        said.append(
            f"Set to what they are without the task, {back['size'][-1]} latents take {taken:.2f} of it from "
            f"A*, as many random ones, pushed as far, {random:.2f}: the loss is {verdict} to these latents."
        )
    return [*said, slope]


def few_words(best: Place) -> str:
    """How few latents bring half of the full activation's effect, and what random ones bring."""
    greedy = rows_of(best.sets, GREEDY)
    if effect_of(best.sets, FULL) < LEAST:
        return "It brings next to nothing, or harm: there is no task at these sites for latents to carry."
    if not best.smallest:
        most = greedy["share_of_full"].max() if len(greedy) else float("nan")
        return f"No set that was tried brings half of it (greedy at most {most:.2f})."
    row = greedy.df.set_index("size").loc[len(best.smallest)]
    high = row["control_high"]
    verdict = "within" if abs(high) <= NOTHING else "beyond"
    return (
        f"{len(best.smallest)} latents bring {row['share_of_full']:.2f} [{row['share_low']:.2f}, "
        f"{row['share_high']:.2f}] of it; random sets {row['control_share']:.2f}, 97.5 % of them below "
        f"{high:.2f}: {verdict} the {NOTHING} that they may have."
    )


def figures(found: Finding, folder: Path) -> list[Path]:
    """Cumulative curves with the random sets' band, and the response curves."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = pd.concat([rows_of(found.best.sets, kind).df for kind in (OWN, GREEDY, NEURONS)])
    size = alt.X("size:Q", scale=alt.Scale(type="log", base=2), title="members")
    compared = rows[(rows["kind"] == GREEDY) & (rows["n_controls"] > 0)]
    band = alt.Chart(compared).mark_area(opacity=0.2, color="gray").encode(
        x=size, y="control_low:Q", y2="control_high:Q"
    )  # fmt: skip
    share = alt.Y("share_of_full:Q", title="share of the full activation's effect")
    lines = (
        alt.Chart(rows).mark_line(point=True).encode(x=size, y=share, color=alt.Color("kind:N", title=None))
    )
    bars = alt.Chart(rows).mark_rule().encode(x=size, y="share_low:Q", y2="share_high:Q", color="kind:N")
    title = f"{found.name}, {found.best.site.short} pre; grey: matched random sets"
    curve = found.curve.df
    points = alt.Chart(curve).mark_line(point=True).encode(
        x=alt.X("x:Q", title="x of run B"), y=alt.Y("mean:Q", title="E[y | x]"),
        color=alt.Color("patch:N", title=None),
    )  # fmt: skip
    written = []
    for name, chart in (
        ("sets", (band + bars + lines).properties(title=title, width=420, height=260)),
        ("response", points.properties(title=f"{found.name}: answer by x", width=420, height=260)),
    ):
        written.append(folder / f"{found.name.lower()}_{name}.svg")
        chart.save(written[-1])
    return written


def report(found: Finding, asked: argparse.Namespace) -> None:
    """Print a finding."""
    print(f"\n{found.name}: {asked.task}, {asked.donors}-example donors, {asked.prompts} prompts")
    print("  P(task on own x) by layer of the residual patch: " + " ".join(f"{p:.2f}" for p in found.own))
    for place in found.places:
        print_place(place)
    print(f"\n  E[y | x] at {found.best.site.short} pre, zero-example recipients")
    shown = ["patch", "slope", "slope_low", "slope_high", "intercept", "top_1_answer", "top_1_scaled"]
    print(found.fits.df[shown].round(2).to_string(index=False))
    print()
    for sentence in words(found):
        print(f"  {sentence}")
    if asked.out is not None:
        for file in figures(found, asked.out):
            print(f"  figure: {file}")


def main() -> int:
    """Examine the model and its twin."""
    asked = options()
    try:
        model = load_model(asked.model)
        wanted = {Site(2, "mlp_out"), Site(2, "resid_post"), Site(3, "resid_post")}
        saes = {site: sae for site, sae in load_saes(asked.saes, model).items() if site in wanted}
        report(examine("Model", model, saes, asked), asked)
        twin = load_model(asked.twin)
        with tempfile.TemporaryDirectory() as scratch:
            own = twin_saes(
                Path(asked.twin), ["L2.resid_post", "L3.resid_post", "L4.resid_post"], Path(scratch)
            )
            report(examine("Twin", twin, load_saes(own, twin), asked), asked)
    except IclensError as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
