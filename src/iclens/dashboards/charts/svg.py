"""How are a latent's small charts drawn? As hand-written SVG, coloured by the style sheet.

A latent page holds some eight charts, and there are hundreds of pages: each is written here in
well under a millisecond. Colours and dashes are CSS classes, so one drawing serves light and dark.
Text goes through markupsafe, so a hostile name stays text.

1. `Scale` maps values to coordinates, `ticks` chooses round labels;
2. `line_chart` draws curves with bands over examples, `bar_chart` tasks, `interval_chart` effects beside
   their control band, `histogram` counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from iclens.dashboards.records.latent import Curve, Histogram, PatchRow, TaskActivation
from iclens.dashboards.text import number

NARROW, WIDE = 260, 380
"""Widths in drawing units, close to the pixels they are shown at."""
_ROW = 20


Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Linear map of [low, high] to [start, stop]."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Coordinate of `value`, to a tenth of a unit."""
        share = (value - self.low) / (self.high - self.low or 1.0)
        return round(self.start + share * (self.stop - self.start), 1)


def finite(values: Iterable[float]) -> list[float]:
    """The defined ones."""
    return [v for v in values if math.isfinite(v)]


def ends(curve: Curve) -> str:
    """A curve in words: its first and last value."""
    known = [(n, m) for n, m in zip(curve.n_seen, curve.mean, strict=True) if math.isfinite(m)]
    if not known:
        return "undefined"
    (first, start), (last, stop) = known[0], known[-1]
    return f"{number(start)} at {tick_text(first)}, {number(stop)} at {tick_text(last)}"


FINEST = 16
"""Steps that an axis may be cut into to show two of its values at least."""


def ticks(low: float, high: float, n: int = 4) -> list[float]:
    """About `n` round numbers inside [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if last - first < 1 and n < FINEST:
        return ticks(low, high, 2 * n)
    return [k * step for k in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A tick's label, without trailing zeros."""
    return f"{value:.6g}".replace("-", "−")


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """One element; `class_` is `class`, underscores become hyphens, text and values are escaped."""
    pairs = ((k.rstrip("_").replace("_", "-"), v) for k, v in attributes.items())
    head = "".join(f' {k}="{escape(str(v))}"' for k, v in pairs)
    inside = "".join(escape(c) for c in children)
    return Markup(f"<{name}{head}>{inside}</{name}>" if inside else f"<{name}{head}/>")


def drawing(width: int, height: float, label: str, *parts: str) -> Markup:
    """The `<svg>` around `parts`, with `label` as its text alternative."""
    box = f"0 0 {width} {height:g}"
    return tag("svg", *parts, viewBox=box, class_="chart", role="img", aria_label=label)


def _words(class_: str, entries: Iterable[tuple[str, float, float]]) -> Markup:
    """Texts of one class, each (content, x, y)."""
    return tag("g", *(tag("text", c, x=f"{x:g}", y=f"{y:g}") for c, x, y in entries), class_=class_)


def _rules(class_: str, lines: Iterable[tuple[Point, Point]]) -> Markup:
    """Straight lines of one class, as one path."""
    return tag("path", d="".join(map(_polyline, lines)), class_=class_)


def _polyline(points: Sequence[Point]) -> str:
    """Path through the points, in relative steps."""
    (x, y), path = points[0], []
    for to_x, to_y in points[1:]:
        path += [f"{round(to_x - x, 1):g}", f"{round(to_y - y, 1):g}"]
        x, y = to_x, to_y
    short = [step.replace("0.", ".", 1) if step.lstrip("-").startswith("0.") else step for step in path]
    steps = f"l{' '.join(short)}" if short else ""
    return f"M{points[0][0]:g} {points[0][1]:g}{steps}".replace(" -", "-")


def _boxes(class_: str, boxes: Iterable[tuple[float, float, float, float]]) -> Markup:
    """Rectangles of one class, each (left, top, width, height), as one path."""
    paths = (f"M{x:g} {y:g}h{w:.4g}v{h:.4g}h-{w:.4g}z" for x, y, w, h in boxes)
    return tag("path", d="".join(paths), class_=class_)


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(0.0, *values), max(0.0, *values)
    return (low, high) if high > low else (0.0, 1.0)


def _left_axis(y: Scale, left: float, right: float, values: Sequence[float]) -> list[Markup]:
    return [
        _rules("grid", (((left, y(v)), (right, y(v))) for v in values if v != 0)),
        _rules("zero", (((left, y(v)), (right, y(v))) for v in values if v == 0)),
        _words("tick end", ((tick_text(v), left - 6, y(v) + 3.5) for v in values)),
    ]


def _bottom_axis(x: Scale, y: float, values: Sequence[float], title: str) -> list[Markup]:
    middle = (x.start + x.stop) / 2
    entries = [(tick_text(v), x(v), y + 15) for v in values]
    return [_words("tick mid", [*entries, (title, middle, y + 30)])]


def line_chart(curves: Sequence[tuple[str, Curve]], label: str, axis: str = "examples seen") -> Markup:
    """Curves with bands over the number of examples seen, or another quantity; zero is on the upright axis.

    Args:
        curves: (CSS class, curve), drawn in this order.
        label: text alternative.
        axis: what the curves run over.
    """
    left, right, top, bottom = 34, NARROW - 4, 8, 132
    shown = finite(v for _, c in curves for v in (*c.mean, *c.low, *c.high))
    seen = [n for _, c in curves for n in c.n_seen]
    x = Scale(min(seen, default=0), max(seen, default=1), left + 5, right - 4)
    y = Scale(*_bounds(shown or [0.0, 1.0]), bottom, top)
    parts = _left_axis(y, left, right, ticks(y.low, y.high))
    parts += _bottom_axis(x, bottom, [v for v in ticks(x.low, x.high, 5) if v == int(v)], axis)
    for class_, curve in curves:
        parts.append(tag("path", d=_band(curve, x, y), class_=f"band {class_}"))
        parts.append(tag("path", d=_line(curve, x, y), class_=f"line {class_}"))
    return drawing(NARROW, 164, label, *parts)


def _line(curve: Curve, x: Scale, y: Scale) -> str:
    runs: list[list[Point]] = [[]]
    for n, mean in zip(curve.n_seen, curve.mean, strict=True):
        if math.isfinite(mean):
            runs[-1].append((x(n), y(mean)))
        else:
            runs.append([])
    return "".join(_polyline(run) for run in runs if run)


def _band(curve: Curve, x: Scale, y: Scale) -> str:
    edges = [
        (x(n), y(lo), y(hi))
        for n, lo, hi in zip(curve.n_seen, curve.low, curve.high, strict=True)
        if math.isfinite(lo) and math.isfinite(hi)
    ]
    if len(edges) < 2:
        return ""
    return _polyline([(n, hi) for n, _, hi in edges] + [(n, lo) for n, lo, _ in reversed(edges)]) + "Z"


def bar_chart(tasks: Sequence[TaskActivation], label: str) -> Markup:
    """One bar per task with its interval and value; a held-out task's name carries a star."""
    left, right, bottom = 96, WIDE - 46, len(tasks) * _ROW
    x = Scale(*_bounds(finite(v for t in tasks for v in (t.mean, t.low, t.high)) or [1.0]), left, right)
    rows = [(task, i * _ROW + 10) for i, task in enumerate(tasks)]
    spans = [(sorted((x(0), x(t.mean))), y) for t, y in rows if math.isfinite(t.mean)]
    known = [(t, y) for t, y in rows if len(finite((t.low, t.high))) == 2]
    return drawing(
        WIDE,
        bottom + 4,
        label,
        _boxes("bar", ((lo, y - 6, hi - lo, 12) for (lo, hi), y in spans)),
        _rules("whisker", (((x(t.low), y), (x(t.high), y)) for t, y in known)),
        _rules("zero", [((x(0), 2), (x(0), bottom))]),
        _words("name end", ((_task_name(t), left - 8, y + 4) for t, y in rows)),
        _words("value", ((number(t.mean), right + 6, y + 4) for t, y in rows)),
    )


def _task_name(task: TaskActivation) -> str:
    return _shortened(task.task, 14) + ("*" if task.split == "held out" else "")


def _shortened(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def interval_chart(patches: Sequence[PatchRow], label: str) -> Markup:
    """Effect on each belief as a point with its interval, over the band of matched random latents."""
    left, right, bottom = 76, WIDE - 52, len(patches) * 28 + 4
    reach = (v for p in patches for v in (p.effect, p.ci_low, p.ci_high, p.control_low, p.control_high))
    x = Scale(*_bounds(finite(reach) or [1.0]), left, right)
    rows = [(patch, i * 28 + 18) for i, patch in enumerate(patches)]
    controls = [(p, y) for p, y in rows if len(finite((p.control_low, p.control_high))) == 2]
    known = [(p, y) for p, y in rows if len(finite((p.ci_low, p.ci_high))) == 2]
    points = [(p, y) for p, y in rows if math.isfinite(p.effect)]
    marks = ticks(x.low, x.high)
    return drawing(
        WIDE,
        bottom + 34,
        label,
        _rules("grid", (((x(v), 4), (x(v), bottom)) for v in marks if v != 0)),
        _boxes("control-band", (_control_box(p, x, y) for p, y in controls)),
        _rules("zero", [((x(0), 4), (x(0), bottom))]),
        _rules("whisker task", (((x(p.ci_low), y), (x(p.ci_high), y)) for p, y in known)),
        tag("g", *(tag("circle", cx=x(p.effect), cy=y, r=4) for p, y in points), class_="point"),
        _words("name end", ((_shortened(p.belief, 11), left - 12, y + 4) for p, y in rows)),
        _words("value", ((number(p.effect), right + 8, y + 4) for p, y in rows)),
        *_bottom_axis(x, bottom, marks, "change in log-odds, nats"),
    )


def _control_box(patch: PatchRow, x: Scale, y: float) -> tuple[float, float, float, float]:
    start, stop = x(patch.control_low), x(patch.control_high)
    return start, y - 8, max(1.5, stop - start), 16


def histogram(bins: Histogram, label: str) -> Markup:
    """Counts of activations between the edges."""
    left, right, top, bottom = 44, WIDE - 8, 10, 118
    x = Scale(bins.edges[0], bins.edges[-1], left, right)
    y = Scale(0, max(bins.counts, default=0) or 1, bottom, top)
    marks = [v for v in ticks(0, y.high, 3) if v == int(v)]
    bars = [
        (x(start), y(held), max(0.5, x(stop) - x(start) - 1), bottom - y(held))
        for start, stop, held in zip(bins.edges, bins.edges[1:], bins.counts, strict=False)
        if held
    ]
    across = _bottom_axis(x, bottom, ticks(x.low, x.high), "activation where active")
    return drawing(WIDE, 152, label, *_left_axis(y, left, right, marks), _boxes("bar", bars), *across)
