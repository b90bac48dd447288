"""Is it these latents, here, with this task's values? The same patch elsewhere, from elsewhere, backwards.

    own          Σ_f (a_f^A − a_f^B) · scale_B · d_f    at its role
    wrong role   the same addition at another token of the same prompt
    wrong task   a_f^A taken from runs that show another task
    sign flip    the addition subtracted

An effect that a wrong role or a wrong task has as well is not about this task at this place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from iclens.errors import EditError
from iclens.models.tail import tails_of
from iclens.patching.effects import means, resamples
from iclens.patching.latents.gather import LatentRuns, gather
from iclens.patching.latents.place import place_of
from iclens.patching.latents.sets import joint
from iclens.patching.residual import up_to_query
from iclens.patching.runs import Runs
from iclens.tables.arrays import Floats, Ints
from iclens.tables.sets import ControlTable

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
        _rows(held, " ".join(str(f) for f in ids), control, effects[:, g], weights,
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


def _rows(
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
