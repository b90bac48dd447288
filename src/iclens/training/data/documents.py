"""Documents of running text: local files, or a Hugging Face dataset that is streamed.

Every document comes with the place after it, from which reading can go on: file, row and byte for local
files, the dataset's own state otherwise.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq
from pyarrow import ArrowException

from iclens.errors import ConfigError
from iclens.training.config import TextContexts

Place = Any
"""Where reading stands, made of what JSON knows; None is the beginning."""
Rows = Iterator[tuple[str, int, int]]
"""Texts, each with the number of the next row and the byte at which it begins."""


class Documents(Protocol):
    """A finite sequence of texts that can be entered anywhere."""

    def read(self, place: Place = None) -> Iterator[tuple[str, Place]]:
        """Documents from `place` to the end, each with the place after it."""
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
    local = Path(name).suffix in _READERS or glob.has_magic(name) or Path(name).exists()
    if not local:
        return HubDocuments(settings)
    paths = [Path(found) for found in sorted(glob.glob(name, recursive=True))]
    if not paths:
        raise ConfigError(f"dataset '{name}'", "no such file", "Give a file, a glob or a dataset's name.")
    for path in paths:
        if path.suffix not in _READERS or not path.is_file():
            raise ConfigError(
                f"dataset '{path}'",
                f"not a file of {', '.join(_READERS)}",
                "Give a glob: text/*.jsonl.",
            )
    return LocalDocuments(paths, settings.text_field)


class LocalDocuments:
    """Rows of .jsonl and .parquet files, lines of .txt files.

    Args:
        paths: read in this order.
        field: of a row that holds its text; lines of .txt files have none.
    """

    def __init__(self, paths: Sequence[Path], field: str) -> None:
        self._paths, self._field = paths, field

    def read(self, place: Place = None) -> Iterator[tuple[str, Place]]:
        """Documents from `place` [file, row, byte] to the end, each with the place after it.

        Raises:
            ConfigError: for a row that cannot be read or has no such field.
        """
        first, row, byte = place or (0, 0, 0)
        for number in range(first, len(self._paths)):
            path = self._paths[number]
            try:
                for text, row_after, byte_after in _READERS[path.suffix](path, self._field, row, byte):
                    yield text, [number, row_after, byte_after]
            except UnicodeDecodeError as cause:
                raise ConfigError(f"dataset '{path}'", "not UTF-8 text", "Convert the file.") from cause
            except (OSError, ArrowException) as cause:
                line = str(cause).strip().splitlines()[0]
                raise ConfigError(f"dataset '{path}'", line, "Mend the file.") from cause
            row = byte = 0

    def identity(self) -> Any:
        """Names and sizes of the files."""
        return [[path.name, path.stat().st_size] for path in self._paths]


class HubDocuments:
    """A dataset that is streamed from the Hugging Face hub.

    Args:
        settings: its name, subset, split and text field.
    """

    def __init__(self, settings: TextContexts) -> None:
        self._settings = settings

    def read(self, place: Place = None) -> Iterator[tuple[str, Place]]:
        """Documents from `place` to the end, each with the place after it.

        Raises:
            ConfigError: when the dataset cannot be read or a row has no such field.
        """
        import datasets

        settings = self._settings
        try:
            rows: Any = datasets.load_dataset(
                settings.dataset, settings.subset, split=settings.split, streaming=True
            )
            if place is not None:
                rows.load_state_dict(place)
            for row in rows:
                yield text_of(row, settings.text_field), rows.state_dict()
        except (OSError, ValueError, ArrowException) as cause:
            line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            raise ConfigError(
                f"dataset '{settings.dataset}'", line, "Check its name, subset and split."
            ) from cause

    def identity(self) -> Any:
        """Its name, subset and split."""
        return [self._settings.dataset, self._settings.subset, self._settings.split]


def text_of(row: Any, field: str) -> str:
    """The text of a row.

    Raises:
        ConfigError: when it has no such field, or no text in it.
    """
    if not isinstance(row, dict) or field not in row:
        keys = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ConfigError(f"text_field '{field}'", f"a row has {keys}", "Name one of these.")
    if not isinstance(row[field], str):
        raise ConfigError(
            f"text_field '{field}'", f"a row holds {type(row[field]).__name__}", "Name a field of text."
        )
    return row[field]


def _json_lines(path: Path, field: str, row: int, byte: int) -> Rows:
    with path.open("rb") as lines:
        lines.seek(byte)
        for line in lines:
            row, byte = row + 1, byte + len(line)
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except ValueError as cause:
                raise ConfigError(f"dataset '{path}'", f"line {row} is not JSON", "Mend the file.") from cause
            yield text_of(found, field), row, byte


def _text_lines(path: Path, _: str, row: int, byte: int) -> Rows:
    with path.open("rb") as lines:
        lines.seek(byte)
        for line in lines:
            row, byte = row + 1, byte + len(line)
            yield line.decode("utf-8"), row, byte


def _parquet_rows(path: Path, field: str, row: int, _: int) -> Rows:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if field not in names:
            raise ConfigError(f"text_field '{field}'", f"a row has {sorted(names)}", "Name one of these.")
        before = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if before + size > row:
                for batch in file.iter_batches(batch_size=256, row_groups=[group], columns=[field]):
                    found = batch.column(0).to_pylist() if before + len(batch) > row else []
                    for number, text in enumerate(found, start=before):
                        if number >= row:
                            yield text_of({field: text}, field), number + 1, 0
                    before += len(batch)
            else:
                before += size


_READERS: dict[str, Callable[[Path, str, int, int], Rows]] = {
    ".jsonl": _json_lines, ".parquet": _parquet_rows, ".txt": _text_lines,
}  # fmt: skip
