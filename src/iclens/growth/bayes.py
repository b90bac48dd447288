"""Growth against Bayes: fits of log-odds, evidence regressions, tests over arms, and beliefs behind answers.

With A_n the posterior after n examples and c = P(observation | task),

    LO_n = log(A_n / (1 − A_n)) = LO_0 + n·λ,   λ = log(c / (1 − c))

so A is a sigmoid in n, log A is concave, and log-odds are linear: every fit here is of log-odds, in nats.
Only (LO_0, λ) is identified from a curve; a composite alternative makes exact Bayes sublinear, so a curve
that bends does not refute Bayes.
"""

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

# ---------------------------------------------------------------------------------- the closed form


@dataclass(frozen=True)
class Shapes:
    """One posterior on three scales, [n] each: A_n, log A_n and log-odds, the latter two in nats."""

    posterior: Floats
    log_posterior: Floats
    log_odds: Floats


def evidence_step(c: float) -> float:
    """λ = log(c / (1 − c)), nats per example; c strictly between 0 and 1."""
    _check_inside_unit("evidence c", c)
    return float(np.log(c) - np.log1p(-c))


def predicted_shapes(prior: float, c: float, n: Ints) -> Shapes:
    """The posterior after n examples [n] of evidence c each; both strictly between 0 and 1."""
    _check_inside_unit("prior", prior)
    log_odds = np.log(prior) - np.log1p(-prior) + np.asarray(n) * evidence_step(c)
    log_posterior = -np.logaddexp(0.0, -log_odds)
    return Shapes(np.exp(log_posterior), log_posterior, log_odds)


def _check_inside_unit(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise TableError(name, f"{value}", "It has to be strictly between 0 and 1.")


# -------------------------------------------------------------------------------- fits of log-odds

LINEAR_R2 = 0.98
"""Share of a mean curve's variance that a line must explain over its linear part."""
MIN_POINTS = 4
"""Fewest examples in a linear part."""


@dataclass(frozen=True)
class BayesFit:
    """LO_n = lo_0 + n·lam, nats, with 95 % prompt-bootstrap intervals."""

    # lo_0, lo_0_low, lo_0_high: log-odds before any example, extrapolated from the linear part
    lo_0: float = np.nan
    lo_0_low: float = np.nan
    lo_0_high: float = np.nan
    # lam, lam_low, lam_high: nats per example
    lam: float = np.nan
    lam_low: float = np.nan
    lam_high: float = np.nan
    r: float = np.nan  # correlation of the mean curve with n_seen over the linear part
    # n_first, n_last: examples seen at the ends of the linear part
    n_first: int = -1
    n_last: int = -1
    n_prompts: int = 0  # prompts with finite log-odds throughout it
    reason: str = ""  # why the fit is NaN; empty otherwise


@dataclass(frozen=True)
class Agreement:
    """The model's log-odds regressed on the exact ones, over all prompts and examples; nats on both axes."""

    # slope, slope_low, slope_high: 1 for an exact learner; below 1 the model moves less than it should
    slope: float = np.nan
    slope_low: float = np.nan
    slope_high: float = np.nan
    intercept: float = np.nan  # the model's log-odds where the exact ones are 0
    r: float = np.nan  # correlation
    n_prompts: int = 0  # prompts with at least one finite pair
    reason: str = ""  # why the values are NaN; empty otherwise


def linear_part(n_seen: Ints, mean_log_odds: Floats) -> slice | None:
    """The longest run of examples over which a line explains `LINEAR_R2` of a mean curve's variance.

    Of runs of one length the earliest; a flat curve counts as linear, a run with a NaN does not count. None
    when no run has `MIN_POINTS`.
    """
    for length in range(len(n_seen), MIN_POINTS - 1, -1):
        for start in range(len(n_seen) - length + 1):
            run = slice(start, start + length)
            curve = mean_log_odds[run]
            if np.ptp(curve) == 0 or np.corrcoef(n_seen[run].astype(float), curve)[0, 1] ** 2 >= LINEAR_R2:
                return run
    return None


def fit_log_odds(
    n_seen: Ints, log_odds: Floats, *, over: slice | None = None, n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> BayesFit:  # fmt: skip
    """(LO_0, λ) of log-odds [prompt example] by least squares over the linear part of their mean, nats.

    `over` is the linear part, which stays as it is in each resample: by default `linear_part` of these
    log-odds. To compare two curves, give both that of the exact one, in which no model had a say.
    """
    expect_shape("fit_log_odds", n_seen=(n_seen, ("example",)), log_odds=(log_odds, ("prompt", "example")))
    if over is None:
        over = linear_part(n_seen, _mean_curve(log_odds))
        if over is None:
            return BayesFit(reason=f"no linear part of {MIN_POINTS} or more examples")
    n, curves = n_seen[over].astype(float), log_odds[:, over]
    curves = curves[np.isfinite(curves).all(axis=1)]
    if len(curves) < 2 or len(n) < 2:
        reason = f"{len(curves)} prompts and {len(n)} examples, two of each needed"
        return BayesFit(n_prompts=len(curves), reason=reason)
    # A line per prompt: the fit of the mean curve is the mean of these, and so is that of each resample.
    slopes = curves @ ((n - n.mean()) / ((n - n.mean()) ** 2).sum())
    lines = np.stack([curves.mean(axis=1) - slopes * n.mean(), slopes], axis=1)
    lo_0, lam = lines.mean(axis=0)
    draws = resample_prompts(len(curves), n_resamples, np.random.default_rng(seed)) / len(curves)
    low, high = interval(draws @ lines)
    return BayesFit(
        float(lo_0), float(low[0]), float(high[0]), float(lam), float(low[1]), float(high[1]),
        _correlation(n, curves.mean(axis=0)), int(n[0]), int(n[-1]), len(curves),
    )  # fmt: skip


def _mean_curve(log_odds: Floats) -> Floats:
    """Mean [example] over the prompts defined wherever any is; NaN at an example defined on no prompt."""
    somewhere = np.isfinite(log_odds).any(axis=0)
    whole = log_odds[np.isfinite(log_odds[:, somewhere]).all(axis=1)]
    return whole.mean(axis=0) if len(whole) else np.full(log_odds.shape[1], np.nan)


def _correlation(x: Floats, y: Floats) -> float:
    """Pearson's r; NaN when either side is constant."""
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) > 0 and np.ptp(y) > 0 else float("nan")


def agreement(exact: Floats, model: Floats, *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> Agreement:
    """How the model's log-odds follow the exact posterior's on the same prompts, nats [prompt example]."""
    expect_shape("agreement", exact=(exact, ("prompt", "example")), model=(model, ("prompt", "example")))
    both = np.isfinite(exact) & np.isfinite(model)
    used = both.any(axis=1)
    n_prompts = int(used.sum())
    if n_prompts < 2 or np.ptp(exact[both]) == 0:
        reason = "fewer than two prompts" if n_prompts < 2 else "the exact log-odds do not vary"
        return Agreement(n_prompts=n_prompts, reason=reason)
    # The slope needs five sums over prompts, so a resample is one weighted sum of per-prompt sums.
    x, y, w = (np.where(both, a, 0.0)[used] for a in (exact, model, both.astype(float)))
    sums: Floats = np.stack([a.sum(axis=1) for a in (w, x, y, x * x, x * y)], axis=1)
    slope, intercept = _line(sums.sum(axis=0))
    slopes, _ = _line(resample_prompts(n_prompts, n_resamples, np.random.default_rng(seed)) @ sums)
    low, high = interval(slopes)
    r = _correlation(exact[both], model[both])
    return Agreement(float(slope), float(low), float(high), float(intercept), r, n_prompts)


def _line(sums: Floats) -> tuple[Floats, Floats]:
    """Slope and intercept from Σ1, Σx, Σy, Σx², Σxy as [... 5]."""
    n, x, y, xx, xy = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = (n * xy - x * y) / (n * xx - x * x)
        return slope, (y - slope * x) / n


# ---------------------------------------------------------------------------- evidence regressions

COLLINEAR = 0.98
"""Share of the evidence's variance that count and age may explain before λ counts as unidentified."""
MIN_PROMPTS = 8
"""Fewest prompts (clusters) for an interval."""


@dataclass(frozen=True)
class EvidenceFit:
    """Coefficients of `evidence_regression`, [readout] each."""

    # evidence, evidence_low, evidence_high: λ and its 95 % interval
    evidence: Floats
    evidence_low: Floats
    evidence_high: Floats
    # count, count_low, count_high: δ and its interval
    count: Floats
    count_low: Floats
    count_high: Floats
    # similarity, similarity_low, similarity_high: η and its interval; NaN where similarity was not given
    similarity: Floats
    similarity_low: Floats
    similarity_high: Floats
    n_prompts: int  # prompts
    n_increments: int  # increments used
    reason: str  # why all is NaN; empty otherwise

    @property
    def weighting(self) -> list[str]:
        """What each read-out follows: "evidence", "count", "both" or "neither"; empty when undefined."""
        if self.reason:
            return [""] * len(self.evidence)
        by_evidence, by_count = self.evidence_low > 0, self.count_low > 0
        names = np.where(by_evidence, np.where(by_count, "both", "evidence"),
                         np.where(by_count, "count", "neither"))  # fmt: skip
        return names.tolist()


def evidence_regression(
    responses: Mapping[str, Floats], llr: Mapping[str, Floats], similarity: Mapping[str, Floats] | None = None
) -> EvidenceFit:
    """What the increments of every read-out follow, over all arms at once.

        Δr_ij = λ · LLR_ij + δ + ρ · (age_j − mean age) + η · (similarity_ij − mean similarity) + noise

    r is a read-out before example j [readout prompt example], Δr its change to before example j + 1, LLR the
    log-likelihood ratio that example j carries, nats [prompt example]; where it is NaN, and at the last
    example, it is left out. Similarity to the next query [prompt example] is finite where LLR is. A Bayesian
    weighs evidence (λ > 0, δ = 0); a counter does not (λ = 0, δ > 0); who copies from near examples has η >
    0. Standard errors are clustered by prompt, whose arms share its queries; t with clusters − 1 degrees of
    freedom. Source of the errors: Liang & Zeger (1986), Biometrika 73, 13–22.
    """
    rows, outcomes, clusters, n_prompts = [], [], [], 0
    for arm, response in responses.items():
        sizes = expect_shape(
            f"evidence of arm {arm}",
            response=(response, ("readout", "prompt", "example")), llr=(llr[arm], ("prompt", "example")),
        )  # fmt: skip
        n_prompts = max(n_prompts, sizes["prompt"])
        known = np.isfinite(llr[arm][:, :-1])
        prompt, example = np.nonzero(known)
        columns = [llr[arm][:, :-1][known], np.ones(len(prompt)), example.astype(float)]
        if similarity is not None:
            columns.append(similarity[arm][:, :-1][known])
        rows.append(np.stack(columns, axis=1))
        outcomes.append(np.diff(response.astype(np.float64), axis=2)[:, known])
        clusters.append(prompt)
    design, y = np.concatenate(rows), np.concatenate(outcomes, axis=1)
    cluster = np.concatenate(clusters)
    if not np.isfinite(y).all():
        remedy = "Leave read-outs that are undefined at an example out of `responses`."
        raise TableError("evidence regression", "a read-out is not finite", remedy)
    if reason := _unidentified(design, cluster):
        nan = np.full(len(y), np.nan)
        return EvidenceFit(*[nan] * 9, n_prompts=n_prompts, n_increments=len(design), reason=reason)
    design[:, 2:] -= design[:, 2:].mean(axis=0)
    if design.shape[1] > 3 and np.ptp(design[:, 3]) < 1e-9:
        design = design[:, :3]
    return _clustered_fit(design, y, cluster)


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


def _clustered_fit(design: Floats, y: Floats, cluster: Ints) -> EvidenceFit:
    """Least squares of y [readout row] on the design [row regressor]; errors clustered by prompt [row]."""
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
    half = stats.t.ppf(0.975, g - 1) * np.sqrt(np.einsum("jk,rkl,lj->rj", bread, meat, bread, optimize=True))
    figures = (beta, beta - half, beta + half)
    evidence, count = ([part[:, k] for part in figures] for k in (0, 1))
    similarity = [part[:, 3] if part.shape[1] > 3 else np.full(len(y), np.nan) for part in figures]
    return EvidenceFit(*evidence, *count, *similarity, n_prompts=g, n_increments=len(design), reason="")


# --------------------------------------------------------------------------------- tests over arms

Arms = Mapping[str, Floats]
Row = dict[str, object]
FIRST_DIFFERENT = 2
"""Examples after which a repeated example is one where T shows a new one."""


def bayes_tests(
    log_odds: Arms, llr: Arms, *, response: str, similarity: Arms | None = None, hinted: int = 2,
    treated: str = "T", seed: int = 0,
) -> BayesTestTable:  # fmt: skip
    """Whether a read-out behaves like a posterior, by every test that the arms allow; others have a reason.

    The same tests read the model's log-odds and the exact posterior's, so that a departure from Bayes and a
    peculiarity of the prompts can be told apart. By arm, [prompt example] each: the read-out before each
    example and its evidence in nats, and how near the example is to the next query, if known. The hint in
    arms Q- and Q0 has `hinted` examples.
    """
    known = {arm: values for arm, values in log_odds.items() if np.isfinite(values).all()}
    orders = [treated, *(arm for arm in known if arm.startswith("E") and arm[1:].isdigit())]
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
    return BayesTestTable.from_rows(rows)


def duplicates(distinct: Floats, repeated: Floats, seed: int = 0) -> Row:
    """Growth per repeated example ÷ growth per distinct one, after the first, from log-odds [prompt example].

    0 for a learner that is sure of its labels; where labels may be noise, a repeat still says that this one
    is not, and the exact posterior's own ratio is the one to compare with.
    """
    first = FIRST_DIFFERENT - 1
    ratio = ratio_of_means(repeated[:, -1] - repeated[:, first], distinct[:, -1] - distinct[:, first], seed)
    worth = "as much as new ones" if ratio.high >= 1 else "less than new ones"
    if ratio.low <= 0 <= ratio.high:
        worth = "nothing"
    meaning = "growth per repeated ÷ per new example; counting 1, sure labels 0"
    return _row(ratio, meaning, f"repeated examples add {worth}")


def order(orders: Floats, seed: int = 0) -> Row:
    """Variance over orders of one set of examples ÷ variance over sets; 0 for an exchangeable learner.

    Both are averaged over all numbers of examples from two on; the set's variance holds its query's.
    Log-odds are [order prompt example], the task's own order first.
    """
    late = orders[:, :, FIRST_DIFFERENT:]
    n_orders, n_prompts = late.shape[:2]
    within = late.var(axis=0, ddof=1).mean(axis=1)
    mean = late.mean(axis=0)
    weights = sample_and_resamples(n_prompts, N_RESAMPLES, np.random.default_rng(seed)) / n_prompts
    over_sets = ((weights @ mean**2) - (weights @ mean) ** 2).mean(axis=1) * n_prompts / (n_prompts - 1)
    inside = weights @ within
    # The variance of means over orders holds 1/n_orders of that within them.
    ratio = sample_interval(inside / np.maximum(over_sets - inside / n_orders, 1e-12))
    verdict = "the examples matter more than their order"
    if ratio.low > 1:
        verdict = "order matters more than the examples"
    return _row(ratio, "variance over orders ÷ over sets of examples; exchangeable 0", verdict)


def reversal(kept: Floats, switched: Floats, seed: int = 0) -> Row:
    """How much of the belief is given back when the second half of the labels is a rival's."""
    half = kept.shape[1] // 2
    ratio = ratio_of_means(switched[:, half] - switched[:, -1], switched[:, half] - switched[:, 0], seed)
    verdict = "the belief comes back down" if ratio.low > 0 else "the belief does not come back down"
    return _row(ratio, "share of the first half's gain given back by a rival's second half", verdict)


def separability(plain: Floats, hinted: Floats, n_hinted: int, seed: int = 0) -> Row:
    """Share of a hint's effect that is left at the end: 1 where it is a constant in log-odds, as a prior is.

    Log-odds [prompt example] with the task's labels throughout, and with other labels in the first
    `n_hinted`.
    """
    gap = plain - hinted
    ratio = ratio_of_means(gap[:, -1], gap[:, n_hinted], seed)
    verdict = "the hint is overcome" if ratio.high < 1 else "the hint's effect is not constant"
    if ratio.low <= 1 <= ratio.high:
        verdict = "the hint acts as a prior"
    return _row(ratio, "gap to the hinted arm at the end ÷ just after the hint; a prior 1", verdict)


def increments(log_odds: Arms, llr: Arms, similarity: Arms | None = None) -> Row:
    """Nats of belief per nat of label evidence, beyond a count of examples and their nearness."""
    arms = _with_evidence(log_odds, llr)
    fit = evidence_regression({arm: log_odds[arm][None] for arm in arms}, llr, similarity)
    if fit.reason:
        return _undefined(fit.reason)
    verdicts = {
        "evidence": "increments follow the evidence, not the count", "count": "increments count examples",
        "both": "increments follow the evidence and count", "neither": "increments follow neither",
    }  # fmt: skip
    meaning = f"Δ log-odds per nat of task evidence; per example beside it {fit.count[0]:.3f} "
    meaning += f"[{fit.count_low[0]:.3f}, {fit.count_high[0]:.3f}]"
    if np.isfinite(fit.similarity[0]):
        meaning += f"; from the farthest to the nearest example {fit.similarity[0]:.3f} "
        meaning += f"[{fit.similarity_low[0]:.3f}, {fit.similarity_high[0]:.3f}]"
    estimate = Interval(float(fit.evidence[0]), float(fit.evidence_low[0]), float(fit.evidence_high[0]))
    return _row(estimate, meaning, verdicts[fit.weighting[0]])


def _with_evidence(known: Arms, llr: Arms) -> list[str]:
    return [arm for arm in known if arm in llr and np.isfinite(llr[arm][:, :-1]).any()]


def _row(estimate: Interval, meaning: str, verdict: str) -> Row:
    if not estimate.known:
        return _undefined("what it is measured against is not clearly different from 0")
    return {
        "estimate": estimate.value, "low": estimate.low, "high": estimate.high, "meaning": meaning,
        "verdict": verdict, "reason": "",
    }  # fmt: skip


def _undefined(reason: str) -> Row:
    figures: Row = dict.fromkeys(("estimate", "low", "high"), np.nan)
    return figures | {"meaning": "", "verdict": "not tested", "reason": reason}


# ------------------------------------------------------------------------------------- belief table


def belief_table(
    n_seen: Ints, log_odds: Mapping[str, Floats], *, exact: Mapping[str, Floats] | None = None,
    names: Sequence[str] = BELIEFS, n_resamples: int = N_RESAMPLES, seed: int = 0,
) -> BeliefTable:  # fmt: skip
    """Means over prompts of every belief, by arm and examples seen.

    `mean` averages log-odds in nats, [prompt example belief] of each arm; `probability` averages
    σ(log-odds). Where the two disagree, prompts differ. An arm without `exact` log-odds gets NaN and a
    reason.
    """
    parts = []
    for arm, model in log_odds.items():
        expected = (exact or {}).get(arm, np.full(model.shape, np.nan))
        axes = ("prompt", "example", len(names))
        expect_shape(
            f"beliefs of arm {arm}", n_seen=(n_seen, ("example",)), model=(model, axes),
            exact=(expected, axes),
        )  # fmt: skip
        nats = prompt_band(model, np.random.default_rng(seed), n_resamples)
        probability = prompt_band(expit(model), np.random.default_rng(seed), n_resamples)
        # The exact mean runs over the prompts that the model's mean runs over.
        shared = np.where(np.isfinite(model), expected, np.nan)
        exact_mean = prompt_mean(shared)
        no_exact = np.where(np.isnan(exact_mean), "no exact posterior", "")
        columns = {
            "belief": np.tile(np.array(names), len(n_seen)),
            "arm": np.full(len(n_seen) * len(names), arm), "n_seen": np.repeat(n_seen, len(names)),
            "mean": nats.mean, "ci_low": nats.low, "ci_high": nats.high, "exact_mean": exact_mean,
            "probability": probability.mean, "probability_low": probability.low,
            "probability_high": probability.high, "exact_probability": prompt_mean(expit(shared)),
            "n_prompts": nats.n_prompts,
            "reason": np.where(nats.n_prompts == 0, "undefined on every prompt", no_exact),
        }  # fmt: skip
        parts.append(BeliefTable({name: np.ravel(values) for name, values in columns.items()}))
    return BeliefTable.concat(parts)


# ------------------------------------------------------------------------ beliefs behind the answers

LEAST_SPAN = 0.1
"""Least 1 − guess − lapse for which a belief behind the answers is given."""


@dataclass(frozen=True)
class Calibration:
    """Guess, P(correct) with no example, and lapse, P(wrong) where the task is forced, with 95 % intervals.

    `reason` says why they cannot be used; it is empty when they can.
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
    """Guess g and lapse d from P(correct) with no example and where the task is forced, [prompt] each.

        P(correct) = g + (1 − g − d) · A        A = (P(correct) − g) / (1 − g − d)

    Both are of prompts of their own: fitted from the curve that they correct, they would make any curve a
    posterior.
    """
    if len(zero_shot) == 0 or len(forced) == 0:
        remedy = "Give `zero_shot` and `forced` at least one prompt each."
        raise TableError("a calibration", "no prompts", remedy)
    rng = np.random.default_rng(seed)
    guess, lapse = ([float(part[0]) for part in prompt_band(values[:, None], rng)[:3]]
                    for values in (zero_shot, 1 - forced))  # fmt: skip
    span = float(1 - guess[0] - lapse[0])
    reason = "" if span >= LEAST_SPAN else f"1 − guess − lapse is {span:.2f}, {LEAST_SPAN} needed"
    return Calibration(*guess, *lapse, n_prompts=len(zero_shot), reason=reason)


def task_belief(p_correct: Floats, calibration: Calibration, floor: float = 1e-3) -> Floats:
    """Log-odds of the task behind answers that guess and lapse, nats [...]; NaN without a calibration.

    `p_correct` is of other prompts than the calibration's. The belief is clipped to [floor, 1 − floor]: the
    forced prompts cannot tell it from 1 more finely than their own spread.
    """
    if calibration.reason:
        return np.full(np.shape(p_correct), np.nan)
    span = 1 - calibration.guess - calibration.lapse
    belief = np.clip((p_correct - calibration.guess) / span, floor, 1 - floor)
    return np.log(belief) - np.log1p(-belief)
