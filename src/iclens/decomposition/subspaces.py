"""Do x and y stand in parts of the residual of their own? Subspaces of a joint regression, and their angles.

1. Activations are regressed jointly on which x and which y a row shows. 2. The largest directions of the
coefficients of x are the x-subspace, likewise for y. 3. x from one half of the prompts is compared with y
from the other; the halves' agreement on x, and on y, is the ceiling, and values permuted over rows the null.

    overlap(U, V) = ‖Q_Uᵀ Q_V‖² / rank,    Q_U: orthonormal basis of Σ^{1/2} U, Σ the rows' covariance

What enters: rows and activations [row d_model]. What leaves: figures of an `OperandTable`. In this metric two
directions are apart when the activations' projections onto them do not correlate over the rows. Where Σ has
few large directions, any two subspaces overlap much: the null says how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_array
from sklearn.covariance import ledoit_wolf

from iclens.decomposition.lab import dealt_inputs, figure, undefined
from iclens.tables.arrays import Floats, Ints
from iclens.transforms.rows import Rows

OVERLAPS = ("x and y overlap", "x in both halves", "y in both halves")
LEAST_ROWS = 5
"""Rows of a value that has a coefficient."""
N_SPLITS = 10
_RIDGE = 1.0
"""Rows of zeros that each value has in the joint regression beside its own."""


@dataclass(frozen=True)
class Design:
    """The joint regression of activations on which x and which y a row shows, each as one-hot columns.

        B = (DᵀD + λI)⁻¹ Dᵀ(A − Ā)

    so that the coefficients of x are what x adds beside y, and the reverse.

    Args:
        rows: rows that enter, of all, [used].
        shown: D, [used value]: x's values first.
        factor: Cholesky factor of DᵀD + λI, as scipy gives it.
        n_x: values of x.
    """

    rows: Ints
    shown: csr_array
    factor: Any
    n_x: int

    @classmethod
    def of(cls, x: Floats, y: Floats, rows: Ints) -> Design:
        """The design of some rows; those whose x or y stands on fewer than `LEAST_ROWS` of them stay out.

        Args:
            x: of every row, [row].
            y: of every row, [row].
            rows: those that may enter.
        """
        rows = rows[_frequent(x[rows]) & _frequent(y[rows])]
        levels_x, of_x = np.unique(x[rows], return_inverse=True)
        levels_y, of_y = np.unique(y[rows], return_inverse=True)
        n_x, n = len(levels_x), len(rows)
        column = np.stack([of_x, n_x + of_y], axis=1).ravel()
        shown = csr_array(
            (np.ones(2 * n), column, np.arange(0, 2 * n + 1, 2)), shape=(n, n_x + len(levels_y))
        )
        gram = (shown.T @ shown).toarray() + _RIDGE * np.eye(n_x + len(levels_y))
        return cls(rows, shown, cho_factor(gram) if n else None, n_x)

    @property
    def n_values(self) -> tuple[int, int]:
        """Values of x and of y that have a coefficient."""
        _, n_values = cast("tuple[int, int]", self.shown.shape)
        return self.n_x, n_values - self.n_x

    def subspaces(self, acts: Floats, rank: int) -> tuple[Floats, Floats]:
        """The x- and the y-subspace, orthonormal, each [d_model rank].

        The largest right singular vectors of the coefficients, around their mean, each value weighing as its
        rows.

        Args:
            acts: activations of every row, [row d_model].
            rank: their dimensions.
        """
        held = acts[self.rows]
        fitted = cho_solve(self.factor, self.shown.T @ (held - held.mean(axis=0)))
        weight = np.asarray(self.shown.sum(axis=0))
        n_x = self.n_x
        return _largest(fitted[:n_x], weight[:n_x], rank), _largest(fitted[n_x:], weight[n_x:], rank)


def _frequent(value: Floats) -> NDArray[np.bool_]:
    """Rows whose value stands on at least `LEAST_ROWS` rows, [row]."""
    _, of_row, size = np.unique(value, return_inverse=True, return_counts=True)
    return size[of_row] >= LEAST_ROWS


def _largest(coefficients: Floats, weight: Floats, rank: int) -> Floats:
    centred = coefficients - np.average(coefficients, axis=0, weights=weight)
    _, _, directions = np.linalg.svd(np.sqrt(weight)[:, None] * centred, full_matrices=False)
    return directions[:rank].T


def overlap(one: Floats, other: Floats, root: Floats) -> float:
    """Mean squared cosine of the principal angles of two subspaces in the metric of a covariance.

    Args:
        one: a basis, [d_model rank].
        other: a basis, [d_model rank].
        root: any R with R Rᵀ = Σ, [d_model d_model]; directions u go to Rᵀu.

    Returns:
        Between 0 (orthogonal) and 1 (the same).
    """
    q, p = (np.linalg.qr(root.T @ basis)[0] for basis in (one, other))
    return float(((q.T @ p) ** 2).sum() / q.shape[1])


class Subspaces:
    """The half splits and permutations on which x- and y-subspaces are compared, the same at every layer.

    Args:
        rows: rows whose x and y are numbers.
        inputs: prompts of equal inputs as one group, [row]; a half has whole groups.
        rank: dimensions of a subspace.
        n_null: permutations.
        rng: splits and permutes.
    """

    def __init__(self, rows: Rows, inputs: Ints, rank: int, n_null: int, rng: np.random.Generator) -> None:
        self.rank, self.n_rows = rank, len(rows)
        halves = [dealt_inputs(rows.task, inputs, 2, rng) for _ in range(N_SPLITS)]
        sides = [[np.flatnonzero(half == side) for side in (0, 1)] for half in halves]
        self.splits = [[Design.of(rows.x, rows.y, side) for side in both] for both in sides]
        self.reason = self._lack()
        self.null_x: list[tuple[int, list[Design]]] = []
        self.null_y: list[tuple[int, list[Design]]] = []
        for i in range(0 if self.reason else n_null):
            split = i % N_SPLITS
            x, y = rng.permutation(rows.x), rng.permutation(rows.y)
            self.null_x.append((split, [Design.of(x, rows.y, side) for side in sides[split]]))
            self.null_y.append((split, [Design.of(rows.x, y, side) for side in sides[split]]))

    def _lack(self) -> str:
        for which, name in enumerate("xy"):
            fewest = min(design.n_values[which] for both in self.splits for design in both)
            if fewest <= self.rank:
                return f"{fewest} values of {name} in a half of the prompts, {self.rank + 1} needed"
        return ""

    def figures(self, acts: Floats) -> dict[str, dict[str, Any]]:
        """Each of `OVERLAPS`, its interval over half splits and its null, from activations [row d_model]."""
        if self.reason:
            return {name: undefined(self.reason, self.n_rows) for name in OVERLAPS}
        root = np.linalg.cholesky(ledoit_wolf(acts)[0])
        found = [[design.subspaces(acts, self.rank) for design in both] for both in self.splits]
        both_ways = [
            [self._crossed([x for x, _ in both], [y for _, y in both], root) for both in found],
            [overlap(both[0][0], both[1][0], root) for both in found],
            [overlap(both[0][1], both[1][1], root) for both in found],
        ]
        chance: list[list[float]] = [[], [], []]
        for split, both in self.null_x:
            permuted = [design.subspaces(acts, self.rank)[0] for design in both]
            chance[0].append(self._crossed(permuted, [y for _, y in found[split]], root))
            chance[1].append(overlap(permuted[0], permuted[1], root))
        for _, both in self.null_y:
            permuted = [design.subspaces(acts, self.rank)[1] for design in both]
            chance[2].append(overlap(permuted[0], permuted[1], root))
        return {
            name: figure(float(np.mean(values)), np.array(values), float(np.mean(null)), self.n_rows)
            for name, values, null in zip(OVERLAPS, both_ways, chance, strict=True)
        }

    @staticmethod
    def _crossed(x: Sequence[Floats], y: Sequence[Floats], root: Floats) -> float:
        """x of each half against y of the other, averaged."""
        return (overlap(x[0], y[1], root) + overlap(x[1], y[0], root)) / 2
