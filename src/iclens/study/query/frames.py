"""The tables of a run as frames, one property each; docs/schemas.md documents their columns."""

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
    def growth(self) -> Answer:
        """Verdicts: a row per site, role and latent, its rung of the ladder and why it is not higher."""
        return self.table("growth")

    @property
    def falsifiers(self) -> Answer:
        """What would refute additive Bayesian growth, and whether it happened: a row per falsifier."""
        return self.table("falsifiers")

    @property
    def accounts(self) -> Answer:
        """Accounts of the growth, compared over all arms on held-out prompts: a row per account."""
        return self.table("accounts")

    @property
    def agreement(self) -> Answer:
        """The model's log-odds on the exact ones: a row per arm and belief."""
        return self.table("agreement")

    @property
    def tests(self) -> Answer:
        """Duplicates, order, reversal, prior, evidence: a row per test of the answer's log-odds."""
        return self.table("tests")

    @property
    def shapes(self) -> Answer:
        """Trajectory models of the short list: a row per site, role and latent."""
        return self.table("shapes")

    @property
    def evidence(self) -> Answer:
        """Evidence regressions of the short list: a row per site, role and latent."""
        return self.table("evidence")

    @property
    def latent_tests(self) -> Answer:
        """The same tests on each short-listed latent; `response` names site, role and latent."""
        return self.table("latent_tests")

    @property
    def latent_accounts(self) -> Answer:
        """The same accounts of each short-listed latent; `named` marks the one that is named for it."""
        return self.table("latent_accounts")

    @property
    def dose(self) -> Answer:
        """Dose-responses of pushed latents: a row per site, latent and belief."""
        return self.table("dose")

    @property
    def dose_curves(self) -> Answer:
        """The curves behind them, context × dose: a row per site, latent, belief, n_examples and dose."""
        return self.table("dose_curves")

    @property
    def injections(self) -> Answer:
        """What a site's own mean growth does to the beliefs, whole and in parts."""
        return self.table("injections")

    @property
    def closure(self) -> Answer:
        """How much of a belief's growth the pushed latents account for: a row per site and belief."""
        return self.table("closure")

    @property
    def interactions(self) -> Answer:
        """Two pushed latents at once: a row per pair and belief."""
        return self.table("interactions")

    @property
    def confirmed(self) -> Answer:
        """The frozen claims on the confirm prompts, with each latent's own slope: a row per claim."""
        return self.table("confirmed")

    @property
    def detection(self) -> Answer:
        """The growth test alone, on the discovery prompts: a row per site, role and latent."""
        return self.table("detection")

    @property
    def beliefs(self) -> Answer:
        """Beliefs over the examples, model beside exact: a row per belief, arm and n_seen."""
        return self.table("beliefs")

    @property
    def bayes(self) -> Answer:
        """Fits of LO_0 + nλ: a row per belief and source (model, exact), nats."""
        fits = self.results.bayes.items()
        rows = [{"belief": b, "source": s} | fit[s] for b, fit in fits for s in ("model", "exact")]
        return Answer.of(pd.DataFrame(rows), "bayes")

    @property
    def transforms(self) -> Answer:
        """Concepts: a row per site, role, latent and concept."""
        return self.table("transforms")

    @property
    def masses(self) -> Answer:
        """Detection and execution: a row per site and latent, its share of activation at `lab`."""
        return self.table("masses")

    @property
    def tunings(self) -> Answer:
        """Helix regressions: a row per site, role, latent and axis (y, x, y-2x)."""
        return self.table("tunings")

    @property
    def tuning_curves(self) -> Answer:
        """Mean activation by value: a row per shown latent, axis and value."""
        return self.table("tuning_curves")

    @property
    def operand_maps(self) -> Answer:
        """Mean activation in boxes of x and y: a row per shown latent and box."""
        return self.table("operand_maps")

    @property
    def stability(self) -> Answer:
        """Labels looked for again in other SAEs: a row per label and set."""
        return self.table("stability")

    @property
    def probes(self) -> Answer:
        """Held-out probes: a row per concept, representation and number of features."""
        return self.table("probes")

    @property
    def subspaces(self) -> Answer:
        """Periods of y in several latents or the whole activation: a row per representation and period."""
        return self.table("subspaces")

    @property
    def specificity(self) -> Answer:
        """The causal matrix: a row per way, concept, latent (-1: all of them) and belief."""
        return self.table("specificity")

    @property
    def operands(self) -> Answer:
        """Where x and y stand at `lab`, and what cutting attention removes: a row per layer and measure."""
        return self.table("operands")

    @property
    def creation(self) -> Answer:
        """Where a concept appears at `lab`, MLP or attention: a row per concept, layer and source."""
        return self.table("creation")

    @property
    def confidence(self) -> Answer:
        """Is a latent's size the model\'s confidence, or y's magnitude: a row per latent at `lab`."""
        return self.table("confidence")

    @property
    def transport(self) -> Answer:
        """Do sizes at `lab` predict what later `pre` receive: a row per latent and weights."""
        return self.table("transport")

    @property
    def sweep(self) -> Answer:
        """Whole-residual patches: a row per recipient, role, layer and metric."""
        return self.table("sweep")

    @property
    def graded(self) -> Answer:
        """The best layer's patch by the donor's number of examples."""
        return self.table("graded")

    @property
    def heads(self) -> Answer:
        """Heads of A* ablated: a row per kind, place, layer, head (-1: the whole layer) and metric."""
        return self.table("heads")

    @property
    def lens(self) -> Answer:
        """Logit lens of A*: a row per role, layer and metric."""
        return self.table("lens")

    @property
    def head_scores(self) -> Answer:
        """Score, logit attribution and attention of every head at A*'s query: a row per layer and head."""
        return self.table("head_scores")

    @property
    def direct(self) -> Answer:
        """Direct effects when the needed heads are ablated: a row per component and belief."""
        return self.table("direct")

    @property
    def redundancy(self) -> Answer:
        """Joint against single effects of heads and of neighbouring layers: a row per set and belief."""
        return self.table("redundancy")

    @property
    def redundancy_ladder(self) -> Answer:
        """Layers taken away until none brings the task: a row per step, with its verdict."""
        return self.table("redundancy_ladder")

    @property
    def patches(self) -> Answer:
        """Single-latent patches: a row per site, role, latent and belief."""
        return self.table("patches")

    @property
    def ladder(self) -> Answer:
        """Single latent, all latents, error only, full activation: a row per site, role, rung and belief."""
        return self.table("ladder")

    @property
    def sets(self) -> Answer:
        """Latents moved together, both ways, beside neurons and random sets: a row per set and belief."""
        return self.table("sets")

    @property
    def patch_controls(self) -> Answer:
        """The same patches at a wrong role, from a wrong task, backwards: a row per control and belief."""
        return self.table("patch_controls")

    @property
    def screens(self) -> Answer:
        """How far a linear screen is from the exact effects: a row per site, role and belief."""
        return self.table("screens")

    @property
    def responses(self) -> Answer:
        """E[y | x] before and after patches at the site that carries most: a row per patch and x."""
        return self.table("responses")

    @property
    def response_fits(self) -> Answer:
        """Lines through these curves: a row per patch."""
        return self.table("response_fits")

    @property
    def quality(self) -> Answer:
        """Quality of the SAEs: a row per site."""
        return self.table("quality")
