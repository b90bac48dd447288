"""A Llama in float32 that reads one block at a time, written from its equations; nothing of the package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F


class Streamed:
    """The reference model.

    Args:
        folder: config.json, index and shards.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text())
        self.where = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]

    def weight(self, name: str) -> Tensor:
        """One tensor, in float32."""
        with safe_open(self.folder / self.where[name], "pt") as shard:
            return shard.get_tensor(name).float()

    def residuals(self, tokens: Tensor, order: Sequence[int], theta: float) -> list[Tensor]:
        """Residual after each block of `order`, [pos d_model], for one row of tokens [pos]."""
        x = self.weight("model.embed_tokens.weight")[tokens]
        out = []
        for layer in order:
            x = self.block(x, layer, theta)
            out.append(x)
        return out

    def block(self, x: Tensor, layer: int, theta: float) -> Tensor:
        """x + attention(norm x), then + MLP(norm of that)."""

        def project(u: Tensor, name: str) -> Tensor:
            return u @ self.weight(f"model.layers.{layer}.{name}.weight").T

        u = self.normed(x, f"model.layers.{layer}.input_layernorm.weight")
        heads, pairs = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        query = rotated(project(u, "self_attn.q_proj").unflatten(1, (heads, -1)), theta)
        key = rotated(project(u, "self_attn.k_proj").unflatten(1, (pairs, -1)), theta)
        value = project(u, "self_attn.v_proj").unflatten(1, (pairs, -1))
        key, value = (t.repeat_interleave(heads // pairs, dim=1) for t in (key, value))
        logits = torch.einsum("qhd,khd->hqk", query, key) / query.shape[2] ** 0.5
        later = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
        mixed = torch.einsum("hqk,khd->qhd", logits.masked_fill(later, -torch.inf).softmax(dim=2), value)
        x = x + project(mixed.flatten(1), "self_attn.o_proj")
        u = self.normed(x, f"model.layers.{layer}.post_attention_layernorm.weight")
        return x + project(F.silu(project(u, "mlp.gate_proj")) * project(u, "mlp.up_proj"), "mlp.down_proj")

    def normed(self, x: Tensor, name: str) -> Tensor:
        """RMS norm."""
        return (
            x
            * (x.square().mean(dim=1, keepdim=True) + self.config["rms_norm_eps"]).rsqrt()
            * self.weight(name)
        )


def rotated(u: Tensor, theta: float) -> Tensor:
    """Rotary embedding of u [pos head d_head], halves paired."""
    half = u.shape[2] // 2
    angle = torch.arange(u.shape[0])[:, None] * theta ** (-torch.arange(half) / half)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    left, right = u[..., :half], u[..., half:]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=2)


def distance(x: Tensor, reference: Tensor) -> float:
    """‖x − reference‖ / ‖reference‖ over all positions."""
    return float((x - reference).norm() / reference.norm())
