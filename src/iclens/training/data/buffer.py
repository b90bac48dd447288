"""A buffer of activations that mixes contexts: the same rows of every site, each served once.

1. `capacity` rows are filled from the stream, at all sites at the same places. 2. A round serves a random
half of the places in batches. 3. Before the next round these places take fresh rows; what a block of contexts
has left over waits for the round after. Memory is taken once. Order follows from the seed and the round's
number, so that place in the stream, round, batch and rows are the whole state: also after an error of the
stream or the model, which leaves the buffer behind the last block that came whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iclens.core import ConfigError, Site
from iclens.saes.quality import PADDING, LeftOut
from iclens.training.data.activations import Record, kept_rows
from iclens.training.data.contexts import Facts
from iclens.training.data.streams import TokenStream


class ActivationBuffer:
    """Serves random batches of rows; nothing is run before the first of them is asked for.

    Args:
        record: gives the activations of contexts, all of one dtype and device for each site.
        stream: contexts.
        sites: what to record.
        left_out: tokens that are not served.
        capacity: rows kept; at least two batches.
        batch: rows per batch.
        seed: decides the order.
        device: where the rows are kept and served.

    Raises:
        ConfigError: when fewer than two batches fit.
    """

    def __init__(
        self, record: Record, stream: TokenStream, sites: Sequence[Site], left_out: LeftOut,
        *, capacity: int, batch: int, seed: int, device: str | torch.device = "cpu",
    ) -> None:  # fmt: skip
        if capacity < 2 * batch:
            raise ConfigError("key 'buffer_tokens'", "less than two batches", "Give a larger buffer.")
        self._record, self._stream, self._sites = record, stream, tuple(sites)
        self._rule, self._capacity, self._batch, self._seed = left_out, capacity, batch, seed
        self._device = torch.device(device)
        self._rows: dict[Site, Tensor] = {}
        self._waiting: dict[Site, Tensor] = {}
        self._n_waiting = self._left_out = 0
        self._filled, self._at = False, stream.state()
        self._start_round(0, 0)

    def next(self) -> dict[Site, Tensor]:
        """The next batch, site → [row d_model]; the same rows at every site."""
        self._fill_once()
        if self._served == len(self._places):
            self._fill(self._places)
            self._start_round(self._round + 1, 0)
        batch = self._places[self._served : self._served + self._batch]
        self._served += self._batch
        return {site: x[batch] for site, x in self._rows.items()}

    def give_back(self) -> None:
        """Let the last batch be the next one again."""
        self._served -= self._batch

    def rows(self, site: Site) -> Tensor:
        """The rows of a site that the buffer holds now, [capacity d_model]; not a copy."""
        self._fill_once()
        return self._rows[site]

    def tensors(self) -> dict[str, Tensor]:
        """All rows, held and waiting, by site and part; not copies, so save them before the next batch."""
        held = {f"{site.short}.rows": x for site, x in self._rows.items()}
        return held | {f"{site.short}.waiting": x for site, x in self._waiting.items()}

    def state(self) -> dict[str, Any]:
        """What besides `tensors` decides the following batches, the place in the stream included."""
        return {
            "stream": self._at, "filled": self._filled, "round": self._round, "served": self._served,
            "fresh": self._fresh, "waiting": self._n_waiting, "left_out": self._left_out,
            "shape": [self._capacity, self._batch],
        }  # fmt: skip

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on where `tensors` and `state` were taken; the following batches are the same, bit for bit.

        The tensors become the buffer's own when they are on its device already.

        Raises:
            ConfigError: when they are of another buffer.
        """
        sites = self._sites if state["filled"] else ()
        absent = {f"{site.short}.{part}" for site in sites for part in ("rows", "waiting")} - tensors.keys()
        if list(state["shape"]) != [self._capacity, self._batch] or absent:
            raise ConfigError(
                "buffer of the checkpoint", "it has other sites or sizes", "Resume with the config it is of."
            )
        self._stream.restore(state["stream"])
        self._start_round(state["round"], state["served"])
        self._at, self._fresh = state["stream"], state["fresh"]
        self._filled, self._n_waiting = state["filled"], state["waiting"]
        self._left_out = state["left_out"]
        self._rows, self._waiting = (
            {site: tensors[f"{site.short}.{part}"].to(self._device) for site in sites}
            for part in ("rows", "waiting")
        )

    def facts(self) -> Facts:
        """What is to be known of the data read so far, and how many tokens of it were left out."""
        return self._stream.facts() | {"tokens left out": self._left_out}

    def _start_round(self, number: int, served: int) -> None:
        """Draw the places that a round serves, in order: whole batches, about half of all."""
        half = max(self._batch, self._capacity // 2 // self._batch * self._batch)
        order = np.random.default_rng([self._seed, 3, number]).permutation(self._capacity)[:half]
        self._places = torch.as_tensor(order, device=self._device)
        self._round, self._served = number, served
        self._fresh = 0  # places of this round that hold the next round's rows already

    def _fill_once(self) -> None:
        if not self._filled:
            self._take_block()
            self._rows = {site: x.new_empty(self._capacity, x.shape[1]) for site, x in self._waiting.items()}
            self._fill(torch.arange(self._capacity, device=self._device))
            self._fresh, self._filled = 0, True

    def _fill(self, places: Tensor) -> None:
        """Put fresh rows at `places`, in the order of the stream; goes on where an error stopped it."""
        while self._fresh < len(places):
            if not self._n_waiting:
                self._take_block()
            size = min(len(places) - self._fresh, self._n_waiting)
            at = places[self._fresh : self._fresh + size]
            for site, x in self._waiting.items():
                self._rows[site][at] = x[:size]
                self._waiting[site] = x[size:]
            self._n_waiting -= size
            self._fresh += size

    def _take_block(self) -> None:
        """Let the rows of the next block of contexts wait; those of the last block are freed before."""
        self._waiting = {site: x.new_empty(0, x.shape[1]) for site, x in self._waiting.items()}
        tokens = self._stream.next()
        kept = self._rule.kept(tokens)
        rows = kept_rows(self._record, tokens, self._sites, kept)
        self._n_waiting = int(kept.sum())
        self._left_out += int((tokens != PADDING).sum()) - self._n_waiting
        self._waiting = {site: x.to(self._device) for site, x in rows.items()}
        self._at = self._stream.state()
