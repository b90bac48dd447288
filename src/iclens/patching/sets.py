"""Sets of latents patched together, in the order that carries most, beside random sets and other controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from iclens.core import EditError, Site
from iclens.model.run import record_neurons
from iclens.model.tail import tails_of
from iclens.patching.latents import expect_effects, matched, reasons
from iclens.patching.receiver import PatchReceiver, mixed, prepare_patch, query_position, up_to_query
from iclens.patching.runs import Runs
from iclens.prompts.build import PromptSet
from iclens.schemas import ControlTable, SetTable
from iclens.stats import control_p, interval, means, normalised_effects, prompt_weights
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
"""Members of the largest set whose ids the table lists."""
TO_FULL = ("the full activation moves the belief by", "the full activation's effect")
SAME_VALUES = "it has the same donor values, so it cannot tell"
"""Of a control that is the patch itself: most often a latent that either task switches off."""
WRONG_ROLES = ("comma", "x")
"""Tokens of the query at which the same addition is tried."""


@dataclass(frozen=True)
class Members:
    """A set that is moved as one."""

    kind: str  # as in `SetTable`
    ids: Ints  # latents or neurons in the order they were chosen, [member]
    size: int  # how many members, as the table reports it
    delta: Tensor  # what is added, [prompt d_in]


def patch_sets(
    receiver: PatchReceiver, effects: Floats, *, chosen_for: str = "exact", largest: int = 32,
    n_controls: int = 50, seed: int = 0, draws: int = 1000,
) -> SetTable:  # fmt: skip
    """Effects of sets of latents on every belief.

    Args:
        effects: single effects of `receiver.differing` on every prompt, nats [prompt latent belief].
        chosen_for: the belief by whose effects members are chosen.
        largest: members of the largest chosen set.
        n_controls: random sets for each chosen set.
        seed: of the random sets and the bootstrap.
    """
    (b,) = receiver.runs.columns([chosen_for])
    expect_effects(receiver, effects, len(receiver.differing))
    order = own_order(receiver, effects, b)
    greedy = greedy_order(receiver, candidates(receiver, effects, b), b, largest)
    sets = list(_sets(receiver, order, greedy, b, largest))
    deltas = [members.delta for members in sets]
    tested, screened = (receiver.effects_at(half, deltas) for half in (receiver.test, receiver.screen))
    rng = np.random.default_rng(seed)
    weights = prompt_weights(len(receiver.test), draws, np.random.default_rng(seed))
    last = [members.kind for members in sets].index(FULL)
    with np.errstate(divide="ignore", invalid="ignore"):
        screen_share = screened[..., b].mean(axis=0) / screened[:, last, b].mean()
    compared = _compared(sets, screen_share >= HALF)
    tables = []
    for i, members in enumerate(sets):
        controls = random_sets(receiver, members, n_controls, rng) if i in compared else None
        figures = (tested[:, i], tested[:, last], controls)
        tables.append(_rows(receiver, members, chosen_for, screen_share[i], figures, weights))
    return SetTable.concat(tables)


def _compared(sets: Sequence[Members], enough: np.ndarray) -> set[int]:
    """Which sets get random ones beside them: sizes 1, 2, 4, …, the largest, and the first that is enough."""
    chosen = set()
    for kind in (OWN, GREEDY):
        places = [i for i, members in enumerate(sets) if members.kind == kind]
        sizes = _sizes(len(places) if kind == GREEDY else max([sets[i].size for i in places], default=0))
        chosen |= {i for i in places if sets[i].size in sizes}
        chosen |= {i for i in places if enough[i]} and {next(i for i in places if enough[i])}
    return chosen


def own_order(receiver: PatchReceiver, effects: Floats, b: int) -> Ints:
    """Latents whose own effect on belief `b` goes the other run's way (screening half), largest first."""
    gain = _way(receiver, b) * effects[receiver.screen][..., b].mean(axis=0)
    order = np.argsort(-np.nan_to_num(gain, nan=-np.inf), kind="stable")
    return receiver.differing[order[np.nan_to_num(gain)[order] > 0]]


def candidates(receiver: PatchReceiver, effects: Floats, b: int, most: int = CANDIDATES) -> Ints:
    """Latents worth adding: of largest own effect, or of largest loss when left out of all latents.

    A latent may do nothing alone and much beside others; what is lost without it tells. Screening half.

    Args:
        effects: single effects of `receiver.differing`, nats [prompt latent belief].
        b: the belief's column.
    """
    latents, every = receiver.differing, receiver.all_latents
    along = receiver.directions(latents)
    without = (
        torch.cat([every[i : i + 1], every[i] - receiver.pushes(i, latents, along)])
        for i in receiver.screen.tolist()
    )
    lost = [rise[0, b] - rise[1:, b] for rise in receiver.effects_of(receiver.screen, without)]
    ranked = [effects[receiver.screen][..., b].mean(axis=0), np.mean(lost, axis=0)]
    best = [np.argsort(-_way(receiver, b) * np.nan_to_num(gain), kind="stable")[:most] for gain in ranked]
    return latents[np.unique(np.concatenate(best))]


def _way(receiver: PatchReceiver, b: int) -> float:
    """1 when the other run holds more of belief `b` than the receiver, −1 when less (screening half)."""
    return float(np.sign(receiver.span[receiver.screen, b].mean()))


def greedy_order(receiver: PatchReceiver, candidates: Ints, b: int, largest: int) -> Ints:
    """Candidates in the order in which each adds most to belief `b` beside those before it.

    Stops when none adds anything, at `largest`, or when the set has `ENOUGH` of the full activation's effect
    on the screening half.
    """
    screen, way = receiver.screen, _way(receiver, b)
    along = receiver.directions(candidates)
    pushes = {int(i): receiver.pushes(int(i), candidates, along) for i in screen}  # [candidate d_in] each
    so_far = {i: torch.zeros_like(receiver.acts[i]) for i in pushes}
    whole = receiver.everything
    full = np.mean(receiver.effects_of(screen, (whole[i : i + 1] for i in pushes)), axis=0)[0, b]
    chosen, left, reached = [], list(range(len(candidates))), 0.0
    while left and len(chosen) < largest and reached < ENOUGH * way * full:
        tried = receiver.effects_of(screen, (so_far[i] + push[left] for i, push in pushes.items()))
        gains = way * np.mean(tried, axis=0)[:, b]
        best = int(np.argmax(gains))
        if gains[best] <= reached:
            break
        reached = float(gains[best])
        chosen.append(left.pop(best))
        for i, push in pushes.items():
            so_far[i] = so_far[i] + push[chosen[-1]]
    return candidates[chosen]


def _sets(receiver: PatchReceiver, order: Ints, greedy: Ints, b: int, largest: int) -> Iterator[Members]:
    """Every set whose effect is reported."""
    for kind, ids, sizes in (
        (OWN, order, _sizes(min(len(order), largest))), (GREEDY, greedy, range(1, len(greedy) + 1)),
    ):  # fmt: skip
        for size in sizes:
            yield Members(kind, ids[:size], size, receiver.joint(ids[:size]))
    yield Members(ALL, receiver.differing, len(receiver.differing), receiver.all_latents)
    layer = writer(receiver.sae.site)
    # where a norm follows the MLP, no neuron adds a direction of its own to the stream
    if layer is not None and not receiver.model.adapter.neurons_normed:
        pushes, ids = _neurons_by_effect(receiver, layer, b, largest)
        for size in _sizes(len(ids)):
            yield Members(NEURONS, ids[:size], size, pushes[:, :size].sum(dim=1))
    whole, nothing = receiver.everything, np.zeros(0, dtype=int)
    yield Members(MEANS, nothing, 1, whole[torch.as_tensor(receiver.screen)].mean(dim=0).expand_as(whole))
    yield Members(FULL, nothing, 0, whole)


def _sizes(most: int) -> list[int]:
    """1, 2, 4, … and `most`, if that is anything."""
    return sorted({2**k for k in range(32) if 2**k <= most} | ({most} if most else set()))


def random_sets(receiver: PatchReceiver, members: Members, n: int, rng: np.random.Generator) -> Floats:
    """Mean effects of n sets of as many random live latents over the test half, [set belief].

    Each member is exchanged for a matched one that is no member, moved by the member's change; the sum is
    stretched to the length of the set's own addition, prompt by prompt.
    """
    density = receiver.density.copy()
    density[members.ids] = 0
    pools = [matched(density, receiver.mean_active, int(f), POOL, rng) for f in members.ids]
    if not all(len(pool) for pool in pools):
        return np.zeros((0, len(receiver.beliefs)))
    drawn = np.stack([_distinct(pools, rng) for _ in range(n)], axis=1)  # [member set]
    lengths = receiver.directions(members.ids).norm(dim=1)
    known, where = np.unique(drawn, return_inverse=True)
    units = torch.nn.functional.normalize(receiver.directions(known), dim=1)
    along = units[torch.as_tensor(where.reshape(drawn.shape))]  # [member set d_in]

    def stretched(i: int) -> Tensor:
        """A prompt's sums, as long as the set's own addition, [set d_in]."""
        change = torch.as_tensor(receiver.change[i, members.ids]).to(lengths) * lengths
        sums = torch.einsum("m,mnd->nd", change, along)
        return sums * (members.delta[i].norm() / sums.norm(dim=1, keepdim=True).clamp_min(1e-12))

    rows = (stretched(i) for i in receiver.test.tolist())
    return np.mean(receiver.effects_of(receiver.test, rows), axis=0)


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


def _neurons_by_effect(receiver: PatchReceiver, layer: int, b: int, largest: int) -> tuple[Tensor, Ints]:
    """Neurons of largest own effect on the screening half: what each adds [prompt neuron d_in], and ids."""
    adapter = receiver.model.adapter
    block = adapter.layers[layer]

    def acts(prompts: PromptSet) -> Tensor:
        """Activations of the block's neurons where the prompts are patched, [prompt neuron]."""
        where = query_position(prompts, receiver.role)
        return torch.as_tensor(
            record_neurons(receiver.model, up_to_query(prompts), layer, where)[:, 0]
        ).to(receiver.mix)  # fmt: skip

    donor, before = acts(receiver.donors), acts(receiver.prompts)
    change, directions = (mixed(receiver.mix, donor) - before), adapter.neuron_directions(block).to(before)
    rises = [receiver.effects(int(i), change[int(i), :, None] * directions)[:, b] for i in receiver.screen]
    best = np.argsort(-_way(receiver, b) * np.mean(rises, axis=0), kind="stable")[:largest]
    chosen = torch.as_tensor(best.copy())
    return change[:, chosen, None] * directions[chosen], best


def _rows(
    receiver: PatchReceiver, members: Members, chosen_for: str, screen_share: float,
    figures: tuple[Floats, Floats, Floats | None], weights: Floats,
) -> SetTable:  # fmt: skip
    """A row per belief, from effects [test prompt, belief] of the set, the full activation and controls."""
    effects, full, controls = figures
    n, test = len(receiver.beliefs), receiver.test
    effect = means(effects, weights)
    against = normalised_effects(effects, receiver.span[test], weights)
    share = normalised_effects(effects, full, weights, TO_FULL)
    compared = np.full((4, n), np.nan)
    if controls is not None and len(controls):
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = controls / np.where(np.isnan(share.value), np.nan, full.mean(axis=0))
        p_values = control_p(np.abs(effect.value), np.abs(controls).T)
        compared = np.stack(
            [shares.mean(axis=0), *interval(shares), p_values]
        )  # fmt: skip
        compared[3, np.isnan(effect.value)] = np.nan
    listed = " ".join(str(i) for i in members.ids) if len(members.ids) <= LISTED else ""
    return SetTable({
        "site": [str(receiver.sae.site)] * n, "role": [receiver.role] * n,
        "direction": [receiver.direction] * n, "kind": [members.kind] * n, "size": [members.size] * n,
        "members": [listed] * n, "chosen_for": [chosen_for] * n, "belief": list(receiver.beliefs),
        "n_prompts": [len(effects)] * n, "base": receiver.base[test].mean(axis=0),
        **effect.columns("effect", "ci"), **against.columns("normalised"),
        **share.columns("share_of_full", "share"), "screen_share": [screen_share] * n,
        "n_controls": [0 if controls is None else len(controls)] * n, "control_share": compared[0],
        "control_low": compared[1], "control_high": compared[2], "control_p": compared[3],
        "reason": [
            reasons(causes) for causes in zip(effect.reason, against.reason, share.reason, strict=True)
        ],
    })  # fmt: skip


def patch_controls(
    receiver: PatchReceiver, groups: Sequence[Ints], *, wrong: Runs | None = None,
    roles: Sequence[str] | None = None, seed: int = 0, draws: int = 1000,
) -> ControlTable:  # fmt: skip
    """Effects of groups of latents, and of their controls, on every belief.

    Args:
        groups: latents that are moved together, [latent] each; one for a single latent.
        wrong: runs of another task with the same queries x_B; left out when not given.
        roles: other tokens, as in `query_position`; those of `WRONG_ROLES` that the prompts have by default.
        seed: of the split of the other task's prompts, as given to `prepare_patch`, and of the bootstrap.
    """
    if not len(groups):
        return ControlTable.concat([])
    if any(np.ndim(ids) != 1 for ids in groups):
        raise EditError(
            "controls of a list of latents", "groups of latents are lists",
            "Give a list of lists, such as [[1, 2], [3]].",
        )  # fmt: skip
    test, deltas = receiver.test, [receiver.joint(ids) for ids in groups]
    itself = receiver.effects_at(test, deltas)
    by_control = {"own": itself, "sign flip": receiver.effects_at(test, [-delta for delta in deltas])}
    others = [role for role in WRONG_ROLES if role in receiver.prompts.roles] if roles is None else roles
    elsewhere = _at_roles(receiver, [role for role in others if role != receiver.role])
    by_control |= {f"wrong role {role}": other.effects_at(test, deltas) for role, other in elsewhere.items()}
    if wrong is not None:
        given = _with_values_of(receiver, wrong, seed)
        by_control[f"wrong task {wrong.task.name}"] = receiver.effects_at(
            test, [given.joint(ids) for ids in groups]
        )
    weights, n = prompt_weights(len(test), draws, np.random.default_rng(seed)), len(receiver.beliefs)
    tables = []
    for g, ids in enumerate(groups):
        for control, effects in by_control.items():
            effect = means(effects[:, g], weights)
            alike = control != "own" and np.array_equal(itself[:, g], effects[:, g], equal_nan=True)
            tables.append(ControlTable({
                "site": [str(receiver.sae.site)] * n, "role": [receiver.role] * n,
                "latents": [" ".join(str(f) for f in ids)] * n, "control": [control] * n,
                "belief": list(receiver.beliefs), "n_prompts": [len(test)] * n,
                **effect.columns("effect", "ci"),
                "reason": [reason or (SAME_VALUES if alike else "") for reason in effect.reason],
            }))  # fmt: skip
    return ControlTable.concat(tables)


def _at_roles(receiver: PatchReceiver, roles: Sequence[str]) -> dict[str, PatchReceiver]:
    """The receiver at other roles of its query, each with its own donor's values."""
    if not roles:
        return {}
    tokens = up_to_query(receiver.prompts)
    where = {role: query_position(receiver.prompts, role) for role in roles}
    first = min(int(position[0]) for position in (*where.values(), receiver.position))
    tails = tails_of(receiver.model, tokens, receiver.words, first=first)
    return {role: replace(receiver, role=role, position=where[role], tails=tails) for role in roles}


def _with_values_of(receiver: PatchReceiver, wrong: Runs, seed: int) -> PatchReceiver:
    """The receiver with donor values of another task."""
    if receiver.direction != "sufficiency":
        raise EditError(
            "donor values of another task", "B's values are put into A*",
            "Prepare the receiver with direction='sufficiency', or leave `wrong` out.",
        )  # fmt: skip
    if not np.array_equal(wrong.x_B, receiver.runs.x_B):
        raise EditError(
            f"donor values of '{wrong.task.name}'", "its runs ask other queries",
            "Build them with the seed and inputs of these runs.",
        )  # fmt: skip
    mix = receiver.mix
    value = "instance" if torch.equal(mix, torch.eye(len(mix)).to(mix)) else "task mean"
    other = prepare_patch(
        receiver.model, receiver.sae, wrong, donor_value=value, role=receiver.role, seed=seed
    )
    return replace(receiver, donor_latents=other.donor_latents, donor_acts=other.donor_acts)
