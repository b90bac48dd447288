"""Is the task formed where training put it? Whole residuals of donors at `pre`, read by blank recipients.

A donor has seen some examples of a task; the recipient is one query with none. resid_pre of each block at
the recipient's `pre` is replaced by the donor's, and two answers are read: the donor's task applied to the
recipient's *own* x, and the donor's own answer (copy). Recipients are run once each by the tail engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from iclens.models.forward import record
from iclens.models.load import LanguageModel
from iclens.models.tail import Tail
from iclens.names import Site, position
from iclens.tables.arrays import Floats, Strings
from iclens.tables.frame import Column, Table
from iclens.tasks.mixture import Mixture
from iclens.tasks.prompts import build_prompts
from iclens.tasks.rendering import encode
from iclens.tasks.rules import Task
from iclens.tasks.spec import parse_task


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
    """Donors of one task, and a recipient's x for each.

    Args:
        values: the donors' resid_pre at `pre`, [prompt example layer d_model].
        x: recipients' inputs, [prompt example].
        own: the task's answer to the recipient's x, [prompt example].
        donated: the task's answer to the donor's x, [prompt example].
    """

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
    pairs = {task: _pairs(model, mixture, parse_task(task), n_prompts, n_examples, seed) for task in tasks}
    inputs = sorted({str(x) for found in pairs.values() for x in np.unique(found.x)})
    words = tuple(y for y in mixture.answers if not y.isdigit())
    probs = {task: np.full((3, *found.values.shape[:3]), np.nan) for task, found in pairs.items()}
    for x in inputs:
        cut = position("pre", 0) + 1
        tail = Tail(model, encode(model.tokenizer, [(x, "0")])[:cut], words)
        for task, found in pairs.items():
            chosen = np.isin(np.arange(n_examples), n_seen) & (found.x == x)
            if not chosen.any():
                continue
            own, donated = found.own[chosen], found.donated[chosen]
            for layer in range(model.n_blocks + 1):
                patched = tail.run(torch.from_numpy(found.values[chosen][:, layer]), layer)
                probs[task][0][chosen, layer] = patched.of(own)
                probs[task][1][chosen, layer] = patched.of(donated)
            alone = tail.run(tail.resid_pre(model.n_blocks)[None], model.n_blocks)
            probs[task][2][chosen] = alone.of(own[:1])[0]
    rows = [
        (task, layer, j, *probs[task][:, :, j, layer].mean(axis=1), n_prompts)
        for task in pairs for layer in range(model.n_blocks + 1) for j in n_seen
    ]  # fmt: skip
    return InterchangeTable(dict(zip(InterchangeTable.COLUMNS, zip(*rows, strict=True), strict=True)))


def _pairs(
    model: LanguageModel, mixture: Mixture, task: Task, n_prompts: int, n_examples: int, seed: int
) -> _Pairs:
    pool = mixture.inputs_of(task)
    prompts = build_prompts(
        model.tokenizer, task, arm="T", n_prompts=n_prompts, n_examples=n_examples, seed=seed, inputs=pool
    )
    last = model.n_blocks - 1
    sites = [Site(layer, "resid_pre") for layer in range(model.n_blocks)] + [Site(last, "resid_post")]
    held = record(model, prompts.tokens, sites, prompts.positions("pre"))
    x = np.empty(prompts.x.shape, dtype=object)
    for row in range(n_prompts):
        rng = np.random.default_rng([seed, row, 9])
        unseen = [value for value in pool if value not in prompts.x[row]]
        for j in range(n_examples):
            x[row, j] = rng.choice([v for v in unseen if task.answer(v) != prompts.answer[row, j]])
    x = x.astype(np.str_)
    own = np.vectorize(task.answer, otypes=[np.str_])(x)
    return _Pairs(np.stack([held[site] for site in sites], axis=2), x, own, prompts.answer)
