"""Does the MLP find x and y at `lab`, in parts of the residual of their own?

1. The residual that each block's MLP reads at `lab` (resid_mid) is recorded over the grid's prompts, and once
more with attention from `lab` to x, or to x and the tokens after it, cut in all blocks. 2. `subspaces`
compares the directions in which it differs by x with those by y. 3. `reading` reads a code of x, and of y, on
inputs that it was not trained on, with and without the cuts.

What enters: a model, prompts of many tasks and their rows at `lab`. What leaves: an `OperandTable`. Over
tasks whose y follows from x, x can be computed from y and the task, so that reading it shows no copy of x.
Tasks whose y says nothing of x (`UNRELATED`) are therefore measured apart; these rows answer the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from iclens.decomposition.lab import LAB, counted_examples, input_groups, layer_groups, positions
from iclens.decomposition.reading import Reading
from iclens.decomposition.subspaces import OVERLAPS, Subspaces
from iclens.models.cuts import Cut, record_cut
from iclens.models.load import LanguageModel
from iclens.names import Site
from iclens.tables.decomposition import OperandTable
from iclens.tables.prompts import PromptSet
from iclens.transforms.reading.folds import spread_prompts
from iclens.transforms.rows import FIRST_EXAMPLE, Rows

UNRELATED = ("parity", "random")
"""Families whose y is drawn without regard to x."""
CUTS = {"": (), ", lab→x cut": ("x",), ", lab→example cut": ("x", "comma", "pre")}
"""What `lab` does not see of its own example. The last leaves no way for x to reach it."""
X_READ, Y_READ, APART = "x decodable", "y decodable", " (y unrelated)"
MEASURES = (
    *OVERLAPS, *(X_READ + cut for cut in CUTS), Y_READ, *(X_READ + cut + APART for cut in CUTS),
)  # fmt: skip
MOST_ROWS = 4000
"""Rows of all tasks, at most, from which numbers are read, by whole prompts."""


def operands(
    model: LanguageModel, prompts: PromptSet, rows: Rows, *, layers: Sequence[int], seed: int, rank: int = 4,
    n_null: int = 20, batch: int = 128, first_example: int = FIRST_EXAMPLE,
) -> OperandTable:  # fmt: skip
    """Where x and y stand in what each block's MLP reads at `lab`, and what x is left when it is not seen.

    Args:
        model: the model; only blocks up to the deepest layer are run.
        prompts: T-arm prompts of the grid's tasks, joined.
        rows: of these prompts at `lab`, [prompt·example].
        layers: blocks.
        seed: of the halves, folds, permutations and the prompt bootstrap.
        rank: dimensions of a subspace.
        n_null: permutations of the values over rows.
        batch: prompts per forward pass.
        first_example: rows count from this example on, examples.

    Returns:
        Ten rows per layer, one for each of `MEASURES`; undefined figures are NaN with a reason.

    Raises:
        TableError: when `rows` are not those of `prompts`, or no example is left.
        SiteError: for a layer that the model does not have.
    """
    examples = counted_examples(prompts, rows, first_example)
    kept = rows.take(rows.example >= first_example)
    inputs = input_groups(prompts)[kept.prompt]
    numbers = np.flatnonzero(~np.isnan(kept.x) & ~np.isnan(kept.y))
    splitting, *reading = np.random.default_rng(seed).spawn(4)
    shared = Subspaces(kept.take(numbers), inputs[numbers], rank, n_null, splitting)
    apart = numbers[np.isin(kept.family[numbers], UNRELATED)]
    wide = numbers[spread_prompts(kept.task[numbers], kept.prompt[numbers], MOST_ROWS, splitting)]
    few = np.unique(kept.prompt[np.concatenate([wide, apart])])
    among = np.flatnonzero(np.isin(kept.prompt, few))
    of_x, of_y, of_x_apart = (
        Reading.of(kept.take(at), inputs[at], np.searchsorted(among, at), number, n_null, rng)
        for at, number, rng in zip((wide, wide, apart), ("x", "y", "x"), reading, strict=True)
    )
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for some in layer_groups(layers, len(kept) * model.d_model):
        sites = [Site(layer, "resid_mid") for layer in some]
        where = positions(prompts, examples)
        for cut, roles in CUTS.items():
            tokens = prompts.tokens[few] if roles else prompts.tokens
            cuts = [Cut.within(LAB, roles, examples, range(max(some) + 1))] if roles else []
            held = record_cut(model, tokens, sites, where, cuts, batch=batch)
            for site in sites:
                acts = held.pop(site).reshape(len(tokens) * len(examples), -1).astype(np.float64)
                if not roles:
                    figures = shared.figures(acts[numbers])
                    found |= {(site.layer, name): row for name, row in figures.items()}
                    acts = acts[among]
                    found[site.layer, Y_READ] = of_y.figures(acts)
                found[site.layer, X_READ + cut] = of_x.figures(acts)
                found[site.layer, X_READ + cut + APART] = of_x_apart.figures(acts)
    table = [{"layer": layer, "measure": name} | found[layer, name] for layer in layers for name in MEASURES]
    return OperandTable({key: [row[key] for row in table] for key in OperandTable.COLUMNS})
