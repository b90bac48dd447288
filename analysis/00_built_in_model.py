"""Does the built-in model learn in context as an exact Bayes learner would?

On fresh contexts, by examples seen: accuracy, mean P(correct), the exact P(correct), KL(exact || model) and
the correlation of log-odds, for the whole mixture, noiseless 2x+3, a noisy level, words and parity; then the
figures that the model is accepted by. The plain twin follows.

    python analysis/00_built_in_model.py [--model FOLDER] [--twin FOLDER] [--seed N] [--contexts N]
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import pandas as pd

from iclens import (
    Evaluation,
    IclensError,
    evaluate,
    load_mixture,
    load_model,
    load_recipe,
    standard_conditions,
)

ROOT = Path(__file__).resolve().parents[1]
SHOTS = (0, 1, 2, 4, 8, 12, 15)
AFFINE = "2x+3, noiseless"
KL_AT_MOST, R_AT_LEAST, TOP1_AT_LEAST = 0.08, 0.97, 0.98


def main() -> None:
    """Measure both models and print what was found."""
    parser = argparse.ArgumentParser(description="The built-in model against the exact posterior.")
    parser.add_argument("--model", type=Path, default=ROOT / "checkpoints" / "icl-tiny")
    parser.add_argument("--twin", type=Path, default=ROOT / "checkpoints" / "icl-tiny-twin")
    parser.add_argument("--seed", type=int, default=1, help="of the fresh contexts")
    parser.add_argument(
        "--contexts", type=int, default=2000, help="of the whole mixture; a quarter elsewhere"
    )
    asked = parser.parse_args()
    excluded = load_recipe().interchange.excluded_donors
    for folder in (asked.model, asked.twin):
        try:
            mixture, model = load_mixture(folder), load_model(folder)
            found = evaluate(
                model,
                mixture,
                standard_conditions(mixture, [task for task in excluded if task != "2x+3"]),
                n_contexts=asked.contexts,
                seed=asked.seed,
            )
        except IclensError as problem:
            parser.exit(problem.exit_code, f"{problem}\n")
        print(f"\n=== {folder.name} ({model.fingerprint}): {model.n_blocks} blocks, seed {asked.seed}")
        show(found)
        accept(found)


def show(found: Evaluation) -> None:
    """Print one table per condition, by examples seen, and one over all conditions."""
    shots, overall = found.shots.df, found.overall.df
    columns = ["n_seen", "top1", "exact_top1", "p_correct", "exact_p_correct", "kl", "r"]
    for condition, rows in shots.groupby("condition", sort=False):
        print(f"\n{condition} ({rows['n_contexts'].iloc[0]} contexts; kl in nats)")
        print_table(rows[rows["n_seen"].isin(SHOTS)][columns])
    print("\nOver all examples (r, slope: log-odds of P(correct), model on exact; *_beliefs: all beliefs)")
    print_table(overall.drop(columns="reason"))


def accept(found: Evaluation) -> None:
    """Print the figures that the model is accepted by, each beside its demand."""
    shots, overall = found.shots.df, found.overall.df.set_index("condition")
    mixture = overall.iloc[0]
    rows = shots[shots["condition"] == AFFINE].set_index("n_seen")
    top1 = rows.loc[4:, "top1"].min()
    rising = rows.loc[[2, 4, 8], "p_correct"].tolist()
    grows = all(a < b for a, b in itertools.pairwise(rising))
    print("\nAcceptance")
    for what, value, demand, met in (
        ("mixture KL, nats", mixture["kl"], f"<= {KL_AT_MOST}", mixture["kl"] <= KL_AT_MOST),
        ("mixture log-odds correlation", mixture["r"], f">= {R_AT_LEAST}", mixture["r"] >= R_AT_LEAST),
        (
            "the same over all beliefs",
            mixture["r_beliefs"],
            f">= {R_AT_LEAST}",
            mixture["r_beliefs"] >= R_AT_LEAST,
        ),
        ("2x+3 lowest top-1 from 4 examples", top1, f">= {TOP1_AT_LEAST}", top1 >= TOP1_AT_LEAST),
        ("2x+3 P(correct), 8 minus 2 examples", rising[-1] - rising[0], "rising at 2, 4, 8", grows),
    ):
        print(f"  {what:<38}{value:>8.4f}   demanded {demand:<18} {'met' if met else 'MISSED'}")


def print_table(frame: pd.DataFrame) -> None:
    """Print a frame with aligned columns and an undefined figure as a dash."""
    print(frame.to_string(index=False, float_format="{:.3f}".format, na_rep="–"))


if __name__ == "__main__":
    main()
