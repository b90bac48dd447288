"""How a number is coded: the tuning of single latents, and periods that several latents code together."""

from __future__ import annotations

from typing import ClassVar

from iclens.tables.frame import Column, Table


class TuningTable(Table):
    """One row per (site, role, latent, of): the curve of mean activation by a number, as line and waves."""

    KEY = ("site", "role", "latent", "of")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "hook name of the site"),
        "role": Column("str", "token of the example that was read"),
        "latent": Column("int", "latent of the SAE at that site"),
        "of": Column("str", "the number: y, x or y-2x"),
        "n_values": Column("int", "values of the number on the curve"),
        "r2": Column("float", "share of the curve's variance that line and waves explain, values by rows"),
        "null_q95": Column("float", "95 % quantile of r2 when the order of the values is random"),
        "p_value": Column("float", "(1 + random orders with r2 as large) / (1 + random orders)"),
        "q_value": Column("float", "Benjamini-Hochberg over the rows that were fitted together"),
        "linear_share": Column("float", "share of the curve's variance that a line alone explains"),
        "parity_share": Column(
            "float", "share lost without the period 2; NaN where it is no column of its own"
        ),
        "best_period": Column("float", "period whose waves lose most when left out, units of the number"),
        "best_share": Column("float", "share lost when that period is left out"),
        "reason": Column("str", "why a figure is undefined, or empty"),
    }


class SubspaceTable(Table):
    """One row per (site, role, representation, of, period): a wave read linearly on held-out tasks."""

    KEY = ("site", "role", "representation", "of", "period")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "hook name of the site"),
        "role": Column("str", "token of the example that was read"),
        "representation": Column("str", "what it was read from: latents or activation"),
        "of": Column("str", "the number: y, x or y-2x"),
        "period": Column("float", "period of the wave, units of the number"),
        "r2": Column("float", "1 - SSE/SST on held-out tasks, cosine and sine pooled; can be below 0"),
        "p_value": Column("float", "(1 + random relabellings with r2 as large) / (1 + relabellings)"),
        "n_features": Column("int", "features that were read, chosen on the training tasks"),
        "n_for_90": Column("float", "fewest of 1, 2, 4 ... of them that reach 90 % of r2; NaN if r2 <= 0"),
        "n_train": Column("int", "rows (prompt x example) of discovery tasks"),
        "n_held": Column("int", "rows of held-out tasks"),
        "reason": Column("str", "why a figure is undefined, or empty"),
    }
