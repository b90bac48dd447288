"""Where a training run is written: everything at its place only when it is whole.

    <out>                  the set of SAEs; it appears when it is whole
    <out>.checkpoints/     while training goes on: checkpoints, metrics, the set as far as it is written

On success the second folder disappears. On failure it stays when it holds a checkpoint; otherwise it goes,
and with it the parents made for it.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lens.saes.sae import SAEMetadata

from iclens.core import ConfigError
from iclens.model.load import LanguageModel
from iclens.prompts.render import bos_id
from iclens.saes.load import CARD_FILE
from iclens.saes.quality import LeftOut
from iclens.training.checkpoint import CheckpointFolder, flush
from iclens.training.config import SaeSpec


@dataclass(frozen=True)
class Place:
    """Where one run is written.

    Args:
        out: the set's folder.
        keep: how many checkpoints are kept.
    """

    out: Path
    keep: int

    @property
    def root(self) -> Path:
        """Folder of all that is needed to go on."""
        return self.out.with_name(f"{self.out.name}.checkpoints")

    @property
    def metrics(self) -> Path:
        """Folder of the metrics so far."""
        return self.root / "metrics"

    @property
    def partial(self) -> Path:
        """The set as far as it is written."""
        return self.root / "set.partial"

    @property
    def checkpoints(self) -> CheckpointFolder:
        """The run's checkpoints."""
        return CheckpointFolder(self.root, self.keep)

    def refuse_if_taken(self, resume: str) -> None:
        """Raise a ConfigError when `out` exists, or unfinished training that is not to be continued."""
        if self.out.exists():
            raise ConfigError(f"output '{self.out}'", "it exists", "Name a new folder, or remove this one.")
        if resume == "no" and self.checkpoints.newest_name() is not None:
            raise ConfigError(
                f"output '{self.out}'",
                f"'{self.root}' holds its unfinished training",
                "Continue it with --resume, or remove that folder.",
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and keep other runs out of it.

        Raises:
            ConfigError: when another process trains there.
        """
        made = [parent for parent in self.root.absolute().parents if not parent.exists()]
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as cause:
                raise ConfigError(
                    f"output '{self.out}'", "another process is training it", "Wait for it, or end it."
                ) from cause
            self.checkpoints.tidy()
            shutil.rmtree(self.partial, ignore_errors=True)
            ended_well = False
            try:
                yield
                ended_well = True
            finally:
                shutil.rmtree(self.partial, ignore_errors=True)
                if (ended_well and self.out.exists()) or self.checkpoints.newest_name() is None:
                    shutil.rmtree(self.root)
                    for parent in made:
                        if not any(parent.iterdir()):
                            parent.rmdir()

    def publish(self) -> None:
        """Give the set its name."""
        for path in sorted(self.partial.rglob("*")):
            flush(path)
        flush(self.partial)
        self.partial.rename(self.out)
        flush(self.out.parent)


def save_sae(folder: Path, spec: SaeSpec, network: Any, model: LanguageModel, left_out: LeftOut) -> None:
    """Write one SAE as sae_lens reads it (cfg.json, sae_weights.safetensors).

    Args:
        folder: to make.
        spec: what was trained.
        network: the sae_lens SAE, for raw activations.
        model: what it was trained on.
        left_out: tokens that it was not trained on, kept under sae_lens' name and ours.
    """
    ends: dict[str, Any] = {"hook_name": str(spec.site), "hook_layer": spec.site.layer}
    if spec.target is not None:
        ends |= {"hook_name_out": str(spec.target), "hook_layer_out": spec.target.layer}
    network.cfg.metadata = SAEMetadata(
        model_name=model.name,
        model_fingerprint=model.fingerprint,
        **ends,
        prepend_bos=bos_id(model.tokenizer) is not None,
        exclude_special_tokens=list(left_out.ids),
        exclude_positions=list(left_out.positions),
        seed=spec.seed,
    )
    network.save_model(folder)


def save_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write the set's card."""
    (folder / CARD_FILE).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
