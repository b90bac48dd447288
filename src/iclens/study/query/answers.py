"""What does a run answer with? A pandas frame that knows its table: what columns mean, how it is drawn, kept.

run.growth.query("shortlisted").plot()
run.patches.about                                   every column's type and meaning, with units
run.transforms.save("transforms.csv")               or .parquet, .json, .png, .svg
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from iclens.core import nearest
from iclens.study.query.exports import indexed, save_answer
from iclens.study.query.meanings import meanings_of

if TYPE_CHECKING:
    import altair as alt

_ROWS = 20
"""Rows of a frame that a notebook shows."""


class Answer(pd.DataFrame):
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
        from iclens.study.query.depictions import chart_of

        return chart_of(self.df, self.table)

    def save(self, path: str | Path) -> Path:
        """Write the rows (.parquet, .csv, .json) or the chart (.png, .svg), whole or not at all.

        Raises:
            TableError: for another ending, where nothing can be written, or when there is nothing to draw.
        """
        return save_answer(path, lambda: self.df, self.plot)

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


def frame_html(title: str, frame: pd.DataFrame, note: str = "") -> str:
    """A title with the number of rows, and the first 20 rows, as HTML in which all text is escaped."""
    frame = indexed(frame)
    n = len(frame)
    shown = f"{n:,} row{'' if n == 1 else 's'}" + (f", the first {_ROWS} shown" if n > _ROWS else "")
    head = f"<p><b>{escape(title)}</b>: {shown}{escape(note)}</p>"
    return head + frame.head(_ROWS).rename_axis(columns=None).to_html(
        index=False, escape=True, border=0, na_rep="–"
    )
