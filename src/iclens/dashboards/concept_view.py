"""What does the page of concepts show? Each concept's latents, probes and effects, and MLPs at `lab`.

Plain records; nothing is computed on the way. The conventions are those of `view`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from iclens.errors import TableError


def _expect_one_per(owner: str, n: int, of: str, cells: Sequence[object]) -> None:
    if len(cells) != n:
        raise TableError(owner, f"{len(cells)} figures for {n} {of}", f"Give one per entry of {of}.")


@dataclass(frozen=True)
class Figure:
    """A number with its interval; `reason` says why it is NaN."""

    value: float
    low: float = math.nan
    high: float = math.nan
    reason: str = ""


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
            _expect_one_per("TuningView", len(self.values), "values", cells)


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
            _expect_one_per(f"ProbeView.rows {row.representation}", len(self.sizes), "sizes", row.aurocs)


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
            _expect_one_per(f"MovedView.rows {row.name}", len(self.beliefs), "beliefs", row.effects)


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
class PeriodRow:
    """How much of a period of a number several features carry together.

    Args:
        place: site and role.
        representation: what the features are.
        of: the number.
        period: T of its cos and sin; 2 is parity.
        r2: on held-out tasks; `reason` says why it is NaN.
        p_value: against relabelled values.
        enough: features that reach 90 % of r2, or a dash.
        n_features: features that were offered.
    """

    place: str
    representation: str
    of: str
    period: float
    r2: Figure
    p_value: float
    enough: str
    n_features: int


@dataclass(frozen=True)
class OperandRow:
    """One measure of x and y at `lab`, layer by layer.

    Args:
        measure: its name.
        figures: in the order of `OperandsView.layers`.
        nulls: the same with the number's values permuted.
    """

    measure: str
    figures: Sequence[Figure]
    nulls: Sequence[float]


@dataclass(frozen=True)
class OperandsView:
    """Where x and y stand in what each MLP reads at `lab`: measures × layers."""

    layers: Sequence[int] = ()
    rows: Sequence[OperandRow] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            _expect_one_per(f"OperandsView.rows {row.measure}", len(self.layers), "layers", row.figures)


@dataclass(frozen=True)
class CreationRow:
    """How well a concept can be read around one block at `lab`.

    Args:
        layer, aurocs: the block, and figures in the order of `CreationView.sources`.
        verdict: what they say together.
        difference: AUROC of attn_out minus that of mlp_out.
        larger: which of the two is larger, "" where it is undefined.
    """

    layer: int
    aurocs: Sequence[Figure]
    verdict: str
    difference: Figure
    larger: str


@dataclass(frozen=True)
class CreationView:
    """One concept, layers × sources; `is_parity` marks the concept that parity claims are about."""

    concept: str
    sources: Sequence[str]
    rows: Sequence[CreationRow]
    is_parity: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            _expect_one_per(f"CreationView.rows {row.layer}", len(self.sources), "sources", row.aurocs)


@dataclass(frozen=True)
class SizeRow:
    """What a latent's size at `lab` goes with: rank correlations.

    Args:
        concept, site, latent, over: which, and over which rows.
        r: with the log-probability of the label shown.
        r_given_magnitude, magnitude_r: the same given y, and with y given that; other controls in both.
        verdict, reason: what the size is called, and what kept a name from being given.
        n_rows: rows used.
    """

    concept: str
    site: str
    latent: int
    over: str
    r: Figure
    r_given_magnitude: Figure
    magnitude_r: Figure
    verdict: str
    reason: str
    n_rows: int


@dataclass(frozen=True)
class CarriedRow:
    """Whether a latent's sizes at `lab` predict what later `pre` receive.

    Args:
        concept, site, latent: which.
        layer: block whose attention reads it.
        r2: of each prediction, in the order of `ConceptsView.weights`.
        difference: r² of attention minus that of equal weights.
        lab_attention: mean attention of a query to all earlier labels.
        reason: why a figure is NaN or says little.
    """

    concept: str
    site: str
    latent: int
    layer: int
    r2: Sequence[Figure]
    difference: Figure
    lab_attention: float
    reason: str


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
    operands: OperandsView = OperandsView()
    creation: Sequence[CreationView] = ()
    sizes: Sequence[SizeRow] = ()
    carried: Sequence[CarriedRow] = ()
    weights: Sequence[str] = ()
    answers: Sequence[str] = ()

    def __post_init__(self) -> None:
        for concept in self.concepts:
            for one in concept.latents:
                _expect_one_per(f"{concept.name}, {one.name}", len(self.concepts), "concepts", one.rivals)
