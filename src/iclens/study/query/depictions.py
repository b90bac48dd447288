"""Which chart shows a table? One for every table of a run, and one for rows of no table."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd
from pandas.api.types import is_float_dtype, is_numeric_dtype

from iclens.core import TableError
from iclens.study.declared import known
from iclens.study.query.plots import Axis, Curves, Depiction, Heat, Points, Strip

_LATENT = ("site", "role", "latent")
_NATS = "nats"
_SIZE = "activation × decoder norm per example"
_EFFECT = Axis("effect", _NATS, "ci_low", "ci_high")
_SEEN = Axis("n_seen", "examples")
_LAYER = Axis("layer", "block")
_MEAN = Axis("mean", "mean gated activation")
_OF_METRIC = "probability or log-odds in nats, by metric"

DEPICTIONS: dict[str, Depiction] = {
    "quality": Points(Axis("ce_recovered", "fraction of cross-entropy"), ("site",)),
    "detection": Strip(Axis("slope", _SIZE), ("site", "role"), "verdict"),
    "shapes": Points(Axis("exponent", "power of n", "exponent_low", "exponent_high"), _LATENT, "certified"),
    "evidence": Points(
        Axis("evidence", "activation per nat", "evidence_low", "evidence_high"), _LATENT, "weighting"
    ),
    "latent_tests": Points(Axis("estimate", "see `meaning`", "low", "high"), ("response",), panel=("test",)),
    "latent_accounts": Strip(Axis("r2", "fraction of variance"), ("account",), "named"),
    "dose": Points(
        Axis("slope", "nats per natural growth", "slope_low", "slope_high"),
        ("site", "latent", "n_examples"), "causal", ("belief",),
    ),
    "dose_curves": Curves(
        Axis("dose", "natural growths"), _EFFECT, ("site", "latent"), ("belief", "n_examples")
    ),
    "closure": Points(
        Axis("closure", "fraction of the belief's growth", "closure_low", "closure_high"),
        ("site", "n_examples"), panel=("belief",),
    ),
    "injections": Points(_EFFECT, ("site", "n_examples"), "injected", ("belief",)),
    "interactions": Points(
        Axis("interaction", _NATS, "interaction_low", "interaction_high"),
        ("site", "latent", "other"), panel=("belief",),
    ),
    "growth": Strip(Axis("slope", _SIZE), ("site", "role"), "verdict"),
    "selection": Strip(Axis("slope", _SIZE), ("site", "role"), "verdict"),
    "selection over examples": Strip(Axis("slope", _SIZE), ("site", "role"), "verdict"),
    "confirmed": Points(Axis("confirm_slope", _SIZE, "confirm_low", "confirm_high"), _LATENT),
    "beliefs": Curves(_SEEN, Axis("mean", "log-odds, nats", "ci_low", "ci_high"), ("arm",), ("belief",)),
    "bayes": Points(Axis("lam", "nats per example", "lam_low", "lam_high"), ("belief",), "source"),
    "agreement": Points(
        Axis("slope", "nats per exact nat", "slope_low", "slope_high"), ("arm",), "goal_met", ("belief",)
    ),
    "tests": Points(Axis("estimate", "see `meaning`", "low", "high"), ("response",), panel=("test",)),
    "accounts": Points(Axis("behind", "nats per prompt", "behind_low", "behind_high"), ("account",)),
    "transforms": Strip(Axis("auroc", "AUROC"), ("concept",), "label"),
    "masses": Strip(Axis("lab_share", "fraction of activation at `lab`"), ("site",), "kind", kept="spread"),
    "tunings": Strip(Axis("r2", "fraction of variance"), ("of", "role"), kept="spread"),
    "tuning_curves": Curves(Axis("value", "number"), _MEAN, ("site", "latent"), ("concept", "role", "of")),
    "operand_maps": Heat("x", ("y",), _MEAN, ("concept", *_LATENT)),
    "stability": Points(Axis("correlation", "r"), ("site", "latent", "concept", "other"), "stable"),
    "probes": Curves(
        Axis("k", "features"), Axis("auroc", "AUROC", "ci_low", "ci_high"),
        ("representation",), ("concept", "site", "role"),
    ),
    "subspaces": Points(Axis("r2", "fraction of variance"), ("representation", "period")),
    "specificity": Heat(
        "belief", ("concept", "site", "role", "latent"), Axis("effect", _NATS), ("way",), centred=0.0
    ),
    "operands": Curves(
        _LAYER, Axis("value", "squared cosine or R2, by measure", "ci_low", "ci_high"), ("measure",)
    ),
    "creation": Curves(_LAYER, Axis("auroc", "AUROC", "ci_low", "ci_high"), ("source",), ("concept",)),
    "confidence": Points(Axis("r", "correlation", "r_low", "r_high"), ("site", "latent", "concept"), "over"),
    "transport": Points(
        Axis("r2", "fraction of variance", "r2_low", "r2_high"), ("site", "latent", "layer"), "weights"
    ),
    "sweep": Heat("role", ("layer",), Axis("value", _OF_METRIC), ("recipient", "metric")),
    "graded": Curves(
        Axis("n_seen", "the donor's examples"), Axis("value", _OF_METRIC, "ci_low", "ci_high"),
        ("metric",), ("scale",),
    ),
    "lens": Heat("role", ("layer",), Axis("value", _OF_METRIC), ("metric",)),
    "heads": Heat("head", ("layer",), Axis("effect", _OF_METRIC), ("kind", "place", "metric"), centred=0.0),
    "head_scores": Heat("head", ("layer",), Axis("score", "nats"), centred=0.0),
    "direct": Points(_EFFECT, ("part", "component"), panel=("belief",)),
    "redundancy": Points(
        Axis("joint", _NATS, "joint_low", "joint_high"), ("ablated", "kind"), panel=("belief",)
    ),
    "redundancy_ladder": Points(Axis("ne", "normalised effect", "ne_low", "ne_high"), ("step", "ablated")),
    "patches": Points(_EFFECT, _LATENT, panel=("belief",)),
    "ladder": Points(_EFFECT, ("site", "role"), "rung", ("belief",)),
    "sets": Curves(
        Axis("size", "latents"), _EFFECT, ("direction", "kind"), ("site", "role"), ("belief", "exact")
    ),
    "patch_controls": Points(_EFFECT, ("site", "role", "latents"), "control", ("belief",)),
    "screens": Points(Axis("r2", "fraction of variance"), ("site", "role"), panel=("belief",)),
    "responses": Curves(Axis("x", "the query"), Axis("mean", "expected answer, a number"), ("patch",)),
    "response_fits": Points(Axis("slope", "answer per x", "slope_low", "slope_high"), ("patch",)),
    "summary": Curves(
        _SEEN, Axis("mean", "activation × decoder norm", "ci_low", "ci_high"), ("arm",), ("latent",)
    ),
}  # fmt: skip
"""Table → its chart. `falsifiers` holds words alone."""
_WORDS = ("falsifiers", "differences")


def depicted(table: str) -> Depiction:
    """The chart of a table or made frame that has one."""
    return DEPICTIONS[table]


def chart_of(frame: pd.DataFrame, table: str) -> alt.TopLevelMixin:
    """The chart of some rows of a table; of rows that lack its columns, of the first number in them.

    Raises:
        TableError: when there is nothing to draw, saying why.
    """
    title = table or "rows"
    if table == "beliefs" and {"arm", "mean", "ci_low", "ci_high", "exact_mean"} <= set(frame.columns):
        frame = _with_exact(frame)
    if table in _WORDS:
        raise TableError(f"plot of {title}", "its columns hold words alone", "Read it as a table.")
    chosen = DEPICTIONS.get(table)
    if chosen is None or not set(chosen.needs) <= set(frame.columns):
        chosen = _general(frame, title)
    return chosen.draw(frame, title)


def _with_exact(frame: pd.DataFrame) -> pd.DataFrame:
    """The beliefs with the exact posterior of the first arm as a curve of its own, after that arm's."""
    arms = list(frame["arm"].unique())
    exact = frame[frame["arm"].isin(arms[:1])].copy()
    exact["arm"] = exact["arm"] + ", exact"
    for name in ("mean", "ci_low", "ci_high"):
        exact[name] = exact["exact_mean"]
    parts = [frame[frame["arm"] == arm] for arm in arms]
    return pd.concat([*parts[:1], exact, *parts[1:]], ignore_index=True)


def _general(frame: pd.DataFrame, title: str) -> Depiction:
    """A strip of the first column of fractional numbers, or of any, by the first column of words."""
    of_numbers = [str(name) for name in frame.columns if is_numeric_dtype(frame[name])]
    words = [str(name) for name in frame.columns if str(name) not in of_numbers]
    numbers = sorted(of_numbers, key=lambda name: not is_float_dtype(frame[name]))
    if not numbers or not words:
        lacks = "no column of numbers" if not numbers else "no column of words"
        raise TableError(f"plot of {title}", f"it has {lacks}", "Keep more columns, or use `.df.plot`.")
    return Strip(Axis(numbers[0], "as in the table"), (words[0],), kept="spread")


def main_axis(table: str) -> Axis:
    """The number that a table's chart is about.

    Raises:
        TableError: for a table that holds words alone.
    """
    if table in _WORDS:
        raise TableError(f"plot of {table}", "its columns hold words alone", "Read it as a table.")
    chosen: Any = DEPICTIONS[known("table", table, tuple(DEPICTIONS))]
    return chosen.y if isinstance(chosen, Curves) else chosen.value
