"""Tracking: every latent of every site at chosen roles, by examples seen, from one model pass.

1. Each batch of prompts goes through the model once; all sites are recorded at all roles, and the answers at
`pre`. 2. Each site's SAE encodes each role, and only the active latents are kept.
Enter a model, SAEs and a PromptSet; leave LatentActs by site and role, and the answers' probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from iclens.errors import SaeError
from iclens.models.forward import record_and_answer
from iclens.models.load import LanguageModel
from iclens.names import Site, check_role
from iclens.saes.encode import encode
from iclens.saes.load import Sae
from iclens.tables.activations import Activations, LatentActs
from iclens.tables.answers import AnswerProbs
from iclens.tables.arrays import Floats
from iclens.tables.prompts import PromptSet

TRACKED_ROLES = ("pre", "lab", "close", "x")
"""Roles that are followed by default; `pre` comes first because the answer is predicted there."""

Place = tuple[Site, str]
"""A site and a role."""


@dataclass(frozen=True)
class Tracked:
    """Active latents and answers of one arm.

    Args:
        prompts: the prompts they came from.
        latents: (site, role) → active latents.
        probs: log P(answer) at `pre`, as [prompt example answer].
    """

    prompts: PromptSet
    latents: dict[Place, LatentActs]
    probs: AnswerProbs


def track(
    model: LanguageModel,
    saes: Mapping[Site, Sae],
    prompts: PromptSet,
    roles: Sequence[str] = TRACKED_ROLES,
    batch: int = 128,
) -> Tracked:
    """Follow every latent of `saes` over the examples of `prompts`.

    The activations are held until they are encoded: 4 bytes × prompts × examples × roles × sites × d_model.

    Args:
        model: a whole model.
        saes: site → its SAE.
        prompts: one arm's prompts.
        roles: which tokens of each example.
        batch: prompts per forward pass.

    Raises:
        SaeError: when there is no SAE.
        SiteError: for an unknown role, or a site that the model does not have.
        ModelError: when only some blocks are loaded.
        TokenizerError: when a word among the answers is not a single token.
    """
    if not saes:
        raise SaeError("tracking", "no SAE was given", "Name an SAE set.")
    roles = [check_role(role) for role in dict.fromkeys(roles)]
    where = np.concatenate([prompts.positions(role) for role in roles])
    shape = (len(roles), prompts.n_examples)
    held: dict[Site, list[Floats]] = {site: [] for site in saes}
    log_prob: list[Floats] = []
    answers: tuple[str, ...] = ()
    passes = record_and_answer(
        model, prompts.tokens, list(saes), where, prompts.positions("pre"), extra=_words(prompts), batch=batch
    )
    for recorded, probs in passes:
        answers = probs.answers
        log_prob.append(probs.log_prob)
        for site, values in recorded.items():
            held[site].append(values.reshape(-1, *shape, model.d_model))
    latents: dict[Place, LatentActs] = {}
    for site, sae in saes.items():
        values = np.concatenate(held.pop(site))
        for i, role in enumerate(roles):
            latents[site, role] = encode(sae, Activations(site, role, values[:, i]))
    return Tracked(prompts, latents, AnswerProbs(answers, np.concatenate(log_prob)))


def _words(prompts: PromptSet) -> tuple[str, ...]:
    """Answers of the prompts that are not numbers, in order of appearance."""
    seen = dict.fromkeys([*prompts.answer.ravel().tolist(), *prompts.y.ravel().tolist()])
    return tuple(text for text in seen if not text.isdigit())
