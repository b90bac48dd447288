"""Where can training be taken up again? Checkpoints that are whole or not there.

    <root>/000000123456/    a checkpoint after so many tokens
        NAME.safetensors    tensors of one part: an SAE's state, the buffer, the generators
        state.json          everything else, with size and sha256 of every file, and a sha256 of its own

1. Parts are written into a hidden folder, flushed, and counted in state.json. 2. The folder gets its name
when it is whole, and only then are older checkpoints removed. 3. Reading takes the newest whose hashes agree;
one that was damaged since is passed over. No pickles: a checkpoint can be read without trusting it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from iclens.core import RunError

STATE = "state.json"
_NAME = re.compile(r"\d{12}")
_PARTIAL, _OLD = ".partial", ".old"

Tensors = Mapping[str, Tensor]
Files = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint.

    Args:
        folder: where it is.
        tokens: rows that each SAE had been trained on.
        state: what was kept besides tensors.
    """

    folder: Path
    tokens: int
    state: dict[str, Any]

    def tensors(self, part: str, device: str = "cpu") -> dict[str, Tensor]:
        """Tensors of a part.

        Raises:
            RunError: when it has no such part.
        """
        try:
            return load_file(self.folder / f"{part}.safetensors", device=device)
        except (OSError, SafetensorError) as cause:
            raise RunError(
                f"part '{part}' of checkpoint '{self.folder}'",
                "not there",
                "Continue with the configuration and version that wrote it.",
            ) from cause


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        root: their folder.
        keep: how many are kept.
    """

    root: Path
    keep: int

    def begin(self, tokens: int) -> Path:
        """An empty hidden folder for the parts of a checkpoint; several processes may write into it."""
        partial = self.root / f".{tokens:012d}{_PARTIAL}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def finish(self, partial: Path, files: Files, state: Mapping[str, Any]) -> Checkpoint:
        """Give the hidden folder its name and remove checkpoints that are not kept.

        Args:
            partial: from `begin`.
            files: of every part, from `write_part`.
            state: what JSON can hold.
        """
        tokens = int(partial.name.removeprefix(".").removesuffix(_PARTIAL))
        content = {"tokens": tokens, "files": files, "state": dict(state)}
        text = json.dumps(content | {"sha256": _digest(content)}, indent=1, ensure_ascii=False)
        (partial / STATE).write_text(text + "\n", encoding="utf-8")
        flush(partial / STATE)
        flush(partial)
        folder = self.root / f"{tokens:012d}"
        _remove(folder)
        partial.rename(folder)
        flush(self.root)
        self._prune()
        return Checkpoint(folder, tokens, dict(state))

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint; None when there is none at all.

        Raises:
            RunError: when there are checkpoints, and none of them is whole.
        """
        reasons: list[str] = []
        for folder in self._folders():
            found = _read(folder)
            if isinstance(found, Checkpoint):
                return found
            reasons.append(found)
        if reasons:
            raise RunError(
                f"checkpoints '{self.root}'",
                f"none of {len(reasons)} is whole ({reasons[0]})",
                "Remove the folder to train from the start.",
            )
        return None

    def at(self, tokens: int) -> Checkpoint:
        """The checkpoint of so many tokens, which `newest` found to be whole in another process."""
        folder = self.root / f"{tokens:012d}"
        content = _state(folder)
        if content is None:
            raise RunError(f"checkpoint '{folder}'", "not there", "All processes need the same folder.")
        return Checkpoint(folder, tokens, content["state"])

    def newest_name(self) -> Path | None:
        """Folder of the newest checkpoint, whole or not; None without any."""
        return next(iter(self._folders()), None)

    def tidy(self) -> None:
        """Remove what an ended process left half written."""
        for folder in [*self.root.glob(f".*{_PARTIAL}"), *self.root.glob(f".*{_OLD}")]:
            shutil.rmtree(folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        """Every checkpoint, whole or not, newest first."""
        found = [p for p in self.root.glob("*") if p.is_dir() and _NAME.fullmatch(p.name)]
        return sorted(found, reverse=True)

    def _prune(self) -> None:
        """Remove all but the newest `keep`; one that is visibly not whole does not count as kept."""
        whole = [folder for folder in self._folders() if _complaint(folder) is None]
        for folder in self._folders():
            if folder not in whole[: self.keep]:
                _remove(folder)


def write_part(folder: Path, part: str, tensors: Tensors) -> Files:
    """Write and flush `<folder>/<part>.safetensors`.

    Returns:
        file name → its size in bytes and sha256; empty without tensors.
    """
    if not tensors:
        return {}
    file = folder / f"{part}.safetensors"
    save_file({name: _alone(x) for name, x in tensors.items()}, file)
    flush(file)
    return {file.name: {"bytes": file.stat().st_size, "sha256": file_digest(file)}}


def _alone(x: Tensor) -> Tensor:
    """A tensor on the CPU that shares no memory with a larger one; a copy only where it has to be."""
    held = x.detach().cpu().contiguous()
    return held if held.untyped_storage().nbytes() == held.nbytes else held.clone()


def file_digest(file: Path) -> str:
    """sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Have a file or folder on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _remove(folder: Path) -> None:
    """Remove a checkpoint; it loses its name first, so that nothing half removed bears one."""
    if not folder.exists():
        return
    nameless = folder.with_name(f".{folder.name}{_OLD}")
    shutil.rmtree(nameless, ignore_errors=True)
    folder.rename(nameless)
    shutil.rmtree(nameless)


def _state(folder: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.pop("sha256", None) != _digest(content):
        return None
    return content


def _complaint(folder: Path) -> str | None:
    """What is visibly wrong with a checkpoint, without reading its tensors; None when nothing is."""
    content = _state(folder)
    if content is None:
        return f"{folder.name}/{STATE} is missing or damaged"
    for name, facts in content["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != facts["bytes"]:
            return f"{folder.name}/{name} is missing or cut short"
    return None


def _read(folder: Path) -> Checkpoint | str:
    """A checkpoint whose every hash agrees, or what is wrong with it."""
    complaint, content = _complaint(folder), _state(folder)
    if complaint is not None or content is None:
        return complaint or f"{folder.name}/{STATE} is damaged"
    for name, facts in content["files"].items():
        if file_digest(folder / name) != facts["sha256"]:
            return f"{folder.name}/{name} has another sha256"
    return Checkpoint(folder, content["tokens"], content["state"])
