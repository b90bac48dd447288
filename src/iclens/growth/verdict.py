"""How far does each latent get on the ladder, and why not further?

    none < grows < grows linearly < grows with evidence < causally additive < accounts for belief

1. Detection says what grows. 2. A latent of the short list climbs while its gates hold: confirmed on held-out
prompts, rising in its own arm and not only against a control that falls, and certified additive (H2);
increments follow the label evidence (H3); pushing it moves the belief linearly, as no matched random latent
does (H4); and its site's pushed latents account for a stated share of the belief's growth (H5).
3. The first gate that fails gives the reason. What it would have passed further up stays in its columns: a
gate is never asked to excuse another.
Enter the tables of each step; leaves a VerdictTable with one row per detected-for latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from iclens.tables.verdicts import FALLS, LADDER, VerdictTable

KEY = ["site", "role", "latent"]
CLOSURE = 0.25
"""Least share of the belief's growth that a site's causal latents must account for (falsifier F7)."""
LEVEL = 0.05
"""Level of the confirmation and of the comparison with matched latents."""


@dataclass(frozen=True)
class Found:
    """What each step found, as frames with the columns of their tables.

    Args:
        detection: every latent (GrowthTable).
        shape: the short list's trajectories (ShapeTable with `site role latent`).
        evidence: its evidence regressions, columns `site role latent evidence evidence_low evidence_high
            count reason`.
        dose: its dose-responses on the belief of the task's answer, columns `site role latent dose_effect
            dose_low dose_high control_p share causal reason`.
        confirm: its confirmation, columns `site role latent confirm_slope confirm_p shrinkage reason`.
        closure: site → lower end of the 95 % interval of the share of the belief's growth that its causal
            latents account for, and the sentence that says so.
    """

    detection: pd.DataFrame
    shape: pd.DataFrame
    evidence: pd.DataFrame
    dose: pd.DataFrame
    confirm: pd.DataFrame
    closure: dict[str, tuple[float, str]]


Gate = Callable[[dict[str, Any], Found], str]
"""Why a row does not pass, in words; empty when it does."""


def judge(found: Found) -> VerdictTable:
    """A rung for every latent, with the reason why it is not the next one."""
    steps = {
        "shape": ["exponent", "exponent_low", "exponent_high", "best_curve", "certified", "shape_reason"],
        "evidence": ["evidence", "evidence_low", "evidence_high", "count", "evidence_reason"],
        "dose": ["dose_effect", "dose_low", "dose_high", "control_p", "share", "causal", "dose_reason"],
        "confirm": ["confirm_slope", "confirm_p", "shrinkage", "own_slope", "own_low", "confirm_reason"],
    }
    rows = found.detection.rename(columns={"verdict": "detected", "reason": "untested"})
    for name, columns in steps.items():
        frame = getattr(found, name).rename(columns={"reason": f"{name}_reason"})
        rows = rows.merge(frame[[*KEY, *columns]], on=KEY, how="left", validate="one_to_one")
    rows["shortlisted"] = rows["confirm_reason"].notna()
    records: list[Any] = rows.to_dict("records")
    judged = [_climb(row, found) for row in records]
    rows["verdict"], rows["reason"] = [verdict for verdict, _ in judged], [why for _, why in judged]
    rows["best_curve"] = rows["best_curve"].astype(object).fillna("")
    return VerdictTable({name: rows[name].to_numpy() for name in VerdictTable.COLUMNS})


def _climb(row: dict[str, Any], found: Found) -> tuple[str, str]:
    """Verdict and reason of one row."""
    if row["detected"] == "none":
        return "none", row["untested"] or f"no paired growth (q {row['q_value']:.2g})"
    if row["detected"] == FALLS:
        return FALLS, "it falls beside its control; the ladder is for growth"
    if not row["shortlisted"]:
        return "grows", "not on the short list: others grow more clearly"
    for rung, gate in enumerate(GATES, start=1):
        if why := gate(row, found):
            return LADDER[rung], why
    return LADDER[-1], ""


def _linear(row: dict[str, Any], _: Found) -> str:
    if not row["confirm_p"] <= LEVEL:
        return row["confirm_reason"] or f"not confirmed on held-out prompts (Holm p {row['confirm_p']:.2g})"
    if row["own_low"] <= 0:
        own = f"{row['own_slope']:.2g}, at least {row['own_low']:.2g}"
        return f"only against its control does it clearly rise: its own slope is {own}"
    return "" if row["certified"] is True else str(row["shape_reason"])


def _evidence(row: dict[str, Any], _: Found) -> str:
    if not np.isfinite(row["evidence"]):
        return row["evidence_reason"] or "no evidence regression was made"
    interval = f"{row['evidence']:.3g} [{row['evidence_low']:.3g}, {row['evidence_high']:.3g}] per nat"
    return "" if row["evidence_low"] > 0 else f"its increments do not follow the evidence: {interval}"


def _causal(row: dict[str, Any], _: Found) -> str:
    return "" if row["causal"] is True else str(row["dose_reason"] or "it was not pushed")


def _closes(row: dict[str, Any], found: Found) -> str:
    low, sentence = found.closure.get(row["site"], (float("nan"), "closure was not measured"))
    return "" if low >= CLOSURE else sentence


GATES: tuple[Gate, ...] = (_linear, _evidence, _causal, _closes)
"""Gates above "grows", in the order of the ladder."""
