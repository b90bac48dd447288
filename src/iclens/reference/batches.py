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
    """Pairs of `pre` positions of a batch: a recipient gets a donor's resid and should answer as it believes.

    Positions are flat, context · examples + example.

    Args:
        recipient: [pair].
        donor: [pair].
        target: exact predictive of the donor's posterior at the recipient's x, [pair answer].
        weight: [pair]; 0 where nothing is to be learned.
    """

    recipient: Tensor
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
            rare_share: share of contexts drawn evenly from the tasks on letters and words, noiseless.
        """
        mixture, size = self.mixture, n_contexts or self.recipe.contexts_per_step
        clean = int(np.argmin(mixture.noise_levels))
        prior = noise_share * np.array(mixture.noise_prior)
        prior[clean] += 1 - noise_share
        tasks = rng.choice(len(mixture.tasks), size, p=np.array(mixture.prior))
        noise = rng.choice(len(mixture.noise_levels), size, p=prior)
        rare = [i for i, task in enumerate(mixture.tasks) if task.domain != "number"]
        if rare and rare_share:
            chosen = rng.random(size) < rare_share
            tasks, noise = np.where(chosen, rng.choice(rare, size), tasks), np.where(chosen, clean, noise)
        contexts = mixture.sample(rng, size, self.recipe.examples, tasks=tasks, noise=noise)
        posterior = exact_posterior(mixture, contexts.x, contexts.y)
        own, other = posterior.mixing()
        target = torch.from_numpy(posterior.predictive(contexts.x)).float()
        return Batch(self.tokens(contexts), target, own, other, contexts)

    def interchanges(self, rng: np.random.Generator, batch: Batch, recipient: Ints) -> Interchanges:
        """Pair `pre` positions with random donors of the same domain.

        Args:
            rng: source of randomness.
            batch: where both come from.
            recipient: flat positions, [pair].
        """
        examples = batch.contexts.x.shape[1]
        x = batch.contexts.x.reshape(-1)
        kind, allowed = self.domain[batch.contexts.x[:, 0]], ~np.isin(batch.contexts.task, self._excluded)
        wanted, donor, weight = kind[recipient // examples], recipient.copy(), np.zeros(len(recipient))
        for value in np.unique(kind):
            members, rows = np.flatnonzero((kind == value) & allowed), np.flatnonzero(wanted == value)
            if len(members):
                donor[rows] = rng.choice(members, len(rows)) * examples
                donor[rows] += rng.integers(0, examples, len(rows))
                weight[rows] = 1.0
        weight[x[donor] == x[recipient]] = 0.0
        own, other = batch.own.reshape(len(x), -1)[donor], batch.other.reshape(-1)[donor]
        target = torch.from_numpy(mix_answers(self.mixture, own, other, x[recipient])).float()
        return Interchanges(
            torch.from_numpy(recipient), torch.from_numpy(donor), target, torch.from_numpy(weight).float()
        )
