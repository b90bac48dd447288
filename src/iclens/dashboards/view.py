"""What do the pages show? Every value on them, as frozen dataclasses of plain strings and numbers.

The study fills a `SiteView` from its tables; `site.build_site` draws it. Nothing is computed on the way
to the page, so a page can only show what stands here. Conventions, the same everywhere:

- a site is written in its short form, `L2.resid_post`;
- an undefined number is NaN, drawn as a dash; where a record has a `reason`, it is shown beside it;
- beliefs are mean log-odds in nats, activations and slopes are in the SAE's own units;
- sequences are tuples or lists of Python numbers (`array.tolist()`), intervals are 95 %.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from iclens.errors import TableError

_FILE_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SECTIONS = ("trajectories", "tasks", "concepts", "patches", "prompts", "logits", "histogram")
"""Parts of a latent page that may be empty; `LatentView.reasons` says why by these names."""


def _expect_lengths(owner: str, **fields: Sequence[float]) -> None:
    sizes = {name: len(values) for name, values in fields.items()}
    if len(set(sizes.values())) > 1:
        raise TableError(owner, f"lengths {sizes}", "Give one value per entry.")


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
    """

    question: str
    verdict: str
    evidence: str


@dataclass(frozen=True)
class Curve:
    """A mean over prompts by examples seen, with its interval.

    Args:
        n_seen: examples before the read-out, [point].
        mean: [point].
        low, high: 95 % interval of the mean, [point]; NaN draws no band.
    """

    n_seen: Sequence[int]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]

    def __post_init__(self) -> None:
        _expect_lengths("Curve", n_seen=self.n_seen, mean=self.mean, low=self.low, high=self.high)

    @classmethod
    def line(cls, n_seen: Sequence[int], mean: Sequence[float]) -> Curve:
        """A curve without an interval, for example the exact posterior."""
        unknown = [math.nan] * len(mean)
        return cls(n_seen, mean, unknown, unknown)


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
class SweepCell:
    """One cell of a sweep: the metric after patching `role` before block `layer`, with its interval."""

    role: str
    layer: int
    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class SweepView:
    """One heat map, layers × roles.

    Args:
        title: metric and recipient, for example "Task applied to B's own x (zero-example recipient)".
        caption: how it was measured: donor, number of examples, prompts.
        cells: any order; a missing (role, layer) is left empty. Values are probabilities, 0 to 1.
    """

    title: str
    caption: str
    cells: Sequence[SweepCell]


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


@dataclass(frozen=True)
class LatentRow:
    """One row of the table of all latents.

    Args:
        site: short form.
        latent: index in the SAE.
        density: share of tokens on which it is active.
        role: role at which it grows best (lowest q); "" if none was tested.
        slope, q_value, verdict: of the growth test there; slope is activation per example.
        label: concept granted, "candidate" or "".
        concept: the concept with the best held-out AUROC, "" if none was defined.
        auroc: that AUROC, held-out tasks.
        belief: belief that patching this latent moves most, "" if it was not patched.
        effect: change in that belief's log-odds, nats.
        control_p: share of matched random latents with at least that effect.
    """

    site: str
    latent: int
    density: float
    role: str = ""
    slope: float = math.nan
    q_value: float = math.nan
    verdict: str = ""
    label: str = ""
    concept: str = ""
    auroc: float = math.nan
    belief: str = ""
    effect: float = math.nan
    control_p: float = math.nan

    def __post_init__(self) -> None:
        if not _FILE_SAFE.fullmatch(self.site):
            raise TableError(f"site '{self.site}'", "not a site name", "Write it as L4.mlp_out.")

    @property
    def key(self) -> tuple[str, int]:
        """(site, latent): unique in a table."""
        return self.site, self.latent

    @property
    def page(self) -> str:
        """The address of its page, relative to the index."""
        return f"latents/{self.site}-{self.latent}.html"


@dataclass(frozen=True)
class TrajectoryView:
    """A latent's activation over the examples at one role, and the test on it.

    Args:
        role: which token of each example.
        task: mean gated activation on the task arm.
        control: the same on the control arm, or None.
        slope, ci_low, ci_high: paired difference (task − control) per example.
        q_value, verdict: of the growth test within site and role.
        reason: why a number is undefined, or "".
    """

    role: str
    task: Curve
    control: Curve | None = None
    slope: float = math.nan
    ci_low: float = math.nan
    ci_high: float = math.nan
    q_value: float = math.nan
    verdict: str = ""
    reason: str = ""


@dataclass(frozen=True)
class TaskActivation:
    """Mean activation on one task of the grid, with its interval; `split` is "discovery" or "held out"."""

    task: str
    mean: float
    low: float = math.nan
    high: float = math.nan
    n_prompts: int = 0
    split: str = ""


@dataclass(frozen=True)
class ConceptRow:
    """How well the latent tells one concept on held-out tasks, at `role`.

    Args:
        concept, role: which.
        auroc, ci_low, ci_high: on held-out tasks.
        confound, confound_auroc: the worst confound, and how well the latent tells that.
        q_value: over all (latent, concept) pairs.
        label: concept granted, "candidate" or "".
        reason: why not granted, or why a number is undefined.
    """

    concept: str
    role: str
    auroc: float
    ci_low: float = math.nan
    ci_high: float = math.nan
    confound: str = ""
    confound_auroc: float = math.nan
    q_value: float = math.nan
    label: str = ""
    reason: str = ""


@dataclass(frozen=True)
class PatchRow:
    """Effect of setting this latent in run B to its value in run A, on one belief (log-odds, nats).

    Args:
        belief: which.
        base, patched, donor: mean in B, in B patched, and in A.
        effect, ci_low, ci_high: patched − base.
        control_low, control_high: central 95 % of the effects of matched random latents, or NaN.
        control_p: share of them with at least this effect, (1 + b) / (1 + n).
        normalised: effect ÷ (donor − base) where that is defined.
        q_value: over latents and beliefs.
        n_changed, n_prompts: prompts in which A's and B's activation differ, of all.
        reason: why a number is undefined, or "".
    """

    belief: str
    base: float
    patched: float
    donor: float
    effect: float
    ci_low: float = math.nan
    ci_high: float = math.nan
    control_low: float = math.nan
    control_high: float = math.nan
    control_p: float = math.nan
    normalised: float = math.nan
    q_value: float = math.nan
    n_changed: int = 0
    n_prompts: int = 0
    reason: str = ""


@dataclass(frozen=True)
class TokenView:
    """A token as text (byte pieces already merged) and the latent's activation on it."""

    text: str
    value: float = 0.0


@dataclass(frozen=True)
class PromptView:
    """A prompt on which the latent is strongly active; `title` says which task and arm it is."""

    title: str
    tokens: Sequence[TokenView]


@dataclass(frozen=True)
class LogitEffect:
    """A token and the change in its logit per unit of the latent (decoder through the unembedding)."""

    text: str
    value: float


@dataclass(frozen=True)
class Histogram:
    """Counts of non-zero activations: `counts` [bin] between `edges` [bin + 1]."""

    edges: Sequence[float]
    counts: Sequence[int]

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1:
            raise TableError(
                "Histogram", f"{len(self.edges)} edges, {len(self.counts)} counts", "Give bin + 1 edges."
            )


@dataclass(frozen=True)
class LatentView:
    """Everything on one latent's page; its row is found in `SiteView.latents` by (site, latent).

    Args:
        site, latent: which.
        trajectories: one per role.
        task_role: the role at which `tasks` were measured.
        tasks: mean activation per task of the grid.
        concepts, patches, prompts: see there.
        promotes, suppresses: tokens whose logit rises or falls most, strongest first.
        histogram: of its activations, or None.
        reasons: section (one of `SECTIONS`) → why it is empty, in a sentence.
    """

    site: str
    latent: int
    trajectories: Sequence[TrajectoryView] = ()
    task_role: str = ""
    tasks: Sequence[TaskActivation] = ()
    concepts: Sequence[ConceptRow] = ()
    patches: Sequence[PatchRow] = ()
    prompts: Sequence[PromptView] = ()
    promotes: Sequence[LogitEffect] = ()
    suppresses: Sequence[LogitEffect] = ()
    histogram: Histogram | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if strange := set(self.reasons) - set(SECTIONS):
            raise TableError(
                "LatentView.reasons", f"unknown {sorted(strange)}", f"One of {', '.join(SECTIONS)}."
            )


@dataclass(frozen=True)
class SiteView:
    """The whole site.

    Args:
        title: name of the study.
        question: what it asks, in a sentence or two.
        findings: verdicts in words, the most important first.
        provenance: what was run: model, SAE set, hashes, versions, seeds, date.
        quality: one row per SAE.
        beliefs: one panel each.
        sweeps: heat maps, headline first.
        growth: counts per site and role.
        latents: every latent, in the order the table opens with.
        pages: the latents that get a page.
        pages_reason: how they were chosen, in a sentence.
        notes: limits and caveats, a sentence each.

    Raises:
        TableError: when a latent is listed twice, or a page has no row.
    """

    title: str
    question: str
    findings: Sequence[Finding] = ()
    provenance: Sequence[Fact] = ()
    quality: Sequence[QualityRow] = ()
    beliefs: Sequence[BeliefCurve] = ()
    sweeps: Sequence[SweepView] = ()
    growth: Sequence[GrowthCount] = ()
    latents: Sequence[LatentRow] = ()
    pages: Sequence[LatentView] = ()
    pages_reason: str = ""
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        rows, pages = [r.key for r in self.latents], [(p.site, p.latent) for p in self.pages]
        for owner, keys in (("SiteView.latents", rows), ("SiteView.pages", pages)):
            if len(set(keys)) < len(keys):
                twice = next(key for key in keys if keys.count(key) > 1)
                raise TableError(
                    owner, f"{twice[0]} latent {twice[1]} appears twice", "List each latent once."
                )
        if stray := set(pages) - set(rows):
            raise TableError("SiteView.pages", f"{sorted(stray)[0]} has no row in latents", "Add its row.")
