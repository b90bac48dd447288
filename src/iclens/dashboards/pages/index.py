"""The index: question, verdicts in words, headline figures, and what was run."""

from __future__ import annotations

from collections.abc import Iterator

from iclens.dashboards.charts import rendered
from iclens.dashboards.pages.page import Chrome, Page, draw
from iclens.dashboards.records.site import SiteView

PATH = "index.html"


def pages(view: SiteView, chrome: Chrome) -> Iterator[Page]:
    """The index."""
    shown = (view.title, view.question, view.findings, view.provenance, view.notes, view.beliefs)

    def write() -> str:
        return draw(
            "index.html.j2",
            chrome,
            PATH,
            view=view,
            beliefs=[(panel, rendered.belief_chart(panel)) for panel in view.beliefs],
        )

    yield Page(PATH, (chrome, *shown), write)
