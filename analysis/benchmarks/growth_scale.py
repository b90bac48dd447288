"""Is tracking and testing fast and lean enough for llama-3-8b's SAEs?

1. 131,072 latents × 256 prompts × 16 examples in two arms, 3,000 of them rising: detection, shapes, tables,
with the process's peak memory. 2. One latent's trajectory from a store of 25 million entries, its pages
dropped from the cache before each read. 3. Tracking against the bare forward pass of the same batch, side by
side, on the built-in model and on a wider random one: what the SAEs' encoders cost by arithmetic, the ratio,
and what is left of it when the encoders' matrix products are counted to the forward pass.

    python analysis/benchmarks/growth_scale.py [--part detect|store|track|all] [--threads N]

On a machine that others use too, `--threads 1` is steadier: a parallel region waits for its slowest thread.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from random_llama import BUILT_IN, write_folder
from sae_lens import TopKSAE, TopKSAEConfig

from iclens.activations import LatentActs
from iclens.core import Site
from iclens.growth.detect import test_growth
from iclens.growth.shape import fit_shapes
from iclens.model.load import LanguageModel, load_model
from iclens.model.shape import LLAMA3_8B, ModelShape
from iclens.prompts.build import build_prompts
from iclens.prompts.tasks import parse_task
from iclens.saes.load import Sae, load_saes
from iclens.schemas import GrowthTable
from iclens.tracking import TRACKED_ROLES, track

ROOT = Path(__file__).resolve().parents[2]
D_SAE, N_PROMPTS, N_EXAMPLES, ACTIVE = 131_072, 256, 16, 48
GROWING, EACH = 24, 125
"""In the growing arm, so many of a row's active latents rise, each one of so many: 3,000 in all."""
SITE = Site(14, "resid_post")
WIDE = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 8, "num_attention_heads": 16,
    "num_key_value_heads": 4, "head_dim": 128,
}  # fmt: skip
"""A wider Llama: the same vocabulary, 8 blocks of 2048."""
REPEATS = 7
"""Timed rounds of each comparison, after one that is not counted."""
LIMIT = 1.15
"""The goal for tracking ÷ bare forward."""


def sparse_arm(n_prompts: int, kind: str, seed: int) -> LatentActs:
    """An arm with `ACTIVE` latents at every row, one from each block; "growing" makes 3,000 of them rise."""
    rng = np.random.default_rng(seed)
    n_rows = n_prompts * N_EXAMPLES
    block = D_SAE // ACTIVE
    index = (np.arange(ACTIVE) * block + rng.integers(0, block, (n_rows, ACTIVE))).astype(np.int32)
    value = rng.exponential(1.0, (n_rows, ACTIVE)).astype(np.float32)
    if kind == "growing":
        index[:, :GROWING] = np.arange(GROWING) * block + rng.integers(0, EACH, (n_rows, GROWING))
        value[:, :GROWING] += 0.5 * np.tile(np.arange(N_EXAMPLES), n_prompts)[:, None]
    ends = np.arange(0, n_rows * ACTIVE + 1, ACTIVE, dtype=np.int64)
    flat = np.zeros((n_prompts, N_EXAMPLES), np.float32)
    return LatentActs(
        SITE, "pre", "synthetic", D_SAE, n_prompts, N_EXAMPLES, ends, index.ravel(), value.ravel(), flat, flat
    )


def detect() -> None:
    """Detection, shapes of all that grow, and their table, from the two arms' files."""
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place) / f"{arm}.safetensors" for arm in "TS"]
        sparse_arm(N_PROMPTS, "growing", 0).save(files[0])
        sparse_arm(N_PROMPTS, "still", 1).save(files[1])
        started = time.perf_counter()
        treated, control = (LatentActs.open(file) for file in files)
        table = test_growth(treated, control)
        found = time.perf_counter() - started
        ids = table.growing()["latent"]
        paired = treated.dense(ids).astype(np.float64) - control.dense(ids)
        shapes = fit_shapes(np.arange(N_EXAMPLES), paired, place=(SITE, "pre"), latent_ids=ids)
        GrowthTable.concat([table]).save(Path(place) / "growth.parquet")
        shapes.save(Path(place) / "shapes.parquet")
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"{D_SAE:,} latents × {N_PROMPTS} × {N_EXAMPLES}: detection {found:.1f} s, {len(ids)} grow;")
    print(f"with their shapes and tables {seconds:.1f} s (limit 60), peak {peak:.2f} GiB (limit 6)")


def store() -> None:
    """Cold reads of single latents from 25 million entries."""
    n_prompts = 25_000_000 // (N_EXAMPLES * ACTIVE) + 1
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "store.safetensors"
        sparse_arm(n_prompts, "still", 0).save(file)
        os.sync()
        times = []
        for latent in np.random.default_rng(1).integers(0, D_SAE, 30):
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            started = time.perf_counter()
            LatentActs.open(file).trajectory(int(latent))
            times.append(1e3 * (time.perf_counter() - started))
        entries = n_prompts * N_EXAMPLES * ACTIVE
        print(f"{entries:,} entries, {file.stat().st_size / 1e6:.0f} MB: one trajectory, cache dropped, "
              f"median {statistics.median(times):.1f} ms, worst {max(times):.1f} ms (limit 20)")  # fmt: skip


def random_sae(site: Site, d_in: int, d_sae: int, k: int) -> Sae:
    """A TopK SAE with random weights."""
    network = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=k, apply_b_dec_to_input=True))
    return Sae(site, "random", d_in, d_sae, k, network.requires_grad_(False), Path("random"))


def encoder_share(shape: ModelShape, n_saes: int, d_sae: int, context: int) -> float:
    """FLOP of the SAEs' encoders at the tracked rows ÷ FLOP of the forward pass."""
    encoders = n_saes * 2 * shape.d_model * d_sae * len(TRACKED_ROLES) * N_EXAMPLES
    head = 2 * shape.d_model * shape.n_vocab
    return encoders / (context * (shape.n_blocks * shape.block_flops(context) + head))


def alternating(runs: dict[str, Callable[[], object]]) -> dict[str, np.ndarray]:
    """Seconds of each run, [repeat]; the runs take turns within a repeat."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + REPEATS):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(found[1:]) for name, found in seconds.items()}


def spread(values: np.ndarray) -> str:
    """Median, least and greatest."""
    return f"{np.median(values):.2f} [{values.min():.2f}, {values.max():.2f}]"


def ratio(name: str, model: LanguageModel, saes: dict[Site, Sae], n_prompts: int, batch: int) -> None:
    """Tracking ÷ bare forward, and ÷ (bare forward + encoders' matrix products), alternating in one run."""
    prompts = build_prompts(
        model.tokenizer, parse_task("2x+3"), arm="T", n_prompts=n_prompts, n_examples=N_EXAMPLES, seed=0
    )
    first = next(iter(saes.values()))
    rows = torch.randn(batch * N_EXAMPLES * len(TRACKED_ROLES), model.d_model)
    into = torch.empty(len(rows), first.d_sae)

    @torch.no_grad()
    def bare() -> None:
        for start in range(0, n_prompts, batch):
            model.network(torch.as_tensor(prompts.tokens[start : start + batch]))

    @torch.no_grad()
    def products() -> None:
        for _ in range(0, n_prompts, batch):
            for sae in saes.values():
                torch.addmm(sae.network.b_enc, rows, sae.network.W_enc, out=into)

    took = alternating(
        {"bare": bare, "products": products, "track": lambda: track(model, saes, prompts, batch=batch)}
    )
    shape = ModelShape.from_config(model.network.config.to_dict())
    share = encoder_share(shape, len(saes), first.d_sae, prompts.tokens.shape[1])
    print(
        f"{name}, {len(saes)} × {first.d_sae:,} latents, 4 roles, {n_prompts} prompts, "
        f"{torch.get_num_threads()} threads; {REPEATS} repeats, median [least, greatest]\n"
        f"  by arithmetic: encoders ÷ forward {share:.2f} FLOP/FLOP, so a floor of {1 + share:.2f}\n"
        f"  seconds: forward {spread(took['bare'])}, encoders' products {spread(took['products'])}, "
        f"tracking {spread(took['track'])}\n"
        f"  tracking ÷ forward: {spread(took['track'] / took['bare'])} (limit {LIMIT})\n"
        f"  tracking ÷ (forward + encoders' products), the overhead that is ours: "
        f"{spread(took['track'] / (took['bare'] + took['products']))}"
    )


def on_llama() -> None:
    """The floor on llama-3-8b, by arithmetic alone."""
    shape, context = ModelShape.from_config(LLAMA3_8B), 2 + 6 * N_EXAMPLES
    floors = ", ".join(
        f"{n} SAE{'s' if n > 1 else ''}: {1 + encoder_share(shape, n, D_SAE, context):.2f}"
        for n in (1, 2, 3, 13)
    )
    print(f"llama-3-8b, {D_SAE:,} latents, 4 of 6 tokens; by arithmetic at one rate, not measured: floor of "
          f"tracking ÷ forward with {floors} (limit {LIMIT})")  # fmt: skip


def tracking() -> None:
    """The ratio on the built-in model and on a wider random Llama."""
    checkpoints = ROOT / "checkpoints"
    model = load_model(checkpoints / "icl-tiny")
    ratio("built-in model", model, load_saes(checkpoints / "icl-tiny-saes", model), 256, 128)
    with tempfile.TemporaryDirectory() as place:
        config = json.loads((BUILT_IN / "config.json").read_text()) | WIDE
        write_folder(Path(place) / "wide", config, 4)
        wide = load_model(Path(place) / "wide")
        for layers in ((3,), (3, 5)):
            sites = [Site(layer, "resid_post") for layer in layers]
            saes = {site: random_sae(site, 2048, 16_384, 32) for site in sites}
            ratio("random Llama, 8 blocks of 2048", wide, saes, 8, 8)
    on_llama()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="Growth at scale.")
    parser.add_argument("--part", choices=("detect", "store", "track", "all"), default="all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    part = chosen.part
    torch.set_num_threads(chosen.threads)
    for name, run in (("detect", detect), ("store", store), ("track", tracking)):
        if part in (name, "all"):
            run()


if __name__ == "__main__":
    main()
