"""Latent activations at the positions of a prompt set, and trajectories of chosen latents over examples.

A file of latents holds its entries twice, by row (CSR) and by latent (CSC). `LatentActs.open` maps the file
into memory: a study of 131,072 latents reads what it looks at, and one latent's trajectory is one stretch
of the disk.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file
from scipy.sparse import csc_array, csr_array, vstack

from iclens.core import BELIEFS, REDO_STAGE, ROLES, Site, TableError, check_latent, check_role
from iclens.stats import prompt_band
from iclens.table import Floats, Ints, expect_shape, mapped_arrays, stretch

if TYPE_CHECKING:
    import pandas as pd

Place = tuple[Site, str]
"""A site and a role."""


@dataclass(frozen=True)
class Activations:
    """A site's activations at one role, [prompt example d_model], raw residual-stream units."""

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


_ARRAYS = {
    "indptr": np.int64, "index": np.int32, "value": np.float32,
    "error_sq": np.float32, "total_sq": np.float32,
}  # fmt: skip
_BY_LATENT = {"latent_starts": np.int64, "latent_rows": np.int32, "latent_values": np.float32}
"""Arrays of a file, and as what each is kept, however it came about."""
_ABOUT = "latents"  # metadata key of names and sizes


@dataclass(frozen=True)
class ByLatent:
    """The same entries in the order of their latents."""

    starts: Ints  # first entry of each latent, [latent + 1]
    rows: Ints  # row of each entry, [entry]
    values: Floats  # its gated activation, [entry]


@dataclass(frozen=True)
class LatentActs:
    """Active latents of a site at one role, in CSR order over rows = prompt·example (example fastest)."""

    site: Site
    role: str
    sae_id: str  # fingerprint of the SAE
    d_sae: int
    # n_prompts, n_examples: how rows unfold
    n_prompts: int
    n_examples: int
    indptr: Ints  # [row + 1]
    index: Ints  # latent of each active entry, [entry]
    value: Floats  # its gated activation × `Sae.scale`, [entry]
    error_sq: Floats  # squared norm of the reconstruction error, [prompt example]
    total_sq: Floats  # squared norm of the activation, [prompt example]
    by_latent: ByLatent | None = None  # the entries by latent, of a file that was opened; None otherwise

    def __post_init__(self) -> None:
        expect_shape(
            "LatentActs",
            indptr=(self.indptr, (self.n_prompts * self.n_examples + 1,)),
            index=(self.index, ("entry",)),
            value=(self.value, ("entry",)),
            error_sq=(self.error_sq, (self.n_prompts, self.n_examples)),
            total_sq=(self.total_sq, (self.n_prompts, self.n_examples)),
        )
        # A mapped file was checked when it was written; reading all of it here would defeat the map.
        if self.index.size and not isinstance(self.index, np.memmap):
            if self.index.min() < 0 or self.index.max() >= self.d_sae:
                raise TableError(
                    "LatentActs.index", "a latent outside the SAE", f"Latents run from 0 to {self.d_sae - 1}."
                )
            self.check_finite()

    def check_finite(self) -> None:
        """Raise if an activation is NaN or infinite, naming its latent and prompt; reads a whole file."""
        finite = np.isfinite(self.value)
        if not finite.all():
            entry = int(np.argmin(finite))
            row = int(np.searchsorted(self.indptr, entry, side="right")) - 1
            place = f"latent {int(self.index[entry])}, prompt {row // self.n_examples}"
            what = f"activations at {self.site.short} {self.role}"
            remedy = "Read the model in float32 (model.dtype), or leave the SAE out, and track again."
            raise TableError(what, f"NaN or infinite in {place}", remedy)

    @property
    def matrix(self) -> csr_array:
        """The entries as a scipy CSR array [prompt·example, d_sae]."""
        return csr_array(
            (self.value, self.index, self.indptr), shape=(self.n_prompts * self.n_examples, self.d_sae)
        )

    def dense(self, latents: Ints | None = None) -> Floats:
        """Gated activations of `latents` (all by default) as [latent prompt example]."""
        if latents is not None and self.by_latent is not None:
            if not len(latents):
                return np.empty((0, self.n_prompts, self.n_examples))
            return np.stack([self.trajectory(int(latent)) for latent in latents])
        chosen = self.matrix if latents is None else self.matrix.tocsc()[:, latents]
        return chosen.toarray().T.reshape(-1, self.n_prompts, self.n_examples)

    def trajectory(self, latent: int) -> Floats:
        """Gated activation of one latent, [prompt example]; of an opened file, only its entries are read."""
        check_latent(self.site, latent, self.d_sae)
        if self.by_latent is None:
            return self.matrix[:, [latent]].toarray().reshape(self.n_prompts, self.n_examples)
        first, last = (int(end) for end in stretch(self.by_latent.starts, latent, latent + 2))
        out = np.zeros(self.n_prompts * self.n_examples, dtype=self.value.dtype)
        out[stretch(self.by_latent.rows, first, last)] = stretch(self.by_latent.values, first, last)
        return out.reshape(self.n_prompts, self.n_examples)

    def with_rows(
        self, matrix: csr_array, n_prompts: int, n_examples: int, *, error_sq: Floats, total_sq: Floats
    ) -> LatentActs:
        """The same latents on other rows: `matrix` [prompt·example, d_sae], squares [prompt example]."""
        return replace(
            self, n_prompts=n_prompts, n_examples=n_examples, indptr=matrix.indptr, index=matrix.indices,
            value=matrix.data, error_sq=error_sq, total_sq=total_sq, by_latent=None,
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Write as safetensors, by row and by latent; names and sizes go to the metadata."""
        columns = csc_array(self.matrix)
        by_latent = zip(_BY_LATENT, (columns.indptr, columns.indices, columns.data), strict=True)
        arrays = {name: getattr(self, name) for name in _ARRAYS} | dict(by_latent)
        kept = {k: np.ascontiguousarray(arrays[k], dtype=t) for k, t in (_ARRAYS | _BY_LATENT).items()}
        about = {"site": str(self.site), "role": self.role, "sae_id": self.sae_id}
        about |= {name: getattr(self, name) for name in ("d_sae", "n_prompts", "n_examples")}
        # One key: safetensors writes several in an order that changes from file to file.
        save_file(kept, path, metadata={_ABOUT: json.dumps(about)})

    @classmethod
    def open(cls, path: Path) -> LatentActs:
        """Map what `save` wrote; entries are read when they are looked at."""
        arrays, meta = mapped_arrays(path, REDO_STAGE)
        try:
            about = json.loads(meta[_ABOUT])
            d_sae, n_prompts, n_examples = (int(about[name]) for name in ("d_sae", "n_prompts", "n_examples"))
            return cls(
                Site.parse(about["site"]), about["role"], about["sae_id"], d_sae, n_prompts, n_examples,
                **{name: arrays[name] for name in _ARRAYS},
                by_latent=ByLatent(*(arrays[name] for name in _BY_LATENT)),
            )  # fmt: skip
        except (KeyError, ValueError) as cause:
            raise TableError(f"{path}", f"not latents of this version ({cause})", REDO_STAGE) from cause

    @classmethod
    def load(cls, path: Path) -> LatentActs:
        """Read what `save` wrote into memory, and check every entry."""
        mapped = cls.open(path)
        return replace(mapped, by_latent=None, **{name: np.array(getattr(mapped, name)) for name in _ARRAYS})


def select_prompts(acts: LatentActs, prompts: Ints) -> LatentActs:
    """The same latents on some of the prompts [prompt]."""
    return select_rows(acts, prompts, np.arange(acts.n_examples))


def select_rows(acts: LatentActs, prompts: Ints, examples: Ints) -> LatentActs:
    """The same latents on some of the prompts [prompt] and examples [example]."""
    rows = (np.asarray(prompts)[:, None] * acts.n_examples + examples).ravel()
    error_sq, total_sq = (
        np.asarray(part)[np.ix_(prompts, examples)] for part in (acts.error_sq, acts.total_sq)
    )
    kept = csr_array(acts.matrix[rows])
    return acts.with_rows(kept, len(prompts), len(examples), error_sq=error_sq, total_sq=total_sq)


def join_prompts(parts: Sequence[LatentActs]) -> LatentActs:
    """The same latents on the prompts of several tables, in order."""
    first = parts[0]
    for what in ("site", "role", "sae_id", "d_sae", "n_examples"):
        if any(getattr(part, what) != getattr(first, what) for part in parts):
            remedy = "Join parts of one arm, site, role and SAE only."
            raise TableError(f"parts at {first.site.short}", f"{what} differs", remedy)
    return first.with_rows(
        csr_array(vstack([part.matrix for part in parts], format="csr")),
        sum(part.n_prompts for part in parts), first.n_examples,
        error_sq=np.concatenate([part.error_sq for part in parts]),
        total_sq=np.concatenate([part.total_sq for part in parts]),
    )  # fmt: skip


def examples_seen(role: str, n_examples: int) -> Ints:
    """How many labels the model has read at `role` of each example, [example].

    At `open`, `x`, `comma` and `pre` of example j it has read j; at `lab` and `close`, j + 1.
    """
    own_label = ROLES.index(check_role(role)) >= ROLES.index("lab")
    return np.arange(n_examples) + int(own_label)


@dataclass(frozen=True)
class Trajectories:
    """Chosen latents of one site, role and arm against evidence."""

    site: Site
    role: str
    arm: str  # which arm the prompts belong to ("T", "S", …)
    latent_ids: Ints  # [latent]
    values: Floats  # gated activation × decoder norm, [latent prompt example]
    n_seen: Ints  # labels read at this role, [example]
    # log-odds in nats at `pre` of the same example, [prompt example belief]; NaN where a belief is undefined
    beliefs: Floats
    belief_names: tuple[str, ...] = BELIEFS  # [belief]

    def __post_init__(self) -> None:
        check_role(self.role)
        expect_shape(
            "Trajectories",
            latent_ids=(self.latent_ids, ("latent",)),
            values=(self.values, ("latent", "prompt", "example")),
            n_seen=(self.n_seen, ("example",)),
            beliefs=(self.beliefs, ("prompt", "example", len(self.belief_names))),
        )
        if len(np.unique(self.latent_ids)) != len(self.latent_ids):
            raise TableError("Trajectories.latent_ids", "a latent stands twice", "List each latent once.")

    @classmethod
    def of(
        cls,
        latents: LatentActs,
        latent_ids: Ints,
        *,
        arm: str,
        beliefs: Floats,
        belief_names: tuple[str, ...] = BELIEFS,
        decoder_norm: Floats | None = None,
    ) -> Trajectories:
        """Trajectories of some latents; a unit of each adds a length of `decoder_norm` [d_sae], 1 if None."""
        chosen = np.asarray(latent_ids, dtype=np.int64)
        for latent in (chosen.min(initial=0), chosen.max(initial=0)):
            check_latent(latents.site, latent, latents.d_sae)
        values = latents.dense(chosen)
        if decoder_norm is not None:
            values = values * decoder_norm[chosen][:, None, None]
        n_seen = examples_seen(latents.role, latents.n_examples)
        return cls(latents.site, latents.role, arm, chosen, values, n_seen, beliefs, belief_names)

    @property
    def df(self) -> pd.DataFrame:
        """One row per latent, prompt and example: activation, and the beliefs' log-odds (nats) at `pre`."""
        import pandas as pd

        n_latents, n_prompts, n_examples = self.values.shape
        latent, prompt, example = np.indices(self.values.shape).reshape(3, -1)
        frame = pd.DataFrame({
            "site": str(self.site), "role": self.role, "arm": self.arm, "latent": self.latent_ids[latent],
            "prompt": prompt, "n_seen": self.n_seen[example], "activation": self.values.reshape(-1),
        })  # fmt: skip
        names = self.belief_names
        beliefs = np.broadcast_to(self.beliefs, (n_latents, n_prompts, n_examples, len(names)))
        return frame.assign(**{name: beliefs[..., i].reshape(-1) for i, name in enumerate(names)})

    def summary(self, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Mean activation by examples seen, with a 95 % band over prompts: a row per latent and n_seen.

        Columns: site, role, arm, latent, n_seen, mean, ci_low, ci_high, n_prompts.
        """
        import pandas as pd

        band = prompt_band(self.values.transpose(1, 0, 2), np.random.default_rng(seed), n_resamples)
        n_latents, _, n_examples = self.values.shape
        columns = dict(zip(("mean", "ci_low", "ci_high", "n_prompts"), map(np.ravel, band), strict=True))
        return pd.DataFrame({
            "site": str(self.site), "role": self.role, "arm": self.arm,
            "latent": np.repeat(self.latent_ids, n_examples), "n_seen": np.tile(self.n_seen, n_latents),
        } | columns)  # fmt: skip
