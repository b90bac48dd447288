"""Activations of all sites from one forward pass, shuffled.

1. The buffer is filled with rows from many contexts; every site keeps the same row at the same place.
2. Half of the rows, chosen at random, are served in batches. 3. Those are replaced by rows of fresh
contexts, and so on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from iclens.errors import ConfigError
from iclens.models.blocks import run_blocks
from iclens.models.forward import attached
from iclens.models.load import LanguageModel
from iclens.names import Site
from iclens.tables.arrays import Ints


def activation_blocks(
    model: LanguageModel, blocks: Iterator[Ints], sites: Sequence[Site], excluded: Sequence[int]
) -> Iterator[dict[Site, Tensor]]:
    """Activations of each block of contexts, one forward pass for all sites.

    Args:
        model: run only as far as the deepest site.
        blocks: token ids, [context pos].
        sites: what to record.
        excluded: positions to leave out.

    Yields:
        site → [row d_model], rows in the order of contexts, then positions.

    Raises:
        ConfigError: when every position is excluded.
    """
    stop = 1 + max(site.layer for site in sites)
    for tokens in blocks:
        kept = np.setdiff1d(np.arange(tokens.shape[1]), np.asarray(excluded, dtype=int))
        if not len(kept):
            raise ConfigError(
                "key 'excluded_positions'", f"all {tokens.shape[1]} of a context", "Leave some."
            )
        with torch.no_grad(), attached(model, sites, kept) as seen:
            ids = torch.as_tensor(tokens, device=model.device())
            run_blocks(model.network, model.network.model.embed_tokens(ids), 0, stop)
        yield {site: values.flatten(0, 1) for site, values in seen.values.items()}


class ShuffleBuffer:
    """Serves random batches of rows, the same rows of every site.

    Args:
        blocks: endless activations, site → [row d_model].
        capacity: rows kept.
        batch: rows per batch.
        generator: decides the order.
    """

    def __init__(
        self, blocks: Iterator[dict[Site, Tensor]], capacity: int, batch: int, generator: torch.Generator
    ) -> None:
        self._blocks, self._batch, self._generator = blocks, batch, generator
        first = next(blocks)
        self._waiting = first
        self.values = {site: x.new_empty(capacity, x.shape[1]) for site, x in first.items()}
        self._fill(torch.arange(capacity))

    def batches(self) -> Iterator[dict[Site, Tensor]]:
        """Endless batches, site → [row d_model]."""
        capacity = len(next(iter(self.values.values())))
        half = max(self._batch, capacity // 2 // self._batch * self._batch)
        while True:
            served = torch.randperm(capacity, generator=self._generator)[:half]
            for rows in served.split(self._batch):
                yield {site: x[rows.to(x.device)] for site, x in self.values.items()}
            self._fill(served)

    def _fill(self, places: Tensor) -> None:
        """Put fresh rows at `places`; what a block has left over waits for the next filling."""
        done = 0
        while done < len(places):
            if not len(next(iter(self._waiting.values()))):
                self._waiting = next(self._blocks)
            size = min(len(places) - done, len(next(iter(self._waiting.values()))))
            for site, x in self._waiting.items():
                self.values[site][places[done : done + size].to(x.device)] = x[:size]
            self._waiting = {site: x[size:] for site, x in self._waiting.items()}
            done += size
