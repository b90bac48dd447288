"""The index: question, verdicts in words, headline figures, and what was run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from iclens.dashboards.charts import rendered
from iclens.dashboards.pages.page import Chrome, Page, draw
from iclens.dashboards.records.site import GrowthCount, SiteView, SweepView

PATH = "index.html"


def pages(view: SiteView, chrome: Chrome) -> Iterator[Page]:
    """The index."""
    belief, sweep = next(iter(view.beliefs), None), _headline(view)
    counts = [count for count in view.growth if count.role == _busiest(view.growth)]
    shown = (view.title, view.question, view.claims, view.findings, view.provenance, belief, sweep, counts)

    def write() -> str:
        reach = max((c.n_falls for c in counts), default=0), max((c.n_grows for c in counts), default=0)
        return draw(
            "index.html.j2",
            chrome,
            PATH,
            view=view,
            belief=belief and (belief, rendered.belief_chart(belief)),
            counts=counts and (counts, rendered.growth_chart(counts[0].role, counts, reach)),
            sweep=sweep and (sweep, rendered.sweep_chart(sweep)),
        )

    yield Page(PATH, (chrome, *shown), write)


def _headline(view: SiteView) -> SweepView | None:
    """The first sweep."""
    return None if view.patching is None else next(iter(view.patching.sweeps), None)


def _busiest(counts: Sequence[GrowthCount]) -> str:
    """The role at which most latents grow."""
    total: Counter[str] = Counter()
    for count in counts:
        total[count.role] += count.n_grows
    return total.most_common(1)[0][0] if total else ""
