"""Which latents stand out? A choice of sites, roles, examples and latents, and its top."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from iclens.activations import LatentActs, select_rows
from iclens.core import IclensError, RunError, Site, SiteError, TableError, nearest
from iclens.growth.detect import test_growth
from iclens.stats import split_prompts
from iclens.study.query.answers import Answer, frame_html
from iclens.study.query.asked import n_rows
from iclens.study.query.exports import save_answer
from iclens.study.results import Results, having
from iclens.table import Ints

if TYPE_CHECKING:
    import altair as alt

_SMALL_IS_CLEAR = ("p_value", "q_value", "control_p", "patch_control_p")
_KEY = ["site", "latent"]
_OF_LATENT = ("auroc", "effect", "patch_control_p")
"""Columns that a latent has once, whatever the role: its first row stands for it."""


@dataclass(frozen=True)
class Selection:
    """Rows of a run.

    Args:
        results: the run's outputs.
        site: one site, or None for all.
        role: one role, or None for all.
        examples: examples over which growth is tested anew, or None for the run's own test. The test is the
            study's: its discovery prompts, every control. Its q values are corrected over the latents of
            this site and role, rising and falling, and not, as the study's are, over all sites and roles.
        latents: latent ids, or None for all.

    Raises:
        SiteError: for examples without one site and role, outside the prompts or fewer than two; for a
            latent that no selected site has.
    """

    results: Results
    site: Site | None = None
    role: str | None = None
    examples: slice | None = None
    latents: tuple[int, ...] | None = None

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
        total = self.results.declared.n_examples
        chosen = np.arange(total)[examples]
        asked = f"examples {examples.start}:{examples.stop}"
        if self.site is None or self.role is None:
            raise SiteError(asked, "no single site and role", "Give site and role as well.")
        ends = [end for end in (examples.start, examples.stop) if end is not None]
        if len(chosen) < 2 or examples.step not in (None, 1) or any(abs(end) > total for end in ends):
            raise SiteError(
                asked,
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
        found = self._growth()
        if self.latents is not None:
            found = having(found, "growth", "latent")
            found = found[found["latent"].isin(self.latents)]
        for beside in (self._concepts, self._effects):
            try:
                found = found.merge(beside(), on=_KEY, how="left")
            except (RunError, TableError, KeyError):  # not there, damaged, or of a version without the column
                continue
        return found.reset_index(drop=True)

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
        n, found = n_rows(n), self.df
        numeric = [str(name) for name in found.select_dtypes("number").columns]
        if by not in numeric:
            raise SiteError(f"column '{by}'", "not a number of this selection", nearest(by, numeric) + ".")
        if by in _OF_LATENT:
            found = found.drop_duplicates(_KEY)
        rank = found[by].abs() if by == "effect" else found[by]
        order = rank.sort_values(ascending=by in _SMALL_IS_CLEAR, na_position="last", kind="stable").index
        return Answer.of(found.loc[order].head(n).reset_index(drop=True), self._table)

    def plot(self) -> alt.TopLevelMixin:
        """An altair chart of the slopes, a line per site and role, by verdict.

        Raises:
            TableError: when there is nothing to draw, saying why.
        """
        return self.answer.plot()

    def save(self, path: str | Path) -> Path:
        """Write the rows (.parquet, .csv, .json) or the chart (.png, .svg), whole or not at all.

        Raises:
            TableError: for another ending, where nothing can be written, or when there is nothing to draw.
        """
        return save_answer(path, lambda: self.df, self.plot)

    def _growth(self) -> pd.DataFrame:
        if self.examples is not None and self.site is not None and self.role is not None:
            return self._tested(self.site, self.role, self._chosen_examples(self.examples))
        found = self.results.frame("growth", self.site)
        return found if self.role is None else found[having(found, "growth", "role")["role"] == self.role]

    def _tested(self, site: Site, role: str, chosen: Ints) -> pd.DataFrame:
        """The growth test over some examples [example], as the study does it."""
        said = self.results.declared
        if len(said.arms) < 2:
            raise RunError(
                f"arms of run '{self.results.run.path}'",
                "its config names no two",
                "Growth is tested between two arms: list them as `prompts.arms` in the run's config.yaml.",
            )
        discovery = split_prompts(said.n_prompts, said.n_examples, seed=said.split_seed).discovery
        treated, *controls = (
            _some(self.results.latents(arm, site, role), discovery, chosen)
            for arm in (said.arms[0], *said.controls)
        )
        norms = self.results.decoder_norms[site.short]
        return test_growth(treated, controls, q=said.q, decoder_norm=norms).df.assign(site=site.short)

    @property
    def _table(self) -> str:
        return "selection" if self.examples is None else "selection over examples"

    def _concepts(self) -> pd.DataFrame:
        table = self.results.frame("transforms", self.site).dropna(subset=["auroc"])
        granted = ~table["label"].isin(["", "candidate"])
        best = table.assign(granted=granted).sort_values(["granted", "auroc"], ascending=False)
        return best.drop_duplicates(_KEY)[[*_KEY, "label", "concept", "auroc"]]

    def _effects(self) -> pd.DataFrame:
        table = self.results.frame("patches", self.site).dropna(subset=["effect"])
        table = table[table["role"] == self.results.declared.patch_role]
        best = table.assign(size=table["effect"].abs()).sort_values("size", ascending=False)
        best = best.rename(columns={"control_p": "patch_control_p"})
        return best.drop_duplicates(_KEY)[[*_KEY, "belief", "effect", "patch_control_p"]]

    def __repr__(self) -> str:
        asked = {"site": self.site and self.site.short, "role": self.role, "examples": self.examples}
        given = [f"{name}={value}" for name, value in asked.items() if value is not None]
        given += [f"latents={list(self.latents)}"] if self.latents is not None else []
        return f"Selection({', '.join(given) or 'everything'})"

    def _repr_html_(self) -> str:
        """The first rows by slope; in one line why there are none."""
        try:
            found = self.df
            shown = self.top(20).df
        except IclensError as problem:
            return f"<p>{escape(str(problem))}</p>"
        return frame_html(f"{self!r} of {len(found):,} rows, the first by slope", shown)


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
