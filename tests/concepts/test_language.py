"""The grid and its split, facts of rows, expressions of three values, and what each concept labels."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import yaml

from iclens import builtin
from iclens.concepts.language import (
    CONCEPTS,
    DEFAULT_SPECS,
    OFFSETS,
    SLOPES,
    TaskGrid,
    concept,
    parse_expression,
    read_rows,
    rows_of,
    slope_marginals,
    split_grid,
)
from iclens.core import PREFIX_LENGTH, TOKENS_PER_EXAMPLE, ConfigError, SiteError, TableError, TaskError
from iclens.prompts.build import PromptSet
from iclens.prompts.mixture import Mixture
from iclens.prompts.tasks import parse_task
from iclens.study.config import demo_config
from iclens.study.grid import task_grid


def rules(*names):
    return {name: parse_task(name) for name in names}


# ------------------------------------------------------------------------------------------------- the grid

TASKS = [parse_task(spec) for spec in DEFAULT_SPECS]


def test_default_grid_is_a_factorial_beside_other_kinds() -> None:
    assert len({task.name for task in TASKS}) == len(TASKS)
    assert sum(task.answers == "number" for task in TASKS) >= 60
    affine = {(task.slope, task.offset) for task in TASKS if task.family == "affine"}
    assert affine == set(itertools.product(SLOPES, OFFSETS))
    assert {"approx", "parity", "random", "word"} <= {task.family for task in TASKS}
    assert {task.domain for task in TASKS} == {"number", "letter", "word"}


def test_the_demos_grid_lies_inside_the_built_in_mixture() -> None:
    text = Path(builtin.__path__[0], "icl_tiny.yaml").read_text("utf-8")
    mixture = Mixture.from_dict(yaml.safe_load(text)["mixture"])
    grid = task_grid(demo_config())
    assert set(grid.names) <= {task.name for task in mixture.tasks}
    affine = [rule for rule in grid.rules.values() if rule.family == "affine"]
    assert len({(r.slope, (r.offset or 0) % 2, (r.offset or 0) > 5) for r in affine}) == 5 * 2 * 2


def test_split_divides_tasks_by_its_seed_and_keeps_every_kind_on_both_sides() -> None:
    grid = split_grid(TASKS, seed=4)
    assert set(grid.discovery) | set(grid.held_out) == set(grid.rules)
    assert not set(grid.discovery) & set(grid.held_out)
    for names in (grid.discovery, grid.held_out):
        held = [grid.rules[name] for name in names]
        kinds = {(r.slope, r.offset % 2) for r in held if r.family == "affine"}
        assert kinds == {(a, b) for a in SLOPES for b in (0, 1)}
        families = {"affine", "approx", "constant", "reflection", "half", "modulo", "parity", "word"}
        assert families <= {r.family for r in held}
    assert split_grid(TASKS, seed=4) == grid
    assert split_grid(TASKS, seed=5).held_out != grid.held_out
    declared = {"seed": 4, "discovery": list(grid.discovery), "held_out": list(grid.held_out)}
    assert grid.declared() == declared


@pytest.mark.parametrize(("share", "n_held"), [(0.5, 3), (0.01, 1), (0.99, 4)])
def test_share_is_rounded_within_each_kind(share, n_held) -> None:
    tasks = [parse_task(f"2x+{b}") for b in (0, 2, 4, 6, 8)]
    assert len(split_grid(tasks, seed=0, held_out=share).held_out) == n_held


def test_pairs_of_one_kind_of_x_stand_on_both_sides() -> None:
    """So that "x is a verb" can be found on one task and confirmed on another."""
    specs = [
        f"pairs:{name}" for name in ("past", "capital", "present_participle", "country_language", "plural")
    ]
    for seed in range(5):
        grid = split_grid([parse_task(spec) for spec in specs], seed=seed)
        for kind in (specs[0::2][:2], specs[1::2]):
            assert len({*kind} & {*grid.discovery}) == len({*kind} & {*grid.held_out}) == 1
        assert "pairs:plural" in grid.discovery, "no other task has nouns"


@pytest.mark.parametrize(
    ("specs", "share", "reason"),
    [
        (["2x", "2x"], 0.5, "stands twice"),
        (["2x", "2x+2"], 1.0, "not between"),
        (["2x", "3x"], 0.5, "one side"),
        ([], 0.5, "one side"),
    ],
)
def test_a_grid_that_cannot_be_split_is_refused(specs, share, reason) -> None:
    with pytest.raises(TaskError, match=reason):
        split_grid([parse_task(s) for s in specs], seed=0, held_out=share)


@pytest.mark.parametrize("sides", [(("2x", "3x"), ("3x",)), (("2x",), ("5x",))])
def test_sides_that_do_not_divide_the_tasks_are_refused(sides) -> None:
    with pytest.raises(TaskError, match="divide"):
        TaskGrid(rules("2x", "3x"), *sides, 0)


def test_marginals_of_slopes_golden() -> None:
    """Slope 1 has decades 0, 0, 1, 2; slope 2 has 0, 1, 1, 1: TV = (1/4 + 1/2 + 1/4) / 2."""
    task, y = np.array(["x+1", "2x", "x//2"]), np.array([[3, 7, 12, 25], [9, 10, 15, 19], [70] * 4])
    rows = rows_of(task, y.astype(str), y.astype(str), rules("x+1", "2x", "x//2"))
    assert slope_marginals(rows) == pytest.approx({"1 and 2": 0.5, "largest": 0.5})
    assert slope_marginals(rows.take(rows.family == "half")) == {}


# ----------------------------------------------------------------------------------------------------- rows


def written(template: list[str] | None):
    """Two prompts of three examples."""
    x = np.array([["1", "2", "4"], ["5", "6", "7"]])
    y = np.array([["3", "6", "12"], ["7", "8", "9"]])
    tokens = np.zeros((2, PREFIX_LENGTH + 3 * TOKENS_PER_EXAMPLE), dtype=np.int64)
    named = None if template is None else np.array(template)
    prompts = PromptSet(np.array(["3x", "x+2"]), "T", x, y, y, tokens, 0, "none", template=named)
    return read_rows(prompts, "lab", rules("3x", "x+2"))


def test_every_row_has_its_prompts_template_and_it_changes_no_other_fact() -> None:
    rows, plain = written(["[x, y]", "<x; y>"]), written(None)
    assert rows.template.tolist() == ["[x, y]"] * 3 + ["<x; y>"] * 3
    assert plain.template.tolist() == ["(x, y)"] * 6
    assert rows.task.tolist() == ["3x"] * 3 + ["x+2"] * 3
    assert rows.take(np.array([4, 0])).template.tolist() == ["<x; y>", "[x, y]"]
    assert rows.take(rows.example == 1).template.tolist() == ["[x, y]", "<x; y>"]
    for name in ("prompt", "example", "task", "slope", "offset", "x", "y"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(rows, name))


# ---------------------------------------------------------------------------------------------- expressions

ROWS = rows_of(
    np.array(["2x+3", "odd", "x//2", "word:parity"]),
    np.array([["4"], ["8"], ["5"], ["3"]]),
    np.array([["11"], ["7"], ["2"], ["odd"]]),
    rules("2x+3", "odd", "x//2", "word:parity"),
)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("y", [11, 7, 2, None]),
        ("y - 2 * x", [3, -9, -8, None]),
        ("y // 3", [3, 2, 0, None]),
        ("y % 4", [3, 3, 2, None]),
        ("-y", [-11, -7, -2, None]),
        ("abs(y - 8)", [3, 1, 6, None]),
        ("y > median(y)", [1, 0, 0, None]),
        ("y > median(y / (y - y))", [None, None, None, None]),  # a median of nothing known
        ("2 < y <= 7", [0, 1, 0, None]),
        ("y in [2, 11]", [1, 0, 1, None]),
        ("y not in (2, 11)", [0, 1, 0, None]),
        ("family == 'affine'", [1, 0, 0, 0]),
        ("family in ['half', 'parity']", [0, 1, 1, 0]),
        ("numeric_y", [1, 1, 1, 0]),
        ("not numeric_y", [0, 0, 0, 1]),
        # slope is known for 2x+3 alone
        ("slope == 2", [1, None, None, None]),
        ("not slope == 2", [0, None, None, None]),
        # one side decides, whatever the other is
        ("family == 'affine' and slope == 2", [1, 0, 0, 0]),
        ("family == 'half' or slope == 3", [0, None, 1, None]),
        ("numeric_x or slope == 9", [1, 1, 1, 1]),
        ("x / (y - 2) > 0", [1, 1, None, None]),  # division by zero is not known
        ("template == '(x, y)'", [1, 1, 1, 1]),
        ("3", [3, 3, 3, 3]),
    ],
)
def test_values_and_where_they_are_known(text, values) -> None:
    result = parse_expression(text)(ROWS)
    assert result.tolist() == values


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("z == 1", "no fact 'z'"),
        ("slpe == 2", "Nearest: slope"),
        ("y ==", "not an expression"),
        ("y = 3", "not an expression"),
        ("__import__('os')", "not allowed"),
        ("y.real", "not allowed"),
        ("task[0]", "not allowed"),
        ("(lambda: y)()", "not allowed"),
        ("max(y)", "not allowed"),
        ("median(y, 2)", "not allowed"),
        ("y ** 2", "not allowed"),
        ("y in x", "without a list"),
        ("y in [x]", "not allowed"),
        ("None", "not allowed"),
        ("b'a' == task", "not allowed"),
    ],
)
def test_what_is_not_allowed_is_refused_in_one_line(text, says) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_expression(text)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["family > 3", "task == 2", "y + task > 1", "-family == 1"])
def test_texts_and_numbers_do_not_meet(text) -> None:
    with pytest.raises(ConfigError, match="Compare a text with a text"):
        parse_expression(text)(ROWS)


# ------------------------------------------------------------------------------------------------- concepts

SHOWN = {
    "2x+3": ("4", "11"),
    "2x~5": ("6", "10"),
    "3x+8": ("4", "20"),
    "5x+2": ("1", "7"),
    "17": ("2", "17"),
    "odd": ("8", "53"),
    "word:parity": ("24", "even"),
    "letter:index": ("c", "3"),
}


def rows_at(role):
    """One example of every task, as shown above."""
    x, y = (np.array([[pair[k]] for pair in SHOWN.values()]) for k in (0, 1))
    answer = np.array([[parse_task(name).answer(pair[0])] for name, pair in SHOWN.items()])
    tokens = np.zeros((len(SHOWN), PREFIX_LENGTH + TOKENS_PER_EXAMPLE), dtype=np.int64)
    prompts = PromptSet(np.array(list(SHOWN)), "T", x, y, answer, tokens, 0, "none")
    return read_rows(prompts, role, rules(*SHOWN))


#                2x+3 2x~5 3x+8 5x+2  17  odd  word  letter
LAB = {
    "double":  [+1,  +1,   -1,   0,   0,   0,   0,   0],
    "odd":     [+1,  -1,   -1,  +1,  +1,  +1,   0,  +1],
    "numeric": [+1,  +1,   +1,  +1,  +1,  +1,  -1,  +1],
    "offset":  [-1,   0,   +1,  -1,   0,   0,   0,   0],
    # y - x: 7 4 16 6 15 45 - -, median 11; y / x: 2.75 1.67 5 7 8.5 6.6 - -, median 5.8
    "difference": [-1, -1, +1, -1,  +1,  +1,   0,   0],
    "ratio":   [-1,  -1,   -1,  +1,  +1,  +1,   0,   0],
    "magnitude": [-1, -1,  +1,  -1,  +1,  +1,   0,  -1],
}  # fmt: skip
PRE = {
    "double": [+1, 0, -1, 0, 0, 0, 0, 0],  # y of 2x~5 is not known yet, so nothing could match it
    "odd": [+1, 0, -1, +1, +1, 0, 0, +1],  # a task with several answers says nothing of parity
    "numeric": LAB["numeric"],
    "offset": LAB["offset"],
}


@pytest.mark.parametrize(
    ("role", "name", "label"),
    [
        (role, n, wanted)
        for role, by in (("lab", LAB), ("close", LAB), ("pre", PRE))
        for n, wanted in by.items()
    ],
)
def test_labels_are_of_the_label_shown_or_the_answer_asked_for(role, name, label) -> None:
    assert concept(name).contrast.label(rows_at(role)).tolist() == label


def groups(stratum):
    """Strata as sets of rows, whatever their numbers."""
    return {frozenset(np.flatnonzero(stratum == value).tolist()) for value in np.unique(stratum)}


@pytest.mark.parametrize(
    ("name", "kind", "wanted"),
    [
        ("odd", "stratum", [[0, 1, 4], [2], [3, 7], [5], [6]]),  # decade of y: 1 1 2 0 1 5 - 0
        ("numeric", "stratum", [[0, 1, 2, 3, 4, 5], [6], [7]]),  # is x a number, decade of x
        ("offset", "stratum", [[0, 1], [2], [3], [4], [5, 6, 7]]),  # slope; a constant has one (0)
        ("odd", "fixed", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("difference", "fixed", [[1], [0, 3], [2, 4], [5], [6, 7]]),  # (y - x) // 5: 1 0 3 1 3 9 - -
    ],
)
def test_strata_group_rows_and_unknown_is_a_group_of_its_own(name, kind, wanted) -> None:
    assert groups(getattr(concept(name), kind)(rows_at("lab"))) == {frozenset(g) for g in wanted}
    assert groups(concept("double").stratum(rows_at("pre"))) >= {frozenset([1, 5, 6])}


def test_confounds_label_the_same_rows() -> None:
    rows = rows_at("lab")
    by_name = {c.name: c.label(rows).tolist() for asked in CONCEPTS for c in asked.confounds}
    # y: 11 10 20 7 17 53 - 3, median 11; x: 4 6 4 1 2 8 24 -, median 4
    assert by_name["magnitude"] == [-1, -1, 1, -1, 1, 1, 0, -1]
    assert by_name["input magnitude"] == [-1, 1, -1, -1, -1, 1, 1, 0]
    assert by_name["odd input"] == [-1, -1, -1, 1, -1, -1, -1, 0]
    assert by_name["last digit"] == [-1, -1, -1, 1, 1, -1, 0, -1]
    assert by_name["slope 3"] == [0, 0, 1, 0, 0, 0, 0, 0]


def test_every_concept_has_confounds_and_none_is_itself() -> None:
    for asked in CONCEPTS:
        names = [c.name for c in asked.confounds]
        assert asked.name not in names
        assert len(set(names)) == len(names) >= 3


def test_unknown_concepts_roles_and_tasks_are_refused(prompts) -> None:
    with pytest.raises(SiteError, match="double"):
        concept("doubel")
    with pytest.raises(SiteError):
        rows_at("label")
    with pytest.raises(TableError, match="not in the grid"):
        read_rows(prompts, "lab", rules(*SHOWN))
