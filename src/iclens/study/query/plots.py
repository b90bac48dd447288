"""Charts of a table's rows in altair: the four kinds that a table can declare.

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
import pandas as pd

from iclens.study.query.thinning import (
    MOST,
    categories,
    defined,
    first,
    first_per_curve,
    joined,
    largest,
    only,
    panels,
    spread,
)
from iclens.table import Axis, Chart, Curves, Heat, Points, Strip

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#7A5195", "#767676")
SHAPES = (
    *("circle", "square", "triangle-up", "diamond"),
    *("cross", "triangle-down", "triangle-right", "triangle-left"),
)
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [10, 3], [1, 3], [4, 4], [6, 2, 2, 2])
_LEGEND = alt.Legend(symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=2, symbolSize=400)
_LINES, _CELLS, _STRIP = 40, 400, 400


def draw(chart: Chart, frame: pd.DataFrame, title: str) -> alt.TopLevelMixin:
    """The altair chart of some rows.

    Raises:
        TableError: when no row has the number that is drawn.
    """
    match chart:
        case Points():
            return _points(chart, frame, title)
        case Strip():
            return _strip(chart, frame, title)
        case Curves():
            return _curves(chart, frame, title)
        case Heat():
            return _heat(chart, frame, title)


def _points(chart: Points, frame: pd.DataFrame, title: str) -> alt.TopLevelMixin:
    rows, notes = panels(defined(frame, chart.value.column, title), chart.panel, chart.prefer)
    lines = max(6, _LINES // max(1, rows["panel"].nunique()))
    rows, left = largest(rows, ["panel"], chart.value.column, lines)
    notes += left
    rows["label"] = joined(rows, chart.label)
    rows, notes = categories(rows, chart.mark, notes)
    tidy = only(rows, *chart.value.columns, "label", "panel", "mark")
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
    rows = defined(frame, chart.value.column, title)
    rows["group"] = joined(rows, chart.group)
    rows, notes = first(rows, "group", _LINES, "lines")
    each = max(20, min(_STRIP, 4000 // max(1, rows["group"].nunique())))
    thin = largest if chart.kept == "largest" else spread
    rows, left = thin(rows, ["group"], chart.value.column, each)
    rows, notes = categories(rows, chart.mark, notes + left)
    shown = [name for name in ("site", "role", "latent") if name in rows]
    tidy = only(rows, chart.value.column, "group", "mark", *shown)
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
    rows, notes = panels(defined(frame, chart.y.column, title), chart.panel, chart.prefer)
    rows["series"] = joined(rows, chart.series)
    rows, left = first(rows, "series", MOST, "curves")
    rows, more = first_per_curve(rows, chart.x.column)
    tidy = only(rows, *chart.x.columns, *chart.y.columns, "series", "panel")
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
    rows, notes = panels(defined(frame, chart.value.column, title), chart.panel, None)
    rows["down"] = joined(rows, chart.down)
    cells = max(6, _CELLS // max(1, rows["panel"].nunique()))
    rows, left = first(rows, "down", cells, "lines")
    cell = ["panel", "down", chart.across]
    twice = rows.duplicated(cell)
    notes += left + ([f"{int(twice.sum())} rows of cells that stand twice"] if twice.any() else [])
    rows = rows[~twice]
    if chart.down == ("layer",):
        rows = rows.sort_values("layer", ascending=False, kind="stable")
    tidy = only(rows, chart.across, "down", "panel", chart.value.column)
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
