"""Which account of growth predicts all arms at once?

Each account turns a context into one number φ_θ; the read-out is a + b·φ_θ (b ≥ 0), with a, b and θ shared by
all arms, fitted on half of the prompts by generalised least squares (each arm's covariance over prompts,
shrunk to its diagonal) and judged by the Gaussian log-likelihood of the other half. One curve cannot separate
them; the arms can: they differ in labels, repeats, order and place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from iclens.errors import TableError
from iclens.growth.account_models import ACCOUNTS, FROZEN, Account
from iclens.growth.design import Design
from iclens.tables.arrays import Floats, Ints
from iclens.tables.bands import resample_prompts
from iclens.tables.evidence import AccountTable

SHRINK = 0.1
"""Weight of the diagonal in each arm's covariance."""
RESAMPLES = 1000
FLAT = 1e-12
"""Least share: of a curve's square beside a constant for it to have a slope; of the largest variance."""


@dataclass(frozen=True)
class Compared:
    """All accounts on one set of arms.

    Args:
        table: one row per account, the best first.
        arms: arms that were compared.
        best: the account that is named: of those that the data do not separate from the likeliest, the one
            with the fewest parameters, and of these the likeliest.
        tied: the other accounts that are not separated from the likeliest.
    """

    table: AccountTable
    arms: tuple[str, ...]
    best: str
    tied: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """In words."""
        if self.tied:
            return (
                f"Named: {self.best}, the simplest of those not separated ({', '.join(self.tied)} beside it)."
            )
        after = [i for i, name in enumerate(self.table["account"]) if name != self.best][:1]
        gap = (
            f", {self.table['behind'][after[0]]:.2f} nats per prompt before {self.table['account'][after[0]]}"
        )
        return f"Named: {self.best}{gap if after else ''}."


def compare(
    responses: Mapping[str, Floats], designs: Mapping[str, Design], *, seed: int = 0,
    accounts: tuple[Account, ...] | None = None,
) -> Compared:  # fmt: skip
    """Every account of one read-out on all arms.

    Accounts that are frozen curves (`account_models.FROZEN`) take part where every arm's design holds them.

    Args:
        responses: arm → read-out before each example, [prompt example], finite.
        designs: arm → what was shown, for the same prompts.
        seed: of the split into halves and of the bootstrap.
        accounts: which; `ACCOUNTS` by default.

    Raises:
        TableError: for fewer than two arms, eight prompts, or a read-out that is not finite.
    """
    one = {arm: values[None] for arm, values in responses.items()}
    return compare_all(one, designs, seed=seed, accounts=accounts)[0]


def compare_all(
    responses: Mapping[str, Floats], designs: Mapping[str, Design], *, seed: int = 0,
    accounts: tuple[Account, ...] | None = None,
) -> list[Compared]:  # fmt: skip
    """Every account of every read-out, each by itself, [readout].

    Args:
        responses: arm → read-outs before each example, [readout prompt example], finite.
        designs: arm → what was shown, for the same prompts.
        seed: of the split into halves and of the bootstrap.
        accounts: which; `ACCOUNTS` by default.

    Raises:
        TableError: for fewer than two arms, eight prompts, or a read-out that is not finite.
    """
    arms = tuple(responses)
    if len(arms) < 2:
        raise TableError(
            "accounts of growth",
            f"{len(arms)} arm",
            "Give `responses` of two arms or more. One curve cannot separate the accounts.",
        )
    if not all(np.isfinite(values).all() for values in responses.values()):
        raise TableError(
            "accounts of growth",
            "a read-out is not finite",
            "Leave the arm or read-out that holds it out of `responses`.",
        )
    n_readouts, n_prompts = responses[arms[0]].shape[:2]
    if n_prompts < 8:
        raise TableError("accounts of growth", f"{n_prompts} prompts", "Give at least 8 prompts.")
    halves = np.array_split(np.random.default_rng(seed).permutation(n_prompts), 2)
    parts = [_part(responses[arm], designs[arm], halves) for arm in arms]
    chosen = [a for a in accounts or ACCOUNTS if a.name not in FROZEN or _everywhere(a.name, designs)]
    fitted = [_fit(account, parts) for account in chosen]
    n_held = len(halves[1])
    draws = resample_prompts(n_held, RESAMPLES, np.random.default_rng(seed)) / n_held
    return [_ranked(chosen, fitted, r, arms, draws) for r in range(n_readouts)]


@dataclass(frozen=True)
class _Part:
    """One arm: what was shown, and the read-outs' halves in the metric of their own covariance.

    Args:
        design, held_design: of the fitted and of the held-out prompts.
        precision: inverse of the covariance over prompts, [readout example example].
        fitted: precision · read-outs of the fitted half, [readout prompt example].
        total: Σ over the fitted half of y · precision · y, [readout].
        held: read-outs of the other half, [readout prompt example].
    """

    design: Design
    held_design: Design
    precision: Floats
    fitted: Floats
    total: Floats
    held: Floats


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
        raise TableError(
            f"account '{account.name}'",
            "an empty grid",
            "Give its `grid` at least one set of parameters; one without parameters has [()].",
        )
    found = [
        _least_squares([account.predict(p.design, theta) for p in parts], parts) for theta in account.grid
    ]
    losses = np.array([loss for _, loss in found])
    theta = losses.argmin(axis=0)
    betas = np.stack([beta for beta, _ in found])[theta, np.arange(len(theta))]
    score, missed, spread = 0.0, np.zeros(len(theta)), np.zeros(len(theta))
    grand = np.mean([part.held.mean(axis=(1, 2)) for part in parts], axis=0)
    curves = {
        t: [account.predict(p.held_design, account.grid[t]) for p in parts] for t in set(theta.tolist())
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
    low, high = np.quantile(behind @ draws.T, [0.025, 0.975], axis=1)
    thetas = [chosen[i].grid[int(fitted[i].theta[readout])] for i in ranking]
    words = [
        ", ".join(f"{s} {t:.3g}" for s, t in zip(chosen[i].symbols, theta, strict=True))
        for i, theta in zip(ranking, thetas, strict=True)
    ]
    table = AccountTable(
        {
            "account": [chosen[i].name for i in ranking],
            "behind": behind.mean(axis=1),
            "behind_low": low,
            "behind_high": high,
            "parameter": words,
            "r2": [float(fitted[i].r2[readout]) for i in ranking],
            "says": [chosen[i].says for i in ranking],
        }
    )
    close = [i for i, least in zip(ranking, low, strict=True) if least <= 0]
    best = min(close, key=lambda i: len(chosen[i].symbols))
    tied = tuple(chosen[i].name for i in close if i != best)
    return Compared(table, arms, chosen[best].name, tied)


def _everywhere(frozen: str, designs: Mapping[str, Design]) -> bool:
    """Whether every arm's design holds a frozen curve, finite throughout."""
    curves = [FROZEN[frozen](design) for design in designs.values()]
    return all(curve is not None and np.isfinite(curve).all() for curve in curves)
