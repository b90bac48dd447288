"""ShapeTable and ConfirmTable: how growing latents grow, and whether they do so on held-out prompts."""

from __future__ import annotations

from typing import ClassVar

from iclens.tables.frame import Column, Table


class ShapeTable(Table):
    """One row per short-listed latent: the shape of its mean paired pre-activation, on the shape prompts."""

    KEY = ("site", "role", "latent")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "site, by its TransformerLens name"),
        "role": Column("str", "token of each example"),
        "latent": Column("int", "latent id"),
        "n_prompts": Column("int", "prompt pairs of the shape split"),
        "growth": Column(
            "float", "mean paired rise from the first to the last example, pre-activation × decoder norm"
        ),
        "snr": Column("float", "that rise ÷ the standard deviation of one prompt's value at an example"),
        "exponent": Column("float", "p̂ of a + b·n^p"),
        "exponent_low": Column("float", "lower end of its 90 % profile interval"),
        "exponent_high": Column("float", "upper end"),
        "best_curve": Column("str", "family with the smallest BIC"),
        "curve_parameter": Column("str", "its parameter"),
        "step_margin": Column("float", "BIC of the best step − BIC of the line; above 0 the step loses"),
        "lack_of_fit_p": Column("float", "Hotelling's p that the power curve is right"),
        "own_steps_p": Column("float", "p that prompts climb straight, against steps at places of their own"),
        "certified": Column("bool", "whether the additive certificate is granted"),
        "reason": Column("str", "why it is not; empty otherwise"),
    }


class ConfirmTable(Table):
    """One row per short-listed latent: the paired slope on prompts that no choice was made on."""

    KEY = ("site", "role", "latent")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "site, by its TransformerLens name"),
        "role": Column("str", "token of each example"),
        "latent": Column("int", "latent id"),
        "n_prompts": Column("int", "prompt pairs of the confirm split"),
        "discovery_slope": Column("float", "paired slope that put it on the list, per example"),
        "confirm_slope": Column("float", "paired slope here, gated activation × decoder norm per example"),
        "confirm_low": Column("float", "lower end of its 95 % t interval over prompts"),
        "confirm_high": Column("float", "upper end"),
        "confirm_p": Column("float", "one-sided p of growth, Holm over the short list"),
        "shrinkage": Column("float", "confirm ÷ discovery slope"),
        "own_slope": Column("float", "slope of the task's arm alone, no control subtracted"),
        "own_low": Column("float", "lower end of its 95 % t interval over prompts"),
        "reason": Column("str", "why a value is NaN; empty otherwise"),
    }
