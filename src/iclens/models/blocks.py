"""Blocks of a Hugging Face Llama, run in parts.

Every forward of ours goes through `run_blocks`: a residual enters block `start` and leaves block
`stop - 1`. Hidden states are the raw residual stream, before the final norm. What a position sees of the
others (`visible`) and how many positions a model has (`context`) are decided here alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from iclens.models.shape import refuse_longer


def run_blocks(
    model: Any, resid: Tensor, start: int, stop: int, *, masks: Mapping[int, Tensor] | None = None
) -> Tensor:
    """Run blocks start..stop−1 causally.

    Args:
        model: a Hugging Face causal language model with `model.layers` and `model.rotary_emb`.
        resid: resid_pre of block `start`, [row pos d_model], positions from 0.
        start: first block.
        stop: block after the last.
        masks: block → what is added to its attention scores in place of the usual mask, [1 1 pos pos].

    Returns:
        resid_post of block stop − 1, [row pos d_model].

    Raises:
        ModelError: for more positions than the model has.
    """
    shared, special = context(model, resid), masks or {}
    for layer, block in enumerate(model.model.layers[start:stop], start):
        own = {"attention_mask": special[layer]} if layer in special else {}
        resid = block(resid, **(shared | own))
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

    Raises:
        ModelError: for more positions than the model has.
    """
    last = model.model.layers[-1]
    resid = run_blocks(model, resid, 0, len(model.model.layers) - 1)
    return feed(last, attend(last, resid, context(model, resid))[:, where])


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


def context(model: Any, resid: Tensor) -> dict[str, Any]:
    """What a block is told besides the residual [row pos d_model]: positions, their rotation, the mask.

    Raises:
        ModelError: for more positions than the model has.
    """
    length = resid.shape[1]
    refuse_longer(length, model.config.max_position_embeddings, "the model")
    positions = torch.arange(length, device=resid.device)[None]
    return {
        "attention_mask": _mask(model, resid), "position_ids": positions,
        "position_embeddings": model.model.rotary_emb(resid, positions),
    }  # fmt: skip


def window(model: Any) -> int | None:
    """How many keys a query of a Mistral sees, itself included; None where it sees all earlier ones."""
    return model.config.sliding_window if model.config.model_type == "mistral" else None


def visible(model: Any, queries: Tensor, keys: Tensor) -> Tensor:
    """Whether attention from positions `queries` sees positions `keys`, bool [query key].

    No query sees a later key, nor one that lies a sliding window or more behind it.
    """
    behind, reach = queries[:, None] - keys[None], window(model)
    return (behind >= 0) if reach is None else (behind >= 0) & (behind < reach)


def _mask(model: Any, resid: Tensor) -> Tensor | None:
    """What is added to attention scores so that no position sees more than it may, [1 1 pos pos].

    None under SDPA where every earlier key is seen: it is causal by itself when it is given no mask, whereas
    eager attention would see everything.
    """
    length, reach = resid.shape[1], window(model)
    if model.config._attn_implementation != "eager" and (reach is None or length <= reach):
        return None
    positions = torch.arange(length, device=resid.device)
    return added_to_scores(visible(model, positions, positions), resid)[None, None]


def added_to_scores(seen: Tensor, like: Tensor) -> Tensor:
    """0 where a key is seen, elsewhere a number that no score outweighs, in the dtype of `like`."""
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~seen, torch.finfo(like.dtype).min
    )


def unembed(model: Any, resid: Tensor) -> Tensor:
    """Logits [... vocabulary] of the last block's resid_post [... d_model]."""
    return model.lm_head(model.model.norm(resid))
