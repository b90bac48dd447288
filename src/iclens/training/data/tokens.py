"""Contexts that were tokenised before: rows of token ids as they are kept, or a flat array that is cut.

1. What is no token is left out: what an attention mask says, and padding. What is left of a row moves to its
beginning, so that its positions are those that the model knows, and is filled up with `PADDING` at its end,
where under causal attention no token sees it. 2. Every context begins with one BOS, when the tokenizer has
one: of several one is kept, and where there is none it is put in front, for which the last token of a full
row falls out. 3. The whole file is read once at the start: what its rows begin with is counted and told, an
id that is no token is refused with its row. 4. Contexts set aside are drawn at random; the others are taken
in an order that is drawn anew for every pass. The number taken says where a source stands.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iclens.core import ConfigError
from iclens.prompts.render import bos_id
from iclens.saes.quality import PADDING
from iclens.table import Ints
from iclens.training.config import TokenContexts
from iclens.training.data.contexts import Facts, State
from iclens.training.data.stored import MASK, read_tokens

Bools = NDArray[np.bool_]
ONE, SEVERAL, NONE = "rows that begin with BOS", "rows that begin with several BOS, one kept", (
    "rows without BOS, put in front of them"
)  # fmt: skip
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
        tokenizer: whose ids they are.
        reserved: how many contexts are set aside.
        seed: of the order.
        held_out_seed: draws the contexts set aside.
        n_vocab: how many token ids the model knows; by default those of the tokenizer.

    Raises:
        ConfigError: when the file is missing, damaged, or no token ids, holds too few of them, or seems to be
            padded with an id that is not known as padding.
    """

    def __init__(
        self, settings: TokenContexts, tokenizer: Any, reserved: int, seed: int, held_out_seed: int,
        n_vocab: int | None = None,
    ) -> None:  # fmt: skip
        self._asked, self._seed, self._tokenizer = f"tokens '{settings.path}'", seed, tokenizer
        self._bos, self._eos = bos_id(tokenizer), tokenizer.eos_token_id
        padding = tokenizer.pad_token_id if settings.padding_id is None else settings.padding_id
        self._padding = None if padding in (self._bos, self._eos) else padding
        self._declared, self._n_vocab = settings.padding_id, n_vocab or len(tokenizer)
        self._front, self._skipped, self._cut = 0, 0, False
        self._ids, self._mask = self._contexts(settings)
        self.length = self._ids.shape[1] + self._front
        self._facts: Facts = {}
        usable, self._digest = self._survey()
        order = np.random.default_rng([held_out_seed, 4]).permutation(usable)
        self._held_out, self._others = order[:reserved], order[reserved:]
        if not len(self._others):
            self._too_short()
        self._taken, self._pass = 0, -1

    def take(self, n_contexts: int) -> Ints:
        """The next contexts, [context pos]; `PADDING` where a row is filled up."""
        places = [self._place(number) for number in range(self._taken, self._taken + n_contexts)]
        self._taken += n_contexts
        return self._read(np.array(places))

    def held_out(self, n_contexts: int) -> Ints:
        """Contexts set aside, [context pos]."""
        if n_contexts > len(self._held_out):
            self._too_short()
        return self._read(self._held_out[:n_contexts])

    def facts(self) -> Facts:
        """Rows by what they begin with, and what was left out."""
        return dict(self._facts)

    def state(self) -> State:
        """Where it stands."""
        return {"digest": self._digest, "taken": self._taken}

    def restore(self, state: State) -> None:
        """Go on from there.

        Raises:
            ConfigError: when the file holds other ids.
        """
        if state["digest"] != self._digest:
            raise ConfigError(
                self._asked, "not the token ids that training began with",
                "Put the file back, or train anew under another --out.",
            )  # fmt: skip
        self._taken = state["taken"]

    def _contexts(self, settings: TokenContexts) -> tuple[Ints, Ints | None]:
        """Ids and mask as [context pos]; a flat array is cut so that BOS fits in front."""
        stored, wanted = read_tokens(settings.path), settings.context_tokens
        self._skipped = stored.skipped
        if stored.ids.ndim == 2:
            if wanted not in (None, stored.ids.shape[1]):
                raise ConfigError(
                    self._asked, f"contexts of {stored.ids.shape[1]} tokens", "Leave data.context_tokens out."
                )
            return stored.ids, stored.mask
        if wanted is None:
            raise ConfigError(
                self._asked, "flat or of rows that differ in length, its contexts have no length",
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
        ids = _to_the_left(ids, there)
        if self._bos is None:
            return ids, np.zeros(len(ids), int)
        begun = _run(ids == self._bos).sum(axis=1)
        if (begun > 1).any():
            ids = _to_the_left(ids, (ids != PADDING) & (np.arange(ids.shape[1]) >= begun[:, None] - 1))
        if self._front:
            ids = np.pad(ids, ((0, 0), (0, 1)), constant_values=PADDING)
        bare = (begun == 0) & (ids[:, 0] != PADDING)
        ids[bare, 1:] = ids[bare, :-1]
        ids[bare, 0] = self._bos
        return ids, begun

    def _survey(self) -> tuple[Ints, str]:
        """Read everything once: indices of the rows that hold a token besides BOS, and a digest of all."""
        counts: Facts = dict.fromkeys(("rows", ONE, SEVERAL, NONE, "left out", "empty"), 0)
        usable, digest, vocabulary = [], hashlib.sha256(), self._n_vocab
        seen = np.zeros(vocabulary, np.int64)
        ends: list[tuple[Ints, Ints]] = []
        step = max(1, _CHUNK // self._ids.shape[1])
        for start in range(0, len(self._ids), step):
            ids, there = self._rows(slice(start, start + step))
            digest.update(np.where(there, ids, PADDING).tobytes())
            wrong = np.argwhere(there & ((ids < 0) | (ids >= vocabulary)))
            if len(wrong):
                row, pos = wrong[0]
                raise ConfigError(
                    f"{self._asked}, row {start + row + 1}",
                    f"id {ids[row, pos]} of a vocabulary of {vocabulary}",
                    f"Tokenise with the model's tokenizer; name padding in '{MASK}' or as data.padding_id.",
                )  # fmt: skip
            tokens, begun = self._tidy(ids, there)
            ends.append(_runs_at_ends(tokens, int(self._bos is not None)))
            seen += np.bincount(tokens[tokens != PADDING], minlength=vocabulary)
            full = ((tokens != PADDING) & (tokens != self._bos)).any(axis=1)
            usable.append(start + np.flatnonzero(full))
            counts["rows"] += len(ids)
            counts["empty"] += int((~full).sum())
            counts["left out"] += int((~there).sum())
            for name, some in ((ONE, begun == 1), (SEVERAL, begun > 1), (NONE, begun == 0)):
                counts[name] += int((some & full).sum())
        if self._declared is None:
            runs, lengths = (np.concatenate(parts) for parts in zip(*ends, strict=True))
            self._refuse_padding(runs, lengths, seen)
        self._facts = self._told(counts)
        return np.concatenate(usable), digest.hexdigest()

    def _told(self, counts: Facts) -> Facts:
        told: Facts = {"rows": counts["rows"]}
        if self._cut:
            told = {"contexts cut behind BOS" if self._front else "contexts cut": counts["rows"]}
        elif self._bos is None:
            told["rows as they stand, as the tokenizer has no BOS"] = counts["rows"]
        else:
            told |= {name: counts[name] for name in (ONE, SEVERAL, NONE)}
        told["rows without tokens, left out"] = counts["empty"] + self._skipped
        return told | {"places of padding, left out": counts["left out"]}

    def _refuse_padding(self, ids: Ints, lengths: Ints, seen: Ints) -> None:
        """Refuse rows that begin or end with runs of one id, which nothing says is padding.

        Args:
            ids: of the runs, [row end].
            lengths: of the runs, [row end].
            seen: how often each id stands in the whole file.
        """
        for end in range(2):
            token, length = ids[:, end], lengths[:, end]
            times, long = (np.bincount(token[length >= n], minlength=len(seen)) for n in (_RUN, _LONG))
            at_ends = np.bincount(token[length > 0], length[length > 0], len(seen))
            looks = (times > max(1, _SHARE * len(ids))) | ((long > 1) & (at_ends == seen))
            for one in np.flatnonzero(long):
                looks[one] |= _special(self._tokenizer, int(one))
            if looks.any():
                padding = int(np.where(looks, times, 0).argmax())
                row = int(np.flatnonzero((token == padding) & (length >= _RUN))[0])
                text = self._tokenizer.convert_ids_to_tokens(padding)
                others = times[padding] - 1
                raise ConfigError(
                    f"{self._asked}, row {row + 1}",
                    f"it {('begins', 'ends')[end]} with {length[row]} times id {padding} ({text!r})"
                    f"{f', as {others} other rows do,' if others else ','} which looks like padding",
                    f"Save an '{MASK}', or name the id that fills rows up as data.padding_id (any that does "
                    "not occur, when none does).",
                )  # fmt: skip

    def _too_short(self) -> None:
        raise ConfigError(
            self._asked, f"it holds {len(self._ids)} contexts, none left to train on",
            "Give more tokens, shorter contexts or fewer held_out.contexts.",
        )  # fmt: skip


def _special(tokenizer: Any, token: int) -> bool:
    """Whether an id is a special token, which text does not hold."""
    added = tokenizer.added_tokens_decoder.get(token)
    return token in tokenizer.all_special_ids or (added is not None and added.special)


def _run(same: Bools) -> Bools:
    """The run of true with which each row begins, [row pos]."""
    return np.logical_and.accumulate(same, axis=1)


def _to_the_left(ids: Ints, there: Bools) -> Ints:
    """The tokens that are there at the beginning of each row, in their order, and `PADDING` behind them."""
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
