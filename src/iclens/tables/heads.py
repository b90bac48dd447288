"""What is read off one run, without changing it: LensTable and HeadScoreTable.

The run is A*: the donor's examples and the recipient's query. Intervals are 95 % bootstraps over prompts.
"""

from __future__ import annotations

from typing import ClassVar

from iclens.tables.frame import Column, Table
from iclens.tables.patches import SweepTable


class LensTable(Table):
    """What the residual would answer if the model ended there: one row per role, layer and metric."""

    KEY = ("role", "layer", "n_seen", "metric")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "role": Column("str", "token of the query whose residual is read; after `pre` the label is in view"),
        "layer": Column(
            "int", "block whose resid_pre is read, 0 for the embedding; n_blocks, the last resid_post"
        ),
        "n_seen": SweepTable.COLUMNS["n_seen"],
        "metric": Column(
            "str",
            '"task on own x" = P(f(x_B)), "copy" = P(f(x_A)), "top-1 task on own x" and "top-1 copy" = share '
            'of prompts whose most probable answer that is, "log-odds of <belief>"',
        ),
        "scale": Column("str", '"probability" or "nats"'),
        "value": Column("float", "the metric through the final norm and unembedding, mean over prompts"),
        "ci_low": Column("float", "lower end of its interval"),
        "ci_high": Column("float", "upper end of its interval"),
        "n_prompts": Column("int", "prompts averaged"),
    }


class HeadScoreTable(Table):
    """Every head at the query's `pre`: what it writes and where it looks; one row per layer and head."""

    KEY = ("layer", "head", "n_seen")
    COLUMNS: ClassVar[dict[str, Column]] = {
        "layer": Column("int", "block"),
        "head": Column("int", "head"),
        "reference_layer": Column(
            "int",
            "block whose resid_pre the score is taken against; a head in it or later writes nothing into it",
        ),
        "n_seen": Column("int", "examples in the context"),
        "score": Column(
            "float",
            "dot of the head's output and the reference / the run's final-norm scale, mean over prompts",
        ),
        "score_low": Column("float", "lower end of its interval"),
        "score_high": Column("float", "upper end of its interval"),
        "attribution": Column(
            "float",
            "what the head's output adds to logit f(x_B) − mean logit of the numbers 0–999, with the final "
            "norm frozen at the run's own scale; nats, mean over prompts",
        ),
        "label_mass": Column("float", "attention to the y tokens of the examples, mean over prompts"),
        "label_mass_low": Column("float", "lower end of its interval"),
        "label_mass_high": Column("float", "upper end of its interval"),
        "label_share": Column("float", "mean label_mass / mean attention outside BOS; NaN where that is 0"),
        "own_x_mass": Column("float", "attention to the query's x, mean over prompts"),
        "bos_mass": Column("float", "attention to BOS, mean over prompts"),
        "n_prompts": Column("int", "prompts averaged"),
        "reason": Column("str", "why a value of the row is NaN; empty otherwise"),
    }
