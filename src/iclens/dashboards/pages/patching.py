"""The page of patching: where the residual carries the task, which heads it needs, what latents carry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from iclens.dashboards.charts import patching as charts
from iclens.dashboards.charts import rendered
from iclens.dashboards.pages.page import Chrome, Page, draw
from iclens.dashboards.records.patching import PatchingView
from iclens.dashboards.records.site import SiteView

PATH = "patching.html"


def pages(view: SiteView, chrome: Chrome) -> Iterator[Page]:
    """One page, when something was patched."""
    own = view.patching
    if own is None:
        return
    linked = view.addresses
    singles = {(row.site, row.latent) for shown in own.singles for row in shown.rows}
    mapped = {key: path for key, path in linked.items() if key in singles}
    yield Page(PATH, (chrome, own, sorted(mapped.items())), lambda: write(own, chrome, mapped))


def write(view: PatchingView, chrome: Chrome, linked: Mapping[tuple[str, int], str]) -> str:
    """The page's text.

    Args:
        view: what it shows.
        chrome: what stands around it.
        linked: (site, latent) → path of its page, for those that have one.
    """
    maps = {
        name: [(sweep, rendered.sweep_chart(sweep), *charts.grid_of(sweep)) for sweep in sweeps]
        for name, sweeps in (("sweeps", view.sweeps), ("heads", view.heads), ("lens", view.lens))
    }
    return draw("patching.html.j2", chrome, PATH, page=view, maps=maps, linked=linked, charts=charts)
