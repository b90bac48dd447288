"""Contexts that are drawn: from a mixture of tasks, and prompts of one named task.

Every call of `take` draws with a generator of its own, made from the seed and the number of the call; so the
number of calls is all there is to remember.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from iclens.core import ConfigError, prompt_length
from iclens.prompts.build import TokenTable, draw_examples
from iclens.prompts.mixture import Contexts, Mixture
from iclens.prompts.render import Tokenizer
from iclens.prompts.tasks import default_inputs, parse_task
from iclens.table import Ints
from iclens.training.config import MixtureContexts, Prompts

State = dict[str, Any]
"""Where a source or stream stands: small, and made of what JSON knows."""


Facts = dict[str, int]
"""What is to be known of the data, in words, and of how many rows or tokens it is true."""


class Source(Protocol):
    """An endless sequence of contexts of one length."""

    @property
    def length(self) -> int:
        """Tokens in a context."""
        ...

    def take(self, n_contexts: int) -> Ints:
        """The next contexts, [context pos]."""
        ...

    def state(self) -> State:
        """Where it stands."""
        ...

    def restore(self, state: State) -> None:
        """Go on from there; the following contexts are the same, bit for bit."""
        ...

    def facts(self) -> Facts:
        """What is to be known of the data read so far; empty for contexts that are drawn."""
        ...


class MainSource(Source, Protocol):
    """A source that can also set contexts aside."""

    def held_out(self, n_contexts: int) -> Ints:
        """Contexts that `take` never gives, [context pos]."""
        ...


class _Drawn:
    """The state of a source that is drawn: how often."""

    def __init__(self, examples: int) -> None:
        self.length = prompt_length(examples)
        self._calls = 0

    def state(self) -> State:
        """Where it stands."""
        return {"calls": self._calls}

    def restore(self, state: State) -> None:
        """Go on from there."""
        self._calls = state["calls"]

    def facts(self) -> Facts:
        """Nothing."""
        return {}


class MixtureSource(_Drawn):
    """Contexts drawn from a mixture; those held out have a seed of their own.

    Args:
        mixture: the declared mixture.
        tokenizer: gives token ids.
        examples: examples per context.
        seed: of the contexts taken.
        held_out_seed: of the held-out contexts.
    """

    def __init__(
        self, mixture: Mixture, tokenizer: Tokenizer, examples: int, seed: int, held_out_seed: int
    ) -> None:
        super().__init__(examples)
        self._mixture, self._table = mixture, TokenTable.of(mixture, tokenizer)
        self._examples, self._seed, self._held_out_seed = examples, seed, held_out_seed

    def take(self, n_contexts: int) -> Ints:
        """The next contexts, [context pos]."""
        self._calls += 1
        return self._draw(np.random.default_rng([self._seed, 1, self._calls]), n_contexts)

    def held_out(self, n_contexts: int) -> Ints:
        """Contexts drawn with `held_out_seed`, [context pos]."""
        return self._draw(np.random.default_rng(self._held_out_seed), n_contexts)

    def _draw(self, rng: np.random.Generator, n_contexts: int) -> Ints:
        return self._table.assemble(self._mixture.sample(rng, n_contexts, self._examples))


class PromptSource(_Drawn):
    """In-context prompts of one task and arm, fresh inputs in each.

    Args:
        wanted: the task and arm.
        tokenizer: gives six tokens to an example.
        examples: examples per prompt.
        seed: of all prompts.
        index: place of `wanted` among the prompts of a configuration; each has its own seeds.

    Raises:
        ConfigError: when the task has too few inputs.
    """

    def __init__(self, wanted: Prompts, tokenizer: Any, examples: int, seed: int, index: int) -> None:
        super().__init__(examples)
        self._task, self._arm = parse_task(wanted.task), wanted.arm
        self._examples, self._key = examples, (seed, 2, index)
        inputs = default_inputs(self._task.domain)
        if len(inputs) < examples:
            raise ConfigError(
                f"prompts of '{wanted.task}'", f"{examples} examples of {len(inputs)} inputs",
                "Lower data.examples.",
            )  # fmt: skip
        answers = sorted({y for x in inputs for y in self._task.outcomes(x)})
        self._table = TokenTable.of_words(inputs, answers, tokenizer)
        self._input_index = {x: i for i, x in enumerate(inputs)}
        self._answer_index = {y: i for i, y in enumerate(answers)}

    def take(self, n_contexts: int) -> Ints:
        """The next prompts, [context pos]."""
        self._calls += 1
        seed = int(np.random.default_rng([*self._key, self._calls]).integers(2**31))
        x, y, _ = draw_examples(
            self._task, arm=self._arm, n_prompts=n_contexts, n_examples=self._examples, seed=seed
        )
        x_index, y_index = (
            np.array([[index[word] for word in row] for row in words])
            for words, index in ((x.tolist(), self._input_index), (y.tolist(), self._answer_index))
        )
        alone = np.zeros(n_contexts, dtype=np.int64)
        return self._table.assemble(Contexts(task=alone, noise=alone, x=x_index, y=y_index))


def read_mixture(settings: MixtureContexts, model: str) -> Mixture:
    """The mixture named in a configuration, or the one in the model's folder.

    Raises:
        ConfigError: when it is missing or damaged.
    """
    path = settings.mixture or Path(model) / "mixture.yaml"
    try:
        return Mixture.from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as cause:
        raise ConfigError(
            f"mixture '{path}'", "no such file", "Name one as data.mixture, or use kind: text."
        ) from cause
    except (yaml.YAMLError, UnicodeDecodeError) as cause:
        raise ConfigError(
            f"mixture '{path}'", "not a mixture", "Declare numbers, noise and families."
        ) from cause
