"""A Llama in float32 that reads one block at a time, written from its equations; nothing of the package."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

Put = Callable[[str, Tensor], Tensor]
"""What is done to a hook's activation [pos d_model], given the hook's name."""
PARTS = (
    "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


def untouched(_hook: str, held: Tensor) -> Tensor:
    """The activation as it is."""
    return held


@dataclass(frozen=True)
class Change:
    """An addition [d_model] at one hook of one block and at one position."""

    layer: int
    hook: str
    position: int
    delta: Tensor

    def put(self, hook: str, held: Tensor) -> Tensor:
        """The activation [pos d_model] after it."""
        if hook != self.hook:
            return held
        changed = held.clone()
        changed[self.position] += self.delta
        return changed


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

    def layer_weights(self, layer: int) -> dict[str, Tensor]:
        """The tensors of one block, in float32."""
        return {name: self.weight(f"model.layers.{layer}.{name}.weight") for name in PARTS}

    def residuals(self, tokens: Tensor, order: Sequence[int], theta: float) -> list[Tensor]:
        """Residual after each block of `order`, [pos d_model], for one row of tokens [pos]."""
        x = self.weight("model.embed_tokens.weight")[tokens]
        out = []
        for layer in order:
            x = self.block(x, self.layer_weights(layer), theta)
            out.append(x)
        return out

    def logits(self, tokens: Tensor, theta: float, changes: Sequence[Change]) -> Tensor:
        """Logits at the last position without and with each change, [1 + change vocabulary].

        A change has a whole sequence of its own from its block on; nothing is kept of earlier positions.
        """
        x = self.weight("model.embed_tokens.weight")[tokens]
        own: dict[int, Tensor] = {}
        for layer in range(self.config["num_hidden_layers"]):
            weights = self.layer_weights(layer)
            for i, change in enumerate(changes):
                if change.layer == layer:
                    own[i] = self.block(x, weights, theta, change.put)
                elif i in own:
                    own[i] = self.block(own[i], weights, theta)
            x = self.block(x, weights, theta)
        last = torch.stack([x[-1], *(own[i][-1] for i in range(len(changes)))])
        return self.normed(last, self.weight("model.norm.weight")) @ self.weight("lm_head.weight").T

    def block(self, x: Tensor, weights: dict[str, Tensor], theta: float, put: Put = untouched) -> Tensor:
        """x + attention(norm x), then + MLP(norm of that); `put` sees every hook on the way."""

        def project(u: Tensor, name: str) -> Tensor:
            return u @ weights[name].T

        x = put("resid_pre", x)
        u = self.normed(x, weights["input_layernorm"])
        heads, pairs = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        query = rotated(project(u, "self_attn.q_proj").unflatten(1, (heads, -1)), theta)
        key = rotated(project(u, "self_attn.k_proj").unflatten(1, (pairs, -1)), theta)
        value = project(u, "self_attn.v_proj").unflatten(1, (pairs, -1))
        key, value = (t.repeat_interleave(heads // pairs, dim=1) for t in (key, value))
        logits = torch.einsum("qhd,khd->hqk", query, key) / query.shape[2] ** 0.5
        later = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
        mixed = torch.einsum("hqk,khd->qhd", logits.masked_fill(later, -torch.inf).softmax(dim=2), value)
        x = put("resid_mid", x + put("attn_out", project(mixed.flatten(1), "self_attn.o_proj")))
        u = self.normed(x, weights["post_attention_layernorm"])
        hidden = F.silu(project(u, "mlp.gate_proj")) * project(u, "mlp.up_proj")
        return put("resid_post", x + put("mlp_out", project(hidden, "mlp.down_proj")))

    def normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMS norm."""
        return x * (x.square().mean(dim=1, keepdim=True) + self.config["rms_norm_eps"]).rsqrt() * weight


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
