"""PromptSets: their axes, what is built for each arm, token tables and similarity."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import AutoTokenizer

from iclens.builtin.model import build_tokenizer, load_recipe
from iclens.core import PADDING, ROLES, SiteError, TableError, TaskError, TokenizerError, position
from iclens.model.load import LanguageModel
from iclens.prompts.beliefs import NUMBERS, AnswerProbs
from iclens.prompts.build import (
    PromptSet,
    TokenTable,
    build_prompts,
    draw_examples,
    exact_answer_probs,
    example_similarity,
    joined,
)
from iclens.prompts.mixture import Mixture
from iclens.prompts.render import encode_examples, parse_template, render
from iclens.prompts.tasks import parse_task

from .test_render import joining_tokenizer

TOKENIZER = build_tokenizer()
JOINING = joining_tokenizer()
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
    with pytest.raises(TokenizerError, match=r"tokens of x and of y in '\[\d+, \d+\]") as caught:
        build_prompts(
            TOKENIZER, parse_task("2x+3"), arm=arm, n_prompts=1, n_examples=3, seed=0, template="[x, y]"
        )
    assert "\n" not in str(caught.value)
    with pytest.raises(TaskError, match=r"Nearest: \{x: y\}"):
        written("{x:y}", arm)


GOLDEN = {
    ("word:opposite", "T"): [
        [0, 1007, 1002, 1064, 1004, 1005, 1044, 1006, 1002, 1052, 1004, 1005, 1072, 1006,
         1002, 1040, 1004, 1005, 1060, 1006],
    ],
    ("word:parity", "T"): [
        [0, 1007, 1002, 31, 1004, 1005, 1075, 1006, 1002, 8, 1004, 1005, 1074, 1006,
         1002, 41, 1004, 1005, 1075, 1006],
    ],
    ("letter:next", "S"): [
        [0, 1007, 1002, 1026, 1004, 1005, 1021, 1006, 1002, 1017, 1004, 1005, 1027, 1006,
         1002, 1020, 1004, 1005, 1018, 1006],
    ],
    ("word:same", "D"): [
        [0, 1007, 1002, 1064, 1004, 1005, 1064, 1006, *[1007] * 12],
        [0, 1007, 1002, 1064, 1004, 1005, 1064, 1006, 1002, 1052, 1004, 1005, 1052, 1006, *[1007] * 6],
        [0, 1007, 1002, 1064, 1004, 1005, 1064, 1006, 1002, 1064, 1004, 1005, 1064, 1006,
         1002, 1040, 1004, 1005, 1040, 1006],
    ],
}  # fmt: skip
"""Ids of the built-in model's prompt 0 of 3 examples, seed 5, recorded before words were ever respelled."""


@pytest.mark.parametrize(("spec", "arm"), GOLDEN)
def test_the_built_in_models_prompts_of_words_are_what_they_were(spec: str, arm: str) -> None:
    made = build_prompts(TOKENIZER, parse_task(spec), arm=arm, n_prompts=1, n_examples=3, seed=5)
    tokens = made.tokens if made.probes is None else made.probes[0]
    assert tokens.tolist() == GOLDEN[spec, arm]
    texts = [made.x, made.y, made.answer]
    texts += [t for t in (made.context_x, made.context_y) if t is not None]
    assert not any(" " in text for part in texts for text in part.ravel().tolist())


def joining(spec: str, arm: str = "T", template: str = "(x, y)") -> PromptSet:
    return build_prompts(
        JOINING, parse_task(spec), arm=arm, n_prompts=4, n_examples=6, seed=2, template=template
    )


SPECS = ["word:parity", "word:opposite", "letter:next", "letter:index", "2x+3"]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("arm", ["T", "S", "Q0", "D", "P", "E2"])
def test_any_tokenizer_writes_the_same_text(spec: str, arm: str) -> None:
    made = joining(spec, arm)
    plain = build_prompts(TOKENIZER, parse_task(spec), arm=arm, n_prompts=4, n_examples=6, seed=2)
    for name in ("x", "y", "answer", "context_x", "context_y"):
        assert np.array_equal(getattr(made, name), getattr(plain, name))
    for one, other in zip(made.passes(), plain.passes(), strict=True):
        for row, beside in zip(one.tokens, other.tokens, strict=True):
            ids = row[row != PADDING][1:]
            if arm != "P":  # there each newline that fills a slot up stands in one of its columns
                assert JOINING.decode(ids) == TOKENIZER.decode(beside[1:])
        for role in ("x", "pre", "lab"):
            assert (one.tokens[:, one.positions(role)] != PADDING).all()


@pytest.mark.parametrize("spec", SPECS)
def test_what_stands_behind_pre_is_predicted_there(spec: str) -> None:
    """Under `word:opposite` the comma is `pre`, as a word takes its space along; a number does not."""
    made = joining(spec)
    model = LanguageModel("none", None, JOINING, 0, False)
    answers, ids = model.answer_space(tuple(np.unique(made.y).tolist()))
    first = dict(zip(answers, ids.tolist(), strict=True))
    for j in range(made.n_examples):
        behind = made.tokens[:, made.layout.position("pre", j) + 1 : made.layout.position("lab", j) + 1]
        found = [row[row != PADDING][0] for row in behind]
        assert found == [first[y] for y in made.y[:, j].tolist()]
    (pre,) = {JOINING.decode([t]) for t in made.tokens[:, made.positions("pre")].ravel()}
    assert pre == (" " if spec in ("2x+3", "letter:index") else ",")


def test_columns_do_not_depend_on_the_draw_or_the_arm() -> None:
    for spec in SPECS:
        assert len({joining(spec, arm).layout for arm in ("T", "S", "R", "D", "P")}) == 1


def test_roles_are_those_with_a_token_in_every_example() -> None:
    assert joining("2x+3").roles == ("open", "x", "comma", "pre", "lab", "close")
    assert joining("word:parity").roles == ("open", "x", "pre", "lab", "close")
    letters = joining("letter:next")
    assert "open" not in letters.roles, "`(a` is one token"
    with pytest.raises(SiteError, match=r"role 'open': in some examples it has no token of its own"):
        letters.positions("open")


def test_joined_prompts_stand_in_common_columns() -> None:
    parts = [joining(spec) for spec in ("word:opposite", "2x+3")]
    both = joined(parts, "grid")
    assert both.layout == parts[0].layout.wider(parts[1].layout)
    for rows, part in ((both.tokens[:4], parts[0]), (both.tokens[4:], parts[1])):
        for row, own in zip(rows, part.tokens, strict=True):
            assert row[row != PADDING].tolist() == own[own != PADDING].tolist()
        for role in ("x", "pre", "lab"):
            assert (rows[:, both.positions(role)] == part.tokens[:, part.positions(role)]).all()


def test_free_templates_write_the_same_examples() -> None:
    for template in ("Q: {x}\nA: {y}\n\n", "{x} -> {y}\n"):
        made = joining("word:opposite", template=template)
        ids = made.tokens[0]
        text = JOINING.decode(ids[ids != PADDING][1:])
        assert text == render(list(zip(made.x[0], made.y[0], strict=True)), parse_template(template))
        assert (made.template == template).all()


def test_draws_without_a_tokenizer_are_not_spelled() -> None:
    _, y, answer = draw_examples(parse_task("word:parity"), arm="T", n_prompts=2, n_examples=3, seed=0)
    assert set(y.ravel()) | set(answer.ravel()) <= {"even", "odd"}


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
        ({"tokens": np.zeros((3, 25), dtype=np.int64)}, "25 columns. Their layout has 26"),
        ({"tokens": np.zeros((2, 26), dtype=np.int64)}, "tokens"),
        ({"y": np.full((3, 5), "1")}, "y"),
        ({"answer": np.full((2, 4), "1")}, "answer"),
        ({"task": np.full((3, 1), "x")}, "task"),
        ({"template": np.full(2, "[x, y]")}, "template"),
        ({"template": np.full((3, 4), "[x, y]")}, "template"),
    ],
)
def test_refused_fields(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TableError, match=message):
        PromptSet(**fields(**changes))


def test_answer_probs() -> None:
    with pytest.raises(TableError, match="AnswerProbs"):
        AnswerProbs(("1", "2"), np.zeros((3, 3)))
    probs = AnswerProbs(("7", "8"), np.log([[0.2, 0.7], [0.6, 0.1]]))
    assert probs.top().tolist() == [1, 0]
    assert probs.of(np.array(["8", "8"])) == pytest.approx([0.7, 0.1])


MODEL = Path(__file__).resolve().parents[2] / "checkpoints" / "icl-tiny"


def test_assembled_contexts_equal_encoded_ones() -> None:
    mixture = Mixture.from_dict(yaml.safe_load((MODEL / "mixture.yaml").read_text()))
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    contexts = mixture.sample(np.random.default_rng(0), 50, 6)
    tokens = TokenTable.of(mixture, tokenizer).assemble(contexts)
    assert tokens.shape == (50, 38)
    for row, x, y in zip(tokens, contexts.x, contexts.y, strict=True):
        pairs = [(mixture.inputs[i], mixture.answers[j]) for i, j in zip(x, y, strict=True)]
        np.testing.assert_array_equal(row, encode_examples(tokenizer, pairs))


def arm(code: str, task: str = "2x+3") -> PromptSet:
    return build_prompts(TOKENIZER, parse_task(task), arm=code, n_prompts=5, n_examples=6, seed=0)


def near(prompts: PromptSet) -> np.ndarray:
    found = example_similarity(prompts)
    assert found is not None
    return found


def test_inline_by_hand() -> None:
    prompts = arm("T")
    x = prompts.x.astype(int)
    found = near(prompts)
    widest = x.max() - x.min()
    assert found[1, 2] == pytest.approx(1 - abs(x[1, 2] - x[1, 3]) / widest)
    assert np.isnan(found[:, -1]).all() and np.isfinite(found[:, :-1]).all()
    assert found[:, :-1].min() >= 0 and found[:, :-1].max() <= 1


def test_a_probed_arm_asks_what_stands_last_in_the_querys_own_context() -> None:
    prompts = arm("D")
    x = prompts.x.astype(int)
    found = near(prompts)
    assert found[2, 3] == pytest.approx(1 - abs(x[2, 0] - x[2, 4]) / (x.max() - x.min()))
    np.testing.assert_allclose(near(arm("P")), near(arm("T")))


def test_words_have_no_distance() -> None:
    assert example_similarity(arm("T", "word:opposite")) is None
