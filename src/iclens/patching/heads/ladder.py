"""How deep does redundancy go? Ablate what carries the task, sweep again, ablate what took over, and so on.

1. Step 0 sweeps the intact donor: L* is the first layer that works. 2. A step adds to the ablated set, in the
donor alone: by layers, all heads of the last layer below L* that still has them; by heads, the few below L*
whose loss, beside that of the set, lowers the belief at L* most. 3. It sweeps again, and says whether the set
so far only delays the task or is backed up. 4. The same number of other heads of the same layers, or of other
layers, is ablated in several draws: what any such loss would do. The ladder ends when no layer works.
Enter a model and runs; leaves a RedundancyLadderTable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iclens.errors import EditError
from iclens.models.load import LanguageModel
from iclens.patching.effects import means, resamples
from iclens.patching.heads.ablate import (
    KINDS,
    PLACES,
    WHOLE_LAYER,
    Ablation,
    Heads,
    ablated_answers,
    ablation_edits,
    named,
)
from iclens.patching.heads.direct import (
    ABLATED,
    HEADS_GIVEN,
    LATER,
    LATER_HEADS,
    TOTAL,
    direct_by_prompt,
)
from iclens.patching.heads.redundancy import Arrival, FirstLayer, arrival, first_layer, verdict
from iclens.patching.runs import Runs
from iclens.tables.arrays import Floats
from iclens.tables.edits import Edit
from iclens.tables.redundancy import RedundancyLadderTable

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
class Climb:
    """What stays the same from step to step.

    Args:
        model: a whole model.
        runs: donor, recipient and A*.
        belief: on which a layer works.
        unit: one of `UNITS`.
        n_heads: heads that a step of heads adds.
        kind: what replaces a head's output.
        place: where.
        reader: layer whose residual direct effects are put into; None for the last.
        n_controls: control sets per step.
        weights: bootstrap weights, [draw prompt].
        batch: rows per forward pass.
    """

    model: LanguageModel
    runs: Runs
    belief: str
    unit: str
    n_heads: int
    kind: str
    place: str
    reader: int | None
    n_controls: int
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
        probs = ablated_answers(self.model, self.runs.donor, self.edits(heads), self.runs.words, self.batch)
        return probs.of(self.runs.copied)


def redundancy_ladder(
    model: LanguageModel, runs: Runs, *, belief: str = "exact", unit: str = "layer", start: Heads = (),
    n_heads: int = 2, kind: str = "zero", place: str = "pre", max_steps: int = MAX_STEPS,
    n_controls: int = CONTROL_DRAWS, reader: int | None = None, seed: int = 0, draws: int = 1000,
    batch: int = 128,
) -> RedundancyLadderTable:  # fmt: skip
    """Ablate, sweep, ablate what took over, until no layer works.

    Args:
        model: a whole model.
        runs: donor, recipient and A*; for a mean or resample the recipients are as long as the donor.
        belief: on which a layer works, of those that the runs read.
        unit: "layer" or "heads", what a step adds.
        start: the first step's heads; by default chosen as every other step's.
        n_heads: heads that a step of heads adds.
        kind: one of `heads.KINDS`.
        place: one of `heads.PLACES`.
        max_steps: steps after which the ladder ends in any case.
        n_controls: control sets per step.
        reader: layer whose residual direct effects are put into, for the verdict; by default, and once the
            set reaches it, the last.
        seed: of the bootstrap and of the control sets.
        draws: bootstrap resamples.
        batch: rows per forward pass.

    Returns:
        A row per step from 0; the last has no L*, or says in `reason` why the ladder ends before.

    Raises:
        EditError: for an unknown belief, unit, kind or place, fewer than one head or step, or a start that
            does not exist.
        SiteError: for a layer that the model does not have.
    """
    runs.columns([belief])
    for name, asked, known in (("unit", unit, UNITS), ("kind", kind, KINDS), ("place", place, PLACES)):
        if asked not in known:
            raise EditError(f"ladder {name} '{asked}'", "unknown", f"One of {', '.join(known)}.")
    if min(n_heads, max_steps) < 1:
        raise EditError(
            f"{n_heads} heads in {max_steps} steps",
            "nothing to ablate",
            "Give n_heads and max_steps of 1 or more.",
        )
    rng = np.random.default_rng(seed)
    weights = resamples(runs.donor.n_prompts, draws, rng)
    climb = Climb(model, runs, belief, unit, n_heads, kind, place, reader, n_controls, weights, batch)
    return RedundancyLadderTable.concat([
        RedundancyLadderTable({name: [value] for name, value in row.items()})
        for row in _steps(climb, start, max_steps, rng)
    ])  # fmt: skip


def _steps(climb: Climb, start: Heads, max_steps: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """The rows, one per step."""
    swept = climb.sweep(())
    intact = before = first_layer(swept, climb.weights)
    row = _row(climb, 0, (), (), swept, intact, before)
    heads: Heads = ()
    for step in range(1, max_steps + 1):
        if not np.isfinite(before.value):
            break
        added = start if step == 1 and start else took_over(climb, heads, int(before.value))
        if not added:
            yield row | {"reason": _also(row, "no heads are left below L*")}
            return
        yield row
        heads = (*heads, *(head for head in added if head not in heads))
        swept = climb.sweep(heads)
        now = first_layer(swept, climb.weights)
        row = _row(climb, step, added, heads, swept, now, before)
        row |= _controls(climb, heads, int(before.value), rng) | _verdict(climb, heads, intact, now)
        before = now
    stopped = f"stopped after {max_steps} steps" if np.isfinite(before.value) else ""
    yield row | {"reason": _also(row, stopped)}


def _also(row: dict[str, Any], said: str) -> str:
    """A row's reason with another one."""
    return "; ".join(filter(None, (row["reason"], said)))


def took_over(climb: Climb, heads: Heads, layer: int) -> Heads:
    """What carries the task into a layer once a set is ablated; nothing where no heads are left below it.

    Args:
        climb: gives the unit, and how many heads.
        heads: the set.
        layer: L* under it.
    """
    gone = _every_head(climb.model, heads)
    every = [(i, h) for i in range(layer) for h in range(climb.model.n_heads) if (i, h) not in gone]
    if not every:
        return ()
    if climb.unit == "layer":
        return ((every[-1][0], WHOLE_LAYER),)
    left = [climb.sweep((*heads, head), [layer]).effect.mean() for head in every]
    return tuple(sorted(every[i] for i in np.argsort(left, kind="stable")[: climb.n_heads]))


def control_sets(model: LanguageModel, heads: Heads, n: int, rng: np.random.Generator) -> list[Heads]:
    """Sets as large as one of heads, drawn from what it leaves: as many heads of each layer, or other layers.

    Args:
        model: gives what there is to draw from.
        heads: the set that is controlled for.
        n: how many; fewer where there are not as many, none where the layers have too few other heads.
        rng: draws them.
    """
    gone = _every_head(model, heads)
    touched = {layer for layer, _ in gone}
    layers = [layer for layer in range(model.n_blocks) if layer not in touched]
    n_layers = len({layer for layer, head in heads if head == WHOLE_LAYER})
    wanted: dict[int, int] = {}
    for layer, head in heads:
        if head != WHOLE_LAYER:
            wanted[layer] = wanted.get(layer, 0) + 1
    others = {i: [h for h in range(model.n_heads) if (i, h) not in gone] for i in wanted}
    if n_layers > len(layers) or any(wanted[layer] > len(others[layer]) for layer in wanted):
        return []
    found: dict[Heads, None] = {}
    for _ in range(_TRIES * n):
        if len(found) == n:
            break
        drawn = (
            [(int(i), WHOLE_LAYER) for i in rng.choice(layers, n_layers, replace=False)] if n_layers else []
        )
        for layer, count in wanted.items():
            drawn += [(layer, int(h)) for h in rng.choice(others[layer], count, replace=False)]
        found[tuple(sorted(drawn))] = None
    return list(found)


def _every_head(model: LanguageModel, heads: Heads) -> set[tuple[int, int]]:
    """The set's heads one by one."""
    return {
        (layer, h) for layer, head in heads for h in (range(model.n_heads) if head == WHOLE_LAYER else [head])
    }


def _row(
    climb: Climb, step: int, added: Heads, heads: Heads, swept: Arrival, now: FirstLayer, before: FirstLayer
) -> dict[str, Any]:
    """A step's row but for its controls and verdict, which are empty."""
    ne = swept.normalised(climb.weights)
    known = not ne.reason[0]
    best = int(np.nanargmax(ne.value)) if known else 0
    at = int(np.flatnonzero(swept.layers == now.value)[0]) if np.isfinite(now.value) else best
    donor = means(climb.donor(heads)[:, None], climb.weights)
    shown = {"before_layer": np.nan, "ne_before": np.nan, "ne_before_low": np.nan, "ne_before_high": np.nan}
    if step:
        i = int(np.flatnonzero(swept.layers == before.value)[0])
        shown = {
            "before_layer": before.value, "ne_before": ne.value[i], "ne_before_low": ne.low[i],
            "ne_before_high": ne.high[i],
        }  # fmt: skip
    return {
        "step": step, "unit": climb.unit, "added": named(added), "ablated": named(heads), "kind": climb.kind,
        "place": climb.place, "recipient": climb.runs.recipient_name, "n_seen": climb.runs.n_seen,
        "belief": climb.belief, "first_layer": now.value, "first_low": now.low, "first_high": now.high,
        "ne": ne.value[at], "ne_low": ne.low[at], "ne_high": ne.high[at],
        "own": swept.own[:, at].mean(), "copy": swept.copy[:, at].mean(), **shown,
        "donor": donor.value[0], "donor_low": donor.low[0], "donor_high": donor.high[0],
        "n_controls": 0, **dict.fromkeys(_EMPTY, np.nan), "verdict": "",
        "n_prompts": len(swept.span), "reason": now.reason,
    }  # fmt: skip


def _controls(climb: Climb, heads: Heads, before: int, rng: np.random.Generator) -> dict[str, Any]:
    """What control sets leave of the task at the layer where it worked before this step."""
    sets = control_sets(climb.model, heads, climb.n_controls, rng)
    if not sets:
        return {}
    left, moved, donor = [], [], []
    for some in sets:
        swept = climb.sweep(some)
        left.append(float(swept.normalised(climb.weights).value[swept.layers == before][0]))
        moved.append(not first_layer(swept, climb.weights).value <= before)
        donor.append(climb.donor(some).mean())
    return {
        "n_controls": len(sets), "control_ne_before": np.mean(left), "control_ne_least": min(left),
        "control_ne_greatest": max(left), "control_moved": np.mean(moved), "control_donor": np.mean(donor),
    }  # fmt: skip


def _verdict(climb: Climb, heads: Heads, intact: FirstLayer, now: FirstLayer) -> dict[str, Any]:
    """Direct effects of the set against the intact model, and what they and L* make of it."""
    last = max(layer for layer, _ in heads)
    reader = climb.reader if climb.reader is not None and climb.reader > last else None
    ablation = Ablation(heads, climb.kind, climb.place)
    effects = direct_by_prompt(climb.model, climb.runs, ablation, reader=reader, batch=climb.batch)
    (b,) = climb.runs.columns([climb.belief])
    said = verdict(intact, now, effects, b, climb.weights)
    parts = {
        "total": TOTAL, "direct": ABLATED, "later_heads": LATER_HEADS, "later_heads_given_loss": HEADS_GIVEN,
        "later": LATER,
    }  # fmt: skip
    row: dict[str, Any] = {"verdict": said.name, "reason": said.reason}
    for name, part in parts.items():
        found = means(effects.sums[part][:, b : b + 1], climb.weights)
        row[name] = found.value[0]
        if name in _WITH_INTERVAL:
            row |= {f"{name}_low": found.low[0], f"{name}_high": found.high[0]}
    return row
