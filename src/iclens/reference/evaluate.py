"""How close a model is to the exact learner, on contexts that it was never trained on.

1. A *condition* draws contexts from the mixture, with a noise level or tasks held fixed. 2. They are rendered
and tokenised as text. 3. At `pre` of every example the model and the exact posterior give their
distributions over the same answers. 4. Both are compared, by examples seen and over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import yaml

from iclens.errors import ConfigError
from iclens.models.forward import answer_probs
from iclens.models.load import LanguageModel
from iclens.names import BELIEFS
from iclens.tables.arrays import Floats
from iclens.tables.frame import Column, Table
from iclens.tables.prompts import PromptSet
from iclens.tasks.beliefs import log_odds, read_beliefs
from iclens.tasks.mixture import Contexts, Mixture
from iclens.tasks.prompts import exact_answer_probs
from iclens.tasks.rendering import encode, fingerprint
from iclens.tasks.rules import Task
from iclens.tasks.spec import parse_task

_STREAM = 2
"""Training draws from streams (seed, 0, step) and (seed, 1, step); this one is never theirs."""
_CERTAIN = 1e-6
"""Exact probabilities closer than this to 0 or 1 have no log-odds worth comparing."""
_BATCH = 256
_COMPARED = tuple(name for name in BELIEFS if name != "copy")


class ShotTable(Table):
    """A condition by number of examples seen."""

    COLUMNS: ClassVar[dict[str, Column]] = {
        "condition": Column("str", "which contexts"),
        "n_seen": Column("int", "examples before the query"),
        "top1": Column("float", "share of contexts whose most probable answer is one the task gives at x"),
        "exact_top1": Column("float", "the same of the exact predictive"),
        "p_correct": Column("float", "mean P(an answer that the task gives at x), model"),
        "exact_p_correct": Column("float", "the same, exact"),
        "kl": Column("float", "mean KL(exact || model) over answers, nats"),
        "r": Column(
            "float", "Pearson correlation of log-odds of P(correct), model with exact, over contexts"
        ),
        "n_contexts": Column("int", "contexts"),
        "reason": Column("str", "why r is undefined, or empty"),
    }


class FidelityTable(Table):
    """A condition over all numbers of examples seen."""

    COLUMNS: ClassVar[dict[str, Column]] = {
        "condition": Column("str", "which contexts"),
        "kl": Column("float", "mean KL(exact || model) over answers, contexts and examples, nats"),
        "kl_se": Column("float", "its standard error over contexts, nats"),
        "r": Column("float", "Pearson correlation of log-odds of P(correct), model with exact"),
        "slope": Column("float", "least-squares slope of the model's log-odds of P(correct) on the exact"),
        "r_beliefs": Column("float", "correlation of log-odds over numeric, odd, double and exact together"),
        "slope_beliefs": Column("float", "slope over these beliefs together"),
        "n_contexts": Column("int", "contexts"),
        "reason": Column("str", "why a figure is undefined, or empty"),
    }


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
            raise ConfigError(f"noise level {self.noise}", f"it has {mixture.noise_levels}", "Choose one.")
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


@dataclass(frozen=True)
class Readings:
    """What the model and the exact learner answer in one condition.

    Args:
        condition: its name.
        top1, exact_top1: whether the most probable answer is one the task gives at x, [context example].
        p_correct, exact_p_correct: P(an answer the task gives at x), [context example].
        kl: KL(exact || model) in nats, [context example].
        beliefs, exact_beliefs: probabilities, [context example belief], beliefs numeric odd double exact.
    """

    condition: str
    top1: Floats
    exact_top1: Floats
    p_correct: Floats
    exact_p_correct: Floats
    kl: Floats
    beliefs: Floats
    exact_beliefs: Floats

    def by_shots(self) -> ShotTable:
        """One row per number of examples seen."""
        n_contexts, n_examples = self.kl.shape
        fits = [_line(self.exact_p_correct[:, j], self.p_correct[:, j]) for j in range(n_examples)]
        means = {
            name: getattr(self, name).mean(axis=0)
            for name in ("top1", "exact_top1", "p_correct", "exact_p_correct", "kl")
        }
        return ShotTable(
            means
            | {
                "condition": [self.condition] * n_examples,
                "n_seen": np.arange(n_examples),
                "r": [r for r, _, _ in fits],
                "n_contexts": [n_contexts] * n_examples,
                "reason": [reason for _, _, reason in fits],
            }
        )

    def overall(self) -> FidelityTable:
        """One row."""
        per_context = self.kl.mean(axis=1)
        r, slope, reason = _line(self.exact_p_correct, self.p_correct)
        r_beliefs, slope_beliefs, reason_beliefs = _line(self.exact_beliefs, self.beliefs)
        spread = per_context.std(ddof=1) if len(per_context) > 1 else np.nan
        row = {
            "condition": self.condition, "kl": per_context.mean(), "kl_se": spread / len(per_context) ** 0.5,
            "r": r, "slope": slope, "r_beliefs": r_beliefs, "slope_beliefs": slope_beliefs,
            "n_contexts": len(per_context), "reason": reason or reason_beliefs,
        }  # fmt: skip
        return FidelityTable({name: [value] for name, value in row.items()})


@dataclass(frozen=True)
class Evaluation:
    """The figures of a model.

    Args:
        shots: by condition and examples seen.
        overall: by condition.
        seed: of the contexts.
    """

    shots: ShotTable
    overall: FidelityTable
    seed: int


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
        readings.append(read(model, mixture, condition, rng, size, n_examples))
    return Evaluation(
        ShotTable.concat([r.by_shots() for r in readings]),
        FidelityTable.concat([r.overall() for r in readings]),
        seed,
    )


def read(
    model: LanguageModel,
    mixture: Mixture,
    condition: Condition,
    rng: np.random.Generator,
    n_contexts: int,
    n_examples: int,
) -> Readings:
    """Draw contexts of one condition and let the model and the exact learner answer them."""
    contexts = condition.draw(mixture, rng, n_contexts, n_examples)
    parts = []
    for start in range(0, n_contexts, _BATCH):
        rows = slice(start, start + _BATCH)
        part = Contexts(contexts.task[rows], contexts.noise[rows], contexts.x[rows], contexts.y[rows])
        parts.append(_compare(model, mixture, part))
    return Readings(condition.name, *(np.concatenate(found) for found in zip(*parts, strict=True)))


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


def _line(exact: Floats, ours: Floats) -> tuple[float, float, str]:
    """Correlation and slope of log-odds, ours on exact, and why they are undefined."""
    usable = np.isfinite(ours) & (exact > _CERTAIN) & (exact < 1 - _CERTAIN)
    a, b = log_odds(exact[usable]), log_odds(ours[usable])
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan, np.nan, f"{len(a)} log-odds that are finite, or all alike"
    a, b = a - a.mean(), b - b.mean()
    return (
        float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())),
        float((a * b).sum() / (a**2).sum()),
        "",
    )


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
            f"mixture of '{folder}'", "no mixture.yaml", "Its exact posterior is unknown."
        ) from cause
    except yaml.YAMLError as cause:
        raise ConfigError(f"{path}", f"not YAML ({cause})".replace("\n", " "), "Mend it.") from cause
    return Mixture.from_dict(declared)
