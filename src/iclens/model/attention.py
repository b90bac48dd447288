"""Attention patterns, and attention knockout: query-to-key edges removed in chosen blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from iclens.core import EditError, Site, position
from iclens.model.load import LanguageModel, as_numpy
from iclens.model.run import Edit, attached, batches, run_blocks, visible
from iclens.table import Floats, Ints


@torch.no_grad()
def attention_patterns(
    model: LanguageModel, tokens: Ints, layers: Sequence[int], queries: Ints,
    *, edits: Sequence[Edit] = (), batch: int = 32,
) -> dict[int, Floats]:  # fmt: skip
    """Attention probabilities, softmax_k(q·k / √d_head) over keys no later than the query.

    A model with a sliding window attends to the keys in it alone.

    Args:
        model: the model; only blocks up to the deepest layer or edit are run.
        tokens: [row pos].
        layers: blocks whose patterns are read.
        queries: positions that look, [query].
        edits: applied to every row.
        batch: rows per forward pass.

    Returns:
        layer → float32 [row head query key]; each query's masses sum to 1, and keys it cannot see have none.

    Raises:
        SiteError: for a layer that the model does not have.
        EditError: for a query outside the prompt, or an edit that did not fire.
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
        embedded = model.embed(rows)
        with attached(model, (), where, some), _caught(model, layers) as seen:
            run_blocks(model.network, embedded, 0, stop)
        rotary = model.network.model.rotary_emb(embedded, torch.arange(length, device=embedded.device)[None])
        for layer in layers:
            parts[layer].append(as_numpy(_pattern(model, layer, *seen.pop(layer), rotary, where)))
    return {layer: np.concatenate(part) for layer, part in parts.items()}


def head_outputs(model: LanguageModel, layer: int, z: Floats) -> Tensor:
    """What each head adds to the residual stream, z_h @ W_O,h, float32 [row head d_model].

    Args:
        model: the model.
        layer: block.
        z: its heads' outputs side by side, before their projection, [row head·d_head].
    """
    return torch.einsum("rhd,hdm->rhm", _heads(model, z), output_weights(model, layer))


def head_dots(model: LanguageModel, layer: int, z: Floats, directions: Floats) -> Floats:
    """Dot product of each head's output with a direction of the residual stream, [row head].

    The direction goes back through the output projection, so that no [row head d_model] is made.

    Args:
        model: the model.
        layer: block.
        z: its heads' outputs side by side, before their projection, [row head·d_head].
        directions: one per row, [row d_model].
    """
    along = torch.as_tensor(directions, dtype=torch.float32, device=model.device())
    seen_by_heads = torch.einsum("rm,hdm->rhd", along, output_weights(model, layer))
    return as_numpy((_heads(model, z) * seen_by_heads).sum(dim=-1))


def output_weights(model: LanguageModel, layer: int) -> Tensor:
    """Each head's columns of a block's output projection, float32 [head d_head d_model]."""
    weight = model.network.model.layers[model.check_site(Site(layer, "z")).layer].self_attn.o_proj.weight
    return weight.detach().float().T.unflatten(0, (model.n_heads, model.d_head))


def value_weights(model: LanguageModel, layer: int) -> Tensor:
    """Each head's value projection of the residual over its root mean square, float32 [head d_head d_model].

    W_V,h · diag(g) with g the weight of the block's input norm; heads that share a value have the same rows.

    Args:
        model: the model.
        layer: block.
    """
    block = model.network.model.layers[model.check_site(Site(layer, "z")).layer]
    weight = block.self_attn.v_proj.weight.detach().float().unflatten(0, (-1, model.d_head))
    weight = weight.repeat_interleave(model.n_heads // weight.shape[0], dim=0)
    return weight * block.input_layernorm.weight.detach().float()


def carried(model: LanguageModel, layer: int, directions: Floats | Tensor) -> Tensor:
    """What each head writes for a position that it looks at alone, W_O,h W_V,h (g ⊙ d), [row head d_model].

    Biases are left out. Of a residual divided by its root mean square, and weighted with the pattern over all
    keys, this adds up to the head's output (less the value's bias, where there is one).

    Args:
        model: the model.
        layer: block.
        directions: d, what stands in the residual over its root mean square, [row d_model].
    """
    held = torch.as_tensor(directions, dtype=torch.float32, device=model.device())
    values = torch.einsum("rm,hdm->rhd", held, value_weights(model, layer))
    return torch.einsum("rhd,hdm->rhm", values, output_weights(model, layer))


def _heads(model: LanguageModel, z: Floats) -> Tensor:
    """Heads' outputs side by side [... head·d_head] as float32 [... head d_head]."""
    held = torch.as_tensor(z, dtype=torch.float32, device=model.device())
    return held.unflatten(-1, (model.n_heads, model.d_head))


@contextmanager
def _caught(model: LanguageModel, layers: Sequence[int]) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """Queries and keys of blocks before their rotation, each [row pos head·d_head], layer → both."""
    queries: dict[int, Tensor] = {}
    keys: dict[int, Tensor] = {}
    both: dict[int, tuple[Tensor, Tensor]] = {}
    handles = []
    try:
        for layer in layers:
            attention = model.network.model.layers[layer].self_attn
            for part, kept in ((attention.q_proj, queries), (attention.k_proj, keys)):
                handles.append(
                    part.register_forward_hook(
                        lambda _module, _args, output, kept=kept, layer=layer: kept.update({layer: output})
                    )
                )
        yield both
    finally:
        for handle in handles:
            handle.remove()
    both.update({layer: (queries[layer], keys[layer]) for layer in layers})


def _pattern(
    model: LanguageModel, layer: int, query: Tensor, key: Tensor, rotary: tuple[Tensor, Tensor], where: Ints
) -> Tensor:
    """One block's pattern [row head query key]; several heads share a key where keys are fewer."""
    cosine, sine = rotary
    q, k = (part.unflatten(-1, (-1, model.d_head)).transpose(1, 2) for part in (query, key))
    q, k = apply_rotary_pos_emb(q, k, cosine, sine)
    at = torch.as_tensor(where, device=q.device)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q[:, :, at].float() @ k.float().transpose(2, 3)
    scores = scores * model.network.model.layers[layer].self_attn.scaling
    seen = visible(model.network, at, torch.arange(k.shape[2], device=q.device))
    return scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)


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
