"""How faithful an SAE is, by our own definitions.

    L0   = mean number of latents with a_f > 0 per token
    FVU  = Σ‖x − x̂‖² / Σ‖x − x̄‖²,  x̄ the mean over the same tokens, sums over tokens and dimensions
    dead = fraction of latents that no measured token activates
    CE recovered = (CE_zeroed − CE_spliced) / (CE_zeroed − CE_base)

CE is the mean next-token cross-entropy in nats. *Spliced* replaces the site by its reconstruction, *zeroed*
sets it to zero (the field's standard ablation), both at every measured position at once; positions in
`excluded` (BOS) are neither measured nor changed. CE is averaged over the predictions made at measured
positions ("all next tokens"), and separately over those made at `pre`, where the answer is predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from iclens.errors import SaeError
from iclens.models.blocks import run_blocks, unembed
from iclens.models.forward import attached
from iclens.models.load import LanguageModel, as_numpy
from iclens.names import Site
from iclens.saes.load import Sae
from iclens.tables.arrays import Floats, Ints
from iclens.tables.edits import Edit
from iclens.tables.quality import QualityTable


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


def fvu(x: Floats, x_hat: Floats) -> float:
    """Fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − x̄‖².

    Args:
        x: activations, [row d_in].
        x_hat: reconstructions, [row d_in].

    Returns:
        0 for a perfect reconstruction, 1 for the mean, above 1 for worse; NaN when x does not vary.
    """
    share = ErrorShare()
    share.add(x, x_hat)
    return share.fvu


def recovered(base: float, spliced: float, zeroed: float) -> float:
    """(zeroed − spliced) / (zeroed − base); NaN when zeroing costs nothing: there is nothing to recover."""
    cost = zeroed - base
    return (zeroed - spliced) / cost if cost > 0 else float("nan")


class _Tally:
    """What is counted for one SAE."""

    def __init__(self, d_sae: int) -> None:
        self.everywhere, self.at_pre = ErrorShare(), ErrorShare()
        self.fires = torch.zeros(d_sae, dtype=torch.int64)
        self.spliced: list[Floats] = []
        self.zeroed: list[Floats] = []


@torch.no_grad()
def measure_quality(
    model: LanguageModel, saes: Mapping[Site, Sae], tokens: Ints,
    *, pre: Sequence[int] | Ints = (), excluded: Sequence[int] = (0,), batch: int = 64,
) -> QualityTable:  # fmt: skip
    """L0, FVU, dead latents and CE recovered of every SAE.

    Args:
        model: the model; CE needs all of its blocks.
        saes: site → SAE.
        tokens: prompts of one length that no SAE was trained on, [prompt pos].
        pre: positions of role `pre`, where the answer is predicted; empty for text.
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
    at_pre = np.isin(kept, np.asarray(pre, dtype=int))
    tallies = {site: _Tally(sae.d_sae) for site, sae in saes.items()}
    entries = {site: Site(site.layer, "resid_pre") for site in saes}
    base: list[Floats] = []
    for start in range(0, len(tokens), batch):
        rows = torch.as_tensor(tokens[start : start + batch], device=model.device())
        seen, final = _run(model, model.network.model.embed_tokens(rows), 0, [*saes, *entries.values()], ())
        base.append(_losses(model, rows, final, kept))
        for site, sae in saes.items():
            x_hat = _count(tallies[site], sae, seen[site][:, kept], at_pre)
            for edit, losses in (
                (Edit(site, "replace", kept, as_numpy(x_hat)), tallies[site].spliced),
                (Edit(site, "zero", kept), tallies[site].zeroed),
            ):
                if model.whole:
                    _, final = _run(model, seen[entries[site]], site.layer, (), (edit,))
                    losses.append(_losses(model, rows, final, kept))
    n_tokens = len(tokens) * len(kept)
    base_loss = np.concatenate(base)
    return QualityTable.concat(
        [_row(saes[site], tally, base_loss, at_pre, n_tokens) for site, tally in tallies.items()]
    )


def _count(tally: _Tally, sae: Sae, x: Tensor, at_pre: np.ndarray) -> Tensor:
    """Count activations x [row pos d_in]; return their reconstruction."""
    latents = sae.encode(x.flatten(0, 1))
    x_hat = sae.decode(latents).view(x.shape)
    before, after = as_numpy(x), as_numpy(x_hat)
    tally.fires += (latents > 0).sum(dim=0).cpu()
    tally.everywhere.add(before.reshape(-1, sae.d_in), after.reshape(-1, sae.d_in))
    tally.at_pre.add(before[:, at_pre].reshape(-1, sae.d_in), after[:, at_pre].reshape(-1, sae.d_in))
    return x_hat


def _run(
    model: LanguageModel, resid: Tensor, start: int, sites: Sequence[Site], edits: Sequence[Edit]
) -> tuple[dict[Site, Tensor], Tensor]:
    """Run from resid_pre of block `start` [row pos d_model]; recorded sites and the last resid_post."""
    with attached(model, sites, np.arange(resid.shape[1]), edits) as seen:
        final = run_blocks(model.network, resid, start, model.n_blocks)
    return seen.values, final


def _losses(model: LanguageModel, rows: Tensor, final: Tensor, kept: Ints) -> Floats:
    """−log P(next token) at the kept positions, [row pos]; NaN where it is unknown."""
    losses = np.full((len(rows), len(kept)), np.nan)
    if model.whole:
        predicting = kept[kept < rows.shape[1] - 1]
        logits = unembed(model.network, final[:, predicting]).float()
        following = rows[:, predicting + 1]
        found = F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none")
        losses[:, : len(predicting)] = as_numpy(found.view(following.shape))
    return losses


def _row(sae: Sae, tally: _Tally, base: Floats, at_pre: np.ndarray, n_tokens: int) -> QualityTable:
    unknown = np.full_like(base, np.nan)
    spliced = np.concatenate(tally.spliced) if tally.spliced else unknown
    zeroed = np.concatenate(tally.zeroed) if tally.zeroed else unknown
    follows = ~np.isnan(base)
    everywhere = [_mean(loss, follows) for loss in (base, spliced, zeroed)]
    there = [_mean(loss, follows & at_pre) for loss in (base, spliced, zeroed)]
    reasons = [] if follows.any() else ["CE needs all blocks of the model"]
    if not at_pre.any():
        reasons.append("no `pre` position was given")
    for name, (before, _, without) in (("ce_recovered", everywhere), ("ce_recovered_pre", there)):
        if without <= before:
            reasons.append(f"{name}: zeroing the site costs nothing")
    values: dict[str, Any] = {
        "site": str(sae.site),
        "sae_id": sae.sae_id,
        "d_sae": sae.d_sae,
        "k": float("nan") if sae.k is None else sae.k,
        "l0": int(tally.fires.sum()) / n_tokens,
        "fvu": tally.everywhere.fvu,
        "fvu_pre": tally.at_pre.fvu,
        "ce_base": everywhere[0],
        "ce_spliced": everywhere[1],
        "ce_zeroed": everywhere[2],
        "ce_recovered": recovered(*everywhere),
        "ce_recovered_pre": recovered(*there),
        "dead": float((tally.fires == 0).float().mean()),
        "n_tokens": n_tokens,
        "reason": "; ".join(reasons),
    }
    return QualityTable({name: [value] for name, value in values.items()})


def _mean(losses: Floats, where: np.ndarray) -> float:
    return float(losses[where].mean()) if where.any() else float("nan")
