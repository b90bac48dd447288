"""Answers: pandas frames that know their table, what its columns mean, how it is drawn, and how it is saved.

run.growth.query("shortlisted").plot()
run.patches.about                                   every column's type and meaning, with units
run.transforms.save("transforms.csv")               or .parquet, .json, .png, .svg
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from iclens.core import TableError, nearest
from iclens.schemas import FRAMES, TABLES
from iclens.table import Column

if TYPE_CHECKING:
    import altair as alt

_ROWS = 20
"""Rows of a frame that a notebook shows."""
_ENDINGS, _DRAWN = (".parquet", ".csv", ".json"), (".png", ".svg")
"""Endings of files of rows, and of drawings."""


class Saved:
    """What has rows and a chart of them, and can be saved as either."""

    @property
    def df(self) -> pd.DataFrame:
        """The rows as a plain pandas frame."""
        raise NotImplementedError

    def plot(self) -> alt.TopLevelMixin:
        """An altair chart of the rows; its title says what was left out.

        Raises:
            TableError: when there is nothing to draw, saying why.
        """
        raise NotImplementedError

    def save(self, path: str | Path) -> Path:
        """Write the rows (.parquet, .csv, .json) or the chart (.png, .svg), whole or not at all.

        Raises:
            TableError: for another ending, where nothing can be written, or when there is nothing to draw.
        """
        target = Path(path)
        ending = target.suffix.lower()
        if ending not in _ENDINGS + _DRAWN:
            endings = ", ".join(_ENDINGS + _DRAWN)
            raise TableError(f"file '{target}'", f"no kind of file ends in '{ending}'", f"Use {endings}.")
        if ending in _DRAWN:
            chart: Any = self.plot()
            return write_whole(target, lambda file: chart.save(str(file), format=ending[1:]))
        frame = _indexed(self.df)
        write: dict[str, Callable[[Path], Any]] = {
            ".parquet": lambda file: frame.to_parquet(file, index=False),
            ".csv": lambda file: frame.to_csv(file, index=False),
            ".json": lambda file: frame.to_json(
                file, orient="records", double_precision=15, force_ascii=False, indent=1
            ),
        }
        return write_whole(target, write[ending])


class Answer(Saved, pd.DataFrame):
    """Rows of one table of a run: a pandas frame that also has `df`, `about`, `plot` and `save`.

    What pandas makes of it (`query`, `sort_values`, a choice of rows or columns) is an Answer of that table.
    """

    _metadata: ClassVar[list[str]] = ["table"]
    table: str = ""
    """Name of the table; empty for a frame that is none of a run's."""

    @property
    def _constructor(self) -> type[Answer]:
        return Answer

    @classmethod
    def of(cls, frame: pd.DataFrame, table: str) -> Answer:
        """The frame as an answer from `table`."""
        answer = cls(frame)
        answer.table = table
        return answer

    @property
    def df(self) -> pd.DataFrame:
        """The same rows as a plain pandas frame."""
        return pd.DataFrame(self)

    @property
    def about(self) -> pd.DataFrame:
        """A row per column: `column`, `kind` (its type) and `meaning` (with units)."""
        meanings = meanings_of(self.table)
        rows = [
            (name, meanings[name].kind, meanings[name].meaning)
            if name in meanings
            else (name, str(self.dtypes.iloc[i]), "not a column of this table")
            for i, name in enumerate(map(str, self.columns))
        ]
        return pd.DataFrame(rows, columns=["column", "kind", "meaning"])

    def plot(self) -> alt.TopLevelMixin:  # pyright: ignore[reportIncompatibleMethodOverride]
        """An altair chart of the rows; its title says what was left out. pandas' own plots are at `.df.plot`.

        Raises:
            TableError: when there is nothing to draw, saying why.
        """
        from iclens.results.plot import chart_of

        return chart_of(self.df, self.table)

    def query(self, expr: str, **kwargs: Any) -> Any:
        """As pandas' own; the error of an unknown column also names the nearest."""
        with self._nearest_noted():
            # One frame more stands between pandas and the caller whose @names it looks up.
            return super().query(expr, level=kwargs.pop("level", 0) + 1, **kwargs)

    def __getitem__(self, key: Any) -> Any:
        """As pandas' own; the error of an unknown column also names the nearest."""
        if isinstance(key, str):
            with self._nearest_noted(key):
                return super().__getitem__(key)
        return super().__getitem__(key)

    def __getattr__(self, name: str) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As pandas' own; the error of an unknown name also names the nearest columns and methods.

        Raises:
            AttributeError: for an unknown name.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or hasattr(type(self), name):
                raise
            offered = [*map(str, self.columns), *(own for own in dir(type(self)) if own[0] != "_")]
            raise AttributeError(
                f"{self.table or 'a frame'} has no '{name}'. {nearest(name, offered)}."
            ) from None

    @contextmanager
    def _nearest_noted(self, name: str | None = None) -> Iterator[None]:
        try:
            yield
        except (KeyError, pd.errors.UndefinedVariableError) as error:
            quoted = str(error).split("'")
            word = name if name is not None else quoted[1] if len(quoted) > 2 else str(error)
            if not getattr(error, "__notes__", None):
                error.add_note(f"{nearest(word, map(str, self.columns))}.")
            raise

    def _repr_html_(self) -> str:
        """Its table, how many rows there are, and the first of them."""
        return frame_html(self.table or "rows", self.df)


def meanings_of(table: str) -> Mapping[str, Column]:
    """Column → type and meaning, for a table of a run or a frame that a query makes; else nothing.

    Args:
        table: its name; of the joined rows of two runs, `<table> of two runs`.
    """
    declared = TABLES | FRAMES
    if table in declared:
        return declared[table].COLUMNS
    name, joined, _ = table.partition(" of two runs")
    if not joined or name not in TABLES:
        return {}
    kind = TABLES[name]
    meanings = {key: kind.COLUMNS[key] for key in kind.KEY}
    for key, column in kind.COLUMNS.items():
        if key not in kind.KEY:
            meanings[f"{key}_a"] = column.means(f"of the asked run: {column.meaning}")
            meanings[f"{key}_b"] = column.means(f"of the other run: {column.meaning}")
            if column.kind in ("int", "float"):
                meanings[f"{key}_difference"] = column.means(f"other − asked run: {column.meaning}")
    return meanings


def frame_html(title: str, frame: pd.DataFrame) -> str:
    """A title with the number of rows, and the first 20 rows, as HTML in which all text is escaped."""
    frame = _indexed(frame)
    n = len(frame)
    caption = f"{n:,} row{'' if n == 1 else 's'}" + (f", the first {_ROWS} shown" if n > _ROWS else "")
    return f"<p><b>{escape(title)}</b>: {caption}</p>" + frame.head(_ROWS).rename_axis(columns=None).to_html(
        index=False, escape=True, border=0, na_rep="–"
    )


def _indexed(frame: pd.DataFrame) -> pd.DataFrame:
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
        reason = f"it cannot be written ({cause.strerror or cause})"
        raise TableError(
            f"file '{target}'", reason, "Name a folder that is there and can be written."
        ) from cause
    finally:
        fresh.unlink(missing_ok=True)
    return target
