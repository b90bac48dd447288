"""The page of how a run was computed: what was run, self-tests, SAEs, stages, hashes and config; and words.

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
from iclens.pages.draw import NAN, tag
from iclens.pages.section import (
    Cell,
    Page,
    Row,
    Section,
    Source,
    code,
    facts,
    grid,
    missing,
    paragraph,
    scrolled,
    share,
)
from iclens.pages.self_tests import FIRED, GROUPS, NOT_ASKED, PASSED, Examined, self_tests
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
_UNKNOWN = {"commit": "unknown", "version": "unknown"}


def _records(source: Source) -> dict[str, dict[str, Any] | None]:
    """Stage → its record, without a look at its outputs; None where it is missing or damaged."""
    return {name: _file(source, name, RECORD) or None for name in FOLDERS if name != PAGES}


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
    limits = [
        f"Growth is the slope of arm {treated} minus its controls; what rises as a control falls says so.",
        "Logit effects read the direct path from the latent to the unembedding only.",
        "Density, top prompts and histograms come from prompts of the task grid, BOS left out.",
    ]
    try:
        reason = source.results.beliefs_of(treated)[2]
    except IclensError:
        return limits
    return [*limits, f"No exact posterior is drawn: {reason}."] if reason else limits


def provenance(source: Source) -> Pairs:
    """What was run."""
    card, prompts = source.results.card, source.config.prompts
    return [
        ("task", prompts.task),
        ("prompts", f"{prompts.n_prompts} of {prompts.n_examples} examples in each arm"),
        ("arms", ", ".join(prompts.arms)),
        ("model", f"{card['model folder']['name']} ({card['model']})"),
        ("SAEs", ", ".join(f"{site} {fact['sae_id']}" for site, fact in card["saes"].items())),
        ("config", card["config"]),
        ("iclens", f"{card['iclens']['version']}, commit {card['iclens']['commit'][:13]}"),
        ("versions", f"python {card['python']}, {words(card['versions'])}"),
        ("dtype and device", f"{card['dtype']}, {card['device']}"),
        ("seeds", ", ".join(f"{name} {value}" for name, value in card["seeds"].items())),
        ("run", source.results.path.name),
    ]


def measured(source: Source, stages: Mapping[str, Mapping[str, Any] | None]) -> Pairs:
    """What was measured on the run itself, for its tests to stand on."""
    fit, pairs = _file(source, "track", "calibration.json"), []
    if fit.get("guess") is not None:
        for name, says in (("guess", "right with no example"), ("lapse", "wrong with all of them")):
            value, low, high = (number(fit[f"{name}{end}"]) for end in ("", "_low", "_high"))
            span = f"{value} [{low}, {high}], on {fit['n_prompts']} prompts"
            pairs.append((f"{name}: P(the answer is {says})", span))
    elif fit.get("reason"):
        pairs.append(("guess and lapse", fit["reason"]))
    detect = (stages.get("detect") or {}).get("found", {})
    if "prompts" in detect:
        split = zip(("discovery", "shape", "confirm"), detect["prompts"], strict=False)
        pairs.append(("prompts of each split", ", ".join(f"{name} {n}" for name, n in split)))
    apart = _file(source, "identify", "grid.json").get("y marginals of slopes", {})
    if "largest" in apart:
        name = "largest total variation between answers of tasks of two slopes"
        pairs.append((name, number(apart["largest"])))
    if manifest := _file(source, "growth", "growth.json").get("manifest"):
        pairs.append(("manifest of what was claimed before it was confirmed", str(manifest)))
    return pairs


def hashes(card: Mapping[str, Any]) -> dict[str, Pairs]:
    """Hashes of code, config, model, tokenizer and SAEs; versions, number format and device; seeds."""
    made, folder = _UNKNOWN | card.get("iclens", {}), card.get("model folder", {})
    known = {name: card.get(name, "unknown") for name in ("config", "model", "python", "dtype", "device")}
    named = {
        "Hashes": {"code, git commit": made["commit"], "config": known["config"], "model": known["model"]}
        | {f"model folder, {name}": value for name, value in folder.get("files", {}).items()}
        | {f"SAE source, {name}": value for name, value in card.get("SAE source", {}).items()}
        | {f"SAE of {site}": fact["sae_id"] for site, fact in card.get("saes", {}).items()},
        "Versions": {"iclens": made["version"], "python": known["python"]}
        | card.get("versions", {})
        | {name: known[name] for name in ("dtype", "device")},
        "Seeds": card.get("seeds", {}),
    }
    return {name: [(str(key), str(value)) for key, value in own.items()] for name, own in named.items()}


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
    if pairs := measured(source, _records(source)):
        parts += [tag("h3", "Measured on the run itself, for its tests to stand on"), _hashed(pairs)]
    return Markup("\n").join(parts)


def tests_body(source: Source) -> Markup:
    """Every self-test, and how many passed."""
    groups = self_tests(Examined(source, _records(source), _card(source)))
    counts = Counter(test.verdict for tests in groups.values() for test in tests)
    columns = {
        "question": "question",
        "verdict": lambda row: Cell(row["verdict"], strong=row["verdict"] == FIRED),
        "what was measured": "figure",
        "rule": lambda row: tag("small", row["rule"]),
    }
    parts = [facts(((verdict, str(counts[verdict])) for verdict in (PASSED, FIRED, NOT_ASKED)), "stats")]
    for n, (about, tests) in enumerate(groups.items(), start=1):
        table = grid(f"Self-tests of {about}", columns, map(vars, tests), kind="tests")
        parts += [tag("h3", f"Of {about}", id=f"tests-{n}"), table, paragraph("under", GROUPS[about])]
    return Markup("\n").join(parts)


def stage_row(name: str, folder: str, record: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is known of a stage: its state, seconds, key, files, and the command that brings it up to date."""
    line = f"iclens {COMMANDS[name][0] if name in COMMANDS else 'study'} {RUN}"
    row = {"name": name, "folder": folder, "command": line if name in COMMANDS else f"{line}/config.yaml"}
    row |= {"seconds": NAN, "key": "", "inputs": {}, "found": {}, "outputs": {}}
    if name == PAGES:
        return row | {"state": "these pages; its record is written after them"}
    if record is None:
        return row | {"state": f"no record: {folder}/{RECORD} is missing or damaged"}
    state = f"taken over from {record['taken_from']}" if "taken_from" in record else "done"
    return row | {key: record[key] for key in row if key in record} | {"state": state}


def stages_body(source: Source) -> Markup:
    """Every stage, and what it said, read and wrote."""
    stages = _records(source)
    rows = [stage_row(name, folder, stages.get(name)) for name, folder in FOLDERS.items()]
    columns = {
        "stage": "name", "folder": code("folder"), "state": "state",
        "seconds": lambda row: float(row["seconds"]),
        "key": lambda row: _hash(str(row["key"])) if row["key"] else "–",
        "files": lambda row: len(row["outputs"]) or "–", "brought up to date by": code("command"),
    }  # fmt: skip
    parts = [grid("Stages", columns, rows)]
    for row in rows:
        if held := _held(row):
            summary = tag("summary", f"{row['name']}: what it said, read and wrote")
            parts.append(tag("details", summary, tag("div", *held, class_="held")))
    return Markup("\n").join(parts)


def _held(row: Row) -> list[Markup]:
    named = {key: [(str(k), words(v)) for k, v in row[key].items()] for key in ("found", "inputs", "outputs")}
    files = [{"file": name, "sha256": value} for name, value in named["outputs"]]
    columns = {"file": code("file"), "sha256": lambda one: _hash(one["sha256"])}
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
    note = (
        "The same config, code, model, SAEs, versions and device give the same tables; on another device, "
        "last digits may differ."
    )
    name = source.results.path.name
    intro = tag("p", tag("code", RUN), " stands for the folder ", tag("code", name), ".", class_="intro")
    rows = [{"line": line, "says": says} for line, says in lines]
    table = grid("Run it again", {"command": code("line"), "what it does": "says"}, rows)
    return intro + table + paragraph("under", note)


def hashes_body(source: Source) -> Markup:
    """Hashes, versions and seeds of the card."""
    if not (card := _card(source)):
        return missing("Not known: the run has no readable card.json, which holds versions and hashes.")
    return Markup("\n").join(tag("h3", name) + _hashed(own) for name, own in hashes(card).items() if own)


def config_body(source: Source) -> Markup:
    """The resolved config."""
    region = scrolled("Config", tag("pre", source.config.yaml(), class_="yaml"))
    return tag("details", tag("summary", "The whole config"), region)


QUALITY = Section(
    "Quality of the SAEs", "quality", id="quality", nav="SAEs", chart=None, kind="", values="",
    intro="Measured on tokens that the SAEs were not trained on.", empty="No SAE was measured.",
    columns={
        "site": "site", "latents": "d_sae", "k": lambda row: "–" if np.isnan(row["k"]) else int(row["k"]),
        "L0": "l0", "FVU": "fvu", "CE recovered": "ce_recovered", "at pre": "ce_recovered_pre",
        "dead": share("dead"), "tokens": "n_tokens", "fingerprint": code("sae_id"),
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
        Section(
            "Config", id="config", nav="Config", body=config_body,
            intro="As it was resolved, with every default written out; it is config.yaml of the run’s "
            "folder.",
        ),
    ),
)  # fmt: skip

# ---------------------------------------------------------------- words

WORDS = """
# Prompts
example: one line (x, y) of a prompt
role: a token’s part in its example: open, x, comma, pre, lab, close
pre: the space before y, where the answer is predicted
lab: the y token, where the model sees the label; close is the bracket after it
query: the last x of a prompt, which the model has to answer
n_seen: examples before the query
arm: a version of the prompts that differs in one respect: T the task’s labels, S the same labels in other
  places, R random labels; the page of growth says what the others are
run A, run B: A shows examples, then the query; B shows none, or their labels in other places (S arm)
A*: A’s examples and B’s query: what B would answer if it had A’s context
held-out: took no part in choosing what is judged; held-out tasks carry a *
# Model and SAEs
site: where an SAE reads: L2.resid_post is the residual stream leaving block 2, L2.mlp_out what its MLP adds
block: a layer of the model; entering block 3 is the same place as leaving block 2
latent: one unit of an SAE; the word claims nothing about meaning
activation: a latent’s strength; over the examples it is multiplied by the length of its decoder row, so that
  latents can be compared
density: share of tokens on which a latent is active
FVU: fraction of variance that an SAE leaves unexplained
# Beliefs
belief: a statement about the answer, read from the logits as log-odds
log-odds: ln(p / (1 − p)), in nats; 0 is even odds
exact: the belief that the answer is the task’s own; exact posterior: what an ideal learner who knows the
  mixture of tasks would believe on the same prompts
label evidence: by how much an ideal learner’s belief changes with one more label, in nats
# Tests
grows: the task arm’s activation rises with the examples beyond the control arms’, prompt by prompt
falls: the task arm’s activation falls beside the control arms’, or rises less than theirs
confirmed: of growth: held on prompts kept back; of a cause: moved its own belief most
core: the clause without which a claim does not hold
natural growth: a latent’s own rise from n examples to the last; dose 1 pushes it as far
λ: what one example adds to the log-odds, in nats, on a straight line
rung: a step of the ladder grows, grows linearly, grows with evidence, causally additive, accounts for belief;
  a latent stands on the highest whose gates it passed
account: a rule by which evidence may add up: exact posterior, counting, …; the named one predicts held-out
  prompts best
p, q: p is of one test; q is corrected for all tests of its kind; no p against n random latents can be below
  1 / (n + 1)
control p: share of matched random latents that do at least as much
effect: patched minus unpatched, in nats
necessity, sufficiency: taking it out of run A; putting it into run B
label, candidate: a concept that a latent tells on held-out tasks and confuses with none of its confounds; a
  candidate failed one of these gates
AUROC: how well a latent tells a concept: .5 is chance, 1 is perfect
confound: what could be mistaken for the concept
V: Cramér’s V: how far the tasks themselves tie a concept to a confound, 0 to 1
falsifier: a result that would refute the claim of additive growth
"""
"""Terms with their meanings, in groups; the documentation’s vocabulary has every word of them."""


def _glossary() -> list[Section]:
    sections = []
    for n, group in enumerate(WORDS.split("# ")[1:], start=1):
        heading, *lines = group.replace("\n  ", " ").strip().split("\n")
        terms = facts((line.split(": ", 1) for line in lines), "words-list")  # type: ignore[misc]
        sections.append(Section(heading, id=f"words-{n}", body=lambda source, terms=terms: terms))
    return sections


GLOSSARY = Page("words.html", "Words", "Words", "What the words on these pages mean.", _glossary())
