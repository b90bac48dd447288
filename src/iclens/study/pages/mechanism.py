"""What does the page of concepts show of the mechanism? Periods of numbers, and what MLPs do at `lab`.

Enter a run's tables; leave plain records, a group for each question. Nothing is tested here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from iclens.dashboards.records.mechanism import (
    CarriedRow,
    CreationRow,
    CreationView,
    Figure,
    OperandRow,
    OperandsView,
    PeriodRow,
    SizeRow,
)
from iclens.dashboards.text import DASH

PARITY = "odd"
"""The concept that parity claims are about."""


def period_rows(table: pd.DataFrame) -> list[PeriodRow]:
    """Periods of a number in several features."""
    return [
        PeriodRow(
            f"{row['site']} {row['role']}", row["representation"], row["of"], row["period"],
            Figure(row["r2"], reason=row["reason"]), row["p_value"],
            f"{row['n_for_90']:.0f}" if row["n_for_90"] > 0 else DASH, row["n_features"],
        )
        for row in records(table)
    ]  # fmt: skip


def operands_view(table: pd.DataFrame) -> OperandsView:
    """Measures of x and y at `lab`, measures × layers."""
    layers = sorted(set(table["layer"]))
    rows = []
    for measure, own in table.groupby("measure", sort=False):
        by_layer = {row["layer"]: row for row in records(own)}
        at = [by_layer.get(layer) for layer in layers]
        figures = [
            Figure(row["value"], row["ci_low"], row["ci_high"], row["reason"]) if row else Figure(math.nan)
            for row in at
        ]
        rows.append(OperandRow(str(measure), figures, [row["null"] if row else math.nan for row in at]))
    return OperandsView(layers, rows)


def creation_views(table: pd.DataFrame) -> list[CreationView]:
    """Where each concept is read around the blocks, layers × sources."""
    sources, views = list(dict.fromkeys(table["source"])), []
    for concept, own in table.groupby("concept", sort=False):
        rows = []
        for layer, block in own.groupby("layer"):
            by_source = {row["source"]: row for row in records(block)}
            first = block.iloc[0]
            names = (f"attention_minus_mlp{end}" for end in ("", "_low", "_high"))
            why = next((row["reason"] for row in by_source.values() if row["reason"]), "")
            difference = Figure(*(first[name] for name in names), reason=why)
            aurocs = [auroc_of(by_source[s]) if s in by_source else Figure(math.nan) for s in sources]
            rows.append(CreationRow(int(str(layer)), aurocs, first["verdict"], difference, first["larger"]))
        views.append(CreationView(str(concept), sources, rows, concept == PARITY))
    return views


def size_rows(table: pd.DataFrame) -> list[SizeRow]:
    """What sizes at `lab` go with."""
    names = ("r", "r_given_magnitude", "magnitude_r")
    found = []
    for row in records(table):
        r, given, of_y = (Figure(row[n], row[f"{n}_low"], row[f"{n}_high"], row["reason"]) for n in names)
        named = (row["concept"], row["site"], row["latent"], row["over"])
        found.append(SizeRow(*named, r, given, of_y, row["verdict"], row["reason"], row["n_rows"]))
    return found


def carried_rows(table: pd.DataFrame) -> tuple[list[CarriedRow], list[str]]:
    """How well sizes at `lab` predict what later `pre` receive, and the names of the predictions."""
    weights, rows = list(dict.fromkeys(table["weights"])), []
    for _, own in table.groupby(["concept", "site", "latent"], sort=False):
        by_weights = {row["weights"]: row for row in records(own)}
        first = next(iter(by_weights.values()))
        r2 = [
            Figure(row["r2"], row["r2_low"], row["r2_high"], row["reason"]) if row else Figure(math.nan)
            for row in map(by_weights.get, weights)
        ]
        little = dict.fromkeys(f.reason for f in r2 if not math.isnan(f.value) and f.reason)
        ends = [first[f"attention_minus_equal{end}"] for end in ("", "_low", "_high")]
        difference = Figure(*ends, reason=first["reason"])
        named = (first["concept"], first["site"], first["latent"], first["layer"])
        rows.append(CarriedRow(*named, r2, difference, first["lab_attention"], "; ".join(little)))
    return rows, weights


def auroc_of(row: Mapping[str, Any]) -> Figure:
    """An AUROC with its interval and the reason of its row."""
    return Figure(row["auroc"], row["ci_low"], row["ci_high"], row["reason"])


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Each row as column → value."""
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]
