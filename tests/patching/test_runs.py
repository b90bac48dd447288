"""Run A, run B and A*: nothing leaks, and moving can be told from copying."""

import numpy as np
import pytest

from iclens.core import EditError, TaskError
from iclens.model.load import LanguageModel
from iclens.patching.runs import Runs, build_runs
from iclens.prompts.build import PromptSet
from iclens.prompts.render import encode_examples
from iclens.prompts.tasks import parse_task

TASKS = ("2x+3", "x//2+4", "x%2", "word:opposite", "word:size", "letter:next")


def rendered(model: LanguageModel, prompts: PromptSet) -> np.ndarray:
    pairs = [
        list(zip(x, y, strict=True)) for x, y in zip(prompts.x.tolist(), prompts.y.tolist(), strict=True)
    ]
    return np.stack([encode_examples(model.tokenizer, line) for line in pairs])


@pytest.mark.parametrize("recipient", ["zero examples", "S arm", "R arm"])
@pytest.mark.parametrize("task", TASKS)
def test_queries_differ_and_x_B_stands_nowhere_in_A(make_runs, task, recipient):
    runs = make_runs(recipient, task)
    assert not (runs.donor.x == runs.x_B[:, None]).any()
    assert (runs.answer != runs.donor_answer).all()
    assert (runs.answer == [runs.task.answer(x) for x in runs.x_B]).all()
    assert (runs.donor_answer == [runs.task.answer(x) for x in runs.donor.x[:, -1]]).all()
    assert all(len(set(line)) == len(line) for line in runs.donor.x.tolist())


@pytest.mark.parametrize("recipient", ["zero examples", "S arm"])
def test_tokens_are_those_of_the_examples(tiny_model, make_runs, recipient):
    runs = make_runs(recipient)
    for prompts in (runs.donor, runs.recipient, runs.target):
        np.testing.assert_array_equal(prompts.tokens, rendered(tiny_model, prompts))


def test_a_star_is_the_donors_context_with_the_recipients_query(make_runs):
    runs = make_runs()
    np.testing.assert_array_equal(runs.target.x[:, :-1], runs.donor.x[:, :-1])
    np.testing.assert_array_equal(runs.target.y[:, :-1], runs.donor.y[:, :-1])
    np.testing.assert_array_equal(runs.target.x[:, -1], runs.x_B)


def test_the_s_arm_shows_the_same_inputs_with_deranged_labels(make_runs):
    runs = make_runs("S arm")
    np.testing.assert_array_equal(runs.recipient.x[:, :-1], runs.donor.x[:, :-1])
    np.testing.assert_array_equal(np.sort(runs.recipient.y[:, :-1]), np.sort(runs.donor.y[:, :-1]))
    assert (runs.recipient.y[:, :-1] != runs.donor.y[:, :-1]).all()


def test_contexts_are_nested_and_the_query_stays(make_runs):
    few, many = (make_runs("zero examples", donor_examples=n) for n in (2, 6))
    np.testing.assert_array_equal(few.donor.x[:, :2], many.donor.x[:, :2])
    np.testing.assert_array_equal(few.x_B, many.x_B)
    assert (few.n_seen, many.n_seen) == (2, 6)
    assert few.recipient_name == "zero examples"


def test_no_context_at_all_can_be_a_donor(make_runs):
    runs = make_runs("zero examples", donor_examples=0)
    assert runs.donor.n_examples == 1
    assert (runs.donor.x[:, 0] != runs.x_B).all()


@pytest.mark.parametrize(
    ("task", "options", "error", "needle"),
    [
        ("2x+3", {"recipient": "T arm"}, EditError, "unknown"),
        ("2x+3", {"recipient": "S arm", "donor_examples": 1}, EditError, "deranged"),
        ("odd", {}, TaskError, "no single answer"),
        ("17", {}, TaskError, "whatever x_A"),
        ("2x+3", {"donor_examples": 49}, TaskError, "50 inputs"),
    ],
)
def test_impossible_runs_are_refused(tiny_model, task, options, error, needle):
    with pytest.raises(error, match=needle):
        build_runs(tiny_model.tokenizer, parse_task(task), n_prompts=2, **options)


def test_runs_that_do_not_belong_together_are_refused(make_runs):
    runs = make_runs()
    fewer = runs.donor.select(np.arange(3))
    with pytest.raises(EditError, match="prompts"):
        Runs(runs.task, fewer, runs.recipient, runs.target)
    with pytest.raises(EditError, match="not the recipient's"):
        Runs(runs.task, runs.donor, runs.recipient, runs.donor)
