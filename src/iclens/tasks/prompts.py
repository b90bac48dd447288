"""Building prompt sets: the arms of a design (`arms`), paired by seed; and their exact posteriors.

Prompts of equal (seed, index) have the same inputs at the same examples in every arm; those of one arm differ
between templates only in what stands around x and y, where the tokenizer spells words alike in both
(`rendering.spelling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iclens.errors import TaskError
from iclens.names import PREFIX_LENGTH, TEMPLATE, TOKENS_PER_EXAMPLE
from iclens.tables.answers import NUMBERS, AnswerProbs
from iclens.tables.arrays import Floats, Strings
from iclens.tables.prompts import PromptSet
from iclens.tasks.arms import FILLER, Arm, Shown, default_rival, parse_arm
from iclens.tasks.mixture import Mixture
from iclens.tasks.posterior import Posterior, exact_posterior
from iclens.tasks.rendering import Place, Template, Tokenizer, encode, fingerprint, parse_template, spelling
from iclens.tasks.rules import Task, default_inputs
from iclens.tasks.spec import parse_task

Pairs = list[tuple[str, str]]
WRONG_SHARE = 0.05
"""Share of wrong labels that nominal evidence assumes."""


def build_prompts(
    tokenizer: Tokenizer,
    task: Task,
    *,
    arm: str,
    n_prompts: int,
    n_examples: int,
    seed: int,
    inputs: Sequence[str] | None = None,
    rival: str | None = None,
    template: str = TEMPLATE,
) -> PromptSet:
    """Prompts of one task and arm.

    x, y and answer are held as they are written: a word that joins the space before it has one of its own.

    Args:
        tokenizer: gives six tokens to an example.
        task: the rule.
        arm: a code of `arms.ARMS`.
        n_prompts: number of prompts.
        n_examples: examples in each, the query (the last one) included; inputs within a prompt are distinct.
        seed: prompts of equal seed are paired across arms.
        inputs: allowed x; the task's default inputs when not given.
        rival: spec of the second task of arms that show two; `default_rival` when not given.
        template: name of the template that examples are written in, one of `rendering.TEMPLATES`.

    Raises:
        TaskError: for an unknown arm or template, an arm that the task cannot have, or too few inputs.
        TokenizerError: when an example is not six tokens.
    """
    made, second = _arm(task, arm, rival)
    written = parse_template(template)
    pool = _pool(task, inputs, n_examples)
    shown = [_shown(task, second, made, pool, n_examples, (seed, i)) for i in range(n_prompts)]
    given = np.array([s.x for s in shown])
    own = np.array([[task.answer(value) for value in s.x] for s in shown])
    name, print_ = np.full(n_prompts, task.name), fingerprint(tokenizer)
    beside = second.name if second is not None else ""
    templates = None if template == TEMPLATE else np.full(n_prompts, template)
    answers = [y for one in (task, second) if one is not None for y in _word_answers(one, pool)]
    spelled_x = partial(_spelled, tokenizer, "x", written, pool)
    spelled_y = partial(_spelled, tokenizer, "y", written, answers)
    if made.contexts is None:
        labels = np.array([_labels(made, s, (seed, i)) for i, s in enumerate(shown)])
        (x,) = spelled_x(given)
        y, answer = spelled_y(labels, own)
        tokens = np.stack([encode(tokenizer, _pairs(*p), written) for p in zip(x, y, strict=True)])
        return PromptSet(name, arm, x, y, answer, tokens, seed, print_, rival=beside, template=templates)
    contexts = [made.contexts(s, _rng(made, (seed, i))) for i, s in enumerate(shown)]
    slots = np.array([len(context) for context in contexts[0]])
    cells = np.full((2, n_prompts, n_examples, n_examples - 1), FILLER, dtype=object)
    for i, context in enumerate(contexts):
        for n, pairs in enumerate(context):
            for slot, pair in enumerate(pairs):
                cells[:, i, n, slot] = pair
    labels = np.array([s.own for s in shown])
    x, context_x = spelled_x(given, cells[0])
    y, answer, context_y = spelled_y(labels, own, cells[1])
    probes = []
    for i in range(n_prompts):
        before = [_pairs(context_x[i, n, :held], context_y[i, n, :held]) for n, held in enumerate(slots)]
        probes.append(_probes(tokenizer, _pairs(x[i], y[i]), before, written))
    probes = np.stack(probes)
    return PromptSet(
        name, arm, x, y, answer, probes[:, -1], seed, print_,
        context_x, context_y, probes, slots, beside, templates,
    )  # fmt: skip


def draw_examples(
    task: Task, *, arm: str, n_prompts: int, n_examples: int, seed: int, inputs: Sequence[str] | None = None
) -> tuple[Strings, Strings, Strings]:
    """x, y and the task's own answers of `build_prompts` before they are spelled, [prompt example] each.

    Raises:
        TaskError: for an unknown or probed arm, or too few inputs.
    """
    made, second = _arm(task, arm, None)
    if made.probed:
        raise TaskError(
            f"examples of arm {arm}",
            "each query has its own context",
            "Draw those of an inline arm such as T or S; `build_prompts` makes the prompts of this one.",
        )
    pool = _pool(task, inputs, n_examples)
    shown = [_shown(task, second, made, pool, n_examples, (seed, i)) for i in range(n_prompts)]
    answers = [[task.answer(value) for value in s.x] for s in shown]
    ys = [_labels(made, s, (seed, i)) for i, s in enumerate(shown)]
    return np.array([s.x for s in shown]), np.array(ys), np.array(answers)


def _arm(task: Task, code: str, rival: str | None) -> tuple[Arm, Task | None]:
    made = parse_arm(code)
    if not made.needs_rival:
        return made, None
    second = default_rival(task) if rival is None else parse_task(rival)
    if second == task:
        raise TaskError(
            f"rival of '{task.name}'",
            "the task itself",
            "Set `rival` (prompts.rival in a study) to another task.",
        )
    return made, second


def _pool(task: Task, inputs: Sequence[str] | None, n_examples: int) -> tuple[str, ...]:
    pool = tuple(inputs) if inputs is not None else default_inputs(task.domain)
    if len(pool) < n_examples:
        raise TaskError(
            f"{n_examples} distinct inputs", f"{len(pool)} allowed", "Lower n_examples, or allow more inputs."
        )
    return pool


def _word_answers(task: Task, pool: Sequence[str]) -> list[str]:
    """The answers of a task of words over its inputs."""
    return [y for x in pool for y in task.outcomes(x)] if task.answers == "word" else []


def _shown(
    task: Task, rival: Task | None, arm: Arm, pool: tuple[str, ...], n_examples: int, key: tuple[int, int]
) -> Shown:
    # numpy pads seeds with zeros, so streams 1, 2, … are apart from that of the inputs, [seed, index].
    rng, own_rng = np.random.default_rng(list(key)), np.random.default_rng([*key, 1])
    x = [pool[i] for i in rng.permutation(len(pool))[:n_examples]]
    own = []
    for value in x:
        outcomes = task.outcomes(value)
        own.append(str(own_rng.choice(list(outcomes), p=list(outcomes.values()))))
    return Shown(task, rival, x, own, pool, arm.number)


def _rng(arm: Arm, key: tuple[int, int]) -> np.random.Generator:
    return np.random.default_rng([*key, arm.stream])


def _labels(arm: Arm, shown: Shown, key: tuple[int, int]) -> list[str]:
    return [] if arm.labels is None else arm.labels(shown, _rng(arm, key))


def _spelled(
    tokenizer: Tokenizer, place: Place, template: Template, possible: Sequence[str], *texts: NDArray[Any]
) -> tuple[Strings, ...]:
    """The texts as they are written at a place, each of its own shape; what fills a slot stays.

    Words that are `possible` have to fit as well, so that a refusal does not depend on the draw.
    """
    known = {*possible, *(text for part in texts for text in part.ravel().tolist())} - {FILLER}
    written = spelling(tokenizer, sorted(known), place, template) | {FILLER: FILLER}
    return tuple(
        np.array([written[text] for text in part.ravel().tolist()], dtype=str).reshape(part.shape)
        for part in texts
    )


def _pairs(x: Strings, y: Strings) -> Pairs:
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _probes(tokenizer: Tokenizer, queries: Pairs, contexts: list[Pairs], template: Template) -> np.ndarray:
    """Ids of every query's sequence, padded with newlines, [example pos]."""
    pairs = list(dict.fromkeys([*queries, *(p for context in contexts for p in context if p[0])]))
    ids = encode(tokenizer, pairs, template)
    prefix, cells = ids[:PREFIX_LENGTH], ids[PREFIX_LENGTH:].reshape(-1, TOKENS_PER_EXAMPLE)
    newline = prefix[-1]
    cell = {pair: cells[i] for i, pair in enumerate(pairs)}
    blank = np.full(TOKENS_PER_EXAMPLE, newline)
    rows = []
    for query, context in zip(queries, contexts, strict=True):
        if query[0] in {x for x, _ in context}:
            raise TaskError(
                f"query x={query[0]}",
                "it stands in its own context",
                "An arm may show before a query only inputs other than its own: change the arm's `contexts`.",
            )
        slots = [cell.get(pair, blank) for pair in (*context, query)]
        slots += [blank] * (len(queries) - len(slots))
        rows.append(np.concatenate([prefix, *slots]))
    return np.stack(rows)


def joined(parts: Sequence[PromptSet], arm: str) -> PromptSet:
    """Several prompt sets of one length as one, under a new arm name."""
    first = parts[0]
    fields = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("task", "x", "y", "answer", "tokens")
    )
    task, x, y, answer, tokens = fields
    template = None
    if any(p.template is not None for p in parts):
        template = np.concatenate([p.templates for p in parts])
    return PromptSet(task, arm, x, y, answer, tokens, first.seed, first.tokenizer, template=template)


def exact_answer_probs(mixture: Mixture, prompts: PromptSet) -> AnswerProbs:
    """The exact predictive before each example, over numbers 0–999 and the mixture's words.

    Raises:
        TaskError: when a prompt holds an input or label that the mixture never gives.
    """
    x = _indices(prompts.x, mixture.input_index, "input")
    predictive = _posterior(mixture, prompts).predictive(x)
    answers = NUMBERS + tuple(a for a in mixture.answers if not a.isdigit())
    place = {a: i for i, a in enumerate(answers)}
    log_prob = np.full((*x.shape, len(answers)), -np.inf)
    with np.errstate(divide="ignore"):
        log_prob[..., [place[a] for a in mixture.answers]] = np.log(predictive)
    return AnswerProbs(answers, log_prob)


def task_log_odds(mixture: Mixture, prompts: PromptSet, task: Task | None = None) -> Floats:
    """Exact log P(task | context) / P(not task | context) before each query, nats [prompt example].

    Args:
        mixture: the declared mixture.
        prompts: of one task.
        task: which task; the prompts' own by default.

    Raises:
        TaskError: when a prompt holds an input or label that the mixture never gives.
        ConfigError: when the mixture does not hold the task.
    """
    index = mixture.index(task or parse_task(str(prompts.task[0])))
    weights = _posterior(mixture, prompts).task
    own = weights[..., index]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(own) - np.log(np.delete(weights, index, axis=-1).sum(axis=-1))


def in_mixture(mixture: Mixture, prompts: PromptSet) -> NDArray[np.bool_]:
    """Whether every input and label of a prompt is one that the mixture can give, [prompt]."""
    inputs, labels = np.array(mixture.inputs), np.array(mixture.answers)
    possible = np.isin(prompts.x, inputs).all(axis=1) & np.isin(prompts.y, labels).all(axis=1)
    if prompts.context_x is not None and prompts.context_y is not None:
        for cells, known in ((prompts.context_x, inputs), (prompts.context_y, labels)):
            possible &= (np.isin(cells, known) | (cells == "")).all(axis=(1, 2))
    return np.asarray(possible)


def nominal_evidence(prompts: PromptSet, inputs: Sequence[str]) -> Floats:
    """Evidence of each label where no mixture is declared, nats [prompt example]; the last example's is NaN.

        log [((1 − ε)·1[the task's answer] + ε / K) / (1 / K)],   ε = `WRONG_SHARE`, K its distinct answers

    A stated stand-in: it tells right from wrong labels, not surprising from expected ones; it counts repeats.

    Args:
        prompts: of one task.
        inputs: x that the prompts may hold.
    """
    task = parse_task(str(prompts.task[0]))
    n_answers = len({y for x in inputs for y in task.outcomes(x)})
    right = prompts.y == prompts.answer if prompts.context_y is None else np.ones(prompts.x.shape, dtype=bool)
    found = np.log((1 - WRONG_SHARE) * right * n_answers + WRONG_SHARE)
    found[:, -1] = np.nan
    return found


def _posterior(mixture: Mixture, prompts: PromptSet) -> Posterior:
    """The exact posterior before each query, given its own context."""
    x = _indices(prompts.x, mixture.input_index, "input")
    y = _indices(prompts.y, mixture.answer_index, "label")
    if prompts.context_x is None or prompts.context_y is None:
        return exact_posterior(mixture, x, y)
    weights = []
    for n in range(prompts.n_examples):
        # What fills a slot is not of the task: the ideal learner is not shown it.
        shown = prompts.context_x[:, n] != ""
        counts = shown.sum(axis=1)
        if len(np.unique(counts)) > 1:
            raise TaskError(
                f"arm {prompts.arm}",
                "contexts of unequal length",
                "The exact posterior needs contexts of one length at every query: use another arm.",
            )
        rows = [prompts.context_x[:, n][shown], prompts.context_y[:, n][shown]]
        cx, cy = (part.reshape(prompts.n_prompts, counts[0]) for part in rows)
        xs = np.concatenate([_indices(cx, mixture.input_index, "input"), x[:, n : n + 1]], axis=1)
        ys = np.concatenate([_indices(cy, mixture.answer_index, "label"), y[:, n : n + 1]], axis=1)
        weights.append(exact_posterior(mixture, xs, ys).weights[:, -1])
    return Posterior(mixture, np.stack(weights, axis=1))


def _indices(text: Strings, index: dict[str, int], what: str) -> np.ndarray:
    strange = sorted(set(text.ravel().tolist()) - index.keys())
    if strange:
        raise TaskError(
            f"{what} '{strange[0]}'",
            "the mixture never gives it",
            "The exact posterior exists only for inputs and labels of the mixture's own tasks.",
        )
    if text.size == 0:
        return np.empty(text.shape, dtype=np.int64)
    return np.vectorize(index.__getitem__, otypes=[np.int64])(text)
