"""Tracking: every latent of every site at chosen roles, by examples seen, from one model pass.

1. Each batch of prompts goes through the model once; all sites are recorded at all roles, and the answers at
`pre`. A probed arm has a pass for each example, because each query has a sequence of its own. 2. Each site's
SAE encodes the batch at once, and only the active latents are kept: memory holds one batch of activations.
Enter a model, SAEs and a PromptSet; leave LatentActs by site and role, and the answers' probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_array, vstack

from iclens.errors import SaeError, TableError
from iclens.models.forward import record_and_answer
from iclens.models.load import LanguageModel
from iclens.names import Site, check_role
from iclens.saes.encode import EncodedRows, encode_rows, refuse_transcoder
from iclens.saes.load import Sae
from iclens.tables.activations import LatentActs
from iclens.tables.answers import AnswerProbs
from iclens.tables.arrays import Floats, Ints
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


@dataclass
class _Gathered:
    """Encoded batches of one place, with the row of the table that each of their rows is."""

    parts: list[EncodedRows] = field(default_factory=list)
    total_sq: list[Floats] = field(default_factory=list)
    rows: list[Ints] = field(default_factory=list)

    def add(self, sae: Sae, values: Floats, rows: Ints) -> None:
        """Encode activations [row d_model] that belong to rows [row] of the table."""
        self.parts.append(encode_rows(sae, values))
        self.total_sq.append(np.square(values).sum(axis=1))
        self.rows.append(rows)

    def finish(self, sae: Sae, role: str, n_prompts: int, n_examples: int) -> LatentActs:
        """All of them as one table, in the order of its rows."""
        order = np.argsort(np.concatenate(self.rows), kind="stable")
        entries = csr_array(vstack([part.latents for part in self.parts], format="csr"))
        if not np.array_equal(order, np.arange(len(order))):
            entries = csr_array(entries[order])
        shape = (n_prompts, n_examples)
        error_sq, total_sq = (
            np.concatenate(parts)[order].reshape(shape)
            for parts in ([part.error_sq for part in self.parts], self.total_sq)
        )
        value = np.asarray(entries.data, dtype=np.float32)
        return LatentActs(
            sae.site, role, sae.sae_id, sae.d_sae, *shape, entries.indptr, entries.indices, value,
            error_sq, total_sq,
        )  # fmt: skip


def track(
    model: LanguageModel,
    saes: Mapping[Site, Sae],
    prompts: PromptSet,
    roles: Sequence[str] = TRACKED_ROLES,
    batch: int = 128,
) -> Tracked:
    """Follow every latent of `saes` over the examples of `prompts`.

    Held are one batch of activations, 4 bytes × batch × examples × roles × sites × d_model, and the entries.

    Args:
        model: a whole model.
        saes: site → its SAE.
        prompts: one arm's prompts.
        roles: which tokens of each example.
        batch: prompts per forward pass.

    Raises:
        SaeError: when there is no SAE, or one is a transcoder or of another site.
        TableError: when an activation is not finite.
        SiteError: for an unknown role, or a site that the model does not have.
        ModelError: when only some blocks are loaded.
        TokenizerError: when a word among the answers is not a single token.
    """
    if not saes:
        raise SaeError("tracking", "no SAE was given", "Name an SAE set.")
    for site, sae in saes.items():
        model.check_site(site)
        refuse_transcoder(sae)
        if sae.site != site:
            raise SaeError(
                f"tracking {site.short}", f"the SAE is of {sae.site.short}", "Use that site's SAE."
            )
    roles = [check_role(role) for role in dict.fromkeys(roles)]
    gathered = {(site, role): _Gathered() for site in saes for role in roles}
    words, _ = model.answer_space(_words(prompts))
    answers = AnswerProbs(words, np.empty((*prompts.x.shape, len(words)), np.float32))
    for one in prompts.passes():
        where = np.concatenate([one.positions(role) for role in roles])
        passes = record_and_answer(
            model, one.tokens, list(saes), where, one.positions("pre"), extra=_words(prompts), batch=batch
        )
        for i, (recorded, probs) in enumerate(passes):
            some = np.arange(i * batch, i * batch + len(probs.log_prob))
            answers.log_prob[some[:, None], one.examples] = probs.log_prob
            rows = (some[:, None] * prompts.n_examples + one.examples).ravel()
            for site, values in recorded.items():
                _refuse_nan(values, site, prompts.arm, int(some[0]))
                by_role = values.reshape(len(some), len(roles), len(one.examples), model.d_model)
                for r, role in enumerate(roles):
                    gathered[site, role].add(saes[site], by_role[:, r].reshape(-1, model.d_model), rows)
    latents = {
        (site, role): gathered.pop((site, role)).finish(saes[site], role, *prompts.x.shape)
        for site in saes for role in roles
    }  # fmt: skip
    return Tracked(prompts, latents, answers)


def _refuse_nan(values: Floats, site: Site, arm: str, first: int) -> None:
    """Raise where an activation [prompt pos d_model] is not finite."""
    bad = ~np.isfinite(values).all(axis=(1, 2))
    if bad.any():
        raise TableError(
            f"activations at {site.short}, arm {arm}",
            f"NaN or infinite in prompt {first + int(bad.argmax())}",
            "Check the model's weights and dtype.",
        )  # fmt: skip


def _words(prompts: PromptSet) -> tuple[str, ...]:
    """Answers of the prompts that are not numbers, in order of appearance."""
    seen = dict.fromkeys([*prompts.answer.ravel().tolist(), *prompts.y.ravel().tolist()])
    return tuple(text for text in seen if not text.isdigit())
