"""A mixture of tasks with weights, and the exact posterior over them after each example."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iclens.core import ConfigError
from iclens.prompts.tasks import DOMAINS, Task, default_inputs, expand, parse_task

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Contexts:
    """Drawn contexts, as indices into a mixture's inputs, answers, tasks and noise levels."""

    task: Ints  # [context]
    noise: Ints  # [context]
    x: Ints  # [context example]
    y: Ints  # [context example]


@dataclass(frozen=True)
class Mixture:
    """Tasks with prior weights, and noise levels with theirs."""

    tasks: tuple[Task, ...]  # distinct tasks
    prior: tuple[float, ...]  # [task], sums to 1
    noise_levels: tuple[float, ...]  # probability that an example's y comes from another task
    noise_prior: tuple[float, ...]  # [noise level], sums to 1
    numbers: range = range(50)  # x values of the number domain

    def __post_init__(self) -> None:
        for what, weights, items in (
            ("task prior", self.prior, self.tasks),
            ("noise prior", self.noise_prior, self.noise_levels),
        ):
            if len(weights) != len(items) or not np.isclose(sum(weights), 1.0):
                raise ConfigError(
                    what,
                    f"{len(weights)} weights summing to {sum(weights):.4g}",
                    "Give one weight to each, with sum 1.",
                )
            if min(weights) < 0:
                raise ConfigError(what, f"weight {min(weights)}", "Every weight has to be 0 or more.")
        if not all(0 <= level <= 1 for level in self.noise_levels):
            raise ConfigError(
                "noise levels", f"{self.noise_levels}", "Every noise level has to be from 0 to 1."
            )
        if len({task.name for task in self.tasks}) != len(self.tasks):
            raise ConfigError("mixture tasks", "a task stands twice", "List each task once.")
        if pairs := [task.name for task in self.tasks if task.inputs]:
            remedy = "List rules: the exact posterior is over whole domains."
            raise ConfigError("mixture tasks", f"'{pairs[0]}' has inputs of its own", remedy)

    @classmethod
    def from_dict(cls, declared: dict[str, Any]) -> Mixture:
        """Build from `{numbers: [first, last], noise: {level: weight}, families: {name: {weight, tasks}}}`.

        Task patterns may hold ranges (`{1..5}x+{0..11}`); a family's weight is shared equally.
        """
        try:
            first, last = (int(bound) for bound in declared["numbers"])
            levels = tuple(float(level) for level in declared["noise"])
            rates = tuple(float(weight) for weight in declared["noise"].values())
            families = declared["families"]
            tasks: list[Task] = []
            prior: list[float] = []
            for family in families.values():
                members = [parse_task(spec) for pattern in family["tasks"] for spec in expand(pattern)]
                tasks += members
                prior += [family["weight"] / len(members)] * len(members)
        except KeyError as missing:
            raise ConfigError(
                "mixture",
                f"no key {missing}",
                "Give numbers, noise and families; each family has weight and tasks.",
            ) from missing
        except (TypeError, ValueError, AttributeError) as cause:
            raise ConfigError(
                "mixture",
                str(cause),
                "Write numbers: [first, last], noise: {level: weight}, families: {name: {weight, tasks}}.",
            ) from cause
        return cls(tuple(tasks), tuple(prior), levels, rates, range(first, last + 1))

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Every x of every domain in use."""
        used = [d for d in DOMAINS if any(task.domain == d for task in self.tasks)]
        return tuple(x for d in used for x in default_inputs(d, self.numbers))

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """Every y that any task can give: numbers in order, then words in order of appearance."""
        seen = {y: None for task in self.tasks for x in self.inputs_of(task) for y in task.outcomes(x)}
        numbers = sorted((y for y in seen if y.isdigit()), key=int)
        return (*numbers, *(y for y in seen if not y.isdigit()))

    @cached_property
    def input_index(self) -> dict[str, int]:
        """x → its index in `inputs`."""
        return {x: i for i, x in enumerate(self.inputs)}

    @cached_property
    def answer_index(self) -> dict[str, int]:
        """y → its index in `answers`."""
        return {y: i for i, y in enumerate(self.answers)}

    def inputs_of(self, task: Task) -> tuple[str, ...]:
        """The inputs of the task's domain."""
        return default_inputs(task, self.numbers)

    @cached_property
    def likelihood(self) -> Floats:
        """P(y | x, τ) as [input task answer]; zero rows where x is outside τ's domain."""
        table = np.zeros((len(self.inputs), len(self.tasks), len(self.answers)))
        for t, task in enumerate(self.tasks):
            for x in self.inputs_of(task):
                for y, probability in task.outcomes(x).items():
                    table[self.input_index[x], t, self.answer_index[y]] = probability
        return table

    @cached_property
    def domain_prior(self) -> Floats:
        """π(τ | x): the prior over tasks once x shows the domain, as [input task]; rows sum to 1."""
        weights = (self.likelihood.sum(axis=2) > 0) * np.array(self.prior)
        return weights / weights.sum(axis=1, keepdims=True)

    @cached_property
    def background(self) -> Floats:
        """q(y | x), the answer of a noisy example, as [input answer]; rows sum to 1."""
        return np.einsum("xt,xta->xa", self.domain_prior, self.likelihood)

    def index(self, task: Task) -> int:
        """The task's index in `tasks`."""
        if task not in self.tasks:
            raise ConfigError(
                f"task '{task.name}'",
                "not in the mixture",
                "The exact posterior exists only for tasks that mixture.yaml lists: name one of these.",
            )
        return self.tasks.index(task)

    def sample(
        self, rng: np.random.Generator, n_contexts: int, n_examples: int,
        *, tasks: Ints | None = None, noise: Ints | None = None, noise_prior: Floats | None = None,
    ) -> Contexts:  # fmt: skip
        """Draw contexts from the mixture; `n_examples` counts the query.

        Task and noise indices [context] may be fixed rather than drawn, or the noise drawn from another prior
        (a curriculum).
        """
        if tasks is None:
            tasks = rng.choice(len(self.tasks), size=n_contexts, p=np.array(self.prior))
        if noise is None:
            p = np.array(self.noise_prior) if noise_prior is None else noise_prior
            noise = rng.choice(len(self.noise_levels), size=n_contexts, p=p)
        low, size = (bound[tasks][:, None] for bound in self._input_ranges)
        xs = low + rng.integers(0, size, (len(tasks), n_examples))
        noisy = rng.random(xs.shape) < np.array(self.noise_levels)[noise][:, None]
        ys = np.where(
            noisy, self._draw(rng, self.background[xs]), self._draw(rng, self.likelihood[xs, tasks[:, None]])
        )
        return Contexts(tasks, noise, xs, ys)

    @cached_property
    def _input_ranges(self) -> tuple[Ints, Ints]:
        """First input of each task and how many follow each other from it, [task] each."""
        allowed = [np.flatnonzero(self.likelihood[:, t].sum(axis=1) > 0) for t in range(len(self.tasks))]
        return np.array([a[0] for a in allowed]), np.array([len(a) for a in allowed])

    @staticmethod
    def _draw(rng: np.random.Generator, probability: Floats) -> Ints:
        """One index per row from [... answer] probabilities."""
        total = probability.cumsum(axis=-1)
        return (rng.random(total.shape[:-1])[..., None] * total[..., -1:] >= total).sum(axis=-1)


@dataclass(frozen=True)
class Posterior:
    """Exact beliefs before each example of each context."""

    mixture: Mixture  # the process that drew the contexts
    weights: Floats  # P(τ, p | the examples before j), [context example task noise]

    @property
    def task(self) -> Floats:
        """P(τ | examples before j) as [context example task]."""
        return self.weights.sum(axis=-1)

    @property
    def noise(self) -> Floats:
        """P(p | examples before j) as [context example noise]."""
        return self.weights.sum(axis=-2)

    def mixing(self) -> tuple[Floats, Floats]:
        """Weights of each task's own answer [context example task], of the background [context example]."""
        levels = np.array(self.mixture.noise_levels)
        return self.weights @ (1 - levels), (self.weights @ levels).sum(axis=-1)

    def predictive(self, x: Ints) -> Floats:
        """P(y | x, examples before j) as [context example answer].

        `x` holds input indices, [context example], of the same domain as the context's own.
        """
        own, other = self.mixing()
        flat = own.reshape(-1, own.shape[-1])
        return mix_answers(self.mixture, flat, other.reshape(-1), x.reshape(-1)).reshape(*x.shape, -1)


def exact_posterior(mixture: Mixture, x: Ints, y: Ints) -> Posterior:
    """The posterior over tasks and noise levels before each example.

    NaN after an example that no hypothesis can give, such as a shuffled label. x and y are indices into the
    mixture's inputs and answers, [context example].
    """
    levels = np.array(mixture.noise_levels)
    own = mixture.likelihood[x, :, y][..., None]
    other = mixture.background[x, y][..., None, None]
    with np.errstate(divide="ignore"):
        evidence = np.log((1 - levels) * own + levels * other)
        start = np.log(mixture.domain_prior[x[:, 0]][:, None, :, None] * np.array(mixture.noise_prior))
    before = np.concatenate([np.zeros_like(evidence[:, :1]), evidence[:, :-1]], axis=1)
    log_weights = start + np.cumsum(before, axis=1)
    with np.errstate(invalid="ignore"):
        weights = np.exp(log_weights - log_weights.max(axis=(2, 3), keepdims=True))
    return Posterior(mixture, weights / weights.sum(axis=(2, 3), keepdims=True))


def mix_answers(mixture: Mixture, own: Floats, other: Floats, x: Ints) -> Floats:
    """P(y | x) = Σ_τ own(τ) P(y | x, τ) + other · q(y | x), row by row, [row answer].

    `own` is [row task], `other` [row], and `x` the input index of each row, [row].
    """
    out = other[:, None] * mixture.background[x]
    for value in np.unique(x):
        rows = np.flatnonzero(x == value)
        out[rows] += own[rows] @ mixture.likelihood[value]
    return out
