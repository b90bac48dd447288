"""PromptSet: prompts of examples with the place of every token, built for a task and an arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iclens.core import (
    PADDING,
    SIX_TOKENS,
    TEMPLATE,
    Layout,
    SiteError,
    TableError,
    TaskError,
    TokenizerError,
)
from iclens.prompts.arms import FILLER, Arm, Shown, default_rival, parse_arm
from iclens.prompts.beliefs import NUMBERS, AnswerProbs
from iclens.prompts.mixture import Contexts, Mixture, Posterior, exact_posterior
from iclens.prompts.render import (
    Tokenizer,
    bos_id,
    fingerprint,
    laid_out,
    layout_of,
    parse_template,
    split,
    text_ids,
)
from iclens.prompts.tasks import Task, default_inputs, parse_task
from iclens.table import Floats, Ints, Strings, expect_shape


@dataclass(frozen=True)
class TokenTable:
    """Token ids of everything that contexts are made of, in the columns of a layout."""

    layout: Layout
    prefix: Ints  # BOS and the newline, [prefix]
    inputs: Ints  # what stands before each input, and the input, [input, columns up to x]
    answers: Ints  # what stands before each answer, the answer and the close, [answer, columns behind x]

    @classmethod
    def of(cls, mixture: Mixture, tokenizer: Tokenizer) -> TokenTable:
        """The table of a mixture's inputs and answers; raises as `of_words`."""
        return cls.of_words(mixture.inputs, mixture.answers, tokenizer)

    @classmethod
    def of_words(cls, inputs: Sequence[str], answers: Sequence[str], tokenizer: Tokenizer) -> TokenTable:
        """Look every id up once, in an example.

        Raises:
            TokenizerError: as `render.split`, or when what stands between x and y depends on x.
        """
        pairs = [*((x, answers[0]) for x in inputs), *((inputs[0], y) for y in answers)]
        splits, bos = split(tokenizer, [pairs]), bos_id(tokenizer)
        layout = layout_of(splits, bos)
        ids = laid_out(splits, layout, bos, len(pairs))[0]
        cells = ids[layout.prefix :].reshape(-1, layout.example)
        behind = layout.open + layout.x
        of_inputs, of_answers = cells[: len(inputs)], cells[len(inputs) :, behind:]
        if (strange := (of_inputs[:, behind:] != of_inputs[0, behind:]).any(axis=1)).any():
            x = inputs[int(strange.argmax())]
            raise TokenizerError(
                f"contexts of x = {x!r}",
                f"what stands behind it has other tokens than behind {inputs[0]!r}",
                "Choose inputs after which the tokenizer writes the same.",
            )
        return cls(layout, ids[: layout.prefix], of_inputs[:, :behind], of_answers)

    @property
    def answer_ids(self) -> Ints:
        """The first token of each answer, [answer]: what is predicted at `pre`."""
        there = self.answers[:, self.layout.separator :] != PADDING
        return self.answers[np.arange(len(self.answers)), self.layout.separator + there.argmax(axis=1)]

    def assemble(self, contexts: Contexts) -> Ints:
        """Token ids of drawn contexts, as `build_prompts` gives them of the same text, [context column]."""
        n_contexts = len(contexts.x)
        cells = np.concatenate([self.inputs[contexts.x], self.answers[contexts.y]], axis=2)
        prefix = np.broadcast_to(self.prefix, (n_contexts, self.layout.prefix))
        return np.concatenate([prefix, cells.reshape(n_contexts, -1)], axis=1)


@dataclass(frozen=True)
class Pass:
    """Sequences that go through the model once, and what is read from them."""

    tokens: Ints  # [prompt column]
    examples: Ints  # examples of the prompt set that are read here, [read]
    slots: Ints  # in which slot of the sequences each of them stands, [read]
    layout: Layout

    def positions(self, role: str) -> Ints:
        """Column of `role` in each read slot, [read].

        Raises:
            SiteError: as `core.Layout.position`, or when the role has no token in some of these sequences.
        """
        columns = np.array([self.layout.position(role, int(slot)) for slot in self.slots], dtype=np.int64)
        if (self.tokens[:, columns] == PADDING).any():
            raise SiteError(
                f"role '{role}'", "in some examples it has no token of its own",
                "Choose another: x, pre and lab always have one.",
            )  # fmt: skip
        return columns


@dataclass(frozen=True)
class PromptSet:
    """Prompts of as many examples each, complete to the end of the last one.

    The last example of a prompt serves as the query; because the model is causal, `pre` of
    example j is also a query that has seen j examples. In a *probed* arm every query j has a sequence of its
    own instead, and x, y and answer are those of the queries.
    """

    task: Strings  # spec of the task each prompt shows, [prompt]
    arm: str  # which arm of the design this is ("T", "S", …)
    x: Strings  # inputs as text, [prompt example]
    y: Strings  # labels as shown, as text, [prompt example]
    # the task's own answer to x, as text, [prompt example]; differs from y where a label is wrong
    answer: Strings
    # ids in the columns of `layout`, [prompt column]; of a probed arm, those of its last query's sequence
    tokens: Ints
    seed: int  # prompts with equal seed and index are paired across arms
    tokenizer: str  # fingerprint of the tokenizer
    # context_x, context_y: what stands before each query of a probed arm, "" where nothing of the task does,
    # [prompt example slot]; None for other arms
    context_x: Strings | None = None
    context_y: Strings | None = None
    # ids of each query's sequence, newlines behind it, [prompt example column]; None for other arms
    probes: Ints | None = None
    # in which slot of its sequence each query stands, [example]; None for other arms
    slots: Ints | None = None
    rival: str = ""  # spec of the second task of arms that show two; "" otherwise
    # name of the template each prompt is written in, [prompt]; None where all are in the default
    template: Strings | None = None
    layout: Layout = SIX_TOKENS  # where spans and roles stand in `tokens` and `probes`

    def __post_init__(self) -> None:
        pairs = {name: (getattr(self, name), ("prompt", "example")) for name in ("x", "y", "answer")}
        sizes = expect_shape(
            "PromptSet", **pairs, task=(self.task, ("prompt",)), tokens=(self.tokens, ("prompt", "pos"))
        )
        if sizes["pos"] != self.layout.length(sizes["example"]):
            raise TableError(
                "PromptSet.tokens",
                f"{sizes['pos']} columns",
                f"Their layout has {self.layout.length(sizes['example'])}.",
            )
        if self.template is not None:
            expect_shape("PromptSet", template=(self.template, (sizes["prompt"],)))
        n_prompts, n, n_pos = sizes["prompt"], sizes["example"], sizes["pos"]
        axes = {
            "context_x": (n_prompts, n, n - 1), "context_y": (n_prompts, n, n - 1),
            "probes": (n_prompts, n, n_pos), "slots": (n,),
        }  # fmt: skip
        parts = {name: getattr(self, name) for name in axes if getattr(self, name) is not None}
        if parts and len(parts) < len(axes):
            raise TableError(
                "PromptSet",
                "only some parts of a probed arm",
                "Give context_x, context_y, probes and slots, or none of them.",
            )
        expect_shape("PromptSet", **{name: (part, axes[name]) for name, part in parts.items()})

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return self.x.shape[0]

    @property
    def n_examples(self) -> int:
        """Examples in each prompt, the query included."""
        return self.x.shape[1]

    @property
    def templates(self) -> Strings:
        """Name of the template each prompt is written in, [prompt]."""
        return np.full(self.n_prompts, TEMPLATE) if self.template is None else self.template

    @property
    def probed(self) -> bool:
        """Whether every query has a sequence of its own."""
        return self.probes is not None

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that have a token in every example, in order; where two share one, the later role."""
        inside = self.layout.prefix + np.arange(self.layout.example * self.n_examples)
        there = (self.tokens[:, inside].reshape(-1, self.layout.example) != PADDING).all(axis=0)
        columns = {column: role for role, column in self.layout.columns().items() if there[column]}
        return tuple(columns.values())

    def positions(self, role: str) -> Ints:
        """Column of `role` in each example of `tokens`, [example]; `passes` has a probed arm's."""
        if self.probed:
            raise TableError(
                f"positions of arm {self.arm}",
                "each query has its own sequence",
                "Take the positions of each pass: `for one in prompts.passes(): one.positions(role)`.",
            )
        return self.passes()[0].positions(role)

    def passes(self) -> tuple[Pass, ...]:
        """The forward passes that read every example once: one, or for a probed arm one per example."""
        if self.probes is None or self.slots is None:
            every = np.arange(self.n_examples)
            return (Pass(self.tokens, every, every, self.layout),)
        ends = [self.layout.length(int(slot) + 1) for slot in self.slots]
        return tuple(
            Pass(self.probes[:, n, : ends[n]], np.array([n]), self.slots[n : n + 1], self.layout)
            for n in range(self.n_examples)
        )

    def select(self, prompts: Ints) -> PromptSet:
        """The prompts at the given indices."""
        names = ("task", "x", "y", "answer", "tokens", "context_x", "context_y", "probes", "template")
        parts = {name: getattr(self, name) for name in names}
        return replace(self, **{name: part[prompts] for name, part in parts.items() if part is not None})


Pairs = list[tuple[str, str]]
WRONG_SHARE = 0.05
"""Share of wrong labels that nominal evidence assumes."""


def build_prompts(
    tokenizer: Tokenizer, task: Task, *, arm: str, n_prompts: int, n_examples: int, seed: int,
    inputs: Sequence[str] | None = None, rival: str | None = None, template: str = TEMPLATE,
) -> PromptSet:  # fmt: skip
    """Prompts of one task and arm.

    Args:
        tokenizer: one that says where its tokens begin and end, as every tokenizer.json does.
        arm: a code of `arms.ARMS`.
        n_examples: examples in each, the query (the last one) included; inputs within a prompt are distinct.
        seed: prompts of equal seed are paired across arms.
        inputs: allowed x; the task's default inputs when not given.
        rival: spec of the second task of arms that show two; `default_rival` when not given.
        template: how examples are written: a name of `render.TEMPLATES`, or a text with {x} and {y}.

    Raises:
        TaskError: for an unknown arm or template, an arm that the task cannot have, or too few inputs.
        TokenizerError: as `render.split` and `render.layout_of`.
    """
    made, second, shown = _drawn(task, arm, rival, n_prompts, n_examples, seed, inputs)
    written = parse_template(template)
    about = {
        "task": np.full(n_prompts, task.name), "arm": arm, "seed": seed, "tokenizer": fingerprint(tokenizer),
        "rival": second.name if second is not None else "",
        "template": None if template == TEMPLATE else np.full(n_prompts, template),
        "x": np.array([s.x for s in shown]),
        "answer": np.array([[task.answer(value) for value in s.x] for s in shown]),
    }  # fmt: skip
    # What is possible has to fit as well: columns and refusals do not depend on the draw, nor on the arm.
    possible = _possible(shown[0].pool if shown else (), [one for one in (task, second) if one is not None])
    bos, every = bos_id(tokenizer), split(tokenizer, [possible] if possible else [], written)
    if made.contexts is None:
        y = np.array([_labels(made, s, (seed, i)) for i, s in enumerate(shown)])
        splits = split(tokenizer, [_pairs(*pair) for pair in zip(about["x"], y, strict=True)], written)
        layout = layout_of([*every, *splits], bos)
        return PromptSet(y=y, tokens=laid_out(splits, layout, bos, n_examples), layout=layout, **about)
    contexts = [made.contexts(s, _rng(made, (seed, i))) for i, s in enumerate(shown)]
    slots = np.array([len(context) for context in contexts[0]])
    cells = np.full((2, n_prompts, n_examples, n_examples - 1), FILLER, dtype=object)  # x, then y
    queries = [_pairs(np.array(s.x), np.array(s.own)) for s in shown]
    for i, context in enumerate(contexts):
        for n, pairs in enumerate(context):
            _refuse_shown(queries[i][n][0], pairs)
            for slot, pair in enumerate(pairs):
                cells[:, i, n, slot] = pair
    asked = [
        [
            [*(pair for pair in context[n] if pair[0] != FILLER), own[n]]
            for context, own in zip(contexts, queries, strict=True)
        ]
        for n in range(n_examples)
    ]  # what each sequence holds, [example prompt] of pairs
    splits = [split(tokenizer, prompts, written) for prompts in asked]
    layout = layout_of([*every, *(one for some in splits for one in some)], bos)
    newline = text_ids(tokenizer, "\n")[-1]
    probes = np.full((n_prompts, n_examples, layout.length(n_examples)), newline)
    for n, some in enumerate(splits):
        n_shown = len(asked[n][0])
        ids = laid_out(some, layout, bos, n_shown)
        begin, end = layout.length(int(slots[n]) + 1 - n_shown), layout.length(int(slots[n]) + 1)
        probes[:, n, : layout.prefix], probes[:, n, begin:end] = np.split(ids, [layout.prefix], axis=1)
    context_x, context_y = cells.astype(str)
    return PromptSet(
        y=np.array([s.own for s in shown]), tokens=probes[:, -1], context_x=context_x, context_y=context_y,
        probes=probes, slots=slots, layout=layout, **about,
    )  # fmt: skip


def _possible(pool: Sequence[str], tasks: Sequence[Task]) -> Pairs:
    """Examples in which every allowed input and every answer to one stands at least once."""
    answers = [y for task in tasks for x in pool for y in task.outcomes(x)]
    distinct = list(dict.fromkeys(answers))
    return [(pool[i % len(pool)], distinct[i % len(distinct)]) for i in range(max(len(pool), len(distinct)))]


def draw_examples(
    task: Task, *, arm: str, n_prompts: int, n_examples: int, seed: int, inputs: Sequence[str] | None = None
) -> tuple[Strings, Strings, Strings]:
    """x, y and the task's own answers of `build_prompts` before they are spelled, [prompt example] each."""
    if parse_arm(arm).probed:
        raise TaskError(
            f"examples of arm {arm}",
            "each query has its own context",
            "Draw those of an inline arm such as T or S; `build_prompts` makes the prompts of this one.",
        )
    made, _, shown = _drawn(task, arm, None, n_prompts, n_examples, seed, inputs)
    answers = [[task.answer(value) for value in s.x] for s in shown]
    ys = [_labels(made, s, (seed, i)) for i, s in enumerate(shown)]
    return np.array([s.x for s in shown]), np.array(ys), np.array(answers)


def _drawn(
    task: Task, code: str, rival: str | None, n_prompts: int, n_examples: int, seed: int,
    inputs: Sequence[str] | None,
) -> tuple[Arm, Task | None, list[Shown]]:  # fmt: skip
    """The arm, its second task, and the inputs and own labels of each prompt."""
    made, second = parse_arm(code), None
    if made.needs_rival:
        second = default_rival(task) if rival is None else parse_task(rival)
        if second == task:
            raise TaskError(
                f"rival of '{task.name}'",
                "the task itself",
                "Set `rival` (prompts.rival in a study) to another task.",
            )
    pool = tuple(inputs) if inputs is not None else default_inputs(task)
    if len(pool) < n_examples:
        raise TaskError(
            f"{n_examples} distinct inputs", f"{len(pool)} allowed", "Lower n_examples, or allow more inputs."
        )
    contexts = []
    for i in range(n_prompts):
        # numpy pads seeds with zeros, so streams 1, 2, … are apart from that of the inputs, [seed, index].
        rng, own_rng = np.random.default_rng([seed, i]), np.random.default_rng([seed, i, 1])
        x = [pool[j] for j in rng.permutation(len(pool))[:n_examples]]
        outcomes = [task.outcomes(value) for value in x]
        own = [str(own_rng.choice(list(ys), p=list(ys.values()))) for ys in outcomes]
        contexts.append(Shown(task, second, x, own, pool, made.number))
    return made, second, contexts


def _rng(arm: Arm, key: tuple[int, int]) -> np.random.Generator:
    return np.random.default_rng([*key, arm.stream])


def _labels(arm: Arm, shown: Shown, key: tuple[int, int]) -> list[str]:
    return [] if arm.labels is None else arm.labels(shown, _rng(arm, key))


def _pairs(x: Strings, y: Strings) -> Pairs:
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _refuse_shown(x: str, context: Pairs) -> None:
    if x in {shown for shown, _ in context}:
        raise TaskError(
            f"query x={x}",
            "it stands in its own context",
            "An arm may show before a query only inputs other than its own: change the arm's `contexts`.",
        )


def joined(parts: Sequence[PromptSet], arm: str) -> PromptSet:
    """Several prompt sets of as many examples each as one, under a new arm name."""
    first = parts[0]
    layout = reduce(Layout.wider, (part.layout for part in parts))
    whole: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in ("task", "x", "y", "answer")
    }
    whole["tokens"] = np.concatenate([in_layout(part, layout).tokens for part in parts])
    if any(part.template is not None for part in parts):
        whole["template"] = np.concatenate([part.templates for part in parts])
    return PromptSet(arm=arm, seed=first.seed, tokenizer=first.tokenizer, layout=layout, **whole)


def in_layout(prompts: PromptSet, layout: Layout) -> PromptSet:
    """Prompts of an inline arm in the columns of a layout that has room for them."""
    old = prompts.layout
    sources = [_right(old.prefix, layout.prefix)]
    for example in range(prompts.n_examples):
        begin = old.length(example)
        for width, room in zip(old.widths, layout.widths, strict=True):
            source = _right(width, room)
            sources.append(np.where(source < 0, source, source + begin))
            begin += width
    columns = np.concatenate(sources)
    tokens = prompts.tokens if layout == old else np.where(columns < 0, PADDING, prompts.tokens[:, columns])
    return replace(prompts, tokens=tokens, layout=layout)


def _right(width: int, room: int) -> Ints:
    """Columns of a span as they stand at the right end of a wider one, −1 before them."""
    return np.maximum(np.arange(room) - (room - width), -1)


def exact_answer_probs(mixture: Mixture, prompts: PromptSet) -> AnswerProbs:
    """The exact predictive before each example, over numbers 0–999 and the mixture's words."""
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

    The task is the prompts' own by default.
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
    `inputs` are the x that the prompts may hold.
    """
    task = parse_task(str(prompts.task[0]))
    n_answers = len({y for x in inputs for y in task.outcomes(x)})
    right = prompts.y == prompts.answer if prompts.context_y is None else np.ones(prompts.x.shape, dtype=bool)
    evidence = np.log((1 - WRONG_SHARE) * right * n_answers + WRONG_SHARE)
    evidence[:, -1] = np.nan
    return evidence


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
    return np.vectorize(index.__getitem__, otypes=[np.int64])(text)


def check_pairing(sets: Sequence[PromptSet]) -> None:
    """Raise unless prompt i of every arm asks the same queries as of the first, after contexts of its own."""
    first = sets[0]
    for i, other in enumerate(sets):
        _check_queries(other)
        for what in ("seed", "tokenizer", "task", "x"):
            if not np.array_equal(getattr(first, what), getattr(other, what)):
                raise TableError(
                    f"arms {first.arm} and {other.arm}",
                    f"unpaired: {what} differs",
                    "Build both for one task, with one tokenizer, seed and set of inputs.",
                )
        for before in sets[:i]:
            if _same_text(before, other):
                raise TableError(
                    f"arms {before.arm} and {other.arm}",
                    "every label is the same",
                    "They show the same: leave one of them out.",
                )


def _same_text(one: PromptSet, other: PromptSet) -> bool:
    """Whether both show the model the same tokens before every query."""
    first, second = (prompts.y if prompts.probes is None else prompts.probes for prompts in (one, other))
    return np.array_equal(first, second)


def _check_queries(prompts: PromptSet) -> None:
    """No query's input stands in its own context."""
    if prompts.context_x is None:
        shown, n = prompts.x, prompts.n_examples
        repeated = np.array([len(set(row)) < n for row in shown.tolist()])
    else:
        repeated = (prompts.context_x == prompts.x[:, :, None]).any(axis=(1, 2))
    if repeated.any():
        raise TableError(
            f"arm {prompts.arm}",
            f"a query of prompt {int(repeated.argmax())} stands in its own context",
            "Every x of a prompt has to be another: give distinct inputs.",
        )


def example_similarity(prompts: PromptSet) -> Floats | None:
    """Similarity of the last example before query j + 1 to that query, [prompt example]; the last is NaN.

    In an inline arm that example is example j; in a probed arm it stands last in the query's own context.
    None where the inputs are not numbers, or all alike.
    """
    if not np.char.isdigit(prompts.x).all():
        return None
    query = prompts.x.astype(int)
    read = query[:, :-1]
    if prompts.context_x is not None and prompts.slots is not None:
        last = [prompts.context_x[:, n, prompts.slots[n] - 1] for n in range(1, prompts.n_examples)]
        read = np.stack(last, axis=1).astype(int)
    widest = query.max() - query.min()
    if widest == 0:
        return None
    similarity = np.full(query.shape, np.nan)
    similarity[:, :-1] = 1 - np.abs(read - query[:, 1:]) / widest
    return similarity
