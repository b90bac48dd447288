"""The pages of single prompts: run A and run B side by side."""

from __future__ import annotations

from collections.abc import Iterator

from iclens.dashboards.pages.page import Chrome, Page
from iclens.dashboards.records.site import SiteView

PATH = "prompts.html"


def pages(view: SiteView, chrome: Chrome) -> Iterator[Page]:
    """The list of prompts, and a page for each, when there are any."""
    yield from ()
