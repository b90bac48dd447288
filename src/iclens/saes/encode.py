"""Encoding recorded activations into active latents, with the reconstruction error kept.

The activation is split exactly: x = Σ_f a_f · d_f + x̂(0) + error, with d_f what one unit of a latent adds
(`saes.directions`). Of an SAE that normalises its input, a_f has the factor `Sae.scale(x)` here, so that
a_f · d_f is always what the latent adds at the site, in the site's units. Latents go to a sparse table; of
the error and of x itself the squared lengths are kept, so that any table built on latents can say what it
left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sae_lens import TopKSAE
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import embedding_bag

from iclens.errors import SaeError
from iclens.saes.load import Sae
from iclens.tables.activations import Activations, LatentActs
from iclens.tables.arrays import Floats

DENSE = 2**22
"""Entries of the dense [row latent] array that is held at a time: 16 MiB."""
ROWS = 512
"""Rows that are encoded at a time at least: with fewer, reading W_enc would take longer than multiplying."""


@dataclass(frozen=True)
class EncodedRows:
    """Rows of one site, encoded.

    Args:
        latents: gated activations × scale(x), CSR [row latent], float32.
        error_sq: ‖x − x̂‖², [row].
        total_sq: ‖x‖², [row].
    """

    latents: csr_array
    error_sq: Floats
    total_sq: Floats


Entries = tuple[Tensor, Tensor, Tensor]
"""Entries of each row [row], and their latents and strengths, both [entry], by row and then by latent."""


@torch.no_grad()
def encode_rows(sae: Sae, values: Floats | Tensor, batch: int | None = None) -> EncodedRows:
    """Encode activations row by row, on the device of the SAE; only what is active leaves it.

    Args:
        sae: the SAE of the site that `values` come from.
        values: raw activations, [row d_in].
        batch: rows encoded at a time; by default `DENSE` entries of the dense [row latent] array, or `ROWS`.

    Raises:
        SaeError: when the width differs.
    """
    if values.ndim != 2 or values.shape[1] != sae.d_in:
        raise SaeError(
            f"encoding at {sae.site.short}", f"rows of shape {tuple(values.shape)}",
            f"The SAE reads {sae.d_in}.",
        )  # fmt: skip
    rows = torch.as_tensor(values)
    parts = [_encode_some(sae, some.to(sae.W_dec)) for some in rows.split(batch or _rows_at_once(sae))]
    count, latent, strength, error_sq, total_sq = (
        np.concatenate([part.cpu().numpy() for part in same]) for same in zip(*parts, strict=True)
    )
    starts = np.concatenate([[0], count.cumsum()])
    latents = csr_array((strength, latent.astype(np.int32), starts), shape=(len(rows), sae.d_sae))
    return EncodedRows(latents, error_sq, total_sq)


def _rows_at_once(sae: Sae) -> int:
    return max(ROWS, DENSE // sae.d_sae)


def _encode_some(sae: Sae, x: Tensor) -> tuple[Tensor, ...]:
    """Entries of rows x [row d_in], then ‖x − x̂‖² and ‖x‖², both [row]."""
    network, plain = sae.network, _plain(sae)
    dense = x.new_empty(0)
    if plain and type(network) is TopKSAE:
        pre = torch.addmm(network.b_enc, network.process_sae_in(x), network.W_enc)
        largest = largest_on_cpu if x.device.type == "cpu" else largest_entries
        count, latent, strength = largest(pre, int(network.cfg.k))
    else:
        dense = sae.encode(x)
        row, latent = dense.nonzero(as_tuple=True)
        count, strength = torch.bincount(row, minlength=len(x)), sae.scale(x)[row] * dense[row, latent]
    if plain:
        decoded = network.b_dec + embedding_bag(
            latent, sae.W_dec, count.cumsum(0) - count, mode="sum", per_sample_weights=strength
        )
    else:
        decoded = sae.reconstruct(x, dense)
    return count, latent, strength, (x - decoded).square().sum(dim=1), x.square().sum(dim=1)


def _plain(sae: Sae) -> bool:
    """Whether the reconstruction is latents @ W_dec + b_dec, nothing more, so that only active rows count."""
    settings = sae.network.cfg
    return (
        getattr(settings, "normalize_activations", "none") == "none"
        and not getattr(settings, "rescale_acts_by_decoder_norm", False)
        and getattr(settings, "reshape_activations", "none") != "hook_z"
    )


def largest_entries(pre: Tensor, k: int) -> Entries:
    """The k largest pre-activations of each row of `pre` [row latent], where they are positive."""
    strength, latent = pre.topk(k, dim=1, sorted=False)
    latent, order = latent.sort(dim=1)
    strength = strength.gather(1, order)
    kept = strength > 0
    return kept.sum(dim=1), latent[kept], strength[kept]


def largest_on_cpu(pre: Tensor, k: int) -> Entries:
    """The same entries of a tensor on the CPU, where `topk` takes longer than the encoder of a narrow SAE.

    1. Split the latents into 4k groups: the k-th largest of the groups' maxima is a bar that k entries at
    least reach, and few more do. 2. Take what reaches it, and sort these few for the k-th largest itself.
    """
    n_groups = min(4 * k, pre.shape[1])
    size = pre.shape[1] // n_groups
    best = pre[:, : size * n_groups].unflatten(1, (size, n_groups)).amax(dim=1).numpy()
    bar = np.sort(best, axis=1)[:, -k]
    values = pre.numpy()
    reached = values >= np.maximum(bar, np.nextafter(np.float32(0), np.float32(1)))[:, None]
    entry = np.flatnonzero(reached)
    count = np.diff(np.searchsorted(entry, np.arange(len(values) + 1) * pre.shape[1]))
    strength = values.ravel()[entry]

    few = np.full((len(values), count.max(initial=k) + 1), -np.inf, np.float32)
    few[np.arange(few.shape[1]) < count[:, None]] = strength
    few.sort(axis=1)
    last, next_one = few[:, -k], few[:, -k - 1]
    if ((last == next_one) & (last > 0)).any():
        return largest_entries(pre, k)  # equal entries compete for the last place: `topk` chooses
    kept = strength >= np.repeat(last, count)
    latent = entry - np.repeat(np.arange(len(values)) * pre.shape[1], count)
    found = np.minimum(count, k), latent[kept], strength[kept]
    return torch.from_numpy(found[0]), torch.from_numpy(found[1]), torch.from_numpy(found[2])


def refuse_transcoder(sae: Sae) -> None:
    """Raise a SaeError when the SAE reconstructs another site than it reads."""
    if sae.target is not None:
        raise SaeError(
            f"encoding {sae.site.short}", f"it is a transcoder to {sae.target.short}",
            "Use an SAE of that site.",
        )  # fmt: skip


def encode(sae: Sae, activations: Activations) -> LatentActs:
    """Active latents of recorded activations at one role.

    Args:
        sae: the SAE of `activations.site`.
        activations: [prompt example d_model].

    Returns:
        Active latents over rows prompt·example; `total_sq` is ‖x‖².

    Raises:
        SaeError: when the activations are of another site or width, or the SAE is a transcoder.
    """
    refuse_transcoder(sae)
    if activations.site != sae.site:
        raise SaeError(
            f"encoding {activations.site.short}", f"the SAE is of {sae.site.short}", "Use that site's SAE."
        )
    encoded = encode_rows(sae, activations.rows)
    shape = activations.values.shape[:2]
    return LatentActs(
        site=activations.site,
        role=activations.role,
        sae_id=sae.sae_id,
        d_sae=sae.d_sae,
        n_prompts=shape[0],
        n_examples=shape[1],
        indptr=encoded.latents.indptr,
        index=encoded.latents.indices,
        value=np.asarray(encoded.latents.data, dtype=np.float32),
        error_sq=encoded.error_sq.reshape(shape),
        total_sq=encoded.total_sq.reshape(shape),
    )
