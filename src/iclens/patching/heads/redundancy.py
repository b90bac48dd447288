"""Do heads stand in for one another, and how: does the task come later, or do later heads do more?

    redundancy index   joint effect − Σ effects of the set's entries ablated alone, nats of log-odds in A*
    L*(set)            first layer whose residual at `pre`, from a donor with the set ablated, carries the
                       task into an un-ablated recipient: NE = mean(patched − B) / mean(A* − B) ≥ `WORKS`

An index below 0: the entries are redundant, each hides the other's loss. Above 0: they need each other, as in
a chain, where the loss of one already takes all that the context is worth; `reason` says where the singles
sum to more than that. The scale is log-odds, and so bounded where these reach their floor.
*Delay* is not *backup*. Delay: L* moves later and no later component gives more than before; what the set did
is done again further up, whether or not the set did it. Backup: later heads give more once the set is gone,
in A* or given the loss, where a belief that was sure already no longer hides it.

    delay      L* moves later, later heads and MLPs together do not rise
    backup     later heads together rise, L* does not move
    both       L* moves later and later heads rise
    neither    all else; undecided where a rise cannot be set against a loss

Enter a model, runs and an ablation; leaves a RedundancyTable, an `Arrival`, a `Verdict`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iclens.errors import EditError
from iclens.models.load import LanguageModel
from iclens.patching.effects import (
    LEAST_SPAN,
    LEVEL,
    Estimates,
    belief_log_odds,
    means,
    normalised_effects,
    resamples,
)  # fmt: skip
from iclens.patching.heads.ablate import WHOLE_LAYER, Ablation, ablated_answers, ablation_edits
from iclens.patching.heads.direct import (
    ABLATED,
    GIVEN,
    HEADS_GIVEN,
    LATER,
    LATER_HEADS,
    DirectEffects,
    direct_by_prompt,
    ratios,
)  # fmt: skip
from iclens.patching.residual import patch_query, query_answers
from iclens.patching.runs import Runs, check_tokenizer
from iclens.tables.answers import AnswerProbs
from iclens.tables.arrays import Floats, Ints
from iclens.tables.edits import Edit
from iclens.tables.redundancy import RedundancyTable

WORKS = 0.5
"""NE from which a layer carries the task: more of it is there than is missing."""
BACKUP_SHARE = 0.2
"""Share of the lost direct effect that later heads must give back to be a backup. Any large edit moves later
heads a little, and with enough prompts any rise has an interval above 0; a fifth is a part of the loss that a
reader of the answers could see, and far below the half that would keep a layer working."""
LEAST_RISE = BACKUP_SHARE * LEAST_SPAN
"""Rise in nats below which nothing is given back, whatever was lost: that share of the least loss for which
shares are defined."""
NEVER = np.inf
"""Stands for L* where no layer works, in a bootstrap draw."""
SATURATED = "the singles sum to more than the context is worth, which the joint effect may not reach"
DELAY, BACKUP, BOTH, NEITHER, UNDECIDED = "delay", "backup", "both", "neither", "undecided"


@dataclass(frozen=True)
class Arrival:
    """A residual sweep at `pre`, prompt by prompt, on one belief.

    Args:
        layers: blocks whose resid_pre was replaced, n_blocks for the last resid_post, ascending [layer].
        effect: patched − B, log-odds in nats, [prompt layer].
        span: A* − B, un-ablated, nats [prompt].
        own: P(f(x_B)) of the patched recipient, [prompt layer].
        copy: P(f(x_A)) of it, [prompt layer].
    """

    layers: Ints
    effect: Floats
    span: Floats
    own: Floats
    copy: Floats

    def normalised(self, weights: Floats) -> Estimates:
        """NE by layer, with intervals under bootstrap weights [draw prompt]."""
        return normalised_effects(
            self.effect, np.broadcast_to(self.span[:, None], self.effect.shape), weights
        )


@dataclass(frozen=True)
class FirstLayer:
    """L*, the first layer that works.

    Args:
        value: over all prompts; NaN where no layer works.
        low: lower end of its 95 % interval; NaN where no layer works there.
        high: upper end, likewise.
        draws: L* of every bootstrap draw, `NEVER` where none works, [draw].
        reason: why it is NaN; empty otherwise.
    """

    value: float
    low: float
    high: float
    draws: Floats
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What an ablation brought out, and what that rests on.

    Args:
        name: `DELAY`, `BACKUP`, `BOTH`, `NEITHER` or `UNDECIDED`.
        reason: what keeps it from being plainer; may be empty.
    """

    name: str
    reason: str


def redundancy_index(
    model: LanguageModel, runs: Runs, ablation: Ablation, *, beliefs: Sequence[str] | None = None,
    seed: int = 0, draws: int = 1000, batch: int = 128,
) -> RedundancyTable:  # fmt: skip
    """Joint effect of a set on A*'s beliefs minus the sum of its entries' own effects.

    Args:
        model: a whole model.
        runs: give A*, and recipients for the values of a mean or resample.
        ablation: the set; its entries, heads or whole layers, are also ablated one at a time.
        beliefs: which to report; all that the runs read when not given.
        seed: of the bootstrap.
        draws: bootstrap resamples.
        batch: rows per forward pass.

    Returns:
        A row per belief.

    Raises:
        EditError: for an unknown belief or head, a head beside its whole layer, or recipients of
            another length.
        SiteError: for a layer that the model does not have.
    """
    check_tokenizer(model.tokenizer, runs)
    which = runs.columns(runs.beliefs if beliefs is None else beliefs)
    base, bottom = (
        _log_odds(query_answers(model, prompts, runs.words), runs)
        for prompts in (runs.target, runs.recipient)
    )

    def effect(some: Ablation) -> Floats:
        edits = ablation_edits(model, runs, some, batch)
        return (_log_odds(ablated_answers(model, runs.target, edits, runs.words, batch), runs) - base)[
            :, which
        ]

    entries = tuple(dict.fromkeys(ablation.heads))
    whole = {layer for layer, head in entries if head == WHOLE_LAYER}
    twice = [layer for layer, head in entries if head != WHOLE_LAYER and layer in whole]
    if twice:
        raise EditError(
            f"redundancy of '{ablation.text}'", f"layer {twice[0]} stands there whole and in part",
            "Name some of its heads, or the layer alone.",
        )  # fmt: skip
    joint = effect(ablation)
    singles = np.sum([effect(ablation.of((entry,))) for entry in entries], axis=0)
    weights, n = resamples(len(base), draws, np.random.default_rng(seed)), len(which)
    found = [means(values, weights) for values in (joint, singles, joint - singles)]
    span = (base - bottom)[:, which].mean(axis=0)
    columns = {
        f"{name}{end}": values
        for name, part in zip(("joint", "singles", "index"), found, strict=True)
        for end, values in (("", part.value), ("_low", part.low), ("_high", part.high))
    }
    return RedundancyTable({
        "ablated": [ablation.text] * n, "kind": [ablation.kind] * n, "place": [ablation.place] * n,
        "n_units": [len(entries)] * n, "n_seen": [runs.n_seen] * n,
        "belief": [runs.beliefs[b] for b in which],
        "base": base[:, which].mean(axis=0), **columns, "span": span, "n_prompts": [len(base)] * n,
        "reason": [
            why or (SATURATED if abs(single) > abs(whole) else "")
            for why, single, whole in zip(found[2].reason, found[1].value, span, strict=True)
        ],
    })  # fmt: skip


def arrival(
    model: LanguageModel, runs: Runs, belief: str, donor_edits: Sequence[Edit] = (),
    *, layers: Sequence[int] | None = None, batch: int = 128,
) -> Arrival:  # fmt: skip
    """A residual sweep at `pre` from a donor under edits into the un-ablated recipient.

    Args:
        model: a whole model.
        runs: donor, recipient and A*.
        belief: which, of those that the runs read.
        donor_edits: applied to the donor's run alone, as `heads.ablation_edits` makes them.
        layers: ascending; all by default.
        batch: rows per forward pass.

    Raises:
        EditError: for an unknown belief or layer, or an edit that did not fire.
    """
    check_tokenizer(model.tokenizer, runs)
    (b,) = runs.columns([belief])
    where = np.arange(model.n_blocks + 1) if layers is None else np.array(layers)
    patched, _ = patch_query(model, runs, where.tolist(), donor_edits, batch)
    bottom, top = (
        _log_odds(query_answers(model, prompts, runs.words), runs)[:, b]
        for prompts in (runs.recipient, runs.target)
    )
    return Arrival(
        where,
        np.stack([_log_odds(probs, runs)[:, b] for probs in patched], axis=1) - bottom[:, None],
        top - bottom,
        np.stack([probs.of(runs.own) for probs in patched], axis=1),
        np.stack([probs.of(runs.copied) for probs in patched], axis=1),
    )


def first_layer(found: Arrival, weights: Floats) -> FirstLayer:
    """L* of a sweep, with the interval of its first crossing over bootstrap draws.

    Args:
        found: the sweep.
        weights: bootstrap weights, [draw prompt].
    """
    estimates = found.normalised(weights)
    if estimates.reason[0]:
        none = np.full(len(weights), np.nan)
        return FirstLayer(np.nan, np.nan, np.nan, none, estimates.reason[0])
    drawn = _first((weights @ found.effect) / (weights @ found.span)[:, None], found.layers)
    value = float(_first(estimates.value[None], found.layers)[0])
    low, high = _ends(drawn)
    reason = "" if np.isfinite(value) else "no layer works"
    finite = [end if np.isfinite(end) else np.nan for end in (value, low, high)]
    return FirstLayer(finite[0], finite[1], finite[2], drawn, reason)


def judge(
    model: LanguageModel, runs: Runs, ablation: Ablation, *, belief: str, reader: int | None = None,
    seed: int = 0, draws: int = 1000, batch: int = 128,
) -> Verdict:  # fmt: skip
    """Delay, backup, both or neither: an ablated set against the intact model.

    Args:
        model: a whole model.
        runs: donor, recipient and A*.
        ablation: the set.
        belief: which, of those that the runs read.
        reader: layer whose residual direct effects are put into, as for `direct.direct_effects`.
        seed: of the bootstrap.
        draws: bootstrap resamples.
        batch: rows per forward pass.

    Raises:
        EditError, SiteError: as in `direct.direct_effects` and `arrival`.
    """
    weights = resamples(runs.donor.n_prompts, draws, np.random.default_rng(seed))
    edits = ablation_edits(model, runs, ablation, batch)
    intact, ablated = (
        first_layer(arrival(model, runs, belief, some, batch=batch), weights) for some in ((), edits)
    )
    effects = direct_by_prompt(model, runs, ablation, reader=reader, batch=batch)
    return verdict(intact, ablated, effects, runs.columns([belief])[0], weights)


def verdict(
    intact: FirstLayer, ablated: FirstLayer, effects: DirectEffects, column: int, weights: Floats
) -> Verdict:
    """The verdict from the two sweeps and the direct effects; all three share their bootstrap draws.

    Args:
        intact: L* without an ablation.
        ablated: L* with it.
        effects: its direct effects.
        column: of the belief, along its axis.
        weights: bootstrap weights, [draw prompt].
    """
    heads, everything = (
        _rises([effects.sums[part][:, column] for part in sides], effects.sums[ABLATED][:, column], weights)
        for sides in ((LATER_HEADS, HEADS_GIVEN), (LATER, GIVEN))
    )
    moved, said = _moved(intact, ablated)
    if heads is None:
        return Verdict(UNDECIDED, "later heads rise, but the ablated heads' own direct effect is too small")
    if heads:
        return Verdict(BOTH if moved else BACKUP, said)
    if not moved:
        return Verdict(NEITHER, said)
    if everything is None:
        return Verdict(UNDECIDED, "later MLPs rise, but the ablated heads' own direct effect is too small")
    if everything:
        return Verdict(NEITHER, "L* moves later, and later MLPs rise where later heads do not")
    return Verdict(DELAY, said)


def _rises(sides: Sequence[Floats], direct: Floats, weights: Floats) -> bool | None:
    """Whether later components give back enough of what was lost; None where the loss is not defined.

    Args:
        sides: their joint direct effect, in A* and given the loss, [prompt] each, nats; either may show it.
        direct: that of the ablated heads, [prompt], nats.
        weights: [draw prompt].
    """
    rise = means(np.stack(sides, axis=1), weights)
    sure = (rise.low > 0) & (rise.value >= LEAST_RISE)
    if not sure.any():
        return False
    ratio = ratios(np.stack(sides, axis=1), direct, weights)
    return None if ratio.reason[0] else bool((sure & (ratio.value <= -BACKUP_SHARE)).any())


def _moved(intact: FirstLayer, ablated: FirstLayer) -> tuple[bool, str]:
    """Whether L* moves later, and what else there is to say of it."""
    if not np.isfinite(intact.value):
        return False, f"L* of the intact model is undefined: {intact.reason}"
    if not np.isfinite(ablated.value):
        return False, "no layer works any more"
    both_never = ~np.isfinite(intact.draws) & ~np.isfinite(ablated.draws)
    with np.errstate(invalid="ignore"):
        later = np.where(both_never, 0.0, ablated.draws - intact.draws)
    if ablated.value > intact.value and not _ends(later)[0] > 0:
        return False, "L* is later, but the interval of its shift includes 0"
    return bool(ablated.value > intact.value), ""


def _first(ne: Floats, layers: Ints) -> Floats:
    """First layer with NE ≥ `WORKS` of each row [row layer], `NEVER` where there is none."""
    works = ne >= WORKS
    return np.where(works.any(axis=1), layers[works.argmax(axis=1)].astype(float), NEVER)


def _ends(drawn: Floats) -> tuple[float, float]:
    """Ends of a 95 % interval that are values of draws, so that `NEVER` is never averaged."""
    ordered, last = np.sort(drawn), len(drawn) - 1
    low, high = LEVEL[0] / 100 * last, LEVEL[1] / 100 * last
    return float(ordered[int(np.floor(low))]), float(ordered[int(np.ceil(high))])


def _log_odds(probs: AnswerProbs, runs: Runs) -> Floats:
    """Log-odds of every belief, [prompt belief]."""
    return belief_log_odds(probs, runs, np.arange(len(runs.own)))
