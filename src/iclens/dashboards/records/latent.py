"""What does the page of one latent show? Its row in the table, and every record on its page.

The conventions are those of `view`, which offers these names too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from iclens.errors import TableError

_FILE_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SECTIONS = ("trajectories", "doses", "tasks", "concepts", "patches", "prompts", "logits", "histogram")
"""Parts of a latent page that may be empty; `LatentView.reasons` says why by these names."""


def _expect_lengths(owner: str, **fields: Sequence[float]) -> None:
    sizes = {name: len(values) for name, values in fields.items()}
    if len(set(sizes.values())) > 1:
        raise TableError(owner, f"lengths {sizes}", "Give one value per entry.")


@dataclass(frozen=True)
class Curve:
    """A mean over prompts by examples seen, with its interval.

    Args:
        n_seen: examples before the read-out, [point].
        mean: [point].
        low, high: 95 % interval of the mean, [point]; NaN draws no band.
    """

    n_seen: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]

    def __post_init__(self) -> None:
        _expect_lengths("Curve", n_seen=self.n_seen, mean=self.mean, low=self.low, high=self.high)

    def at(self, n: float) -> float:
        """The mean after `n` examples; NaN where it was not measured."""
        return dict(zip(self.n_seen, self.mean, strict=True)).get(n, math.nan)

    @classmethod
    def line(cls, n_seen: Sequence[float], mean: Sequence[float]) -> Curve:
        """A curve without an interval, for example the exact posterior."""
        unknown = [math.nan] * len(mean)
        return cls(n_seen, mean, unknown, unknown)


@dataclass(frozen=True)
class LatentRow:
    """One row of the table of all latents.

    Args:
        site: short form.
        latent: index in the SAE.
        density: share of tokens on which it is active.
        role: role at which it grows best (lowest q); "" if none was tested.
        slope, q_value, verdict: of the growth test there; slope is the paired rise per example.
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
class DoseView:
    """What pushing the latent along its decoder direction does to the answer's log-odds.

    Args:
        n_examples: examples in context.
        curve: effect in nats by dose; its `n_seen` are doses, in natural growths.
        verdict: "causal", or why not.
    """

    n_examples: int
    curve: Curve
    verdict: str = ""


@dataclass(frozen=True)
class TaskActivation:
    """Mean activation on one task of the grid, with its interval; `split` is "discovery" or "held out"."""

    task: str
    mean: float
    low: float = math.nan
    high: float = math.nan
    n_prompts: int = 0
    split: str = ""

    @property
    def has_interval(self) -> bool:
        """Whether `low` and `high` are known."""
        return math.isfinite(self.low) and math.isfinite(self.high)


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
        doses: one for each number of examples in context at which it was pushed.
        follows: which account of growth predicts it in all arms, role by role, in words.
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
    doses: Sequence[DoseView] = ()
    follows: Sequence[str] = ()

    def __post_init__(self) -> None:
        if strange := set(self.reasons) - set(SECTIONS):
            raise TableError(
                "LatentView.reasons", f"unknown {sorted(strange)}", f"One of {', '.join(SECTIONS)}."
            )
