"""Beliefs by examples seen: the model's log-odds with a bootstrap band, beside the exact posterior's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import expit

from iclens.names import BELIEFS
from iclens.tables.arrays import Floats, Ints, expect_shape
from iclens.tables.bands import prompt_band, prompt_mean
from iclens.tables.growth import BeliefTable


def belief_table(
    n_seen: Ints,
    log_odds: Mapping[str, Floats],
    *,
    exact: Mapping[str, Floats] | None = None,
    names: Sequence[str] = BELIEFS,
    n_resamples: int = 1000,
    seed: int = 0,
) -> BeliefTable:
    """Means over prompts of every belief, by arm and examples seen.

    `mean` averages log-odds; `probability` averages σ(log-odds). Where the two disagree, prompts differ.

    Args:
        n_seen: examples seen at `pre`, [example].
        log_odds: arm → the model's log-odds in nats, [prompt example belief], NaN where undefined.
        exact: arm → the exact posterior's, in the same shape; arms without one get NaN and a reason.
        names: of the beliefs, [belief].
        n_resamples: prompt-bootstrap resamples.
        seed: of the resampling.

    Raises:
        TableError: when the axes do not agree.
    """
    parts = []
    for arm, model in log_odds.items():
        true = (exact or {}).get(arm)
        expected = np.full(model.shape, np.nan) if true is None else true
        axes = ("prompt", "example", len(names))
        expect_shape(
            f"beliefs of arm {arm}",
            n_seen=(n_seen, ("example",)),
            model=(model, axes),
            exact=(expected, axes),
        )
        parts.append(_arm_rows(arm, n_seen, names, (model, expected), (n_resamples, seed)))
    return BeliefTable.concat(parts)


def _arm_rows(
    arm: str, n_seen: Ints, names: Sequence[str], both: tuple[Floats, Floats], drawn: tuple[int, int]
) -> BeliefTable:
    (model, expected), (n_resamples, seed) = both, drawn
    nats = prompt_band(model, np.random.default_rng(seed), n_resamples)
    probability = prompt_band(expit(model), np.random.default_rng(seed), n_resamples)
    # The exact mean runs over the prompts that the model's mean runs over.
    shared = np.where(np.isfinite(model), expected, np.nan)
    exact_mean, exact_probability = prompt_mean(shared), prompt_mean(expit(shared))
    reason = np.where(
        nats.n_prompts == 0,
        "undefined on every prompt",
        np.where(np.isnan(exact_mean), "no exact posterior", ""),
    )
    columns = {
        "belief": np.tile(np.array(names), len(n_seen)),
        "arm": np.full(len(n_seen) * len(names), arm),
        "n_seen": np.repeat(n_seen, len(names)),
        "mean": nats.mean,
        "ci_low": nats.low,
        "ci_high": nats.high,
        "exact_mean": exact_mean,
        "probability": probability.mean,
        "probability_low": probability.low,
        "probability_high": probability.high,
        "exact_probability": exact_probability,
        "n_prompts": nats.n_prompts,
        "reason": reason,
    }
    return BeliefTable({name: np.asarray(values).reshape(-1) for name, values in columns.items()})
