"""Loading SAEs strictly: one folder, or a set made for one model.

1. The folder's config and weights are read by sae_lens. 2. What the SAE says about itself (width, site)
is compared with what it is to be used on. 3. Anything that disagrees is refused in one line.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from safetensors import SafetensorError
from torch import Tensor

from iclens.errors import SaeError, SiteError
from iclens.models.load import LanguageModel
from iclens.names import Site

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "cfg.json", "sae_weights.safetensors", "card.json"


@dataclass(frozen=True)
class Sae:
    """A loaded sparse autoencoder.

    Args:
        site: the activation that it reads and reconstructs.
        sae_id: sha256 over its config and weights, 16 hex digits.
        d_in: width of the site.
        d_sae: number of latents.
        k: active latents per token of a TopK SAE; None for another architecture.
        network: the sae_lens SAE; float32, without gradients.
        folder: where it came from.
    """

    site: Site
    sae_id: str
    d_in: int
    d_sae: int
    k: int | None
    network: Any
    folder: Path

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Gated activations of all latents.

        Args:
            x: raw activations of the site, [row d_in].

        Returns:
            [row d_sae], non-negative; in raw activation units when decoder rows have unit length.
        """
        return self.network.encode(x.to(self.W_dec))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The reconstruction latents @ W_dec + b_dec of activations [row d_sae], as [row d_in]."""
        return self.network.decode(latents)

    @property
    def W_dec(self) -> Tensor:  # noqa: N802 - the formula's own name
        """Decoder directions, [latent d_in]."""
        return self.network.W_dec


def load_sae(
    folder: str | Path, *, site: Site | None = None, d_model: int | None = None, device: str = "cpu"
) -> Sae:
    """Load an SAE that sae_lens can open.

    Args:
        folder: holds cfg.json and sae_weights.safetensors.
        site: where it is to be used; the site in its config by default.
        d_model: width of the model that it is to be used on; not checked by default.
        device: torch device.

    Raises:
        SaeError: when the folder or a file is missing or damaged, when it is of another width or site,
            or when it transforms its input in a way that one encode cannot hold.
    """
    path = Path(folder)
    config = _read_config(path)
    found = _declared_site(path, config)
    if site is not None and found is not None and found != site:
        raise SaeError(
            f"SAE for {site.short}", f"'{path}' is of {found.short}", "Choose the SAE of that site."
        )
    place = site or found
    if place is None:
        raise SaeError(f"SAE '{path}'", "its config names no site", "Say which site it belongs to.")
    width = config.get("d_in")
    if d_model is not None and width != d_model:
        raise SaeError(
            f"SAE '{path}'", f"its width is {width}, the model's is {d_model}", "Use one made for it."
        )
    for key, plain in (("normalize_activations", "none"), ("reshape_activations", "none")):
        if config.get(key, plain) != plain:
            raise SaeError(f"SAE '{path}'", f"{key} is '{config[key]}'", "Fold it into the weights first.")
    network = _open(path, device)
    network.requires_grad_(False).eval()
    return Sae(
        place, sae_fingerprint(path), int(network.cfg.d_in), int(network.cfg.d_sae),
        getattr(network.cfg, "k", None), network, path,
    )  # fmt: skip


def load_sae_set(folder: str | Path, model: LanguageModel, device: str = "cpu") -> dict[Site, Sae]:
    """Load every SAE of a set that `training` wrote, and check that it was made for `model`.

    Args:
        folder: holds card.json and one folder per site.
        model: the model that the SAEs are to be used on.
        device: torch device.

    Returns:
        site → SAE, in the order of layers, then hooks.

    Raises:
        SaeError: when the set is missing or empty, belongs to another model, has another width, or reads
            a layer that the model does not have.
    """
    path = Path(folder)
    card = read_card(path)
    trained_on = card.get("model", {})
    if trained_on.get("fingerprint") != model.fingerprint or (
        model.fingerprint == "hub" and trained_on.get("name") != model.name
    ):
        raise SaeError(
            f"SAE set '{path}' on model '{model.name}' ({model.fingerprint})",
            f"it was trained on '{trained_on.get('name')}' ({trained_on.get('fingerprint')})",
            "Use that model, or train a set on this one.",
        )
    saes: dict[Site, Sae] = {}
    for member in sorted(p.parent for p in path.glob(f"*/{CONFIG_FILE}")):
        sae = load_sae(member, d_model=model.d_model, device=device)
        if sae.site.layer >= model.n_blocks:
            raise SaeError(
                f"SAE '{member}'", f"it reads {sae.site.short}, the model has {model.n_blocks} blocks",
                "Load more blocks, or use another set.",
            )  # fmt: skip
        if sae.site in saes:
            raise SaeError(
                f"SAE '{member}'", f"{sae.site.short} stands twice in the set", "Keep one of them."
            )
        saes[sae.site] = sae
    if not saes:
        raise SaeError(f"SAE set '{path}'", "it holds no SAE", "Train one with `iclens train`.")
    return dict(sorted(saes.items()))


def read_card(folder: Path) -> dict[str, Any]:
    """The card of an SAE set: model, training configuration, quality, versions.

    Raises:
        SaeError: when the folder or its card is missing or damaged.
    """
    if not folder.is_dir():
        raise SaeError(f"SAE set '{folder}'", "no such folder", "Train one with `iclens train`.")
    return _read_json(folder / CARD_FILE, "SAE set")


def sae_fingerprint(folder: Path) -> str:
    """sha256 over an SAE's config and weights, 16 hex digits."""
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with (folder / name).open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise SaeError(
            f"SAE '{path}'", "no such folder", f"Give a folder with {CONFIG_FILE} and {WEIGHTS_FILE}."
        )
    if not (path / WEIGHTS_FILE).is_file():
        raise SaeError(f"SAE '{path}'", f"{WEIGHTS_FILE} is missing", "Copy the whole folder again.")
    return _read_json(path / CONFIG_FILE, "SAE")


def _read_json(file: Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise SaeError(
            f"{what} '{file.parent}'", f"{file.name} is missing", "Copy the whole folder again."
        ) from cause
    except (json.JSONDecodeError, UnicodeDecodeError) as cause:
        raise SaeError(
            f"{what} '{file.parent}'", f"{file.name} is damaged ({cause})", "Copy it again."
        ) from cause
    if not isinstance(found, dict):
        raise SaeError(f"{what} '{file.parent}'", f"{file.name} is no mapping", "Copy it again.")
    return found


def _declared_site(path: Path, config: dict[str, Any]) -> Site | None:
    """The site in an SAE's config, None where it names none; SaeError for a hook that cannot be read."""
    name = (config.get("metadata") or {}).get("hook_name") or config.get("hook_name")
    if name is None:
        return None
    try:
        return Site.parse(str(name))
    except SiteError as cause:
        raise SaeError(
            f"SAE '{path}'", f"it reads '{name}'", "Use one of a residual or MLP output."
        ) from cause


def _open(path: Path, device: str) -> SAE[Any]:
    try:
        return SAE.load_from_disk(path, device=device, dtype="float32")
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError, OSError) as cause:
        line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise SaeError(f"SAE '{path}'", f"cannot be read ({line})", "Copy or train it again.") from cause
