"""Tokens per second at the true shape of llama-3-8b, ours and sae_lens', on the same card in one run.

Random weights, blocks up to layer 19, contexts of 256 random tokens. Two cases: one TopK SAE of 65,536
latents on the residual, and six of 32,768 on residual and MLP output of three layers. Both trainers read the
same network, fill their buffers and take their steps; the clock runs from the batch after the warm-up to the
last, so that refills count and the first filling does not. The bound is the arithmetic that cannot be left
out, the forward pass and one encoder product per SAE, at the data sheet's bfloat16 rate.

    python analysis/benchmarks/throughput.py [--device cuda] [--steps 200] [--small]
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sae_lens import LoggingConfig, TopKTrainingSAEConfig
from sae_lens.load_model import HookedProxyLM
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from transformers import AutoModelForCausalLM, LlamaConfig

from iclens.core import Site
from iclens.model.load import LanguageModel
from iclens.model.shape import LLAMA3_8B, ModelShape
from iclens.saes.quality import LeftOut
from iclens.training.config import TrainConfig, parse_train_config
from iclens.training.data import ActivationBuffer, estimate_scalings, recorder
from iclens.training.other_saes import build_step
from iclens.training.plan import Device, Job, cpu, present_device, times


@dataclass(frozen=True)
class Case:
    """What is trained at once."""

    name: str
    sites: tuple[str, ...]
    d_sae: int
    k: int


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    config: dict[str, Any]
    cases: tuple[Case, ...]
    context: int
    contexts: int
    batch: int
    buffer: int


SIX = tuple(f"L{layer}.{hook}" for layer in (9, 14, 19) for hook in ("resid_post", "mlp_out"))
TRUE = Scale(
    LLAMA3_8B | {"num_hidden_layers": 20},
    (
        Case("one of 65,536", ("L19.resid_post",), 65_536, 64),
        Case("six of 32,768", SIX, 32_768, 64),
    ),
    context=256, contexts=32, batch=4096, buffer=65_536,
)  # fmt: skip
SMALL = Scale(
    LLAMA3_8B | {
        "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 3, "vocab_size": 500, "bos_token_id": 0, "eos_token_id": None,
    },
    (Case("one", ("L2.resid_post",), 256, 8), Case("two", ("L1.resid_post", "L2.mlp_out"), 128, 8)),
    context=32, contexts=8, batch=64, buffer=512,
)  # fmt: skip


class RandomTokens:
    """Endless contexts of random tokens; the state is the generator's."""

    def __init__(self, n_vocab: int, contexts: int, context: int) -> None:
        self._rng, self._n_vocab, self._shape = np.random.default_rng(0), n_vocab, (contexts, context)

    def next(self) -> np.ndarray:
        """The next block, [context pos]."""
        return self._rng.integers(1, self._n_vocab, self._shape)

    def samples(self) -> list[np.ndarray]:
        """A block."""
        return [np.random.default_rng(1).integers(1, self._n_vocab, self._shape)]

    def state(self) -> dict[str, Any]:
        """Where the stream stands."""
        return dict(self._rng.bit_generator.state)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._rng.bit_generator.state = state


class Clock:
    """Seconds between the batch after the warm-up and the last one.

    Args:
        warm: batches before it starts.
        device: waited for when the clock is read.
    """

    def __init__(self, warm: int, device: str) -> None:
        self.warm, self.device, self.seen, self.started = warm, device, 0, 0.0

    def tick(self) -> None:
        """A batch is about to be taken."""
        if self.seen == self.warm:
            self.started = self._now()
        self.seen += 1

    def seconds(self) -> float:
        """Until now."""
        return self._now() - self.started

    def _now(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.monotonic()


def random_network(scale: Scale, device: str, dtype: torch.dtype) -> Any:
    """The network, with random weights."""
    with torch.device(device):
        network: Any = AutoModelForCausalLM.from_config(LlamaConfig(**scale.config), dtype=dtype)
    return network.requires_grad_(False).eval()


def run_config(scale: Scale, case: Case, steps: int, device: str) -> TrainConfig:
    """The case as a configuration, for the plan and for our steps."""
    narrow = "float32" if device == "cpu" else "bfloat16"
    return parse_train_config({
        "model": {"name": "random", "load": "needed", "dtype": narrow, "device": device},
        "data": {"kind": "tokens", "path": "none.npy", "context_tokens": scale.context, "massive": None},
        "saes": {"sites": list(case.sites), "d_sae": case.d_sae, "k": case.k},
        "training": {
            "tokens": steps * scale.batch, "batch_tokens": scale.batch, "buffer_tokens": scale.buffer,
            "forward_contexts": scale.contexts, "lr": 2e-4, "scaling_tokens": 4096, "encode_dtype": narrow,
            "dead_after_tokens": 10_000_000,
        },
    })  # fmt: skip


def ours(network: Any, scale: Scale, config: TrainConfig, steps: int, warm: int, device: str) -> float:
    """Tokens per second of our buffer and steps."""
    model = LanguageModel("random", network, None, scale.config["num_hidden_layers"], True)
    stream = RandomTokens(scale.config["vocab_size"], scale.contexts, scale.context)
    record, sites, settings = recorder(model), config.saes.recorded, config.training
    excluded = LeftOut(positions=(0,))
    scalings = estimate_scalings(record, stream, sites, excluded, settings.scaling_tokens)
    buffer = ActivationBuffer(
        record, stream, sites, excluded,
        capacity=settings.buffer_tokens, batch=settings.batch_tokens, seed=0, device=device,
    )  # fmt: skip
    trained = [
        (s, build_step(s, settings, scalings[s.site], None, buffer.rows(s.site), torch.device(device)))
        for s in config.saes.members
    ]
    clock = Clock(warm, device)
    for _ in range(warm + steps):
        clock.tick()
        batch = buffer.next()
        for spec, step in trained:
            step.update(batch[spec.site], None, 1.0)
    return steps * scale.batch / clock.seconds()


def theirs(network: Any, scale: Scale, config: TrainConfig, steps: int, warm: int, device: str) -> float:
    """Tokens per second of sae_lens' runner for several SAEs, with automatic mixed precision on a card."""
    hooks = {spec.name: module_name(spec.site) for spec in config.saes.members}
    spec = config.saes.members[0]
    shape = TopKTrainingSAEConfig(d_in=scale.config["hidden_size"], d_sae=spec.d_sae, k=spec.k or 0)
    tokens = (warm + steps) * scale.batch
    asked = MultiSAETrainingRunnerConfig(
        saes=dict.fromkeys(hooks, shape), hook_names=hooks, model_name="random",
        model_class_name="AutoModelForCausalLM", dataset_path="random", streaming=False,
        context_size=scale.context, training_tokens=tokens, store_batch_size_prompts=scale.contexts,
        n_batches_in_buffer=max(2, scale.buffer // (scale.contexts * scale.context)),
        train_batch_size_tokens=scale.batch, device=device, autocast=device != "cpu", lr=2e-4,
        prepend_bos=False, logger=LoggingConfig(log_to_wandb=False), checkpoint_path=None, output_path=None,
        n_eval_batches=1, dead_feature_window=10**9, feature_sampling_window=10**9,
    )  # fmt: skip
    stream = RandomTokens(scale.config["vocab_size"], scale.contexts, scale.context)
    blocks = 4 + 2 * tokens // (scale.contexts * scale.context)
    rows = np.concatenate([stream.next() for _ in range(min(blocks, 512))])
    clock = Clock(warm, device)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # sae_lens warns of its own workings
        runner = MultiSAETrainingRunner(
            asked, override_dataset=Dataset.from_dict({"tokens": rows}),
            override_model=HookedProxyLM(network, BareTokenizer(), list(hooks.values())),
        )  # fmt: skip
        loader = runner.activations_store.get_multi_hook_data_loader
        runner.activations_store.get_multi_hook_data_loader = lambda: ticking(loader(), clock)
        runner.run()
    return steps * scale.batch / clock.seconds()


class BareTokenizer:
    """What sae_lens asks of a tokenizer when contexts are tokenised already."""

    bos_token_id, eos_token_id, pad_token_id, sep_token_id, name_or_path = 0, None, None, None, "random"


def ticking(batches: Iterator[Any], clock: Clock) -> Iterator[Any]:
    """The same batches, each counted before it is made."""
    while True:
        clock.tick()
        yield next(batches)


def module_name(site: Site) -> str:
    """The module whose output is the site."""
    return f"model.layers.{site.layer}" + (".mlp" if site.hook == "mlp_out" else "")


def bound(config: TrainConfig, scale: Scale, device: Device) -> float:
    """Tokens per second at the full rate of bfloat16 products, with nothing but the unavoidable ones."""
    wanted = ("forward passes", "encoding")
    job = Job(config, ModelShape.from_config(scale.config))
    return device.bf16_flops / sum(cost.flops for cost in times(job) if cost.name in wanted)


TRAINERS: dict[str, Callable[..., float]] = {"ours": ours, "sae_lens": theirs}


def measured(scale: Scale, case: Case, device: Device, steps: int, warm: int, network: Any) -> dict[str, Any]:
    """One case, ours and theirs."""
    config = run_config(scale, case, steps, device.kind)
    found = {
        name: trainer(network, scale, config, steps, warm, device.kind) for name, trainer in TRAINERS.items()
    }
    limit = bound(config, scale, device)
    return {
        "case": case.name, "device": device.name, **{name: round(speed, 1) for name, speed in found.items()},
        "ratio": round(found["ours"] / found["sae_lens"], 2), "bound": round(limit),
        "fraction_of_bound": round(found["ours"] / limit, 3), "steps": steps,
    }  # fmt: skip


def main() -> None:
    """Print a line of JSON for each case."""
    parser = argparse.ArgumentParser(description="Tokens per second, ours and sae_lens'.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warm", type=int, default=16)
    parser.add_argument("--small", action="store_true", help="the same at a small shape")
    asked = parser.parse_args()
    device = cpu() if asked.device == "cpu" else present_device()
    scale = SMALL if asked.small else TRUE
    dtype = torch.float32 if device.kind == "cpu" else torch.bfloat16
    network = random_network(scale, device.kind, dtype)
    for case in scale.cases:
        found = measured(scale, case, device, asked.steps, asked.warm, network)
        print(json.dumps(found | {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}), flush=True)


if __name__ == "__main__":
    main()
