"""Which tables of a run can a page read, and why is a part of it empty?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from iclens.core import RunError, TableError
from iclens.dashboards.records.latent import Curve
from iclens.dashboards.records.mechanism import Figure
from iclens.dashboards.records.patching import Grid
from iclens.results.read import Results
from iclens.schemas import TABLES

Row = Mapping[str, Any]
EMPTY = {
    "heads": "Not run: the config asks for no ablation (`sweep.ablations`).",
    "direct": "Not run: no head costs the belief a nat or more by itself, so none was looked into.",
    "redundancy": "Not run: there was no set of heads to ablate.",
    "redundancy_ladder": "Not run: the config asks for no step (`sweep.ladder_steps`).",
    "patches": "Nothing was patched: no latent differs between the runs.",
    "sets": "Nothing was patched: no latent differs between the runs.",
    "patch_controls": "Not run: no latent was tested, so there was none to patch elsewhere.",
    "screens": "Not run: no latent was patched.",
    "responses": "Not run: no site was patched at pre, or its answers are no numbers.",
    "response_fits": "Not run: no response curve was drawn.",
}
"""Why a table of a finished stage has no rows."""


class Tables:
    """The tables of a run, as far as they are there.

    Args:
        results: the run.
    """

    def __init__(self, results: Results) -> None:
        self.results, self.config = results, results.config
        self.reasons: dict[str, str] = {}
        self.grids: dict[str, Grid] = {}
        self.said: dict[str, str] = {}

    def of(self, name: str, part: str) -> pd.DataFrame:
        """A table; without rows, and with a reason for `part`, where it is missing, damaged or empty."""
        kind = TABLES[name]
        try:
            table = self.results.table(name)
        except RunError:
            self.reasons[part] = f"Not run: the stage `{kind.stage}` has left no {name}.parquet."
        except TableError:
            self.reasons[part] = f"Not shown: {name}.parquet is damaged or of another version of iclens."
        else:
            if table.empty:
                self.reasons[part] = EMPTY.get(name, f"Not run: {name}.parquet has no rows.")
            return table
        return pd.DataFrame(columns=list(kind.COLUMNS))

    def put(self, part: str, columns: Sequence[str], rows: Sequence[Sequence[str | float]]) -> None:
        """Keep a part's values as a grid; a last column that is empty in every row is left out."""
        if rows and all(row[-1] == "" for row in rows):
            columns, rows = columns[:-1], [row[:-1] for row in rows]
        self.grids[part] = Grid(columns, rows)


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as mappings of column names."""
    return [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]


def figure_of(row: Row, value: str, bounds: str) -> Figure:
    """Column `value` with its interval, `<bounds>_low` to `<bounds>_high`, and the row's reason."""
    return Figure(row[value], row[f"{bounds}_low"], row[f"{bounds}_high"], row.get("reason", ""))


def curve_of(rows: pd.DataFrame, over: str = "n_seen", value: str = "value", bounds: str = "ci") -> Curve:
    """Column `value` with its interval over column `over`."""
    return Curve(*(rows[name].tolist() for name in (over, value, f"{bounds}_low", f"{bounds}_high")))
