"""What do the growth stages share? The split of the prompts, their labels' evidence, the paired belief."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from iclens.core import Site
from iclens.prompts.beliefs import belief_index
from iclens.prompts.build import example_similarity, in_mixture, nominal_evidence, task_log_odds
from iclens.prompts.tasks import parse_task
from iclens.stats import Splits, split_prompts
from iclens.study.bench import Bench, beliefs_file
from iclens.study.config import StudyConfig
from iclens.table import Floats, Ints

Place = tuple[Site, str]


def splits_of(config: StudyConfig) -> Splits:
    """The study's split of prompts.

    Raises:
        TableError: when a part would be too small.
    """
    section = config.prompts
    return split_prompts(section.n_prompts, section.n_examples, seed=config.growth.split_seed)


def label_evidence(bench: Bench, arm: str, prompts: Ints) -> Floats:
    """Nats that each example carries for the task, [prompt example]; NaN where unknown.

    With a declared mixture, the increment of the exact task log-odds; without one, a nominal value for right
    and wrong labels (`prompts.build.nominal_evidence`).
    """
    chosen = bench.prompts(arm).select(prompts)
    if bench.mixture is None:
        return nominal_evidence(chosen, bench.config.prompts.inputs)
    exact = exact_task(bench, arm, prompts)
    return np.concatenate([np.diff(exact, axis=1), np.full((len(exact), 1), np.nan)], axis=1)


def similarities(bench: Bench, prompts: Ints) -> dict[str, Floats] | None:
    """Arm → similarity of each example to the query after it, [prompt example]; None for inputs in words."""
    arms = bench.config.prompts.arms
    found = {arm: example_similarity(bench.prompts(arm).select(prompts)) for arm in arms}
    return {arm: values for arm, values in found.items() if values is not None} or None


def comparable(exact: Mapping[str, Floats]) -> list[str]:
    """Arms whose accounts are compared: those whose exact log-odds are known throughout, or else all.

    Args:
        exact: arm → exact log-odds, [prompt example], NaN where unknown.
    """
    known = [arm for arm, values in exact.items() if np.isfinite(values).all()]
    return known if len(known) > 1 else list(exact)


def paired_belief(bench: Bench, prompts: Ints) -> Floats:
    """The answer's log-odds, the treated arm minus the first control, nats [prompt example]."""
    arms = (bench.config.treated, bench.config.controls[0])
    treated, control = (bench.arrays("track", beliefs_file(arm))["model"][prompts] for arm in arms)
    return (treated - control)[..., belief_index("exact")]


def exact_task(bench: Bench, arm: str, prompts: Ints) -> Floats:
    """Exact task log-odds before each query, nats [prompt example]; NaN where the mixture has none."""
    chosen = bench.prompts(arm).select(prompts)
    found = np.full(chosen.x.shape, np.nan)
    if bench.mixture is not None and parse_task(str(chosen.task[0])) in bench.mixture.tasks:
        possible = np.flatnonzero(in_mixture(bench.mixture, chosen))
        if possible.size:
            found[possible] = task_log_odds(bench.mixture, chosen.select(possible))
    return np.where(np.isfinite(found), found, np.nan)
