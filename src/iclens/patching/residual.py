"""Replacing a whole residual of run B by run A's, at the query or over the context.

1. A's residuals are taken at each layer, with heads of A ablated where edits are given; B is never ablated.
2. They replace B's: at the query's `pre` through the tail engine, at a role of every context example through
a forward pass with an edit. 3. B's answers at its query are read, with and without the patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from iclens.errors import EditError
from iclens.models.forward import answer_probs, record
from iclens.models.load import LanguageModel
from iclens.models.tail import tails_of
from iclens.models.together import run_together
from iclens.names import Site, position
from iclens.patching.runs import Runs
from iclens.tables.answers import AnswerProbs
from iclens.tables.arrays import Floats, Ints
from iclens.tables.edits import Edit
from iclens.tables.prompts import PromptSet

PatchedAndBase = tuple[list[AnswerProbs], list[AnswerProbs]]
"""Answers with the patch and without it, each [layer] of [prompt answer]."""


def patch_query(
    model: LanguageModel,
    runs: Runs,
    layers: Sequence[int],
    donor_edits: Sequence[Edit] = (),
    batch: int = 128,
) -> PatchedAndBase:
    """Answers with the query's `pre` replaced at each layer, and without, each [layer] of [prompt answer].

    Base and patched rows go through the same blocks in the same shapes, so a donor that equals the
    recipient changes nothing to the last bit.

    Args:
        model: a whole model.
        runs: donor and recipient prompts.
        layers: blocks whose resid_pre is replaced, n_blocks for the last resid_post.
        donor_edits: applied to the donor's run alone, as `heads.ablate.ablation_edits` makes them.
        batch: donors per forward pass, where they are edited.

    Raises:
        EditError: for a layer that does not exist, or an edit that did not fire.
    """
    sites, donors = [layer_site(model, layer) for layer in layers], up_to_query(runs.donor)
    tails = tails_of(model, up_to_query(runs.recipient), runs.words)
    if donor_edits:
        lent = _edited_pre(model, donors, sites, donor_edits, batch)
    else:
        sources = tails_of(model, donors)
        lent = [torch.stack([source.resid_pre(layer) for source in sources]) for layer in layers]
    patched, base = [], []
    for layer, rows in zip(layers, lent, strict=True):
        own = torch.stack([tail.resid_pre(layer) for tail in tails])
        for side, held in ((patched, rows), (base, own)):
            found = run_together(tails, [row[None, None] for row in held.to(own)], layer)
            log_prob = np.concatenate([probs.log_prob for probs in found])
            side.append(AnswerProbs(tails[0].answers, log_prob))
    return patched, base


def _edited_pre(
    model: LanguageModel, tokens: Ints, sites: Sequence[Site], edits: Sequence[Edit], batch: int
) -> list[Tensor]:
    """Residuals at the last position of runs under edits, each site [prompt d_model]."""
    here = np.array([tokens.shape[1] - 1])
    held = record(model, tokens, list(dict.fromkeys(sites)), here, edits=edits, batch=batch)
    return [torch.as_tensor(held[site][:, 0], device=model.device()) for site in sites]


def patch_context(
    model: LanguageModel, runs: Runs, layers: Sequence[int], role: str, batch: int = 128,
    donor_edits: Sequence[Edit] = (),
) -> PatchedAndBase:  # fmt: skip
    """Answers with `role` of every context example replaced, and without, as in `patch_query`."""
    where = runs.donor.positions(role)[:-1]
    sites = [layer_site(model, layer) for layer in layers]
    read = np.array([position("pre", runs.n_seen)])
    donor, recipient = up_to_query(runs.donor), up_to_query(runs.recipient)
    parts: list[list[Floats]] = [[] for _ in range(len(sites) + 1)]
    answers: tuple[str, ...] = ()
    for start in range(0, len(donor), batch):
        rows = slice(start, start + batch)
        some = [edit.of_rows(rows) for edit in donor_edits]
        held = record(model, donor[rows], list(dict.fromkeys(sites)), where, edits=some, batch=batch)
        for i, site in enumerate([None, *sites]):
            edits = [] if site is None else [Edit(site, "replace", where, held[site], where)]
            found = answer_probs(model, recipient[rows], read, extra=runs.words, edits=edits, batch=batch)
            answers = found.answers
            parts[i].append(found.log_prob[:, 0])
    base, *patched = [AnswerProbs(answers, np.concatenate(part)) for part in parts]
    return patched, [base] * len(sites)


def query_answers(model: LanguageModel, prompts: PromptSet, words: tuple[str, ...]) -> AnswerProbs:
    """Answers at the query's `pre`, [prompt answer]."""
    read = np.array([position("pre", prompts.n_examples - 1)])
    found = answer_probs(model, up_to_query(prompts), read, extra=words)
    return AnswerProbs(found.answers, found.log_prob[:, 0])


def layer_site(model: LanguageModel, layer: int) -> Site:
    """Where the residual entering block `layer` lives; n_blocks is the end of the last block."""
    if not 0 <= layer <= model.n_blocks:
        raise EditError(
            f"a patch at layer {layer}",
            f"layers run from 0 to {model.n_blocks}",
            "Choose one of these; the last is the end of the last block.",
        )
    return Site(layer, "resid_pre") if layer < model.n_blocks else Site(layer - 1, "resid_post")


def up_to_query(prompts: PromptSet) -> Ints:
    """Tokens up to and including the query's `pre`, [prompt pos]."""
    return prompts.tokens[:, : position("pre", prompts.n_examples - 1) + 1]
