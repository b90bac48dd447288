"""The tail engine: many edits of one position, each run through only the blocks above it.

1. A prompt is run once; the keys and values of every block are kept. 2. A row is a changed residual at
the prompt's last position. 3. Rows run as a batch of single tokens that read the kept keys and
values of the earlier positions, through the blocks above the edit. Exact, because earlier positions cannot
see a later one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from iclens.errors import EditError
from iclens.models.blocks import causal_mask
from iclens.models.forward import read_answers, refuse_part
from iclens.models.load import LanguageModel
from iclens.names import Site
from iclens.tables.answers import AnswerProbs
from iclens.tables.arrays import Floats, Ints


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
        rows = key.shape[0]
        return (
            torch.cat([before_key.expand(rows, -1, -1, -1), key], dim=2),
            torch.cat([before_value.expand(rows, -1, -1, -1), value], dim=2),
        )


class Tail:
    """One prompt, prepared for edits of its last position.

    Args:
        model: a whole model.
        tokens: [pos], the prompt up to and including the position to edit.
        extra: word answers to read besides the numbers.

    Raises:
        ModelError: when only some blocks are loaded.
    """

    @torch.no_grad()
    def __init__(self, model: LanguageModel, tokens: Ints, extra: tuple[str, ...] = ()) -> None:
        refuse_part(model)
        self.model = model
        self.answers, self._ids = model.answer_space(extra)
        embedded = model.network.model.embed_tokens(torch.as_tensor(tokens, device=model.device())[None])
        keep, self._last = _Keep(), [embedded[0, -1]]
        positions = torch.arange(len(tokens), device=embedded.device)[None]
        rotary = model.network.model.rotary_emb(embedded, positions)
        self._rotary = tuple(part[:, -1:] for part in rotary)
        resid, mask = embedded, causal_mask(model.network, embedded)
        for block in model.network.model.layers:
            resid = block(
                resid, attention_mask=mask, position_embeddings=rotary, position_ids=positions,
                past_key_values=keep,
            )  # fmt: skip
            self._last.append(resid[0, -1])
        self._prefix = _Prefix({layer: (k[:, :, :-1], v[:, :, :-1]) for layer, (k, v) in keep.kept.items()})

    def resid_pre(self, layer: int) -> Tensor:
        """The unedited residual entering block `layer` at the last position, [d_model]."""
        return self._last[layer]

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
        parts = []
        for rows in resid.split(batch):
            held = rows[:, None].to(self._last[0].dtype)
            for block in self.model.network.model.layers[layer:]:
                held = block(held, position_embeddings=self._rotary, past_key_values=self._prefix)
            parts.append(read_answers(self.model, held[:, 0], self._ids))
        return AnswerProbs(self.answers, torch.cat(parts).float().cpu().numpy())

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
