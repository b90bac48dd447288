"""Does identification keep its promises? Planted codes under confounding, through an SAE, and nulls.

    python analysis/calibration/identification.py [--seed 10000] [--runs 40] [--short] [--workers
    2]

1. Codes for parity, a band and being a number, each tied to one confound by Cramér's V from 0 to .9;
latents are the codes themselves (oracle), then those of an SAE trained on activations in which the codes
are directions among others. A granted label is right when the latent is that code (an SAE's: when its
decoder row is closest to the code's direction, cosine .7 or more). 2. Nulls: latents of the built-in model
whose prompts are dealt to other prompts, and noise that belongs to rows or prompts; a run with any label
counts. Each row states the demand, the figure with its Monte-Carlo error, and whether it is met, up to two
of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_array

from iclens.activations import LatentActs
from iclens.concepts.labels import EVERY_CONCEPT, granted, identify
from iclens.concepts.language import Concept, Contrast, TaskGrid, everywhere, signed, split_grid
from iclens.core import PREFIX_LENGTH, TOKENS_PER_EXAMPLE, Site
from iclens.model.load import load_model
from iclens.prompts.build import PromptSet
from iclens.prompts.tasks import parse_task
from iclens.saes.encode import encode_rows
from iclens.saes.load import Sae, load_saes
from iclens.study.config import demo_config
from iclens.study.grid import grid_prompts, task_grid
from iclens.tracking import track
from iclens.training.config import Optimisation, SaeSpec
from iclens.training.data import Scaling
from iclens.training.other_saes import build_step
from planted import CONCEPTS as PLANTED
from planted import CONFOUND, CalibrationRow, at_least, at_most, plant_codes, stated

ROOT = Path(__file__).resolve().parents[2]
CONFOUNDING = (0.0, 0.3, 0.5, 0.7, 0.9)
SNR, N_ROWS, EXAMPLES, N_LATENTS = 4.0, 9_600, 8, 50
D_IN, D_SAE, K, DISTRACTORS = 64, 96, 6, 60
TRAIN_ROWS, BATCH = 400_000, 1024
LABELS = 1 / 6
"""Share of the rows that an SAE is trained on which are labels, and hold codes: one token of six is one."""
COSINE, HAS = 0.7, 0.9
"""Least cosine of a decoder row and a code: for the latent to be it, and for the SAE to have it."""


@dataclass(frozen=True)
class World:
    """Planted rows in the form that identification takes.

    Args:
        prompts: rows of one task, `EXAMPLES` at a time.
        grid: their tasks, half of them held out.
        truth: concept or confound → whether it holds, [row].
        values: planted latents, [row latent].
        kind: what each latent codes, [latent].
    """

    prompts: PromptSet
    grid: TaskGrid
    truth: dict[str, np.ndarray]
    values: np.ndarray
    kind: np.ndarray

    def concepts(self) -> tuple[Concept, ...]:
        """The planted concepts, each to be told from the confound and from the other two."""
        contrasts = {name: Contrast(name, partial(self._label, name)) for name in (*PLANTED, CONFOUND)}
        return tuple(
            Concept(contrasts[name], name, everywhere, tuple(c for n, c in contrasts.items() if n != name))
            for name in PLANTED
        )

    def _label(self, name, rows):
        held = self.truth[name][rows.prompt * EXAMPLES + rows.example]
        return signed(held, ~held)


def plant(confounding: float, seed: int) -> World:
    """Rows of a factorial of tasks, sorted into prompts of one task; an unfilled prompt is left out."""
    codes = plant_codes(n_latents=N_LATENTS, n_rows=N_ROWS, confounding=confounding, snr=SNR, seed=seed)
    pairs = zip(codes.slope, codes.offset, strict=True)
    names = np.array([f"{a}x{b:+d}" for a, b in pairs])
    tasks = [parse_task(name) for name in np.unique(names)]
    kept = []
    for name in np.unique(names):
        own = np.flatnonzero(names == name)
        kept.append(own[: len(own) // EXAMPLES * EXAMPLES])
    row = np.concatenate(kept)
    shape = (len(row) // EXAMPLES, EXAMPLES)
    y = np.where(codes.truth["numeric"], codes.y.astype(str), "word")[row].reshape(shape)
    x = codes.x[row].astype(str).reshape(shape)
    tokens = np.zeros((shape[0], PREFIX_LENGTH + TOKENS_PER_EXAMPLE * EXAMPLES), dtype=np.int64)
    task = np.array([parse_task(name).name for name in names[row][::EXAMPLES]])
    prompts = PromptSet(task, "grid", x, y, y, tokens, seed, "none")
    used = [one for one in tasks if one.name in set(task.tolist())]
    truth = {name: held[row] for name, held in codes.truth.items()}
    return World(prompts, split_grid(used, seed=seed), truth, codes.values.T[row], codes.kind)


def as_latents(values: csr_array, prompts: PromptSet) -> LatentActs:
    """Activations [row latent] of planted prompts."""
    nothing = np.zeros(prompts.x.shape)
    return LatentActs(
        Site(0, "resid_post"), "lab", "planted", values.shape[1], prompts.n_prompts, prompts.n_examples,
        values.indptr, values.indices, values.data, nothing, nothing,
    )  # fmt: skip


def labels(world: World, values: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Latents that were granted a label, and these labels."""
    table = granted(identify(
        as_latents(values, world.prompts), world.prompts, world.concepts(), grid=world.grid, seed=0,
        first_example=0, n_resamples=100,
    ))  # fmt: skip
    return table["latent"], table["label"].astype(str)


Counts = tuple[int, int, int, int]
"""Labels granted; those that are right; codes that there are; those of them that were found."""


def oracle(confounding: float, seed: int) -> Counts:
    """One run with the codes themselves as latents."""
    world = plant(confounding, seed)
    latent, label = labels(world, csr_array(np.maximum(world.values, 0)))
    right = int((world.kind[latent] == label).sum())
    return len(label), right, int(np.isin(world.kind, PLANTED).sum()), right


def through_sae(confounding: float, seed: int) -> Counts:
    """One run through an SAE trained where the codes are crossed; the prompts alone are confounded."""
    return _through_sae(confounding, 0.0, seed)


def through_confounded_sae(confounding: float, seed: int) -> Counts:
    """One run through an SAE whose training rows are confounded as the prompts are."""
    return _through_sae(confounding, confounding, seed)


def _through_sae(confounding: float, in_training: float, seed: int) -> Counts:
    """Codes that there are, are those that the SAE has; what it merged, identification cannot find."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((len(PLANTED) + 1 + DISTRACTORS, D_IN))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    sae = _trained(directions, in_training, seed)
    world = plant(confounding, seed)
    rows = _activations(directions, world.truth, np.random.default_rng(seed + 1))
    latents = encode_rows(sae, rows).latents
    decoder = sae.W_dec.detach().numpy()
    cosine = decoder @ directions.T / np.linalg.norm(decoder, axis=1, keepdims=True)
    names = np.array([*PLANTED, CONFOUND, *["none"] * DISTRACTORS])
    kind = np.where(cosine.max(axis=1) >= COSINE, names[cosine.argmax(axis=1)], "none")
    latent, label = labels(world, csr_array(latents))
    right = set(label[kind[latent] == label].tolist())
    has = {name for name, best in zip(PLANTED, cosine.max(axis=0), strict=False) if best >= HAS}
    return len(label), int((kind[latent] == label).sum()), len(has), len(has & right)


def _activations(
    directions: np.ndarray, truth: dict[str, np.ndarray], rng: np.random.Generator, labels: float = 1.0
) -> np.ndarray:
    """Codes along their directions in a share of rows, other features, and noise, float32 [row d_in]."""
    held = np.stack([truth[name] for name in (*PLANTED, CONFOUND)], axis=1)
    held = held * (rng.random((len(held), 1)) < labels)
    rates = 0.12 / np.arange(1, DISTRACTORS + 1) ** 0.5
    features = np.concatenate([held, rng.random((len(held), DISTRACTORS)) < rates], axis=1)
    sizes = features * (0.5 + rng.random(features.shape))
    return (sizes @ directions + 0.03 * rng.standard_normal((len(held), D_IN))).astype(np.float32)


def _trained(directions: np.ndarray, confounding: float, seed: int) -> Sae:
    """A TopK SAE on fresh rows of the same world."""
    rng = np.random.default_rng([seed, 2])

    def batch() -> torch.Tensor:
        large = rng.random(BATCH) < 0.5
        agree = rng.random((len(PLANTED), BATCH)) < (1 + confounding) / 2
        truth = {name: np.where(a, large, ~large) for name, a in zip(PLANTED, agree, strict=True)}
        return torch.as_tensor(_activations(directions, truth | {CONFOUND: large}, rng, LABELS))

    first = torch.cat([batch() for _ in range(8)])
    declared = Optimisation(tokens=TRAIN_ROWS, lr=0.003, dead_after_tokens=20 * BATCH, aux_k=D_IN // 2)
    spec = SaeSpec(Site(0, "resid_post"), None, D_SAE, K, 0.003, seed, "topk", {})
    step = build_step(spec, declared, Scaling.of(first), None, first, "cpu")
    steps = TRAIN_ROWS // BATCH
    for number in range(steps):
        step.update(batch(), None, min(1.0, 2 * (1 - number / steps)))
    network = step.export().eval()
    return Sae(Site(0, "resid_post"), "planted", D_IN, D_SAE, K, network, ROOT)


def noise_null(seed: int) -> int:
    """Labels granted to noise that belongs to rows or to prompts, on the demo's grid."""
    config = demo_config()
    prompts, grid = _demo_prompts(), task_grid(config)
    rng = np.random.default_rng(seed)
    shape = (prompts.n_prompts, prompts.n_examples, 60)
    level = rng.standard_normal((prompts.n_prompts, 1, 60)) * (np.arange(60) % 2) * 2
    values = np.maximum(level + rng.standard_normal(shape) - 0.5, 0).reshape(-1, 60)
    acts = as_latents(csr_array(values.astype(np.float32)), prompts)
    return len(granted(identify(acts, prompts, EVERY_CONCEPT, grid=grid, seed=0, n_resamples=100)))


def task_null(seed: int) -> int:
    """Labels granted to latents with a random level for each task: all that they tell apart is tasks."""
    prompts, grid = _demo_prompts(), task_grid(demo_config())
    rng = np.random.default_rng(seed)
    _, task = np.unique(prompts.task, return_inverse=True)
    level = rng.standard_normal((task.max() + 1, 60))[task].repeat(prompts.n_examples, axis=0)
    values = np.maximum(level + 0.1 * rng.standard_normal(level.shape) - 0.5 * (np.arange(60) % 2), 0)
    acts = as_latents(csr_array(values.astype(np.float32)), prompts)
    return len(granted(identify(acts, prompts, EVERY_CONCEPT, grid=grid, seed=0, n_resamples=100)))


def dealt_null(seed: int) -> int:
    """Labels granted to the built-in model's latents when each prompt gets another prompt's activations."""
    acts, prompts, grid = _model_latents()
    order = np.random.default_rng(seed).permutation(prompts.n_prompts)
    rows = (order[:, None] * prompts.n_examples + np.arange(prompts.n_examples)).ravel()
    dealt = as_latents(csr_array(acts.matrix[rows]), prompts)
    return len(granted(identify(dealt, prompts, EVERY_CONCEPT, grid=grid, seed=0, n_resamples=100)))


_HELD: dict[str, object] = {}


def _demo_prompts() -> PromptSet:
    if "prompts" not in _HELD:
        tokenizer = load_model(ROOT / "checkpoints" / "icl-tiny").tokenizer
        _HELD["prompts"] = grid_prompts(demo_config(), tokenizer, n_prompts=12, seed=1)
    return _HELD["prompts"]


def _model_latents() -> tuple[LatentActs, PromptSet, TaskGrid]:
    if "latents" not in _HELD:
        torch.set_num_threads(1)
        model = load_model(ROOT / "checkpoints" / "icl-tiny")
        saes = load_saes(ROOT / "checkpoints" / "icl-tiny-saes", model)
        site = Site(2, "resid_post")
        prompts = _demo_prompts()
        tracked = track(model, {site: saes[site]}, prompts, roles=("lab",))
        _HELD["latents"] = (tracked.latents[site, "lab"], prompts, task_grid(demo_config()))
    return _HELD["latents"]


def main() -> None:
    """Run every part and print its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=40, help="of a cell; nulls get five times as many")
    parser.add_argument("--sae-runs", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--short", action="store_true", help="a few runs, to see that it works")
    given = parser.parse_args()
    runs, sae_runs, nulls = (3, 1, 4) if given.short else (given.runs, given.sae_runs, 5 * given.runs)
    rows: list[CalibrationRow] = []
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        parts = (
            ("oracle latents", oracle, runs),
            ("SAE latents", through_sae, sae_runs),
            ("latents of an SAE trained on confounded rows", through_confounded_sae, sae_runs),
        )
        for what, run, n in parts:
            for confounding in CONFOUNDING:
                seeds = range(given.seed, given.seed + n)
                found = list(pool.map(partial(run, confounding), seeds))
                rows += judged(what, confounding, np.array(found), run is not through_confounded_sae)
                show(rows[-1:] if confounding >= 0.9 else rows[-2:])
        for what, run, n in (
            ("noise of rows and prompts", noise_null, nulls),
            ("levels of tasks", task_null, nulls),
            ("dealt prompts", dealt_null, nulls),
        ):
            any_label = sum(n > 0 for n in pool.map(run, range(given.seed, given.seed + n)))
            rows.append(at_most("null runs with any label", 0.05, any_label, n, f"{what}, {n} runs"))
            show(rows[-1:])
    print("all demands met" if all(row.met for row in rows) else "NOT met: some demand above")


def judged(what: str, confounding: float, found: np.ndarray, demanded: bool) -> list[CalibrationRow]:
    """Precision and recall at little confounding, abstention at much; elsewhere they are stated."""
    granted_, right, codes, recovered = found.sum(axis=0)
    detail = f"{what}, V {confounding:g}, {len(found)} runs, {codes} codes"
    if confounding >= 0.9:
        return [_share("abstains", 0.9, codes - recovered, codes, detail, at_least if demanded else None)]
    demand = at_least if confounding <= 0.5 and demanded else None
    return [
        _share("precision", 0.95, right, granted_, detail, demand),
        _share("recall", 0.90, recovered, codes, detail, demand),
    ]


def _share(
    name: str, bound: float, hits: int, n: int, detail: str, demand: Callable | None
) -> CalibrationRow:
    if demand is None or not n:
        return stated(name, int(hits), max(int(n), 1), detail)
    return demand(name, bound, int(hits), int(n), detail)


def show(rows: list[CalibrationRow]) -> None:
    """Print rows as they come."""
    for row in rows:
        met = "met" if row.met else "NOT MET"
        print(
            f"{row.quantity:28} {row.figure:7.3f} ± {row.mc_error:.3f}  {row.demand:8} {met:8} {row.detail}",
            flush=True,
        )


if __name__ == "__main__":
    main()
