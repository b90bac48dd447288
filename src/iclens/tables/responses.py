"""What the model answers as a function of x: ResponseTable and ResponseFitTable.

Run A (donor) holds examples of the task, run B (recipient) asks about x and does not, A* is A's context with
B's query. Every x has several donors. Answers are the numbers 0–999 and the task's words; any other token is
left out.
"""

from __future__ import annotations

from typing import ClassVar

from iclens.tables.frame import Column, Table

_PATCH = (
    '"base" = B, "A*", and patches of B: "full activation", "all latents" (B\'s error kept), "error only", '
    '"given latents"'
)


class ResponseTable(Table):
    """Response curve: one row per site, patch and x."""

    KEY = ("task", "site", "patch", "latents", "recipient", "n_seen", "x")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "task": Column("str", "spec of the donor's rule, f"),
        "site": Column("str", "what is patched at the query's `pre`; of base and A*, what they stand beside"),
        "patch": Column("str", _PATCH),
        "latents": Column(
            "str", "ids of the given latents, patched at once, separated by spaces; else empty"
        ),
        "recipient": Column("str", 'run B: "zero examples", or the length-matched "S arm" or "R arm"'),
        "n_seen": Column("int", "examples in the donor's context"),
        "x": Column("int", "run B's query"),
        "answer": Column("str", "the task's own answer to it, f(x)"),
        "scaled": Column(
            "str", "a·x for a task a·x + b; empty without a slope or where it is not among 0–999"
        ),
        "n_donors": Column("int", "pairs of runs with this x"),
        "mean": Column("float", "E[y | x, y a number] = Σ y P(y) / Σ P(y) over y = 0–999, mean over donors"),
        "sd": Column("float", "standard deviation of E[y | x, y a number] over donors; NaN with one donor"),
        "top_1": Column("str", "the answer of the largest P, P averaged over donors"),
        "rank": Column("int", "1 + answers of larger P than f(x)"),
        "rank_scaled": Column("float", "1 + answers of larger P than a·x; NaN where `scaled` is empty"),
        "p_answer": Column("float", "P(f(x)), mean over donors"),
        "p_scaled": Column("float", "P(a·x), mean over donors; NaN where `scaled` is empty"),
        "p_copy": Column(
            "float",
            "P(an answer of the donors that lent values); of f(x_A) for an instance, mean over donors",
        ),
        "p_number": Column("float", "P(any number of 0–999), mean over donors"),
        "reason": Column("str", "why a value of the row is NaN; empty otherwise"),
    }


class ResponseFitTable(Table):
    """Response curve in a few numbers: one row per site and patch, intervals a 95 % bootstrap over x."""

    KEY = ("task", "site", "patch", "latents", "recipient", "n_seen")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "task": ResponseTable.COLUMNS["task"],
        "site": ResponseTable.COLUMNS["site"],
        "patch": ResponseTable.COLUMNS["patch"],
        "latents": ResponseTable.COLUMNS["latents"],
        "recipient": ResponseTable.COLUMNS["recipient"],
        "n_seen": ResponseTable.COLUMNS["n_seen"],
        "n_x": Column("int", "points of the curve"),
        "slope": Column("float", "least-squares slope of E[y | x, y a number] on x"),
        "slope_low": Column("float", "lower end of its interval"),
        "slope_high": Column("float", "upper end of its interval"),
        "intercept": Column("float", "value of the fitted line at x = 0"),
        "intercept_low": Column("float", "lower end of its interval"),
        "intercept_high": Column("float", "upper end of its interval"),
        "slope_change": Column("float", "slope − slope of base, x resampled together; 0 for base itself"),
        "slope_change_low": Column("float", "lower end of its interval"),
        "slope_change_high": Column("float", "upper end of its interval"),
        "top_1_answer": Column("float", "share of x whose top-1 answer is f(x)"),
        "top_5_answer": Column("float", "share of x with f(x) among the five most probable answers"),
        "top_1_scaled": Column("float", "share of x whose top-1 answer is a·x; NaN for a task without slope"),
        "top_5_scaled": Column("float", "share of x with a·x among the five; NaN for a task without slope"),
        "top_1_odd": Column("float", "share of x whose top-1 answer is an odd number"),
        "reason": Column("str", "why a value of the row is NaN; empty otherwise"),
    }
