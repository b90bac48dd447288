"""Redundancy: heads that stand in for each other, found by iterative ablation.

1. A layer works when a donor's residual, put there, carries more of the task than is missing; L* is the
first that works. 2. An ablated set delays L*, or later heads back it up: the verdict weighs the two.
3. Iterative ablation takes away what brings the task to L*, then what took over, until no layer works. 4. The
index says by how much a set's joint effect exceeds the sum of its entries' own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from iclens.core import EditError
from iclens.model.load import LanguageModel
from iclens.model.run import Edit
from iclens.patching.heads import (
    ABLATED,
    GIVEN,
    HEADS_GIVEN,
    KINDS,
    LATER,
    LATER_HEADS,
    PLACES,
    TOTAL,
    WHOLE_LAYER,
    Ablation,
    DirectEffects,
    Heads,
    ablation_edits,
    direct_by_prompt,
    expect_known,
    head_names,
    heads_by_layer,
    ratios,
)
from iclens.patching.receiver import at_pre, patch_query, query_answers
from iclens.patching.runs import Runs, check_tokenizer
from iclens.schemas import RedundancyLadderTable, RedundancyTable
from iclens.stats import ENDS, LEAST_SPAN, Estimates, means, normalised_effects, prompt_weights
from iclens.table import Floats, Ints

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
    """A residual sweep at `pre`, prompt by prompt, on one belief."""

    layers: Ints  # blocks whose resid_pre was replaced, n_blocks for the last resid_post, ascending [layer]
    effect: Floats  # patched − B, log-odds in nats, [prompt layer]
    span: Floats  # A* − B, un-ablated, nats [prompt]
    own: Floats  # P(f(x_B)) of the patched recipient, [prompt layer]
    copy: Floats  # P(f(x_A)) of it, [prompt layer]

    def normalised(self, weights: Floats) -> Estimates:
        """NE by layer, with intervals under bootstrap weights [draw prompt]."""
        return normalised_effects(
            self.effect, np.broadcast_to(self.span[:, None], self.effect.shape), weights
        )


@dataclass(frozen=True)
class FirstLayer:
    """L*, the first layer that works."""

    value: float  # over all prompts; NaN where no layer works
    low: float  # lower end of its 95 % interval; NaN where no layer works there
    high: float  # upper end, likewise
    draws: Floats  # L* of every bootstrap draw, `NEVER` where none works, [draw]
    reason: str  # why it is NaN; empty otherwise


@dataclass(frozen=True)
class Verdict:
    """What an ablation brought out, and what that rests on."""

    name: str  # `DELAY`, `BACKUP`, `BOTH`, `NEITHER` or `UNDECIDED`
    reason: str  # what keeps it from being plainer; may be empty


def redundancy_index(
    model: LanguageModel, runs: Runs, *ablations: Ablation, beliefs: Sequence[str] | None = None,
    seed: int = 0, draws: int = 1000, batch: int = 128,
) -> RedundancyTable:  # fmt: skip
    """Joint effect of a set on A*'s beliefs minus the sum of its entries' own effects, a row per belief.

    Args:
        runs: give A*, and recipients for the values of a mean or resample.
        ablations: the sets; the entries of each, heads or whole layers, are also ablated one at a time.
    """
    check_tokenizer(model.tokenizer, runs)
    which = runs.columns(runs.beliefs if beliefs is None else beliefs)
    tails = at_pre(model, runs) if any(ablation.place == "pre" for ablation in ablations) else None

    @cache
    def effect(some: Ablation) -> Floats:
        """Of an ablation on A*, nats [prompt belief]."""
        edits = ablation_edits(model, runs, some, batch)
        own = tails if some.place == "pre" else None
        probs = query_answers(model, runs.target, runs.words, edits, batch, own)
        return runs.reader.log_odds(probs)[:, which] - base

    base, bottom = (
        runs.reader.log_odds(query_answers(model, prompts, runs.words))[:, which]
        for prompts in (runs.target, runs.recipient)
    )
    span, weights = (
        (base - bottom).mean(axis=0),
        prompt_weights(len(base), draws, np.random.default_rng(seed)),
    )
    n, tables = len(which), []
    for ablation in ablations:
        entries = _entries(ablation)
        joint = effect(ablation)
        singles = np.sum([effect(ablation.of((entry,))) for entry in entries], axis=0)
        parts = {"joint": joint, "singles": singles, "index": joint - singles}
        estimates = {name: means(values, weights) for name, values in parts.items()}
        saturated = np.where(np.abs(estimates["singles"].value) > np.abs(span), SATURATED, "")
        columns = {
            key: values for name, part in estimates.items() for key, values in part.columns(name).items()
        }
        reasons = zip(estimates["index"].reason, saturated, strict=True)
        tables.append(RedundancyTable({
            "ablated": [ablation.text] * n, "kind": [ablation.kind] * n, "place": [ablation.place] * n,
            "n_units": [len(entries)] * n, "n_seen": [runs.n_seen] * n,
            "belief": [runs.beliefs[b] for b in which], "base": base.mean(axis=0), **columns, "span": span,
            "n_prompts": [len(base)] * n, "reason": [why or str(note) for why, note in reasons],
        }))  # fmt: skip
    return RedundancyTable.concat(tables)


def _entries(ablation: Ablation) -> Heads:
    """The heads and whole layers of a set, each once; refuses a layer that stands there whole and in part."""
    entries = tuple(dict.fromkeys(ablation.heads))
    whole = {layer for layer, head in entries if head == WHOLE_LAYER}
    twice = [layer for layer, head in entries if head != WHOLE_LAYER and layer in whole]
    if twice:
        raise EditError(
            f"redundancy of '{ablation.text}'", f"layer {twice[0]} stands there whole and in part",
            "Name some of its heads, or the layer alone.",
        )  # fmt: skip
    return entries


def arrival(
    model: LanguageModel, runs: Runs, belief: str, donor_edits: Sequence[Edit] = (),
    *, layers: Sequence[int] | None = None, batch: int = 128,
) -> Arrival:  # fmt: skip
    """A residual sweep at `pre` from a donor under edits into the un-ablated recipient.

    Args:
        belief: which, of those that the runs read.
        donor_edits: applied to the donor's run alone, as `heads.ablation_edits` makes them.
        layers: ascending; all by default.
    """
    check_tokenizer(model.tokenizer, runs)
    (b,) = runs.columns([belief])
    where = np.arange(model.n_blocks + 1) if layers is None else np.array(layers)
    patched, _ = patch_query(model, runs, where.tolist(), donor_edits, batch)
    bottom, top = (
        runs.reader.log_odds(query_answers(model, prompts, runs.words))[:, b]
        for prompts in (runs.recipient, runs.target)
    )
    return Arrival(
        where,
        np.stack([runs.reader.log_odds(probs)[:, b] for probs in patched], axis=1) - bottom[:, None],
        top - bottom,
        np.stack([probs.of(runs.answer) for probs in patched], axis=1),
        np.stack([probs.of(runs.donor_answer) for probs in patched], axis=1),
    )


def first_layer(swept: Arrival, weights: Floats) -> FirstLayer:
    """L* of a sweep, with the interval of its first crossing over bootstrap weights [draw prompt]."""
    estimates = swept.normalised(weights)
    if estimates.reason[0]:
        none = np.full(len(weights), np.nan)
        return FirstLayer(np.nan, np.nan, np.nan, none, estimates.reason[0])
    drawn = _first((weights @ swept.effect) / (weights @ swept.span)[:, None], swept.layers)
    value = float(_first(estimates.value[None], swept.layers)[0])
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
        belief: which, of those that the runs read.
        reader: layer whose residual direct effects are put into, as for `heads.direct_effects`.
    """
    weights = prompt_weights(runs.donor.n_prompts, draws, np.random.default_rng(seed))
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
        column: of the belief, along its axis.
        weights: [draw prompt].
    """
    heads, everything = (
        _rises([effects.sums[part][:, column] for part in sides], effects.sums[ABLATED][:, column], weights)
        for sides in ((LATER_HEADS, HEADS_GIVEN), (LATER, GIVEN))
    )
    moved, note = _moved(intact, ablated)
    if heads is None:
        return Verdict(UNDECIDED, "later heads rise, but the ablated heads' own direct effect is too small")
    if heads:
        return Verdict(BOTH if moved else BACKUP, note)
    if not moved:
        return Verdict(NEITHER, note)
    if everything is None:
        return Verdict(UNDECIDED, "later MLPs rise, but the ablated heads' own direct effect is too small")
    if everything:
        return Verdict(NEITHER, "L* moves later, and later MLPs rise where later heads do not")
    return Verdict(DELAY, note)


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
    low, high = ENDS[0] * last, ENDS[1] * last
    return float(ordered[int(np.floor(low))]), float(ordered[int(np.ceil(high))])


UNITS = ("layer", "heads")
CONTROL_DRAWS = 5
"""Control sets per step: each costs a sweep."""
MAX_STEPS = 8
_TRIES = 20
"""Draws for each control set that is asked for, so that sets are distinct where there are enough."""
_WITH_INTERVAL = ("later_heads", "later_heads_given_loss", "later")
_EMPTY = (
    *("control_ne_before", "control_ne_least", "control_ne_greatest", "control_moved", "control_donor"),
    *("total", "direct", *(f"{name}{end}" for name in _WITH_INTERVAL for end in ("", "_low", "_high"))),
)
"""Columns that stay NaN at step 0."""


@dataclass(frozen=True)
class IterativeAblation:
    """What stays the same from step to step."""

    model: LanguageModel
    runs: Runs
    belief: str  # on which a layer works
    unit: str  # one of `UNITS`
    n_heads: int  # heads that a step of heads adds
    kind: str  # what replaces a head's output
    place: str  # where
    reader: int | None  # layer whose residual direct effects are put into; None for the last
    n_controls: int  # control sets per step
    weights: Floats
    batch: int

    def edits(self, heads: Heads) -> tuple[Edit, ...]:
        """The set as edits; none for no heads."""
        if not heads:
            return ()
        return ablation_edits(self.model, self.runs, Ablation(heads, self.kind, self.place), self.batch)

    def sweep(self, heads: Heads, layers: Sequence[int] | None = None) -> Arrival:
        """The sweep from a donor with a set ablated."""
        return arrival(self.model, self.runs, self.belief, self.edits(heads), layers=layers, batch=self.batch)

    def donor(self, heads: Heads) -> Floats:
        """P(f(x_A)) of the donor with a set ablated, [prompt]."""
        words, edits = self.runs.words, self.edits(heads)
        probs = query_answers(self.model, self.runs.donor, words, edits, self.batch)
        return probs.of(self.runs.donor_answer)


def iterative_ablation(
    model: LanguageModel, runs: Runs, *, belief: str = "exact", unit: str = "layer", start: Heads = (),
    n_heads: int = 2, kind: str = "zero", place: str = "pre", max_steps: int = MAX_STEPS,
    n_controls: int = CONTROL_DRAWS, reader: int | None = None, seed: int = 0, draws: int = 1000,
    batch: int = 128,
) -> RedundancyLadderTable:  # fmt: skip
    """Ablate, sweep, ablate what took over, until no layer works.

    Args:
        runs: donor, recipient and A*; for a mean or resample the recipients are as long as the donor.
        belief: on which a layer works, of those that the runs read.
        unit: "layer" or "heads", what a step adds.
        start: the first step's heads; by default chosen as every other step's.
        n_heads: heads that a step of heads adds.
        kind: one of `heads.KINDS`.
        place: one of `heads.PLACES`.
        max_steps: steps after which it ends in any case.
        reader: layer whose residual direct effects are put into, for the verdict; by default, and once the
            set reaches it, the last.
        seed: of the bootstrap and of the control sets.

    Returns:
        A row per step from 0; the last has no L*, or says in `reason` why it ends before.
    """
    runs.columns([belief])
    expect_known("iterative ablation", unit=(unit, UNITS), kind=(kind, KINDS), place=(place, PLACES))
    if min(n_heads, max_steps) < 1:
        raise EditError(
            f"{n_heads} heads in {max_steps} steps", "nothing to ablate",
            "Give n_heads and max_steps of 1 or more.",
        )  # fmt: skip
    rng = np.random.default_rng(seed)
    weights = prompt_weights(runs.donor.n_prompts, draws, rng)
    ablating = IterativeAblation(
        model, runs, belief, unit, n_heads, kind, place, reader, n_controls, weights, batch
    )
    return RedundancyLadderTable.from_rows(_steps(ablating, start, max_steps, rng))


def _steps(
    ablating: IterativeAblation, start: Heads, max_steps: int, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """The rows, one per step."""
    swept = ablating.sweep(())
    intact = before = first_layer(swept, ablating.weights)
    row = _row(ablating, 0, (), (), swept, intact, before)
    heads: Heads = ()
    for step in range(1, max_steps + 1):
        if not np.isfinite(before.value):
            break
        added = start if step == 1 and start else took_over(ablating, heads, int(before.value))
        if not added:
            yield row | {"reason": _also(row, "no heads are left below L*")}
            return
        yield row
        heads = (*heads, *(head for head in added if head not in heads))
        swept = ablating.sweep(heads)
        now = first_layer(swept, ablating.weights)
        row = _row(ablating, step, added, heads, swept, now, before)
        row |= _controls(ablating, heads, int(before.value), rng) | _verdict(ablating, heads, intact, now)
        before = now
    stopped = f"stopped after {max_steps} steps" if np.isfinite(before.value) else ""
    yield row | {"reason": _also(row, stopped)}


def _also(row: dict[str, Any], reason: str) -> str:
    """A row's reason with another one."""
    return "; ".join(filter(None, (row["reason"], reason)))


def took_over(ablating: IterativeAblation, heads: Heads, layer: int) -> Heads:
    """What carries the task into L*, `layer`, once a set is ablated; nothing where no heads are left."""
    model, gone = ablating.model, _every_head(heads, ablating.model.n_heads)
    every = [(i, h) for i in range(layer) for h in range(model.n_heads) if (i, h) not in gone]
    if not every:
        return ()
    if ablating.unit == "layer":
        return ((every[-1][0], WHOLE_LAYER),)
    left = [ablating.sweep((*heads, head), [layer]).effect.mean() for head in every]
    return tuple(sorted(every[i] for i in np.argsort(left, kind="stable")[: ablating.n_heads]))


def control_sets(model: LanguageModel, heads: Heads, n: int, rng: np.random.Generator) -> list[Heads]:
    """Sets as large as one of heads, drawn from what it leaves: as many heads of each layer, or other layers.

    Args:
        model: gives what there is to draw from.
        heads: the set that is controlled for.
        n: how many; fewer where there are not as many, none where the layers have too few other heads.
    """
    gone = _every_head(heads, model.n_heads)
    touched = {layer for layer, _ in gone}
    layers = [layer for layer in range(model.n_blocks) if layer not in touched]
    n_layers = len({layer for layer, head in heads if head == WHOLE_LAYER})
    single = [layer for layer, head in heads if head != WHOLE_LAYER]
    wanted = {layer: single.count(layer) for layer in dict.fromkeys(single)}
    others = {i: [h for h in range(model.n_heads) if (i, h) not in gone] for i in wanted}
    if n_layers > len(layers) or any(wanted[layer] > len(others[layer]) for layer in wanted):
        return []
    sets: dict[Heads, None] = {}
    for _ in range(_TRIES * n):
        if len(sets) == n:
            break
        whole = rng.choice(layers, n_layers, replace=False) if n_layers else ()
        drawn = [(int(i), WHOLE_LAYER) for i in whole]
        for layer, count in wanted.items():
            drawn += [(layer, int(h)) for h in rng.choice(others[layer], count, replace=False)]
        sets[tuple(sorted(drawn))] = None
    return list(sets)


def _every_head(heads: Heads, n_heads: int) -> set[tuple[int, int]]:
    """The set's heads one by one."""
    return {(layer, int(h)) for layer, some in heads_by_layer(heads, n_heads).items() for h in some}


def _row(
    ablating: IterativeAblation, step: int, added: Heads, heads: Heads, swept: Arrival, now: FirstLayer,
    before: FirstLayer,
) -> dict[str, Any]:  # fmt: skip
    """A step's row but for its controls and verdict, which are empty."""
    ne, runs = swept.normalised(ablating.weights), ablating.runs
    best = 0 if ne.reason[0] else int(np.nanargmax(ne.value))
    at = int(np.flatnonzero(swept.layers == now.value)[0]) if np.isfinite(now.value) else best

    def at_layer(name: str, i: int) -> dict[str, float]:
        return {key: values[i] for key, values in ne.columns(name).items()}

    ne_before = dict.fromkeys(("before_layer", *ne.columns("ne_before")), np.nan)
    if step:
        i = int(np.flatnonzero(swept.layers == before.value)[0])
        ne_before = {"before_layer": before.value, **at_layer("ne_before", i)}
    donor = means(ablating.donor(heads)[:, None], ablating.weights)
    return {
        "step": step, "unit": ablating.unit, "added": head_names(added), "ablated": head_names(heads),
        "kind": ablating.kind, "place": ablating.place, "recipient": runs.recipient_name,
        "n_seen": runs.n_seen, "belief": ablating.belief, "first_layer": now.value, "first_low": now.low,
        "first_high": now.high, **at_layer("ne", at), "own": swept.own[:, at].mean(),
        "copy": swept.copy[:, at].mean(), **ne_before,
        **{name: values[0] for name, values in donor.columns("donor").items()},
        "n_controls": 0, **dict.fromkeys(_EMPTY, np.nan), "verdict": "",
        "n_prompts": len(swept.span), "reason": now.reason,
    }  # fmt: skip


def _controls(
    ablating: IterativeAblation, heads: Heads, before: int, rng: np.random.Generator
) -> dict[str, Any]:
    """What control sets leave of the task at the layer where it worked before this step."""
    sets = control_sets(ablating.model, heads, ablating.n_controls, rng)
    if not sets:
        return {}
    left, moved, donor = [], [], []
    for some in sets:
        swept = ablating.sweep(some)
        left.append(float(swept.normalised(ablating.weights).value[swept.layers == before][0]))
        moved.append(not first_layer(swept, ablating.weights).value <= before)
        donor.append(ablating.donor(some).mean())
    return {
        "n_controls": len(sets), "control_ne_before": np.mean(left), "control_ne_least": min(left),
        "control_ne_greatest": max(left), "control_moved": np.mean(moved), "control_donor": np.mean(donor),
    }  # fmt: skip


def _verdict(
    ablating: IterativeAblation, heads: Heads, intact: FirstLayer, now: FirstLayer
) -> dict[str, Any]:
    """Direct effects of the set against the intact model, and what they and L* make of it."""
    reader = ablating.reader
    if reader is not None and reader <= max(layer for layer, _ in heads):
        reader = None
    ablation = Ablation(heads, ablating.kind, ablating.place)
    effects = direct_by_prompt(ablating.model, ablating.runs, ablation, reader=reader, batch=ablating.batch)
    (b,) = ablating.runs.columns([ablating.belief])
    judged = verdict(intact, now, effects, b, ablating.weights)
    parts = {
        "total": TOTAL, "direct": ABLATED, "later_heads": LATER_HEADS, "later_heads_given_loss": HEADS_GIVEN,
        "later": LATER,
    }  # fmt: skip
    row: dict[str, Any] = {"verdict": judged.name, "reason": judged.reason}
    for name, part in parts.items():
        figures = means(effects.sums[part][:, b : b + 1], ablating.weights).columns(name)
        row |= {key: values[0] for key, values in figures.items() if key == name or name in _WITH_INTERVAL}
    return row
