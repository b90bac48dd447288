"""Forward passes of a replication: donors with heads ablated, and patches of a last position.

1. A donor runs once, with its edits; its last position's residual entering every block is kept. 2. It takes
the place of the recipient's last position, a layer at a time. 3. The last residual is read over the whole
vocabulary, as token strings, in float32. Prompts of one length go together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iclens.models.forward import record
from iclens.models.load import LanguageModel
from iclens.models.tail import Tail
from iclens.names import Site
from iclens.patching.heads.ablate import layer_edits
from iclens.patching.lens import lens_logits
from iclens.patching.residual import layer_site
from iclens.study.replicate.protocol import Ablation
from iclens.study.replicate.recorded import RANKS
from iclens.tables.answers import AnswerProbs
from iclens.tables.arrays import Floats, Ints, Strings
from iclens.tables.edits import Edit

ZERO, MEAN = "zero", "mean"
LAST, EVERYWHERE = "last position", "all positions"
_BATCH = 64
"""Prompts that run together."""


@dataclass(frozen=True)
class DonorRun:
    """What a donor leaves at its last position.

    Args:
        resid: resid_pre of every block, then the last resid_post, [layer d_model].
        top: its own most probable tokens, [rank].
        probs: its own answers, [answer].
    """

    resid: Floats
    top: tuple[str, ...]
    probs: AnswerProbs


def run_donor(model: LanguageModel, tokens: Ints, edits: Sequence[Edit] = ()) -> DonorRun:
    """Run a donor [pos] under edits."""
    sites = [layer_site(model, layer) for layer in range(model.n_blocks + 1)]
    held = record(model, tokens[None], sites, np.array([len(tokens) - 1]), edits=edits)
    resid = np.stack([held[site][0, 0] for site in sites])
    logits = lens_logits(model, resid[-1:])
    return DonorRun(resid, tuple(top_tokens(model, logits)[0]), number_probs(model, logits))


def ablation_edits(
    model: LanguageModel, ablation: Ablation, length: int,
    *, place: str = LAST, means: dict[int, Floats] | None = None,
) -> tuple[Edit, ...]:  # fmt: skip
    """The edits of an ablation, one per layer.

    Args:
        model: gives heads and their width.
        ablation: which heads.
        length: positions of the prompt.
        place: `LAST` or `EVERYWHERE`.
        means: layer → mean z over other prompts of this length, [pos head·d_head]; zero when not given.
    """
    where = np.array([length - 1]) if place == LAST else np.arange(length)
    chosen, by_head = ablation.by_layer(model.n_heads), (1, len(where), model.n_heads, model.d_head)
    values = {layer: held[where].reshape(by_head) for layer, held in (means or {}).items() if layer in chosen}
    return layer_edits(chosen, ZERO if means is None else MEAN, where, values)


def mean_outputs(model: LanguageModel, tokens: Ints, layers: Sequence[int]) -> dict[int, Floats]:
    """Mean of the heads' outputs z over prompts [prompt pos], layer → [pos head·d_head]."""
    sites = {layer: model.check_site(Site(layer, "z")) for layer in layers}
    held = record(model, tokens, list(sites.values()), np.arange(tokens.shape[1]), batch=4) if sites else {}
    return {layer: held[site].mean(axis=0) for layer, site in sites.items()}


def patched_tops(model: LanguageModel, recipients: Ints, resid: Floats, layer: int) -> Strings:
    """Most probable tokens after replacing the last position's resid_pre of `layer`, [row rank].

    Args:
        model: a whole model.
        recipients: [row pos].
        resid: what is put there, one for every row, [row d_model].
        layer: block.
    """
    last, end = np.array([recipients.shape[1] - 1]), Site(model.n_blocks - 1, "resid_post")
    parts = []
    for start in range(0, len(recipients), _BATCH):
        rows = slice(start, start + _BATCH)
        edit = Edit(layer_site(model, layer), "replace", last, resid[rows, None])
        held = record(model, recipients[rows], [end], last, edits=[edit])[end][:, 0]
        parts.append(top_tokens(model, lens_logits(model, held)))
    return np.concatenate(parts)


def swept_tops(model: LanguageModel, recipient: Ints, donors: Sequence[DonorRun]) -> list[Strings]:
    """Most probable tokens after patching every layer into one recipient [pos], [donor] of [layer rank]."""
    rows = np.tile(recipient, (len(donors), 1))
    layers = [
        patched_tops(model, rows, np.stack([donor.resid[layer] for donor in donors]), layer)
        for layer in range(model.n_blocks)
    ]
    return list(np.stack(layers, axis=1))


def swept_probs(tail: Tail, donors: Sequence[DonorRun]) -> Floats:
    """P(number) after patching every layer into a prepared recipient, [donor layer 1000]."""
    layers = []
    for layer in range(tail.model.n_blocks):
        rows = np.stack([donor.resid[layer] for donor in donors])
        layers.append(tail.run(tail.resid_pre(layer).new_tensor(rows), layer).numbers)
    return np.stack(layers, axis=1)


def top_tokens(model: LanguageModel, logits: Floats, ranks: int = RANKS) -> Strings:
    """The most probable tokens' text, [row rank], from logits [row token]."""
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :ranks]
    return np.array([[model.tokenizer.decode([int(i)]) for i in row] for row in order], dtype=object)


def number_probs(model: LanguageModel, logits: Floats) -> AnswerProbs:
    """Answers of one row's logits [1 token], as [answer]."""
    answers, ids = model.answer_space()
    shifted = logits[0].astype(np.float64) - logits[0].max()
    return AnswerProbs(answers, (shifted - np.log(np.exp(shifted).sum()))[ids.cpu().numpy()])


def joined(tokens: Sequence[str]) -> str:
    """Tokens as one text, spaces inside them as ␣ and line ends as ⏎."""
    return " ".join(token.replace(" ", "␣").replace("\n", "⏎") for token in tokens)
