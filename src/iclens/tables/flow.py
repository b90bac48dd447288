"""What a latent's size says of an example, and whether later queries receive it."""

from __future__ import annotations

from typing import ClassVar

from iclens.tables.frame import Column, Table


class ConfidenceTable(Table):
    """Two rows per (site, latent, concept): over all rows at `lab`, and over those where it is active.

    Every r is a rank correlation of the latent's activation. Both partial ones hold x, the number of examples
    seen and the concept's own label fixed.
    """

    KEY = ("site", "latent", "concept", "over")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "hook name of the site"),
        "latent": Column("int", "latent of the SAE at that site"),
        "concept": Column("str", "the concept whose label is held fixed"),
        "over": Column("str", "all rows or active rows (prompt x example at lab, x and y numbers)"),
        "n_rows": Column("int", "rows used"),
        "n_prompts": Column("int", "prompts with a row that was used"),
        "r": Column("float", "Spearman's, with the log-probability that the model gave the label shown"),
        "r_low": Column("float", "2.5 % bound of `r`, prompts resampled"),
        "r_high": Column("float", "97.5 % bound of `r`, prompts resampled"),
        "r_given_magnitude": Column("float", "the same with y, x, example number and label held fixed"),
        "r_given_magnitude_low": Column("float", "2.5 % bound of `r_given_magnitude`, prompts resampled"),
        "r_given_magnitude_high": Column("float", "97.5 % bound of `r_given_magnitude`, prompts resampled"),
        "magnitude_r": Column("float", "with y, the log-probability, x, example number and label held fixed"),
        "magnitude_r_low": Column("float", "2.5 % bound of `magnitude_r`, prompts resampled"),
        "magnitude_r_high": Column("float", "97.5 % bound of `magnitude_r`, prompts resampled"),
        "verdict": Column("str", "confidence, magnitude, both or neither; empty where a figure is undefined"),
        "reason": Column("str", "why a figure is NaN, or what kept a name from being given; else empty"),
    }


class TransportTable(Table):
    """Four rows per (site, latent, concept): what reaches later `pre` tokens, by four predictions of it."""

    KEY = ("site", "latent", "concept", "layer", "weights")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "hook name of the site"),
        "latent": Column("int", "latent of the SAE at that site"),
        "concept": Column("str", "the concept for which the latent is shown"),
        "layer": Column("int", "block whose attention reads the site"),
        "weights": Column(
            "str", "prediction: attention, equal, or attention with the mean z or with other prompts' z"
        ),
        "slope": Column("float", "of what the heads write along the latent's image, on the predicted part"),
        "r2": Column("float", "squared correlation of the two over (prompt, query)"),
        "r2_low": Column("float", "2.5 % bound of `r2`, prompts resampled"),
        "r2_high": Column("float", "97.5 % bound of `r2`, prompts resampled"),
        "attention_minus_equal": Column("float", "r2 minus that of equal weights; on the row of attention"),
        "attention_minus_equal_low": Column("float", "2.5 % bound of it, the same prompts resampled in both"),
        "attention_minus_equal_high": Column("float", "97.5 % bound of it, likewise"),
        "lab_attention": Column("float", "mean attention of a query to all earlier labels, over the heads"),
        "n_rows": Column("int", "(prompt, query) pairs used"),
        "n_prompts": Column("int", "prompts used"),
        "reason": Column("str", "why a figure is NaN, or why it says little; else empty"),
    }
