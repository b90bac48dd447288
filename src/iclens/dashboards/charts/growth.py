"""How is the growth claim drawn? Arms, ladder, accounts and injected growth, by altair as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

import altair as alt
import pandas as pd
from markupsafe import Markup

from iclens.dashboards.charts.rendered import FAINTEST, FULLEST, belief_chart, inline, named
from iclens.dashboards.records.growth import AccountRow, ArmCurve, InjectionRow, RungCount
from iclens.dashboards.records.site import BeliefCurve
from iclens.dashboards.text import number

_INK, _QUIET = "var(--ink)", "var(--quiet)"


def arm_chart(arm: ArmCurve) -> Markup:
    """Log-odds of the task's answer in one arm by examples seen: the model with band, the exact posterior."""
    return belief_chart(BeliefCurve(f"exact in arm {arm.arm}", arm.meaning, model=arm.model, exact=arm.exact))


def ladder_chart(counts: Sequence[RungCount], rungs: Sequence[str]) -> Markup:
    """Latent × role rows on each rung above "none" by site, every count as text.

    Args:
        counts: by site and rung.
        rungs: columns, from the lowest.
    """
    shown = [c for c in counts if c.rung in rungs]
    frame = pd.DataFrame(
        {
            "site": [c.site for c in shown],
            "rung": [c.rung for c in shown],
            "n": [c.count for c in shown],
            "text": [f"{c.count:,}" for c in shown],
        }
    )
    largest = max((c.count for c in shown), default=1)
    base = alt.Chart(frame).encode(
        x=alt.X("rung:N", sort=list(rungs), title=None, axis=alt.Axis(orient="top", labelAngle=0)),
        y=alt.Y("site:N", sort=list(dict.fromkeys(c.site for c in shown)), title=None),
    )
    scale = alt.Scale(domain=[0, math.sqrt(largest) or 1], range=[FAINTEST, FULLEST])
    cells = (
        base.transform_calculate(root="sqrt(datum.n)")
        .mark_rect(color="var(--shade)", stroke="var(--paper)", strokeWidth=2)
        .encode(fillOpacity=alt.FillOpacity("root:Q", scale=scale, legend=None))
    )
    words = base.mark_text(fontSize=11, color=_INK).encode(text="text:N")
    said = "; ".join(f"{c.site} {c.rung} {c.count}" for c in shown if c.count)
    chart = alt.LayerChart(layer=[cells, words], width=alt.Step(130), height=alt.Step(26))
    return inline(chart, f"Latents by site and rung of the ladder: {said or 'none above none'}.")


def account_chart(rows: Sequence[AccountRow]) -> Markup:
    """How far each account is behind the best in held-out log-likelihood, with intervals."""
    names = named(r.account for r in rows)
    frame = pd.DataFrame(
        {
            "account": [names[r.account] for r in rows],
            "behind": [r.behind for r in rows],
            "low": [r.low for r in rows],
            "high": [r.high for r in rows],
            "end": [_end(r.behind, r.high) for r in rows],
            "text": [number(r.behind) for r in rows],
        }
    )
    base = alt.Chart(frame).encode(y=alt.Y("account:N", sort=list(names.values()), title=None))
    title = "nats per held-out prompt behind the best account"
    far = max((_end(r.behind, r.high) for r in rows), default=1.0)
    x = alt.X("behind:Q", title=title, scale=alt.Scale(domain=[0, 1.15 * max(far, 1e-6)]))
    bars = base.mark_bar(color="var(--task)", opacity=0.75, height=12).encode(x=x)
    spans = base.mark_rule(color=_QUIET).encode(x="low:Q", x2="high:Q")
    words = base.mark_text(align="left", dx=4, fontSize=11, color=_INK).encode(x="end:Q", text="text:N")
    said = "; ".join(f"{r.account} {number(r.behind)}" for r in rows)
    chart = alt.LayerChart(layer=[bars, spans, words], width=360, height=alt.Step(24))
    return inline(chart, f"Accounts of the growth, nats per prompt behind the best: {said}.")


def injection_chart(rows: Sequence[InjectionRow]) -> Markup:
    """Effect of each part of a site's growth on the answer's log-odds, with intervals, site by site."""
    names = named(r.injected for r in rows)
    frame = pd.DataFrame(
        {
            "site": [r.site for r in rows],
            "part": [names[r.injected] for r in rows],
            "effect": [r.effect for r in rows],
            "low": [r.low for r in rows],
            "high": [r.high for r in rows],
            "end": [max(0.0, _end(r.effect, r.high)) for r in rows],  # on no bar, to the left or right
            "text": [number(r.effect) for r in rows],
        }
    )
    parts, sites = (list(dict.fromkeys(frame[name].tolist())) for name in ("part", "site"))
    base = alt.Chart(frame).encode(
        y=alt.Y("site:N", sort=sites, title=None),
        yOffset=alt.YOffset("part:N", sort=parts),
    )
    opacity = alt.Opacity("part:N", sort=parts, legend=None, scale=alt.Scale(range=[0.9, 0.65, 0.4, 0.2]))
    x = alt.X("effect:Q", title="nats of the answer’s log-odds")
    bars = base.mark_bar(color="var(--task)").encode(x=x, opacity=opacity)
    spans = base.mark_rule(color=_QUIET).encode(x="low:Q", x2="high:Q")
    words = base.transform_calculate(label="datum.part + '  ' + datum.text").mark_text(
        align="left", dx=5, fontSize=10, color=_INK
    )
    chart = alt.LayerChart(
        layer=[bars, spans, words.encode(x="end:Q", text="label:N")], width=420,
        height=alt.Step(15),
    )  # fmt: skip
    said = "; ".join(f"{r.site} {r.injected} {number(r.effect)}" for r in rows)
    return inline(chart, f"Effect of injected growth on the answer's log-odds, nats: {said}.")


def _end(value: float, high: float) -> float:
    """Where a bar with its interval ends, and its number stands."""
    return high if math.isfinite(high) else value
