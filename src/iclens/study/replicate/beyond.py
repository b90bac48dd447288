"""What the notebooks left out: the intact donor, many inputs, other ablations, and random heads.

1. Donors: intact; every ablation by zero or by its mean over prompts without the task, at the last position
or everywhere; and as controls, by zero at the last position, as many random heads of the same layers, or,
where whole layers were ablated, as many random other layers. 2. Each donor's last position is patched into
recipients `(x, ` for many x, none of which stands in the donor, at every layer. 3. Counted is for how many x
the answer is slope·x, the task's own, or the donor's.
A random head among few may be one that matters: on a small model a control is weak.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iclens.models.load import LanguageModel
from iclens.models.tail import tails_of
from iclens.patching.effects import means, resamples
from iclens.study.replicate.observe import Report
from iclens.study.replicate.passes import (
    EVERYWHERE,
    LAST,
    MEAN,
    ZERO,
    DonorRun,
    ablation_edits,
    joined,
    mean_outputs,
    run_donor,
    swept_probs,
    swept_tops,
)
from iclens.study.replicate.prompts import context_x, encoded, without_task
from iclens.study.replicate.protocol import INTACT, Ablation, Protocol
from iclens.study.replicate.recorded import Recorded
from iclens.study.replicate.tables import DonorSweepTable, DonorTable
from iclens.tables.arrays import Floats, Ints, Strings

DRAWS = 5
"""Random draws of heads or layers for each ablation."""
STEP = 5
"""Every how many-th input is patched; odd, so that even and odd x take turns."""
REFERENCE_PROMPTS = 16
"""Prompts without the task over which a mean ablation averages."""
_NAMED, _NONE = "named", "none"


@dataclass(frozen=True)
class Donor:
    """A donor and how it was ablated.

    Args:
        name: of the ablation it is, or stands in for.
        heads: "none", "named", "random heads" or "random layers".
        draw: of a random one, from 0; −1 for others.
        kind: `ZERO`, `MEAN` or "none".
        place: `LAST`, `EVERYWHERE` or "none".
        ablation: what is ablated.
    """

    name: str
    heads: str
    draw: int
    kind: str
    place: str
    ablation: Ablation


def donors_of(protocol: Protocol, n_heads: int, rng: np.random.Generator) -> tuple[Donor, ...]:
    """Every donor that is run, the intact one first.

    Args:
        protocol: gives the ablations.
        n_heads: heads of each layer.
        rng: draws the controls.
    """
    found = [Donor(INTACT, _NONE, -1, _NONE, _NONE, Ablation(INTACT))]
    for one in (*protocol.ablations, *protocol.further):
        for kind, place in ((ZERO, LAST), (ZERO, EVERYWHERE), (MEAN, LAST), (MEAN, EVERYWHERE)):
            found.append(Donor(one.name, _NAMED, -1, kind, place, one))
    for one in protocol.ablations:
        for draw in range(DRAWS):
            control = random_like(one, n_heads, protocol.score_layers, rng)
            if control is not None:
                heads = "random layers" if one.layers else "random heads"
                found.append(Donor(one.name, heads, draw, ZERO, LAST, control))
    return tuple(found)


def random_like(ablation: Ablation, n_heads: int, n_layers: int, rng: np.random.Generator) -> Ablation | None:
    """As many random heads of the same layers, or as many other layers; None where too few are left.

    Args:
        ablation: what it stands in for.
        n_heads: heads of each layer.
        n_layers: layers that random ones are drawn from, those below this.
        rng: draws them.
    """
    if ablation.layers:
        others = [layer for layer in range(n_layers) if layer not in ablation.layers]
        if len(others) < len(ablation.layers):
            return None
        drawn = rng.choice(others, size=len(ablation.layers), replace=False)
        return Ablation(ablation.name, layers=tuple(sorted(map(int, drawn))))
    chosen: list[tuple[int, int]] = []
    for layer, heads in ablation.by_layer(n_heads).items():
        others = np.setdiff1d(np.arange(n_heads), heads)
        if len(others) < len(heads):
            return None
        chosen += [(layer, int(head)) for head in rng.choice(others, size=len(heads), replace=False)]
    return Ablation(ablation.name, heads=tuple(chosen))


def go_beyond(
    model: LanguageModel,
    source: Recorded,
    protocol: Protocol,
    report: Report,
    seed: int = 0,
    draws: int = 1000,
) -> tuple[DonorTable, DonorSweepTable, tuple[tuple[str, ...], ...]]:
    """Every donor's own answer, and the sweep from it over many inputs.

    Args:
        model: a whole model.
        source: gives the prompts and the task.
        protocol: gives the ablations.
        report: told what is under way.
        seed: of the controls, the prompts without the task and the bootstrap.
        draws: bootstrap resamples.

    Returns:
        The donors, their sweeps over many x, and the intact donor's most probable tokens at the recorded x,
            [layer][rank].
    """
    rng = np.random.default_rng(seed)
    prompt = source.prompts["sweep donor"]
    tokens = encoded(model.tokenizer, prompt)
    donors = donors_of(protocol, model.n_heads, rng)
    report(f"{len(donors)} donors with other ablations")
    layers = sorted(
        {layer for one in donors if one.kind == MEAN for layer in one.ablation.by_layer(model.n_heads)}
    )
    averages = mean_outputs(model, without_task(prompt, tokens, REFERENCE_PROMPTS, rng), layers)
    runs = [_run(model, donor, tokens, averages) for donor in donors]
    xs = tuple(x for x in protocol.x[::STEP] if x not in context_x(prompt))
    report(f"sweeps from {len(donors)} donors over {len(xs)} x")
    recipients = np.stack([_recipient(model, source, x) for x in xs])
    found = np.stack([swept_probs(tail, runs) for tail in tails_of(model, recipients)], axis=2)
    tops = swept_tops(model, encoded(model.tokenizer, source.prompts["sweep recipient"]), runs)
    answers = np.array([[source.slope * x, source.slope * x + source.offset] for x in xs])
    own = source.slope * (prompt.x or 0) + source.offset
    weights = resamples(len(xs), draws, np.random.default_rng(seed))
    sweeps = [
        _sweep(donor, values, answers, own, weights) for donor, values in zip(donors, found, strict=True)
    ]
    rows = [
        _donor_row(donor, run, sweep, top, source, own, model.n_heads)
        for donor, run, sweep, top in zip(donors, runs, sweeps, tops, strict=True)
    ]
    table = DonorTable({name: [row[name] for row in rows] for name in DonorTable.COLUMNS})
    return table, DonorSweepTable.concat(sweeps), tuple(map(tuple, tops[0]))


def _run(model: LanguageModel, donor: Donor, tokens: Ints, averages: dict[int, Floats]) -> DonorRun:
    held = averages if donor.kind == MEAN else None
    where = EVERYWHERE if donor.place == EVERYWHERE else LAST
    edits = ablation_edits(model, donor.ablation, len(tokens), place=where, means=held)
    return run_donor(model, tokens, edits)


def _recipient(model: LanguageModel, source: Recorded, x: int) -> Ints:
    return encoded(model.tokenizer, source.prompts["x recipient"], x)


def _sweep(donor: Donor, values: Floats, answers: Ints, own: int, weights: Floats) -> DonorSweepTable:
    """One donor's rows.

    Args:
        donor: which.
        values: P(number) after its patch, [layer x 1000].
        answers: slope·x and the task's answer, [x 2].
        own: the donor's own answer by the task.
        weights: bootstrap weights, [draw x].
    """
    wanted = np.column_stack([answers, np.full(len(answers), own)])
    names = ("slope·x", "task", "donor")
    top = values.argmax(axis=-1)
    prob = np.take_along_axis(values, np.broadcast_to(wanted, (len(values), *wanted.shape)), axis=-1)
    parts = []
    for layer in range(len(values)):
        read = np.hstack([top[layer][:, None] == wanted, prob[layer]]).astype(float)
        found = means(read, weights)
        n = read.shape[1]
        parts.append(DonorSweepTable({
            "donor": [donor.name] * n, "heads": [donor.heads] * n, "draw": [donor.draw] * n,
            "kind": [donor.kind] * n, "place": [donor.place] * n, "layer": [layer] * n,
            "metric": [*(f"top-1 {name}" for name in names), *(f"P({name})" for name in names)],
            "value": found.value, "ci_low": found.low, "ci_high": found.high, "n_x": [len(answers)] * n,
        }))  # fmt: skip
    return DonorSweepTable.concat(parts)


def _donor_row(
    donor: Donor,
    run: DonorRun,
    sweep: DonorSweepTable,
    tops: Strings,
    source: Recorded,
    own: int,
    n_heads: int,
) -> dict[str, object]:
    """One donor's row of the DonorTable; `tops` are [layer rank] at the recorded x."""
    double = str(source.slope * (source.prompts["sweep recipient"].x or 0))
    first = np.flatnonzero(tops[:, 0] == double)
    return {
        "donor": donor.name, "heads": donor.heads, "draw": donor.draw, "kind": donor.kind,
        "place": donor.place, "n_heads": len(donor.ablation.pairs(n_heads)), "top": joined(run.top),
        "p_answer": float(run.probs.of(np.array(str(own)))),
        "first_layer": int(first[0]) if len(first) else -1, "n_x": int(sweep["n_x"][0]),
        **_shares("slope", sweep["value"][sweep["metric"] == "top-1 slope·x"]),
        **_shares("task", sweep["value"][sweep["metric"] == "top-1 task"]),
    }  # fmt: skip


def _shares(name: str, share: Floats) -> dict[str, object]:
    """Where a share of inputs [layer] first reaches a half, and where it is greatest."""
    half = np.flatnonzero(share >= 0.5)
    return {
        f"{name}_half": int(half[0]) if len(half) else -1, f"{name}_best": int(share.argmax()),
        f"{name}_share": float(share.max()),
    }  # fmt: skip
