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
from functools import cache

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
        return round(self.start + (value - self.low) * self.slope, 1)

    @property
    def slope(self) -> float:
        """Units of the drawing per unit of the value."""
        return (self.stop - self.start) / (self.high - self.low or 1.0)

    def tenths(self, values: Iterable[float]) -> list[int | None]:
        """Coordinates in tenths of a unit; None where a value is undefined."""
        start, slope = 10 * (self.start - self.low * self.slope), 10 * self.slope
        return [round(start + v * slope) if math.isfinite(v) else None for v in values]


def level(value: float, peak: float) -> int:
    """Step of colour of a value, 0 (not above zero, or undefined) to `LEVELS` (the largest)."""
    if not (math.isfinite(value) and value > 0):
        return 0
    return min(max(1, round(LEVELS * value / peak)), LEVELS)


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


LEVELS = 8
"""Steps of colour, as the style sheet has them."""
DOT = 3
"""Width of a dot, as the style sheet draws it."""
FINEST = 16
"""Steps that an axis may be cut into to show two of its values at least."""


def ticks(low: float, high: float, n: int = 3) -> list[float]:
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
    inside = Markup("").join(parts)
    head = f'<svg class=chart role=img viewBox="0 0 {width} {height:g}" aria-label="{escape(label)}">'
    return Markup(f"{head}{inside}</svg>")


def _words(class_: str, entries: Iterable[tuple[str, float, float]]) -> Markup:
    """Texts of one class, each (content, x, y), to the nearest unit."""
    texts = (f"<text x={x:.0f} y={y:.0f}>{c if c.isalnum() else escape(c)}</text>" for c, x, y in entries)
    return Markup(f'<g class="{escape(class_)}">{"".join(texts)}</g>')


def rules(class_: str, lines: Iterable[tuple[Point, Point]]) -> Markup:
    """Straight lines of one class, as one path."""
    paths = (f"M{short(x)} {short(y)}L{short(to_x)} {short(to_y)}" for (x, y), (to_x, to_y) in lines)
    return _path(class_, "".join(paths))


def _path(class_: str, steps: str) -> Markup:
    return Markup(f'<path d="{steps}" class="{class_}"/>')


def _polyline(points: Sequence[tuple[int, int]]) -> str:
    """Path through points given in tenths of a unit, in relative steps; level ones are joined."""
    (x, y), steps = points[0], [f"M{tenth(points[0][0])} {tenth(points[0][1])}"]
    last = len(points) - 1
    for i, (to_x, to_y) in enumerate(points[1:], start=1):
        if y == to_y:
            if i < last and points[i + 1][1] == y:
                continue
            steps.append(f"h{tenth(to_x - x)}")
        else:
            steps.append(f"l{tenth(to_x - x)} {tenth(to_y - y)}")
        x, y = to_x, to_y
    if not last:
        steps.append("h0")  # a round cap makes it a dot
    return "".join(steps).replace(" -", "-")


def short(value: float) -> str:
    """A coordinate to a tenth, in as few characters as it takes."""
    return tenth(round(10 * value))


@cache
def tenth(n: int) -> str:
    """`n` tenths of a unit, in as few characters as it takes: .5, -12, 3.1."""
    text = f"{n / 10:g}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def _boxes(class_: str, boxes: Iterable[tuple[float, float, float, float]]) -> Markup:
    """Rectangles of one class, each (left, top, width, height), as one path."""
    paths = (f"M{short(x)} {short(y)}h{short(w)}v{short(h)}h-{short(w)}z" for x, y, w, h in boxes)
    return _path(class_, "".join(paths))


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(0.0, *values), max(0.0, *values)
    return (low, high) if high > low else (0.0, 1.0)


def left_axis(y: Scale, left: float, right: float, values: Sequence[float]) -> list[Markup]:
    """Lines across and labels at some values of the upright axis."""
    return [
        rules("grid", (((left, y(v)), (right, y(v))) for v in values if v != 0)),
        rules("zero", (((left, y(v)), (right, y(v))) for v in values if v == 0)),
        _words("tick end", ((tick_text(v), left - 6, y(v) + 3.5) for v in values)),
    ]


def bottom_axis(x: Scale, y: float, values: Sequence[float], title: str) -> list[Markup]:
    """Labels at some values of the axis below, and its title."""
    middle = (x.start + x.stop) / 2
    entries = [(tick_text(v), x(v), y + 15) for v in values]
    return [_words("tick mid", [*entries, (title, middle, y + 30)])]


def line_chart(
    curves: Sequence[tuple[str, Curve]], label: str, axis: str = "examples seen", width: int = NARROW
) -> Markup:
    """Curves with bands over the number of examples seen, or another quantity; zero is on the upright axis.

    Args:
        curves: (CSS class, curve), drawn in this order.
        label: text alternative.
        axis: what the curves run over.
        width: of the drawing.
    """
    left, right, top, bottom = 34, width - 4, 8, 132
    shown = finite(v for _, c in curves for v in (*c.mean, *c.low, *c.high))
    seen = [n for _, c in curves for n in c.n_seen]
    x = Scale(min(seen, default=0), max(seen, default=1), left + 5, right - 4)
    y = Scale(*_bounds(shown or [0.0, 1.0]), bottom, top)
    parts = left_axis(y, left, right, ticks(y.low, y.high))
    parts += bottom_axis(x, bottom, [v for v in ticks(x.low, x.high) if v == int(v)], axis)
    for class_, curve in curves:
        if band := _band(curve, x, y):
            parts.append(_path(f"band {class_}", band))
        parts.append(_path(f"line {class_}", _line(curve, x, y)))
    return drawing(width, 164, label, *parts)


def spark(means: Sequence[float], low: float, high: float) -> Markup:
    """A curve without axes, beside its values in a table, which are its text alternative.

    Args:
        means: [point].
        low: of all curves of the table.
        high: of all of them.
    """
    x, y = (
        Scale(0, max(len(means) - 1, 1), 4, 188),
        Scale(low, high, 44, 4),
    )  # twice what the style sheet shows
    path = _line(Curve.line(range(len(means)), means), x, y)
    return Markup(f'<svg class=spark aria-hidden=true><path d="{path}"/></svg>')


def dot_chart(points: Sequence[tuple[float, float]], label: str, axis: str) -> Markup:
    """Values as dots over a number, which may jump from one to the next; zero is on the upright axis.

    Args:
        points: (number, value).
        label: text alternative.
        axis: what the number is.
    """
    left, right, top, bottom = 34, NARROW - 4, 8, 132
    x = Scale(*span([v for v, _ in points]), left + 5, right - 4)
    y = Scale(*_bounds(finite(v for _, v in points) or [1.0]), bottom, top)
    places = list(zip(x.tenths(v for v, _ in points), y.tenths(v for _, v in points), strict=True))
    return drawing(
        NARROW,
        164,
        label,
        *left_axis(y, left, right, ticks(y.low, y.high)),
        *bottom_axis(x, bottom, ticks(x.low, x.high, 4), axis),
        _path("dots", _dots(places)),
    )


def _dots(places: Sequence[tuple[int | None, int | None]]) -> str:
    """A dot at each place, in tenths; touching neighbours of one height become one stroke."""
    strokes: list[list[int]] = []
    for across, up in places:
        if across is None or up is None:
            strokes.append([])
            continue
        n, height = _whole(across) // 10, _whole(up) // 10
        if strokes and strokes[-1] and strokes[-1][2] == height and n - strokes[-1][1] <= DOT:
            strokes[-1][1] = n
        else:
            strokes.append([n, n, height])
    path, x, y = "", 0, 0
    for start, stop, height in filter(None, strokes):
        path += f"m{start - x} {height - y}" + (f"h{stop - start}" if stop > start else "z")
        x, y = stop, height
    return path.replace(" -", "-")


def span(values: Sequence[float]) -> tuple[float, float]:
    """Least and largest value; 0 and 1 without any."""
    return min(values, default=0.0), max(values, default=1.0)


def _line(curve: Curve, x: Scale, y: Scale) -> str:
    runs: list[list[tuple[int, int]]] = [[]]
    for n, mean in zip(x.tenths(curve.n_seen), y.tenths(curve.mean), strict=True):
        if n is not None and mean is not None:
            runs[-1].append((_whole(n), mean))
        else:
            runs.append([])
    return "".join(_polyline(run) for run in runs if run)


def _whole(n: int) -> int:
    """Tenths to the nearest whole unit, in tenths."""
    return (n + 5) // 10 * 10


def _band(curve: Curve, x: Scale, y: Scale) -> str:
    places = zip(x.tenths(curve.n_seen), y.tenths(curve.low), y.tenths(curve.high), strict=True)
    edges = [
        (_whole(n), _whole(low), _whole(high))
        for n, low, high in places
        if n is not None and low is not None and high is not None
    ]
    if len(edges) < 2:
        return ""
    around = [(n, high) for n, _, high in edges] + [(n, low) for n, low, _ in reversed(edges)]
    return _polyline(around) + "Z"


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
        rules("whisker", (((x(t.low), y), (x(t.high), y)) for t, y in known)),
        rules("zero", [((x(0), 2), (x(0), bottom))]),
        _words("name end", ((_task_name(t), left - 8, y + 4) for t, y in rows)),
        _words("value", ((number(t.mean), right + 6, y + 4) for t, y in rows)),
    )


def _task_name(task: TaskActivation) -> str:
    return _shortened(task.task, 14) + ("*" if task.split == "held out" else "")


def _shortened(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def interval_chart(patches: Sequence[PatchRow], label: str) -> Markup:
    """Effect on each belief as a point with its interval, over the band of matched random latents."""
    left, right, bottom = 88, WIDE - 12, len(patches) * 28 + 4
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
        rules("grid", (((x(v), 4), (x(v), bottom)) for v in marks if v != 0)),
        _boxes("control-band", (_control_box(p, x, y) for p, y in controls)),
        rules("zero", [((x(0), 4), (x(0), bottom))]),
        rules("whisker task", (((x(p.ci_low), y), (x(p.ci_high), y)) for p, y in known)),
        tag("g", *(tag("circle", cx=x(p.effect), cy=y, r=4) for p, y in points), class_="point"),
        _words("name end", ((_shortened(p.belief, 12), left - 10, y + 4) for p, y in rows)),
        *bottom_axis(x, bottom, marks, "change in log-odds, nats"),
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
    across = bottom_axis(x, bottom, ticks(x.low, x.high), "activation where active")
    return drawing(WIDE, 152, label, *left_axis(y, left, right, marks), _boxes("bar", bars), *across)
