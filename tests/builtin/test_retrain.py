"""Retraining from a recipe: what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from iclens.builtin.model import load_recipe
from iclens.builtin.publish import retrain
from iclens.core import ConfigError


@pytest.fixture
def short_recipe(tmp_path: Path) -> Path:
    """A recipe of a hundred small steps."""
    recipe = load_recipe().model_dump(mode="json")
    recipe["shape"] |= {"d_model": 32, "d_mlp": 16, "n_heads": 2, "n_key_value_heads": 1}
    recipe |= {"contexts_per_step": 4, "examples": 2, "trunk": {"blocks": 1, "tokens": 100 * 4 * 14}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_a_stage_leaves_its_weights_and_its_losses(short_recipe: Path, tmp_path: Path) -> None:
    told: list[dict[str, object]] = []
    (folder,) = retrain(short_recipe, "trunk", tmp_path / "out", "eager", told.append)
    assert (folder / "model.safetensors").is_file()
    logged = [json.loads(line) for line in (tmp_path / "out" / "trunk.jsonl").read_text().splitlines()]
    assert logged == told
    assert [row["step"] for row in logged] == [100]


def test_an_unknown_stage_names_the_nearest(short_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="twin"):
        list(retrain(short_recipe, "twinn", tmp_path, "eager", lambda _: None))
