import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from iclens import builtin
from iclens.concepts.language import DEFAULT_SPECS, OFFSETS, SLOPES, TaskGrid, slope_marginals, split_grid
from iclens.core import TaskError
from iclens.prompts.mixture import Mixture
from iclens.prompts.tasks import parse_task
from iclens.study.config import demo_config
from iclens.study.grid import task_grid

TASKS = [parse_task(spec) for spec in DEFAULT_SPECS]


def test_default_grid_is_a_factorial_beside_other_kinds() -> None:
    assert len({task.name for task in TASKS}) == len(TASKS)
    assert sum(task.answers == "number" for task in TASKS) >= 60
    affine = {(task.slope, task.offset) for task in TASKS if task.family == "affine"}
    assert affine == set(itertools.product(SLOPES, OFFSETS))
    assert {"approx", "parity", "random", "word"} <= {task.family for task in TASKS}
    assert {task.domain for task in TASKS} == {"number", "letter", "word"}


def test_the_demos_grid_lies_inside_the_built_in_mixture() -> None:
    text = (builtin.__path__[0]) + "/icl_tiny.yaml"
    with open(text, encoding="utf-8") as file:
        mixture = Mixture.from_dict(yaml.safe_load(file)["mixture"])
    grid = task_grid(demo_config())
    assert set(grid.names) <= {task.name for task in mixture.tasks}
    affine = [rule for rule in grid.rules.values() if rule.family == "affine"]
    assert len({(r.slope, (r.offset or 0) % 2, (r.offset or 0) > 5) for r in affine}) == 5 * 2 * 2


def test_split_divides_tasks_and_keeps_every_kind_on_both_sides() -> None:
    grid = split_grid(TASKS, seed=0)
    assert set(grid.discovery) | set(grid.held_out) == set(grid.rules)
    assert not set(grid.discovery) & set(grid.held_out)
    for names in (grid.discovery, grid.held_out):
        rules = [grid.rules[name] for name in names]
        assert {(r.slope, r.offset % 2) for r in rules if r.family == "affine"} == {
            (a, b) for a in SLOPES for b in (0, 1)
        }
        families = {"affine", "approx", "constant", "reflection", "half", "modulo", "parity", "word"}
        assert families <= {r.family for r in rules}


def test_split_depends_on_its_seed_alone() -> None:
    assert split_grid(TASKS, seed=4) == split_grid(TASKS, seed=4)
    assert split_grid(TASKS, seed=4).held_out != split_grid(TASKS, seed=5).held_out
    declared = split_grid(TASKS, seed=4).declared()
    assert declared["seed"] == 4
    assert len(declared["held_out"]) + len(declared["discovery"]) == len(TASKS)


def test_share_is_rounded_within_each_kind() -> None:
    tasks = [parse_task(f"2x+{b}") for b in (0, 2, 4, 6, 8)]
    assert len(split_grid(tasks, seed=0).held_out) == 3
    assert len(split_grid(tasks, seed=0, held_out=0.01).held_out) == 1
    assert len(split_grid(tasks, seed=0, held_out=0.99).held_out) == 4


@pytest.mark.parametrize(
    ("specs", "share", "found"),
    [
        (["2x", "2x"], 0.5, "stands twice"),
        (["2x", "2x+2"], 1.0, "not between"),
        (["2x", "3x"], 0.5, "one side"),
        ([], 0.5, "one side"),
    ],
)
def test_a_grid_that_cannot_be_split_is_refused(specs, share, found) -> None:
    with pytest.raises(TaskError, match=found):
        split_grid([parse_task(s) for s in specs], seed=0, held_out=share)


def test_a_task_on_both_sides_is_refused() -> None:
    rules = {name: parse_task(name) for name in ("2x", "3x")}
    with pytest.raises(TaskError, match="divide"):
        TaskGrid(rules, ("2x", "3x"), ("3x",), 0)
    with pytest.raises(TaskError, match="divide"):
        TaskGrid(rules, ("2x",), ("5x",), 0)


def test_marginals_of_slopes_golden() -> None:
    """Slope 1 has decades 0, 0, 1, 2; slope 2 has 0, 1, 1, 1: TV = (1/4 + 1/2 + 1/4) / 2."""
    rows = SimpleNamespace(
        family=np.array(["affine"] * 8 + ["half"]),
        slope=np.array([1.0, 1, 1, 1, 2, 2, 2, 2, np.nan]),
        y=np.array([3.0, 7, 12, 25, 9, 10, 15, 19, 70]),
    )
    assert slope_marginals(rows) == pytest.approx({"1 and 2": 0.5, "largest": 0.5})
    assert slope_marginals(SimpleNamespace(family=rows.family[8:], slope=rows.slope[8:], y=rows.y[8:])) == {}
