"""Run A and run B: which prompts a patch is taken from, and which it is put into.

1. Inputs are drawn without repetition: n of the context, then the queries. 2. Run A (donor) shows the
task on the context and asks about x_A. 3. Run B (recipient) asks about x_B after no example, or after the
same inputs with deranged (S) or random (R) labels. 4. A* is A's context with B's query: what B would say
had it seen A's examples. x_B stands nowhere in A, and f(x_A) ≠ f(x_B), so that moving the task and copying
the answer can be told apart. Contexts are nested in n and x_B does not depend on n: curves over n are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

import numpy as np

from iclens.core import TEMPLATE, EditError, Layout, TaskError, nearest
from iclens.prompts.beliefs import AnswerProbs, DeclaredBelief, belief_names, log_odds, read_all
from iclens.prompts.build import PromptSet, build_prompts, in_layout, joined
from iclens.prompts.render import Tokenizer, fingerprint
from iclens.prompts.tasks import Task, default_inputs
from iclens.table import Floats, Ints, Strings

ZERO = "zero examples"
RECIPIENTS = (ZERO, "S arm", "R arm")


@dataclass(frozen=True)
class BeliefReader:
    """Log-odds of every belief about the query of each of some prompts."""

    task: Task  # the rule that prompts are asked about
    x: Strings  # their queries, [prompt]
    answer: Strings  # the task's answers to these, [prompt]
    copied: Strings | None  # the answers that `copy` asks for, [prompt]; None leaves it undefined
    declared: tuple[DeclaredBelief, ...] = ()  # beliefs that are read beside the five of every study
    # columns of the answers of each prompt's donors, [prompt] of [answer]; where given, `copy` asks for any
    # of these instead
    donors: tuple[Ints, ...] | None = None
    exact: bool = False  # whether probabilities are summed in float64, or as they are

    @property
    def beliefs(self) -> tuple[str, ...]:
        """Names along the belief axis."""
        return belief_names(self.declared)

    def log_odds(self, probs: AnswerProbs, prompts: Sequence[int] | Ints | None = None) -> Floats:
        """Log-odds in nats, [row … belief].

        Args:
            probs: [row answer], or [row … answer].
            prompts: which prompt each row belongs to, [row]; by default each prompt has one row, in order.
        """
        which = np.arange(len(self.x)) if prompts is None else np.asarray(prompts)
        if self.exact:
            probs = AnswerProbs(probs.answers, probs.log_prob.astype(np.float64))
        axes = probs.log_prob.shape[:-1]

        def of_rows(text: Strings) -> Strings:
            return np.broadcast_to(text[which].reshape(-1, *[1] * (len(axes) - 1)), axes)

        copied = None if self.copied is None else of_rows(self.copied)
        beliefs = read_all(probs, self.task, of_rows(self.x), of_rows(self.answer), copied, self.declared)
        odds = log_odds(beliefs)
        if self.donors is not None:
            for prompt in np.unique(which):
                rows = which == prompt
                of_donors = probs.log_prob[rows][..., self.donors[prompt]].astype(np.float64)
                odds[rows, ..., self.beliefs.index("copy")] = log_odds(np.exp(of_donors).sum(axis=-1))
        return odds


@dataclass(frozen=True)
class Runs:
    """Donor, recipient and A* of each prompt; the last example of each is its query.

    Raises:
        EditError: when the numbers of prompts or their tokenizers differ, A* does not ask B's query, or A's
            context already shows B's x.
    """

    task: Task  # the donor's rule, f
    donor: PromptSet  # run A
    recipient: PromptSet  # run B
    target: PromptSet  # A*, the donor's context with the recipient's query
    declared: tuple[DeclaredBelief, ...] = ()  # beliefs that are read beside the five of every study

    def __post_init__(self) -> None:
        runs = self.donor, self.recipient, self.target
        if len({run.n_prompts for run in runs}) > 1:
            numbers = "{}, {} and {} prompts".format(*(run.n_prompts for run in runs))
            raise EditError(
                "donor, recipient and A*", numbers,
                "Give as many prompts of each: one donor, recipient and A* make a pair.",
            )  # fmt: skip
        if (self.target.x[:, -1] != self.x_B).any():
            raise EditError("A*", "its query is not the recipient's", "Build the runs with `build_runs`.")
        leaks = (self.donor.x[:, :-1] == self.x_B[:, None]).any(axis=1)
        if leaks.any():
            raise EditError(
                f"a patch into the query of x = {self.x_B[leaks.argmax()]}", "the donor's context shows it",
                "Build the runs with `build_runs`.",
            )  # fmt: skip
        if len({run.layout for run in runs}) > 1:
            raise EditError(
                "donor, recipient and A*", "their columns differ", "Build them with `build_runs`."
            )  # fmt: skip
        tokenizers = {run.tokenizer for run in runs}
        if len(tokenizers) > 1:
            raise EditError(
                "donor, recipient and A*", f"tokenizers {', '.join(sorted(tokenizers))}",
                "Build all three with one model's tokenizer.",
            )  # fmt: skip

    @classmethod
    def in_one_layout(
        cls, task: Task, donor: PromptSet, recipient: PromptSet, target: PromptSet,
        declared: Sequence[DeclaredBelief] = (),
    ) -> Runs:  # fmt: skip
        """Runs in the narrowest layout that has room for all three."""
        layout = reduce(Layout.wider, (run.layout for run in (donor, recipient, target)))
        donor, recipient, target = (in_layout(run, layout) for run in (donor, recipient, target))
        return cls(task, donor, recipient, target, tuple(declared))

    @property
    def recipient_name(self) -> str:
        """`zero examples`, or the recipient's arm."""
        return ZERO if self.recipient.n_examples == 1 else f"{self.recipient.arm} arm"

    @property
    def n_seen(self) -> int:
        """Examples in the donor's context."""
        return self.donor.n_examples - 1

    @property
    def x_B(self) -> Strings:  # noqa: N802
        """The recipient's query, [prompt]."""
        return self.recipient.x[:, -1]

    @property
    def answer(self) -> Strings:
        """f(x_B), the task applied to the recipient's own x, [prompt]."""
        return self.recipient.answer[:, -1]

    @property
    def donor_answer(self) -> Strings:
        """f(x_A), the donor's own answer, [prompt]."""
        return self.donor.answer[:, -1]

    @property
    def words(self) -> tuple[str, ...]:
        """Answers that are read, beside the numbers where these are tokens."""
        answers = (
            *self.answer,
            *self.donor_answer,
            *(word for belief in self.declared for word in belief.words),
        )
        return tuple(sorted(set(answers)))

    @property
    def reader(self) -> BeliefReader:
        """Reads every belief about the recipient's query; `copy` asks for f(x_A)."""
        return BeliefReader(self.task, self.x_B, self.answer, self.donor_answer, self.declared)

    @property
    def beliefs(self) -> tuple[str, ...]:
        """Names along the belief axis."""
        return belief_names(self.declared)

    def columns(self, beliefs: Sequence[str]) -> list[int]:
        """Where some beliefs stand on that axis; raises an EditError for one that is not read."""
        for name in beliefs:
            if name not in self.beliefs:
                raise EditError(f"belief '{name}'", "unknown", nearest(name, self.beliefs) + ".")
        return [self.beliefs.index(name) for name in beliefs]


def check_tokenizer(tokenizer: Tokenizer, runs: Runs) -> None:
    """Refuse runs whose tokens are another tokenizer's, by an EditError."""
    expected = fingerprint(tokenizer)
    if expected != runs.donor.tokenizer:
        raise EditError(
            f"runs of tokenizer {runs.donor.tokenizer}", f"the model's is {expected}",
            "Build the runs with `model.tokenizer`.",
        )  # fmt: skip


def build_runs(
    tokenizer: Tokenizer, task: Task, *, recipient: str = ZERO, n_prompts: int = 64, donor_examples: int = 12,
    recipient_examples: int | None = None, seed: int = 0, inputs: Sequence[str] | None = None,
    declared: Sequence[DeclaredBelief] = (), template: str = TEMPLATE,
) -> Runs:  # fmt: skip
    """Draw run A, run B and A* of one task.

    Args:
        tokenizer: as for `build_prompts`.
        task: the donor's rule; it must have one answer per x.
        recipient: one of `RECIPIENTS`.
        recipient_examples: examples before the query of an S or R recipient; the donor's by default.
        inputs: allowed x; the task's default inputs when not given.
        declared: beliefs that are read beside the five of every study.
        template: as for `build_prompts`.

    Raises:
        EditError: for an unknown recipient, or one that cannot be deranged.
        TaskError: for a stochastic task, too few inputs, or a task whose answer never changes.
    """
    pool = tuple(inputs) if inputs is not None else default_inputs(task)
    n_shown = _context_examples(task, recipient, donor_examples, recipient_examples, len(pool))
    draw = partial(
        build_prompts, tokenizer, task, n_prompts=n_prompts, seed=seed, inputs=pool, template=template
    )
    every = draw(arm="T", n_examples=len(pool))
    context = draw(arm=recipient.split()[0], n_examples=n_shown) if n_shown else every
    last = np.full((n_prompts, 1), len(pool) - 1)
    first = np.tile(np.arange(donor_examples), (n_prompts, 1))
    return Runs.in_one_layout(
        task,
        _columns(every, np.hstack([first, _donor_query(every, donor_examples, every.answer[:, -1])])),
        _with_query(context, n_shown, _columns(every, last)),
        _columns(every, np.hstack([first, last])),
        declared,
    )


def runs_by_query(
    tokenizer: Tokenizer, task: Task, xs: Sequence[str | int], *, recipient: str = ZERO, donors: int = 8,
    donor_examples: int = 12, recipient_examples: int | None = None, seed: int = 0,
    inputs: Sequence[str] | None = None, declared: Sequence[DeclaredBelief] = (), template: str = TEMPLATE,
) -> Runs:  # fmt: skip
    """Run A, run B and A* of one task for every query x of a list, with several donors each.

    B asks about x, which the donors of its pairs neither show nor ask about. Contexts are drawn anew for
    every x and donor. Arguments that are not named here, and errors, are those of `build_runs`.

    Args:
        xs: the recipient's queries; each counts once.
        donors: pairs of runs for each x.
        inputs: allowed x of contexts and donors' queries; `xs` when not given.

    Returns:
        The pairs, by x in the order of `xs` and then by donor.
    """
    queries = list(dict.fromkeys(str(x) for x in xs))
    if not queries or donors < 1:
        raise EditError(
            f"{len(queries)} queries and {donors} donors", "nothing to run",
            "Give at least one x and `donors` of 1 or more.",
        )  # fmt: skip
    pool = tuple(inputs) if inputs is not None else tuple(queries)
    n_inputs = len(pool) if {*pool} & {*queries} else len(pool) + 1
    n_shown = _context_examples(task, recipient, donor_examples, recipient_examples, n_inputs)
    parts = []
    for i, x in enumerate(queries):
        others = tuple(value for value in pool if value != x)
        drawn = int(np.random.default_rng([seed, i]).integers(2**31))
        draw = partial(build_prompts, tokenizer, task, n_prompts=donors, seed=drawn, template=template)
        every = draw(arm="T", n_examples=len(others), inputs=others)
        query = draw(arm="T", n_examples=1, inputs=(x,))
        context = draw(arm=recipient.split()[0], n_examples=n_shown, inputs=others) if n_shown else every
        first = np.tile(np.arange(donor_examples), (donors, 1))
        parts.append((
            _columns(every, np.hstack([first, _donor_query(every, donor_examples, query.answer[:, 0])])),
            _with_query(context, n_shown, query),
            _with_query(every, donor_examples, query),
        ))  # fmt: skip
    donor, recipient_prompts, target = (joined(part, part[0].arm) for part in zip(*parts, strict=True))
    return Runs.in_one_layout(task, donor, recipient_prompts, target, declared)


def _context_examples(
    task: Task, recipient: str, donor_examples: int, recipient_examples: int | None, n_inputs: int
) -> int:
    """Examples before the recipient's query; refuses what cannot be drawn."""
    if recipient not in RECIPIENTS:
        known = " or ".join(map(repr, RECIPIENTS))
        raise EditError(f"recipient '{recipient}'", "unknown", f"It must be {known}.")
    if not task.deterministic:
        raise TaskError(
            f"patching '{task.name}'", "it has no single answer",
            "Choose a task with one answer per x, such as 2x+3.",
        )  # fmt: skip
    n_shown = 0 if recipient == ZERO else donor_examples if recipient_examples is None else recipient_examples
    if recipient == "S arm" and n_shown < 2:
        raise EditError(
            f"an S arm of {n_shown} examples", "its labels cannot be deranged",
            "Give recipient_examples of 2 or more.",
        )  # fmt: skip
    longest = max(donor_examples, n_shown)
    if n_inputs < longest + 2:
        raise TaskError(
            f"{longest} examples and two queries", f"{n_inputs} inputs",
            "Lower the number of examples, or allow more inputs.",
        )  # fmt: skip
    return n_shown


def _donor_query(every: PromptSet, first: int, answer: Strings) -> Ints:
    """The first column from `first` on whose answer is not f(x_B), `answer` [prompt], as [prompt 1]."""
    differs = every.answer[:, first:] != answer[:, None]
    if not differs.any(axis=1).all():
        raise TaskError(
            f"patching '{every.task[0]}'", "f(x_A) = f(x_B) whatever x_A",
            "Choose a task whose answer depends on x.",
        )  # fmt: skip
    return (first + differs.argmax(axis=1))[:, None]


def _columns(prompts: PromptSet, columns: Ints) -> PromptSet:
    """The prompts rewritten to hold only the given examples, [prompt example]."""
    prefix, cells = np.split(prompts.tokens, [prompts.layout.prefix], axis=1)
    cells = cells.reshape(prompts.n_prompts, -1, prompts.layout.example)
    kept = np.take_along_axis(cells, columns[..., None], axis=1).reshape(prompts.n_prompts, -1)
    x, y, answer = (np.take_along_axis(a, columns, axis=1) for a in (prompts.x, prompts.y, prompts.answer))
    return replace(prompts, x=x, y=y, answer=answer, tokens=np.hstack([prefix, kept]))


def _with_query(context: PromptSet, n_shown: int, query: PromptSet) -> PromptSet:
    """The first `n_shown` examples of `context` followed by the query."""
    x, y, answer = (
        np.hstack([getattr(context, name)[:, :n_shown], getattr(query, name)])
        for name in ("x", "y", "answer")
    )
    layout = context.layout.wider(query.layout)
    shown, asked = (in_layout(prompts, layout).tokens for prompts in (context, query))
    tokens = np.hstack([shown[:, : layout.length(n_shown)], asked[:, layout.prefix :]])
    return replace(context, x=x, y=y, answer=answer, tokens=tokens, layout=layout)
