"""The exact posterior of a mixture: what an ideal learner believes after each example.

With w = P(τ, p | examples so far) over tasks τ and noise levels p,

    w_{j+1}(τ, p) ∝ w_j(τ, p) · [(1 − p) P(y_j | x_j, τ) + p q(y_j | x_j)],   w_0 = π(τ | domain) ρ(p)
    P(y | x, examples) = Σ_{τ,p} w(τ, p) [(1 − p) P(y | x, τ) + p q(y | x)]

x is uniform over its domain whatever the hypothesis, so it only tells the domain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iclens.tasks.mixture import Floats, Ints, Mixture


@dataclass(frozen=True)
class Posterior:
    """Exact beliefs before each example of each context.

    Args:
        mixture: the process that drew the contexts.
        weights: P(τ, p | the examples before j) as [context example task noise].
    """

    mixture: Mixture
    weights: Floats

    @property
    def task(self) -> Floats:
        """P(τ | examples before j) as [context example task]."""
        return self.weights.sum(axis=-1)

    @property
    def noise(self) -> Floats:
        """P(p | examples before j) as [context example noise]."""
        return self.weights.sum(axis=-2)

    def mixing(self) -> tuple[Floats, Floats]:
        """Weights of each task's own answer [context example task], of the background [context example]."""
        levels = np.array(self.mixture.noise_levels)
        return self.weights @ (1 - levels), (self.weights @ levels).sum(axis=-1)

    def predictive(self, x: Ints) -> Floats:
        """P(y | x, examples before j) as [context example answer].

        Args:
            x: [context example] input indices to predict for; of the same domain as the context's own.
        """
        own, other = self.mixing()
        flat = own.reshape(-1, own.shape[-1])
        return mix_answers(self.mixture, flat, other.reshape(-1), x.reshape(-1)).reshape(*x.shape, -1)


def exact_posterior(mixture: Mixture, x: Ints, y: Ints) -> Posterior:
    """The posterior over tasks and noise levels before each example.

    NaN after an example that no hypothesis can give, such as a shuffled label.

    Args:
        mixture: the process that drew the contexts.
        x: [context example] indices into `mixture.inputs`.
        y: [context example] indices into `mixture.answers`.
    """
    levels = np.array(mixture.noise_levels)
    own = mixture.likelihood[x, :, y][..., None]
    other = mixture.background[x, y][..., None, None]
    with np.errstate(divide="ignore"):
        evidence = np.log((1 - levels) * own + levels * other)
        start = np.log(mixture.domain_prior[x[:, 0]][:, None, :, None] * np.array(mixture.noise_prior))
    before = np.concatenate([np.zeros_like(evidence[:, :1]), evidence[:, :-1]], axis=1)
    log_weights = start + np.cumsum(before, axis=1)
    with np.errstate(invalid="ignore"):
        weights = np.exp(log_weights - log_weights.max(axis=(2, 3), keepdims=True))
    return Posterior(mixture, weights / weights.sum(axis=(2, 3), keepdims=True))


def mix_answers(mixture: Mixture, own: Floats, other: Floats, x: Ints) -> Floats:
    """P(y | x) = Σ_τ own(τ) P(y | x, τ) + other · q(y | x), row by row.

    Args:
        mixture: source of the likelihoods.
        own: [row task].
        other: [row].
        x: [row] input indices.

    Returns:
        [row answer].
    """
    out = other[:, None] * mixture.background[x]
    for value in np.unique(x):
        rows = np.flatnonzero(x == value)
        out[rows] += own[rows] @ mixture.likelihood[value]
    return out
