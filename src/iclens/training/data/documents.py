"""Documents of running text: local files, or a Hugging Face dataset that is streamed.

1. Every row comes with the place after it, from which reading can go on: file, row and byte for local files,
the dataset's own state otherwise. 2. A row without text (null, or no such field) is None; any other row that
cannot be read is an error that names file and row. 3. A stream that breaks off is entered again where it
broke, after waits that grow.
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
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ArrowException

from iclens.core import ConfigError, IclensError
from iclens.training.config import TextContexts

Place = Any
"""Where reading stands, made of what JSON knows; None is the beginning."""
Rows = Iterator[tuple[str | None, int, int]]
"""Texts, each with the number of the next row and the byte at which it begins."""
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
"""Errors of the packages of a network that stay however long one waits."""


class Documents(Protocol):
    """A finite sequence of rows that can be entered anywhere."""

    def read(self, place: Place = None) -> Iterator[tuple[str | None, Place]]:
        """Texts from `place` to the end, each with the place after it; None for a row that has no text."""
        ...

    def find(self, digest: str, near: Place) -> Place:
        """The place before the row whose text has this digest, as near as can be; None when there is none."""
        ...

    def where(self, after: Place) -> str:
        """The row before a place, in words."""
        ...

    def identity(self) -> Any:
        """What must be the same for a place to mean the same."""
        ...


def open_documents(settings: TextContexts) -> Documents:
    """The documents that a configuration names.

    Raises:
        ConfigError: for a local path that does not exist or cannot be read as text.
    """
    name = settings.dataset
    local = _kind(Path(name)) in _READERS or glob.has_magic(name) or Path(name).exists()
    if not local:
        return HubDocuments(settings)
    paths = [Path(found) for found in sorted(glob.glob(name, recursive=True))]
    if not paths:
        raise ConfigError(f"dataset '{name}'", "no such file", "Give a file, a glob or a dataset's name.")
    for path in paths:
        if _kind(path) not in _READERS or not path.is_file():
            raise ConfigError(
                f"dataset '{path}'",
                f"not a file of {', '.join(_READERS)}, as they are or with .gz or .zst",
                "Give a glob: text/*.jsonl.",
            )
    return LocalDocuments(paths, settings.text_field)


def digest_of(text: str) -> str:
    """A text in a few characters, by which it is known again."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class LocalDocuments:
    """Rows of .jsonl, .json (one object a line) and .parquet files, lines of .txt files.

    Args:
        paths: read in this order.
        field: of a row that holds its text; lines of .txt files have none.
    """

    def __init__(self, paths: Sequence[Path], field: str) -> None:
        self._paths, self._field = paths, field

    def read(self, place: Place = None) -> Iterator[tuple[str | None, Place]]:
        """Texts from `place` [file, row, byte] to the end, each with the place after it.

        Raises:
            ConfigError: for a row that cannot be read, or when rows have no such field.
        """
        first, row, byte = place or (0, 0, 0)
        column = TextField(self._field, known=place is not None)
        for number in range(first, len(self._paths)):
            for text, row_after, byte_after in self._rows(number, column, row, byte):
                yield text, [number, row_after, byte_after]
            row = byte = 0
        column.close()

    def find(self, digest: str, near: Place) -> Place:
        """The place before the row of this digest in the same file, the nearest by its number."""
        number, wanted, _ = near or (0, 0, 0)
        before, places = [number, 0, 0], []
        for text, row, byte in self._rows(number, TextField(self._field, known=True), 0, 0):
            if text is not None and digest_of(text) == digest:
                places.append(before)
            before = [number, row, byte]
        return min(places, key=lambda place: abs(place[1] - wanted), default=None)

    def where(self, after: Place) -> str:
        """The file, and the line or row before a place."""
        path = self._paths[after[0]]
        return f"dataset '{path}', {'row' if _kind(path) == '.parquet' else 'line'} {after[1]}"

    def identity(self) -> Any:
        """Names of the files; what stands in them may be mended while training waits."""
        return [path.name for path in self._paths]

    def _rows(self, number: int, column: TextField, row: int, byte: int) -> Rows:
        path, after = self._paths[number], row
        try:
            for found in _READERS[_kind(path)](path, column, row, byte):
                yield found
                after = found[1]
        except (OSError, EOFError, zlib.error, ArrowException) as cause:
            line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            raise ConfigError(
                f"dataset '{path}'", f"it cannot be read behind row {after} ({line})",
                "Put a whole file in its place, then continue with --resume.",
            ) from cause  # fmt: skip


class HubDocuments:
    """A dataset that is streamed from the Hugging Face hub.

    Args:
        settings: its name, subset, split and text field.
    """

    def __init__(self, settings: TextContexts) -> None:
        self._settings, self._read = settings, False

    def read(self, place: Place = None) -> Iterator[tuple[str | None, Place]]:
        """Texts from `place` to the end, each with the place after it.

        A place is the dataset's state, how many rows were read since that state last changed, and the number
        of the next row.

        Raises:
            ConfigError: when the dataset cannot be read, also after waiting, or rows have no such field.
        """
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
        line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        where = f" behind row {place['row']}" if place else ""
        if transient(cause):
            remedy = "Continue with --resume when the network is back."
        elif place or self._read:
            remedy = "The rows before it were read; --resume tries again from there."
        else:
            remedy = "Check data.dataset, data.subset and data.split."
        raise ConfigError(
            f"dataset '{self._settings.dataset}'", f"it cannot be read{where} ({line})", remedy
        ) from cause


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
        name: of the field.
        known: whether rows were seen that have it.
    """

    def __init__(self, name: str, known: bool) -> None:
        self.name, self._known = name, known
        self._lacking: tuple[str, list[str]] | None = None

    def text(self, row: Any, source: str, unit: str, number: int) -> str | None:
        """The text of one row of a source, `line` or `row` of this number, from 1.

        Raises:
            ConfigError: when it is no row with fields, or holds anything but text.
        """
        if not isinstance(row, dict):
            found = f"it is {_type(row)}, not an object with fields"
            raise ConfigError(f"{source}, {unit} {number}", found, CORRECT)
        if self.name not in row:
            self._lacking = (source, sorted(row))
            if number >= _WITHOUT_FIELD:
                self.close()
            return None
        self._known = True
        text = row[self.name]
        if text is not None and not isinstance(text, str):
            found = f"it holds {_type(text)} in '{self.name}', not text"
            raise ConfigError(f"{source}, {unit} {number}", found, CORRECT)
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


def _kind(path: Path) -> str:
    """`.jsonl` of `a.jsonl`, `a.jsonl.gz` and `a.jsonl.zst`."""
    return Path(path.stem).suffix if path.suffix in (".gz", ".zst") else path.suffix


def _lines(path: Path, byte: int) -> BinaryIO:
    """The lines of a file, decompressed, from `byte` on."""
    if path.suffix == ".zst":
        stream = io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
        while byte > 0:
            byte -= len(stream.read(min(byte, 1 << 20))) or byte
        return stream
    opened: Any = gzip.GzipFile(path) if path.suffix == ".gz" else path.open("rb")
    opened.seek(byte)
    return opened


def _json_lines(path: Path, column: TextField, row: int, byte: int) -> Rows:
    source = f"dataset '{path}'"
    with _lines(path, byte) as lines:
        for line in lines:
            row, byte = row + 1, byte + len(line)
            if not line.strip():
                continue
            if row == 1 and line.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
                raise ConfigError(
                    f"{source}, line 1", "it is a list, not an object with fields",
                    f'Save one object a line: {{"{column.name}": "…"}}.',
                )  # fmt: skip
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as cause:
                wrong = "UTF-8" if isinstance(cause, UnicodeDecodeError) else "JSON"
                raise ConfigError(f"{source}, line {row}", f"it is not {wrong}", CORRECT) from cause
            yield column.text(found, source, "line", row), row, byte


def _text_lines(path: Path, _: TextField, row: int, byte: int) -> Rows:
    with _lines(path, byte) as lines:
        for line in lines:
            row, byte = row + 1, byte + len(line)
            try:
                yield line.decode("utf-8-sig" if row == 1 else "utf-8"), row, byte
            except UnicodeDecodeError as cause:
                raise ConfigError(f"dataset '{path}', line {row}", "it is not UTF-8", CORRECT) from cause


def _parquet_rows(path: Path, column: TextField, row: int, _: int) -> Rows:
    field, source = column.name, f"dataset '{path}'"
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if field not in names:
            raise ConfigError(
                source, f"it has no column '{field}', but {sorted(names)}",
                "Name the column of the text as data.text_field.",
            )  # fmt: skip
        before = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if before + size > row:
                for batch in file.iter_batches(batch_size=256, row_groups=[group], columns=[field]):
                    for number in range(max(row, before), before + len(batch)):
                        asked = f"{source}, row {number + 1}"
                        text = _utf8(asked, batch.column(0)[number - before])
                        yield column.text({field: text}, source, "row", number + 1), number + 1, 0
                    before += len(batch)
            else:
                before += size


def _utf8(asked: str, value: pa.Scalar) -> Any:
    """What a row holds; bytes, as some programs save text, are read as UTF-8."""
    try:
        content: Any = value.as_py()
        return content.decode() if isinstance(content, bytes) else content
    except UnicodeDecodeError as cause:
        raise ConfigError(asked, "it is not UTF-8", CORRECT) from cause


_READERS: dict[str, Callable[[Path, TextField, int, int], Rows]] = {
    ".jsonl": _json_lines, ".json": _json_lines, ".parquet": _parquet_rows, ".txt": _text_lines,
}  # fmt: skip
