"""How was this computed? The run's config, versions, hashes, the SAEs' quality and the known limits."""

from __future__ import annotations

from collections.abc import Iterator

from iclens.dashboards.pages.page import Chrome, Page, draw
from iclens.dashboards.records.site import SiteView

PATH = "how.html"


def pages(view: SiteView, chrome: Chrome) -> Iterator[Page]:
    """One page."""
    rests_on = (chrome, view.quality, view.provenance, view.notes)
    yield Page(PATH, rests_on, lambda: draw("how.html.j2", chrome, PATH, view=view))
