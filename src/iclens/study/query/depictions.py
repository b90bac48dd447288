"""Which chart shows a table? One for every table of a run, and one for rows of no table."""

from __future__ import annotations

import altair as alt
import pandas as pd
from pandas.api.types import is_float_dtype, is_numeric_dtype

from iclens.core import TableError
from iclens.schemas import FRAMES, TABLES
from iclens.study.declared import known
from iclens.study.query.plots import draw
from iclens.table import Axis, Chart, Curves, Strip

_WORDS = ("falsifiers", "differences")
"""Tables that hold words alone."""


def charts() -> dict[str, Chart]:
    """The chart of every table, and of every frame that a query makes, that has one."""
    return {name: kind.chart for name, kind in (TABLES | FRAMES).items() if kind.chart is not None}


def chart_of(frame: pd.DataFrame, table: str) -> alt.TopLevelMixin:
    """The chart of some rows of a table; of rows that lack its columns, of the first number in them.

    Raises:
        TableError: when there is nothing to draw, saying why.
    """
    title = table or "rows"
    if table == "beliefs" and {"arm", "mean", "ci_low", "ci_high", "exact_mean"} <= set(frame.columns):
        frame = _with_exact(frame)
    if table in _WORDS:
        raise TableError(f"plot of {title}", "its columns hold words alone", "Read it as a table.")
    chosen = charts().get(table)
    if chosen is None or not set(chosen.needs) <= set(frame.columns):
        chosen = _general(frame, title)
    return draw(chosen, frame, title)


def _with_exact(frame: pd.DataFrame) -> pd.DataFrame:
    """The beliefs with the exact posterior of the first arm as a curve of its own, after that arm's."""
    arms = list(frame["arm"].unique())
    exact = frame[frame["arm"].isin(arms[:1])].copy()
    exact["arm"] = exact["arm"] + ", exact"
    for name in ("mean", "ci_low", "ci_high"):
        exact[name] = exact["exact_mean"]
    parts = [frame[frame["arm"] == arm] for arm in arms]
    return pd.concat([*parts[:1], exact, *parts[1:]], ignore_index=True)


def _general(frame: pd.DataFrame, title: str) -> Chart:
    """A strip of the first column of fractional numbers, or of any, by the first column of words."""
    of_numbers = [str(name) for name in frame.columns if is_numeric_dtype(frame[name])]
    words = [str(name) for name in frame.columns if str(name) not in of_numbers]
    numbers = sorted(of_numbers, key=lambda name: not is_float_dtype(frame[name]))
    if not numbers or not words:
        lacks = "no column of numbers" if not numbers else "no column of words"
        raise TableError(f"plot of {title}", f"it has {lacks}", "Keep more columns, or use `.df.plot`.")
    return Strip(Axis(numbers[0], "as in the table"), (words[0],), kept="spread")


def main_axis(table: str) -> Axis:
    """The number that a table's chart is about.

    Raises:
        TableError: for a table that holds words alone.
    """
    if table in _WORDS:
        raise TableError(f"plot of {table}", "its columns hold words alone", "Read it as a table.")
    drawn = charts()
    chosen = drawn[known("table", table, tuple(drawn))]
    return chosen.y if isinstance(chosen, Curves) else chosen.value
