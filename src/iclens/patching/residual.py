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
from iclens.models.tail import Tail
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
) -> PatchedAndBase:  # fmt: skip
    """Answers with the query's `pre` replaced at each layer, and without, each [layer] of [prompt answer].

    Base and patched rows go through the same blocks in the same shapes, so a donor that equals the
    recipient changes nothing to the last bit.

    Args:
        model: a whole model.
        runs: donor and recipient prompts.
        layers: blocks whose resid_pre is replaced, n_blocks for the last resid_post.
        donor_edits: applied to the donor's run alone, as `heads.ablation_edits` makes them.
        batch: donors per forward pass, where they are edited.

    Raises:
        EditError: for a layer that does not exist, or an edit that did not fire.
    """
    sites = [layer_site(model, layer) for layer in layers]
    donors, recipients = up_to_query(runs.donor), up_to_query(runs.recipient)
    ablated = _edited_pre(model, donors, sites, donor_edits, batch) if donor_edits else []
    patched: list[list[Floats]] = [[] for _ in sites]
    base: list[list[Floats]] = [[] for _ in sites]
    answers: tuple[str, ...] = ()
    for prompt, recipient in enumerate(recipients):
        tail = Tail(model, recipient, runs.words)
        source = None if ablated else Tail(model, donors[prompt], runs.words)
        answers = tail.answers
        for i, layer in enumerate(layers):
            held = ablated[i][prompt] if source is None else source.resid_pre(layer)
            patched[i].append(tail.run(held[None], layer).log_prob)
            base[i].append(tail.run(tail.resid_pre(layer)[None], layer).log_prob)
    gathered = [[AnswerProbs(answers, np.concatenate(rows)) for rows in side] for side in (patched, base)]
    return gathered[0], gathered[1]


def replace_pre(
    model: LanguageModel,
    runs: Runs,
    layers: Sequence[int],
    donor_edits: Sequence[Edit] = (),
    batch: int = 128,
) -> list[AnswerProbs]:  # fmt: skip
    """The patched answers of `patch_query`, by whole passes over many prompts: faster for short recipients.

    Args:
        model: a whole model.
        runs: donor and recipient prompts.
        layers: as for `patch_query`.
        donor_edits: likewise.
        batch: prompts per forward pass.

    Returns:
        [layer] of [prompt answer].

    Raises:
        EditError: as in `patch_query`.
    """
    sites = [layer_site(model, layer) for layer in layers]
    donors, recipients = up_to_query(runs.donor), up_to_query(runs.recipient)
    here, there = np.array([donors.shape[1] - 1]), np.array([recipients.shape[1] - 1])
    held = record(model, donors, list(dict.fromkeys(sites)), here, edits=donor_edits, batch=batch)
    found = []
    for site in sites:
        edit = Edit(site, "replace", there, held[site], here)
        probs = answer_probs(model, recipients, there, extra=runs.words, edits=(edit,), batch=batch)
        found.append(AnswerProbs(probs.answers, probs.log_prob[:, 0]))
    return found


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
            f"a patch at layer {layer}", f"layers run from 0 to {model.n_blocks}", "Choose one of these."
        )
    return Site(layer, "resid_pre") if layer < model.n_blocks else Site(layer - 1, "resid_post")


def up_to_query(prompts: PromptSet) -> Ints:
    """Tokens up to and including the query's `pre`, [prompt pos]."""
    return prompts.tokens[:, : position("pre", prompts.n_examples - 1) + 1]
