"""The five beliefs, by hand on a distribution with known masses."""

import numpy as np
import pytest

from iclens.core import BELIEFS
from iclens.prompts.beliefs import NUMBERS, AnswerProbs, belief_index, log_odds, read_beliefs
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
