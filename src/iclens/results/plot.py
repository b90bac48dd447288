"""Charts of rows in altair: the one that their table declares, or, of other rows, of the first number.

    Points    estimates with their intervals, a line each
    Strip     many estimates of a group on one line
    Curves    estimates over examples seen, layers, doses or values
    Heat      a value for each cell of a grid, written into it

Each thins its rows until altair's limit is far away, and its subtitle says what was left out. Categories
differ in shape or dash as well as in colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from pandas.api.types import is_float_dtype, is_numeric_dtype

from iclens.core import TableError
from iclens.schemas import FRAMES, TABLES
from iclens.table import Axis, Chart, Curves, Heat, Points, Strip

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#7A5195", "#767676")
SHAPES = (
    *("circle", "square", "triangle-up", "diamond"),
    *("cross", "triangle-down", "triangle-right", "triangle-left"),
)
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [10, 3], [1, 3], [4, 4], [6, 2, 2, 2])
_LEGEND = alt.Legend(symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=2, symbolSize=400)
_LINES, _CELLS, _STRIP = 40, 400, 400
_MOST = 8
"""Categories that colours, shapes and dashes can tell apart."""
_PANELS, _PLACES, _COMPARED = 12, 4000, 2000
"""Panels of a chart, points of all its curves, rows of two runs."""


def chart_of(frame: pd.DataFrame, table: str, title: str = "") -> alt.TopLevelMixin:
    """The chart of some rows of a table; of rows that lack its columns, of the first number in them.

    Args:
        table: name of the table, or of a frame that a query makes; empty for other rows.
        title: of the chart; the table's name by default.
    """
    title = title or table or "rows"
    if table == "beliefs" and {"arm", "mean", "ci_low", "ci_high", "exact_mean"} <= set(frame.columns):
        frame = _with_exact(frame)
    chosen = _declared(table)
    if chosen is None or not set(chosen.needs) <= set(frame.columns):
        chosen = _general(frame, title)
    match chosen:
        case Points():
            return _points(chosen, frame, title)
        case Strip():
            return _strip(chosen, frame, title)
        case Curves():
            return _curves(chosen, frame, title)
        case Heat():
            return _heat(chosen, frame, title)


def main_axis(table: str) -> Axis:
    """The number that a table's chart is about."""
    chosen = _declared(table)
    assert chosen is not None, "asked of tables alone"
    return chosen.y if isinstance(chosen, Curves) else chosen.value


def _declared(table: str) -> Chart | None:
    """The chart of a table, or of a frame that a query makes; None of other rows."""
    kind = (TABLES | FRAMES).get(table)
    if kind is not None and kind.chart is None:
        raise TableError(f"plot of {table}", "its columns hold words alone", "Read it as a table.")
    return None if kind is None else kind.chart


def _with_exact(frame: pd.DataFrame) -> pd.DataFrame:
    """The beliefs with the exact posterior of the first arm as a curve of its own, after that arm's."""
    arms = list(frame["arm"].unique())
    exact = frame[frame["arm"].isin(arms[:1])].copy()
    exact["arm"] = exact["arm"] + ", exact"
    for name in ("mean", "ci_low", "ci_high"):
        exact[name] = exact["exact_mean"]
    parts = [frame[frame["arm"] == arm] for arm in arms]
    return pd.concat([*parts[:1], exact, *parts[1:]], ignore_index=True)


def _general(frame: pd.DataFrame, title: str) -> Chart:
    """A strip of the first column of fractional numbers, or of any, by the first column of words."""
    of_numbers = [str(name) for name in frame.columns if is_numeric_dtype(frame[name])]
    words = [str(name) for name in frame.columns if str(name) not in of_numbers]
    numbers = sorted(of_numbers, key=lambda name: not is_float_dtype(frame[name]))
    if not numbers or not words:
        lacks = "no column of numbers" if not numbers else "no column of words"
        raise TableError(f"plot of {title}", f"it has {lacks}", "Keep more columns, or use `.df.plot`.")
    return Strip(Axis(numbers[0], "as in the table"), (words[0],), kept="spread")


def _points(chart: Points, frame: pd.DataFrame, title: str) -> alt.TopLevelMixin:
    rows, notes = _panels(_defined(frame, chart.value.column, title), chart.panel, chart.prefer)
    lines = max(6, _LINES // max(1, rows["panel"].nunique()))
    rows, left = largest(rows, ["panel"], chart.value.column, lines)
    notes += left
    rows["label"] = _joined(rows, chart.label)
    rows, notes = categories(rows, chart.mark, notes)
    tidy = _only(rows, *chart.value.columns, "label", "panel", "mark")
    base = alt.Chart().encode(y=alt.Y("label:N", sort=None, title=" · ".join(chart.label)))
    scale = alt.Scale(zero=False)
    points = base.mark_point(filled=True, size=55).encode(
        x=alt.X(f"{chart.value.column}:Q", title=chart.value.title, scale=scale),
        tooltip=list(tidy.columns),
        **_told_apart(tidy, chart.mark),
    )
    layers = [points]
    if chart.value.low:
        ends: dict[str, Any] = {
            "x": alt.X(f"{chart.value.low}:Q", title=chart.value.title),
            "x2": f"{chart.value.high}:Q",
        }
        layers = [base.mark_rule(color="#888888").encode(**ends), points]
    return _faceted(layers, tidy, _title(title, notes), shared=())


def _strip(chart: Strip, frame: pd.DataFrame, title: str) -> alt.TopLevelMixin:
    rows = _defined(frame, chart.value.column, title)
    rows["group"] = _joined(rows, chart.group)
    rows, notes = _first(rows, "group", _LINES, "lines")
    each = max(20, min(_STRIP, 4000 // max(1, rows["group"].nunique())))
    thin = largest if chart.kept == "largest" else spread
    rows, left = thin(rows, ["group"], chart.value.column, each)
    rows, notes = categories(rows, chart.mark, notes + left)
    shown = [name for name in ("site", "role", "latent") if name in rows]
    tidy = _only(rows, chart.value.column, "group", "mark", *shown)
    points = alt.Chart(tidy).mark_point(size=28, opacity=0.7)
    beside: dict[str, Any] = {"yOffset": alt.YOffset("mark:N")} if chart.mark else {}
    strip = points.encode(
        x=_stretched(chart.value, tidy[chart.value.column]),
        y=alt.Y("group:N", sort=None, title=" · ".join(chart.group)),
        tooltip=list(tidy.columns),
        **_told_apart(tidy, chart.mark),
        **beside,
    )
    return strip.properties(width=480, height=alt.Step(9 if chart.mark else 16), title=_title(title, notes))


def _curves(chart: Curves, frame: pd.DataFrame, title: str) -> alt.TopLevelMixin:
    rows, notes = _panels(_defined(frame, chart.y.column, title), chart.panel, chart.prefer)
    rows["series"] = _joined(rows, chart.series)
    rows, left = _first(rows, "series", _MOST, "curves")
    rows, more = _first_per_curve(rows, chart.x.column)
    tidy = _only(rows, *chart.x.columns, *chart.y.columns, "series", "panel")
    name, order = " · ".join(chart.series), list(tidy["series"].unique())
    domain: dict[str, Any] = {"domain": order, "range": list(COLOURS[: len(order)])}
    base = alt.Chart().encode(
        x=alt.X(f"{chart.x.column}:Q", title=chart.x.title),
        color=alt.Color("series:N", title=name, scale=alt.Scale(**domain), legend=_LEGEND),
    )
    dashes = alt.Scale(domain=order, range=list(DASHES[: len(order)]))
    height = alt.Y(f"{chart.y.column}:Q", title=chart.y.title, scale=alt.Scale(zero=False))
    line = base.mark_line(point=alt.OverlayMarkDef(size=18)).encode(
        y=height,
        strokeDash=alt.StrokeDash("series:N", title=name, scale=dashes, legend=_LEGEND),
        tooltip=list(tidy.columns),
    )
    layers = [line]
    if chart.y.low:
        band: dict[str, Any] = {
            "y": alt.Y(f"{chart.y.low}:Q", title=chart.y.title),
            "y2": f"{chart.y.high}:Q",
        }
        layers = [base.mark_area(opacity=0.15).encode(**band), line]
    return _faceted(layers, tidy, _title(title, notes + left + more), shared=("x",))


def _heat(chart: Heat, frame: pd.DataFrame, title: str) -> alt.TopLevelMixin:
    rows, notes = _panels(_defined(frame, chart.value.column, title), chart.panel, None)
    rows["down"] = _joined(rows, chart.down)
    cells = max(6, _CELLS // max(1, rows["panel"].nunique()))
    rows, left = _first(rows, "down", cells, "lines")
    cell = ["panel", "down", chart.across]
    twice = rows.duplicated(cell)
    notes += left + ([f"{int(twice.sum())} rows of cells that stand twice"] if twice.any() else [])
    rows = rows[~twice]
    if chart.down == ("layer",):
        rows = rows.sort_values("layer", ascending=False, kind="stable")
    tidy = _only(rows, chart.across, "down", "panel", chart.value.column)
    tidy = tidy.assign(written=[f"{value:.2g}" for value in tidy[chart.value.column]])
    values = tidy[chart.value.column].groupby(tidy["panel"])
    centre = values.transform("min") if chart.centred is None else chart.centred
    reach = (tidy[chart.value.column] - centre).abs().groupby(tidy["panel"]).transform("max")
    tidy["shade"] = (tidy[chart.value.column] - centre) / reach.where(reach > 0, 1.0)
    whole = [0, 1] if chart.centred is None else [-1, 1]
    colours = alt.Scale(scheme="blues" if chart.centred is None else "blueorange", domain=whole)
    base = alt.Chart().encode(
        x=alt.X(f"{chart.across}:O", sort=None, title=chart.across, axis=alt.Axis(labelAngle=-40)),
        y=alt.Y("down:O", sort=None, title=" · ".join(chart.down)),
    )
    legend = alt.Legend(title=["share of the", "panel's range"])
    fill = alt.Color("shade:Q", scale=colours, legend=legend)
    rects = base.mark_rect().encode(color=fill, tooltip=list(tidy.columns[:4]))
    ink = alt.condition("abs(datum.shade) > 0.6", alt.value("white"), alt.value("black"))
    words = base.mark_text(fontSize=9).encode(text="written:N", color=ink)
    said = [f"cells: {chart.value.title}"]
    return _faceted([rects, words], tidy, _title(title, notes, said), shared=())


def _told_apart(tidy: pd.DataFrame, name: str) -> dict[str, Any]:
    """Encodings that give each category a colour and a shape."""
    if not name:
        return {"color": alt.value(COLOURS[0])}
    order = sorted(tidy["mark"].unique())
    colours = alt.Scale(domain=order, range=list(COLOURS[: len(order)]))
    shapes = alt.Scale(domain=order, range=list(SHAPES[: len(order)]))
    return {
        "color": alt.Color("mark:N", title=name, scale=colours),
        "shape": alt.Shape("mark:N", title=name, scale=shapes),
    }


def _stretched(axis: Axis, values: pd.Series) -> alt.X:
    """The axis of some values; symmetric-log, and called so, where a few are far larger than the others."""
    common = float(values.abs().quantile(0.75))
    if common > 0 and float(values.abs().max()) > 50 * common:
        scale = alt.Scale(type="symlog", constant=common)
        return alt.X(f"{axis.column}:Q", title=f"{axis.title}, symmetric-log scale", scale=scale)
    return alt.X(f"{axis.column}:Q", title=axis.title, scale=alt.Scale(zero=False))


def _title(title: str, notes: Sequence[str], said: Sequence[str] = ()) -> alt.TitleParams:
    left = [f"left out: {'; '.join(notes)}"] if notes else []
    return alt.TitleParams(text=title, subtitle=[*said, *left], anchor="start")


def _faceted(
    layers: list[alt.Chart], tidy: pd.DataFrame, title: alt.TitleParams, *, shared: tuple[str, ...]
) -> alt.TopLevelMixin:
    """The layers once for each panel; one panel alone stands without a frame."""
    names = list(tidy["panel"].unique())
    # The rows belong to the whole: a layer that held them would show all of them in every panel.
    chart = alt.LayerChart(layer=layers, data=tidy if len(names) == 1 else alt.Undefined)
    if len(names) == 1:
        alone = alt.TitleParams(
            text=" · ".join(filter(None, (str(title.text), names[0]))),
            subtitle=title.subtitle,
            anchor="start",
        )
        return chart.properties(title=alone)
    free: dict[str, Any] = {axis: "shared" if axis in shared else "independent" for axis in ("x", "y")}
    # A step for the height would do, but Vega has no signal for it where panels have scales of their own.
    down = next((name for name in ("label", "down") if name in tidy), None)
    height = 180 if down is None else 14 * max(4, int(tidy.groupby("panel")[down].nunique().max()))
    faceted = chart.properties(width=240, height=height).facet(
        facet=alt.Facet("panel:N", title=None, sort=names), columns=3, data=tidy, title=title
    )
    return faceted.resolve_scale(**free)


def scatter(joined: pd.DataFrame, name: str) -> alt.TopLevelMixin:
    """The main number of a table in two runs, a across and b up, with the line of equal values.

    Args:
        joined: the rows of both, with `<column>_a`, `<column>_b` and `<column>_difference`.
    """
    axis = main_axis(name)
    ends = [f"{axis.column}_a", f"{axis.column}_b"]
    order = joined[f"{axis.column}_difference"].abs().sort_values(ascending=False, kind="stable").index
    largest = joined.loc[order[:_COMPARED]]
    rows = largest[[*TABLES[name].KEY, *ends]].copy()
    has_verdict = "verdict_a" in largest
    same = (
        largest["verdict_a"] == largest["verdict_b"] if has_verdict else pd.Series(True, index=largest.index)
    )
    rows["verdict"] = np.where(same, "same", "changed")
    reach = [float(rows[ends].min().min()), float(rows[ends].max().max())]
    diagonal = alt.Chart(pd.DataFrame(dict.fromkeys(ends, reach))).mark_line(
        color="#888888", strokeDash=[4, 3]
    )
    scale: dict[str, Any] = {"domain": ["same", "changed"]}
    legend = alt.Legend(title="verdict") if has_verdict else None
    colours, shapes = (alt.Scale(**scale, range=list(kept[:2])) for kept in (COLOURS, SHAPES))
    points = (
        alt.Chart(rows)
        .mark_point(size=28)
        .encode(
            tooltip=list(rows.columns),
            color=alt.Color("verdict:N", legend=legend, scale=colours),
            shape=alt.Shape("verdict:N", legend=legend, scale=shapes),
        )
    )
    x, y = (f"{axis.column} of {run} ({axis.unit})" for run in ("a", "b"))
    place = {"x": alt.X(f"{ends[0]}:Q", title=x), "y": alt.Y(f"{ends[1]}:Q", title=y)}
    notes = (
        [f"{len(joined) - len(largest):,} rows of smaller difference"] if len(joined) > len(largest) else []
    )
    chart = alt.LayerChart(layer=[layer.encode(**place) for layer in (diagonal, points)])
    return chart.properties(width=320, height=320, title=_title(f"{name}: b against a", notes))


# ------------------------------------------------------- few of many rows, and what was left out, in words


def _defined(frame: pd.DataFrame, column: str, title: str) -> pd.DataFrame:
    """Rows whose value is a finite number, as a new frame."""
    rows = frame[np.isfinite(frame[column].astype(float))].copy()
    if rows.empty:
        reason = "there are no rows" if frame.empty else f"no row has a value of '{column}'"
        raise TableError(
            f"plot of {title}",
            reason,
            "Choose other rows, or read the table: its column `reason`, where there is one, says why.",
        )
    return rows


def _joined(rows: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """The values of some columns as one text per row."""
    text = rows[columns[0]].astype(str)
    for column in columns[1:]:
        text = text + " · " + rows[column].astype(str)
    return text


def _panels(
    rows: pd.DataFrame, columns: Sequence[str], prefer: tuple[str, Any] | None
) -> tuple[pd.DataFrame, list[str]]:
    """The rows with their panel, of 12 panels at most, and what was left out."""
    notes: list[str] = []
    if prefer is not None and prefer[0] in rows and (chosen := rows[prefer[0]] == prefer[1]).any():
        if not chosen.all():
            notes.append(f"{(~chosen).sum():,} rows of another {prefer[0]} than {prefer[1]}")
        rows = rows[chosen].copy()
    rows["panel"] = _joined(rows, columns) if columns else ""
    rows, left = _first(rows, "panel", _PANELS, "panels")
    return rows, notes + left


def _first(rows: pd.DataFrame, column: str, most: int, what: str) -> tuple[pd.DataFrame, list[str]]:
    """Rows of the first `most` values of a column."""
    values = rows[column].unique()
    if len(values) <= most:
        return rows, []
    return rows[rows[column].isin(values[:most])].copy(), [f"{len(values) - most} more {what}"]


def _first_per_curve(rows: pd.DataFrame, x: str) -> tuple[pd.DataFrame, list[str]]:
    """One row per panel, curve and place, at most 4,000 in all."""
    twice = rows.duplicated(["panel", "series", x])
    notes = [f"{int(twice.sum()):,} rows that stand at a place that is taken"] if twice.any() else []
    rows = rows[~twice].sort_values(x, kind="stable").copy()
    step = -(-len(rows) // _PLACES)
    return (rows, notes) if step < 2 else (rows[::step].copy(), [*notes, f"all but every {step}th place"])


def largest(rows: pd.DataFrame, group: list[str], column: str, most: int) -> tuple[pd.DataFrame, list[str]]:
    """Of each group the rows of largest size, in the order in which they stood."""
    rank = rows[column].abs().groupby([rows[name] for name in group]).rank(ascending=False, method="first")
    kept = rank <= most
    left = int((~kept).sum())
    return rows[kept].copy(), [f"{left:,} rows of smaller |{column}|"] if left else []


def spread(rows: pd.DataFrame, group: list[str], column: str, most: int) -> tuple[pd.DataFrame, list[str]]:
    """Of each group rows that lie evenly over its ranks."""
    by = [rows[name] for name in group]
    rank = rows[column].groupby(by).rank(method="first") - 1
    step = np.ceil(rows[column].groupby(by).transform("size") / most)
    kept = rank % step == 0
    left = int((~kept).sum())
    return rows[kept].copy(), [f"{left:,} rows, evenly over the ranks"] if left else []


def categories(rows: pd.DataFrame, column: str, notes: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """The rows with their category as text; the rarest together, beyond what colours can tell apart."""
    if not column:
        return rows.assign(mark=""), notes
    text = rows[column].astype(str).replace("", "(empty)")
    common = list(text.value_counts().index)
    if len(common) > _MOST:
        text = text.where(text.isin(common[: _MOST - 1]), "others")
        notes = [*notes, f"names of {len(common) - _MOST + 1} rare values of {column}"]
    return rows.assign(mark=text), notes


def _only(rows: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows with some columns alone, each once."""
    return rows[list(dict.fromkeys(columns))].reset_index(drop=True)
