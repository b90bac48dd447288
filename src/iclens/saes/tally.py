"""Counting over one pass of prompts: what SAEs leave unexplained, and what their reconstructions cost.

1. The model runs once on each batch, for all SAEs. 2. Each SAE encodes and reconstructs its site. 3. The
blocks above run again with the site replaced by the reconstruction, and set to zero. 4. Everything is kept
per position, so that any group of positions (a role, `pre`, all) can be summarised.

BOS and padding are tokens, wherever they stand: they are neither measured nor changed, and no prediction of
them counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from iclens.tasks.rendering import bos_id

Bools = NDArray[np.bool_]

PADDING = -1
"""In place of a token id: nothing stands there. It fills rows up at their end, where no token sees it."""
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
    """Tokens that are neither trained on nor measured nor changed; padding always is one.

    Args:
        ids: of tokens, wherever they stand.
        positions: of every context, whatever stands there.
    """

    ids: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()

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
        """Which of the tokens [context pos] are not left out."""
        there = (tokens != PADDING) & ~np.isin(tokens, self.ids)
        return there & ~np.isin(np.arange(tokens.shape[1]), self.positions)


@dataclass(frozen=True)
class Counts:
    """One SAE over all prompts, at the positions that are measured in any of them.

    Args:
        sae: the SAE.
        groups: name → which of these positions belong to it, [pos].
        shares: name → its share of error.
        fires: tokens on which each latent is active, [latent].
        active: active latents, [prompt pos]; NaN where a token is left out, as in the next five.
        length: ‖x‖ of what the SAE reads, [prompt pos].
        base: −log P(next token) of the model as it is, [prompt pos]; NaN where unknown, too.
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
        return int((~np.isnan(self.active)).sum())


class _Tally:
    """What is counted for one SAE while batches go by."""

    def __init__(self, sae: Sae, groups: Mapping[str, Bools]) -> None:
        self.sae, self.groups = sae, groups
        self.shares = {name: ErrorShare() for name in groups}
        self.fires = torch.zeros(sae.d_sae, dtype=torch.int64)
        self.seen: dict[str, list[Floats]] = {
            key: [] for key in ("active", "length", "spliced", "zeroed", "kl")
        }

    def reconstruct(self, x: Tensor, y: Tensor, measured: Tensor) -> Tensor:
        """Count activations x of the site and y of its output [row pos d] where `measured` [row pos].

        Returns:
            y, reconstructed there, [row pos d].
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
        self.seen["active"].append(counts)
        self.seen["length"].append(np.where(there, as_numpy(x.float().norm(dim=2)), np.nan))
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
        """Everything counted."""
        whole = {
            key: np.concatenate(found) if found else np.full_like(base, np.nan)
            for key, found in self.seen.items()
        }
        return Counts(self.sae, self.groups, self.shares, self.fires, base=base, **whole)


@torch.no_grad()
def tally(
    model: LanguageModel, saes: Mapping[Site, Sae], tokens: Ints, groups: Mapping[str, Sequence[int] | Ints],
    *, left_out: LeftOut | None = None, batch: int = 64,
) -> dict[Site, Counts]:  # fmt: skip
    """Count every SAE over the prompts.

    Args:
        model: the model; losses need all of its blocks.
        saes: site → SAE.
        tokens: prompts that no SAE was trained on, [prompt pos], filled up with `PADDING`.
        groups: name → positions to be summarised together; `all` is added.
        left_out: tokens neither measured nor changed; by default `LeftOut.of` the model and the SAEs.
        batch: prompts per forward pass.

    Raises:
        SaeError: when no token is left to measure.
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
    known = np.full(tokens.shape, False)
    known[:, :-1] = (tokens[:, 1:] != PADDING) & ~np.isin(tokens[:, 1:], left_out.ids) & measured[:, :-1]
    base: list[Floats] = []
    for start in range(0, len(tokens), batch):
        part = slice(start, start + batch)
        base.append(_count_batch(model, tallies, tokens[part], where, measured[part], known[part]))
    return {site: counter.counts(np.concatenate(base)) for site, counter in tallies.items()}


def _count_batch(
    model: LanguageModel,
    tallies: Mapping[Site, _Tally],
    tokens: Ints,
    where: Ints,
    measured: Bools,
    known: Bools,
) -> Floats:
    """Count one batch of prompts for every SAE.

    Args:
        model: the model.
        tallies: of each site.
        tokens: [row pos].
        where: positions that are measured in any prompt.
        measured: which tokens are measured, [row pos].
        known: after which tokens the next one is there and is not left out, [row pos].

    Returns:
        The model's own losses at the positions `where`, [row pos].
    """
    rows = torch.as_tensor(np.maximum(tokens, 0), device=model.device())
    chosen = torch.as_tensor(measured[:, where], device=model.device())
    outputs = {site: counter.sae.output for site, counter in tallies.items()}
    entries = {site: Site(output.layer, "resid_pre") for site, output in outputs.items()}
    recorded = [*tallies, *outputs.values(), *entries.values()]
    seen, final = _run(model, model.embed(as_numpy(rows)), 0, recorded, ())
    base, _ = _predictions(model, rows, where, known, final, None)
    for site, counter in tallies.items():
        output = outputs[site]
        y = seen[output][:, where]
        y_hat = counter.reconstruct(seen[site][:, where], y, chosen)
        if not model.whole:
            continue
        for name, value in (("spliced", y_hat), ("zeroed", y.masked_fill(chosen[..., None], 0))):
            edit = Edit(output, "replace", where, as_numpy(value))
            _, changed = _run(model, seen[entries[site]], output.layer, (), (edit,))
            reference = final if name == "spliced" else None
            losses, divergence = _predictions(model, rows, where, known, changed, reference)
            counter.seen[name].append(losses)
            if reference is not None:
                counter.seen["kl"].append(divergence)
    return base


def _run(
    model: LanguageModel, resid: Tensor, start: int, sites: Sequence[Site], edits: Sequence[Edit]
) -> tuple[dict[Site, Tensor], Tensor]:
    """Run from resid_pre of block `start` [row pos d_model]; recorded sites and the last resid_post."""
    with attached(model, sites, np.arange(resid.shape[1]), edits) as seen:
        final = run_blocks(model.network, resid, start, model.n_blocks)
    return seen.values, final


def _predictions(
    model: LanguageModel, rows: Tensor, where: Ints, known: Bools, final: Tensor, reference: Tensor | None
) -> tuple[Floats, Floats]:
    """−log P(next token) from `final` at positions `where`, and KL(reference ‖ final); NaN where unknown.

    Args:
        model: gives the unembedding.
        rows: tokens, [row pos].
        where: measured positions, [kept].
        known: whether the next token counts, [row pos].
        final: the last resid_post, [row pos d_model].
        reference: the last resid_post of the model as it is; no KL without one.

    Returns:
        Two arrays [row kept].
    """
    losses, divergence = (np.full((len(rows), len(where)), np.nan) for _ in range(2))
    predicting = where[where < rows.shape[1] - 1]
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
    unknown = ~known[:, where]
    losses[unknown] = divergence[unknown] = np.nan
    return losses, divergence
