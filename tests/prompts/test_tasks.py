"""Specs name tasks, and each rule answers as it says."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclens.core import TaskError
from iclens.prompts.tasks import EXAMPLES, LETTERS, NAMED, WORDS, default_inputs, expand, parse_task


@pytest.mark.parametrize("spec", EXAMPLES)
def test_every_example_parses_to_itself(spec: str) -> None:
    assert parse_task(spec).name == spec


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("y = 2x + 3", "2x+3"),
        ("2*x+3", "2x+3"),
        ("1x", "x"),
        ("x+0", "x"),
        ("02x-07", "2x-7"),
        ("2x+3~0", "2x+3"),
        ("x~5", "x~5"),
        ("x//2+0", "x//2"),
        ("x//03-1", "x//3-1"),
        ("050-x", "50-x"),
        ("x%07", "x%7"),
        ("007", "7"),
        ("word:opposite", "word:opposite"),
    ],
)
def test_canonical_name(spec: str, name: str) -> None:
    assert parse_task(spec).name == name
    assert parse_task(spec) == parse_task(name)


@pytest.mark.parametrize(
    ("spec", "family", "domain", "answers", "slope", "offset"),
    [
        ("2x+3", "affine", "number", "number", 2, 3),
        ("x-5", "affine", "number", "number", 1, -5),
        ("2x~5", "approx", "number", "number", 2, 0),
        ("7", "constant", "number", "number", 0, 7),
        ("50-x", "reflection", "number", "number", -1, 50),
        ("x//2+4", "half", "number", "number", None, None),
        ("x%7", "modulo", "number", "number", None, None),
        ("odd", "parity", "number", "number", None, None),
        ("word:parity", "word", "number", "word", None, None),
        ("letter:index", "word", "letter", "number", None, None),
    ],
)
def test_what_is_said_about_a_task(
    spec: str, family: str, domain: str, answers: str, slope: int | None, offset: int | None
) -> None:
    task = parse_task(spec)
    assert (task.family, task.domain, task.answers) == (family, domain, answers)
    assert (task.slope, task.offset) == (slope, offset)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [("word:oposite", "word:opposite"), ("2y+3", "2x+3"), ("x/2", "x//2+4"), ("od", "odd"), ("50-", "50-x")],
)
def test_a_wrong_spec_is_told_the_nearest_form(spec: str, hint: str) -> None:
    with pytest.raises(TaskError) as caught:
        parse_task(spec)
    assert f"'{spec}'" in str(caught.value)
    assert hint in caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["", "0x+3", "x%0", "x//0", "2x+-3", "x**2", "2x+3 and more", "٢x", "-x"])
def test_refused(spec: str) -> None:
    with pytest.raises(TaskError):
        parse_task(spec)


def numbers(lowest: int) -> st.SearchStrategy[str]:
    return st.integers(lowest, 30).map(str) | st.integers(lowest, 30).map("{:03d}".format)


offsets = st.just("") | st.tuples(st.sampled_from("+-"), numbers(0)).map("".join)
specs = st.one_of(
    st.tuples(numbers(1) | st.just(""), st.just("x"), offsets).map("".join),
    st.tuples(numbers(1), st.just("*x"), offsets, st.just("~"), numbers(0)).map("".join),
    st.tuples(st.just("x//"), numbers(1), offsets).map("".join),
    st.tuples(st.just("x%"), numbers(1)).map("".join),
    st.tuples(numbers(0), st.just("-x")).map("".join),
    numbers(0),
    st.sampled_from(sorted(NAMED)),
)


@given(specs, st.integers(0, 99))
def test_parsing_the_name_gives_the_same_task(spec: str, x: int) -> None:
    task = parse_task(spec)
    again = parse_task(task.name)
    assert again == task
    assert again.name == task.name
    assert (again.family, again.slope, again.offset) == (task.family, task.slope, task.offset)
    if task.domain == "number":
        assert again.rule(str(x)) == task.rule(str(x))


@given(st.text("x0123456789+-*/%~ {}.:odlertw", max_size=12))
def test_any_text_parses_or_is_refused_in_one_line(text: str) -> None:
    try:
        task = parse_task(text)
    except TaskError as refused:
        assert refused.remedy.startswith("Nearest: ")
    else:
        assert parse_task(task.name) == task


def test_expand() -> None:
    assert expand("{1..2}x+{0..1}") == ["1x+0", "1x+1", "2x+0", "2x+1"]
    assert expand("{50..52}-x") == ["50-x", "51-x", "52-x"]
    assert expand("odd") == ["odd"]
    assert expand("{3..2}x") == []


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
    for x in default_inputs(task):
        found = task.outcomes(x)
        assert sum(found.values()) == pytest.approx(1.0)
        assert found[task.answer(x)] == max(found.values())
        assert all(y.isdigit() == (task.answers == "number") for y in found)


def test_inputs_of_domains() -> None:
    assert default_inputs(parse_task("3x"), range(3)) == default_inputs("number", range(3))
    assert default_inputs("number", range(3)) == ("0", "1", "2")
    assert default_inputs("letter") == LETTERS
    assert set(default_inputs("word")) == set(WORDS)
    assert len(WORDS) == len(set(WORDS)) == 40
