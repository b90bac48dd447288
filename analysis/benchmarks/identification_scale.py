"""How long does it take to ask every latent of a wide SAE about every concept?

    python analysis/benchmarks/identification_scale.py [--latents 131072] [--rows 10000] [--active 64]

1. Prompts of the default grid are drawn, about `--rows` of their examples. 2. Latents are random: some fire
in many rows, most in few, as in a trained SAE; a few code a concept. 3. `identify` asks all of them about
five concepts at one site and role. Printed are seconds, peak memory, and the largest difference from
scikit-learn's `roc_auc_score` over a sample of latents, stratum by stratum.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
from scipy.sparse import csr_array
from sklearn.metrics import roc_auc_score

from iclens.activations import LatentActs
from iclens.concepts.auroc import split_rows
from iclens.concepts.labels import identify
from iclens.concepts.language import DEFAULT_SPECS, Concept, Rows, TaskGrid, concept, read_rows, split_grid
from iclens.core import PREFIX_LENGTH, TOKENS_PER_EXAMPLE, Site
from iclens.prompts.build import PromptSet, draw_examples
from iclens.prompts.tasks import parse_task

CONCEPTS = tuple(concept(name) for name in ("double", "odd", "numeric", "offset", "magnitude"))
N_EXAMPLES, FIRST = 16, 4
SAMPLE = 200


def main() -> None:
    """Draw, identify, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--latents", type=int, default=131_072)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--active", type=int, default=64, help="active latents per row")
    asked = parser.parse_args()
    grid = split_grid([parse_task(spec) for spec in DEFAULT_SPECS], seed=0)
    prompts = draw(grid, round(asked.rows / (N_EXAMPLES - FIRST) / len(grid.names)))
    rows = read_rows(prompts, "lab", grid.rules)
    acts = random_latents(rows, asked.latents, asked.active)
    used = int((rows.example >= FIRST).sum())
    print(f"{asked.latents} latents, {used} rows used, {len(acts.value)} entries, {len(CONCEPTS)} concepts")
    started = time.monotonic()
    table = identify(acts, prompts, CONCEPTS, grid=grid, seed=0, first_example=FIRST)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"identified in {seconds:.1f} s; peak memory of the process {peak:.2f} GiB")
    labels, counts = np.unique(table["label"].astype(str), return_counts=True)
    print("labels:", dict(zip(labels.tolist(), counts.tolist(), strict=True)))
    worst = max(difference(one, acts, rows, grid, table.df) for one in CONCEPTS)
    print(f"largest difference from roc_auc_score, {SAMPLE} latents of each concept: {worst:.2e}")


def draw(grid: TaskGrid, n_prompts: int) -> PromptSet:
    """Prompts of the grid with blank tokens, which nothing here reads."""
    parts = []
    for task in map(parse_task, grid.names):
        inputs = [x for x in map(str, range(100)) if task.domain == "number" and task.rule(x)] or None
        found = draw_examples(
            task, arm="T", n_prompts=n_prompts, n_examples=N_EXAMPLES, seed=3, inputs=inputs
        )
        parts.append((np.full(n_prompts, task.name), *found))
    task, x, y, answer = (np.concatenate(part) for part in zip(*parts, strict=True))
    tokens = np.zeros((len(x), PREFIX_LENGTH + TOKENS_PER_EXAMPLE * N_EXAMPLES), dtype=np.int64)
    return PromptSet(task, "grid", x, y, answer, tokens, 3, "none")


def random_latents(rows: Rows, n_latents: int, active: int) -> LatentActs:
    """Latents that fire at random, at rates that fall as 1/rank; the first few code a concept each."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, n_latents + 1) ** 0.8
    share = np.cumsum(rng.permutation(share / share.sum()))
    row = np.repeat(np.arange(len(rows)), active)
    latent = np.minimum(np.searchsorted(share, rng.random(len(row))), n_latents - 1)
    value = rng.lognormal(size=len(row)).astype(np.float32)
    entries = [(row, latent, value)]
    for i, one in enumerate(CONCEPTS):
        on = np.flatnonzero(one.contrast.label(rows) > 0)
        entries.append((on, np.full(len(on), i), 9 + rng.random(len(on)).astype(np.float32)))
    row, latent, value = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    acts = csr_array((value, (row, latent)), shape=(len(rows), n_latents))
    n_prompts = len(rows) // N_EXAMPLES
    nothing = np.zeros((n_prompts, N_EXAMPLES), dtype=np.float32)
    return LatentActs(
        Site(0, "resid_post"), "lab", "random", n_latents, n_prompts, N_EXAMPLES,
        acts.indptr, acts.indices, acts.data, nothing, nothing,
    )  # fmt: skip


def difference(one: Concept, acts: LatentActs, rows: Rows, grid: TaskGrid, table) -> float:
    """Largest gap between a concept's AUROC and scikit-learn's, pairs of each stratum weighted alike."""
    held = split_rows(rows, one, (rows.example >= FIRST) & np.isin(rows.task, grid.held_out))
    sample = np.unique(np.r_[: len(CONCEPTS), np.random.default_rng(1).integers(acts.d_sae, size=SAMPLE)])
    dense = acts.matrix[held.used].tocsc()[:, sample].toarray()
    mine = table[table["concept"] == one.name].set_index("latent").loc[sample]
    total, pairs = np.zeros(len(sample)), 0
    for stratum in np.unique(held.stratum):
        inside = held.stratum == stratum
        positive = held.positive[inside]
        n_pairs = int(positive.sum() * (~positive).sum())
        if n_pairs:
            total += [n_pairs * roc_auc_score(positive, column) for column in dense[inside].T]
            pairs += n_pairs
    expected = np.where(mine["sign"] > 0, total / pairs, 1 - total / pairs)
    return float(np.abs(mine["auroc"].to_numpy() - expected).max())


if __name__ == "__main__":
    main()
