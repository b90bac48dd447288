import pytest

from iclens.errors import TaskError
from iclens.tasks.mixture import Mixture
from iclens.tasks.rules import default_inputs
from iclens.tasks.spec import parse_task
from iclens.transforms.grid import DEFAULT_SPECS, TaskGrid, split_grid

TASKS = [parse_task(spec) for spec in DEFAULT_SPECS]


def test_default_grid_crosses_slope_offset_and_parity() -> None:
    assert len({task.name for task in TASKS}) == len(TASKS) >= 60
    affine = [task for task in TASKS if task.family == "affine"]
    cells = {(task.slope, task.offset % 2, task.offset > 5) for task in affine}
    assert len(cells) == 5 * 2 * 2
    assert {task.domain for task in TASKS} == {"number"}
    assert all(task.outcomes(x) for task in TASKS for x in default_inputs("number"))


def test_default_grid_lies_inside_the_built_in_mixture() -> None:
    import yaml

    from iclens import reference

    text = (reference.__path__[0]) + "/icl_tiny.yaml"
    with open(text, encoding="utf-8") as file:
        mixture = Mixture.from_dict(yaml.safe_load(file)["mixture"])
    assert {task.name for task in TASKS} <= {task.name for task in mixture.tasks}


def test_split_divides_tasks_and_keeps_every_kind_on_both_sides() -> None:
    grid = split_grid(TASKS, seed=0)
    assert set(grid.discovery) | set(grid.held_out) == set(grid.rules)
    assert not set(grid.discovery) & set(grid.held_out)
    for names in (grid.discovery, grid.held_out):
        rules = [grid.rules[name] for name in names]
        assert {(r.slope, r.offset % 2) for r in rules if r.family == "affine"} == {
            (a, b) for a in range(1, 6) for b in (0, 1)
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
