"""The stream: exact shares, nothing held out, and the same blocks after `restore`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclens.core import position
from iclens.model.load import LanguageModel
from iclens.training.config import TrainConfig, parse_train_config
from iclens.training.data import build_stream, furthest_behind, held_out

Declare = Callable[..., dict[str, Any]]
Configure = Callable[..., TrainConfig]
LABELS = [position("lab", j) for j in range(8)]


@pytest.fixture
def configure(small: Declare, tmp_path: Path) -> Configure:
    """A configuration of a kind of data, small blocks, with the prompts given."""
    (tmp_path / "a.txt").write_text("".join(f"({x}, {x + y})\n" for x in range(60) for y in (0, 17)))
    np.save(tmp_path / "ids.npy", np.arange(60 * 12).reshape(60, 12))
    kinds: dict[str, dict[str, Any]] = {
        "mixture": {"kind": "mixture"},
        "text": {"kind": "text", "dataset": str(tmp_path / "a.txt"), "context_tokens": 12},
        "tokens": {"kind": "tokens", "path": str(tmp_path / "ids.npy")},
    }

    def make(kind: str, *prompts: tuple[str, float], contexts: int = 4) -> TrainConfig:
        listed = [{"task": task, "weight": weight} for task, weight in prompts]
        declared = small(training={"forward_contexts": contexts}, held_out={"contexts": 5})
        declared["data"] = {**kinds[kind], "examples": 8, "prompts": listed}
        return parse_train_config(declared)

    return make


def as_set(blocks: list[np.ndarray]) -> set[tuple[int, ...]]:
    return {tuple(row) for block in blocks for row in block.tolist()}


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), st.integers(1, 300))
def test_nobody_falls_a_whole_turn_behind_its_weight(weights: list[float], turns: int) -> None:
    given_so_far = [0] * len(weights)
    for _ in range(turns):
        given_so_far[furthest_behind(weights, given_so_far)] += 1
    share = np.array(weights) / sum(weights)
    ahead = np.array(given_so_far) - share * turns
    assert ahead.max() < 1
    assert ahead.min() > -max(1, len(weights) - 1)


@pytest.mark.parametrize("kind", ["mixture", "text", "tokens"])
def test_prompts_are_mixed_in_by_weight_exactly(
    kind: str, configure: Configure, model: LanguageModel
) -> None:
    stream = build_stream(configure(kind, ("7", 0.25), ("9", 0.125)), model.tokenizer)
    found = {word: model.tokenizer.convert_tokens_to_ids(word) for word in "79"}
    blocks = [stream.next() for _ in range(64)]
    assert all(len(block) == 4 for block in blocks)
    prompts = np.concatenate([block for block in blocks if block.shape[1] == 50])
    counts = {word: int((prompts[:, LABELS] == i).all(axis=1).sum()) for word, i in found.items()}
    assert counts["7"] == pytest.approx(64, abs=2) and counts["9"] == pytest.approx(32, abs=2)


def test_sources_of_one_length_share_a_block(configure: Configure, model: LanguageModel) -> None:
    stream = build_stream(configure("mixture", ("7", 0.25)), model.tokenizer)
    seven = model.tokenizer.convert_tokens_to_ids("7")
    for _ in range(8):
        assert (stream.next()[:, LABELS] == seven).all(axis=1).sum() == 1


def test_prompts_alone_can_be_all_contexts(configure: Configure, model: LanguageModel) -> None:
    stream = build_stream(configure("text", ("7", 0.9), ("9", 0.1)), model.tokenizer)
    assert [block.shape for block in stream.samples()] == [(4, 50)]
    assert all(stream.next().shape == (4, 50) for _ in range(20))


@pytest.mark.parametrize("kind", ["mixture", "text", "tokens"])
def test_after_restore_the_blocks_are_the_same(kind: str, configure: Configure, model: LanguageModel) -> None:
    config = configure(kind, ("2x+3", 0.3))
    stream = build_stream(config, model.tokenizer)
    for used in range(10):
        state = json.loads(json.dumps(stream.state()))
        again = build_stream(config, model.tokenizer)
        for _ in range(used):
            again.next()
        again.restore(state)
        following = [stream.next() for _ in range(5)]
        for block in following:
            np.testing.assert_array_equal(again.next(), block)
        stream.restore(state)
        stream.next()


@pytest.mark.parametrize("kind", ["mixture", "text", "tokens"])
def test_held_out_contexts_are_never_streamed(kind: str, configure: Configure, model: LanguageModel) -> None:
    config = configure(kind)
    aside = held_out(config, model.tokenizer)
    assert aside.shape == (5, 50 if kind == "mixture" else 12)
    stream = build_stream(config, model.tokenizer)
    streamed = as_set([stream.next() for _ in range(40)])
    assert not as_set([aside]) & streamed


@pytest.mark.parametrize("kind", ["mixture", "text", "tokens"])
def test_samples_show_every_length_and_move_nothing(
    kind: str, configure: Configure, model: LanguageModel
) -> None:
    config = configure(kind, ("2x+3", 0.2))
    stream, other = (build_stream(config, model.tokenizer) for _ in range(2))
    stream.next()
    other.next()
    lengths = {block.shape[1] for block in stream.samples()}
    assert lengths == ({50} if kind == "mixture" else {12, 50})
    np.testing.assert_array_equal(stream.next(), other.next())
