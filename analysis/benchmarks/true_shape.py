"""Does everything run at the true shape of llama-3-8b, on a machine with 24 GB of memory and no accelerator?

A folder with the exact configuration and random bfloat16 weights is written shard by shard (16 GB). Then,
each stage in a process of its own, so that its peak memory is its own:

1. `load`: the blocks up to the site are loaded; a folder with a weight too few, or one of another shape, is
   refused.
2. `forward`: the residual after them against a float32 reference that reads one block at a time and shares no
   code with the package. Controls that must be far off: one layer less, two blocks swapped, another rope, the
   neighbouring position.
3. `train`: a TopK SAE takes 20 steps through `iclens train`'s own code, and its error falls.
4. `encode`: a TopK SAE four times as wide, loaded from a folder, encodes; its active latents are those of a
   product written out here.

    python analysis/benchmarks/true_shape.py SCRATCH [--small] [--keep]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plan_memory import peak_memory
from random_llama import write_folder
from safetensors import safe_open
from safetensors.torch import save_file
from streamed_llama import Streamed, distance
from torch.nn import functional as F

from iclens.core import IclensError, ModelError, Site
from iclens.model.load import load_model
from iclens.model.run import record
from iclens.model.shape import LLAMA3_8B, ModelShape
from iclens.prompts.build import build_prompts
from iclens.prompts.tasks import parse_task
from iclens.saes.load import load_sae
from iclens.training.config import parse_train_config
from iclens.training.loop import train_saes
from iclens.training.plan import cpu, plan

GATE = 0.10
"""Largest relative distance of a bfloat16 forward from the reference; controls must be at twice that."""
MEMORY = 24e9


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    config: dict[str, Any]
    blocks_per_shard: int
    blocks: int
    d_sae: int
    k: int
    steps: int
    batch_tokens: int
    wide: int
    wide_k: int


TRUE = Scale(
    LLAMA3_8B, blocks_per_shard=4, blocks=15, d_sae=32_768, k=64, steps=20, batch_tokens=64, wide=131_072,
    wide_k=192,
)  # fmt: skip
SMALL = Scale(
    LLAMA3_8B | {
        "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 6, "vocab_size": 1078, "initializer_range": 0.15,
    },
    blocks_per_shard=2, blocks=3, d_sae=256, k=16, steps=20, batch_tokens=64, wide=1024, wide_k=32,
)  # fmt: skip


def prompts(folder: Path, n_prompts: int) -> np.ndarray:
    """Prompts of 2x+3 with 13 examples, [row pos]."""
    tokenizer = load_model(folder, blocks=1, dtype=torch.bfloat16).tokenizer
    return build_prompts(
        tokenizer, parse_task("2x+3"), arm="T", n_prompts=n_prompts, n_examples=13, seed=0
    ).tokens


def load(folder: Path, scale: Scale) -> dict[str, Any]:
    """The first blocks, and what must be refused."""
    model = load_model(folder, blocks=scale.blocks, dtype=torch.bfloat16)
    weights = model.network.model.layers.parameters()
    shape = ModelShape.from_config(scale.config)
    found = sum(p.numel() for p in weights)
    return {
        "blocks": model.n_blocks,
        "block_weights_as_planned": found == scale.blocks * shape.block_parameters,
        "refused": [refused(folder, scale, damage) for damage in (without_a_weight, of_another_shape)],
    }


def refused(folder: Path, scale: Scale, damage: Callable[[Path], None]) -> str:
    """What the package says of a damaged copy of the folder; the shards are linked, not copied."""
    copy = folder.with_name(f"{folder.name}-{damage.__name__}")
    copy.mkdir()
    try:
        for file in folder.iterdir():
            (copy / file.name).symlink_to(file.absolute())
        damage(copy)
        load_model(copy, blocks=scale.blocks, dtype=torch.bfloat16)
    except ModelError as error:
        return str(error).replace(str(copy), copy.name)
    finally:
        shutil.rmtree(copy)
    return "NOT REFUSED"


def without_a_weight(copy: Path) -> None:
    """Its index lacks one key."""
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.layers.1.mlp.up_proj.weight"]
    (copy / "model.safetensors.index.json").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))


def of_another_shape(copy: Path) -> None:
    """Its config wants a wider MLP than the weights have."""
    config = json.loads((copy / "config.json").read_text())
    config["intermediate_size"] += 8
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(config))


def forward(folder: Path, scale: Scale) -> dict[str, Any]:
    """Distances of the residual after the last block loaded from the reference and from its controls."""
    model = load_model(folder, blocks=scale.blocks, dtype=torch.bfloat16)
    tokens = prompts(folder, 1)
    site = Site(scale.blocks - 1, "resid_post")
    begun = time.monotonic()
    found = record(model, tokens, [site], np.arange(tokens.shape[1]))[site]
    seconds = time.monotonic() - begun
    ours = torch.as_tensor(found)[0]
    del model
    reference, row = Streamed(folder), torch.as_tensor(tokens[0])
    order, theta = list(range(scale.blocks)), scale.config["rope_theta"]
    swapped = [*order]
    middle = scale.blocks // 2
    swapped[middle], swapped[middle - 1] = order[middle - 1], order[middle]
    true = reference.residuals(row, order, theta)
    return {
        "tokens": len(row),
        "forward_seconds": round(seconds, 2),
        "distance": distance(ours, true[-1]),
        "one layer less": distance(ours, true[-2]),
        "two blocks swapped": distance(ours, reference.residuals(row, swapped, theta)[-1]),
        "another rope": distance(ours, reference.residuals(row, order, theta / 50)[-1]),
        "the neighbouring position": distance(ours[1:], true[-1][:-1]),
    }


def train(folder: Path, scale: Scale) -> dict[str, Any]:
    """20 steps of a TopK SAE, from the configuration to the folder, on four prompts again and again."""
    site = Site(scale.blocks - 1, "resid_post")
    place = folder.with_name(f"{folder.name}-tokens.npy")
    np.save(place, prompts(folder, 5))
    config = parse_train_config({
        "model": {"name": str(folder), "load": "needed", "dtype": "bfloat16"},
        "data": {"kind": "tokens", "path": str(place)},
        "saes": {"sites": [site.short], "d_sae": scale.d_sae, "k": scale.k},
        "training": {
            "tokens": scale.steps * scale.batch_tokens, "batch_tokens": scale.batch_tokens,
            "buffer_tokens": 2 * scale.batch_tokens, "scaling_tokens": scale.batch_tokens,
            "forward_contexts": 2, "lr": 0.001, "warmup": 0.1, "aux_k": 64,
        },
        "held_out": {"contexts": 1},
    })  # fmt: skip
    out = folder.with_name(f"{folder.name}-saes")
    try:
        train_saes(config, out)
        planned = plan(config, cpu())
        lines = [json.loads(line) for line in (out / site.short / "metrics.jsonl").read_text().splitlines()]
        card = json.loads((out / "card.json").read_text())
    finally:
        place.unlink()
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(out.with_name(f"{out.name}.checkpoints"), ignore_errors=True)
    return {
        "d_sae": scale.d_sae, "steps": scale.steps, "batch_tokens": scale.batch_tokens,
        "training_seconds": card["seconds"], "planned_gb": round(planned.peak / 1e9, 2),
        "first_fvu": lines[0]["fvu"], "last_fvu": lines[-1]["fvu"],
    }  # fmt: skip


def encode(folder: Path, scale: Scale) -> dict[str, Any]:
    """A wider SAE from a folder encodes 64 vectors; its active latents are those of a product written out."""
    d, site = scale.config["hidden_size"], Site(scale.blocks - 1, "resid_post")
    place = folder.with_name(f"{folder.name}-wide")
    place.mkdir()
    try:
        write_sae(place, d, scale, site)
        begun = time.monotonic()
        sae = load_sae(place, d_model=d)
        loaded = time.monotonic() - begun
        x = torch.randn(64, d, generator=torch.Generator().manual_seed(1))
        begun = time.monotonic()
        latents = sae.encode(x)
        seconds = time.monotonic() - begun
        with safe_open(place / "sae_weights.safetensors", "pt") as weights:
            parts = [slice(start, start + 4096) for start in range(0, scale.wide, 4096)]
            z = torch.cat([x @ weights.get_slice("W_enc")[:, part] for part in parts], dim=1)
    finally:
        shutil.rmtree(place)
    top = z.topk(scale.wide_k, dim=1)
    expected = torch.zeros_like(z).scatter(1, top.indices, top.values.relu())
    return {
        "d_sae": scale.wide, "k": scale.wide_k, "load_seconds": round(loaded, 2),
        "encode_seconds": round(seconds, 2),
        "same_latents": float(((latents > 0) == (expected > 0)).all(dim=1).float().mean()),
        "largest_difference": float((latents - expected).abs().max()),
    }  # fmt: skip


def write_sae(place: Path, d: int, scale: Scale, site: Site) -> None:
    """A TopK SAE in sae_lens' layout, unit decoder rows, the encoder their transpose."""
    W_dec = F.normalize(torch.randn(scale.wide, d, generator=torch.Generator().manual_seed(2)), dim=1)
    save_file(
        {
            "W_enc": W_dec.T.contiguous(), "b_enc": torch.zeros(scale.wide), "W_dec": W_dec,
            "b_dec": torch.zeros(d),
        },
        place / "sae_weights.safetensors",
    )  # fmt: skip
    config = {
        "architecture": "topk", "d_in": d, "d_sae": scale.wide, "k": scale.wide_k, "dtype": "float32",
        "device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": "none",
        "reshape_activations": "none", "rescale_acts_by_decoder_norm": False,
        "metadata": {"hook_name": str(site)},
    }  # fmt: skip
    (place / "cfg.json").write_text(json.dumps(config))


Stages = dict[str, Callable[[Path, Scale], dict[str, Any]]]
Faults = Callable[[dict[str, dict[str, Any]]], list[str]]
STAGES: Stages = {
    "load": load, "forward": forward, "train": train, "encode": encode,
}  # fmt: skip


def faults(found: dict[str, dict[str, Any]]) -> list[str]:
    """What is not as it must be, in words; empty when all is well."""
    forward, encode, train = found["forward"], found["encode"], found["train"]
    controls = ("one layer less", "two blocks swapped", "another rope", "the neighbouring position")
    wrong = [f"{stage}: peak {f['peak_gb']} GB" for stage, f in found.items() if f["peak_gb"] * 1e9 > MEMORY]
    if not found["load"]["block_weights_as_planned"] or "NOT REFUSED" in found["load"]["refused"]:
        wrong.append(f"load: {found['load']}")
    if not forward["distance"] <= GATE:
        wrong.append(f"forward: {forward['distance']:.3f} from the reference")
    wrong += [
        f"control '{name}': only {forward[name]:.3f} off"
        for name in controls
        if not forward[name] >= 2 * GATE
    ]
    if not train["last_fvu"] < train["first_fvu"]:
        wrong.append("train: the error does not fall")
    if encode["same_latents"] < 1 or encode["largest_difference"] > 1e-4:
        wrong.append(f"encode: {encode}")
    return wrong


def in_own_process(script: str, stage: str, folder: Path, small: bool) -> dict[str, Any]:
    """Run one stage of a script in a fresh process; its result, seconds and peak memory."""
    flags = ["--small"] if small else []
    run = subprocess.run(
        [sys.executable, script, str(folder), "--stage", stage, *flags],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(run.stdout.splitlines()[-1])


def measured(stage: str, folder: Path, scale: Scale, stages: Stages = STAGES) -> dict[str, Any]:
    """A stage's result with its seconds and the peak memory of this process, unless it says so itself."""
    begun = time.monotonic()
    found = stages[stage](folder, scale)
    own = {"seconds": round(time.monotonic() - begun, 1), "peak_gb": round(peak_memory() / 1e9, 2)}
    return own | found


def prove(script: str, description: str | None, stages: Stages, faults: Faults) -> int:
    """Write the folder, run the stages, print a line of JSON for each and what is wrong; the exit status.

    Args:
        script: the file that has these stages, which is run again for each of them.
        description: what it says of itself.
        stages: name → what is measured.
        faults: says what of the results is not as it must be.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--small", action="store_true", help="the same at a small shape, in seconds")
    parser.add_argument("--keep", action="store_true", help="keep the folder, and use it if it is there")
    parser.add_argument("--stage", choices=stages, help="this stage alone, on the folder SCRATCH")
    asked = parser.parse_args()
    scale = SMALL if asked.small else TRUE
    if asked.stage:
        print(json.dumps(measured(asked.stage, asked.scratch, scale, stages)))
        return 0
    folder = asked.scratch / "llama-3-8b-shape"
    found = {}
    try:
        if not (asked.keep and folder.exists()):
            begun = time.monotonic()
            written = write_folder(folder, scale.config, scale.blocks_per_shard)
            line = {"written_gb": written / 1e9, "seconds": round(time.monotonic() - begun, 1)}
            print(json.dumps(line), flush=True)
        for stage in stages:
            found[stage] = in_own_process(script, stage, folder, asked.small)
            print(json.dumps({stage: found[stage]}), flush=True)
    except IclensError as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    finally:
        if not asked.keep:
            shutil.rmtree(folder, ignore_errors=True)
    wrong = faults(found)
    print("\n".join(wrong) or "as it should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(prove(__file__, __doc__, STAGES, faults))
