"""Activations of contexts: recorded in one forward pass, and the tokens that are left out.

Some tokens, BOS above all, have activations hundreds of times longer than others. They hold nothing about
what was read, and an SAE that sees them learns little else; so they are found, left out and reported. BOS is
left out wherever it stands, padding always; other tokens only by their position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from iclens.core import ConfigError, Site
from iclens.model.load import LanguageModel
from iclens.model.run import attached, run_blocks
from iclens.saes.quality import PADDING, Bools, LeftOut
from iclens.table import Ints
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
            there = model.embed(np.where(tokens == PADDING, 0, tokens))  # no token sees padding
            run_blocks(model.network, there, 0, 1 + max(site.layer for site in sites))
        return seen.values

    return record


def kept_rows(record: Record, tokens: Ints, sites: Sequence[Site], kept: Bools) -> dict[Site, Tensor]:
    """Activations of the tokens of a block of contexts that are `kept` [context pos].

    Returns:
        site → [row d_model], rows in the order of contexts, then positions.

    Raises:
        ConfigError: when there is none.
    """
    if not kept.any():
        raise ConfigError(
            "key 'excluded_positions'", f"it leaves none of the {tokens.shape[1]} tokens of a context",
            "List fewer positions.",
        )  # fmt: skip
    found, chosen = record(tokens, sites), torch.as_tensor(np.flatnonzero(kept))
    rows = {}
    for site in sites:  # one at a time is held twice
        x = found.pop(site).flatten(0, 1)
        rows[site] = x[chosen.to(x.device)]
    return rows


def find_left_out(
    settings: Contexts, bos: int | None, record: Record, stream: TokenStream, sites: Sequence[Site]
) -> dict[str, dict[str, str]]:
    """What is left out, and why: BOS wherever it stands, the positions listed, and those that are massive.

    Massive, at any site and in any block of `stream.samples()`, is a position whose mean length over contexts
    exceeds `settings.massive.ratio` times the length that nine in ten positions stay below; BOS and padding
    count in neither. (Not the median: in a prompt all tokens of one role can be ten times longer than the
    others, and they are to be studied.)

    Args:
        settings: the positions listed, and the ratio.
        bos: id of BOS, if there is one.
        record: gives the activations of contexts.
        stream: contexts; left as it was.
        sites: every site that is recorded.

    Returns:
        `tokens` and `positions`, each id or position → reason.
    """
    ids = {} if bos is None else {str(bos): "BOS"}
    found = dict.fromkeys(settings.excluded_positions, "listed in data.excluded_positions")
    if settings.massive is not None:
        largest: dict[int, tuple[float, str]] = {}
        for tokens in stream.samples():
            kept = LeftOut(() if bos is None else (bos,)).kept(tokens)
            for site, x in record(tokens, sites).items():
                for pos, times in _massive(x, kept, settings.massive.ratio).items():
                    largest[pos] = max(largest.get(pos, (0.0, "")), (times, site.short))
        for pos, (times, where) in largest.items():
            found.setdefault(pos, f"massive: {times:.0f} times the usual length at {where}")
    return {"tokens": ids, "positions": {str(pos): found[pos] for pos in sorted(found)}}


def as_left_out(told: Mapping[str, Mapping[str, str]]) -> LeftOut:
    """What `find_left_out` found, as the rule that training and measuring share."""
    return LeftOut(tuple(map(int, told["tokens"])), tuple(map(int, told["positions"])))


def _massive(x: Tensor, kept: Bools, ratio: float) -> dict[int, float]:
    """Positions of x [context pos] whose `kept` tokens exceed `ratio` times the usual length, and how far."""
    weight = torch.as_tensor(kept, device=x.device).float()
    where = np.flatnonzero(kept.any(axis=0))
    length = (x.float().norm(dim=2) * weight).sum(dim=0)[where] / weight.sum(dim=0)[where]
    times = (length / length.quantile(USUAL, interpolation="lower")).tolist()
    return {int(pos): many for pos, many in zip(where, times, strict=True) if many > ratio}
