"""What is this input, exactly? Content hashes of files, folders, settings and code.

A stage is skipped only when these agree; names and times of files never enter. Nothing here loads a model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import iclens

DIGITS = 16
MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "mixture.yaml", "*.safetensors")
"""The files of a model folder that can change a result."""


def of_json(value: Any) -> str:
    """sha256 of a value's canonical JSON, 16 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def of_file(path: Path) -> str:
    """sha256 of a file's bytes, 16 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:DIGITS]


def of_files(folder: Path, patterns: Sequence[str] = ("**/*",)) -> dict[str, str]:
    """Path inside the folder → sha256, for every file that a pattern matches, sorted."""
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): of_file(path) for path in sorted(found)}


def of_code(packages: Sequence[str]) -> str:
    """Hash of `iclens` packages or modules, with their YAML, so that changed code redoes its stage."""
    root = Path(iclens.__file__).parent
    sources = {}
    for package in packages:
        place = root / package
        module = place.with_suffix(".py")
        files = [module] if module.is_file() else [*place.rglob("*.py"), *place.rglob("*.yaml")]
        sources |= {path.relative_to(root).as_posix(): of_file(path) for path in sorted(files)}
    return of_json(sources)
