"""Loading a model folder: whole or its first blocks, strictly.

The same code loads the built-in model and llama-3-8b. 1. Read the config and tokenizer, check the
six-token layout. 2. Load the weights of as many blocks as asked. 3. Refuse missing or mismatched weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from iclens.errors import ModelError, SiteError
from iclens.names import Site
from iclens.tables.answers import NUMBERS
from iclens.tasks.rendering import check_tokenizer, token_id


@dataclass(frozen=True)
class LanguageModel:
    """A loaded causal language model.

    Args:
        name: folder or hub name it came from.
        network: the Hugging Face model, in eval mode.
        tokenizer: its tokenizer, known to give six tokens to an example.
        n_blocks: blocks loaded.
        whole: whether these are all of its blocks, so that its logits mean something.
        fingerprint: sha256 over config and weight files (first 16 hex digits).
    """

    name: str
    network: Any
    tokenizer: Any
    n_blocks: int
    whole: bool
    fingerprint: str

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.network.config.hidden_size)

    def check_site(self, site: Site) -> Site:
        """Return `site`, or raise a SiteError when the model has no such block."""
        if site.layer >= self.n_blocks:
            raise SiteError(
                f"site {site}", f"the model has blocks 0 to {self.n_blocks - 1}", "Choose one of these."
            )
        return site

    def answer_space(self, extra: tuple[str, ...] = ()) -> tuple[tuple[str, ...], torch.Tensor]:
        """The answers whose probabilities are read (numbers 0–999, then `extra`), and their token ids.

        Raises:
            TokenizerError: when one is not a single token.
        """
        more = tuple(dict.fromkeys(y for y in extra if y not in NUMBERS))
        ids = torch.tensor([token_id(self.tokenizer, y) for y in more], dtype=torch.long)
        return NUMBERS + more, torch.cat([self._number_ids, ids])

    @cached_property
    def _number_ids(self) -> torch.Tensor:
        return torch.tensor([token_id(self.tokenizer, y) for y in NUMBERS])

    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device


def load_model(
    name: str | Path, *, blocks: int | None = None, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> LanguageModel:
    """Load a model folder (or hub name), or only its first blocks.

    Args:
        name: folder with config.json, safetensors and a tokenizer; or a hub name.
        blocks: how many blocks to load; all by default. With fewer, the logits are meaningless.
        dtype: of the weights.
        device: torch device.

    Raises:
        ModelError: when the folder is missing, a file is damaged, or weights are missing or mismatched.
        TokenizerError: when an example is not six tokens.
    """
    path = Path(name)
    if not path.is_dir() and (path.is_absolute() or str(name).count("/") != 1 or str(name).startswith(".")):
        raise ModelError(f"model '{name}'", "no such folder", "Give a Hugging Face folder or hub name.")
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
        total = config.num_hidden_layers
        if blocks is not None and not 1 <= blocks <= total:
            raise ModelError(f"{blocks} blocks of '{name}'", f"it has {total}", "Ask for fewer.")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            num_hidden_layers=blocks or total,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused below with their names
        )
        network, report = loaded
    except (OSError, ValueError, SafetensorError, RuntimeError) as cause:
        line = str(cause).strip().splitlines()[0]
        raise ModelError(
            f"model '{name}'", f"cannot be loaded ({line})", "Check the folder's files."
        ) from cause
    _refuse_gaps(name, report, blocks or total)
    check_tokenizer(tokenizer)
    network.requires_grad_(False).eval().to(device)
    return LanguageModel(
        str(name), network, tokenizer, blocks or total, (blocks or total) == total, fingerprint(path)
    )


def _refuse_gaps(name: str | Path, report: dict[str, Any], blocks: int) -> None:
    missing, mismatched = report["missing_keys"], report["mismatched_keys"]
    strange = [
        key for key in report["unexpected_keys"]
        if not (key.startswith("model.layers.") and int(key.split(".")[2]) >= blocks)
    ]  # fmt: skip
    for what, keys in (("missing", missing), ("mismatched", mismatched), ("unexpected", strange)):
        if keys:
            first = sorted(map(str, keys))[0]
            raise ModelError(
                f"weights of '{name}'", f"{len(keys)} {what}, first {first}", "The folder is not whole."
            )


def fingerprint(folder: Path) -> str:
    """sha256 over config.json and the safetensors files, 16 hex digits; "hub" for a hub name."""
    if not folder.is_dir():
        return "hub"
    digest = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A float32 (or integer) numpy copy on the CPU."""
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
