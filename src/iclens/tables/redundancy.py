"""What ablating sets of heads found: DirectTable, RedundancyTable and RedundancyLadderTable.

A set is written `L10H5 L10H7 L13`: single heads, and whole layers by their number alone. Effects are rises of
a belief's log-odds in nats, negative where the ablation takes from the belief. Every interval is a 95 %
bootstrap over prompts.
"""

from __future__ import annotations

from typing import ClassVar

from iclens.tables.frame import Column, Table

_ABLATED = Column("str", "heads and layers whose output z is replaced, all in one run")
_KIND = Column("str", "by what: zero, the mean over length-matched recipients, or resample, the prompt's own")
_PLACE = Column("str", "where: the query's `pre`, or all positions")
_BELIEF = Column("str", "which read-out of the logits, in log-odds")
_PROMPTS = Column("int", "prompts averaged")
_LOW, _HIGH = Column("float", "lower end of its interval"), Column("float", "upper end of its interval")
_REASON = Column("str", "why a value of the row is NaN, or what keeps it from being plain; empty otherwise")


class DirectTable(Table):
    """Direct effects of an ablation at the query's `pre` of A*: one row per component and belief."""

    KEY = ("ablated", "kind", "place", "reader", "part", "component", "n_seen", "belief")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "ablated": _ABLATED,
        "kind": _KIND,
        "place": _PLACE,
        "reader": Column(
            "int", "layer whose residual the outputs are put into; n_blocks stands for the final norm"
        ),
        "part": Column(
            "str",
            '"total" (TE), "ablated" (DE, these heads together), "compensation" (CE = TE − DE), '
            '"later heads", "later MLPs", "later" (both together), the first and last also "…, given '
            'the loss"; then one component each: "ablated head", "later head", "later MLP"',
        ),
        "component": Column("str", "the single component, `L3H1` or `L3.mlp`; empty for a sum"),
        "layer": Column("int", "its block; -1 for a sum"),
        "head": Column("int", "its head; -1 for an MLP or a sum"),
        "n_seen": Column("int", "examples in the context"),
        "belief": _BELIEF,
        "base": Column("float", "mean log-odds of A* without the ablation, nats"),
        "effect": Column(
            "float",
            "log-odds with only this component's own output at `pre` as in the ablated run − base, mean; "
            "given the loss: log-odds of the ablated run − those with these outputs as in A*",
        ),
        "ci_low": _LOW,
        "ci_high": _HIGH,
        "ratio": Column(
            "float",
            "effect / DE, a ratio of means; of the compensation, −1 is a loss wholly made up and 0 is none; "
            "NaN where |DE| is below 1 nat or its interval includes 0",
        ),
        "ratio_low": _LOW,
        "ratio_high": _HIGH,
        "n_prompts": _PROMPTS,
        "reason": _REASON,
    }


class RedundancyTable(Table):
    """Heads ablated together against one at a time, in A*: one row per set and belief."""

    KEY = ("ablated", "kind", "place", "n_seen", "belief")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "ablated": _ABLATED,
        "kind": _KIND,
        "place": _PLACE,
        "n_units": Column("int", "entries of the set (heads, or layers) that are also ablated alone"),
        "n_seen": Column("int", "examples in the context"),
        "belief": _BELIEF,
        "base": Column("float", "mean log-odds of A* without an ablation, nats"),
        "joint": Column("float", "effect of the whole set, nats"),
        "joint_low": _LOW,
        "joint_high": _HIGH,
        "singles": Column("float", "sum of the effects of its entries ablated alone, nats"),
        "singles_low": _LOW,
        "singles_high": _HIGH,
        "index": Column(
            "float",
            "joint − singles, nats of log-odds: below 0 the entries stand in for each other (redundant), "
            "above 0 they need each other (a chain), at 0 they add up",
        ),
        "index_low": _LOW,
        "index_high": _HIGH,
        "span": Column("float", "mean(A* − B), un-ablated: what the context is worth to the belief, nats"),
        "n_prompts": _PROMPTS,
        "reason": _REASON,
    }


class RedundancyLadderTable(Table):
    """Ablate what carries the task, sweep again, ablate what took over: one row per step from 0, intact."""

    KEY = ("unit", "kind", "place", "belief", "step")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "step": Column("int", "how many times something was added to the ablated set; 0 is the intact model"),
        "unit": Column("str", '"layer" or "heads": what a step adds'),
        "added": Column("str", "what this step added; empty at step 0"),
        "ablated": _ABLATED,
        "kind": _KIND,
        "place": _PLACE,
        "recipient": Column("str", 'run B, un-ablated: "zero examples", or the length-matched S or R arm'),
        "n_seen": Column("int", "examples in the donor's context"),
        "belief": _BELIEF,
        "first_layer": Column(
            "float",
            "L*: first layer whose residual at `pre`, from the ablated donor, has NE ≥ 0.5; NaN where none",
        ),
        "first_low": Column("float", "lower end of its interval; NaN where no layer works there"),
        "first_high": Column("float", "upper end of its interval; NaN where no layer works there"),
        "ne": Column("float", "NE = mean(patched − B) / mean(A* − B) at L*; the largest where L* is NaN"),
        "ne_low": _LOW,
        "ne_high": _HIGH,
        "own": Column("float", "P(f(x_B)) of the patched recipient there, mean"),
        "copy": Column("float", "P(f(x_A)) of the patched recipient there, mean"),
        "before_layer": Column("float", "L* of the step before; NaN at step 0"),
        "ne_before": Column("float", "NE that is left at that layer"),
        "ne_before_low": _LOW,
        "ne_before_high": _HIGH,
        "donor": Column(
            "float", "P(f(x_A)), the ablated donor's belief in its own answer; mean over prompts"
        ),
        "donor_low": _LOW,
        "donor_high": _HIGH,
        "n_controls": Column("int", "control sets: as many other heads of the same layers, or other layers"),
        "control_ne_before": Column("float", "NE left at `before_layer` under a control set, mean over sets"),
        "control_ne_least": Column("float", "least of them"),
        "control_ne_greatest": Column("float", "greatest of them"),
        "control_moved": Column(
            "float", "share of control sets whose L* is later than `before_layer`, or is gone"
        ),
        "control_donor": Column("float", "P(f(x_A)) of the donor under a control set, mean over sets"),
        "total": Column("float", "effect of the ablation on A*'s belief (TE), nats"),
        "direct": Column("float", "direct effect of the ablated heads (DE), nats"),
        "later_heads": Column("float", "direct effect of the change in all later heads together, nats"),
        "later_heads_low": _LOW,
        "later_heads_high": _HIGH,
        "later_heads_given_loss": Column(
            "float", "the same given the loss: what that is worth to the ablated run"
        ),
        "later_heads_given_loss_low": _LOW,
        "later_heads_given_loss_high": _HIGH,
        "later": Column("float", "direct effect of the change in all later heads and MLPs together, nats"),
        "later_low": _LOW,
        "later_high": _HIGH,
        "verdict": Column(
            "str",
            'of the set against the intact model: "delay", "backup", "both", "neither" or "undecided"; empty '
            "at step 0",
        ),
        "n_prompts": _PROMPTS,
        "reason": _REASON,
    }
