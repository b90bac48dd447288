"""Does the post's claim survive on the built-in model: features added, one Bayesian update per example?

    python analysis/02_additive_growth.py [RUN]

RUN is a run folder or study folder; without one, a study of the built-in model in all arms is run first.
1. What Bayes predicts. 2. What the beliefs do, arm by arm. 3. Which latents grow, how far each gets on the
ladder, and what pushing them does. 4. Which account predicts all arms, for the belief and for each latent.
5. What would refute the claim, and whether it did. Charts of 2 and 4 are written into the run folder as SVG;
the run's pages show the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
from safetensors.numpy import load_file

import iclens
from iclens import IclensError, StudyConfig, demo_config, fit_shapes, predicted_shapes, run_study, schemas

ARMS = ["T", "S", "R", "O", "D", "D2", "W", "Wr", "E1", "E2", "P", "Q-", "Q0", "A-", "A+", "N2", "C4"]


def all_arms() -> StudyConfig:
    """The demo's study with the shipped SAEs and every arm."""
    config = demo_config()
    prompts = config.prompts.model_copy(update={"arms": ARMS, "n_prompts": 320})
    saes = config.saes.model_copy(update={"train": None, "folder": "checkpoints/icl-tiny-saes"})
    return config.model_copy(update={"study": "additive-growth", "prompts": prompts, "saes": saes})


def title(text: str) -> None:
    """A heading."""
    print(f"\n{text}\n{'-' * len(text)}")


def bayes() -> None:
    """What one update per example of constant evidence predicts, on three scales."""
    title("1. What Bayes predicts (prior .2, c .8)")
    shapes = predicted_shapes(0.2, 0.8, pd.RangeIndex(5).to_numpy())
    steps = {"posterior": shapes.posterior, "its log": shapes.log_posterior, "its log-odds": shapes.log_odds}
    print(pd.DataFrame(steps).round(3).to_string())
    print("Only the log-odds add: its steps are all 1.386 nats.")


def beliefs(run: iclens.Run) -> None:
    """The answer's log-odds in every arm, beside the exact posterior's; and the Bayesian tests."""
    title("2. What the belief in the task's answer does (nats)")
    table = run.beliefs.query("belief == 'exact'")
    last = table["n_seen"].max()
    shown = table[table["n_seen"].isin([0, 1, 2, 4, 8, last])].pivot(
        index="arm", columns="n_seen", values="mean"
    )
    agree = run.agreement.query("belief == 'exact'").set_index("arm")[["slope", "r", "goal_met"]]
    print(shown.reindex(run.arms).join(agree).round(2).to_string())
    task = run.beliefs[(run.beliefs["arm"] == run.arms[0]) & run.beliefs["n_seen"].isin([0, 4, last])]
    both = task.pivot(index="belief", columns="n_seen", values=["mean", "exact_mean"])
    print("\nEvery belief in the task's own arm, model and exact, after so many examples:")
    print(both.round(2).to_string())
    tests = run.tests[run.tests["estimate"].notna()]
    print()
    print(tests[["test", "response", "estimate", "low", "high", "verdict"]].round(3).to_string(index=False))


def latents(run: iclens.Run) -> None:
    """The ladder, and the reasons for the rungs."""
    title("3. Which latents grow, and how")
    growth = run.growth
    counts = growth.groupby(["site", "verdict"], sort=False).size().unstack(fill_value=0)
    print(counts.reindex(columns=[*schemas.LADDER, "falls"], fill_value=0).to_string())
    listed = growth[growth["shortlisted"]]
    print(f"\nThe short list: {len(listed)}, confirmed {(listed['confirm_p'] <= 0.05).sum()}, "
          f"median shrinkage {listed['shrinkage'].median():.2f}. Best curves:")  # fmt: skip
    print(listed["best_curve"].value_counts().to_string())
    own = own_shapes(run)
    saturating = own["reason"].str.startswith("it saturates").sum()
    print(f"\nJudged in arm {run.arms[0]} alone, the control left aside: {own['certified'].sum()} of "
          f"{len(own)} certified additive, {saturating} saturate; at pre with p inside (.8, 1.25): "
          f"{between(own)}.")  # fmt: skip
    causal = run.dose.query("belief == 'exact' and n_controls > 0")
    print(f"\nPushed: {len(causal)}; causal: {causal['causal'].sum()}. Largest effects on the answer:")
    shown = ["site", "latent", "slope", "slope_low", "slope_high", "share", "control_p", "q_value", "reason"]
    print(causal.nlargest(5, "slope")[shown].round(3).to_string(index=False))
    closed = run.closure.query("belief == 'exact'")
    print()
    print(
        closed[["site", "n_examples", "growth", "n_latents", "closure", "joint"]]
        .round(3)
        .to_string(index=False)
    )
    injected = run.injections.query("belief == 'exact'")
    effects = injected.pivot(index=["n_examples", "site"], columns="injected", values="effect")
    print("\nWhat a site's own growth, injected whole and in parts, does to the answer (nats):")
    print(effects.round(3).to_string())


def own_shapes(run: iclens.Run) -> pd.DataFrame:
    """Shapes of the short list in its own arm: would the certificate fail only because the control moves?"""
    tables = []
    arrays = load_file(run.results.file("shape", f"pre_{run.arms[0]}.safetensors"))
    for (site, role), rows in run.shapes.groupby(["site", "role"], sort=False):
        values = arrays[f"{site} {role}"]
        n_seen = np.arange(values.shape[2]) + (role in ("lab", "close"))  # these have read their own label
        latents = rows["latent"].to_numpy()
        found = fit_shapes(n_seen, values, place=(run.site(site), role), latent_ids=latents)
        tables.append(found.df.assign(site=site))
    return pd.concat(tables, ignore_index=True)


def between(shapes: pd.DataFrame) -> str:
    """Latents at `pre` whose exponent would count as additive, with it and its 90 % interval."""
    rows = shapes[(shapes["role"] == "pre") & shapes["exponent"].between(0.8, 1.25)].to_dict("records")
    said = "{site} {latent} (p {exponent:.2f} [{exponent_low:.2f}, {exponent_high:.2f}])"
    return ", ".join(said.format(**row) for row in rows) or "none"


def accounts(run: iclens.Run) -> None:
    """Accounts over all arms, for the belief and for the short-listed latents."""
    title("4. Which account predicts all arms at once")
    print(
        run.accounts[["account", "behind", "behind_low", "behind_high", "r2", "parameter"]]
        .round(2)
        .to_string(index=False)
    )
    print(run.results.facts_of_growth["accounts"]["verdict"])
    named = run.latent_accounts.query("named")
    print("\nNamed for short-listed latents, by role (the model's own belief stands beside the accounts):")
    print(named.groupby(["account", "role"]).size().unstack(fill_value=0).to_string())
    weights = run.evidence["weighting"].value_counts().to_dict()
    near = (run.evidence["similarity_low"] > 0).sum()
    print(f"Their increments follow: {weights}; {near} gain more from near examples than from far ones.")


def falsifiers(run: iclens.Run) -> None:
    """What would refute the claim."""
    title("5. What would refute it")
    for row in run.falsifiers.to_dict("records"):
        print(f"{row['falsifier']} {row['fired']:13s} {row['question']}\n   {row['evidence']}")
    top = run.growth["verdict"].isin(schemas.LADDER[2:]).sum()
    fired = ", ".join(run.falsifiers.query("fired == 'fired'")["falsifier"]) or "none"
    print(f'\n{top} latents get beyond "grows"; falsifiers that fired: {fired}.')


def charts(run: iclens.Run, folder: Path) -> None:
    """The arms' beliefs and the accounts, by altair."""
    table = run.beliefs.query("belief == 'exact'")
    base = alt.Chart(table).encode(x=alt.X("n_seen:Q", title="examples seen"))
    model = base.mark_line().encode(y=alt.Y("mean:Q", title="log-odds, nats"))
    exact = base.mark_line(strokeDash=[4, 3], color="black").encode(y="exact_mean:Q")
    arms = (model + exact).properties(width=150, height=110).facet("arm:N", columns=6)
    arms.save(folder / "arms.svg")
    bars = alt.Chart(run.accounts).mark_bar().encode(
        x=alt.X("behind:Q", title="nats per held-out prompt behind the best"), y=alt.Y("account:N", sort="x")
    )  # fmt: skip
    bars.save(folder / "accounts.svg")
    print(f"\ncharts: {folder / 'arms.svg'}, {folder / 'accounts.svg'}")


def main() -> None:
    """Tell the story of a run."""
    parser = argparse.ArgumentParser(description="Does in-context learning add features here?")
    parser.add_argument("run", nargs="?", help="a run folder or study folder")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    asked = parser.parse_args()
    try:
        if asked.run is None:
            outcome = run_study(
                all_arms(), asked.runs, lambda event: print(event.stage, event.state, file=sys.stderr)
            )
            asked.run = outcome.run
        run = iclens.open(asked.run)
        bayes()
        for part in (beliefs, latents, accounts, falsifiers):
            part(run)
        charts(run, run.path)
    except IclensError as problem:
        parser.exit(problem.exit_code, f"{problem}\n")


if __name__ == "__main__":
    main()
