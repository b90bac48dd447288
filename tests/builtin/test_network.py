"""The network starts as declared, and growing it changes nothing."""

import torch
from transformers import LlamaForCausalLM

from iclens.builtin.model import Recipe, build_network, build_tokenizer, grow

TOKENS = torch.arange(24).reshape(2, 12)


def scrambled(recipe: Recipe) -> LlamaForCausalLM:
    network = build_network(recipe.shape, 2, build_tokenizer(), 0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    network.eval()
    return network


@torch.no_grad()
def test_growing_keeps_the_function_exactly(recipe: Recipe) -> None:
    network = scrambled(recipe)
    taller = grow(network, recipe.shape, 4, build_tokenizer(), 1).eval()
    assert len(taller.model.layers) == 4
    assert torch.equal(taller(TOKENS).logits, network(TOKENS).logits)
    assert network(TOKENS).logits.std() > 0.1


@torch.no_grad()
def test_new_blocks_can_learn(recipe: Recipe) -> None:
    """They start as the identity, but only their output matrices are zero."""
    block = grow(scrambled(recipe), recipe.shape, 3, build_tokenizer(), 1).model.layers[2]
    for name, weight in block.named_parameters():
        closed = name.endswith(("o_proj.weight", "down_proj.weight"))
        assert bool((weight == 0).all()) == closed, name


@torch.no_grad()
def test_the_first_prediction_is_uniform(recipe: Recipe) -> None:
    tokenizer = build_tokenizer()
    network = build_network(recipe.shape, 2, tokenizer, 0)
    assert (network(TOKENS).logits == 0).all()
    assert network.config.vocab_size == len(tokenizer)


def test_seeds_decide_the_weights(recipe: Recipe) -> None:
    first, same, other = (build_network(recipe.shape, 1, build_tokenizer(), seed) for seed in (0, 0, 1))
    for a, b in zip(first.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_near_numbers_have_near_embeddings(recipe: Recipe) -> None:
    tokenizer = build_tokenizer()
    table = build_network(recipe.shape, 1, tokenizer, 0).model.embed_tokens.weight
    rows = torch.nn.functional.normalize(
        table[[tokenizer.convert_tokens_to_ids(n) for n in ("400", "500", "437")]], dim=1
    )
    assert rows[0] @ rows[1] > rows[0] @ rows[2]  # 400 and 500 share every period but the longest
