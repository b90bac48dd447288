"""Rows: what stands at each token that is read, as arrays that concepts are written in.

A row is one example of one prompt at one role. From `lab` on the row's y is the label shown; before it
(`pre` and earlier) the label is not there yet and y is the answer the task asks for, which is unknown
for a task with several outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from iclens.errors import TableError
from iclens.names import ROLES, TEMPLATE, check_role
from iclens.tables.arrays import Floats, Ints, Strings
from iclens.tables.prompts import PromptSet
from iclens.transforms.grid import Rule

FIRST_EXAMPLE = 4
"""Rows count from this example on unless something else is said: by then the task can be known."""


@dataclass(frozen=True)
class Rows:
    """Facts of each row, [row], example fastest.

    Args:
        prompt: index of the prompt.
        example: examples seen before this one.
        task: name of the task.
        family: family of the task.
        slope: a of the task; NaN where it has none.
        offset: b of the task; NaN where it has none.
        numeric_x: whether the input is a number.
        numeric_y: whether the answer is a number.
        x: the input; NaN where it is no number.
        y: the label shown or the answer asked for; NaN where it is no number or not determined.
        template: name of the template the prompt is written in.
        label: the label shown or the answer asked for as text; "" where it is not determined.
    """

    prompt: Ints
    example: Ints
    task: Strings
    family: Strings
    slope: Floats
    offset: Floats
    numeric_x: NDArray[np.bool_]
    numeric_y: NDArray[np.bool_]
    x: Floats
    y: Floats
    template: Strings
    label: Strings

    def __len__(self) -> int:
        return len(self.prompt)

    def take(self, chosen: NDArray[np.bool_] | Ints) -> Rows:
        """The chosen rows (a mask or indices)."""
        return Rows(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})


def read_rows(prompts: PromptSet, role: str, rules: Mapping[str, Rule]) -> Rows:
    """The rows of `prompts` at `role`, [prompt·example].

    Args:
        prompts: prompts of several tasks, joined.
        role: decides whether y is the label shown or the answer asked for.
        rules: task name → task.

    Raises:
        SiteError: for an unknown role.
        TableError: when a prompt's task is not among `rules`.
    """
    shown = ROLES.index(check_role(role)) >= ROLES.index("lab")
    rows = rows_of(prompts.task, prompts.x, prompts.y if shown else prompts.answer, rules, prompts.templates)
    if shown:
        return rows
    known = np.repeat([rules[name].deterministic for name in prompts.task.tolist()], prompts.n_examples)
    return replace(rows, y=np.where(known, rows.y, np.nan), label=np.where(known, rows.label, ""))


def rows_of(
    task: Strings, x: Strings, y: Strings, rules: Mapping[str, Rule], templates: Strings | None = None
) -> Rows:
    """The rows of examples.

    Args:
        task: the task of each prompt, [prompt].
        x: inputs, [prompt example].
        y: labels, [prompt example].
        rules: task name → task.
        templates: how each prompt is written, [prompt]; the default template when not given.

    Raises:
        TableError: when a prompt's task is not among `rules`.
    """
    strange = sorted(set(task.tolist()) - set(rules))
    if strange:
        raise TableError(
            f"prompts of task '{strange[0]}'",
            "the task is not in the grid",
            "Give `rules` an entry for it, or leave its prompts out.",
        )
    of_prompt = [rules[name] for name in task.tolist()]
    n_prompts, repeat = x.shape
    x, y = x.ravel(), y.ravel()
    return Rows(
        prompt=np.repeat(np.arange(n_prompts), repeat),
        example=np.tile(np.arange(repeat), n_prompts),
        task=np.repeat(task, repeat),
        family=np.repeat([rule.family for rule in of_prompt], repeat),
        slope=np.repeat([np.nan if rule.slope is None else float(rule.slope) for rule in of_prompt], repeat),
        offset=np.repeat(
            [np.nan if rule.offset is None else float(rule.offset) for rule in of_prompt], repeat
        ),
        numeric_x=np.char.isdigit(x),
        numeric_y=np.char.isdigit(y),
        x=_number(x),
        y=_number(y),
        template=np.repeat(np.full(n_prompts, TEMPLATE) if templates is None else templates, repeat),
        label=y,
    )


def _number(text: Strings) -> Floats:
    digits = np.char.isdigit(text)
    return np.where(digits, np.where(digits, text, "0").astype(np.float64), np.nan)
