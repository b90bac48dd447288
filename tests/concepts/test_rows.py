"""Rows say of each token which prompt, task and template it stands in."""

import numpy as np
import pytest

from iclens.concepts.language import Rows, read_rows
from iclens.core import PREFIX_LENGTH, TOKENS_PER_EXAMPLE
from iclens.prompts.build import PromptSet
from iclens.prompts.tasks import parse_task

RULES = {name: parse_task(name) for name in ("3x", "x+2")}


def written(template: list[str] | None) -> Rows:
    """Two prompts of three examples."""
    x = np.array([["1", "2", "4"], ["5", "6", "7"]])
    y = np.array([["3", "6", "12"], ["7", "8", "9"]])
    tokens = np.zeros((2, PREFIX_LENGTH + 3 * TOKENS_PER_EXAMPLE), dtype=np.int64)
    named = None if template is None else np.array(template)
    prompts = PromptSet(np.array(["3x", "x+2"]), "T", x, y, y, tokens, 0, "none", template=named)
    return read_rows(prompts, "lab", RULES)


def test_every_row_has_its_prompts_template() -> None:
    rows = written(["[x, y]", "<x; y>"])
    assert rows.template.tolist() == ["[x, y]"] * 3 + ["<x; y>"] * 3
    assert rows.task.tolist() == ["3x"] * 3 + ["x+2"] * 3
    assert rows.take(np.array([4, 0])).template.tolist() == ["<x; y>", "[x, y]"]
    assert rows.take(rows.example == 1).template.tolist() == ["[x, y]", "<x; y>"]


def test_prompts_that_name_no_template_are_in_the_default() -> None:
    assert written(None).template.tolist() == ["(x, y)"] * 6


@pytest.mark.parametrize("name", ["prompt", "example", "task", "slope", "offset", "x", "y"])
def test_the_template_changes_no_other_fact(name: str) -> None:
    plain, other = written(None), written(["{x: y}", "{x: y}"])
    np.testing.assert_array_equal(getattr(plain, name), getattr(other, name))
