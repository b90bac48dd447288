"""What a pretrained language model does: the three claims in SmolLM2-135M, task beside task.

1. Is the task learnt in context, by how many examples? 2. At which layer does the residual bring it from run
A to run B, and which heads does that need? 3. Which latents grow with examples, how far up the ladder of
claims? 4. How few latents carry the task, beside as many random ones? 5. Which latents answer to the kind of
input? Everything is read from finished runs (`make real`), with intervals and controls; nothing is judged.

    python analysis/07_smollm2.py RUN [RUN …] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import iclens
from iclens import IclensError

OWN, COPY, EXACT = "task on own x", "copy", "exact"
ZERO = "zero examples"
WHOLE_LAYER = -1
SHOWN_LAYERS = 12


def between(value: float, low: float, high: float, digits: int = 2) -> str:
    """A value and its interval."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def behaviour(run: Any) -> pd.DataFrame:
    """P(task on own x) of whole runs by the examples that they show, and of run B given their residual."""
    rows = run.graded
    rows = rows[(rows["metric"] == OWN) & (rows["role"] == "pre")]
    return pd.DataFrame({
        "examples": rows["n_seen"], "layer": rows["layer"],
        "P(task), whole run": [
            between(*row) for row in rows[["unpatched", "unpatched_low", "unpatched_high"]].to_numpy()
        ],
        "P(task), residual put into run B": [
            between(*row) for row in rows[["value", "ci_low", "ci_high"]].to_numpy()
        ],
    })  # fmt: skip


def sweep(run: Any) -> pd.DataFrame:
    """P(task on own x) and P(donor's answer) by the layer that the residual enters; B has no examples."""
    rows = run.sweep
    rows = rows[(rows["recipient"] == ZERO) & (rows["role"] == "pre") & rows["metric"].isin([OWN, COPY])]
    table = pd.DataFrame({
        "into block": rows["layer"], "metric": rows["metric"],
        "value": [between(*row) for row in rows[["value", "ci_low", "ci_high"]].to_numpy()],
    })  # fmt: skip
    wide = table.pivot(index="into block", columns="metric", values="value").reset_index()
    return wide.tail(SHOWN_LAYERS + 5)


def heads(run: Any) -> pd.DataFrame:
    """Layers and single heads whose loss at `pre` costs A*'s own answer most."""
    rows = run.heads
    rows = rows[rows["metric"] == OWN].sort_values("effect")
    parts = []
    for name, some in (
        ("layer", rows[rows["head"] == WHOLE_LAYER]), ("head", rows[rows["head"] != WHOLE_LAYER]),
    ):  # fmt: skip
        for row in some.head(4).itertuples():
            which = f"L{row.layer}" if name == "layer" else f"L{row.layer}H{row.head}"
            change = between(row.effect, row.ci_low, row.ci_high)
            parts.append({"ablated": which, "P(task) before": f"{row.base:.2f}", "change": change})
    return pd.DataFrame(parts)


def ladder(run: Any) -> pd.DataFrame:
    """What the task does when the layers that bring it are taken away, one after the other."""
    rows = run.redundancy_ladder
    return pd.DataFrame({
        "ablated": rows["ablated"].replace("", "nothing"), "first layer that works": rows["first_layer"],
        "share of A* there": [f"{value:.2f}" for value in rows["ne"]],
        "left at the layer before": [
            between(*row) for row in rows[["ne_before", "ne_before_low", "ne_before_high"]].to_numpy()
        ],
        "controls": [f"{value:.2f}" for value in rows["control_ne_before"]], "verdict": rows["verdict"],
    })  # fmt: skip


def growth(run: Any) -> pd.DataFrame:
    """Latents by site and role: how many rise, and how far the ladder of claims they come."""
    rows = run.growth
    counts = rows.groupby(["site", "role", "verdict"], observed=True).size().unstack(fill_value=0)
    return counts.reset_index()


def carriers(run: Any) -> pd.DataFrame:
    """How much of the full residual's effect sets of latents bring at each site, beside random ones."""
    rows = run.sets
    rows = rows[
        (rows["belief"] == EXACT) & (rows["chosen_for"] == EXACT) & (rows["role"] == "pre")
        & (rows["direction"] == "sufficiency")
    ]  # fmt: skip
    return pd.DataFrame({
        "site": rows["site"], "moved": rows["kind"], "size": rows["size"],
        "effect, nats": [between(*row) for row in rows[["effect", "ci_low", "ci_high"]].to_numpy()],
        "share of full": [
            between(*row) for row in rows[["share_of_full", "share_low", "share_high"]].to_numpy()
        ],
        "random sets": [
            between(*row) for row in rows[["control_share", "control_low", "control_high"]].to_numpy()
        ],
    })  # fmt: skip


def labels(run: Any) -> pd.DataFrame:
    """The clearest latent of every concept and site that has a label."""
    rows = run.transforms
    rows = rows[rows["label"].astype(str) != ""]
    best = rows.sort_values("auroc", ascending=False).groupby(["site", "concept", "of"], observed=True)
    return pd.DataFrame([
        {"site": site, "concept": f"{concept} {of}".strip(), "labelled": len(some),
         "clearest latent": some.iloc[0].latent,
         "AUROC": between(some.iloc[0].auroc, some.iloc[0].ci_low, some.iloc[0].ci_high)}
        for (site, concept, of), some in best
    ])  # fmt: skip


PARTS = {
    "Is the task learnt in context?": behaviour,
    "Where does the residual bring the task?": sweep,
    "Which heads does it need?": heads,
    "Is what brings it redundant?": ladder,
    "Which latents grow with examples?": growth,
    "How few latents carry the task?": carriers,
    "What do latents answer to?": labels,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every part for every run, task beside task."""
    parser = argparse.ArgumentParser(description="The three claims in finished runs, task beside task.")
    parser.add_argument("runs", nargs="+", type=Path, help="run or study folders")
    parser.add_argument("--out", type=Path, help="folder for the tables, as CSV")
    asked = parser.parse_args(arguments)
    try:
        runs = {str(folder): iclens.open(folder) for folder in asked.runs}
    except IclensError as wrong:
        print(wrong, file=sys.stderr)
        return wrong.exit_code
    for title, part in PARTS.items():
        print(f"\n## {title}")
        for name, run in runs.items():
            table = part(run)
            print(f"\n{run.config['prompts']['task']} ({name})")
            print(table.to_string(index=False) if len(table) else "nothing")
            if asked.out:
                asked.out.mkdir(parents=True, exist_ok=True)
                table.to_csv(asked.out / f"{Path(name).name}-{part.__name__}.csv", index=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
