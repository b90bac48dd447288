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


class Run:
    """A run, opened for questions.

    Args:
        results: its outputs.
    """

    def __init__(self, results: Results) -> None:
        self.results = results

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

    @property
    def growth(self) -> pd.DataFrame:
        """Verdicts: a row per site, role and latent, its rung of the ladder and why it is not higher."""
        return self.results.table("growth")

    @property
    def falsifiers(self) -> pd.DataFrame:
        """What would refute additive Bayesian growth, and whether it happened: a row per falsifier."""
        return self.results.table("falsifiers")

    @property
    def accounts(self) -> pd.DataFrame:
        """Accounts of the growth, compared over all arms on held-out prompts: a row per account."""
        return self.results.table("accounts")

    @property
    def agreement(self) -> pd.DataFrame:
        """The model's log-odds on the exact ones: a row per arm and belief."""
        return self.results.table("agreement")

    @property
    def tests(self) -> pd.DataFrame:
        """Duplicates, order, reversal, prior, evidence: a row per test of the answer's log-odds."""
        return self.results.table("tests")

    @property
    def shapes(self) -> pd.DataFrame:
        """Trajectory models of the short list: a row per site, role and latent."""
        return self.results.table("shapes")

    @property
    def evidence(self) -> pd.DataFrame:
        """Evidence regressions of the short list: a row per site, role and latent."""
        return self.results.table("evidence")

    @property
    def latent_tests(self) -> pd.DataFrame:
        """The same tests on each short-listed latent; `response` names site, role and latent."""
        return self.results.table("latent_tests")

    @property
    def latent_accounts(self) -> pd.DataFrame:
        """The same accounts of each short-listed latent; `named` marks the one that is named for it."""
        return self.results.table("latent_accounts")

    @property
    def dose(self) -> pd.DataFrame:
        """Dose-responses of pushed latents: a row per site, latent and belief."""
        return self.results.table("dose")

    @property
    def dose_curves(self) -> pd.DataFrame:
        """The curves behind them, context × dose: a row per site, latent, belief, n_examples and dose."""
        return self.results.table("dose_curves")

    @property
    def injections(self) -> pd.DataFrame:
        """What a site's own mean growth does to the beliefs, whole and in parts."""
        return self.results.table("injections")

    @property
    def closure(self) -> pd.DataFrame:
        """How much of a belief's growth the pushed latents account for: a row per site and belief."""
        return self.results.table("closure")

    @property
    def interactions(self) -> pd.DataFrame:
        """Two pushed latents at once: a row per pair and belief."""
        return self.results.table("interactions")

    @property
    def confirmed(self) -> pd.DataFrame:
        """The frozen claims on the confirm prompts, with each latent's own slope: a row per claim."""
        return self.results.table("confirmed")

    @property
    def detection(self) -> pd.DataFrame:
        """The growth test alone, on the discovery prompts: a row per site, role and latent."""
        return self.results.table("detection")

    @property
    def beliefs(self) -> pd.DataFrame:
        """Beliefs over the examples, model beside exact: a row per belief, arm and n_seen."""
        return self.results.table("beliefs")

    @property
    def bayes(self) -> pd.DataFrame:
        """Fits of LO_0 + nλ: a row per belief and source (model, exact), nats."""
        fits = self.results.bayes.items()
        rows = [{"belief": b, "source": s} | fit[s] for b, fit in fits for s in ("model", "exact")]
        return pd.DataFrame(rows)

    @property
    def transforms(self) -> pd.DataFrame:
        """Concepts: a row per site, role, latent and concept."""
        return self.results.table("transforms")

    @property
    def sweep(self) -> pd.DataFrame:
        """Whole-residual patches: a row per recipient, role, layer and metric."""
        return self.results.table("sweep")

    @property
    def graded(self) -> pd.DataFrame:
        """The best layer's patch by the donor's number of examples."""
        return self.results.table("graded")

    @property
    def heads(self) -> pd.DataFrame:
        """Heads of A* ablated: a row per kind, place, layer, head (-1: the whole layer) and metric."""
        return self.results.table("heads")

    @property
    def lens(self) -> pd.DataFrame:
        """Logit lens of A*: a row per role, layer and metric."""
        return self.results.table("lens")

    @property
    def head_scores(self) -> pd.DataFrame:
        """Score, logit attribution and attention of every head at A*'s query: a row per layer and head."""
        return self.results.table("head_scores")

    @property
    def direct(self) -> pd.DataFrame:
        """Direct effects when the needed heads are ablated: a row per component and belief."""
        return self.results.table("direct")

    @property
    def redundancy(self) -> pd.DataFrame:
        """Joint against single effects of heads and of neighbouring layers: a row per set and belief."""
        return self.results.table("redundancy")

    @property
    def redundancy_ladder(self) -> pd.DataFrame:
        """Layers taken away until none brings the task: a row per step, with its verdict."""
        return self.results.table("redundancy_ladder")

    @property
    def patches(self) -> pd.DataFrame:
        """Single-latent patches: a row per site, role, latent and belief."""
        return self.results.table("patches")

    @property
    def ladder(self) -> pd.DataFrame:
        """Single latent, all latents, error only, full activation: a row per site, role, rung and belief."""
        return self.results.table("ladder")

    @property
    def sets(self) -> pd.DataFrame:
        """Latents moved together, both ways, beside neurons and random sets: a row per set and belief."""
        return self.results.table("sets")

    @property
    def patch_controls(self) -> pd.DataFrame:
        """The same patches at a wrong role, from a wrong task, backwards: a row per control and belief."""
        return self.results.table("patch_controls")

    @property
    def screens(self) -> pd.DataFrame:
        """How far a linear screen is from the exact effects: a row per site, role and belief."""
        return self.results.table("screens")

    @property
    def responses(self) -> pd.DataFrame:
        """E[y | x] before and after patches at the site that carries most: a row per patch and x."""
        return self.results.table("responses")

    @property
    def response_fits(self) -> pd.DataFrame:
        """Lines through these curves: a row per patch."""
        return self.results.table("response_fits")

    @property
    def quality(self) -> pd.DataFrame:
        """Quality of the SAEs: a row per site."""
        return self.results.table("quality")

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
