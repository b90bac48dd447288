"""Every arm asks the same queries after a context of its own, and is the same again from the same seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclens.builtin.model import build_tokenizer
from iclens.core import TableError, TaskError
from iclens.prompts.arms import ARMS, default_rival, parse_arm
from iclens.prompts.build import (
    PromptSet,
    build_prompts,
    check_pairing,
    exact_answer_probs,
    in_mixture,
    nominal_evidence,
    task_log_odds,
)
from iclens.prompts.mixture import Mixture
from iclens.prompts.render import Tokenizer
from iclens.prompts.tasks import parse_task

CODES = [code.replace("#", "2") for code in ARMS]
PROBED = ["D", "D2", "E2", "P", "A-", "A+"]
MIXTURE = Mixture.from_dict(
    {
        "numbers": [0, 49],
        "noise": {0.0: 0.5, 0.5: 0.5},
        "families": {"affine": {"weight": 1.0, "tasks": ["{1..4}x+{0..4}"]}},
    }
)


def build(
    tokenizer: Tokenizer, arm: str, task: str = "2x+3", n: int = 6, j: int = 7, seed: int = 4
) -> PromptSet:
    return build_prompts(tokenizer, parse_task(task), arm=arm, n_prompts=n, n_examples=j, seed=seed)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer()


@pytest.fixture(scope="module")
def arms(tokenizer: Tokenizer) -> dict[str, PromptSet]:
    return {code: build(tokenizer, code) for code in CODES}


def test_all_arms_of_a_design_are_paired(arms: dict[str, PromptSet]) -> None:
    check_pairing(list(arms.values()))
    assert {code for code, arm in arms.items() if arm.probed} == set(PROBED)


@pytest.mark.parametrize("code", CODES)
def test_an_arm_is_the_same_again_and_ends_with_the_same_query(
    code: str, arms: dict[str, PromptSet], tokenizer: Tokenizer
) -> None:
    one, again = arms[code], build(tokenizer, code)
    assert np.array_equal(one.tokens, again.tokens)
    assert np.array_equal(one.x, arms["T"].x) and np.array_equal(one.answer, arms["T"].answer)
    for passed in one.passes():
        for example, slot in zip(passed.examples, passed.slots, strict=True):
            cell = passed.tokens[:, 2 + 6 * slot + 1]
            own = arms["T"].tokens[:, 2 + 6 * example + 1]
            assert np.array_equal(cell, own), "the query's x stands in its slot"


def test_labels_are_what_each_arm_says(arms: dict[str, PromptSet]) -> None:
    own = arms["T"].y
    half = own.shape[1] // 2
    rival = parse_task("3x+1")
    others = np.vectorize(rival.answer)(arms["T"].x)
    assert arms["W"].rival == "3x+1"
    assert np.array_equal(arms["W"].y, np.concatenate([own[:, :half], others[:, half:]], axis=1))
    assert np.array_equal(arms["Wr"].y, np.concatenate([others[:, :half], own[:, half:]], axis=1))
    assert np.array_equal(arms["Q-"].y, np.concatenate([others[:, :2], own[:, 2:]], axis=1))
    assert np.array_equal(arms["Q0"].y[:, 2:], own[:, 2:]) and (arms["Q0"].y[:, :2] != own[:, :2]).any()
    assert (arms["O"].y.astype(int) % 2 == 1).all()
    wrong = arms["C2"].y != own
    assert wrong[:, 2].all() and not np.delete(wrong, 2, axis=1).any()
    assert np.abs(arms["N2"].y.astype(int) - own.astype(int)).max() <= 12
    assert sorted(arms["S"].y[0]) == sorted(own[0]) and (arms["S"].y != own).all()


def test_contexts_are_what_each_probed_arm_says(arms: dict[str, PromptSet]) -> None:
    x, shown = arms["T"].x, {code: arms[code].context_x for code in PROBED}
    assert all(cells is not None for cells in shown.values())
    for n in range(1, 7):
        assert (shown["D"][:, n, :n] == x[:, :1]).all()
        assert (shown["D2"][:, n, :n] == x[:, np.arange(n) % 2]).all()
        assert [sorted(row) for row in shown["E2"][:, n, :n].tolist()] == [
            sorted(r) for r in x[:, :n].tolist()
        ]
        assert np.array_equal(shown["P"][:, n, 6 - n :], x[:, :n]) and (shown["P"][:, n, : 6 - n] == "").all()
    assert arms["P"].slots is not None and (arms["P"].slots == 6).all()


def test_ambiguous_inputs_are_those_that_more_rivals_answer_alike(arms: dict[str, PromptSet]) -> None:
    rivals = [parse_task(f"{a}x+{b}") for a in range(1, 6) for b in range(12)]

    def shared(cells: np.ndarray) -> float:
        used = cells[:, -1].ravel()
        return float(np.mean([sum(r.answer(v) == str(2 * int(v) + 3) for r in rivals) for v in used]))

    assert shared(arms["A-"].context_x) > 1.5 * shared(arms["A+"].context_x)  # type: ignore[arg-type]


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from(["3x+1", "x//2+4", "50-x", "odd", "word:opposite", "letter:next"])
)
def test_queries_never_stand_in_their_own_context(tokenizer: Tokenizer, seed: int, task: str) -> None:
    sets = [
        build(tokenizer, code, task=task, n=3, j=5, seed=seed) for code in ("T", "S", "D", "E1", "P", "D2")
    ]
    check_pairing(sets)


@pytest.mark.parametrize(
    ("code", "task", "said"),
    [
        ("N10", "word:opposite", "N1 to N9 say how many labels of 10 are wrong"),
        ("O", "letter:next", "its answers are words"),
        ("A-", "word:same", "It needs"),
        ("C9", "2x+3", "prompts have 7 examples"),
        ("W", "letter:nth", "prompts.rival in a study"),
        ("Z", "2x+3", "one of T, S, R"),
        ("N0", "2x+3", "unknown"),
    ],
)
def test_an_arm_that_makes_no_sense_is_refused_in_one_line(
    tokenizer: Tokenizer, code: str, task: str, said: str
) -> None:
    with pytest.raises(TaskError, match=said) as caught:
        build(tokenizer, code, task=task)
    assert "\n" not in str(caught.value)


def test_equal_or_unpaired_arms_are_refused(arms: dict[str, PromptSet], tokenizer: Tokenizer) -> None:
    with pytest.raises(TableError, match="arms D and D: every label is the same"):
        check_pairing([arms["D"], arms["D"]])
    with pytest.raises(TableError, match="seed differs"):
        check_pairing([arms["T"], build(tokenizer, "D", seed=5)])


def test_rivals_are_like_the_task() -> None:
    assert default_rival(parse_task("2x+3")).name == "3x+1"
    assert default_rival(parse_task("odd")).name == "even"
    assert default_rival(parse_task("word:same")).name == "word:opposite"
    assert parse_arm("N5").number == 5 and parse_arm("W").needs_rival


def test_the_exact_posterior_is_exchangeable_and_blind_to_place(arms: dict[str, PromptSet]) -> None:
    plain = task_log_odds(MIXTURE, arms["T"])
    for code in ("E2", "P"):
        np.testing.assert_allclose(task_log_odds(MIXTURE, arms[code]), plain, rtol=1e-9, atol=1e-9)
    probs = exact_answer_probs(MIXTURE, arms["T"]).log_prob
    np.testing.assert_allclose(exact_answer_probs(MIXTURE, arms["P"]).log_prob, probs, atol=1e-9)


def test_repeated_examples_are_worth_less_than_new_ones(tokenizer: Tokenizer) -> None:
    """Small inputs, whose answers several tasks share, so that one example does not settle it."""
    few = [str(n) for n in range(5)]
    task = parse_task("2x+3")
    plain, repeated = (
        task_log_odds(
            MIXTURE, build_prompts(tokenizer, task, arm=arm, n_prompts=12, n_examples=5, seed=4, inputs=few)
        )
        for arm in "TD"
    )
    np.testing.assert_allclose(plain[:, :2], repeated[:, :2], atol=1e-9)
    assert plain[:, -1].mean() > repeated[:, -1].mean() + 1


def test_prompts_outside_the_mixture_are_marked(arms: dict[str, PromptSet]) -> None:
    assert in_mixture(MIXTURE, arms["T"]).all() and in_mixture(MIXTURE, arms["P"]).all()
    noisy = in_mixture(MIXTURE, arms["N2"])
    possible = np.isin(arms["N2"].y, np.array(MIXTURE.answers)).all(axis=1)
    assert np.array_equal(noisy, possible)


def test_nominal_evidence_tells_right_from_wrong_labels(arms: dict[str, PromptSet]) -> None:
    found = nominal_evidence(arms["C2"], [str(n) for n in range(50)])
    assert np.isnan(found[:, -1]).all()
    assert (found[:, 2] == pytest.approx(np.log(0.05))) and (found[:, :2] > 3).all()
