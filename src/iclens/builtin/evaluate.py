"""Evaluation of the built-in model against exact posteriors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path

import numpy as np
import torch
import yaml

from iclens.core import BELIEFS, ConfigError, Site, position
from iclens.model.load import LanguageModel
from iclens.model.run import answer_probs, record
from iclens.model.tail import Tail
from iclens.prompts.beliefs import log_odds, read_beliefs
from iclens.prompts.build import PromptSet, build_prompts, exact_answer_probs
from iclens.prompts.mixture import Contexts, Mixture
from iclens.prompts.render import encode_examples, fingerprint
from iclens.prompts.tasks import Task, parse_task
from iclens.table import Float, Floats, Int, Ints, Str, Strings, Table

_CERTAIN = 1e-6
"""Exact probabilities closer than this to 0 or 1 have no log-odds worth comparing."""


class ShotTable(Table):
    """A condition by number of examples seen."""

    condition = Str("which contexts")
    n_seen = Int("examples before the query")
    top1 = Float("share of contexts whose most probable answer is one the task gives at x")
    exact_top1 = Float("the same of the exact predictive")
    p_correct = Float("mean P(an answer that the task gives at x), model")
    exact_p_correct = Float("the same, exact")
    kl = Float("mean KL(exact || model) over answers, nats")
    r = Float("Pearson correlation of log-odds of P(correct), model with exact, over contexts")
    n_contexts = Int("contexts")
    reason = Str("why r is undefined, or empty")


class FidelityTable(Table):
    """A condition over all numbers of examples seen."""

    condition = Str("which contexts")
    kl = Float("mean KL(exact || model) over answers, contexts and examples, nats")
    kl_se = Float("its standard error over contexts, nats")
    r = Float("Pearson correlation of log-odds of P(correct), model with exact")
    slope = Float("least-squares slope of the model's log-odds of P(correct) on the exact")
    r_beliefs = Float("correlation of log-odds over numeric, odd, double and exact together")
    slope_beliefs = Float("slope over these beliefs together")
    n_contexts = Int("contexts")
    reason = Str("why a figure is undefined, or empty")


class TaskTable(Table):
    """Every task by itself, noiseless."""

    task = Str("the contexts' task")
    n_seen = Int("examples seen where top1 and p_correct are read")
    top1 = Float("share of contexts whose most probable answer is one the task gives at x")
    exact_top1 = Float("the same of the exact predictive")
    p_correct = Float("mean P(an answer that the task gives at x), model")
    exact_p_correct = Float("the same, exact")
    kl = Float("mean KL(exact || model) over answers and all examples, nats")
    n_contexts = Int("contexts")


@dataclass(frozen=True)
class Readings:
    """What the model and the exact learner answer in one condition."""

    condition: str  # its name
    # top1, exact_top1: whether the most probable answer is one the task gives at x, [context example]
    top1: Floats
    exact_top1: Floats
    # p_correct, exact_p_correct: P(an answer the task gives at x), [context example]
    p_correct: Floats
    exact_p_correct: Floats
    kl: Floats  # KL(exact || model) in nats, [context example]
    # beliefs, exact_beliefs: probabilities, [context example belief], beliefs numeric odd double exact
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
    """The figures of a model."""

    shots: ShotTable  # by condition and examples seen
    overall: FidelityTable  # by condition
    seed: int  # of the contexts


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


_STREAM = 2
"""Training draws from streams (seed, 0, step) and (seed, 1, step); these two are never theirs."""
_TASK_STREAM = 3
_BATCH = 256
_COMPARED = tuple(name for name in BELIEFS if name != "copy")


@dataclass(frozen=True)
class Condition:
    """A kind of context."""

    name: str  # how the tables call it
    tasks: tuple[str, ...] = ()  # specs to draw from, in proportion to their prior; every task when empty
    noise: float | None = None  # the noise level; drawn from its prior when None

    def draw(self, mixture: Mixture, rng: np.random.Generator, n_contexts: int, n_examples: int) -> Contexts:
        """Draw contexts; a task or noise level that the mixture does not hold is refused."""
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
    conditions = [Condition("whole mixture")]
    known = {task.name for task in mixture.tasks}
    if "2x+3" in known:
        conditions.append(Condition("2x+3, noiseless", ("2x+3",), clean))
    conditions.append(Condition(f"all tasks, noise {noisy:g}", (), noisy))
    families = (("words and letters", "word"), ("parity only", "parity"), ("approximately affine", "approx"))
    for name, family in families:
        members = tuple(task.name for task in mixture.tasks if task.family == family)
        if members:
            conditions.append(Condition(name, members, clean))
    if apart := tuple(task for task in held_out if task in known):
        conditions.append(Condition("held out from interchange", apart, clean))
    return tuple(conditions)


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
        mixture: what it was trained on.
        conditions: which contexts; the first gets `n_contexts`, each other one a quarter of that.
        n_examples: examples in each, so that 0 … n_examples − 1 are seen.
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
    """Every task by itself, in contexts of the lowest noise level: which ones the model has learned."""
    tasks = np.repeat(np.arange(len(mixture.tasks)), n_contexts)
    noise = np.full(len(tasks), int(np.argmin(mixture.noise_levels)))
    rng = np.random.default_rng([seed, _TASK_STREAM])
    drawn = mixture.sample(rng, len(tasks), n_examples, tasks=tasks, noise=noise)
    figures = read(model, mixture, "each task", drawn)

    def per_task(values: Floats) -> Floats:
        return values.reshape(len(mixture.tasks), n_contexts, n_examples).mean(axis=1)

    last = {
        name: per_task(getattr(figures, name))[:, -1]
        for name in ("top1", "exact_top1", "p_correct", "exact_p_correct")
    }
    return TaskTable(
        last
        | {
            "task": [task.name for task in mixture.tasks],
            "n_seen": [n_examples - 1] * len(mixture.tasks),
            "kl": per_task(figures.kl).mean(axis=1),
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
    tokens = [
        encode_examples(model.tokenizer, list(zip(a, b, strict=True))) for a, b in zip(x, y, strict=True)
    ]
    names = np.array([task.name for task in tasks])
    return PromptSet(names, "mixture", x, y, answer, np.stack(tokens), 0, fingerprint(model.tokenizer))


def load_mixture(folder: str | Path) -> Mixture:
    """The mixture that a model folder declares in `mixture.yaml`; a ConfigError where it declares none."""
    path = Path(folder) / "mixture.yaml"
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


_INTERCHANGE_STREAM = 9
"""Random stream of the recipients, apart from those of `build_prompts`."""


class InterchangeTable(Table):
    """Means over pairs of a donor and a recipient that has seen no example."""

    task = Str("the donor's task")
    layer = Int("block whose resid_pre was replaced; the number of blocks means the last resid_post")
    n_seen = Int("examples that the donor had seen")
    p_task = Float("mean P(the donor's task on the recipient's own x)")
    p_copy = Float("mean P(the donor's own answer)")
    unpatched = Float("mean P(the task on the recipient's x) without a patch")
    n_prompts = Int("pairs")


@dataclass(frozen=True)
class _Pairs:
    """Donors, and a recipient's x for each."""

    task: Strings  # the donors' task, [row]
    n_seen: Ints  # examples the donor had seen, [row]
    values: Floats  # the donors' resid_pre at `pre`, [row layer d_model]
    x: Strings  # recipients' inputs, [row]
    own: Strings  # the task's answer to the recipient's x, [row]
    donated: Strings  # the task's answer to the donor's x, [row]


def interchange_figures(
    model: LanguageModel,
    mixture: Mixture,
    tasks: Sequence[str],
    *,
    n_seen: Sequence[int] = (0, 1, 2, 4, 8, 12, 15),
    n_prompts: int = 24,
    n_examples: int = 16,
    seed: int = 1,
) -> InterchangeTable:
    """P(the donor's task on the recipient's own x) and P(copy), by layer and the donor's examples.

    Donor prompts have `n_examples` examples, of which donors have seen each of `n_seen`.
    """
    parts = [
        _pairs(model, mixture, parse_task(task), list(n_seen), n_prompts, n_examples, seed) for task in tasks
    ]
    pairs = _Pairs(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(_Pairs)))
    donor_answer, copy, unpatched = _answers(model, mixture, pairs)
    rows = []
    for task, layer, j in product(dict.fromkeys(pairs.task.tolist()), range(model.n_blocks + 1), n_seen):
        at = (pairs.task == task) & (pairs.n_seen == j)
        figures = [part.mean() for part in (donor_answer[at, layer], copy[at, layer], unpatched[at])]
        rows.append((task, layer, j, *figures, at.sum()))
    return InterchangeTable(dict(zip(InterchangeTable.COLUMNS, zip(*rows, strict=True), strict=True)))


def _answers(model: LanguageModel, mixture: Mixture, pairs: _Pairs) -> tuple[Floats, Floats, Floats]:
    """P(task on own x) [row layer], P(copy) [row layer], unpatched P(task on own x) [row]."""
    words = tuple(y for y in mixture.answers if not y.isdigit())
    cut = position("pre", 0) + 1
    donor_answer, copy = np.empty(pairs.values.shape[:2]), np.empty(pairs.values.shape[:2])
    unpatched = np.empty(len(pairs.x))
    for x in np.unique(pairs.x):
        rows = np.flatnonzero(pairs.x == x)
        tail = Tail(model, encode_examples(model.tokenizer, [(str(x), "0")])[:cut], words)
        alone = tail.run(tail.resid_pre(model.n_blocks).expand(len(rows), -1), model.n_blocks)
        unpatched[rows] = alone.of(pairs.own[rows])
        for layer in range(model.n_blocks + 1):
            donated = torch.from_numpy(pairs.values[rows, layer]).to(model.device())
            patched = tail.run(donated, layer)
            donor_answer[rows, layer] = patched.of(pairs.own[rows])
            copy[rows, layer] = patched.of(pairs.donated[rows])
    return donor_answer, copy, unpatched


def _pairs(
    model: LanguageModel,
    mixture: Mixture,
    task: Task,
    n_seen: list[int],
    n_prompts: int,
    n_examples: int,
    seed: int,
) -> _Pairs:
    """Donors of one task; a recipient's x is not in the donor's prompt and has another answer."""
    pool = mixture.inputs_of(task)
    prompts = build_prompts(
        model.tokenizer, task, arm="T", n_prompts=n_prompts, n_examples=n_examples, seed=seed, inputs=pool
    )
    sites = [Site(layer, "resid_pre") for layer in range(model.n_blocks)]
    sites.append(Site(model.n_blocks - 1, "resid_post"))
    recorded = record(model, prompts.tokens, sites, prompts.positions("pre")[n_seen])
    x: list[str] = []
    for row in range(n_prompts):
        rng = np.random.default_rng([seed, row, _INTERCHANGE_STREAM])
        unseen = [value for value in pool if value not in prompts.x[row]]
        for j in n_seen:
            options = [value for value in unseen if task.answer(value) != prompts.answer[row, j]]
            x.append(str(rng.choice(options)))
    values = np.stack([recorded[site] for site in sites], axis=2)
    return _Pairs(
        np.full(len(x), task.name),
        np.tile(n_seen, n_prompts),
        values.reshape(len(x), len(sites), -1),
        np.array(x),
        np.array([task.answer(value) for value in x]),
        prompts.answer[:, n_seen].ravel(),
    )
