"""Training batches: tokens of drawn contexts beside their exact predictive distributions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from iclens.reference.recipe import Recipe
from iclens.tasks.assemble import TokenTable
from iclens.tasks.mixture import Contexts, Floats, Ints
from iclens.tasks.posterior import exact_posterior, mix_answers
from iclens.tasks.spec import parse_task


@dataclass(frozen=True)
class Batch:
    """One step's data.

    Args:
        tokens: [context pos].
        target: exact P(y | x, examples before) as [context example answer].
        own, other: mixing weights of the posterior, [context example task] and [context example].
        contexts: what was drawn.
    """

    tokens: Tensor
    target: Tensor
    own: Floats
    other: Floats
    contexts: Contexts


@dataclass(frozen=True)
class Interchanges:
    """A donor for every `pre` position of a batch, and what the patched model should answer.

    Args:
        donor: [context example] flat index (context · examples + example) of the donor position.
        target: exact predictive of the donor's posterior at the recipient's x, [context example answer].
        weight: [context example]; 0 where nothing is to be learned.
    """

    donor: Tensor
    target: Tensor
    weight: Tensor


class BatchMaker:
    """Draws batches from a recipe's mixture; the same step always gives the same batch.

    Args:
        recipe: the recipe.
        tokenizer: gives token ids.
    """

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> None:
        self.recipe, self.mixture = recipe, recipe.declared_mixture
        self._table = TokenTable.of(self.mixture, tokenizer)
        self.answer_ids = self._table.answers

    @cached_property
    def domain(self) -> Ints:
        """Domain of each input, as the index of its first task."""
        return (self.mixture.domain_prior > 0).argmax(axis=1)

    @cached_property
    def _excluded(self) -> Ints:
        excluded = self.recipe.interchange.excluded_donors
        return np.array([self.mixture.index(parse_task(name)) for name in excluded], dtype=np.int64)

    def tokens(self, contexts: Contexts) -> Tensor:
        """Token ids of drawn contexts as [context pos]."""
        return torch.from_numpy(self._table.assemble(contexts))

    def batch(
        self,
        rng: np.random.Generator,
        noise_share: float = 1.0,
        n_contexts: int | None = None,
        rare_share: float = 0.0,
    ) -> Batch:
        """Draw a batch.

        Args:
            rng: source of randomness.
            noise_share: below 1, the noise prior is mixed with noiseless contexts.
            n_contexts: contexts of the batch; the recipe's by default.
            rare_share: share of contexts drawn evenly from the tasks on letters and words.
        """
        clean = np.eye(len(self.mixture.noise_levels))[int(np.argmin(self.mixture.noise_levels))]
        prior = noise_share * np.array(self.mixture.noise_prior) + (1 - noise_share) * clean
        size = n_contexts or self.recipe.contexts_per_step
        tasks = rng.choice(len(self.mixture.tasks), size, p=np.array(self.mixture.prior))
        rare = [i for i, task in enumerate(self.mixture.tasks) if task.domain != "number"]
        if rare and rare_share:
            tasks = np.where(rng.random(size) < rare_share, rng.choice(rare, size), tasks)
        contexts = self.mixture.sample(rng, size, self.recipe.examples, tasks=tasks, noise_prior=prior)
        posterior = exact_posterior(self.mixture, contexts.x, contexts.y)
        own, other = posterior.mixing()
        target = torch.from_numpy(posterior.predictive(contexts.x)).float()
        return Batch(self.tokens(contexts), target, own, other, contexts)

    def interchanges(self, rng: np.random.Generator, batch: Batch) -> Interchanges:
        """Pair every `pre` position with a random donor of the same domain."""
        x, task = batch.contexts.x, batch.contexts.task
        n, examples = x.shape
        kind, allowed = self.domain[x[:, 0]], ~np.isin(task, self._excluded)
        donor, weight = np.arange(n * examples).reshape(n, examples), np.zeros((n, examples))
        for value in np.unique(kind):
            members, rows = np.flatnonzero((kind == value) & allowed), np.flatnonzero(kind == value)
            if len(members):
                size = (len(rows), examples)
                donor[rows] = rng.choice(members, size) * examples + rng.integers(0, examples, size)
                weight[rows] = 1.0
        weight[:, 0] *= self.recipe.interchange.zero_example_weight
        weight[x.reshape(-1)[donor] == x] = 0.0
        own = batch.own.reshape(n * examples, -1)[donor.reshape(-1)]
        other = batch.other.reshape(-1)[donor.reshape(-1)]
        target = mix_answers(self.mixture, own, other, x.reshape(-1)).reshape(n, examples, -1)
        return Interchanges(
            torch.from_numpy(donor), torch.from_numpy(target).float(), torch.from_numpy(weight).float()
        )
