"""Does this stage have to be done again? The rule that skips it, by its key (`flow.inputs_of`).

1. Equal keys and undamaged outputs: up to date. 2. Another run of the study holds equal keys: taken over
from there. 3. Otherwise it is done, and what changed is said.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from iclens.study import digests
from iclens.study.bench import Bench
from iclens.study.flow import Stage, inputs_of
from iclens.study.runfolder import RECORD, RunFolder

Found = dict[str, Any]
STATES = ("begins", "progress", "done", "up to date", "taken over")


@dataclass(frozen=True)
class Event:
    """What a stage has to say while a study runs.

    Args:
        stage: its name.
        state: one of `STATES`.
        seconds: it took, 0 when it was not done.
        found: its findings.
        why: why it was done, or where it was taken from.
    """

    stage: str
    state: str
    seconds: float = 0.0
    found: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


Report = Callable[[Event], None]


def bring_up_to_date(stage: Stage, bench: Bench, report: Report) -> Event:
    """Do a stage unless its key says that it is done; log and report it."""
    run, inputs = bench.run, inputs_of(stage, bench)
    key = digests.of_json(inputs)
    kept = run.record(stage.folder)
    if kept is not None and kept["key"] == key:
        event = Event(stage.name, "up to date", found=kept["found"])
    elif (elsewhere := _elsewhere(stage, run, key)) is not None:
        other, record = elsewhere
        run.write_stage(stage.folder, lambda folder: _take_over(other, record, stage, folder))
        event = Event(
            stage.name, "taken over", found=record["found"], why=f"from {other.path.name}, same inputs"
        )
    else:
        why = _why(kept, inputs, stage, run)
        report(Event(stage.name, "begins", why=why))
        started = time.monotonic()

        def write(folder: Path) -> dict[str, Any]:
            found = import_module(stage.module).work(bench, folder)
            seconds = round(time.monotonic() - started, 2)
            return {"stage": stage.name, "key": key, "inputs": inputs, "seconds": seconds, "found": found}

        run.write_stage(stage.folder, write)
        event = Event(stage.name, "done", round(time.monotonic() - started, 2), _found(run, stage), why)
    run.log(
        stage=event.stage, state=event.state, seconds=event.seconds, why=event.why, found=dict(event.found)
    )
    report(event)
    return event


def _found(run: RunFolder, stage: Stage) -> Found:
    record = run.record(stage.folder)
    return {} if record is None else record["found"]


def _why(kept: dict[str, Any] | None, inputs: dict[str, str], stage: Stage, run: RunFolder) -> str:
    if kept is None:
        return "its outputs are damaged" if (run.path / stage.folder).exists() else "not done before"
    before = kept["inputs"]
    changed = [name for name in inputs if before.get(name) != inputs[name]]
    return f"changed: {', '.join(changed)}"


def _elsewhere(stage: Stage, run: RunFolder, key: str) -> tuple[RunFolder, dict[str, Any]] | None:
    """Another run of the study that holds this stage with the same key, and its record."""
    for place in sorted(run.path.parent.glob("*"), reverse=True):
        if place != run.path and (place / stage.folder / RECORD).is_file():
            other = RunFolder(place, run.config)
            kept = other.record(stage.folder)
            if kept is not None and kept["key"] == key:
                return other, kept
    return None


def _take_over(other: RunFolder, kept: dict[str, Any], stage: Stage, folder: Path) -> dict[str, Any]:
    """Link (or copy) the outputs; files of a run are never changed in place, so sharing them is safe."""
    for name in kept["outputs"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _link(other.path / stage.folder / name, folder / name)
    return kept | {"taken_from": other.path.name}


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
