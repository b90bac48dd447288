"""Do we find the features that are there? Recovery on sae_lens' synthetic features, ours against its trainer.

Features fire independently with Zipf-like probabilities and unit mean size along random directions. For each
seed both trainers get the same architecture, first seed, rows, batch size and schedule; ours scales its input
and reports the exported SAE. Recovery is sae_lens' mean correlation coefficient: the mean absolute cosine of
true features and decoder rows, matched one to one. Both run at several learning rates, as their scales
differ, and are credited with the best one.

    python analysis/benchmarks/ground_truth.py [--seeds 3] [--rows 1000000] [--architecture topk]
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    LoggingConfig,
    SAETrainer,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.synthetic import ActivationGenerator, FeatureDictionary, mean_correlation_coefficient
from torch import Tensor

from iclens.core import Site
from iclens.training.config import Optimisation, SaeSpec
from iclens.training.data import Scaling
from iclens.training.other_saes import build_step

BATCH = 1024
DECAY = 0.5
"""Fraction of training after which the rate falls linearly to 0, for both."""


class World:
    """Features with known directions.

    Args:
        n_features: how many.
        d_in: width of the activations.
        l0: active features per row, on average.
        seed: of directions and rows.
    """

    def __init__(self, n_features: int, d_in: int, l0: float, seed: int) -> None:
        self.directions = FeatureDictionary(n_features, d_in, initializer=None, seed=seed)
        rank = torch.arange(1, n_features + 1, dtype=torch.float32)
        weights = rank.pow(-0.5)
        self.generator = ActivationGenerator(n_features, (weights * l0 / weights.sum()).clamp_max(0.5), 0.3)
        self.seed = seed

    @torch.no_grad()
    def rows(self, number: int) -> Tensor:
        """Batch `number`, [row d_in]; the same one whenever it is asked for."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1_000_000 * (self.seed + 1) + number)
            return self.directions(self.generator.sample(BATCH))

    def recovery(self, network: SAE[Any]) -> float:
        """Mean correlation coefficient of the decoder's rows."""
        return float(
            mean_correlation_coefficient(network.W_dec.detach(), self.directions.feature_vectors.detach())
        )


def train_ours(world: World, given: argparse.Namespace, lr: float) -> SAE[Any]:
    """Our trainer on the world's rows."""
    steps = given.rows // BATCH
    first = torch.cat([world.rows(number) for number in range(8)])
    declared = Optimisation(
        tokens=given.rows, lr=lr, dead_after_tokens=100 * BATCH, aux_k=first.shape[1] // 2
    )
    spec = SaeSpec(Site(0, "resid_post"), None, given.d_sae, given.k, lr, world.seed, given.architecture, {})
    step = build_step(spec, declared, Scaling.of(first), None, first, "cpu")
    for number in range(steps):
        step.update(world.rows(number), None, min(1.0, (1 - number / steps) / (1 - DECAY)))
    return step.export()


def train_theirs(world: World, given: argparse.Namespace, lr: float) -> SAE[Any]:
    """sae_lens' trainer on the same rows."""
    steps = given.rows // BATCH
    kinds = {
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
        "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    }
    kind, declared = kinds[given.architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(world.seed)
        network = kind(
            declared(
                d_in=given.d_in, d_sae=given.d_sae, k=given.k,
                normalize_activations="expected_average_only_in",
            )
        )  # fmt: skip
    config = SAETrainerConfig(
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, device="cpu", autocast=False,
        total_training_samples=BATCH * steps, lr=lr, lr_end=0.0, lr_scheduler_name="constant",
        lr_warm_up_steps=0, lr_decay_steps=int(steps * (1 - DECAY)), n_restart_cycles=1, adam_beta1=0.9,
        adam_beta2=0.999, train_batch_size_samples=BATCH, dead_feature_window=100,
        feature_sampling_window=2000, logger=LoggingConfig(log_to_wandb=False), n_batches_for_norm_estimate=8,
    )  # fmt: skip
    numbers = [*range(8), *range(steps)]  # the first eight estimate the scale, as ours are estimated
    trainer = SAETrainer(config, network, data_provider=(world.rows(number) for number in numbers))
    return trainer.fit()


def main() -> None:
    """Run every seed and print the table as JSON."""
    parser = argparse.ArgumentParser()
    for name, default in (
        ("seeds", 3),
        ("rows", 1_000_000),
        ("features", 512),
        ("d-in", 128),
        ("d-sae", 512),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--k", type=int, default=12)
    parser.add_argument("--l0", type=float, default=12)
    parser.add_argument("--architecture", choices=["topk", "batchtopk"], default="topk")
    parser.add_argument("--our-rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--their-rates", type=float, nargs="+", default=[3e-3, 1e-2, 2e-2])
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(given.seeds):
        world = World(given.features, given.d_in, given.l0, seed)
        for name, train, rates in (
            ("ours", train_ours, given.our_rates),
            ("sae_lens", train_theirs, given.their_rates),
        ):
            for lr in rates:
                start = time.perf_counter()
                network = train(world, given, lr)
                row = {"seed": seed, "lr": lr, "mcc": round(world.recovery(network), 4)}
                row["seconds"] = round(time.perf_counter() - start, 1)
                found.setdefault(name, []).append(row)
                print(name, row, flush=True)
    best = {
        name: max(
            sum(row["mcc"] for row in rows if row["lr"] == lr) / given.seeds
            for lr in {row["lr"] for row in rows}
        )
        for name, rows in found.items()
    }
    print(json.dumps({**vars(given), "best_mean_mcc": best, "runs": found}, indent=1))


if __name__ == "__main__":
    main()
