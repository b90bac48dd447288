"""Is the task formed where training put it? Whole residuals of donors at `pre`, read by blank recipients.

A donor has seen some examples of a task; the recipient is one query with none. resid_pre of each block at
the recipient's `pre` is replaced by the donor's, and two answers are read: the donor's task applied to the
recipient's *own* x, and the donor's own answer (copy). Recipients are run once each by the tail engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import torch

from iclens.models.forward import record
from iclens.models.load import LanguageModel
from iclens.models.tail import Tail
from iclens.names import Site, position
from iclens.tables.arrays import Floats, Ints, Strings
from iclens.tables.frame import Column, Table
from iclens.tasks.mixture import Mixture
from iclens.tasks.prompts import build_prompts
from iclens.tasks.rendering import encode
from iclens.tasks.rules import Task
from iclens.tasks.spec import parse_task

_STREAM = 9
"""Random stream of the recipients, apart from those of `build_prompts`."""


class InterchangeTable(Table):
    """Means over pairs of a donor and a recipient that has seen no example."""

    COLUMNS: ClassVar[dict[str, Column]] = {
        "task": Column("str", "the donor's task"),
        "layer": Column(
            "int", "block whose resid_pre was replaced; the number of blocks means the last resid_post"
        ),
        "n_seen": Column("int", "examples that the donor had seen"),
        "p_task": Column("float", "mean P(the donor's task on the recipient's own x)"),
        "p_copy": Column("float", "mean P(the donor's own answer)"),
        "unpatched": Column("float", "mean P(the task on the recipient's x) without a patch"),
        "n_prompts": Column("int", "pairs"),
    }


@dataclass(frozen=True)
class _Pairs:
    """Donors, and a recipient's x for each.

    Args:
        task: the donors' task, [row].
        n_seen: examples the donor had seen, [row].
        values: the donors' resid_pre at `pre`, [row layer d_model].
        x: recipients' inputs, [row].
        own: the task's answer to the recipient's x, [row].
        donated: the task's answer to the donor's x, [row].
    """

    task: Strings
    n_seen: Ints
    values: Floats
    x: Strings
    own: Strings
    donated: Strings


def interchange_figures(
    model: LanguageModel,
    mixture: Mixture,
    tasks: Sequence[str],
    *,
    n_seen: Sequence[int] = (0, 1, 2, 4, 8, 12, 15),
    n_prompts: int = 24,
    n_examples: int = 16,
    seed: int = 1,
) -> InterchangeTable:
    """P(the donor's task on the recipient's own x) and P(copy), by layer and the donor's examples.

    Args:
        model: a whole model.
        mixture: gives the tasks' inputs.
        tasks: donors' tasks, deterministic.
        n_seen: numbers of examples that donors have seen, below `n_examples`.
        n_prompts: donor prompts per task.
        n_examples: examples in a donor prompt.
        seed: of prompts and recipients.
    """
    parts = [
        _pairs(model, mixture, parse_task(task), list(n_seen), n_prompts, n_examples, seed) for task in tasks
    ]
    pairs = _Pairs(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(_Pairs)))
    own, copy, unpatched = _answers(model, mixture, pairs)
    rows = [
        (task, layer, j, own[at, layer].mean(), copy[at, layer].mean(), unpatched[at].mean(), at.sum())
        for task in dict.fromkeys(pairs.task.tolist())
        for layer in range(model.n_blocks + 1)
        for j in n_seen
        if (at := (pairs.task == task) & (pairs.n_seen == j)).any()
    ]
    return InterchangeTable(dict(zip(InterchangeTable.COLUMNS, zip(*rows, strict=True), strict=True)))


def _answers(model: LanguageModel, mixture: Mixture, pairs: _Pairs) -> tuple[Floats, Floats, Floats]:
    """P(task on own x) [row layer], P(copy) [row layer], unpatched P(task on own x) [row]."""
    words = tuple(y for y in mixture.answers if not y.isdigit())
    cut = position("pre", 0) + 1
    own, copy = np.empty(pairs.values.shape[:2]), np.empty(pairs.values.shape[:2])
    unpatched = np.empty(len(pairs.x))
    for x in np.unique(pairs.x):
        rows = np.flatnonzero(pairs.x == x)
        tail = Tail(model, encode(model.tokenizer, [(str(x), "0")])[:cut], words)
        alone = tail.run(tail.resid_pre(model.n_blocks).expand(len(rows), -1), model.n_blocks)
        unpatched[rows] = alone.of(pairs.own[rows])
        for layer in range(model.n_blocks + 1):
            donated = torch.from_numpy(pairs.values[rows, layer]).to(model.device())
            patched = tail.run(donated, layer)
            own[rows, layer], copy[rows, layer] = patched.of(pairs.own[rows]), patched.of(pairs.donated[rows])
    return own, copy, unpatched


def _pairs(
    model: LanguageModel,
    mixture: Mixture,
    task: Task,
    n_seen: list[int],
    n_prompts: int,
    n_examples: int,
    seed: int,
) -> _Pairs:
    """Donors of one task; a recipient's x is not in the donor's prompt and has another answer."""
    pool = mixture.inputs_of(task)
    prompts = build_prompts(
        model.tokenizer, task, arm="T", n_prompts=n_prompts, n_examples=n_examples, seed=seed, inputs=pool
    )
    sites = [Site(layer, "resid_pre") for layer in range(model.n_blocks)]
    sites.append(Site(model.n_blocks - 1, "resid_post"))
    held = record(model, prompts.tokens, sites, prompts.positions("pre")[n_seen])
    x: list[str] = []
    for row in range(n_prompts):
        rng = np.random.default_rng([seed, row, _STREAM])
        unseen = [value for value in pool if value not in prompts.x[row]]
        for j in n_seen:
            options = [value for value in unseen if task.answer(value) != prompts.answer[row, j]]
            x.append(str(rng.choice(options)))
    values = np.stack([held[site] for site in sites], axis=2)
    return _Pairs(
        np.full(len(x), task.name),
        np.tile(n_seen, n_prompts),
        values.reshape(len(x), len(sites), -1),
        np.array(x),
        np.array([task.answer(value) for value in x]),
        prompts.answer[:, n_seen].ravel(),
    )
