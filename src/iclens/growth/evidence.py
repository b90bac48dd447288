"""Do increments follow the evidence of the example just read, or only that there was one?

    Δr_ij = λ · LLR_ij + δ + ρ · (age_j − mean age) + η · (similarity_ij − mean similarity) + noise

r is a read-out before example j, Δr its change to before example j + 1, LLR the log-likelihood ratio (nats)
that example j carries, similarity how near it is to the query after it. A Bayesian weighs evidence (λ > 0,
δ = 0); a counter does not (λ = 0, δ > 0); who copies from near examples has η > 0. Least
squares over all arms at once, with standard errors clustered by prompt: a prompt's arms share its queries.
Source of the errors: Liang & Zeger (1986), Biometrika 73, 13–22; t with clusters − 1 degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from iclens.errors import TableError
from iclens.tables.arrays import Floats, Ints, expect_shape

COLLINEAR = 0.98
"""Share of the evidence's variance that count and age may explain before λ counts as unidentified."""
MIN_PROMPTS = 8
"""Fewest prompts (clusters) for an interval."""


@dataclass(frozen=True)
class EvidenceFit:
    """Regressions of several read-outs on one set of evidence, [read-out] each.

    Args:
        evidence, evidence_low, evidence_high: λ and its 95 % interval.
        count, count_low, count_high: δ and its interval.
        similarity, similarity_low, similarity_high: η and its interval; NaN where similarity was not given.
        n_prompts: prompts.
        n_increments: increments used.
        reason: why all is NaN; empty otherwise.
    """

    evidence: Floats
    evidence_low: Floats
    evidence_high: Floats
    count: Floats
    count_low: Floats
    count_high: Floats
    similarity: Floats
    similarity_low: Floats
    similarity_high: Floats
    n_prompts: int
    n_increments: int
    reason: str

    @property
    def weighting(self) -> list[str]:
        """What each read-out follows: "evidence", "count", "both" or "neither"; empty when undefined."""
        if self.reason:
            return [""] * len(self.evidence)
        names = {
            (True, False): "evidence",
            (False, True): "count",
            (True, True): "both",
            (False, False): "neither",
        }
        pairs = zip(self.evidence_low > 0, self.count_low > 0, strict=True)
        return [names[bool(by_evidence), bool(by_count)] for by_evidence, by_count in pairs]


def evidence_regression(
    responses: Mapping[str, Floats], llr: Mapping[str, Floats], similarity: Mapping[str, Floats] | None = None
) -> EvidenceFit:
    """λ, δ and η of every read-out.

    Args:
        responses: arm → read-outs before each example, [readout prompt example].
        llr: arm → evidence of each example, nats [prompt example]; NaN where unknown, whose increments are
            left out. The last example's is not used.
        similarity: arm → how alike the example is to the query after it, [prompt example], finite where `llr`
            is; left out if None, or if it is the same everywhere.

    Raises:
        TableError: when the axes do not agree, or a used response is not finite.
    """
    rows, outcomes, clusters, n_prompts = [], [], [], 0
    for arm, response in responses.items():
        given = llr[arm]
        sizes = expect_shape(
            f"evidence of arm {arm}",
            response=(response, ("readout", "prompt", "example")), llr=(given, ("prompt", "example")),
        )  # fmt: skip
        n_prompts = max(n_prompts, sizes["prompt"])
        known = np.isfinite(given[:, :-1])
        prompt, example = np.nonzero(known)
        beside = [] if similarity is None else [similarity[arm][:, :-1][known]]
        rows.append(
            np.stack([given[:, :-1][known], np.ones(len(prompt)), example.astype(float), *beside], axis=1)
        )
        outcomes.append(np.diff(response.astype(np.float64), axis=2)[:, known])
        clusters.append(prompt)
    design, y = np.concatenate(rows), np.concatenate(outcomes, axis=1)
    cluster = np.concatenate(clusters)
    if not np.isfinite(y).all():
        raise TableError(
            "evidence regression",
            "a read-out is not finite",
            "Leave read-outs that are undefined at an example out of `responses`.",
        )
    if reason := _unidentified(design, cluster):
        nan = np.full(len(y), np.nan)
        return EvidenceFit(nan, nan, nan, nan, nan, nan, nan, nan, nan, n_prompts, len(design), reason)
    design[:, 2:] -= design[:, 2:].mean(axis=0)
    if design.shape[1] > 3 and np.ptp(design[:, 3]) < 1e-9:
        design = design[:, :3]
    return _fit(design, y, cluster)


def _unidentified(design: Floats, cluster: Ints) -> str:
    """Why λ cannot be told apart, or empty; columns are evidence, 1, age and perhaps similarity."""
    if len(np.unique(cluster)) < MIN_PROMPTS:
        return f"evidence is known in {len(np.unique(cluster))} prompts, {MIN_PROMPTS} needed"
    llr, others = design[:, 0], design[:, 1:]
    if np.ptp(llr) < 1e-9:
        return "every example carries the same evidence"
    left = llr - others @ np.linalg.lstsq(others, llr, rcond=None)[0]
    if left.var() < (1 - COLLINEAR) * llr.var():
        return "the evidence does not vary apart from count and age"
    return ""


def _fit(design: Floats, y: Floats, cluster: Ints) -> EvidenceFit:
    bread = np.linalg.inv(design.T @ design)
    beta = y @ design @ bread
    residual = y - beta @ design.T
    names, member = np.unique(cluster, return_inverse=True)
    g = len(names)
    # Σ over a prompt's increments of x·e, one prompt at a time: [prompt readout regressor].
    sums = np.zeros((g, *beta.shape))
    for k in range(design.shape[1]):
        np.add.at(sums[..., k], member, (residual * design[:, k]).T)
    meat = np.einsum("grk,grl->rkl", sums, sums, optimize=True) * g / (g - 1)
    errors = np.sqrt(np.einsum("jk,rkl,lj->rj", bread, meat, bread, optimize=True))
    half = stats.t.ppf(0.975, g - 1) * errors
    low, high = beta - half, beta + half
    nan = np.full(len(y), np.nan)
    similarity = [part[:, 3] if part.shape[1] > 3 else nan for part in (beta, low, high)]
    return EvidenceFit(
        beta[:, 0], low[:, 0], high[:, 0], beta[:, 1], low[:, 1], high[:, 1],
        similarity[0], similarity[1], similarity[2], g, len(design), "",
    )  # fmt: skip
