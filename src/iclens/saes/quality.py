"""SAE quality: L0, FVU, KL and cross-entropy of the model with the reconstruction spliced in, and density.

1. Prompts are run once, and once more from each SAE's block with its site reconstructed, and set to zero.
2. Counts are kept per token (`Counts`). 3. Groups of positions are summarised from them (`figures`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iclens.core import PADDING, SaeError, Site
from iclens.model.load import LanguageModel, as_numpy
from iclens.model.run import Edit, Packed, attached, packed, rows_at, run_blocks, unembed
from iclens.prompts.render import bos_id
from iclens.saes.load import Sae
from iclens.schemas import DensityTable, FidelityTable, QualityTable
from iclens.table import Floats, Ints

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
class LeftOut:
    """Tokens that are neither trained on nor measured nor changed; padding always is one."""

    ids: tuple[int, ...] = ()  # of tokens, wherever they stand
    positions: tuple[int, ...] = ()  # of every context, whatever stands there

    @classmethod
    def of(cls, model: LanguageModel, saes: Iterable[Sae] = ()) -> LeftOut:
        """BOS, and what the SAEs' own metadata say that they were not trained on."""
        bos, positions = bos_id(model.tokenizer), set()
        ids = set() if bos is None else {bos}
        for sae in saes:
            declared = sae.network.cfg.metadata
            special = declared.get("exclude_special_tokens")
            ids.update(model.tokenizer.all_special_ids if special is True else special or ())
            positions.update(declared.get("exclude_positions") or ())
        return cls(tuple(sorted(ids)), tuple(sorted(positions)))

    def kept(self, tokens: Ints) -> Bools:
        """Which of the tokens [context column] are not left out."""
        there = tokens != PADDING
        return there & ~np.isin(tokens, self.ids) & ~np.isin(there.cumsum(axis=1) - 1, self.positions)


@dataclass(frozen=True)
class Counts:
    """One SAE over all prompts, at the positions that are measured in any of them."""

    sae: Sae  # the SAE
    groups: Mapping[str, Bools]  # name → which of these positions belong to it, [pos]
    shares: Mapping[str, ErrorShare]  # name → its share of error
    fires: Tensor  # tokens on which each latent is active, [latent]
    active: Floats  # active latents, [prompt pos]; NaN where a token is left out, as in the next five
    length: Floats  # ‖x‖ of what the SAE reads, [prompt pos]
    base: Floats  # −log P(next token) of the model as it is, [prompt pos]; NaN where unknown, too
    spliced: Floats  # the same with the site replaced by its reconstruction
    zeroed: Floats  # the same with the site set to zero
    kl: Floats  # KL(model ‖ model with the reconstruction) of the prediction, [prompt pos]

    @property
    def n_tokens(self) -> int:
        """Tokens measured."""
        return int((~np.isnan(self.active)).sum())


class _Tally:
    """What is counted for one SAE while batches go by."""

    def __init__(self, sae: Sae, groups: Mapping[str, Bools]) -> None:
        self.sae, self.groups = sae, groups
        self.shares = {name: ErrorShare() for name in groups}
        self.fires = torch.zeros(sae.d_sae, dtype=torch.int64)
        self.by_token: dict[str, list[Floats]] = {
            key: [] for key in ("active", "length", "spliced", "zeroed", "kl")
        }

    def reconstruct(self, x: Tensor, y: Tensor, measured: Tensor) -> Tensor:
        """Count activations x of the site and y of its output [row pos d] where `measured` [row pos].

        Gives y, reconstructed there, [row pos d].
        """
        parts, active = [], []
        for rows in x[measured].split(_ENCODED_ROWS):
            latents = self.sae.encode(rows)
            parts.append(self.sae.reconstruct(rows, latents))
            active.append((latents > 0).sum(dim=1))
            self.fires += (latents > 0).sum(dim=0).cpu()
        rebuilt = torch.cat(parts)
        y_hat = y.to(torch.promote_types(y.dtype, rebuilt.dtype), copy=True)
        y_hat[measured] = rebuilt.to(y_hat)
        there = measured.cpu().numpy()
        counts = np.full(there.shape, np.nan)
        counts[there] = as_numpy(torch.cat(active))
        self.by_token["active"].append(counts)
        self.by_token["length"].append(np.where(there, as_numpy(x.float().norm(dim=2)), np.nan))
        before, after = as_numpy(y), as_numpy(y_hat)
        for what, values, remedy in (
            ("the model's activations", before, "Load the model with --dtype float32."),
            ("its reconstructions", after, "Use an SAE that was made for this model and site."),
        ):
            if not np.isfinite(values[there]).all():
                raise SaeError(f"SAE quality at {self.sae.site.short}", f"{what} are not finite", remedy)
        for name, group in self.groups.items():
            self.shares[name].add(before[there & group], after[there & group])
        return y_hat

    def counts(self, base: Floats) -> Counts:
        """Everything counted, beside the model's own losses [prompt pos]."""
        whole = {
            key: np.concatenate(batches) if batches else np.full_like(base, np.nan)
            for key, batches in self.by_token.items()
        }
        return Counts(self.sae, self.groups, self.shares, self.fires, base=base, **whole)


@torch.no_grad()
def tally(
    model: LanguageModel, saes: Mapping[Site, Sae], tokens: Ints, groups: Mapping[str, Sequence[int] | Ints],
    *, left_out: LeftOut | None = None, batch: int = 64,
) -> dict[Site, Counts]:  # fmt: skip
    """Count every SAE over prompts [prompt column] that none was trained on, with `PADDING` anywhere.

    `groups` maps a name to columns that are summarised together; `all` is added. `left_out` is by default
    `LeftOut.of` the model and the SAEs. Losses need all blocks of the model.
    """
    left_out = LeftOut.of(model, saes.values()) if left_out is None else left_out
    measured = left_out.kept(tokens)
    where = np.flatnonzero(measured.any(axis=0))
    if not len(where):
        raise SaeError(
            "SAE quality", f"no token of {len(tokens)} prompts is left to measure",
            "Give prompts with tokens besides BOS and padding, and exclude fewer positions.",
        )  # fmt: skip
    masks = {ALL: np.ones(len(where), dtype=bool)} | {
        name: np.isin(where, np.asarray(places, dtype=int)) for name, places in groups.items()
    }
    tallies = {site: _Tally(sae, masks) for site, sae in saes.items()}
    following = _following(tokens)
    known = measured & (following != PADDING) & ~np.isin(following, left_out.ids)
    base: list[Floats] = []
    for start in range(0, len(tokens), batch):
        part = slice(start, start + batch)
        base.append(_count_batch(model, tallies, tokens[part], where, measured[part], known[part]))
    return {site: counter.counts(np.concatenate(base)) for site, counter in tallies.items()}


def _following(tokens: Ints) -> Ints:
    """The token behind each one, `PADDING` where there is none, [prompt column]."""
    out = np.full(tokens.shape, PADDING, dtype=tokens.dtype)
    following = np.full(len(tokens), PADDING, dtype=tokens.dtype)
    for column in reversed(range(tokens.shape[1])):
        out[:, column] = following
        following = np.where(tokens[:, column] == PADDING, following, tokens[:, column])
    return out


def _count_batch(
    model: LanguageModel, tallies: Mapping[Site, _Tally], tokens: Ints, where: Ints, measured: Bools,
    known: Bools,
) -> Floats:  # fmt: skip
    """Count one batch of prompts for every SAE; the model's own losses at the positions `where`, [row pos].

    `where` are positions that are measured in any prompt, `measured` which tokens are, and `known` after
    which tokens the next one is there and is not left out, both [row pos].
    """
    rows = packed(tokens)
    at = torch.as_tensor(rows.at(where), device=model.device())
    following = torch.as_tensor(np.maximum(_following(tokens)[:, where], 0), device=model.device())
    chosen = torch.as_tensor(measured[:, where], device=model.device())
    outputs = {site: counter.sae.output for site, counter in tallies.items()}
    entries = {site: Site(output.layer, "resid_pre") for site, output in outputs.items()}
    recorded = [*tallies, *outputs.values(), *entries.values()]
    activations, final = _run(model, model.embed(rows.ids), 0, recorded)
    known = known[:, where]
    base, _ = _predictions(model, following, known, rows_at(final, at), None)
    for site, counter in tallies.items():
        output = outputs[site]
        y = rows_at(activations[output], at)
        y_hat = counter.reconstruct(rows_at(activations[site], at), y, chosen)
        if not model.whole:
            continue
        for name, value in (("spliced", y_hat), ("zeroed", y.masked_fill(chosen[..., None], 0))):
            edit = Edit(output, "replace", where, as_numpy(value))
            _, changed = _run(model, activations[entries[site]], output.layer, (), (edit,), rows)
            reference = rows_at(final, at) if name == "spliced" else None
            losses, divergence = _predictions(model, following, known, rows_at(changed, at), reference)
            counter.by_token[name].append(losses)
            if reference is not None:
                counter.by_token["kl"].append(divergence)
    return base


def _run(
    model: LanguageModel, resid: Tensor, start: int, sites: Sequence[Site], edits: Sequence[Edit] = (),
    rows: Packed | None = None,
) -> tuple[dict[Site, Tensor], Tensor]:  # fmt: skip
    """Run from resid_pre of block `start` [row pos d_model]; recorded sites and the last resid_post.

    Every position is recorded; edits are made in the columns of `rows`.
    """
    where = np.arange(resid.shape[1]) if sites else np.array([0])
    with attached(model, sites, where, edits, rows if edits else None) as recording:
        final = run_blocks(model.network, resid, start, model.n_blocks)
    return recording.values, final


def _predictions(
    model: LanguageModel, following: Tensor, known: Bools, final: Tensor, reference: Tensor | None
) -> tuple[Floats, Floats]:
    """−log P(`following`) [row pos], and KL(reference ‖ final); NaN where not `known` [row pos].

    `final` and `reference` are last resid_posts [row pos d_model], the latter of the model as it is: no KL
    without one. Both results are [row pos].
    """
    losses, divergence = (np.full(known.shape, np.nan) for _ in range(2))
    asked = np.flatnonzero(known.any(axis=0))
    if not model.whole or not len(asked):
        return losses, divergence
    vocabulary = model.adapter.unembedding.shape[0]
    step = max(1, _LOGITS // (vocabulary * len(asked)))
    for start in range(0, len(known), step):
        part = slice(start, start + step)
        log_p = unembed(model.network, final[part, asked]).float().log_softmax(dim=-1)
        losses[part, asked] = as_numpy(-log_p.gather(-1, following[part, asked, None])[..., 0])
        if reference is not None:
            log_q = unembed(model.network, reference[part, asked]).float().log_softmax(dim=-1)
            divergence[part, asked] = as_numpy((log_q.exp() * (log_q - log_p)).sum(dim=-1))
    losses[~known] = divergence[~known] = np.nan
    return losses, divergence


DENSITY_EDGES = (0.0, *(float(10.0 ** (half / 2)) for half in range(-12, 1)))
"""Ends of the density bins: two per factor of ten, down to one token in a million."""


def fvu(x: Floats, x_hat: Floats) -> float:
    """Fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − x̄‖², of activations and reconstructions [row d_in].

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
    """What one SAE does at one group of positions; NaN where undefined, and why."""

    l0: float
    fvu: float
    kl: float  # from the model to the model with the reconstruction, nats
    # ce_base, ce_spliced, ce_zeroed: next-token cross-entropy, nats
    ce_base: float
    ce_spliced: float
    ce_zeroed: float
    ce_recovered: float
    n_tokens: int
    reason: str  # why a figure is NaN; empty when none is


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
    """L0, FVU, dead latents, KL and CE recovered of every SAE, over prompts as `tally` takes them.

    `pre` are positions of role `pre`, where the answer is predicted; empty for text.
    """
    counted = tally(model, saes, tokens, {"pre": pre}, left_out=left_out, batch=batch)
    return quality_table(counted.values())


def quality_table(counted: Iterable[Counts]) -> QualityTable:
    """One row per SAE; its counts need the group `pre`."""
    return QualityTable.from_rows(_quality_row(counts) for counts in counted)


def _quality_row(counts: Counts) -> dict[str, Any]:
    sae, whole, at_pre = counts.sae, figures(counts), figures(counts, "pre")
    reasons = [whole.reason] if whole.reason else []
    if at_pre.reason and at_pre.reason != whole.reason:
        reasons.append(f"pre: {at_pre.reason}")
    return vars(whole) | {
        "site": str(sae.site), "sae_id": sae.sae_id, "d_sae": sae.d_sae,
        "k": float("nan") if sae.k is None else sae.k, "fvu_pre": at_pre.fvu,
        "ce_recovered_pre": at_pre.ce_recovered, "kl_pre": at_pre.kl,
        "dead": float((counts.fires == 0).float().mean()), "mismatch": "; ".join(sae.mismatches),
        "reason": "; ".join(reasons),
    }  # fmt: skip


def fidelity_table(counted: Iterable[Counts]) -> FidelityTable:
    """One row per SAE and group of positions, `all` first."""
    return FidelityTable.from_rows(
        {"site": str(counts.sae.site), "sae_id": counts.sae.sae_id, "role": group}
        | vars(figures(counts, group))
        for counts in counted for group in counts.groups
    )  # fmt: skip


def density_table(counted: Iterable[Counts]) -> DensityTable:
    """How many latents of each SAE have a density in each bin of `DENSITY_EDGES`; dead ones apart."""
    return DensityTable.from_rows(
        {"site": str(counts.sae.site), "sae_id": counts.sae.sae_id, "low": low, "high": high, "n_latents": n}
        for counts in counted
        for (low, high), n in density_histogram(counts.fires.numpy(), counts.n_tokens).items()
    )


def density_histogram(fires: Ints, n_tokens: int) -> dict[tuple[float, float], int]:
    """Bin (low, high] → latents whose density lies in it; (0, 0) holds the dead ones.

    `fires` are the tokens, of `n_tokens`, on which each latent is active, [latent].
    """
    density = np.asarray(fires) / n_tokens
    bins = {(0.0, 0.0): int((density == 0).sum())}
    for low, high in pairwise(DENSITY_EDGES):
        bins[low, high] = int(((density > low) & (density <= high)).sum())
    return bins


def _mean(losses: Floats, where: np.ndarray) -> float:
    return float(losses[where].mean()) if where.any() else float("nan")
