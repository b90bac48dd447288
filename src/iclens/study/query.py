"""What did the study find, from Python? `iclens.open(path)` and what can be asked of a run; no torch.

    run = iclens.open("runs/demo")                                  newest finished run of the study
    run.growth.query("q_value < .05 and verdict == 'grows'")        frames, columns in docs/schemas.md
    run.trajectory("L2.resid_post", latent=12).plot()
    run.sel(site="L2.mlp_out", role="lab", examples=slice(4, 12)).top(20, by="slope")

Labels that do not exist raise a SiteError that names the nearest ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iclens.errors import SiteError, nearest
from iclens.names import Site
from iclens.study.flow import FOLDERS
from iclens.study.followed import Followed
from iclens.study.frames import Frames
from iclens.study.results import Results
from iclens.study.runfolder import find_run
from iclens.study.selection import Selection
from iclens.tables.trajectories import Trajectories


def open_run(path: str | Path) -> Run:
    """Open a run folder, or the newest finished run of a study folder.

    Raises:
        RunError: when there is no such folder or no finished run in it.
    """
    return Run(Results(find_run(Path(path))))


class Run(Frames):
    """A run, opened for questions.

    Args:
        results: its outputs.
    """

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.results.run.path

    @property
    def config(self) -> dict[str, Any]:
        """The resolved study config."""
        return self.results.config.model_dump(mode="json")

    @property
    def card(self) -> dict[str, Any]:
        """Versions, commit, hashes, dtype and seeds."""
        return self.results.card

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
        """The arms; the first is tested against the second."""
        return self.results.arms

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
            arm: the run's first arm by default.

        Raises:
            SiteError: for a site, role, arm or latent that the run does not hold.
        """
        place, chosen = self.site(site), np.atleast_1d(np.asarray(latent, dtype=np.int64))
        role = known("role", role, self.roles)
        wanted = known("arm", arm or self.arms[0], self.arms)
        others = [name for name in self.arms[:2] if name != wanted]
        return Followed(tuple(self._of(place, role, name, chosen) for name in (wanted, *others)))

    def sel(
        self,
        *,
        site: str | Site | None = None,
        role: str | None = None,
        examples: slice | None = None,
        latents: Sequence[int] | None = None,
    ) -> Selection:
        """Rows of the run by label; see `Selection`.

        Args:
            site: one site; all by default.
            role: one role; all by default.
            examples: a slice of the examples; slopes are then measured over these alone, which needs one
                site and role.
            latents: latent ids; all by default.

        Raises:
            SiteError: for a label that does not exist, or examples without one site and role.
        """
        place = None if site is None else self.site(site)
        chosen = None if role is None else known("role", role, self.roles)
        return Selection(self.results, place, chosen, examples, None if latents is None else tuple(latents))

    def site(self, site: str | Site) -> Site:
        """The run's site of that name.

        Raises:
            SiteError: naming the nearest.
        """
        name = site.short if isinstance(site, Site) else site
        short = {str(s): s.short for s in self.results.sites}.get(name, name)
        return Site.parse(known("site", short, self.sites))

    def _of(self, site: Site, role: str, arm: str, latents: Any) -> Trajectories:
        beliefs, _, _ = self.results.beliefs_of(arm)
        norms = self.results.decoder_norms[site.short]
        return Trajectories.of(
            self.results.latents(arm, site, role),
            latents,
            arm=arm,
            beliefs=beliefs,
            belief_names=self.results.config.belief_names,
            decoder_norm=norms,
        )

    @cached_property
    def _summary(self) -> pd.DataFrame:
        counts = self.growth.groupby(["site", "role", "verdict"], sort=False).size()
        return counts.unstack("verdict", fill_value=0).reset_index()

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, sites={self.sites}, roles={self.roles}, arms={self.arms})"

    def _repr_html_(self) -> str:
        """What was run, and how many latents grow where."""
        prompts = self.results.config.prompts
        shown = f"{prompts.n_prompts} prompts of {prompts.n_examples} examples"
        title = f"{self.results.config.study}: {prompts.task}, {shown}"
        head = f"<p><b>{escape(title)}</b></p>"
        missing = [name for name, folder in FOLDERS.items() if not (self.path / folder).is_dir()]
        if missing:
            head += f"<p>unfinished: it lacks {', '.join(missing)}; run `iclens study` on its config.yaml</p>"
        if self.index is not None:
            head += f"<p>pages: <code>{escape(str(self.index))}</code></p>"
        return head if "growth" in missing else head + self._summary.to_html(index=False)


def known(what: str, name: str, options: Sequence[str]) -> str:
    """`name` when it is among `options`; otherwise a SiteError that names the nearest."""
    if name not in options:
        raise SiteError(f"{what} '{name}'", "not in this run", nearest(str(name), options) + ".")
    return name
