"""Self-tests of a run: every way in which it could have shown itself wrong, with what it measured.

Nothing is tested anew: figures come from the run's tables and records, and each test says by which rule it
fires. One whose figures are missing is "not asked", with the reason, and never left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from iclens.core import RunError, TableError
from iclens.growth.verdict import LEVEL, Manifest
from iclens.pages.findings import smallest_set
from iclens.pages.section import Source, records
from iclens.pages.text import number
from iclens.patching.runs import ZERO
from iclens.patching.sets import HALF
from iclens.schemas import PATCH_Q
from iclens.study.run import STAGES
from iclens.study.store import hash_json

PASSED, FIRED, NOT_ASKED = "passed", "fired", "not asked"
"""What a self-test can say."""
SAME = 1e-3
"""Largest difference of two probabilities that count as equal."""
Records = Mapping[str, Mapping[str, Any] | None]
"""Stage → its record, or None."""
Verdict = tuple[str, str]
"""What a test says, and what was measured or why nothing was."""
GROUPS = {
    "the growth claim": "A falsifier that did not fire leaves the claim standing on this task, these arms "
    "and this model; it does not prove it.",
    "what was held out": "Held-out prompts are of the same task and model: they show that a finding is no "
    "accident of the prompts, not that it holds elsewhere.",
    "the patching machinery": "These values are the same in any model, so they show that patches land where "
    "they should; they say nothing of what was found.",
    "what patches are specific to": "Controls are a sample: other random latents, tokens or tasks could "
    "still do the same.",
    "the SAEs and their labels": "That an SAE fits the model says nothing of whether its latents are the "
    "model's own features.",
    "the run's own record": "These compare records with each other; whether every file still is what its "
    "stage wrote takes reading all of them, which these pages do not.",
}
"""What is tested, and what passing its tests does not show."""
Decide = Callable[["Examined"], Verdict]


@dataclass(frozen=True)
class Examined:
    """A run with the records of its stages and its card, empty if there is none."""

    source: Source
    stages: Records = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SelfTest:
    """A way in which the run could have shown itself wrong: its verdict, its figure, and when it fires."""

    question: str
    verdict: str
    figure: str
    rule: str


def self_tests(run: Examined) -> dict[str, list[SelfTest]]:
    """What is tested → its tests."""
    tests = {
        about: [
            SelfTest(" ".join((decide.__doc__ or "").split()), *decide(run), rule)
            for decide, rule in TESTS.get(about, ())
        ]
        for about in GROUPS
    }
    listed = {"the growth claim": falsifiers(run), "the patching machinery": identities(run)}
    return tests | listed


def _unasked(run: Examined, table: str) -> Verdict:
    return NOT_ASKED, run.source.why(table) or "Not run: nothing could be tested."


def falsifiers(run: Examined) -> list[SelfTest]:
    """What would refute additive growth."""
    rule, answers = "Fires when the answer is yes.", {"fired": FIRED, "did not fire": PASSED}
    table = run.source.rows("falsifiers")
    if table.empty:
        question = "Is anything seen that would refute additive growth?"
        return [SelfTest(question, *_unasked(run, "falsifiers"), rule)]
    return [
        SelfTest(
            f"{row['falsifier']}: {row['question']}",
            answers.get(row["fired"], NOT_ASKED),
            row["evidence"],
            rule,
        )
        for row in records(table)
    ]


def confirmed(run: Examined) -> Verdict:
    """Does the short list hold on prompts that took no part in choosing it?"""
    table = run.source.rows("confirmed")
    tested = table[table["confirm_p"].notna()]
    if tested.empty:
        return _unasked(run, "confirmed")
    held, n = int((tested["confirm_p"] <= LEVEL).sum()), len(tested)
    shrinkage = float(np.nanmedian(tested["shrinkage"])) if tested["shrinkage"].notna().any() else math.nan
    figure = f"{held} of {n} are confirmed; median slope there ÷ slope that chose them {number(shrinkage)}."
    return PASSED if held else FIRED, figure


def manifest(run: Examined) -> Verdict:
    """Is what was confirmed what had been claimed before the held-out prompts were read?"""
    try:
        used = run.source.results.facts_of_growth.get("manifest", "")
        file = run.source.results.file("shape", "manifest.json")
    except (RunError, TableError):
        return NOT_ASKED, "Not run: shape or growth has left no readable facts."
    try:
        frozen = Manifest.thaw(file)
    except TableError as cause:
        return FIRED, f"The frozen claims are {cause.found}."
    figure = f"{len(frozen.claims)} claims and {len(frozen.prompts)} prompts, hash {frozen.sha256[:12]}…"
    return PASSED if frozen.sha256 == used else FIRED, figure


def identities(run: Examined) -> list[SelfTest]:
    """Values of the sweep and of the lens that are the same in every model."""
    sweep, lens, heads = map(run.source.rows, ("sweep", "lens", "heads"))
    patched = sweep[sweep["scale"] == "probability"]
    at_pre = patched[patched["role"] == "pre"]
    first = at_pre[at_pre["layer"] == 0]
    last = at_pre[(at_pre["layer"] == at_pre["layer"].max()) & (at_pre["metric"] == "copy")]
    labels = patched[(patched["role"] == "lab") & (patched["layer"] == 0)]
    whole = heads[heads["scale"] == "probability"].drop_duplicates("metric").set_index("metric")["base"]
    end = lens[
        (lens["role"] == "pre") & (lens["layer"] == lens["layer"].max()) & lens["metric"].isin(whole.index)
    ]
    by_recipient = last.groupby("recipient")["value"].mean()
    asked: tuple[tuple[str, pd.Series, str], ...] = (
        (
            "Does replacing the embedding at pre change nothing, as both runs hold the same token there?",
            first["value"] - first["base"],
            "layer 0 was not swept at pre",
        ),
        (
            "Does the last layer bring the donor's own answer, whatever run B shows?",
            by_recipient.drop(ZERO, errors="ignore") - by_recipient.get(ZERO, math.nan),
            "run B was not swept with and without a context at pre",
        ),
        (
            "Are A's labels in the embedding of B the same as A's context with B's query?",
            labels["value"] - labels["metric"].map(whole).astype(float),
            "labels were not swept at layer 0, or no head was ablated",
        ),
        (
            "Does the lens at the last layer read what the model answers?",
            end["value"] - end["metric"].map(whole).astype(float),
            "there is no lens at pre, or no head was ablated",
        ),
    )
    rule = f"Fires when a probability differs by more than {SAME}."
    return [
        SelfTest(question, *_identity(known.dropna(), missing), rule) for question, known, missing in asked
    ]


def _identity(differences: pd.Series, missing: str) -> Verdict:
    if differences.empty:
        return NOT_ASKED, f"Not run: {missing}."
    largest, n = float(differences.abs().max()), len(differences)
    figure = f"Largest difference {number(largest)}, over {n} value{'s' if n > 1 else ''}."
    return PASSED if largest <= SAME else FIRED, figure


def random_sets(run: Examined) -> Verdict:
    """Do as many matched random latents, pushed as far, move the belief as the chosen ones do?"""
    belief = run.source.config.patch.chosen_for
    table = run.source.rows("sets")
    table = table[(table["belief"] == belief) & (table["direction"] == "sufficiency")]
    if table.empty:
        return _unasked(run, "sets")
    best = smallest_set(table[(table["n_controls"] > 0) | (table["kind"] != "greedy")], belief)[1]
    if best is None:
        return NOT_ASKED, "Not run: no greedy set was chosen to bring half of the full effect."
    figure = (
        f"{best['size']} latents at {best['site']} {best['role']} bring {number(best['share_of_full'])}, "
        f"{best['n_controls']} random sets {number(best['control_share'])}; p {number(best['control_p'])}."
    )
    return PASSED if best["control_p"] <= PATCH_Q else FIRED, figure


def elsewhere(run: Examined) -> Verdict:
    """Do the chosen set or a tested latent do as much at a wrong token, with another task's values, or backwards?"""  # noqa: E501
    table = run.source.rows("patch_controls")
    table = table[(table["belief"] == run.source.config.patch.chosen_for) & table["effect"].notna()]
    own = max(records(table[table["control"] == "own"]), key=lambda row: abs(row["effect"]), default=None)
    if own is None:
        return _unasked(run, "patch_controls")
    same = (
        (table["site"] == own["site"]) & (table["role"] == own["role"]) & (table["latents"] == own["latents"])
    )
    others = records(table[same & (table["control"] != "own") & (table["reason"] == "")])
    if not others:
        return NOT_ASKED, "Not run: no control of it can tell."
    worst = max(others, key=lambda row: row["effect"] / own["effect"])
    figure = (
        f"Latents {own['latents']} at {own['site']} {own['role']}: own {number(own['effect'])} nats; most of "
        f"{len(others)}: {worst['control']}, {number(worst['effect'])}."
    )
    return FIRED if worst["effect"] / own["effect"] >= HALF else PASSED, figure


def fits(run: Examined) -> Verdict:
    """Does every SAE fit the model it is used on?"""
    table = run.source.rows("quality")
    if table.empty:
        return _unasked(run, "quality")
    bad = [f"{row['site']}: {row['mismatch']}" for row in records(table[table["mismatch"] != ""])]
    return FIRED if bad else PASSED, "; ".join(
        bad
    ) or f"{len(table)} SAEs; largest FVU {number(table['fvu'].max())}."


def stable(run: Examined) -> Verdict:
    """Are the labels found again in SAEs that were trained anew?"""
    table = run.source.rows("stability")
    if table.empty:
        said = str(
            ((run.stages.get("identify") or {}).get("found", {})).get("labels found in other SAEs", "")
        )
        said = said.removeprefix("not asked: ")
        return (NOT_ASKED, f"Not run: {said}.") if said else _unasked(run, "stability")
    again, n = int(table["stable"].astype(bool).sum()), len(table)
    return PASSED if again >= n / 2 else FIRED, f"{again} of {n}."


def chained(run: Examined) -> Verdict:
    """Did every stage read what the earlier stages hold now?"""
    wrong, n = [], 0
    for stage in STAGES:
        inputs = (run.stages.get(stage) or {}).get("inputs", {})
        for name in inputs:
            earlier = run.stages.get(name)
            if earlier is not None:
                n += 1
                if hash_json(earlier.get("outputs")) != inputs[name]:
                    wrong.append(f"{stage} read another {name}")
    if not n:
        return NOT_ASKED, "Not run: no two stages have a record."
    return FIRED if wrong else PASSED, "; ".join(wrong) or f"{n} readings agree."


def committed(run: Examined) -> Verdict:
    """Is the code that ran the code of a commit?"""
    commit = str(run.card.get("iclens", {}).get("commit", "unknown"))
    if commit == "unknown":
        return NOT_ASKED, "Not known: the run was made outside a checkout."
    return FIRED if commit.endswith("+") else PASSED, f"Commit {commit[:13]}."


TESTS: dict[str, tuple[tuple[Decide, str], ...]] = {
    "what was held out": (
        (
            confirmed,
            f"Fires when none is confirmed; p ≤ {LEVEL}, Holm over the list, so that one by chance is rare.",
        ),
        (manifest, "Fires when the frozen claims, their hash and the hash that confirmation used differ."),
    ),
    "what patches are specific to": (
        (
            random_sets,
            f"Fires when p > {PATCH_Q} for the smallest greedy set chosen to bring half of the full effect.",
        ),
        (elsewhere, f"Fires when one of these brings {HALF:g} of its own effect or more."),
    ),
    "the SAEs and their labels": (
        (fits, "Fires when an SAE was used although its width, normalisation, origin or error does not fit."),
        (stable, "Fires when fewer than half are found again."),
    ),
    "the run's own record": (
        (chained, "Fires when a stage's record names other hashes than the stages that it reads have."),
        (committed, "Fires when files of the package differed from the commit."),
    ),
}
"""What is tested → its tests: each decides in words that its docstring asks, and when it fires."""
