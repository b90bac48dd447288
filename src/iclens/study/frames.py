"""The tables of a run as pandas frames, one property each; docs/schemas.md documents their columns."""

from __future__ import annotations

import pandas as pd

from iclens.study.results import Results


class Frames:
    """Every table of a run.

    Args:
        results: its outputs.
    """

    def __init__(self, results: Results) -> None:
        self.results = results

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
    def masses(self) -> pd.DataFrame:
        """Detection and execution: a row per site and latent, its share of activation at `lab`."""
        return self.results.table("masses")

    @property
    def tunings(self) -> pd.DataFrame:
        """Helix regressions: a row per site, role, latent and axis (y, x, y-2x)."""
        return self.results.table("tunings")

    @property
    def tuning_curves(self) -> pd.DataFrame:
        """Mean activation by value: a row per shown latent, axis and value."""
        return self.results.table("tuning_curves")

    @property
    def operand_maps(self) -> pd.DataFrame:
        """Mean activation in boxes of x and y: a row per shown latent and box."""
        return self.results.table("operand_maps")

    @property
    def stability(self) -> pd.DataFrame:
        """Labels looked for again in other SAEs: a row per label and set."""
        return self.results.table("stability")

    @property
    def probes(self) -> pd.DataFrame:
        """Held-out probes: a row per concept, representation and number of features."""
        return self.results.table("probes")

    @property
    def subspaces(self) -> pd.DataFrame:
        """Periods of y in several latents or the whole activation: a row per representation and period."""
        return self.results.table("subspaces")

    @property
    def specificity(self) -> pd.DataFrame:
        """The causal matrix: a row per way, concept, latent (-1: all of them) and belief."""
        return self.results.table("specificity")

    @property
    def operands(self) -> pd.DataFrame:
        """Where x and y stand at `lab`, and what cutting attention removes: a row per layer and measure."""
        return self.results.table("operands")

    @property
    def creation(self) -> pd.DataFrame:
        """Where a concept appears at `lab`, MLP or attention: a row per concept, layer and source."""
        return self.results.table("creation")

    @property
    def confidence(self) -> pd.DataFrame:
        """Is a latent\'s size the model\'s confidence, or y\'s magnitude: a row per latent at `lab`."""
        return self.results.table("confidence")

    @property
    def transport(self) -> pd.DataFrame:
        """Do sizes at `lab` predict what later `pre` receive: a row per latent and weights."""
        return self.results.table("transport")

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
