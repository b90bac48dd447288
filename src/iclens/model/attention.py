"""Attention patterns, what heads write, and knockout: query-to-key edges removed in chosen blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iclens.core import SIX_TOKENS, EditError, Layout, ModelError, Site
from iclens.model.architectures import Rotary, visible
from iclens.model.load import LanguageModel, as_numpy
from iclens.model.run import Edit, Packed, attached, batches, record, rows_at, run_blocks
from iclens.table import Floats, Ints

# ----------------------------------------------------------------------------------------------- patterns


@torch.no_grad()
def attention_patterns(
    model: LanguageModel, tokens: Ints, layers: Sequence[int], queries: Ints,
    *, edits: Sequence[Edit] = (), batch: int = 32,
) -> dict[int, Floats]:  # fmt: skip
    """Attention probabilities, softmax over keys no later than the query of q·k / √d_head.

    Queries and keys are what the architecture multiplies, after its rotation and norms; scores are scaled and
    capped as it does so. For `tokens` [row column] and columns `queries` [query] that look: layer → float32
    [row head query key], keys by column. Each query's masses sum to 1; keys it cannot see, as those before a
    sliding window, have none, nor has padding.
    """
    where, length = np.asarray(queries), tokens.shape[1]
    for layer in layers:
        model.check_site(Site(layer, "z"))
    if not len(where) or where.min() < 0 or where.max() >= length:
        raise EditError(
            f"attention from positions {where.tolist()}", f"prompts of {length}", "Choose positions in them."
        )
    stop = 1 + max([*layers, *(edit.site.layer for edit in edits)])
    parts: dict[int, list[Floats]] = {layer: [] for layer in layers}
    for rows, some in batches(tokens, batch, edits):
        embedded = model.embed(rows.ids)
        with attached(model, (), where, some, rows), _queries_and_keys(model, layers) as projected:
            run_blocks(model.network, embedded, 0, stop)
        positions, kinds = torch.arange(embedded.shape[1], device=embedded.device), model.adapter.kinds
        rotary = {kind: model.adapter.rotary(embedded, positions[None], kind) for kind in kinds}
        for layer in layers:
            made = [projected[layer, i] for i in range(len(model.adapter.qkv[:2]))]
            pattern = as_numpy(_pattern(model, layer, made, rotary[kinds[layer]], rows.at(where)))
            if rows.place is not None:  # the last position, which is no token's, is seen by none
                pattern = np.take_along_axis(pattern, rows.place[:, None, None], axis=3)
            parts[layer].append(pattern)
    return {layer: np.concatenate(part) for layer, part in parts.items()}


@contextmanager
def _queries_and_keys(model: LanguageModel, layers: Sequence[int]) -> Iterator[dict[tuple[int, int], Tensor]]:
    """What the projections to queries and keys give in some blocks, by layer and projection."""
    projected: dict[tuple[int, int], Tensor] = {}
    handles = []
    try:
        for layer in layers:
            for i, projection in enumerate(model.adapter.projections(model.adapter.layers[layer])):
                handles.append(
                    projection.register_forward_hook(
                        lambda _module, _args, output, at=(layer, i): projected.update({at: output})
                    )
                )
        yield projected
    finally:
        for handle in handles:
            handle.remove()


def _pattern(
    model: LanguageModel, layer: int, projected: Sequence[Tensor], rotary: Rotary, where: Ints
) -> Tensor:
    """One block's pattern [row head query key]; several heads share a key where keys are fewer."""
    adapter, block = model.adapter, model.adapter.layers[layer]
    q, k = adapter.queries_keys(block, projected, rotary)  # [row head pos d_head], [row kv_head pos d_head]
    at = torch.as_tensor(where, device=q.device)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    looking = rows_at(q.transpose(1, 2), at).transpose(1, 2)  # [row head query d_head]
    scores = looking.float() @ k.float().transpose(2, 3)  # [row head query key]
    scores = adapter.scores(block, scores)
    keys, reach = torch.arange(k.shape[2], device=q.device), adapter.reach(adapter.kinds[layer])
    seen = (
        visible(at, keys, reach)
        if at.ndim == 1
        else torch.stack([visible(of_row, keys, reach) for of_row in at])[:, None]
    )
    return scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)


# -------------------------------------------------------------------------------------- what heads write


def head_outputs(model: LanguageModel, layer: int, z: Floats) -> Tensor:
    """What each head adds to the residual stream, z_h @ W_O,h, float32 [row head d_model].

    z is the heads' outputs side by side, before their projection, [row head·d_head]. Where a norm stands
    between this and the stream, its gain and each row's own division are in it: all heads' outputs add up to
    attn_out, less what the projection's bias adds.
    """
    written = torch.einsum("rhd,hdm->rhm", _heads(model, z), output_weights(model, layer))
    if (norm := _norm_after(model, layer)) is None:
        return written
    return written * model.adapter.gain(norm) / _division(model, layer, z)[:, None, None]


def head_changes(model: LanguageModel, layer: int, before: Floats, after: Floats) -> Tensor:
    """How what each head adds to the residual stream changes, [row head d_model], with z as above."""
    if _norm_after(model, layer) is None:
        return head_outputs(model, layer, after - before)
    return head_outputs(model, layer, after) - head_outputs(model, layer, before)


def head_dots(model: LanguageModel, layer: int, z: Floats, directions: Floats) -> Floats:
    """Dot product of each head's output with one direction per row [row d_model], as [row head]; z as above.

    The direction goes back through the output projection, so that no [row head d_model] is made.
    """
    along = torch.as_tensor(directions, dtype=torch.float32, device=model.device())
    if (norm := _norm_after(model, layer)) is not None:
        along = along * model.adapter.gain(norm) / _division(model, layer, z)[:, None]
    seen_by_heads = torch.einsum("rm,hdm->rhd", along, output_weights(model, layer))
    return as_numpy((_heads(model, z) * seen_by_heads).sum(dim=-1))


def output_weights(model: LanguageModel, layer: int) -> Tensor:
    """Each head's part of a block's output projection, W_O, float32 [head d_head d_model]."""
    return model.adapter.head_weights(_block(model, layer), "o")[0].detach().float()


def carried(model: LanguageModel, layer: int, directions: Floats | Tensor) -> Tensor:
    """What each head writes for a position that it looks at alone, W_O,h W_V,h (g ⊙ d), [row head d_model].

    d [row d_model] stands in the residual over its root mean square; g is the weight of the block's input
    norm, and d less its mean where that is a LayerNorm. Weighted with the pattern over all keys, this adds up
    to the head's output, less its value's bias and what a LayerNorm adds.

    Raises:
        ModelError: for an architecture without a norm before attention, or with one after it.
    """
    adapter, block = model.adapter, _block(model, layer)
    if reason := adapter.not_carried:
        raise ModelError(f"what heads of '{model.name}' carry", reason, "Choose another model.")
    d = adapter.centred(torch.as_tensor(directions, dtype=torch.float32, device=model.device()))
    # W_V,h · diag(g), [head d_head d_model]; heads that share a value have the same rows
    weight = adapter.head_weights(block, "v")[0].detach().float()
    weight = weight.repeat_interleave(model.n_heads // weight.shape[0], dim=0)
    weight = weight * adapter.gain(adapter.norm(block, adapter.before_attention))
    values = torch.einsum("rm,hdm->rhd", d, weight)
    return torch.einsum("rhd,hdm->rhm", values, output_weights(model, layer))


def _block(model: LanguageModel, layer: int) -> Any:
    return model.adapter.layers[model.check_site(Site(layer, "z")).layer]


def _norm_after(model: LanguageModel, layer: int) -> Any:
    """The norm between what heads write and the stream, or None."""
    return model.adapter.norm(_block(model, layer), model.adapter.after_attention)


def _division(model: LanguageModel, layer: int, z: Floats) -> Tensor:
    """What the norm after attention divides each row by, [row]."""
    adapter, block = model.adapter, _block(model, layer)
    weight, bias = adapter.head_weights(block, "o")
    written = torch.einsum("rhd,hdm->rm", _heads(model, z), weight.detach().float())
    written = written if bias is None else written + bias.detach().float()
    by = adapter.divisor(_norm_after(model, layer), as_numpy(written).astype(np.float64))
    return torch.as_tensor(by, dtype=torch.float32, device=model.device())


def _heads(model: LanguageModel, z: Floats) -> Tensor:
    """Heads' outputs side by side [... head·d_head] as float32 [... head d_head]."""
    side_by_side = torch.as_tensor(z, dtype=torch.float32, device=model.device())
    return side_by_side.unflatten(-1, (model.n_heads, model.d_head))


# ---------------------------------------------------------------------------------------------- knockout


@dataclass(frozen=True)
class Knockout:
    """Edges of attention that are removed in some blocks, in all heads and every row."""

    queries: Ints  # position that looks, [edge]
    keys: Ints  # position that it no longer sees, [edge]
    layers: Sequence[int]  # blocks in which the edges are removed

    def __post_init__(self) -> None:
        shapes = np.shape(self.queries), np.shape(self.keys)
        if shapes[0] != shapes[1] or len(shapes[0]) != 1:
            raise EditError(
                "attention knockout", f"queries {shapes[0]} and keys {shapes[1]}", "Give one key per query."
            )

    @classmethod
    def within(
        cls, query: str, keys: Sequence[str], examples: Sequence[int], layers: Sequence[int],
        layout: Layout = SIX_TOKENS,
    ) -> Knockout:  # fmt: skip
        """The edges from role `query` of each example (from 0) to roles `keys` of the same example."""
        edges = [(layout.position(query, j), layout.position(key, j)) for j in examples for key in keys]
        both = np.array(edges, dtype=np.int64).reshape(-1, 2)
        return cls(both[:, 0], both[:, 1], tuple(layers))


def record_knockout(
    model: LanguageModel, tokens: Ints, sites: Sequence[Site], positions: Ints, knockouts: Sequence[Knockout],
    *, batch: int = 128,
) -> dict[Site, Floats]:  # fmt: skip
    """Activations, as `model.run.record` gives them, with the edges of all `knockouts` removed together."""
    masks = partial(_masks, model, knockouts)
    return record(model, tokens, sites, positions, masks=masks, batch=batch)


def _masks(model: LanguageModel, knockouts: Sequence[Knockout], rows: Packed) -> dict[int, Tensor]:
    """What is added to the scores in each block with a knockout: −∞ where no key is seen.

    [1 1 pos pos], or [row 1 pos pos] where the rows' columns stand at other positions.
    """
    positions, visible_at = torch.arange(rows.ids.shape[1]), dict[int, np.ndarray]()
    adapter = model.adapter
    length, every_row = (len(positions), 1) if rows.place is None else rows.place.shape[::-1]
    intact = {kind: visible(positions, positions, adapter.reach(kind)).numpy() for kind in set(adapter.kinds)}
    for knockout in knockouts:
        queries, keys = np.asarray(knockout.queries), np.asarray(knockout.keys)
        outside = (np.minimum(queries, keys) < 0) | (np.maximum(queries, keys) >= length)
        for wrong, why in (
            (outside, f"prompts of {length} positions"), (keys > queries, "a query sees no later key"),
        ):  # fmt: skip
            if wrong.any():
                first = int(np.flatnonzero(wrong)[0])
                raise EditError(
                    f"knockout of attention from {queries[first]} to {keys[first]}", why,
                    "Choose edges that exist.",
                )  # fmt: skip
        for layer in knockout.layers:
            model.check_site(Site(layer, "z"))
            if len(queries):
                whole = np.tile(intact[adapter.kinds[layer]], (every_row, 1, 1))
                kept = visible_at.setdefault(layer, whole)  # [row pos pos]
                kept[np.arange(every_row)[:, None], rows.at(queries), rows.at(keys)] = False
    for layer, kept in visible_at.items():
        if len(blind := np.flatnonzero(~kept.any(axis=2).all(axis=0))):
            raise EditError(
                f"knockout of attention in block {layer}", f"position {blind[0]} has no key left",
                "Leave it one.",
            )  # fmt: skip
    like = next(model.network.parameters())
    return {
        layer: torch.zeros(kept.shape, dtype=like.dtype, device=like.device).masked_fill(
            torch.as_tensor(~kept, device=like.device), -torch.inf
        )[:, None]
        for layer, kept in visible_at.items()
    }
