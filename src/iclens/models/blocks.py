"""Blocks of a Hugging Face Llama, run in parts.

Every forward of ours goes through `run_blocks`: a residual enters block `start` and leaves block
`stop - 1`. Hidden states are the raw residual stream, before the final norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def run_blocks(
    model: Any, resid: Tensor, start: int, stop: int, *, masks: Mapping[int, Tensor] | None = None
) -> Tensor:
    """Run blocks start..stop−1 causally.

    Args:
        model: a Hugging Face causal language model with `model.layers` and `model.rotary_emb`.
        resid: resid_pre of block `start`, [row pos d_model], positions from 0.
        start: first block.
        stop: block after the last.
        masks: block → what is added to its attention scores in place of the causal mask, [1 1 pos pos].

    Returns:
        resid_post of block stop − 1, [row pos d_model].
    """
    context, special = _context(model, resid), masks or {}
    for layer, block in enumerate(model.model.layers[start:stop], start):
        own = {"attention_mask": special[layer]} if layer in special else {}
        resid = block(resid, **(context | own))
    return resid


def run_to_end(model: Any, resid: Tensor, where: Tensor) -> Tensor:
    """Run all blocks causally, and the last one's MLP at the positions `where` alone.

    Hooks on the last block itself do not fire, and those on its MLP see these positions only.

    Args:
        model: a whole Hugging Face causal language model.
        resid: resid_pre of block 0, [row pos d_model].
        where: positions that are read, [read].

    Returns:
        resid_post of the last block there, [row read d_model].
    """
    last = model.model.layers[-1]
    resid = run_blocks(model, resid, 0, len(model.model.layers) - 1)
    return feed(last, attend(last, resid, _context(model, resid))[:, where])


def attend(block: Any, resid: Tensor, context: Mapping[str, Any]) -> Tensor:
    """A block's resid_mid from its resid_pre [row pos d_model].

    Args:
        block: a Llama block.
        resid: resid_pre.
        context: what its attention is told besides: positions, their rotation, the mask, a cache.
    """
    attended, _ = block.self_attn(block.input_layernorm(resid), **context)
    return resid + attended


def feed(block: Any, mid: Tensor) -> Tensor:
    """A block's resid_post from its resid_mid [... d_model]."""
    return mid + block.mlp(block.post_attention_layernorm(mid))


def neurons(block: Any, mlp_in: Tensor) -> Tensor:
    """Activations of a block's MLP neurons, act(gate) · up, [... d_mlp], from what it reads [... d_model]."""
    mlp = block.mlp
    return mlp.act_fn(mlp.gate_proj(mlp_in)) * mlp.up_proj(mlp_in)


def _context(model: Any, resid: Tensor) -> dict[str, Tensor | None]:
    """What a block is told besides the residual [row pos d_model]: positions, their rotation, the mask."""
    positions = torch.arange(resid.shape[1], device=resid.device)[None]
    rotary = model.model.rotary_emb(resid, positions)
    return {
        "attention_mask": causal_mask(model, resid), "position_embeddings": rotary, "position_ids": positions,
    }  # fmt: skip


def causal_mask(model: Any, resid: Tensor) -> Tensor | None:
    """What is added to attention scores so that no position sees a later one, [1 1 pos pos].

    None under SDPA, which is causal by itself when it is given no mask; eager attention would see everything.
    """
    if model.config._attn_implementation != "eager":
        return None
    size = resid.shape[1]
    never = torch.finfo(resid.dtype).min
    return torch.full((size, size), never, dtype=resid.dtype, device=resid.device).triu(1)[None, None]


def unembed(model: Any, resid: Tensor) -> Tensor:
    """Logits [... vocabulary] of the last block's resid_post [... d_model]."""
    return model.lm_head(model.model.norm(resid))
