"""Files of token ids: arrays, and rows with an attention mask, as public datasets keep them.

| file | holds |
|---|---|
| .npy | ids, [row pos] or flat [token] |
| .npz, .safetensors | the same; with an attention mask as a second array, `input_ids` and `attention_mask` |
| .parquet, .jsonl | a column or field `input_ids` of lists, and `attention_mask` where there is one |

Lists of equal length are [row pos]; lists of different lengths are documents, joined to flat [token].
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ArrowException
from safetensors import SafetensorError, safe_open

from iclens.core import ConfigError
from iclens.table import Ints

IDS, MASK = "input_ids", "attention_mask"
NAMES = (IDS, "tokens", "token_ids")
"""Names of a column of token ids, the first that is there."""
SUFFIXES = (".npy", ".npz", ".safetensors", ".parquet", ".jsonl")
_SAVE = f"Save whole numbers, [context pos] or flat, as one of {', '.join(SUFFIXES)}."


@dataclass(frozen=True)
class StoredTokens:
    """Token ids of a file.

    Args:
        ids: [row pos] or flat [token].
        mask: 1 where there is a token and 0 where there is none, in the same shape; None: everywhere.
        skipped: rows without ids: null, empty, or without the field.
    """

    ids: Ints
    mask: Ints | None = None
    skipped: int = 0


def read_tokens(path: Path) -> StoredTokens:
    """The token ids of a file; those of .npy are mapped into memory.

    Raises:
        ConfigError: when it is missing, damaged, or holds anything but token ids.
    """
    asked = f"tokens '{path}'"
    if path.suffix not in SUFFIXES:
        raise ConfigError(asked, f"not one of {', '.join(SUFFIXES)}", _SAVE)
    try:
        if path.suffix == ".parquet":
            return _joined(asked, "row", *_parquet(path))
        if path.suffix == ".jsonl":
            return _joined(asked, "line", *_json_lines(path))
        return _array(asked, path)
    except FileNotFoundError as cause:
        raise ConfigError(asked, "no such file", "Give the path of a file of token ids.") from cause
    except (
        OSError, ValueError, EOFError, TypeError, SafetensorError, ArrowException, zipfile.BadZipFile,
        RecursionError, NotImplementedError,
    ) as cause:  # fmt: skip
        line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise ConfigError(asked, f"it cannot be read ({line})", _SAVE) from cause


def tokens_shape(path: Path) -> tuple[int, ...]:
    """Shape of the ids of a file, [row pos] or flat [token]; of an array, from its header alone.

    Raises:
        ConfigError: as `read_tokens`.
    """
    return tuple(read_tokens(path).ids.shape)


def _array(asked: str, path: Path) -> StoredTokens:
    if path.suffix == ".npy":
        return StoredTokens(_whole(asked, np.load(path, mmap_mode="r", allow_pickle=False)))
    if path.suffix == ".npz":
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    else:
        with safe_open(path, framework="pt") as stored:
            arrays = {name: stored.get_tensor(name).numpy() for name in stored.keys()}  # noqa: SIM118
    mask = arrays.pop(MASK, None)
    names = [name for name in NAMES if name in arrays] or list(arrays)
    if not names or (len(arrays) > 1 and names[0] not in NAMES):
        raise ConfigError(
            asked, f"it holds {len(arrays)} arrays besides a mask",
            f"Save the ids as '{IDS}', and the mask as '{MASK}' where there is one.",
        )  # fmt: skip
    ids = _whole(asked, arrays[names[0]])
    if mask is None:
        return StoredTokens(ids)
    if mask.shape != ids.shape:
        found = f"'{MASK}' has the shape {list(mask.shape)}, the ids {list(ids.shape)}"
        raise ConfigError(asked, found, "Give both one shape.")
    return StoredTokens(ids, _mask(asked, mask))


def _whole(asked: str, ids: np.ndarray) -> Ints:
    if not np.issubdtype(ids.dtype, np.integer) or ids.ndim not in (1, 2) or 0 in ids.shape:
        raise ConfigError(asked, f"it holds {ids.dtype} of shape {list(ids.shape)}, not token ids", _SAVE)
    return ids


def _mask(asked: str, mask: np.ndarray) -> Ints:
    wrong = np.argwhere(~np.isin(mask, (0, 1)))
    if len(wrong):
        raise ConfigError(f"{asked}, row {wrong[0][0] + 1}", f"'{MASK}' is not 0 or 1", "Save it as 0 and 1.")
    return mask.astype(np.int8)


Lists = Sequence[np.ndarray]


def _joined(
    asked: str, unit: str, numbers: Sequence[int], rows: Lists, masks: Lists | None, skipped: int
) -> StoredTokens:
    """Rows of equal length as [row pos]; others as flat [token], without what the masks leave out.

    Empty rows are skipped.
    """
    if not sum(map(len, rows)):
        raise ConfigError(asked, "it holds no token ids", "Give rows of token ids.")
    for number, row, mask in zip(numbers, rows, masks or (), strict=masks is not None):
        if mask.shape != row.shape or not np.isin(mask, (0, 1)).all():
            found = f"{len(row)} ids and '{MASK}' {mask.tolist()[:20]}"
            raise ConfigError(f"{asked}, {unit} {number}", found, f"Give each id 0 or 1 in '{MASK}'.")
    mask = None if masks is None else np.concatenate(masks).astype(np.int8)
    full = [row for row in rows if len(row)]
    ids, lengths, skipped = np.concatenate(full), set(map(len, full)), skipped + len(rows) - len(full)
    if len(lengths) > 1:
        return StoredTokens(ids if mask is None else ids[mask == 1], None, skipped)
    shape = (len(full), lengths.pop())
    return StoredTokens(ids.reshape(shape), None if mask is None else mask.reshape(shape), skipped)


def _parquet(path: Path) -> tuple[list[int], Lists, Lists | None, int]:
    """Numbers of the rows that are not null, their ids, their masks, and how many are null."""
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        name = _named(f"tokens '{path}'", names)
        table = file.read(columns=[name, *([MASK] if MASK in names else [])])
    ids, mask = table.column(name), table.column(MASK) if MASK in names else None
    numbers = [n for n, valid in enumerate(ids.is_valid().to_pylist(), start=1) if valid]
    asked = f"tokens '{path}'"
    rows = _lists(asked, ids, numbers, _NUMERIC[:1])
    masks = None if mask is None else _lists(asked, mask, numbers, _NUMERIC)
    return numbers, rows, masks, len(ids) - len(numbers)


_NUMERIC = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_floating)
"""Kinds of values in which a mask is kept as 0 and 1; the first is that of token ids."""


def _lists(
    asked: str, column: pa.ChunkedArray, numbers: Sequence[int], kinds: Sequence[Callable[[Any], bool]]
) -> Lists:
    """The rows of these numbers, from 1, as arrays of one of these kinds of value."""
    kind: Any = column.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not listed or not any(is_kind(kind.value_type) for is_kind in kinds):
        raise ConfigError(asked, f"a column holds {kind}, not lists of whole numbers", _SAVE)
    rows = []
    for number in numbers:
        row: Any = column[number - 1]
        if not row.is_valid or row.values.null_count:
            raise ConfigError(f"{asked}, row {number}", "a token id or mask is null", _SAVE)
        rows.append(row.values.to_numpy(zero_copy_only=False))
    return rows


def _json_lines(path: Path) -> tuple[list[int], Lists, Lists | None, int]:
    """As `_parquet`, of the lines that are not blank."""
    numbers, rows, masks, name, skipped = [], [], [], "", 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            asked = f"tokens '{path}', line {number}"
            try:
                found = json.loads(line)
            except ValueError as cause:
                raise ConfigError(asked, "it is not JSON", "Correct or remove it.") from cause
            if not isinstance(found, dict):
                raise ConfigError(asked, f"it is no object with '{IDS}'", "Correct or remove it.")
            name = name or _named(asked, found)
            if found.get(name) is None:
                skipped += 1
                continue
            numbers.append(number)
            rows.append(_list(asked, found, name))
            if MASK in found:
                masks.append(_json_mask(asked, found[MASK]))
            if len(masks) not in (0, len(rows)):
                raise ConfigError(asked, f"some rows have '{MASK}', some not", "Give all rows one, or none.")
    return numbers, rows, masks or None, skipped


def _list(asked: str, row: Mapping[str, Any], name: str) -> np.ndarray:
    ids = row[name]
    if not isinstance(ids, list) or not all(type(one) is int and abs(one) < 2**62 for one in ids):
        raise ConfigError(asked, f"'{name}' is no list of whole numbers", "Correct or remove it.")
    return np.array(ids, dtype=np.int64)


def _json_mask(asked: str, mask: Any) -> np.ndarray:
    if not isinstance(mask, list) or not all(one in (0, 1) for one in mask):
        raise ConfigError(asked, f"'{MASK}' is not 0 or 1", "Save it as 0 and 1.")
    return np.array(mask, dtype=np.int64)


def _named(asked: str, names: Any) -> str:
    name = next((name for name in NAMES if name in names), None)
    if name is None:
        raise ConfigError(asked, f"it has {sorted(names)}", f"Name the token ids '{IDS}'.")
    return name
