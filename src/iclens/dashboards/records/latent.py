"""What does the page of one latent show? Its row in the table, and every record on its page.

The conventions are those of `site`, which offers these names too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from iclens.core import TableError
from iclens.dashboards.records.concepts import BoxView, TuningView
from iclens.dashboards.records.latent_parts import (
    ArmMeans,
    ConceptRow,
    Curve,
    DoseView,
    Histogram,
    LadderView,
    LogitEffect,
    Neighbour,
    PatchRow,
    PromptView,
    ResponseView,
    ScaledPosterior,
    TaskActivation,
    TokenView,
    TrajectoryView,
)

__all__ = [
    "LatentRow",
    "LatentView",
    "Curve",
    "TrajectoryView",
    "ArmMeans",
    "ScaledPosterior",
    "LadderView",
    "ResponseView",
    "Neighbour",
    "DoseView",
    "TaskActivation",
    "ConceptRow",
    "PatchRow",
    "TokenView",
    "PromptView",
    "LogitEffect",
    "Histogram",
]

_FILE_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SECTIONS = (
    *("trajectories", "arms", "ladder", "doses", "tasks", "concepts", "tunings", "patches", "response"),
    *("prompts", "random", "logits", "histogram", "neighbours"),
)
"""Parts of a latent page that may be empty; `LatentView.reasons` says why by these names."""


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
        follows: account of growth that it follows at `role`, "" if that was not asked.
        causal: whether pushing it moves the answer, "causal" or "not causal"; "" if it was not pushed.
        answer: change in the log-odds of the task's own answer when it is patched, nats.
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
    follows: str = ""
    causal: str = ""
    answer: float = math.nan

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
class LatentView:
    """Everything on one latent's page; its row is found in `SiteView.latents` by (site, latent).

    Args:
        site, latent: which.
        summary: what is known of it, in a few sentences.
        role: the role at which it grows most clearly, or is followed first.
        trajectories: one per role.
        posterior: the exact posterior fitted to the task arm at `role`, or None.
        arms: mean activation at `role`, arm by arm.
        ladder: its verdict and why it is not higher, or None.
        task_role: the role at which `tasks` were measured.
        tasks: mean activation per task of the grid.
        concepts, patches: see there.
        tunings: mean activation at `task_role` by y, x and y − 2x.
        boxes: the same by x and y.
        response: how the answer follows x when it is patched, or None.
        prompts: those on which it is most active.
        random: prompts drawn at random, whether it is active there or not.
        promotes, suppresses: tokens whose logit rises or falls most, strongest first.
        histogram: of its activations, or None.
        reasons: section (one of `SECTIONS`) → why it is empty, in a sentence.
        doses: one for each number of examples in context at which it was pushed.
        moved: what moving it in other ways does, a sentence each.
        close: latents whose decoder directions are most alike, by cosine.
        together: latents that are active with it, by correlation over tokens.
        follows: which account of growth predicts it in all arms, role by role, in words.
    """

    site: str
    latent: int
    summary: str = ""
    role: str = ""
    trajectories: Sequence[TrajectoryView] = ()
    posterior: ScaledPosterior | None = None
    arms: Sequence[ArmMeans] = ()
    ladder: LadderView | None = None
    task_role: str = ""
    tasks: Sequence[TaskActivation] = ()
    concepts: Sequence[ConceptRow] = ()
    tunings: Sequence[TuningView] = ()
    boxes: Sequence[BoxView] = ()
    patches: Sequence[PatchRow] = ()
    response: ResponseView | None = None
    prompts: Sequence[PromptView] = ()
    random: Sequence[PromptView] = ()
    promotes: Sequence[LogitEffect] = ()
    suppresses: Sequence[LogitEffect] = ()
    histogram: Histogram | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    doses: Sequence[DoseView] = ()
    follows: Sequence[str] = ()
    moved: Sequence[str] = ()
    close: Sequence[Neighbour] = ()
    together: Sequence[Neighbour] = ()

    def __post_init__(self) -> None:
        if strange := set(self.reasons) - set(SECTIONS):
            raise TableError(
                "LatentView.reasons", f"unknown {sorted(strange)}", f"One of {', '.join(SECTIONS)}."
            )
