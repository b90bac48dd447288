"""Contexts of running text: documents are tokenised, joined, and cut into contexts that each begin with BOS.

The first contexts are set aside. A finite text is read again from its start, without them. The place of the
current document, what was carried into it and how far it was cut say where a source stands; the document's
digest finds it again when rows before it were changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from iclens.core import ConfigError
from iclens.prompts.render import bos_id, text_ids
from iclens.table import Ints
from iclens.training.config import TextContexts
from iclens.training.data.contexts import Facts, State
from iclens.training.data.documents import CORRECT, Documents, Place, digest_of, open_documents

ROWS, WITHOUT = "rows read", "rows without text, skipped"
HALVED = "rows with half of a surrogate pair, read as U+FFFD"


class TextSource:
    """Running text, packed to one length.

    Args:
        settings: names the text and the length.
        tokenizer: gives token ids; a context begins with its BOS token, if it has one.
        reserved: how many contexts, from the first, are set aside.
        n_vocab: how many token ids the model knows; by default those of the tokenizer.

    Raises:
        ConfigError: when there is no such text.
    """

    def __init__(
        self, settings: TextContexts, tokenizer: Any, reserved: int, n_vocab: int | None = None
    ) -> None:
        self.length = settings.context_tokens
        self._settings, self._tokenizer, self._reserved = settings, tokenizer, reserved
        self._n_vocab, self._first_pass = n_vocab or len(tokenizer), True
        bos = bos_id(tokenizer)
        self._prefix = [] if bos is None else [bos]
        self._documents: Documents = open_documents(settings)
        self._facts: Facts = {ROWS: 0, WITHOUT: 0, HALVED: 0}
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
                self._first_pass = False
            elif self._count > self._reserved:
                found.append(context)
        return np.array(found, dtype=np.int64)

    def held_out(self, n_contexts: int) -> Ints:
        """The first contexts, [context pos].

        Raises:
            ConfigError: when there are not so many.
        """
        fresh = TextSource(self._settings, self._tokenizer, 0, self._n_vocab)
        found: list[list[int]] = []
        while len(found) < n_contexts and (context := fresh._cut()) is not None:
            found.append(context)
        if len(found) < n_contexts:
            fresh._too_short(len(found))
        return np.array(found, dtype=np.int64)

    def facts(self) -> Facts:
        """Rows read so far, each once, and in how many of them the text was missing or changed."""
        return dict(self._facts)

    def state(self) -> State:
        """Where it stands: the document, the tokens carried into it, and how far both are cut."""
        return {
            "text": self._documents.identity(), "count": self._count, "open": self._open,
            "place": self._place, "digest": self._digest, "carried": self._carried, "at": self._at,
            "facts": dict(self._facts), "first_pass": self._first_pass,
        }  # fmt: skip

    def restore(self, state: State) -> None:
        """Go on from there, also when other rows of the text were changed since.

        Raises:
            ConfigError: when the text is not the one of the state.
        """
        if state["text"] != self._documents.identity():
            self._changed(f"it is {self._documents.identity()}, training began with {state['text']}")
        self._enter(state["place"])
        if state["open"] and not self._opens(state["place"], state):
            place = self._documents.find(state["digest"], state["place"])
            if place is None or not self._opens(place, state):
                self._changed("the row at which training stopped is not there any more")
        self._count, self._at, self._facts = state["count"], state["at"], dict(state["facts"])
        self._carried, self._first_pass = list(state["carried"]), state["first_pass"]

    def _opens(self, place: Place, state: State) -> bool:
        """Open the document at `place`; whether it is the one of the state."""
        self._enter(place)
        self._ids = list(state["carried"])
        try:
            return self._read_on() and self._digest == state["digest"]
        except ConfigError:  # a byte in the middle of a row, after rows before it were changed
            return False

    def _changed(self, found: str) -> None:
        raise ConfigError(
            f"dataset '{self._settings.dataset}'", f"not the text that training began with: {found}",
            "Put it back as it was up to there, or train anew under another --out.",
        )  # fmt: skip

    def _enter(self, place: Place) -> None:
        """Stand before the document at `place`, with nothing carried."""
        self._reader: Iterator[tuple[str | None, Place]] = self._documents.read(place)
        self._place, self._after = place, place
        self._open, self._digest = False, ""
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
        for text, after in self._reader:
            whole = None if text is None else well_formed(text)
            new = [] if whole is None else self._tokens(whole, after)
            self._place, self._after = self._after, after
            if self._first_pass:
                self._facts[ROWS] += 1
                self._facts[WITHOUT] += text is None
                self._facts[HALVED] += whole != text
            if text is None:
                continue
            self._carried, self._digest = self._ids[self._at :], digest_of(text)
            self._ids, self._at, self._open = self._carried + new, 0, True
            return True
        return False

    def _tokens(self, text: str, after: Place) -> list[int]:
        """Token ids of the document before `after`."""
        ids = text_ids(self._tokenizer, text)
        if ids and max(ids) >= self._n_vocab:
            raise ConfigError(
                self._documents.where(after),
                f"its text holds token {max(ids)}, and the model knows tokens 0 to {self._n_vocab - 1}",
                CORRECT,
            )
        return ids

    def _too_short(self, n_contexts: int) -> None:
        without = f" ({self._facts[WITHOUT]} rows have no text)" if self._facts[WITHOUT] else ""
        raise ConfigError(
            f"dataset '{self._settings.dataset}'",
            f"it holds {n_contexts} contexts of {self.length} tokens{without}, none left to train on",
            "Give more text, shorter contexts or fewer held_out.contexts.",
        )


def well_formed(text: str) -> str:
    """The text with every half of a surrogate pair, which JSON may hold but no UTF-8, as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
