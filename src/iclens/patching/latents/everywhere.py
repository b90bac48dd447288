"""Does ablating a labelled latent at a token of *every* example move the belief that its concept names?

    ablate all  A*: h_j ← h_j − a_f,j · scale_j · d_f      at a role of every example j up to the query

What acts at `lab` or `close` is spread over all examples of the context: ablated at the last one alone
(`specificity`), the others make up for it. 1. A* is recorded at that token of every example and encoded.
2. Each chosen latent is ablated at all of them, and all those of a concept together, in full forward passes.
3. Matched random live latents are ablated in its stead: at each example along their own direction, downwards,
as far as the latent was there. 4. Margins and their intervals are those of `specificity`.

An ablation at one example changes nothing at the same site of another: only later blocks carry it there. So
each a_f,j is the unedited model's, and the latent is silent at all of these tokens.

Enter A* and latents that were labelled elsewhere. Leaves a SpecificityTable, its way `ABLATE_ALL`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from iclens.errors import SaeError
from iclens.models.forward import edited_answers, record
from iclens.models.load import LanguageModel
from iclens.names import position
from iclens.patching.effects import belief_log_odds, resamples
from iclens.patching.latents.place import example_of
from iclens.patching.latents.specificity import (
    Moved,
    matrix_of,
    questions_of,
    sets_of,
    stand_ins,
    with_controls,
)
from iclens.patching.residual import query_answers, up_to_query
from iclens.patching.runs import Runs, check_tokenizer
from iclens.saes.directions import check_decoder, decoder_directions, decoder_lengths
from iclens.saes.encode import refuse_transcoder
from iclens.saes.load import Sae
from iclens.tables.answers import AnswerProbs
from iclens.tables.arrays import Floats, Ints
from iclens.tables.edits import Edit
from iclens.tables.specificity import SpecificityTable

ABLATE_ALL = "ablate all"
"""The way of these rows."""


@dataclass(frozen=True)
class Context:
    """What an SAE sees at a role of every example of A*, up to the query.

    Args:
        model: the model.
        sae: the SAE.
        runs: the prompts.
        role: which token.
        examples: of these, [example]; the query is among them for a role that it has.
        latents: latents that may be ablated, ascending, [latent].
        activation: their gated activations, [prompt example latent].
        scale: length that the SAE's input normalisation gives to one unit, [prompt example].
        directions: what one unit of each adds to the decoded, [latent d_in].
        density: share of these tokens at which a latent is active, [d_sae].
        mean_active: mean length that it adds there, at the site, NaN where never active, [d_sae].
        base: every belief's log-odds, nats [prompt belief].
    """

    model: LanguageModel
    sae: Sae
    runs: Runs
    role: str
    examples: Ints
    latents: Ints
    activation: Tensor
    scale: Tensor
    directions: Tensor
    density: Floats
    mean_active: Floats
    base: Floats

    def ablation(self, members: Ints) -> tuple[Tensor, Tensor]:
        """What ablating latents together adds, and how far each is moved.

        Args:
            members: of `latents`, [member].

        Returns:
            −scale · Σ_f a_f · d_f [prompt example d_in], and −a_f · ‖d_f‖ [prompt example member].
        """
        which = torch.as_tensor(np.searchsorted(self.latents, members), device=self.scale.device)
        change, directions = -self.activation[..., which], self.directions[which]
        return self.scale[..., None] * (change @ directions), change * directions.norm(dim=1)

    def effects_of(self, jobs: Iterable[tuple[int, Tensor]], batch: int) -> Iterator[Floats]:
        """Rises of each belief's log-odds, nats [row belief], job by job; several jobs share a forward pass.

        Args:
            jobs: a prompt and what is added to it, [row example d_in]; taken as they are needed.
            batch: rows per forward pass.
        """
        some: list[tuple[int, Tensor]] = []
        for prompt, rows in jobs:
            if some and sum(len(held) for _, held in some) + len(rows) > batch:
                yield from self._effects(some, batch)
                some = []
            some.append((prompt, rows))
        if some:
            yield from self._effects(some, batch)

    def _effects(self, some: Sequence[tuple[int, Tensor]], batch: int) -> list[Floats]:
        """The effects of some jobs, from one forward pass if they fit."""
        sizes = [len(rows) for _, rows in some]
        prompts = np.repeat([prompt for prompt, _ in some], sizes)
        value = torch.cat([rows for _, rows in some]).cpu().numpy()
        tokens = up_to_query(self.runs.target)[prompts]
        edit = Edit.at(self.sae.site, "add", self.role, self.examples.tolist(), value)
        end = np.array([tokens.shape[1] - 1])
        found = edited_answers(self.model, tokens, end, [edit], extra=self.runs.words, batch=batch).answers
        probs = AnswerProbs(found.answers, found.log_prob[:, 0])
        effects = belief_log_odds(probs, self.runs, prompts) - self.base[prompts]
        return np.split(effects, np.cumsum(sizes)[:-1])


@torch.no_grad()
def ablate_everywhere(
    model: LanguageModel, sae: Sae, runs: Runs, chosen: Sequence[tuple[int, str, str]],
    own: Mapping[str, str], *, role: str, against: Sequence[str] | None = None, n_controls: int = 10,
    seed: int = 0, n_resamples: int = 1000, batch: int = 128,
) -> SpecificityTable:  # fmt: skip
    """Effects on every belief of ablating labelled latents at a token of every example, and their margins.

    Args:
        model: a whole model.
        sae: an SAE of one of its sites.
        runs: of these, A*; its recipient is not run. `copy` asks for f(x_A), as nothing is lent.
        chosen: latent, concept, and the label granted to it or "candidate".
        own: concept → the belief that it names.
        role: which token: of every example of the context, and of the query if it has one.
        against: beliefs that count as rivals; by default the own beliefs of all concepts in `own`.
        n_controls: matched random live latents for each moved latent or set, or as many as are live.
        seed: of the controls and of the bootstrap.
        n_resamples: bootstrap resamples.
        batch: rows per forward pass.

    Returns:
        A row per concept, latent (and `specificity.JOINT`) and belief that is defined at every query.

    Raises:
        EditError: for an unknown belief, a latent that stands twice under one concept, another tokenizer's
            runs, or a role that no example of A* has.
        SaeError: when the SAE has another width or not such a latent, is a transcoder, or its latents cannot
            be moved alone.
        SiteError: for an unknown role, or a layer that the model does not have.
        ModelError: when only some blocks are loaded.
    """
    sets = sets_of(chosen)
    latents = np.unique([int(latent) for latent, _, _ in chosen]).astype(int)
    held = _context(model, sae, runs, role, latents, batch)
    known = np.flatnonzero(~np.isnan(held.base).any(axis=0))
    questions = questions_of(runs, known, sets, own, against)
    rng = np.random.default_rng(seed)
    along = {
        members: stand_ins(sae, held.density, held.mean_active, np.array(members), latents, n_controls, rng)
        for members in dict.fromkeys(members for *_, members in sets)
    }
    found = _moved(held, along, known, batch)
    where = {"site": str(sae.site), "role": role, "way": ABLATE_ALL}
    weights = resamples(len(held.base), n_resamples, np.random.default_rng(seed))
    return matrix_of(where, sets, found, questions, held.base[:, known], weights)


def _moved(
    held: Context, along: Mapping[tuple[int, ...], Tensor], known: Ints, batch: int
) -> dict[tuple[int, ...], Moved]:
    """Effects on the `known` beliefs of ablating sets of latents, and of their controls.

    Args:
        held: the runs.
        along: members → unit directions of what stands in for them, [member control d_in].
        known: beliefs, [belief].
        batch: rows per forward pass.
    """
    active = {
        members: np.flatnonzero((held.ablation(np.array(members))[0] != 0).any(dim=-1).any(dim=-1).cpu())
        for members in along
    }
    effects = {
        members: np.zeros((len(held.base), 1 + units.shape[1], len(known)))
        for members, units in along.items()
    }

    def jobs() -> Iterator[tuple[int, Tensor]]:
        """Each set in each prompt that it is active in, with its controls."""
        for members, units in along.items():
            delta, weighted = held.ablation(np.array(members))
            for i in active[members].tolist():
                yield i, with_controls(delta[i], weighted[i], units)

    places = [(members, i) for members in along for i in active[members].tolist()]
    for (members, i), rise in zip(places, held.effects_of(jobs(), batch), strict=True):
        effects[members][i] = rise[:, known]
    return {
        members: Moved(rises[:, 0], rises[:, 1:].mean(axis=0), len(active[members]))
        for members, rises in effects.items()
    }


def _context(model: LanguageModel, sae: Sae, runs: Runs, role: str, latents: Ints, batch: int) -> Context:
    """Record and encode A* at the role of every example; `latents` are kept, all others only counted."""
    _refuse(model, sae, runs)
    directions, prompts = decoder_directions(sae, latents), runs.target
    examples = np.arange(example_of(prompts, role) + 1)
    where = np.array([position(role, int(j)) for j in examples])
    seen = record(model, up_to_query(prompts), [sae.site], where, batch=batch)[sae.site]
    rows = torch.as_tensor(seen, dtype=sae.W_dec.dtype, device=sae.W_dec.device)
    check_decoder(sae, sae.encode(rows[:, 0]), sae.encode(rows[:, -1]))
    kept = torch.as_tensor(latents, device=rows.device)
    activation, scale, count, total = [], [], np.zeros(sae.d_sae), np.zeros(sae.d_sae)
    for example in rows.unbind(dim=1):
        values = sae.encode(example)
        activation.append(values[:, kept])
        scale.append(sae.scale(example))
        count += (values != 0).sum(dim=0).cpu().numpy()
        sizes = scale[-1][:, None] * values.abs()
        total += sizes.sum(dim=0, dtype=torch.float64).cpu().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        density, mean_active = count / (len(rows) * len(examples)), total / count * decoder_lengths(sae)
    answers = query_answers(model, prompts, runs.words)
    return Context(
        model, sae, runs, role, examples, latents, torch.stack(activation, dim=1), torch.stack(scale, dim=1),
        directions, density, mean_active, base=belief_log_odds(answers, runs, np.arange(len(rows))),
    )  # fmt: skip


def _refuse(model: LanguageModel, sae: Sae, runs: Runs) -> None:
    """Refuse an SAE that does not fit the model or is a transcoder, and another tokenizer's runs."""
    refuse_transcoder(sae)
    if sae.d_in != model.d_model:
        raise SaeError(
            f"SAE at {sae.site.short}",
            f"width {sae.d_in}, not {model.d_model}",
            f"Give an SAE of this model, whose rows are {model.d_model} wide.",
        )
    check_tokenizer(model.tokenizer, runs)
