"""Contexts that were tokenised before: rows of token ids as they are kept, or a flat array that is cut.

| file | holds |
|---|---|
| .npy | ids, [row pos] or flat [token] |
| .npz, .safetensors | the same; with an attention mask as a second array, `input_ids` and `attention_mask` |
| .parquet, .jsonl | a column or field `input_ids` of lists, and `attention_mask` where there is one |

Lists of equal length are [row pos]; lists of different lengths are documents, joined to flat [token].

1. What is no token is left out: what a mask says, and padding. What is left of a row moves to its beginning,
so that its positions are those that the model knows, and is filled up with `PADDING` at its end, where under
causal attention no token sees it. 2. Every context begins with one BOS, when the tokenizer has one: of
several one is kept; where there is none it is put in front, for which the last token of a full row falls out.
3. The whole file is read once at the start: what its rows begin with is counted, an id that is no token is
refused with its row. 4. Held-out contexts are drawn at random; the others are taken in an order that is drawn
anew for every pass.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import ArrowException
from safetensors import SafetensorError, safe_open

from iclens.core import PADDING, ConfigError
from iclens.prompts.render import bos_id
from iclens.table import Ints
from iclens.training.config import TokenContexts

Bools = NDArray[np.bool_]
Row = tuple[int, np.ndarray | None, np.ndarray | None]
"""The number of a row in its file, from 1, its ids and its mask."""
IDS, MASK = "input_ids", "attention_mask"
NAMES = (IDS, "tokens", "token_ids")
"""Names of a column of token ids, the first that is there."""
SUFFIXES = (".npy", ".npz", ".safetensors", ".parquet", ".jsonl")
ONE, SEVERAL = "rows that begin with BOS", "rows that begin with several BOS, one kept"
NONE = "rows without BOS, put in front of them"
_SAVE = f"Save whole numbers, [context pos] or flat, as one of {', '.join(SUFFIXES)}."
_CHUNK = 1 << 22
"""Tokens looked at together."""
_RUN, _SHARE = 4, 0.05
"""Share of rows that begin or end with a run of so many equal tokens, from which these look like padding."""
_LONG = 8
"""Length of a run that looks like padding in fewer rows, when its id is special or stands nowhere else."""


class TokenSource:
    """Contexts of a file of token ids, read from disk as they are needed.

    Args:
        settings: the file, and the length into which a flat array is cut.
        reserved: how many contexts are held out.
        n_vocab: how many token ids the model knows; by default those of the tokenizer.

    Raises:
        ConfigError: when the file is missing, damaged, or no token ids, holds too few of them, or seems to be
            padded with an id that is not known as padding.
    """

    def __init__(
        self, settings: TokenContexts, tokenizer: Any, reserved: int, seed: int, held_out_seed: int,
        n_vocab: int | None = None,
    ) -> None:  # fmt: skip
        self._name, self._seed, self._tokenizer = f"tokens '{settings.path}'", seed, tokenizer
        self._bos, self._eos = bos_id(tokenizer), tokenizer.eos_token_id
        padding = tokenizer.pad_token_id if settings.padding_id is None else settings.padding_id
        self._padding = None if padding in (self._bos, self._eos) else padding
        self._declared, self._n_vocab = settings.padding_id, n_vocab or len(tokenizer)
        self._front, self._skipped, self._cut = 0, 0, False
        self._ids, self._mask = self._contexts(settings)
        self.length = self._ids.shape[1] + self._front
        self._facts: dict[str, int] = {}
        usable, self._digest = self._survey()
        order = np.random.default_rng([held_out_seed, 4]).permutation(usable)
        self._held_out, self._others = order[:reserved], order[reserved:]
        if not len(self._others):
            self._refuse_short()
        self._taken, self._pass = 0, -1

    def take(self, n_contexts: int) -> Ints:
        """The next contexts, [context pos]; `PADDING` where a row is filled up."""
        places = [self._place(number) for number in range(self._taken, self._taken + n_contexts)]
        self._taken += n_contexts
        return self._read(np.array(places))

    def held_out(self, n_contexts: int) -> Ints:
        """Contexts that `take` never gives, [context pos]."""
        if n_contexts > len(self._held_out):
            self._refuse_short()
        return self._read(self._held_out[:n_contexts])

    def facts(self) -> dict[str, int]:
        """Rows by what they begin with, and what was left out."""
        return dict(self._facts)

    def state(self) -> dict[str, Any]:
        """Where the source stands: how many contexts were taken."""
        return {"digest": self._digest, "taken": self._taken}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state; raises a ConfigError when the file holds other ids."""
        if state["digest"] != self._digest:
            raise ConfigError(
                self._name, "not the token ids that training began with",
                "Put the file back, or train anew under another --out.",
            )  # fmt: skip
        self._taken = state["taken"]

    def _contexts(self, settings: TokenContexts) -> tuple[Ints, Ints | None]:
        """Ids and mask as [context pos]; a flat array is cut so that BOS fits in front."""
        stored, wanted = read_tokens(settings.path), settings.context_tokens
        self._skipped = stored.skipped
        if stored.ids.ndim == 2:
            size = stored.ids.shape[1]
            if wanted not in (None, size):
                raise ConfigError(self._name, f"contexts of {size} tokens", "Leave data.context_tokens out.")
            return stored.ids, stored.mask
        if wanted is None:
            raise ConfigError(
                self._name, "flat or of rows that differ in length, its contexts have no length",
                "Give data.context_tokens: the rows are joined and cut.",
            )  # fmt: skip
        ids = stored.ids if stored.mask is None else stored.ids[stored.mask == 1]
        self._front, self._cut = 0 if self._bos is None else 1, True
        size = wanted - self._front
        return ids[: len(ids) // size * size].reshape(-1, size), None

    def _place(self, number: int) -> int:
        """Index of the context taken as number `number`; every pass has its own order."""
        turn, index = divmod(number, len(self._others))
        if turn != self._pass:
            self._pass = turn
            self._order = np.random.default_rng([self._seed, 5, turn]).permutation(self._others)
        return int(self._order[index])

    def _read(self, places: Ints) -> Ints:
        return self._tidy(*self._rows(places))[0]

    def _rows(self, places: Ints | slice) -> tuple[Ints, Bools]:
        """Ids as they are kept, [row pos], and where there is a token."""
        ids = np.asarray(self._ids[places]).astype(np.int64)
        there = np.ones(ids.shape, bool) if self._mask is None else self._mask[places] == 1
        if self._padding is not None:
            there &= ids != self._padding
        return ids, there & ~self._filler(ids)

    def _filler(self, ids: Ints) -> Bools:
        """Runs of BOS or EOS that fill rows up: at the end behind the first EOS, in front several EOS.

        One EOS in front fills a row up when BOS follows it. EOS declared as padding is padding throughout,
        unless a mask says more. Where ids are cut, one BOS or EOS is an end of a document.
        """
        filler = np.zeros(ids.shape, bool)
        if self._bos not in (None, self._eos) and not self._cut:
            filler |= _run(ids[:, ::-1] == self._bos)[:, ::-1]
        if self._eos is None:
            return filler
        last, first = _run(ids[:, ::-1] == self._eos)[:, ::-1], _run(ids == self._eos)
        if self._declared != self._eos or self._cut or self._mask is not None:
            last[:, 1:] &= last[:, :-1]  # the first of the run ends the text
            last[:, 0] = False
            size = first.sum(axis=1, keepdims=True)
            behind = np.take_along_axis(ids, np.minimum(size, ids.shape[1] - 1), axis=1)
            first &= (size > 1) | ((behind == self._bos) & (not self._cut))
        return filler | last | first

    def _tidy(self, ids: Ints, there: Bools) -> tuple[Ints, Ints]:
        """Contexts, [row pos], and with how many BOS each row began."""
        ids = without_gaps(ids, there)
        if self._bos is None:
            return ids, np.zeros(len(ids), int)
        begun = _run(ids == self._bos).sum(axis=1)
        if (begun > 1).any():
            ids = without_gaps(ids, (ids != PADDING) & (np.arange(ids.shape[1]) >= begun[:, None] - 1))
        if self._front:
            ids = np.pad(ids, ((0, 0), (0, 1)), constant_values=PADDING)
        bare = (begun == 0) & (ids[:, 0] != PADDING)
        ids[bare, 1:] = ids[bare, :-1]
        ids[bare, 0] = self._bos
        return ids, begun

    def _survey(self) -> tuple[Ints, str]:
        """Read everything once: indices of the rows that hold a token besides BOS, and a digest of all."""
        counts: dict[str, int] = dict.fromkeys(("rows", ONE, SEVERAL, NONE, "left out", "empty"), 0)
        usable, digest, ends = [], hashlib.sha256(), []
        occurrences = np.zeros(self._n_vocab, np.int64)
        step = max(1, _CHUNK // self._ids.shape[1])
        for start in range(0, len(self._ids), step):
            ids, there = self._rows(slice(start, start + step))
            digest.update(np.where(there, ids, PADDING).tobytes())
            wrong = np.argwhere(there & ((ids < 0) | (ids >= self._n_vocab)))
            if len(wrong):
                row, pos = wrong[0]
                raise ConfigError(
                    f"{self._name}, row {start + row + 1}",
                    f"id {ids[row, pos]} of a vocabulary of {self._n_vocab}",
                    f"Tokenise with the model's tokenizer; name padding in '{MASK}' or as data.padding_id.",
                )
            tokens, begun = self._tidy(ids, there)
            ends.append(_runs_at_ends(tokens, int(self._bos is not None)))
            occurrences += np.bincount(tokens[tokens != PADDING], minlength=self._n_vocab)
            full = ((tokens != PADDING) & (tokens != self._bos)).any(axis=1)
            usable.append(start + np.flatnonzero(full))
            counts["rows"] += len(ids)
            counts["empty"] += int((~full).sum())
            counts["left out"] += int((~there).sum())
            for name, some in ((ONE, begun == 1), (SEVERAL, begun > 1), (NONE, begun == 0)):
                counts[name] += int((some & full).sum())
        if self._declared is None:
            runs, lengths = (np.concatenate(parts) for parts in zip(*ends, strict=True))
            self._refuse_padding(runs, lengths, occurrences)
        if self._cut:
            self._facts = {"contexts cut behind BOS" if self._front else "contexts cut": counts["rows"]}
        elif self._bos is None:
            words = "rows as they stand, as the tokenizer has no BOS"
            self._facts = {"rows": counts["rows"], words: counts["rows"]}
        else:
            self._facts = {name: counts[name] for name in ("rows", ONE, SEVERAL, NONE)}
        self._facts["rows without tokens, left out"] = counts["empty"] + self._skipped
        self._facts["places of padding, left out"] = counts["left out"]
        return np.concatenate(usable), digest.hexdigest()

    def _refuse_padding(self, ids: Ints, lengths: Ints, occurrences: Ints) -> None:
        """Refuse rows that begin or end with runs of one id, which nothing says is padding.

        Args:
            ids: of the runs, [row end].
            lengths: of the runs, [row end].
            occurrences: how often each id stands in the whole file.
        """
        for end in range(2):
            token, length = ids[:, end], lengths[:, end]
            times, long = (np.bincount(token[length >= n], minlength=self._n_vocab) for n in (_RUN, _LONG))
            at_ends = np.bincount(token[length > 0], length[length > 0], self._n_vocab)
            looks = (times > max(1, _SHARE * len(ids))) | ((long > 1) & (at_ends == occurrences))
            for candidate in np.flatnonzero(long):
                looks[candidate] |= _special(self._tokenizer, int(candidate))
            if looks.any():
                padding = int(np.where(looks, times, 0).argmax())
                row = int(np.flatnonzero((token == padding) & (length >= _RUN))[0])
                text = self._tokenizer.convert_ids_to_tokens(padding)
                others = times[padding] - 1
                raise ConfigError(
                    f"{self._name}, row {row + 1}",
                    f"it {('begins', 'ends')[end]} with {length[row]} times id {padding} ({text!r})"
                    f"{f', as {others} other rows do,' if others else ','} which looks like padding",
                    f"Save an '{MASK}', or name the id that fills rows up as data.padding_id (any that does "
                    "not occur, when none does).",
                )

    def _refuse_short(self) -> None:
        raise ConfigError(
            self._name, f"it holds {len(self._ids)} contexts, none left to train on",
            "Give more tokens, shorter contexts or fewer held_out.contexts.",
        )  # fmt: skip


def _special(tokenizer: Any, token: int) -> bool:
    """Whether an id is a special token, which text does not hold."""
    added = tokenizer.added_tokens_decoder.get(token)
    return token in tokenizer.all_special_ids or (added is not None and added.special)


def _run(same: Bools) -> Bools:
    """The run of true with which each row begins, [row pos]."""
    return np.logical_and.accumulate(same, axis=1)


def without_gaps(ids: Ints, there: Bools) -> Ints:
    """The tokens [row pos] that are `there` at the begin of each row, in order, and `PADDING` behind them."""
    if there.all():
        return ids
    order = np.argsort(~there, axis=1, kind="stable")
    moved = np.take_along_axis(ids, order, axis=1)
    moved[np.arange(ids.shape[1]) >= there.sum(axis=1, keepdims=True)] = PADDING
    return moved


def _runs_at_ends(tokens: Ints, first: int) -> tuple[Ints, Ints]:
    """The id with which each row begins, from position `first`, and ends, and how often, [row end]."""
    length, rows = tokens.shape[1], np.arange(len(tokens))
    last, first = np.maximum((tokens != PADDING).sum(axis=1) - 1, 0), min(first, length - 1)
    ids = np.stack([tokens[:, first], tokens[rows, last]], axis=1)
    front = _run(tokens[:, first:] == ids[:, :1]).sum(axis=1)
    behind = np.arange(length) > last[:, None]
    back = _run(((tokens == ids[:, 1:]) | behind)[:, ::-1]).sum(axis=1) - behind.sum(axis=1)
    return ids, np.where(ids == PADDING, 0, np.stack([front, back], axis=1))


# ------------------------------------------------------------------------------------------ files


@dataclass(frozen=True)
class StoredTokens:
    """Token ids of a file."""

    ids: Ints  # [row pos] or flat [token]
    # 1 where there is a token and 0 where there is none, in the same shape; None: everywhere
    mask: Ints | None = None
    skipped: int = 0  # rows without ids: null, empty, or without the field


def read_tokens(path: Path) -> StoredTokens:
    """The token ids of a file; those of .npy are mapped into memory, so that their shape costs nothing."""
    name = f"tokens '{path}'"
    if path.suffix not in SUFFIXES:
        raise ConfigError(name, f"not one of {', '.join(SUFFIXES)}", _SAVE)
    try:
        if path.suffix == ".parquet":
            return _joined(f"{name}, row", _parquet(name, path))
        if path.suffix == ".jsonl":
            return _joined(f"{name}, line", _json_lines(name, path))
        return _arrays(name, path)
    except FileNotFoundError as cause:
        raise ConfigError(name, "no such file", "Give the path of a file of token ids.") from cause
    except (
        OSError, ValueError, EOFError, TypeError, SafetensorError, ArrowException, zipfile.BadZipFile,
        RecursionError, NotImplementedError,
    ) as cause:  # fmt: skip
        line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise ConfigError(name, f"it cannot be read ({line})", _SAVE) from cause


def _arrays(name: str, path: Path) -> StoredTokens:
    if path.suffix == ".npy":
        arrays: dict[str, np.ndarray] = {IDS: np.load(path, mmap_mode="r", allow_pickle=False)}
    elif path.suffix == ".npz":
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    else:
        with safe_open(path, framework="pt") as stored:
            arrays = {key: stored.get_tensor(key).numpy() for key in stored.keys()}  # noqa: SIM118
    mask = arrays.pop(MASK, None)
    keys = [key for key in NAMES if key in arrays] or list(arrays)
    if not keys or (len(arrays) > 1 and keys[0] not in NAMES):
        remedy = f"Save the ids as '{IDS}', and the mask as '{MASK}' where there is one."
        raise ConfigError(name, f"it holds {len(arrays)} arrays besides a mask", remedy)
    ids = arrays[keys[0]]
    if not np.issubdtype(ids.dtype, np.integer) or ids.ndim not in (1, 2) or 0 in ids.shape:
        raise ConfigError(name, f"it holds {ids.dtype} of shape {list(ids.shape)}, not token ids", _SAVE)
    if mask is None:
        return StoredTokens(ids)
    if mask.shape != ids.shape:
        shapes = f"'{MASK}' has the shape {list(mask.shape)}, the ids {list(ids.shape)}"
        raise ConfigError(name, shapes, "Give both one shape.")
    wrong = np.argwhere(~np.isin(mask, (0, 1)))
    if len(wrong):
        row = f"{name}, row {wrong[0][0] + 1}"
        raise ConfigError(row, f"'{MASK}' is not 0 or 1", "Save it as 0 and 1.")
    return StoredTokens(ids, mask.astype(np.int8))


def _joined(name: str, rows: Iterable[Row]) -> StoredTokens:
    """Rows of equal length as [row pos]; others as flat [token], without what the masks leave out."""
    full: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    skipped = 0
    for number, ids, mask in rows:
        if ids is None or not len(ids):
            skipped += 1
            continue
        full.append(ids)
        if mask is not None:
            if mask.shape != ids.shape or not np.isin(mask, (0, 1)).all():
                pair = f"{len(ids)} ids and '{MASK}' {mask.tolist()[:20]}"
                raise ConfigError(f"{name} {number}", pair, f"Give each id 0 or 1 in '{MASK}'.")
            masks.append(mask.astype(np.int8))
        if len(masks) not in (0, len(full)):
            remedy = "Give all rows one, or none."
            raise ConfigError(f"{name} {number}", f"some rows have '{MASK}', some not", remedy)
    if not full:
        raise ConfigError(name.rpartition(",")[0], "it holds no token ids", "Give rows of token ids.")
    joined, mask = np.concatenate(full), np.concatenate(masks) if masks else None
    if len(set(map(len, full))) > 1:
        return StoredTokens(joined if mask is None else joined[mask == 1], None, skipped)
    return StoredTokens(
        joined.reshape(len(full), -1), None if mask is None else mask.reshape(len(full), -1), skipped
    )


def _parquet(name: str, path: Path) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        key = _named(name, names)
        table = file.read(columns=[key, *([MASK] if MASK in names else [])])
    columns = [table.column(column) for column in table.column_names]
    whole = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_floating)  # kinds of a mask; first, of ids
    for column, kinds in zip(columns, (whole[:1], whole), strict=False):
        kind: Any = column.type
        listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not listed or not any(is_kind(kind.value_type) for is_kind in kinds):
            raise ConfigError(name, f"a column holds {kind}, not lists of whole numbers", _SAVE)
    for number, row in enumerate(zip(*columns, strict=True), start=1):
        cells: list[Any] = list(row)
        if not cells[0].is_valid:
            yield number, None, None
            continue
        if any(not cell.is_valid or cell.values.null_count for cell in cells):
            raise ConfigError(f"{name}, row {number}", "a token id or mask is null", _SAVE)
        ids, *mask = (cell.values.to_numpy(zero_copy_only=False) for cell in cells)
        yield number, ids, mask[0] if mask else None


def _json_lines(name: str, path: Path) -> Iterator[Row]:
    key = ""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where, correct = f"{name}, line {number}", "Correct or remove it."
            try:
                row = json.loads(line)
            except ValueError as cause:
                raise ConfigError(where, "it is not JSON", correct) from cause
            if not isinstance(row, dict):
                raise ConfigError(where, f"it is no object with '{IDS}'", correct)
            key = key or _named(where, row)
            ids, mask = row.get(key), row.get(MASK, [])
            if ids is None:
                yield number, None, None
                continue
            if not isinstance(ids, list) or not all(type(id_) is int and abs(id_) < 2**62 for id_ in ids):
                raise ConfigError(where, f"'{key}' is no list of whole numbers", correct)
            if not isinstance(mask, list) or not all(value in (0, 1) for value in mask):
                raise ConfigError(where, f"'{MASK}' is not 0 or 1", "Save it as 0 and 1.")
            yield number, np.array(ids, np.int64), np.array(mask, np.int64) if MASK in row else None


def _named(where: str, names: Iterable[str]) -> str:
    name = next((name for name in NAMES if name in names), None)
    if name is None:
        raise ConfigError(where, f"it has {sorted(names)}", f"Name the token ids '{IDS}'.")
    return name
