import numpy as np
import pytest

from iclens.errors import SiteError, TableError
from iclens.names import PREFIX_LENGTH, TOKENS_PER_EXAMPLE
from iclens.tables.prompts import PromptSet
from iclens.tasks.spec import parse_task
from iclens.transforms.concepts import CONCEPTS, concept
from iclens.transforms.rows import NO_NUMBER, read_rows

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
RULES = {name: parse_task(name) for name in SHOWN}


def rows_at(role):
    """One example of every task, as shown above."""
    x, y = (np.array([[pair[k]] for pair in SHOWN.values()]) for k in (0, 1))
    answer = np.array([[RULES[name].answer(pair[0])] for name, pair in SHOWN.items()])
    tokens = np.zeros((len(SHOWN), PREFIX_LENGTH + TOKENS_PER_EXAMPLE), dtype=np.int64)
    return read_rows(PromptSet(np.array(list(SHOWN)), "T", x, y, answer, tokens, 0, "none"), role, RULES)


#                2x+3 2x~5 3x+8 5x+2  17  odd  word  letter
LAB = {
    "double":  [+1,  +1,   -1,   0,   0,   0,   0,   0],
    "odd":     [+1,  -1,   -1,  +1,  +1,  +1,   0,  +1],
    "numeric": [+1,  +1,   +1,  +1,  +1,  +1,  -1,   0],
    "offset":  [-1,   0,   +1,  -1,   0,   0,   0,   0],
}  # fmt: skip
PRE = LAB | {"odd": [+1, 0, -1, +1, +1, 0, 0, +1]}


@pytest.mark.parametrize("name", LAB)
def test_labels_at_the_label_token(name) -> None:
    assert concept(name).contrast.label(rows_at("lab")).tolist() == LAB[name]
    assert concept(name).contrast.label(rows_at("close")).tolist() == LAB[name]


@pytest.mark.parametrize("name", PRE)
def test_labels_before_it_are_of_the_answer_asked_for(name) -> None:
    """A task with several outcomes has no answer yet, so nothing is said about its parity."""
    assert concept(name).contrast.label(rows_at("pre")).tolist() == PRE[name]


def test_strata() -> None:
    rows = rows_at("lab")
    assert concept("odd").stratum(rows).tolist() == [1, 1, 2, 0, 1, 5, NO_NUMBER, 0]
    assert concept("numeric").stratum(rows).tolist() == [0, 0, 0, 0, 0, 0, 2, NO_NUMBER]
    assert concept("offset").stratum(rows).tolist() == [2, 2, 3, 5, 0, -1, -1, -1]
    assert concept("double").stratum(rows_at("pre")).tolist()[:3] == [1, NO_NUMBER, 2]


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


def test_unknown_names_are_refused() -> None:
    with pytest.raises(SiteError, match="double"):
        concept("doubel")
    with pytest.raises(SiteError):
        rows_at("label")


def test_a_task_outside_the_grid_is_refused(prompts) -> None:
    with pytest.raises(TableError, match="not in the grid"):
        read_rows(prompts, "lab", RULES)
