"""Sources of contexts: what they yield, what they hold out, and what they refuse."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iclens.errors import ConfigError
from iclens.models.load import LanguageModel
from iclens.names import position
from iclens.training.config import TrainConfig, parse_train_config
from iclens.training.contexts import build_source

Declare = Callable[..., dict[str, Any]]
Configure = Callable[..., TrainConfig]


@pytest.fixture
def declared(small: Declare) -> Configure:
    return lambda **data: parse_train_config(small(data=data))


@pytest.fixture
def text(small: Declare) -> Configure:
    return lambda path, **data: text_config(small(), path, data)


def text_config(base: dict[str, Any], path: Path, data: dict[str, Any]) -> TrainConfig:
    base = base | {"data": {"kind": "text", "dataset": str(path), "context_tokens": 10, **data}}
    return parse_train_config(base | {"held_out": {"contexts": 2}})


def as_set(tokens: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(row) for row in tokens.tolist()}


def test_mixture_contexts_repeat_with_the_seed_and_spare_the_held_out(
    declared: Configure, model: LanguageModel
) -> None:
    config = declared(prompts=[])
    source, again = (build_source(config, model.tokenizer) for _ in range(2))
    blocks = list(islice(source.stream(16), 4))
    assert all(block.shape == (16, 2 + 6 * 8) for block in blocks)
    assert not np.array_equal(blocks[0], blocks[1])
    for one, two in zip(blocks, again.stream(16), strict=False):
        np.testing.assert_array_equal(one, two)
    held_out = source.held_out(32)
    assert held_out.shape == (32, 50)
    assert not as_set(held_out) & as_set(np.concatenate(blocks))
    np.testing.assert_array_equal(held_out, again.held_out(32))


def test_prompts_are_mixed_in_by_weight(declared: Configure, model: LanguageModel) -> None:
    config = declared(prompts=[{"task": "7", "weight": 0.25}, {"task": "2x+3", "weight": 0.25}])
    source = build_source(config, model.tokenizer)
    labels = [position("lab", j) for j in range(8)]
    seven = model.tokenizer.convert_tokens_to_ids("7")
    blocks = list(islice(source.stream(2), 400))
    share = np.mean([(block[:, labels] == seven).all() for block in blocks])
    assert share == pytest.approx(0.25, abs=0.07)
    shown = np.concatenate([block for block in blocks if (block[:, labels] == seven).all()])
    assert len(as_set(shown)) == len(shown)


def test_prompts_alone_can_be_all_contexts(declared: Configure, model: LanguageModel) -> None:
    source = build_source(declared(prompts=[{"task": "7", "weight": 1}]), model.tokenizer)
    seven = model.tokenizer.convert_tokens_to_ids("7")
    for block in islice(source.stream(4), 20):
        assert (block[:, [position("lab", j) for j in range(8)]] == seven).all()


def test_prompts_with_too_few_inputs_are_refused(declared: Configure, model: LanguageModel) -> None:
    config = declared(prompts=[{"task": "letter:next", "weight": 0.1}], examples=30)
    with pytest.raises(ConfigError, match="30 examples of 26 inputs"):
        build_source(config, model.tokenizer)


def test_a_damaged_mixture_is_refused(declared: Configure, tmp_path: Path, model: LanguageModel) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match="mixture"):
        build_source(declared(mixture=str(path), prompts=[]), model.tokenizer)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_text_is_packed_behind_bos_and_read_again(
    text: Configure, tmp_path: Path, model: LanguageModel
) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": " ".join(map(str, range(n, n + 30)))} for n in (0, 100)])
    source = build_source(text(path), model.tokenizer)
    held_out = source.held_out(2)
    bos = model.tokenizer.bos_token_id
    ids = [
        i
        for n in (0, 100)
        for i in model.tokenizer(" ".join(map(str, range(n, n + 30))), add_special_tokens=False).input_ids
    ]
    contexts = [(bos, *ids[i : i + 9]) for i in range(0, len(ids) - 8, 9)]
    assert [tuple(row) for row in held_out.tolist()] == contexts[:2]
    streamed = [tuple(row) for block in islice(source.stream(3), 8) for row in block.tolist()]
    assert streamed == (contexts[2:] * 3)[:24]


@pytest.mark.parametrize(
    ("rows", "data", "words"),
    [
        ([{"text": "1 2 3"}], {}, "none left to train on"),
        ([{"txt": "1 2 3"}], {}, r"text_field 'text': a row has \['txt'\]"),
    ],
)
def test_text_that_cannot_serve_is_refused(
    text: Configure, tmp_path: Path, model: LanguageModel, rows: list[Any], data: dict[str, Any], words: str
) -> None:
    source = build_source(text(write(tmp_path / "a.jsonl", rows), **data), model.tokenizer)
    with pytest.raises(ConfigError, match=words):
        source.held_out(2)


def test_a_text_wholly_held_out_is_refused(text: Configure, tmp_path: Path, model: LanguageModel) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": " ".join(map(str, range(10)))}])
    source = build_source(text(path), model.tokenizer)
    assert len(source.held_out(2)) == 2
    with pytest.raises(ConfigError, match="none left to train on"):
        next(source.stream(1))


def test_missing_and_broken_files_are_refused(text: Configure, tmp_path: Path, model: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        build_source(text(tmp_path / "no.jsonl"), model.tokenizer).held_out(1)
    (tmp_path / "b.jsonl").write_text('{"text": "1 2"}\n{"text": \n')
    with pytest.raises(ConfigError, match="line 2 is not JSON"):
        build_source(text(tmp_path / "b.jsonl"), model.tokenizer).held_out(1)
