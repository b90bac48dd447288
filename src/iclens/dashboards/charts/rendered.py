"""How are beliefs, counts of growth and heat maps drawn? By altair, rendered to SVG while the site is built.

1. Each function turns one record of the view into an altair chart whose colours are CSS variables
   (`var(--task)`), so that one drawing serves light and dark;
2. vl-convert renders it without a browser or a network;
3. `inline` keeps only drawing elements and attributes from an allow-list, so that whatever stands in
   the text can be put into a page as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from xml.etree import ElementTree

import altair as alt
import pandas as pd
import vl_convert
from markupsafe import Markup

from iclens.core import ROLES
from iclens.dashboards.charts.svg import ends, tag
from iclens.dashboards.records.site import BeliefCurve, Curve, GrowthCount, SweepView
from iclens.dashboards.text import number

_ELEMENTS = {"svg", "g", "path", "line", "rect", "circle", "text", "tspan"}
_ATTRIBUTES = {
    *("viewBox", "d", "x", "y", "x1", "x2", "y1", "y2", "dx", "dy", "cx", "cy", "r", "width", "height"),
    *("transform", "fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-opacity"),
    *("stroke-linejoin", "stroke-linecap", "opacity", "text-anchor", "font-size", "font-weight"),
}
_INK, _QUIET, _RULE, _PAPER = "var(--ink)", "var(--quiet)", "var(--rule)", "var(--paper)"
FAINTEST, FULLEST = 0.04, 0.66
"""How opaque the cells of a heat map are, least and most: ink is read on all of them, light and dark."""
_MARK = "\u2060"
"""A character that is not to be seen, and that no text of a record holds once it is inert."""
_LONGEST = 40
"""Characters of a name in a chart; its text alternative and the tables hold all of it."""
_LINES = {
    "model": ("var(--task)", [1, 0]),
    "exact posterior": (_INK, [5, 3]),
    "control arm": ("var(--control)", [2, 2]),
}


def named(texts: Iterable[str]) -> dict[str, str]:
    """Text → the name that altair is given for it, which `inline` shows without its marks.

    A mark keeps apart names that are cut alike, and names that JavaScript's objects know, as `constructor`.
    Names are cut here because vega, when it cuts one, may cut a character in two.
    """
    cut = {text: text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…" for text in texts}
    return {text: shown + _MARK * (place + 1) for place, (text, shown) in enumerate(cut.items())}


def inline(chart: alt.LayerChart, label: str) -> Markup:
    """The chart as inline SVG, with `label` as its text alternative."""
    text = vl_convert.vegalite_to_svg(_styled(chart).to_json(validate=False))
    root = ElementTree.fromstring(text)
    box = root.attrib["viewBox"]
    size = {"viewBox": box, "width": box.split()[2], "class_": "chart rendered"}
    return tag("svg", *map(_drawn, root), **size, role="img", aria_label=label)


def _drawn(element: ElementTree.Element) -> Markup:
    name = element.tag.rpartition("}")[2]
    empty_path = name == "path" and not element.get("d")
    if name not in _ELEMENTS or empty_path or element.get("display") == "none":
        return Markup("")
    children = [_drawn(child) for child in element]
    kept = {key: value for key, value in element.attrib.items() if key in _ATTRIBUTES}
    if name == "g" and not any(children):
        return Markup("")
    if name == "g" and not kept:
        return Markup("").join(children)
    return tag(name, (element.text or "").replace(_MARK, ""), *children, **kept)


def _styled(chart: alt.LayerChart) -> alt.LayerChart:
    axis = {
        "labelColor": _QUIET,
        "titleColor": _QUIET,
        "gridColor": _RULE,
        "domain": False,
        "ticks": False,
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelPadding": 6,
        "labelLimit": 0,
        "titlePadding": 8,
    }
    return chart.properties(background="transparent", padding=2).configure(
        aria=False, view=alt.ViewConfig(stroke=None), axis=alt.AxisConfig(**axis), font="Arial"
    )


def _frame(name: str, curve: Curve) -> pd.DataFrame:
    columns = {"n": list(curve.n_seen), "mean": curve.mean, "low": curve.low, "high": curve.high}
    return pd.DataFrame(columns | {"what": name})


def belief_chart(panel: BeliefCurve) -> Markup:
    """Log-odds of one belief by examples seen: model with band, exact posterior, control arm."""
    curves = {"control arm": panel.control, "exact posterior": panel.exact, "model": panel.model}
    drawn = {name: curve for name, curve in curves.items() if curve is not None}
    layers: list[alt.Chart] = []
    for name, curve in drawn.items():
        colour, dash = _LINES[name]
        base = alt.Chart(_frame(name, curve)).encode(x=_examples(panel))
        layers.append(
            base.mark_area(opacity=0.16, color=colour).encode(y=_log_odds("low"), y2=alt.Y2("high:Q"))
        )
        layers.append(
            base.mark_line(color=colour, strokeDash=dash, strokeWidth=2).encode(y=_log_odds("mean"))
        )
    said = "; ".join(f"{name} {ends(curve)}" for name, curve in reversed(drawn.items()))
    label = f"Log-odds of {panel.belief} in nats by examples seen: {said}."
    return inline(alt.LayerChart(layer=layers, width=280, height=160), label)


def _examples(panel: BeliefCurve) -> alt.X:
    last = int(max(panel.model.n_seen, default=1))
    axis = alt.Axis(values=list(range(0, last + 1, max(1, round(last / 5)))), grid=False, format="d")
    return alt.X("n:Q", title="examples seen", axis=axis, scale=alt.Scale(domain=[0, last], nice=False))


def _log_odds(column: str) -> alt.Y:
    axis = alt.Axis(tickCount=5, minExtent=28, maxExtent=28)
    return alt.Y(f"{column}:Q", title=None, axis=axis, scale=alt.Scale(zero=False))


def role_order(roles: set[str]) -> list[str]:
    """Roles in their order in an example; then numbers, as heads have, by size; others last."""

    def rank(role: str) -> tuple[int, int, str]:
        is_number = role.isdecimal() and len(role) < 9
        known = ROLES.index(role) if role in ROLES else len(ROLES) + (not is_number)
        return known, int(role) if is_number else 0, role

    return sorted(roles, key=rank)


def sweep_chart(sweep: SweepView) -> Markup:
    """Heat map of layers (rows, last on top) × roles or heads (columns), every value as text."""
    roles = named(role_order({c.role for c in sweep.cells}))
    frame = pd.DataFrame(
        {
            "role": [roles[c.role] for c in sweep.cells],
            "layer": [c.layer for c in sweep.cells],
            "value": [min(1.0, max(0.0, c.value)) if math.isfinite(c.value) else None for c in sweep.cells],
            "text": [
                f"{round(c.value, 2) + 0.0:.2f}" if math.isfinite(c.value) else "–" for c in sweep.cells
            ],
        }
    )
    layers = sorted({c.layer for c in sweep.cells})
    base = alt.Chart(frame).encode(
        x=alt.X("role:N", sort=list(roles.values()), title=None, axis=alt.Axis(orient="top", labelAngle=0)),
        y=alt.Y("layer:O", sort="descending", title=named([sweep.down])[sweep.down]),
    )
    scale = alt.Scale(domain=[0, 1], range=[FAINTEST, FULLEST])
    cells = base.mark_rect(color="var(--shade)", stroke=_PAPER, strokeWidth=2).encode(
        fillOpacity=alt.FillOpacity("value:Q", scale=scale, legend=None)
    )
    words = base.mark_text(fontSize=11, color=_INK).encode(text="text:N")
    defined = [c for c in sweep.cells if math.isfinite(c.value)]
    best = max(defined, key=lambda c: c.value, default=None)
    label = f"{sweep.title}, layers by {sweep.across}s. " + (
        f"Largest: {number(best.value)} at {sweep.across} {best.role}, {sweep.down} {best.layer}."
        if best
        else "Undefined."
    )
    height = alt.Step(26 if len(layers) <= 16 else 18)
    return inline(alt.LayerChart(layer=[cells, words], width=alt.Step(56), height=height), label)


def growth_chart(role: str, counts: Sequence[GrowthCount], reach: tuple[int, int]) -> Markup:
    """Latents that grow (right) and fall (left) at one role, by site.

    `reach` is the largest count on the left and on the right over all roles: one scale for all of them.
    """
    rows = [
        {"site": c.site, "n": sign * n, "text": f"{n:,}", "what": what}
        for c in counts
        for what, sign, n in (("grows", 1, c.n_grows), ("falls", -1, c.n_falls))
    ]
    sites = list(dict.fromkeys(c.site for c in counts))
    room = 0.28 * max(1, sum(reach))  # for the counts beside the bars
    base = alt.Chart(pd.DataFrame(rows)).encode(
        x=alt.X(
            "n:Q",
            title=None,
            axis=None,
            scale=alt.Scale(domain=[-reach[0] - room, reach[1] + room], nice=False),
        ),
        y=alt.Y("site:N", sort=sites, title=None),
    )
    right = base.transform_filter("datum.what == 'grows'")
    left = base.transform_filter("datum.what == 'falls'")
    layers = [
        right.mark_bar(color="var(--task)", height=12, opacity=0.85),
        right.mark_text(align="left", dx=5, color=_INK, fontSize=11).encode(text="text:N"),
        left.mark_bar(color="var(--control)", height=12, opacity=0.85),
        left.mark_text(align="right", dx=-5, color=_INK, fontSize=11).encode(text="text:N"),
    ]
    zero = alt.Chart(pd.DataFrame({"n": [0]})).mark_rule(color=_QUIET).encode(x="n:Q")
    said = "; ".join(f"{c.site} {c.n_grows} grow, {c.n_falls} fall of {c.n_tested}" for c in counts)
    chart = alt.LayerChart(layer=[*layers, zero], width=170, height=alt.Step(24))
    return inline(chart, f"Latents at {role}: {said}.")
