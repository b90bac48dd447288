"""PromptSet: tokens, and what stands where."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from iclens.errors import TableError
from iclens.names import PREFIX_LENGTH, TEMPLATE, TOKENS_PER_EXAMPLE, position, prompt_length
from iclens.tables.arrays import Ints, Strings, expect_shape


@dataclass(frozen=True)
class Pass:
    """Sequences that go through the model once, and what is read from them.

    Args:
        tokens: [prompt pos].
        examples: columns of the prompt set that are read here, [read].
        slots: in which slot of the sequences each of them stands, [read].
    """

    tokens: Ints
    examples: Ints
    slots: Ints

    def positions(self, role: str) -> Ints:
        """Token index of `role` in each read slot, [read]."""
        return np.array([position(role, int(slot)) for slot in self.slots])


@dataclass(frozen=True)
class PromptSet:
    """Prompts of equal length, complete to the last example's newline.

    The last example of a prompt serves as the query; because the model is causal, `pre` of
    example j is also a query that has seen j examples. In a *probed* arm every query j has a sequence of its
    own instead, and x, y and answer are those of the queries.

    Args:
        task: spec of the task each prompt shows, [prompt].
        arm: which arm of the design this is ("T", "S", …).
        x: inputs as text, [prompt example].
        y: labels as shown, as text, [prompt example].
        answer: the task's own answer to x, as text, [prompt example]; differs from y where a label is wrong.
        tokens: ids, [prompt pos]; of a probed arm, those of its last query's sequence.
        seed: prompts with equal seed and index are paired across arms.
        tokenizer: fingerprint of the tokenizer.
        context_x, context_y: what stands before each query of a probed arm, "" where nothing of the task
            does, [prompt example slot]; None for other arms.
        probes: ids of each query's sequence, padded at the right, [prompt example pos]; None for other arms.
        slots: in which slot of its sequence each query stands, [example]; None for other arms.
        rival: spec of the second task of arms that show two; "" otherwise.
        template: name of the template each prompt is written in, [prompt]; None where all are in the default.
    """

    task: Strings
    arm: str
    x: Strings
    y: Strings
    answer: Strings
    tokens: Ints
    seed: int
    tokenizer: str
    context_x: Strings | None = None
    context_y: Strings | None = None
    probes: Ints | None = None
    slots: Ints | None = None
    rival: str = ""
    template: Strings | None = None

    def __post_init__(self) -> None:
        sizes = expect_shape(
            "PromptSet",
            x=(self.x, ("prompt", "example")),
            y=(self.y, ("prompt", "example")),
            answer=(self.answer, ("prompt", "example")),
            task=(self.task, ("prompt",)),
            tokens=(self.tokens, ("prompt", "pos")),
        )
        if sizes["pos"] != prompt_length(sizes["example"]):
            raise TableError(
                "PromptSet.tokens",
                f"{sizes['pos']} positions",
                f"They have to be 2 + 6 × {sizes['example']} examples.",
            )
        if self.template is not None:
            expect_shape("PromptSet", template=(self.template, (sizes["prompt"],)))
        parts = (self.context_x, self.context_y, self.probes, self.slots)
        if any(part is None for part in parts) and any(part is not None for part in parts):
            raise TableError(
                "PromptSet",
                "only some parts of a probed arm",
                "Give context_x, context_y, probes and slots, or none of them.",
            )
        if self.context_x is not None and self.context_y is not None:
            axes = (sizes["prompt"], sizes["example"], sizes["example"] - 1)
            expect_shape(
                "PromptSet", context_x=(self.context_x, axes), context_y=(self.context_y, axes),
                probes=(_given(self.probes), (sizes["prompt"], sizes["example"], sizes["pos"])),
                slots=(_given(self.slots), (sizes["example"],)),
            )  # fmt: skip

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

    def positions(self, role: str) -> Ints:
        """Token index of `role` in each example of `tokens`, [example].

        Raises:
            TableError: for a probed arm, whose queries stand in sequences of their own (`passes`).
        """
        if self.probed:
            raise TableError(
                f"positions of arm {self.arm}",
                "each query has its own sequence",
                "Take the positions of each pass: `for one in prompts.passes(): one.positions(role)`.",
            )
        return np.array([position(role, j) for j in range(self.n_examples)])

    def passes(self) -> tuple[Pass, ...]:
        """The forward passes that read every example once: one, or for a probed arm one per example."""
        if self.probes is None or self.slots is None:
            every = np.arange(self.n_examples)
            return (Pass(self.tokens, every, every),)
        ends = PREFIX_LENGTH + TOKENS_PER_EXAMPLE * (self.slots + 1)
        return tuple(
            Pass(self.probes[:, n, : ends[n]], np.array([n]), self.slots[n : n + 1])
            for n in range(self.n_examples)
        )

    def select(self, prompts: Ints) -> PromptSet:
        """The prompts at the given indices."""
        names = ("task", "x", "y", "answer", "tokens", "context_x", "context_y", "probes", "template")
        held = {name: getattr(self, name) for name in names}
        return replace(self, **{name: v[prompts] for name, v in held.items() if v is not None})


def _given(part: Ints | None) -> Ints:
    return np.empty(0, dtype=int) if part is None else part
