"""The page of growth: how many latents grow where, and what bears on additive Bayesian growth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from iclens.dashboards.charts import growth as growth_charts
from iclens.dashboards.charts import rendered
from iclens.dashboards.pages.page import Chrome, Page, draw
from iclens.dashboards.records.growth import AdditiveView
from iclens.dashboards.records.site import GrowthCount, SiteView
from iclens.schemas import LADDER

PATH = "growth.html"


def pages(view: SiteView, chrome: Chrome) -> Iterator[Page]:
    """One page."""

    def write() -> str:
        additive = None if view.additive is None else _additive(view.additive)
        return draw(
            "growth.html.j2",
            chrome,
            PATH,
            beliefs=[(panel, rendered.belief_chart(panel)) for panel in view.beliefs],
            growth=_by_role(view.growth),
            additive=additive,
        )

    yield Page(PATH, (chrome, view.beliefs, view.growth, view.additive), write)


def _by_role(counts: Sequence[GrowthCount]) -> list[tuple[str, object, object]]:
    by_role: dict[str, list[GrowthCount]] = defaultdict(list)
    for entry in counts:
        by_role[entry.role].append(entry)
    reach = max((g.n_falls for g in counts), default=0), max((g.n_grows for g in counts), default=0)
    return [
        (role, by_role[role], rendered.growth_chart(role, by_role[role], reach))
        for role in rendered.role_order(set(by_role))
    ]


def _additive(view: AdditiveView) -> dict[str, object]:
    """The growth claim's charts beside its records."""
    return {
        "view": view,
        "arms": [(arm, growth_charts.arm_chart(arm)) for arm in view.arms],
        "ladder": growth_charts.ladder_chart(view.rungs, LADDER[1:]) if view.rungs else None,
        "accounts": growth_charts.account_chart(view.accounts) if view.accounts else None,
        "injections": growth_charts.injection_chart(view.injections) if view.injections else None,
    }
