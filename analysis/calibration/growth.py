"""Does the growth test keep its promises? Every demand on it, measured on planted truth and on the model.

    python analysis/calibration/growth.py [--seed 10000] [--runs 200] [--short] [--workers 2]

1. Planted latents: nulls through the whole pipeline, false discoveries, recall, certificates, coverage. 2. A
planted read-out: dose slopes and growers without an effect. 3. Hand-built attention heads. 4. The model:
growth of every shape spiked along decoder directions; arms relabelled prompt by prompt; its log-odds on the
exact ones.
Each row states the demand, the figure with its Monte-Carlo error, and whether it is met, up to two of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import yaml

from iclens.core import IclensError
from iclens.growth.bayes import agreement
from iclens.model.load import LanguageModel, load_model
from iclens.model.run import answer_probs
from iclens.prompts.beliefs import AnswerProbs, belief_index
from iclens.prompts.build import PromptSet, build_prompts, exact_answer_probs, in_mixture
from iclens.prompts.mixture import Mixture
from iclens.prompts.tasks import parse_task
from iclens.saes.load import load_saes
from iclens.tracking import belief_log_odds, track
from planted import (
    CalibrationRow,
    at_most,
    measure_attention,
    measure_certificates,
    measure_coverage,
    measure_discovery,
    measure_nulls,
    measure_readout,
    null_discoveries,
)
from spike import measure_spikes

ROOT = Path(__file__).resolve().parents[2]
ARMS = ("T", "N1", "N2", "N5", "D", "D2", "W", "Wr", "Q-", "Q0")
N_EXAMPLES = 16
EXACT = belief_index("exact")
Rows = list[CalibrationRow]


def planted(seed: int, runs: int, workers: int = 1) -> Iterator[Rows]:
    """Everything that needs no model; `runs` whole pipelines per null. `workers` processes share it."""
    few, some = max(1, runs // 50), max(2, runs // 4)
    asked: tuple[tuple[Callable[[int, int], Rows], int], ...] = (
        (measure_nulls, runs),
        (measure_discovery, some),
        (measure_certificates, few),
        (measure_coverage, few),
        (measure_readout, max(2, runs)),
        (measure_attention, some),
    )
    if workers == 1:
        yield from (measure(seed, n) for measure, n in asked)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(measure, seed, n) for measure, n in asked]
        yield from (part.result() for part in waiting)


def on_model(asked: argparse.Namespace, runs: int) -> Iterator[Rows]:
    """Spikes, relabelled arms and agreement with the exact posterior."""
    model = load_model(asked.model)
    saes = load_saes(asked.saes, model)

    def prompts(arm: str, n: int, seed: int) -> PromptSet:
        task = parse_task(asked.task)
        return build_prompts(model.tokenizer, task, arm=arm, n_prompts=n, n_examples=N_EXAMPLES, seed=seed)

    n_prompts = 64 if asked.short else 256
    for sae in list(saes.values())[: 1 if asked.short else None]:
        arm = prompts("S", 8 * n_prompts, asked.seed)
        yield measure_spikes(
            model, sae, arm, n_prompts=n_prompts, seed=asked.seed, n_runs=1 if asked.short else 16
        )
    treated, control = (prompts(arm, n_prompts, asked.seed) for arm in "TS")
    tracked = [track(model, saes, arm).latents for arm in (treated, control)]
    counts = null_discoveries(
        tracked[0], tracked[1], prompts=(treated, control), n_runs=runs, seed=asked.seed
    )
    said = f"{runs} relabellings of {len(tracked[0])} sites × roles"
    yield [at_most("any discovery: relabelled arms of the model", 0.05, int((counts > 0).sum()), runs, said)]
    yield fidelity(model, Path(asked.model), prompts, n_prompts, asked.seed)


GOAL = "1 ± .05, r ≥ .98"


def fidelity(
    model: LanguageModel, folder: Path, prompts: Callable[[str, int, int], PromptSet], n: int, seed: int
) -> Rows:
    """The model's log-odds of the task's answer on the exact ones, by prompt and number of examples."""
    file, what = folder / "mixture.yaml", "fitted on exact log-odds"
    if not file.is_file():
        return [CalibrationRow(what, GOAL, np.nan, np.nan, False, "the model declares no mixture")]
    mixture, rows = Mixture.from_dict(yaml.safe_load(file.read_text())), []
    for arm in ARMS:
        some = prompts(arm, n, seed)
        some = some.select(np.flatnonzero(in_mixture(mixture, some)))
        if not some.n_prompts:
            said = "the mixture gives none of its prompts"
            rows.append(CalibrationRow(f"{what}, arm {arm}", GOAL, np.nan, np.nan, False, said))
            continue
        exact = belief_log_odds(exact_answer_probs(mixture, some), some)[..., EXACT]
        own = belief_log_odds(answers(model, some), some)[..., EXACT]
        fit = agreement(exact, own, seed=seed)
        met = abs(fit.slope - 1) <= 0.05 and fit.r >= 0.98
        said = f"r {fit.r:.3f}, {fit.n_prompts} prompts × {N_EXAMPLES}, intercept {fit.intercept:.2f}"
        error = (fit.slope_high - fit.slope_low) / 3.92
        rows.append(CalibrationRow(f"{what}, arm {arm}", GOAL, fit.slope, error, bool(met), said))
    return rows


def answers(model: LanguageModel, prompts: PromptSet) -> AnswerProbs:
    """The model's answers before every query."""
    parts = [answer_probs(model, one.tokens, one.positions("pre")) for one in prompts.passes()]
    return AnswerProbs(parts[0].answers, np.concatenate([part.log_prob for part in parts], axis=1))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="The growth test's operating characteristics.")
    parser.add_argument("--seed", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1, help="processes; the table is the same")
    parser.add_argument("--short", action="store_true", help="few runs, to see that it works")
    parser.add_argument("--model", type=Path, default=ROOT / "checkpoints" / "icl-tiny")
    parser.add_argument("--saes", type=Path, default=ROOT / "checkpoints" / "icl-tiny-saes")
    parser.add_argument("--task", default="2x+3")
    asked = parser.parse_args()
    if min(asked.runs, asked.workers) < 1:
        parser.error("--runs and --workers are at least 1")
    runs = 4 if asked.short else asked.runs
    print(f"{'quantity':46s} {'demand':16s} {'figure':>8s} {'± error':>8s}  met  on")
    missed = 0
    try:
        for rows in chain(planted(asked.seed, runs, asked.workers), on_model(asked, runs)):
            for row in rows:
                missed += not row.met
                print(f"{row.quantity:46s} {row.demand:16s} {row.figure:8.3f} {row.mc_error:8.3f}  "
                      f"{'yes' if row.met else 'NO '}  {row.detail}", flush=True)  # fmt: skip
    except IclensError as problem:
        parser.exit(problem.exit_code, f"{problem}\n")
    print(f"{missed} demands not met" if missed else "every demand met")


if __name__ == "__main__":
    main()
