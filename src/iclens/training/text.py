"""Contexts of running text: documents are tokenised, joined, and cut into contexts that each begin with BOS.

1. Documents are rows of local files, or of a Hugging Face dataset that is streamed. Each comes with the place
after it, from which reading can go on. 2. A row without text (null, or no such field) is skipped and counted;
any other row that cannot be read is an error that names file and row. 3. A stream that breaks off is entered
again where it broke, after waits that grow. 4. The first contexts are held out; a finite text is read again
from its start, without them.
"""

from __future__ import annotations

import errno
import glob
import gzip
import hashlib
import io
import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ArrowException

from iclens.core import ConfigError, IclensError
from iclens.prompts.render import bos_id, text_ids
from iclens.table import Ints
from iclens.training.config import TextContexts

Place = Any
"""Where reading stands, made of what JSON knows; None is the beginning."""
Rows = Iterator[tuple[str | None, int]]
"""Texts, each with the number of its row, from 1."""
ROWS, WITHOUT = "rows read", "rows without text, skipped"
HALVED = "rows with half of a surrogate pair, read as U+FFFD"
WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before a stream that broke off is entered again at the same place, time after time."""
CORRECT = "Correct or remove it, then continue with --resume."
_WITHOUT_FIELD = 100
"""Rows that may come before the first one that has the field of the text."""
_NETWORK = {
    "aiohttp", "http", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "socket", "ssl", "urllib3"
}  # fmt: skip
"""Packages whose errors say that a connection failed; `datasets` lets them through."""
_BUSY = (408, 425, 429)
"""HTTP statuses that ask to come again later, as all from 500 do."""
_NO_ROUTE = (errno.EIO, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH)
"""Numbers of errors of the system that may pass, besides those of `ConnectionError` and `TimeoutError`."""
_LASTING = {"OfflineModeIsEnabled", "InvalidURL", "UnsupportedProtocol", "InvalidSchema", "MissingSchema"}
"""Errors of network packages that stay however long one waits."""


class TextSource:
    """Running text, packed to one length.

    The place of the current document, the tokens carried into it and how far both were cut say where a source
    stands; the document's digest finds it again when rows before it were changed. The first `reserved`
    contexts are held out.
    """

    def __init__(
        self, settings: TextContexts, tokenizer: Any, reserved: int, n_vocab: int | None = None
    ) -> None:
        self.length = settings.context_tokens
        self._settings, self._tokenizer, self._reserved = settings, tokenizer, reserved
        self._n_vocab, self._first_pass = n_vocab or len(tokenizer), True
        bos = bos_id(tokenizer)
        self._prefix = [] if bos is None else [bos]
        self._documents = open_documents(settings)
        self._facts = {ROWS: 0, WITHOUT: 0, HALVED: 0}
        self._enter(None)

    def take(self, n_contexts: int) -> Ints:
        """The next contexts, [context pos]."""
        contexts: list[list[int]] = []
        while len(contexts) < n_contexts:
            context = self._cut()
            if context is None:
                if self._count <= self._reserved:
                    self._refuse_short(self._count)
                self._enter(None)
                self._first_pass = False
            elif self._count > self._reserved:
                contexts.append(context)
        return np.array(contexts, dtype=np.int64)

    def held_out(self, n_contexts: int) -> Ints:
        """The first contexts, which `take` never gives, [context pos]."""
        fresh = TextSource(self._settings, self._tokenizer, 0, self._n_vocab)
        contexts: list[list[int]] = []
        while len(contexts) < n_contexts and (context := fresh._cut()) is not None:
            contexts.append(context)
        if len(contexts) < n_contexts:
            fresh._refuse_short(len(contexts))
        return np.array(contexts, dtype=np.int64)

    def facts(self) -> dict[str, int]:
        """Rows read so far, each once, and in how many of them the text was missing or changed."""
        return dict(self._facts)

    def state(self) -> dict[str, Any]:
        """Where the source stands."""
        return {
            "text": self._documents.identity(), "count": self._count, "open": self._open,
            "place": self._place, "digest": self._digest, "carried": self._carried, "at": self._at,
            "facts": dict(self._facts), "first_pass": self._first_pass,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state, also when other rows of the text were changed since."""
        if state["text"] != self._documents.identity():
            self._refuse_changed(f"it is {self._documents.identity()}, training began with {state['text']}")
        self._enter(state["place"])
        if state["open"] and not self._reopens(state["place"], state):
            place = self._documents.find(state["digest"], state["place"])
            if place is None or not self._reopens(place, state):
                self._refuse_changed("the row at which training stopped is not there any more")
        self._count, self._at, self._facts = state["count"], state["at"], dict(state["facts"])
        self._carried, self._first_pass = list(state["carried"]), state["first_pass"]

    def _reopens(self, place: Place, state: dict[str, Any]) -> bool:
        """Open the document at `place`; whether it is the one of the state."""
        self._enter(place)
        self._ids = list(state["carried"])
        return self._read_on() and self._digest == state["digest"]

    def _enter(self, place: Place) -> None:
        """Stand before the document at `place`, with nothing carried."""
        self._reader: Iterator[tuple[str | None, Place]] = self._documents.read(place)
        self._place, self._after = place, place
        self._open, self._digest = False, ""
        self._carried: list[int] = []
        self._ids: list[int] = []
        self._at = self._count = 0

    def _cut(self) -> list[int] | None:
        """The next context of this pass over the text; None at its end."""
        size = self.length - len(self._prefix)
        while len(self._ids) - self._at < size:
            if not self._read_on():
                return None
        context = self._prefix + self._ids[self._at : self._at + size]
        self._at += size
        self._count += 1
        return context

    def _read_on(self) -> bool:
        """Take the next document behind what is left of this one; False when there is none."""
        for text, after in self._reader:
            whole = None if text is None else well_formed(text)
            new = [] if whole is None else self._tokens(whole, after)
            self._place, self._after = self._after, after
            if self._first_pass:
                self._facts[ROWS] += 1
                self._facts[WITHOUT] += text is None
                self._facts[HALVED] += whole != text
            if text is None:
                continue
            self._carried, self._digest = self._ids[self._at :], digest_of(text)
            self._ids, self._at, self._open = self._carried + new, 0, True
            return True
        return False

    def _tokens(self, text: str, after: Place) -> list[int]:
        """Token ids of the document before the place `after`."""
        ids = text_ids(self._tokenizer, text)
        if ids and max(ids) >= self._n_vocab:
            unknown = f"its text holds token {max(ids)}, and the model knows tokens 0 to {self._n_vocab - 1}"
            raise ConfigError(self._documents.where(after), unknown, CORRECT)
        return ids

    def _refuse_short(self, n_contexts: int) -> None:
        without = f" ({self._facts[WITHOUT]} rows have no text)" if self._facts[WITHOUT] else ""
        raise ConfigError(
            f"dataset '{self._settings.dataset}'",
            f"it holds {n_contexts} contexts of {self.length} tokens{without}, none left to train on",
            "Give more text, shorter contexts or fewer held_out.contexts.",
        )

    def _refuse_changed(self, how: str) -> None:
        raise ConfigError(
            f"dataset '{self._settings.dataset}'", f"not the text that training began with: {how}",
            "Put it back as it was up to there, or train anew under another --out.",
        )  # fmt: skip


def well_formed(text: str) -> str:
    """The text with every half of a surrogate pair, which JSON may hold but no UTF-8, as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def digest_of(text: str) -> str:
    """A text in 16 characters, by which it is known again."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


# -------------------------------------------------------------------------------------- documents


def open_documents(settings: TextContexts) -> LocalDocuments | HubDocuments:
    """The documents that a configuration names; a local path must exist and be text."""
    name = settings.dataset
    local = _kind(Path(name)) in _READERS or glob.has_magic(name) or Path(name).exists()
    if not local:
        return HubDocuments(settings)
    paths = [Path(path) for path in sorted(glob.glob(name, recursive=True))]
    if not paths:
        raise ConfigError(f"dataset '{name}'", "no such file", "Give a file, a glob or a dataset's name.")
    for path in paths:
        if _kind(path) not in _READERS or not path.is_file():
            kinds = f"not a file of {', '.join(_READERS)}, as they are or with .gz or .zst"
            raise ConfigError(f"dataset '{path}'", kinds, "Give a glob: text/*.jsonl.")
    return LocalDocuments(paths, settings.text_field)


class LocalDocuments:
    """Rows of .jsonl, .json (one object a line) and .parquet files, lines of .txt files."""

    def __init__(self, paths: Sequence[Path], field: str) -> None:
        self._paths, self._field = paths, field

    def read(self, place: Place = None) -> Iterator[tuple[str | None, Place]]:
        """Texts from `place` [file, row] to the end, each with the place after it."""
        first, skipped = place or (0, 0)
        column = TextField(self._field, known=place is not None)
        for number in range(first, len(self._paths)):
            for text, row in self._rows(number, column, skipped):
                yield text, [number, row]
            skipped = 0
        column.close()

    def find(self, digest: str, near: Place) -> Place:
        """The place before the row of this digest in the same file, the nearest by its number; or None."""
        number, wanted = near or (0, 0)
        rows = self._rows(number, TextField(self._field, known=True), 0)
        places = [[number, row - 1] for text, row in rows if text is not None and digest_of(text) == digest]
        return min(places, key=lambda place: abs(place[1] - wanted), default=None)

    def where(self, after: Place) -> str:
        """The file, and the line or row before a place."""
        path = self._paths[after[0]]
        return f"dataset '{path}', {'row' if _kind(path) == '.parquet' else 'line'} {after[1]}"

    def identity(self) -> Any:
        """Names of the files; their rows may be mended while training waits."""
        return [path.name for path in self._paths]

    def _rows(self, number: int, column: TextField, skipped: int) -> Rows:
        path, row = self._paths[number], skipped
        try:
            for text, row in _READERS[_kind(path)](path, column, skipped):
                yield text, row
        except (OSError, EOFError, zlib.error, ArrowException) as cause:
            raise ConfigError(
                f"dataset '{path}'", f"it cannot be read behind row {row} ({_first_line(cause)})",
                "Put a whole file in its place, then continue with --resume.",
            ) from cause  # fmt: skip


class HubDocuments:
    """A dataset that is streamed from the Hugging Face hub.

    A place is the dataset's own state, how many rows were read since that state last changed, and the number
    of the next row.
    """

    def __init__(self, settings: TextContexts) -> None:
        self._settings, self._read = settings, False

    def read(self, place: Place = None) -> Iterator[tuple[str | None, Place]]:
        """Texts from `place` to the end, each with the place after it; waits for a network that is away."""
        column = TextField(self._settings.text_field, known=place is not None)
        failed, tries = place, 0
        while True:
            try:
                for text, after in self._rows(place, column):
                    self._read = True
                    yield text, after
                    place = after
                return column.close()
            except IclensError:
                raise
            except Exception as cause:  # what `datasets` raises is what its transport raises
                tries, failed = (tries + 1 if place == failed else 1), place
                if tries > len(WAITS) or not transient(cause):
                    self._refuse(cause, place)
                time.sleep(WAITS[tries - 1])

    def find(self, digest: str, near: Place) -> Place:
        """None: rows of a streamed dataset are known by their place alone."""
        return None

    def where(self, after: Place) -> str:
        """The dataset, and the row before a place."""
        return f"dataset '{self._settings.dataset}', row {after['row']}"

    def identity(self) -> Any:
        """Its name, subset and split."""
        return [self._settings.dataset, self._settings.subset, self._settings.split]

    def _rows(self, place: Place, column: TextField) -> Iterator[tuple[str | None, Place]]:
        import datasets

        settings = self._settings
        rows: Any = datasets.load_dataset(
            settings.dataset, settings.subset, split=settings.split, streaming=True
        )
        start = place or {"state": rows.state_dict(), "read": 0, "row": 0}
        if place is not None:
            rows.load_state_dict(start["state"])
        state, read, number = start["state"], 0, start["row"] - start["read"]
        for row in rows:
            after, number = rows.state_dict(), number + 1
            read, state = (read + 1 if after == state else 0), after
            if number > start["row"]:
                text = column.text(row, f"dataset '{settings.dataset}'", "row", number)
                yield text, {"state": state, "read": read, "row": number}

    def _refuse(self, cause: Exception, place: Place) -> None:
        where = f" behind row {place['row']}" if place else ""
        if transient(cause):
            remedy = "Continue with --resume when the network is back."
        elif place or self._read:
            remedy = "The rows before it were read; --resume tries again from there."
        else:
            remedy = "Check data.dataset, data.subset and data.split."
        reason = f"it cannot be read{where} ({_first_line(cause)})"
        raise ConfigError(f"dataset '{self._settings.dataset}'", reason, remedy) from cause


def transient(error: BaseException) -> bool:
    """Whether an error, or what caused it, is one of a network that may work again later."""
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__  # pyright: ignore[reportAssignmentType]
    if any(type(cause).__name__ in _LASTING for cause in causes):
        return False
    for cause in causes:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return status in _BUSY or status >= 500
        packages = {kind.__module__.partition(".")[0] for kind in type(cause).__mro__}
        if isinstance(cause, (ConnectionError, TimeoutError)) or packages & _NETWORK:
            return True
        if isinstance(cause, OSError) and cause.errno in _NO_ROUTE:
            return True
        if isinstance(cause, RuntimeError) and "client has been closed" in str(cause):
            return True
    return False


class TextField:
    """The field of rows that holds their text.

    A row has no text when the field is null in it or missing. That the first rows all lack it is an error.

    Args:
        known: whether rows were seen that have it.
    """

    def __init__(self, name: str, known: bool) -> None:
        self.name, self._known = name, known
        self._lacking: tuple[str, list[str]] | None = None

    def text(self, row: Any, source: str, unit: str, number: int) -> str | None:
        """The text of one row of a source, `line` or `row` of this number, from 1."""
        if not isinstance(row, dict):
            wrong = f"it is {_type(row)}, not an object with fields"
            raise ConfigError(f"{source}, {unit} {number}", wrong, CORRECT)
        if self.name not in row:
            self._lacking = (source, sorted(row))
            if number >= _WITHOUT_FIELD:
                self.close()
            return None
        self._known = True
        text = row[self.name]
        if text is not None and not isinstance(text, str):
            wrong = f"it holds {_type(text)} in '{self.name}', not text"
            raise ConfigError(f"{source}, {unit} {number}", wrong, CORRECT)
        return text

    def close(self) -> None:
        """Raise a ConfigError when there were rows, and none of them had the field."""
        if not self._known and self._lacking is not None:
            source, fields = self._lacking
            raise ConfigError(
                source, f"no row has the field '{self.name}', the last one read has {fields}",
                "Name the field of the text as data.text_field.",
            )  # fmt: skip


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# ------------------------------------------------------------------------------------------ files


def _kind(path: Path) -> str:
    """`.jsonl` of `a.jsonl`, `a.jsonl.gz` and `a.jsonl.zst`."""
    return Path(path.stem).suffix if path.suffix in (".gz", ".zst") else path.suffix


def _lines(path: Path, skipped: int) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, decompressed, with their numbers from 1, behind the first `skipped`."""
    openers: dict[str, Callable[[], Any]] = {
        ".zst": lambda: io.BufferedReader(pa.input_stream(str(path), compression="zstd")),
        ".gz": lambda: gzip.GzipFile(path),
    }
    with openers.get(path.suffix, lambda: path.open("rb"))() as lines:
        yield from islice(enumerate(lines, start=1), skipped, None)


def _json_lines(path: Path, column: TextField, skipped: int) -> Rows:
    source = f"dataset '{path}'"
    for row, line in _lines(path, skipped):
        if not line.strip():
            continue
        if row == 1 and line.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
            remedy = f'Save one object a line: {{"{column.name}": "…"}}.'
            raise ConfigError(f"{source}, line 1", "it is a list, not an object with fields", remedy)
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as cause:
            wrong = "UTF-8" if isinstance(cause, UnicodeDecodeError) else "JSON"
            raise ConfigError(f"{source}, line {row}", f"it is not {wrong}", CORRECT) from cause
        yield column.text(content, source, "line", row), row


def _text_lines(path: Path, _: TextField, skipped: int) -> Rows:
    for row, line in _lines(path, skipped):
        try:
            yield line.decode("utf-8-sig" if row == 1 else "utf-8"), row
        except UnicodeDecodeError as cause:
            raise ConfigError(f"dataset '{path}', line {row}", "it is not UTF-8", CORRECT) from cause


def _parquet_rows(path: Path, column: TextField, skipped: int) -> Rows:
    field, source = column.name, f"dataset '{path}'"
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if field not in names:
            absent = f"it has no column '{field}', but {sorted(names)}"
            raise ConfigError(source, absent, "Name the column of the text as data.text_field.")
        row = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if row + size <= skipped:
                row += size
                continue
            for batch in file.iter_batches(batch_size=256, row_groups=[group], columns=[field]):
                for value in batch.column(0):
                    row += 1
                    if row > skipped:
                        content = {field: _utf8(f"{source}, row {row}", value)}
                        yield column.text(content, source, "row", row), row


def _utf8(row: str, value: pa.Scalar) -> Any:
    """What a row holds; bytes, as some programs save text, are read as UTF-8."""
    try:
        content: Any = value.as_py()
        return content.decode() if isinstance(content, bytes) else content
    except UnicodeDecodeError as cause:
        raise ConfigError(row, "it is not UTF-8", CORRECT) from cause


_READERS: dict[str, Callable[[Path, TextField, int], Rows]] = {
    ".jsonl": _json_lines, ".json": _json_lines, ".parquet": _parquet_rows, ".txt": _text_lines,
}  # fmt: skip
