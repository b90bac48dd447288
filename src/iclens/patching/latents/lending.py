"""What do other prompts lend to one: donor values that say the task, and neither its x nor its answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from iclens.errors import EditError
from iclens.patching.latents.place import example_of
from iclens.patching.runs import Runs
from iclens.tables.arrays import Floats, Ints
from iclens.tables.prompts import PromptSet

DONOR_VALUES = ("task mean", "instance")


def donor_weights(
    source: PromptSet, runs: Runs, role: str, halves: tuple[Ints, Ints], donor_value: str
) -> Floats:
    """Weight of each source prompt in each prompt's donor value, [prompt prompt]; rows sum to 1.

    Args:
        source: the prompts that values are taken from.
        runs: give x_B and f(x_B).
        role: where; the x of its example is a prompt's own.
        halves: prompts that may lend to each other.
        donor_value: one of `DONOR_VALUES`.

    Raises:
        EditError: when nothing may be lent to some prompt.
    """
    n, own = source.n_prompts, source.x[:, example_of(source, role)]
    if donor_value == "instance":
        return np.eye(n)
    shows = (source.x[None] == runs.x_B[:, None, None]).any(axis=2)
    allowed = (own[None] != own[:, None]) & ~shows & (source.answer[None, :, -1] != runs.own[:, None])
    same_half = np.zeros((n, n), dtype=bool)
    for half in halves:
        same_half[np.ix_(half, half)] = True
    weights = (allowed & same_half).astype(float)
    if not weights.any(axis=1).all():
        raise EditError(
            f"task means over {n} prompts",
            "for one of them every other shows its x, or answers alike",
            "Give more prompts or inputs, fewer examples, or donor_value 'instance'.",
        )
    return weights / weights.sum(axis=1, keepdims=True)


def mixed(mix: Tensor, rows: Tensor) -> Tensor:
    """mix @ rows, or the rows themselves, untouched by rounding, when each prompt is its own donor."""
    return rows if torch.equal(mix, torch.eye(len(mix), dtype=mix.dtype, device=mix.device)) else mix @ rows


def lent_answers(source: PromptSet, weights: Floats, answers: Sequence[str]) -> tuple[Ints, ...]:
    """Columns of the answers of the prompts that lend to each prompt, [prompt] of [answer]."""
    column = {answer: i for i, answer in enumerate(answers)}
    own = np.array([column[str(answer)] for answer in source.answer[:, -1]])
    return tuple(np.unique(own[row > 0]) for row in weights)
