"""What did the study find, from Python? `iclens.open(path)` and what can be asked of a run; no torch.

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

from collections.abc import Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iclens.activations import Trajectories
from iclens.core import IclensError, RunError, Site, nearest
from iclens.schemas import TABLES
from iclens.study.declared import known
from iclens.study.opening import Condition, changed_files, condition_of, read_run, renamed_config
from iclens.study.query.answers import Answer, frame_html
from iclens.study.query.asked import example_slice, latent_ids
from iclens.study.query.followed import Followed
from iclens.study.query.frames import Frames
from iclens.study.query.selection import Selection
from iclens.study.results import Results, having
from iclens.study.run import FOLDERS, find_folder

if TYPE_CHECKING:
    from iclens.study.query.comparison import Comparison
    from iclens.study.query.features import Features


def open_run(path: str | Path) -> Run:
    """Open a run folder, in whatever state, or the newest finished run of a study folder.

    A run of another version, or a damaged one, opens with one RunWarning; `problems` says what is wrong.

    Raises:
        RunError: when there is no such folder or no finished run in it, or for what is no path.
    """
    if not isinstance(path, str | Path):
        raise RunError(f"run {path!r}"[:80], "neither a run nor a path", "Give the path of a run folder.")
    found, problem = read_run(find_folder(Path(path)))
    condition = condition_of(found, problem, TABLES)
    condition.warn(found.path)
    return Run(Results(found), condition)


class Run(Frames):
    """A run, opened for questions.

    Args:
        results: its outputs.
        condition: in what state it was found.
    """

    def __init__(self, results: Results, condition: Condition | None = None) -> None:
        super().__init__(results)
        self._condition = condition or Condition()

    @property
    def config(self) -> dict[str, Any]:
        """The resolved study config; as it stands in the folder when it no longer validates."""
        return dict(self.results.run.plain)

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
        return self._condition.lines

    def check(self) -> tuple[str, ...]:
        """`problems`, and what differs from the run's own record, a line each; reads all files.

        Named are files that are not what their stage wrote, files that no stage wrote, and a config whose
        hash is not the one in the folder's name. Everything is compared with the records in the run itself:
        whoever rewrites a file and its record is not seen.
        """
        return self.problems + renamed_config(self.results.run) + changed_files(self.path)

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
        return self.results.declared.controls

    @property
    def index(self) -> Path | None:
        """The pages' index.html, when they are written."""
        found = self.path / FOLDERS["dashboard"] / "site" / "index.html"
        return found if found.is_file() else None

    def trajectory(
        self, site: str | Site, latent: int | Sequence[int], role: str = "pre", arm: str | None = None
    ) -> Followed:
        """Latents over the examples of a prompt.

        Args:
            site: such as `L2.resid_post` or `blocks.2.hook_resid_post`.
            latent: one latent id, or several.
            role: token of each example.
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
        return Followed(tuple(self._of(place, role, name, chosen) for name in (wanted, *others)))

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
        place = None if site is None else self.site(site)
        chosen = None if role is None else known("role", role, self.roles)
        over = None if examples is None else example_slice(examples)
        ids = None if latents is None else latent_ids(latents)
        return Selection(self.results, place, chosen, over, ids)

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
        from iclens.study.query.comparison import Comparison

        return Comparison(self, other if isinstance(other, Run) else open_run(other))

    def features(self, site: str | Site, latents: int | Sequence[int] | None = None) -> Features:
        """Latents of a site as feature JSON, for the tools that show features.

        Args:
            site: such as `L2.resid_post`.
            latents: one latent id, or several; by default those that have a page, or else the short-listed.

        Raises:
            SiteError: for a site or latent that the run does not hold.
        """
        from iclens.study.query.features import features_of

        ids = None if latents is None else latent_ids(latents)
        return features_of(self.results, self.site(site), ids)

    def _of(self, site: Site, role: str, arm: str, latents: Any) -> Trajectories:
        beliefs, _, _ = self.results.beliefs_of(arm)
        norms = self.results.decoder_norms[site.short]
        return Trajectories.of(
            self.results.latents(arm, site, role),
            latents,
            arm=arm,
            beliefs=beliefs,
            belief_names=self.results.declared.belief_names,
            decoder_norm=norms,
        )

    @cached_property
    def _summary(self) -> Answer:
        columns = ["site", "role", "verdict"]
        counts = having(self.growth.df, "growth", *columns).groupby(columns, sort=False).size()
        return Answer.of(counts.unstack("verdict", fill_value=0).reset_index(), "")

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
        found = f", problems={len(self.problems)}" if self.problems else ""
        return f"Run({str(self.path)!r}, sites={sites}, roles={self.roles}, arms={self.arms}{found})"

    def _repr_html_(self) -> str:
        """What was run, what is wrong with it, and how many latents grow where."""
        said = self.results.declared
        shown = f"{said.n_prompts} prompts of {said.n_examples} examples"
        head = f"<p><b>{escape(f'{said.study}: {said.task}, {shown}')}</b></p>"
        if self.problems:
            lines = "".join(f"<li>{escape(line)}</li>" for line in self.problems)
            head += f"<ul>{lines}</ul><p>`iclens study` on its config makes what is not there.</p>"
        if self.index is not None:
            head += f"<p>pages: <code>{escape(str(self.index))}</code></p>"
        try:
            return head + frame_html("latents by verdict", self._summary.df)
        except IclensError as problem:
            return head + f"<p>{escape(str(problem))}</p>"
