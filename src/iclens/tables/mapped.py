"""Arrays of a safetensors file, mapped into memory rather than read."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from iclens.errors import TableError

_DTYPES = {
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
    dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
    if start + last > size or last - first != dtype.itemsize * int(np.prod(shape)):
        raise ValueError("an array is cut short")
    if first == last:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=start + first, shape=shape)
