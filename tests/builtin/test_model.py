"""The model's recipe, read strictly, and its network as it starts."""

from importlib.resources import files
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from iclens.builtin.model import Recipe, build_network, build_tokenizer, grow, load_recipe
from iclens.core import ConfigError
from iclens.prompts.tasks import parse_task

SHIPPED = (files("iclens.builtin") / "icl_tiny.yaml").read_text()


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_the_shipped_recipe(tmp_path: Path) -> None:
    recipe = load_recipe()
    assert load_recipe(written(tmp_path, SHIPPED)) == recipe
    names = {task.name for task in recipe.declared_mixture.tasks}
    assert "2x+3" in recipe.interchange.excluded_donors
    assert {parse_task(spec).name for spec in recipe.interchange.excluded_donors} <= names
    assert recipe.main.blocks >= 6
    assert (recipe.main.blocks, recipe.main.tokens) == (recipe.twin.blocks, recipe.twin.tokens)
    assert recipe.interchange.block < recipe.trunk.blocks


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    changed = yaml.safe_load(SHIPPED)
    changed["optimiser"]["matrix_rl"] = changed["optimiser"].pop("matrix_lr")
    with pytest.raises(ConfigError, match=r"optimiser\.matrix_(lr|rl)") as caught:
        load_recipe(written(tmp_path, yaml.safe_dump(changed)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("seed", "zero"), ("trunk", {"blocks": 4}), ("shape", None), ("sede", 0)]
)
def test_a_wrong_value_is_named(tmp_path: Path, key: str, value: object) -> None:
    text = yaml.safe_dump(yaml.safe_load(SHIPPED) | {key: value})
    with pytest.raises(ConfigError, match=f"recipe key '{key}"):
        load_recipe(written(tmp_path, text))


def test_missing_broken_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_recipe(tmp_path / "none.yaml")
    for text in ("seed: [", "", "just words"):
        with pytest.raises(ConfigError) as caught:
            load_recipe(written(tmp_path, text))
        assert "\n" not in str(caught.value)


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
