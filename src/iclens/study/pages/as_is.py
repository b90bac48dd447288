"""What can be shown of a run as it is, without its model? For runs that are unfinished, or were left damaged.

Each part of the site is made from the tables that are there; a part whose tables are missing or damaged is
left out, and the pages say which and why. Nothing is computed that a stage would compute, so a latent's page
has no prompts, logits, histogram, neighbours and tuning.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from iclens.core import IclensError
from iclens.dashboards.records.latent import LatentRow, LatentView
from iclens.dashboards.records.site import Finding, SiteView
from iclens.dashboards.site import Progress, build_site
from iclens.results.read import Results
from iclens.schemas import TABLES
from iclens.study.config import one_line
from iclens.study.pages import index
from iclens.study.pages.claims import claims
from iclens.study.pages.concepts import concepts
from iclens.study.pages.growth import additive
from iclens.study.pages.how import how
from iclens.study.pages.latent import latent_views, tuned_roles
from iclens.study.pages.latent_rows import PAGES_REASON, latent_rows, with_pages
from iclens.study.pages.patching import patching
from iclens.study.pages.question import QUESTION
from iclens.study.pages.seen import Seen
from iclens.study.run import find_run

FOLDER = "as_is"
UNSEEN = "These pages were written from the run's tables, without its model."
_FORMLESS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration)
"""What a part makes of a file that can be read but has no rows, or another form."""
T = TypeVar("T")


def write_as_is(path: Path, progress: Progress = lambda done, total: None) -> Path:
    """Write the pages of a run folder into its `as_is`; the path of the index.

    Args:
        path: a run folder, or a study folder with a finished run.
        progress: told how many pages are done.

    Raises:
        RunError: for a run that does not exist.
        ConfigError: when the run's config does not validate.
    """
    results = Results(find_run(path))
    return build_site(as_is(results), results.path / FOLDER, progress=progress).index


def as_is(results: Results) -> SiteView:
    """Everything of a run that its tables can show."""
    parts = _Parts(results.path)
    rows = parts.of("the table of latents", lambda: _rows(results), [])
    n = results.config.dashboard.pages_per_site
    pages = parts.of("pages of latents", lambda: _pages(results, rows), [])
    sites = len(parts.of("the SAEs", lambda: results.sites, ()))
    view = SiteView(
        title=results.config.study,
        question=QUESTION.format(task=results.config.prompts.task, n=sites),
        claims=claims(lambda what, make: parts.of(what, lambda: make(results), [])),
        findings=_findings(results, parts),
        provenance=parts.of("provenance", lambda: index.provenance(results), []),
        quality=parts.of("quality of the SAEs", lambda: index.quality_rows(results.table("quality")), []),
        beliefs=parts.of("beliefs", lambda: index.belief_curves(results), []),
        growth=parts.of("growth", lambda: index.growth_counts(results.table("growth")), []),
        additive=parts.of("the growth claim", lambda: additive(results), None),
        concepts=parts.of("concepts", lambda: concepts(results), None),
        patching=parts.of("patching", lambda: patching(results), None),
        how=parts.of("how it was computed", lambda: how(results), None),
        latents=rows,
        pages=pages,
        pages_reason=PAGES_REASON.format(n=n),
        notices=_notices(results, parts.missing),
    )
    return view


class _Parts:
    """Parts of the site; `missing` says of each file that is not there which parts want it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.missing: dict[str, list[str]] = {}

    def of(self, what: str, make: Callable[[], T], otherwise: T) -> T:
        """What `make` gives, or `otherwise` where what it reads is missing or damaged."""
        try:
            return make()
        except IclensError as cause:
            name = cause.asked.removeprefix(f"{self._path}/").split(" of run ")[0]
            why = f"{name} ({cause.found})"
        except _FORMLESS as cause:
            said = one_line(f"{type(cause).__name__}: {cause}")
            why = f"what it reads, unreadable or empty ({said})"
        self.missing.setdefault(why, []).append(what)
        return otherwise


def _findings(results: Results, parts: _Parts) -> list[Finding]:
    return [
        found
        for name, make in index.cards(lambda site, latent: "").items()
        if (found := parts.of(f"the card on {name}", lambda make=make: make(results), None)) is not None
    ]


def _rows(results: Results) -> list[LatentRow]:
    """Rows with whatever is known; where nothing but growth is, growth alone."""

    def table(name: str) -> pd.DataFrame:
        try:
            return results.table(name)
        except IclensError:
            if name == "growth":
                raise
            return pd.DataFrame(columns=list(TABLES[name].COLUMNS))

    unknown = {site: np.full(fact["d_sae"], np.nan) for site, fact in results.facts["saes"].items()}
    return latent_rows(results, unknown, table)


def _pages(results: Results, rows: list[LatentRow]) -> list[LatentView]:
    roles = tuned_roles(results, with_pages(results))
    held = {(site.short, latent) for site, latents in roles.items() for latent in latents}
    addresses = {row.key: row.page for row in rows if row.key in held}
    return [
        view
        for site, latents in roles.items()
        for view in latent_views(
            results, site, latents, Seen(np.array([]), reason=UNSEEN), lambda s, f: addresses.get((s, f), "")
        )
    ]


def _notices(results: Results, missing: dict[str, list[str]]) -> list[str]:
    lines = results.problems
    state = f"This run is shown as it is: {'; '.join(lines)}." if lines else "This run is shown as it is."
    finish = " `iclens study` on its config.yaml brings it up to date." if lines else ""
    computed = "Prompts, logits, densities and neighbours are not shown: they need the model."
    left_out = [f"For want of {file}: {', '.join(wanting)}." for file, wanting in missing.items()]
    return [state + finish, computed, *left_out]
