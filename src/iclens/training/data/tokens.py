"""Contexts that were tokenised before: an array of token ids, [context pos] or flat [token].

A flat array is cut into pieces that each get a BOS in front. Contexts set aside are drawn at random; the
others are taken in an order that is drawn anew for every pass. The number taken says where a source stands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from iclens.errors import ConfigError
from iclens.tables.arrays import Ints
from iclens.training.config import TokenContexts
from iclens.training.data.contexts import Facts, State


class TokenSource:
    """Contexts of an array of token ids, read from disk as they are needed.

    Args:
        settings: the file, and the length into which a flat array is cut.
        tokenizer: whose ids they are.
        reserved: how many contexts are set aside.
        seed: of the order.
        held_out_seed: draws the contexts set aside.

    Raises:
        ConfigError: when the file is missing, damaged, or no array of token ids, or holds too few of them.
    """

    def __init__(
        self, settings: TokenContexts, tokenizer: Any, reserved: int, seed: int, held_out_seed: int
    ) -> None:
        self._path, self._vocabulary, self._seed = settings.path, len(tokenizer), seed
        self._ids, self._prefix = _contexts(settings, tokenizer.bos_token_id)
        self.length = self._ids.shape[1] + len(self._prefix)
        order = np.random.default_rng([held_out_seed, 4]).permutation(len(self._ids))
        self._held_out, self._others = order[:reserved], order[reserved:]
        if not len(self._others):
            self._too_short()
        self._taken, self._pass = 0, -1

    def take(self, n_contexts: int) -> Ints:
        """The next contexts, [context pos].

        Raises:
            ConfigError: when an id is not one of the tokenizer's.
        """
        places = [self._place(number) for number in range(self._taken, self._taken + n_contexts)]
        self._taken += n_contexts
        return self._read(np.array(places))

    def held_out(self, n_contexts: int) -> Ints:
        """Contexts set aside, [context pos]."""
        if n_contexts > len(self._held_out):
            self._too_short()
        return self._read(self._held_out[:n_contexts])

    def state(self) -> State:
        """Where it stands."""
        return {"shape": list(self._ids.shape), "taken": self._taken}

    def facts(self) -> Facts:
        """Nothing."""
        return {}

    def restore(self, state: State) -> None:
        """Go on from there.

        Raises:
            ConfigError: when the array has another shape.
        """
        if state["shape"] != list(self._ids.shape):
            raise ConfigError(
                f"tokens '{self._path}'", "not the array that training began with",
                "Put it back, or train anew.",
            )  # fmt: skip
        self._taken = state["taken"]

    def _place(self, number: int) -> int:
        """Index of the context taken as number `number`; every pass has its own order."""
        turn, index = divmod(number, len(self._others))
        if turn != self._pass:
            self._pass = turn
            self._order = np.random.default_rng([self._seed, 5, turn]).permutation(self._others)
        return int(self._order[index])

    def _read(self, places: Ints) -> Ints:
        ids = self._ids[places].astype(np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self._vocabulary:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise ConfigError(
                f"tokens '{self._path}'", f"id {wrong} of a vocabulary of {self._vocabulary}",
                "Tokenise with the model's tokenizer.",
            )  # fmt: skip
        prefix = np.broadcast_to(np.array(self._prefix, dtype=np.int64), (len(ids), len(self._prefix)))
        return np.concatenate([prefix, ids], axis=1)

    def _too_short(self) -> None:
        raise ConfigError(
            f"tokens '{self._path}'", f"it holds {len(self._ids)} contexts, none left to train on",
            "Give more tokens, shorter contexts or fewer held_out.contexts.",
        )  # fmt: skip


def _contexts(settings: TokenContexts, bos: int | None) -> tuple[Ints, list[int]]:
    """The array as [context pos], and what is put before every context."""
    ids, wanted = read_ids(settings.path), settings.context_tokens
    if ids.ndim == 2:
        if wanted is not None and wanted != ids.shape[1]:
            raise ConfigError(
                f"tokens '{settings.path}'", f"contexts of {ids.shape[1]} tokens",
                "Leave data.context_tokens out.",
            )  # fmt: skip
        return ids, []
    if wanted is None:
        raise ConfigError(
            f"tokens '{settings.path}'", "flat, its contexts have no length", "Give data.context_tokens."
        )
    prefix = [] if bos is None else [bos]
    size = wanted - len(prefix)
    return ids[: len(ids) // size * size].reshape(-1, size), prefix


def read_ids(path: Path) -> Ints:
    """The array of a .npy or .safetensors file, mapped into memory.

    Raises:
        ConfigError: when it is missing, damaged, or holds anything but whole numbers in one or two axes.
    """
    asked = f"tokens '{path}'"
    if path.suffix not in (".npy", ".safetensors"):
        raise ConfigError(asked, "neither .npy nor .safetensors", "Save the ids as one of these.")
    try:
        if path.suffix == ".npy":
            ids = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with safe_open(path, framework="pt") as stored:
                names = list(stored.keys())
                if len(names) != 1:
                    raise ConfigError(asked, f"it holds {len(names)} arrays", "Keep one.")
                ids = stored.get_tensor(names[0]).numpy()
    except FileNotFoundError as cause:
        raise ConfigError(asked, "no such file", "Give a .npy or .safetensors file.") from cause
    except (OSError, ValueError, EOFError, TypeError, SafetensorError) as cause:
        line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise ConfigError(asked, f"cannot be read ({line})", "Save the ids again.") from cause
    if not np.issubdtype(ids.dtype, np.integer) or ids.ndim not in (1, 2) or 0 in ids.shape:
        raise ConfigError(
            asked, f"{ids.dtype} of shape {list(ids.shape)}", "Give whole numbers, [context pos]."
        )
    return ids
