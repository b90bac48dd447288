"""What do the pages show? Every value on them, as frozen dataclasses of plain strings and numbers.

The study fills a `SiteView` from its tables; `site.build_site` draws it. Nothing is computed on the way
to the page, so a page can only show what stands here. Conventions, the same everywhere:

- a site is written in its short form, `L2.resid_post`;
- an undefined number is NaN, drawn as a dash; where a record has a `reason`, it is shown beside it;
- beliefs are mean log-odds in nats; slopes and activations by examples seen are × decoder norm, in the
  site's units, other activations in the latent's own;
- sequences are tuples or lists of Python numbers (`array.tolist()`), intervals are 95 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iclens.core import TableError
from iclens.dashboards.records.concepts import ConceptsView
from iclens.dashboards.records.growth import AdditiveView
from iclens.dashboards.records.how import HowView
from iclens.dashboards.records.latent import (
    ConceptRow,
    Curve,
    DoseView,
    Histogram,
    LatentRow,
    LatentView,
    LogitEffect,
    PatchRow,
    PromptView,
    TaskActivation,
    TokenView,
    TrajectoryView,
)
from iclens.dashboards.records.patching import PatchingView, SweepCell, SweepView
from iclens.dashboards.records.prompts import PromptsView

__all__ = [
    "SiteView",
    "Fact",
    "Finding",
    "Clause",
    "ClaimView",
    "BeliefCurve",
    "SweepCell",
    "SweepView",
    "GrowthCount",
    "QualityRow",
    "AdditiveView",
    "ConceptsView",
    "PatchingView",
    "PromptsView",
    "HowView",
    "Curve",
    "DoseView",
    "LatentRow",
    "TrajectoryView",
    "TaskActivation",
    "ConceptRow",
    "PatchRow",
    "TokenView",
    "PromptView",
    "LogitEffect",
    "Histogram",
    "LatentView",
]


@dataclass(frozen=True)
class Fact:
    """One line of provenance: what (`name`) and its `value` (a hash, version, seed, date, …)."""

    name: str
    value: str


@dataclass(frozen=True)
class Finding:
    """A verdict in words.

    Args:
        question: what was asked, in one sentence.
        verdict: the answer in a few words, for example "yes, at one site".
        evidence: the figures it rests on, in one or two sentences.
        where: the page with the details, "" without one.
        place: what that page is, in words.
    """

    question: str
    verdict: str
    evidence: str
    where: str = ""
    place: str = ""


@dataclass(frozen=True)
class Clause:
    """A part of a claim that can be decided.

    Args:
        asks: what it says.
        verdict: "holds", "does not hold" or "not tested".
        evidence: the figures it rests on, in a sentence.
        where: the page with the details.
        core: whether the claim stands or falls with it.
    """

    asks: str
    verdict: str
    evidence: str
    where: str = ""
    core: bool = False


@dataclass(frozen=True)
class ClaimView:
    """A claim that the study tests: its `number`, what it says, the `verdict` in words, and its clauses."""

    number: int
    claim: str
    verdict: str
    clauses: Sequence[Clause]


@dataclass(frozen=True)
class BeliefCurve:
    """One belief over the examples: one panel of the index.

    Args:
        belief: its name.
        meaning: its definition in words, for the caption.
        model: mean log-odds of the model on the task arm, nats.
        exact: the exact posterior's on the same prompts, or None where there is none.
        control: the model on the control arm, or None.
    """

    belief: str
    meaning: str
    model: Curve
    exact: Curve | None = None
    control: Curve | None = None


@dataclass(frozen=True)
class GrowthCount:
    """How many latents of a site grow or fall over the examples at a role, of `n_tested`."""

    site: str
    role: str
    n_tested: int
    n_grows: int
    n_falls: int


@dataclass(frozen=True)
class QualityRow:
    """Measured quality of one SAE.

    Args:
        site: short form.
        sae_id: fingerprint.
        d_sae: number of latents.
        k: active latents per token allowed by TopK, or None.
        l0: active latents per token, measured.
        fvu: fraction of variance unexplained, 0 is perfect.
        ce_recovered: share of the cross-entropy loss recovered over all tokens, 1 is perfect.
        ce_recovered_pre: the same where the answer is predicted.
        dead: share of latents never active.
        n_tokens: tokens measured on.
        mismatch: in what the SAE does not fit the model, stated on every page made with it; else empty.
    """

    site: str
    sae_id: str
    d_sae: int
    k: int | None
    l0: float
    fvu: float
    ce_recovered: float
    ce_recovered_pre: float
    dead: float
    n_tokens: int
    mismatch: str = ""


@dataclass(frozen=True)
class SiteView:
    """The whole site.

    Args:
        title: name of the study.
        question: what it asks, in a sentence or two.
        claims: the claims that are tested, each with its verdict.
        findings: verdicts in words, the most important first.
        provenance: what was run: model, SAE set, hashes, versions, seeds, date.
        quality: one row per SAE.
        beliefs: one panel each, that of the answer first.
        growth: counts per site and role.
        additive: what bears on additive Bayesian growth; None when it was not tested.
        concepts: the page of concepts; None when none was asked.
        patching: the page of patching; None when nothing was patched.
        prompts: the pages of single prompts; None when none is shown.
        how: how it was computed, beside provenance and quality; None when that is not known.
        latents: every latent, in the order the table opens with.
        pages: the latents that get a page.
        pages_reason: how they were chosen, in a sentence.
        notes: limits and caveats, a sentence each.
        notices: what a reader of any page has to know first, a sentence each.

    Raises:
        TableError: when a latent is listed twice, or a page has no row.
    """

    title: str
    question: str
    claims: Sequence[ClaimView] = ()
    findings: Sequence[Finding] = ()
    provenance: Sequence[Fact] = ()
    quality: Sequence[QualityRow] = ()
    beliefs: Sequence[BeliefCurve] = ()
    growth: Sequence[GrowthCount] = ()
    additive: AdditiveView | None = None
    concepts: ConceptsView | None = None
    patching: PatchingView | None = None
    prompts: PromptsView | None = None
    how: HowView | None = None
    latents: Sequence[LatentRow] = ()
    pages: Sequence[LatentView] = ()
    pages_reason: str = ""
    notes: Sequence[str] = ()
    notices: Sequence[str] = ()

    @property
    def addresses(self) -> dict[tuple[str, int], str]:
        """(site, latent) → the address of its page, for those that have one."""
        rows = {row.key: row.page for row in self.latents}
        return {(page.site, page.latent): rows[page.site, page.latent] for page in self.pages}

    def __post_init__(self) -> None:
        rows, pages = [r.key for r in self.latents], [(p.site, p.latent) for p in self.pages]
        for owner, keys in (("SiteView.latents", rows), ("SiteView.pages", pages)):
            if len(set(keys)) < len(keys):
                twice = next(key for key in keys if keys.count(key) > 1)
                raise TableError(
                    owner, f"{twice[0]} latent {twice[1]} appears twice", "List each latent once."
                )
        if stray := set(pages) - set(rows):
            raise TableError(
                "SiteView.pages",
                f"{sorted(stray)[0]} has no row in latents",
                "Give `latents` a row for every latent that has a page.",
            )
