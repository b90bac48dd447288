"""Accounts of growth compared over all arms: a count, the exact posterior, the model's own belief and others.

Each account turns a context into one number φ_θ; the read-out is a + b·φ_θ (b ≥ 0), with a, b and θ shared
by all arms, fitted on half of the prompts by generalised least squares (each arm's covariance over prompts,
shrunk to its diagonal) and judged by the Gaussian log-likelihood of the other half. One curve cannot
separate them; the arms can: they differ in labels, repeats, order and place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from iclens.core import TableError
from iclens.prompts.build import PromptSet
from iclens.schemas import AccountTable
from iclens.stats import N_RESAMPLES, interval, resample_prompts
from iclens.table import Floats, Ints


@dataclass(frozen=True)
class Design:
    """What was shown before each query of an arm, slot by slot."""

    # +1 where a slot holds the task's own answer, −1 where another label, 0 where nothing of the task,
    # [prompt example slot]; slots at and after the query hold 0
    right: Floats
    new: Floats  # whether the slot's example is the first of its kind in this context, same axes
    # the ideal learner's log-odds before each query, nats [prompt example]; None if unknown
    exact: Floats | None = None
    # the model's own log-odds there, which a latent may follow; None for the model itself
    behaviour: Floats | None = None

    def __post_init__(self) -> None:
        if self.right.shape != self.new.shape or self.right.ndim != 3:
            remedy = "Give `right` and `new` as arrays [prompt example slot] of one shape."
            raise TableError("Design", f"{self.right.shape} and {self.new.shape}", remedy)

    def select(self, at: Any) -> Design:
        """What was shown at an index of the axes [prompt example]."""
        curves = (None if curve is None else curve[at] for curve in (self.exact, self.behaviour))
        return Design(self.right[at], self.new[at], *curves)

    def after_labels(self) -> Design:
        """What was shown when a label had been read, instead of before its query; of an inline arm.

        The last example's is not known: one example fewer.
        """
        return self.select((slice(None), slice(1, None)))


def design_of(prompts: PromptSet, exact: Floats | None = None, behaviour: Floats | None = None) -> Design:
    """The design of an arm, with the ideal learner's and the model's own log-odds, [prompt example] each.

    A probed arm shows the task's own labels; an inline one is right where the label is the task's answer.
    """
    n_prompts, n_examples = prompts.x.shape
    if prompts.context_x is not None:
        right = (prompts.context_x != "").astype(float)
        new = np.ones(right.shape)
        for slot in range(1, right.shape[2]):
            earlier, x = prompts.context_x[:, :, :slot], prompts.context_x[:, :, slot : slot + 1]
            new[:, :, slot] = ~(earlier == x).any(axis=2)
    else:
        label = np.where(prompts.y == prompts.answer, 1.0, -1.0)[:, None, : n_examples - 1]
        before = np.tri(n_examples, n_examples - 1, -1)
        right = label * before
        new = np.broadcast_to(before, (n_prompts, n_examples, n_examples - 1))
    return Design(right, new * (right != 0), exact, behaviour)


Grid = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Account:
    """One account: its name, what it says in words, and φ of a design at every θ of a grid.

    `predict` gives φ as [prompt example]; `symbols` name the parts of θ.
    """

    name: str
    says: str
    predict: Callable[..., Floats]
    grid: Grid = ((),)
    symbols: tuple[str, ...] = ()


def _two_distinct(design: Design) -> Floats:
    distinct, wrong = (design.new * (design.right > 0)).sum(axis=2), (design.right < 0).any(axis=2)
    return np.where(wrong, 0.0, np.minimum(distinct, 2.0) / 2)


def _composite(design: Design, weight: float, slow: float, fast: float) -> Floats:
    net = (design.right * design.new).sum(axis=2)
    return -np.logaddexp(np.log(weight) - slow * net, np.log1p(-weight) - fast * net)


def _discounted(design: Design, alpha: float) -> Floats:
    count = design.right.sum(axis=2)
    return np.sign(count) * np.abs(count) ** (1 - alpha)


def _recency(design: Design, rate: float) -> Floats:
    """Σ rate^(examples shown since) · right; slots without an example do not count as time."""
    filled = np.abs(design.right)
    since = filled[:, :, ::-1].cumsum(axis=2)[:, :, ::-1] - filled
    return (rate**since * design.right).sum(axis=2)


def _change_point(design: Design, hazard: float, step: float) -> Floats:
    """Log-odds of a learner for whom the task may change with probability `hazard` before each example."""
    belief = np.zeros(design.right.shape[:2])
    for slot in range(design.right.shape[2]):
        label = design.right[:, :, slot]
        p = (1 - hazard) / (1 + np.exp(-np.clip(belief, -30, 30))) + hazard / 2
        moved = np.log(p) - np.log1p(-p) + step * label
        belief = np.where(label != 0, moved, belief)
    return belief


EXACT, BEHAVIOUR = "exact posterior", "the model's belief"
"""Accounts that take log-odds which were not fitted here: the ideal learner's, the model's own."""
RATES: Grid = tuple((float(rate),) for rate in np.linspace(0.1, 0.9, 9))
SINKS: Grid = tuple((kappa,) for kappa in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0))
SWITCHES: Grid = ((1.0,), (2.0,), (3.0,))
HAZARDS: Grid = tuple(product((0.02, 0.05, 0.1, 0.2, 0.4), (0.3, 0.6, 1.0, 1.5, 2.5)))
ALTERNATIVES: Grid = tuple(product((0.01, 0.05, 0.2, 0.5), (0.0, 0.1, 0.3), (0.8, 1.5, 3.0)))
ACCOUNTS = (
    Account("nothing", "no arm changes it", lambda d: np.zeros(d.right.shape[:2])),
    Account("counting", "every example adds the same, repeated or not: a sum pool",
            lambda d: d.right.sum(axis=2)),
    Account("ideal Bayes", "two distinct examples settle it, repeats add nothing", _two_distinct),
    Account("latch", "it switches at the s-th right label and stays",
            lambda d, s: ((d.right > 0).sum(axis=2) >= s).astype(float), SWITCHES, ("s",)),
    Account("composite Bayes", "exact against several alternatives: new examples add less and less",
            _composite, ALTERNATIVES, ("w", "slow", "fast")),
    Account("discounted", "the count to the power 1 − α", _discounted, RATES, ("α",)),
    Account("attention pooling", "share of right labels, with a sink of weight κ",
            lambda d, sink: d.right.sum(axis=2) / (np.abs(d.right).sum(axis=2) + sink), SINKS, ("κ",)),
    Account("recency", "a leaky sum: each example counts r times the next one", _recency, RATES, ("r",)),
    Account("change-point Bayes", "the task may change with probability h at any example",
            _change_point, HAZARDS, ("h", "λ")),
    Account(EXACT, "the declared mixture's own posterior, frozen", lambda d: d.exact),
    Account(BEHAVIOUR, "the model's own log-odds of the answer in each prompt", lambda d: d.behaviour),
)  # fmt: skip
"""Every account that is compared."""


SHRINK = 0.1
"""Weight of the diagonal in each arm's covariance."""
FLAT = 1e-12
"""Least share: of a curve's square beside a constant for it to have a slope; of the largest variance."""


@dataclass(frozen=True)
class Compared:
    """All accounts on one set of arms."""

    table: AccountTable  # one row per account, the best first
    arms: tuple[str, ...]  # arms that were compared
    # the account that is named: of those that the data do not separate from the likeliest, the one with the
    # fewest parameters, and of these the likeliest
    best: str
    tied: tuple[str, ...]  # the other accounts that are not separated from the likeliest

    @property
    def verdict(self) -> str:
        """In words."""
        if self.tied:
            others = ", ".join(self.tied)
            return f"Named: {self.best}, the simplest of those not separated ({others} beside it)."
        for name, behind in zip(self.table["account"], self.table["behind"], strict=True):
            if name != self.best:
                return f"Named: {self.best}, {behind:.2f} nats per prompt before {name}."
        return f"Named: {self.best}."


def compare(
    responses: Mapping[str, Floats], designs: Mapping[str, Design], *, seed: int = 0,
    accounts: tuple[Account, ...] = ACCOUNTS,
) -> Compared:  # fmt: skip
    """`compare_all` of one read-out, [prompt example] in each arm."""
    one = {arm: values[None] for arm, values in responses.items()}
    return compare_all(one, designs, seed=seed, accounts=accounts)[0]


def compare_all(
    responses: Mapping[str, Floats], designs: Mapping[str, Design], *, seed: int = 0,
    accounts: tuple[Account, ...] = ACCOUNTS,
) -> list[Compared]:  # fmt: skip
    """Every account of each read-out [readout prompt example] on all arms, each by itself, [readout].

    `EXACT` and `BEHAVIOUR` take part where every arm's design holds their log-odds, finite throughout.
    `seed` is of the split into halves and of the bootstrap.
    """
    arms = tuple(responses)
    if len(arms) < 2:
        remedy = "Give `responses` of two arms or more. One curve cannot separate the accounts."
        raise TableError("accounts of growth", f"{len(arms)} arm", remedy)
    if not all(np.isfinite(values).all() for values in responses.values()):
        remedy = "Leave the arm or read-out that holds it out of `responses`."
        raise TableError("accounts of growth", "a read-out is not finite", remedy)
    n_readouts, n_prompts = responses[arms[0]].shape[:2]
    if n_prompts < 8:
        raise TableError("accounts of growth", f"{n_prompts} prompts", "Give at least 8 prompts.")
    halves = np.array_split(np.random.default_rng(seed).permutation(n_prompts), 2)
    parts = [_part(responses[arm], designs[arm], halves) for arm in arms]
    chosen = [account for account in accounts if _is_known(account.name, designs)]
    fitted = [_fit(account, parts) for account in chosen]
    n_held = len(halves[1])
    draws = resample_prompts(n_held, N_RESAMPLES, np.random.default_rng(seed)) / n_held
    return [_ranked(chosen, fitted, r, arms, draws) for r in range(n_readouts)]


def _is_known(name: str, designs: Mapping[str, Design]) -> bool:
    """Whether every arm's design holds the log-odds that an account takes, finite throughout."""
    if name not in (EXACT, BEHAVIOUR):
        return True
    curves = [design.exact if name == EXACT else design.behaviour for design in designs.values()]
    return all(curve is not None and np.isfinite(curve).all() for curve in curves)


@dataclass(frozen=True)
class _Part:
    """One arm: what was shown, and the read-outs' halves in the metric of their own covariance."""

    # design, held_design: of the fitted and of the held-out prompts
    design: Design
    held_design: Design
    precision: Floats  # inverse of the covariance over prompts, [readout example example]
    fitted: Floats  # precision · read-outs of the fitted half, [readout prompt example]
    total: Floats  # Σ over the fitted half of y · precision · y, [readout]
    held: Floats  # read-outs of the other half, [readout prompt example]


def _part(values: Floats, design: Design, halves: Sequence[Ints]) -> _Part:
    y, held = (values[:, half].astype(np.float64) for half in halves)
    precision = _precision(y)
    weighted = y @ precision
    total = (weighted * y).sum(axis=(1, 2))
    return _Part(design.select(halves[0]), design.select(halves[1]), precision, weighted, total, held)


def _precision(values: Floats) -> Floats:
    """Inverse of the covariance over prompts, shrunk to its diagonal, [readout example example].

    An example at which the prompts agree, as at the first token, says nothing about them: it weighs 0.
    """
    centred = values - values.mean(axis=1, keepdims=True)
    covariance = centred.transpose(0, 2, 1) @ centred / (values.shape[1] - 1)
    own = np.diagonal(covariance, axis1=1, axis2=2)
    eye = np.eye(values.shape[2])
    floor = 1e-6 * np.maximum(own.sum(axis=1), 1e-12)[:, None, None]
    flat = own <= FLAT * own.max(axis=1, keepdims=True)
    shrunk = (1 - SHRINK) * covariance + SHRINK * (own[:, :, None] * eye + floor * eye)
    inverse = np.linalg.inv(shrunk + flat[:, :, None] * eye)
    return np.where(flat[:, :, None] | flat[:, None, :], 0.0, inverse)


@dataclass(frozen=True)
class _Fitted:
    """Which θ [readout], log-likelihood [readout held-out prompt] and R² of the held-out means [readout]."""

    theta: Ints
    log_likelihood: Floats
    r2: Floats


def _fit(account: Account, parts: Sequence[_Part]) -> _Fitted:
    if not account.grid:
        remedy = "Give its `grid` at least one set of parameters; one without parameters has [()]."
        raise TableError(f"account '{account.name}'", "an empty grid", remedy)
    fits = [
        _least_squares([account.predict(p.design, *theta) for p in parts], parts) for theta in account.grid
    ]
    theta = np.array([loss for _, loss in fits]).argmin(axis=0)
    betas = np.stack([beta for beta, _ in fits])[theta, np.arange(len(theta))]
    score, missed, spread = 0.0, np.zeros(len(theta)), np.zeros(len(theta))
    grand = np.mean([part.held.mean(axis=(1, 2)) for part in parts], axis=0)
    curves = {
        t: [account.predict(p.held_design, *account.grid[t]) for p in parts] for t in set(theta.tolist())
    }
    for k, part in enumerate(parts):
        phi = np.stack([curves[t][k] for t in theta.tolist()])
        predicted = betas[:, 0, None, None] + betas[:, 1, None, None] * phi
        residual = part.held - predicted
        score = score - 0.5 * ((residual @ part.precision) * residual).sum(axis=2)
        missed += np.square(part.held.mean(axis=1) - predicted.mean(axis=1)).sum(axis=1)
        spread += np.square(part.held.mean(axis=1) - grand[:, None]).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _Fitted(theta, np.asarray(score), np.where(spread > 0, 1 - missed / spread, np.nan))


def _least_squares(curves: Sequence[Floats], parts: Sequence[_Part]) -> tuple[Floats, Floats]:
    """(a, b) with b ≥ 0 of every read-out, [readout 2], and the loss [readout], over all arms at once."""
    one_one = one_phi = phi_phi = one_y = phi_y = total = 0.0
    for phi, part in zip(curves, parts, strict=True):
        ones = part.precision.sum(axis=1)
        one_one = one_one + len(phi) * ones.sum(axis=1)
        one_phi = one_phi + ones @ phi.sum(axis=0)
        phi_phi = phi_phi + np.einsum("ref,ef->r", part.precision, phi.T @ phi)
        one_y = one_y + part.fitted.sum(axis=(1, 2))
        phi_y = phi_y + np.einsum("rpe,pe->r", part.fitted, phi)
        total = total + part.total
    level = one_y / one_one
    left = phi_phi - one_phi**2 / one_one
    flat = left <= FLAT * np.maximum(phi_phi, FLAT)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.where(flat, 0.0, np.maximum((phi_y - one_phi * level) / left, 0.0))
    start = level - slope * one_phi / one_one
    explained = (2 * one_y - start * one_one - 2 * slope * one_phi) * start
    loss = total - explained - slope * (2 * phi_y - slope * phi_phi)
    return np.stack([start, slope], axis=1), loss


def _ranked(
    chosen: list[Account], fitted: list[_Fitted], readout: int, arms: tuple[str, ...], draws: Floats
) -> Compared:
    scores = np.array([fit.log_likelihood[readout] for fit in fitted])
    ranking = np.argsort(-scores.mean(axis=1), kind="stable")
    behind = scores[ranking[0]] - scores[ranking]
    low, high = interval((behind @ draws.T).T)
    thetas = [chosen[i].grid[int(fitted[i].theta[readout])] for i in ranking]
    words = [
        ", ".join(f"{s} {t:.3g}" for s, t in zip(chosen[i].symbols, theta, strict=True))
        for i, theta in zip(ranking, thetas, strict=True)
    ]
    table = AccountTable({
        "account": [chosen[i].name for i in ranking], "behind": behind.mean(axis=1), "behind_low": low,
        "behind_high": high, "parameter": words, "r2": [float(fitted[i].r2[readout]) for i in ranking],
        "says": [chosen[i].says for i in ranking],
    })  # fmt: skip
    close = [i for i, least in zip(ranking, low, strict=True) if least <= 0]
    best = min(close, key=lambda i: len(chosen[i].symbols))
    tied = tuple(chosen[i].name for i in close if i != best)
    return Compared(table, arms, chosen[best].name, tied)
