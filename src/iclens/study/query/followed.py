"""How does a latent move over the examples? Trajectories of one site and role, to read, plot or display."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from iclens.activations import Trajectories
from iclens.core import IclensError
from iclens.schemas import SummaryTable
from iclens.study.query.answers import Answer
from iclens.study.query.exports import save_answer

if TYPE_CHECKING:
    import altair as alt


@dataclass(frozen=True)
class Followed:
    """Some latents of one site and role, in one arm and beside it the one that it is compared with.

    Args:
        arms: trajectories of the asked arm first, then of the others.
    """

    arms: tuple[Trajectories, ...]

    @property
    def trajectories(self) -> Trajectories:
        """Values [latent prompt example], n_seen and beliefs of the asked arm."""
        return self.arms[0]

    @property
    def df(self) -> pd.DataFrame:
        """A row per latent, prompt and example of the asked arm; beliefs in log-odds (nats)."""
        return _short(self.arms[0].df, self.arms[0])

    @property
    def summary(self) -> Answer:
        """Mean over prompts with its 95 % bootstrap band: a row per arm, latent and n_seen."""
        rows = pd.concat([_short(arm.summary(), arm) for arm in self.arms], ignore_index=True)
        return Answer.of(rows, "summary")

    def plot(self) -> alt.TopLevelMixin:
        """An altair chart: mean and band by examples seen, a panel per latent, a colour and dash per arm.

        Raises:
            TableError: when there is nothing to draw, saying why.
        """
        from iclens.study.query.plots import draw

        assert SummaryTable.chart is not None
        return draw(SummaryTable.chart, self.summary.df, self._title)

    def save(self, path: str | Path) -> Path:
        """Write the rows (.parquet, .csv, .json) or the chart (.png, .svg), whole or not at all.

        Raises:
            TableError: for another ending, where nothing can be written, or when there is nothing to draw.
        """
        return save_answer(path, lambda: self.df, self.plot)

    @property
    def _title(self) -> str:
        first = self.arms[0]
        return f"{first.site.short}, {first.role}"

    def __repr__(self) -> str:
        first = self.arms[0]
        return (
            f"Followed({self._title}, latents={first.latent_ids.tolist()}, arms={[a.arm for a in self.arms]})"
        )

    def _repr_html_(self) -> str:
        """The chart as a drawing that needs no network; in one line why there is none."""
        drawn = StringIO()
        try:
            self.plot().save(drawn, format="svg")
        except IclensError as problem:
            return f"<p>{escape(str(problem))}</p>"
        return f"<figure>{drawn.getvalue()}<figcaption>{escape(self._title)}</figcaption></figure>"


def _short(frame: pd.DataFrame, of: Trajectories) -> pd.DataFrame:
    """The frame with its site in the short form that a run's other frames use."""
    return frame.assign(site=of.site.short)
