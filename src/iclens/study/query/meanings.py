"""The meaning of a column: of tables of a run, of frames that queries make, and of two runs joined."""

from __future__ import annotations

from collections.abc import Mapping

from iclens.schemas import FRAMES, TABLES
from iclens.table import Column


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
