"""One TopK training step, ours against sae_lens' `SAETrainer.step`, interleaved in one run.

Both start from the same weights, see the same batches of sae_lens' synthetic features in the same order, and
are clipped and stepped by Adam with the same settings. Every step is timed; beside the two stands the time of
the encoder's product alone, which no exact step can do without. Afterwards both reconstruct the same batch
that neither was trained on.

    python analysis/benchmarks/train_step.py [--steps 200] [--d-in 256] [--d-sae 8192] [--k 32] [--rows 4096]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from sae_lens import LoggingConfig, SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.synthetic import ActivationGenerator, FeatureDictionary
from torch import Tensor

from iclens.core import Site
from iclens.training.config import Optimisation, SaeSpec
from iclens.training.data import Scaling
from iclens.training.topk import BETAS, SparseStep


def batches(d_in: int, rows: int) -> Callable[[], Tensor]:
    """Draws batches [row d_in] of sparse sums of 4·d_in directions, of mean 0 and mean square length d_in."""
    n_features = 4 * d_in
    directions = FeatureDictionary(n_features, d_in, initializer=None)
    generator = ActivationGenerator(n_features, torch.full((n_features,), 16 / n_features), 0.25)

    @torch.no_grad()
    def draw() -> Tensor:
        return directions(generator.sample(rows))

    scaling = Scaling.of(torch.cat([draw() for _ in range(4)]))
    return lambda: scaling.apply(draw())


def peer(d_in: int, d_sae: int, k: int, rows: int, steps: int, lr: float) -> SAETrainer[Any, Any]:
    """sae_lens' trainer of one TopK SAE with unit decoder rows at the start."""
    network = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k, decoder_init_norm=1.0))
    with torch.no_grad():
        network.W_enc.mul_(0.3)
    config = SAETrainerConfig(
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, device="cpu", autocast=False,
        total_training_samples=rows * steps, lr=lr, lr_end=lr, lr_scheduler_name="constant",
        lr_warm_up_steps=0, lr_decay_steps=0, n_restart_cycles=1, adam_beta1=BETAS[0], adam_beta2=BETAS[1],
        train_batch_size_samples=rows, dead_feature_window=1000, feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False), n_batches_for_norm_estimate=1,
    )  # fmt: skip
    return SAETrainer(config, network, data_provider=iter(()))


def ours(trainer: SAETrainer[Any, Any], rows: int, lr: float, chunk: int) -> SparseStep:
    """Our step from the trainer's present weights; its clipping is sae_lens', in units of our mean loss."""
    network = trainer.sae
    d_in, d_sae = network.W_enc.shape
    declared = Optimisation(
        tokens=1, lr=lr, gradient_clip=1 / d_in, dead_after_tokens=1000 * rows, encode_chunk=chunk
    )
    spec = SaeSpec(Site(0, "resid_post"), None, d_sae, int(network.cfg.k), lr, 0, "topk", {})
    step = SparseStep(spec, declared, Scaling(torch.zeros(d_in), 1.0), None, torch.randn(64, d_in), "cpu")
    with torch.no_grad():
        for name, tensor in (("encoder", network.W_enc.T), ("decoder", network.W_dec)):
            step.weights[name].copy_(tensor)
    return step


def timed(do: Callable[[], Any], wall: list[float], processor: list[float]) -> None:
    """Do it, and note how long it took, by the clock and in this process' own processor time."""
    start, used = time.perf_counter(), time.process_time()
    do()
    wall.append(time.perf_counter() - start)
    processor.append(time.process_time() - used)


@torch.no_grad()
def unexplained(x: Tensor, x_hat: Tensor) -> float:
    """FVU of a batch [row d_in]."""
    return float((x - x_hat).square().sum() / (x - x.mean(dim=0)).square().sum())


def main() -> None:
    """Run the comparison and print it as JSON."""
    print(json.dumps(compare(arguments()), indent=1))


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    for name, default in (
        ("steps", 200),
        ("d-in", 256),
        ("d-sae", 8192),
        ("k", 32),
        ("rows", 4096),
        ("chunk", 512),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args(given)


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """Times and errors of both."""
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    draw = batches(given.d_in, given.rows)
    trainer = peer(given.d_in, given.d_sae, given.k, given.rows, given.steps, given.lr)
    step = ours(trainer, given.rows, given.lr, given.chunk)
    z = torch.empty(given.chunk, given.d_sae)
    wall: dict[str, list[float]] = {"sae_lens": [], "ours": [], "encoder_product": []}
    processor: dict[str, list[float]] = {name: [] for name in wall}
    for _ in range(given.steps):
        x = draw()
        parts = x.split(given.chunk)
        jobs: dict[str, Callable[[], Any]] = {
            "sae_lens": lambda x=x: trainer.step(x),
            "ours": lambda x=x: step.update(x, None, 1.0),
            "encoder_product": lambda parts=parts: [
                torch.mm(some, step.weights["encoder"].T, out=z[: len(some)]) for some in parts
            ],
        }
        for name, job in jobs.items():
            timed(job, wall[name], processor[name])
        trainer.n_training_steps += 1
    unseen = draw()
    with torch.no_grad():
        theirs, own = unexplained(unseen, trainer.sae(unseen)), unexplained(unseen, step.export()(unseen))
    found: dict[str, Any] = {}
    for clock, seconds in (("wall", wall), ("processor", processor)):
        middle = {name: statistics.median(values) for name, values in seconds.items()}
        found[clock] = {
            "median_ms": {name: round(1e3 * value, 1) for name, value in middle.items()},
            "fastest_ms": {name: round(1e3 * min(values), 1) for name, values in seconds.items()},
            "times_faster": round(middle["sae_lens"] / middle["ours"], 2),
            "encoder_product_share": round(middle["encoder_product"] / middle["ours"], 2),
        }
    found["fvu_after"] = {"sae_lens": theirs, "ours": own, "relative": own / theirs - 1}
    return {**vars(given), **found}


if __name__ == "__main__":
    main()
