"""sae_lens' own folders: `cfg.json` and `sae_weights.safetensors`; also what `iclens train` writes.

sae_lens reads them, its older configs included. Refused is what one encode of single tokens cannot hold:
normalisation by constants of the training data (fold it into the weights first), reshaped inputs, and
architectures whose latents are signed or read whole sequences.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens import SAE
from safetensors import SafetensorError

from iclens.errors import SaeError, SiteError
from iclens.names import Site, sae_site
from iclens.saes.formats.parts import (
    ARCHITECTURES,
    NORMALISATIONS,
    Parts,
    fingerprint,
    read_json,
    refuse_width,
    unreadable,
)

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


def read(folder: Path, device: str, d_model: int | None = None) -> Parts:
    """Read an SAE that sae_lens saved; its width is compared with `d_model` before its weights are read.

    Raises:
        SaeError: when a file is missing or damaged, or when the SAE transforms its input.
    """
    config = read_json(folder / CONFIG)
    refuse_width(str(folder), config.get("d_in"), d_model)
    if not (folder / WEIGHTS).is_file():
        raise SaeError(f"SAE '{folder}'", f"{WEIGHTS} is missing", "Copy the whole folder again.")
    metadata = config.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise SaeError(f"SAE '{folder}'", "its metadata is no mapping", "Copy it again.")
    _refuse_architecture(str(folder), config.get("architecture", "standard"))
    for key, plain in (("normalize_activations", NORMALISATIONS), ("reshape_activations", ("none",))):
        if config.get(key, "none") not in (*plain, None, False):
            raise SaeError(f"SAE '{folder}'", f"{key} is '{config[key]}'", "Fold it into the weights first.")
    site = declared_site(str(folder), metadata.get("hook_name") or config.get("hook_name"))
    target = declared_site(str(folder), metadata.get("hook_name_out") or config.get("hook_name_out"))
    network = checked(str(folder), _open(folder, device))
    return Parts(
        "sae_lens", fingerprint([folder / CONFIG, folder / WEIGHTS]), network, site,
        target=None if target == site else target,
        model=metadata.get("model_name") or config.get("model_name"),
        model_fingerprint=metadata.get("model_fingerprint"),
        l0=metadata.get("l0") or getattr(network.cfg, "k", None),
    )  # fmt: skip


def declared_site(what: str, name: Any) -> Site | None:
    """The site that a config names, None where it names none.

    Raises:
        SaeError: for a hook that is no site.
    """
    if name is None:
        return None
    try:
        return sae_site(str(name))
    except SiteError as cause:
        raise SaeError(
            f"SAE '{what}'", f"it reads '{name}'", "Use one of a residual or MLP output."
        ) from cause


def checked(what: str, network: Any) -> Any:
    """The network, when latents and reconstructions mean here what they mean there.

    Raises:
        SaeError: for an architecture that is not used, an impossible k, or weights that are not finite.
    """
    _refuse_architecture(what, network.cfg.architecture())
    k = getattr(network.cfg, "k", 1)
    if not isinstance(k, int) or not 1 <= k <= network.cfg.d_sae:
        raise SaeError(f"SAE '{what}'", f"k is {k!r} of {network.cfg.d_sae} latents", "Mend cfg.json.")
    for key, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise SaeError(f"weights of SAE '{what}'", f"{key} is not finite", "Copy or train it again.")
    return network


def _refuse_architecture(what: str, name: Any) -> None:
    if name not in ARCHITECTURES:
        raise SaeError(f"SAE '{what}'", f"architecture is '{name}'", f"Known: {', '.join(ARCHITECTURES)}.")


def _open(folder: Path, device: str) -> SAE[Any]:
    try:
        return SAE.load_from_disk(folder, device=device, dtype="float32")
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError, OSError) as cause:
        raise unreadable(folder, cause) from cause
