"""Prompt sets: the arms are paired, and only labels differ."""

import numpy as np
import pytest

from iclens.errors import TaskError, TokenizerError
from iclens.names import ROLES, position
from iclens.reference.recipe import load_recipe
from iclens.reference.tokenizer import build_tokenizer
from iclens.tables.answers import NUMBERS
from iclens.tables.prompts import PromptSet
from iclens.tasks.prompts import build_prompts, exact_answer_probs, joined
from iclens.tasks.spec import parse_task

TOKENIZER = build_tokenizer()
EXTENDED = build_tokenizer()
EXTENDED.add_tokens(["[", "]\n", "{", ":", "}\n", "<", ";", ">\n"])


def prompts(spec: str = "2x+3", arm: str = "T", seed: int = 0, n_prompts: int = 12) -> PromptSet:
    return build_prompts(TOKENIZER, parse_task(spec), arm=arm, n_prompts=n_prompts, n_examples=10, seed=seed)


def test_the_task_arm_shows_the_task() -> None:
    made = prompts()
    assert (made.y == made.answer).all()
    assert (made.answer == np.char.mod("%d", 2 * made.x.astype(int) + 3)).all()
    assert all(len(set(row)) == 10 for row in made.x)
    assert set(made.task) == {"2x+3"}
    assert (made.n_prompts, made.n_examples, made.tokens.shape) == (12, 10, (12, 62))
    for role, shown in (("x", made.x), ("lab", made.y)):
        for j, at in enumerate(made.positions(role)):
            assert at == position(role, j)
            assert [TOKENIZER.decode([t]) for t in made.tokens[:, at]] == shown[:, j].tolist()


@pytest.mark.parametrize("spec", ["2x+3", "odd", "2x~5", "letter:next"])
def test_the_shuffled_arm_has_the_same_labels_in_other_places(spec: str) -> None:
    task, shuffled = prompts(spec), prompts(spec, "S")
    assert (task.x == shuffled.x).all()
    assert (task.answer == shuffled.answer).all()
    for own, moved in zip(task.y, shuffled.y, strict=True):
        assert sorted(own) == sorted(moved)
    differing = [position("lab", j) for j in range(10)]
    same = np.setdiff1d(np.arange(62), differing)
    assert (task.tokens[:, same] == shuffled.tokens[:, same]).all()
    if spec in ("2x+3", "letter:next"):  # one label per x, so a moved label is another label
        assert (task.y != shuffled.y).all()


def test_the_random_arm_draws_from_the_tasks_answers() -> None:
    task, random = prompts(n_prompts=60), prompts(arm="R", n_prompts=60)
    assert (task.x == random.x).all()
    answers = {str(2 * x + 3) for x in range(50)}
    assert set(random.y.ravel()) <= answers
    assert len(set(random.y.ravel())) > 45
    assert (random.y == task.y).mean() < 0.1


def test_labels_of_a_stochastic_task_do_not_follow_the_inputs() -> None:
    """The draws of x and of y are apart: over many prompts, the first label is uniform given the first x."""
    made = build_prompts(TOKENIZER, parse_task("odd"), arm="T", n_prompts=600, n_examples=2, seed=0)
    x, y = made.x[:, 0].astype(float), made.y[:, 0].astype(float)
    assert abs(np.corrcoef(x, y)[0, 1]) < 5 / np.sqrt(600)
    assert {int(v) % 2 for v in made.y.ravel()} == {1}
    assert len(set(made.y.ravel())) > 45


def test_seeds_pair_prompts_and_indices_are_stable() -> None:
    assert (prompts(n_prompts=3).x == prompts(n_prompts=12).x[:3]).all()
    assert (prompts(seed=0).x != prompts(seed=1).x).any()
    assert (prompts("3x").x == prompts("2x+3").x).all()


def test_refused() -> None:
    with pytest.raises(TaskError, match="arm 'Q'"):
        prompts(arm="Q")
    with pytest.raises(TaskError, match="3 allowed"):
        build_prompts(
            TOKENIZER, parse_task("x"), arm="T", n_prompts=1, n_examples=4, seed=0, inputs=["1", "2", "3"]
        )
    with pytest.raises(TaskError, match="no answer"):
        prompts("20-x")


def test_select_and_join() -> None:
    first, second = prompts("2x+3"), prompts("3x")
    both = joined([first, second], "K")
    assert both.arm == "K"
    assert both.task.tolist() == ["2x+3"] * 12 + ["3x"] * 12
    picked = both.select(np.array([13, 0]))
    assert (picked.x == np.stack([second.x[1], first.x[0]])).all()
    assert picked.task.tolist() == ["3x", "2x+3"]


def written(template: str, arm: str = "T", spec: str = "2x+3") -> PromptSet:
    return build_prompts(
        EXTENDED, parse_task(spec), arm=arm, n_prompts=3, n_examples=6, seed=5, template=template
    )


def differing(one: np.ndarray, other: np.ndarray) -> set[str]:
    """Roles at which the tokens of two sequences [... pos] differ anywhere; "" stands for the prefix."""
    at = np.flatnonzero((one != other).reshape(-1, one.shape[-1]).any(axis=0))
    return {ROLES[(i - 2) % 6] if i >= 2 else "" for i in at.tolist()}


@pytest.mark.parametrize(
    ("template", "roles"),
    [
        ("[x, y]", {"open", "close"}),
        ("{x: y}", {"open", "comma", "close"}),
        ("<x; y>", {"open", "comma", "close"}),
    ],
)
@pytest.mark.parametrize(("arm", "spec"), [("T", "2x~5"), ("S", "letter:next")])
def test_templates_differ_only_around_x_and_y(template: str, roles: set[str], arm: str, spec: str) -> None:
    plain, other = written("(x, y)", arm, spec), written(template, arm, spec)
    both = joined([plain, other], "grid")
    assert (both.x[:3] == both.x[3:]).all() and (both.y[:3] == both.y[3:]).all()
    assert (both.answer[:3] == both.answer[3:]).all()
    assert both.templates.tolist() == ["(x, y)"] * 3 + [template] * 3
    assert differing(both.tokens[:3], both.tokens[3:]) == roles
    assert both.select(np.array([4, 1])).templates.tolist() == [template, "(x, y)"]


@pytest.mark.parametrize("arm", ["D", "P", "E2", "A-"])
def test_probed_arms_are_written_in_a_template_too(arm: str) -> None:
    plain, other = written("(x, y)", arm), written("{x: y}", arm)
    assert other.template is not None and set(other.template) == {"{x: y}"}
    assert (plain.context_x == other.context_x).all() and (plain.context_y == other.context_y).all()
    assert plain.probes is not None and other.probes is not None
    assert differing(plain.probes, other.probes) == {"open", "comma", "close"}
    newline = EXTENDED.convert_tokens_to_ids("\n")
    assert ((plain.probes == newline) == (other.probes == newline)).all(), "empty slots stay newlines"
    marks = {EXTENDED.decode([t]) for t in np.unique(other.probes)} & {*"(){}[]<>,:;", ")\n", "}\n"}
    assert marks == {"{", ":", "}\n"}


def test_no_template_is_named_where_all_are_in_the_default() -> None:
    plain = written("(x, y)")
    assert plain.template is None
    assert joined([plain, plain], "K").template is None
    assert plain.templates.tolist() == ["(x, y)"] * 3
    np.testing.assert_array_equal(
        joined([written("<x; y>"), plain], "K").template, ["<x; y>"] * 3 + ["(x, y)"] * 3
    )


@pytest.mark.parametrize("arm", ["T", "D"])
def test_a_template_that_the_tokenizer_lacks_or_nobody_knows_is_refused(arm: str) -> None:
    with pytest.raises(TokenizerError, match=r"six tokens for '\[\d+, \d+\]") as caught:
        build_prompts(
            TOKENIZER, parse_task("2x+3"), arm=arm, n_prompts=1, n_examples=3, seed=0, template="[x, y]"
        )
    assert "\n" not in str(caught.value)
    with pytest.raises(TaskError, match=r"Nearest: \{x: y\}"):
        written("{x:y}", arm)


def test_exact_answers_of_prompts() -> None:
    mixture = load_recipe().declared_mixture
    exact = exact_answer_probs(mixture, prompts(n_prompts=4))
    assert exact.answers[:1000] == NUMBERS
    assert np.exp(exact.log_prob).sum(axis=-1) == pytest.approx(1.0)
    own = exact.of(prompts(n_prompts=4).answer)
    assert (own[:, -1] > own[:, 1]).all()
    assert (own[:, -1] > 0.9).all()


def test_exact_answers_are_undefined_outside_the_mixture() -> None:
    mixture = load_recipe().declared_mixture
    far = build_prompts(
        TOKENIZER, parse_task("x"), arm="T", n_prompts=1, n_examples=2, seed=0, inputs=["700", "701"]
    )
    with pytest.raises(TaskError, match="input '700'"):
        exact_answer_probs(mixture, far)
    with pytest.raises(TaskError, match="label"):
        exact_answer_probs(mixture, prompts("20x+0", n_prompts=2))
