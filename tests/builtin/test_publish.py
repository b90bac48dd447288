"""Publication: the shipped folder is the checkpoint, with a card measured on it; retraining from a recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from iclens.builtin.evaluate import evaluate, load_mixture, standard_conditions
from iclens.builtin.model import Recipe, load_recipe
from iclens.builtin.publish import publish, retrain
from iclens.builtin.train import Trainer
from iclens.core import ConfigError, ModelError
from iclens.model.load import load_model

FEW = {"n_contexts": 12, "n_prompts": 2}


@pytest.fixture(scope="module")
def published(recipe: Recipe, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    publish(trained, checkpoints, recipe, **FEW)
    return checkpoints


def card(published: Path, name: str = "icl-tiny") -> dict[str, Any]:
    return json.loads((published / name / "card.json").read_text())


@torch.no_grad()
@pytest.mark.parametrize(("name", "stage"), [("icl-tiny", "main"), ("icl-tiny-twin", "twin")])
def test_the_published_folder_loads_and_answers_as_the_checkpoint(
    name: str, stage: str, published: Path, trained: Path, recipe: Recipe
) -> None:
    model = load_model(published / name)
    trainer = Trainer(recipe, stage, trained)  # type: ignore[arg-type]
    trainer.model.load_state_dict(load_file(trained / stage / "model.safetensors"))
    tokens = trainer.maker.batch(np.random.default_rng(0)).tokens
    assert torch.equal(model.network(tokens).logits, trainer.model.eval()(tokens).logits)
    assert model.n_blocks == 3
    assert load_mixture(published / name) == recipe.declared_mixture


def test_only_what_is_shipped_is_there(published: Path) -> None:
    assert sorted(path.name for path in published.iterdir()) == ["icl-tiny", "icl-tiny-twin"]
    found = {path.name for path in (published / "icl-tiny").iterdir()}
    assert found == {
        "README.md", "card.json", "config.json", "generation_config.json", "mixture.yaml",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_figures_of_the_card_are_those_of_evaluate(published: Path, recipe: Recipe) -> None:
    told = card(published)
    model, mixture = load_model(published / "icl-tiny"), recipe.declared_mixture
    conditions = standard_conditions(mixture, recipe.interchange.excluded_donors)
    found = evaluate(model, mixture, conditions, n_contexts=12, n_examples=recipe.examples, seed=1)
    rows = told["evaluation"]["overall"]
    assert [row["condition"] for row in rows] == found.overall["condition"].tolist()
    assert [row["kl"] for row in rows] == pytest.approx(found.overall["kl"].tolist())
    assert f"{found.overall['kl'][0]:.3f}" in (published / "icl-tiny" / "README.md").read_text()
    assert told["fingerprint"] == model.fingerprint


def test_the_card_tells_what_was_done(published: Path, recipe: Recipe) -> None:
    told = card(published)
    assert told["recipe"] == json.loads(json.dumps(recipe.model_dump()))
    assert [stage["stage"] for stage in told["training"]] == ["trunk", "main"]
    branch = recipe.main.tokens + recipe.finish.tokens
    assert [stage["tokens"] for stage in told["training"]] == [recipe.trunk.tokens, branch]
    assert all(stage["minutes"] > 0 for stage in told["training"])
    assert [(row["stage"], row["step"]) for row in told["training_log"]] == [
        ("trunk", 2), ("trunk", 4), ("main", 2), ("main", 4),
    ]  # fmt: skip
    assert {"python", "torch", "transformers"} <= told["versions"].keys()
    assert [row["task"] for row in told["evaluation"]["tasks"]] == [
        t.name for t in recipe.declared_mixture.tasks
    ]
    tasks = {row["task"] for row in told["interchange"]}
    assert tasks == {"2x+3", "letter:next"}


def test_the_card_says_what_is_built_in(published: Path) -> None:
    assert card(published)["built_in_site"] == {
        "hook": "blocks.1.hook_resid_pre",
        "role": "pre",
        "excluded_donors": ["2x+3", "letter:next"],
    }
    assert card(published, "icl-tiny-twin")["built_in_site"] is None
    main, twin = ((published / name / "README.md").read_text() for name in ("icl-tiny", "icl-tiny-twin"))
    assert "**Not built in**" in main
    assert "Nothing is built in" in twin
    assert "Nothing is built in" not in main
    assert "Some tasks are not well learned" in main  # four steps teach nothing, and the card says so
    assert "| 3x+1 |" in main


def test_nothing_is_left_behind_when_a_stage_is_missing(
    recipe: Recipe, trained: Path, tmp_path: Path
) -> None:
    out, checkpoints = tmp_path / "out", tmp_path / "checkpoints"
    shutil.copytree(trained / "trunk", out / "trunk")
    with pytest.raises(ConfigError, match="stage main"):
        publish(out, checkpoints, recipe, **FEW)
    assert list(checkpoints.iterdir()) == []


def test_a_damaged_checkpoint_leaves_the_old_one_standing(
    recipe: Recipe, trained: Path, tmp_path: Path
) -> None:
    out, checkpoints = tmp_path / "out", tmp_path / "checkpoints"
    shutil.copytree(trained, out)
    weights = out / "main" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (checkpoints / "icl-tiny").mkdir(parents=True)
    (checkpoints / "icl-tiny" / "kept").touch()
    with pytest.raises(ModelError, match="cannot be loaded"):
        publish(out, checkpoints, recipe, **FEW)
    assert [path.name for path in checkpoints.rglob("*")] == ["icl-tiny", "kept"]


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
