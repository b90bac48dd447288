"""What a replication finds: CheckTable and the rows behind it, and what the notebooks left out."""

from __future__ import annotations

from typing import ClassVar

from iclens.tables.frame import Column, Table

_TOP = "five most probable tokens of the whole vocabulary, separated by spaces (spaces in them: ␣)"
_OTHER = "the same as recorded; empty without a target"


class CheckTable(Table):
    """Recorded values set against this model's: one row per check."""

    COLUMNS: ClassVar[dict[str, Column]] = {
        "part": Column("str", "which experiment"),
        "check": Column("str", "what is compared"),
        "target": Column("str", "the recorded value; empty without one"),
        "ours": Column("str", "this model's"),
        "tolerance": Column("str", "how far apart they may be"),
        "verdict": Column("str", '"agrees", "differs", or "no target" where the protocol was derived'),
    }


class LensRows(Table):
    """The logit lens without the final norm's division: one row per block."""

    COLUMNS: ClassVar[dict[str, Column]] = {
        "layer": Column("int", "block after which it is read (resid_post)"),
        "top": Column("str", _TOP),
        "top_target": Column("str", _OTHER),
        "prob": Column("float", "probability of the first of them"),
        "numbers": Column("str", "five most probable of the protocol's numbers"),
        "numbers_target": Column("str", _OTHER),
        "answer_share": Column("float", "probability of the task's answer among these numbers"),
        "answer_share_target": Column("float", "the same as recorded; NaN without a target"),
    }


class PatchedRows(Table):
    """Whole-residual patches of a last position: one row per donor, input and layer."""

    COLUMNS: ClassVar[dict[str, Column]] = {
        "prompt": Column("str", "the donor's recorded prompt"),
        "donor": Column("str", "what is ablated in the donor at its last position; empty for nothing"),
        "x": Column("int", "the recipient's input"),
        "layer": Column("int", "block whose resid_pre is replaced"),
        "top": Column("str", _TOP),
        "top_target": Column("str", _OTHER),
    }


class MapRows(Table):
    """Scores of heads at the last position: one row per map, layer and head."""

    COLUMNS: ClassVar[dict[str, Column]] = {
        "map": Column("str", "what is ablated, and the block whose resid_pre is the reference"),
        "layer": Column("int", "block"),
        "head": Column("int", "head"),
        "score": Column("float", "dot of the head's output and the reference / the run's final-norm scale"),
        "score_target": Column("float", "as recorded, up to one factor per map; NaN without a target"),
        "change": Column(
            "float",
            "score − that of the intact run of the same prompt and reference; NaN where no such map is made",
        ),
    }


class DonorTable(Table):
    """Donors with heads ablated, and where their patch brings the task: one row per donor."""

    COLUMNS: ClassVar[dict[str, Column]] = {
        "donor": Column("str", "what is ablated, or which ablation random heads or layers stand in for"),
        "heads": Column("str", '"none", "named", "random heads" or "random layers"'),
        "draw": Column("int", "number of the random draw, from 0; -1 for none"),
        "kind": Column(
            "str", 'what replaces the heads\' output: "none", "zero", "mean" over prompts without the task'
        ),
        "place": Column("str", '"last position" or "all positions"; "none" without ablation'),
        "n_heads": Column("int", "heads ablated"),
        "top": Column("str", f"the donor's own {_TOP}"),
        "p_answer": Column("float", "the donor's own P(the task's answer)"),
        "first_layer": Column(
            "int",
            "first block whose patch makes slope·x the most probable token at the recorded x; -1 for none",
        ),
        "slope_half": Column(
            "int",
            "first block whose patch makes slope·x the most probable number for half of the x; -1 for none",
        ),
        "slope_best": Column("int", "block at which that share is greatest, the first of equals"),
        "slope_share": Column("float", "the share there"),
        "task_half": Column("int", "as slope_half, for the task's own answer, slope·x + offset"),
        "task_best": Column("int", "as slope_best, for it"),
        "task_share": Column("float", "as slope_share, for it"),
        "n_x": Column("int", "inputs that it is a share of; none of them stands in the donor"),
    }


class DonorSweepTable(Table):
    """Patches from every donor over many inputs: one row per donor, layer and metric."""

    COLUMNS: ClassVar[dict[str, Column]] = {
        **{name: DonorTable.COLUMNS[name] for name in ("donor", "heads", "draw", "kind", "place")},
        "layer": Column("int", "block whose resid_pre is replaced at the last position"),
        "metric": Column(
            "str",
            '"top-1 slope·x", "top-1 task" (slope·x + offset), "top-1 donor" (the donor\'s answer by the '
            "task): share of x whose most probable number that is; and the probability of each",
        ),
        "value": Column("float", "mean over x"),
        "ci_low": Column("float", "lower end of its 95 % bootstrap interval over x"),
        "ci_high": Column("float", "upper end"),
        "n_x": DonorTable.COLUMNS["n_x"],
    }
