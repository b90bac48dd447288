"""What differs between two runs? Settings, inputs and versions; and a table of both, row beside row.

Rows are joined on the key of their table. A latent id means the same in both runs only where both used the
same SAE, so rows of tables that name latents are joined there alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from iclens.core import REDO_STAGE, IclensError, RunError, Site, SiteError, TableError
from iclens.schemas import TABLES
from iclens.study.declared import known
from iclens.study.query.answers import Answer, frame_html
from iclens.study.query.depictions import main_axis
from iclens.study.query.exports import save_answer
from iclens.study.query.frames import Frames
from iclens.study.query.plots import COLOURS, SHAPES

_IDS = ("latent", "latents", "worst_latent", "other", "match")
"""Columns that hold latent ids, of which there is no difference; `other` may also be a name."""
_NAMES_LATENTS = ("latent", "latents", "worst_latent", "response")
"""Columns that name latents; a response may be a latent's, `L2.mlp_out pre 7`, or the model's."""
_DRAWN = 2000


class Comparison:
    """Two runs beside each other; differences are of b from a.

    Args:
        a: the run that was asked.
        b: the other one.
    """

    def __init__(self, a: Frames, b: Frames) -> None:
        self.a, self.b = a, b

    @cached_property
    def differences(self) -> Answer:
        """A row per config key, input hash or version that is not the same: what, a, b (– where it lacks)."""
        held = [_facts(run) for run in (self.a, self.b)]
        keys = dict.fromkeys([*held[0], *held[1]])
        rows = [(key, held[0].get(key, "–"), held[1].get(key, "–")) for key in keys]
        found = [(what, a, b) for what, a, b in rows if a != b]
        return Answer.of(pd.DataFrame(found, columns=["what", "a", "b"]), "differences")

    @cached_property
    def same_saes(self) -> tuple[str, ...]:
        """The sites at which both runs used the same SAE."""
        ours, theirs = _sae_ids(self.a), _sae_ids(self.b)
        return tuple(site for site, name in ours.items() if theirs.get(site) == name)

    @property
    def sites_said(self) -> str:
        """Which sites' latents can be compared and which cannot, in one line."""
        every = dict.fromkeys([*_sae_ids(self.a), *_sae_ids(self.b)])
        others = [site for site in every if site not in self.same_saes]
        parts = [f"latents of {', '.join(self.same_saes)} are compared"] if self.same_saes else []
        subject = "those" if parts else "latents"
        parts += [f"{subject} of {', '.join(others)} are not compared: their SAEs differ"] if others else []
        return "; ".join(parts)

    def table(self, name: str = "growth", site: str | Site | None = None) -> Answer:
        """Rows that both runs have, joined on the table's key.

        Args:
            name: a table of the runs.
            site: rows of one site; all by default.

        Returns:
            The key, then of every other column `<column>_a`, `<column>_b` and, of numbers,
            `<column>_difference`, b − a.

        Raises:
            SiteError: for an unknown table or site, or latents of SAEs that differ.
            RunError, TableError: when a run's table is not there or damaged, or its key is not one row's.
        """
        kind = TABLES[known("table", name, tuple(TABLES))]
        frames = [run.table(name, site).df for run in (self.a, self.b)]
        for frame in frames:
            _both(frame, name, *kind.KEY)
        if any(column in _NAMES_LATENTS for column in kind.COLUMNS):
            frames = self._comparable(frames)
        key = list(kind.KEY)
        for run, frame in zip((self.a, self.b), frames, strict=True):
            if frame.duplicated(key).any():
                raise TableError(
                    f"{name} of run '{run.path}'",
                    f"several rows of one {key}",
                    REDO_STAGE,
                )
        joined = frames[0].merge(frames[1], on=key, suffixes=("_a", "_b"))
        if joined.empty:
            raise RunError(
                f"{name} of two runs",
                "they have no row in common",
                "Compare another table, or runs of the same sites, roles and arms.",
            )
        return Answer.of(_with_differences(joined, frames, key), f"{name} of two runs")

    @property
    def df(self) -> pd.DataFrame:
        """The growth of both runs, joined, as a plain frame."""
        return self.table().df

    @property
    def changed(self) -> Answer:
        """How many growth tests, of a latent at a role, have which verdict: verdict_a, verdict_b, tests."""
        joined = _both(self.table().df, "growth", "verdict_a", "verdict_b")
        counts = joined.groupby(["verdict_a", "verdict_b"], sort=False).size().rename("tests")
        return Answer.of(counts.reset_index(), "")

    def plot(self, name: str = "growth") -> alt.TopLevelMixin:
        """An altair chart of a table's main number, a across and b up, with the line of equal values.

        Raises:
            SiteError, RunError, TableError: as `table`; TableError when the table has no number to draw.
        """
        axis = main_axis(name)
        drawn = tuple(f"{axis.column}_{end}" for end in ("a", "b", "difference"))
        joined = _both(self.table(name).df, name, *drawn).dropna(subset=list(drawn))
        if joined.empty:
            raise TableError(
                f"plot of {name}",
                f"no row has {axis.column} in both runs",
                f"Read the rows: `comparison.table({name!r})`.",
            )
        order = joined[f"{axis.column}_difference"].abs().sort_values(ascending=False, kind="stable").index
        shown = joined.loc[order[:_DRAWN]]
        left = (
            f"left out: {len(joined) - len(shown):,} rows of smaller difference"
            if len(order) > _DRAWN
            else ""
        )
        return _scatter(shown, axis.column, axis.unit, TABLES[name].KEY, (f"{name}: b against a", left))

    def save(self, path: str | Path) -> Path:
        """Write the joined growth rows (.parquet, .csv, .json) or their chart (.png, .svg), or nothing.

        Raises:
            TableError: for another ending, or where nothing can be written.
        """
        return save_answer(path, lambda: self.df, self.plot)

    def _comparable(self, frames: list[pd.DataFrame]) -> list[pd.DataFrame]:
        """Rows that name no latent, or one of an SAE that both runs used."""
        places = [_sites_of(frame) for frame in frames]
        kept = [
            frame[sites.isin(self.same_saes) | (sites == "")]
            for frame, sites in zip(frames, places, strict=True)
        ]
        if any(part.empty and not frame.empty for part, frame in zip(kept, frames, strict=True)):
            others = dict.fromkeys(str(site) for sites in places for site in sites.unique())
            where = ", ".join(site for site in others if site and site not in self.same_saes)
            remedy = "Other tables compare, such as table('beliefs')."
            raise SiteError(f"latents cannot be matched at {where}", "the runs' SAEs differ", remedy)
        return kept

    def __repr__(self) -> str:
        return (
            f"Comparison(a={self.a.path.name!r}, b={self.b.path.name!r}, {len(self.differences)} differences)"
        )

    def _repr_html_(self) -> str:
        """What differs, which latents can be compared, and which verdicts changed."""
        head = (
            f"<p>a: <code>{escape(str(self.a.path))}</code>; b: <code>{escape(str(self.b.path))}</code></p>"
        )
        head += frame_html("differences", self.differences.df)
        try:
            changed, said = self.changed.df, self.sites_said
        except IclensError as problem:
            return head + f"<p>{escape(str(problem))}</p>"
        return head + f"<p>{escape(said)}</p>" + frame_html("verdicts", changed)


def _facts(run: Frames) -> dict[str, str]:
    """Everything that decides a run's numbers, as text by dotted name."""
    found = {f"config {key}": value for key, value in _flat(run.results.run.plain).items() if key}
    try:
        card = dict(run.results.card)
    except IclensError:
        return found
    card.pop("config", None)
    return found | {f"card {key}": value for key, value in _flat(card).items() if key}


def _flat(value: Any, path: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        inner = (_flat(one, f"{path}.{key}" if path else str(key)) for key, one in value.items())
        return {key: text for part in inner for key, text in part.items()}
    return {path: str(value)}


def _sae_ids(run: Frames) -> dict[str, str]:
    saes = run.results.facts["saes"]
    return {site: str(fact["sae_id"]) for site, fact in saes.items()}


def _both(frame: pd.DataFrame, name: str, *columns: str) -> pd.DataFrame:
    """The frame, when it has some columns.

    Raises:
        TableError: naming the first that it lacks, so that one of the runs does.
    """
    absent = [column for column in columns if column not in frame]
    if absent:
        column = re.sub(r"_(a|b|difference)$", "", absent[0])
        raise TableError(
            f"{name} of two runs",
            f"one lacks {column}",
            "Compare another table, or run `iclens study` on the config of the older one again.",
        )
    return frame


def _sites_of(frame: pd.DataFrame) -> pd.Series:
    """The site whose latents a row names, [row]; "" where it names none."""
    if "site" not in frame:
        found = frame["response"].str.extract(r"^(L\d+\.\w+) ")[0]
        return found.fillna("")
    words = [name for name in ("latent", "latents") if name in frame and not is_numeric_dtype(frame[name])]
    free = pd.Series(False, index=frame.index) if not words else (frame[words] == "").all(axis=1)
    return frame["site"].mask(free, "")


def _with_differences(joined: pd.DataFrame, frames: list[pd.DataFrame], key: list[str]) -> pd.DataFrame:
    """The key, then each column of both runs side by side; what only one run's version has is left out."""
    columns = {name: joined[name] for name in key}
    for name in frames[0].columns:
        if name in key or name not in frames[1]:
            continue
        a, b = joined[f"{name}_a"], joined[f"{name}_b"]
        columns |= {f"{name}_a": a, f"{name}_b": b}
        if name not in _IDS and all(is_numeric_dtype(part) and not is_bool_dtype(part) for part in (a, b)):
            columns[f"{name}_difference"] = b - a
    return pd.DataFrame(columns)


def _scatter(
    shown: pd.DataFrame, column: str, unit: str, key: tuple[str, ...], said: tuple[str, str]
) -> alt.TopLevelMixin:
    both = (f"{column}_a", f"{column}_b")
    rows = shown[[*key, *both]].copy()
    mark = "verdict" if "verdict_a" in shown else ""
    same = shown["verdict_a"] == shown["verdict_b"] if mark else pd.Series(True, index=shown.index)
    rows["verdict"] = np.where(same, "same", "changed")
    ends = [float(rows[list(both)].min().min()), float(rows[list(both)].max().max())]
    diagonal = alt.Chart(pd.DataFrame({both[0]: ends, both[1]: ends})).mark_line(
        color="#888888", strokeDash=[4, 3]
    )
    scale: dict[str, Any] = {"domain": ["same", "changed"]}
    legend = alt.Legend(title="verdict") if mark else None
    colours, shapes = (alt.Scale(**scale, range=list(kept[:2])) for kept in (COLOURS, SHAPES))
    points = (
        alt.Chart(rows)
        .mark_point(size=28)
        .encode(
            tooltip=list(rows.columns),
            color=alt.Color("verdict:N", legend=legend, scale=colours),
            shape=alt.Shape("verdict:N", legend=legend, scale=shapes),
        )
    )
    titles = [alt.X(f"{both[0]}:Q", title=f"{column} of a ({unit})")]
    height = alt.Y(f"{both[1]}:Q", title=f"{column} of b ({unit})")
    layers = [layer.encode(x=titles[0], y=height) for layer in (diagonal, points)]
    title = alt.TitleParams(text=said[0], subtitle=[said[1]] if said[1] else [], anchor="start")
    return alt.LayerChart(layer=layers).properties(width=320, height=320, title=title)
