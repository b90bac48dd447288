"""Building prompt sets: the arms of a design, paired by seed.

Prompts of equal (seed, index) have the same inputs in the same places in every arm; only labels differ.

    T  the task's own labels                    S  the same labels, deranged within the prompt
    R  labels drawn uniformly from the answers that the task gives anywhere
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iclens.errors import TaskError
from iclens.tables.answers import NUMBERS, AnswerProbs
from iclens.tables.arrays import Strings
from iclens.tables.prompts import PromptSet
from iclens.tasks.mixture import Mixture
from iclens.tasks.posterior import exact_posterior
from iclens.tasks.rendering import Tokenizer, encode, fingerprint
from iclens.tasks.rules import Task, default_inputs

ARMS = ("T", "S", "R")


def build_prompts(
    tokenizer: Tokenizer,
    task: Task,
    *,
    arm: str,
    n_prompts: int,
    n_examples: int,
    seed: int,
    inputs: Sequence[str] | None = None,
) -> PromptSet:
    """Prompts of one task and arm.

    Args:
        tokenizer: gives six tokens to an example.
        task: the rule.
        arm: one of `ARMS`.
        n_prompts: number of prompts.
        n_examples: examples in each, the query (the last one) included; inputs within a prompt are distinct.
        seed: prompts of equal seed are paired across arms.
        inputs: allowed x; the task's default inputs when not given.

    Raises:
        TaskError: for an unknown arm or too few inputs.
        TokenizerError: when an example is not six tokens.
    """
    x, y, answers = draw_examples(
        task, arm=arm, n_prompts=n_prompts, n_examples=n_examples, seed=seed, inputs=inputs
    )
    tokens = np.stack([encode(tokenizer, list(zip(*pair, strict=True))) for pair in zip(x, y, strict=True)])
    return PromptSet(np.full(n_prompts, task.name), arm, x, y, answers, tokens, seed, fingerprint(tokenizer))


def draw_examples(
    task: Task, *, arm: str, n_prompts: int, n_examples: int, seed: int, inputs: Sequence[str] | None = None
) -> tuple[Strings, Strings, Strings]:
    """x, y and the task's own answers of `build_prompts` before they are tokens, [prompt example] each.

    Raises:
        TaskError: for an unknown arm or too few inputs.
    """
    pool = tuple(inputs) if inputs is not None else default_inputs(task.domain)
    if arm not in ARMS:
        raise TaskError(f"arm '{arm}'", "unknown", f"One of {', '.join(ARMS)}.")
    if len(pool) < n_examples:
        raise TaskError(f"{n_examples} distinct inputs", f"{len(pool)} allowed", "Ask for fewer examples.")
    xs, ys, answers = [], [], []
    for index in range(n_prompts):
        rng = np.random.default_rng([seed, index])
        x = [pool[i] for i in rng.permutation(len(pool))[:n_examples]]
        answer = [task.answer(value) for value in x]
        xs.append(x)
        answers.append(answer)
        ys.append(_labels(task, arm, x, pool, (seed, index)))
    return np.array(xs), np.array(ys), np.array(answers)


def _labels(task: Task, arm: str, x: list[str], pool: Sequence[str], key: tuple[int, int]) -> list[str]:
    # numpy pads seeds with zeros, so streams 1, 2, … are apart from that of the inputs, [seed, index].
    own_rng, rng = np.random.default_rng([*key, 1]), np.random.default_rng([*key, 2 + ARMS.index(arm)])
    if arm == "R":
        options = sorted({y for value in pool for y in task.outcomes(value)})
        return [options[i] for i in rng.integers(0, len(options), len(x))]
    own = []
    for value in x:
        outcomes = task.outcomes(value)
        own.append(str(own_rng.choice(list(outcomes), p=list(outcomes.values()))))
    if arm == "T":
        return own
    order = rng.permutation(len(x))
    while len(x) > 1 and (order == np.arange(len(x))).any():
        order = rng.permutation(len(x))
    return [own[i] for i in order]


def joined(parts: Sequence[PromptSet], arm: str) -> PromptSet:
    """Several prompt sets of one length as one, under a new arm name."""
    first = parts[0]
    fields = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("task", "x", "y", "answer", "tokens")
    )
    task, x, y, answer, tokens = fields
    return PromptSet(task, arm, x, y, answer, tokens, first.seed, first.tokenizer)


def exact_answer_probs(mixture: Mixture, prompts: PromptSet) -> AnswerProbs:
    """The exact predictive before each example, over numbers 0–999 and the mixture's words.

    Raises:
        TaskError: when a prompt holds an input or label that the mixture never gives.
    """
    x = _indices(prompts.x, mixture.input_index, "input")
    y = _indices(prompts.y, mixture.answer_index, "label")
    predictive = exact_posterior(mixture, x, y).predictive(x)
    answers = NUMBERS + tuple(a for a in mixture.answers if not a.isdigit())
    place = {a: i for i, a in enumerate(answers)}
    log_prob = np.full((*x.shape, len(answers)), -np.inf)
    with np.errstate(divide="ignore"):
        log_prob[..., [place[a] for a in mixture.answers]] = np.log(predictive)
    return AnswerProbs(answers, log_prob)


def _indices(text: Strings, index: dict[str, int], what: str) -> np.ndarray:
    strange = sorted(set(text.ravel().tolist()) - index.keys())
    if strange:
        raise TaskError(
            f"{what} '{strange[0]}'", "the mixture never gives it", "Its exact posterior is undefined."
        )
    return np.vectorize(index.__getitem__, otypes=[np.int64])(text)
