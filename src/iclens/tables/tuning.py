"""What number is each latent tuned to: regressions of its tuning curve, and periods carried by subspaces."""

from __future__ import annotations

from typing import ClassVar

from iclens.tables.frame import Column, Table


class TuningTable(Table):
    """One row per (site, role, latent, of): mean activation by value, regressed on that value."""

    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "hook name of the site"),
        "role": Column("str", "token of the example that was read"),
        "latent": Column("int", "latent of the SAE at that site"),
        "of": Column("str", "the number it may be tuned to: y, x or y-2x"),
        "n_values": Column("int", "values with enough rows"),
        "r2": Column("float", "variance of the curve that v, and cos and sin of its periods, explain"),
        "null_q95": Column("float", "95 % quantile of r2 when the values are put in random order"),
        "p_value": Column("float", "(1 + random orders with as large an r2) / (1 + random orders)"),
        "q_value": Column("float", "Benjamini-Hochberg over the latents of this site, role and number"),
        "linear_share": Column("float", "magnitude: variance lost when v is left out"),
        "parity_share": Column("float", "parity: variance lost when period 2 is left out"),
        "best_period": Column("float", "period whose loss is largest"),
        "best_share": Column("float", "variance lost without it"),
        "reason": Column("str", "why nothing is said, or empty"),
    }  # fmt: skip


class SubspaceTable(Table):
    """One row per (site, role, representation, of, period): the period read from several features at once."""

    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "hook name of the site"),
        "role": Column("str", "token of the example that was read"),
        "representation": Column("str", "latents, or the whole activation"),
        "of": Column("str", "the number whose period it is"),
        "period": Column("float", "the period T: cos and sin of 2 pi v / T are read, for T = 2 one number"),
        "r2": Column("float", "variance of them explained on held-out tasks"),
        "p_value": Column("float", "(1 + relabelled values with as large an r2) / (1 + relabellings)"),
        "n_features": Column("int", "features that were offered"),
        "n_for_90": Column("int", "fewest of the sizes tried that reach 90 % of r2; -1 when none does"),
        "n_train": Column("int", "rows of discovery tasks"),
        "n_held": Column("int", "rows of held-out tasks"),
        "reason": Column("str", "why nothing is said, or empty"),
    }  # fmt: skip
