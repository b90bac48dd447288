"""Encoding rows, decoder directions, and what they write to the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from sae_lens import TopKSAE
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from iclens.activations import Activations, LatentActs
from iclens.core import SaeError, check_latent
from iclens.model.load import LanguageModel, as_numpy
from iclens.saes.load import Sae
from iclens.saes.parts import NORMALISATIONS
from iclens.table import Floats, Ints

DENSE = 2**22
"""Entries of the dense [row latent] array that is held at a time: 16 MiB."""
ROWS = 512
"""Rows that are encoded at a time at least: with fewer, reading W_enc would take longer than multiplying."""
_LEAST_SPREAD = 1e-9
"""Share of a latent's mean square that its variance must exceed; below, it is rounding."""
_CELLS = 1 << 26
"""Cosines held at a time."""
_AFFINE = "Give an SAE with x̂ = latents @ W_dec + b_dec."


@dataclass(frozen=True)
class EncodedRows:
    """Rows of one site, encoded."""

    latents: csr_array  # gated activations × scale(x), CSR [row latent], float32
    error_sq: Floats  # ‖x − x̂‖², [row]
    total_sq: Floats  # ‖x‖², [row]


Entries = tuple[Tensor, Tensor, Tensor]
"""Entries of each row [row], and their latents and strengths, both [entry], by row and then by latent."""


@torch.no_grad()
def encode_rows(sae: Sae, values: Floats | Tensor, batch: int | None = None) -> EncodedRows:
    """Encode raw activations [row d_in] row by row, on the device of the SAE; only what is active leaves it.

    `batch` rows are encoded at a time; by default `DENSE` entries of the dense [row latent] array, or `ROWS`.
    """
    if values.ndim != 2 or values.shape[1] != sae.d_in:
        raise SaeError(
            f"encoding at {sae.site.short}", f"rows of shape {tuple(values.shape)}",
            f"The SAE reads {sae.d_in}.",
        )  # fmt: skip
    rows, most = torch.as_tensor(values), batch or max(ROWS, DENSE // sae.d_sae)
    parts = [_encode_some(sae, some.to(sae.W_dec)) for some in rows.split(most)]
    count, latent, strength, error_sq, total_sq = (
        np.concatenate([part.cpu().numpy() for part in same]) for same in zip(*parts, strict=True)
    )
    starts = np.concatenate([[0], count.cumsum()])
    latents = csr_array((strength, latent.astype(np.int32), starts), shape=(len(rows), sae.d_sae))
    return EncodedRows(latents, error_sq, total_sq)


def _encode_some(sae: Sae, x: Tensor) -> tuple[Tensor, ...]:
    """Entries of rows x [row d_in], then ‖x − x̂‖² and ‖x‖², both [row]."""
    network, settings = sae.network, sae.network.cfg
    # whether the reconstruction is latents @ W_dec + b_dec, nothing more, so that only active rows count
    plain = (
        sae.normalisation == "none" and not _rescales(sae)
        and getattr(settings, "reshape_activations", "none") != "hook_z"
    )  # fmt: skip
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


def _rescales(sae: Sae) -> bool:
    """Whether decoding divides by the lengths of decoder rows."""
    return getattr(getattr(sae.network, "cfg", None), "rescale_acts_by_decoder_norm", False)


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
    return (
        torch.from_numpy(np.minimum(count, k)), torch.from_numpy(latent[kept]),
        torch.from_numpy(strength[kept]),
    )  # fmt: skip


def refuse_transcoder(sae: Sae) -> None:
    """Raise a SaeError when the SAE reconstructs another site than it reads."""
    if sae.target is not None:
        raise SaeError(
            f"encoding {sae.site.short}", f"it is a transcoder to {sae.target.short}",
            "Use an SAE of that site.",
        )  # fmt: skip


def encode(sae: Sae, activations: Activations) -> LatentActs:
    """Active latents of activations [prompt example d_model] at one role; `total_sq` is ‖x‖²."""
    refuse_transcoder(sae)
    if activations.site != sae.site:
        raise SaeError(
            f"encoding {activations.site.short}", f"the SAE is of {sae.site.short}", "Use that site's SAE."
        )
    encoded = encode_rows(sae, activations.rows)
    shape = activations.values.shape[:2]
    return LatentActs(
        site=activations.site, role=activations.role, sae_id=sae.sae_id, d_sae=sae.d_sae,
        n_prompts=shape[0], n_examples=shape[1], indptr=encoded.latents.indptr,
        index=encoded.latents.indices, value=np.asarray(encoded.latents.data, dtype=np.float32),
        error_sq=encoded.error_sq.reshape(shape), total_sq=encoded.total_sq.reshape(shape),
    )  # fmt: skip


@torch.no_grad()
def decoder_directions(sae: Sae, latents: Ints) -> Tensor:
    """What one unit of each latent adds to the decoded, decode(e_f) − decode(0), [latent d_in]."""
    for latent in latents:
        check_latent(sae.site, int(latent), sae.d_sae)
    return _rows(sae)[torch.as_tensor(np.asarray(latents, dtype=np.int64), device=sae.W_dec.device)]


@torch.no_grad()
def decoder_lengths(sae: Sae) -> Floats:
    """‖d_f‖: the length that one unit of each latent adds, in the SAE's own units, float32 [latent]."""
    return as_numpy(_rows(sae).norm(dim=1))


def _rows(sae: Sae) -> Tensor:
    """d_f of every latent, [latent d_in], found equal to what the SAE decodes of all of them together."""
    rows = normalize(sae.W_dec, dim=1) if _rescales(sae) else sae.W_dec
    sizes = torch.linspace(1, 2, sae.d_sae, dtype=rows.dtype, device=rows.device)[None]
    decoded = (sae.decode(sizes) - sae.decode(torch.zeros_like(sizes))).reshape(1, -1)
    if not bool((decoded - sizes @ rows).norm() <= 1e-3 * decoded.norm()):
        raise SaeError(
            f"directions of the SAE at {sae.site.short}", "its decoder is not affine in the rows of W_dec",
            _AFFINE,
        )  # fmt: skip
    return rows


def check_decoder(sae: Sae, first: Tensor, second: Tensor) -> None:
    """Refuse an SAE for which adding Δa · d_f is not the same as changing the latent by Δa.

    Tried on two sets of gated activations, [row d_sae] each.
    """
    subject = f"moving latents of the SAE at {sae.site.short}"
    if sae.normalisation not in NORMALISATIONS:
        allowed = f"Give one that normalises by one of {', '.join(NORMALISATIONS)}."
        raise SaeError(subject, f"it normalises inputs ({sae.normalisation})", allowed)
    nothing = sae.decode(torch.zeros_like(first))
    one, other, both = sae.decode(first), sae.decode(second), sae.decode(first + second)
    excess = (both - one - other + nothing).abs().max()
    if not bool(excess <= 1e-3 * (one.abs().max() + other.abs().max())):
        raise SaeError(subject, "its decoder is not affine", _AFFINE)


TokenEffect = tuple[str, float]


@dataclass(frozen=True)
class LogitEffects:
    """The tokens that a latent raises and lowers most on the direct path."""

    latent: int  # its index
    top: tuple[TokenEffect, ...]  # (token text, logit effect), largest first
    bottom: tuple[TokenEffect, ...]  # (token text, logit effect), smallest first


@torch.no_grad()
def logit_effects(
    model: LanguageModel, sae: Sae, latents: Sequence[int] | Ints, n: int = 8
) -> list[LogitEffects]:
    """Top and bottom tokens, `n` each, of every latent of an SAE whose site adds to the residual stream."""
    chosen = [int(latent) for latent in latents]
    adapter = model.adapter
    gain, unembedding = adapter.gain(adapter.final_norm), adapter.unembedding.float()
    directions = normalize(decoder_directions(sae, np.array(chosen)), dim=1).to(gain.device)
    effects = (adapter.centred(directions) * gain) @ unembedding.T
    effects = effects - effects.mean(dim=1, keepdim=True)
    n = min(n, effects.shape[1])
    high, low = effects.topk(n, dim=1), effects.topk(n, dim=1, largest=False)

    def named(ids: Tensor, values: Tensor) -> tuple[TokenEffect, ...]:
        pairs = zip(ids.tolist(), values.tolist(), strict=True)
        return tuple((str(model.tokenizer.decode([ident])), value) for ident, value in pairs)

    return [
        LogitEffects(latent, named(high.indices[i], high.values[i]), named(low.indices[i], low.values[i]))
        for i, latent in enumerate(chosen)
    ]


@dataclass(frozen=True)
class Near:
    """A latent's neighbours, nearest first: which, and their cosines or correlations, both [neighbour]."""

    latents: Ints
    values: Floats


@torch.no_grad()
def by_decoder(sae: Sae, latents: Sequence[int], n: int = 6) -> list[Near]:
    """The `n` latents whose decoder rows point most nearly the same way, for each of `latents`."""
    rows = sae.W_dec
    lengths = rows.norm(dim=1).clamp_min(torch.finfo(rows.dtype).tiny).float()
    near = []
    for some in torch.tensor(latents, device=rows.device).split(max(1, _CELLS // sae.d_sae)):
        cosine = (rows[some].float() @ rows.T.float()) / lengths[some, None] / lengths
        near += [_nearest(row.cpu().numpy(), f, n) for row, f in zip(cosine, some.tolist(), strict=True)]
    return near


def by_activation(activations: csr_array, latents: Sequence[int], n: int = 6) -> list[Near]:
    """The `n` latents whose gated activations [token latent] correlate most, for each of `latents`."""
    acts = csr_array(activations).astype(np.float64)
    n_tokens = max(cast("tuple[int, int]", acts.shape)[0], 1)
    mean = np.asarray(acts.sum(axis=0)).ravel() / n_tokens
    squares = np.asarray(acts.power(2).sum(axis=0)).ravel() / n_tokens
    varies = squares - mean**2 > _LEAST_SPREAD * squares
    spread = np.sqrt(np.where(varies, squares - mean**2, np.nan))
    near, columns = [], acts.tocsc()
    for f in latents:
        # covariance of every latent with f, [latent]
        product = np.asarray((acts.T @ columns[:, [f]]).todense()).ravel() / n_tokens - mean * mean[f]
        with np.errstate(divide="ignore", invalid="ignore"):
            near.append(_nearest(product / (spread * spread[f]), f, n))
    return near


def _nearest(values: Floats, own: int, n: int) -> Near:
    """The `n` largest that are above zero, without the latent itself and without undefined ones."""
    positive = np.where(np.isfinite(values) & (values > 0), values, -np.inf)
    positive[own] = -np.inf
    n = min(n, int(np.isfinite(positive).sum()))
    largest = np.argpartition(-positive, n - 1)[:n] if n else np.array([], dtype=np.int64)
    order = largest[np.argsort(-positive[largest], kind="stable")]
    return Near(order.astype(np.int64), positive[order])
