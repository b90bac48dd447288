"""Sets of latents patched together, and their controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iclens.core import EditError, Site
from iclens.model.run import record_neurons
from iclens.model.tail import tails_of
from iclens.patching.latents import expect_effects, matched, reasons
from iclens.patching.receiver import (
    LatentRuns,
    control_p_value,
    gather,
    means,
    mixed,
    normalised_effects,
    place_of,
    resamples,
    up_to_query,
)
from iclens.patching.runs import Runs
from iclens.prompts.build import PromptSet
from iclens.schemas import ControlTable, SetTable
from iclens.table import Floats, Ints

OWN, GREEDY, ALL, NEURONS, MEANS, FULL = (
    "by own effect", "greedy", "all latents", "neurons", "difference of means", "full activation",
)  # fmt: skip
CANDIDATES = 64
"""Latents of largest own effect, and as many of largest effect when left out, among which greed searches."""
ENOUGH = 0.9
"""Share of the full activation's effect, on the screening half, at which the greedy order stops."""
HALF = 0.5
"""Share of the full activation's effect from which a set counts as carrying it."""
POOL = 100
"""Matched latents from which a member of a random set is drawn."""
LISTED = 64


@dataclass(frozen=True)
class Members:
    """A set that is moved as one.

    Args:
        kind: as in `SetTable`.
        ids: latents or neurons in the order they were chosen, [member].
        size: how many members, as the table reports it.
        delta: what is added, [prompt d_in].
    """

    kind: str
    ids: Ints
    size: int
    delta: Tensor


def patch_sets(
    held: LatentRuns, effects: Floats, *, chosen_for: str = "exact", largest: int = 32, n_controls: int = 50,
    seed: int = 0, draws: int = 1000,
) -> SetTable:  # fmt: skip
    """Effects of sets of latents on every belief.

    Args:
        held: the runs.
        effects: single effects of `held.differing` on every prompt, nats [prompt latent belief].
        chosen_for: the belief by whose effects members are chosen.
        largest: members of the largest chosen set.
        n_controls: random sets for each chosen set.
        seed: of the random sets and the bootstrap.
        draws: bootstrap resamples.

    Raises:
        EditError: when `chosen_for` is no belief of the runs, or the effects are not those of these runs.
    """
    (b,) = held.runs.columns([chosen_for])
    expect_effects(held, effects)
    order = own_order(held, effects, b)
    greedy = greedy_order(held, candidates(held, effects, b), b, largest)
    sets = list(_sets(held, order, greedy, b, largest))
    deltas = [one.delta for one in sets]
    found, screened = _effects(held, deltas, held.test), _effects(held, deltas, held.screen)
    rng, weights = np.random.default_rng(seed), resamples(len(held.test), draws, np.random.default_rng(seed))
    last = [one.kind for one in sets].index(FULL)
    with np.errstate(divide="ignore", invalid="ignore"):
        screen_share = screened[..., b].mean(axis=0) / screened[:, last, b].mean()
    compared = _compared(sets, screen_share >= HALF)
    tables = []
    for i, one in enumerate(sets):
        drawn = random_sets(held, one, n_controls, rng) if i in compared else None
        rows = _rows(held, one, chosen_for, (found[:, i], found[:, last], drawn), weights)
        tables.append(rows | {"screen_share": [screen_share[i]] * len(held.beliefs)})
    return SetTable.concat([SetTable(rows) for rows in tables])


def _compared(sets: Sequence[Members], enough: np.ndarray) -> set[int]:
    """Which sets get random ones beside them: sizes 1, 2, 4, …, the largest, and the first that is enough."""
    chosen = set()
    for kind in (OWN, GREEDY):
        places = [i for i, one in enumerate(sets) if one.kind == kind]
        sizes = _sizes(len(places) if kind == GREEDY else max([sets[i].size for i in places], default=0))
        chosen |= {i for i in places if sets[i].size in sizes}
        chosen |= {i for i in places if enough[i]} and {next(i for i in places if enough[i])}
    return chosen


def own_order(held: LatentRuns, effects: Floats, b: int) -> Ints:
    """Latents whose own effect on belief `b` goes the other run's way (screening half), largest first."""
    gain = _way(held, b) * effects[held.screen][..., b].mean(axis=0)
    order = np.argsort(-np.nan_to_num(gain, nan=-np.inf), kind="stable")
    return held.differing[order[np.nan_to_num(gain)[order] > 0]]


def candidates(held: LatentRuns, effects: Floats, b: int, most: int = CANDIDATES) -> Ints:
    """Latents worth adding: of largest own effect, or of largest loss when left out of all latents.

    A latent may do nothing alone and much beside others; what is lost without it tells. Screening half.

    Args:
        held: the runs.
        effects: single effects of `held.differing`, nats [prompt latent belief].
        b: the belief's column.
        most: latents of either kind.
    """
    along, every = held.directions(held.differing), held.all_latents
    without = (
        torch.cat([every[i : i + 1], every[i] - held.pushes(i, held.differing, along)])
        for i in held.screen.tolist()
    )
    lost = [found[0, b] - found[1:, b] for found in held.effects_of(held.screen, without)]
    ranked = [effects[held.screen][..., b].mean(axis=0), np.mean(lost, axis=0)]
    best = [np.argsort(-_way(held, b) * np.nan_to_num(gain), kind="stable")[:most] for gain in ranked]
    return held.differing[np.unique(np.concatenate(best))]


def _way(held: LatentRuns, b: int) -> float:
    """1 when the other run holds more of belief `b` than the receiver, −1 when less (screening half)."""
    return float(np.sign((held.target - held.base)[held.screen, b].mean()))


def greedy_order(held: LatentRuns, candidates: Ints, b: int, largest: int) -> Ints:
    """Candidates in the order in which each adds most to belief `b` beside those before it.

    Stops when none adds anything, at `largest`, or when the set has `ENOUGH` of the full activation's effect
    on the screening half.
    """
    way, chosen, left = _way(held, b), [], list(range(len(candidates)))
    along = held.directions(candidates)
    pushes = {int(i): held.pushes(int(i), candidates, along) for i in held.screen}
    so_far = {i: torch.zeros_like(held.recipient_held[i]) for i in pushes}
    whole = held.everything
    full = np.mean(held.effects_of(held.screen, (whole[i : i + 1] for i in pushes)), axis=0)[0, b]
    reached = 0.0
    while left and len(chosen) < largest and reached < ENOUGH * way * full:
        tried = held.effects_of(held.screen, (so_far[i] + push[left] for i, push in pushes.items()))
        gains = np.mean(tried, axis=0)[:, b]
        best = int(np.argmax(way * gains))
        if way * gains[best] <= reached:
            break
        reached = float(way * gains[best])
        member = left.pop(best)
        chosen.append(member)
        for i, push in pushes.items():
            so_far[i] = so_far[i] + push[member]
    return candidates[chosen]


def _sets(held: LatentRuns, order: Ints, greedy: Ints, b: int, largest: int) -> Iterator[Members]:
    """Every set whose effect is reported."""
    for kind, ids, sizes in (
        (OWN, order, _sizes(min(len(order), largest))), (GREEDY, greedy, range(1, len(greedy) + 1)),
    ):  # fmt: skip
        for size in sizes:
            yield Members(kind, ids[:size], size, joint(held, ids[:size]))
    yield Members(ALL, held.differing, len(held.differing), held.all_latents)
    written = writer(held.sae.site)
    if written is not None:
        pushes, ids = _neurons_by_effect(held, written, b, largest)
        for size in _sizes(len(ids)):
            yield Members(NEURONS, ids[:size], size, pushes[:, :size].sum(dim=1))
    shift = held.everything[torch.as_tensor(held.screen)].mean(dim=0)
    yield Members(MEANS, np.zeros(0, dtype=int), 1, shift.expand_as(held.everything))
    yield Members(FULL, np.zeros(0, dtype=int), 0, held.everything)


def _sizes(most: int) -> list[int]:
    """1, 2, 4, … and `most`, if that is anything."""
    return sorted({2**k for k in range(32) if 2**k <= most} | ({most} if most else set()))


def joint(held: LatentRuns, latents: Ints) -> Tensor:
    """What moving latents together adds in every prompt, [prompt d_in]."""
    along = held.directions(latents)
    return torch.stack([held.pushes(i, latents, along).sum(dim=0) for i in range(len(held.tails))])


def _effects(held: LatentRuns, deltas: list[Tensor], prompts: Ints) -> Floats:
    """Effects of additions [prompt d_in] on some prompts, [prompt, addition, belief]."""
    rows = torch.stack(deltas, dim=1)
    return np.stack(held.effects_of(prompts, (rows[i] for i in prompts.tolist())))


def random_sets(held: LatentRuns, members: Members, n: int, rng: np.random.Generator) -> Floats:
    """Mean effects of n sets of as many random live latents over the test half, [set belief].

    Each member is exchanged for a matched one that is no member, moved by the member's change; the sum is
    stretched to the length of the set's own addition, prompt by prompt.
    """
    among = np.ones(held.sae.d_sae)
    among[members.ids] = 0
    density = held.density * among
    pools = [matched(density, held.mean_active, int(f), POOL, rng) for f in members.ids]
    if not all(len(pool) for pool in pools):
        return np.zeros((0, len(held.beliefs)))
    drawn = np.stack([_distinct(pools, rng) for _ in range(n)], axis=1)
    lengths = held.directions(members.ids).norm(dim=1)
    known, where = np.unique(drawn, return_inverse=True)
    units = torch.nn.functional.normalize(held.directions(known), dim=1)
    along = units[torch.as_tensor(where.reshape(drawn.shape))]

    def stretched(i: int) -> Tensor:
        """A prompt's sums, as long as the set's own addition, [set d_in]."""
        change = torch.as_tensor(held.change[i, members.ids]).to(lengths) * lengths
        sums = torch.einsum("m,mnd->nd", change, along)
        return sums * (members.delta[i].norm() / sums.norm(dim=1, keepdim=True).clamp_min(1e-12))

    return np.mean(held.effects_of(held.test, (stretched(i) for i in held.test.tolist())), axis=0)


def _distinct(pools: Sequence[Ints], rng: np.random.Generator) -> Ints:
    """One latent of each pool, no latent twice as long as a pool has another, [pool]."""
    drawn: list[int] = []
    for pool in pools:
        left = np.setdiff1d(pool, drawn)
        drawn.append(int(rng.choice(left if len(left) else pool)))
    return np.array(drawn)


def writer(site: Site) -> int | None:
    """The block whose MLP writes last into a site; None where none does."""
    if site.hook in ("resid_post", "mlp_out"):
        return site.layer
    return site.layer - 1 if site.hook in ("resid_pre", "resid_mid") and site.layer else None


def _neurons_by_effect(held: LatentRuns, layer: int, b: int, largest: int) -> tuple[Tensor, Ints]:
    """Neurons of largest own effect on the screening half: what each adds [prompt neuron d_in], and ids."""
    block = held.model.network.model.layers[layer]
    donor, own = (_neurons(held, prompts, layer) for prompts in (held.source, held.receiver))
    change, directions = (mixed(held.mix, donor) - own), block.mlp.down_proj.weight.T.to(own)
    gains = np.mean(
        [held.effects(int(i), change[int(i), :, None] * directions)[:, b] for i in held.screen], axis=0
    )
    best = np.argsort(-_way(held, b) * gains, kind="stable")[:largest]
    chosen = torch.as_tensor(best.copy())
    return change[:, chosen, None] * directions[chosen], best


def _neurons(held: LatentRuns, prompts: PromptSet, layer: int) -> Tensor:
    """Activations of a block's neurons where the prompts are patched, [prompt neuron]."""
    where = np.array([place_of(prompts, held.role)])
    return torch.as_tensor(record_neurons(held.model, up_to_query(prompts), layer, where)[:, 0]).to(held.mix)


def _rows(
    held: LatentRuns, one: Members, chosen_for: str, found: tuple[Floats, Floats, Floats | None],
    weights: Floats,
) -> dict[str, Any]:  # fmt: skip
    """One set's columns from its effects and the full activation's, [test prompt, belief], and its controls'.

    All but `screen_share`.
    """
    own, full, drawn = found
    n, base = len(held.beliefs), held.base[held.test]
    effect = means(own, weights)
    against = normalised_effects(own, held.target[held.test] - base, weights)
    share = normalised_effects(own, full, weights)
    compared = np.full((4, n), np.nan)
    if drawn is not None and len(drawn):
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = drawn / np.where(np.isnan(share.value), np.nan, full.mean(axis=0))
        compared = np.stack([shares.mean(axis=0), *np.percentile(shares, (2.5, 97.5), axis=0), [
            control_p_value(effect.value[k], drawn[:, k]) for k in range(n)
        ]])  # fmt: skip
        compared[3, np.isnan(effect.value)] = np.nan
    listed = " ".join(str(i) for i in one.ids) if len(one.ids) <= LISTED else ""
    why = zip(effect.reason, against.reason, (_of_full(reason) for reason in share.reason), strict=True)
    return {
        "site": [str(held.sae.site)] * n, "role": [held.role] * n, "direction": [held.direction] * n,
        "kind": [one.kind] * n, "size": [one.size] * n, "members": [listed] * n,
        "chosen_for": [chosen_for] * n, "belief": list(held.beliefs), "n_prompts": [len(own)] * n,
        "base": base.mean(axis=0), "effect": effect.value, "ci_low": effect.low, "ci_high": effect.high,
        "normalised": against.value, "normalised_low": against.low, "normalised_high": against.high,
        "share_of_full": share.value, "share_low": share.low, "share_high": share.high,
        "n_controls": [0 if drawn is None else len(drawn)] * n, "control_share": compared[0],
        "control_low": compared[1], "control_high": compared[2], "control_p": compared[3],
        "reason": [reasons(found) for found in why],
    }  # fmt: skip


def _of_full(reason: str) -> str:
    """Why a share is NaN, where `normalised_effects` speaks of A* and B in place of the full activation."""
    return reason.replace("A* and B differ", "the full activation moves the belief").replace(
        "A* − B", "the full activation's effect"
    )


SAME_VALUES = "it has the same donor values, so it cannot tell"
"""Of a control that is the patch itself: most often a latent that either task switches off."""
WRONG_ROLES = ("comma", "x")
"""Tokens of the query at which the same addition is tried."""


def patch_controls(
    held: LatentRuns, groups: Sequence[Ints], *, wrong: Runs | None = None,
    roles: Sequence[str] = WRONG_ROLES, seed: int = 0, draws: int = 1000,
) -> ControlTable:  # fmt: skip
    """Effects of groups of latents, and of their controls, on every belief.

    Args:
        held: the runs.
        groups: latents that are moved together, [latent] each; one for a single latent.
        wrong: runs of another task with the same queries x_B; left out when not given.
        roles: other tokens, before the place of the patch or at it.
        seed: of the split of the other task's prompts, as given to `gather`, and of the bootstrap.
        draws: bootstrap resamples.

    Raises:
        EditError: when the other runs ask other queries, or a role comes after the place of the patch.
    """
    if not len(groups):
        return ControlTable.concat([])
    if any(np.ndim(ids) != 1 for ids in groups):
        raise EditError(
            "controls of a list of latents",
            "groups of latents are lists",
            "Give a list of lists, such as [[1, 2], [3]].",
        )
    own = [joint(held, ids) for ids in groups]
    found: dict[str, Floats] = {"own": _at_place(held, own), "sign flip": _at_place(held, [-d for d in own])}
    found |= {f"wrong role {role}": effects for role, effects in _elsewhere(held, own, roles).items()}
    if wrong is not None:
        lent = _lent(held, wrong, seed)
        found[f"wrong task {wrong.task.name}"] = _at_place(held, [joint(lent, ids) for ids in groups])
    weights = resamples(len(held.test), draws, np.random.default_rng(seed))
    alike = [np.array_equal(found["own"][:, g], effects[:, g], equal_nan=True)
             for g in range(len(groups)) for effects in found.values()]  # fmt: skip
    return ControlTable.concat([
        _control_rows(held, " ".join(str(f) for f in ids), control, effects[:, g], weights,
              SAME_VALUES if alike[g * len(found) + c] and control != "own" else "")
        for g, ids in enumerate(groups) for c, (control, effects) in enumerate(found.items())
    ])  # fmt: skip


def _at_place(held: LatentRuns, deltas: Sequence[Tensor]) -> Floats:
    """Effects of additions [prompt d_in] at the runs' own place, [test prompt, addition, belief]."""
    rows = (torch.stack([d[i] for d in deltas]) for i in held.test.tolist())
    return np.stack(held.effects_of(held.test, rows))


def _elsewhere(held: LatentRuns, deltas: Sequence[Tensor], roles: Sequence[str]) -> Mapping[str, Floats]:
    """Effects of the same additions at other roles, role → [test prompt, addition, belief]."""
    tokens = up_to_query(held.receiver)
    places = {role: place_of(held.receiver, role) for role in roles if role != held.role}
    if not places:
        return {}
    late = [role for role, place in places.items() if place >= tokens.shape[1]]
    if late:
        raise EditError(
            f"a control at `{late[0]}`",
            "it comes after the query",
            "Choose a role up to the one that the runs were gathered at.",
        )
    first = min(*places.values(), int(held.place[0]))
    tails = tails_of(held.model, tokens, held.tails[0].answers[1000:], first=first)
    return {role: _at_place(replace(held, role=role, tails=tails), deltas) for role in places}


def _lent(held: LatentRuns, wrong: Runs, seed: int) -> LatentRuns:
    """The runs with donor values of another task."""
    if held.direction != "sufficiency":
        raise EditError(
            "donor values of another task",
            "B's values are put into A*",
            "Gather the runs with direction='sufficiency', or leave `wrong` out.",
        )
    if len(wrong.x_B) != len(held.runs.x_B) or (wrong.x_B != held.runs.x_B).any():
        raise EditError(
            f"donor values of '{wrong.task.name}'", "its runs ask other queries",
            "Build them with the seed and inputs of these runs.",
        )  # fmt: skip
    value = "instance" if torch.equal(held.mix, torch.eye(len(held.mix)).to(held.mix)) else "task mean"
    other = gather(held.model, held.sae, wrong, donor_value=value, role=held.role, seed=seed)
    return replace(held, donor_latents=other.donor_latents, donor_held=other.donor_held)


def _control_rows(
    held: LatentRuns, latents: str, control: str, effects: Floats, weights: Floats, said: str
) -> ControlTable:
    """A row per belief, from effects [test prompt, belief]; `said` of all of them."""
    n, effect = len(held.beliefs), means(effects, weights)
    return ControlTable({
        "site": [str(held.sae.site)] * n, "role": [held.role] * n, "latents": [latents] * n,
        "control": [control] * n, "belief": list(held.beliefs), "n_prompts": [len(effects)] * n,
        "effect": effect.value, "ci_low": effect.low, "ci_high": effect.high,
        "reason": [reason or said for reason in effect.reason],
    })  # fmt: skip
