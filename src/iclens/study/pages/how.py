"""What does the page of how a run was computed show? Its records and card as plain values.

1. Stages come from their records, `stage.json`, which hold the hash of everything that went in and out;
2. hashes, versions and seeds from the card; 3. self-tests from `self_tests`. What is missing is said.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from iclens.core import RunError, TableError
from iclens.dashboards.records.how import Command, HowView, Named, StageRow
from iclens.dashboards.text import number
from iclens.results.read import Results
from iclens.study.pages.patch_tables import Tables
from iclens.study.pages.self_tests import self_tests
from iclens.study.run import FOLDERS, RECORD
from iclens.study.store import load_json

PAGES = "dashboard"
"""The stage that writes these pages: its record is made after them."""
COMMANDS = {
    "track": ("track", "follows every latent over the examples, and what that reads"),
    "growth": ("growth", "tests what grows: detect, shape, dose and growth"),
    "identify": ("transforms", "names latents and moves them: identify and transforms"),
    "transforms": ("transforms", ""),
    "sweep": ("sweep", "moves whole residuals and ablates heads"),
    "patch": ("patch", "moves latents"),
    "dashboard": ("dashboard", "writes these pages"),
}
"""Stage → the subcommand that brings it up to date, and what that does."""
RUN = "RUN"
"""Stands for the run's folder in a command line."""


def how(results: Results) -> HowView:
    """Everything that says how a run was computed, and how far it tested itself."""
    tables, reasons = Tables(results), {}
    records = {name: record_of(results, name) for name in FOLDERS if name != PAGES}
    card: Mapping[str, Any] = {}
    try:
        card = results.card
    except (RunError, TableError):
        reasons["card"] = "Not known: the run has no readable card.json, which holds versions and hashes."
    return HowView(
        config=results.config.yaml(),
        run=results.path.name,
        stages=[stage_row(name, folder, records.get(name)) for name, folder in FOLDERS.items()],
        commands=commands(results),
        hashes=hashes(card),
        versions=versions(card),
        seeds=[Named(str(name), str(value)) for name, value in card.get("seeds", {}).items()],
        tests=self_tests(tables, records, card),
        measured=measured(results, records),
        reasons=reasons,
    )


def record_of(results: Results, stage: str) -> dict[str, Any] | None:
    """A stage's record, without a look at its outputs; None where it is missing or damaged."""
    try:
        found = load_json(results.file(stage, RECORD))
    except (RunError, TableError):
        return None
    return found if isinstance(found, dict) else None


def stage_row(name: str, folder: str, record: Mapping[str, Any] | None) -> StageRow:
    """What is known of a stage."""
    line = f"iclens {COMMANDS[name][0] if name in COMMANDS else 'study'} {RUN}"
    command = line if name in COMMANDS else f"{line}/config.yaml"
    if name == PAGES:
        return StageRow(name, folder, "these pages; its record is written after them", command=command)
    if record is None:
        return StageRow(name, folder, f"no record: {folder}/{RECORD} is missing or damaged", command=command)
    state = f"taken over from {record['taken_from']}" if "taken_from" in record else "done"
    return StageRow(
        name,
        folder,
        state,
        float(record["seconds"]) if "seconds" in record else None,
        str(record.get("key", "")),
        _named(record.get("inputs", {})),
        _named(record.get("found", {})),
        _named(record.get("outputs", {})),
        command,
    )


def commands(results: Results) -> list[Command]:
    """Command lines that repeat the run or a part of it."""
    saes = results.config.saes
    found = [
        Command(
            f"iclens study {RUN}/config.yaml",
            "the whole study: stages whose inputs are unchanged are taken over, the others done again",
        )
    ]
    if saes.train is not None:
        trained = f"iclens train {shlex.quote(saes.train)} --out FOLDER"
        found.append(Command(trained, "trains the SAE set by itself, as the stage `saes` did"))
    found += [Command(f"iclens {name} {RUN}", says) for name, says in COMMANDS.values() if says]
    return found


def hashes(card: Mapping[str, Any]) -> list[Named]:
    """Hashes of code, config, model, tokenizer and SAEs."""
    if not card:
        return []
    folder, code = card.get("model folder", {}), card.get("iclens", {})
    source = card.get("SAE source", {})
    return [
        Named("code, git commit", str(code.get("commit", "unknown"))),
        Named("config", str(card.get("config", "unknown"))),
        Named("model", str(card.get("model", "unknown"))),
        *(Named(f"model folder, {name}", str(value)) for name, value in folder.get("files", {}).items()),
        *(Named(f"SAE source, {name}", str(value)) for name, value in source.items()),
        *(Named(f"SAE of {site}", str(fact["sae_id"])) for site, fact in card.get("saes", {}).items()),
    ]


def versions(card: Mapping[str, Any]) -> list[Named]:
    """Versions, number format and device."""
    if not card:
        return []
    return [
        Named("iclens", str(card.get("iclens", {}).get("version", "unknown"))),
        Named("python", str(card.get("python", "unknown"))),
        *(Named(str(name), str(value)) for name, value in card.get("versions", {}).items()),
        Named("dtype", str(card.get("dtype", "unknown"))),
        Named("device", str(card.get("device", "unknown"))),
    ]


def measured(results: Results, records: Mapping[str, Mapping[str, Any] | None]) -> list[Named]:
    """What was measured on the run itself, for its tests to stand on."""
    found = []
    fit = _file(results, "track", "calibration.json")
    if fit.get("guess") is not None:
        for name, says in (("guess", "right with no example"), ("lapse", "wrong with all of them")):
            low, high = number(fit[f"{name}_low"]), number(fit[f"{name}_high"])
            about = f"{name}: P(the answer is {says})"
            found.append(Named(about, f"{number(fit[name])} [{low}, {high}], on {fit['n_prompts']} prompts"))
    elif fit.get("reason"):
        found.append(Named("guess and lapse", fit["reason"]))
    detect = (records.get("detect") or {}).get("found", {})
    if "prompts" in detect:
        names = ("discovery", "shape", "confirm")
        split = ", ".join(f"{name} {n}" for name, n in zip(names, detect["prompts"], strict=False))
        found.append(Named("prompts of each split", split))
    apart = _file(results, "identify", "grid.json").get("y marginals of slopes", {})
    if "largest" in apart:
        found.append(
            Named("largest total variation between answers of tasks of two slopes", number(apart["largest"]))
        )
    if manifest := _file(results, "growth", "growth.json").get("manifest"):
        found.append(Named("manifest of what was claimed before it was confirmed", str(manifest)))
    return found


def _file(results: Results, stage: str, name: str) -> dict[str, Any]:
    """A JSON file of a stage; empty where it is missing or damaged."""
    try:
        found = load_json(results.file(stage, name))
    except (RunError, TableError):
        return {}
    return found if isinstance(found, dict) else {}


def _named(held: Mapping[str, Any]) -> list[Named]:
    return [Named(str(name), words(value)) for name, value in held.items()]


def words(value: Any) -> str:
    """A value of a record in words: a mapping as `name value`, a list with commas."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {words(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(words(inner) for inner in value)
    if isinstance(value, float):
        return number(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
