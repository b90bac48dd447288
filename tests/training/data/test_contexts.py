"""Contexts that are drawn: repeatable, apart from the held-out ones, and refused when they cannot be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iclens.core import ConfigError, position
from iclens.model.load import LanguageModel
from iclens.prompts.build import build_prompts
from iclens.prompts.tasks import parse_task
from iclens.training.config import MixtureContexts, Prompts
from iclens.training.data import MixtureSource, PromptSource, read_mixture

Make = Callable[[], MixtureSource]


@pytest.fixture
def mixture(model: LanguageModel) -> Make:
    drawn_from = read_mixture(MixtureContexts(kind="mixture"), model.name)
    return lambda: MixtureSource(drawn_from, model.tokenizer, 8, 0, 1)


def as_set(tokens: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(row) for row in tokens.tolist()}


def test_mixture_contexts_repeat_with_the_seed_and_spare_the_held_out(mixture: Make) -> None:
    one, two = mixture(), mixture()
    blocks = [one.take(16) for _ in range(4)]
    assert one.length == 50 and all(block.shape == (16, 50) for block in blocks)
    assert len(as_set(np.concatenate(blocks))) == 64
    for block in blocks:
        np.testing.assert_array_equal(block, two.take(16))
    assert not as_set(one.held_out(32)) & as_set(np.concatenate(blocks))
    np.testing.assert_array_equal(one.held_out(32), mixture().held_out(32))


def test_prompts_are_of_their_task_and_fresh_each_time(model: LanguageModel) -> None:
    source = PromptSource(Prompts(task="7", weight=0.5), model.tokenizer, 8, 0, 0)
    other = PromptSource(Prompts(task="7", weight=0.5), model.tokenizer, 8, 0, 1)
    seven = model.tokenizer.convert_tokens_to_ids("7")
    taken = np.concatenate([source.take(5), source.take(5)])
    assert (taken[:, [position("lab", j) for j in range(8)]] == seven).all()
    assert len(as_set(taken)) == 10
    assert not as_set(taken) & as_set(other.take(10))


@pytest.mark.parametrize("kind", ["mixture", "prompts"])
def test_a_source_goes_on_where_its_state_was_taken(kind: str, mixture: Make, model: LanguageModel) -> None:
    def make() -> Any:
        if kind == "mixture":
            return mixture()
        return PromptSource(Prompts(task="2x+3", weight=1), model.tokenizer, 8, 0, 0)

    source = make()
    source.take(3)
    state, again = source.state(), make()
    again.restore(state)
    np.testing.assert_array_equal(source.take(5), again.take(5))


@pytest.mark.parametrize(("task", "arm"), [("2x+3", "S"), ("odd", "R"), ("word:opposite", "T")])
def test_prompts_are_those_of_the_study(task: str, arm: str, model: LanguageModel) -> None:
    source = PromptSource(Prompts(task=task, arm=arm, weight=1), model.tokenizer, 6, 3, 1)
    seed = int(np.random.default_rng([3, 2, 1, 1]).integers(2**31))
    built = build_prompts(model.tokenizer, parse_task(task), arm=arm, n_prompts=9, n_examples=6, seed=seed)
    np.testing.assert_array_equal(source.take(9), built.tokens)


def test_prompts_with_too_few_inputs_are_refused(model: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="30 examples of 26 inputs"):
        PromptSource(Prompts(task="letter:next", weight=0.1), model.tokenizer, 30, 0, 0)


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "a: [", b"\xff\xfe\x00"])
def test_a_damaged_mixture_is_refused(text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match="mixture"):
        read_mixture(MixtureContexts(kind="mixture", mixture=path), "any")
    with pytest.raises(ConfigError, match="no such file"):
        read_mixture(MixtureContexts(kind="mixture", mixture=tmp_path / "no.yaml"), "any")
