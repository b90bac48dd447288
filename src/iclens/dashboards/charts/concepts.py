"""How are a concept's small charts and shaded tables drawn? As hand-written SVG and CSS classes.

1. `tuning_chart` draws mean activation by value over a zero line, `operand_chart` by x and y;
2. `shade` gives a table cell its colour by AUROC, which stands in the cell as text too;
3. `reasons` collects why figures of a table are undefined, for the notes below it.

There may be a hundred charts on the page, so they are written like those of `svg`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

from iclens.dashboards.charts.svg import (
    NARROW,
    Scale,
    dot_chart,
    drawing,
    finite,
    level,
    short,
    tag,
    tick_text,
    ticks,
)
from iclens.dashboards.records.concepts import BoxView, ConceptView, TuningView
from iclens.dashboards.records.mechanism import Figure
from iclens.dashboards.text import count, number

SHADES = 5
"""Steps of colour in a table of AUROCs: so light that text on them keeps its contrast."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, NARROW - 4, 8, 132


def tuning_chart(name: str, role: str, tuning: TuningView) -> Markup:
    """Mean activation of the latent `name` at `role` by value: a dot each, for neighbours may differ much."""
    top = _largest(tuning.means)
    at = "" if top is None else tick_text(tuning.values[top])
    said = "undefined" if top is None else f"largest {number(tuning.means[top])} at {at}"
    label = f"Mean activation of {name} at {role} by {tuning.of}: {said}."
    points = list(zip(tuning.values, tuning.means, strict=True))
    return dot_chart(points, label, axis=tuning.of.replace("-", " − "))


def counted(tuning: TuningView) -> str:
    """How many rows stand behind each value, in words."""
    fewest, most = min(tuning.n_rows, default=0), max(tuning.n_rows, default=0)
    rows = count(fewest) if fewest == most else f"{count(fewest)} to {count(most)}"
    return f"{len(tuning.values)} values, {rows} row{'' if most == 1 else 's'} each"


def operand_chart(name: str, role: str, boxes: Sequence[BoxView]) -> Markup:
    """Mean activation by box of x (across) and y (up); a box without rows is left blank."""
    x = Scale(min(b.x for b in boxes), max(b.x + b.width for b in boxes), _LEFT, _RIGHT)
    y = Scale(min(b.y for b in boxes), max(b.y + b.width for b in boxes), _BOTTOM, _TOP)
    peak = max(finite(b.mean for b in boxes), default=0.0)
    levels: dict[int, list[str]] = defaultdict(list)
    for box in boxes:
        across, up = (box.x - x.low) / box.width, (y.high - box.y) / box.width - 1
        levels[level(box.mean, peak)].append(f"M{short(across)} {short(up)}h1v1h-1z")
    width = boxes[0].width
    wide, high = x(x.low + width) - _LEFT, _BOTTOM - y(y.low + width)
    cells = (tag("path", d="".join(paths), class_=f"box m{n}") for n, paths in sorted(levels.items()))
    label = f"Mean activation of {name} at {role} by x and y: {peak_words(boxes)}."
    marks = [
        *(("tick mid", tick_text(v), x(v), _BOTTOM + 15.0) for v in ticks(x.low, x.high, 4)),
        *(("tick end", tick_text(v), _LEFT - 6.0, y(v) + 3.5) for v in ticks(y.low, y.high)),
        ("tick mid", "x across, y up", (_LEFT + _RIGHT) / 2, _BOTTOM + 30.0),
    ]
    return drawing(
        NARROW,
        164,
        label,
        tag("g", *cells, transform=f"translate({_LEFT} {_TOP}) scale({wide:.5g} {high:.5g})"),
        *(tag("text", text, x=f"{at:g}", y=f"{down:g}", class_=kind) for kind, text, at, down in marks),
    )


def peak_words(boxes: Sequence[BoxView]) -> str:
    """Where an operand map is largest, in words."""
    top = _largest([box.mean for box in boxes])
    if top is None or boxes[top].mean <= 0:
        return "never active"
    box = boxes[top]
    spans = (f"{name} {at} to {at + box.width - 1}" for name, at in (("x", box.x), ("y", box.y)))
    return f"largest {number(box.mean)}, {' and '.join(spans)}"


def shade(auroc: float) -> str:
    """CSS class of a cell: the further above .5, the fuller; nothing at or below it."""
    if not (math.isfinite(auroc) and auroc > 0.5):
        return ""
    step = round(2 * SHADES * (auroc - 0.5))
    return f"a{step}" if step else ""


def reasons(figures: Figure | Iterable[Any]) -> list[str]:
    """Why some of these are undefined, each reason once; figures may stand in sequences of sequences."""
    if isinstance(figures, Figure):
        return [figures.reason] if math.isnan(figures.value) and figures.reason else []
    return list(dict.fromkeys(reason for part in figures for reason in reasons(part)))


def anchors(concepts: Sequence[ConceptView]) -> list[tuple[str, ConceptView]]:
    """An address on the page for each concept, whatever its name is."""
    return [(f"concept-{i}", concept) for i, concept in enumerate(concepts, start=1)]


def _largest(values: Sequence[float]) -> int | None:
    """Place of the largest defined value."""
    known = [i for i, value in enumerate(values) if math.isfinite(value)]
    return max(known, key=lambda i: values[i], default=None)
