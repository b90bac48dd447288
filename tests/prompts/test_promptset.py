"""PromptSet and AnswerProbs refuse axes that do not agree."""

from typing import Any

import numpy as np
import pytest

from iclens.core import TableError
from iclens.prompts.beliefs import AnswerProbs
from iclens.prompts.build import PromptSet


def fields(**changes: Any) -> dict[str, Any]:
    cells = np.full((3, 4), "1")
    return {
        "task": np.full(3, "x"), "arm": "T", "x": cells, "y": cells, "answer": cells,
        "tokens": np.zeros((3, 26), dtype=np.int64), "seed": 0, "tokenizer": "none",
    } | changes  # fmt: skip


def test_sizes_and_positions() -> None:
    prompts = PromptSet(**fields())
    assert (prompts.n_prompts, prompts.n_examples) == (3, 4)
    assert prompts.positions("pre").tolist() == [5, 11, 17, 23]
    assert prompts.select(np.array([2])).n_prompts == 1


def test_templates_are_one_for_each_prompt() -> None:
    assert PromptSet(**fields()).templates.tolist() == ["(x, y)"] * 3
    mixed = PromptSet(**fields(template=np.array(["(x, y)", "[x, y]", "<x; y>"])))
    assert mixed.templates.tolist() == ["(x, y)", "[x, y]", "<x; y>"]
    assert mixed.select(np.array([2, 0])).templates.tolist() == ["<x; y>", "(x, y)"]
    assert PromptSet(**fields()).select(np.array([2])).template is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": np.zeros((3, 25), dtype=np.int64)}, "2 . 6 . 4 examples"),
        ({"tokens": np.zeros((2, 26), dtype=np.int64)}, "tokens"),
        ({"y": np.full((3, 5), "1")}, "y"),
        ({"answer": np.full((2, 4), "1")}, "answer"),
        ({"task": np.full((3, 1), "x")}, "task"),
        ({"template": np.full(2, "[x, y]")}, "template"),
        ({"template": np.full((3, 4), "[x, y]")}, "template"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TableError, match=message):
        PromptSet(**fields(**changes))


def test_answer_probs() -> None:
    with pytest.raises(TableError, match="AnswerProbs"):
        AnswerProbs(("1", "2"), np.zeros((3, 3)))
    probs = AnswerProbs(("7", "8"), np.log([[0.2, 0.7], [0.6, 0.1]]))
    assert probs.top().tolist() == [1, 0]
    assert probs.of(np.array(["8", "8"])) == pytest.approx([0.7, 0.1])
