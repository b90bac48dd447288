"""How does a latent move over the examples? Trajectories of one site and role, to read, plot or display."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import Any

import pandas as pd

from iclens.tables.trajectories import Trajectories


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
    def summary(self) -> pd.DataFrame:
        """Mean over prompts with its 95 % bootstrap band: a row per arm, latent and n_seen."""
        return pd.concat([_short(arm.summary(), arm) for arm in self.arms], ignore_index=True)

    def plot(self) -> Any:
        """An altair chart: mean and band by examples seen, a column per latent, a colour per arm."""
        import altair as alt

        base = alt.Chart(self.summary).encode(
            x=alt.X("n_seen:Q", title="examples seen"),
            color=alt.Color("arm:N", sort=[arm.arm for arm in self.arms], title="arm"),
        )
        low = alt.Y("ci_low:Q", title="activation")
        band = base.mark_area(opacity=0.25).encode(y=low, y2="ci_high:Q")
        line = base.mark_line().encode(y="mean:Q")
        return (band + line).properties(width=280, height=200).facet(column="latent:N", title=self._title)

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
        """The chart as a drawing that needs no network."""
        drawn = StringIO()
        self.plot().save(drawn, format="svg")
        return f"<figure>{drawn.getvalue()}<figcaption>{escape(self._title)}</figcaption></figure>"


def _short(frame: pd.DataFrame, of: Trajectories) -> pd.DataFrame:
    """The frame with its site in the short form that a run's other frames use."""
    return frame.assign(site=of.site.short)
