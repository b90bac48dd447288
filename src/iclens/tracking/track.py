"""Tracking: every latent of every site at chosen roles, by examples seen, from one model pass.

1. Each batch of prompts goes through the model once; all sites are recorded at all roles, and the answers at
`pre`. A probed arm has a pass for each example, because each query has a sequence of its own. 2. Each site's
SAE encodes the batch at once, all roles together, and only the active latents are kept: memory holds one
batch of activations. 3. In the end a site's entries are put in order and cut into its roles.
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
    """Encoded batches of one site, with the row [role prompt example] that each of their rows is."""

    parts: list[EncodedRows] = field(default_factory=list)
    rows: list[Ints] = field(default_factory=list)

    def finish(self, sae: Sae, roles: Sequence[str], n_prompts: int, n_examples: int) -> list[LatentActs]:
        """All of them as one table for each role, in the order of its rows."""
        order = np.argsort(np.concatenate(self.rows))
        entries = csr_array(vstack([part.latents for part in self.parts], format="csr"))[order]
        shape = (len(roles), n_prompts, n_examples)
        error_sq, total_sq = (
            np.concatenate(parts)[order].reshape(shape)
            for parts in ([p.error_sq for p in self.parts], [p.total_sq for p in self.parts])
        )
        tables = []
        for r, role in enumerate(roles):
            ends = entries.indptr[r * n_prompts * n_examples :][: n_prompts * n_examples + 1]
            own = slice(ends[0], ends[-1])
            tables.append(LatentActs(
                sae.site, role, sae.sae_id, sae.d_sae, n_prompts, n_examples,
                ends - ends[0], entries.indices[own], entries.data[own], error_sq[r], total_sq[r],
            ))  # fmt: skip
        return tables


def track(
    model: LanguageModel,
    saes: Mapping[Site, Sae],
    prompts: PromptSet,
    roles: Sequence[str] = TRACKED_ROLES,
    batch: int = 128,
    words: Sequence[str] = (),
) -> Tracked:
    """Follow every latent of `saes` over the examples of `prompts`.

    Held are one batch of activations, 4 bytes × batch × examples × roles × sites × d_model, and the entries.

    Args:
        model: a whole model.
        saes: site → its SAE.
        prompts: one arm's prompts.
        roles: which tokens of each example.
        batch: prompts per forward pass.
        words: answers to read beside the numbers and the prompts' own words.

    Raises:
        SaeError: when there is no SAE, or one is a transcoder or of another site.
        TableError: when an activation is not finite.
        SiteError: for an unknown role, or a site that the model does not have.
        ModelError: when only some blocks are loaded.
        TokenizerError: when a word among the answers is not a single token.
    """
    if not saes:
        raise SaeError(
            "tracking",
            "no SAE was given",
            "Give `saes` at least one site and its SAE; `load_sae_set` reads a folder of them.",
        )
    for site, sae in saes.items():
        model.check_site(site)
        refuse_transcoder(sae)
        if sae.site != site:
            raise SaeError(
                f"tracking {site.short}",
                f"the SAE is of {sae.site.short}",
                "Give every SAE under the site that it names, `{sae.site: sae}`.",
            )
    roles = [check_role(role) for role in dict.fromkeys(roles)]
    gathered = {site: _Gathered() for site in saes}
    extra = tuple(dict.fromkeys((*_words(prompts), *words)))
    read, _ = model.answer_space(extra)
    answers = AnswerProbs(read, np.empty((*prompts.x.shape, len(read)), np.float32))
    for one in prompts.passes():
        where = np.concatenate([one.positions(role) for role in roles])
        passes = record_and_answer(
            model, one.tokens, list(saes), where, one.positions("pre"), extra=extra, batch=batch
        )
        for i, (recorded, probs) in enumerate(passes):
            some = np.arange(i * batch, i * batch + len(probs.log_prob))
            answers.log_prob[some[:, None], one.examples] = probs.log_prob
            row = np.arange(len(roles)) * prompts.n_prompts + some[:, None]
            rows = (row[..., None] * prompts.n_examples + one.examples).ravel()
            for site, values in recorded.items():
                encoded = encode_rows(saes[site], values.flatten(0, 1))
                _refuse_nan(encoded.total_sq.reshape(len(some), -1), site, prompts.arm, int(some[0]))
                gathered[site].parts.append(encoded)
                gathered[site].rows.append(rows)
    latents = {
        (site, table.role): table
        for site in saes for table in gathered.pop(site).finish(saes[site], roles, *prompts.x.shape)
    }  # fmt: skip
    return Tracked(prompts, latents, answers)


def _refuse_nan(total_sq: Floats, site: Site, arm: str, first: int) -> None:
    """Raise where an activation is not finite, by its squared length [prompt pos]."""
    bad = ~np.isfinite(total_sq).all(axis=1)
    if bad.any():
        raise TableError(
            f"activations at {site.short}, arm {arm}",
            f"NaN or infinite in prompt {first + int(bad.argmax())}",
            "Read the model in float32; if that is not finite either, its weights are not.",
        )  # fmt: skip


def _words(prompts: PromptSet) -> tuple[str, ...]:
    """Answers of the prompts that are not numbers, in order of appearance."""
    seen = dict.fromkeys([*prompts.answer.ravel().tolist(), *prompts.y.ravel().tolist()])
    return tuple(text for text in seen if not text.isdigit())
