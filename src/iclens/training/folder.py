"""Where a training run is written: the set, its checkpoints and its metrics, each at its place once whole.

    <out>                         the set of SAEs; it appears when it is whole
    <out>.checkpoints/            while training goes on; stays on failure when it holds a checkpoint
        000000123456/             a checkpoint after so many tokens, whole or not there
            NAME.safetensors      tensors of one part: an SAE's state, the buffer, the generators
            state.json            everything else, with size and sha256 of every file, and its own sha256
        metrics/<SAE>.jsonl       step, tokens, lr, fvu, l0, dead, loss, … of that step's batch
        metrics/pace.jsonl        step, tokens, seconds, tokens_per_second
        set.partial/              the set as far as it is written

1. Parts of a checkpoint are written into a hidden folder, flushed, and counted in state.json. 2. The folder
gets its name when it is whole, and only then are older checkpoints removed. 3. Reading takes the newest whose
hashes agree; one that was damaged since is passed over. No pickles: it can be read without trusting it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from iclens.core import ConfigError, RunError

Files = dict[str, dict[str, Any]]
PACE, STATE = "pace", "state.json"
MAKE_ROOM = "Make room on the disk, then continue with --resume."


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, after `tokens` rows for each SAE; `state` is what was kept besides tensors."""

    folder: Path
    tokens: int
    state: dict[str, Any]

    def tensors(self, part: str, device: str = "cpu") -> dict[str, Tensor]:
        """Tensors of a part; raises a RunError when there is no such part."""
        try:
            return load_file(self.folder / f"{part}.safetensors", device=device)
        except (OSError, SafetensorError) as cause:
            remedy = "Continue with the configuration and version that wrote it."
            raise RunError(f"part '{part}' of checkpoint '{self.folder}'", "not there", remedy) from cause


@dataclass(frozen=True)
class TrainingFolder:
    """Where one run is written: the set at `out`, and beside it what is needed to go on."""

    out: Path
    keep: int

    @property
    def root(self) -> Path:
        """Folder of all that is needed to go on."""
        return self.out.with_name(f"{self.out.name}.checkpoints")

    @property
    def partial(self) -> Path:
        """The set as far as it is written."""
        return self.root / "set.partial"

    def checkpoint(self, tokens: int) -> Path:
        """Folder of the checkpoint after so many tokens."""
        return self.root / f"{tokens:012d}"

    def refuse_if_taken(self, resume: str) -> None:
        """Raise a ConfigError when `out` exists, or unfinished training that is not to be continued."""
        name = f"output '{self.out}'"
        if self.out.exists():
            raise ConfigError(name, "it exists", "Name a new folder, or remove this one.")
        if resume == "no" and self.newest_name() is not None:
            remedy = "Continue it with --resume, or remove that folder."
            raise ConfigError(name, f"'{self.root}' holds its unfinished training", remedy)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and keep other runs out of it; it goes when nothing in it is needed any more."""
        made = [parent for parent in self.root.absolute().parents if not parent.exists()]
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as cause:
                taken = "another process is training it"
                raise ConfigError(f"output '{self.out}'", taken, "Wait for it, or end it.") from cause
            self.tidy()
            shutil.rmtree(self.partial, ignore_errors=True)
            ended_well = False
            try:
                yield
                ended_well = True
            finally:
                shutil.rmtree(self.partial, ignore_errors=True)
                if (ended_well and self.out.exists()) or self.newest_name() is None:
                    shutil.rmtree(self.root)
                    for parent in made:
                        if not any(parent.iterdir()):
                            parent.rmdir()

    def publish(self) -> None:
        """Give the set its name."""
        for path in (*sorted(self.partial.rglob("*")), self.partial):
            flush(path)
        self.partial.rename(self.out)
        flush(self.out.parent)

    def begin(self, tokens: int) -> Path:
        """An empty hidden folder for the parts of a checkpoint; several processes may write into it."""
        partial = self.root / f".{tokens:012d}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def finish(self, partial: Path, files: Files, state: Mapping[str, Any]) -> Checkpoint:
        """Give the hidden folder of `begin` its name, and remove checkpoints that are not kept."""
        tokens = int(partial.stem.removeprefix("."))
        content = {"tokens": tokens, "files": files, "state": dict(state)}
        text = json.dumps(content | {"sha256": _digest(content)}, indent=1, ensure_ascii=False)
        (partial / STATE).write_text(text + "\n", encoding="utf-8")
        flush(partial / STATE)
        flush(partial)
        folder = self.checkpoint(tokens)
        _remove(folder)
        partial.rename(folder)
        flush(self.root)
        # One that is visibly not whole does not count as kept.
        whole = [folder for folder in self._folders() if _cut_short(folder) is None]
        for other in self._folders():
            if other not in whole[: self.keep]:
                _remove(other)
        return Checkpoint(folder, tokens, dict(state))

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose hashes agree; None when there is none at all."""
        faults: list[str] = []
        for folder in self._folders():
            fault = _cut_short(folder) or _changed(folder)
            if fault is None:
                return self.at(int(folder.name))
            faults.append(fault)
        if faults:
            damaged = f"none of {len(faults)} is whole ({faults[0]})"
            remedy = "Remove the folder to train from the start."
            raise RunError(f"checkpoints '{self.root}'", damaged, remedy)
        return None

    def at(self, tokens: int) -> Checkpoint:
        """The checkpoint of so many tokens, which `newest` found to be whole, maybe in another process."""
        folder = self.checkpoint(tokens)
        content = _state(folder)
        if content is None:
            raise RunError(f"checkpoint '{folder}'", "not there", "All processes need the same folder.")
        return Checkpoint(folder, tokens, content["state"])

    def newest_name(self) -> Path | None:
        """Folder of the newest checkpoint, whole or not; None without any."""
        return next(iter(self._folders()), None)

    def tidy(self) -> None:
        """Remove what an ended process left half written."""
        for folder in [*self.root.glob(".*.partial"), *self.root.glob(".*.old")]:
            shutil.rmtree(folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        """Every checkpoint, whole or not, newest first."""
        named = [p for p in self.root.glob("*") if p.is_dir() and re.fullmatch(r"\d{12}", p.name)]
        return sorted(named, reverse=True)


def write_part(folder: Path, part: str, tensors: Mapping[str, Tensor]) -> Files:
    """Write and flush `<folder>/<part>.safetensors`: file name → size and sha256; empty without tensors."""
    if not tensors:
        return {}
    file = folder / f"{part}.safetensors"
    save_file({name: _alone(x) for name, x in tensors.items()}, file)
    flush(file)
    return {file.name: {"bytes": file.stat().st_size, "sha256": _file_digest(file)}}


def flush(path: Path) -> None:
    """Have a file or folder on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _alone(x: Tensor) -> Tensor:
    """A tensor on the CPU that shares no memory with a larger one; a copy only where it has to be."""
    plain = x.detach().cpu().contiguous()
    return plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _remove(folder: Path) -> None:
    """Remove a checkpoint; it loses its name first, so that nothing half removed bears one."""
    if folder.exists():
        nameless = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(nameless, ignore_errors=True)
        folder.rename(nameless)
        shutil.rmtree(nameless)


def _state(folder: Path) -> dict[str, Any] | None:
    """What state.json holds; None where it is missing or its own hash disagrees."""
    try:
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.pop("sha256", None) != _digest(content):
        return None
    return content


def _cut_short(folder: Path) -> str | None:
    """What is visibly wrong with a checkpoint, without reading its tensors; None when nothing is."""
    content = _state(folder)
    if content is None:
        return f"{folder.name}/{STATE} is missing or damaged"
    for name, facts in content["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != facts["bytes"]:
            return f"{folder.name}/{name} is missing or cut short"
    return None


def _changed(folder: Path) -> str | None:
    """The first file of a checkpoint whose hash disagrees, in words; None when all agree."""
    for name, facts in (_state(folder) or {"files": {}})["files"].items():
        if _file_digest(folder / name) != facts["sha256"]:
            return f"{folder.name}/{name} has another sha256"
    return None


@dataclass(frozen=True)
class MetricsLog:
    """Metrics files of some SAEs: a JSON line per interval."""

    folder: Path
    names: tuple[str, ...]

    def file(self, name: str) -> Path:
        """The file of an SAE, or of the pace."""
        return self.folder / f"{name}.jsonl"

    def add(self, name: str, line: Mapping[str, Any]) -> None:
        """Append one line; a figure that is not finite is written as null."""
        bad = {key for key, value in line.items() if isinstance(value, float) and not math.isfinite(value)}
        plain = {key: None if key in bad else value for key, value in line.items()}
        before = self.file(name).stat().st_size
        try:
            with self.file(name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(plain) + "\n")
        except OSError as cause:
            os.truncate(self.file(name), before)  # half a line would spoil the one after it
            reason = f"cannot be written ({cause.strerror or cause})"
            raise RunError(f"metrics '{self.file(name)}'", reason, MAKE_ROOM) from cause

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, all of them on the disk."""
        for name in self.names:
            flush(self.file(name))
        return {name: self.file(name).stat().st_size for name in self.names}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Go back to the files as they were at `sizes`; empty ones where there are none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in self.names:
            with self.file(name).open("ab") as file:
                file.truncate(sizes.get(name, 0))
