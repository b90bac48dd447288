"""Running text: packed behind BOS, entered anywhere exactly, and refused in one line when it cannot serve."""

import errno
import gzip
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iclens.core import ConfigError
from iclens.model.load import LanguageModel
from iclens.training.config import TextContexts
from iclens.training.text import ROWS, TextSource, open_documents

Make = Callable[..., TextSource]
TEXTS = [" ".join(map(str, range(n, n + 5 * n))) for n in (2, 8, 5, 14, 3, 11)]
KINDS = ("jsonl", "parquet", "txt")


@pytest.fixture
def source(model: LanguageModel) -> Make:
    def make(path: Path | str, reserved: int = 2, **settings: Any) -> TextSource:
        asked = TextContexts.model_validate(
            {"kind": "text", "dataset": str(path), "context_tokens": 10, **settings}
        )
        return TextSource(asked, model.tokenizer, reserved)

    return make


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write(folder: Path, kind: str, texts: list[str] = TEXTS) -> str:
    """The texts in two files of a kind; the glob that finds them."""
    for name, part in (("a", texts[:4]), ("b", texts[4:])):
        path = folder / f"{name}.{kind}"
        if kind == "jsonl":
            path.write_text("".join(json.dumps({"text": text}) + "\n\n" for text in part))
        elif kind == "parquet":
            pq.write_table(pa.table({"text": part, "n": range(len(part))}), path, row_group_size=3)
        else:
            path.write_text("".join(text + "\n" for text in part))
    return str(folder / f"*.{kind}")


def test_text_is_packed_behind_bos_and_read_again(source: Make, tmp_path: Path, model: LanguageModel) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    bos = model.tokenizer.bos_token_id
    ids = [i for text in TEXTS for i in model.tokenizer(text, add_special_tokens=False).input_ids]
    contexts = [[bos, *ids[i : i + 9]] for i in range(0, len(ids) - 8, 9)]
    text = source(path)
    assert text.held_out(2).tolist() == contexts[:2]
    streamed = [row for _ in range(40) for row in text.take(3).tolist()]
    assert len(streamed) > 2 * len(contexts[2:])
    assert streamed == (contexts[2:] * 3)[:120]
    assert text.held_out(2).tolist() == contexts[:2]


@pytest.mark.parametrize("kind", KINDS)
def test_documents_can_be_entered_after_each_of_them(kind: str, tmp_path: Path) -> None:
    documents = open_documents(settings(write(tmp_path, kind)))
    whole = list(documents.read())
    assert [str(text).strip() for text, _ in whole] == TEXTS
    for number, (_, place) in enumerate(whole):
        assert list(documents.read(json.loads(json.dumps(place)))) == whole[number + 1 :]


@pytest.mark.parametrize("kind", KINDS)
def test_text_goes_on_where_its_state_was_taken(kind: str, source: Make, tmp_path: Path) -> None:
    name = write(tmp_path, kind)
    text = source(name)
    wanted = [text.take(1) for _ in range(60)]
    text = source(name)
    for number in range(25):
        again = source(name)
        again.take(number % 3 + 1)
        again.restore(json.loads(json.dumps(text.state())))
        for offset in range(25):
            np.testing.assert_array_equal(again.take(1), wanted[number + offset])
        text.take(1)


def test_a_streamed_dataset_goes_on_where_its_state_was_taken(
    source: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = datasets.Dataset.from_list([{"text": text} for text in TEXTS])
    asked: list[Any] = []

    def load(*args: Any, **settings: Any) -> datasets.IterableDataset:
        asked.append((args, settings))
        return rows.to_iterable_dataset(num_shards=2)

    monkeypatch.setattr(datasets, "load_dataset", load)
    local = source(jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS]))
    text = source("someone/texts", subset="small")
    for _ in range(60):
        again = source("someone/texts", subset="small")
        again.restore(json.loads(json.dumps(text.state())))
        wanted = local.take(1)
        np.testing.assert_array_equal(again.take(1), wanted)
        np.testing.assert_array_equal(text.take(1), wanted)
    assert asked[0] == (("someone/texts", "small"), {"split": "train", "streaming": True})


def test_other_files_are_not_gone_on_with(source: Make, tmp_path: Path) -> None:
    name = write(tmp_path, "jsonl")
    state = source(name).state()
    jsonl(tmp_path / "c.jsonl", [{"text": "1 2 3"}])
    with pytest.raises(ConfigError, match=r"training began with: it is \['a.jsonl', 'b.jsonl', 'c"):
        source(name).restore(state)


def settings(dataset: str) -> TextContexts:
    return TextContexts(kind="text", dataset=dataset)


@pytest.mark.parametrize(
    ("rows", "asked", "words"),
    [
        ([{"text": "1 2 3"}], {}, "it holds 0 contexts of 10 tokens, none left to train on"),
        ([{"text": TEXTS[1]}], {"context_tokens": 60}, "it holds 1 contexts of 60 tokens"),
    ],
)
def test_text_that_cannot_serve_is_refused(
    source: Make, tmp_path: Path, rows: list[Any], asked: dict[str, Any], words: str
) -> None:
    path = jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(ConfigError, match=words):
        source(path, **asked).held_out(2)
    with pytest.raises(ConfigError, match=words):
        source(path, **asked).take(1)


def test_a_text_wholly_held_out_is_refused(source: Make, tmp_path: Path) -> None:
    text = source(jsonl(tmp_path / "a.jsonl", [{"text": " ".join(map(str, range(10)))}]))
    assert len(text.held_out(2)) == 2
    with pytest.raises(ConfigError, match="it holds 2 contexts of 10 tokens, none left"):
        text.take(1)


@pytest.mark.parametrize("name", ["no.jsonl", "no-*.parquet", "deep/**/no.txt"])
def test_missing_files_are_refused(source: Make, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        source(tmp_path / name)


STANDING = ["1 2 3 4 5 6 7 8 9 10", None, "11 12 13 14 15 16 17 18 19 20 21", "22 \ud83d 23 24", "25 26 27"]


def write_rows(path: Path, rows: list[str | None]) -> Path:
    """Rows of which some have no text and one a lone surrogate, as the file's name says."""
    lines = "".join(
        json.dumps({} if n % 2 and text is None else {"text": text}) + "\n" for n, text in enumerate(rows)
    )
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".zst":
        path.write_bytes(pa.compress(lines.encode(), codec="zstd", asbytes=True))
    elif path.suffix == ".parquet":
        kinds = {"large.parquet": pa.large_string(), "names.parquet": pa.dictionary(pa.int32(), pa.string())}
        texts = [None if text is None else text.replace("\ud83d", "\ufffd") for text in rows]
        pq.write_table(pa.table({"text": pa.array(texts).cast(kinds.get(path.name, pa.string()))}), path)
    else:
        path.write_text(lines)
    return path


NAMES = ["a.jsonl", "a.json.gz", "a.jsonl.zst", "a.parquet", "large.parquet", "names.parquet"]


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_text_are_skipped_and_half_pairs_read(name: str, source: Make, tmp_path: Path) -> None:
    text = source(write_rows(tmp_path / name, [None, *STANDING, *STANDING]), reserved=0)
    whole = source(
        write_rows(
            tmp_path / "b.jsonl", [(t or "").replace("\ud83d", "\ufffd") for t in [*STANDING, *STANDING]]
        ),
        0,
    )
    np.testing.assert_array_equal(text.take(5), whole.take(5))
    assert list(text.facts().values()) == [5, 2, 0 if "parquet" in name else 1]
    again = source(tmp_path / name, reserved=0)
    again.restore(json.loads(json.dumps(text.state())))
    assert again.facts() == text.facts()
    np.testing.assert_array_equal(again.take(9), text.take(9))
    text.take(50)  # a text read again is counted once
    again.restore(json.loads(json.dumps(text.state())))
    again.take(50)
    assert list(text.facts().values()) == [11, 3, 0 if "parquet" in name else 2]
    assert again.facts() == text.facts()


@pytest.mark.parametrize(("name", "unit"), [("a.jsonl", "line"), ("a.json.gz", "line"), ("a.parquet", "row")])
def test_text_of_tokens_that_the_model_does_not_know_is_refused(
    name: str, unit: str, model: LanguageModel, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / name, ["1", None, "5", "9 8"])
    known = model.tokenizer.convert_tokens_to_ids(" ")
    asked = TextContexts(kind="text", dataset=str(path), context_tokens=4)
    with pytest.raises(ConfigError, match=rf"{name}', {unit} 4: its text holds token {known}, and the model"):
        (text := TextSource(asked, model.tokenizer, 0, known)).take(9)
    write_rows(path, ["1", None, "5", "98"])
    again = TextSource(asked, model.tokenizer, 0, known)
    again.restore(json.loads(json.dumps(text.state())))
    again.take(1)
    assert again.facts()[ROWS] == 4


def mended(rows: list[str | None]) -> dict[str, list[str | None]]:
    """The rows after a user mended them: one behind, one before, one removed before, two put in before."""
    return {
        "behind": [*rows[:-1], "28"],
        "before": ["100 200 300 1 2", *rows[1:]],
        "shorter": rows[1:],
        "longer": ["1", "2", *rows],
    }


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.json.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("change", mended([""]))
def test_text_goes_on_after_other_rows_were_mended(
    name: str, change: str, source: Make, tmp_path: Path
) -> None:
    def write(rows: list[str | None]) -> Path:
        if name != "a.txt":
            return write_rows(tmp_path / name, rows)
        (tmp_path / name).write_text("".join(f"{row}\n" for row in rows))
        return tmp_path / name

    rows: list[str | None] = [" ".join(map(str, range(n, n + 12))) for n in range(0, 200, 10)]
    text = source(write(rows), reserved=0)
    text.take(6)
    state = json.loads(json.dumps(text.state()))
    wanted = text.take(4)
    again = source(write(mended(rows)[change]), reserved=0)
    again.restore(state)
    np.testing.assert_array_equal(again.take(4), wanted)
    gone = source(write([f"{row} 1" for row in rows]), reserved=0)
    with pytest.raises(ConfigError, match="not the text that training began with: the row at which"):
        gone.restore(state)


class Stream:
    """Rows of numbers that break off with an error before some of them, `times` at each."""

    def __init__(self, error: Exception, before: Sequence[int], times: int, steps: int = 1) -> None:
        self.error, self.left, self.steps = error, dict.fromkeys(before, times), steps
        self.at = 0

    def __iter__(self) -> Iterator[dict[str, str]]:
        for number in range(self.at - self.at % self.steps, 40):
            self.at = number
            if self.left.get(self.at, 0):
                self.left[self.at] -= 1
                raise self.error
            yield {"text": f" {self.at}"}

    def state_dict(self) -> dict[str, int]:
        return {"example": (self.at + 1) // self.steps * self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["example"]


def status(code: int) -> Exception:
    error = ValueError(f"status {code}")
    error.response = SimpleNamespace(status_code=code)  # pyright: ignore[reportAttributeAccessIssue]
    return error


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


BREAKS = {
    "timeout": httpx.ReadTimeout("The read operation timed out"),
    "closed": RuntimeError("Cannot send a request, as the client has been closed."),
    "reset": ConnectionResetError("reset by peer"),
    "busy": status(503),
    "many": status(429),
    "no route": OSError(errno.ENETUNREACH, "Network is unreachable"),
    "disk": OSError(errno.EIO, "Input/output error"),
    "no name": socket.gaierror(-3, "Temporary failure in name resolution"),
    "wrapped": caused(ValueError("generation failed"), httpx.ConnectError("no route")),
}
ENDS = {
    "script": RuntimeError("Dataset scripts are no longer supported, but found corpus.py"),
    "gated": caused(FileNotFoundError("a gated dataset"), status(403)),
    "missing": status(404),
    "schema": pa.ArrowInvalid("column 'text' of another type"),
    "address": httpx.InvalidURL("Invalid port"),
    "protocol": httpx.UnsupportedProtocol("Request URL has an unsupported protocol"),
    "no such file": OSError(errno.ENOENT, "No such file"),
    "offline": type("OfflineModeIsEnabled", (ConnectionError,), {})("offline mode"),
}


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that reading would have waited."""
    found: list[float] = []
    monkeypatch.setattr("iclens.training.text.time.sleep", found.append)
    return found


def stream(monkeypatch: pytest.MonkeyPatch, rows: Any) -> Iterator[tuple[str | None, Any]]:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    return open_documents(settings("someone/texts")).read()


@pytest.mark.parametrize("name", BREAKS)
@pytest.mark.parametrize("steps", [1, 4, 100])
def test_a_stream_that_breaks_off_is_entered_again(
    name: str, steps: int, waited: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = stream(monkeypatch, Stream(BREAKS[name], (0, 7, 8, 30), 2, steps))
    assert [text for text, _ in rows] == [f" {n}" for n in range(40)]
    assert waited == [1, 2] * 4


@pytest.mark.parametrize("name", BREAKS)
def test_a_stream_that_stays_broken_ends_in_one_line(
    name: str, waited: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = stream(monkeypatch, Stream(BREAKS[name], (7,), 99))
    with pytest.raises(
        ConfigError, match=r"cannot be read behind row 7 \(.*\). Continue with --resume when"
    ) as caught:
        list(rows)
    assert waited == [1, 2, 4, 8] and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ENDS)
def test_an_error_that_waiting_cannot_mend_ends_at_once(
    name: str, waited: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = stream(monkeypatch, Stream(ENDS[name], (7,), 99))
    with pytest.raises(ConfigError, match=r"behind row 7 .*\). The rows before it were read; --resume"):
        list(rows)
    rows = stream(monkeypatch, Stream(ENDS[name], (0,), 99))
    with pytest.raises(ConfigError, match=r"read .*Check data.dataset, data.subset and data.split"):
        list(rows)
    assert waited == []


def test_a_stream_that_ends_in_its_second_pass_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Stream(ENDS["schema"], (), 0))
    documents = open_documents(settings("someone/texts"))
    list(documents.read())
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Stream(ENDS["schema"], (0,), 1))
    with pytest.raises(ConfigError, match="The rows before it were read"):
        list(documents.read())


def test_a_bad_row_of_a_stream_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = stream(monkeypatch, datasets.Dataset.from_list([{"text": [" 1"]}] * 3).to_iterable_dataset())
    with pytest.raises(ConfigError, match="dataset 'someone/texts', row 1: it holds a list in 'text'"):
        next(rows)


def test_a_dataset_that_does_not_exist_is_refused(source: Make) -> None:
    with pytest.raises(ConfigError, match="dataset 'someone/nothing'"):
        source("someone/nothing").take(1)
