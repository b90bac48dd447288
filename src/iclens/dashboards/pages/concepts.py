"""The page of concepts: what was found for each of them, and what MLPs write."""

from __future__ import annotations

from collections.abc import Iterator

from iclens.dashboards.charts import concepts as charts
from iclens.dashboards.pages.page import Chrome, Page, draw
from iclens.dashboards.records.site import SiteView

PATH = "concepts.html"


def pages(view: SiteView, chrome: Chrome) -> Iterator[Page]:
    """One page, when concepts were asked."""
    if view.concepts is None:
        return
    own, linked = view.concepts, view.addresses

    def write() -> str:
        anchors = charts.anchors(own.concepts)
        return draw("concepts.html.j2", chrome, PATH, page=own, concepts=anchors, pages=linked, charts=charts)

    yield Page(PATH, (chrome, own, sorted(linked)), write)
