"""What does the page of patching show? Sweeps of whole residuals, ablated heads, and what latents carry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from iclens.dashboards.records.latent import Curve
from iclens.dashboards.records.mechanism import Figure, expect_one_per


@dataclass(frozen=True)
class SweepCell:
    """One cell of a sweep: the metric at a role (or head) and layer, with its interval."""

    role: str
    layer: int
    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class SweepView:
    """One heat map, layers × roles or heads.

    Args:
        title: metric and recipient, for example "Task applied to B's own x (zero-example recipient)".
        caption: how it was measured: donor, number of examples, prompts.
        cells: any order; a missing (role, layer) is left empty. Values are shares of 1.
        down: what a layer is, beside the chart.
        across: what the columns are.
    """

    title: str
    caption: str
    cells: Sequence[SweepCell]
    down: str = "patched before block"
    across: str = "role"


@dataclass(frozen=True)
class Line:
    """One curve of a chart.

    Args:
        name: in the legend.
        kind: how it is drawn: "first", "second", "third", "model" or "random".
        curve: its values, with a band where `low` and `high` are defined.
    """

    name: str
    kind: str
    curve: Curve


@dataclass(frozen=True)
class LinesView:
    """Curves over a quantity.

    Args:
        title: what is shown.
        caption: how it was measured.
        lines: drawn in this order.
        axis: what they run over.
        unit: what they measure, beside the upright axis.
        levels: (name, value) of values that do not depend on it, drawn across.
        scale: "linear" or "log2", of what they run over.
        reason: why there is no curve.
    """

    title: str
    caption: str
    lines: Sequence[Line] = ()
    axis: str = "examples seen"
    unit: str = "probability"
    levels: Sequence[tuple[str, float]] = ()
    scale: str = "linear"
    reason: str = ""


@dataclass(frozen=True)
class EffectRow:
    """One effect: its `name`, its value with interval, and how it is marked, "full" or "open"."""

    name: str
    effect: Figure
    mark: str = "full"


@dataclass(frozen=True)
class EffectsView:
    """Effects below each other, on one scale.

    Args:
        title: what is shown.
        caption: how it was measured.
        rows: from the top.
        axis: what the values are.
    """

    title: str
    caption: str
    rows: Sequence[EffectRow]
    axis: str = "change in log-odds, nats"


@dataclass(frozen=True)
class Grid:
    """A table of plain values, behind charts.

    Args:
        columns: headings; of each row the first entry heads it.
        rows: texts and numbers, one for each heading.

    Raises:
        TableError: when a row has another number of entries.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]

    def __post_init__(self) -> None:
        for row in self.rows:
            expect_one_per("Grid.rows", len(self.columns), "columns", row)


@dataclass(frozen=True)
class HeadRow:
    """What one head does at the query's `pre`.

    Args:
        name: `L2H0`.
        loss: change of the belief's log-odds when it alone is ablated, nats.
        reads: its score: its output on the reference residual, over the final norm's scale.
        attribution: what it adds to the task's own answer, nats.
        labels: attention to the labels of the examples.
        label_share: of the attention outside BOS.
        own_x: attention to the query's x.
        bos: attention to BOS.
        reason: why a value is NaN.
    """

    name: str
    loss: Figure
    reads: Figure
    attribution: float
    labels: Figure
    label_share: float
    own_x: float
    bos: float
    reason: str = ""


@dataclass(frozen=True)
class JointRow:
    """A set of heads ablated together against one at a time, in nats of a belief's log-odds.

    Args:
        ablated: the set.
        joint, singles: effect of all at once, and the sum of the effects alone.
        index: joint − singles.
        words: what that says.
        span: what the context is worth to the belief.
        reason: what keeps it from being plain.
    """

    ablated: str
    joint: Figure
    singles: Figure
    index: Figure
    words: str
    span: float
    reason: str = ""


@dataclass(frozen=True)
class LadderStep:
    """One step of the redundancy ladder.

    Args:
        step: 0 is the intact donor.
        ablated: everything taken away so far.
        first_layer: first layer whose residual still brings half of the context's worth; NaN where none.
        brings: share brought there; the largest of all layers where none works.
        left: share left at the layer that worked the step before.
        control_low, control_high: the least and greatest share left there when as much else was taken away.
        n_controls: of these control sets.
        donor: the ablated donor's belief in its own answer.
        later: what later heads then do, nats.
        verdict: of the set against the intact model, or empty.
        reason: why a value is NaN.
    """

    step: int
    ablated: str
    first_layer: float
    brings: Figure
    left: Figure
    control_low: float
    control_high: float
    n_controls: int
    donor: Figure
    later: Figure
    verdict: str = ""
    reason: str = ""


@dataclass(frozen=True)
class RedundancyLadder:
    """A redundancy ladder: `title`, how it was made, its verdict in words, and its steps from 0."""

    title: str
    caption: str
    verdict: str
    steps: Sequence[LadderStep]


@dataclass(frozen=True)
class SingleRow:
    """One latent, patched alone.

    Args:
        site: short form.
        latent: id.
        effect: on the belief's log-odds, nats.
        normalised: share of what the context is worth.
        n_changed: prompts in which its activation differs, of `n_prompts`.
        n_prompts: prompts averaged.
        control_p, q_value: against matched random latents; NaN where it was not tested.
        n_controls: of these.
        reason: why a value is NaN.
    """

    site: str
    latent: int
    effect: Figure
    normalised: float
    n_changed: int
    n_prompts: int
    control_p: float
    q_value: float
    n_controls: int
    reason: str = ""


@dataclass(frozen=True)
class SinglesView:
    """The strongest single latents at a `role`, and how they were chosen and tested."""

    role: str
    caption: str
    rows: Sequence[SingleRow]


@dataclass(frozen=True)
class AnswersView:
    """Answers by x, without a patch or with one.

    Args:
        title: what is patched.
        caption: fit and latents in words.
        points: mean answer by x, the band its standard deviation over donors.
        answers: the task's own answer by x, where it is a number.
        slope, intercept: of the fitted line.
    """

    title: str
    caption: str
    points: Curve
    answers: Curve
    slope: float
    intercept: float


@dataclass(frozen=True)
class PatchingView:
    """The page of patching.

    Args:
        sweeps: heat maps of whole residuals moved from A to B, headline first.
        heads: heat maps of ablated heads, one for each kind and place.
        belief: the belief whose log-odds effects are in, where nothing else is said.
        graded: the best layer's patch by the donor's examples.
        lens: heat maps of what the residual would answer at each layer and role.
        strongest: the heads that matter most.
        direct: direct effects of the needed heads and of what comes after them.
        joint: sets of heads, ablated together and alone.
        ladders: redundancy ladders.
        rungs: single latent, all latents, error, full activation, site by site.
        sets: share of the full activation's effect by the number of latents.
        singles: the strongest single latents, role by role.
        controls: the same latents elsewhere, from elsewhere, backwards; site by site.
        screens: a linear screen's R² by site.
        responses: answers by x, patch by patch.
        grids: values behind charts, by the name of the part.
        said: what was done, in a sentence, by the name of the part.
        reasons: why a part is empty, by its name.
    """

    sweeps: Sequence[SweepView] = ()
    heads: Sequence[SweepView] = ()
    belief: str = ""
    graded: LinesView | None = None
    lens: Sequence[SweepView] = ()
    strongest: Sequence[HeadRow] = ()
    direct: EffectsView | None = None
    joint: Sequence[JointRow] = ()
    ladders: Sequence[RedundancyLadder] = ()
    rungs: Sequence[EffectsView] = ()
    sets: Sequence[LinesView] = ()
    singles: Sequence[SinglesView] = ()
    controls: Sequence[EffectsView] = ()
    screens: EffectsView | None = None
    responses: Sequence[AnswersView] = ()
    grids: Mapping[str, Grid] = field(default_factory=dict)
    said: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
