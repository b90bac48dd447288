"""A recipe is read strictly: one line names the key that is wrong."""

from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from iclens.builtin.model import load_recipe
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
