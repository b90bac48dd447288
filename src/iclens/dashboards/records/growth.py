"""What does the index show about additive Bayesian growth? Plain records; nothing is computed on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iclens.dashboards.records.latent import Curve


@dataclass(frozen=True)
class ArmCurve:
    """The log-odds of the task's answer in one arm.

    Args:
        arm: its code.
        meaning: what the arm shows, in words.
        model: mean log-odds of the model, nats.
        exact: the exact posterior's on the same prompts, or None where there is none.
        agreement: how the model follows it, in a few words; "" without an exact posterior.
    """

    arm: str
    meaning: str
    model: Curve
    exact: Curve | None = None
    agreement: str = ""


@dataclass(frozen=True)
class RungCount:
    """How many latent × role rows reach a rung of the ladder, and no further, at a site."""

    site: str
    rung: str
    count: int


@dataclass(frozen=True)
class AccountRow:
    """How well an account of the growth predicts held-out prompts in all arms at once.

    Args:
        account: its name.
        behind: held-out log-likelihood behind the best account, nats per prompt; 0 for the best.
        low, high: its 95 % interval over prompts.
        says: what the account says, in words.
    """

    account: str
    behind: float
    low: float
    high: float
    says: str


@dataclass(frozen=True)
class FalsifierRow:
    """One way in which the claim can fail, and whether it did.

    Args:
        falsifier: F1 to F8.
        question: what was asked.
        fired: "fired", "did not fire" or "not tested".
        evidence: the figures it rests on.
    """

    falsifier: str
    question: str
    fired: str
    evidence: str


@dataclass(frozen=True)
class FollowRow:
    """How many rows of the short list, latent × role, an account of growth is named for.

    Args:
        account: its name.
        count: latent × role rows.
        says: what the account says, in words.
        r2: median share of the arms' means that it explains in them; below 0, less than one constant does.
    """

    account: str
    count: int
    says: str
    r2: float


@dataclass(frozen=True)
class InjectionRow:
    """What a site's own mean growth does to the answer's log-odds when it is added at `pre`.

    Args:
        site: short form.
        injected: which part of the growth.
        effect: nats.
        low, high: its 95 % interval over prompts.
        share: of the answer's own growth; NaN where that is too small.
    """

    site: str
    injected: str
    effect: float
    low: float
    high: float
    share: float


@dataclass(frozen=True)
class AdditiveView:
    """Everything that bears on the claim.

    Args:
        arms: curves, the task's own arm first.
        rungs: counts by site and rung.
        accounts: the best first.
        accounts_note: on which arms they were compared, or why not.
        falsifiers: F1 to F8.
        follows: accounts of the short-listed latents, the most frequent first.
        injections: parts of each site's growth, in order.
        injections_note: after how many examples, and how far the answer's log-odds grow by themselves.
    """

    arms: Sequence[ArmCurve] = ()
    rungs: Sequence[RungCount] = ()
    accounts: Sequence[AccountRow] = ()
    accounts_note: str = ""
    falsifiers: Sequence[FalsifierRow] = ()
    follows: Sequence[FollowRow] = ()
    injections: Sequence[InjectionRow] = ()
    injections_note: str = ""
