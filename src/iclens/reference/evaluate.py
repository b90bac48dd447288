"""How close a model is to the exact learner, on contexts that it was never trained on.

1. A *condition* draws contexts from the mixture, with a noise level or tasks held fixed. 2. They are rendered
and tokenised as text. 3. At `pre` of every example the model and the exact posterior give their
distributions over the same answers. 4. Both are compared, by examples seen and over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from iclens.errors import ConfigError
from iclens.models.forward import answer_probs
from iclens.models.load import LanguageModel
from iclens.names import BELIEFS
from iclens.reference.fidelity import Evaluation, FidelityTable, Readings, ShotTable, TaskTable
from iclens.tables.arrays import Floats
from iclens.tables.prompts import PromptSet
from iclens.tasks.beliefs import read_beliefs
from iclens.tasks.mixture import Contexts, Mixture
from iclens.tasks.prompts import exact_answer_probs
from iclens.tasks.rendering import encode, fingerprint
from iclens.tasks.rules import Task
from iclens.tasks.spec import parse_task

_STREAM = 2
"""Training draws from streams (seed, 0, step) and (seed, 1, step); these two are never theirs."""
_TASK_STREAM = 3
_BATCH = 256
_COMPARED = tuple(name for name in BELIEFS if name != "copy")


@dataclass(frozen=True)
class Condition:
    """A kind of context.

    Args:
        name: how the tables call it.
        tasks: specs to draw from, in proportion to their prior; every task when empty.
        noise: the noise level; drawn from its prior when None.
    """

    name: str
    tasks: tuple[str, ...] = ()
    noise: float | None = None

    def draw(self, mixture: Mixture, rng: np.random.Generator, n_contexts: int, n_examples: int) -> Contexts:
        """Draw contexts.

        Raises:
            ConfigError: when the mixture holds no such task or noise level.
        """
        chosen = [mixture.index(parse_task(spec)) for spec in self.tasks] or list(range(len(mixture.tasks)))
        weights = np.array(mixture.prior)[chosen]
        tasks = rng.choice(chosen, size=n_contexts, p=weights / weights.sum())
        if self.noise is None:
            return mixture.sample(rng, n_contexts, n_examples, tasks=tasks)
        if self.noise not in mixture.noise_levels:
            raise ConfigError(
                f"noise level {self.noise}", f"the mixture has {mixture.noise_levels}", "Choose one of these."
            )
        level = np.full(n_contexts, mixture.noise_levels.index(self.noise))
        return mixture.sample(rng, n_contexts, n_examples, tasks=tasks, noise=level)


def standard_conditions(mixture: Mixture, held_out: Sequence[str] = ()) -> tuple[Condition, ...]:
    """The mixture as it is, then its parts: noiseless families, a noisy level, `held_out` tasks noiseless.

    Noiseless means the lowest noise level; the noisy level is the one nearest to 0.6. Tasks that the
    mixture lacks are left out.
    """
    clean = min(mixture.noise_levels)
    noisy = min(mixture.noise_levels, key=lambda level: abs(level - 0.6))
    found = [Condition("whole mixture")]
    known = {task.name for task in mixture.tasks}
    if "2x+3" in known:
        found.append(Condition("2x+3, noiseless", ("2x+3",), clean))
    found.append(Condition(f"all tasks, noise {noisy:g}", (), noisy))
    families = (
        ("words and letters", "word"),
        ("parity only", "parity"),
        ("approximately affine", "approx"),
    )
    for name, family in families:
        members = tuple(task.name for task in mixture.tasks if task.family == family)
        if members:
            found.append(Condition(name, members, clean))
    if apart := tuple(task for task in held_out if task in known):
        found.append(Condition("held out from interchange", apart, clean))
    return tuple(found)


def evaluate(
    model: LanguageModel,
    mixture: Mixture,
    conditions: Sequence[Condition],
    *,
    n_contexts: int = 2000,
    n_examples: int = 16,
    seed: int = 1,
) -> Evaluation:
    """Compare a model with the exact learner in every condition.

    Args:
        model: a whole model.
        mixture: what it was trained on.
        conditions: which contexts; the first gets `n_contexts`, each other one a quarter of that.
        n_contexts: contexts of the first condition.
        n_examples: examples in each, so that 0 … n_examples − 1 are seen.
        seed: of the contexts.
    """
    readings = []
    for i, condition in enumerate(conditions):
        rng = np.random.default_rng([seed, _STREAM, i])
        size = n_contexts if i == 0 else max(2, n_contexts // 4)
        contexts = condition.draw(mixture, rng, size, n_examples)
        readings.append(read(model, mixture, condition.name, contexts))
    return Evaluation(
        ShotTable.concat([r.by_shots() for r in readings]),
        FidelityTable.concat([r.overall() for r in readings]),
        seed,
    )


def evaluate_tasks(
    model: LanguageModel, mixture: Mixture, *, n_contexts: int = 32, n_examples: int = 16, seed: int = 1
) -> TaskTable:
    """Every task by itself, in contexts of the lowest noise level: which ones the model has learned.

    Args:
        model: a whole model.
        mixture: what it was trained on.
        n_contexts: contexts per task.
        n_examples: examples in each, the query included.
        seed: of the contexts.
    """
    tasks = np.repeat(np.arange(len(mixture.tasks)), n_contexts)
    noise = np.full(len(tasks), int(np.argmin(mixture.noise_levels)))
    rng = np.random.default_rng([seed, _TASK_STREAM])
    drawn = mixture.sample(rng, len(tasks), n_examples, tasks=tasks, noise=noise)
    found = read(model, mixture, "each task", drawn)

    def per_task(values: Floats) -> Floats:
        return values.reshape(len(mixture.tasks), n_contexts, n_examples).mean(axis=1)

    last = {
        name: per_task(getattr(found, name))[:, -1]
        for name in ("top1", "exact_top1", "p_correct", "exact_p_correct")
    }
    return TaskTable(
        last
        | {
            "task": [task.name for task in mixture.tasks],
            "n_seen": [n_examples - 1] * len(mixture.tasks),
            "kl": per_task(found.kl).mean(axis=1),
            "n_contexts": [n_contexts] * len(mixture.tasks),
        }
    )


def read(model: LanguageModel, mixture: Mixture, condition: str, contexts: Contexts) -> Readings:
    """Let the model and the exact learner answer drawn contexts; `condition` names them in tables."""
    parts = []
    for start in range(0, len(contexts.task), _BATCH):
        rows = slice(start, start + _BATCH)
        part = Contexts(contexts.task[rows], contexts.noise[rows], contexts.x[rows], contexts.y[rows])
        parts.append(_compare(model, mixture, part))
    return Readings(condition, *(np.concatenate(found) for found in zip(*parts, strict=True)))


def _compare(model: LanguageModel, mixture: Mixture, contexts: Contexts) -> tuple[Floats, ...]:
    """The fields of `Readings`, in order."""
    prompts = context_prompts(model, mixture, contexts)
    exact = exact_answer_probs(mixture, prompts)
    words = tuple(y for y in mixture.answers if not y.isdigit())
    ours = answer_probs(model, prompts.tokens, prompts.positions("pre"), extra=words)
    column = {y: i for i, y in enumerate(ours.answers)}
    given = [column[y] for y in mixture.answers]
    right = mixture.likelihood[contexts.x, contexts.task[:, None]] > 0
    allowed = np.zeros(ours.log_prob.shape, dtype=bool)
    allowed[..., given] = right
    with np.errstate(invalid="ignore"):
        terms = np.exp(exact.log_prob) * (exact.log_prob - ours.log_prob)
    kl = np.where(np.isneginf(exact.log_prob), 0.0, terms).sum(axis=-1)
    found = []
    for probs in (ours, exact):
        top = np.take_along_axis(allowed, probs.top()[..., None], axis=-1)[..., 0]
        found.append((top.astype(float), (np.exp(probs.log_prob) * allowed).sum(axis=-1)))
    beliefs = [np.full((*contexts.x.shape, len(BELIEFS)), np.nan) for _ in range(2)]
    for index in np.unique(contexts.task):
        rows = np.flatnonzero(contexts.task == index)
        for probs, out in zip((ours, exact), beliefs, strict=True):
            chosen = type(probs)(probs.answers, probs.log_prob[rows])
            out[rows] = read_beliefs(chosen, mixture.tasks[index], prompts.x[rows], prompts.answer[rows])
    kept = [BELIEFS.index(name) for name in _COMPARED]
    (top, p), (exact_top, exact_p) = found
    return top, exact_top, p, exact_p, kl, beliefs[0][..., kept], beliefs[1][..., kept]


def context_prompts(model: LanguageModel, mixture: Mixture, contexts: Contexts) -> PromptSet:
    """Drawn contexts as text and tokens; `answer` is the most probable answer of the context's task."""
    tasks: list[Task] = [mixture.tasks[t] for t in contexts.task]
    x, y = np.array(mixture.inputs)[contexts.x], np.array(mixture.answers)[contexts.y]
    answer = np.array([[task.answer(value) for value in row] for task, row in zip(tasks, x, strict=True)])
    tokens = [encode(model.tokenizer, list(zip(a, b, strict=True))) for a, b in zip(x, y, strict=True)]
    names = np.array([task.name for task in tasks])
    return PromptSet(names, "mixture", x, y, answer, np.stack(tokens), 0, fingerprint(model.tokenizer))


def load_mixture(folder: Path) -> Mixture:
    """The mixture that a model folder declares in `mixture.yaml`.

    Raises:
        ConfigError: when the file is missing or declares no mixture.
    """
    path = folder / "mixture.yaml"
    try:
        declared = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise ConfigError(
            f"mixture of '{folder}'",
            "no mixture.yaml",
            "The exact posterior needs one: name the folder of a model that `iclens reference train` made.",
        ) from cause
    except yaml.YAMLError as cause:
        raise ConfigError(
            f"{path}",
            f"not YAML ({cause})".replace("\n", " "),
            "Correct the YAML where it says, or put the published file there.",
        ) from cause
    return Mixture.from_dict(declared)
