"""What is this input, exactly? Content hashes of files, folders and settings.

A stage is skipped only when these agree; names and times of files never enter. Nothing here loads a model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iclens.core import ModelError

DIGITS = 16
MODEL_FILES = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.safetensors", "mixture.yaml")
"""The files of a model folder that loading may read: config, weights and their index, any tokenizer."""
NOT_READ = (
    "README.md", "card.json", "generation_config.json", "report.html", "metrics.jsonl", "pace.jsonl",
)  # fmt: skip
"""Files beside a model or an SAE that tell of it and are not read when it is loaded."""


def of_json(value: Any) -> str:
    """sha256 of a value's canonical JSON, 16 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def of_file(path: Path) -> str:
    """sha256 of a file's bytes, 16 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:DIGITS]


def of_files(
    folder: Path, patterns: Sequence[str] = ("**/*",), besides: Sequence[str] = ()
) -> dict[str, str]:
    """Path inside the folder → sha256, for every file that a pattern matches, sorted.

    Args:
        folder: where.
        patterns: globs.
        besides: names of files that are left out.
    """
    matched = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    kept = sorted(path for path in matched if path.name not in besides)
    return {path.relative_to(folder).as_posix(): of_file(path) for path in kept}


def of_hub(name: str) -> str:
    """The commit of a model on the hub that this machine's cache holds, and fetches when it holds none.

    Raises:
        ModelError: when neither the cache nor the hub has it.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError

    try:
        cached = try_to_load_from_cache(name, "config.json")
        file = cached if isinstance(cached, str) else hf_hub_download(name, "config.json")
    except (HTTPError, OSError, ValueError) as cause:
        line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise ModelError(
            f"model '{name}'", f"no such folder, and the hub does not give it ({line})",
            "Give a Hugging Face folder, or a hub name and a network that reaches the hub.",
        ) from cause  # fmt: skip
    return Path(file).parent.name
