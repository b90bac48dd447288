"""Counting over one pass of prompts: what SAEs leave unexplained, and what their reconstructions cost.

1. The model runs once on each batch, for all SAEs. 2. Each SAE encodes and reconstructs its site. 3. The
blocks above run again with the site replaced by the reconstruction, and set to zero. 4. Everything is kept
per position, so that any group of positions (a role, `pre`, all) can be summarised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iclens.errors import SaeError
from iclens.models.blocks import run_blocks, unembed
from iclens.models.forward import attached
from iclens.models.load import LanguageModel, as_numpy
from iclens.names import Site
from iclens.saes.load import Sae
from iclens.tables.arrays import Floats, Ints
from iclens.tables.edits import Edit

Bools = NDArray[np.bool_]

ALL = "all"
"""The group of every measured position."""
_ENCODED_ROWS = 2048
"""Rows encoded at a time; bounds the dense [row latent] array."""
_LOGITS = 1 << 27
"""Logits held at a time."""


class ErrorShare:
    """FVU accumulated over batches, in float64."""

    def __init__(self) -> None:
        self.n, self.error, self.square = 0, 0.0, 0.0
        self.total: Floats | float = 0.0

    def add(self, x: Floats, x_hat: Floats) -> None:
        """Count rows x [row d_in] and their reconstructions x_hat [row d_in]."""
        x, x_hat = np.asarray(x, np.float64), np.asarray(x_hat, np.float64)
        self.n += len(x)
        self.error += float(np.square(x - x_hat).sum())
        self.square += float(np.square(x).sum())
        self.total = self.total + x.sum(axis=0)

    @property
    def fvu(self) -> float:
        """Σ‖x − x̂‖² / Σ‖x − x̄‖²; NaN without rows or variance."""
        if self.n == 0:
            return float("nan")
        variance = self.square - float(np.square(self.total).sum()) / self.n
        return self.error / variance if variance > 1e-12 * self.square else float("nan")


@dataclass(frozen=True)
class Counts:
    """One SAE over all prompts, at the measured positions.

    Args:
        sae: the SAE.
        groups: name → which measured positions belong to it, [pos].
        shares: name → its share of error.
        fires: tokens on which each latent is active, [latent].
        active: active latents, [prompt pos].
        length: ‖x‖ of what the SAE reads, [prompt pos].
        base: −log P(next token) of the model as it is, [prompt pos]; NaN where unknown, as in the next three.
        spliced: the same with the site replaced by its reconstruction.
        zeroed: the same with the site set to zero.
        kl: KL(model ‖ model with the reconstruction) of the prediction, [prompt pos].
    """

    sae: Sae
    groups: Mapping[str, Bools]
    shares: Mapping[str, ErrorShare]
    fires: Tensor
    active: Floats
    length: Floats
    base: Floats
    spliced: Floats
    zeroed: Floats
    kl: Floats

    @property
    def n_tokens(self) -> int:
        """Tokens measured."""
        return self.active.size


class _Tally:
    """What is counted for one SAE while batches go by."""

    def __init__(self, sae: Sae, groups: Mapping[str, Bools]) -> None:
        self.sae, self.groups = sae, groups
        self.shares = {name: ErrorShare() for name in groups}
        self.fires = torch.zeros(sae.d_sae, dtype=torch.int64)
        self.seen: dict[str, list[Floats]] = {
            key: [] for key in ("active", "length", "spliced", "zeroed", "kl")
        }

    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        """Count activations x of the site and y of its output [row pos d]; return the reconstruction."""
        parts, active = [], []
        for rows in x.flatten(0, 1).split(_ENCODED_ROWS):
            latents = self.sae.encode(rows)
            parts.append(self.sae.reconstruct(rows, latents))
            active.append((latents > 0).sum(dim=1))
            self.fires += (latents > 0).sum(dim=0).cpu()
        y_hat = torch.cat(parts).view(y.shape)
        self.seen["active"].append(as_numpy(torch.cat(active).view(y.shape[:2])))
        self.seen["length"].append(as_numpy(x.float().norm(dim=2)))
        before, after = as_numpy(y), as_numpy(y_hat)
        for what, values, remedy in (
            ("the model's activations", before, "Load the model with --dtype float32."),
            ("its reconstructions", after, "Use an SAE that was made for this model and site."),
        ):
            if not np.isfinite(values).all():
                raise SaeError(f"SAE quality at {self.sae.site.short}", f"{what} are not finite", remedy)
        for name, mask in self.groups.items():
            width = before.shape[-1]
            self.shares[name].add(before[:, mask].reshape(-1, width), after[:, mask].reshape(-1, width))
        return y_hat

    def counts(self, base: Floats) -> Counts:
        """Everything counted."""
        whole = {
            key: np.concatenate(found) if found else np.full_like(base, np.nan)
            for key, found in self.seen.items()
        }
        return Counts(self.sae, self.groups, self.shares, self.fires, base=base, **whole)


@torch.no_grad()
def tally(
    model: LanguageModel, saes: Mapping[Site, Sae], tokens: Ints, groups: Mapping[str, Sequence[int] | Ints],
    *, excluded: Sequence[int] = (0,), batch: int = 64,
) -> dict[Site, Counts]:  # fmt: skip
    """Count every SAE over the prompts.

    Args:
        model: the model; losses need all of its blocks.
        saes: site → SAE.
        tokens: prompts of one length that no SAE was trained on, [prompt pos].
        groups: name → positions to be summarised together; `all` is added.
        excluded: positions neither measured nor changed.
        batch: prompts per forward pass.

    Raises:
        SaeError: when no position is left to measure.
    """
    kept = np.setdiff1d(np.arange(tokens.shape[1]), np.asarray(excluded, dtype=int))
    if not len(kept) or not len(tokens):
        raise SaeError(
            "SAE quality", f"{len(tokens)} prompts, {len(kept)} positions", "Give tokens to measure on."
        )
    masks = {ALL: np.ones(len(kept), dtype=bool)} | {
        name: np.isin(kept, np.asarray(where, dtype=int)) for name, where in groups.items()
    }
    tallies = {site: _Tally(sae, masks) for site, sae in saes.items()}
    base: list[Floats] = []
    for start in range(0, len(tokens), batch):
        rows = torch.as_tensor(tokens[start : start + batch], device=model.device())
        base.append(_count_batch(model, tallies, rows, kept))
    return {site: counter.counts(np.concatenate(base)) for site, counter in tallies.items()}


def _count_batch(model: LanguageModel, tallies: Mapping[Site, _Tally], rows: Tensor, kept: Ints) -> Floats:
    """Count one batch of prompts for every SAE; the model's own losses."""
    outputs = {site: counter.sae.output for site, counter in tallies.items()}
    entries = {site: Site(output.layer, "resid_pre") for site, output in outputs.items()}
    recorded = [*tallies, *outputs.values(), *entries.values()]
    seen, final = _run(model, model.embed(as_numpy(rows)), 0, recorded, ())
    base, _ = _predictions(model, rows, kept, final, None)
    for site, counter in tallies.items():
        output = outputs[site]
        y_hat = counter.reconstruct(seen[site][:, kept], seen[output][:, kept])
        if not model.whole:
            continue
        _, spliced = _run(
            model, seen[entries[site]], output.layer, (), (Edit(output, "replace", kept, as_numpy(y_hat)),)
        )
        losses, divergence = _predictions(model, rows, kept, spliced, final)
        counter.seen["spliced"].append(losses)
        counter.seen["kl"].append(divergence)
        _, zeroed = _run(model, seen[entries[site]], output.layer, (), (Edit(output, "zero", kept),))
        counter.seen["zeroed"].append(_predictions(model, rows, kept, zeroed, None)[0])
    return base


def _run(
    model: LanguageModel, resid: Tensor, start: int, sites: Sequence[Site], edits: Sequence[Edit]
) -> tuple[dict[Site, Tensor], Tensor]:
    """Run from resid_pre of block `start` [row pos d_model]; recorded sites and the last resid_post."""
    with attached(model, sites, np.arange(resid.shape[1]), edits) as seen:
        final = run_blocks(model.network, resid, start, model.n_blocks)
    return seen.values, final


def _predictions(
    model: LanguageModel, rows: Tensor, kept: Ints, final: Tensor, reference: Tensor | None
) -> tuple[Floats, Floats]:
    """−log P(next token) from `final` at the kept positions, and KL(reference ‖ final); NaN where unknown.

    Args:
        model: gives the unembedding.
        rows: tokens, [row pos].
        kept: measured positions, [kept].
        final: the last resid_post, [row pos d_model].
        reference: the last resid_post of the model as it is; no KL without one.

    Returns:
        Two arrays [row kept].
    """
    losses, divergence = (np.full((len(rows), len(kept)), np.nan) for _ in range(2))
    predicting = kept[kept < rows.shape[1] - 1]
    if not model.whole or not len(predicting):
        return losses, divergence
    vocabulary = model.network.lm_head.weight.shape[0]
    step = max(1, _LOGITS // (vocabulary * len(predicting)))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        log_p = unembed(model.network, final[part, predicting]).float().log_softmax(dim=-1)
        following = rows[part, predicting + 1]
        losses[part, : len(predicting)] = as_numpy(-log_p.gather(-1, following[..., None])[..., 0])
        if reference is not None:
            log_q = unembed(model.network, reference[part, predicting]).float().log_softmax(dim=-1)
            divergence[part, : len(predicting)] = as_numpy((log_q.exp() * (log_q - log_p)).sum(dim=-1))
    return losses, divergence
