"""Specificity: effects of labelled latents on every belief, by a patch or by ablation at all examples.

A concept names one belief. Its latents, each and all together, are ablated, set to a mean or patched; the
margin is by how much they move the belief that the concept names more than its rivals. Matched random live
latents, pushed as far, say how much any such push moves a belief.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from iclens.core import EditError, nearest
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, answer_probs
from iclens.patching.latents import matched, reasons
from iclens.patching.receiver import (
    Direction,
    PatchReceiver,
    activity,
    check_fits,
    encoded_examples,
    query_answers,
    query_example,
    query_position,
    record_role,
    up_to_query,
)
from iclens.patching.runs import Runs, check_tokenizer
from iclens.prompts.beliefs import AnswerProbs
from iclens.saes.encode import check_decoder, decoder_directions
from iclens.saes.load import Sae
from iclens.schemas import SpecificityTable
from iclens.stats import control_p, interval, means, prompt_weights
from iclens.table import Floats, Ints

Way = Literal["ablate", "mean", "patch"]
DIRECTION_OF: dict[Way, Direction] = {"ablate": "necessity", "mean": "necessity", "patch": "sufficiency"}
"""Way of moving a latent → the direction of the receiver in which it is moved."""
ABLATE_ALL = "ablate all"
"""The way of rows that are ablated at all examples."""
JOINT = -1
"""Stands for all chosen latents of a concept, moved together."""
RESOLUTION = 1e-4
"""Nats by which a margin must exceed 0, and controls must move a belief to be its unit: in float32, mean
log-odds of one prompt run in other batches differ by some 1e-5."""
Chosen = Sequence[tuple[int, str, str]]
"""Latent, concept, and the label granted to it or "candidate"."""
Latents = tuple[int, ...]
MovedSet = tuple[str, str, int, Latents]
"""Concept, label, latent (or `JOINT`) and the latents that are moved."""


@dataclass(frozen=True)
class Moved:
    """What moving one set of latents does, and what its controls do."""

    effects: Floats  # rise of each belief's log-odds, nats [prompt belief]
    controls: Floats  # mean effects of the controls over the prompts, nats [control belief]
    n_active: int  # prompts in which anything was added

    @property
    def control_sd(self) -> Floats:
        """Root mean square of the controls' mean effects, nats [belief]; NaN where nothing was pushed."""
        if not (self.n_active and len(self.controls)):
            return np.full(self.effects.shape[1], np.nan)
        return np.sqrt(np.square(self.controls).mean(axis=0))


@dataclass(frozen=True)
class Matrix:
    """What is moved and asked at one site, role and way."""

    place: Mapping[str, str]  # site, role and way, as the table's columns
    # log-odds before anything is moved, nats [prompt belief]; NaN at some query leaves a belief out
    base: Floats
    beliefs: tuple[str, ...]  # names along the belief axis
    sets: Sequence[MovedSet]  # what is moved, by concept: each of its latents, and all of them together last
    named: Mapping[str, str]  # concept → the belief that it names
    # beliefs that count as rivals; by default the named beliefs of all concepts
    against: Sequence[str] | None
    seed: int  # of the controls and of the bootstrap
    n_resamples: int

    @property
    def known(self) -> Ints:
        """Beliefs that are defined at every query, [belief]."""
        return np.flatnonzero(~np.isnan(self.base).any(axis=0))

    @property
    def members(self) -> list[Latents]:
        """The latents of every set, each once."""
        return list(dict.fromkeys(members for *_, members in self.sets))

    def table(self, moved: Mapping[Latents, Moved]) -> SpecificityTable:
        """Effects and margins, a row per set and belief, from what moving each set's members does."""
        weights = prompt_weights(len(self.base), self.n_resamples, np.random.default_rng(self.seed))
        base, names = self.base[:, self.known], [self.beliefs[b] for b in self.known]
        rivals = list(dict.fromkeys(self.named.values() if self.against is None else self.against))
        tables = []
        for concept, label, latent, members in self.sets:
            same = {
                **self.place, "concept": concept, "label": label, "latent": latent, "n_prompts": len(base),
                "n_active": moved[members].n_active, "n_controls": len(moved[members].controls),
            }  # fmt: skip
            rows = {name: [value] * len(names) for name, value in same.items()}
            rows |= {"belief": names, "base": base.mean(axis=0)}
            question = _question(names, concept, self.named, rivals)
            tables.append(SpecificityTable(rows | _figures(moved[members], names, question, weights)))
        return SpecificityTable.concat(tables)


@dataclass(frozen=True)
class Question:
    """What is asked of a concept's latents: the belief that it names, and those that compete with it."""

    named: int | None  # column of its belief, None where there is none
    rivals: Ints  # columns of the beliefs that the margin is taken over, [rival]
    reason: str  # why there can be no margin; empty otherwise


def specificity(
    receivers: Sequence[PatchReceiver], chosen: Chosen, named: Mapping[str, str], *,
    ways: Sequence[Way] = ("ablate", "patch"), against: Sequence[str] | None = None, n_controls: int = 40,
    seed: int = 0, n_resamples: int = 1000,
) -> SpecificityTable:  # fmt: skip
    """Effects of labelled latents on every belief, and by how much their own is moved more than its rivals.

    margin = |mean effect on own| − max over rivals |mean effect|. In each resample the effect on own counts
    in the direction that it has over all prompts: a lower end above 0 says that this direction is sure too.

    Args:
        receivers: of one SAE at one role, one for each direction that the ways need.
        chosen: latent, concept, and the label granted to it or "candidate".
        named: concept → the belief that it names.
        ways: how latents are moved, of `DIRECTION_OF`.
        against: beliefs that count as rivals; by default the named beliefs of all concepts in `named`.
        n_controls: matched random live latents for each moved latent or set, or as many as are live.
        seed: of the controls and of the bootstrap.

    Returns:
        A row per way, concept, latent (and `JOINT`) and belief that is defined at every query.

    Raises:
        EditError: for an unknown way or belief, receivers of several places or lacking a direction, or a
            latent that stands twice under one concept.
        SiteError: for a latent that the SAE does not have.
    """
    by_direction, sets = _by_direction(receivers, ways), sets_of(chosen)
    excluded = np.unique([int(latent) for latent, _, _ in chosen]).astype(int)
    tables = []
    for way in ways:
        receiver = by_direction[DIRECTION_OF[way]]
        where = {"site": str(receiver.sae.site), "role": receiver.role, "way": way}
        matrix = Matrix(
            where, receiver.base, receiver.beliefs, sets, named, against, seed, n_resamples
        )  # fmt: skip
        receiver.runs.columns([*(against or ()), *named.values()])
        rng = np.random.default_rng(seed)
        tables.append(matrix.table({
            members: _moved(receiver, way, np.array(members), matrix.known, excluded, n_controls, rng)
            for members in matrix.members
        }))  # fmt: skip
    return SpecificityTable.concat(tables)


def additions(receiver: PatchReceiver, way: Way, members: Ints) -> tuple[Tensor, Tensor]:
    """What moving some latents together adds, and how far each is moved.

    Args:
        way: how they are moved; Δa_f = −a_f for "ablate", else the donor value minus the receiver's.
        members: latents, [member].

    Returns:
        scale · Σ_f Δa_f · d_f [prompt d_in], and Δa_f · ‖d_f‖ [prompt member].
    """
    ids, directions = torch.as_tensor(members, device=receiver.scale.device), receiver.directions(members)
    before = receiver.latents[:, ids]
    change = -before if way == "ablate" else receiver.donor_latents[:, ids] - before
    return receiver.scale[:, None] * (change @ directions), change * directions.norm(dim=1)


def margin_of(effects: Floats, weights: Floats, named: int, rivals: Ints) -> tuple[float, float, float]:
    """By how much one effect exceeds the largest of others, |mean named| − max |mean rival|.

    Args:
        effects: [prompt column], in any unit that the columns share.
        weights: bootstrap weights of prompts, [draw prompt].
        rivals: the others' columns, [rival]; at least one.

    Returns:
        The margin and the ends of its 95 % interval. A resample whose named effect has the other sign than
        the sample's counts it as negative: else noise about 0, of whatever sign, would always count for it.
    """
    whole, drawn = effects.mean(axis=0), weights @ effects
    way = np.sign(whole[named])
    each = way * drawn[:, named] - np.abs(drawn[:, rivals]).max(axis=1)
    low, high = interval(each)
    return float(abs(whole[named]) - np.abs(whole[rivals]).max()), float(low), float(high)


def _by_direction(receivers: Sequence[PatchReceiver], ways: Sequence[Way]) -> dict[Direction, PatchReceiver]:
    """The receivers by direction, if they are what the ways need."""
    by_direction: dict[Direction, PatchReceiver] = {receiver.direction: receiver for receiver in receivers}
    for way in ways:
        if way not in DIRECTION_OF:
            raise EditError(f"moving latents by '{way}'", "unknown", nearest(way, DIRECTION_OF) + ".")
        if DIRECTION_OF[way] not in by_direction:
            raise EditError(
                f"moving latents by '{way}'", f"no receiver for {DIRECTION_OF[way]} was given",
                f"Prepare one with direction='{DIRECTION_OF[way]}'.",
            )  # fmt: skip
    places = {(r.sae.site.short, r.role, r.sae.sae_id, r.beliefs) for r in receivers}
    if len(places) > 1:
        where = " and ".join(sorted(f"{site} {role}" for site, role, _, _ in places))
        raise EditError(
            f"specificity at {where}", "receivers of several places or SAEs",
            "Call it once for each site, role and SAE.",
        )  # fmt: skip
    return by_direction


def sets_of(chosen: Chosen) -> list[MovedSet]:
    """What is moved, by concept: each of its latents, and all of them together last."""
    pairs = [(int(latent), concept) for latent, concept, _ in chosen]
    twice = [pair for pair in pairs if pairs.count(pair) > 1]
    if twice:
        raise EditError(
            f"latent {twice[0][0]} for '{twice[0][1]}'", "it stands twice",
            "List each latent once under a concept.",
        )  # fmt: skip
    sets: list[MovedSet] = []
    for concept in dict.fromkeys(concept for _, concept, _ in chosen):
        members = [(int(latent), label) for latent, name, label in chosen if name == concept]
        sets += [(concept, label, latent, (latent,)) for latent, label in members]
        sets.append((concept, "joint", JOINT, tuple(sorted(latent for latent, _ in members))))
    return sets


def _moved(
    receiver: PatchReceiver, way: Way, members: Ints, known: Ints, excluded: Ints, n_controls: int,
    rng: np.random.Generator,
) -> Moved:  # fmt: skip
    """Effects on the `known` beliefs of moving latents together, and of matched ones pushed as far."""
    delta, weighted = additions(receiver, way, members)
    along = stand_ins(
        receiver.sae, receiver.density, receiver.mean_active, members, excluded, n_controls, rng
    )
    prompts = range(len(receiver.tails))
    pushes = (with_controls(delta[i], weighted[i], along) for i in prompts)
    effects = np.stack(receiver.effects_of(prompts, pushes))[..., known]
    return Moved(effects[:, 0], effects[:, 1:].mean(axis=0), int((delta != 0).any(dim=1).sum()))


def stand_ins(
    sae: Sae, density: Floats, mean_active: Floats, members: Ints, excluded: Ints, n_controls: int,
    rng: np.random.Generator,
) -> Tensor:  # fmt: skip
    """Unit directions of the random live latents that stand in for each member, [member control d_in].

    They are like the member in density and mean activation; none of them is among the `excluded`, and none
    stands in twice for the same member.

    Args:
        density: share of positions at which each latent is active, [d_sae].
        mean_active: mean length that each latent adds where active, [d_sae].
        members: latents that are moved together, [member].
        excluded: latents that stand in for none, [latent].
        n_controls: how many for each member, or as many as every member has.
    """
    pools = []
    for member in members.tolist():
        allowed = density.copy()
        allowed[excluded[excluded != member]] = 0
        pools.append(rng.permutation(matched(allowed, mean_active, member, n_controls, rng)))
    n = min(len(pool) for pool in pools)
    known, where = np.unique(np.stack([pool[:n] for pool in pools]), return_inverse=True)
    units = torch.nn.functional.normalize(decoder_directions(sae, known), dim=1)
    return units[torch.as_tensor(where.reshape(len(members), n), device=units.device)]


def with_controls(delta: Tensor, weighted: Tensor, along: Tensor) -> Tensor:
    """What is added, and after it its controls': as long at each position, along Σ_m weighted_m · along_m.

    Args:
        delta: what is added, [... d_in], with or without an axis of positions.
        weighted: change of each member's activation times the length of its direction, [... member].
        along: from `stand_ins`, [member control d_in].
    """
    sums = torch.einsum("...m,mcd->c...d", weighted, along)
    unit = torch.nn.functional.normalize(sums, dim=-1)
    return torch.cat([delta[None], delta.norm(dim=-1, keepdim=True) * unit])


def _question(
    names: Sequence[str], concept: str, named: Mapping[str, str], rivals: Sequence[str]
) -> Question:
    """The belief that a concept names and its rivals, as columns of the beliefs `names`."""
    none = np.zeros(0, dtype=int)
    if concept not in named:
        return Question(None, none, f"no belief reads {concept}")
    if named[concept] not in names:
        return Question(None, none, f"{named[concept]} is undefined for this task")
    columns = [b for b, name in enumerate(names) if name in rivals and name != named[concept]]
    reason = "" if columns else "no belief to compare with"
    return Question(names.index(named[concept]), np.array(columns, dtype=int), reason)


def _figures(moved: Moved, names: Sequence[str], question: Question, weights: Floats) -> dict[str, Any]:
    """Effects and margins of one moved set, a row per belief."""
    effect, control_sd = means(moved.effects, weights), moved.control_sd
    unit = np.where(control_sd > RESOLUTION, control_sd, np.nan)
    n, compared, b, rivals = len(names), not np.isnan(control_sd).all(), question.named, question.rivals
    margin, standardised = np.full((3, n), np.nan), np.full((3, n), np.nan)
    against, rival = [""] * n, [""] * n
    why = [[
        "" if moved.n_active else "nothing is moved in any prompt",
        "" if len(moved.controls) else "no live control",
        "no control moves this belief" if compared and np.isnan(unit[i]) else "",
        question.reason or ("" if i == b else "margins stand beside its own belief"),
    ] for i in range(n)]  # fmt: skip
    if b is not None and not question.reason:
        margin[:, b] = margin_of(moved.effects, weights, b, rivals)
        against[b] = " ".join(names[int(i)] for i in rivals)
        rival[b] = names[int(rivals[np.abs(effect.value[rivals]).argmax()])]
        if not np.isnan(unit[[b, *rivals]]).any():
            standardised[:, b] = margin_of(moved.effects / unit, weights, b, rivals)
        elif compared:
            why[b].append("no control moves a rival")
    return {
        "own": np.arange(n) == (-1 if b is None else b), **effect.columns("effect", "ci"),
        "control_sd": control_sd, "standardised": effect.value / unit,
        "control_p": control_p(np.abs(effect.value), np.abs(moved.controls).T) if compared else [np.nan] * n,
        "against": against, "rival": rival, "reason": [reasons(row) for row in why],
        "margin": margin[0], "margin_low": margin[1], "margin_high": margin[2],
        "specific": margin[1] > RESOLUTION,
        "margin_standardised": standardised[0], "margin_standardised_low": standardised[1],
        "margin_standardised_high": standardised[2],
        "specific_standardised": (standardised[1] > 0) & (np.abs(effect.value) > RESOLUTION),
    }  # fmt: skip


@dataclass(frozen=True)
class AllExamples:
    """What an SAE sees at a role of every example of A*, up to the query."""

    model: LanguageModel
    sae: Sae
    runs: Runs
    role: str
    examples: Ints  # of these, [example]; the query is among them for a role that it has
    latents: Ints  # latents that may be ablated, ascending, [latent]
    activation: Tensor  # their gated activations, [prompt example latent]
    scale: Tensor  # length that the SAE's input normalisation gives to one unit, [prompt example]
    directions: Tensor  # what one unit of each adds to the decoded, [latent d_in]
    density: Floats  # share of these tokens at which a latent is active, [d_sae]
    mean_active: Floats  # mean length that it adds there, at the site, NaN where never active, [d_sae]
    base: Floats  # every belief's log-odds, nats [prompt belief]

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
        """
        pending: list[tuple[int, Tensor]] = []
        for prompt, rows in jobs:
            if pending and sum(len(some) for _, some in pending) + len(rows) > batch:
                yield from self._batch(pending, batch)
                pending = []
            pending.append((prompt, rows))
        if pending:
            yield from self._batch(pending, batch)

    def _batch(self, pending: Sequence[tuple[int, Tensor]], batch: int) -> list[Floats]:
        """The effects of some jobs, from one forward pass if they fit."""
        sizes = [len(rows) for _, rows in pending]
        prompts = np.repeat([prompt for prompt, _ in pending], sizes)
        value = torch.cat([rows for _, rows in pending]).cpu().numpy()
        tokens, read = up_to_query(self.runs.target)[prompts], query_position(self.runs.target)
        edit = Edit.at(
            self.sae.site, "add", self.role, self.examples.tolist(), value, layout=self.runs.target.layout
        )
        answers = answer_probs(self.model, tokens, read, extra=self.runs.words, edits=[edit], batch=batch)
        probs = AnswerProbs(answers.answers, answers.log_prob[:, 0])
        effects = self.runs.reader.log_odds(probs, prompts) - self.base[prompts]
        return np.split(effects, np.cumsum(sizes)[:-1])


@torch.no_grad()
def ablate_all_examples(
    model: LanguageModel, sae: Sae, runs: Runs, chosen: Chosen, named: Mapping[str, str], *, role: str,
    against: Sequence[str] | None = None, n_controls: int = 10, seed: int = 0, n_resamples: int = 1000,
    batch: int = 128,
) -> SpecificityTable:  # fmt: skip
    """Effects on every belief of ablating labelled latents at a token of every example, and their margins.

    Arguments that are not named here, and the result, are as in `specificity`.

    Args:
        runs: of these, A*; its recipient is not run. `copy` asks for f(x_A), as no donor gives anything.
        role: which token: of every example of the context, and of the query if it has one.
    """
    sets = sets_of(chosen)
    latents = np.unique([int(latent) for latent, _, _ in chosen]).astype(int)
    context = _all_examples(model, sae, runs, role, latents, batch)
    where = {"site": str(sae.site), "role": role, "way": ABLATE_ALL}
    matrix = Matrix(where, context.base, runs.beliefs, sets, named, against, seed, n_resamples)
    runs.columns([*(against or ()), *named.values()])
    rng = np.random.default_rng(seed)
    along = {
        members: stand_ins(
            sae, context.density, context.mean_active, np.array(members), latents, n_controls, rng
        )
        for members in matrix.members
    }
    return matrix.table(_ablated(context, along, matrix.known, batch))


def _ablated(
    context: AllExamples, along: Mapping[Latents, Tensor], known: Ints, batch: int
) -> dict[Latents, Moved]:
    """Effects on the `known` beliefs of ablating sets of latents, and of their controls.

    Args:
        along: members → unit directions of what stands in for them, [member control d_in].
        known: beliefs, [belief].
    """
    active = {
        members: np.flatnonzero((context.ablation(np.array(members))[0] != 0).any(dim=-1).any(dim=-1).cpu())
        for members in along
    }
    effects = {
        members: np.zeros((len(context.base), 1 + units.shape[1], len(known)))
        for members, units in along.items()
    }

    def jobs() -> Iterator[tuple[int, Tensor]]:
        """Each set in each prompt that it is active in, with its controls."""
        for members, units in along.items():
            delta, weighted = context.ablation(np.array(members))
            for i in active[members].tolist():
                yield i, with_controls(delta[i], weighted[i], units)

    places = [(members, i) for members in along for i in active[members].tolist()]
    for (members, i), rise in zip(places, context.effects_of(jobs(), batch), strict=True):
        effects[members][i] = rise[:, known]
    return {
        members: Moved(rises[:, 0], rises[:, 1:].mean(axis=0), len(active[members]))
        for members, rises in effects.items()
    }


def _all_examples(
    model: LanguageModel, sae: Sae, runs: Runs, role: str, latents: Ints, batch: int
) -> AllExamples:
    """Record and encode A* at the role of every example; `latents` are kept, all others only counted."""
    check_fits(model, sae)
    check_tokenizer(model.tokenizer, runs)
    directions = decoder_directions(sae, latents)
    rows = record_role(model, sae, runs.target, role, batch)
    check_decoder(sae, sae.encode(rows[:, 0]), sae.encode(rows[:, -1]))
    kept = torch.as_tensor(latents, device=rows.device)
    activation, scale = [], []

    def encoded() -> Iterator[tuple[Tensor, Tensor]]:
        for values, length in encoded_examples(sae, rows):
            activation.append(values[:, kept])
            scale.append(length)
            yield values, length

    density, mean_active = activity(sae, encoded())
    examples = np.arange(query_example(runs.target, role) + 1)
    base = runs.reader.log_odds(query_answers(model, runs.target, runs.words))
    return AllExamples(
        model, sae, runs, role, examples, latents, torch.stack(activation, dim=1), torch.stack(scale, dim=1),
        directions, density, mean_active, base,
    )  # fmt: skip
