"""How are the findings of patching drawn? As hand-written SVG, coloured by the style sheet.

1. `effects_charts` draws effects below each other, `lines_chart` curves over a quantity with a legend;
2. `ladder_chart` steps of the redundancy ladder, `response_chart` answers by x with their fitted line;
3. `grid_of` lays a heat map's cells out as a table.

Kinds of line differ in dash and in the shape of their points as well as in colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from iclens.dashboards.charts.rendered import role_order
from iclens.dashboards.charts.svg import (
    WIDE,
    Point,
    Scale,
    bottom_axis,
    drawing,
    ends,
    finite,
    left_axis,
    rules,
    tag,
    tick_text,
    ticks,
)
from iclens.dashboards.records.latent import Curve
from iclens.dashboards.records.mechanism import Figure
from iclens.dashboards.records.patching import (
    AnswersView,
    EffectRow,
    EffectsView,
    JointRow,
    LadderStep,
    LinesView,
    RedundancyLadder,
    SinglesView,
    SweepCell,
    SweepView,
)
from iclens.dashboards.text import number

_ROW = 24
_NAMES = 27
"""Characters of a name beside a row; a longer one is cut there, and stands whole in the table."""
_LEFT, _RIGHT, _TOP, _BOTTOM, _HIGH = 40, WIDE - 10, 28, 182, 216
_MOST_POINTS = 40
"""Points of a curve beyond which it is drawn without marks."""
_FEW = 3
"""Half of a mark's width."""


@dataclass(frozen=True)
class HeatRow:
    """One layer of a heat map's table: a cell for each column, None where there is none."""

    layer: int
    cells: tuple[SweepCell | None, ...]


def grid_of(sweep: SweepView) -> tuple[list[str], list[HeatRow]]:
    """Columns and rows of a heat map, the last layer first."""
    columns = role_order({cell.role for cell in sweep.cells})
    held = {(cell.layer, cell.role): cell for cell in sweep.cells}
    layers = sorted({cell.layer for cell in sweep.cells}, reverse=True)
    return columns, [HeatRow(n, tuple(held.get((n, column)) for column in columns)) for n in layers]


def effects_charts(views: Sequence[EffectsView]) -> list[tuple[EffectsView, Markup]]:
    """Each view with its chart, all on one scale."""
    bounds = _around([v for view in views for row in view.rows for v in _reach(row.effect)])
    return [(view, _effects(view, bounds)) for view in views]


def _reach(*figures: Figure) -> list[float]:
    return finite(v for figure in figures for v in (figure.value, figure.low, figure.high))


def _effects(view: EffectsView, bounds: tuple[float, float]) -> Markup:
    """Effects with their intervals as rows over a zero line."""
    rows = [(row.name, [(row.effect, row.mark)], number(row.effect.value)) for row in view.rows]
    said = "; ".join(f"{row.name} {number(row.effect.value)}" for row in view.rows)
    return _rows_chart(rows, bounds, view.axis, f"{view.title}, {view.axis}: {said}.")


def _rows_chart(
    rows: Sequence[tuple[str, Sequence[tuple[Figure, str]], str]],
    bounds: tuple[float, float],
    axis: str,
    label: str,
) -> Markup:
    """Rows of marks with their intervals, each row with its name and a value in words."""
    left, right, bottom = 170, WIDE - 52, len(rows) * _ROW + 6
    x = Scale(*bounds, left + 7, right - 5)
    marks = ticks(x.low, x.high, 3)
    parts = [rules("grid", [((x(v), 4), (x(v), bottom)) for v in marks if v != 0])]
    parts.append(rules("zero", [((x(0), 4), (x(0), bottom))]))
    for i, (name, figures, words) in enumerate(rows):
        y = i * _ROW + 17
        for figure, mark in figures:
            if len(finite((figure.low, figure.high))) == 2:
                parts.append(rules("whisker task", [((x(figure.low), y), (x(figure.high), y))]))
            if math.isfinite(figure.value):
                parts.append(tag("circle", cx=x(figure.value), cy=y, r=4, class_=f"dot {mark}"))
        parts.append(tag("text", _cut(name), x=left - 10, y=y + 4, class_="name end"))
        parts.append(tag("text", words, x=right + 8, y=y + 4, class_="value"))
    return drawing(WIDE, bottom + 36, label, *parts, *bottom_axis(x, bottom, marks, axis))


def joint_chart(rows: Sequence[JointRow]) -> Markup:
    """Each set's effect together (filled) and the sum of its effects alone (open), with their difference."""
    bounds = _around([v for row in rows for v in _reach(row.joint, row.singles)])
    shown = [
        (row.ablated, [(row.singles, "open"), (row.joint, "full")], number(row.index.value)) for row in rows
    ]
    said = "; ".join(
        f"{row.ablated} {number(row.joint.value)} together, {number(row.singles.value)} as a sum"
        for row in rows
    )
    axis = "change in log-odds, nats; right: difference"
    return _rows_chart(shown, bounds, axis, f"Joint and single ablations, nats: {said}.")


def singles_chart(shown: SinglesView) -> Markup:
    """Effects of the strongest single latents; filled where one was tested against random latents."""
    rows = [
        EffectRow(f"{row.site} · {row.latent}", row.effect, "full" if row.n_controls else "open")
        for row in shown.rows
    ]
    return effects_charts([EffectsView(f"Single latents at {shown.role}", "", rows)])[0][1]


def lines_chart(view: LinesView) -> Markup:
    """Curves with bands and marks over a quantity; levels that do not depend on it are drawn across."""
    curves = [line.curve for line in view.lines]
    seen = finite(_place(view, n) for curve in curves for n in curve.n_seen)
    shown = finite(v for c in curves for v in (*c.mean, *c.low, *c.high))
    x = Scale(min(seen, default=0.0), max(seen, default=1.0), _LEFT + 8, _RIGHT - 8)
    y = Scale(*_around([*shown, *(value for _, value in view.levels)]), _BOTTOM, _TOP)
    parts = _left_axis(y, view.unit)
    steps = sorted({*seen}) if view.scale == "log2" else []
    whole = [v for v in steps if v == int(v)] or [v for v in ticks(x.low, x.high, 6) if v == int(v)]
    marks = [(x(v), tick_text(2**v if view.scale == "log2" else v)) for v in whole]
    for _name, value in view.levels:
        parts.append(rules("level", [((_LEFT, y(value)), (_RIGHT, y(value)))]))
    parts += [_level_name(name, y(value)) for name, value in _apart(view.levels, y)]
    for line in view.lines:
        points = [
            (x(_place(view, n)), y(mean) if math.isfinite(mean) else math.nan)
            for n, mean in zip(line.curve.n_seen, line.curve.mean, strict=True)
        ]
        parts.append(tag("path", d=_band(view, line.curve, x, y), class_=f"band k-{line.kind}"))
        parts.append(tag("path", d=_runs(points), class_=f"line k-{line.kind}"))
        if len(points) <= _MOST_POINTS:
            marked = "".join(_mark(line.kind, point) for point in points)
            parts.append(tag("path", d=marked, class_=f"mark k-{line.kind}"))
    said = "; ".join(f"{line.name} {ends(line.curve)}" for line in view.lines)
    levels = "".join(f"; {name} {number(value)}" for name, value in view.levels)
    label = f"{view.title}, {view.unit} by {view.axis}: {said}{levels}."
    return drawing(WIDE, _HIGH, label, *parts, *_axis_of(marks, view.axis))


def key_mark(kind: str) -> Markup:
    """A kind of line, for a legend."""
    line = tag("path", d="M1 5H27", class_=f"line k-{kind}")
    mark = tag("path", d=_mark(kind, (14, 5)), class_=f"mark k-{kind}")
    return tag("svg", line, mark, viewBox="0 0 28 10", aria_hidden="true")


def ladder_chart(view: RedundancyLadder) -> Markup:
    """What the residual still brings at each step, what is left where it worked before, and the controls."""
    steps = view.steps
    values = [v for s in steps for v in (s.brings.value, s.left.value, s.control_low, s.control_high)]
    x = Scale(0, max(1, len(steps) - 1), _LEFT + 44, _RIGHT - 54)
    y = Scale(*_around([*finite(values), 1.0]), _BOTTOM - 16, _TOP)
    parts = _left_axis(y, "share of what the context is worth")
    half = rules("level", [((_LEFT, y(0.5)), (_RIGHT, y(0.5)))])
    parts += [half, tag("text", "half: a layer “works”", x=_RIGHT, y=y(0.5) - 4, class_="tick end")]
    for step in steps:
        parts += _control_box(step, x(step.step), y)
    tops = [(x(s.step), y(s.brings.value)) for s in steps if math.isfinite(s.brings.value)]
    parts.append(tag("path", d=_stairs(tops), class_="line k-first"))
    for step in steps:
        at = x(step.step)
        if math.isfinite(step.left.value):
            parts.append(tag("path", d=_mark("second", (at, y(step.left.value))), class_="mark k-second"))
        if math.isfinite(step.brings.value):
            parts.append(tag("path", d=_mark("first", (at, y(step.brings.value))), class_="mark k-first"))
            works = "none works" if math.isnan(step.first_layer) else f"layer {step.first_layer:.0f}"
            parts.append(tag("text", works, x=at + 9, y=y(step.brings.value) - 6, class_="value"))
        parts.append(tag("text", _without(step), x=at, y=_BOTTOM + 2, class_="tick mid"))
    label = f"{view.title}. {view.verdict} " + " ".join(_said(step) for step in steps)
    return drawing(WIDE, _BOTTOM + 10, label, *parts)


def response_chart(view: AnswersView) -> Markup:
    """Answers by x as points with their spread, the fitted line, and the task's own answers."""
    points, answers = view.points, view.answers
    x = Scale(min(points.n_seen, default=0), max(points.n_seen, default=1), _LEFT + 8, _RIGHT - 8)
    line = [view.intercept + view.slope * n for n in (x.low, x.high)]
    reach = finite([*points.mean, *points.low, *points.high, *answers.mean, *line])
    y = Scale(*_around(reach), _BOTTOM, _TOP)
    marks = [(x(v), tick_text(v)) for v in ticks(x.low, x.high, 5)]
    dots = [(x(n), y(m)) for n, m in zip(points.n_seen, points.mean, strict=True) if math.isfinite(m)]
    spread = [
        ((x(n), y(low)), (x(n), y(high)))
        for n, low, high in zip(points.n_seen, points.low, points.high, strict=True)
        if math.isfinite(low) and math.isfinite(high)
    ]
    own = [(x(n), y(m)) for n, m in zip(answers.n_seen, answers.mean, strict=True) if math.isfinite(m)]
    parts = [*_left_axis(y, "E[y | x]"), tag("path", d=_runs(own), class_="line exact")]
    parts.append(rules("spread", spread))
    if len(finite(line)) == 2:
        parts.append(rules("line k-second fit", [((x(x.low), y(line[0])), (x(x.high), y(line[1])))]))
    parts.append(tag("g", *(tag("circle", cx=at, cy=up, r=2.2) for at, up in dots), class_="point"))
    label = f"{view.title}: E[y | x] by x, slope {number(view.slope)}, intercept {number(view.intercept)}."
    return drawing(WIDE, _HIGH, label, *parts, *_axis_of(marks, "x of run B’s query"))


def _place(view: LinesView, n: float) -> float:
    if view.scale != "log2":
        return n
    return math.log2(n) if n > 0 else math.nan


def _around(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(0.0, *values, 0.0), max(0.0, *values, 0.0)
    return (low, high) if high > low else (0.0, 1.0)


def _cut(name: str) -> str:
    return name if len(name) <= _NAMES else f"{name[: _NAMES - 1]}…"


def _without(step: LadderStep) -> str:
    return _cut(f"without {step.ablated}") if step.ablated else "intact"


def _said(step: LadderStep) -> str:
    beside = "" if math.isnan(step.control_low) else (
        f", {number(step.control_low)} to {number(step.control_high)} in {step.n_controls} control sets"
    )  # fmt: skip
    left = "" if math.isnan(step.left.value) else f", left where it worked before {number(step.left.value)}"
    name = f"Without {step.ablated}" if step.ablated else "Intact"
    return f"{name}: {number(step.brings.value)}{left}{beside}."


def _control_box(step: LadderStep, at: float, y: Scale) -> list[Markup]:
    if len(finite((step.control_low, step.control_high))) < 2:
        return []
    top, bottom = y(step.control_high), y(step.control_low)
    high = max(1.5, bottom - top)
    return [tag("rect", x=round(at - 16, 1), y=top, width=32, height=round(high, 1), class_="control-band")]


def _mark(kind: str, at: Point) -> str:
    """Path of a point: a disc, a diamond, a square, a cross or a bar by its kind."""
    x, y = at
    if not (math.isfinite(x) and math.isfinite(y)):
        return ""
    r = _FEW
    return {
        "first": f"M{x - r:g} {y:g}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 -{2 * r} 0z",
        "second": f"M{x:g} {y - r - 1:g}l{r + 1} {r + 1}l-{r + 1} {r + 1}l-{r + 1}-{r + 1}z",
        "third": f"M{x - r:g} {y - r:g}h{2 * r}v{2 * r}h-{2 * r}z",
        "model": f"M{x - r:g} {y:g}h{2 * r}M{x:g} {y - r:g}v{2 * r}",
    }.get(kind, f"M{x - r:g} {y:g}h{2 * r}")


def _runs(points: Sequence[Point]) -> str:
    """Path through the points, broken where one is undefined."""
    path, pen = [], "M"
    for x, y in points:
        known = math.isfinite(x) and math.isfinite(y)
        if known:
            path.append(f"{pen}{x:g} {y:g}")
        pen = "L" if known else "M"
    return "".join(path)


def _stairs(points: Sequence[Point]) -> str:
    """Path that stays on a value until the next step."""
    path = [f"M{x:g} {y:g}" if not i else f"H{x:g}V{y:g}" for i, (x, y) in enumerate(points)]
    return "".join(path)


def _band(view: LinesView, curve: Curve, x: Scale, y: Scale) -> str:
    edges = [
        (x(_place(view, n)), y(low), y(high))
        for n, low, high in zip(curve.n_seen, curve.low, curve.high, strict=True)
        if len(finite((low, high, _place(view, n)))) == 3
    ]
    if len(edges) < 2:
        return ""
    around = [*((n, high) for n, _, high in edges), *((n, low) for n, low, _ in reversed(edges))]
    return _runs(around) + "Z"


def _apart(levels: Sequence[tuple[str, float]], y: Scale) -> list[tuple[str, float]]:
    """Levels whose names do not stand on each other; the others are named in the table alone."""
    kept: list[tuple[str, float]] = []
    for name, value in levels:
        if all(abs(y(value) - y(other)) >= 12 for _, other in kept):
            kept.append((name, value))
    return kept


def _level_name(name: str, at: float) -> Markup:
    return tag("text", name, x=_LEFT + 4, y=round(at - 4, 1), class_="tick")


def _left_axis(y: Scale, unit: str) -> list[Markup]:
    unit_name = tag("text", unit, x=0, y=7, class_="axis")
    return [*left_axis(y, _LEFT, _RIGHT, ticks(y.low, y.high)), unit_name]


def _axis_of(marks: Sequence[tuple[float, str]], title: str) -> list[Markup]:
    entries = [tag("text", text, x=at, y=_BOTTOM + 15, class_="tick mid") for at, text in marks]
    return [*entries, tag("text", title, x=(_LEFT + _RIGHT) / 2, y=_BOTTOM + 31, class_="axis mid")]
