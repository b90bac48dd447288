"""ProbeTable: how well a concept can be read on tasks that a probe was not trained on."""

from __future__ import annotations

from typing import ClassVar

from iclens.tables.frame import Column, Table


class ProbeTable(Table):
    """One row per (site, role, concept, representation, k); every AUROC is of held-out tasks."""

    KEY = ("site", "role", "concept", "representation", "k")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "hook name of the site"),
        "role": Column("str", "token of the example that was read"),
        "concept": Column("str", "what was read"),
        "representation": Column("str", "what it was read from, or the control"),
        "k": Column("int", "features that the probe may use; -1: all"),
        "auroc": Column("float", "P(higher on a positive than on a matched negative), mean over folds"),
        "ci_low": Column("float", "2.5 % bound of `auroc`, a t interval over folds; approximate"),
        "ci_high": Column("float", "97.5 % bound of `auroc`, likewise"),
        "minus_dense": Column("float", "AUROC minus that of the dense probe, mean over folds"),
        "minus_dense_low": Column("float", "2.5 % bound of `minus_dense`, a paired t interval over folds"),
        "minus_dense_high": Column("float", "97.5 % bound of `minus_dense`, likewise"),
        "verdict": Column("str", "below dense, as dense or above dense; empty for dense and controls"),
        "n_folds": Column("int", "held-out folds of whole tasks that were measured"),
        "n_rows": Column("int", "rows (prompt x example) used, training and held-out"),
        "n_tasks": Column("int", "tasks used"),
        "reason": Column("str", "why a figure is NaN, or how many folds could not be measured; else empty"),
    }
