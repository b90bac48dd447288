"""Outcomes of every kind of rule, worked out by hand."""

import re

import pytest

from iclens.core import TaskError
from iclens.prompts.tasks import EXAMPLES, LETTERS, WORDS, default_inputs, parse_task


@pytest.mark.parametrize(
    ("spec", "x", "y"),
    [
        ("2x+3", "28", "59"),
        ("3x", "0", "0"),
        ("x-5", "5", "0"),
        ("x//2+4", "7", "7"),
        ("50-x", "50", "0"),
        ("x%7", "48", "6"),
        ("7", "31", "7"),
        ("word:opposite", "cold", "hot"),
        ("word:same", "cold", "cold"),
        ("word:parity", "10", "even"),
        ("word:parity", "7", "odd"),
        ("word:size", "24", "small"),
        ("word:size", "25", "big"),
        ("letter:nth", "27", "b"),
        ("letter:next", "z", "a"),
        ("letter:previous", "a", "z"),
        ("letter:index", "c", "3"),
    ],
)
def test_deterministic(spec: str, x: str, y: str) -> None:
    task = parse_task(spec)
    assert task.outcomes(x) == {y: 1.0}
    assert task.answer(x) == y
    assert task.deterministic


def test_approximate_is_uniform_around_the_line() -> None:
    task = parse_task("2x~2")
    assert task.outcomes("5") == pytest.approx(dict.fromkeys(["8", "9", "10", "11", "12"], 0.2))
    assert task.outcomes("0") == pytest.approx(dict.fromkeys(["0", "1", "2"], 1 / 3))
    assert not task.deterministic


def test_parity_and_random_ignore_x() -> None:
    odd, even, anything = (parse_task(spec) for spec in ("odd", "even", "random"))
    assert odd.outcomes("4") == odd.outcomes("41") == {str(y): 1 / 50 for y in range(1, 100, 2)}
    assert even.outcomes("4") == {str(y): 1 / 50 for y in range(0, 100, 2)}
    assert anything.outcomes("4") == {str(y): 1 / 100 for y in range(100)}


@pytest.mark.parametrize(
    ("spec", "x"), [("50-x", "60"), ("x-5", "3"), ("x-9~2", "1"), ("40x", "25"), ("1000", "1")]
)
def test_no_answer_in_range(spec: str, x: str) -> None:
    with pytest.raises(TaskError, match=r"no answer in 0\.\.999"):
        parse_task(spec).outcomes(x)


@pytest.mark.parametrize(
    ("spec", "x"), [("2x+3", "hot"), ("odd", "a"), ("word:opposite", "7"), ("letter:next", "7")]
)
def test_an_x_of_another_kind(spec: str, x: str) -> None:
    with pytest.raises(TaskError, match=re.escape(f"task '{spec}' at x='{x}'")):
        parse_task(spec).outcomes(x)


@pytest.mark.parametrize("spec", EXAMPLES)
def test_outcomes_are_distributions(spec: str) -> None:
    task = parse_task(spec)
    for x in default_inputs(task.domain):
        found = task.outcomes(x)
        assert sum(found.values()) == pytest.approx(1.0)
        assert found[task.answer(x)] == max(found.values())
        assert all(y.isdigit() == (task.answers == "number") for y in found)


def test_inputs_of_domains() -> None:
    assert default_inputs("number", range(3)) == ("0", "1", "2")
    assert default_inputs("letter") == LETTERS
    assert set(default_inputs("word")) == set(WORDS)
    assert len(WORDS) == len(set(WORDS)) == 40
