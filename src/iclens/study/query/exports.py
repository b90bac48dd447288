"""How does an answer leave Python? As a file whose ending says its kind, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from iclens.core import TableError

ROWS, DRAWN = (".parquet", ".csv", ".json"), (".png", ".svg")
"""Endings of files of rows, and of drawings."""


def save_answer(path: str | Path, rows: Callable[[], pd.DataFrame], drawn: Callable[[], Any]) -> Path:
    """Write rows or their chart, by the ending of `path`.

    Args:
        path: ends in .parquet, .csv or .json for the rows, in .png or .svg for the chart.
        rows: gives the rows.
        drawn: gives the altair chart.

    Returns:
        The path.

    Raises:
        TableError: for another ending, or where no file can be written.
    """
    target = Path(path)
    ending = target.suffix.lower()
    if ending not in ROWS + DRAWN:
        raise TableError(
            f"file '{target}'", f"no kind of file ends in '{ending}'", f"Use {', '.join(ROWS + DRAWN)}."
        )
    if ending in DRAWN:
        chart = drawn()
        return write_whole(target, lambda file: chart.save(str(file), format=ending[1:]))
    frame = indexed(rows())
    writers: dict[str, Callable[[Path], Any]] = {
        ".parquet": lambda file: frame.to_parquet(file, index=False),
        ".csv": lambda file: frame.to_csv(file, index=False),
        ".json": lambda file: frame.to_json(
            file, orient="records", double_precision=15, force_ascii=False, indent=1
        ),
    }
    return write_whole(target, writers[ending])


def indexed(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with every named level of its index as a column."""
    named = [name for name in frame.index.names if name is not None and name not in frame.columns]
    return frame.reset_index(level=named) if named else frame


def write_json(path: Path, value: Any) -> Path:
    """Write plain values as JSON.

    Raises:
        TableError: where no file can be written.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return write_whole(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_whole(target: Path, write: Callable[[Path], Any]) -> Path:
    """Let `write` fill a new file beside the target, then rename it to the target.

    Raises:
        TableError: where no file can be written.
    """
    fresh = target.with_name(f"{target.name}.new")
    try:
        write(fresh)
        fresh.replace(target)
    except OSError as cause:
        found = f"it cannot be written ({cause.strerror or cause})"
        raise TableError(
            f"file '{target}'", found, "Name a folder that is there and can be written."
        ) from cause
    finally:
        fresh.unlink(missing_ok=True)
    return target
