"""The page of patching: where the residual carries the task, which heads it needs, what latents carry."""

from __future__ import annotations

from collections.abc import Iterator

from iclens.dashboards.charts import rendered
from iclens.dashboards.pages.page import Chrome, Page, draw
from iclens.dashboards.records.site import SiteView

PATH = "patching.html"


def pages(view: SiteView, chrome: Chrome) -> Iterator[Page]:
    """One page, when something was patched."""
    own = view.patching
    if own is None:
        return

    def write() -> str:
        return draw(
            "patching.html.j2",
            chrome,
            PATH,
            sweeps=[(sweep, rendered.sweep_chart(sweep)) for sweep in own.sweeps],
            heads=[(sweep, rendered.sweep_chart(sweep)) for sweep in own.heads],
        )

    yield Page(PATH, (chrome, own), write)
