"""Self-tests of a run: every way in which it could have shown itself wrong, with what it measured.

Nothing is tested anew: figures come from the run's tables and records, and each test says by which rule it
fires. One whose figures are missing is "not asked", with the reason, and never left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


@dataclass(frozen=True)
class SelfTest:
    """A way in which the run could have shown itself wrong: its verdict, its figure, and when it fires."""

    question: str
    verdict: str
    figure: str
    rule: str


class TestGroup(NamedTuple):
    """Self-tests of one thing, and what passing them does not show."""

    about: str
    limits: str
    tests: Sequence[SelfTest]


def self_tests(source: Source, stages: Records, card: Mapping[str, Any]) -> list[TestGroup]:
    """All of them, thing by thing, of a run with its stages' records and its card, empty if there is none."""
    held_out = [
        SelfTest(
            "Does the short list hold on prompts that took no part in choosing it?", *confirmed(source),
            f"Fires when none is confirmed; p ≤ {LEVEL}, Holm over the list, so that one by chance is rare.",
        ),
        SelfTest(
            "Is what was confirmed what had been claimed before the held-out prompts were read?",
            *manifest(source),
            "Fires when the frozen claims, their hash and the hash that confirmation used differ.",
        ),
    ]  # fmt: skip
    controls = [
        SelfTest(
            "Do as many matched random latents, pushed as far, move the belief as the chosen ones do?",
            *random_sets(source),
            f"Fires when p > {PATCH_Q} for the smallest greedy set chosen to bring half of the full effect.",
        ),
        SelfTest(
            "Do the chosen set or a tested latent do as much at a wrong token, with another task's values, "
            "or backwards?",
            *elsewhere(source), f"Fires when one of these brings {HALF:g} of its own effect or more.",
        ),
    ]  # fmt: skip
    saes = [
        SelfTest(
            "Does every SAE fit the model it is used on?", *fits(source),
            "Fires when an SAE was used although its width, normalisation, origin or error does not fit.",
        ),
        SelfTest(
            "Are the labels found again in SAEs that were trained anew?", *stable(source, stages),
            "Fires when fewer than half are found again.",
        ),
    ]  # fmt: skip
    own = [
        SelfTest(
            "Did every stage read what the earlier stages hold now?", *chained(stages),
            "Fires when a stage's record names other hashes than the stages that it reads have.",
        ),
        SelfTest(
            "Is the code that ran the code of a commit?", *committed(card),
            "Fires when files of the package differed from the commit.",
        ),
    ]  # fmt: skip
    groups = (
        (
            "the growth claim", falsifiers(source),
            "A falsifier that did not fire leaves the claim standing on this task, these arms and this "
            "model; it does not prove it.",
        ),
        (
            "what was held out", held_out,
            "Held-out prompts are of the same task and model: they show that a finding is no accident of the "
            "prompts, not that it holds elsewhere.",
        ),
        (
            "the patching machinery", identities(source),
            "These values are the same in any model, so they show that patches land where they should; they "
            "say nothing of what was found.",
        ),
        (
            "what patches are specific to", controls,
            "Controls are a sample: other random latents, tokens or tasks could still do the same.",
        ),
        (
            "the SAEs and their labels", saes,
            "That an SAE fits the model says nothing of whether its latents are the model's own features.",
        ),
        (
            "the run's own record", own,
            "These compare records with each other; whether every file still is what its stage wrote takes "
            "reading all of them, which these pages do not.",
        ),
    )  # fmt: skip
    return [TestGroup(about, limits, tests) for about, tests, limits in groups]


def _unasked(source: Source, table: str) -> Verdict:
    return NOT_ASKED, source.why(table) or "Not run: nothing could be tested."


def falsifiers(source: Source) -> list[SelfTest]:
    """What would refute additive growth."""
    rule, answers = "Fires when the answer is yes.", {"fired": FIRED, "did not fire": PASSED}
    table = source.rows("falsifiers")
    if table.empty:
        question = "Is anything seen that would refute additive growth?"
        return [SelfTest(question, *_unasked(source, "falsifiers"), rule)]
    return [
        SelfTest(
            f"{row['falsifier']}: {row['question']}",
            answers.get(row["fired"], NOT_ASKED),
            row["evidence"],
            rule,
        )
        for row in records(table)
    ]


def confirmed(source: Source) -> Verdict:
    """Whether any of the short list holds on held-out prompts."""
    table = source.rows("confirmed")
    tested = table[table["confirm_p"].notna()]
    if tested.empty:
        return _unasked(source, "confirmed")
    held, n = int((tested["confirm_p"] <= LEVEL).sum()), len(tested)
    shrinkage = float(np.nanmedian(tested["shrinkage"])) if tested["shrinkage"].notna().any() else math.nan
    figure = f"{held} of {n} are confirmed; median slope there ÷ slope that chose them {number(shrinkage)}."
    return PASSED if held else FIRED, figure


def manifest(source: Source) -> Verdict:
    """Whether what was confirmed is what had been claimed."""
    try:
        used = source.results.facts_of_growth.get("manifest", "")
        file = source.results.file("shape", "manifest.json")
    except (RunError, TableError):
        return NOT_ASKED, "Not run: shape or growth has left no readable facts."
    try:
        frozen = Manifest.thaw(file)
    except TableError as cause:
        return FIRED, f"The frozen claims are {cause.found}."
    figure = f"{len(frozen.claims)} claims and {len(frozen.prompts)} prompts, hash {frozen.sha256[:12]}…"
    return PASSED if frozen.sha256 == used else FIRED, figure


def identities(source: Source) -> list[SelfTest]:
    """Values of the sweep and of the lens that are the same in every model."""
    sweep, lens, heads = map(source.rows, ("sweep", "lens", "heads"))
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


def random_sets(source: Source) -> Verdict:
    """Whether as many matched random latents do the same as the smallest set with half of the effect."""
    belief = source.config.patch.chosen_for
    table = source.rows("sets")
    table = table[(table["belief"] == belief) & (table["direction"] == "sufficiency")]
    if table.empty:
        return _unasked(source, "sets")
    best = smallest_set(table[(table["n_controls"] > 0) | (table["kind"] != "greedy")], belief)[1]
    if best is None:
        return NOT_ASKED, "Not run: no greedy set was chosen to bring half of the full effect."
    figure = (
        f"{best['size']} latents at {best['site']} {best['role']} bring {number(best['share_of_full'])}, "
        f"{best['n_controls']} random sets {number(best['control_share'])}; p {number(best['control_p'])}."
    )
    return PASSED if best["control_p"] <= PATCH_Q else FIRED, figure


def elsewhere(source: Source) -> Verdict:
    """Whether a wrong token, another task's values or the opposite sign do the same."""
    table = source.rows("patch_controls")
    table = table[(table["belief"] == source.config.patch.chosen_for) & table["effect"].notna()]
    own = max(records(table[table["control"] == "own"]), key=lambda row: abs(row["effect"]), default=None)
    if own is None:
        return _unasked(source, "patch_controls")
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


def fits(source: Source) -> Verdict:
    """Whether every SAE was made for the model."""
    table = source.rows("quality")
    if table.empty:
        return _unasked(source, "quality")
    bad = [f"{row['site']}: {row['mismatch']}" for row in records(table[table["mismatch"] != ""])]
    return FIRED if bad else PASSED, "; ".join(
        bad
    ) or f"{len(table)} SAEs; largest FVU {number(table['fvu'].max())}."


def stable(source: Source, stages: Records) -> Verdict:
    """Whether labels are found again in other SAEs."""
    table = source.rows("stability")
    if table.empty:
        said = str(((stages.get("identify") or {}).get("found", {})).get("labels found in other SAEs", ""))
        said = said.removeprefix("not asked: ")
        return (NOT_ASKED, f"Not run: {said}.") if said else _unasked(source, "stability")
    again, n = int(table["stable"].astype(bool).sum()), len(table)
    return PASSED if again >= n / 2 else FIRED, f"{again} of {n}."


def chained(stages: Records) -> Verdict:
    """Whether each stage read what earlier ones hold now."""
    wrong, n = [], 0
    for stage in STAGES:
        inputs = (stages.get(stage) or {}).get("inputs", {})
        for name in inputs:
            earlier = stages.get(name)
            if earlier is not None:
                n += 1
                if hash_json(earlier.get("outputs")) != inputs[name]:
                    wrong.append(f"{stage} read another {name}")
    if not n:
        return NOT_ASKED, "Not run: no two stages have a record."
    return FIRED if wrong else PASSED, "; ".join(wrong) or f"{n} readings agree."


def committed(card: Mapping[str, Any]) -> Verdict:
    """Whether the code is that of a commit."""
    commit = str(card.get("iclens", {}).get("commit", "unknown"))
    if commit == "unknown":
        return NOT_ASKED, "Not known: the run was made outside a checkout."
    return FIRED if commit.endswith("+") else PASSED, f"Commit {commit[:13]}."
