"""Running text: packed behind BOS, entered anywhere exactly, and refused in one line when it cannot serve."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iclens.errors import ConfigError
from iclens.models.load import LanguageModel
from iclens.training.config import TextContexts
from iclens.training.data.documents import LocalDocuments, open_documents
from iclens.training.data.text import TextSource

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
def test_files_of_every_kind_hold_the_same_documents(kind: str, tmp_path: Path) -> None:
    found = [text for text, _ in open_documents(settings(write(tmp_path, kind))).read()]
    assert [text.strip() for text in found] == TEXTS


@pytest.mark.parametrize("kind", KINDS)
def test_documents_can_be_entered_after_each_of_them(kind: str, tmp_path: Path) -> None:
    documents = open_documents(settings(write(tmp_path, kind)))
    whole = list(documents.read())
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
    with pytest.raises(ConfigError, match="not the files that training began with"):
        source(name).restore(state)


def settings(dataset: str) -> TextContexts:
    return TextContexts(kind="text", dataset=dataset)


@pytest.mark.parametrize(
    ("rows", "asked", "words"),
    [
        ([{"text": "1 2 3"}], {}, "it holds 0 contexts of 10 tokens, none left to train on"),
        ([{"text": TEXTS[1]}], {"context_tokens": 60}, "it holds 1 contexts of 60 tokens"),
        ([], {}, "none left to train on"),
        ([{"txt": "1 2 3"}], {}, r"text_field 'text': a row has \['txt'\]"),
        (["1 2 3"], {}, "a row has str"),
        ([{"text": 3}], {}, "a row holds int"),
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


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "1 2"}\n\n{"text": \n', "line 3 is not JSON"),
        ("a.jsonl", b'{"text": "\xff\xfe"}\n', "line 1 is not JSON"),
        ("a.parquet", b"PAR1 and no more", "a.parquet"),
        ("a.parquet", b"", "a.parquet"),
        ("a.txt", b"1 2\n\xff\xfe 3\n", "not UTF-8"),
        ("a.csv", b"text\n1 2\n", r"not a file of .jsonl, .parquet, .txt"),
    ],
)
def test_broken_files_are_refused(
    source: Make, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        source(tmp_path / name).take(1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no.jsonl", "no-*.parquet", "deep/**/no.txt"])
def test_missing_files_are_refused(source: Make, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        source(tmp_path / name)


def test_a_parquet_file_without_the_field_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["1"]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"text_field 'text': a row has \['body'\]"):
        list(LocalDocuments([tmp_path / "a.parquet"], "text").read())


def test_a_dataset_that_does_not_exist_is_refused(source: Make) -> None:
    with pytest.raises(ConfigError, match="dataset 'someone/nothing'"):
        source("someone/nothing").take(1)
