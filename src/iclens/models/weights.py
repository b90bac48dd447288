"""Reading chosen tensors of a Hugging Face folder or hub name, by key and strictly.

1. The index of the shards, or the header of the single file, says which file holds which key. 2. Keys that
are needed and absent, and keys that nobody knows, are refused. 3. Only files that hold a needed key are
opened (from a hub: downloaded), and only the needed tensors are read, once shape and dtype are right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

from iclens.errors import ModelError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
READABLE = ("F64", "F32", "F16", "BF16")
"""Stored dtypes that are weights as they stand; anything else is quantised or damaged."""


def read_weights(
    name: str, shapes: Mapping[str, tuple[int, ...]], known: Callable[[str], bool],
    *, dtype: torch.dtype, device: str | torch.device,
) -> dict[str, Tensor]:  # fmt: skip
    """The tensors of `shapes`, from a folder or hub name.

    Args:
        name: folder, or hub name.
        shapes: key → the shape that the network wants.
        known: whether a key that is not wanted belongs to the model all the same.
        dtype: of the result.
        device: where the result is put, tensor by tensor; on the CPU unconverted tensors stay memory-mapped.

    Returns:
        key → tensor.

    Raises:
        ModelError: when keys are missing, unexpected, of another shape or not floating-point, or a file that
            is needed is not there.
        OSError, SafetensorError, ValueError: when a file cannot be read.
    """
    places = _places(name)
    _refuse(name, "missing", [key for key in shapes if key not in places])
    _refuse(name, "unexpected", [key for key in places if key not in shapes and not known(key)])
    by_file: dict[str, list[str]] = {}
    for key in shapes:
        by_file.setdefault(places[key], []).append(key)
    paths = {file: _find(name, file, keys[0]) for file, keys in by_file.items()}
    for file, keys in by_file.items():
        _check(name, paths[file], {key: tuple(shapes[key]) for key in keys})
    weights: dict[str, Tensor] = {}
    for file, keys in by_file.items():
        with safe_open(paths[file], framework="pt") as stored:
            for key in keys:
                weights[key] = stored.get_tensor(key).to(device=device, dtype=dtype)
    return weights


def _places(name: str) -> dict[str, str]:
    """Key → name of the file that should hold it."""
    index = _located(name, INDEX)
    if index is not None:
        declared: Any = json.loads(Path(index).read_text(encoding="utf-8"))
        places = declared.get("weight_map") if isinstance(declared, dict) else None
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise ModelError(f"weights of '{name}'", f"{INDEX} has no weight_map", "Fetch the folder again.")
        return places
    single = _located(name, SINGLE)
    if single is None:
        raise ModelError(
            f"weights of '{name}'", f"neither {SINGLE} nor {INDEX}", "Fetch or convert the weights."
        )
    with safe_open(single, framework="pt") as stored:
        return dict.fromkeys(stored.keys(), SINGLE)


def _located(name: str, file: str) -> str | None:
    """Path of a file of a folder or hub name, downloaded when need be; None when it cannot be had."""
    return cached_file(
        name, file,
        _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip


def _find(name: str, file: str, key: str) -> str:
    path = _located(name, file)
    if path is None:
        raise ModelError(f"weights of '{name}'", f"no {file}, which holds {key}", "Add this shard.")
    return path


def _check(name: str, path: str, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a file that lacks a wanted key, or holds it in another shape or in no float dtype."""
    with safe_open(path, framework="pt") as stored:
        _refuse(name, "missing", sorted(wanted.keys() - set(stored.keys())))
        held = {key: stored.get_slice(key) for key in wanted}
        shapes = {key: tuple(part.get_shape()) for key, part in held.items()}
        dtypes = {key: part.get_dtype() for key, part in held.items()}
    wrong = {key: shape for key, shape in shapes.items() if shape != wanted[key]}
    _refuse(
        name, "mismatched",
        [f"{key} of shape {list(shape)}, not {list(wanted[key])}" for key, shape in wrong.items()],
    )  # fmt: skip
    _refuse(
        name, "mismatched",
        [f"{key} of dtype {dtype}, not a float" for key, dtype in dtypes.items() if dtype not in READABLE],
    )  # fmt: skip


def _refuse(name: str, what: str, keys: list[str]) -> None:
    if keys:
        raise ModelError(
            f"weights of '{name}'", f"{len(keys)} {what}, first {sorted(keys)[0]}", "The folder is not whole."
        )
