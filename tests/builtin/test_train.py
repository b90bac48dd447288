"""Training: the stages run, a stopped one goes on as if it had not stopped."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from iclens.builtin.model import Recipe
from iclens.builtin.train import Swaps, Trainer
from iclens.core import ConfigError


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("stage", ["trunk", "main"])
def test_two_steps_and_a_resumed_two_equal_four(
    stage: str, recipe: Recipe, trained: Path, tmp_path: Path
) -> None:
    if stage == "main":
        (tmp_path / "trunk").symlink_to(trained / "trunk")
    halted = Trainer(recipe, stage, tmp_path)  # type: ignore[arg-type]
    for _ in range(2):
        halted.train_step()
    halted.save()
    resumed = Trainer(recipe, stage, tmp_path)  # type: ignore[arg-type]
    resumed.fit(lambda row: None)
    assert resumed.step == 4
    whole, parts = weights(trained / stage), weights(tmp_path / stage)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
    assert json.loads((tmp_path / stage / "progress.json").read_text())["step"] == 4


def test_branches_start_from_the_trunk_and_see_the_same_batches(recipe: Recipe, trained: Path) -> None:
    trunk, main, twin = (weights(trained / stage) for stage in ("trunk", "main", "twin"))
    assert main.keys() == twin.keys()
    assert main.keys() > trunk.keys()
    assert any(not torch.equal(main[name], twin[name]) for name in main)
    makers = [Trainer(recipe, stage, trained) for stage in ("main", "twin")]
    first = [maker.train_step() for maker in makers]
    # the first batch of both: before any update, their own losses are those of the grown trunk
    assert first[0]["answer"] == pytest.approx(first[1]["answer"], rel=1e-5)
    assert {"interchange", "blank"} < first[0].keys()
    assert not {"interchange", "blank"} & first[1].keys()


def test_a_blank_recipient_is_the_first_query_of_a_whole_one(recipe: Recipe, trained: Path) -> None:
    """The same pairs, run as whole contexts and as contexts cut at their first `pre`: one loss."""
    trainer = Trainer(recipe, "main", trained)
    batch = trainer.maker.batch(np.random.default_rng(1))
    first = np.arange(len(batch.tokens)) * recipe.examples
    blank = trainer.maker.interchanges(np.random.default_rng(2), batch, first)
    whole = trainer.maker.interchanges(
        np.random.default_rng(3), batch, np.arange(len(batch.tokens) * recipe.examples)
    )
    at_first = torch.zeros_like(whole.weight)
    at_first[first] = blank.weight
    whole.donor[first] = blank.donor
    whole.target[first] = blank.target
    losses = trainer.loss(batch, Swaps(dataclasses.replace(whole, weight=at_first), blank))
    assert float(blank.weight.sum()) > 0
    assert float(losses["blank"].detach()) == pytest.approx(float(losses["interchange"].detach()), rel=1e-5)


def test_a_branch_without_its_trunk_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reference train --stage trunk"):
        Trainer(recipe, "main", tmp_path)


def test_rates_fall_to_nothing(recipe: Recipe, trained: Path) -> None:
    trunk, twin = Trainer(recipe, "trunk", trained), Trainer(recipe, "twin", trained)
    assert trunk.learning_rate(0) == 1.0
    assert trunk.learning_rate(trunk.steps) == pytest.approx(recipe.optimiser.branch_start)
    assert twin.learning_rate(0) == pytest.approx(recipe.optimiser.branch_start)
    assert twin.learning_rate(twin.steps) == 0.0


def test_the_soft_target_loss_has_its_floor_at_the_exact_predictive(recipe: Recipe, trained: Path) -> None:
    """`kl` is the answer loss minus the targets' entropy: never negative, and log V less it at the start."""
    trainer = Trainer(recipe, "trunk", trained / "nowhere")
    losses = trainer.train_step()
    assert losses["answer"] == pytest.approx(math.log(len(trainer.tokenizer)), rel=1e-3)
    assert 0 < losses["kl"] < losses["answer"]
