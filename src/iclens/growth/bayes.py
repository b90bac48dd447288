"""Growth against Bayes: exponents, exchange rates and evidence, per example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import expit

from iclens.core import BELIEFS, TableError
from iclens.schemas import BayesTestTable, BeliefTable
from iclens.stats import (
    N_RESAMPLES,
    Interval,
    interval,
    prompt_band,
    prompt_mean,
    ratio_of_means,
    resample_prompts,
    sample_and_resamples,
    sample_interval,
)
from iclens.table import Floats, Ints, expect_shape

LINEAR_R2 = 0.98
"""Share of a mean curve's variance that a line must explain over its linear part."""
MIN_POINTS = 4
"""Fewest examples in a linear part."""


@dataclass(frozen=True)
class Shapes:
    """One posterior on three scales, each [n].

    Args:
        posterior: A_n, a sigmoid.
        log_posterior: log A_n in nats, concave.
        log_odds: LO_n in nats, linear.
    """

    posterior: Floats
    log_posterior: Floats
    log_odds: Floats


@dataclass(frozen=True)
class BayesFit:
    """LO_n = lo_0 + n·lam on the log-odds scale (nats), with 95 % prompt-bootstrap intervals.

    Args:
        lo_0: log-odds before any example, extrapolated from the linear part.
        lo_0_low, lo_0_high: its interval.
        lam: nats per example.
        lam_low, lam_high: its interval.
        r: correlation of the mean curve with n_seen over the linear part.
        n_first, n_last: examples seen at the ends of the linear part.
        n_prompts: prompts with finite log-odds throughout it.
        reason: why the fit is NaN; empty otherwise.
    """

    lo_0: float
    lo_0_low: float
    lo_0_high: float
    lam: float
    lam_low: float
    lam_high: float
    r: float
    n_first: int
    n_last: int
    n_prompts: int
    reason: str


@dataclass(frozen=True)
class Agreement:
    """The model's log-odds regressed on the exact ones, pooled over prompts and examples; nats on both axes.

    Args:
        slope: 1 for an exact learner; below 1 the model moves less than it should.
        slope_low, slope_high: 95 % prompt-bootstrap interval.
        intercept: the model's log-odds where the exact ones are 0.
        r: correlation.
        n_prompts: prompts with at least one finite pair.
        reason: why the values are NaN; empty otherwise.
    """

    slope: float
    slope_low: float
    slope_high: float
    intercept: float
    r: float
    n_prompts: int
    reason: str


def update(prior: Floats, evidence_task: Floats, evidence_other: Floats) -> Floats:
    """One step of Bayes: A c / (A c + (1 − A) c′), c = P(observation | task), c′ = P(… | not task)."""
    return prior * evidence_task / (prior * evidence_task + (1 - prior) * evidence_other)


def evidence_step(c: float) -> float:
    """λ = log(c / (1 − c)), nats per example.

    Raises:
        TableError: unless 0 < c < 1.
    """
    _open_unit("evidence c", c)
    return float(np.log(c) - np.log1p(-c))


def posterior_curve(prior: float, c: float, n: Ints) -> Floats:
    """A_n = σ(LO_0 + nλ), [n].

    Args:
        prior: A_0.
        c: P(observation | task).
        n: examples seen, [n].

    Raises:
        TableError: unless both probabilities are inside (0, 1).
    """
    return predicted_shapes(prior, c, n).posterior


def predicted_shapes(prior: float, c: float, n: Ints) -> Shapes:
    """The posterior, its log and its log-odds after n examples.

    Raises:
        TableError: unless both probabilities are inside (0, 1).
    """
    _open_unit("prior", prior)
    log_odds = np.log(prior) - np.log1p(-prior) + np.asarray(n) * evidence_step(c)
    log_posterior = -np.logaddexp(0.0, -log_odds)
    return Shapes(np.exp(log_posterior), log_posterior, log_odds)


def linear_part(n_seen: Ints, mean_log_odds: Floats) -> slice | None:
    """The longest run of examples over which a line explains `LINEAR_R2` of the mean curve's variance.

    Among runs of one length the earliest is taken; a flat curve counts as linear.

    Args:
        n_seen: [example].
        mean_log_odds: [example], nats.

    Returns:
        The run as a slice of the example axis, or None when none has `MIN_POINTS` finite points.
    """
    size = len(n_seen)
    for length in range(size, MIN_POINTS - 1, -1):
        for start in range(size - length + 1):
            run = slice(start, start + length)
            if _explained(n_seen[run].astype(float), mean_log_odds[run]) >= LINEAR_R2:
                return run
    return None


def fit_log_odds(
    n_seen: Ints, log_odds: Floats, *, over: slice | None = None, n_resamples: int = 1000, seed: int = 0
) -> BayesFit:
    """(LO_0, λ) of a belief by least squares over the linear part of its mean log-odds.

    Args:
        n_seen: [example].
        log_odds: [prompt example], nats.
        over: the linear part as a slice of the example axis. By default `linear_part` of these log-odds; to
            compare two curves, give both the linear part of the exact one, in which no model had a say.
        n_resamples: prompt-bootstrap resamples; the linear part stays as it is in each.
        seed: of the resampling.

    Raises:
        TableError: when the axes do not agree.
    """
    expect_shape("fit_log_odds", n_seen=(n_seen, ("example",)), log_odds=(log_odds, ("prompt", "example")))
    if over is None:
        over = linear_part(n_seen, _mean_curve(log_odds))
        if over is None:
            return _no_fit(0, f"no linear part of {MIN_POINTS} or more examples")
    n, curves = n_seen[over].astype(float), log_odds[:, over]
    curves = curves[np.isfinite(curves).all(axis=1)]
    if len(curves) < 2 or len(n) < 2:
        return _no_fit(len(curves), f"{len(curves)} prompts and {len(n)} examples, two of each needed")
    weights = (n - n.mean()) / ((n - n.mean()) ** 2).sum()
    slopes = curves @ weights
    fits = np.stack([curves.mean(axis=1) - slopes * n.mean(), slopes], axis=1)
    lo_0, lam = fits.mean(axis=0)
    draws = resample_prompts(len(curves), n_resamples, np.random.default_rng(seed)) / len(curves)
    low, high = interval(draws @ fits)
    return BayesFit(
        float(lo_0), float(low[0]), float(high[0]), float(lam), float(low[1]), float(high[1]),
        _correlation(n, curves.mean(axis=0)), int(n[0]), int(n[-1]), len(curves), "",
    )  # fmt: skip


def agreement(exact: Floats, model: Floats, *, n_resamples: int = 1000, seed: int = 0) -> Agreement:
    """How the model's log-odds follow the exact posterior's.

    Args:
        exact: exact log-odds, [prompt example], nats.
        model: the model's on the same prompts, [prompt example], nats.
        n_resamples: prompt-bootstrap resamples.
        seed: of the resampling.

    Raises:
        TableError: when the axes do not agree.
    """
    expect_shape("agreement", exact=(exact, ("prompt", "example")), model=(model, ("prompt", "example")))
    both = np.isfinite(exact) & np.isfinite(model)
    used = both.any(axis=1)
    x, y, w = (np.where(both, a, 0.0)[used] for a in (exact, model, both.astype(float)))
    n_prompts = int(used.sum())
    if n_prompts < 2 or np.ptp(exact[both]) == 0:
        reason = "fewer than two prompts" if n_prompts < 2 else "the exact log-odds do not vary"
        return Agreement(np.nan, np.nan, np.nan, np.nan, np.nan, n_prompts, reason)
    # The slope needs five sums over prompts, so a resample is one weighted sum of per-prompt sums.
    sums: Floats = np.stack([a.sum(axis=1) for a in (w, x, y, x * x, x * y)], axis=1)
    slope, intercept = _line(sums.sum(axis=0))
    draws = resample_prompts(n_prompts, n_resamples, np.random.default_rng(seed))
    slopes, _ = _line(draws @ sums)
    low, high = interval(slopes)
    r = _correlation(exact[both], model[both])
    return Agreement(float(slope), float(low), float(high), float(intercept), r, n_prompts, "")


def _line(sums: Floats) -> tuple[Floats, Floats]:
    """Slope and intercept from Σ1, Σx, Σy, Σx², Σxy as [... 5]."""
    n, x, y, xx, xy = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = (n * xy - x * y) / (n * xx - x * x)
        return slope, (y - slope * x) / n


def _mean_curve(log_odds: Floats) -> Floats:
    """Mean [example] over the prompts defined wherever any is; NaN at an example defined on no prompt."""
    somewhere = np.isfinite(log_odds).any(axis=0)
    whole = log_odds[np.isfinite(log_odds[:, somewhere]).all(axis=1)]
    return whole.mean(axis=0) if len(whole) else np.full(log_odds.shape[1], np.nan)


def _explained(x: Floats, y: Floats) -> float:
    """R² of the least-squares line; 1 for a flat curve, NaN with a hole."""
    if np.isnan(y).any():
        return float("nan")
    if np.ptp(y) == 0:
        return 1.0
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def _correlation(x: Floats, y: Floats) -> float:
    """Pearson's r; NaN when either side is constant."""
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) > 0 and np.ptp(y) > 0 else float("nan")


def _no_fit(n_prompts: int, reason: str) -> BayesFit:
    nan = float("nan")
    return BayesFit(nan, nan, nan, nan, nan, nan, nan, -1, -1, n_prompts, reason)


def _open_unit(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise TableError(name, f"{value}", "It has to be strictly between 0 and 1.")


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


Arms = Mapping[str, Floats]
Row = dict[str, object]
FIRST_DIFFERENT = 2
"""Examples after which a repeated example is one where T shows a new one."""


def bayes_tests(
    log_odds: Arms, llr: Arms, *, response: str, similarity: Arms | None = None, hinted: int = 2,
    treated: str = "T", seed: int = 0,
) -> BayesTestTable:  # fmt: skip
    """Every test that the arms allow; the others are rows with a reason.

    Args:
        log_odds: arm → the read-out before each example, nats [prompt example].
        llr: arm → evidence of each example, nats [prompt example].
        response: whose read-out, for the table.
        similarity: arm → how near each example is to the query after it, [prompt example], if that is known.
        hinted: examples of the hint in arms Q- and Q0.
        treated: the task's own arm.
        seed: of the resampling.
    """
    known = {arm: values for arm, values in log_odds.items() if np.isfinite(values).all()}
    orders = _orders(known, treated)
    tests: list[tuple[str, list[str], Callable[[], Row]]] = [
        ("duplicates", [treated, "D"], lambda: duplicates(known[treated], known["D"], seed)),
        ("two duplicates", [treated, "D2"], lambda: duplicates(known[treated], known["D2"], seed)),
        ("order", orders, lambda: order(np.stack([known[arm] for arm in orders]), seed)),
        ("reversal", [treated, "W"], lambda: reversal(known[treated], known["W"], seed)),
        ("prior against evidence, rival hint", [treated, "Q-"],
         lambda: separability(known[treated], known["Q-"], hinted, seed)),
        ("prior against evidence, neutral hint", [treated, "Q0"],
         lambda: separability(known[treated], known["Q0"], hinted, seed)),
        ("evidence", _with_evidence(known, llr), lambda: increments(known, llr, similarity)),
    ]  # fmt: skip
    rows = []
    for name, arms, test in tests:
        missing = [arm for arm in arms if arm not in known] or ([] if arms else [treated])
        if name == "order" and len(orders) < 2:
            missing = ["E1"]
        row = _undefined(f"arm {missing[0]} is not followed, or undefined on a prompt") if missing else test()
        rows.append({"test": name, "response": response, "arms": ", ".join(arms)} | row)
    return BayesTestTable({key: [row[key] for row in rows] for key in BayesTestTable.COLUMNS})


def duplicates(distinct: Floats, repeated: Floats, seed: int = 0) -> Row:
    """Growth per repeated example ÷ growth per distinct one, after the first.

    0 for a learner that is sure of its labels; where labels may be noise, a repeat still says that this one
    is not, and the exact posterior's own ratio is the one to compare with.

    Args:
        distinct: log-odds with a new example each time, [prompt example].
        repeated: with one (or two) repeated, [prompt example].
        seed: of the resampling.
    """
    first = FIRST_DIFFERENT - 1
    ratio = ratio_of_means(repeated[:, -1] - repeated[:, first], distinct[:, -1] - distinct[:, first], seed)
    verdict = "as much as new ones" if ratio.high >= 1 else "less than new ones"
    if ratio.low <= 0 <= ratio.high:
        verdict = "nothing"
    return _row(ratio, "growth per repeated ÷ per new example; counting 1, sure labels 0",
                f"repeated examples add {verdict}")  # fmt: skip


def order(orders: Floats, seed: int = 0) -> Row:
    """Variance over orders of one set of examples ÷ variance over sets; 0 for an exchangeable learner.

    Both are averaged over all numbers of examples from two on; the set's variance holds its query's.

    Args:
        orders: log-odds in each order, the task's own first, [order prompt example].
        seed: of the resampling.
    """
    shown = orders[:, :, FIRST_DIFFERENT:]
    n_orders, n_prompts = shown.shape[:2]
    within = shown.var(axis=0, ddof=1).mean(axis=1)
    mean = shown.mean(axis=0)
    weights = sample_and_resamples(n_prompts, N_RESAMPLES, np.random.default_rng(seed)) / n_prompts
    over_sets = ((weights @ mean**2) - (weights @ mean) ** 2).mean(axis=1) * n_prompts / (n_prompts - 1)
    inside = weights @ within
    ratio = inside / np.maximum(over_sets - inside / n_orders, 1e-12)
    found = sample_interval(ratio)
    verdict = (
        "order matters more than the examples"
        if found.low > 1
        else "the examples matter more than their order"
    )
    return _row(found, "variance over orders ÷ over sets of examples; exchangeable 0", verdict)


def reversal(kept: Floats, switched: Floats, seed: int = 0) -> Row:
    """How much of the belief is given back when the second half of the labels is a rival's.

    Args:
        kept: log-odds of the task's answer, its labels throughout, [prompt example].
        switched: with a rival's labels in the second half, [prompt example].
        seed: of the resampling.
    """
    half = kept.shape[1] // 2
    given_back, gained = switched[:, half] - switched[:, -1], switched[:, half] - switched[:, 0]
    ratio = ratio_of_means(given_back, gained, seed)
    verdict = "the belief comes back down" if ratio.low > 0 else "the belief does not come back down"
    return _row(ratio, "share of the first half's gain given back by a rival's second half", verdict)


def separability(plain: Floats, hinted: Floats, n_hinted: int, seed: int = 0) -> Row:
    """Is a hint's effect a constant in log-odds, as a prior's would be? Share of the gap left at the end.

    Args:
        plain: log-odds with the task's labels throughout, [prompt example].
        hinted: with other labels in the first examples, [prompt example].
        n_hinted: how many.
        seed: of the resampling.
    """
    gap = plain - hinted
    ratio = ratio_of_means(gap[:, -1], gap[:, n_hinted], seed)
    verdict = (
        "the hint acts as a prior" if ratio.low <= 1 <= ratio.high else "the hint's effect is not constant"
    )
    if ratio.high < 1:
        verdict = "the hint is overcome"
    return _row(ratio, "gap to the hinted arm at the end ÷ just after the hint; a prior 1", verdict)


def increments(log_odds: Arms, llr: Arms, similarity: Arms | None = None) -> Row:
    """Nats of belief per nat of label evidence, beyond a count of examples and their nearness."""
    arms = _with_evidence(log_odds, llr)
    fit = evidence_regression({arm: log_odds[arm][None] for arm in arms}, llr, similarity)
    if fit.reason:
        return _undefined(fit.reason)
    words = {
        "evidence": "increments follow the evidence, not the count", "count": "increments count examples",
        "both": "increments follow the evidence and count", "neither": "increments follow neither",
    }  # fmt: skip
    return _row(
        Interval(*(float(part[0]) for part in (fit.evidence, fit.evidence_low, fit.evidence_high))),
        f"Δ log-odds per nat of task evidence; per example beside it {fit.count[0]:.3f} "
        f"[{fit.count_low[0]:.3f}, {fit.count_high[0]:.3f}]" + _near(fit),
        words[fit.weighting[0]],
    )  # fmt: skip


def _near(fit: EvidenceFit) -> str:
    if not np.isfinite(fit.similarity[0]):
        return ""
    shown = f"{fit.similarity[0]:.3f} [{fit.similarity_low[0]:.3f}, {fit.similarity_high[0]:.3f}]"
    return f"; from the farthest to the nearest example {shown}"


def _orders(known: Arms, treated: str) -> list[str]:
    return [treated, *(arm for arm in known if arm.startswith("E") and arm[1:].isdigit())]


def _with_evidence(known: Arms, llr: Arms) -> list[str]:
    return [arm for arm in known if arm in llr and np.isfinite(llr[arm][:, :-1]).any()]


def _row(found: Interval, meaning: str, verdict: str) -> Row:
    if not found.known:
        return _undefined("what it is measured against is not clearly different from 0")
    return {
        "estimate": found.value, "low": found.low, "high": found.high, "meaning": meaning,
        "verdict": verdict, "reason": "",
    }  # fmt: skip


def _undefined(reason: str) -> Row:
    nan = float("nan")
    return {
        "estimate": nan,
        "low": nan,
        "high": nan,
        "meaning": "",
        "verdict": "not tested",
        "reason": reason,
    }


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


LEAST_SPAN = 0.1
"""Least 1 − g − d for which a belief behind the answers is given."""


@dataclass(frozen=True)
class Calibration:
    """Guess and lapse with 95 % prompt-bootstrap intervals.

    Args:
        guess, guess_low, guess_high: P(correct) with no example.
        lapse, lapse_low, lapse_high: P(wrong) where the task is forced.
        n_prompts: prompts behind them.
        reason: why they cannot be used; empty when they can.
    """

    guess: float
    guess_low: float
    guess_high: float
    lapse: float
    lapse_low: float
    lapse_high: float
    n_prompts: int
    reason: str


def calibrate(zero_shot: Floats, forced: Floats, *, seed: int = 0) -> Calibration:
    """Guess and lapse.

    Args:
        zero_shot: P(correct) with no example, [prompt].
        forced: P(correct) where the task is forced, [prompt].
        seed: of the bootstrap.

    Raises:
        TableError: when there are no prompts.
    """
    if len(zero_shot) == 0 or len(forced) == 0:
        raise TableError(
            "a calibration", "no prompts", "Give `zero_shot` and `forced` at least one prompt each."
        )
    rng = np.random.default_rng(seed)
    guess, lapse = prompt_band(zero_shot[:, None], rng), prompt_band(1 - forced[:, None], rng)
    span = float(1 - guess.mean[0] - lapse.mean[0])
    reason = "" if span >= LEAST_SPAN else f"1 − guess − lapse is {span:.2f}, {LEAST_SPAN} needed"
    ends = [[float(part[0]) for part in (band.mean, band.low, band.high)] for band in (guess, lapse)]
    (g, g_low, g_high), (d, d_low, d_high) = ends
    return Calibration(g, g_low, g_high, d, d_low, d_high, len(zero_shot), reason)


def task_belief(p_correct: Floats, calibration: Calibration, floor: float = 1e-3) -> Floats:
    """Log-odds of A behind the answers, nats; A is clipped to [floor, 1 − floor], NaN without a calibration.

    Args:
        p_correct: [...].
        calibration: of other prompts.
        floor: of A; the forced prompts cannot tell A from 1 more finely than their own spread.
    """
    if calibration.reason:
        return np.full(np.shape(p_correct), np.nan)
    span = 1 - calibration.guess - calibration.lapse
    belief = np.clip((p_correct - calibration.guess) / span, floor, 1 - floor)
    return np.log(belief) - np.log1p(-belief)
