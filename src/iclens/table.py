"""Table: rows of a result, of a class that declares columns, key, stage and chart; and arrays.

    class ScreenTable(Table, name="screens", stage="patch"):
        '''How far a linear screen is from the exact effects: one row per site, role and belief.'''

        key = SITE, ROLE, BELIEF
        n_effects = Int("latents × prompts compared")
        slope = Estimate("least-squares slope of exact on linear effects", "its 95 % interval")
        chart = Points(Axis("slope", "nats per nat"), ("site", "role"))

The file, the frame `run.screens`, its chart, its comparison between runs and its section in docs/schemas.md
all follow from the class.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from iclens.core import REDO_STAGE, TableError

if TYPE_CHECKING:
    import pandas as pd


_DTYPES = {"int": np.int64, "float": np.float64, "str": np.object_, "bool": np.bool_}
_EXACT = {"int": "i", "float": "iuf", "str": "U", "bool": "b"}
"""numpy kinds that become the column's type without a loss."""

# ------------------------------------------------------------------------------- columns and column groups


@dataclass(frozen=True)
class Column:
    """A column's type ("int", "float", "str" or "bool"), its meaning with units, and its name if shared."""

    kind: str
    meaning: str
    name: str = ""

    def means(self, meaning: str) -> Column:
        """The same column with the meaning that it has in one table."""
        return replace(self, meaning=meaning)


Int, Float, Str, Bool = (partial(Column, kind) for kind in _DTYPES)


@dataclass(frozen=True)
class Estimate:
    """A number and the ends of its interval: columns `<name>`, `<ends>_low` and `<ends>_high`."""

    meaning: str  # of the number, with units
    interval: str = "its interval"  # what the ends are ends of
    ends: str = ""  # stem of the ends' names; the number's own name if empty

    def columns(self, name: str) -> dict[str, Column]:
        """Its columns, for a number of that name."""
        low, high = self.names(name)
        return {
            name: Float(self.meaning), low: Float(f"lower end of {self.interval}"), high: Float("upper end")
        }  # fmt: skip

    def names(self, name: str) -> tuple[str, str]:
        """Names of the two ends."""
        return f"{self.ends or name}_low", f"{self.ends or name}_high"


# ----------------------------------------------------------------------------------------------- charts


@dataclass(frozen=True)
class Axis:
    """A column of numbers and their unit."""

    column: str  # of numbers
    unit: str  # of these numbers, for the axis title
    # low, high: columns of the ends of its interval; of an `Estimate` they are filled in
    low: str = ""
    high: str = ""

    @property
    def title(self) -> str:
        """Column and unit."""
        return f"{self.column} ({self.unit})"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it needs."""
        return tuple(name for name in (self.column, self.low, self.high) if name)


@dataclass(frozen=True)
class Points:
    """Estimates with their intervals: a line per row, the largest of each panel."""

    value: Axis  # what is estimated
    label: tuple[str, ...]  # columns that name a line
    mark: str = ""  # column whose categories are told apart; none when empty
    panel: tuple[str, ...] = ()  # columns that name a panel
    prefer: tuple[str, Any] | None = None  # a column and its value: only these rows, when there are any

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns without which it cannot be drawn."""
        return (*self.value.columns, *self.label, *self.panel, *([self.mark] if self.mark else []))


@dataclass(frozen=True)
class Strip:
    """Many estimates of a group on one line, its categories side by side."""

    value: Axis  # what is estimated
    group: tuple[str, ...]  # columns that name a line
    mark: str = ""  # column whose categories are told apart; none when empty
    kept: str = "largest"  # "largest" or "spread", evenly over the ranks, of each group, when there are many

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns without which it cannot be drawn."""
        return (self.value.column, *self.group, *([self.mark] if self.mark else []))


@dataclass(frozen=True)
class Curves:
    """Estimates with their bands over a number."""

    x: Axis  # what they are over
    y: Axis  # what is estimated
    series: tuple[str, ...]  # columns that name a curve
    panel: tuple[str, ...] = ()  # columns that name a panel
    prefer: tuple[str, Any] | None = None  # a column and its value: only these rows, when there are any

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns without which it cannot be drawn."""
        return (*self.x.columns, *self.y.columns, *self.series, *self.panel)


@dataclass(frozen=True)
class Heat:
    """A value for each cell of a grid, written into it as well."""

    # across, down: columns that name a cell's place
    across: str
    down: tuple[str, ...]
    value: Axis  # what its colour and number show
    panel: tuple[str, ...] = ()  # columns that name a panel
    # the value that has no colour, from which colours go both ways; None for one that only grows
    centred: float | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns without which it cannot be drawn."""
        return (self.across, *self.down, self.value.column, *self.panel)


Chart = Points | Strip | Curves | Heat
"""What a table's chart shows; `results.plot` draws it for notebooks, `pages.draw` for pages."""

# ----------------------------------------------------------------------------------------------- tables


TABLES: dict[str, type[Table]] = {}
"""Name → class of every table that a stage writes, in the order of the stages; `iclens.schemas` fills it."""
FRAMES: dict[str, type[Table]] = {}
"""The same of the frames that a query makes, of which no stage has a file."""


def _cast(what: str, given: Sequence[Any] | NDArray[Any], kind: str) -> NDArray[Any]:
    """A copy of `given` as the column's type, refused when that would change a value."""
    typed = np.asarray(given)
    if typed.dtype.kind in _EXACT[kind]:
        return np.array(typed, dtype=_DTYPES[kind])
    held = np.asarray(given, dtype=object)
    allowed = {"str": str, "bool": (bool, np.bool_)}.get(kind, (int, float, np.number))
    strange = [value for value in held.ravel() if not isinstance(value, allowed)]
    if strange:
        raise TableError(what, f"holds {strange[0]!r}", f"Every value has to be of type {kind}.")
    try:
        values = np.array(held, dtype=_DTYPES[kind])
    except (ValueError, OverflowError) as cause:
        raise TableError(what, str(cause), f"Its type is {kind}.") from cause
    if kind == "int" and (values != held).any():
        raise TableError(what, f"holds {held[values != held][0]!r}", "Every value has to be a whole number.")
    return values


class Table:
    """Rows of a result. A subclass declares columns in its body, in order, as `Column` or `Estimate`.

    In `key` stand the columns that name a row, at most one each: shared columns, or names of columns of the
    body. Where one of them is shared, the key's columns come first. `chart` says how the rows are drawn. A
    subclass with a name is a table of a run, `<name>.parquet` of its stage; without a stage, a frame that a
    query makes. It is made of exactly the declared columns, all of one length, cast to their types.
    """

    key: ClassVar[tuple[Column | str, ...]] = ()
    chart: ClassVar[Chart | None] = None
    name: ClassVar[str] = ""
    stage: ClassVar[str] = ""
    file: ClassVar[str] = ""
    COLUMNS: ClassVar[dict[str, Column]] = {}
    KEY: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, name: str = "", stage: str = "") -> None:
        body, ends = dict(cls.COLUMNS), dict[str, tuple[str, str]]()
        for column, declared in vars(cls).items():
            if isinstance(declared, Estimate):
                body |= declared.columns(column)
                ends[column] = declared.names(column)
            elif isinstance(declared, Column):
                body[column] = declared
        shared = {part.name: part for part in cls.key if isinstance(part, Column)}
        cls.KEY = tuple(part if isinstance(part, str) else part.name for part in cls.key)
        body = shared | body
        cls.COLUMNS = {
            column: body[column] for column in [*(cls.KEY if shared else ()), *body] if column in body
        }
        cls.name, cls.stage, cls.file = name, stage, f"{name}.parquet" if stage else ""
        if cls.chart is not None:
            cls.chart = _with_ends(cls.chart, ends)
        unknown = {*cls.KEY, *(cls.chart.needs if cls.chart else ())} - cls.COLUMNS.keys()
        if unknown or name in TABLES or name in FRAMES:
            raise TypeError(
                f"{cls.__name__}: " + (f"no columns {unknown}" if unknown else f"a second '{name}'")
            )
        if name:
            (TABLES if stage else FRAMES)[name] = cls

    def __repr__(self) -> str:
        """Its name, how many rows, and that `.df` is a pandas frame of them."""
        return f"{type(self).__name__} of {len(self)} rows ({', '.join(self.COLUMNS)}); .df is a frame"

    def _repr_html_(self) -> str:
        """The first rows, in a notebook."""
        return self.df.head(20).to_html(index=False)

    def __init__(self, columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> None:
        name = type(self).__name__
        missing, strange = self.COLUMNS.keys() - columns.keys(), columns.keys() - self.COLUMNS.keys()
        if missing or strange:
            raise TableError(
                name,
                f"missing {sorted(missing)}, unknown {sorted(strange)}",
                f"Its columns are {', '.join(self.COLUMNS)}.",
            )
        self._columns: dict[str, NDArray[Any]] = {}
        for key, column in self.COLUMNS.items():
            values = _cast(f"{name}.{key}", columns[key], column.kind)
            if values.ndim != 1 or len(values) != len(next(iter(self._columns.values()), values)):
                raise TableError(
                    f"{name}.{key}", f"shape {values.shape}", "Give every column as a list of one length."
                )
            values.setflags(write=False)
            self._columns[key] = values

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A column as a read-only array."""
        if name not in self._columns:
            raise TableError(
                f"column '{name}'", f"{type(self).__name__} has {list(self._columns)}", "Choose one of these."
            )
        return self._columns[name]

    def where(self, mask: NDArray[np.bool_]) -> Self:
        """The rows where `mask` [row] holds."""
        return type(self)({name: values[mask] for name, values in self._columns.items()})

    def take(self, rows: NDArray[np.integer[Any]]) -> Self:
        """The rows of these numbers [row], in this order."""
        return type(self)({name: values[rows] for name, values in self._columns.items()})

    @property
    def df(self) -> pd.DataFrame:
        """The table as a new pandas frame."""
        import pandas as pd

        return pd.DataFrame({name: values.copy() for name, values in self._columns.items()})

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Self:
        """The table of some rows, each of which has all columns; no rows give an empty table."""
        listed = list(rows)
        return cls({name: [row[name] for row in listed] for name in cls.COLUMNS})

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """Rows of several tables, in order; no parts give an empty table."""
        empty = {name: np.empty(0, _DTYPES[c.kind]) for name, c in cls.COLUMNS.items()}
        return cls({name: np.concatenate([empty[name], *(p[name] for p in parts)]) for name in cls.COLUMNS})

    def save(self, path: Path) -> None:
        """Write as parquet."""
        self.df.to_parquet(path, index=False)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        import pandas as pd

        try:
            frame = pd.read_parquet(path)
        except (OSError, ValueError) as cause:
            raise TableError(f"{path}", f"unreadable ({cause})".replace("\n", " "), REDO_STAGE) from cause
        return cls({str(name): frame[name].to_numpy() for name in frame.columns})


def _with_ends(chart: Chart, ends: Mapping[str, tuple[str, str]]) -> Chart:
    """The chart, whose axes of estimates have the ends of their intervals."""
    changes: dict[str, Any] = {}
    for field in fields(chart):
        axis = getattr(chart, field.name)
        if isinstance(axis, Axis) and axis.column in ends:
            changes[field.name] = Axis(axis.column, axis.unit, *ends[axis.column])
    return replace(chart, **changes)


# ----------------------------------------------------------------------------------------------- arrays

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Strings = NDArray[np.str_]


def expect_shape(owner: str, **fields: tuple[NDArray[Any], tuple[int | str, ...]]) -> dict[str, int]:
    """The size of every named axis; equal names must have equal sizes, and fixed axes their own.

    A field is an array and its axes, for example `values=(v, ("prompt", "example", 5))`.
    """
    sizes: dict[str, int] = {}
    for name, (array, axes) in fields.items():
        if array.ndim != len(axes):
            raise TableError(f"{owner}.{name}", f"shape {array.shape}", f"Its axes are {list(axes)}.")
        for size, axis in zip(array.shape, axes, strict=True):
            wanted = axis if isinstance(axis, int) else sizes.setdefault(axis, size)
            if size != wanted:
                raise TableError(
                    f"{owner}.{name}",
                    f"axis '{axis}' has {size}, not {wanted}",
                    f"Its axes are {list(axes)}.",
                )
    return sizes


_CODES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "U8": np.uint8,
}  # fmt: skip
_LENGTH = 8
"""Bytes that give the length of the header, as the safetensors format says."""


def mapped_arrays(path: Path, advice: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays of a safetensors file as read-only maps, and its metadata; `advice` ends a refusal."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH), "little")
            size = path.stat().st_size
            if not 2 <= length <= size - _LENGTH:
                raise ValueError("its header is cut short")
            header: dict[str, Any] = json.loads(stream.read(length))
        meta = header.pop("__metadata__", {})
        start = _LENGTH + length
        arrays = {name: _mapped(path, start, size, entry) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        reason = " ".join(str(cause).split())
        raise TableError(f"{path}", f"unreadable ({reason})", advice) from cause
    return arrays, meta


def stretch(array: np.ndarray, first: int, last: int) -> np.ndarray:
    """Entries first..last−1 of an array [entry]; of a mapped one, only the pages that hold them are read.

    Without the hint, the kernel reads ahead at every page that it misses: megabytes for a few numbers.
    """
    held = array.base
    if (
        isinstance(array, np.memmap)
        and isinstance(held, mmap.mmap)
        and first < last
        and hasattr(mmap, "MADV_WILLNEED")
    ):
        begin = array.offset % mmap.ALLOCATIONGRANULARITY + first * array.itemsize
        page = begin - begin % mmap.PAGESIZE
        held.madvise(mmap.MADV_WILLNEED, page, begin + (last - first) * array.itemsize - page)
    return array[first:last]


def _mapped(path: Path, start: int, size: int, entry: dict[str, Any]) -> np.ndarray:
    first, last = entry["data_offsets"]
    dtype, shape = np.dtype(_CODES[entry["dtype"]]), tuple(entry["shape"])
    if start + last > size or last - first != dtype.itemsize * int(np.prod(shape)):
        raise ValueError("an array is cut short")
    if first == last:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=start + first, shape=shape)
