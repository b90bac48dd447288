"""Activations of contexts: recorded in one forward pass, and the positions that are left out.

Some positions, BOS above all, have activations hundreds of times longer than others. They hold nothing about
their token, and an SAE that sees them learns little else; so they are found, left out and reported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from iclens.errors import ConfigError
from iclens.models.blocks import run_blocks
from iclens.models.forward import attached
from iclens.models.load import LanguageModel
from iclens.names import Site
from iclens.tables.arrays import Ints
from iclens.training.config import Contexts
from iclens.training.data.streams import TokenStream

Record = Callable[[Ints, Sequence[Site]], dict[Site, Tensor]]
"""(tokens [context pos], sites) → activations of each site, [context pos d_model]."""
USUAL = 0.9
"""Share of positions that stay below the length with which a massive one is compared."""


def recorder(model: LanguageModel) -> Record:
    """Records every position of every site in one forward pass, which ends at the deepest site."""

    @torch.no_grad()
    def record(tokens: Ints, sites: Sequence[Site]) -> dict[Site, Tensor]:
        with attached(model, sites, np.arange(tokens.shape[1])) as seen:
            run_blocks(model.network, model.embed(tokens), 0, 1 + max(site.layer for site in sites))
        return seen.values

    return record


def kept_positions(length: int, excluded: Collection[int]) -> list[int]:
    """Positions of a context of `length` tokens that are not excluded.

    Raises:
        ConfigError: when there are none.
    """
    kept = [pos for pos in range(length) if pos not in excluded]
    if not kept:
        raise ConfigError("key 'excluded_positions'", f"all {length} of a context", "Leave some.")
    return kept


def kept_rows(
    record: Record, tokens: Ints, sites: Sequence[Site], excluded: Collection[int]
) -> dict[Site, Tensor]:
    """Activations of a block of contexts without the excluded positions.

    Returns:
        site → [row d_model], rows in the order of contexts, then positions.

    Raises:
        ConfigError: when every position is excluded.
    """
    kept = kept_positions(tokens.shape[1], excluded)
    found = record(tokens, sites)
    return {site: found.pop(site)[:, kept].flatten(0, 1) for site in sites}  # one at a time is held twice


def excluded_positions(
    settings: Contexts, record: Record, stream: TokenStream, sites: Sequence[Site]
) -> dict[int, str]:
    """The positions to leave out, and why: those listed, and those whose activations are massive.

    Massive, at any site and in any block of `stream.samples()`, is a position whose mean length over contexts
    exceeds `settings.massive.ratio` times the length that nine in ten positions stay below. (Not the median:
    in a prompt all tokens of one role can be ten times longer than the others, and they are to be studied.)

    Args:
        settings: the positions listed, and the ratio.
        record: gives the activations of contexts.
        stream: contexts; left as it was.
        sites: every site that is recorded.

    Returns:
        position → reason, in the order of positions.
    """
    found = dict.fromkeys(settings.excluded_positions, "listed in data.excluded_positions")
    if settings.massive is not None:
        largest: dict[int, tuple[float, str]] = {}
        for tokens in stream.samples():
            for site, x in record(tokens, sites).items():
                for pos, times in _massive(x, settings.massive.ratio).items():
                    largest[pos] = max(largest.get(pos, (0.0, "")), (times, site.short))
        for pos, (times, where) in largest.items():
            found.setdefault(pos, f"massive: {times:.0f} times the usual length at {where}")
    return dict(sorted(found.items()))


def _massive(x: Tensor, ratio: float) -> dict[int, float]:
    """Positions of x [context pos d_model] longer than `ratio` times the usual, and how many times longer."""
    length = x.float().norm(dim=2).mean(dim=0)
    times = (length / length.quantile(USUAL, interpolation="lower")).tolist()
    return {pos: times[pos] for pos in range(len(times)) if times[pos] > ratio}
