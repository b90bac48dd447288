"""A run, opened for questions; no torch.

    run = iclens.open("runs/demo")                                  newest finished run of the study
    run.growth.query("q_value < .05 and verdict == 'grows'")        frames, columns in docs/schemas.md
    run.growth.plot(), run.growth.about, run.growth.save("growth.csv")
    run.trajectory("L2.resid_post", latent=12).plot()
    run.sel(site="L2.mlp_out", role="lab", examples=slice(4, 12)).top(20, by="slope")
    run.compare("runs/other").table("growth")
    run.problems, run.check()                                       what is wrong with it, a line each

Labels that do not exist raise a SiteError that names the nearest ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from iclens.activations import Trajectories
from iclens.core import IclensError, RunError, RunWarning, Site, SiteError, nearest
from iclens.results.answer import Answer, Saved, frame_html
from iclens.results.read import (
    UNFINISHED,
    Results,
    changed_files,
    example_slice,
    having,
    known,
    latent_ids,
    renamed_config,
)
from iclens.results.select import Comparison, Selection
from iclens.schemas import TABLES
from iclens.study.run import find_folder

if TYPE_CHECKING:
    import altair as alt

    from iclens.results.features import Features


def open(path: str | Path) -> Run:
    """Open a run folder, in whatever state, or the newest finished run of a study folder.

    A run of another version, or a damaged one, opens with one RunWarning; `problems` says what is wrong.

    Raises:
        RunError: when there is no such folder or no finished run in it, or for what is no path.
    """
    if not isinstance(path, str | Path):
        raise RunError(f"run {path!r}"[:80], "neither a run nor a path", "Give the path of a run folder.")
    run = Run(Results(find_folder(Path(path))))
    lines = [line for line in run.problems if not line.startswith(UNFINISHED)]
    if lines:
        more = f" (and {len(lines) - 1} more, see run.problems)" if len(lines) > 1 else ""
        text = f"run '{run.path}': {lines[0]}{more}. What can be read is shown."
        warnings.warn(text, RunWarning, stacklevel=2)
    return run


class Run:
    """A run, opened for questions. Every table of `iclens.schemas` is an attribute: `run.growth`."""

    def __init__(self, results: Results) -> None:
        self.results = results

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.results.path

    @property
    def config(self) -> dict[str, Any]:
        """The resolved study config; as it stands in the folder when it no longer validates."""
        return dict(self.results.plain)

    @property
    def card(self) -> dict[str, Any]:
        """Versions, commit, hashes, dtype and seeds.

        Raises:
            RunError, TableError: when it is missing or damaged.
        """
        return self.results.card

    @property
    def problems(self) -> tuple[str, ...]:
        """What is unfinished, of another version, missing or unreadable, a line each."""
        return self.results.problems

    def check(self) -> tuple[str, ...]:
        """`problems`, and what differs from the run's own record, a line each; reads all files.

        Named are files that are not what their stage wrote, files that no stage wrote, and a config whose
        hash is not the one in the folder's name. Everything is compared with the records in the run itself:
        whoever rewrites a file and its record is not seen.
        """
        return (*self.problems, *renamed_config(self.results), *changed_files(self.path))

    @property
    def sites(self) -> tuple[str, ...]:
        """The followed sites, short form."""
        return tuple(site.short for site in self.results.sites)

    @property
    def roles(self) -> tuple[str, ...]:
        """The followed roles."""
        return self.results.roles

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms; the first is tested against `controls`, the others are followed as well."""
        return self.results.arms

    @property
    def controls(self) -> tuple[str, ...]:
        """The arms that growth must be beyond: `growth.controls`, or else the second arm."""
        return self.results.controls

    @property
    def index(self) -> Path | None:
        """The pages' index.html, when they are written."""
        file = self.results.path_of("dashboard", "site/index.html")
        return file if file.is_file() else None

    def table(self, name: str, site: str | Site | None = None) -> Answer:
        """A table by its name; of one site, only its rows are read.

        Args:
            name: of a table, as in docs/schemas.md.
            site: such as `L2.resid_post` or `blocks.2.hook_resid_post`; all by default.

        Raises:
            SiteError: for a table or site that the run does not hold, naming the nearest.
            RunError: when its stage has not run.
            TableError: when its file is damaged or, asked for a site, names none.
        """
        return Answer.of(self.results.frame(name, None if site is None else self.site(site)), name)

    @property
    def bayes(self) -> Answer:
        """Fits of LO_0 + nλ: a row per belief and source (model, exact), nats."""
        fits = self.results.bayes.items()
        rows = [{"belief": b, "source": s} | fit[s] for b, fit in fits for s in ("model", "exact")]
        return Answer.of(pd.DataFrame(rows), "bayes")

    def site(self, site: str | Site) -> Site:
        """The run's site of that name.

        Raises:
            SiteError: when it is none of the run's, naming the nearest.
        """
        name = str(site)
        with suppress(SiteError):  # `known` names what is nearest in this run
            name = Site.parse(name).short
        return Site.parse(known("site", name, self.sites))

    def trajectory(
        self, site: str | Site, latent: int | Sequence[int], role: str = "pre", arm: str | None = None
    ) -> Followed:
        """Latents over the examples of a prompt.

        Args:
            site: such as `L2.resid_post` or `blocks.2.hook_resid_post`.
            arm: the run's first arm by default; the first control stands beside it.

        Raises:
            SiteError: for a site, role, arm or latent that the run does not hold.
        """
        place, chosen = self.site(site), np.array(latent_ids(latent), dtype=np.int64)
        if not self.arms:
            raise RunError(
                f"arms of run '{self.path}'",
                "its config names none",
                "List prompts.arms in the run's config.yaml; `run.problems` says what else is wrong.",
            )
        role = known("role", role, self.roles)
        wanted = known("arm", arm or self.arms[0], self.arms)
        others = [name for name in (self.arms[0], *self.controls[:1]) if name != wanted]
        return Followed(tuple(self._trajectories(place, role, name, chosen) for name in (wanted, *others)))

    def _trajectories(self, site: Site, role: str, arm: str, latents: Any) -> Trajectories:
        return Trajectories.of(
            self.results.latents(arm, site, role),
            latents,
            arm=arm,
            beliefs=self.results.beliefs_of(arm)[0],
            belief_names=self.results.beliefs,
            decoder_norm=self.results.decoder_norms[site.short],
        )

    def sel(
        self,
        *,
        site: str | Site | None = None,
        role: str | None = None,
        examples: slice | None = None,
        latents: int | Sequence[int] | None = None,
    ) -> Selection:
        """Rows of the run by label; see `Selection`.

        Args:
            site: one site; all by default.
            role: one role; all by default.
            examples: a slice of the examples; growth is then tested over these alone, as the study tests it
                (discovery prompts, every control), which needs one site and role. The q values are
                corrected over the latents of this site and role, and not over the whole study.
            latents: one latent id, or several; all by default.

        Raises:
            SiteError: for a label that does not exist, or examples without one site and role.
        """
        return Selection(
            self.results,
            None if site is None else self.site(site),
            None if role is None else known("role", role, self.roles),
            None if examples is None else example_slice(examples),
            None if latents is None else latent_ids(latents),
        )

    def top(
        self, n: int = 20, by: str = "slope", *, site: str | Site | None = None, role: str | None = None
    ) -> Answer:
        """The `n` first latents by a column; short for `sel(site=..., role=...).top(n, by)`.

        Raises:
            SiteError: for a label or column that does not exist, or an `n` that is not a positive integer.
        """
        return self.sel(site=site, role=role).top(n, by)

    def compare(self, other: Run | str | Path) -> Comparison:
        """What differs between this run and another, and their tables side by side.

        Args:
            other: a run, or the path of one.

        Raises:
            RunError: when there is no such run.
        """
        return Comparison(self, other if isinstance(other, Run) else open(other))

    def features(self, site: str | Site, latents: int | Sequence[int] | None = None) -> Features:
        """Latents of a site as feature JSON, for the tools that show features.

        Args:
            site: such as `L2.resid_post`.
            latents: one latent id, or several; by default those that have a page, or else the short-listed.

        Raises:
            SiteError: for a site or latent that the run does not hold.
        """
        from iclens.results.features import features_of

        return features_of(self.results, self.site(site), None if latents is None else latent_ids(latents))

    def __getattr__(self, name: str) -> Answer:
        """The table of that name.

        Raises:
            AttributeError: for another name, naming the nearest.
        """
        if name in TABLES:
            return self.table(name)
        if name.startswith("_"):
            raise AttributeError(name)
        offered = [public for public in dir(self) if not public.startswith("_")]
        raise AttributeError(f"a run has no '{name}'. {nearest(name, offered)}.")

    def __dir__(self) -> list[str]:
        """Its own names, and those of the tables."""
        return sorted([*super().__dir__(), *TABLES])

    def __repr__(self) -> str:
        try:
            sites: tuple[str, ...] | str = self.sites
        except IclensError:
            sites = "unknown"
        n = f", problems={len(self.problems)}" if self.problems else ""
        return f"Run({str(self.path)!r}, sites={sites}, roles={self.roles}, arms={self.arms}{n})"

    def _repr_html_(self) -> str:
        """What was run, what is wrong with it, and how many latents grow where."""
        setting = self.results.setting
        study, task = setting("study", str, ""), setting("prompts.task", str, "")
        n_prompts, n_examples = setting("prompts.n_prompts", int, 0), setting("prompts.n_examples", int, 0)
        title = f"{study}: {task}, {n_prompts} prompts of {n_examples} examples"
        head = f"<p><b>{escape(title)}</b></p>"
        if self.problems:
            lines = "".join(f"<li>{escape(line)}</li>" for line in self.problems)
            head += f"<ul>{lines}</ul><p>`iclens study` on its config makes what is not there.</p>"
        if self.index is not None:
            head += f"<p>pages: <code>{escape(str(self.index))}</code></p>"
        columns = ["site", "role", "verdict"]
        try:
            counts = having(self.growth.df, "growth", *columns).groupby(columns, sort=False).size()
        except IclensError as problem:
            return head + f"<p>{escape(str(problem))}</p>"
        return head + frame_html("latents by verdict", counts.unstack("verdict", fill_value=0).reset_index())


@dataclass(frozen=True)
class Followed(Saved):
    """Some latents of one site and role, in one arm and beside it the one that it is compared with."""

    arms: tuple[Trajectories, ...]  # trajectories of the asked arm first, then of the others

    @property
    def trajectories(self) -> Trajectories:
        """Values [latent prompt example], n_seen and beliefs of the asked arm."""
        return self.arms[0]

    @property
    def df(self) -> pd.DataFrame:
        """A row per latent, prompt and example of the asked arm; beliefs in log-odds (nats)."""
        return self.arms[0].df.assign(site=self.arms[0].site.short)

    @property
    def summary(self) -> Answer:
        """Mean over prompts with its 95 % bootstrap band: a row per arm, latent and n_seen."""
        parts = [arm.summary().assign(site=arm.site.short) for arm in self.arms]
        return Answer.of(pd.concat(parts, ignore_index=True), "summary")

    def plot(self) -> alt.TopLevelMixin:
        """An altair chart: mean and band by examples seen, a panel per latent, a colour and dash per arm.

        Raises:
            TableError: when there is nothing to draw, saying why.
        """
        from iclens.results.plot import chart_of

        return chart_of(self.summary.df, "summary", self._title)

    @property
    def _title(self) -> str:
        return f"{self.arms[0].site.short}, {self.arms[0].role}"

    def __repr__(self) -> str:
        latents, arms = self.arms[0].latent_ids.tolist(), [arm.arm for arm in self.arms]
        return f"Followed({self._title}, latents={latents}, arms={arms})"

    def _repr_html_(self) -> str:
        """The chart as a drawing that needs no network; in one line why there is none."""
        drawn = StringIO()
        try:
            self.plot().save(drawn, format="svg")
        except IclensError as problem:
            return f"<p>{escape(str(problem))}</p>"
        return f"<figure>{drawn.getvalue()}<figcaption>{escape(self._title)}</figcaption></figure>"
