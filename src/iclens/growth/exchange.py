"""Does a belief behave like a posterior? Duplicates, order, reversal, prior: what each arm should change.

Every test takes log-odds of one read-out by arm, [prompt example], and gives one row with an interval that
resamples prompts. The same tests read the model's log-odds and the exact posterior's, so that a departure
from Bayes and a peculiarity of the prompts can be told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from iclens.growth.evidence import EvidenceFit, evidence_regression
from iclens.tables.arrays import Floats
from iclens.tables.bands import resample_prompts
from iclens.tables.evidence import BayesTestTable

Arms = Mapping[str, Floats]
Row = dict[str, object]
RESAMPLES = 1000
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
    estimate, low, high = _ratio(
        repeated[:, -1] - repeated[:, first], distinct[:, -1] - distinct[:, first], seed
    )
    verdict = "as much as new ones" if high >= 1 else "less than new ones"
    if low <= 0 <= high:
        verdict = "nothing"
    return _row(estimate, low, high, "growth per repeated ÷ per new example; counting 1, sure labels 0",
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
    draws = resample_prompts(n_prompts, RESAMPLES, np.random.default_rng(seed)) / n_prompts
    weights = np.concatenate([np.full((1, n_prompts), 1 / n_prompts), draws])
    over_sets = ((weights @ mean**2) - (weights @ mean) ** 2).mean(axis=1) * n_prompts / (n_prompts - 1)
    inside = weights @ within
    ratio = inside / np.maximum(over_sets - inside / n_orders, 1e-12)
    low, high = np.quantile(ratio[1:], [0.025, 0.975])
    verdict = (
        "order matters more than the examples" if low > 1 else "the examples matter more than their order"
    )
    return _row(ratio[0], low, high, "variance over orders ÷ over sets of examples; exchangeable 0", verdict)


def reversal(kept: Floats, switched: Floats, seed: int = 0) -> Row:
    """How much of the belief is given back when the second half of the labels is a rival's.

    Args:
        kept: log-odds of the task's answer, its labels throughout, [prompt example].
        switched: with a rival's labels in the second half, [prompt example].
        seed: of the resampling.
    """
    half = kept.shape[1] // 2
    given_back, gained = switched[:, half] - switched[:, -1], switched[:, half] - switched[:, 0]
    estimate, low, high = _ratio(given_back, gained, seed)
    verdict = "the belief comes back down" if low > 0 else "the belief does not come back down"
    return _row(
        estimate, low, high, "share of the first half's gain given back by a rival's second half", verdict
    )


def separability(plain: Floats, hinted: Floats, n_hinted: int, seed: int = 0) -> Row:
    """Is a hint's effect a constant in log-odds, as a prior's would be? Share of the gap left at the end.

    Args:
        plain: log-odds with the task's labels throughout, [prompt example].
        hinted: with other labels in the first examples, [prompt example].
        n_hinted: how many.
        seed: of the resampling.
    """
    gap = plain - hinted
    estimate, low, high = _ratio(gap[:, -1], gap[:, n_hinted], seed)
    verdict = "the hint acts as a prior" if low <= 1 <= high else "the hint's effect is not constant"
    if high < 1:
        verdict = "the hint is overcome"
    return _row(
        estimate, low, high, "gap to the hinted arm at the end ÷ just after the hint; a prior 1", verdict
    )


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
        fit.evidence[0], fit.evidence_low[0], fit.evidence_high[0],
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


def _ratio(top: Floats, bottom: Floats, seed: int) -> tuple[float, float, float]:
    """Ratio of means over prompts with its percentile interval; NaN where the bottom's sign is unclear."""
    draws = resample_prompts(len(top), RESAMPLES, np.random.default_rng(seed))
    below = draws @ bottom
    if np.quantile(below, 0.025) <= 0 <= np.quantile(below, 0.975):
        return float("nan"), float("nan"), float("nan")
    low, high = np.quantile((draws @ top) / below, [0.025, 0.975])
    return float(top.sum() / bottom.sum()), float(low), float(high)


def _row(estimate: float, low: float, high: float, meaning: str, verdict: str) -> Row:
    if not np.isfinite(estimate):
        return _undefined("what it is measured against is not clearly different from 0")
    return {
        "estimate": float(estimate), "low": float(low), "high": float(high), "meaning": meaning,
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
