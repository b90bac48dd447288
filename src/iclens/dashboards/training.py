"""How did training go? One self-contained page: quality, error, dead latents, L0, density and pace.

1. Lines of metrics are thinned to at most `POINTS` means, so that a page of a long run stays small;
2. each chart is drawn by altair and put into the page as SVG (`charts.inline`), the style sheet with it, so
that the page opens from disk, alone, without scripts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from markupsafe import Markup

from iclens.dashboards import text
from iclens.dashboards.charts.rendered import inline
from iclens.dashboards.inert import inert
from iclens.dashboards.pages.page import environment

POINTS = 240
"""Most points in a curve."""
_PANELS = (
    ("fvu", "Error of each batch", "fraction of variance unexplained"),
    ("dead", "Dead latents", "share idle for longer than the window"),
    ("l0", "Active latents", "mean number per token"),
)
_FIGURES = ("l0", "fvu", "fvu_pre", "ce_recovered", "ce_recovered_pre", "kl", "dead")

Line = Mapping[str, Any]


def training_page(
    card: Mapping[str, Any], metrics: Mapping[str, Sequence[Line]], pace: Sequence[Line]
) -> str:
    """The page as HTML.

    Args:
        card: of the set: model, config, quality, density, seconds, versions.
        metrics: SAE name → its lines of metrics, in order.
        pace: lines of the pace, in order.
    """
    card, metrics = inert(card), inert(metrics)
    style = (resources.files("iclens.dashboards") / "assets" / "site.css").read_text(encoding="utf-8")
    names = dict(zip(metrics, card["quality"], strict=True))
    panels = [
        (
            key,
            title,
            about,
            [(name, curve(lines, key, f"{title}, {name}")) for name, lines in metrics.items()],
        )
        for key, title, about in _PANELS
    ]
    return (
        environment()
        .get_template("training.html.j2")
        .render(
            style=Markup(style),
            card=card,
            figures=_FIGURES,
            tables=[
                ("held-out contexts", names.items()),
                ("prompts of the tasks mixed in", _prompts(card, names)),
            ],
            panels=panels,
            densities=_densities(card, names),
            pace=curve(pace, "tokens_per_second", "Pace in tokens per second"),
            last={name: lines[-1] for name, lines in metrics.items() if lines},
        )
    )


def curve(lines: Sequence[Line], key: str, title: str) -> Markup:
    """One metric over the tokens trained on; nothing where it was never defined."""
    known = [(line["tokens"], line[key]) for line in lines if line.get(key) is not None]
    if not known:
        return Markup("")
    x, y = (np.array(column, dtype=float) for column in zip(*thinned(known), strict=True))
    frame = pd.DataFrame({"x": x / _unit(x[-1])[0], "y": y})
    base = alt.Chart(frame).encode(
        x=alt.X("x:Q", title=f"{_unit(x[-1])[1]}tokens", axis=alt.Axis(tickCount=5, grid=False)),
        y=alt.Y("y:Q", title=None, axis=alt.Axis(tickCount=4, minExtent=28), scale=alt.Scale(zero=True)),
    )
    line = base.mark_line(color="var(--task)", strokeWidth=1.5, clip=True)
    label = f"{title} over tokens: {text.number(y[0])} at first, {text.number(y[-1])} at last."
    return inline(alt.LayerChart(layer=[line], width=260, height=110), label)


def density_chart(rows: Sequence[Line], name: str) -> Markup:
    """Latents by density, on a logarithmic axis; dead ones are said in words."""
    drawn = [row for row in rows if row["high"] > 0]
    dead = sum(row["n_latents"] for row in rows if row["high"] == 0)
    frame = pd.DataFrame({
        "low": [math.log10(max(row["low"], 1e-8)) for row in drawn],
        "high": [math.log10(row["high"]) for row in drawn],
        "n": [row["n_latents"] for row in drawn],
    })  # fmt: skip
    held = frame[frame["n"] > 0]
    if held.empty:
        return Markup("")
    reach = [math.floor(held["low"].min()), 0]
    bars = alt.Chart(frame[frame["low"] >= reach[0]]).mark_bar(color="var(--task)", opacity=0.85)
    bars = bars.encode(
        x=alt.X("low:Q", title="log₁₀ density", scale=alt.Scale(domain=reach), axis=alt.Axis(tickCount=5)),
        x2="high:Q",
        y=alt.Y("n:Q", title=None, axis=alt.Axis(tickCount=4, minExtent=28)),
        y2=alt.Y2(datum=0),
    )
    label = f"Latents of {name} by density; {dead} of {sum(row['n_latents'] for row in rows)} are dead."
    return inline(alt.LayerChart(layer=[bars], width=260, height=110), label)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `POINTS` points: the means of as many runs of neighbours."""
    if len(points) <= POINTS:
        return list(points)
    parts = np.array_split(np.array(points, dtype=float), POINTS)
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts]


def _unit(largest: float) -> tuple[float, str]:
    for size, word in ((1e9, "billion "), (1e6, "million "), (1e3, "thousand ")):
        if largest >= size:
            return size, word
    return 1.0, ""


def _prompts(card: Mapping[str, Any], names: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(zip(names, card.get("quality_prompts", ()), strict=False))


def _densities(card: Mapping[str, Any], names: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """SAE name → its histogram of densities; rows belong together by the SAE's fingerprint."""
    rows = {
        name: [r for r in card.get("density", ()) if r["sae_id"] == q["sae_id"]] for name, q in names.items()
    }
    return [(name, density_chart(found, name)) for name, found in rows.items() if found]
