"""Specificity: what a latent's patch does to other tasks, and ablation at all examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from iclens.core import EditError, SaeError, nearest, position
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, edited_answers, record
from iclens.patching.latents import matched, reasons
from iclens.patching.receiver import (
    LEVEL,
    Direction,
    LatentRuns,
    belief_log_odds,
    control_p_value,
    example_of,
    means,
    query_answers,
    resamples,
    up_to_query,
)
from iclens.patching.runs import Runs, check_tokenizer
from iclens.prompts.beliefs import AnswerProbs
from iclens.saes.encode import check_decoder, decoder_directions, decoder_lengths, refuse_transcoder
from iclens.saes.load import Sae
from iclens.schemas import SpecificityTable
from iclens.table import Floats, Ints

Way = Literal["ablate", "mean", "patch"]
DIRECTION_OF: dict[Way, Direction] = {"ablate": "necessity", "mean": "necessity", "patch": "sufficiency"}
"""Way of moving a latent → the direction of the runs in which it is moved."""
JOINT = -1
"""Stands for all chosen latents of a concept, moved together."""
MovedSet = tuple[str, str, int, tuple[int, ...]]
"""Concept, label, latent (or `JOINT`) and the latents that are moved."""
RESOLUTION = 1e-4
"""Nats by which a margin must exceed 0, and controls must move a belief to be its unit: in float32, mean
log-odds of one prompt run in other batches differ by some 1e-5."""


@dataclass(frozen=True)
class Moved:
    """What moving one set of latents does, and what its controls do.

    Args:
        effects: rise of each belief's log-odds, nats [prompt belief].
        controls: mean effects of the controls over the prompts, nats [control belief].
        n_active: prompts in which anything was added.
    """

    effects: Floats
    controls: Floats
    n_active: int

    @property
    def control_sd(self) -> Floats:
        """Root mean square of the controls' mean effects, nats [belief]; NaN where nothing was pushed."""
        if not (self.n_active and len(self.controls)):
            return np.full(self.effects.shape[1], np.nan)
        return np.sqrt(np.square(self.controls).mean(axis=0))


@dataclass(frozen=True)
class Question:
    """What is asked of a concept's latents: its own belief, and those that compete with it.

    Args:
        own: column of its own belief, None where there is none.
        rivals: columns of the beliefs that the margin is taken over, [rival].
        reason: why there can be no margin; empty otherwise.
    """

    own: int | None
    rivals: Ints
    reason: str


def specificity(
    held: Sequence[LatentRuns], chosen: Sequence[tuple[int, str, str]], own: Mapping[str, str], *,
    ways: Sequence[Way] = ("ablate", "patch"), against: Sequence[str] | None = None, n_controls: int = 40,
    seed: int = 0, n_resamples: int = 1000,
) -> SpecificityTable:  # fmt: skip
    """Effects of labelled latents on every belief, and by how much their own is moved more than its rivals.

    margin = |mean effect on own| − max over rivals |mean effect|. In each resample the effect on own counts
    in the direction that it has over all prompts: a lower end above 0 says that this direction is sure too.

    Args:
        held: runs of one SAE at one role, one for each direction that the ways need.
        chosen: latent, concept, and the label granted to it or "candidate".
        own: concept → the belief that it names.
        ways: how latents are moved, of `DIRECTION_OF`.
        against: beliefs that count as rivals; by default the own beliefs of all concepts in `own`.
        n_controls: matched random live latents for each moved latent or set, or as many as are live.
        seed: of the controls and of the bootstrap.
        n_resamples: bootstrap resamples.

    Returns:
        A row per way, concept, latent (and `JOINT`) and belief that is defined at every query.

    Raises:
        EditError: for an unknown way or belief, runs of several places or lacking a direction, or a latent
            that stands twice under one concept.
        SaeError: for a latent that the SAE does not have.
    """
    by_direction, sets = _checked(held, ways), sets_of(chosen)
    excluded = np.unique([int(latent) for latent, _, _ in chosen]).astype(int)
    tables = []
    for way in ways:
        runs = by_direction[DIRECTION_OF[way]]
        known = np.flatnonzero(~np.isnan(runs.base).any(axis=0))
        rng = np.random.default_rng(seed)
        found = {
            members: _moved(runs, way, np.array(members), known, excluded, n_controls, rng)
            for members in dict.fromkeys(members for *_, members in sets)
        }
        where = {"site": str(runs.sae.site), "role": runs.role, "way": way}
        weights = resamples(len(runs.tails), n_resamples, np.random.default_rng(seed))
        questions = questions_of(runs.runs, known, sets, own, against)
        tables.append(matrix_of(where, sets, found, questions, runs.base[:, known], weights))
    return SpecificityTable.concat(tables)


def additions(held: LatentRuns, way: Way, members: Ints) -> Tensor:
    """What moving some latents together adds at the site, scale · Σ_f Δa_f · d_f, [prompt d_in].

    Args:
        held: runs of the way's direction.
        way: how they are moved; Δa_f = −a_f for "ablate", else the donor value minus the receiver's.
        members: latents, [member].
    """
    directions = held.directions(members)
    return held.scale[:, None] * (_change(held, way, members) @ directions)


def margin_of(effects: Floats, weights: Floats, own: int, rivals: Ints) -> tuple[float, float, float]:
    """By how much one effect exceeds the largest of others, |mean own| − max |mean rival|, and its interval.

    Args:
        effects: [prompt column], in any unit that the columns share.
        weights: bootstrap weights of prompts, [draw prompt].
        own: its column.
        rivals: the others' columns, [rival]; at least one.

    Returns:
        The margin and the ends of its 95 % interval. A resample whose own effect has the other sign than the
        sample's counts it as negative: else noise about 0, of whatever sign, would always count for it.
    """
    whole, drawn = effects.mean(axis=0), weights @ effects
    way = np.sign(whole[own])
    each = way * drawn[:, own] - np.abs(drawn[:, rivals]).max(axis=1)
    low, high = np.percentile(each, LEVEL)
    return float(abs(whole[own]) - np.abs(whole[rivals]).max()), float(low), float(high)


def _checked(held: Sequence[LatentRuns], ways: Sequence[Way]) -> dict[Direction, LatentRuns]:
    """The runs by direction, if they are what the ways need."""
    found: dict[Direction, LatentRuns] = {runs.direction: runs for runs in held}
    for way in ways:
        if way not in DIRECTION_OF:
            raise EditError(f"moving latents by '{way}'", "unknown", nearest(way, DIRECTION_OF) + ".")
        if DIRECTION_OF[way] not in found:
            raise EditError(
                f"moving latents by '{way}'", f"no runs for {DIRECTION_OF[way]} were given",
                f"Gather them with direction='{DIRECTION_OF[way]}'.",
            )  # fmt: skip
    places = {(runs.sae.site.short, runs.role, runs.sae.sae_id, runs.beliefs) for runs in held}
    if len(places) > 1:
        where = " and ".join(sorted(f"{site} {role}" for site, role, _, _ in places))
        raise EditError(
            f"specificity at {where}",
            "runs of several places or SAEs",
            "Call it once for each site, role and SAE.",
        )
    return found


def sets_of(chosen: Sequence[tuple[int, str, str]]) -> list[MovedSet]:
    """What is moved, by concept: each of its latents, and all of them together last.

    Args:
        chosen: latent, concept, and the label granted to it or "candidate".

    Raises:
        EditError: for a latent that stands twice under one concept.
    """
    pairs = [(int(latent), concept) for latent, concept, _ in chosen]
    twice = [pair for pair in pairs if pairs.count(pair) > 1]
    if twice:
        raise EditError(
            f"latent {twice[0][0]} for '{twice[0][1]}'",
            "it stands twice",
            "List each latent once under a concept.",
        )
    sets: list[MovedSet] = []
    for concept in dict.fromkeys(concept for _, concept, _ in chosen):
        ours = [(int(latent), label) for latent, name, label in chosen if name == concept]
        sets += [(concept, label, latent, (latent,)) for latent, label in ours]
        sets.append((concept, "joint", JOINT, tuple(sorted(latent for latent, _ in ours))))
    return sets


def _change(held: LatentRuns, way: Way, members: Ints) -> Tensor:
    """Change of each latent's activation, [prompt member]."""
    ids = torch.as_tensor(members, device=held.scale.device)
    own = held.recipient_latents[:, ids]
    return -own if way == "ablate" else held.donor_latents[:, ids] - own


def _moved(
    held: LatentRuns, way: Way, members: Ints, known: Ints, excluded: Ints, n_controls: int,
    rng: np.random.Generator,
) -> Moved:  # fmt: skip
    """Effects on the `known` beliefs of moving latents together, and of matched ones pushed as far."""
    delta = additions(held, way, members)
    along = stand_ins(held.sae, held.density, held.mean_active, members, excluded, n_controls, rng)
    weighted = _change(held, way, members) * held.directions(members).norm(dim=1)
    everyone = range(len(held.tails))
    pushes = (with_controls(delta[i], weighted[i], along) for i in everyone)
    found = np.stack(held.effects_of(everyone, pushes))[..., known]
    return Moved(found[:, 0], found[:, 1:].mean(axis=0), int((delta != 0).any(dim=1).sum()))


def stand_ins(
    sae: Sae, density: Floats, mean_active: Floats, members: Ints, excluded: Ints, n_controls: int,
    rng: np.random.Generator,
) -> Tensor:  # fmt: skip
    """Unit directions of the random live latents that stand in for each member, [member control d_in].

    They are like the member in density and mean activation; none of them is among the `excluded`, and none
    stands in twice for the same member.

    Args:
        sae: the SAE.
        density: share of positions at which each latent is active, [d_sae].
        mean_active: mean length that each latent adds where active, [d_sae].
        members: latents that are moved together, [member].
        excluded: latents that stand in for none, [latent].
        n_controls: how many for each member, or as many as every member has.
        rng: of the draw.
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
    """An addition and its controls', each exactly as long, [1 + control ... d_in].

    A control is ‖delta‖ · u / ‖u‖ with u = Σ_m weighted_m · along_m.

    Args:
        delta: what is added, [... d_in], with or without an axis of positions.
        weighted: change of each member's activation times the length of its direction, [... member].
        along: from `stand_ins`, [member control d_in].
    """
    sums = torch.einsum("...m,mcd->c...d", weighted, along)
    unit = torch.nn.functional.normalize(sums, dim=-1)
    return torch.cat([delta[None], delta.norm(dim=-1, keepdim=True) * unit])


def questions_of(
    runs: Runs, known: Ints, sets: Sequence[MovedSet], own: Mapping[str, str], against: Sequence[str] | None
) -> tuple[Sequence[str], dict[str, Question]]:
    """Names of the beliefs that are read, and what is asked of each concept's latents.

    Args:
        runs: give the beliefs.
        known: those that are defined at every query, [belief].
        sets: what is moved.
        own: concept → the belief that it names.
        against: beliefs that count as rivals; by default the own beliefs of all concepts in `own`.

    Raises:
        EditError: for an unknown belief.
    """
    names = [runs.beliefs[b] for b in known]
    rivals = list(dict.fromkeys(own.values() if against is None else against))
    runs.columns([*rivals, *own.values()])
    return names, {concept: _question(names, concept, own, rivals) for concept, *_ in sets}


def _question(names: Sequence[str], concept: str, own: Mapping[str, str], rivals: Sequence[str]) -> Question:
    """Own belief and rivals of a concept, as columns of the beliefs `names`."""
    none = np.zeros(0, dtype=int)
    if concept not in own:
        return Question(None, none, f"no belief reads {concept}")
    if own[concept] not in names:
        return Question(None, none, f"{own[concept]} is undefined for this task")
    columns = [b for b, name in enumerate(names) if name in rivals and name != own[concept]]
    reason = "" if columns else "no belief to compare with"
    return Question(names.index(own[concept]), np.array(columns, dtype=int), reason)


def matrix_of(
    where: Mapping[str, str], sets: Sequence[MovedSet], found: Mapping[tuple[int, ...], Moved],
    questions: tuple[Sequence[str], Mapping[str, Question]], base: Floats, weights: Floats,
) -> SpecificityTable:  # fmt: skip
    """Effects and margins of sets that were moved in one way, a row per set and belief.

    Args:
        where: site, role and way.
        sets: what was moved.
        found: what that did, by members.
        questions: from `questions_of`.
        base: log-odds without the change, nats [prompt belief].
        weights: bootstrap weights of prompts, [draw prompt].
    """
    (names, asked), tables = questions, []
    for concept, label, latent, members in sets:
        same = {
            **where, "concept": concept, "label": label, "latent": latent, "n_prompts": len(base),
            "n_active": found[members].n_active, "n_controls": len(found[members].controls),
        }  # fmt: skip
        rows = {name: [value] * len(names) for name, value in same.items()}
        rows |= {"belief": list(names), "base": base.mean(axis=0)}
        tables.append(SpecificityTable(rows | _figures(found[members], names, asked[concept], weights)))
    return SpecificityTable.concat(tables)


def _figures(moved: Moved, names: Sequence[str], asked: Question, weights: Floats) -> dict[str, Any]:
    """Effects and margins of one moved set, a row per belief."""
    effect, control_sd = means(moved.effects, weights), moved.control_sd
    unit = np.where(control_sd > RESOLUTION, control_sd, np.nan)
    n, compared = len(names), not np.isnan(control_sd).all()
    margin, standardised = np.full((3, n), np.nan), np.full((3, n), np.nan)
    against, rival = [""] * n, [""] * n
    why = [[
        "" if moved.n_active else "nothing is moved in any prompt",
        "" if len(moved.controls) else "no live control",
        "no control moves this belief" if compared and np.isnan(unit[b]) else "",
        asked.reason or ("" if b == asked.own else "margins stand beside its own belief"),
    ] for b in range(n)]  # fmt: skip
    if asked.own is not None and not asked.reason:
        margin[:, asked.own] = margin_of(moved.effects, weights, asked.own, asked.rivals)
        against[asked.own] = " ".join(names[int(b)] for b in asked.rivals)
        rival[asked.own] = names[int(asked.rivals[np.abs(effect.value[asked.rivals]).argmax()])]
        standing = unit[[asked.own, *asked.rivals]]
        if not np.isnan(standing).any():
            standardised[:, asked.own] = margin_of(moved.effects / unit, weights, asked.own, asked.rivals)
        elif compared:
            why[asked.own].append("no control moves a rival")
    apart = (standardised[1] > 0) & (np.abs(effect.value) > RESOLUTION)
    return {
        "own": np.arange(n) == (-1 if asked.own is None else asked.own),
        "effect": effect.value, "ci_low": effect.low, "ci_high": effect.high,
        "control_sd": control_sd, "standardised": effect.value / unit,
        "control_p": [control_p_value(effect.value[b], moved.controls[:, b]) if compared else np.nan
                      for b in range(n)],
        "against": against, "rival": rival, "reason": [reasons(row) for row in why],
        "margin": margin[0], "margin_low": margin[1], "margin_high": margin[2],
        "specific": margin[1] > RESOLUTION,
        "margin_standardised": standardised[0], "margin_standardised_low": standardised[1],
        "margin_standardised_high": standardised[2], "specific_standardised": apart,
    }  # fmt: skip


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
    found = _ablated(held, along, known, batch)
    where = {"site": str(sae.site), "role": role, "way": ABLATE_ALL}
    weights = resamples(len(held.base), n_resamples, np.random.default_rng(seed))
    return matrix_of(where, sets, found, questions, held.base[:, known], weights)


def _ablated(
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
