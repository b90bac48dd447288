"""Malformed and unusual data sets: read as they should be, or refused by file, row and cause in one line."""

import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file

from iclens.cli import main
from iclens.core import PADDING, ConfigError
from iclens.model.load import LanguageModel
from iclens.training.config import TextContexts, TokenContexts, parse_train_config
from iclens.training.loop import train_saes
from iclens.training.text import TextSource
from iclens.training.tokens import NONE, ONE, SEVERAL, TokenSource

Declare = Callable[..., dict[str, Any]]
LINE = "(1, 5)\n(2, 7)\n(3, 9)\n"
GOOD = [json.dumps({"text": LINE})] * 12
Write = Callable[[Path], object]


def lines(*bad: str | bytes, name: str = "a.jsonl", ending: bytes = b"\n") -> tuple[str, Write]:
    """Twelve good lines of JSON, with these from the fifth on."""
    parts = [*GOOD[:4], *bad, *GOOD[4:]]
    content = ending.join(part if isinstance(part, bytes) else part.encode() for part in parts) + ending
    return name, lambda path: path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


def raw(name: str, content: bytes) -> tuple[str, Write]:
    return name, lambda path: path.write_bytes(content)


def column(values: Any, kind: pa.DataType | None = None, name: str = "text") -> tuple[str, Write]:
    return "a.parquet", lambda path: pq.write_table(pa.table({name: pa.array(values, kind)}), path)


def unchecked(values: list[str | bytes], kind: pa.DataType) -> tuple[str, Write]:
    """A column that says it is text, of bytes that are none."""
    wide = pa.large_binary() if pa.types.is_large_string(kind) else pa.binary()
    content = pa.array([v if isinstance(v, bytes) else v.encode() for v in values], wide)
    return column(pa.Array.from_buffers(kind, len(content), content.buffers()))


def cut(made: tuple[str, Write], share: float) -> tuple[str, Write]:
    """The same file, of which only a share was written."""
    name, write = made

    def half(path: Path) -> None:
        write(path)
        os.truncate(path, int(share * path.stat().st_size))

    return name, half


def spoilt(made: tuple[str, Write], byte: int) -> tuple[str, Write]:
    """The same file, with zeros from a byte on."""
    name, write = made

    def spoil(path: Path) -> None:
        write(path)
        content = bytearray(path.read_bytes())
        content[byte : byte + 40] = bytes(len(content[byte : byte + 40]))
        path.write_bytes(content)

    return name, spoil


def compressed(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


WHOLE = "\n".join(GOOD).encode()
TEXTS = [LINE] * 12
# name → (the file, what its refusal says; empty where it is read)
TEXT: dict[str, tuple[tuple[str, Write], str]] = {
    "null": (lines('{"text": null}'), ""),
    "missing field": (lines('{"title": "x"}'), ""),
    "empty text": (lines('{"text": ""}'), ""),
    "blank lines": (lines("", "   ", "\t"), ""),
    "other fields": (lines('{"text": "(1, 5)\\n", "text2": [1], "meta": {"text": 3}}'), ""),
    "a field twice": (lines('{"text": 3, "text": "(1, 5)\\n"}'), ""),
    "half a pair": (lines('{"text": "\\ud83d"}', '{"text": "\\ude00(1"}'), ""),
    "a pair": (lines('{"text": "\\ud83d\\ude00"}'), ""),
    "zero byte": (lines('{"text": "a\\u0000b"}'), ""),
    "windows": (lines(ending=b"\r\n"), ""),
    "byte order mark": (raw("a.jsonl", b"\xef\xbb\xbf" + WHOLE), ""),
    "no last newline": (raw("a.jsonl", WHOLE), ""),
    "very long": (lines(json.dumps({"text": LINE * 3000})), ""),
    "special tokens": (lines('{"text": "<|begin_of_text|><|begin_of_text|>(1, 5)\\n<unk>"}'), ""),
    "NaN beside": (lines('{"text": "(1, 5)\\n", "score": NaN, "more": Infinity}'), ""),
    "right to left": (lines('{"text": "\\u202e\\u05d0 \\u0301"}'), ""),
    "json": (lines(name="a.json"), ""),
    "gzip": (lines(name="a.jsonl.gz"), ""),
    "json gzip": (lines(name="a.json.gz"), ""),
    "two gzips": (raw("a.jsonl.gz", gzip.compress(WHOLE + b"\n") * 2), ""),
    "zstd": (raw("a.jsonl.zst", compressed(WHOLE)), ""),
    "text gzip": (raw("a.txt.gz", gzip.compress(LINE.encode() * 12)), ""),
    "number": (lines('{"text": 3}'), "line 5: it holds a number in 'text'"),
    "float": (lines('{"text": 3.5}'), "line 5: it holds a number"),
    "bool": (lines('{"text": true}'), "line 5: it holds true or false"),
    "list": (lines('{"text": ["a"]}'), "line 5: it holds a list"),
    "messages": (lines('{"text": [{"role": "user"}]}'), "line 5: it holds a list"),
    "object": (lines('{"text": {"a": 1}}'), "line 5: it holds an object"),
    "a bare list": (lines("[1, 2]"), "line 5: it is a list"),
    "a bare text": (lines('"text"'), "line 5: it is str"),
    "a bare null": (lines("null"), "line 5: it is NoneType"),
    "a bare number": (lines("7"), "line 5: it is a number"),
    "torn": (lines('{"text": "(1, '), "line 5: it is not JSON"),
    "torn at the end": (raw("a.jsonl", WHOLE + b'\n{"text": "(1'), "line 13: it is not JSON"),
    "single quotes": (lines("{'text': 'x'}"), "line 5: it is not JSON"),
    "two in a line": (lines('{"text": "a"}{"text": "b"}'), "line 5: it is not JSON"),
    "a comma behind": (lines('{"text": "a"},'), "line 5: it is not JSON"),
    "an array over lines": (
        raw("a.json", b"[\n" + b",\n".join(WHOLE.split(b"\n")) + b"\n]"),
        "line 1: it is a list.*Save one object a line",
    ),
    "an array in a line": (
        raw("a.json", b"[" + WHOLE.replace(b"\n", b",") + b"]"), "line 1: it is a list.*Save one object a"
    ),
    "raw newline": (lines('{"text": "a', 'b"}'), "line 5: it is not JSON"),
    "latin-1": (lines(b'{"text": "caf\xe9"}'), "line 5: it is not UTF-8"),
    "utf-16": (raw("a.jsonl", WHOLE.decode().encode("utf-16")), "line 1"),
    "deep": (lines("[" * 100_000), "line 5: it is not JSON"),
    "digits": (lines('{"text": ' + "9" * 5000 + "}"), "line 5: it is not JSON"),
    "another field": (raw("a.jsonl", WHOLE.replace(b'"text"', b'"body"')), "no row has the field 'text'"),
    "another case": (raw("a.jsonl", WHOLE.replace(b'"text"', b'"Text"')), r"last one read has \['Text'\]"),
    "all null": (raw("a.jsonl", b'{"text": null}\n' * 12), r"\(12 rows have no text"),
    "nothing": (raw("a.jsonl", b""), "it holds 0 contexts"),
    "too short": (raw("a.jsonl", b'{"text": "(1, 5)"}'), "it holds 0 contexts"),
    "cut gzip": (cut(lines(name="a.jsonl.gz"), 0.5), "it cannot be read behind row"),
    "spoilt gzip": (spoilt(lines(name="a.jsonl.gz"), 30), "a.jsonl.gz'"),
    "no gzip": (raw("a.jsonl.gz", WHOLE), "it cannot be read behind row 0"),
    "cut zstd": (cut(raw("a.jsonl.zst", compressed(WHOLE)), 0.5), "it cannot be read behind row"),
    "no zstd": (raw("a.jsonl.zst", WHOLE), "it cannot be read behind row 0"),
    "txt, latin-1": (raw("a.txt", LINE.encode() * 4 + b"caf\xe9\n"), "line 13: it is not UTF-8"),
    "txt, byte order mark": (raw("a.txt", b"\xef\xbb\xbf" + LINE.encode() * 12), ""),
    "csv": (raw("a.csv", WHOLE), "not a file of .jsonl"),
    "zip": (raw("a.jsonl.zip", WHOLE), "not a file of"),
    "xz": (raw("a.jsonl.xz", WHOLE), "not a file of"),
    "parquet": (column(TEXTS), ""),
    "parquet, nulls": (column([None, *TEXTS, None]), ""),
    "parquet, large": (column(TEXTS, pa.large_string()), ""),
    "parquet, view": (column(TEXTS, pa.string_view()), ""),
    "parquet, names": (
        column(pa.array(TEXTS).dictionary_encode()), ""
    ),
    "parquet, lists": (column([["a"]] * 12), "row 1: it holds a list in 'text'"),
    "parquet, one list": (column([None, None, [LINE]]), "row 3: it holds a list"),
    "parquet, text as bytes": (column([text.encode() for text in TEXTS]), ""),
    "parquet, large bytes": (column([text.encode() for text in TEXTS], pa.large_binary()), ""),
    "parquet, bytes": (column([b"\xff"] * 3), "row 1: it is not UTF-8"),
    "parquet, latin-1": (unchecked([*TEXTS[:4], b"\xe9"], pa.string()), "row 5: it is not UTF-8"),
    "parquet, large latin-1": (unchecked([*TEXTS[:4], b"\xe9"], pa.large_string()), "row 5: it is not UTF-8"),
    "parquet, numbers": (column([1, 2]), "row 1: it holds a number"),
    "parquet, structs": (column([{"a": 1}]), "row 1: it holds an object"),
    "parquet, all null": (column([None] * 3), r"it holds 0 contexts .*\(3 rows have no text"),
    "parquet, no rows": (column([], pa.string()), "it holds 0 contexts"),
    "parquet, other column": (column(TEXTS, name="body"), r"no column 'text', but \['body'\]"),
    "parquet, cut": (cut(column(TEXTS), 0.5), "it cannot be read"),
    "parquet, spoilt": (spoilt(column([LINE * n for n in range(40)]), 60), "a.parquet'"),
    "parquet, JSON": (raw("a.parquet", WHOLE), "it cannot be read"),
    "parquet, nothing": (raw("a.parquet", b""), "it cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXT)
def test_text_is_read_or_refused_by_file_row_and_cause(
    name: str, model: LanguageModel, tmp_path: Path
) -> None:
    (file, write), words = TEXT[name]
    write(tmp_path / file)
    asked = TextContexts(kind="text", dataset=str(tmp_path / file), context_tokens=16)

    def read() -> np.ndarray:
        source = TextSource(asked, model.tokenizer, 2)
        return np.concatenate([source.held_out(2), source.take(40)])

    if words:
        with pytest.raises(ConfigError, match=words) as caught:
            read()
        assert "\n" not in str(caught.value) and str(tmp_path / file) in str(caught.value)
        return
    contexts = read()
    assert contexts.shape == (42, 16) and (contexts[:, 0] == model.tokenizer.bos_token_id).all()
    assert contexts.min() >= 0 and contexts.max() < len(model.tokenizer)


IDS = np.arange(2, 2 + 12 * 16).reshape(12, 16)
IDS[:, 0] = 0


def changed(pos: tuple[int, int], value: Any, dtype: Any = None) -> np.ndarray:
    ids = IDS.astype(dtype or IDS.dtype)
    ids[pos] = value
    return ids


def npy(ids: Any) -> tuple[str, Write]:
    return "a.npy", lambda path: np.save(path, np.asarray(ids), allow_pickle=True)


def tensors(**arrays: Any) -> tuple[str, Write]:
    return "a.safetensors", lambda path: save_file({k: torch.as_tensor(x) for k, x in arrays.items()}, path)


def zipped(**arrays: Any) -> tuple[str, Write]:
    return "a.npz", lambda path: np.savez(path, **arrays)


def listed(
    rows: Any, kind: pa.DataType | None = None, mask: Any = None, name: str = "input_ids"
) -> tuple[str, Write]:
    columns = {name: pa.array(rows, kind)} | ({} if mask is None else {"attention_mask": pa.array(mask)})
    return "a.parquet", lambda path: pq.write_table(pa.table(columns), path)


def json_rows(*rows: Any) -> tuple[str, Write]:
    return "a.jsonl", lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in rows))


EVERY = IDS.tolist()
ALL = np.ones_like(IDS)
TOKENS: dict[str, tuple[tuple[str, Write], str]] = {
    "int16": (npy(IDS.astype(np.int16)), ""),
    "uint64": (npy(IDS.astype(np.uint64)), ""),
    "fortran": (npy(np.asfortranarray(IDS)), ""),
    "big endian": (npy(IDS.astype(">i4")), ""),
    "some without BOS": (npy(changed((4, 0), 9)), ""),
    "BOS inside": (npy(changed((4, 7), 0)), ""),
    "a masked id": (zipped(input_ids=changed((4, 7), -100), attention_mask=ALL), "row 5: id -100"),
    "a bad id where there is no token": (
        zipped(input_ids=changed((4, 15), -100), attention_mask=np.where(IDS[4, 15] == IDS, 0, 1)), ""
    ),
    "bool mask": (zipped(input_ids=IDS, attention_mask=ALL == 1), ""),
    "float mask": (zipped(input_ids=IDS, attention_mask=ALL * 1.0), ""),
    "mask of twos": (zipped(input_ids=IDS, attention_mask=ALL * 2), "row 1: 'attention_mask' is not 0"),
    "NaN mask": (zipped(input_ids=IDS, attention_mask=ALL * np.nan), "row 1: 'attention_mask' is not 0"),
    "short mask": (zipped(input_ids=IDS, attention_mask=ALL[:5]), r"has the shape \[5, 16\]"),
    "flat mask": (zipped(input_ids=IDS, attention_mask=ALL.ravel()), r"has the shape \[192\]"),
    "mask alone": (zipped(attention_mask=ALL), "it holds 0 arrays besides a mask"),
    "two arrays": (tensors(first=IDS, second=IDS + 1), "it holds 2 arrays besides a mask"),
    "arrays beside, tensors": (tensors(input_ids=IDS, labels=IDS + 1, token_type_ids=ALL), ""),
    "arrays beside, zip": (zipped(input_ids=IDS, attention_mask=ALL, token_type_ids=ALL * 0), ""),
    "arrays beside, tokens": (zipped(ids=IDS[:, ::-1], tokens=IDS), ""),
    "no array": (tensors(), "it holds 0 arrays"),
    "too large": (npy(changed((6, 3), 1078)), "row 7: id 1078 of a vocabulary of 1078"),
    "negative": (npy(changed((6, 3), -1)), "row 7: id -1"),
    "huge": (npy(changed((6, 3), 2**63, np.uint64)), "row 7: id -9223372036854775808"),
    "float": (npy(IDS * 1.0), "it holds float64 of shape"),
    "NaN": (npy(changed((0, 0), np.nan, float)), "it holds float64 of shape"),
    "half": (tensors(input_ids=torch.ones(9, 8, dtype=torch.float16)), "it holds float16 of shape"),
    "bfloat16": (tensors(input_ids=torch.ones(9, 8, dtype=torch.bfloat16)), "cannot be read"),
    "bool": (npy(IDS > 3), "it holds bool of shape"),
    "text": (npy([["a", "b"]]), "it holds <U1 of shape"),
    "ragged": (npy(np.array([[1, 2], [1]], dtype=object)), "cannot be read"),
    "three axes": (npy(IDS[None]), r"it holds int64 of shape \[1, 12, 16\]"),
    "no axis": (npy(7), r"it holds int64 of shape \[\]"),
    "no rows": (npy(IDS[:0]), r"it holds int64 of shape \[0, 16\]"),
    "no columns": (npy(IDS[:, :0]), r"it holds int64 of shape \[12, 0\]"),
    "one column": (npy(IDS[:, 1:2]), "it holds 12 contexts, none left to train on|looks like"),
    "only BOS": (npy(IDS * 0), "it holds 12 contexts, none left to train on"),
    "few rows": (npy(IDS[:2]), "it holds 2 contexts, none left to train on"),
    "unknown padding": (npy(np.where(np.arange(16) > 8, 1, IDS)), "row 1: it ends with 7 times id 1"),
    "flat": (npy(IDS.ravel()), "flat or of rows that differ in length"),
    "cut": (cut(npy(IDS), 0.5), "cannot be read"),
    "nothing": (raw("a.npy", b""), "cannot be read"),
    "JSON as npy": (raw("a.npy", b"[[1, 2]]"), "cannot be read"),
    "cut tensors": (cut(tensors(input_ids=IDS), 0.5), "cannot be read"),
    "cut zip": (cut(zipped(input_ids=IDS), 0.5), "cannot be read"),
    "spoilt zip": (spoilt(zipped(input_ids=IDS), 80), "cannot be read"),
    "parquet": (listed(EVERY), ""),
    "parquet, int32": (listed(EVERY, pa.list_(pa.int32())), ""),
    "parquet, large": (listed(EVERY, pa.large_list(pa.uint16())), ""),
    "parquet, fixed": (listed(EVERY, pa.list_(pa.int64(), 16)), ""),
    "parquet, tokens": (listed(EVERY, name="tokens"), ""),
    "parquet, null rows": (listed([None, *EVERY, None]), ""),
    "parquet, null id": (listed([*EVERY[:3], [0, 5, None, *range(13)]]), "row 4: a token id or mask is null"),
    "parquet, floats": (listed((IDS * 1.0).tolist()), "lists of whole numbers"),
    "parquet, NaN": (listed([[float("nan")] * 4] * 4), "lists of whole numbers"),
    "parquet, text": (listed([["a"]] * 4), "lists of whole numbers"),
    "parquet, no lists": (listed([1, 2, 3]), "not lists of whole numbers"),
    "parquet, other names": (listed(EVERY, name="ids"), r"it has \['ids'\]. Name the token ids 'input_ids'"),
    "parquet, empty lists": (listed([[]] * 4, pa.list_(pa.int64())), "it holds no token ids"),
    "parquet, no rows": (listed([], pa.list_(pa.int64())), "it holds no token ids"),
    "parquet, ragged": (listed([row[: 5 + n] for n, row in enumerate(EVERY)]), "rows that differ in length"),
    "parquet, short mask": (listed(EVERY, mask=[[1] * 16] * 11 + [[1] * 9]), "row 12: 16 ids and 'att"),
    "parquet, null mask": (listed(EVERY, mask=[[1] * 16] * 11 + [None]), "row 12: a token id or mask"),
    "parquet, float mask": (listed(EVERY, mask=[[1.0] * 16] * 12), ""),
    "parquet, bool mask": (listed(EVERY, mask=[[True] * 16] * 12), ""),
    "parquet, half mask": (listed(EVERY, mask=[[1.0] * 16] * 11 + [[0.5] * 16]), "row 12: 16 ids and 'att"),
    "parquet, bools": (listed([[True] * 4] * 4), "lists of whole numbers"),
    "parquet, an empty row": (listed([*EVERY[:4], [], *EVERY[4:]]), ""),
    "parquet, negative": (listed([*EVERY[:7], [0, *range(14), -7]]), "row 8: id -7 of a vocabulary"),
    "parquet, cut": (cut(listed(EVERY), 0.5), "cannot be read"),
    "lines": (json_rows(*({"input_ids": row} for row in EVERY)), ""),
    "lines, a null": (json_rows({"input_ids": None}, *({"input_ids": row} for row in EVERY)), ""),
    "lines, bool mask": (json_rows(*({"input_ids": r, "attention_mask": [True] * 16} for r in EVERY)), ""),
    "lines, float mask": (json_rows(*({"input_ids": r, "attention_mask": [1.0] * 16} for r in EVERY)), ""),
    "lines, half mask": (json_rows({"tokens": [2], "attention_mask": [0.5]}), "line 1: 'attention_mask' is"),
    "lines, empty rows": (json_rows({"tokens": []}, *({"tokens": row} for row in EVERY), {"tokens": []}), ""),
    "lines, all empty": (json_rows({"input_ids": []}, {"input_ids": []}), "it holds no token ids"),
    "lines, some masks": (json_rows({"tokens": [2]}, {"tokens": [3], "attention_mask": [1]}), "line 2: some"),
    "lines, text": (json_rows({"input_ids": "1 2 3"}), "line 1: 'input_ids' is no list of whole numbers"),
    "lines, nested": (json_rows({"input_ids": [[1, 2]]}), "line 1: 'input_ids' is no list of whole numbers"),
    "lines, large": (json_rows({"input_ids": [10**30]}), "line 1: 'input_ids' is no list of whole numbers"),
    "lines, nothing": (raw("a.jsonl", b""), "it holds no token ids"),
    "lines, floats": (json_rows({"tokens": [2]}, {"tokens": [2, 3.5]}), "line 2: 'tokens' is no list of"),
    "lines, other names": (json_rows({"text": "1"}), r"line 1: it has \['text'\]. Name the token ids"),
    "lines, lists": (json_rows([2, 3]), "line 1: it is no object with 'input_ids'"),
    "lines, torn": (raw("a.jsonl", b'{"input_ids": [2, 3'), "line 1: it is not JSON"),
    "pickle": (raw("a.pt", b"\x80\x04."), "not one of .npy"),
    "arrow": (raw("a.arrow", b"ARROW1"), "not one of .npy"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENS)
def test_token_ids_are_read_or_refused_by_file_row_and_cause(
    name: str, model: LanguageModel, tmp_path: Path
) -> None:
    (file, write), words = TOKENS[name]
    write(tmp_path / file)
    asked = TokenContexts(kind="tokens", path=tmp_path / file)

    def read() -> np.ndarray:
        source = TokenSource(asked, model.tokenizer, 2, 0, 1)
        return np.concatenate([source.held_out(2), source.take(30)])

    if words:
        with pytest.raises(ConfigError, match=words) as caught:
            read()
        assert "\n" not in str(caught.value) and str(tmp_path / file) in str(caught.value)
        return
    contexts = read()
    assert contexts.shape == (32, 16) and (contexts[:, 0] == 0).all()
    assert contexts.min() >= PADDING and contexts.max() < len(model.tokenizer)


@pytest.fixture(scope="module")
def documents(model: LanguageModel) -> list[list[int]]:
    """Tokens of 300 prompts of different lengths, without BOS."""
    rng = np.random.default_rng(0)
    texts = (
        "".join(f"({a}, {2 * a + 3})\n" for a in rng.integers(0, 99, n)) for n in rng.integers(1, 6, 300)
    )
    return [model.tokenizer("\n" + text, add_special_tokens=False).input_ids for text in texts]


def layouts(documents: list[list[int]]) -> Iterator[tuple[str, list[list[int]], list[list[int]]]]:
    """Name, ids and mask of the same contexts: padded on either side, behind no BOS, one and two."""
    for n_bos in (0, 1, 2):
        rows = [[0] * n_bos + ids for ids in documents]
        fill = [34 - len(row) for row in rows]
        pairs = list(zip(rows, fill, strict=True))
        yield f"right{n_bos}", [r + [1] * f for r, f in pairs], [[1] * len(r) + [0] * f for r, f in pairs]
        yield f"left{n_bos}", [[1] * f + r for r, f in pairs], [[0] * f + [1] * len(r) for r, f in pairs]


def test_padding_and_what_rows_begin_with_change_nothing(
    short: Declare, documents: list[list[int]], tmp_path: Path
) -> None:
    found = {}
    for name, ids, mask in layouts(documents):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"input_ids": ids, "attention_mask": mask}), path)
        declared = short(training={**short()["training"], "tokens": 2048, "buffer_tokens": 1024})
        declared["data"] = {"kind": "tokens", "path": str(path)}
        told: list[dict[str, Any]] = []
        out = train_saes(parse_train_config(declared), tmp_path / name, told.append)
        card = json.loads((out / "card.json").read_text())
        assert 0 < card["quality"][0]["ce_recovered"] < 1 and "rows" in told[1]["data"]
        weights = (out / "L1.resid_post" / "sae_weights.safetensors").read_bytes()
        found[name] = weights, [{**row, "sae_id": ""} for row in card["quality"]]
        assert [card["data"][kind] for kind in (NONE, ONE, SEVERAL)] == [300 * (name[-1] == n) for n in "012"]
    first = found.pop("right0")
    assert all(other == first for other in found.values())


CLI = ["torn", "number", "cut gzip", "parquet, lists", "another field", "half a pair"]


@pytest.mark.parametrize("name", CLI)
def test_the_command_line_says_it_in_one_line(
    name: str,
    short: Declare,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (file, write), words = TEXT[name]
    write(tmp_path / file)
    declared = short(training={**short()["training"], "tokens": 512, "buffer_tokens": 1024})
    declared["data"] = {"kind": "text", "dataset": file, "context_tokens": 16}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(declared | {"held_out": {"contexts": 2}}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["iclens", "train", "c.yaml", "--out", "o"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == (2 if words else 0)
    if words:
        line = said.splitlines()[-1]
        assert line.startswith("iclens: ") and file in line and said.count("iclens: ") == 1
    else:
        assert "rows with half of a surrogate pair, read as U+FFFD: " in said
