"""What does a column mean? The declared columns of every table, and of the frames that queries make."""

from __future__ import annotations

from collections.abc import Mapping

from iclens.schemas import GrowthTable, PatchTable, TransformTable, VerdictTable
from iclens.study.results import TABLES
from iclens.table import Column

_PLACE = {
    "site": Column("str", "a hook and its layer, in short form"),
    "role": Column("str", "token of each example"),
    "arm": Column("str", "version of the prompts"),
    "latent": Column("int", "latent id"),
}
_UNIT = "activation × decoder norm"
_BESIDE: dict[str, Column] = {
    "label": Column(
        "str", "of its best concept: granted first, then by AUROC; candidate when no gate kept it"
    ),
    "concept": TransformTable.COLUMNS["concept"],
    "auroc": TransformTable.COLUMNS["auroc"],
    "belief": Column("str", "the belief on which its patch has the largest effect"),
    "effect": PatchTable.COLUMNS["effect"],
    "patch_control_p": PatchTable.COLUMNS["control_p"],
}
_MADE: dict[str, dict[str, Column]] = {
    "selection": GrowthTable.COLUMNS | VerdictTable.COLUMNS | _PLACE | _BESIDE,
    "selection over examples": GrowthTable.COLUMNS
    | _PLACE
    | _BESIDE
    | {
        "q_value": Column(
            "float", "Benjamini–Hochberg over the latents of this site and role, rising and falling, alone"
        ),
        "verdict": Column("str", '"grows", "falls" or "none" over these examples, by that q_value'),
    },
    "trajectory": _PLACE
    | {
        "prompt": Column("int", "prompt, from 0"),
        "n_seen": Column("int", "labels read at this role"),
        "activation": Column("float", f"gated, {_UNIT}"),
    },
    "summary": _PLACE
    | {
        "n_seen": Column("int", "labels read at this role"),
        "mean": Column("float", f"mean over prompts, {_UNIT}"),
        "ci_low": Column("float", "lower end of its 95 % band, prompts resampled"),
        "ci_high": Column("float", "upper end"),
        "n_prompts": Column("int", "prompts averaged"),
    },
    "bayes": {
        "belief": Column("str", "which read-out of the logits, in log-odds"),
        "source": Column("str", "model, or the exact posterior"),
        "lo_0": Column("float", "log-odds before any example, of the fit LO_0 + nλ, nats"),
        "lo_0_low": Column("float", "lower end of its 95 % interval"),
        "lo_0_high": Column("float", "upper end"),
        "lam": Column("float", "λ, nats per example"),
        "lam_low": Column("float", "lower end of its 95 % interval"),
        "lam_high": Column("float", "upper end"),
        "r": Column("float", "correlation of the mean curve with n_seen over the linear part"),
        "n_first": Column("int", "first number of examples of the fit"),
        "n_last": Column("int", "last one"),
        "n_prompts": Column("int", "prompts averaged"),
        "reason": Column("str", "why a value is NaN; empty otherwise"),
    },
    "differences": {
        "what": Column("str", "a key of the config, an input's hash or a version"),
        "a": Column("str", "of the run that was asked"),
        "b": Column("str", "of the other run"),
    },
}


def meanings_of(table: str) -> Mapping[str, Column]:
    """Column → type and meaning, for a table of a run or a frame that a query makes; else nothing.

    Args:
        table: its name; of the joined rows of two runs, `<table> of two runs`.
    """
    if table in TABLES:
        return {name: _PLACE["site"] if name == "site" else c for name, c in TABLES[table][1].COLUMNS.items()}
    name, joined, _ = table.partition(" of two runs")
    if not joined or name not in TABLES:
        return _MADE.get(table, {})
    kind = TABLES[name][1]
    found = {key: meanings_of(name)[key] for key in kind.KEY}
    for key, column in kind.COLUMNS.items():
        if key not in kind.KEY:
            found[f"{key}_a"] = Column(column.kind, f"of the asked run: {column.meaning}")
            found[f"{key}_b"] = Column(column.kind, f"of the other run: {column.meaning}")
            if column.kind in ("int", "float"):
                found[f"{key}_difference"] = Column(column.kind, f"other − asked run: {column.meaning}")
    return found
