"""Beliefs of a prompt set: which read-outs the answers at `pre` give, as log-odds.

The same function reads the model's answers and the exact posterior's, so the two are comparable.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iclens.tables.answers import AnswerProbs
from iclens.tables.arrays import Floats, Strings
from iclens.tables.prompts import PromptSet
from iclens.tasks.beliefs import belief_index, log_odds
from iclens.tasks.declared import DeclaredBelief, belief_names, read_all
from iclens.tasks.spec import parse_task


def belief_log_odds(
    probs: AnswerProbs,
    prompts: PromptSet,
    copied: Strings | None = None,
    declared: Sequence[DeclaredBelief] = (),
) -> Floats:
    """Log-odds of every belief before each example, in nats.

    Args:
        probs: answers at `pre`, [prompt example answer].
        prompts: what was asked; its tasks say what each belief means.
        copied: the answer whose copying is asked about, [prompt example]. By default the label of the example
            just before, so that `copy` tells a repeated last label from a learnt task; NaN at example 0.
        declared: further beliefs, read from the same answers.

    Returns:
        [prompt example belief], in the order of `belief_names(declared)`; NaN where a belief is undefined.

    Raises:
        TaskError: when a prompt's task is not a task.
    """
    last_label = copied is None
    wanted = _last_labels(prompts) if copied is None else copied
    out = np.full((*prompts.x.shape, len(belief_names(declared))), np.nan)
    for name in np.unique(prompts.task):
        rows = np.flatnonzero(prompts.task == name)
        # In float32, 1 − p is lost well before the log-odds that a sure model reaches.
        part = AnswerProbs(probs.answers, probs.log_prob[rows].astype(np.float64))
        task = parse_task(str(name))
        x, answer = prompts.x[rows], prompts.answer[rows]
        out[rows] = log_odds(read_all(part, task, x, answer, wanted[rows], declared))
    if last_label:
        out[:, 0, belief_index("copy")] = np.nan
    return out


def _last_labels(prompts: PromptSet) -> Strings:
    """The label just before each query, [prompt example]; at example 0, where none stands, its own."""
    if prompts.context_y is None or prompts.slots is None:
        return np.concatenate([prompts.y[:, :1], prompts.y[:, :-1]], axis=1)
    before = [prompts.context_y[:, n, prompts.slots[n] - 1] for n in range(1, prompts.n_examples)]
    return np.stack([prompts.y[:, 0], *before], axis=1)
