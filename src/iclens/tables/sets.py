"""What patching sets of latents found, and their controls: SetTable, ControlTable and ScreenTable.

Effects are rises of a belief's log-odds in nats, on the test half of the prompts; every interval is a 95 %
bootstrap over prompts.
"""

from __future__ import annotations

from typing import ClassVar

from iclens.tables.frame import Column, Table
from iclens.tables.patches import PatchTable

_WAY = (
    "\"sufficiency\": B receives A's values; \"necessity\": A* (A's context, B's query) receives B's, which "
    "takes from the belief"
)


class SetTable(Table):
    """Sets of latents moved together: one row per way, kind of set, size and belief."""

    KEY = ("site", "role", "direction", "kind", "size", "chosen_for", "belief")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "where the decoder directions are added"),
        "role": PatchTable.COLUMNS["role"],
        "direction": Column("str", _WAY),
        "kind": Column(
            "str",
            'how members were chosen, on the screening half: "by own effect" (largest single effects first), '
            '"greedy" (each adds most to those before it), "all latents"; beside them "neurons" (of the MLP '
            'that writes here, by own effect), "difference of means" and "full activation"',
        ),
        "size": Column("int", "members; 1 for the difference of means, 0 for the full activation"),
        "members": Column("str", "their ids, in the order they were chosen; empty beyond 64"),
        "chosen_for": Column("str", "the belief by which members were chosen"),
        "belief": Column("str", "which read-out of the logits, in log-odds"),
        "n_prompts": Column("int", "prompts of the test half"),
        "base": Column("float", "mean log-odds of the receiver, nats"),
        "effect": Column("float", "mean of patched − base over prompts, nats"),
        "ci_low": Column("float", "lower end of its interval"),
        "ci_high": Column("float", "upper end of its interval"),
        "normalised": Column(
            "float", "effect / (other run − receiver), a ratio of means; NaN where the guard fails"
        ),
        "normalised_low": Column("float", "lower end of its interval"),
        "normalised_high": Column("float", "upper end of its interval"),
        "share_of_full": Column(
            "float", "effect / effect of the full activation there, a ratio of means; NaN below 1 nat"
        ),
        "share_low": Column("float", "lower end of its interval"),
        "share_high": Column("float", "upper end of its interval"),
        "screen_share": Column(
            "float",
            "share of the full activation's effect on `chosen_for`, screening half: by it sizes are chosen",
        ),
        "n_controls": Column(
            "int", "sets of as many matched random latents, each pushed as far; 0 where none was drawn"
        ),
        "control_share": Column("float", "mean share_of_full of these sets"),
        "control_low": Column("float", "2.5th percentile of it over the sets"),
        "control_high": Column("float", "97.5th percentile"),
        "control_p": Column("float", "(1 + sets at least as far from 0) / (1 + n_controls)"),
        "reason": Column("str", "why a value of the row is NaN; empty otherwise"),
    }


class ControlTable(Table):
    """The same latents elsewhere, from elsewhere, or backwards: one row per latent, control and belief."""

    KEY = ("site", "role", "latents", "control", "belief")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "where the latent's decoder direction is added"),
        "role": PatchTable.COLUMNS["role"],
        "latents": Column("str", "the latent's id, or those of a greedy set"),
        "control": Column(
            "str",
            '"own" (the patch itself), "wrong role <role>" (the same addition at another token), "wrong task '
            '<task>" (donor values of another task), "sign flip" (the addition subtracted)',
        ),
        "belief": Column("str", "which read-out of the logits, in log-odds"),
        "n_prompts": Column("int", "prompts of the test half"),
        "effect": Column("float", "mean of patched − base over prompts, nats"),
        "ci_low": Column("float", "lower end of its interval"),
        "ci_high": Column("float", "upper end of its interval"),
        "reason": Column("str", "why a value is NaN, or why the control cannot tell; empty otherwise"),
    }


class ScreenTable(Table):
    """How far a linear screen is from the exact effects: one row per site, role and belief."""

    KEY = ("site", "role", "belief")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "site": Column("str", "where the decoder directions are added"),
        "role": PatchTable.COLUMNS["role"],
        "belief": Column("str", "which read-out of the logits, in log-odds"),
        "n_effects": Column("int", "latents × prompts compared"),
        "r2": Column(
            "float", "1 − Σ(exact − linear)² / Σ(exact − mean exact)²; negative where a constant does better"
        ),
        "slope": Column("float", "least-squares slope of exact on linear effects"),
        "worst_miss": Column("float", "largest |exact − linear| of a single patch, nats"),
        "worst_latent": Column("int", "the latent in which it is"),
        "worst_exact": Column("float", "that patch's exact effect, nats"),
        "worst_linear": Column("float", "that patch's linear effect, nats"),
        "top_found": Column(
            "float",
            "share of the 10 latents of largest exact mean effect among the linear screen's 10; NaN up to 10",
        ),
        "reason": Column("str", "why a value of the row is NaN; empty otherwise"),
    }
