"""Where does a run live? `runs/<study>/<utc>-<hash8>/`, written so that nothing is ever half there.

    config.yaml   the resolved config; hash8 is the hash of it
    card.json     versions, commit, hashes of model and SAEs, dtype, seeds
    NN_stage/     a stage's outputs, with stage.json: its key, inputs, output hashes, seconds, findings
    log.jsonl     one line per stage and run
    trained.checkpoints/  where SAE training that was interrupted goes on, with trained.code, what began it
    DONE          written last, removed before a stage is redone

Files and folders are written under a temporary name, flushed and renamed. One config has one run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from iclens.core import RunError, nearest
from iclens.study import digests
from iclens.study.config import StudyConfig, load_study_config

CONFIG, CARD, LOG, DONE = "config.yaml", "card.json", "log.jsonl", "DONE"
RECORD, TRAINED = "stage.json", "trained"
_TEMPORARY = ".new"


@dataclass(frozen=True)
class RunFolder:
    """One run.

    Args:
        path: its folder.
        config: the resolved config.
    """

    path: Path
    config: StudyConfig

    @property
    def plain(self) -> dict[str, Any]:
        """The resolved config as plain values."""
        return self.config.model_dump(mode="json")

    @property
    def done(self) -> bool:
        """Whether every stage finished."""
        return (self.path / DONE).is_file()

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder whole or not at all."""
        target = self.path / name
        fresh = target.with_name(f"{name}{_TEMPORARY}")
        with fresh.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(target)
        _flush(self.path)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the folder whole or not at all."""
        self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def log(self, **entry: Any) -> None:
        """Append one line to log.jsonl."""
        line = json.dumps({"utc": now()} | entry, ensure_ascii=False)
        with (self.path / LOG).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def write_stage(self, name: str, write: Callable[[Path], dict[str, Any]]) -> None:
        """Replace a stage's folder by what `write` puts into an empty one.

        Args:
            name: folder name, for example `03_growth`.
            write: fills the folder and returns the record to keep beside the outputs.
        """
        fresh, old = self.path / f"{name}{_TEMPORARY}", self.path / f"{name}.old"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        try:
            record = write(fresh)
            record["outputs"] = digests.of_files(fresh)
            (fresh / RECORD).write_text(
                json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            for path in [*fresh.rglob("*"), fresh]:
                _flush(path)
            (self.path / DONE).unlink(missing_ok=True)
            shutil.rmtree(old, ignore_errors=True)
            if (self.path / name).exists():
                (self.path / name).rename(old)
            fresh.rename(self.path / name)
            _flush(self.path)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)

    def record(self, name: str) -> dict[str, Any] | None:
        """A stage's record, or None when it is missing or its outputs are not what it wrote."""
        folder = self.path / name
        try:
            kept = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # not there, not JSON, or not text
            return None
        if not isinstance(kept, dict):
            return None
        outputs = digests.of_files(folder)
        outputs.pop(RECORD)
        return kept if outputs == kept.get("outputs") else None

    def discard_if_empty(self) -> None:
        """Remove a run without a finished stage or begun training, and parents that this leaves empty."""
        begun = (self.path / f"{TRAINED}.checkpoints").is_dir()
        if begun or any(path.is_dir() and (path / RECORD).is_file() for path in self.path.iterdir()):
            return
        shutil.rmtree(self.path)
        for parent in list(self.path.parents)[:2]:
            if any(parent.iterdir()):
                return
            parent.rmdir()


def run_for(config: StudyConfig, root: Path) -> RunFolder:
    """The run folder of a config under `root`: the newest one of the same resolved config, or a new one."""
    key = digests.of_json(config.model_dump(mode="json"))[:8]
    study = root / config.study
    known = sorted(path for path in study.glob(f"*-{key}") if (path / CONFIG).is_file())
    if known:
        return RunFolder(known[-1], config)
    folder = study / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{key}"
    folder.mkdir(parents=True)
    run = RunFolder(folder, config)
    run.write_text(CONFIG, config.yaml())
    return run


def find_run(path: Path) -> RunFolder:
    """The run at `path`: a run folder, or a study folder, whose newest finished run is taken.

    Raises:
        RunError: when there is no such folder or no finished run in it, naming what is there.
        ConfigError: when the run's config does not validate.
    """
    folder = find_folder(path)
    return RunFolder(folder, load_study_config(folder / CONFIG))


def find_folder(path: Path) -> Path:
    """The folder of the run at `path`, whatever state it is in.

    Raises:
        RunError: when there is no such folder or no finished run in it, naming what is there.
    """
    if not path.is_dir():
        beside = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        raise RunError(f"run '{path}'", "no such folder", nearest(path.name, beside) + ".")
    if any((path / name).is_file() for name in (CONFIG, CARD, DONE)) or any(
        path.glob(f"[0-9][0-9]_*/{RECORD}")
    ):
        return path
    finished = sorted(mark.parent for mark in path.glob(f"*/{DONE}"))
    if not finished:
        begun = sorted(mark.parent.name for mark in path.glob(f"*/{CONFIG}"))
        found = f"only unfinished runs ({', '.join(begun)})" if begun else "no run in it"
        raise RunError(f"run '{path}'", found, "Finish one with `iclens study CONFIG`, or name a run folder.")
    return finished[-1]


def now() -> str:
    """The time, UTC, to the second."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
