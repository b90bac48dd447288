"""SAEs on the hub: `release/sae_id` of sae_lens' registry, or `owner/repository/folder` in a known layout.

The files are fetched once into the hub's cache. Releases of Llama Scope and dictionary_learning are read by
our own readers; the others by sae_lens, whose SAE is then read like one that it saved.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError
from sae_lens import SAE
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

from iclens.core import SaeError, nearest
from iclens.saes.formats import native
from iclens.saes.formats.detect import read_folder
from iclens.saes.formats.parts import Parts, Settings, first_line

_OURS = ("llama_scope", "dictionary_learning_1")
"""Conversion functions whose releases are read by our own readers."""


@dataclass(frozen=True)
class Release:
    """A release of sae_lens' registry.

    Args:
        name: the release.
        model: the model it was trained on.
        sae_ids: its SAEs.
    """

    name: str
    model: str
    sae_ids: tuple[str, ...]


def releases() -> tuple[Release, ...]:
    """Every release of the registry, by name."""
    found = get_pretrained_saes_directory()
    return tuple(Release(name, found[name].model, tuple(found[name].saes_map)) for name in sorted(found))


def read_hub(ref: str, device: str, d_model: int | None = None) -> Parts:
    """Read `release/sae_id`, or a folder of a hub repository.

    Raises:
        SaeError: when there is no such SAE, it cannot be fetched, or it cannot be used.
    """
    release, _, sae_id = ref.partition("/")
    registry = get_pretrained_saes_directory()
    if release not in registry:
        return _read_repository(ref, device, d_model, sorted(registry))
    found = registry[release]
    if sae_id not in found.saes_map:
        raise SaeError(
            f"SAE '{ref}'", f"'{release}' has no '{sae_id}'", nearest(sae_id, found.saes_map) + "."
        )
    if found.conversion_func in _OURS:
        parts = read_folder(_fetched(ref, found.repo_id, found.saes_map[sae_id]), device, d_model)
    else:
        parts = _converted(ref, release, sae_id, device)
    return replace(parts, model=parts.model or found.model, l0=found.expected_l0.get(sae_id) or parts.l0)


def _read_repository(ref: str, device: str, d_model: int | None, known: list[str]) -> Parts:
    """A folder of `owner/repository`."""
    owner, repository, folder = [*ref.split("/", 2), "", ""][:3]
    if not (owner and repository and folder):
        raise SaeError(
            f"SAE '{ref}'", "no such folder, and no such release of sae_lens",
            f"{nearest(ref.partition('/')[0], known)}; `iclens saes list` names them all. "
            "Of a repository on the hub, name a folder: owner/repository/folder.",
        )  # fmt: skip
    return read_folder(_fetched(ref, f"{owner}/{repository}", folder), device, d_model)


def _fetched(ref: str, repository: str, folder: str) -> Path:
    """The local copy of a repository's folder, with the config beside it."""
    patterns = [f"{folder}/*", f"{folder}/checkpoints/*", "config.json"]
    try:
        root = Path(snapshot_download(repository, allow_patterns=patterns))
    except (HTTPError, OSError, ValueError) as cause:
        raise SaeError(
            f"SAE '{ref}'", f"cannot be fetched ({first_line(cause)})",
            "Check the name and the network, or give a local folder.",
        ) from cause  # fmt: skip
    if not (root / folder).is_dir():
        raise SaeError(
            f"SAE '{ref}'", f"repository '{repository}' has no folder '{folder}'",
            f"Name one of those listed on the hub's page of {repository}.",
        )  # fmt: skip
    return root / folder


def _converted(ref: str, release: str, sae_id: str, device: str) -> Parts:
    """An SAE that sae_lens fetches and converts."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            network: Any = SAE.from_pretrained(release, sae_id, device=device, dtype="float32")
    except (
        Exception
    ) as cause:  # the loaders of sae_lens raise whatever the files and the network lead them to
        raise SaeError(
            f"SAE '{ref}'", f"sae_lens cannot load it ({first_line(cause)})",
            "Check the network; `iclens saes list` names the releases that it knows.",
        ) from cause  # fmt: skip
    weights = network.state_dict()
    config = Settings(ref, "the config that sae_lens gives", network.cfg.to_dict())
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    parts = native.from_tensors(config, "the weights that sae_lens gives", weights, device)
    return replace(parts, layout="sae_lens registry", sae_id=digest.hexdigest()[:16])
