"""The mixture's draws and its exact posterior, by hand and by enumeration."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from iclens.builtin.model import load_recipe
from iclens.core import BELIEFS, ConfigError, TaskError
from iclens.prompts.beliefs import log_odds, read_beliefs
from iclens.prompts.build import PromptSet, exact_answer_probs
from iclens.prompts.mixture import Mixture, exact_posterior
from iclens.prompts.tasks import LETTERS, WORDS, Task, parse_task

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


NUMBERS = range(4)
Hypothesis = tuple[str, float]
Pair = tuple[str, str]


class Enumeration:
    """Plain enumeration of a declared process.

    Args:
        tasks: task → prior weight.
        noise: noise level → prior weight.
        domains: domain → its inputs.
    """

    def __init__(
        self, tasks: dict[Task, float], noise: dict[float, float], domains: Mapping[str, Sequence[str]]
    ) -> None:
        self.tasks, self.noise, self.domains = tasks, noise, domains
        self._noisy: dict[Pair, float] = {}

    def rivals(self, x: str) -> dict[Task, float]:
        """The prior over the tasks that take `x`, renormalised."""
        kept = {task: w for task, w in self.tasks.items() if x in self.domains[task.domain]}
        total = sum(kept.values())
        return {task: w / total for task, w in kept.items()}

    def noisy(self, x: str, y: str) -> float:
        """P(y | x, the example is noisy)."""
        if (x, y) not in self._noisy:
            self._noisy[x, y] = sum(w * task.outcomes(x).get(y, 0.0) for task, w in self.rivals(x).items())
        return self._noisy[x, y]

    def example(self, task: Task, p: float, x: str, y: str) -> float:
        """P(y | x, task, noise level), summed over whether the example is noisy."""
        return (1 - p) * task.outcomes(x).get(y, 0.0) + p * self.noisy(x, y)

    def joint(self, examples: Sequence[Pair], query: str) -> dict[tuple[Task, float], float]:
        """P(task, noise level | examples, and that `query` is of the task's domain)."""
        weights = {}
        for (task, prior), (p, rate) in product(self.rivals(query).items(), self.noise.items()):
            weight = prior * rate
            for x, y in examples:
                weight *= self.example(task, p, x, y)
            weights[task, p] = weight
        total = sum(weights.values())
        return {hypothesis: w / total for hypothesis, w in weights.items()}

    def posterior(self, examples: Sequence[Pair], query: str) -> dict[Hypothesis, float]:
        """The same by the task's name."""
        return {(task.name, p): w for (task, p), w in self.joint(examples, query).items()}

    def predictive(self, examples: Sequence[Pair], query: str) -> dict[str, float]:
        """P(y | query, examples)."""
        answers = {y for task in self.rivals(query) for y in task.outcomes(query)}
        return {
            y: sum(
                w * self.example(task, p, query, y) for (task, p), w in self.joint(examples, query).items()
            )
            for y in answers
        }

    def beliefs(self, examples: Sequence[Pair], query: str, task: Task, copied: str) -> dict[str, float]:
        """Log-odds of every belief, in nats."""
        found = self.predictive(examples, query)
        numbers = {int(y): w for y, w in found.items() if y.isdigit()}
        numeric = sum(numbers.values())
        near = sum(w for y, w in numbers.items() if abs(y - (task.slope or 0) * int(query)) <= 5)
        return {
            "numeric": odds(numeric),
            "odd": odds(sum(w for y, w in numbers.items() if y % 2 == 1) / numeric),
            "double": odds(near / numeric) if task.slope is not None else math.nan,
            "exact": odds(found.get(task.answer(query), 0.0)),
            "copy": odds(found.get(copied, 0.0)),
        }


def odds(p: float) -> float:
    """log(p / (1 - p)), p kept 1e-9 away from 0 and 1."""
    p = min(max(p, 1e-9), 1 - 1e-9)
    return math.log(p / (1 - p))


@st.composite
def weights(draw: st.DrawFn, n: int) -> list[float]:
    parts = [draw(st.integers(1, 9)) for _ in range(n)]
    return [part / sum(parts) for part in parts]


@st.composite
def random_tasks(draw: st.DrawFn) -> list[Task]:
    """Tables of random outcomes over x in 0..3, some of them words, and sometimes letter tasks."""
    tasks = []
    for i in range(draw(st.integers(2, 4))):
        table = {}
        for x in NUMBERS:
            ys = draw(
                st.lists(st.sampled_from(["0", "1", "2", "3", "even"]), min_size=1, max_size=3, unique=True)
            )
            table[str(x)] = dict(zip(ys, draw(weights(len(ys))), strict=True))
        slope = draw(st.sampled_from([None, 0, 1, 2, 3]))
        tasks.append(Task(f"t{i}", "number", "random", "number", table.__getitem__, slope, 0))
    if draw(st.booleans()):
        tasks += [parse_task("letter:next"), parse_task("letter:index")]
    return tasks


@st.composite
def problems(draw: st.DrawFn) -> tuple[Mixture, Enumeration, list[tuple[str, str]]]:
    tasks = draw(random_tasks())
    prior = draw(weights(len(tasks)))
    levels = sorted(draw(st.sets(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), min_size=1)))
    rates = draw(weights(len(levels)))
    mixture = Mixture(tuple(tasks), tuple(prior), tuple(levels), tuple(rates), NUMBERS)
    domains = {"number": [str(x) for x in NUMBERS], "letter": list(LETTERS)}
    enumeration = Enumeration(
        dict(zip(tasks, prior, strict=True)), dict(zip(levels, rates, strict=True)), domains
    )
    # a possible context: every label follows one task, so that some hypothesis gives it
    task = draw(st.sampled_from(tasks))
    xs = draw(st.lists(st.sampled_from(domains[task.domain]), min_size=1, max_size=5))
    return mixture, enumeration, [(x, draw(st.sampled_from(sorted(task.outcomes(x))))) for x in xs]


def as_prompts(pairs: list[tuple[str, str]], task: Task) -> PromptSet:
    x, y = (np.array([list(side)]) for side in zip(*pairs, strict=True))
    answer = np.array([[task.answer(value) for value in x[0]]])
    tokens = np.zeros((1, 2 + 6 * len(pairs)), dtype=np.int64)
    return PromptSet(np.array([task.name]), "T", x, y, answer, tokens, 0, "none")


def indices(mixture: Mixture, pairs: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    x = np.array([[mixture.input_index[x] for x, _ in pairs]])
    return x, np.array([[mixture.answer_index[y] for _, y in pairs]])


def check_posterior(mixture: Mixture, enumeration: Enumeration, pairs: list[tuple[str, str]]) -> None:
    x, y = indices(mixture, pairs)
    found = exact_posterior(mixture, x, y)
    predictive = found.predictive(x)[0]
    for j, (query, _) in enumerate(pairs):
        expected = enumeration.posterior(pairs[:j], query)
        for t, task in enumerate(mixture.tasks):
            for k, p in enumerate(mixture.noise_levels):
                assert found.weights[0, j, t, k] == pytest.approx(
                    expected.get((task.name, p), 0.0), abs=1e-10
                )
        answers = enumeration.predictive(pairs[:j], query)
        assert predictive[j].sum() == pytest.approx(1.0)
        for a, answer in enumerate(mixture.answers):
            assert predictive[j, a] == pytest.approx(answers.get(answer, 0.0), abs=1e-10)


def check_beliefs(
    mixture: Mixture, enumeration: Enumeration, pairs: list[tuple[str, str]], task: Task
) -> None:
    prompts = as_prompts(pairs, task)
    copied = np.full(prompts.x.shape, mixture.answers[0])
    probs = exact_answer_probs(mixture, prompts)
    found = log_odds(read_beliefs(probs, task, prompts.x, prompts.answer, copied))[0]
    for j, (query, _) in enumerate(pairs):
        expected = enumeration.beliefs(pairs[:j], query, task, mixture.answers[0])
        for b, name in enumerate(BELIEFS):
            assert found[j, b] == pytest.approx(expected[name], abs=1e-5, nan_ok=True), (j, name)


@settings(max_examples=60)
@given(problems())
def test_posterior_and_predictive_equal_enumeration(
    problem: tuple[Mixture, Enumeration, list[tuple[str, str]]],
) -> None:
    check_posterior(*problem)


@settings(max_examples=40)
@given(problems())
def test_log_odds_of_every_belief_equal_enumeration(
    problem: tuple[Mixture, Enumeration, list[tuple[str, str]]],
) -> None:
    mixture, enumeration, pairs = problem
    numbers = [task for task in mixture.tasks if task.domain == "number"]
    inside = all(x.isdigit() for x, _ in pairs)
    positive = inside and all(
        any(y.isdigit() for task in enumeration.rivals(x) for y in task.outcomes(x)) for x, _ in pairs
    )
    for task in numbers if positive else []:
        check_beliefs(mixture, enumeration, pairs, task)


def built_in() -> tuple[Mixture, Enumeration]:
    mixture = load_recipe().declared_mixture
    domains = {"number": [str(x) for x in range(50)], "letter": list(LETTERS), "word": list(WORDS)}
    tasks = dict(zip(mixture.tasks, mixture.prior, strict=True))
    return mixture, Enumeration(
        tasks, dict(zip(mixture.noise_levels, mixture.noise_prior, strict=True)), domains
    )


@pytest.mark.parametrize(
    ("spec", "xs", "wrong"),
    [
        ("2x+3", [28, 7, 41, 0], {}),
        ("odd", [3, 30, 12], {}),
        ("word:parity", [4, 9], {}),
        ("x%7", [48, 20, 33], {1: "77"}),
    ],
)
def test_built_in_mixture_equals_enumeration(spec: str, xs: list[int], wrong: dict[int, str]) -> None:
    mixture, enumeration = built_in()
    task = parse_task(spec)
    pairs = [(str(x), wrong.get(j, task.answer(str(x)))) for j, x in enumerate(xs)]
    check_posterior(mixture, enumeration, pairs)
    check_beliefs(mixture, enumeration, pairs, task)


def test_built_in_words_equal_enumeration() -> None:
    mixture, enumeration = built_in()
    check_posterior(mixture, enumeration, [("hot", "cold"), ("up", "up"), ("day", "night")])
    check_posterior(mixture, enumeration, [("a", "b"), ("z", "a"), ("c", "3")])


def test_golden_of_two_tasks() -> None:
    """Prior 0.2 and likelihood 0.8 against 0.2: 0.2, 0.5, 0.8, 16/17; log-odds steps of log 4."""

    def giving(name: str, p_one: float) -> Task:
        return Task(name, "number", "random", "number", lambda _x: {"0": 1 - p_one, "1": p_one})

    mixture = Mixture((giving("task", 0.8), giving("rival", 0.2)), (0.2, 0.8), (0.0,), (1.0,), range(2))
    ones = np.full((1, 4), mixture.answer_index["1"])
    belief = exact_posterior(mixture, np.zeros((1, 4), dtype=np.int64), ones).task[0, :, 0]
    assert belief == pytest.approx([0.2, 0.5, 0.8, 16 / 17])
    assert np.diff(log_odds(belief)) == pytest.approx([np.log(4)] * 3)


def test_noiseless_affine_maps_are_known_after_two_examples() -> None:
    tasks = tuple(parse_task(f"{a}x+{b}") for a in (1, 2, 3) for b in range(4))
    mixture = Mixture(tasks, (1 / 12,) * 12, (0.0,), (1.0,), range(10))
    pairs = [("1", "4"), ("5", "12"), ("0", "2")]
    belief = exact_posterior(mixture, *indices(mixture, pairs)).task[0]
    assert belief[0] == pytest.approx([1 / 12] * 12)
    assert sorted(belief[1][belief[1] > 0]) == pytest.approx([1 / 3] * 3)  # x+3, 2x+2, 3x+1
    assert belief[2, mixture.index(parse_task("2x+2"))] == pytest.approx(1.0)


def test_an_impossible_label_leaves_no_belief() -> None:
    mixture = Mixture((parse_task("x"), parse_task("2x")), (0.5, 0.5), (0.0, 0.5), (0.5, 0.5), range(5))
    belief = exact_posterior(mixture, *indices(mixture, [("1", "1"), ("3", "8"), ("2", "2")])).task[0]
    assert np.isfinite(belief[:2]).all()
    assert np.isnan(belief[2]).all()


def test_order_of_examples_does_not_matter() -> None:
    mixture, _ = built_in()
    rng = np.random.default_rng(0)
    pairs = [("3", "9"), ("10", "23"), ("8", "1"), ("44", "91"), ("20", "43")]
    last = [exact_posterior(mixture, *indices(mixture, pairs)).weights[0, -1]]
    for _ in range(3):
        shuffled = [pairs[i] for i in rng.permutation(4)] + pairs[4:]
        last.append(exact_posterior(mixture, *indices(mixture, shuffled)).weights[0, -1])
    for other in last[1:]:
        assert other == pytest.approx(last[0])
