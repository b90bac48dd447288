"""Attention patterns, what heads write, and knockout: query-to-key edges removed in chosen blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from iclens.core import SIX_TOKENS, EditError, Layout, Site
from iclens.model.load import LanguageModel, as_numpy
from iclens.model.run import Edit, Packed, attached, batches, record, rows_at, run_blocks, visible
from iclens.table import Floats, Ints

# ----------------------------------------------------------------------------------------------- patterns


@torch.no_grad()
def attention_patterns(
    model: LanguageModel, tokens: Ints, layers: Sequence[int], queries: Ints,
    *, edits: Sequence[Edit] = (), batch: int = 32,
) -> dict[int, Floats]:  # fmt: skip
    """Attention probabilities, softmax_k(q·k / √d_head) over keys no later than the query.

    For `tokens` [row column] and columns `queries` [query] that look: layer → float32 [row head query key],
    keys by column. Each query's masses sum to 1; keys it cannot see, as those before a sliding window, have
    none, nor has padding.
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
        positions = torch.arange(embedded.shape[1], device=embedded.device)
        rotary = model.network.model.rotary_emb(embedded, positions[None])
        for layer in layers:
            query, key = projected[layer, "q_proj"], projected[layer, "k_proj"]
            pattern = as_numpy(_pattern(model, layer, query, key, rotary, rows.at(where)))
            if rows.place is not None:  # the last position, which is no token's, is seen by none
                pattern = np.take_along_axis(pattern, rows.place[:, None, None], axis=3)
            parts[layer].append(pattern)
    return {layer: np.concatenate(part) for layer, part in parts.items()}


@contextmanager
def _queries_and_keys(model: LanguageModel, layers: Sequence[int]) -> Iterator[dict[tuple[int, str], Tensor]]:
    """Queries and keys of blocks before their rotation, [row pos head·d_head], by layer and projection."""
    projected: dict[tuple[int, str], Tensor] = {}
    handles = []
    try:
        for layer in layers:
            for name in ("q_proj", "k_proj"):
                handles.append(
                    getattr(model.network.model.layers[layer].self_attn, name).register_forward_hook(
                        lambda _module, _args, output, at=(layer, name): projected.update({at: output})
                    )
                )
        yield projected
    finally:
        for handle in handles:
            handle.remove()


def _pattern(
    model: LanguageModel, layer: int, query: Tensor, key: Tensor, rotary: tuple[Tensor, Tensor], where: Ints
) -> Tensor:
    """One block's pattern [row head query key]; several heads share a key where keys are fewer."""
    q, k = (part.unflatten(-1, (-1, model.d_head)).transpose(1, 2) for part in (query, key))
    q, k = apply_rotary_pos_emb(q, k, *rotary)  # [row head pos d_head], [row kv_head pos d_head]
    at = torch.as_tensor(where, device=q.device)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    looking = rows_at(q.transpose(1, 2), at).transpose(1, 2)  # [row head query d_head]
    scores = looking.float() @ k.float().transpose(2, 3)  # [row head query key]
    scores = scores * model.network.model.layers[layer].self_attn.scaling
    keys = torch.arange(k.shape[2], device=q.device)
    seen = (
        visible(model.network, at, keys)
        if at.ndim == 1
        else torch.stack([visible(model.network, of_row, keys) for of_row in at])[:, None]
    )
    return scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)


# -------------------------------------------------------------------------------------- what heads write


def head_outputs(model: LanguageModel, layer: int, z: Floats) -> Tensor:
    """What each head adds to the residual stream, z_h @ W_O,h, float32 [row head d_model].

    z is the heads' outputs side by side, before their projection, [row head·d_head].
    """
    return torch.einsum("rhd,hdm->rhm", _heads(model, z), output_weights(model, layer))


def head_dots(model: LanguageModel, layer: int, z: Floats, directions: Floats) -> Floats:
    """Dot product of each head's output with one direction per row [row d_model], as [row head]; z as above.

    The direction goes back through the output projection, so that no [row head d_model] is made.
    """
    along = torch.as_tensor(directions, dtype=torch.float32, device=model.device())
    seen_by_heads = torch.einsum("rm,hdm->rhd", along, output_weights(model, layer))
    return as_numpy((_heads(model, z) * seen_by_heads).sum(dim=-1))


def output_weights(model: LanguageModel, layer: int) -> Tensor:
    """Each head's columns of a block's output projection, W_O, float32 [head d_head d_model]."""
    weight = model.network.model.layers[model.check_site(Site(layer, "z")).layer].self_attn.o_proj.weight
    return weight.detach().float().T.unflatten(0, (model.n_heads, model.d_head))


def carried(model: LanguageModel, layer: int, directions: Floats | Tensor) -> Tensor:
    """What each head writes for a position that it looks at alone, W_O,h W_V,h (g ⊙ d), [row head d_model].

    d [row d_model] stands in the residual over its root mean square; g is the weight of the block's input
    norm. Weighted with the pattern over all keys, this adds up to the head's output, less its value's bias.
    """
    block = model.network.model.layers[model.check_site(Site(layer, "z")).layer]
    d = torch.as_tensor(directions, dtype=torch.float32, device=model.device())
    # W_V,h · diag(g), [head d_head d_model]; heads that share a value have the same rows
    weight = block.self_attn.v_proj.weight.detach().float().unflatten(0, (-1, model.d_head))
    weight = weight.repeat_interleave(model.n_heads // weight.shape[0], dim=0)
    weight = weight * block.input_layernorm.weight.detach().float()
    values = torch.einsum("rm,hdm->rhd", d, weight)
    return torch.einsum("rhd,hdm->rhm", values, output_weights(model, layer))


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
    length, every_row = (len(positions), 1) if rows.place is None else rows.place.shape[::-1]
    intact = visible(model.network, positions, positions).numpy()
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
                kept = visible_at.setdefault(layer, np.tile(intact, (every_row, 1, 1)))  # [row pos pos]
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
