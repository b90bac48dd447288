"""Beliefs of every study and declared ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclens.core import BELIEFS, TaskError
from iclens.prompts.beliefs import (
    EXAMPLES,
    NUMBERS,
    AnswerProbs,
    belief_index,
    belief_names,
    check_declared,
    log_odds,
    parse_belief,
    read_beliefs,
)
from iclens.prompts.tasks import parse_task


def probs(**mass: float) -> AnswerProbs:
    """P over numbers (keys n7, n14, …) and the word `hot`; one row."""
    answers = (*NUMBERS, "hot")
    p = np.zeros(len(answers))
    for key, value in mass.items():
        p[answers.index(key.removeprefix("n"))] = value
    with np.errstate(divide="ignore"):
        return AnswerProbs(answers, np.log(p)[None])


MASS = probs(n20=0.1, n23=0.2, n25=0.05, n26=0.15, n7=0.3, hot=0.1)  # 0.1 is on other tokens
TEN = np.array(["10"])


def test_by_hand() -> None:
    found = read_beliefs(MASS, parse_task("2x+3"), TEN, np.array(["23"]), np.array(["7"]))[0]
    assert found[belief_index("numeric")] == pytest.approx(0.8)
    assert found[belief_index("odd")] == pytest.approx((0.2 + 0.05 + 0.3) / 0.8)
    assert found[belief_index("double")] == pytest.approx((0.1 + 0.2 + 0.05) / 0.8)  # 26 is 6 away
    assert found[belief_index("exact")] == pytest.approx(0.2)
    assert found[belief_index("copy")] == pytest.approx(0.3)


def test_the_band_is_the_tasks_own() -> None:
    band = belief_index("double")
    three = read_beliefs(MASS, parse_task("3x"), np.array(["7"]), np.array(["21"]))[0, band]
    assert three == pytest.approx((0.1 + 0.2 + 0.05 + 0.15) / 0.8)
    for spec, x in (("x%7", "10"), ("odd", "10"), ("letter:next", "c"), ("word:opposite", "hot")):
        assert np.isnan(read_beliefs(MASS, parse_task(spec), np.array([x]), np.array(["23"]))[0, band])


def test_undefined_is_nan() -> None:
    found = read_beliefs(probs(hot=1.0), parse_task("2x+3"), TEN, np.array(["23"]))[0]
    assert found[belief_index("numeric")] == 0.0
    assert np.isnan(found[[belief_index("odd"), belief_index("double"), belief_index("copy")]]).all()
    assert found[belief_index("exact")] == 0.0


def test_an_answer_that_is_not_listed_has_no_probability() -> None:
    assert MASS.of(np.array(["zebra"]))[0] == 0.0
    assert MASS.of(np.array(["hot"]))[0] == pytest.approx(0.1)


def test_log_odds() -> None:
    assert log_odds(np.array([0.2, 0.5, 0.8, 16 / 17])) == pytest.approx(
        [-np.log(4), 0.0, np.log(4), 2 * np.log(4)]
    )
    clipped = log_odds(np.array([0.0, 1.0, np.nan]))
    assert clipped[:2] == pytest.approx([-20.723, 20.723], abs=1e-3)
    assert np.isnan(clipped[2])


def test_order_of_beliefs() -> None:
    assert [belief_index(name) for name in BELIEFS] == list(range(5))


WORDS = ("small", "big")
X, OWN = np.array(["10"]), np.array(["23"])


def probs_of(**mass: float) -> AnswerProbs:
    """P by answer; `n23` is the number 23. Nothing is left for other answers but 1e-12 each."""
    p = np.full(len(NUMBERS) + len(WORDS), 1e-12)
    for name, value in mass.items():
        p[(*NUMBERS, *WORDS).index(name.removeprefix("n"))] = value
    return AnswerProbs((*NUMBERS, *WORDS), np.log(p)[None])


def read(spec: str, held: AnswerProbs, x: np.ndarray = X) -> float:
    return float(parse_belief(spec).read(held, x, OWN)[0])


HELD = probs_of(n23=0.4, n31=0.1, n30=0.1, n20=0.2, small=0.15)


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("against:3x+1", 0.4 / 0.5),
        ("against: y=3x + 1", 0.4 / 0.5),
        ("near:3x", 0.2 / 0.8),
        ("near:3x~0", 0.1 / 0.8),
        ("near:2x+3~3", 0.6 / 0.8),
        ("among:word:size", 0.15),
        ("y%5=3", 0.4 / 0.8),
        ("y%5=0", 0.3 / 0.8),
        ("y<23", 0.2 / 0.8),
        ("y>=23", 0.6 / 0.8),
    ],
)
def test_values_by_hand(spec: str, value: float) -> None:
    assert read(spec, HELD) == pytest.approx(value, rel=1e-6)


def test_the_log_odds_of_a_contrast_are_the_difference_of_the_log_probabilities() -> None:
    held = probs_of(n23=1e-7, n31=3e-5, small=0.9)
    found = log_odds(parse_belief("against:3x+1").read(held, X, OWN))[0]
    own, rival = (held.log_prob[0, n] for n in (23, 31))
    assert found == pytest.approx(own - rival)


def test_where_answers_agree_the_odds_are_even_and_without_an_answer_undefined() -> None:
    two = np.array(["2"])
    held = probs_of(n7=0.5)
    assert float(parse_belief("against:3x+1").read(held, two, np.array(["7"]))[0]) == 0.5
    assert np.isnan(read("against:9-x", HELD))
    assert np.isnan(read("near:9-x", HELD))


def test_words_are_read_from_word_tasks_only() -> None:
    assert set(parse_belief("against:word:size", ["3", "30"]).words) == set(WORDS)
    assert parse_belief("against:word:size", ["3"]).words == ("small",)
    assert set(parse_belief("among:word:size").words) == set(WORDS)
    assert parse_belief("against:3x+1").words == ()


def test_the_answers_of_a_task_are_those_on_the_studys_inputs() -> None:
    held = probs_of(n203=0.5, n23=0.25)
    assert read("among:2x+3", held) == pytest.approx(0.25)
    wide = parse_belief("among:2x+3", [str(x) for x in range(120)])
    assert float(wide.read(held, X, OWN)[0]) == pytest.approx(0.75)
    assert 0 < read("among:40-x", HELD) < 1, "where it has no answer, it adds none"


@given(st.integers(1, 12), st.integers(0, 999), st.integers(0, 2**32 - 1))
def test_residues_and_halves_add_up_to_one(modulus: int, cut: int, seed: int) -> None:
    p = np.random.default_rng(seed).dirichlet(np.full(len(NUMBERS) + len(WORDS), 0.05))
    held = AnswerProbs((*NUMBERS, *WORDS), np.log(p + 1e-300)[None])
    residues = [read(f"y%{modulus}={r}", held) for r in range(modulus)]
    assert sum(residues) == pytest.approx(1)
    assert read(f"y<{cut}", held) + read(f"y>={cut}", held) == pytest.approx(1)


def test_every_example_is_a_belief_and_its_own_name() -> None:
    assert [parse_belief(spec).name for spec in EXAMPLES] == list(EXAMPLES)
    declared = check_declared(EXAMPLES, parse_task("2x+3"))
    assert belief_names(declared) == (*BELIEFS, *EXAMPLES)


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        (["agianst:3x+1"], "against:3x+1"),
        (["y%5=5"], "no such belief"),
        (["y<<5"], "no such belief"),
        (["against:3y"], "no such task"),
        (["y<50", "y < 50"], "stands twice"),
        (["near:3x", "near:3x~5"], "stands twice"),
        (["against:x", "against:1x"], "stands twice"),
        (["against:y=2x+3"], "the studied task itself"),
        (["against:odd"], "several answers"),
        (["near:2x+1~4~2"], "no such belief"),
        (["near:random"], "several answers"),
        (["near:word:same"], "no value on any input"),
        (["against:letter:next"], "no value on any input"),
        (["y<0"], "always 0"),
        (["y>=1000"], "always 0"),
        (["y<99999999999999999999"], "always 1"),
        (["y%2000=1500"], "always 0"),
        (["near:2x~99999999999999999999"], "always 1"),
        (["against:2x+3"], "the studied task itself"),
    ],
)
def test_what_cannot_be_read_is_one_line(specs: list[str], said: str) -> None:
    with pytest.raises(TaskError) as caught:
        check_declared(specs, parse_task("2x+3"))
    assert said in str(caught.value) and "\n" not in str(caught.value)
