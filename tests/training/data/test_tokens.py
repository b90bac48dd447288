"""Tokenised contexts: each once per pass, the held-out never, and refused when they are no token ids."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from iclens.errors import ConfigError
from iclens.models.load import LanguageModel
from iclens.training.config import TokenContexts
from iclens.training.data.tokens import TokenSource

Make = Callable[..., TokenSource]


@pytest.fixture
def source(model: LanguageModel) -> Make:
    def make(path: Path, context_tokens: int | None = None, reserved: int = 3) -> TokenSource:
        asked = TokenContexts(kind="tokens", path=path, context_tokens=context_tokens)
        return TokenSource(asked, model.tokenizer, reserved, 0, 1)

    return make


def write(path: Path, ids: Any) -> Path:
    ids = np.asarray(ids)
    if path.suffix == ".npy":
        np.save(path, ids)
    else:
        save_file({"tokens": torch.as_tensor(ids)}, path)
    return path


@pytest.mark.parametrize("name", ["ids.npy", "ids.safetensors"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
def test_every_context_is_served_once_per_pass(
    source: Make, tmp_path: Path, name: str, dtype: type[np.generic]
) -> None:
    ids = np.arange(20 * 8, dtype=dtype).reshape(20, 8)
    tokens = source(write(tmp_path / name, ids))
    aside = {tuple(row) for row in tokens.held_out(3).tolist()}
    passes = [[tuple(row) for row in tokens.take(17).tolist()] for _ in range(3)]
    assert tokens.length == 8 and len(aside) == 3
    for one in passes:
        assert set(one) == {tuple(row) for row in ids.tolist()} - aside
    assert passes[0] != passes[1]


def test_a_flat_array_is_cut_behind_bos(source: Make, tmp_path: Path, model: LanguageModel) -> None:
    tokens = source(write(tmp_path / "ids.npy", np.arange(5 * 7 + 3)), 8)
    taken = np.concatenate([tokens.take(2), tokens.held_out(3)])
    assert (taken[:, 0] == model.tokenizer.bos_token_id).all()
    assert sorted(taken[:, 1:].tolist()) == np.arange(35).reshape(5, 7).tolist()


def test_tokens_go_on_where_their_state_was_taken(source: Make, tmp_path: Path) -> None:
    path = write(tmp_path / "ids.npy", np.arange(20 * 8).reshape(20, 8))
    tokens = source(path)
    for _ in range(9):
        again = source(path)
        again.take(23)
        again.restore(tokens.state())
        np.testing.assert_array_equal(again.take(40), np.concatenate([tokens.take(5), source_at(tokens, 35)]))


def source_at(tokens: TokenSource, n_contexts: int) -> np.ndarray:
    """The next contexts, without moving on."""
    state = tokens.state()
    found = tokens.take(n_contexts)
    tokens.restore(state)
    return found


def test_another_array_is_not_gone_on_with(source: Make, tmp_path: Path) -> None:
    state = source(write(tmp_path / "a.npy", np.zeros((9, 8), int))).state()
    with pytest.raises(ConfigError, match="not the array that training began with"):
        source(write(tmp_path / "b.npy", np.zeros((10, 8), int))).restore(state)


@pytest.mark.parametrize(
    ("ids", "context_tokens", "words"),
    [
        (np.zeros((9, 8)), None, r"float64 of shape \[9, 8\]"),
        (np.zeros((3, 3, 3), int), None, r"int64 of shape \[3, 3, 3\]"),
        (np.zeros((0, 8), int), None, r"int64 of shape \[0, 8\]"),
        (np.zeros((9, 8), int), 16, "contexts of 8 tokens. Leave data.context_tokens out"),
        (np.zeros(80, int), None, "flat, its contexts have no length"),
        (np.zeros(80, int), 60, "it holds 1 contexts, none left to train on"),
        (np.zeros((3, 8), int), None, "it holds 3 contexts, none left to train on"),
        (np.full((9, 8), 5000), None, "id 5000 of a vocabulary of 1078"),
        (np.full((9, 8), -1), None, "id -1 of a vocabulary"),
    ],
)
@pytest.mark.parametrize("name", ["ids.npy", "ids.safetensors"])
def test_arrays_that_cannot_serve_are_refused(
    source: Make, tmp_path: Path, name: str, ids: np.ndarray, context_tokens: int | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        source(write(tmp_path / name, ids), context_tokens).take(1)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("ids.npy", b"\x93NUMPY", "cannot be read"),
        ("ids.npy", b"", "cannot be read"),
        ("ids.npy", b"\x80\x04\x95pickled", "cannot be read"),
        ("ids.safetensors", b"no header", "cannot be read"),
        ("ids.bin", b"1 2 3", "neither .npy nor .safetensors"),
    ],
)
def test_broken_files_are_refused(
    source: Make, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        source(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_several_arrays_are_refused(source: Make, tmp_path: Path) -> None:
    for name in ("no.npy", "no.safetensors"):
        with pytest.raises(ConfigError, match="no such file"):
            source(tmp_path / name)
    save_file({name: torch.zeros(9, 8, dtype=torch.int64) for name in "ab"}, tmp_path / "two.safetensors")
    with pytest.raises(ConfigError, match="it holds 2 arrays"):
        source(tmp_path / "two.safetensors")


def test_an_array_of_objects_is_refused_unread(source: Make, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match="cannot be read"):
        source(tmp_path / "ids.npy")
