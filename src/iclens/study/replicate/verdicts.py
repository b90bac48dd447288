"""Does this model show what was recorded? Every check with its tolerance, as one row.

Tolerances are data (`recorded.json`), as the re-check lines of the observations name them; a check for which
they name none asks for equality. Without targets the same rows say what this model shows. A miss is a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iclens.study.replicate.protocol import Protocol, brightest
from iclens.study.replicate.recorded import Lens, Observations, Recorded
from iclens.study.replicate.tables import CheckTable
from iclens.tables.arrays import Floats

AGREES, DIFFERS, NO_TARGET = "agrees", "differs", "no target"
LENS, PATCH, ABLATION, MAPS, ATTENTION = "logit lens", "patch over x", "ablation", "score map", "attention"


@dataclass(frozen=True)
class Check:
    """One row of a CheckTable; `held` says whether it agrees, None without a target."""

    part: str
    check: str
    target: str
    ours: str
    tolerance: str
    held: bool | None


def check_table(
    ours: Observations, source: Recorded, protocol: Protocol, targets: Observations | None, dtype: str
) -> CheckTable:
    """Every check of what a model shows.

    Args:
        ours: what it shows.
        source: gives the task and the tolerances.
        protocol: what was run.
        targets: what was recorded; None when the protocol was derived.
        dtype: of the model's weights, "float32" or "bfloat16": attention has a tolerance for each.
    """
    limits = source.tolerances
    rows = [
        *_lens(ours.lens, None if targets is None else targets.lens, limits),
        *_patch(ours.x, None if targets is None else targets.x, source, protocol),
        *_ablation(ours, targets, source, protocol),
        *_maps(ours, targets, protocol, limits),
        _attention(ours.attention, None if targets is None else targets.attention, limits, dtype),
    ]
    columns = {name: [getattr(row, name) for row in rows] for name in CheckTable.COLUMNS if name != "verdict"}
    verdicts = [NO_TARGET if row.held is None else AGREES if row.held else DIFFERS for row in rows]
    return CheckTable(columns | {"verdict": verdicts})


def _row(
    part: str, check: str, target: object, ours: object, tolerance: str, held: bool | np.bool_ | None
) -> Check:
    """A check; None as target means that there is none."""
    known = target is not None and held is not None
    return Check(
        part, check, _text(target) if known else "", _text(ours), tolerance, bool(held) if known else None
    )


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _first(rows: Sequence[bool]) -> int | str:
    """Index of the first row that holds, or "none"."""
    return next((i for i, row in enumerate(rows) if row), "none")


def _lens(ours: Lens, target: Lens | None, limits: dict[str, Any]) -> Iterator[Check]:
    if target is None:
        yield from _lens_without(ours)
        return
    start, stop = limits["lens_top1_layers"]
    tie = limits["lens_near_tie"]
    layers = range(start, stop + 1)
    other = [layer for layer in layers if ours.top[layer][0] != target.top[layer][0]]
    swapped = other == [tie] and ours.top[tie][:2] == target.top[tie][1::-1]
    known, found = (tuple(lens.top[layer][0] for layer in layers) for lens in (target, ours))
    text = f"equal; first two may swap at {tie}"
    held = not other or swapped
    yield _row(LENS, f"full-vocabulary top-1, blocks {start}-{stop}", known, found, text, held)

    start, stop = limits["lens_numbers_layers"]
    layers = range(start, stop + 1)
    same = [set(ours.numbers[layer]) == set(target.numbers[layer]) for layer in layers]
    yield _row(
        LENS,
        f"top-5 numbers as sets, blocks {start}-{stop}: equal sets",
        len(layers),
        sum(same),
        "all",
        all(same),
    )
    last = dict(zip(ours.top[-1], ours.prob[-1], strict=True))
    for token, prob in list(zip(target.top[-1], target.prob[-1], strict=True))[: limits["lens_probs"]]:
        found = last.get(token, f"below the first {len(last)}")
        near = isinstance(found, float) and abs(found - prob) <= limits["lens_prob"] * prob
        yield _row(LENS, f"last block, P({token})", prob, found, f"{limits['lens_prob']:.0%}", near)
    yield from _shares(ours, target, limits)
    for name, read in _TRANSITIONS.items():
        yield _row(LENS, name, read(target), read(ours), "equal", read(ours) == read(target))


def _shares(ours: Lens, target: Lens, limits: dict[str, Any]) -> Iterator[Check]:
    split = limits["answer_share_from"]
    apart = np.abs(np.array(ours.answer_share) - np.array(target.answer_share))
    early = float(apart[:split].max())
    absolute = limits["answer_share_absolute"]
    yield _row(
        LENS, f"P(answer | numbers), blocks 0-{split - 1}: greatest distance", 0.0, early, f"{absolute:g}",
        early <= absolute,
    )  # fmt: skip
    late = float((apart[split:] / np.array(target.answer_share)[split:]).max())
    relative = limits["answer_share_relative"]
    name = f"P(answer | numbers), blocks {split} on: greatest relative distance"
    yield _row(LENS, name, 0.0, late, f"{relative:.0%}", late <= relative)


_TRANSITIONS = {
    "first block with a number in the top 20": lambda lens: _first([count > 0 for count in lens.digits]),
    "first block whose top-1 is a number": lambda lens: _first([row[0].isdigit() for row in lens.top]),
    "first block whose top 5 are numbers": lambda lens: _first(
        [all(t.isdigit() for t in row) for row in lens.top]
    ),
}
"""Name → where in the lens something happens first."""


def _lens_without(ours: Lens) -> Iterator[Check]:
    yield _row(LENS, "full-vocabulary top-1 by block", None, tuple(row[0] for row in ours.top), "", None)
    yield _row(LENS, "last block, top 5", None, ours.top[-1], "", None)
    yield _row(LENS, "P(answer | numbers), last block", None, float(ours.answer_share[-1]), "", None)
    for name, read in _TRANSITIONS.items():
        yield _row(LENS, name, None, read(ours), "", None)


def _patch(
    ours: tuple[tuple[str, ...], ...], target: tuple[tuple[str, ...], ...] | None, source: Recorded,
    protocol: Protocol,
) -> Iterator[Check]:  # fmt: skip
    limits = source.tolerances
    n, where = len(protocol.x), f"resid_pre {protocol.patch_layer}"
    if target is not None:
        same = sum(mine[0] == row[0] for mine, row in zip(ours, target, strict=True))
        least = limits["x_top1"]
        yield _row(
            PATCH, f"{where}: top-1 as recorded, of {n} x", n, same, f"at least {least}", same >= least
        )

    def count(rows: tuple[tuple[str, ...], ...], ranks: int, offset: int) -> int:
        wanted = [str(source.slope * x + offset) for x in protocol.x]
        return sum(answer in row[:ranks] for answer, row in zip(wanted, rows, strict=True))

    double, exact = f"{source.slope}x", f"{source.slope}x+{source.offset}"
    within, most = limits["x_double"], limits["x_exact"]
    for name, ranks, offset in ((f"top-1 is {double}", 1, 0), (f"{double} in the top 5", 5, 0),
                                (f"{exact} in the top 5", 5, source.offset)):  # fmt: skip
        found = count(ours, ranks, offset)
        wanted = None if target is None else count(target, ranks, offset)
        near = None if wanted is None else abs(found - wanted) <= within
        yield _row(PATCH, f"{where}: {name}, of {n} x", wanted, found, f"± {within}" if target else "", near)
    found = count(ours, 1, source.offset)
    wanted = None if target is None else count(target, 1, source.offset)
    few = None if wanted is None else found <= most
    yield _row(
        PATCH, f"{where}: top-1 is {exact}, of {n} x", wanted, found, f"at most {most}" if target else "", few
    )


def _ablation(
    ours: Observations, targets: Observations | None, source: Recorded, protocol: Protocol
) -> Iterator[Check]:
    double = str(source.slope * (source.prompts["sweep recipient"].x or 0))
    for one in protocol.ablations:
        name, swept = one.name, ours.sweeps[one.name]
        known = None if targets is None else targets.sweeps[name]
        wanted = None if targets is None else targets.donors[name]
        text = "equal, in order" if targets else ""
        yield _row(ABLATION, f"{name}: the donor's own top 5", wanted, ours.donors[name], text,
                   None if wanted is None else wanted == ours.donors[name])  # fmt: skip
        first = _first([row[0] == double for row in swept])
        before = None if known is None else _first([row[0] == double for row in known])
        yield _row(
            ABLATION, f"{name}: first layer whose patch gives {double}", before, first,
            "equal" if known else "", None if known is None else first == before,
        )  # fmt: skip
        if known is None:
            yield _row(ABLATION, f"{name}: top-1 by layer", None, tuple(row[0] for row in swept), "", None)
            continue
        same = sum(mine[0] == row[0] for mine, row in zip(swept, known, strict=True))
        least = source.tolerances["sweep_top1"]
        yield _row(
            ABLATION, f"{name}: top-1 as recorded, of {len(known)} layers", len(known), same,
            f"at least {least}", same >= least,
        )  # fmt: skip


def _maps(
    ours: Observations, targets: Observations | None, protocol: Protocol, limits: dict[str, Any]
) -> Iterator[Check]:
    top, least = limits["map_top"], limits["map_r"]
    for one in protocol.maps:
        found = ours.maps[one.name]
        heads = brightest(found, top)
        if targets is None:
            yield _row(MAPS, f"{one.name}: brightest heads", None, _named(heads), "", None)
            continue
        known = targets.maps[one.name]
        r = pearson(found, known)
        yield _row(MAPS, f"{one.name}: Pearson r", 1.0, r, f"at least {least}", r >= least)
        wanted = brightest(known, top)
        yield _row(
            MAPS, f"{one.name}: brightest heads", _named(wanted), _named(heads), "the same heads",
            set(heads) == set(wanted),
        )  # fmt: skip
        off = [pair for pair in protocol.ablation(one.ablation).pairs(found.shape[1]) if pair[0] < len(found)]
        if off:
            zeros, dark = (sum(float(scores[pair]) == 0 for pair in off) for scores in (known, found))
            yield _row(MAPS, f"{one.name}: ablated heads with score 0", zeros, dark, "equal", zeros == dark)


def pearson(a: Floats, b: Floats) -> float:
    """Correlation of two maps' entries; 0 where one of them is constant."""
    x, y = (np.asarray(part, dtype=float).ravel() for part in (a, b))
    x, y = x - x.mean(), y - y.mean()
    lengths = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / lengths if lengths > 0 else 0.0


def _named(heads: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    return tuple(f"L{layer}H{head}" for layer, head in heads)


def _attention(ours: Floats, target: Floats | None, limits: dict[str, Any], dtype: str) -> Check:
    if target is None:
        own = f"{ours.shape[0]} heads, BOS takes {float(ours[:, -1, 0].mean()):.3f} of the last position"
        return _row(ATTENTION, "mean over heads", None, own, "", None)
    most = limits["attention"][dtype]
    apart = float(np.abs(ours - target).max())
    return _row(
        ATTENTION,
        f"all {ours.shape[0]} heads: greatest distance",
        0.0,
        apart,
        f"{most:g} ({dtype})",
        apart <= most,
    )
