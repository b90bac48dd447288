"""Declared mixtures: validation, tables, and that sampling follows the declared process."""

from typing import Any

import numpy as np
import pytest
import yaml

from iclens.builtin.model import load_recipe
from iclens.core import ConfigError, TaskError
from iclens.prompts.mixture import Mixture
from iclens.prompts.tasks import parse_task

DECLARED = """
numbers: [0, 4]
noise: {0.0: 0.5, 0.4: 0.25, 1.0: 0.25}
families:
  affine: {weight: 0.6, tasks: ["{1..2}x+{0..1}"]}
  parity: {weight: 0.2, tasks: ["odd"]}
  letter: {weight: 0.2, tasks: ["letter:next", "letter:index"]}
"""


def declared(**changes: Any) -> dict[str, Any]:
    return yaml.safe_load(DECLARED) | changes


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return Mixture.from_dict(declared())


def test_families_share_their_weight(mixture: Mixture) -> None:
    assert [task.name for task in mixture.tasks] == [
        "x",
        "x+1",
        "2x",
        "2x+1",
        "odd",
        "letter:next",
        "letter:index",
    ]
    assert mixture.prior == pytest.approx([0.15] * 4 + [0.2] + [0.1] * 2)
    assert mixture.noise_levels == (0.0, 0.4, 1.0)
    assert mixture.inputs[:6] == ("0", "1", "2", "3", "4", "a")
    assert mixture.answers[:3] == ("0", "1", "2")
    assert mixture.answers[-1] == "a"  # letter:next of z comes last


def test_tables_are_distributions(mixture: Mixture) -> None:
    for x, text in enumerate(mixture.inputs):
        takes = [task.domain == ("number" if text.isdigit() else "letter") for task in mixture.tasks]
        assert mixture.likelihood[x].sum(axis=1) == pytest.approx(np.array(takes, dtype=float))
    assert mixture.domain_prior.sum(axis=1) == pytest.approx(1.0)
    assert mixture.background.sum(axis=1) == pytest.approx(1.0)
    three = mixture.background[mixture.input_index["3"]]
    assert three[mixture.answer_index["4"]] == pytest.approx(0.15 / 0.8)
    assert three[mixture.answer_index["7"]] == pytest.approx(0.15 / 0.8 + 0.2 / 0.8 / 50)
    assert mixture.background[mixture.input_index["a"]][mixture.answer_index["b"]] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"noise": {0.0: 0.5}}, "noise prior"),
        ({"noise": {0.0: 1.5, 0.5: -0.5}}, "0 or more"),
        ({"noise": {-0.5: 1.0}}, "from 0 to 1"),
        ({"numbers": 5}, "mixture"),
        ({"noise": [0.0, 1.0]}, "mixture"),
        ({"families": {"affine": {"weight": 1.0, "tasks": ["x", "1x+0"]}}}, "stands twice"),
        ({"families": {"affine": {"weight": 0.9, "tasks": ["x"]}}}, "summing to 0.9"),
        ({"families": {"affine": {"wieght": 1.0, "tasks": ["x"]}}}, "no key 'weight'"),
        ({"families": {"affine": {"weight": 1.0, "tasks": [["x"]]}}}, "mixture"),
    ],
)
def test_refused_declarations(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        Mixture.from_dict(declared(**changes))


def test_refused_keys_and_tasks() -> None:
    without = declared()
    del without["noise"]
    with pytest.raises(ConfigError, match="no key 'noise'"):
        Mixture.from_dict(without)
    with pytest.raises(TaskError, match="2y"):
        Mixture.from_dict(declared(families={"affine": {"weight": 1.0, "tasks": ["2y"]}}))


def test_index_of_an_absent_task(mixture: Mixture) -> None:
    assert mixture.index(parse_task("2*x + 1")) == 3
    with pytest.raises(ConfigError, match="'3x'"):
        mixture.index(parse_task("3x"))


def test_sampling_follows_the_process(mixture: Mixture) -> None:
    """Frequencies lie within five standard errors of the declared probabilities."""
    n, examples = 20_000, 4
    drawn = mixture.sample(np.random.default_rng(0), n, examples)

    def agree(counts: np.ndarray, probability: np.ndarray, total: int) -> None:
        error = np.sqrt(total * probability * (1 - probability)) + 1e-9
        assert (np.abs(counts - total * probability) <= 5 * error).all()

    agree(np.bincount(drawn.task, minlength=len(mixture.tasks)), np.array(mixture.prior), n)
    agree(np.bincount(drawn.noise, minlength=3), np.array(mixture.noise_prior), n)
    for t, task in enumerate(mixture.tasks):
        for k, p in enumerate(mixture.noise_levels):
            chosen = (drawn.task == t) & (drawn.noise == k)
            x, y = drawn.x[chosen].ravel(), drawn.y[chosen].ravel()
            inputs = [mixture.input_index[text] for text in mixture.inputs_of(task)]
            uniform = np.zeros(len(mixture.inputs))
            uniform[inputs] = 1 / len(inputs)
            agree(np.bincount(x, minlength=len(uniform)), uniform, len(x))
            for at in inputs[:5]:
                expected = (1 - p) * mixture.likelihood[at, t] + p * mixture.background[at]
                labels = y[x == at]
                agree(np.bincount(labels, minlength=len(expected)), expected, len(labels))


def test_fixed_tasks_and_noise(mixture: Mixture) -> None:
    tasks, noise = np.array([3, 5, 3]), np.array([0, 0, 0])
    drawn = mixture.sample(np.random.default_rng(1), 3, 6, tasks=tasks, noise=noise)
    assert drawn.task.tolist() == [3, 5, 3]
    for row, t in enumerate(tasks):
        for x, y in zip(drawn.x[row], drawn.y[row], strict=True):
            assert mixture.answers[y] == mixture.tasks[t].answer(mixture.inputs[x])
    only_clean = mixture.sample(np.random.default_rng(1), 50, 2, noise_prior=np.array([1.0, 0, 0]))
    assert (only_clean.noise == 0).all()


def test_equal_seeds_give_equal_contexts(mixture: Mixture) -> None:
    first, second, other = (mixture.sample(np.random.default_rng(seed), 20, 5) for seed in (3, 3, 4))
    assert (first.y == second.y).all()
    assert (first.x == second.x).all()
    assert (first.x != other.x).any()


def test_the_recipes_own_mixture() -> None:
    mixture = load_recipe().declared_mixture
    assert mixture.index(parse_task("2x+3")) >= 0
    assert {task.domain for task in mixture.tasks} == {"number", "letter", "word"}
    assert {"affine", "approx", "parity", "word", "random"} <= {task.family for task in mixture.tasks}
