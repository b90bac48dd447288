"""PromptSet: tokens, and what stands where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iclens.errors import TableError
from iclens.names import PREFIX_LENGTH, TOKENS_PER_EXAMPLE, position
from iclens.tables.arrays import Ints, Strings, expect_shape


@dataclass(frozen=True)
class PromptSet:
    """Prompts of equal length, complete to the last example's newline.

    The last example of a prompt serves as the query; because the model is causal, `pre` of
    example j is also a query that has seen j examples.

    Args:
        task: spec of the task each prompt shows, [prompt].
        arm: which arm of the design this is ("T", "S", …).
        x: inputs as text, [prompt example].
        y: labels as shown, as text, [prompt example].
        answer: the task's own answer to x, as text, [prompt example]; differs from y where a label is wrong.
        tokens: ids, [prompt pos].
        seed: prompts with equal seed and index are paired across arms.
        tokenizer: fingerprint of the tokenizer.
    """

    task: Strings
    arm: str
    x: Strings
    y: Strings
    answer: Strings
    tokens: Ints
    seed: int
    tokenizer: str

    def __post_init__(self) -> None:
        sizes = expect_shape(
            "PromptSet",
            x=(self.x, ("prompt", "example")),
            y=(self.y, ("prompt", "example")),
            answer=(self.answer, ("prompt", "example")),
            task=(self.task, ("prompt",)),
            tokens=(self.tokens, ("prompt", "pos")),
        )
        if sizes["pos"] != PREFIX_LENGTH + TOKENS_PER_EXAMPLE * sizes["example"]:
            raise TableError("PromptSet.tokens", f"{sizes['pos']} positions", "2 + 6 per example are needed.")

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return self.x.shape[0]

    @property
    def n_examples(self) -> int:
        """Examples in each prompt, the query included."""
        return self.x.shape[1]

    def positions(self, role: str) -> Ints:
        """Token index of `role` in each example, [example]."""
        return np.array([position(role, j) for j in range(self.n_examples)])

    def select(self, prompts: Ints) -> PromptSet:
        """The prompts at the given indices."""
        return PromptSet(
            self.task[prompts], self.arm, self.x[prompts], self.y[prompts], self.answer[prompts],
            self.tokens[prompts], self.seed, self.tokenizer,
        )  # fmt: skip
