"""The task grid on which latents are identified: its tasks and prompts, and the concepts asked of it."""

from __future__ import annotations

import numpy as np

from iclens.concepts.language import (
    DEFAULT_SPECS,
    FORMAT,
    TASK_IDENTITY,
    Concept,
    Rows,
    TaskGrid,
    check_declared,
    concept,
    known_concepts,
    rows_of,
    split_grid,
)
from iclens.core import ConfigError, TaskError
from iclens.prompts.build import PromptSet, build_prompts, draw_examples, joined
from iclens.prompts.render import Tokenizer
from iclens.prompts.tasks import Task, default_inputs, expand, parse_task
from iclens.study.config import StudyConfig

GRID_ARM = "grid"
SEEDS = 10_000
"""Seeds that lie between those of two grids: each task of a grid has its own."""
_DRAWN = 4
"""Prompts of each task that are drawn to see whether a declared concept can be asked at all."""


def task_grid(config: StudyConfig) -> TaskGrid:
    """The study's tasks, split into discovery and held-out tasks."""
    section = config.grid
    specs = [spec for pattern in section.tasks or DEFAULT_SPECS for spec in expand(pattern)]
    return split_grid([parse_task(spec) for spec in specs], seed=section.seed)


def task_inputs(config: StudyConfig, task: Task) -> tuple[str, ...]:
    """The inputs of a task whose every answer is allowed: a number in `grid.answers`, or a word."""
    section = config.grid
    first, last = section.numbers
    low, high = section.answers or (0, 999)
    allowed = []
    inputs = default_inputs(task, range(first, last + 1))
    for x in inputs:
        answers = [int(y) for y in task.rule(x) if y.isdigit()]
        if task.rule(x) and all(low <= y <= high for y in answers):
            allowed.append(x)
    if len(allowed) < section.n_examples:
        raise TaskError(
            f"grid: {section.n_examples} distinct inputs of '{task.name}'",
            f"{len(allowed)} of its {len(inputs)} inputs have answers from {low} to {high}",
            "Widen grid.numbers or grid.answers, ask for fewer examples, or leave the task out.",
        )
    return tuple(allowed)


def grid_prompts(config: StudyConfig, tokenizer: Tokenizer, *, n_prompts: int, seed: int) -> PromptSet:
    """`n_prompts` prompts of every task and template of the grid, with its own labels, in the grid's order.

    Each task draws its own inputs, so that no two tasks share a prompt's inputs; templates of a task do.
    """
    parts = [
        build_prompts(
            tokenizer, task, arm="T", n_prompts=n_prompts, n_examples=config.grid.n_examples,
            seed=seed * SEEDS + place, inputs=task_inputs(config, task), template=template,
        )
        for place, task in enumerate(map(parse_task, task_grid(config).names))
        for template in config.grid.templates
    ]  # fmt: skip
    return joined(parts, GRID_ARM)


def quality_prompts(config: StudyConfig, tokenizer: Tokenizer) -> PromptSet:
    """The grid's prompts on which SAEs are measured."""
    section = config.saes
    return grid_prompts(config, tokenizer, n_prompts=section.quality_prompts, seed=section.quality_seed)


def asked_concepts(config: StudyConfig) -> tuple[Concept, ...]:
    """The concepts that latents are asked for; with several templates, each has to beat the format too."""
    section = config.transforms
    known = known_concepts(section.declare)
    chosen = known if section.concepts is None else [concept(name, known) for name in section.concepts]
    several = len(config.grid.templates) > 1
    return tuple(with_format(one) if several and one is not TASK_IDENTITY else one for one in chosen)


def with_format(one: Concept) -> Concept:
    """The concept with the format among its confounds."""
    return Concept(
        one.contrast, one.meaning, one.stratum, (*one.confounds, FORMAT), fixed=one.fixed, belief=one.belief
    )


def check_concepts(config: StudyConfig) -> None:
    """Refuse what cannot be asked of the grid, before anything is loaded."""
    grid = task_grid(config)
    low, high = config.grid.answers or (0, 999)
    if low > high:
        raise ConfigError(f"grid.answers: [{low}, {high}]", "the first is larger", f"Write [{high}, {low}].")
    declared = config.transforms.declare.get("concepts") or {}
    sides = {"discovery": grid.discovery, "held-out": grid.held_out}
    drawn = {side: _drawn(config, grid, names) for side, names in sides.items()}
    check_declared([c for c in asked_concepts(config) if c.name in declared], drawn, config.belief_names)


def _drawn(config: StudyConfig, grid: TaskGrid, names: tuple[str, ...]) -> Rows:
    """Rows of some examples of tasks, without a tokenizer."""
    parts = []
    for task in map(parse_task, names):
        x, y, _ = draw_examples(
            task, arm="T", n_prompts=_DRAWN, n_examples=config.grid.n_examples, seed=config.grid.seed,
            inputs=task_inputs(config, task),
        )  # fmt: skip
        parts.append((np.full(_DRAWN, task.name), x, y))
    task, x, y = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return rows_of(task, x, y, grid.rules)
