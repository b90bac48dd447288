"""Contexts to train on: drawn from a mixture or streamed from text, with prompts of named tasks mixed in.

A source yields blocks of token ids [context pos]. All contexts of a block have one length; blocks of
different lengths may follow each other. `held_out` gives contexts that `stream` never yields.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from iclens.errors import ConfigError
from iclens.tables.arrays import Ints
from iclens.tasks.assemble import TokenTable
from iclens.tasks.mixture import Mixture
from iclens.tasks.prompts import build_prompts
from iclens.tasks.rendering import Tokenizer
from iclens.tasks.rules import default_inputs
from iclens.tasks.spec import parse_task
from iclens.training.config import MixtureContexts, Prompts, TextContexts, TrainConfig


class Source(Protocol):
    """Where contexts come from."""

    def stream(self, n_contexts: int) -> Iterator[Ints]:
        """Endless blocks of `n_contexts` contexts, [context pos]."""
        ...

    def held_out(self, n_contexts: int) -> Ints:
        """Contexts that are never streamed, [context pos]."""
        ...


def build_source(config: TrainConfig, tokenizer: Any) -> Source:
    """The source that a configuration asks for, its in-context prompts mixed in.

    Raises:
        ConfigError: when a mixture or data file is missing or damaged, or a prompt has too few inputs.
    """
    main: Source
    if isinstance(config.data, MixtureContexts):
        main = MixtureSource(
            _read_mixture(config.data, config.model.name), tokenizer, config.data.examples, config.seed,
            config.held_out.seed,
        )  # fmt: skip
    else:
        main = TextSource(config.data, tokenizer, config.held_out.contexts)
    if not config.data.prompts:
        return main
    return MixedSource(main, tokenizer, config.data.prompts, config.data.examples, config.seed)


def _read_mixture(data: MixtureContexts, model: str) -> Mixture:
    path = data.mixture or Path(model) / "mixture.yaml"
    try:
        return Mixture.from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as cause:
        raise ConfigError(
            f"mixture '{path}'", "no such file", "Name one as data.mixture, or use kind: text."
        ) from cause
    except yaml.YAMLError as cause:
        raise ConfigError(
            f"mixture '{path}'", "not a mixture", "Declare numbers, noise and families."
        ) from cause


@dataclass(frozen=True)
class MixtureSource:
    """Contexts drawn from a mixture; `held_out` draws with a seed of its own.

    Args:
        mixture: the declared mixture.
        tokenizer: gives token ids.
        examples: examples per context.
        seed: of the stream.
        held_out_seed: of the held-out contexts.
    """

    mixture: Mixture
    tokenizer: Tokenizer
    examples: int
    seed: int
    held_out_seed: int

    def stream(self, n_contexts: int) -> Iterator[Ints]:
        """Endless blocks of contexts, [context pos]."""
        rng, table = np.random.default_rng(self.seed), TokenTable.of(self.mixture, self.tokenizer)
        while True:
            yield table.assemble(self.mixture.sample(rng, n_contexts, self.examples))

    def held_out(self, n_contexts: int) -> Ints:
        """Contexts drawn with `held_out_seed`, [context pos]."""
        rng = np.random.default_rng(self.held_out_seed)
        contexts = self.mixture.sample(rng, n_contexts, self.examples)
        return TokenTable.of(self.mixture, self.tokenizer).assemble(contexts)


@dataclass(frozen=True)
class TextSource:
    """Running text: documents are tokenised, joined, and cut into contexts that each begin with BOS.

    The first contexts are held out; a finite file is read again from its start, without them.

    Args:
        settings: names the dataset or file.
        tokenizer: gives token ids; has a BOS token.
        reserved: how many contexts are held out.
    """

    settings: TextContexts
    tokenizer: Any
    reserved: int

    def stream(self, n_contexts: int) -> Iterator[Ints]:
        """Endless blocks of contexts, [context pos]."""
        block: list[Ints] = []
        while True:
            seen = 0
            for context in islice(self._contexts(), self.reserved, None):
                seen += 1
                block.append(context)
                if len(block) == n_contexts:
                    yield np.stack(block)
                    block = []
            if not seen:
                self._too_short(self.reserved)

    def held_out(self, n_contexts: int) -> Ints:
        """The first contexts, [context pos]."""
        found = list(islice(self._contexts(), n_contexts))
        if len(found) < n_contexts:
            self._too_short(len(found))
        return np.stack(found)

    def _too_short(self, n_contexts: int) -> None:
        raise ConfigError(
            f"dataset '{self.settings.dataset}'",
            f"it holds {n_contexts} contexts of {self.settings.context_tokens} tokens, none left to train on",
            "Give more text, shorter contexts or fewer held_out.contexts.",
        )

    def _contexts(self) -> Iterator[Ints]:
        size = self.settings.context_tokens - 1
        waiting: list[int] = []
        for text in self._texts():
            waiting += self.tokenizer(text, add_special_tokens=False).input_ids
            while len(waiting) >= size:
                yield np.array([self.tokenizer.bos_token_id, *waiting[:size]], dtype=np.int64)
                waiting = waiting[size:]

    def _texts(self) -> Iterator[str]:
        settings = self.settings
        rows = (
            _json_lines(Path(settings.dataset))
            if settings.dataset.endswith(".jsonl")
            else _hub_rows(settings)
        )
        for row in rows:
            if settings.text_field not in row:
                raise ConfigError(
                    f"text_field '{settings.text_field}'", f"a row has {sorted(row)}", "Name one of these."
                )
            yield row[settings.text_field]


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.open(encoding="utf-8")
    except OSError as cause:
        raise ConfigError(
            f"dataset '{path}'", "no such file", "Give a .jsonl file or a dataset's name."
        ) from cause
    with lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as cause:
                raise ConfigError(
                    f"dataset '{path}'", f"line {number} is not JSON", "Mend the file."
                ) from cause
            yield row


def _hub_rows(settings: TextContexts) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    try:
        yield from load_dataset(settings.dataset, settings.subset, split=settings.split, streaming=True)
    except (OSError, ValueError) as cause:
        line = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise ConfigError(
            f"dataset '{settings.dataset}'", line, "Check its name, subset and split."
        ) from cause


class MixedSource:
    """A main source, in which some blocks are replaced by in-context prompts of named tasks.

    Args:
        main: the source of the other blocks, and of the held-out contexts.
        tokenizer: gives six tokens to an example.
        prompts: tasks, arms and their share of contexts.
        examples: examples per prompt.
        seed: prompts are built from it, and which block is of which kind.
    """

    def __init__(
        self, main: Source, tokenizer: Any, prompts: tuple[Prompts, ...], examples: int, seed: int
    ) -> None:
        self.main, self.tokenizer, self.prompts, self.examples, self.seed = (
            main,
            tokenizer,
            prompts,
            examples,
            seed,
        )
        for wanted in prompts:
            pool = len(default_inputs(parse_task(wanted.task).domain))
            if pool < examples:
                raise ConfigError(
                    f"prompts of '{wanted.task}'",
                    f"{examples} examples of {pool} inputs",
                    "Lower data.examples.",
                )

    def stream(self, n_contexts: int) -> Iterator[Ints]:
        """Endless blocks of contexts, [context pos], each of one kind."""
        rng = np.random.default_rng([self.seed, 1])
        weights = np.array([wanted.weight for wanted in self.prompts])
        weights = np.append(weights, 1 - weights.sum())
        makers: list[Callable[[], Ints]] = [self._maker(i, n_contexts) for i in range(len(self.prompts))]
        main = self.main.stream(n_contexts)
        makers.append(lambda: next(main))
        while True:
            yield makers[rng.choice(len(weights), p=weights / weights.sum())]()

    def held_out(self, n_contexts: int) -> Ints:
        """Held-out contexts of the main source, [context pos]."""
        return self.main.held_out(n_contexts)

    def _maker(self, index: int, n_contexts: int) -> Callable[[], Ints]:
        wanted, rng = self.prompts[index], np.random.default_rng([self.seed, 2, index])

        def make() -> Ints:
            return build_prompts(
                self.tokenizer, parse_task(wanted.task), arm=wanted.arm, n_prompts=n_contexts,
                n_examples=self.examples, seed=int(rng.integers(2**31)),
            ).tokens  # fmt: skip

        return make
