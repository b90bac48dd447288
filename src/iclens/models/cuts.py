"""What does a position hold when it may not look at chosen earlier ones?

1. A `Cut` names edges of attention, a query and a key each, and the blocks in which they are removed. 2. In
those blocks the scores of these edges are −∞ before the softmax, in every head, so that the other keys share
what they had. 3. Sites are recorded as by `forward.record`; a block without a cut runs as it always does.

What enters: a model, tokens, sites, positions and cuts. What leaves: activations. An edge that is cut in one
block is not cut in the others, and what other positions took from the key still reaches the query through
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from iclens.errors import EditError
from iclens.models.blocks import run_blocks, visible
from iclens.models.forward import attached, batches
from iclens.models.load import LanguageModel, as_numpy
from iclens.names import Site, position
from iclens.tables.arrays import Floats, Ints


@dataclass(frozen=True)
class Cut:
    """Edges of attention that are removed in some blocks, in all heads and every row.

    Args:
        queries: position that looks, [edge].
        keys: position that it no longer sees, [edge].
        layers: blocks in which the edges are removed.
    """

    queries: Ints
    keys: Ints
    layers: Sequence[int]

    def __post_init__(self) -> None:
        shapes = np.shape(self.queries), np.shape(self.keys)
        if shapes[0] != shapes[1] or len(shapes[0]) != 1:
            raise EditError(
                "cut of attention", f"queries {shapes[0]} and keys {shapes[1]}", "Give one key per query."
            )

    @classmethod
    def within(cls, query: str, keys: Sequence[str], examples: Sequence[int], layers: Sequence[int]) -> Cut:
        """The edges from one role of each example to other roles of the same example.

        Args:
            query: role that looks.
            keys: roles that it no longer sees.
            examples: examples in which it is so, from 0.
            layers: blocks in which the edges are removed.

        Raises:
            SiteError: for an unknown role.
        """
        edges = [(position(query, j), position(key, j)) for j in examples for key in keys]
        both = np.array(edges, dtype=np.int64).reshape(-1, 2)
        return cls(both[:, 0], both[:, 1], tuple(layers))


@torch.no_grad()
def record_cut(
    model: LanguageModel, tokens: Ints, sites: Sequence[Site], positions: Ints, cuts: Sequence[Cut],
    *, batch: int = 128,
) -> dict[Site, Floats]:  # fmt: skip
    """Activations of `sites` at `positions` with edges of attention removed.

    Args:
        model: the model; only blocks up to the deepest site are run.
        tokens: [row pos].
        sites: what to record.
        positions: [pos].
        cuts: their edges are removed together; without any, this is `forward.record`.
        batch: rows per forward pass.

    Returns:
        site → float32 [row pos d_model].

    Raises:
        EditError: when an edge lies outside the prompt, its key is later than its query, or a query would
            have no key left.
        SiteError: when the model has no such block.
    """
    stop = 1 + max(site.layer for site in sites)
    masks = _masks(model, cuts, tokens.shape[1])
    parts: dict[Site, list[Floats]] = {site: [] for site in sites}
    for rows, _ in batches(tokens, batch, ()):
        with attached(model, sites, positions) as seen:
            run_blocks(model.network, model.embed(rows), 0, stop, masks=masks)
        for site in sites:
            parts[site].append(as_numpy(seen.values[site]))
    return {site: np.concatenate(found) for site, found in parts.items()}


def _masks(model: LanguageModel, cuts: Sequence[Cut], length: int) -> Mapping[int, Tensor]:
    """What is added to the scores in each block that has a cut, [1 1 pos pos]: −∞ at unseen keys, edges."""
    positions, seen = torch.arange(length), dict[int, np.ndarray]()
    uncut = visible(model.network, positions, positions).numpy()
    for cut in cuts:
        queries, keys = np.asarray(cut.queries), np.asarray(cut.keys)
        _check(queries, keys, length)
        for layer in cut.layers:
            model.check_site(Site(layer, "z"))
            if len(queries):
                kept = seen.setdefault(layer, uncut.copy())
                kept[queries, keys] = False
    for layer, kept in seen.items():
        blind = np.flatnonzero(~kept.any(axis=1))
        if len(blind):
            raise EditError(
                f"cut of attention in block {layer}", f"position {blind[0]} has no key left", "Leave it one."
            )
    like = next(model.network.parameters())
    return {
        layer: torch.zeros(kept.shape, dtype=like.dtype, device=like.device).masked_fill(
            torch.as_tensor(~kept, device=like.device), -torch.inf
        )[None, None]
        for layer, kept in seen.items()
    }


def _check(queries: Ints, keys: Ints, length: int) -> None:
    if not len(queries):
        return
    outside = (np.minimum(queries, keys) < 0) | (np.maximum(queries, keys) >= length)
    later = keys > queries
    for wrong, why in ((outside, f"prompts of {length} positions"), (later, "a query sees no later key")):
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            raise EditError(
                f"cut of attention from {queries[first]} to {keys[first]}", why, "Choose edges that exist."
            )
