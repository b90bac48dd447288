"""Encoding recorded activations into active latents, with the reconstruction error kept.

The activation is split exactly: x = Σ_f a_f · W_dec[f] + b_dec + error. Latents go to a sparse table; of
the error and of x itself the squared lengths are kept, so that any table built on latents can say what it
left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sae_lens import TopKSAE
from scipy.sparse import csr_array, vstack
from torch import Tensor
from torch.nn.functional import embedding_bag

from iclens.errors import SaeError
from iclens.saes.load import Sae
from iclens.tables.activations import Activations, LatentActs
from iclens.tables.arrays import Floats


@dataclass(frozen=True)
class EncodedRows:
    """Rows of one site, encoded.

    Args:
        latents: gated activations, CSR [row latent], float32.
        error_sq: ‖x − x̂‖², [row].
    """

    latents: csr_array
    error_sq: Floats


@torch.no_grad()
def encode_rows(sae: Sae, values: Floats, batch: int = 4096) -> EncodedRows:
    """Encode activations row by row.

    Args:
        sae: the SAE of the site that `values` come from.
        values: raw activations, [row d_in].
        batch: rows encoded at a time; bounds the dense [row latent] array.

    Raises:
        SaeError: when the width differs.
    """
    if values.ndim != 2 or values.shape[1] != sae.d_in:
        raise SaeError(
            f"encoding at {sae.site.short}", f"rows of shape {values.shape}", f"The SAE reads {sae.d_in}."
        )
    parts, errors = [csr_array((0, sae.d_sae), dtype=np.float32)], [np.empty(0, np.float32)]
    plain = _plain(sae)
    for start in range(0, len(values), batch):
        x = torch.as_tensor(values[start : start + batch]).to(sae.W_dec)
        latents = x.new_zeros(0)
        if plain and type(sae.network) is TopKSAE:
            active, strength = _top_k(sae, x)
        else:
            latents = sae.encode(x)
            active = latents.nonzero()
            strength = latents[active[:, 0], active[:, 1]]
        ends = torch.bincount(active[:, 0], minlength=len(x)).cumsum(0)
        starts = torch.cat([ends.new_zeros(1), ends])
        if plain:
            decoded = sae.network.b_dec + embedding_bag(
                active[:, 1], sae.W_dec, starts[:-1], mode="sum", per_sample_weights=strength
            )
        else:
            decoded = sae.decode(latents)
        errors.append((x - decoded).square().sum(dim=1).cpu().numpy())
        held = (strength.cpu().numpy(), active[:, 1].cpu().numpy().astype(np.int32), starts.cpu().numpy())
        parts.append(csr_array(held, shape=(len(x), sae.d_sae)))
    return EncodedRows(csr_array(vstack(parts, format="csr")), np.concatenate(errors))


def _plain(sae: Sae) -> bool:
    """Whether the reconstruction is latents @ W_dec + b_dec, nothing more, so that only active rows count."""
    settings = sae.network.cfg
    return (
        getattr(settings, "normalize_activations", "none") == "none"
        and not getattr(settings, "rescale_acts_by_decoder_norm", False)
        and getattr(settings, "reshape_activations", "none") != "hook_z"
    )


def _top_k(sae: Sae, x: Tensor) -> tuple[Tensor, Tensor]:
    """Active (row, latent) pairs of a TopK SAE, [entry 2], and their strength, [entry]; no dense latents."""
    network = sae.network
    pre = network.process_sae_in(x) @ network.W_enc + network.b_enc
    strength, latent = pre.topk(int(network.cfg.k), dim=1, sorted=False)
    latent, order = latent.sort(dim=1)
    strength = strength.gather(1, order)
    kept = strength > 0
    row = torch.arange(len(x), device=x.device)[:, None].expand_as(latent)
    return torch.stack([row[kept], latent[kept]], dim=1), strength[kept]


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
    rows = activations.rows
    encoded = encode_rows(sae, rows)
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
        total_sq=np.square(rows).sum(axis=1).reshape(shape),
    )
