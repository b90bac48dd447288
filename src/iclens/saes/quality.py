"""How faithful an SAE is, by our own definitions.

    L0   = mean number of latents with a_f > 0 per token
    FVU  = Σ‖y − ŷ‖² / Σ‖y − ȳ‖²,  ȳ the mean over the same tokens, sums over tokens and dimensions
    dead = fraction of latents that no measured token activates;  density_f = share of tokens with a_f > 0
    CE recovered = (CE_zeroed − CE_spliced) / (CE_zeroed − CE_base)
    KL   = mean over predictions of Σ_v P_base(v) · ln(P_base(v) / P_spliced(v)), over the whole vocabulary

y is what the SAE reconstructs: its own site x, or a transcoder's target. CE is the mean next-token
cross-entropy in nats. *Spliced* replaces y by its reconstruction, *zeroed* sets it to zero (the field's
standard ablation), both at every measured token at once; BOS and padding (`LeftOut`) are neither measured nor
changed nor predicted. CE and KL are averaged over the predictions made at measured tokens, and
separately over those made at a group of positions such as `pre`, where the answer is predicted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from iclens.models.load import LanguageModel
from iclens.names import Site
from iclens.saes.load import Sae
from iclens.saes.tally import ALL, Counts, ErrorShare, LeftOut, tally
from iclens.tables.arrays import Floats, Ints
from iclens.tables.quality import DensityTable, FidelityTable, QualityTable

DENSITY_EDGES = (0.0, *(float(10.0 ** (half / 2)) for half in range(-12, 1)))
"""Ends of the density bins: two per factor of ten, down to one token in a million."""


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


@dataclass(frozen=True)
class Figures:
    """What one SAE does at one group of positions; NaN where undefined, and why.

    Args:
        l0, fvu, kl: as the module defines them.
        ce_base, ce_spliced, ce_zeroed: next-token cross-entropy, nats.
        ce_recovered: of these three.
        n_tokens: tokens measured.
        reason: why a figure is NaN; empty when none is.
    """

    l0: float
    fvu: float
    kl: float
    ce_base: float
    ce_spliced: float
    ce_zeroed: float
    ce_recovered: float
    n_tokens: int
    reason: str


def figures(counts: Counts, group: str = ALL) -> Figures:
    """The figures of one SAE at the positions of `group`."""
    there = counts.groups[group]
    follows = ~np.isnan(counts.base) & there
    base, spliced, zeroed = (_mean(loss, follows) for loss in (counts.base, counts.spliced, counts.zeroed))
    active = counts.active[:, there]
    n_tokens, reasons = int((~np.isnan(active)).sum()), []
    if not n_tokens:
        reasons.append(f"no `{group}` position was given")
    if not follows.any():
        reasons.append("CE and KL need all blocks of the model")
    elif zeroed <= base:
        reasons.append("zeroing the site costs nothing")
    unexplained = counts.shares[group].fvu
    if n_tokens and np.isnan(unexplained):
        reasons.append("the site does not vary")
    return Figures(
        float(np.nansum(active)) / n_tokens if n_tokens else float("nan"), unexplained,
        _mean(counts.kl, follows), base, spliced, zeroed, recovered(base, spliced, zeroed), n_tokens,
        "; ".join(reasons),
    )  # fmt: skip


def measure_quality(
    model: LanguageModel, saes: Mapping[Site, Sae], tokens: Ints,
    *, pre: Sequence[int] | Ints = (), left_out: LeftOut | None = None, batch: int = 64,
) -> QualityTable:  # fmt: skip
    """L0, FVU, dead latents, KL and CE recovered of every SAE.

    Args:
        model: the model; CE and KL need all of its blocks.
        saes: site → SAE.
        tokens: prompts that no SAE was trained on, [prompt pos], filled up with `PADDING`.
        pre: positions of role `pre`, where the answer is predicted; empty for text.
        left_out: tokens neither measured nor changed; by default BOS, and what the SAEs' metadata name.
        batch: prompts per forward pass.

    Raises:
        SaeError: when no token is left to measure.
    """
    counted = tally(model, saes, tokens, {"pre": pre}, left_out=left_out, batch=batch)
    return quality_table(counted.values())


def quality_table(counted: Iterable[Counts]) -> QualityTable:
    """One row per SAE; its counts need the group `pre`."""
    return QualityTable.concat([_quality_row(counts) for counts in counted])


def _quality_row(counts: Counts) -> QualityTable:
    sae, whole, at_pre = counts.sae, figures(counts), figures(counts, "pre")
    reasons = [whole.reason] if whole.reason else []
    if at_pre.reason and at_pre.reason != whole.reason:
        reasons.append(f"pre: {at_pre.reason}")
    values: dict[str, Any] = {
        "site": str(sae.site),
        "sae_id": sae.sae_id,
        "d_sae": sae.d_sae,
        "k": float("nan") if sae.k is None else sae.k,
        "l0": whole.l0,
        "fvu": whole.fvu,
        "fvu_pre": at_pre.fvu,
        "ce_base": whole.ce_base,
        "ce_spliced": whole.ce_spliced,
        "ce_zeroed": whole.ce_zeroed,
        "ce_recovered": whole.ce_recovered,
        "ce_recovered_pre": at_pre.ce_recovered,
        "kl": whole.kl,
        "kl_pre": at_pre.kl,
        "dead": float((counts.fires == 0).float().mean()),
        "n_tokens": whole.n_tokens,
        "mismatch": "; ".join(sae.mismatches),
        "reason": "; ".join(reasons),
    }
    return QualityTable({name: [value] for name, value in values.items()})


def fidelity_table(counted: Iterable[Counts]) -> FidelityTable:
    """One row per SAE and group of positions, `all` first."""
    rows = [
        {"site": str(counts.sae.site), "sae_id": counts.sae.sae_id, "role": group}
        | vars(figures(counts, group))
        for counts in counted for group in counts.groups
    ]  # fmt: skip
    return FidelityTable({name: [row[name] for row in rows] for name in FidelityTable.COLUMNS})


def density_table(counted: Iterable[Counts]) -> DensityTable:
    """How many latents of each SAE have a density in each bin of `DENSITY_EDGES`; dead ones apart."""
    columns: dict[str, list[Any]] = {name: [] for name in DensityTable.COLUMNS}
    for counts in counted:
        for (low, high), n_latents in density_histogram(counts.fires.numpy(), counts.n_tokens).items():
            row = (str(counts.sae.site), counts.sae.sae_id, low, high, n_latents)
            for name, value in zip(columns, row, strict=True):
                columns[name].append(value)
    return DensityTable(columns)


def density_histogram(fires: Ints, n_tokens: int) -> dict[tuple[float, float], int]:
    """Bin (low, high] → latents whose density lies in it; (0, 0) holds the dead ones.

    Args:
        fires: tokens on which each latent is active, [latent].
        n_tokens: tokens measured.
    """
    density = np.asarray(fires) / n_tokens
    bins = {(0.0, 0.0): int((density == 0).sum())}
    for low, high in pairwise(DENSITY_EDGES):
        bins[low, high] = int(((density > low) & (density <= high)).sum())
    return bins


def _mean(losses: Floats, where: np.ndarray) -> float:
    return float(losses[where].mean()) if where.any() else float("nan")
