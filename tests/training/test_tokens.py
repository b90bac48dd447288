"""Tokenised contexts: each once per pass, the held-out never, and refused when they are no token ids."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from iclens.core import ConfigError
from iclens.model.load import LanguageModel
from iclens.training.config import TokenContexts
from iclens.training.tokens import TokenSource

Make = Callable[..., TokenSource]


@pytest.fixture
def source(model: LanguageModel) -> Make:
    def make(
        path: Path, context_tokens: int | None = None, reserved: int = 3, tokenizer: Any = None, **asked: Any
    ) -> TokenSource:
        declared = TokenContexts(kind="tokens", path=path, context_tokens=context_tokens, **asked)
        return TokenSource(declared, tokenizer or model.tokenizer, reserved, 0, 1)

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
    ids = np.arange(2, 2 + 20 * 8, dtype=dtype).reshape(20, 8)
    ids[:, 0] = 0
    tokens = source(write(tmp_path / name, ids))
    aside = {tuple(row) for row in tokens.held_out(3).tolist()}
    passes = [[tuple(row) for row in tokens.take(17).tolist()] for _ in range(3)]
    assert tokens.length == 8 and len(aside) == 3
    for one in passes:
        assert set(one) == {tuple(row) for row in ids.tolist()} - aside
    assert passes[0] != passes[1]


def test_a_flat_array_is_cut_behind_bos(source: Make, tmp_path: Path, model: LanguageModel) -> None:
    tokens = source(write(tmp_path / "ids.npy", np.arange(2, 5 * 7 + 5)), 8)
    taken = np.concatenate([tokens.take(2), tokens.held_out(3)])
    assert (taken[:, 0] == model.tokenizer.bos_token_id).all()
    assert sorted(taken[:, 1:].tolist()) == np.arange(2, 37).reshape(5, 7).tolist()


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
    ids = np.arange(2, 74).reshape(9, 8)
    state = source(write(tmp_path / "a.npy", ids)).state()
    source(write(tmp_path / "c.npy", ids.astype(np.uint16))).restore(state)
    ids[4, 4] = 3
    with pytest.raises(ConfigError, match="not the token ids that training began with"):
        source(write(tmp_path / "b.npy", ids)).restore(state)


@pytest.mark.parametrize(
    ("ids", "context_tokens", "words"),
    [
        (np.ones((9, 8), int), 16, "contexts of 8 tokens. Leave data.context_tokens out"),
        (np.arange(80), 60, "it holds 1 contexts, none left to train on"),
        (np.where(np.arange(72).reshape(9, 8) == 50, -1, 5), None, "row 7: id -1 of a vocabulary"),
        (np.full((9, 8), 7), None, r"row 1: it .* with 7 times id 7 \('5'\), as 8 other rows do"),
    ],
)
def test_arrays_that_cannot_serve_are_refused(
    source: Make, tmp_path: Path, ids: np.ndarray, context_tokens: int | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        source(write(tmp_path / "ids.npy", ids), context_tokens).take(1)


def test_missing_files_are_refused(source: Make, tmp_path: Path) -> None:
    for name in ("no.npy", "no.safetensors"):
        with pytest.raises(ConfigError, match="no such file"):
            source(tmp_path / name)


P = 1  # <unk>, which the tests name as padding
WHOLE = [0, 20, 21, 22, 23, 24, 25, 26]


def rows_of(ids: Any, mask: Any = None) -> dict[str, np.ndarray]:
    given = {"input_ids": np.array(ids)}
    return given if mask is None else given | {"attention_mask": np.array(mask)}


def write_named(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Rows of ids, and a mask where there is one, in any of the files that hold both."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    elif path.suffix == ".safetensors":
        save_file({name: torch.as_tensor(x) for name, x in arrays.items()}, path)
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({name: x.tolist() for name, x in arrays.items()}), path)
    else:
        rows = zip(*(x.tolist() for x in arrays.values()), strict=True)
        path.write_text("".join(json.dumps(dict(zip(arrays, row, strict=True))) + "\n" for row in rows))
    return path


LAYOUTS = {
    "as it is": (WHOLE, [1] * 8, WHOLE),
    "right": ([0, 20, 21, 22, P, P, P, P], [1] * 4 + [0] * 4, [0, 20, 21, 22, -1, -1, -1, -1]),
    "left": ([P, P, P, 0, 20, 21, 22, 23], [0] * 3 + [1] * 5, [0, 20, 21, 22, 23, -1, -1, -1]),
    "both": ([P, 0, 20, 21, P, P, P, P], [0, 1, 1, 1, 0, 0, 0, 0], [0, 20, 21, -1, -1, -1, -1, -1]),
    "two BOS": ([0, 0, 20, 21, 22, 23, 24, 25], [1] * 8, [0, 20, 21, 22, 23, 24, 25, -1]),
    "left, two BOS": ([P, P, 0, 0, 20, 21, 22, 23], [0] * 2 + [1] * 6, [0, 20, 21, 22, 23, -1, -1, -1]),
    "no BOS": ([20, 21, 22, 23, 24, 25, 26, 27], [1] * 8, WHOLE),
    "no BOS, right": ([20, 21, 22, P, P, P, P, P], [1] * 3 + [0] * 5, [0, 20, 21, 22, -1, -1, -1, -1]),
    "no BOS, left": ([P, P, P, P, P, 20, 21, 22], [0] * 5 + [1] * 3, [0, 20, 21, 22, -1, -1, -1, -1]),
    "packed": ([20, 21, 0, 22, 23, 0, 24, 25], [1] * 8, [0, 20, 21, 0, 22, 23, 0, 24]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "a.parquet", "a.jsonl"])
@pytest.mark.parametrize("told", ["by the mask", "by its id"])
def test_rows_become_contexts_that_begin_with_one_bos(
    layout: str, name: str, told: str, source: Make, tmp_path: Path
) -> None:
    row, mask, wanted = LAYOUTS[layout]
    if told == "by the mask":
        other = [9 if one == P else one for one in row]
        tokens = source(write_named(tmp_path / name, rows_of([other, WHOLE], [mask, [1] * 8])), reserved=0)
    else:
        tokens = source(write_named(tmp_path / name, rows_of([row, WHOLE])), reserved=0, padding_id=P)
    assert sorted(tokens.take(2).tolist()) == sorted([wanted, WHOLE])
    assert tokens.facts()["places of padding, left out"] == mask.count(0)


def test_what_rows_begin_with_is_told(source: Make, tmp_path: Path) -> None:
    rows = [row for row, _, _ in LAYOUTS.values()]
    told = source(write(tmp_path / "a.npy", [*rows, [P] * 8, [0] * 8]), reserved=0, padding_id=P).facts()
    assert told == {
        "rows": 12, "rows that begin with BOS": 4, "rows that begin with several BOS, one kept": 2,
        "rows without BOS, put in front of them": 4, "rows without tokens, left out": 2,
        "places of padding, left out": 4 + 3 + 5 + 2 + 5 + 5 + 8 + 8,
    }  # fmt: skip


class Spelled:
    """A tokenizer of 1,000 ids whose special tokens are given."""

    def __init__(self, bos: int | None, eos: int | None, pad: int | None) -> None:
        self.bos_token_id, self.eos_token_id, self.pad_token_id = bos, eos, pad
        self.added_tokens_decoder = {n: SimpleNamespace(special=n == 800) for n in (800, 801)}

    def __len__(self) -> int:
        return 1000

    def __call__(self, text: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[9])

    @property
    def all_special_ids(self) -> list[int]:
        named = (self.bos_token_id, self.eos_token_id, self.pad_token_id)
        return [token for token in named if token is not None]

    def convert_ids_to_tokens(self, token: int) -> str:
        return f"token {token}"


@pytest.mark.parametrize(
    ("special", "row", "wanted"),
    [
        # Padded with EOS, as where there is no padding token: the first EOS ends the text.
        ((5, 6, None), [5, 20, 21, 6, 6, 6, 6, 6], [5, 20, 21, 6, -1, -1, -1, -1]),
        ((5, 6, 6), [6, 6, 6, 5, 20, 21, 22, 6], [5, 20, 21, 22, 6, -1, -1, -1]),
        # EOS between documents stands as it is, one at the beginning too.
        ((5, 6, None), [5, 20, 6, 21, 22, 6, 23, 24], [5, 20, 6, 21, 22, 6, 23, 24]),
        ((5, 6, None), [6, 20, 21, 22, 23, 24, 25, 26], [5, 6, 20, 21, 22, 23, 24, 25]),
        # One token for all ends.
        ((6, 6, 6), [6, 20, 21, 6, 6, 6, 6, 6], [6, 20, 21, 6, -1, -1, -1, -1]),
        ((6, 6, 6), [6, 6, 6, 6, 6, 20, 21, 22], [6, 20, 21, 22, -1, -1, -1, -1]),
        # No BOS at all.
        ((None, 6, 7), [20, 21, 22, 23, 7, 7, 7, 7], [20, 21, 22, 23, -1, -1, -1, -1]),
        ((None, 6, 7), [7, 7, 20, 21, 22, 23, 24, 25], [20, 21, 22, 23, 24, 25, -1, -1]),
        # One EOS in front of BOS fills up, as many do.
        ((5, 6, 6), [6, 5, 20, 21, 22, 23, 24, 6], [5, 20, 21, 22, 23, 24, 6, -1]),
        ((5, 6, None), [6, 5, 20, 6, 5, 21, 22, 23], [5, 20, 6, 5, 21, 22, 23, -1]),
        # A padding token of its own.
        ((5, 6, 7), [7, 7, 5, 20, 21, 22, 6, 23], [5, 20, 21, 22, 6, 23, -1, -1]),
    ],
)
def test_padding_of_any_tokenizer_is_left_out(
    special: tuple[int | None, int | None, int | None], row: list[int], wanted: list[int],
    source: Make, tmp_path: Path,
) -> None:  # fmt: skip
    path = write(tmp_path / "a.npy", [row])
    assert source(path, reserved=0, tokenizer=Spelled(*special)).take(1).tolist() == [wanted]


@pytest.mark.parametrize(
    ("special", "row", "wanted"),
    [
        ((5, 6, None), [5, 20, 21, 22, 6, 6, 6, 6], [5, 20, 21, 22, -1, -1, -1, -1]),
        ((5, 6, 6), [5, 20, 6, 21, 22, 23, 24, 6], [5, 20, 6, 21, 22, 23, 24, -1]),
        ((5, 6, None), [6, 20, 21, 22, 23, 24, 25, 26], [5, 20, 21, 22, 23, 24, 25, 26]),
        ((5, 6, None), [6, 6, 5, 20, 21, 22, 23, 24], [5, 20, 21, 22, 23, 24, -1, -1]),
        ((6, 6, 6), [6, 20, 21, 22, 6, 6, 6, 6], [6, 20, 21, 22, -1, -1, -1, -1]),
        ((None, 6, None), [6, 20, 21, 22, 23, 24, 25, 6], [20, 21, 22, 23, 24, 25, -1, -1]),
    ],
)
def test_eos_that_is_declared_as_padding_is_padding_throughout(
    special: tuple[int | None, int | None, int | None], row: list[int], wanted: list[int],
    source: Make, tmp_path: Path,
) -> None:  # fmt: skip
    path = write(tmp_path / "a.npy", [row])
    tokens = source(path, reserved=0, tokenizer=Spelled(*special), padding_id=6)
    assert tokens.take(1).tolist() == [wanted]


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "a.parquet", "a.jsonl"])
@pytest.mark.parametrize("padding", [-100, -1])
def test_padding_that_is_no_token_is_declared(name: str, padding: int, source: Make, tmp_path: Path) -> None:
    row, mask, wanted = LAYOUTS["both"]
    path = write_named(tmp_path / name, rows_of([[padding if one == P else one for one in row], WHOLE]))
    with pytest.raises(ConfigError, match=f"row 1: id {padding} of .* as data.padding_id"):
        source(path, reserved=0)
    tokens = source(path, reserved=0, padding_id=padding)
    assert sorted(tokens.take(2).tolist()) == sorted([wanted, WHOLE])
    assert tokens.facts()["places of padding, left out"] == mask.count(0)


@pytest.mark.parametrize(
    ("fill", "rows", "size", "refused"),
    [
        (800, 1, 8, True),  # a special token: one row is enough
        (800, 1, 7, False),
        (801, 1, 20, False),  # an added token of text
        (801, 2, 8, True),  # nowhere else in the file
        (20, 2, 20, False),  # a token of text, which other rows hold
    ],
)
@pytest.mark.parametrize("end", [0, 1])
def test_a_few_rows_padded_with_an_unknown_id_are_refused(
    fill: int, rows: int, size: int, refused: bool, end: int, source: Make, tmp_path: Path
) -> None:
    ids = np.random.default_rng(0).integers(10, 700, (200, 30))
    ids[100:, 12] = 20
    ids[40 : 40 + rows, slice(size) if end == 0 else slice(30 - size, 30)] = fill
    path = write(tmp_path / "a.npy", ids)
    spelled = Spelled(None, 6, None)
    if refused:
        with pytest.raises(ConfigError, match=rf"row 41: it (begins|ends) with {size} times id {fill}"):
            source(path, tokenizer=spelled)
        assert source(path, tokenizer=spelled, padding_id=999).facts()["rows"] == 200
    else:
        assert source(path, tokenizer=spelled).facts()["places of padding, left out"] == 0


@pytest.mark.parametrize(("end", "word"), [(0, "begins"), (1, "ends")])
def test_rows_that_seem_padded_with_an_unknown_id_are_refused(
    end: int, word: str, source: Make, tmp_path: Path
) -> None:
    ids = np.random.default_rng(0).integers(10, 900, (40, 30))
    for row, size in ((3, 5), (17, 9), (30, 4)):
        ids[row, slice(1, 1 + size) if end == 0 else slice(30 - size, 30)] = 2
    ids[:, 0] = 0
    path = write(tmp_path / "a.npy", ids)
    with pytest.raises(ConfigError, match=rf"row 4: it {word} with 5 times id 2 .* 2 other rows do"):
        source(path)
    assert source(path, padding_id=2).facts()["places of padding, left out"] == 18
    assert source(path, padding_id=999).facts()["places of padding, left out"] == 0


def test_rows_of_several_lengths_are_joined_and_cut(source: Make, tmp_path: Path) -> None:
    rows = [[0, *range(20, 25)], None, list(range(25, 28)), [0, *range(28, 40)]]
    pq.write_table(pa.table({"input_ids": rows}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    for name in ("a.parquet", "a.jsonl"):
        tokens = source(tmp_path / name, 8, reserved=0)
        flat = [token for row in rows for token in row or []]
        wanted = [[0, *flat[:7]], [0, *flat[7:14]], [0, *flat[14:21]]]
        wanted[0] = [*wanted[0][1:], -1]  # it begins with BOS of its own
        assert sorted(tokens.take(3).tolist()) == sorted(wanted)
        assert tokens.facts() == {
            "contexts cut behind BOS": 3, "rows without tokens, left out": 1,
            "places of padding, left out": 0,
        }  # fmt: skip
        with pytest.raises(ConfigError, match="rows that differ in length"):
            source(tmp_path / name)


def test_ends_of_documents_at_a_cut_are_no_padding(source: Make, tmp_path: Path) -> None:
    rows = [[5, 20, 21, 6], [5, 22, 23, 24, 6], [5, 25, 26, 6], [5, 27, 28]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    for padding_id in (None, 6):
        tokens = source(tmp_path / "a.jsonl", 6, 0, Spelled(5, 6, None), padding_id=padding_id)
        assert sorted(tokens.take(3).tolist()) == [
            [5, 20, 21, 6, 5, -1],
            [5, 22, 23, 24, 6, 5],
            [5, 25, 26, 6, 5, 27],
        ]
        assert tokens.facts()["places of padding, left out"] == 0


@pytest.mark.parametrize("kind", ["npy", "jsonl", "parquet"])
def test_ids_that_the_model_does_not_know_are_refused_by_row(
    kind: str, model: LanguageModel, tmp_path: Path
) -> None:
    ids = np.arange(2, 2 + 40).reshape(5, 8)
    ids[3, 4] = 900
    path = tmp_path / f"a.{kind}"
    if kind == "npy":
        write(path, ids)
    else:
        write_named(path, rows_of(ids))
    asked = TokenContexts(kind="tokens", path=path)
    assert TokenSource(asked, model.tokenizer, 1, 0, 1).facts()["rows"] == 5
    with pytest.raises(ConfigError, match=rf"a.{kind}', row 4: id 900 of a vocabulary of 900"):
        TokenSource(asked, model.tokenizer, 1, 0, 1, 900)
