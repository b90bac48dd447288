"""Finding the SAE that a name means, in whatever layout, and the one check of every SAE after it was read.

1. A name is a folder, `release/sae_id` of sae_lens' registry, or `owner/repository/folder` on the hub; hub
files are fetched once into its cache. 2. A layout is recognised by its config and weights together. Where one
of the two is missing, the other says which layout it is of, and what has to be there, or how to write what
stands there under another name. A folder above SAEs names them, one inside an SAE names that; a language
model's folder is called one. 3. `check` encodes and decodes with what came of it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError
from sae_lens import SAE
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from safetensors import SafetensorError, safe_open

from iclens.core import SaeError, nearest
from iclens.saes.layouts import LAYOUTS, SCALER, UNFOLDED, from_sae_lens
from iclens.saes.parts import Parts, Settings, first_line, printable, read_json, refuse_not_finite

# ------------------------------------------------------------------------------------------------- folders

_DEPTH, _FOLDERS, _NAMED = 3, 2_000, 6
"""How deep SAEs are looked for (owner, release, SAE), in how many folders, and how many are named."""
_LOADED = {
    ".safetensors": "safetensors.torch.load_file({!r})",
    **{suffix: "torch.load({!r}, weights_only=True)" for suffix in (".pt", ".pth", ".bin", ".ckpt")},
}
"""How tensors are loaded from a file, by its suffix."""
_IN_REGISTRY = {
    "params.npz": (
        "parameters of Gemma Scope", "gemma-scope-2b-pt-res-canonical/layer_0/width_16k/canonical",
    ),
    "final_sparse_autoencoder*.pt": (
        "a pickle of the first SAELens", "gpt2-small-res-jb/blocks.0.hook_resid_pre",
    ),
}  # fmt: skip
"""Files that are read by SAELens' registry alone → what they are, and one SAE there."""


def read_folder(folder: Path, device: str, d_model: int | None = None) -> Parts:
    """Read the SAE that a folder holds, in whatever layout."""
    if folder.is_file():
        raise SaeError(f"SAE '{folder}'", "a file", f"Give its folder, '{folder.parent}'.")
    if not folder.is_dir():
        raise SaeError(
            f"SAE '{folder}'", "no such folder",
            "Give a folder, release/sae_id of sae_lens, or owner/repository/folder on the hub.",
        )  # fmt: skip
    for layout in LAYOUTS:
        if layout.matches(folder):
            return layout.read(folder, device, d_model)
    _refuse(folder)


def holds_a_part(folder: Path) -> bool:
    """Whether a folder holds a file by which some layout is recognised."""
    return any((folder / layout.config).is_file() or layout.stored(folder) is not None for layout in LAYOUTS)


def _below(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """Folders below, the nearest first; hidden ones left out, and what cannot be listed."""
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    except OSError:
        return
    yield from inner
    if depth > 1:
        for path in inner:
            yield from _below(path, depth - 1)


def _refuse(folder: Path) -> NoReturn:
    """Say what a folder is that holds no whole SAE."""
    subject = f"SAE '{folder}'"
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    is_model = bool(config.get("model_type") or config.get("architectures"))
    looked = (path for _, path in zip(range(_FOLDERS), _below(folder), strict=False))
    if inner := sorted(path for path in looked if any(layout.matches(path) for layout in LAYOUTS)):
        names = ", ".join(str(path.relative_to(folder)) for path in inner[:_NAMED])
        more = f" and {len(inner) - _NAMED} more" if len(inner) > _NAMED else ""
        count = "1 SAE" if len(inner) == 1 else f"{len(inner)} SAEs"
        kind = "a language model, not an SAE," if is_model else "no SAE"
        raise SaeError(subject, f"it is {kind} but holds {count}: {names}{more}", f"Name one: '{inner[0]}'.")
    if is_model:
        raise SaeError(
            subject, "it is a language model, not an SAE",
            "Name the SAE here, and the model as the model (--model, or model.folder of a study).",
        )  # fmt: skip
    files = sorted(path.name for path in folder.iterdir() if path.suffix in _LOADED and path.is_file())
    _refuse_half(folder, files)
    for pattern, (kind, example) in _IN_REGISTRY.items():
        if file := next(folder.glob(pattern), None):
            raise SaeError(
                subject, f"{printable(file.name)} is {kind}, which SAELens' registry reads, by a name",
                f"Name it as release/sae_id, such as {example}: `iclens saes list` names the releases.",
            )  # fmt: skip
    known = "; ".join(f"{' and '.join(layout.files)} ({layout.name})" for layout in LAYOUTS)
    strange = "no SAE in a known layout"
    if config:
        strange += f": config.json has the keys {', '.join(map(printable, sorted(config)[:_NAMED]))}"
    if files:
        strange += f"; it holds {', '.join(map(printable, files[:_NAMED]))}"
    raise SaeError(subject, strange, f"It should hold {known}.")


def _refuse_half(folder: Path, files: list[str]) -> None:
    """Raise a SaeError where a folder is a part of an SAE: its config, its weights, or a folder inside it.

    `files` are those of the folder that may hold tensors.
    """
    subject, above = f"SAE '{folder}'", folder.resolve().parent
    for layout in LAYOUTS:
        weights = layout.stored(above)
        if weights is not None and weights.parent == folder.resolve() and layout.matches(above):
            raise SaeError(
                subject, f"it holds the weights of an SAE whose {layout.config} stands above ({layout.name})",
                f"Name the folder above: '{above}'.",
            )  # fmt: skip
        weights = layout.stored(folder)
        if weights is None and layout.described(folder):
            missing = f"{' or '.join(layout.weights)} is missing beside {layout.config} ({layout.name})"
            if not files:
                raise SaeError(subject, missing, "Fetch the weights from where the SAE is published.")
            raise SaeError(
                subject, f"{missing}, where {', '.join(map(printable, files[:_NAMED]))} stands",
                f"If {printable(files[0])} holds its weights, {_written_as(files[0], layout.weights[0])}.",
            )  # fmt: skip
        if weights is not None and layout.tensor in ("", *_names(weights)):
            raise SaeError(
                subject, f"{layout.config} is missing beside {weights.relative_to(folder)} ({layout.name})",
                f"Fetch {layout.config} from where the SAE is published.",
            )  # fmt: skip


def _written_as(file: str, target: str) -> str:
    """What writes a file's tensors under the name that a layout has for them."""
    suffix = Path(file).suffix
    if suffix == Path(target).suffix:
        return f"move it to {target}"
    tensors = _LOADED[suffix].format(file)
    save = "safetensors.torch.save_file" if target.endswith(".safetensors") else "torch.save"
    return f"write them in Python by {save}({tensors}, {target!r})"


def _names(weights: Path) -> tuple[str, ...]:
    """The tensors of a safetensors file; none when it cannot be read."""
    try:
        with safe_open(weights, "pt") as file:
            return tuple(file.keys())
    except (SafetensorError, OSError):
        return ()


# ----------------------------------------------------------------------------------------------------- hub

_OURS = ("llama_scope", "dictionary_learning_1")
"""Conversion functions whose releases are read by our own readers; the others by sae_lens."""


@dataclass(frozen=True)
class Release:
    """A release of sae_lens' registry, the model it was trained on, and its SAEs."""

    name: str
    model: str
    sae_ids: tuple[str, ...]


def releases() -> tuple[Release, ...]:
    """Every release of the registry, by name."""
    registry = get_pretrained_saes_directory()
    return tuple(
        Release(name, registry[name].model, tuple(registry[name].saes_map)) for name in sorted(registry)
    )


def read_hub(ref: str, device: str, d_model: int | None = None) -> Parts:
    """Read `release/sae_id` of the registry, or `owner/repository/folder` of the hub."""
    name, _, sae_id = ref.partition("/")
    registry = get_pretrained_saes_directory()
    if name not in registry:
        owner, repository, folder = [*ref.split("/", 2), "", ""][:3]
        if not (owner and repository and folder):
            raise SaeError(
                f"SAE '{ref}'", "no such folder, and no such release of sae_lens",
                f"{nearest(name, sorted(registry))}; `iclens saes list` names them all. "
                "Of a repository on the hub, name a folder: owner/repository/folder.",
            )  # fmt: skip
        return read_folder(_fetched(ref, f"{owner}/{repository}", folder), device, d_model)
    release = registry[name]
    if sae_id not in release.saes_map:
        raise SaeError(f"SAE '{ref}'", f"'{name}' has no '{sae_id}'", nearest(sae_id, release.saes_map) + ".")
    if release.conversion_func in _OURS:
        parts = read_folder(_fetched(ref, release.repo_id, release.saes_map[sae_id]), device, d_model)
    else:
        parts = _converted(ref, name, sae_id, device)
    return replace(parts, model=parts.model or release.model, l0=release.expected_l0.get(sae_id) or parts.l0)


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
    """An SAE that sae_lens fetches and converts, read like one that it saved."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            network: Any = SAE.from_pretrained(release, sae_id, device=device, dtype="float32")
    except Exception as cause:  # its loaders raise whatever the files and the network lead them to
        raise SaeError(
            f"SAE '{ref}'", f"sae_lens cannot load it ({first_line(cause)})",
            "Check the network; `iclens saes list` names the releases that it knows.",
        ) from cause  # fmt: skip
    weights = network.state_dict()
    config = Settings(ref, "the config that sae_lens gives", network.cfg.to_dict())
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    parts = from_sae_lens(config, "the weights that sae_lens gives", weights, device)
    return replace(parts, layout="sae_lens registry", sae_id=digest.hexdigest()[:16])


# --------------------------------------------------------------------------------------------------- check

_LARGE = "Its weights are too large for float32: take another checkpoint."


@torch.no_grad()
def check(what: str, parts: Parts) -> None:
    """Refuse an SAE with which a figure could be wrong or undefined, whatever layout it was read from.

    1. Every weight is finite still, and no threshold negative. 2. Its input is scaled by nothing but the
    input itself. 3. Two rows are encoded and decoded: what comes out is finite, and no latent is negative.
    """
    network, subject = parts.network, f"SAE '{what}'"
    weights, normalisation = network.state_dict(), network.cfg.normalize_activations
    for key, tensor in weights.items():
        refuse_not_finite(f"weights of {subject}", parts.file, f"{key} (made of its tensors)", tensor, _LARGE)
    if "threshold" in weights and bool((weights["threshold"] < 0).any()):
        least, latent = weights["threshold"].min(dim=0)
        raise SaeError(
            f"weights of {subject}", f"threshold of latent {int(latent)} is {float(least):g} in {parts.file}",
            "Store 0 for what is below 0: SAELens computes the same with it.",
        )  # fmt: skip
    if normalisation == UNFOLDED:
        raise SaeError(
            subject, f"normalize_activations is {UNFOLDED!r}, and {SCALER} does not stand beside it",
            "Give the factor of its training: `iclens saes convert REF --out FOLDER --input-scale S`, "
            "S = √d_in / mean length of the site's activations in training.",
        )  # fmt: skip
    if parts.target is not None and normalisation != "none":
        raise SaeError(
            subject, f"normalize_activations of a transcoder is {normalisation!r}",
            "It must be 'none': its output has no length of its input's.",
        )  # fmt: skip
    d_in = len(network.W_enc)
    x = torch.stack([torch.ones(d_in), torch.linspace(-1, 1, d_in)]).to(network.W_enc)
    latents = network.encode(x)
    decoded = network.decode(latents)
    if (skip := getattr(network, "W_skip", None)) is not None:
        decoded = decoded + x @ skip.T
    if not (latents.isfinite().all() and decoded.isfinite().all() and (latents >= 0).all()):
        raise SaeError(
            f"weights of {subject}",
            f"{parts.file} does not encode and decode entries of size 1 to finite numbers", _LARGE,
        )  # fmt: skip
