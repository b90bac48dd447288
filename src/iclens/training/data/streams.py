"""The stream of contexts that SAEs are trained on: one main source, with prompts of named tasks mixed in.

1. Sources of equal length share blocks, others take turns. 2. Who is next is whoever is furthest behind its
weight, so that shares are right at every moment and not only on average. 3. Order follows from the seed;
where the stream stands is a few numbers, and after `restore` the following blocks are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from iclens.model.shape import read_shape
from iclens.table import Ints
from iclens.training.config import MixtureContexts, TextContexts, TrainConfig
from iclens.training.data.contexts import (
    Facts,
    MainSource,
    MixtureSource,
    PromptSource,
    Source,
    State,
    read_mixture,
)
from iclens.training.data.text import TextSource
from iclens.training.data.tokens import TokenSource


class TokenStream(Protocol):
    """Endless blocks of contexts."""

    def next(self) -> Ints:
        """The next block, [context pos]; blocks of different lengths may follow each other."""
        ...

    def samples(self) -> list[Ints]:
        """A block of every length that the stream has, [context pos] each; the stream stays where it is."""
        ...

    def state(self) -> State:
        """Where the stream stands: small, and made of what JSON knows."""
        ...

    def restore(self, state: State) -> None:
        """Go on from there."""
        ...

    def facts(self) -> Facts:
        """What is to be known of the data read so far."""
        ...


def build_stream(config: TrainConfig, tokenizer: Any) -> TokenStream:
    """The stream that a configuration asks for.

    Every process of a run reads this one stream, and runs the model on its share of each block.

    Args:
        config: what to train on.
        tokenizer: the model's.

    Raises:
        ConfigError: when a file is missing or damaged, or a prompt has too few inputs.
    """
    examples, prompts = config.data.examples, config.data.prompts
    weighted: list[tuple[Source, float]] = [
        (PromptSource(wanted, tokenizer, examples, config.seed, index), wanted.weight)
        for index, wanted in enumerate(prompts)
    ]
    rest = 1 - sum(weight for _, weight in weighted)
    weighted.append((_main(config, tokenizer), rest if rest > 1e-9 else 0.0))
    return MixedStream([pair for pair in weighted if pair[1] > 0], config.training.forward_contexts)


def held_out(config: TrainConfig, tokenizer: Any) -> Ints:
    """Contexts of the main source that no stream of this configuration holds, [context pos].

    Raises:
        ConfigError: when there are too few.
    """
    return _main(config, tokenizer).held_out(config.held_out.contexts)


def _main(config: TrainConfig, tokenizer: Any) -> MainSource:
    settings, reserved = config.data, config.held_out.contexts
    n_vocab = min(len(tokenizer), read_shape(config.model.name).n_vocab)
    if isinstance(settings, MixtureContexts):
        mixture = read_mixture(settings, config.model.name)
        return MixtureSource(mixture, tokenizer, settings.examples, config.seed, config.held_out.seed)
    if isinstance(settings, TextContexts):
        return TextSource(settings, tokenizer, reserved, n_vocab)
    return TokenSource(settings, tokenizer, reserved, config.seed, config.held_out.seed, n_vocab)


@dataclass
class _Group:
    """Sources of one length, with their weights and how many blocks and contexts each has given."""

    sources: list[Source]
    weights: list[float]
    contexts: list[int]
    blocks: int = 0

    def block(self, n_contexts: int) -> Ints:
        """A block to which every source gives its share, [context pos]."""
        before = list(self.contexts)
        for _ in range(n_contexts):
            self.contexts[furthest_behind(self.weights, self.contexts)] += 1
        self.blocks += 1
        wanted = [now - then for now, then in zip(self.contexts, before, strict=True)]
        return np.concatenate([s.take(n) for s, n in zip(self.sources, wanted, strict=True) if n])


def furthest_behind(weights: Sequence[float], given: Sequence[int]) -> int:
    """Who is next: the index with the largest wᵢ/Σw·(Σgiven + 1) − givenᵢ, the first of equals."""
    share = np.array(weights) / sum(weights)
    return int(np.argmax(share * (sum(given) + 1) - np.array(given)))


class MixedStream:
    """Sources mixed by weight.

    Args:
        weighted: sources and their share of all contexts.
        n_contexts: contexts in a block.
    """

    def __init__(self, weighted: Sequence[tuple[Source, float]], n_contexts: int) -> None:
        self._n_contexts = n_contexts
        self._groups: list[_Group] = []
        for length in dict.fromkeys(source.length for source, _ in weighted):
            members = [pair for pair in weighted if pair[0].length == length]
            sources, weights = [source for source, _ in members], [weight for _, weight in members]
            self._groups.append(_Group(sources, weights, [0] * len(members)))

    def next(self) -> Ints:
        """The next block, [context pos]."""
        weights = [sum(group.weights) for group in self._groups]
        turn = furthest_behind(weights, [group.blocks for group in self._groups])
        return self._groups[turn].block(self._n_contexts)

    def samples(self) -> list[Ints]:
        """A block of every length; the stream stays where it is."""
        before = self.state()
        blocks = [group.block(self._n_contexts) for group in self._groups]
        self.restore(before)
        return blocks

    def state(self) -> State:
        """Where it stands."""
        return {
            "groups": [
                {
                    "blocks": group.blocks,
                    "contexts": list(group.contexts),
                    "sources": [source.state() for source in group.sources],
                }
                for group in self._groups
            ]
        }

    def restore(self, state: State) -> None:
        """Go on from there."""
        for group, then in zip(self._groups, state["groups"], strict=True):
            group.blocks, group.contexts = then["blocks"], list(then["contexts"])
            for source, place in zip(group.sources, then["sources"], strict=True):
                source.restore(place)

    def facts(self) -> Facts:
        """What is to be known of the data read so far."""
        found: Facts = {}
        for source in (source for group in self._groups for source in group.sources):
            found |= source.facts()
        return found
