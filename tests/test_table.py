"""Tables: declared columns, exact types, and nothing shared with the caller."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iclens.core import TableError
from iclens.table import Bool, Float, Int, Str, Table


class Fruit(Table):
    name = Str("what it is")
    count = Int("how many")
    weight = Float("kilograms")
    ripe = Bool("whether it is")


def columns(**changes: Any) -> dict[str, Any]:
    return {
        "name": ["fig", "pear"],
        "count": [3, 4],
        "weight": [0.5, np.nan],
        "ripe": [True, False],
    } | changes


def test_columns_have_their_types() -> None:
    table = Fruit(columns(weight=[1, 2]))
    assert len(table) == 2
    assert table["count"].dtype == np.int64
    assert table["weight"].dtype == np.float64
    assert table["ripe"].dtype == np.bool_
    assert list(table.df.columns) == ["name", "count", "weight", "ripe"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": [1.5, 2]}, "count: holds 1.5"),
        ({"count": np.array([1.5, 2.0])}, "count: holds 1.5"),
        ({"count": [1, np.nan]}, "count"),
        ({"count": ["3", "4"]}, "count: holds '3'"),
        ({"weight": ["heavy", 1]}, "weight: holds 'heavy'"),
        ({"name": [1, 2]}, "name: holds 1"),
        ({"name": ["fig", None]}, "name: holds None"),
        ({"ripe": ["yes", "no"]}, "ripe: holds 'yes'"),
        ({"ripe": [0, 1]}, "ripe: holds 0"),
        ({"count": [1]}, "one length"),
        ({"count": [[1, 2], [3, 4]]}, "one length"),
        ({"colour": ["red", "green"]}, "unknown ..colour"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TableError, match=message):
        Fruit(columns(**changes))


def test_a_missing_column() -> None:
    given = columns()
    del given["ripe"]
    with pytest.raises(TableError, match=r"missing \['ripe"):
        Fruit(given)


def test_whole_floats_are_integers() -> None:
    assert Fruit(columns(count=np.array([3.0, 4.0])))["count"].tolist() == [3, 4]


def test_the_callers_arrays_stay_their_own() -> None:
    weight = np.array([0.5, 1.0])
    table = Fruit(columns(weight=weight))
    weight[0] = 9.0
    assert table["weight"][0] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        table["weight"][0] = 1.0
    frame = table.df
    frame.loc[0, "weight"] = 7.0
    assert table["weight"][0] == 0.5


def test_rows_and_unknown_columns() -> None:
    table = Fruit(columns())
    assert table.where(table["count"] > 3)["name"].tolist() == ["pear"]
    with pytest.raises(TableError, match="'colour'"):
        table["colour"]


def test_concat_and_empty() -> None:
    table = Fruit(columns())
    assert len(Fruit.concat([table, table])) == 4
    empty = Fruit.concat([])
    assert len(empty) == 0
    assert empty["count"].dtype == np.int64


def test_saved_and_loaded(tmp_path: Path) -> None:
    table = Fruit(columns(name=["fig", ""]))
    table.save(tmp_path / "fruit.parquet")
    again = Fruit.load(tmp_path / "fruit.parquet")
    assert again["name"].tolist() == ["fig", ""]
    assert np.isnan(again["weight"][1])
    empty = Fruit.concat([])
    empty.save(tmp_path / "empty.parquet")
    assert len(Fruit.load(tmp_path / "empty.parquet")) == 0


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="unreadable"):
        Fruit.load(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(TableError, match="unreadable"):
        Fruit.load(tmp_path / "bad.parquet")
