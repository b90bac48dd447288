"""Activations and LatentActs: what a site held, dense and as active latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_array

from iclens.errors import TableError
from iclens.names import Site, check_role
from iclens.tables.arrays import Floats, Ints, expect_shape


@dataclass(frozen=True)
class Activations:
    """A site's activations at one role.

    Args:
        site: where.
        role: which token of each example.
        values: [prompt example d_model], raw residual-stream units.
    """

    site: Site
    role: str
    values: Floats

    def __post_init__(self) -> None:
        check_role(self.role)
        expect_shape("Activations", values=(self.values, ("prompt", "example", "d_model")))

    @property
    def rows(self) -> Floats:
        """[prompt·example d_model], example fastest."""
        return self.values.reshape(-1, self.values.shape[-1])


@dataclass(frozen=True)
class LatentActs:
    """Active latents of a site at one role, in CSR order over rows = prompt·example (example fastest).

    Args:
        site: where.
        role: which token.
        sae_id: fingerprint of the SAE.
        d_sae: number of latents.
        n_prompts, n_examples: how rows unfold.
        indptr: [row + 1].
        index: latent of each active entry, [entry].
        value: its gated activation, [entry].
        error_sq: squared norm of the reconstruction error, [prompt example].
        total_sq: squared norm of the centred activation's input, [prompt example].
    """

    site: Site
    role: str
    sae_id: str
    d_sae: int
    n_prompts: int
    n_examples: int
    indptr: Ints
    index: Ints
    value: Floats
    error_sq: Floats
    total_sq: Floats

    def __post_init__(self) -> None:
        expect_shape(
            "LatentActs",
            indptr=(self.indptr, (self.n_prompts * self.n_examples + 1,)),
            index=(self.index, ("entry",)),
            value=(self.value, ("entry",)),
            error_sq=(self.error_sq, (self.n_prompts, self.n_examples)),
            total_sq=(self.total_sq, (self.n_prompts, self.n_examples)),
        )
        if self.index.size and (self.index.min() < 0 or self.index.max() >= self.d_sae):
            raise TableError(
                "LatentActs.index", "a latent outside the SAE", f"Latents run from 0 to {self.d_sae - 1}."
            )

    @property
    def matrix(self) -> csr_array:
        """The entries as a scipy CSR array [prompt·example, d_sae]."""
        return csr_array(
            (self.value, self.index, self.indptr), shape=(self.n_prompts * self.n_examples, self.d_sae)
        )

    def dense(self, latents: Ints | None = None) -> Floats:
        """Gated activations of `latents` (all by default) as [latent prompt example]."""
        chosen = self.matrix if latents is None else self.matrix.tocsc()[:, latents]
        return chosen.toarray().T.reshape(-1, self.n_prompts, self.n_examples)

    def save(self, path: Path) -> None:
        """Write as safetensors; names and sizes go to the metadata."""
        arrays = {
            k: np.ascontiguousarray(getattr(self, k))
            for k in ("indptr", "index", "value", "error_sq", "total_sq")
        }
        names = {"site": str(self.site), "role": self.role, "sae_id": self.sae_id}
        sizes = {k: str(getattr(self, k)) for k in ("d_sae", "n_prompts", "n_examples")}
        save_file(arrays, path, metadata=names | sizes)

    @classmethod
    def load(cls, path: Path) -> LatentActs:
        """Read what `save` wrote.

        Raises:
            TableError: when the file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                meta = file.metadata()
            arrays = load_file(path)
        except (SafetensorError, OSError) as cause:
            raise TableError(f"{path}", f"unreadable ({cause})", "Run the tracking stage again.") from cause
        d_sae, n_prompts, n_examples = (int(meta[k]) for k in ("d_sae", "n_prompts", "n_examples"))
        site = Site.parse(meta["site"])
        return cls(site, meta["role"], meta["sae_id"], d_sae, n_prompts, n_examples, **arrays)
