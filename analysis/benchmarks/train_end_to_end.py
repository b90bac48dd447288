"""Six sites of the built-in model, ours against sae_lens' `MultiSAETrainingRunner`, in one run.

Both read the same contexts, leave out BOS, and train TopK SAEs of one shape for the same tokens with the same
batches and schedule, each at its better rate. The clocks run from the call to the last step: loading,
estimating units, filling the buffer, training. There are two: the wall's, and the processor time of this
process, which other work on the machine disturbs less. Afterwards one definition of FVU (`saes.quality`)
measures both on the same contexts, which neither was trained on.

    OMP_NUM_THREADS=1 python analysis/benchmarks/train_end_to_end.py [--repeats 2]

The default is 32 latents per dimension in sae_lens' default batch of 4,096 rows. At 16 and 8 per dimension:

    … train_end_to_end.py --d-sae 2048 --batch 2048 --tokens 81920
    … train_end_to_end.py --d-sae 1024 --batch 512 --tokens 153600
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets import Dataset
from sae_lens import SAE, LoggingConfig, TopKTrainingSAEConfig
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig

from iclens.core import Site
from iclens.model.load import load_model
from iclens.model.run import record
from iclens.prompts.build import TokenTable
from iclens.prompts.mixture import Mixture
from iclens.saes.quality import fvu
from iclens.training.config import parse_train_config
from iclens.training.loop import train_saes

MODEL = Path(__file__).resolve().parents[2] / "checkpoints" / "icl-tiny"
SITES = tuple(Site(layer, hook) for layer in (1, 2, 3) for hook in ("resid_post", "mlp_out"))
K, BUFFER, WARMUP, DECAY_FROM = 32, 65_536, 0.02, 0.4
LR = {"ours": 0.003, "sae_lens": 0.006}
"""Of three rates for each, that with the lowest mean FVU at L1 and L2.mlp_out in the default shape, on
contexts that neither training nor this comparison sees: 0.003, 0.005, 0.01 and 0.003, 0.006, 0.012."""
CLIP = 1 / 128
"""sae_lens clips the gradient of a sum over d_in at 1; ours is that of a mean."""
DEAD_AFTER, SCALING, HELD_OUT = 40_000, 16_384, 64


def contexts(tokens: int) -> np.ndarray:
    """Contexts of the model's own mixture, a quarter more than are trained on, [context pos]."""
    mixture = Mixture.from_dict(yaml.safe_load((MODEL / "mixture.yaml").read_text(encoding="utf-8")))
    table = TokenTable.of(mixture, load_model(MODEL, blocks=1).tokenizer)
    n_contexts = (5 * (tokens + BUFFER)) // (4 * 97)
    return table.assemble(mixture.sample(np.random.default_rng(5), n_contexts, 16))


@dataclass(frozen=True)
class Shape:
    """What is trained: tokens in all, rows of a batch, latents of each SAE."""

    tokens: int
    batch: int
    d_sae: int


Seconds = tuple[float, float]
"""On the wall, and of the processor."""


def clocks() -> Seconds:
    """Both clocks now."""
    return time.perf_counter(), time.process_time()


def since(start: Seconds) -> Seconds:
    """What both clocks counted since `start`."""
    now = clocks()
    return now[0] - start[0], now[1] - start[1]


def ours(ids: np.ndarray, shape: Shape, out: Path) -> Seconds:
    """Train ours on token ids [context pos]; the seconds until the last step."""
    np.save(out.with_suffix(".npy"), ids)
    config = parse_train_config({
        "model": {"name": str(MODEL)},
        "data": {"kind": "tokens", "path": str(out.with_suffix(".npy"))},
        "saes": {"sites": [site.short for site in SITES], "d_sae": shape.d_sae, "k": K},
        "training": {
            "tokens": shape.tokens, "batch_tokens": shape.batch, "buffer_tokens": BUFFER, "lr": LR["ours"],
            "warmup": WARMUP, "decay_from": DECAY_FROM, "gradient_clip": CLIP,
            "dead_after_tokens": DEAD_AFTER, "scaling_tokens": SCALING,
        },
        "held_out": {"contexts": HELD_OUT},
    })  # fmt: skip
    start, ended = clocks(), []

    def report(found: dict[str, Any]) -> None:
        if found.get("step") == found.get("of", 0):
            ended.append(since(start))

    train_saes(config, out, report)
    return ended[0]


def peer(ids: np.ndarray, shape: Shape, out: Path) -> Seconds:
    """Train sae_lens' on the same; the seconds it took."""
    steps = shape.tokens // shape.batch
    modules = {site: f"model.layers.{site.layer}{'.mlp' if site.hook == 'mlp_out' else ''}" for site in SITES}
    declared = TopKTrainingSAEConfig(
        d_in=128,
        d_sae=shape.d_sae,
        k=K,
        normalize_activations="expected_average_only_in",
        decoder_init_norm=1.0,
    )
    start = clocks()
    config = MultiSAETrainingRunnerConfig(
        saes={site.short: declared for site in SITES},
        hook_names={site.short: modules[site] for site in SITES},
        model_name=str(MODEL), model_class_name="AutoModelForCausalLM", streaming=False,
        context_size=ids.shape[1], seqpos_slice=(1, None), prepend_bos=False, training_tokens=shape.tokens,
        n_batches_in_buffer=BUFFER // (ids.shape[1] - 1), store_batch_size_prompts=64,
        train_batch_size_tokens=shape.batch, lr=LR["sae_lens"], lr_end=0.0,
        lr_warm_up_steps=int(WARMUP * steps), lr_decay_steps=int((1 - DECAY_FROM) * steps), adam_beta2=0.99,
        dead_feature_window=DEAD_AFTER // shape.batch, n_batches_for_norm_estimate=SCALING // shape.batch,
        logger=LoggingConfig(log_to_wandb=False), checkpoint_path=None, output_path=str(out), device="cpu",
    )  # fmt: skip
    MultiSAETrainingRunner(config, override_dataset=Dataset.from_dict({"tokens": ids})).run()
    return since(start)


@torch.no_grad()
def errors(folder: Path, ids: np.ndarray) -> dict[str, float]:
    """FVU of every SAE in a folder, on contexts [context pos] without BOS."""
    found = record(load_model(MODEL), ids, SITES, np.arange(1, ids.shape[1]))
    values = {}
    for site in SITES:
        network: Any = SAE.load_from_disk(folder / site.short)
        x = torch.as_tensor(found[site]).flatten(0, 1)
        values[site.short] = fvu(x.numpy(), network.decode(network.encode(x)).numpy())
    return values


def main() -> None:
    """Run both in turn and print their rates and errors as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=204_800)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=2)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    shape, ids = Shape(asked.tokens, asked.batch, asked.d_sae), contexts(asked.tokens)
    unseen, trained = ids[-256:], ids[:-512]  # between them, those on which rates were chosen
    seconds: dict[str, list[Seconds]] = {"ours": [], "sae_lens": []}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(asked.repeats):
            seconds["ours"].append(ours(trained, shape, Path(scratch) / f"ours{turn}"))
            seconds["sae_lens"].append(peer(trained, shape, Path(scratch) / f"peer{turn}"))
        found = {name: errors(Path(scratch) / f"{name}0", unseen) for name in ("ours", "peer")}
    rates = {
        clock: {
            name: [round(asked.tokens / pair[place], 1) for pair in pairs] for name, pairs in seconds.items()
        }
        for place, clock in enumerate(("wall", "processor"))
    }
    ratios = {
        clock: round(statistics.median(named["ours"]) / statistics.median(named["sae_lens"]), 2)
        for clock, named in rates.items()
    }
    worse = [site for site in found["ours"] if found["ours"][site] > found["peer"][site]]
    print(json.dumps({
        **asdict(shape), "threads": torch.get_num_threads(), "tokens_per_second": rates,
        "faster": ratios, "fvu": {"ours": found["ours"], "sae_lens": found["peer"]},
        "sites_with_larger_fvu": worse,
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
