"""StabilityTable: whether a labelled latent is found again in other SAEs."""

from __future__ import annotations

from typing import ClassVar

from iclens.tables.frame import Column, Table


class StabilityTable(Table):
    """One row per labelled (site, role, latent, concept) and other set of SAEs."""

    KEY = ("site", "role", "latent", "concept", "other")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "hook name of the site"),
        "role": Column("str", "token of the example that was read"),
        "latent": Column("int", "labelled latent of the SAE at that site"),
        "concept": Column("str", "what it was asked"),
        "other": Column("str", "name of the other set of SAEs"),
        "other_d_sae": Column("int", "latents of the other SAE at that site; -1 when it has none there"),
        "match": Column("int", "latent of the other SAE that correlates most; -1 when there is none"),
        "correlation": Column("float", "Pearson correlation of the two activations over the same rows"),
        "match_label": Column("str", "the match's own label for the same concept; empty when it has none"),
        "stable": Column("bool", "correlation is at least `least` and the match is granted the same label"),
        "reason": Column("str", "why there is no match, or why the match is not stable; empty when it is"),
    }
