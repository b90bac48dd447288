"""Files of a run and their hashes: tables as parquet, arrays as safetensors, plain values as JSON."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from iclens.activations import LatentActs
from iclens.core import REDO_STAGE, SIX_TOKENS, Layout, Site, TableError
from iclens.prompts.build import PromptSet
from iclens.table import Floats, Table

_TEXT = ("x", "y", "answer")
_ABOUT = "prompts"
"""Metadata key of a prompt set's names and numbers."""
EVERY = "*"
"""Key of a form that stands for every key of an object, of which there is at least one."""
_DIGITS = 16


@dataclass(frozen=True)
class Arrays:
    """Named arrays, and what is said of them."""

    values: Mapping[str, Floats]
    about: Mapping[str, object] = field(default_factory=dict)


def save(folder: Path, name: str, made: Any) -> None:
    """Write what a stage made under its name: tables, latents, prompts, arrays; anything else as JSON."""
    match made:
        case Table():
            made.save(folder / f"{name}.parquet")
        case LatentActs():
            made.save(folder / f"{name}.safetensors")
        case PromptSet():
            save_prompts(made, folder, name)
        case Arrays():
            save_arrays(folder / f"{name}.safetensors", made.values, **made.about)
        case _:
            save_json(folder / f"{name}.json", made)


def joined(tables: Iterable[Table], *kinds: type[Table]) -> dict[str, Any]:
    """Tables of each kind joined into one, by the kind's name; one of no rows where there is none."""
    every = list(tables)
    return {kind.name: kind.concat([table for table in every if type(table) is kind]) for kind in kinds}


def save_prompts(prompts: PromptSet, folder: Path, name: str) -> None:
    """Write `<name>.parquet` (one row per prompt and example) and `<name>.safetensors` (tokens)."""
    prompt, example = np.indices(prompts.x.shape)
    columns = {"prompt": prompt.ravel(), "example": example.ravel(), "task": prompts.task[prompt.ravel()]}
    columns |= {key: getattr(prompts, key).ravel() for key in _TEXT}
    if prompts.template is not None:
        columns["template"] = prompts.template[prompt.ravel()]
    pd.DataFrame(columns).to_parquet(folder / f"{name}.parquet", index=False)
    about = {"arm": prompts.arm, "seed": prompts.seed, "tokenizer": prompts.tokenizer, "rival": prompts.rival}
    if prompts.layout != SIX_TOKENS:
        about["layout"] = asdict(prompts.layout)
    arrays = {"tokens": prompts.tokens}
    if prompts.probes is not None and prompts.slots is not None:
        arrays |= {"probes": prompts.probes, "slots": prompts.slots}
        _save_contexts(prompts, folder / f"{name}.contexts.parquet")
    # One key: safetensors writes several in an order that changes from file to file.
    save_arrays(folder / f"{name}.safetensors", arrays, **{_ABOUT: about})


def _save_contexts(prompts: PromptSet, path: Path) -> None:
    """Write what stands before each query: one row per prompt, example and slot."""
    if prompts.context_x is None or prompts.context_y is None:
        raise TableError(
            f"contexts of arm {prompts.arm}", "there are none",
            "Save prompts of a probed arm with both context_x and context_y.",
        )  # fmt: skip
    prompt, example, slot = np.indices(prompts.context_x.shape).reshape(3, -1)
    columns = {"prompt": prompt, "example": example, "slot": slot}
    columns |= {"x": prompts.context_x.ravel(), "y": prompts.context_y.ravel()}
    pd.DataFrame(columns).to_parquet(path, index=False)


def load_prompts(folder: Path, name: str) -> PromptSet:
    """Read what `save_prompts` wrote."""
    try:
        frame = pd.read_parquet(folder / f"{name}.parquet")
    except (OSError, ValueError) as cause:
        raise TableError(f"{folder / name}.parquet", _unreadable(cause), REDO_STAGE) from cause
    arrays, metadata = load_arrays(folder / f"{name}.safetensors")
    about = json.loads(metadata[_ABOUT])
    shape = (int(frame["prompt"].max()) + 1, int(frame["example"].max()) + 1)
    x, y, answer = (frame[key].to_numpy(dtype=str).reshape(shape) for key in _TEXT)
    task = frame["task"].to_numpy(dtype=str).reshape(shape)[:, 0]
    template = None
    if "template" in frame:  # a file in the default template has no such column
        template = frame["template"].to_numpy(dtype=str).reshape(shape)[:, 0]
    context_x = context_y = None
    if "probes" in arrays:
        contexts = pd.read_parquet(folder / f"{name}.contexts.parquet")
        cells = (*shape, shape[1] - 1)
        context_x, context_y = (contexts[key].to_numpy(dtype=str).reshape(cells) for key in ("x", "y"))
    return PromptSet(
        task, about["arm"], x, y, answer, arrays["tokens"], about["seed"], about["tokenizer"],
        context_x, context_y, arrays.get("probes"), arrays.get("slots"), about["rival"], template,
        Layout(**about["layout"]) if "layout" in about else SIX_TOKENS,
    )  # fmt: skip


def load_rows(path: Path, site: Site | None = None) -> pa.Table:
    """Rows of a table's parquet file, which is mapped into memory; of one site, only its own rows."""
    wanted = None if site is None else [("site", "in", [str(site), site.short])]
    try:
        if site is not None and "site" not in pq.read_schema(path, memory_map=True).names:
            raise TableError(f"{path.stem} of {site.short}", "it names no sites", "Read it without a site.")
        return pq.read_table(path, memory_map=True, filters=wanted)
    except (OSError, ValueError) as cause:
        raise TableError(f"{path}", _unreadable(cause), REDO_STAGE) from cause


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], **about: object) -> None:
    """Write named arrays as safetensors; `about` goes to the metadata as JSON."""
    contiguous = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    # Empty metadata would leave a header that cannot be read.
    save_file(contiguous, path, metadata={name: json.dumps(value) for name, value in about.items()} or None)


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata (as text) of a safetensors file."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
        return load_file(path), about
    except (SafetensorError, OSError) as cause:
        raise TableError(f"{path}", _unreadable(cause), REDO_STAGE) from cause


def save_json(path: Path, value: Any) -> None:
    """Write a value as JSON; NaN becomes null."""
    path.write_text(json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_json(path: Path) -> Any:
    """Read a JSON file of a run."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as cause:  # not there, not JSON, or not text
        raise TableError(f"{path}", _unreadable(cause), REDO_STAGE) from cause


def check_form(value: Any, form: Any, path: Path) -> Any:
    """`value`, read from `path`, when it has a form.

    Args:
        value: what the file holds.
        form: a type, a list of one form (of its elements), or a mapping of keys that have to be there, or
            `EVERY`, to forms.
        path: names it in errors.
    """
    if lack := _lacking(value, form, ""):
        raise TableError(f"{path}", f"unreadable: {lack}", REDO_STAGE)
    return value


def _lacking(value: Any, form: Any, key: str) -> str:
    at = f" at {key}" if key else ""
    if not isinstance(value, form if isinstance(form, type) else type(form)):
        return f"of another form{at}"
    if isinstance(form, type):
        return ""
    if isinstance(form, list):
        parts = [(str(i), element, form[0]) for i, element in enumerate(value)]
    elif EVERY in form:
        if not value:
            return f"empty{at}"
        parts = [(str(inner), element, form[EVERY]) for inner, element in value.items()]
    else:
        absent = [inner for inner in form if inner not in value]
        if absent:
            return f"lacks {absent[0]}{at}"
        parts = [(inner, value[inner], part) for inner, part in form.items()]
    lacks = (_lacking(element, part, f"{key}.{inner}".lstrip(".")) for inner, element, part in parts)
    return next((lack for lack in lacks if lack), "")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _unreadable(cause: Exception) -> str:
    return f"unreadable ({' '.join(str(cause).split())})"


def hash_json(value: Any) -> str:
    """sha256 of a value's canonical JSON, 16 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, 16 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:_DIGITS]


def hash_files(
    folder: Path, patterns: Sequence[str] = ("**/*",), besides: Sequence[str] = ()
) -> dict[str, str]:
    """Path inside the folder → sha256 of every file that a glob matches but those named in `besides`."""
    matched = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {p.relative_to(folder).as_posix(): hash_file(p) for p in sorted(matched) if p.name not in besides}
