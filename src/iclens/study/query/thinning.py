"""Which rows of a table does a chart show? A few of many, by a rule that the chart's subtitle says.

Every function gives the rows that are kept and what was left out, in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from iclens.core import TableError

MOST = 8
"""Categories that colours, shapes and dashes can tell apart."""
PANELS = 12
"""Panels of a chart."""


def defined(frame: pd.DataFrame, column: str, title: str) -> pd.DataFrame:
    """Rows whose value is a finite number, as a new frame."""
    rows = frame[np.isfinite(frame[column].astype(float))].copy()
    if rows.empty:
        found = "there are no rows" if frame.empty else f"no row has a value of '{column}'"
        raise TableError(
            f"plot of {title}",
            found,
            "Choose other rows, or read the table: its column `reason`, where there is one, says why.",
        )
    return rows


def joined(rows: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """The values of some columns as one text per row."""
    text = rows[columns[0]].astype(str)
    for column in columns[1:]:
        text = text + " · " + rows[column].astype(str)
    return text


def panels(
    rows: pd.DataFrame, columns: Sequence[str], prefer: tuple[str, Any] | None
) -> tuple[pd.DataFrame, list[str]]:
    """The rows with their panel, of 12 panels at most, and what was left out."""
    notes: list[str] = []
    if prefer is not None and prefer[0] in rows and (chosen := rows[prefer[0]] == prefer[1]).any():
        if not chosen.all():
            notes.append(f"{(~chosen).sum():,} rows of another {prefer[0]} than {prefer[1]}")
        rows = rows[chosen].copy()
    rows["panel"] = joined(rows, columns) if columns else ""
    rows, left = first(rows, "panel", PANELS, "panels")
    return rows, notes + left


def first(rows: pd.DataFrame, column: str, most: int, what: str) -> tuple[pd.DataFrame, list[str]]:
    """Rows of the first `most` values of a column."""
    values = rows[column].unique()
    if len(values) <= most:
        return rows, []
    return rows[rows[column].isin(values[:most])].copy(), [f"{len(values) - most} more {what}"]


def first_per_curve(rows: pd.DataFrame, x: str) -> tuple[pd.DataFrame, list[str]]:
    """One row per panel, curve and place, at most 4,000 in all."""
    twice = rows.duplicated(["panel", "series", x])
    notes = [f"{int(twice.sum()):,} rows that stand at a place that is taken"] if twice.any() else []
    rows = rows[~twice].sort_values(x, kind="stable").copy()
    step = -(-len(rows) // 4000)
    return (rows, notes) if step < 2 else (rows[::step].copy(), [*notes, f"all but every {step}th place"])


def largest(rows: pd.DataFrame, group: list[str], column: str, most: int) -> tuple[pd.DataFrame, list[str]]:
    """Of each group the rows of largest size, in the order in which they stood."""
    rank = rows[column].abs().groupby([rows[name] for name in group]).rank(ascending=False, method="first")
    kept = rank <= most
    left = int((~kept).sum())
    return rows[kept].copy(), [f"{left:,} rows of smaller |{column}|"] if left else []


def spread(rows: pd.DataFrame, group: list[str], column: str, most: int) -> tuple[pd.DataFrame, list[str]]:
    """Of each group rows that lie evenly over its ranks."""
    by = [rows[name] for name in group]
    rank = rows[column].groupby(by).rank(method="first") - 1
    step = np.ceil(rows[column].groupby(by).transform("size") / most)
    kept = rank % step == 0
    left = int((~kept).sum())
    return rows[kept].copy(), [f"{left:,} rows, evenly over the ranks"] if left else []


def categories(rows: pd.DataFrame, column: str, notes: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """The rows with their category as text; the rarest together, beyond what colours can tell apart."""
    if not column:
        return rows.assign(mark=""), notes
    text = rows[column].astype(str).replace("", "(empty)")
    common = list(text.value_counts().index)
    if len(common) > MOST:
        text = text.where(text.isin(common[: MOST - 1]), "others")
        notes = [*notes, f"names of {len(common) - MOST + 1} rare values of {column}"]
    return rows.assign(mark=text), notes


def only(rows: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows with some columns alone, each once."""
    return rows[list(dict.fromkeys(columns))].reset_index(drop=True)
