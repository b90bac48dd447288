"""What does the page of concepts show of each? Latents, probes, effects; the rest is in `mechanism`.

Plain records; nothing is computed on the way. The conventions are those of `site`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from iclens.dashboards.records.mechanism import (
    CarriedRow,
    CreationView,
    Figure,
    OperandsView,
    PeriodRow,
    SizeRow,
    expect_one_per,
)


@dataclass(frozen=True)
class TuningView:
    """Mean activation of a latent by one number.

    Args:
        of: the number, for example y.
        values: its values, ascending [value].
        means: mean activation, [value].
        n_rows: rows with that value, [value].
        words: what the regression of the curve says, in words; "" when none was made.
    """

    of: str
    values: Sequence[int]
    means: Sequence[float]
    n_rows: Sequence[int]
    words: str = ""

    def __post_init__(self) -> None:
        for cells in (self.means, self.n_rows):
            expect_one_per("TuningView", len(self.values), "values", cells)


@dataclass(frozen=True)
class BoxView:
    """Mean activation in one box of inputs and labels, from `x` and `y` on; `width` in both."""

    x: int
    y: int
    width: int
    mean: float
    n_rows: int


@dataclass(frozen=True)
class ShownLatent:
    """One of the best latents of a concept, and what its label rests on.

    Args:
        site, role, latent: which, and at which token it was read.
        label: the concept when it is granted, else "candidate".
        reason: the gates that failed.
        auroc: on held-out tasks, with its interval.
        discovery_auroc: on the tasks that chose it.
        confound, confound_auroc: the confound that it answers to most, and how well it tells that.
        selectivity: auroc − confound_auroc.
        confounding, confounded_with: Cramér's V of the design with its most similar confound.
        effect_size: Cohen's d.
        mutual_info: nats, bias-corrected.
        overlap: Cohen's κ of being active and the concept.
        q_value: over all (latent, concept) pairs.
        of: the task, for a concept that is about one; else "".
        works_at: "detection", "execution" or "" where neither is said.
        lab_share: its activation at `lab`, over that at `lab` and `pre`.
        found_again, looked_in: other SAEs in which the label was granted again, of how many.
        rivals: how well it tells every concept of the page, in their order.
        tunings: by y, x and y − 2x.
        boxes: mean activation by x and y.
    """

    site: str
    role: str
    latent: int
    label: str
    reason: str
    auroc: Figure
    discovery_auroc: float = math.nan
    confound: str = ""
    confound_auroc: float = math.nan
    selectivity: float = math.nan
    confounding: float = math.nan
    confounded_with: str = ""
    effect_size: float = math.nan
    mutual_info: float = math.nan
    overlap: float = math.nan
    q_value: float = math.nan
    of: str = ""
    works_at: str = ""
    lab_share: float = math.nan
    found_again: int = 0
    looked_in: int = 0
    rivals: Sequence[Figure] = ()
    tunings: Sequence[TuningView] = ()
    boxes: Sequence[BoxView] = ()

    @property
    def key(self) -> tuple[str, int]:
        """(site, latent), as in the table of latents."""
        return self.site, self.latent

    @property
    def name(self) -> str:
        """Site and latent in words."""
        return f"{self.site} · {self.latent}"


@dataclass(frozen=True)
class ProbeRow:
    """Held-out AUROC of probes on one representation, in the order of `ProbeView.sizes`."""

    representation: str
    aurocs: Sequence[Figure]


@dataclass(frozen=True)
class ProbeView:
    """How well a concept can be read at its best place.

    Args:
        site, role: where.
        sizes: numbers of features, in words.
        rows: one per representation.
        verdict: how latents compare with the whole activation, in a sentence.
        n_rows, n_tasks: rows and tasks used.
    """

    site: str
    role: str
    sizes: Sequence[str]
    rows: Sequence[ProbeRow]
    verdict: str
    n_rows: int
    n_tasks: int

    def __post_init__(self) -> None:
        for row in self.rows:
            expect_one_per(f"ProbeView.rows {row.representation}", len(self.sizes), "sizes", row.aurocs)


@dataclass(frozen=True)
class MovedRow:
    """What moving one latent, or several together, does to every belief.

    Args:
        name: which latent, in words.
        role: token at which it is moved.
        effects: change of each belief's log-odds, nats, in the order of `MovedView.beliefs`.
        margin: size of the effect on the own belief minus the largest on a rival, nats.
        rival: that rival.
        control_p: share of matched random latents that move the own belief as far.
        n_controls: how many.
        n_active, n_prompts: prompts in which anything changed, of all.
        why: why it is not confirmed, that is, does not move its own belief most; "" when it is.
    """

    name: str
    role: str
    effects: Sequence[Figure]
    margin: Figure
    rival: str
    control_p: float
    n_controls: int
    n_active: int
    n_prompts: int
    why: str


@dataclass(frozen=True)
class MovedView:
    """The causal matrix of one concept for one way of moving latents.

    Args:
        way: its name.
        meaning: what is done, in words.
        beliefs: columns.
        own: the belief that the concept names, "" when none does.
        rows: latents, and all of them together.
    """

    way: str
    meaning: str
    beliefs: Sequence[str]
    own: str
    rows: Sequence[MovedRow]

    def __post_init__(self) -> None:
        for row in self.rows:
            expect_one_per(f"MovedView.rows {row.name}", len(self.beliefs), "beliefs", row.effects)


@dataclass(frozen=True)
class ConceptView:
    """Everything about one concept.

    Args:
        name: its name.
        meaning: what positives are, in words.
        verdict: what was found, in a sentence or two.
        granted, candidates: latents with the label, and those that failed a gate.
        best_auroc: largest on held-out tasks over all latents, NaN when none was measured.
        confirmed: moved latents that move its own belief most in some way; None without a belief.
        moved: latents that were moved.
        confounds: what its latents must not answer to.
        latents: the best, granted ones first.
        probes: at its best place, or None.
        matrices: one per way.
        probes_reason, matrices_reason: why there are none, in a sentence.
    """

    name: str
    meaning: str
    verdict: str
    granted: int = 0
    candidates: int = 0
    best_auroc: float = math.nan
    confirmed: int | None = None
    moved: int = 0
    confounds: Sequence[str] = ()
    latents: Sequence[ShownLatent] = ()
    probes: ProbeView | None = None
    matrices: Sequence[MovedView] = ()
    probes_reason: str = ""
    matrices_reason: str = ""


@dataclass(frozen=True)
class ConceptsView:
    """The whole page.

    Args:
        concepts: those that were asked, in order.
        tasks: on which tasks they were, in a sentence.
        periods, operands, creation, sizes, carried: parts on the mechanism; empty where not measured.
        weights: predictions of what is carried, in words.
        answers: what M1 to M6 found, a sentence each.
    """

    concepts: Sequence[ConceptView] = ()
    tasks: str = ""
    periods: Sequence[PeriodRow] = ()
    operands: OperandsView = field(default_factory=OperandsView)
    creation: Sequence[CreationView] = ()
    sizes: Sequence[SizeRow] = ()
    carried: Sequence[CarriedRow] = ()
    weights: Sequence[str] = ()
    answers: Sequence[str] = ()

    def __post_init__(self) -> None:
        for concept in self.concepts:
            for one in concept.latents:
                expect_one_per(f"{concept.name}, {one.name}", len(self.concepts), "concepts", one.rivals)
