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
from iclens.growth.account_models import ACCOUNTS, EXACT, Account
from iclens.growth.design import Design
from iclens.tables.arrays import Floats, Ints
from iclens.tables.bands import resample_prompts
from iclens.tables.evidence import AccountTable

SHRINK = 0.1
"""Weight of the diagonal in each arm's covariance."""
RESAMPLES = 1000


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
    """Every account on all arms.

    The exact posterior takes part only where every arm's design holds its log-odds.

    Args:
        responses: arm → read-out before each example, [prompt example], finite.
        designs: arm → what was shown, for the same prompts.
        seed: of the split into halves and of the bootstrap.
        accounts: which; `ACCOUNTS` by default.

    Raises:
        TableError: for fewer than two arms, eight prompts, or a read-out that is not finite.
    """
    arms = tuple(responses)
    if len(arms) < 2:
        raise TableError(
            "accounts of growth", f"{len(arms)} arm", "One curve cannot separate them: give two."
        )
    if not all(np.isfinite(values).all() for values in responses.values()):
        raise TableError("accounts of growth", "a read-out is not finite", "Leave that arm out.")
    n_prompts = len(responses[arms[0]])
    if n_prompts < 8:
        raise TableError("accounts of growth", f"{n_prompts} prompts", "Give at least 8.")
    halves = np.array_split(np.random.default_rng(seed).permutation(n_prompts), 2)
    whiteners = {arm: _whitener(responses[arm][halves[0]]) for arm in arms}
    chosen = [a for a in accounts or ACCOUNTS if a.name != EXACT or _all_exact(designs)]
    fitted = [_fit(account, responses, designs, whiteners, halves) for account in chosen]
    return _ranked(chosen, fitted, arms, seed)


@dataclass(frozen=True)
class _Fitted:
    """θ, log-likelihood of each held-out prompt [prompt], and R² of the held-out means."""

    theta: tuple[float, ...]
    log_likelihood: Floats
    r2: float


def _whitener(values: Floats) -> Floats:
    """L⁻¹ with L Lᵀ the arm's shrunk covariance over prompts, [example example]."""
    covariance = np.cov(values.T)
    diagonal = np.diag(np.diag(covariance)) + 1e-6 * np.eye(len(covariance)) * max(
        np.trace(covariance), 1e-12
    )
    return np.linalg.inv(np.linalg.cholesky((1 - SHRINK) * covariance + SHRINK * diagonal))


def _fit(
    account: Account, responses: Mapping[str, Floats], designs: Mapping[str, Design],
    whiteners: Mapping[str, Floats], halves: Sequence[Ints],
) -> _Fitted:  # fmt: skip
    best: tuple[float, Floats, tuple[float, ...], list[Floats]] | None = None
    for theta in account.grid:
        features = [account.predict(designs[arm], theta) for arm in responses]
        sums = np.zeros((2, 2))
        cross, total = np.zeros(2), 0.0
        for arm, phi in zip(responses, features, strict=True):
            w = whiteners[arm]
            y, one = responses[arm][halves[0]] @ w.T, w.sum(axis=1)
            x = np.stack([np.broadcast_to(one, y.shape), phi[halves[0]] @ w.T], axis=-1).reshape(-1, 2)
            sums += x.T @ x
            cross += x.T @ y.ravel()
            total += float((y**2).sum())
        beta = np.linalg.lstsq(sums, cross, rcond=None)[0]
        if beta[1] < 0:
            beta = np.array([cross[0] / sums[0, 0], 0.0])
        loss = total - 2 * float(beta @ cross) + float(beta @ sums @ beta)
        if best is None or loss < best[0]:
            best = (loss, beta, theta, features)
    if best is None:
        raise TableError(f"account '{account.name}'", "an empty grid", "Give its parameters.")
    _, beta, theta, features = best
    score = np.zeros(len(halves[1]))
    missed, spread = 0.0, 0.0
    grand = np.mean([responses[arm][halves[1]].mean() for arm in responses])
    for arm, phi in zip(responses, features, strict=True):
        held, predicted = responses[arm][halves[1]], beta[0] + beta[1] * phi[halves[1]]
        score -= 0.5 * np.square((held - predicted) @ whiteners[arm].T).sum(axis=1)
        missed += float(np.square(held.mean(axis=0) - predicted.mean(axis=0)).sum())
        spread += float(np.square(held.mean(axis=0) - grand).sum())
    return _Fitted(theta, score, 1 - missed / spread if spread > 0 else float("nan"))


def _ranked(chosen: list[Account], fitted: list[_Fitted], arms: tuple[str, ...], seed: int) -> Compared:
    means = np.array([fit.log_likelihood.mean() for fit in fitted])
    ranking = np.argsort(-means, kind="stable")
    likeliest = fitted[ranking[0]].log_likelihood
    n = len(likeliest)
    draws = resample_prompts(n, RESAMPLES, np.random.default_rng(seed)) / n
    behind = [likeliest - fitted[i].log_likelihood for i in ranking]
    ends = [np.quantile(draws @ values, [0.025, 0.975]) for values in behind]
    words = [
        ", ".join(f"{s} {t:.3g}" for s, t in zip(chosen[i].symbols, fitted[i].theta, strict=True))
        for i in ranking
    ]
    table = AccountTable(
        {
            "account": [chosen[i].name for i in ranking],
            "behind": [float(values.mean()) for values in behind],
            "behind_low": [float(low) for low, _ in ends],
            "behind_high": [float(high) for _, high in ends],
            "parameter": words,
            "r2": [fitted[i].r2 for i in ranking],
            "says": [chosen[i].says for i in ranking],
        }
    )
    close = [i for i, (low, _) in zip(ranking, ends, strict=True) if low <= 0]
    best = min(close, key=lambda i: len(chosen[i].symbols))
    tied = tuple(chosen[i].name for i in close if i != best)
    return Compared(table, arms, chosen[best].name, tied)


def _all_exact(designs: Mapping[str, Design]) -> bool:
    return all(d.exact is not None and np.isfinite(d.exact).all() for d in designs.values())
