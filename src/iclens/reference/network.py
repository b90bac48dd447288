"""The built-in network: a Hugging Face Llama, its initialisation and its growth by blocks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from iclens.reference.recipe import Shape
from iclens.reference.tokenizer import BOS

_PERIODS = (2, 3, 5, 7, 10, 20, 25, 50, 100, 200, 500)


def build_network(
    shape: Shape, blocks: int, tokenizer: PreTrainedTokenizerFast, seed: int
) -> LlamaForCausalLM:
    """A Llama whose blocks start as the identity and whose number embeddings are Fourier features.

    Args:
        shape: widths and heads.
        blocks: number of blocks.
        tokenizer: gives the vocabulary.
        seed: of the initial weights.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=blocks,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_key_value_heads,
        max_position_embeddings=shape.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        bos_token_id=tokenizer.get_vocab()[BOS],
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for block in model.model.layers:
            _start_block(block, generator)
        model.lm_head.weight.zero_()
        model.model.embed_tokens.weight.copy_(_embeddings(tokenizer, shape.d_model, generator))
    return model


def grow(
    model: LlamaForCausalLM, shape: Shape, blocks: int, tokenizer: PreTrainedTokenizerFast, seed: int
) -> LlamaForCausalLM:
    """The same function with more blocks: new ones come last and start as the identity."""
    taller = build_network(shape, blocks, tokenizer, seed)
    taller.load_state_dict(model.state_dict(), strict=False)
    return taller


def _start_block(block: nn.Module, generator: torch.Generator) -> None:
    for name, weight in block.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
        elif weight.ndim == 2:
            weight.normal_(0.0, weight.shape[1] ** -0.5, generator=generator)


def _embeddings(tokenizer: PreTrainedTokenizerFast, d_model: int, generator: torch.Generator) -> Tensor:
    """Random rows; numbers get cos and sin of 2πn/T and n itself, randomly rotated."""
    table = 0.5 * torch.randn(len(tokenizer), d_model, generator=generator)
    n = torch.arange(1000.0)
    waves = [f(2 * math.pi * n / period) for period in _PERIODS for f in (torch.cos, torch.sin)]
    features = torch.stack([*waves, n / 250 - 1], dim=1)
    rotation = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator)).Q[: features.shape[1]]
    numbers = features @ rotation
    ids = [tokenizer.convert_tokens_to_ids(str(i)) for i in range(1000)]
    table[ids] = 0.1 * table[ids] + 0.5 * numbers * (d_model / features.shape[1]) ** 0.5
    return table
