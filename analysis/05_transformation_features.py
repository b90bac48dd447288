"""Which latents are "≈2x", "odd", "a number"? And do MLPs make them, as large as the model's confidence?

1. Every latent of six sites is asked about eight concepts on a grid of tasks; what is said is measured on
tasks that took no part in the search. 2. Labels are looked for again in two other sets of SAEs, of another
seed and of twice the width, trained here. 3. Probes compare few latents with neurons, principal components
and everything. 4. The best latents are moved: does their own belief change most? 5. What MLPs and attention
write where labels are read, layer by layer (M1 to M6). What is said at the end against claim 3 is read off
these numbers.

    python analysis/05_transformation_features.py [--out FOLDER] [--runs FOLDER] [--no-others]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import altair as alt
import pandas as pd
import yaml

import iclens
from iclens import (
    Event,
    IclensError,
    StudyConfig,
    demo_config,
    parse_train_config,
    run_study,
    schemas,
    train_saes,
)

ROOT = Path(__file__).resolve().parents[1]
OTHERS = {"seed-1": {"seed": 1}, "wide": {"d_sae": 2048}}
"""Other SAE sets, and in what they differ from the shipped one."""


def main() -> None:
    """Run the study as far as the transformation features, and say what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the figures; none are drawn without it")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder of the run and the other SAEs"
    )
    parser.add_argument("--no-others", action="store_true", help="do not train other SAEs")
    given = parser.parse_args()
    others = [] if given.no_others else trained_others(given.runs / "transformation-features-saes")
    outcome = run_study(study(others), given.runs, say, last="transforms")
    run = iclens.open(outcome.run)
    for part in (labels, stability, probes, causes, operands, creation, sizes, transport, claim):
        part(run)
    if given.out is not None:
        figures(run, given.out)


def study(others: list[Path]) -> StudyConfig:
    """The demo's study with the shipped SAEs and the other sets."""
    declared = demo_config().model_dump(mode="json")
    declared |= {"study": "transformation-features", "saes": {"folder": "checkpoints/icl-tiny-saes"}}
    declared["transforms"] |= {"other_saes": [str(folder) for folder in others]}
    return StudyConfig.model_validate(declared)


def trained_others(folder: Path) -> list[Path]:
    """SAE sets that differ from the shipped one, trained where they are not there yet."""
    recipe = yaml.safe_load((ROOT / "sae_configs" / "icl_tiny.yaml").read_text(encoding="utf-8"))
    found = []
    for name, change in OTHERS.items():
        out = folder.resolve() / name
        if not out.exists():
            print(f"training SAEs with {change} …", flush=True)
            declared = recipe | {
                "model": recipe["model"] | {"name": str(ROOT / recipe["model"]["name"])},
                "saes": recipe["saes"] | {key: value for key, value in change.items() if key != "seed"},
                "seed": change.get("seed", recipe["seed"]),
            }
            train_saes(parse_train_config(declared), out)
        found.append(out)
    return found


def say(event: Event) -> None:
    """A line per stage."""
    if event.state in ("done", "up to date"):
        print(f"{event.stage}: {event.state}, {event.seconds:.0f} s", flush=True)


def heading(text: str) -> None:
    """A blank line and a title."""
    print(f"\n{text}\n{'-' * len(text)}")


def labels(run) -> None:
    """Labels and candidates by site and role, and the best of each concept with what they rest on."""
    heading("Labels (held-out tasks; task identity: held-out prompts)")
    table = run.transforms
    table["kind"] = table["label"].where(table["label"].isin(["", "candidate"]), "granted")
    counted = table[table["kind"] != ""].groupby(["concept", "site", "role", "kind"]).size()
    counts = counted.unstack(fill_value=0)
    print(counts.to_string())
    shown = run.tuning_curves[["concept", "site", "role", "latent"]].drop_duplicates()
    columns = [
        "concept", "of", "site", "role", "latent", "sign", "auroc", "ci_low", "worst_confound",
        "confound_auroc", "confounding", "effect_size", "mutual_info_nats", "overlap", "label", "reason",
    ]  # fmt: skip
    best = shown.merge(table, on=["concept", "site", "role", "latent"])[columns]
    print(best.round(3).to_string(index=False))
    tuned = run.tunings
    parity = tuned[(tuned["of"] == "y") & (tuned["q_value"] <= 0.05)]
    strongest = parity.sort_values("parity_share", ascending=False).head(3)
    print("\nlatents with the largest share of parity in their tuning to y:")
    print(
        strongest[["site", "role", "latent", "r2", "parity_share", "linear_share"]]
        .round(3)
        .to_string(index=False)
    )
    kinds = run.masses["kind"].value_counts()
    print("at lab alone (detection), at pre alone (execution):", dict(kinds[kinds.index != ""]))


def stability(run) -> None:
    """Are labels granted again in other SAEs?"""
    heading("The same labels in other SAEs")
    table = run.stability
    if table.empty:
        print("not asked")
        return
    table["other"] = table["other"].map(lambda name: Path(name).name)
    grouped = table.groupby(["concept", "other"])
    print(
        grouped.agg(
            labels=("stable", "size"), stable=("stable", "sum"), correlation=("correlation", "median")
        ).round(2)
    )


def probes(run) -> None:
    """Sparse against dense, on tasks never trained on."""
    heading("Probes: held-out AUROC")
    table = run.probes
    table["k"] = table["k"].astype(str).replace("-1", "all")
    name = table["representation"] + " " + table["k"]
    table["name"] = name.where(
        table["representation"].isin(["latents", "neurons", "PCA"]), table["representation"]
    )
    wide = table.pivot_table(index=["concept", "site", "role"], columns="name", values="auroc", sort=False)
    kept = [
        "latents 1", "latents 8", "latents 32", "latents all", "neurons 8", "neurons all", "PCA 8", "PCA 32",
        "dense", "difference of means", "random labels",
    ]  # fmt: skip
    print(wide[[column for column in kept if column in wide]].round(2).to_string())
    one = table[table["name"] == "latents 1"]
    below = one[one["verdict"] == "below dense"]["concept"].tolist()
    print(f"dense beats the best single latent: {', '.join(below) or 'for no concept'}")


def causes(run) -> None:
    """Raw effects of the moved latents on every belief."""
    heading("Causal matrix: effects on log-odds, nats")
    table = run.specificity
    index = ["way", "concept", "site", "role", "latent"]
    wide = table.pivot_table(index=index, columns="belief", values="effect", sort=False)
    print(wide.round(3).to_string())
    own = table[table["own"] & (table["latent"] >= 0)]
    moved = len(own.drop_duplicates(["site", "role", "latent", "concept"]))
    sure = own["specific"] & own["specific_standardised"] & (own["control_p"] <= 0.05)
    specific = len(own[sure].drop_duplicates(["site", "role", "latent", "concept"]))
    print(f"{specific} of {moved} latents with a belief of their own move it more than any other,")
    print("raw and beside matched latents (p ≤ .05)")


def operands(run) -> None:
    """M1 and M2."""
    heading("M1, M2: x and y in resid_mid at lab (value, and below it the null)")
    table = run.operands
    for value in ("value", "null"):
        print(
            table.pivot_table(index="measure", columns="layer", values=value, sort=False).round(2).to_string()
        )


def creation(run) -> None:
    """M3 and M4."""
    heading("M3, M4: dense probes at lab, held-out AUROC, and the verdict")
    table = run.creation
    wide = table.pivot_table(index=["concept", "layer"], columns="source", values="auroc", sort=False).round(
        2
    )
    said = table.drop_duplicates(["concept", "layer"]).set_index(["concept", "layer"])
    print(wide.join(said[["larger", "verdict"]]).to_string())


def sizes(run) -> None:
    """M5."""
    heading("M5: is a latent's size at lab the model's confidence, or y's magnitude? (partial rank r)")
    columns = [
        "concept",
        "site",
        "latent",
        "over",
        "n_rows",
        "r",
        "r_given_magnitude",
        "magnitude_r",
        "verdict",
    ]
    print(run.confidence[columns].round(2).to_string(index=False))


def transport(run) -> None:
    """M6."""
    heading("M6: r² of what later pre receive along a latent's image, by how it is predicted")
    table = run.transport
    wide = table.pivot_table(index=["concept", "site", "latent"], columns="weights", values="r2", sort=False)
    first = table[table["weights"] == "attention"].set_index(["concept", "site", "latent"])
    print(wide.join(first[["attention_minus_equal", "lab_attention"]]).round(3).to_string())


def claim(run) -> None:
    """Claim 3, clause by clause, from the tables alone."""
    heading("Against claim 3: MLPs break x → y into features whose size is the model's confidence")
    created = run.creation.drop_duplicates(["concept", "layer"])
    made = created[created["verdict"] == schemas.CREATED]
    attention = created[created["verdict"] == schemas.IN_ATTENTION]
    where = ", ".join(f"{c} at block {n}" for c, n in attention[["concept", "layer"]].itertuples(index=False))
    print(f"- {len(made)} of {len(created)} (concept, block) pairs are created by the MLP (criteria of M3)")
    print(f"- {len(attention)} first stand in attention's output: {where or 'none'}")
    jump = run.creation.pivot_table(index=["concept", "layer"], columns="source", values="auroc")
    jump = (jump["mlp_out"] - jump["resid_mid"]).sort_values(ascending=False)
    (concept, layer), rise = jump.index[0], jump.iloc[0]
    print(f"- largest rise from what an MLP reads to what it writes: {concept} at block {layer}, {rise:+.2f}")
    granted = run.transforms[~run.transforms["label"].isin(["", "candidate"])]
    alone = granted["label"] == "task identity"
    at_mlp = granted[granted["site"].str.endswith("mlp_out") & ~alone]
    print(
        f"- {len(at_mlp)} latents of MLP outputs have a transformation label; {alone.sum()} rows of any site"
    )
    print("  are the identity of a single task")
    told = run.confidence[(run.confidence["over"] == "active rows") & (run.confidence["verdict"] != "")]
    print("- sizes of active latents at lab:", told["verdict"].value_counts().to_dict() or "not told")
    read = run.transport[run.transport["weights"] == "attention"].dropna(subset=["r2"])
    sure = (read["attention_minus_equal_low"] > 0).sum()
    print(f"- attention weights beat equal weights for certain in {sure} of {len(read)} followed latents")


def figures(run, folder: Path) -> None:
    """Four figures as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    created, curves, place = run.creation, run.tuning_curves, ["concept", "site", "role", "latent"]
    order = created["source"].drop_duplicates().tolist()
    shade = alt.Scale(domain=[0.5, 1], scheme="viridis", clamp=True)
    heat = alt.Chart(created).mark_rect()
    heat = heat.encode(x=alt.X("source:N", sort=order), y="layer:O", color=alt.Color("auroc:Q", scale=shade))
    best = curves.groupby("concept", sort=False).head(1)[place]
    lines = alt.Chart(curves.merge(best, on=place)).mark_line().encode(x="value:Q", y="mean:Q")
    axes = alt.Column("of:N", sort=["y", "x", "y-2x"])
    lines = lines.properties(width=200, height=90).facet(row="concept:N", column=axes)
    boxes = alt.Chart(run.operand_maps.merge(best, on=place)).mark_rect()
    boxes = boxes.encode(x="x:O", y=alt.Y("y:O", sort="descending"), color="mean:Q")
    boxes = boxes.properties(width=140, height=180).facet("concept:N", columns=4)
    dots = alt.Chart(run.probes[run.probes["k"] > 0]).mark_line(point=True)
    reach = alt.Y("auroc:Q", scale=alt.Scale(domain=[0.3, 1], clamp=True))
    dots = dots.encode(x=alt.X("k:Q").scale(type="log", base=2), y=reach, color="representation:N")
    charts = {
        "creation": heat.properties(width=220, height=120).facet("concept:N", columns=3),
        "tuning": lines.resolve_scale(x="independent", y="independent"),
        "operands": boxes.resolve_scale(color="independent"),
        "probes": dots.properties(width=200, height=120).facet("concept:N", columns=3),
    }
    for name, chart in charts.items():
        chart.save(folder / f"{name}.svg")
    print(f"\nfigures: {folder}")


if __name__ == "__main__":
    pd.set_option("display.width", 200)
    try:
        main()
    except IclensError as wrong:
        print(wrong, file=sys.stderr)
        sys.exit(wrong.exit_code)
