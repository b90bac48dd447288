"""What stands in the sections of a latent's page? Curves, tests, effects, prompts and neighbours of a latent.

The conventions are those of `site`, which offers these names too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from iclens.core import TableError


def expect_lengths(owner: str, **fields: Sequence[float]) -> None:
    """Refuse sequences of different length.

    Raises:
        TableError: when they differ.
    """
    sizes = {name: len(values) for name, values in fields.items()}
    if len(set(sizes.values())) > 1:
        raise TableError(owner, f"lengths {sizes}", "Give as many values of each.")


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
        expect_lengths("Curve", n_seen=self.n_seen, mean=self.mean, low=self.low, high=self.high)

    def at(self, n: float) -> float:
        """The mean after `n` examples; NaN where it was not measured."""
        return dict(zip(self.n_seen, self.mean, strict=True)).get(n, math.nan)

    @property
    def flat(self) -> bool:
        """Whether it is zero everywhere, or nowhere defined."""
        return not any(value and math.isfinite(value) for value in self.mean)

    @property
    def bare(self) -> Curve:
        """The means without their interval."""
        return Curve.line(self.n_seen, self.mean)

    @classmethod
    def line(cls, n_seen: Sequence[float], mean: Sequence[float]) -> Curve:
        """A curve without an interval, for example the exact posterior."""
        unknown = [math.nan] * len(mean)
        return cls(n_seen, mean, unknown, unknown)


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
class ArmMeans:
    """Mean activation over the examples in one arm, at the role of `LatentView.role`.

    Args:
        arm, meaning: which, and what its labels are.
        means: [n_seen].
    """

    arm: str
    meaning: str
    means: Sequence[float]


@dataclass(frozen=True)
class ScaledPosterior:
    """The exact posterior's log-odds of the answer, fitted to a latent's task arm.

    Args:
        curve: a + b · log-odds, by examples seen, in the latent's units.
        r2: share of the arm's means over the examples that it explains.
    """

    curve: Curve
    r2: float


@dataclass(frozen=True)
class LadderView:
    """Where a latent stands on the ladder of verdicts, and why not higher.

    Args:
        role: the role at which it gets furthest.
        rungs: every rung, lowest first.
        verdict: the rung it reached, or "falls".
        reason: why not one rung higher; "" on the highest.
        figures: (name, value, what it is) of what its gates rest on.
    """

    role: str
    rungs: Sequence[str]
    verdict: str
    reason: str
    figures: Sequence[tuple[str, str, str]] = ()

    @property
    def height(self) -> int:
        """Place of the verdict among the rungs, -1 beside the ladder."""
        return list(self.rungs).index(self.verdict) if self.verdict in self.rungs else -1


@dataclass(frozen=True)
class ResponseView:
    """E[y | x] in run B, in B with this latent patched, and in A*; means over donors, [x].

    Args:
        xs: inputs asked, [x].
        base, patched, target: in B, in B patched, and in A*, [x].
        words: what the lines through them say.
    """

    xs: Sequence[float]
    base: Sequence[float]
    patched: Sequence[float]
    target: Sequence[float]
    words: str = ""

    def __post_init__(self) -> None:
        expect_lengths("ResponseView", xs=self.xs, base=self.base, patched=self.patched, target=self.target)


@dataclass(frozen=True)
class Neighbour:
    """Another latent of the same SAE, how near it is, and the address of its page, "" without one."""

    latent: int
    value: float
    page: str = ""


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
        role: token at which it is patched.
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
    role: str = ""


@dataclass(frozen=True)
class TokenView:
    """A token as text, and the latent's activation on it.

    Args:
        text: a character of several tokens stands at the first of them.
        value: the activation.
        continues: whether it only continues a character that began before.
    """

    text: str
    value: float = 0.0
    continues: bool = False


@dataclass(frozen=True)
class PromptView:
    """A prompt, or a part of it around its largest activation; `title` says which task and arm it is.

    Args:
        title: which.
        tokens: of the part that is shown.
        before, after: whether the prompt has tokens before and after it.
    """

    title: str
    tokens: Sequence[TokenView]
    before: bool = False
    after: bool = False


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
                "Histogram",
                f"{len(self.edges)} edges, {len(self.counts)} counts",
                f"Give {len(self.counts) + 1} edges, one more than counts.",
            )
