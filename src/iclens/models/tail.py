"""The tail engine: many edits of one position, each run through only the blocks above it.

1. A prompt is run once; the keys and values of every block are kept. 2. A row is a changed residual at
the prompt's last position. 3. Rows run through the blocks above the edit, `WIDTH` of them side by side as
one sequence: each sees the kept keys and values of the earlier positions, and of the others only itself, so
the prefix is read once for all of them. Exact, because earlier positions cannot see a later one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iclens.errors import EditError
from iclens.models.blocks import causal_mask
from iclens.models.forward import read_answers, refuse_part
from iclens.models.load import LanguageModel
from iclens.names import Site
from iclens.tables.answers import AnswerProbs
from iclens.tables.arrays import Floats, Ints

WIDTH = 64
"""Rows that stand side by side in one sequence."""


class _Keep:
    """A cache that keeps each block's keys and values as they pass."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.kept[layer] = (key, value)
        return key, value


class _Prefix:
    """A read-only cache: rows see the kept prefix and themselves."""

    def __init__(self, kept: dict[int, tuple[Tensor, Tensor]]) -> None:
        self.kept = kept

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        before_key, before_value = self.kept[layer]
        sequences = key.shape[0]
        return (
            torch.cat([before_key.expand(sequences, -1, -1, -1), key], dim=2),
            torch.cat([before_value.expand(sequences, -1, -1, -1), value], dim=2),
        )


@dataclass(frozen=True)
class Held:
    """What one prompt's run leaves for the rows.

    Args:
        last: resid_pre of every block and the last resid_post, at the last position, [d_model] each.
        kept: block → keys and values of the earlier positions, [1 head pos d_head] each.
        rotary: rotation of the last position, cosines and sines.
    """

    last: tuple[Tensor, ...]
    kept: dict[int, tuple[Tensor, Tensor]]
    rotary: tuple[Tensor, ...]


@torch.no_grad()
def hold(model: LanguageModel, tokens: Ints) -> list[Held]:
    """Run prompts [prompt pos] of one length together; what each leaves, [prompt].

    Raises:
        ModelError: when only some blocks are loaded.
    """
    refuse_part(model)
    embedded = model.network.model.embed_tokens(torch.as_tensor(tokens, device=model.device()))
    positions = torch.arange(embedded.shape[1], device=embedded.device)[None]
    rotary = model.network.model.rotary_emb(embedded, positions)
    keep, last, resid, mask = _Keep(), [embedded[:, -1]], embedded, causal_mask(model.network, embedded)
    for block in model.network.model.layers:
        resid = block(
            resid, attention_mask=mask, position_embeddings=rotary, position_ids=positions,
            past_key_values=keep,
        )  # fmt: skip
        last.append(resid[:, -1])
    ends = tuple(part[:, -1:] for part in rotary)
    return [
        Held(
            tuple(rows[i] for rows in last),
            {layer: (k[i : i + 1, :, :-1], v[i : i + 1, :, :-1]) for layer, (k, v) in keep.kept.items()},
            ends,
        )
        for i in range(len(tokens))
    ]


def tails_of(model: LanguageModel, tokens: Ints, extra: tuple[str, ...] = (), batch: int = 32) -> list[Tail]:
    """Prompts of one length, each prepared for edits of its last position.

    Held are 2 × blocks × key width numbers for every token of every prompt.

    Args:
        model: a whole model.
        tokens: [prompt pos].
        extra: word answers to read besides the numbers.
        batch: prompts run together.

    Raises:
        ModelError: when only some blocks are loaded.
    """
    starts = range(0, len(tokens), batch)
    held = [one for start in starts for one in hold(model, tokens[start : start + batch])]
    return [Tail(model, row, extra, one) for row, one in zip(tokens, held, strict=True)]


class Tail:
    """One prompt, prepared for edits of its last position.

    Args:
        model: a whole model.
        tokens: [pos], the prompt up to and including the position to edit.
        extra: word answers to read besides the numbers.
        held: what `hold` kept of it, where several prompts were run together; run here when not given.

    Raises:
        ModelError: when only some blocks are loaded.
    """

    def __init__(
        self, model: LanguageModel, tokens: Ints, extra: tuple[str, ...] = (), held: Held | None = None
    ) -> None:
        self.model = model
        self.answers, self.ids = model.answer_space(extra)
        self._held = hold(model, np.asarray(tokens)[None])[0] if held is None else held
        self._prefix = _Prefix(self._held.kept)

    def resid_pre(self, layer: int) -> Tensor:
        """The unedited residual entering block `layer` at the last position, [d_model]."""
        return self._held.last[layer]

    @torch.no_grad()
    def run(self, resid: Tensor, layer: int, batch: int = 1024) -> AnswerProbs:
        """Answers after replacing resid_pre of block `layer` at the last position.

        Args:
            resid: [row d_model].
            layer: block entered next; n_blocks goes straight to the unembedding.
            batch: rows per forward pass.

        Returns:
            log_prob as [row answer].
        """
        like = self._held.last[0].dtype
        parts = [read_answers(self.model, resid[:0].to(like), self.ids)]
        for rows in resid.split(batch) if len(resid) else ():
            held = rows.to(like)
            if layer < self.model.n_blocks:
                held = self._side_by_side(held, layer)
            parts.append(read_answers(self.model, held, self.ids))
        return AnswerProbs(self.answers, torch.cat(parts).float().cpu().numpy())

    def _side_by_side(self, rows: Tensor, layer: int) -> Tensor:
        """The last resid_post of rows [row d_model], in sequences of one width, zeros at their end."""
        sequences = -(-len(rows) // WIDTH)
        width = -(-len(rows) // sequences)
        held = rows.new_zeros(sequences * width, rows.shape[1])
        held[: len(rows)] = rows
        held, mask = held.unflatten(0, (sequences, width)), self._only_itself(rows, width)
        for block in self.model.network.model.layers[layer:]:
            held = block(
                held, attention_mask=mask, position_embeddings=self._held.rotary,
                past_key_values=self._prefix,
            )  # fmt: skip
        return held.flatten(0, 1)[: len(rows)]

    def _only_itself(self, rows: Tensor, width: int) -> Tensor:
        """What is added to attention scores: 0 for the prefix and a row itself, [1 1 width pos + width]."""
        prefix = self._held.kept[0][0].shape[2]
        mask = rows.new_full((width, prefix + width), torch.finfo(rows.dtype).min)
        mask[:, :prefix] = 0
        mask[:, prefix:].fill_diagonal_(0)
        return mask[None, None]

    def entry(self, site: Site) -> int:
        """The block whose resid_pre carries an addition at `site` onwards.

        resid_post and mlp_out of layer L both enter block L + 1; resid_pre enters block L.

        Raises:
            EditError: for a hook whose addition passes through an MLP first.
        """
        self.model.check_site(site)
        if site.hook in ("resid_post", "mlp_out"):
            return site.layer + 1
        if site.hook == "resid_pre":
            return site.layer
        raise EditError(
            f"tail from {site}", "its addition passes through the MLP of its own block", "Use `answer_probs`."
        )

    def added(self, site: Site, delta: Tensor | Floats, batch: int = 1024) -> AnswerProbs:
        """Answers after adding `delta` [row d_model] at `site`, last position."""
        layer = self.entry(site)
        base = self.resid_pre(layer)
        return self.run(base + torch.as_tensor(delta, dtype=base.dtype, device=base.device), layer, batch)
