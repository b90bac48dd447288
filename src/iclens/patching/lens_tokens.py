"""Which tokens would the model answer with if it ended after this block? The logit lens of single prompts.

1. The residual entering each block, and the last one, is taken at one token. 2. It goes through the final
norm and the unembedding. 3. The most probable tokens of the whole vocabulary are kept, and the probability of
one that is asked for. After the last block these are the model's own. `lens.logit_lens` sums up over prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iclens.models.forward import record, refuse_part
from iclens.models.load import LanguageModel
from iclens.patching.lens import lens_logits
from iclens.patching.residual import layer_site
from iclens.tables.arrays import Floats, Ints


@dataclass(frozen=True)
class LensReads:
    """What the residual of each prompt at each layer answers.

    Args:
        layers: blocks whose resid_pre is read, n_blocks for the last resid_post, [layer].
        top: token ids, the most probable first, [prompt layer rank].
        top_prob: their probabilities, [prompt layer rank].
        asked_prob: probability of the token asked for, [prompt layer].
    """

    layers: tuple[int, ...]
    top: Ints
    top_prob: Floats
    asked_prob: Floats


def lens_tokens(
    model: LanguageModel, tokens: Ints, position: int, asked: Ints, *, n_top: int = 3,
    layers: Sequence[int] | None = None, batch: int = 128,
) -> LensReads:  # fmt: skip
    """The lens over the whole vocabulary, prompt by prompt.

    Args:
        model: a whole model.
        tokens: [prompt pos].
        position: the token whose residual is read.
        asked: a token id for each prompt, [prompt].
        n_top: most probable tokens that are kept.
        layers: as in `lens.logit_lens`; all by default.
        batch: prompts per forward pass.

    Raises:
        ModelError: when only some blocks are loaded.
        EditError: for a layer that does not exist.
    """
    refuse_part(model)
    chosen = tuple(range(model.n_blocks + 1)) if layers is None else tuple(layers)
    sites = [layer_site(model, layer) for layer in chosen]
    held = record(model, tokens[:, : position + 1], sites, np.array([position]), batch=batch)
    resid = np.stack([held[site][:, 0] for site in sites], axis=1)
    top, top_prob, asked_prob = [], [], []
    for row, wanted in zip(resid, asked.tolist(), strict=True):
        logits = lens_logits(model, row).astype(np.float64)
        most = logits.max(axis=1, keepdims=True)
        log_prob = logits - most - np.log(np.exp(logits - most).sum(axis=1, keepdims=True))
        first = np.argsort(-log_prob, axis=1, kind="stable")[:, :n_top]
        top.append(first)
        top_prob.append(np.exp(np.take_along_axis(log_prob, first, axis=1)))
        asked_prob.append(np.exp(log_prob[:, wanted]))
    return LensReads(chosen, np.stack(top), np.stack(top_prob), np.stack(asked_prob))
