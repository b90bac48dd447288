"""Does moving a labelled latent move the belief that its concept names, and that more than the others?

    ablate  A*: h ← h − a_f · scale · d_f                  the latent as if it were silent
    mean    A*: h ← h + (a_f^B − a_f) · scale · d_f        as it is without the examples
    patch   B:  h ← h + (a_f^A − a_f) · scale · d_f        as it is with them

1. Each chosen latent is moved, and all those of a concept together, at one site and role. 2. The effect on
*every* belief is read in every prompt. 3. margin = |effect on own| − max over rivals of |effect|, with the
maximum taken anew in each resample of prompts. 4. Beliefs differ in how easily any push moves them: for each
one the same prompts are pushed as far along matched random live latents, and effects are also given in units
of the root mean square of what these do.

Enter runs of both directions and latents that were labelled elsewhere, on other prompts; so no prompt has to
screen them, and all are used. Leaves a SpecificityTable. Here a latent is moved at one token; for what is
spread over the context, `everywhere` ablates it at that token of every example, and shares steps 3 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from iclens.errors import EditError, nearest
from iclens.patching.effects import LEVEL, control_p_value, means, resamples
from iclens.patching.latents.gather import Direction, LatentRuns
from iclens.patching.latents.single import matched, reasons
from iclens.patching.runs import Runs
from iclens.saes.directions import decoder_directions
from iclens.saes.load import Sae
from iclens.tables.arrays import Floats, Ints
from iclens.tables.specificity import SpecificityTable

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
