"""The tables of a run as frames; docs/schemas.md documents their columns."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pandas as pd

from iclens.core import Site, SiteError
from iclens.study.declared import known
from iclens.study.query.answers import Answer
from iclens.study.results import Results


class Frames:
    """Every table of a run.

    Args:
        results: its outputs.
    """

    def __init__(self, results: Results) -> None:
        self.results = results

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.results.run.path

    def table(self, name: str, site: str | Site | None = None) -> Answer:
        """A table by its name; of one site, only its rows are read.

        Args:
            name: as the properties below.
            site: such as `L2.resid_post` or `blocks.2.hook_resid_post`; all by default.

        Raises:
            SiteError: for a table or site that the run does not hold, naming the nearest.
            RunError: when its stage has not run.
            TableError: when its file is damaged or, asked for a site, names none.
        """
        place = None if site is None else self.site(site)
        return Answer.of(self.results.frame(name, place), name)

    def site(self, site: str | Site) -> Site:
        """The run's site of that name.

        Raises:
            SiteError: when it is none of the run's, naming the nearest.
        """
        sites = [one.short for one in self.results.sites]
        name = str(site)
        with suppress(SiteError):  # `known` names what is nearest in this run
            name = Site.parse(name).short
        return Site.parse(known("site", name, sites))

    @property
    def bayes(self) -> Answer:
        """Fits of LO_0 + nλ: a row per belief and source (model, exact), nats."""
        fits = self.results.bayes.items()
        rows = [{"belief": b, "source": s} | fit[s] for b, fit in fits for s in ("model", "exact")]
        return Answer.of(pd.DataFrame(rows), "bayes")
