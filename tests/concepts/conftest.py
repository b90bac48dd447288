"""Prompts of the default grid without a tokenizer, and latents made from chosen activations."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_array

from iclens.activations import LatentActs
from iclens.concepts.language import TaskGrid
from iclens.core import PREFIX_LENGTH, TOKENS_PER_EXAMPLE, Site
from iclens.prompts.build import PromptSet
from iclens.prompts.tasks import Task, default_inputs, parse_task
from iclens.study.config import demo_config
from iclens.study.grid import task_grid

N_EXAMPLES = 10


def draw(tasks: Sequence[Task], n_prompts: int, seed: int) -> PromptSet:
    """T-arm prompts of number x in 0..49; their tokens are blank, because nothing here reads them."""
    rng = np.random.default_rng(seed)
    names, xs, ys, answers = [], [], [], []
    for task in tasks:
        for _ in range(n_prompts):
            inputs = default_inputs(task.domain)
            x = [inputs[i] for i in rng.permutation(len(inputs))[:N_EXAMPLES]]
            names.append(task.name)
            xs.append(x)
            answers.append([task.answer(v) for v in x])
            outcomes = [task.outcomes(v) for v in x]
            ys.append([str(rng.choice(list(o), p=list(o.values()))) for o in outcomes])
    tokens = np.zeros((len(names), PREFIX_LENGTH + TOKENS_PER_EXAMPLE * N_EXAMPLES), dtype=np.int64)
    return PromptSet(
        np.array(names), "T", np.array(xs), np.array(ys), np.array(answers), tokens, seed, "none"
    )


@pytest.fixture(scope="session")
def grid() -> TaskGrid:
    return task_grid(demo_config())


@pytest.fixture(scope="session")
def prompts(grid: TaskGrid) -> PromptSet:
    return draw([parse_task(name) for name in grid.names], 6, seed=3)


@pytest.fixture(scope="session")
def many_prompts(grid: TaskGrid) -> PromptSet:
    """As many as a study has: half of a task's prompts are enough to confirm its identity."""
    return draw([parse_task(name) for name in grid.names], 12, seed=4)


def latents_of(
    values: NDArray[np.floating], n_examples: int = N_EXAMPLES, role: str = "lab", layer: int = 1
) -> LatentActs:
    """Latents of chosen activations [row latent]."""
    acts, n_prompts = csr_array(values.astype(np.float32)), len(values) // n_examples
    nothing = np.zeros((n_prompts, n_examples))
    return LatentActs(
        Site(layer, "mlp_out"), role, "planted", values.shape[1], n_prompts, n_examples,
        acts.indptr.astype(np.int64), acts.indices.astype(np.int64), acts.data, nothing, nothing,
    )  # fmt: skip


@pytest.fixture(scope="session")
def as_latents() -> Callable[..., LatentActs]:
    return latents_of
