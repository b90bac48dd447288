"""In what state is a run? Everything that a reader has to know before its numbers are believed, a line each.

1. A config that no longer validates is kept as plain values; 2. what another iclens wrote is told from what
is missing or damaged, and from what was never finished; 3. nothing is refused that can still be read safely.
Opening looks only whether files are there; `changed_files` reads every one of them.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

import iclens
from iclens.core import ConfigError, IclensError, RunWarning
from iclens.study.config import StudyConfig, one_line, parse_study_config
from iclens.study.run import CARD, CONFIG, DONE, FOLDERS, RECORD, RunFolder
from iclens.study.store import hash_file, hash_json
from iclens.table import Table

_SHOWN = 5
"""Missing files of a stage, or files that it did not write, with a line each; beyond, one line counts."""


@dataclass(frozen=True)
class RunAsFound:
    """A run whose config does not validate.

    Args:
        path: its folder.
        plain: config.yaml as it stands; empty when it cannot be read.
        cause: why it does not validate, in one line.
    """

    path: Path
    plain: Mapping[str, Any]
    cause: str

    @property
    def config(self) -> StudyConfig:
        """Never there.

        Raises:
            ConfigError: always, with the cause.
        """
        raise ConfigError(
            f"config of run '{self.path}'",
            self.cause,
            "`iclens.open` reads what is there: its `run.config` is the file as it stands.",
        )


@dataclass(frozen=True)
class Condition:
    """In what state a run was found, one line each.

    Args:
        foreign: what another iclens wrote in another way.
        damaged: what is missing or cannot be read.
        unfinished: what was never finished.
    """

    foreign: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """All of them."""
        return self.unfinished + self.foreign + self.damaged

    def warn(self, path: Path) -> None:
        """One warning that names the first of what is foreign or damaged, and counts the others."""
        found = self.foreign + self.damaged
        if found:
            more = f" (and {len(found) - 1} more, see run.problems)" if len(found) > 1 else ""
            text = f"run '{path}': {next(iter(found))}{more}. What can be read is shown."
            warnings.warn(text, RunWarning, stacklevel=3)


def read_run(path: Path) -> tuple[RunFolder | RunAsFound, str]:
    """The run in a folder, and in one line what is wrong with its config; empty when nothing is."""
    try:
        text = (path / CONFIG).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        cause = "not there" if isinstance(problem, FileNotFoundError) else f"unreadable ({one_line(problem)})"
        return RunAsFound(path, {}, cause), f"{CONFIG}: {cause}"
    try:
        return RunFolder(path, parse_study_config(text, CONFIG)), ""
    except IclensError as problem:
        return RunAsFound(path, _mapping(text), one_line(problem).rstrip(".")), one_line(problem).rstrip(".")


def condition_of(run: RunFolder | RunAsFound, problem: str, tables: Mapping[str, type[Table]]) -> Condition:
    """What is wrong with a run, without reading its values.

    Args:
        run: what `read_run` gave.
        problem: what it said of the config.
        tables: table name → its class.
    """
    readable = bool(run.plain)
    foreign, damaged = ([problem], []) if readable else ([], [problem])
    version, broken = _card(run.path)
    foreign, damaged = [*version, *foreign], [*damaged, *broken]
    lacking = [name for name, folder in FOLDERS.items() if not (run.path / folder).is_dir()]
    unfinished = []
    if (run.path / DONE).is_file():
        damaged += [f"{FOLDERS[name]}: not there" for name in lacking]
    elif lacking:
        unfinished = [f"unfinished: it lacks {', '.join(lacking)}"]
    else:
        unfinished = ["unfinished: a stage was being done again"]
    for name, folder in FOLDERS.items():
        if name not in lacking:
            damaged += _missing(run.path, folder)
    for kind in tables.values():
        file = run.path / FOLDERS[kind.stage] / kind.file
        if file.is_file():
            other, unreadable = _columns(file, kind)
            foreign, damaged = foreign + other, damaged + unreadable
    kept = ([line for line in lines if line] for lines in (foreign, damaged, unfinished))
    return Condition(*(tuple(lines) for lines in kept))


def changed_files(path: Path) -> tuple[str, ...]:
    """Files of finished stages that are not what the stage's record says it wrote, a line each; reads them.

    A file that was rewritten together with its record is not seen.
    """
    found = []
    for folder in FOLDERS.values():
        outputs = _outputs(path / folder)
        for name, digest in outputs.items():
            file = path / folder / name
            if file.is_file() and hash_file(file) != digest:
                found.append(f"{folder}/{name}: not what its stage wrote")
        if outputs:
            found += _unrecorded(path, folder, outputs)
    return tuple(found)


def renamed_config(run: RunFolder | RunAsFound) -> tuple[str, ...]:
    """A line when a config validates but is not the one whose hash ends the folder's name; else nothing."""
    named = re.search(r"-([0-9a-f]{8})$", run.path.name)
    if named is None or isinstance(run, RunAsFound):
        return ()
    held: list[Any] = [run.plain]
    try:  # as it stands as well: an older iclens had fewer keys
        held.append(yaml.safe_load((run.path / CONFIG).read_text(encoding="utf-8")))
        known = {hash_json(value)[:8] for value in held}
    except (OSError, ValueError, TypeError, yaml.YAMLError) as cause:
        return (f"{CONFIG}: unreadable ({one_line(cause)})",)
    if named[1] in known:
        return ()
    return (f"{CONFIG}: its hash is {hash_json(run.plain)[:8]}, the folder is named {named[1]}",)


def _mapping(text: str) -> dict[str, Any]:
    try:
        held = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return {str(key): value for key, value in held.items()} if isinstance(held, dict) else {}


def _card(path: Path) -> tuple[list[str], list[str]]:
    try:
        card = json.loads((path / CARD).read_text(encoding="utf-8"))
        version = card["iclens"]["version"]
    except FileNotFoundError:
        return [], [f"{CARD}: not there"]
    except (OSError, ValueError, KeyError, TypeError) as cause:
        return [], [f"{CARD}: unreadable ({one_line(cause)})"]
    if version == iclens.__version__:
        return [], []
    return [f"written by iclens {version}, this is {iclens.__version__}"], []


def _outputs(folder: Path) -> dict[str, str]:
    try:
        outputs = json.loads((folder / RECORD).read_text(encoding="utf-8"))["outputs"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return outputs if isinstance(outputs, dict) else {}


def _missing(path: Path, folder: str) -> list[str]:
    outputs = _outputs(path / folder)
    if not outputs:
        return [f"{folder}/{RECORD}: not there or unreadable"]
    gone = [name for name in outputs if not (path / folder / name).is_file()]
    if len(gone) > _SHOWN:
        return [f"{folder}: {len(gone)} of {len(outputs)} files are not there, such as {gone[0]}"]
    return [f"{folder}/{name}: not there" for name in gone]


def _unrecorded(path: Path, folder: str, outputs: Mapping[str, Any]) -> list[str]:
    files = (file for file in (path / folder).rglob("*") if file.is_file())
    names = sorted(file.relative_to(path / folder).as_posix() for file in files)
    strange = [name for name in names if name != RECORD and name not in outputs]
    if len(strange) > _SHOWN:
        return [f"{folder}: its stage did not write {len(strange)} of its files, such as {strange[0]}"]
    return [f"{folder}/{name}: its stage did not write it" for name in strange]


def _columns(file: Path, kind: type[Table]) -> tuple[list[str], list[str]]:
    name = f"{file.parent.name}/{file.name}"
    try:
        held = set(pq.read_schema(file, memory_map=True).names)
    except (OSError, ValueError) as cause:
        return [], [f"{name}: unreadable ({one_line(cause)})"]
    lacks, more = [c for c in kind.COLUMNS if c not in held], sorted(held - kind.COLUMNS.keys())
    said = [f"lacks {', '.join(lacks)}"] if lacks else []
    said += [f"also has {', '.join(more)}"] if more else []
    return ([f"{name}: {' and '.join(said)}"] if said else []), []
