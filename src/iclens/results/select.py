"""Rows chosen from one run, and two runs row beside row.

Rows of two runs are joined on the key of their table. A latent id means the same in both only where both used
the same SAE, so rows of tables that name latents are joined there alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from iclens.activations import LatentActs, select_rows
from iclens.core import REDO_STAGE, IclensError, RunError, Site, SiteError, TableError, nearest
from iclens.growth.detect import test_growth
from iclens.results.answer import Answer, Saved, frame_html
from iclens.results.read import Results, having, known, n_rows
from iclens.schemas import TABLES
from iclens.stats import split_prompts
from iclens.table import Ints

if TYPE_CHECKING:
    import altair as alt

    from iclens.results.run import Run

_SMALL_IS_CLEAR = ("p_value", "q_value", "control_p", "patch_control_p")
_KEY = ["site", "latent"]
_OF_LATENT = ("auroc", "effect", "patch_control_p")
"""Columns that a latent has once, whatever the role: its first row stands for it."""
_IDS = ("latent", "latents", "worst_latent", "other", "match")
"""Columns that hold latent ids, of which there is no difference; `other` may also be a name."""
_NAMES_LATENTS = ("latent", "latents", "worst_latent", "response")
"""Columns that name latents; a response may be a latent's, `L2.mlp_out pre 7`, or the model's."""


@dataclass(frozen=True)
class Selection(Saved):
    """Rows of a run.

    Raises:
        SiteError: for examples without one site and role, outside the prompts or fewer than two; for a
            latent that no selected site has.
    """

    results: Results  # the run's outputs
    site: Site | None = None  # one site, or None for all
    role: str | None = None  # one role, or None for all
    # examples over which growth is tested anew, or None for the run's own test. The test is the study's: its
    # discovery prompts, every control. Its q values are corrected over the latents of this site and role,
    # rising and falling, and not, as the study's are, over all sites and roles.
    examples: slice | None = None
    latents: tuple[int, ...] | None = None  # latent ids, or None for all

    def __post_init__(self) -> None:
        facts = self.results.facts["saes"]
        names = [self.site.short] if self.site is not None else list(facts)
        largest = max(facts[name]["d_sae"] for name in names)
        strange = [latent for latent in self.latents or () if not 0 <= latent < largest]
        if strange:
            raise SiteError(f"latent {strange[0]}", "no such latent", f"Latents run from 0 to {largest - 1}.")
        if self.examples is not None:
            self._chosen_examples(self.examples)

    def _chosen_examples(self, examples: slice) -> Ints:
        total = self.results.setting("prompts.n_examples", int, 0)
        chosen = np.arange(total)[examples]
        subject = f"examples {examples.start}:{examples.stop}"
        if self.site is None or self.role is None:
            raise SiteError(subject, "no single site and role", "Give site and role as well.")
        ends = [end for end in (examples.start, examples.stop) if end is not None]
        if len(chosen) < 2 or examples.step not in (None, 1) or any(abs(end) > total for end in ends):
            raise SiteError(
                subject,
                f"prompts have examples 0 to {total - 1}",
                f"Take two or more in a row, such as slice(0, {total}).",
            )
        return chosen

    @property
    def df(self) -> pd.DataFrame:
        """The growth rows, with each latent's best concept and largest patch effect beside them.

        Columns are those of the growth table, then label, concept, auroc, and of the largest patch effect its
        belief, effect and patch_control_p. Columns of transforms or patches that are not there are absent.
        """
        rows = self._growth()
        if self.latents is not None:
            rows = having(rows, "growth", "latent")
            rows = rows[rows["latent"].isin(self.latents)]
        for best in (self._concepts, self._effects):
            try:
                rows = rows.merge(best(), on=_KEY, how="left")
            except (RunError, TableError, KeyError):  # not there, damaged, or of a version without the column
                continue
        return rows.reset_index(drop=True)

    @property
    def answer(self) -> Answer:
        """The same rows as an Answer."""
        return Answer.of(self.df, self._table)

    def top(self, n: int = 20, by: str = "slope") -> Answer:
        """The `n` first rows by a column.

        Smallest first for p and q values (control_p too); by size for effect; largest first otherwise. What a
        latent has once, whatever the role (auroc, effect), gives one row for each latent.

        Raises:
            SiteError: for a column that is not a number or does not exist, naming the nearest; for an `n`
                that is not a positive integer.
        """
        n, rows = n_rows(n), self.df
        numeric = [str(name) for name in rows.select_dtypes("number").columns]
        if by not in numeric:
            raise SiteError(f"column '{by}'", "not a number of this selection", nearest(by, numeric) + ".")
        if by in _OF_LATENT:
            rows = rows.drop_duplicates(_KEY)
        rank = rows[by].abs() if by == "effect" else rows[by]
        order = rank.sort_values(ascending=by in _SMALL_IS_CLEAR, na_position="last", kind="stable").index
        return Answer.of(rows.loc[order].head(n).reset_index(drop=True), self._table)

    def plot(self) -> alt.TopLevelMixin:
        """An altair chart of the slopes, a line per site and role, by verdict.

        Raises:
            TableError: when there is nothing to draw, saying why.
        """
        return self.answer.plot()

    def _growth(self) -> pd.DataFrame:
        if self.examples is not None and self.site is not None and self.role is not None:
            return self._tested(self.site, self.role, self._chosen_examples(self.examples))
        rows = self.results.frame("growth", self.site)
        return rows if self.role is None else rows[having(rows, "growth", "role")["role"] == self.role]

    def _tested(self, site: Site, role: str, chosen: Ints) -> pd.DataFrame:
        """The growth test over some examples [example], as the study does it."""
        results = self.results
        if len(results.arms) < 2:
            raise RunError(
                f"arms of run '{results.path}'",
                "its config names no two",
                "Growth is tested between two arms: list them as `prompts.arms` in the run's config.yaml.",
            )
        n_prompts, n_examples = (
            results.setting(f"prompts.{key}", int, 0) for key in ("n_prompts", "n_examples")
        )
        seed = results.setting("growth.split_seed", int, 0)
        discovery = split_prompts(n_prompts, n_examples, seed=seed).discovery
        treated, *controls = (
            _some(results.latents(arm, site, role), discovery, chosen)
            for arm in (results.arms[0], *results.controls)
        )
        q, norms = results.setting("growth.q", float, float("nan")), results.decoder_norms[site.short]
        return test_growth(treated, controls, q=q, decoder_norm=norms).df.assign(site=site.short)

    @property
    def _table(self) -> str:
        return "selection" if self.examples is None else "selection over examples"

    def _concepts(self) -> pd.DataFrame:
        rows = self.results.frame("transforms", self.site).dropna(subset=["auroc"])
        granted = ~rows["label"].isin(["", "candidate"])
        best = rows.assign(granted=granted).sort_values(["granted", "auroc"], ascending=False)
        return best.drop_duplicates(_KEY)[[*_KEY, "label", "concept", "auroc"]]

    def _effects(self) -> pd.DataFrame:
        rows = self.results.frame("patches", self.site).dropna(subset=["effect"])
        rows = rows[rows["role"] == self.results.patch_role]
        best = rows.assign(size=rows["effect"].abs()).sort_values("size", ascending=False)
        best = best.rename(columns={"control_p": "patch_control_p"})
        return best.drop_duplicates(_KEY)[[*_KEY, "belief", "effect", "patch_control_p"]]

    def __repr__(self) -> str:
        chosen = {"site": self.site and self.site.short, "role": self.role, "examples": self.examples}
        given = [f"{name}={value}" for name, value in chosen.items() if value is not None]
        given += [f"latents={list(self.latents)}"] if self.latents is not None else []
        return f"Selection({', '.join(given) or 'everything'})"

    def _repr_html_(self) -> str:
        """The first rows by slope; in one line why there are none."""
        try:
            rows, top = self.df, self.top(20).df
        except IclensError as problem:
            return f"<p>{escape(str(problem))}</p>"
        return frame_html(f"{self!r} of {len(rows):,} rows, the first by slope", top)


def _some(acts: LatentActs, prompts: Ints, examples: Ints) -> LatentActs:
    """The same latents on some of the prompts [prompt] and examples [example] only.

    Raises:
        TableError: when there are fewer than the config says.
    """
    if prompts.max() >= acts.n_prompts or examples.max() >= acts.n_examples:
        raise TableError(
            f"latents at {acts.site.short} {acts.role}",
            f"{acts.n_prompts} prompts of {acts.n_examples} examples",
            "The run's config says more: run `iclens study` on it again, which tracks what is missing.",
        )
    return select_rows(acts, prompts, examples)


# ------------------------------------------------------------------------------------------------ two runs


@dataclass(frozen=True, repr=False)
class Comparison(Saved):
    """Two runs beside each other; differences are of b from a, and `df`, `plot` and `save` are of growth."""

    a: Run  # the run that was asked
    b: Run  # the other one

    @cached_property
    def differences(self) -> Answer:
        """A row per config key, input hash or version that is not the same: what, a, b (– where it lacks)."""
        a, b = _facts(self.a), _facts(self.b)
        rows = [(key, a.get(key, "–"), b.get(key, "–")) for key in dict.fromkeys([*a, *b])]
        different = [row for row in rows if row[1] != row[2]]
        return Answer.of(pd.DataFrame(different, columns=["what", "a", "b"]), "differences")

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
            site: rows of one site; all by default.

        Returns:
            The key, then of every other column `<column>_a`, `<column>_b` and, of numbers,
            `<column>_difference`, b − a.

        Raises:
            SiteError: for an unknown table or site, or latents of SAEs that differ.
            RunError, TableError: when a run's table is not there or damaged, or its key is not one row's.
        """
        kind = TABLES[known("table", name, TABLES)]
        frames, key = [run.table(name, site).df for run in (self.a, self.b)], list(kind.KEY)
        for frame in frames:
            _both(frame, name, *key)
        if any(column in _NAMES_LATENTS for column in kind.COLUMNS):
            frames = self._comparable(frames)
        for run, frame in zip((self.a, self.b), frames, strict=True):
            if frame.duplicated(key).any():
                raise TableError(f"{name} of run '{run.path}'", f"several rows of one {key}", REDO_STAGE)
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
        from iclens.results.plot import main_axis, scatter

        joined, column = self.table(name).df, main_axis(name).column
        drawn = [f"{column}_{end}" for end in ("a", "b", "difference")]
        joined = _both(joined, name, *drawn).dropna(subset=drawn)
        if joined.empty:
            raise TableError(
                f"plot of {name}",
                f"no row has {column} in both runs",
                f"Read the rows: `comparison.table({name!r})`.",
            )
        return scatter(joined, name)

    def _comparable(self, frames: list[pd.DataFrame]) -> list[pd.DataFrame]:
        """Rows that name no latent, or one of an SAE that both runs used."""
        sites = [_sites_of(frame) for frame in frames]
        kept = [
            frame[named.isin(self.same_saes) | (named == "")]
            for frame, named in zip(frames, sites, strict=True)
        ]
        if any(part.empty and not frame.empty for part, frame in zip(kept, frames, strict=True)):
            others = dict.fromkeys(str(site) for named in sites for site in named.unique())
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
        a, b = (escape(str(run.path)) for run in (self.a, self.b))
        head = f"<p>a: <code>{a}</code>; b: <code>{b}</code></p>"
        head += frame_html("differences", self.differences.df)
        try:
            changed, sites = self.changed.df, self.sites_said
        except IclensError as problem:
            return head + f"<p>{escape(str(problem))}</p>"
        return head + f"<p>{escape(sites)}</p>" + frame_html("verdicts", changed)


def _facts(run: Run) -> dict[str, str]:
    """Everything that decides a run's numbers, as text by dotted name."""
    facts = {f"config {key}": value for key, value in _flat(run.config).items() if key}
    try:
        card = dict(run.card)
    except IclensError:
        return facts
    card.pop("config", None)
    return facts | {f"card {key}": value for key, value in _flat(card).items() if key}


def _flat(value: Any, path: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        parts = (_flat(inner, f"{path}.{key}" if path else str(key)) for key, inner in value.items())
        return {key: text for part in parts for key, text in part.items()}
    return {path: str(value)}


def _sae_ids(run: Run) -> dict[str, str]:
    return {site: str(fact["sae_id"]) for site, fact in run.results.facts["saes"].items()}


def _both(frame: pd.DataFrame, name: str, *columns: str) -> pd.DataFrame:
    """The frame, when it has some columns.

    Raises:
        TableError: naming the first that it lacks, so that one of the runs does.
    """
    for column in columns:
        if column not in frame:
            lacked = re.sub(r"_(a|b|difference)$", "", column)
            raise TableError(
                f"{name} of two runs",
                f"one lacks {lacked}",
                "Compare another table, or run `iclens study` on the config of the older one again.",
            )
    return frame


def _sites_of(frame: pd.DataFrame) -> pd.Series:
    """The site whose latents a row names, [row]; "" where it names none."""
    if "site" not in frame:
        return frame["response"].str.extract(r"^(L\d+\.\w+) ")[0].fillna("")
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
