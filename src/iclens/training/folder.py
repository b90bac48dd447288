"""Writing a set of SAEs: all of it or nothing.

Everything goes to a hidden folder beside the wanted one, which gets its name when it is whole. On any
failure, an interruption included, the hidden folder and parents made for it disappear.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata

from iclens.errors import ConfigError
from iclens.models.load import LanguageModel
from iclens.names import Site
from iclens.saes.load import CARD_FILE
from iclens.training.config import TrainConfig
from iclens.training.step import Weights


@contextmanager
def folder_when_whole(out: Path) -> Iterator[Path]:
    """A folder to write into, renamed to `out` on success and removed on failure.

    Raises:
        ConfigError: when `out` exists.
    """
    if out.exists():
        raise ConfigError(f"output '{out}'", "it exists", "Name a new folder, or remove this one.")
    made = [parent for parent in out.absolute().parents if not parent.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield partial
        partial.chmod(0o755)
        for file in [path for path in partial.rglob("*") if path.is_file()]:
            with file.open("rb") as written:
                os.fsync(written.fileno())
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            parent.rmdir()
        raise


def save_sae(
    folder: Path, site: Site, weights: Weights, k: int, model: LanguageModel, config: TrainConfig
) -> None:
    """Write one SAE as sae_lens reads it (cfg.json, sae_weights.safetensors)."""
    d_in, d_sae = weights.W_enc.shape
    metadata = SAEMetadata(
        model_name=model.name,
        model_fingerprint=model.fingerprint,
        hook_name=str(site),
        hook_layer=site.layer,
        prepend_bos=True,
        exclude_positions=list(config.data.excluded_positions),
        seed=config.seed,
    )
    network = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=k, metadata=metadata))
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        getattr(network, name).data.copy_(getattr(weights, name).cpu())
    network.save_model(folder)


def save_card(folder: Path, card: dict[str, Any]) -> None:
    """Write the set's card."""
    (folder / CARD_FILE).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
