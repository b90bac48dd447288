"""Charts as SVG: rows of estimates, curves, heat maps, maps of two numbers and histograms.

1. `rows_chart` draws estimates below each other on one scale, as marks or bars with their intervals;
2. `lines_chart` curves with bands over a quantity, and dots where a curve would join what may jump;
3. `heat_chart` values in the cells of a small grid, `map_chart` shades of a large one, `bars_chart` counts;
4. each chart's text alternative is put together from what it draws.

Colours, dashes and sizes are CSS classes, so that one drawing serves light, dark and paper. Text goes
through markupsafe. A chart takes well under a millisecond, for a site has thousands of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup, escape

from iclens.pages.text import number

NARROW, WIDE = 260, 380
"""Widths in drawing units, close to the pixels they are shown at."""
LEVELS = 8
"""Steps of colour, as the style sheet has them."""
_ROW, _LONGEST = 22, 27
"""Height of a row; characters of a name beside it, which the chart's text alternative holds whole."""
_CHARACTER = 6.4
"""Width of a character of a name, about."""
_MOST_MARKS, _FINEST = 40, 16
"""Points beyond which a curve has no marks; most steps that an axis is cut into to show two values."""

Point = tuple[float, float]
Interval = tuple[float, float]
NAN = math.nan
UNKNOWN: Interval = (NAN, NAN)


class Scale(NamedTuple):
    """Linear map of [low, high] to [start, stop]."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Coordinate of `value`, to a tenth of a unit; NaN where it is undefined."""
        if not math.isfinite(value):
            return NAN
        share = (value - self.low) * (self.stop - self.start) / (self.high - self.low or 1.0)
        return round(self.start + share, 1)


def finite(values: Iterable[float]) -> list[float]:
    """The defined ones."""
    return [v for v in values if math.isfinite(v)]


def around(values: Iterable[float]) -> Interval:
    """Least and greatest of the defined values and zero; (0, 1) where there is nothing else."""
    known = [0.0, *finite(values)]
    low, high = min(known), max(known)
    return (low, high) if high > low else (0.0, 1.0)


def level(value: float, peak: float) -> int:
    """Step of colour of a value, 0 (not above zero, or undefined) to `LEVELS` (the largest)."""
    if not (math.isfinite(value) and value > 0):
        return 0
    return min(max(1, round(LEVELS * value / peak)), LEVELS)


def ticks(low: float, high: float, n: int = 3) -> list[float]:
    """About `n` round numbers inside [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if last - first < 1 and n < _FINEST:
        return ticks(low, high, 2 * n)
    return [k * step for k in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A tick's label, without trailing zeros."""
    return f"{value:.6g}".replace("-", "−")


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """One element; `class_` is `class`, underscores become hyphens, "" is left out, all text is escaped."""
    head = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value != "" or key == "open"
    )
    inside = "".join(escape(child) for child in children)
    return Markup(f"<{name}{head}>{inside}</{name}>" if inside else f"<{name}{head}/>")


def key(kind: str, words: str, *, marked: bool = False) -> Markup:
    """A kind of line in a legend, with what it stands for."""
    path = {"dots": _path("dots", "M14 5h0"), "range": _path("range", "M1 0h26v10h-26z")}
    shapes = [path.get(kind) or _path(f"line {kind}", "M1 5H27")]
    shapes += [_path(f"mark {kind}", _mark(kind, (14, 5)))] if marked else []
    return tag("span", tag("svg", *shapes, viewBox="0 0 28 10", aria_hidden="true"), words, class_="key")


# ---------------------------------------------------------------- rows


class Mark(NamedTuple):
    """An estimate on a row, drawn as a "full" or "open" dot, a "bar", or a "bar control"."""

    value: float
    low: float = NAN
    high: float = NAN
    kind: str = "full"


class Row(NamedTuple):
    """A line of a chart of rows."""

    name: str
    marks: Sequence[Mark]
    words: str = ""  # at its end
    range: Interval = UNKNOWN  # of its controls
    said: str = ""  # the row in words, for the text alternative; its name and words without


def reach(rows: Iterable[Row]) -> Interval:
    """From the least to the greatest value that rows show, zero included."""
    return around(v for row in rows for mark in row.marks for v in (*mark[:3], *row.range))


def rows_chart(
    rows: Sequence[Row], title: str, axis: str = "", bounds: Interval | None = None, said: str = "",
    width: int = WIDE,
) -> Markup:  # fmt: skip
    """Estimates below each other, over a line at zero.

    Args:
        axis: what the values are; no axis is drawn without.
        bounds: of the scale, where several charts share one; those of the rows by default.
        said: the values in words, where they are not the rows'.
    """
    longest = max((min(len(row.name), _LONGEST) for row in rows), default=0)
    left = min(max(44.0, 14 + _CHARACTER * longest), 180.0)
    right = width - 12 - 6 * max((len(row.words) for row in rows), default=0)
    bottom = len(rows) * _ROW + 6
    x = Scale(*(bounds or reach(rows)), left + 7, right - 5)
    marks = ticks(x.low, x.high, 4) if axis else []
    under, over = [], [_rules("grid", [((x(v), 4), (x(v), bottom)) for v in marks if v != 0])]
    for i, row in enumerate(rows):
        y = i * _ROW + 17.0
        start, stop = map(x, row.range)
        if start == start and stop == stop:
            under.append(_box("range", start, y - 8, max(1.5, stop - start), 16))
        for value, low, high, kind in row.marks:
            at, ends, is_bar = x(value), (x(low), x(high)), kind.startswith("bar")
            if is_bar and at == at:
                under.append(_box(kind, min(at, x(0)), y - 6, abs(at - x(0)), 12))
            if ends[0] == ends[0] and ends[1] == ends[1]:
                over.append(_rules("whisker", [((ends[0], y), (ends[1], y))]))
            if not is_bar and at == at:
                over.append(tag("circle", cx=at, cy=y, r=4, class_=f"dot {kind}"))
        over.append(tag("text", cut(row.name), x=f"{left - 4:g}", y=f"{y + 4:g}", class_="name end"))
        if row.words:
            over.append(tag("text", row.words, x=f"{right + 4:g}", y=f"{y + 4:g}", class_="value"))
    zero = _rules("zero", [((x(0), 4), (x(0), bottom))])
    told = said or "; ".join(
        row.said or f"{row.name} {row.words or number(row.marks[0].value)}" for row in rows
    )
    label = f"{title}{f', {axis}' if axis else ''}: {told.removesuffix('.')}."
    parts = [*under, zero, *over, *_bottom_axis(x, bottom, marks, axis)]
    return drawing(bottom + (34 if axis else 4), label, *parts, width=width)


# ---------------------------------------------------------------- curves


@dataclass(frozen=True)
class Line:
    """One curve of a chart, over points [point]; NaN breaks it, and an interval of NaN draws no band."""

    name: str  # in the text alternative, and in the table of values
    # "task", "control", "exact", "third", "random", "fit" (a fitted line) or "dots" (values that may jump)
    kind: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()

    @property
    def ends(self) -> str:
        """Its first and last defined value in words."""
        known = [(n, m) for n, m in zip(self.x, self.y, strict=True) if math.isfinite(m)]
        if not known:
            return "undefined"
        (first, start), (last, stop) = known[0], known[-1]
        return f"{number(start)} at {tick_text(first)}, {number(stop)} at {tick_text(last)}"

    @property
    def flat(self) -> bool:
        """Whether it is zero everywhere, or nowhere defined."""
        return not any(value and math.isfinite(value) for value in self.y)

    @property
    def band(self) -> list[tuple[float, float, float]]:
        """Points whose interval is defined: (x, low, high)."""
        return [row for row in zip(self.x, self.low, self.high, strict=False) if len(finite(row)) == 3]


def lines_chart(
    lines: Sequence[Line],
    title: str,
    axis: str = "examples seen",
    *,
    unit: str = "",  # what they measure, above the upright axis
    width: int = NARROW,
    levels: Sequence[tuple[str, float]] = (),  # (name, value) of what does not depend on it, drawn across
    log2: bool = False,  # whether the quantity stands at its logarithm
    marked: bool = False,  # whether points have marks, which tell kinds apart
    zero: bool = True,  # whether the upright axis starts at zero
    said: str = "",  # the text alternative, where it is not the title with each line's ends
) -> Markup:
    """Curves over a quantity, the first on top."""
    left, right, top = 40, width - 6, 24 if unit else 8
    bottom, high = top + round(0.4 * width) + 4, top + round(0.4 * width) + 36
    place = (lambda n: math.log2(n) if n > 0 else NAN) if log2 else float
    points_x = finite(place(n) for line in lines for n in line.x)
    known = finite([v for line in lines for v in (*line.y, *line.low, *line.high)] + [v for _, v in levels])
    x = Scale(min(points_x, default=0.0), max(points_x, default=1.0), left + 6, right - 5)
    y = Scale(*(around(known) if zero or not known else (min(known), max(known))), bottom, top)
    parts = _left_axis(y, left, right, unit)
    parts += [_rules("level", [((left, y(value)), (right, y(value)))]) for _, value in levels]
    parts += [
        tag("text", name, x=left + 4, y=round(y(value) - 4, 1), class_="tick")
        for name, value in _apart(levels, y)
    ]
    for line in reversed(lines):
        points = [(x(place(n)), y(m)) for n, m in zip(line.x, line.y, strict=True)]
        band = [(x(place(n)), y(lo), y(hi)) for n, lo, hi in line.band]
        if line.kind == "dots":
            parts.append(_rules("whisker faint", [((n, lo), (n, hi)) for n, lo, hi in band]))
            parts.append(_path("dots", _dots(points)))
            continue
        if len(band) > 1:
            edge = [(n, hi) for n, _, hi in band] + [(n, lo) for n, lo, _ in reversed(band)]
            parts.append(_path(f"band {line.kind}", _polyline(edge) + "Z"))
        parts.append(_path(f"line {line.kind}", _runs(points)))
        if marked and len(points) <= _MOST_MARKS and line.kind != "fit":
            parts.append(_path(f"mark {line.kind}", "".join(_mark(line.kind, at) for at in points)))
    if log2:
        at = sorted({n for line in lines for n in line.x if n > 0})
        marks = [(tick_text(n), x(math.log2(n))) for n in at if math.log2(n).is_integer() or len(at) < 9]
    else:
        whole = all(float(n).is_integer() for line in lines for n in line.x)
        marks = [(tick_text(v), x(v)) for v in ticks(x.low, x.high, 4) if v == int(v) or not whole]
    parts.append(_words("tick mid", [(text, at, bottom + 15) for text, at in marks]))
    parts.append(_words("tick mid", [(axis, (left + right) / 2, bottom + 30)]))
    ends = "; ".join([f"{line.name} {line.ends}" for line in lines] + [f"{n} {number(v)}" for n, v in levels])
    label = said or f"{title}{f', {unit}' if unit else ''} by {axis}: {ends}."
    return drawing(high, label, *parts, width=width)


def spark(means: Sequence[float], low: float, high: float) -> Markup:
    """A curve [point] without axes, from `low` to `high`; its values beside it are its text alternative."""
    # twice what the style sheet shows
    x, y = Scale(0, max(len(means) - 1, 1), 4, 188), Scale(low, high, 44, 4)
    path = _runs([(x(n), y(mean)) for n, mean in enumerate(means)])
    return Markup(f'<svg class=spark aria-hidden=true><path d="{path}"/></svg>')


# ---------------------------------------------------------------- grids


def heat_chart(
    columns: Sequence[str],
    rows: Sequence[str],
    cells: Mapping[tuple[str, str], tuple[float, str]],
    title: str,
    *,
    down: str = "",
    across: str = "",
) -> Markup:
    """A grid of cells with their values written into them.

    Args:
        cells: (column, row) → its shade, 0 to 1, and its value in words; a missing one is left blank.
        down, across: what the rows and the columns are.
    """
    side = 14 if down else 0
    left = side + 12 + _CHARACTER * max((min(len(name), _LONGEST) for name in rows), default=0)
    wide = max(52.0, 10 + _CHARACTER * max((min(len(name), _LONGEST) for name in columns), default=0))
    high, top = (26 if len(rows) <= 16 else 18), 22
    width, bottom = round(left + wide * len(columns) + 4), top + high * len(rows) + 4
    by_level: dict[int, list[str]] = defaultdict(list)
    words: list[tuple[str, float, float]] = []
    for i, column in enumerate(columns):
        for k, row in enumerate(rows):
            if (column, row) in cells:
                shade, text = cells[column, row]
                x, y = left + i * wide + 1, top + k * high + 1
                by_level[level(shade, 1.0)].append(f"M{x:g} {y:g}h{wide - 2:g}v{high - 2:g}h{2 - wide:g}z")
                words.append((text, x + wide / 2 - 1, y + high / 2 + 3))
    names = [(cut(name), left + (i + 0.5) * wide, top - 8) for i, name in enumerate(columns)]
    beside = [(cut(name), left - 7, top + (k + 0.5) * high + 4) for k, name in enumerate(rows)]
    turned = f"translate(10 {top + high * len(rows) / 2:g}) rotate(-90)"
    best = max(((shade, at) for at, (shade, _) in cells.items() if shade == shade), default=None)
    said = "undefined"
    if best is not None:
        column, row = best[1]
        said = f"largest {cells[best[1]][1]} at {across} {column}, {down} {row}".replace("  ", " ")
    parts = [
        *_boxes(by_level),
        _words("tick mid", names),
        _words("tick end", beside),
        _words("cell mid", words),
        *([tag("text", down, transform=turned, class_="tick mid")] if down else []),
    ]
    return drawing(bottom, f"{title}: {said}.", *parts, width=width, natural=True)


def map_chart(boxes: Sequence[tuple[int, int, float]], width: int, title: str) -> Markup:
    """Shades of a mean over boxes (x, y, mean) of a width, x across and y up; without rows one is blank."""
    left, right, top, bottom = 34, NARROW - 4, 8, 112
    x = Scale(min(b[0] for b in boxes), max(b[0] for b in boxes) + width, left, right)
    y = Scale(min(b[1] for b in boxes), max(b[1] for b in boxes) + width, bottom, top)
    peak = max(finite(b[2] for b in boxes), default=0.0)
    by_level: dict[int, list[str]] = defaultdict(list)
    for at, up, mean in boxes:
        across, down = (at - x.low) / width, (y.high - up) / width - 1
        by_level[level(mean, peak)].append(f"M{_short(across)} {_short(down)}h1v1h-1z")
    wide, high = x(x.low + width) - left, bottom - y(y.low + width)
    parts = [
        tag("g", *_boxes(by_level), transform=f"translate({left} {top}) scale({wide:.5g} {high:.5g})"),
        _words("tick mid", [(tick_text(v), x(v), bottom + 15) for v in ticks(x.low, x.high, 4)]),
        _words("tick end", [(tick_text(v), left - 6, y(v) + 3.5) for v in ticks(y.low, y.high)]),
        _words("tick mid", [("x across, y up", (left + right) / 2, bottom + 30)]),
    ]
    return drawing(144, title, *parts, width=NARROW)


def bars_chart(
    edges: Sequence[float], counts: Sequence[float], title: str, axis: str, width: int = WIDE
) -> Markup:
    """Counts [bin] between edges [bin + 1]."""
    left, right, top, bottom = 44, width - 8, 10, 118
    x, y = Scale(edges[0], edges[-1], left, right), Scale(0, max(counts, default=0) or 1, bottom, top)
    bars = [
        _box("bar", x(start), y(n), max(0.5, x(stop) - x(start) - 1), bottom - y(n))
        for start, stop, n in zip(edges, edges[1:], counts, strict=False)
        if n
    ]
    parts = [*_left_axis(y, left, right), *bars, *_bottom_axis(x, bottom, ticks(x.low, x.high), axis)]
    return drawing(152, title, *parts, width=width)


# ---------------------------------------------------------------- parts


def drawing(height: float, label: str, *parts: str, width: int = WIDE, natural: bool = False) -> Markup:
    """The `<svg>` around `parts`, with `label` as its text alternative; `natural` keeps its own width."""
    size, kind = (f' width="{width}"', '"chart natural"') if natural else ("", "chart")
    head = f'<svg class={kind} role=img viewBox="0 0 {width} {height:g}"{size} aria-label="{escape(label)}">'
    return Markup(f"{head}{Markup('').join(parts)}</svg>")


def cut(name: str) -> str:
    """A name as it stands in a chart."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _words(class_: str, entries: Iterable[tuple[str, float, float]]) -> Markup:
    """Texts of one class, each (content, x, y), to the nearest unit."""
    texts = (f"<text x={x:.0f} y={y:.0f}>{c if c.isalnum() else escape(c)}</text>" for c, x, y in entries)
    return Markup(f'<g class="{escape(class_)}">{"".join(texts)}</g>')


def _path(class_: str, steps: str) -> Markup:
    return Markup(f'<path d="{steps}" class="{class_}"/>')


def _boxes(by_level: Mapping[int, Sequence[str]]) -> list[Markup]:
    """Cells, one path for each step of colour."""
    return [_path(f"box m{n}", "".join(paths)) for n, paths in sorted(by_level.items())]


def _rules(class_: str, lines: Iterable[tuple[Point, Point]]) -> Markup:
    """Straight lines of one class, as one path."""
    paths = (f"M{_short(x)} {_short(y)}L{_short(to_x)} {_short(to_y)}" for (x, y), (to_x, to_y) in lines)
    return _path(class_, "".join(paths))


def _box(class_: str, x: float, y: float, width: float, height: float) -> Markup:
    return _path(class_, f"M{_short(x)} {_short(y)}h{_short(width)}v{_short(height)}h-{_short(width)}z")


def _left_axis(y: Scale, left: float, right: float, unit: str = "") -> list[Markup]:
    """Lines across and labels at some values of the upright axis, and what it measures."""
    values = ticks(y.low, y.high, 4)
    return [
        _rules("grid", (((left, y(v)), (right, y(v))) for v in values if v != 0)),
        _rules("zero", (((left, y(v)), (right, y(v))) for v in values if v == 0)),
        _words("tick end", ((tick_text(v), left - 6, y(v) + 3.5) for v in values)),
        *([tag("text", unit, x=0, y=9, class_="tick")] if unit else []),
    ]


def _bottom_axis(x: Scale, y: float, values: Sequence[float], title: str) -> list[Markup]:
    """Labels at some values of the axis below, and its title; nothing without a title."""
    entries = [(tick_text(v), x(v), y + 14) for v in values]
    return [_words("tick mid", [*entries, (title, (x.start + x.stop) / 2, y + 29)])] if title else []


def _apart(levels: Sequence[tuple[str, float]], y: Scale) -> list[tuple[str, float]]:
    """Levels whose names do not stand on each other; the others are named in words alone."""
    kept: list[tuple[str, float]] = []
    for name, value in levels:
        if all(abs(y(value) - y(other)) >= 12 for _, other in kept):
            kept.append((name, value))
    return kept


def _mark(kind: str, at: Point) -> str:
    """Path of a point: a disc, a diamond, a square, a cross or a bar by its kind."""
    x, y = at
    if not (math.isfinite(x) and math.isfinite(y)):
        return ""
    return {
        "task": f"M{x - 3:g} {y:g}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0z",
        "control": f"M{x:g} {y - 4:g}l4 4l-4 4l-4-4z",
        "third": f"M{x - 3:g} {y - 3:g}h6v6h-6z",
        "exact": f"M{x - 3:g} {y:g}h6M{x:g} {y - 3:g}v6",
    }.get(kind, f"M{x - 3:g} {y:g}h6")


def _runs(points: Sequence[Point]) -> str:
    """Path through the points, broken where one is undefined."""
    runs: list[list[Point]] = [[]]
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return "".join(_polyline(run) for run in runs if run)


def _polyline(points: Sequence[Point]) -> str:
    """Path through points in relative steps; those that lie on a level line are joined."""
    places = [(round(10 * x), round(10 * y)) for x, y in points]
    (x, y), steps, last = places[0], [f"M{_tenth(places[0][0])} {_tenth(places[0][1])}"], len(places) - 1
    for i, (to_x, to_y) in enumerate(places[1:], start=1):
        if y == to_y:
            if i < last and places[i + 1][1] == y:
                continue
            steps.append(f"h{_tenth(to_x - x)}")
        else:
            steps.append(f"l{_tenth(to_x - x)} {_tenth(to_y - y)}")
        x, y = to_x, to_y
    if not last:
        steps.append("h0")  # a round cap makes it a dot
    return "".join(steps).replace(" -", "-")


def _dots(points: Sequence[Point]) -> str:
    """A dot at each point, whole units; touching neighbours of one height become one stroke."""
    strokes: list[list[int]] = []
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            continue
        n, height = round(x), round(y)
        if strokes and strokes[-1][2] == height and 0 <= n - strokes[-1][1] <= 3:
            strokes[-1][1] = n
        else:
            strokes.append([n, n, height])
    path, at, down = "", 0, 0
    for start, stop, height in strokes:
        path += f"m{start - at} {height - down}" + (f"h{stop - start}" if stop > start else "z")
        at, down = stop, height
    return path.replace(" -", "-")


def _short(value: float) -> str:
    """A coordinate to a tenth, in as few characters as it takes."""
    return _tenth(round(10 * value))


def _tenth(n: int) -> str:
    text = f"{n / 10:g}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
