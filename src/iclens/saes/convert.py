"""Writing any SAE as sae_lens saves it, so that every tool of the field opens it.

1. The SAE is loaded. 2. Its site, model and origin go into the metadata, its weights into the folder.
3. The folder is read back and must hold the same weights before it gets its name.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch

from iclens.errors import SaeError
from iclens.names import Site
from iclens.saes.formats import native
from iclens.saes.load import Sae, load_sae


def convert(
    ref: str | Path, out: str | Path, *, site: Site | None = None, input_scale: float | None = None
) -> Path:
    """Write the SAE `ref` as a sae_lens folder.

    Args:
        ref: what `load_sae` takes.
        out: folder to make.
        site: where it is to be used, whatever its files name; the site that they name by default.
        input_scale: as for `load_sae`.

    Returns:
        `out`.

    Raises:
        SaeError: when the SAE cannot be loaded, or `out` exists; nothing is left behind.
    """
    if Path(out).exists():
        raise SaeError(f"output '{out}'", "it exists", "Name a new folder, or remove this one.")
    return save_native(load_sae(ref, site=site, input_scale=input_scale), Path(out))


def save_native(sae: Sae, out: Path) -> Path:
    """Write a loaded SAE to `out`, which appears when it is whole, and return it.

    Raises:
        SaeError: when what is read back differs, or the folder cannot be written.
    """
    described = {
        "hook_name": str(sae.site), "hook_layer": sae.site.layer, "model_name": sae.model, "l0": sae.l0,
        "model_fingerprint": sae.model_fingerprint, "mean_length": sae.mean_length,
        "hook_name_out": None if sae.target is None else str(sae.target),
        "hook_name_in_its_files": None if sae.named is None else str(sae.named),
        "converted_from": None if sae.layout == "sae_lens" else {"layout": sae.layout, "sae_id": sae.sae_id},
    }  # fmt: skip
    for key, value in described.items():
        if value is not None:
            sae.network.cfg.metadata[key] = value
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as cause:
        raise SaeError(
            f"output '{out}'", f"cannot be written ({cause.strerror})", "Name a folder that can be made."
        ) from cause
    try:
        sae.network.save_model(partial)
        _refuse_difference(sae, native.read(partial, "cpu").network.state_dict())
        partial.chmod(0o755)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return out


def _refuse_difference(sae: Sae, again: dict[str, torch.Tensor]) -> None:
    for name, value in sae.network.state_dict().items():
        if name not in again or not torch.equal(value.cpu(), again[name]):
            raise SaeError(
                f"SAE '{sae.folder}'", f"{name} was not written as it is", "Name an --out on another disk."
            )
