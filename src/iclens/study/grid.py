"""Which tasks are features identified on? The grid of a study, and prompts of it."""

from __future__ import annotations

from iclens.study.config import StudyConfig
from iclens.tables.prompts import PromptSet
from iclens.tasks.prompts import build_prompts, joined
from iclens.tasks.rendering import Tokenizer
from iclens.tasks.spec import parse_task
from iclens.transforms.grid import DEFAULT_SPECS, TaskGrid, split_grid

GRID_ARM = "grid"


def task_grid(config: StudyConfig) -> TaskGrid:
    """The study's tasks, split into discovery and held-out tasks."""
    section = config.transforms
    return split_grid([parse_task(spec) for spec in section.tasks or DEFAULT_SPECS], seed=section.seed)


def grid_prompts(config: StudyConfig, tokenizer: Tokenizer, *, n_prompts: int, seed: int) -> PromptSet:
    """`n_prompts` prompts of every task of the grid, with its own labels, joined in the grid's order."""
    parts = [
        build_prompts(
            tokenizer,
            parse_task(name),
            arm="T",
            n_prompts=n_prompts,
            n_examples=config.transforms.n_examples,
            seed=seed,
        )
        for name in task_grid(config).names
    ]
    return joined(parts, GRID_ARM)
