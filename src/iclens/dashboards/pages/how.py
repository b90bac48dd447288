"""How was this computed? Config, stages, hashes, self-tests, the SAEs' quality and the known limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from iclens.dashboards.pages.page import Chrome, Page, draw
from iclens.dashboards.records.how import FIRED, NOT_ASKED, PASSED, HowView
from iclens.dashboards.records.site import SiteView

PATH = "how.html"
DIGITS = 16
"""Characters of a hash that are shown; a longer one stands whole in its title."""


def pages(view: SiteView, chrome: Chrome) -> Iterator[Page]:
    """One page."""
    rests_on = (chrome, view.quality, view.provenance, view.notes, view.how)

    def write() -> str:
        own = view.how or HowView()
        counts = Counter(test.verdict for group in own.tests for test in group.tests)
        tallied = [(verdict, counts[verdict]) for verdict in (PASSED, FIRED, NOT_ASKED)]
        return draw(
            "how.html.j2", chrome, PATH, view=view, how=own, known=view.how is not None, counts=tallied,
            digits=DIGITS,
        )  # fmt: skip

    yield Page(PATH, rests_on, write)
