"""A Llama folder with random weights, written shard by shard: the true configuration, no download.

The tokenizer and the mixture are those of the built-in model, so that contexts can be drawn for it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from iclens.model.shape import ModelShape

BUILT_IN = Path(__file__).resolve().parents[2] / "checkpoints" / "icl-tiny"


def write_folder(folder: Path, config: dict[str, Any], blocks_per_shard: int, seed: int = 0) -> int:
    """Write config, tokenizer and random weights, one shard in memory at a time; return bytes written."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "mixture.yaml"):
        shutil.copy(BUILT_IN / name, folder / name)
    generator = torch.Generator().manual_seed(seed)
    n_blocks, step = config["num_hidden_layers"], blocks_per_shard
    groups = [
        ["embed"],
        *([*range(start, min(start + step, n_blocks))] for start in range(0, n_blocks, step)),
        ["head"],
    ]
    where: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {
            name: _random(shape, config, generator)
            for part in group
            for name, shape in _shapes(config, part).items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    sizes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": sizes}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sizes


def _shapes(config: dict[str, Any], part: str | int) -> dict[str, tuple[int, ...]]:
    shape = ModelShape.from_config(config)
    d, hidden = shape.d_model, shape.d_mlp
    if part == "embed":
        return {"model.embed_tokens.weight": (shape.n_vocab, d)}
    if part == "head":
        return {"model.norm.weight": (d,), "lm_head.weight": (shape.n_vocab, d)}
    query, keys = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    own = {
        "self_attn.q_proj": (query, d), "self_attn.k_proj": (keys, d), "self_attn.v_proj": (keys, d),
        "self_attn.o_proj": (d, query), "mlp.gate_proj": (hidden, d), "mlp.up_proj": (hidden, d),
        "mlp.down_proj": (d, hidden), "input_layernorm": (d,), "post_attention_layernorm": (d,),
    }  # fmt: skip
    return {f"model.layers.{part}.{name}.weight": size for name, size in own.items()}


def _random(shape: tuple[int, ...], config: dict[str, Any], generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    drawn = torch.empty(shape).normal_(std=config["initializer_range"], generator=generator)
    return drawn.to(torch.bfloat16)
