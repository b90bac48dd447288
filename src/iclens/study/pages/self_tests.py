"""How far did a run test itself? Every way in which it could have shown itself wrong, with what it measured.

Nothing is tested anew: figures come from the run's tables and records, and each test says by which rule it
fires. One whose figures are missing is "not asked", with the reason, and never left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from iclens.core import RunError, TableError
from iclens.dashboards.records.how import FIRED, NOT_ASKED, PASSED, SelfTest, TestGroup
from iclens.dashboards.text import number
from iclens.growth.verdict import LEVEL, Manifest
from iclens.patching.runs import ZERO
from iclens.patching.sets import FULL, GREEDY, HALF
from iclens.schemas import PATCH_Q
from iclens.study.pages.patch_tables import Tables, records
from iclens.study.run import STAGES
from iclens.study.store import hash_json

SAME = 1e-3
"""Largest difference of two probabilities that count as equal."""
ANSWERS = {"fired": FIRED, "did not fire": PASSED}
Records = Mapping[str, Mapping[str, Any] | None]


def self_tests(tables: Tables, stages: Records, card: Mapping[str, Any]) -> list[TestGroup]:
    """All of them, thing by thing.

    Args:
        tables: of the run.
        stages: stage → its record, or None.
        card: the run's card; empty when there is none.
    """
    return [
        TestGroup(
            "the growth claim",
            "A falsifier that did not fire leaves the claim standing on this task, these arms and this "
            "model; it does not prove it.",
            falsifiers(tables),
        ),
        TestGroup(
            "what was held out",
            "Held-out prompts are of the same task and model: they show that a finding is no accident of the "
            "prompts, not that it holds elsewhere.",
            [confirmed(tables), manifest(tables)],
        ),
        TestGroup(
            "the patching machinery",
            "These values are the same in any model, so they show that patches land where they should; they "
            "say nothing of what was found.",
            identities(tables),
        ),
        TestGroup(
            "what patches are specific to",
            "Controls are a sample: other random latents, tokens or tasks could still do the same.",
            [random_sets(tables), elsewhere(tables)],
        ),
        TestGroup(
            "the SAEs and their labels",
            "That an SAE fits the model says nothing of whether its latents are the model's own features.",
            [fits(tables), stable(tables, stages)],
        ),
        TestGroup(
            "the run's own record",
            "These compare records with each other; whether every file still is what its stage wrote takes "
            "reading all of them, which these pages do not.",
            [chained(stages), committed(card)],
        ),
    ]


def falsifiers(tables: Tables) -> list[SelfTest]:
    """What would refute additive growth."""
    rule = "Fires when the answer is yes."
    table = tables.of("falsifiers", "falsifiers")
    if table.empty:
        return [_unasked("Is anything seen that would refute additive growth?", tables, "falsifiers", rule)]
    return [
        SelfTest(
            f"{row['falsifier']}: {row['question']}",
            ANSWERS.get(row["fired"], NOT_ASKED),
            row["evidence"],
            rule,
        )
        for row in records(table)
    ]  # fmt: skip


def confirmed(tables: Tables) -> SelfTest:
    """Whether any of the short list holds on held-out prompts."""
    question = "Does the short list hold on prompts that took no part in choosing it?"
    rule = f"Fires when none is confirmed; p ≤ {LEVEL}, Holm over the list, so that one by chance is rare."
    table = tables.of("confirmed", "confirmed")
    tested = table[table["confirm_p"].notna()]
    if tested.empty:
        return _unasked(question, tables, "confirmed", rule)
    held, n = int((tested["confirm_p"] <= LEVEL).sum()), len(tested)
    shrinkage = float(np.nanmedian(tested["shrinkage"])) if tested["shrinkage"].notna().any() else math.nan
    figure = f"{held} of {n} are confirmed; median slope there ÷ slope that chose them {number(shrinkage)}."
    return SelfTest(question, PASSED if held else FIRED, figure, rule)


def manifest(tables: Tables) -> SelfTest:
    """Whether what was confirmed is what had been claimed."""
    question = "Is what was confirmed what had been claimed before the held-out prompts were read?"
    rule = "Fires when the frozen claims, their hash and the hash that confirmation used differ."
    try:
        used = tables.results.facts_of_growth.get("manifest", "")
        file = tables.results.file("shape", "manifest.json")
    except (RunError, TableError):
        return SelfTest(question, NOT_ASKED, "Not run: shape or growth has left no readable facts.", rule)
    try:
        frozen = Manifest.thaw(file)
    except TableError as cause:
        return SelfTest(question, FIRED, f"The frozen claims are {cause.found}.", rule)
    figure = f"{len(frozen.claims)} claims and {len(frozen.prompts)} prompts, hash {frozen.sha256[:12]}…"
    return SelfTest(question, PASSED if frozen.sha256 == used else FIRED, figure, rule)


def identities(tables: Tables) -> list[SelfTest]:
    """Values of the sweep and of the lens that are the same in every model."""
    sweep, lens, heads = (tables.of(name, name) for name in ("sweep", "lens", "heads"))
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
    donors = by_recipient.drop(ZERO, errors="ignore") - by_recipient.get(ZERO, math.nan)
    return [
        _identity(
            "Does replacing the embedding at pre change nothing, as both runs hold the same token there?",
            first["value"] - first["base"],
            "layer 0 was not swept at pre",
        ),
        _identity(
            "Does the last layer bring the donor's own answer, whatever run B shows?",
            donors,
            "run B was not swept with and without a context at pre",
        ),
        _identity(
            "Are A's labels in the embedding of B the same as A's context with B's query?",
            labels["value"] - labels["metric"].map(whole).astype(float),
            "labels were not swept at layer 0, or no head was ablated",
        ),
        _identity(
            "Does the lens at the last layer read what the model answers?",
            end["value"] - end["metric"].map(whole).astype(float),
            "there is no lens at pre, or no head was ablated",
        ),
    ]


def _identity(question: str, differences: pd.Series, missing: str) -> SelfTest:
    rule = f"Fires when a probability differs by more than {SAME}."
    known = differences.dropna()
    if known.empty:
        return SelfTest(question, NOT_ASKED, f"Not run: {missing}.", rule)
    largest = float(known.abs().max())
    figure = f"Largest difference {number(largest)}, over {len(known)} value{'s' if len(known) > 1 else ''}."
    return SelfTest(question, PASSED if largest <= SAME else FIRED, figure, rule)


def random_sets(tables: Tables) -> SelfTest:
    """Whether as many matched random latents do the same as the smallest set with half of the effect."""
    question = "Do as many matched random latents, pushed as far, move the belief as the chosen ones do?"
    rule = f"Fires when p > {PATCH_Q} for the smallest greedy set chosen to bring half of the full effect."
    table, belief = tables.of("sets", "sets"), tables.config.patch.chosen_for
    table = table[(table["belief"] == belief) & (table["direction"] == "sufficiency")]
    if table.empty:
        return _unasked(question, tables, "sets", rule)
    full = table[table["kind"] == FULL]
    place = max(records(full), key=lambda row: row["effect"], default={"site": "", "role": ""})
    there = table[(table["site"] == place["site"]) & (table["role"] == place["role"])]
    greedy = there[
        (there["kind"] == GREEDY) & (there["screen_share"] >= HALF) & (there["n_controls"] > 0)
    ].sort_values("size")
    if greedy.empty:
        return SelfTest(
            question, NOT_ASKED, "Not run: no greedy set was chosen to bring half of the full effect.", rule
        )
    best = records(greedy)[0]
    figure = (
        f"{best['size']} latents at {best['site']} {best['role']} bring {number(best['share_of_full'])}, "
        f"{best['n_controls']} random sets {number(best['control_share'])}; p {number(best['control_p'])}."
    )
    return SelfTest(question, PASSED if best["control_p"] <= PATCH_Q else FIRED, figure, rule)


def elsewhere(tables: Tables) -> SelfTest:
    """Whether a wrong token, another task's values or the opposite sign do the same."""
    question = (
        "Do the chosen set or a tested latent do as much at a wrong token, with another task's values, or "
        "backwards?"
    )
    rule = f"Fires when one of these brings {HALF:g} of its own effect or more."
    table, belief = tables.of("patch_controls", "controls"), tables.config.patch.chosen_for
    table = table[(table["belief"] == belief) & table["effect"].notna()]
    own = max(records(table[table["control"] == "own"]), key=lambda row: abs(row["effect"]), default=None)
    if own is None:
        return _unasked(question, tables, "controls", rule)
    same = (table["site"] == own["site"]) & (table["role"] == own["role"])
    same &= (table["latents"] == own["latents"]) & (table["control"] != "own") & (table["reason"] == "")
    others = records(table[same])
    if not others:
        return SelfTest(question, NOT_ASKED, "Not run: no control of it can tell.", rule)
    worst = max(others, key=lambda row: row["effect"] / own["effect"])
    share = worst["effect"] / own["effect"]
    figure = (
        f"Latents {own['latents']} at {own['site']} {own['role']}: own {number(own['effect'])} nats; most of "
        f"{len(others)}: {worst['control']}, {number(worst['effect'])}."
    )
    return SelfTest(question, FIRED if share >= HALF else PASSED, figure, rule)


def fits(tables: Tables) -> SelfTest:
    """Whether every SAE was made for the model."""
    question = "Does every SAE fit the model it is used on?"
    rule = "Fires when an SAE was used although its width, normalisation, origin or error does not fit."
    table = tables.of("quality", "quality")
    if table.empty:
        return _unasked(question, tables, "quality", rule)
    bad = [f"{row['site']}: {row['mismatch']}" for row in records(table[table["mismatch"] != ""])]
    figure = "; ".join(bad) or f"{len(table)} SAEs; largest FVU {number(table['fvu'].max())}."
    return SelfTest(question, FIRED if bad else PASSED, figure, rule)


def stable(tables: Tables, stages: Records) -> SelfTest:
    """Whether labels are found again in other SAEs."""
    question = "Are the labels found again in SAEs that were trained anew?"
    rule = "Fires when fewer than half are found again."
    table = tables.of("stability", "stability")
    if table.empty:
        found = (stages.get("identify") or {}).get("found", {})
        said = str(found.get("labels found in other SAEs", "")).removeprefix("not asked: ")
        why = f"Not run: {said}." if said else tables.reasons.get("stability", "Not run.")
        return SelfTest(question, NOT_ASKED, why, rule)
    again, n = int(table["stable"].astype(bool).sum()), len(table)
    return SelfTest(question, PASSED if again >= n / 2 else FIRED, f"{again} of {n}.", rule)


def chained(stages: Records) -> SelfTest:
    """Whether each stage read what earlier ones hold now."""
    question = "Did every stage read what the earlier stages hold now?"
    rule = "Fires when a stage's record names other hashes than the stages that it reads have."
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
        return SelfTest(question, NOT_ASKED, "Not run: no two stages have a record.", rule)
    return SelfTest(question, FIRED if wrong else PASSED, "; ".join(wrong) or f"{n} readings agree.", rule)


def committed(card: Mapping[str, Any]) -> SelfTest:
    """Whether the code is that of a commit."""
    question = "Is the code that ran the code of a commit?"
    rule = "Fires when files of the package differed from the commit."
    commit = str(card.get("iclens", {}).get("commit", "unknown"))
    if commit == "unknown":
        return SelfTest(question, NOT_ASKED, "Not known: the run was made outside a checkout.", rule)
    return SelfTest(question, FIRED if commit.endswith("+") else PASSED, f"Commit {commit[:13]}.", rule)


def _unasked(question: str, tables: Tables, part: str, rule: str) -> SelfTest:
    return SelfTest(question, NOT_ASKED, tables.reasons.get(part, "Not run: nothing could be tested."), rule)
