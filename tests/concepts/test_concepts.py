import numpy as np
import pytest

from iclens.concepts.language import CONCEPTS, concept, read_rows
from iclens.core import PREFIX_LENGTH, TOKENS_PER_EXAMPLE, SiteError, TableError
from iclens.prompts.build import PromptSet
from iclens.prompts.tasks import parse_task

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
    "numeric": [+1,  +1,   +1,  +1,  +1,  +1,  -1,  +1],
    "offset":  [-1,   0,   +1,  -1,   0,   0,   0,   0],
    # y - x: 7 4 16 6 15 45 - -, median 11; y / x: 2.75 1.67 5 7 8.5 6.6 - -, median 5.8
    "difference": [-1, -1, +1, -1,  +1,  +1,   0,   0],
    "ratio":   [-1,  -1,   -1,  +1,  +1,  +1,   0,   0],
    "magnitude": [-1, -1,  +1,  -1,  +1,  +1,   0,  -1],
}  # fmt: skip
PRE = {
    "double": [+1, 0, -1, 0, 0, 0, 0, 0],  # y of 2x~5 is not known yet, so nothing could match it
    "odd": [+1, 0, -1, +1, +1, 0, 0, +1],
    "numeric": LAB["numeric"],
    "offset": LAB["offset"],
}


@pytest.mark.parametrize("name", LAB)
def test_labels_at_the_label_token(name) -> None:
    assert concept(name).contrast.label(rows_at("lab")).tolist() == LAB[name]
    assert concept(name).contrast.label(rows_at("close")).tolist() == LAB[name]


@pytest.mark.parametrize("name", PRE)
def test_labels_before_it_are_of_the_answer_asked_for(name) -> None:
    """A task with several outcomes has no answer yet, so nothing is said about its parity."""
    assert concept(name).contrast.label(rows_at("pre")).tolist() == PRE[name]


def groups(stratum):
    """Strata as sets of rows, whatever their numbers."""
    return {frozenset(np.flatnonzero(stratum == value).tolist()) for value in np.unique(stratum)}


def test_strata_group_rows_and_unknown_is_a_group_of_its_own() -> None:
    rows = rows_at("lab")
    # decade of y: 1 1 2 0 1 5 - 0
    assert groups(concept("odd").stratum(rows)) == {frozenset(g) for g in ([0, 1, 4], [2], [3, 7], [5], [6])}
    # is x a number, decade of x
    assert groups(concept("numeric").stratum(rows)) == {frozenset(g) for g in ([0, 1, 2, 3, 4, 5], [6], [7])}
    # slope, which a constant has (0); what has none is one group
    assert groups(concept("offset").stratum(rows)) == {
        frozenset(g) for g in ([0, 1], [2], [3], [4], [5, 6, 7])
    }
    assert groups(concept("double").stratum(rows_at("pre"))) >= {frozenset([1, 5, 6])}


def test_what_is_held_fixed_beside_the_concept() -> None:
    rows = rows_at("lab")
    assert set(concept("odd").fixed(rows).tolist()) == {0}
    # (y - x) // 5: 1 0 3 1 3 9 - -
    assert groups(concept("difference").fixed(rows)) == {
        frozenset(g) for g in ([1], [0, 3], [2, 4], [5], [6, 7])
    }


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
