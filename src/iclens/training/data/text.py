"""Contexts of running text: documents are tokenised, joined, and cut into contexts that each begin with BOS.

The first contexts are set aside. A finite text is read again from its start, without them. The place of the
current document, what was carried into it and how far it was cut say where a source stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from iclens.errors import ConfigError
from iclens.tables.arrays import Ints
from iclens.training.config import TextContexts
from iclens.training.data.contexts import State
from iclens.training.data.documents import Documents, Place, open_documents


class TextSource:
    """Running text, packed to one length.

    Args:
        settings: names the text and the length.
        tokenizer: gives token ids; a context begins with its BOS token, if it has one.
        reserved: how many contexts, from the first, are set aside.

    Raises:
        ConfigError: when there is no such text.
    """

    def __init__(self, settings: TextContexts, tokenizer: Any, reserved: int) -> None:
        self.length = settings.context_tokens
        self._settings, self._tokenizer, self._reserved = settings, tokenizer, reserved
        self._prefix = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self._documents: Documents = open_documents(settings)
        self._enter(None)

    def take(self, n_contexts: int) -> Ints:
        """The next contexts, [context pos].

        Raises:
            ConfigError: when the text ends before the contexts set aside do, or cannot be read.
        """
        found: list[list[int]] = []
        while len(found) < n_contexts:
            context = self._cut()
            if context is None:
                if self._count <= self._reserved:
                    self._too_short(self._count)
                self._enter(None)
            elif self._count > self._reserved:
                found.append(context)
        return np.array(found, dtype=np.int64)

    def held_out(self, n_contexts: int) -> Ints:
        """The first contexts, [context pos].

        Raises:
            ConfigError: when there are not so many.
        """
        fresh = TextSource(self._settings, self._tokenizer, 0)
        found: list[list[int]] = []
        while len(found) < n_contexts and (context := fresh._cut()) is not None:
            found.append(context)
        if len(found) < n_contexts:
            self._too_short(len(found))
        return np.array(found, dtype=np.int64)

    def state(self) -> State:
        """Where it stands: the document, the tokens carried into it, and how far both are cut."""
        return {
            "text": self._documents.identity(), "count": self._count, "open": self._open,
            "place": self._place, "carried": self._carried, "at": self._at,
        }  # fmt: skip

    def restore(self, state: State) -> None:
        """Go on from there.

        Raises:
            ConfigError: when the text is not the one of the state.
        """
        if state["text"] != self._documents.identity():
            raise ConfigError(
                f"dataset '{self._settings.dataset}'", "not the files that training began with",
                "Put them back, or train anew.",
            )  # fmt: skip
        self._enter(state["place"])
        self._count, self._carried = state["count"], list(state["carried"])
        if state["open"]:
            self._ids = list(self._carried)
            self._read_on()
            self._at = state["at"]

    def _enter(self, place: Place) -> None:
        """Stand before the document at `place`, with nothing carried."""
        self._reader: Iterator[tuple[str, Place]] = self._documents.read(place)
        self._place, self._after = place, place
        self._open = False
        self._carried: list[int] = []
        self._ids: list[int] = []
        self._at = self._count = 0

    def _cut(self) -> list[int] | None:
        """The next context of this pass over the text; None at its end."""
        size = self.length - len(self._prefix)
        while len(self._ids) - self._at < size:
            if not self._read_on():
                return None
        context = self._prefix + self._ids[self._at : self._at + size]
        self._at += size
        self._count += 1
        return context

    def _read_on(self) -> bool:
        """Take the next document behind what is left of this one; False when there is none."""
        found = next(self._reader, None)
        if found is None:
            return False
        self._place, (text, self._after) = self._after, found
        self._carried = self._ids[self._at :]
        new = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        self._ids, self._at, self._open = self._carried + new, 0, True
        return True

    def _too_short(self, n_contexts: int) -> None:
        raise ConfigError(
            f"dataset '{self._settings.dataset}'",
            f"it holds {n_contexts} contexts of {self.length} tokens, none left to train on",
            "Give more text, shorter contexts or fewer held_out.contexts.",
        )
