"""Is the growth test silent when nothing grows, and does it find what does?

1. Planted latents, N prompts of 16 examples with autocorrelated noise: drift with position in both arms,
   content that only moves between the arms, and growth of one standard deviation in all.
2. The built-in model: arms T and S of a task are tracked, then relabelled prompt by prompt at random, and the
   whole test is made again over every site and role, beside Benjamini–Hochberg in each site × role alone.

    python analysis/02_growth_null.py [--model FOLDER] [--saes FOLDER] [--task SPEC] [--runs N] [--prompts N]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from iclens.errors import IclensError
from iclens.growth.multiplicity import benjamini_hochberg
from iclens.growth.null import relabelled
from iclens.growth.test import test_arms, test_growth
from iclens.models.load import load_model
from iclens.names import Site
from iclens.saes.load import load_sae_set
from iclens.tables.activations import LatentActs
from iclens.tables.growth import GrowthTable
from iclens.tasks.prompts import build_prompts
from iclens.tasks.spec import parse_task
from iclens.tracking.track import track

ROOT = Path(__file__).resolve().parents[1]
J, LATENTS, Q = 16, 100, 0.05
Arms = tuple[np.ndarray, np.ndarray]


def noise(rng: np.random.Generator, n_prompts: int, rho: float = 0.5) -> np.ndarray:
    """Autocorrelated noise of unit spread, [latent prompt example]."""
    out = rng.standard_normal((LATENTS, n_prompts, J))
    for j in range(1, J):
        out[..., j] = rho * out[..., j - 1] + np.sqrt(1 - rho**2) * out[..., j]
    return out


def drifting(rng: np.random.Generator, n_prompts: int) -> Arms:
    """Both arms rise with position by three standard deviations."""
    rise = 3 * np.arange(J) / J
    return noise(rng, n_prompts) + rise, noise(rng, n_prompts) + rise


def moving(rng: np.random.Generator, n_prompts: int) -> Arms:
    """Latents that answer to labels; the control arm shows the same labels in another order."""
    content = 4 * (rng.standard_normal((LATENTS, n_prompts, J)) - 1)
    order = np.argsort(rng.random((n_prompts, J)), axis=1)
    return content - 1, np.take_along_axis(content, np.broadcast_to(order, content.shape), axis=2) - 1


def growing(rng: np.random.Generator, n_prompts: int) -> Arms:
    """The treated arm rises by one standard deviation over the prompt, in every latent."""
    return noise(rng, n_prompts) + np.arange(J) / J, noise(rng, n_prompts)


def gated(values: np.ndarray) -> LatentActs:
    """Latents that show a pre-activation above −1, in the sparse form that tracking gives."""
    d_sae, n_prompts, n_examples = values.shape
    rows = csr_array(np.maximum(1 + values, 0).reshape(d_sae, -1).T)
    indptr, index, value = rows.indptr, rows.indices, rows.data
    zeros = np.zeros((n_prompts, n_examples))
    return LatentActs(
        Site(0, "resid_post"),
        "pre",
        "planted",
        d_sae,
        n_prompts,
        n_examples,
        indptr,
        index,
        value,
        zeros,
        zeros,
    )


def planted(
    plant: Callable[[np.random.Generator, int], Arms], runs: int, n_prompts: int
) -> list[GrowthTable]:
    """The verdicts of each run on planted latents."""
    rng = np.random.default_rng(0)
    arms = (plant(rng, n_prompts) for _ in range(runs))
    return [test_growth(gated(treated), gated(control), q=Q) for treated, control in arms]


def called_family_by_family(table: GrowthTable) -> int:
    """Growing latents that Benjamini–Hochberg calls in each site × role, with no regard to the others."""
    families = table.df.dropna(subset="p_value").groupby(["site", "role"])["p_value"]
    return sum(int((benjamini_hochberg(p.to_numpy()) <= Q).sum()) for _, p in families)


def share(hits: int, runs: int) -> str:
    """A share with its binomial standard error."""
    p = hits / runs
    return f"{hits} of {runs} runs ({p:.3f} ± {np.sqrt(p * (1 - p) / runs):.3f})"


def main() -> None:
    """Print what each null and each planted growth gave."""
    parser = argparse.ArgumentParser(description="The growth test on nulls and on planted growth.")
    parser.add_argument("--model", type=Path, default=ROOT / "checkpoints" / "icl-tiny")
    parser.add_argument("--saes", type=Path, default=ROOT / "checkpoints" / "icl-tiny-saes")
    parser.add_argument("--task", default="2x+3")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=256)
    asked = parser.parse_args()
    print(f"planted, {LATENTS} latents, {asked.prompts} prompts of {J} examples, q = {Q}")
    for name, plant in (("drift with position", drifting), ("content that moves", moving)):
        found = sum(len(table.significant(Q)) > 0 for table in planted(plant, asked.runs, asked.prompts))
        print(f"  {name}: any discovery in {share(found, asked.runs)}")
    tables = planted(growing, 20, asked.prompts)
    print(f"  growth of 1 SD: recall {np.mean([(t['verdict'] == 'grows').mean() for t in tables]):.4f}")
    try:
        relabel_model(asked)
    except IclensError as problem:
        parser.exit(problem.exit_code, f"{problem}\n")


def relabel_model(asked: argparse.Namespace) -> None:
    """Track both arms once; relabel and test again in each run."""
    model, task = load_model(asked.model), parse_task(asked.task)
    saes = load_sae_set(asked.saes, model)
    one, other = (
        build_prompts(model.tokenizer, task, arm=arm, n_prompts=asked.prompts, n_examples=J, seed=1)
        for arm in "TS"
    )
    treated, control = (track(model, saes, prompts).latents for prompts in (one, other))
    table = test_arms(treated, control, prompts=(one, other), q=Q)
    tested = int(np.isfinite(table["q_value"]).sum())
    print(f"\n{asked.model.name}, {task.name}: {len(treated)} sites × roles, {tested} latents tested")
    print(table.df.groupby(["role", "verdict"]).size().unstack(fill_value=0).to_string())
    rng = np.random.default_rng(0)
    study, alone = 0, 0
    for _ in range(asked.runs):
        swapped = rng.random(asked.prompts) < 0.5
        null = test_arms(*relabelled(treated, control, swapped), prompts=(one, other), q=Q)
        study += len(null.significant(Q)) > 0
        alone += called_family_by_family(null) > 0
    print(f"relabelled, the study's one error rate: any discovery in {share(study, asked.runs)}")
    print(f"relabelled, each site × role by itself:  any discovery in {share(alone, asked.runs)}")


if __name__ == "__main__":
    main()
