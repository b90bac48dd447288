"""A study from its config to its pages: the stages of `flow` are brought up to date, one by one.

A stage is

1. up to date when its key is the kept one and its outputs still have the hashes that it wrote;
2. taken over when another run of the study holds the key (files are linked, never changed in place);
3. done otherwise, and what changed is said.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import iclens
from iclens.core import RunError, nearest
from iclens.study import run as runs
from iclens.study.config import StudyConfig
from iclens.study.flow import FLOW
from iclens.study.grid import check_concepts
from iclens.study.inputs import CHECKOUT, Hashes, check_model, check_task, outside_inputs, pair_files
from iclens.study.store import hash_json

INDEX = "site/index.html"
STATES = ("begins", "progress", "done", "up to date", "taken over")
PACKAGES = (
    "torch", "transformers", "sae_lens", "transformer_lens", "numpy", "scipy", "scikit-learn", "pandas",
)  # fmt: skip
"""Packages whose version can move a number."""


@dataclass(frozen=True)
class Event:
    """What a stage has to say while a study runs."""

    stage: str  # its name
    state: str  # one of `STATES`
    seconds: float = 0.0  # it took, 0 when it was not done
    found: Mapping[str, Any] = field(default_factory=dict)  # its findings
    why: str = ""  # why it was done, or where it was taken from


Report = Callable[[Event], None]


def bring_up_to_date(stage: runs.Stage, run: runs.RunContext, report: Report) -> Event:
    """Do a stage unless its key says that it is done; log and report it."""
    folder, inputs = run.folder, runs.inputs_of(stage, run)
    key = hash_json(inputs)
    kept = folder.record(stage.folder)
    if kept is not None and kept["key"] == key:
        event = Event(stage.name, "up to date", found=kept["found"])
    elif (elsewhere := _elsewhere(stage, folder, key)) is not None:
        other, record = elsewhere
        folder.write_stage(stage.folder, lambda fresh: _take_over(other / stage.folder, record, fresh))
        event = Event(stage.name, "taken over", found=record["found"], why=f"from {other.name}, same inputs")
    else:
        why = _why(kept, inputs, (folder.path / stage.folder).exists())
        report(Event(stage.name, "begins", why=why))
        started = time.monotonic()

        def write(fresh: Path) -> dict[str, Any]:
            findings = stage.write(run, key, fresh)
            seconds = round(time.monotonic() - started, 2)
            return {"stage": stage.name, "key": key, "inputs": inputs, "seconds": seconds, "found": findings}

        folder.write_stage(stage.folder, write)
        found = (folder.record(stage.folder) or {"found": {}})["found"]
        event = Event(stage.name, "done", round(time.monotonic() - started, 2), found, why)
    folder.log(
        stage=event.stage, state=event.state, seconds=event.seconds, why=event.why, found=dict(event.found)
    )
    report(event)
    return event


def _why(kept: dict[str, Any] | None, inputs: dict[str, str], exists: bool) -> str:
    if kept is None:
        return "its outputs are damaged" if exists else "not done before"
    changed = [name for name in inputs if kept["inputs"].get(name) != inputs[name]]
    return f"changed: {', '.join(changed)}"


def _elsewhere(stage: runs.Stage, run: runs.RunFolder, key: str) -> tuple[Path, dict[str, Any]] | None:
    """Another run of the study that holds this stage with the same key, and its record."""
    for path in sorted(run.path.parent.glob("*"), reverse=True):
        if path != run.path and (path / stage.folder / runs.RECORD).is_file():
            record = runs.RunFolder(path, run.config).record(stage.folder)
            if record is not None and record["key"] == key:
                return path, record
    return None


def _take_over(source: Path, record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Link (or copy) the outputs; files of a run are never changed in place, so sharing them is safe."""
    for name in record["outputs"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, folder / name)
        except OSError:
            shutil.copy2(source / name, folder / name)
    return record | {"taken_from": source.parent.name}


@dataclass(frozen=True)
class Outcome:
    """What running a study gave."""

    run: Path  # the run folder
    events: tuple[Event, ...]  # one per stage brought up to date, in order
    index: Path | None  # the pages' index.html, when they are written

    def as_text(self) -> str:
        """Where the run and its pages are."""
        pages = [] if self.index is None else [f"pages: {self.index.resolve()}"]
        return "\n".join([f"run: {self.run}", *pages])

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        keys = ("stage", "state", "seconds", "why")
        return {
            "run": str(self.run),
            "index": None if self.index is None else str(self.index),
            "stages": [{k: getattr(e, k) for k in keys} | {"found": dict(e.found)} for e in self.events],
        }


def run_study(config: StudyConfig, root: str | Path, report: Report, *, last: str | None = None) -> Outcome:
    """Run every stage that is not up to date.

    Args:
        report: told what each stage does.
        last: only this stage and those that it reads; all when not given.

    Raises:
        RunError: for a stage that does not exist.
        IclensError: for anything wrong in what was asked; a run in which no stage finished is removed again.
    """
    names = runs.STAGES if last is None else needed_for(last)
    outside = _checked(config)
    return _bring(runs.run_for(config, Path(root)), names, outside, report)


def run_stage(path: Path, name: str, report: Report) -> Outcome:
    """Bring one stage of a run up to date, and the earlier ones that it reads.

    Args:
        path: a run folder, or a study folder with a finished run.
        name: one of `STAGES`.
        report: told what each stage does.
    """
    names, folder = needed_for(name), runs.find_run(path)
    return _bring(folder, names, _checked(folder.config), report)


def run_track_shard(path: Path, rank: int, world: int) -> Path:
    """Track one rank's slice of a run's prompts; `run_stage(path, "track", …)` joins the parts of all ranks.

    Args:
        path: a run folder, or a study folder with a finished run.
        rank: from 0.
    """
    from iclens.study.follow import write_shard  # loads torch, which a run that is up to date does not need

    folder = runs.find_run(path)
    run = runs.RunContext(folder, _checked(folder.config))
    (track,) = (stage for stage in FLOW if stage.name == "track")
    return write_shard(run, hash_json(runs.inputs_of(track, run)), rank, world)


def needed_for(name: str) -> tuple[str, ...]:
    """`name` and the stages that it reads, directly or not, in order."""
    if name not in runs.STAGES:
        raise RunError(f"stage '{name}'", "unknown", nearest(name, runs.STAGES) + ".")
    needed = {name}
    for stage in reversed(FLOW):
        if stage.name in needed:
            needed |= set(stage.reads)
    return tuple(stage for stage in runs.STAGES if stage in needed)


def _checked(config: StudyConfig) -> Mapping[str, Hashes]:
    """The outside inputs, after refusing what can be seen to be wrong before a run folder is made."""
    check_model(config)
    check_task(config)
    check_concepts(config)
    return outside_inputs(config)


def _bring(
    folder: runs.RunFolder, names: Sequence[str], outside: Mapping[str, Hashes], report: Report
) -> Outcome:
    running = FLOW[0]
    run = runs.RunContext(folder, outside, lambda found: report(Event(running.name, "progress", found=found)))
    events: list[Event] = []
    try:
        for running in (stage for stage in FLOW if stage.name in names):
            events.append(bring_up_to_date(running, run, report))
            if events[-1].state != "up to date" or not (folder.path / runs.CARD).is_file():
                folder.write_text(runs.CARD, runs.indented(study_card(run)))
        if names == runs.STAGES and not folder.done:
            folder.write_text(runs.DONE, runs.now() + "\n")
    finally:
        folder.discard_if_empty()
    index = folder.path / runs.FOLDERS["dashboard"] / INDEX
    return Outcome(folder.path, tuple(events), index if index.is_file() else None)


def study_card(run: runs.RunContext) -> dict[str, Any]:
    """What was run, exactly: versions, commit, hashes, dtype and seeds; of its SAEs once they exist."""
    config = run.config
    sections = config.model_dump(mode="json")
    seeds = {
        f"{section}.{key}": value
        for section, keys in sections.items() if isinstance(keys, dict)
        for key, value in keys.items() if key.endswith("seed")
    }  # fmt: skip
    return {
        "study": config.study,
        "config": hash_json(sections),
        "iclens": {"version": iclens.__version__, "commit": _commit()},
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "model folder": {"name": config.model.folder, "files": run.outside["model"]},
        "SAE source": run.outside["SAE source"],
        **({"pairs": files} if (files := pair_files(sections)) else {}),
        **(run.facts if (run.folder.path / runs.FOLDERS["saes"]).is_dir() else {}),
        "dtype": config.model.dtype,
        "device": config.model.device,
        "seeds": seeds,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Commit of the checkout, with "+" when files of the package differ from it; "unknown" outside of one."""
    if not (CHECKOUT / ".git").exists():
        return "unknown"
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--", "src") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    ran = subprocess.run(["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True, check=True)
    return ran.stdout.strip()
