"""Which component's own output loses the task when heads are ablated, and does a later one make up for it?

    TE = belief(ablated run) − belief(A*)                         total effect
    DE_c = belief(A* with only c's output at `pre` as in the ablated run) − belief(A*)
    CE = TE − DE(ablated heads)                                   compensation

1. A* is run as it is and ablated; every head's and MLP's output at the query's `pre` is kept from both. 2. In
A*'s last residual one component's output is replaced by that of the ablated run, all else stays, and the true
final norm and unembedding read the belief: no path through another component counts. 3. Sums are read the
same way, their outputs replaced together; single effects need not add up to them in log-odds. A later
component with DE_c > 0 gives more to the belief than before, or takes less from it. 4. A belief that is sure
already hides a rise, so later components are also read *given the loss*: belief(ablated run) − belief(ablated
run with their outputs as in A*). `reader` puts outputs into the residual entering an earlier block, and the
blocks above read them.
Enter a model, runs and an ablation; leaves a DirectTable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from iclens.errors import EditError
from iclens.models.attention import head_outputs
from iclens.models.forward import record
from iclens.models.load import LanguageModel
from iclens.models.tail import tails_of
from iclens.names import Site
from iclens.patching.effects import Estimates, belief_log_odds, means, normalised_effects, resamples
from iclens.patching.heads.ablate import Ablation, ablated_answers, ablation_edits
from iclens.patching.residual import query_answers, up_to_query
from iclens.patching.runs import Runs, check_tokenizer
from iclens.tables.arrays import Floats
from iclens.tables.edits import Edit
from iclens.tables.redundancy import DirectTable

TOTAL, ABLATED, COMPENSATION = "total", "ablated", "compensation"
LATER_HEADS, LATER_MLPS, LATER = "later heads", "later MLPs", "later"
HEADS_GIVEN, GIVEN = "later heads, given the loss", "later, given the loss"
SUMS = (TOTAL, ABLATED, COMPENSATION, LATER_HEADS, LATER_MLPS, LATER, HEADS_GIVEN, GIVEN)
"""Parts that are no single component, in the table's order."""
_NONE = -1


@dataclass(frozen=True)
class Component:
    """A head or MLP whose output is followed.

    Args:
        part: "ablated head", "later head" or "later MLP".
        layer: its block.
        head: its head, -1 for an MLP.
    """

    part: str
    layer: int
    head: int

    @property
    def name(self) -> str:
        """`L3H1` or `L3.mlp`."""
        return f"L{self.layer}.mlp" if self.head == _NONE else f"L{self.layer}H{self.head}"


@dataclass(frozen=True)
class DirectEffects:
    """Direct effects of every prompt, before they are averaged.

    Args:
        base: log-odds of A*, [prompt belief].
        sums: one of `SUMS` → effect, [prompt belief], nats.
        components: what `singles` are effects of.
        singles: [prompt component belief], nats.
    """

    base: Floats
    sums: dict[str, Floats]
    components: tuple[Component, ...]
    singles: Floats


def direct_effects(
    model: LanguageModel, runs: Runs, ablation: Ablation, *, reader: int | None = None,
    beliefs: Sequence[str] | None = None, seed: int = 0, draws: int = 1000, batch: int = 128,
) -> DirectTable:  # fmt: skip
    """Total effect, compensation, and the direct effect of every later component and of the ablated heads.

    Args:
        model: a whole model.
        runs: give A*, and recipients for the values of a mean or resample.
        ablation: the heads.
        reader: layer whose residual the outputs are put into; by default the last, before the final norm.
        beliefs: which to report; all that the runs read when not given.
        seed: of the bootstrap.
        draws: bootstrap resamples.
        batch: rows per forward pass.

    Raises:
        EditError: for an unknown belief, a head or reader that does not exist, or one that stands at or after
            the reader.
        SiteError: for a layer that the model does not have.
    """
    which = runs.columns(runs.beliefs if beliefs is None else beliefs)
    found = direct_by_prompt(model, runs, ablation, reader=reader, batch=batch)
    weights = resamples(len(found.base), draws, np.random.default_rng(seed))
    effects = np.concatenate(
        [np.stack([found.sums[name] for name in SUMS], axis=1), found.singles], axis=1
    )  # [prompt row belief]
    rows = [*(Component(name, _NONE, _NONE) for name in SUMS), *found.components]
    n, fixed = len(rows), model.n_blocks if reader is None else reader
    tables = []
    for b in which:
        effect = means(effects[:, :, b], weights)
        ratio = ratios(effects[:, :, b], found.sums[ABLATED][:, b], weights)
        tables.append(DirectTable({
            "ablated": [ablation.text] * n, "kind": [ablation.kind] * n, "place": [ablation.place] * n,
            "reader": [fixed] * n, "part": [row.part for row in rows],
            "component": ["" if row.layer == _NONE else row.name for row in rows],
            "layer": [row.layer for row in rows], "head": [row.head for row in rows],
            "n_seen": [runs.n_seen] * n, "belief": [runs.beliefs[b]] * n,
            "base": [found.base[:, b].mean()] * n,
            "effect": effect.value, "ci_low": effect.low, "ci_high": effect.high,
            "ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high,
            "n_prompts": [len(found.base)] * n, "reason": ratio.reason,
        }))  # fmt: skip
    return DirectTable.concat(tables)


def direct_by_prompt(
    model: LanguageModel, runs: Runs, ablation: Ablation, *, reader: int | None = None, batch: int = 128
) -> DirectEffects:
    """The effects that `direct_effects` averages, prompt by prompt.

    Args:
        model: as for `direct_effects`.
        runs: likewise.
        ablation: likewise.
        reader: likewise.
        batch: likewise.

    Raises:
        EditError, SiteError: likewise.
    """
    check_tokenizer(model.tokenizer, runs)
    chosen = ablation.by_layer(model)
    first, last, stop = min(chosen), max(chosen), model.n_blocks if reader is None else reader
    if not last < stop <= model.n_blocks:
        raise EditError(
            f"direct effects of {ablation.text} at layer {stop}", f"the model has {model.n_blocks} blocks",
            f"Read at one of {last + 1} to {model.n_blocks}.",
        )  # fmt: skip
    edits = ablation_edits(model, runs, ablation, batch)
    components, change = _changes(model, runs, edits, range(first, stop), batch)
    masks = {
        ABLATED: [c.part == "ablated head" for c in components],
        LATER_HEADS: [c.part == "later head" for c in components],
        LATER_MLPS: [c.part == "later MLP" for c in components],
        LATER: [c.part != "ablated head" for c in components],
    }
    given = [[True] * len(components), *([not c for c in masks[part]] for part in (LATER_HEADS, LATER))]
    together = torch.tensor([*masks.values(), *given], device=change.device).to(change)
    read = []
    for prompt, tail in enumerate(tails_of(model, up_to_query(runs.target), runs.words)):
        delta = torch.cat([torch.zeros_like(change[prompt, :1]), together @ change[prompt], change[prompt]])
        probs = tail.run(tail.resid_pre(stop) + delta.to(tail.resid_pre(stop)), stop)
        read.append(belief_log_odds(probs, runs, np.full(len(delta), prompt)))
    held = np.stack(read)
    effects = held[:, 1:] - held[:, :1]
    base = belief_log_odds(query_answers(model, runs.target, runs.words), runs, np.arange(len(held)))
    after = ablated_answers(model, runs.target, edits, runs.words, batch)
    sums = {name: effects[:, i] for i, name in enumerate(masks)}
    sums[TOTAL] = belief_log_odds(after, runs, np.arange(len(held))) - base
    sums[COMPENSATION] = sums[TOTAL] - sums[ABLATED]
    everything, *without = (effects[:, len(masks) + i] for i in range(len(given)))
    sums |= {name: everything - part for name, part in zip((HEADS_GIVEN, GIVEN), without, strict=True)}
    return DirectEffects(base, sums, components, effects[:, len(together) :])


def ratios(effect: Floats, direct: Floats, weights: Floats) -> Estimates:
    """effect / DE, ratios of means [column], guarded as a normalised effect is.

    Args:
        effect: [prompt column], nats.
        direct: direct effect of the ablated heads, [prompt], nats.
        weights: bootstrap weights, [draw prompt].
    """
    found = normalised_effects(effect, np.broadcast_to(direct[:, None], effect.shape), weights)
    said = tuple(
        why.replace("A* and B differ by", "the ablated heads' direct effect is").replace(
            "A* − B", "their direct effect"
        )
        for why in found.reason
    )
    return Estimates(found.value, found.low, found.high, said)


def _changes(
    model: LanguageModel, runs: Runs, edits: Sequence[Edit], layers: range, batch: int
) -> tuple[tuple[Component, ...], Tensor]:
    """Components of `layers`, and how the ablation changes what each writes at `pre` of A*.

    Heads of the first layer that are not ablated read the same as before and are left out.

    Returns:
        The components, and ablated − base as [prompt component d_model].
    """
    ablated = {(edit.site.layer, int(head)) for edit in edits for head in np.asarray(edit.heads)}
    tokens = up_to_query(runs.target)
    here = np.array([tokens.shape[1] - 1])
    sites = [Site(layer, hook) for layer in layers for hook in ("z", "mlp_out")]
    before = record(model, tokens, sites, here, batch=batch)
    after = record(model, tokens, sites, here, edits=edits, batch=batch)
    components, parts = [], []
    for layer in layers:
        z, mlp = (
            after[site][:, 0] - before[site][:, 0] for site in (Site(layer, "z"), Site(layer, "mlp_out"))
        )
        kept = [head for head in range(model.n_heads) if layer > layers.start or (layer, head) in ablated]
        written = head_outputs(model, layer, z)
        parts += [written[:, kept], torch.as_tensor(mlp[:, None], device=written.device)]
        for head in kept:
            part = "ablated head" if (layer, head) in ablated else "later head"
            components.append(Component(part, layer, head))
        components.append(Component("later MLP", layer, _NONE))
    return tuple(components), torch.cat(parts, dim=1)
