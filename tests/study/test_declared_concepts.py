"""The documented example of a concept of one's own, from its YAML to the tables; and what cannot be asked."""

import re

import numpy as np
import pytest
import yaml

import iclens
from iclens.concepts.language import FORMAT
from iclens.core import ConfigError, IclensError
from iclens.prompts.tasks import parse_task
from iclens.study.config import StudyConfig, demo_config, parse_study_config
from iclens.study.grid import asked_concepts, check_concepts, task_grid, task_inputs
from iclens.study.inputs import CHECKOUT
from iclens.study.pipeline import run_study

DOCUMENT = (CHECKOUT / "docs" / "transforms.md").read_text(encoding="utf-8")
EXAMPLE = next(b for b in re.findall(r"```yaml\n(.*?)```", DOCUMENT, flags=re.DOTALL) if "declare" in b)
NAME = "multiple of three"


def with_transforms(config: StudyConfig, **section) -> StudyConfig:
    declared = config.model_dump(mode="json")
    declared["transforms"] |= section
    return StudyConfig.model_validate(declared)


def test_the_documented_example_works_end_to_end(small) -> None:
    declared = yaml.safe_load(EXAMPLE)["transforms"]["declare"]
    outcome = run_study(
        with_transforms(
            small.config(("n_prompts: 2, n_examples: 6", "n_prompts: 20, n_examples: 6")), declare=declared
        ),
        small.runs,
        lambda event: None,
        last="identify",
    )
    table = iclens.open(outcome.run).transforms
    own = table[table["concept"] == NAME]
    assert set(own["role"]) == {"pre", "lab"}
    assert len(own) == len(table[table["concept"] == "odd"])
    assert own["auroc"].between(0, 1).all(), own["reason"].unique()
    assert set(own["worst_confound"]) <= {
        "x multiple of three", "odd", "magnitude", "last digit 5 or more",
    }  # fmt: skip


def test_the_documented_example_labels_what_it_says(small) -> None:
    from iclens.concepts.language import rows_of

    declared = yaml.safe_load(EXAMPLE)["transforms"]["declare"]
    config = with_transforms(small.config(), declare=declared)
    own = next(one for one in asked_concepts(config) if one.name == NAME)
    rules = {"2x+3": parse_task("2x+3"), "word:parity": parse_task("word:parity")}
    rows = rows_of(
        np.array(list(rules)), np.array([["3", "4", "12"], ["3", "4", "12"]]),
        np.array([["9", "11", "27"], ["odd", "even", "even"]]), rules,
    )  # fmt: skip
    assert own.contrast.label(rows).tolist() == [1, -1, 1, 0, 0, 0]
    assert own.confounds[0].label(rows).tolist() == [1, -1, 1, 1, -1, 1]
    assert own.meaning == "y is a multiple of three"


def changed(**concept) -> dict:
    return {"concepts": {"mine": {"positive": "y > 5", "confounds": ["odd"]} | concept}}


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"declare": changed(postive="y")}, "unknown key 'postive'. Nearest: positive"),
        ({"declare": {"concept": {}}}, "unknown key 'concept'. Nearest: concepts"),
        ({"declare": {"concepts": {"mine": {"meaning": "x"}}}}, "no key 'positive'"),
        ({"declare": changed(confounds=["od"])}, "confound 'od': unknown. Nearest: odd"),
        ({"declare": changed(positive="y >")}, "not an expression"),
        ({"declare": changed(positive="y - x")}, "'y - x' is neither true nor false"),
        ({"declare": changed(positive="[1, 2]")}, "a list by itself"),
        ({"declare": changed(within="[1, 2]")}, "a list by itself"),
        ({"declare": changed(positive="not " * 3000 + "numeric_y")}, "expression 'not not"),
        ({"declare": changed(confounds=None)}, "no list of them"),
        ({"declare": changed(confounds="odd")}, "no list of them"),
        ({"declare": changed(confounds=3)}, "no list of them"),
        ({"declare": changed(confounds=[["odd"]])}, "unknown"),
        ({"declare": changed(confounds=["mine"])}, "the concept itself"),
        ({"declare": {"concepts": {"": {"positive": "y > 3"}}}}, "the name is taken"),
        ({"declare": changed(positive="z > 3")}, "no fact 'z'"),
        (
            {"declare": changed(confounds=[{"name": "a", "positive": "y", "within": "x"}])},
            "unknown key 'within'",
        ),
        ({"declare": {"concepts": {"odd": {"positive": "y > 3"}}}}, "the name is taken"),
        ({"declare": {"concepts": {"task identity": {"positive": "y > 3"}}}}, "the name is taken"),
        ({"concepts": []}, "Give at least one concept"),
        ({"declare": {"contrasts": {"odd": {"positive": "x > 3"}}}}, "the name is taken"),
        (
            {"declare": {"contrasts": {"mine": {"positive": "x > 3"}}}, "concepts": ["mine"]},
            "a contrast, not a",
        ),
        ({"declare": changed(within="z")}, "concept 'mine' of transforms.declare, within: expression 'z'"),
        ({"concepts": ["oddd"]}, "transforms.concepts: 'oddd': unknown. Nearest: odd"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused_in_one_line(section, says) -> None:
    text = demo_config().yaml()
    declared = yaml.safe_load(text)
    declared["transforms"] |= section
    with pytest.raises(IclensError) as refused:
        parse_study_config(yaml.safe_dump(declared), "study.yaml")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("positive", "says"),
    [
        ("y >= 0", "no row of the discovery tasks is negative, so it is constant there"),
        ("y > 2000", "no row of the discovery tasks is positive"),
        ("task == 'nothing'", "no row of the discovery tasks is positive"),
    ],
)
def test_a_constant_concept_is_refused_before_anything_is_loaded(positive, says) -> None:
    config = with_transforms(demo_config(), declare=changed(positive=positive))
    with pytest.raises(ConfigError, match=says):
        check_concepts(config)


def test_a_belief_that_is_not_followed_is_refused() -> None:
    config = with_transforms(demo_config(), declare=changed(belief="od"))
    with pytest.raises(ConfigError, match="belief 'od' of 'mine': not followed"):
        check_concepts(config)


def test_a_concept_is_asked_once() -> None:
    assert [one.name for one in asked_concepts(with_transforms(demo_config(), concepts=["odd", "odd"]))] == [
        "odd"
    ]


def test_a_concept_that_is_positive_and_negative_at_once_is_refused() -> None:
    config = with_transforms(demo_config(), declare=changed(positive="y > 5", negative="y > 9"))
    with pytest.raises(ConfigError, match="rows are positive and negative"):
        check_concepts(config)


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({"tasks": ["2x", "3x"]}, "one side of the split is empty"),
        ({"tasks": ["2x", "2x"]}, "stands twice"),
        ({"tasks": ["2x", "2y"]}, "no such task"),
        ({"answers": [0, 9]}, "16 distinct inputs of"),
        ({"templates": ["(x y)"]}, "template"),
        ({"answers": [99, 0]}, "the first is larger"),
        ({"n_examples": 5}, "n_examples"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_in_one_line(grid, says) -> None:
    declared = demo_config().model_dump(mode="json")
    declared["grid"] |= grid
    with pytest.raises(IclensError) as refused:
        check_concepts(parse_study_config(yaml.safe_dump(declared), "study.yaml"))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_inputs_keep_answers_inside_the_range() -> None:
    config = demo_config()
    inputs = task_inputs(config, parse_task("4x+10"))
    assert [inputs[0], inputs[-1]] == ["0", "22"]  # 4 · 22 + 10 = 98
    assert len(task_inputs(config, parse_task("letter:next"))) == 26
    assert len(task_grid(config).names) == 83


def test_with_several_templates_every_concept_has_to_beat_the_format() -> None:
    declared = demo_config().model_dump(mode="json")
    declared["grid"]["templates"] = ["(x, y)", "[x, y]"]
    asked = asked_concepts(StudyConfig.model_validate(declared))
    assert all(one.confounds[-1] is FORMAT for one in asked if one.confounds)
    assert asked[-1].confounds == ()
    assert FORMAT not in asked_concepts(demo_config())[0].confounds


def test_a_template_that_the_tokenizer_cannot_write_is_refused_before_training(small) -> None:
    declared = small.config().model_dump(mode="json")
    declared["grid"]["templates"] = ["[x, y]"]
    events = []
    with pytest.raises(IclensError, match=r"tokens of x and of y in '\[\d+, \d+\]"):
        run_study(StudyConfig.model_validate(declared), small.runs, events.append)
    assert not any(event.state == "progress" for event in events)
