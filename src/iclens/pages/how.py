"""The page of how a run was computed: what was run, self-tests, SAEs, stages, hashes and config.

Stages come from their records, `stage.json`, which hold the hash of everything that went in and out;
hashes, versions and seeds from the card. What is missing is said.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from iclens.core import IclensError, RunError, TableError
from iclens.pages.draw import tag
from iclens.pages.section import Page, Row, Section, Source, Words, facts, grid, missing, paragraph, share
from iclens.pages.self_tests import FIRED, NOT_ASKED, PASSED, self_tests
from iclens.pages.text import number
from iclens.study.run import FOLDERS, RECORD
from iclens.study.store import load_json

PAGES, RUN = "dashboard", "RUN"
"""The stage that writes these pages, and is recorded after them; what stands for the run's folder."""
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
DIGITS = 16
"""Characters of a hash that are shown; a longer one stands whole in its title."""
Pairs = list[tuple[str, str]]


def record_of(source: Source, stage: str) -> dict[str, Any] | None:
    """A stage's record, without a look at its outputs; None where it is missing or damaged."""
    return _file(source, stage, RECORD) or None


def _records(source: Source) -> dict[str, dict[str, Any] | None]:
    return {name: record_of(source, name) for name in FOLDERS if name != PAGES}


def _card(source: Source) -> Mapping[str, Any]:
    try:
        return source.results.card
    except (RunError, TableError):
        return {}


def _file(source: Source, stage: str, name: str) -> dict[str, Any]:
    """A JSON file of a stage; empty where it is missing or damaged."""
    try:
        held = load_json(source.results.file(stage, name))
    except (RunError, TableError):
        return {}
    return held if isinstance(held, dict) else {}


# ---------------------------------------------------------------- parts


def notes(source: Source) -> list[str]:
    """Limits that a reader should know."""
    treated = source.config.treated
    found = [
        f"Growth is the slope of arm {treated} minus its controls; what rises as a control falls says so.",
        "Logit effects read the direct path from the latent to the unembedding only.",
        "Density, top prompts and histograms come from prompts of the task grid, BOS left out.",
    ]
    try:
        reason = source.results.beliefs_of(treated)[2]
    except IclensError:
        return found
    return [*found, f"No exact posterior is drawn: {reason}."] if reason else found


def provenance(source: Source) -> Pairs:
    """What was run."""
    card, prompts = source.results.card, source.config.prompts
    versions = ", ".join(f"{name} {value}" for name, value in card["versions"].items())
    return [
        ("task", prompts.task),
        ("prompts", f"{prompts.n_prompts} of {prompts.n_examples} examples in each arm"),
        ("arms", ", ".join(prompts.arms)),
        ("model", f"{card['model folder']['name']} ({card['model']})"),
        ("SAEs", ", ".join(f"{site} {fact['sae_id']}" for site, fact in card["saes"].items())),
        ("config", card["config"]),
        ("iclens", f"{card['iclens']['version']}, commit {card['iclens']['commit'][:13]}"),
        ("versions", f"python {card['python']}, {versions}"),
        ("dtype and device", f"{card['dtype']}, {card['device']}"),
        ("seeds", ", ".join(f"{name} {value}" for name, value in card["seeds"].items())),
        ("run", source.results.path.name),
    ]


def measured(source: Source, stages: Mapping[str, Mapping[str, Any] | None]) -> Pairs:
    """What was measured on the run itself, for its tests to stand on."""
    found = []
    fit = _file(source, "track", "calibration.json")
    if fit.get("guess") is not None:
        for name, says in (("guess", "right with no example"), ("lapse", "wrong with all of them")):
            low, high = number(fit[f"{name}_low"]), number(fit[f"{name}_high"])
            value = f"{number(fit[name])} [{low}, {high}], on {fit['n_prompts']} prompts"
            found.append((f"{name}: P(the answer is {says})", value))
    elif fit.get("reason"):
        found.append(("guess and lapse", fit["reason"]))
    detect = (stages.get("detect") or {}).get("found", {})
    if "prompts" in detect:
        names = ("discovery", "shape", "confirm")
        split = ", ".join(f"{name} {n}" for name, n in zip(names, detect["prompts"], strict=False))
        found.append(("prompts of each split", split))
    apart = _file(source, "identify", "grid.json").get("y marginals of slopes", {})
    if "largest" in apart:
        found.append(
            ("largest total variation between answers of tasks of two slopes", number(apart["largest"]))
        )
    if manifest := _file(source, "growth", "growth.json").get("manifest"):
        found.append(("manifest of what was claimed before it was confirmed", str(manifest)))
    return found


def hashes(card: Mapping[str, Any]) -> Pairs:
    """Hashes of code, config, model, tokenizer and SAEs."""
    if not card:
        return []
    folder, code = card.get("model folder", {}), card.get("iclens", {})
    return [
        ("code, git commit", str(code.get("commit", "unknown"))),
        ("config", str(card.get("config", "unknown"))),
        ("model", str(card.get("model", "unknown"))),
        *((f"model folder, {name}", str(value)) for name, value in folder.get("files", {}).items()),
        *((f"SAE source, {name}", str(value)) for name, value in card.get("SAE source", {}).items()),
        *((f"SAE of {site}", str(fact["sae_id"])) for site, fact in card.get("saes", {}).items()),
    ]


def versions(card: Mapping[str, Any]) -> Pairs:
    """Versions, number format and device."""
    if not card:
        return []
    named = {
        "iclens": card.get("iclens", {}).get("version", "unknown"),
        "python": card.get("python", "unknown"),
    }
    named |= card.get("versions", {}) | {name: card.get(name, "unknown") for name in ("dtype", "device")}
    return [(str(name), str(value)) for name, value in named.items()]


def words(value: Any) -> str:
    """A value of a record in words: a mapping as `name value`, a list with commas."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {words(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(words(inner) for inner in value)
    if isinstance(value, float):
        return number(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _hash(value: str) -> Markup:
    if len(value) > DIGITS and " " not in value:
        return tag("code", f"{value[:DIGITS]}…", title=value)
    return tag("code", value)


def _hashed(pairs: Iterable[tuple[str, str]]) -> Markup:
    return facts((name, _hash(value)) for name, value in pairs)


# ---------------------------------------------------------------- sections


def run_body(source: Source) -> Markup:
    """Notes, provenance, and what was measured."""
    parts = [tag("ul", *(tag("li", note) for note in notes(source)), class_="notes")]
    try:
        parts.append(facts(provenance(source)))
    except (IclensError, LookupError, TypeError, AttributeError):
        parts.append(missing("What was run is not known: the run has no readable card.json."))
    if found := measured(source, _records(source)):
        parts += [tag("h3", "Measured on the run itself, for its tests to stand on"), _hashed(found)]
    return Markup("\n").join(parts)


def tests_body(source: Source) -> Markup:
    """Every self-test, and how many passed."""
    groups = self_tests(source, _records(source), _card(source))
    counts = Counter(test.verdict for group in groups for test in group.tests)
    tally = (
        tag("div", tag("dt", verdict), tag("dd", str(counts[verdict])))
        for verdict in (PASSED, FIRED, NOT_ASKED)
    )
    parts = [tag("dl", *tally, class_="stats")]
    for n, group in enumerate(groups, start=1):
        rows = ({"test": test} for test in group.tests)
        table = grid(
            f"Self-tests of {group.about}",
            {
                "question": lambda row: row["test"].question,
                "verdict": lambda row: Words(row["test"].verdict, strong=row["test"].verdict == FIRED),
                "what was measured": lambda row: row["test"].figure,
                "rule": lambda row: tag("small", row["test"].rule),
            },
            rows,
            kind="tests",
        )
        parts += [tag("h3", f"Of {group.about}", id=f"tests-{n}"), table, paragraph("under", group.limits)]
    return Markup("\n").join(parts)


def stage_row(name: str, folder: str, record: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is known of a stage: its state, seconds, key, files, and the command that brings it up to date."""
    line = f"iclens {COMMANDS[name][0] if name in COMMANDS else 'study'} {RUN}"
    row = {"name": name, "folder": folder, "command": line if name in COMMANDS else f"{line}/config.yaml"}
    row |= {"seconds": np.nan, "key": "", "inputs": {}, "found": {}, "outputs": {}}
    if name == PAGES:
        return row | {"state": "these pages; its record is written after them"}
    if record is None:
        return row | {"state": f"no record: {folder}/{RECORD} is missing or damaged"}
    state = f"taken over from {record['taken_from']}" if "taken_from" in record else "done"
    known = {key: record[key] for key in row if key in record}
    return row | known | {"state": state}


def stages_body(source: Source) -> Markup:
    """Every stage, and what it said, read and wrote."""
    stages = _records(source)
    rows = [stage_row(name, folder, stages.get(name)) for name, folder in FOLDERS.items()]
    parts = [
        grid(
            "Stages",
            {
                "stage": "name",
                "folder": lambda row: tag("code", row["folder"]),
                "state": "state",
                "seconds": lambda row: float(row["seconds"]),
                "key": lambda row: _hash(str(row["key"])) if row["key"] else "–",
                "files": lambda row: len(row["outputs"]) or "–",
                "brought up to date by": lambda row: tag("code", row["command"]),
            },
            rows,
        )
    ]
    for row in rows:
        held = [part for part in _held(row) if part]
        if held:
            summary = tag("summary", f"{row['name']}: what it said, read and wrote")
            parts.append(tag("details", summary, tag("div", *held, class_="held")))
    return Markup("\n").join(parts)


def _held(row: Row) -> list[Markup]:
    named = {key: [(str(k), words(v)) for k, v in row[key].items()] for key in ("found", "inputs", "outputs")}
    files = [{"file": name, "sha256": value} for name, value in named["outputs"]]
    columns = {"file": lambda one: tag("code", one["file"]), "sha256": lambda one: _hash(one["sha256"])}
    parts = {
        "It said": facts(named["found"]) if named["found"] else "",
        "Hashes of what decides its result": _hashed(named["inputs"]) if named["inputs"] else "",
        "Hashes of its files": grid(f"Files of stage {row['name']}", columns, files),
    }
    return [tag("h3", heading) + Markup(part) for heading, part in parts.items() if part]


def commands_body(source: Source) -> Markup:
    """Command lines that repeat the run or a part of it."""
    saes = source.config.saes
    whole = "the whole study: stages whose inputs are unchanged are taken over, the others done again"
    lines = [(f"iclens study {RUN}/config.yaml", whole)]
    if saes.train is not None:
        trained = f"iclens train {shlex.quote(saes.train)} --out FOLDER"
        lines.append((trained, "trains the SAE set by itself, as the stage `saes` did"))
    lines += [(f"iclens {name} {RUN}", says) for name, says in COMMANDS.values() if says]
    columns = {"command": lambda row: tag("code", row["line"]), "what it does": "says"}
    note = (
        "The same config, code, model, SAEs, versions and device give the same tables; on another device, "
        "last digits may differ."
    )
    name = source.results.path.name
    intro = tag("p", tag("code", RUN), " stands for the folder ", tag("code", name), ".", class_="intro")
    table = grid("Run it again", columns, [{"line": line, "says": says} for line, says in lines])
    return intro + table + paragraph("under", note)


def hashes_body(source: Source) -> Markup:
    """Hashes, versions and seeds of the card."""
    card = _card(source)
    if not card:
        return missing("Not known: the run has no readable card.json, which holds versions and hashes.")
    seeds = [(str(name), str(value)) for name, value in card.get("seeds", {}).items()]
    named = {"Hashes": hashes(card), "Versions": versions(card), "Seeds": seeds}
    return Markup("\n").join(tag("h3", name) + _hashed(pairs) for name, pairs in named.items() if pairs)


def config_body(source: Source) -> Markup:
    """The resolved config."""
    text = tag("pre", source.config.yaml(), class_="yaml")
    region = tag("div", text, class_="scroll", role="region", tabindex="0", aria_label="Config")
    intro = "As it was resolved, with every default written out; it is config.yaml of the run’s folder."
    return paragraph("intro", intro) + tag("details", tag("summary", "The whole config"), region)


QUALITY = Section(
    "Quality of the SAEs", "quality", id="quality", nav="SAEs", chart=None, kind="", values="",
    intro="Measured on tokens that the SAEs were not trained on.", empty="No SAE was measured.",
    columns={
        "site": "site", "latents": "d_sae", "k": lambda row: "–" if np.isnan(row["k"]) else int(row["k"]),
        "L0": "l0", "FVU": "fvu", "CE recovered": "ce_recovered", "at pre": "ce_recovered_pre",
        "dead": share("dead"), "tokens": "n_tokens", "fingerprint": lambda row: tag("code", row["sae_id"]),
    },
    under="L0: active latents per token. FVU: fraction of variance unexplained. CE recovered: share of the "
    "cross-entropy loss kept when the SAE’s output is spliced in. Dead: share of latents never active.",
)  # fmt: skip

HOW = Page(
    "how.html", "How", "How this was computed", "What was run, with what, and how far it can be trusted.",
    (
        Section("What was run", id="run", nav="What was run", body=run_body),
        Section(
            "Ways in which it could have shown itself wrong", id="tests", nav="Self-tests", body=tests_body,
            intro="A self-test is a question that a run puts to itself; beside it stands the rule by which "
            "it fires. “Passed” says that this way of being wrong was looked for and not seen, not that "
            "the findings are right. “Fired” does not spoil the run: it says what may not be claimed from "
            "it. “Not asked” is no pass.",
        ),
        QUALITY,
        Section(
            "Stages", id="stages", nav="Stages", body=stages_body,
            intro="A stage is done again only when the hash of what decides its result changes; each keeps "
            "the hashes of what it read and wrote.",
        ),
        Section("Run it again", id="again", nav="Run it again", body=commands_body),
        Section("Hashes, versions and seeds", id="hashes", nav="Hashes and versions", body=hashes_body),
        Section("Config", id="config", nav="Config", body=config_body),
    ),
)  # fmt: skip
