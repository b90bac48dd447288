"""Table: named, typed, documented columns; and the arrays that hold more than rows can."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Column:
    """A column's type ("int", "float", "str" or "bool"), and its meaning with units."""

    kind: str
    meaning: str


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
    """Rows of a result; subclasses declare `COLUMNS`, and in `KEY` those that name a row, at most one each.

    Args:
        columns: name → values, all of one length; exactly the declared columns, cast to their types.

    Raises:
        TableError: when a column is missing, unknown, of another length or not of its type.
    """

    COLUMNS: ClassVar[dict[str, Column]] = {}
    KEY: ClassVar[tuple[str, ...]] = ()

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
    def concat(cls, parts: Sequence[Self]) -> Self:
        """Rows of several tables, in order; no parts give an empty table."""
        empty = {name: np.empty(0, _DTYPES[c.kind]) for name, c in cls.COLUMNS.items()}
        return cls({name: np.concatenate([empty[name], *(p[name] for p in parts)]) for name in cls.COLUMNS})

    def save(self, path: Path) -> None:
        """Write as parquet."""
        self.df.to_parquet(path, index=False)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            TableError: when the file is missing, damaged or holds other columns.
        """
        import pandas as pd

        try:
            frame = pd.read_parquet(path)
        except (OSError, ValueError) as cause:
            raise TableError(f"{path}", f"unreadable ({cause})".replace("\n", " "), REDO_STAGE) from cause
        return cls({str(name): frame[name].to_numpy() for name in frame.columns})


Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Strings = NDArray[np.str_]


def expect_shape(owner: str, **fields: tuple[NDArray[Any], tuple[int | str, ...]]) -> dict[str, int]:
    """Check each field's shape against named or fixed axes; equal names must have equal sizes.

    Args:
        owner: the table's name, for the message.
        **fields: field name → (array, axes), for example `values=(v, ("prompt", "example", 5))`.

    Returns:
        The size of every named axis.

    Raises:
        TableError: naming the first field and axis that disagree.
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
    """Arrays of a safetensors file as read-only maps, and its metadata.

    Args:
        path: the file.
        advice: what to do when it cannot be read, for the error.

    Raises:
        TableError: when it is missing, cut short or not safetensors.
    """
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
