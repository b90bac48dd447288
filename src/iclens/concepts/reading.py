"""What reads a latent downstream, measured in the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.preprocessing import StandardScaler

from iclens.concepts.language import Rows
from iclens.core import TableError
from iclens.prompts.build import PromptSet
from iclens.table import Floats, Ints, Strings

LAB = "lab"
HELD = 2**30
"""Bytes of activations that are held at a time; more are recorded in several passes."""


def counted_examples(prompts: PromptSet, rows: Rows, first_example: int) -> list[int]:
    """The examples from `first_example` on, or a TableError when `rows` are not those of `prompts`."""
    if len(rows) != prompts.n_prompts * prompts.n_examples or (rows.task != _repeated(prompts)).any():
        raise TableError(
            f"{len(rows)} rows of {prompts.n_prompts} prompts", "they are not these prompts'",
            "Give the rows that `read_rows` makes of these prompts.",
        )  # fmt: skip
    if not 0 <= first_example < prompts.n_examples:
        raise TableError(
            f"rows from example {first_example} on",
            f"prompts of {prompts.n_examples}",
            f"Choose first_example from 0 to {prompts.n_examples - 1}, or build longer prompts.",
        )
    return list(range(first_example, prompts.n_examples))


def _repeated(prompts: PromptSet) -> Strings:
    return np.repeat(prompts.task, prompts.n_examples)


def input_groups(prompts: PromptSet) -> Ints:
    """Which prompts show the same inputs in the same order, [prompt]: a number that they share.

    Prompts of equal seed and index do so in every task that allows the same inputs. What one of them is read
    with must not have been fitted on another: the examples before `lab` would tell it x.
    """
    return np.unique(prompts.x, axis=0, return_inverse=True)[1].reshape(-1)


def positions(prompts: PromptSet, examples: Sequence[int]) -> Ints:
    """Token index of `lab` in these examples, [example]."""
    return prompts.positions(LAB)[list(examples)]


def layer_groups(layers: Sequence[int], size: int) -> Iterator[list[int]]:
    """Layers that are recorded in one pass, `size` float32 each, `HELD` bytes together at most."""
    most = max(1, HELD // (4 * max(size, 1)))
    for start in range(0, len(layers), most):
        yield list(layers[start : start + most])


def dealt_inputs(task: Strings, inputs: Ints, n_folds: int, rng: np.random.Generator) -> Ints:
    """Whole groups of prompts dealt to folds at random, those of each task evenly, [row].

    Args:
        task: task of each row, [row].
        inputs: prompts of equal inputs as one group, [row].
        n_folds: number of folds.
        rng: deals.
    """
    names, first, of_row = np.unique(inputs, return_index=True, return_inverse=True)
    fold = np.zeros(len(names), dtype=np.int64)
    for name in np.unique(task):
        own = rng.permutation(np.flatnonzero(task[first] == name))
        fold[own] = (np.arange(len(own)) + rng.integers(n_folds)) % n_folds
    return fold[of_row]


def figure(value: float, again: Floats, null: float, n_rows: int) -> dict[str, Any]:
    """One row of an OperandTable: a value, its 95 % interval from other draws [draw], and its null."""
    low, high = np.quantile(again, (0.025, 0.975))
    return {"value": value, "ci_low": low, "ci_high": high, "null": null, "n_rows": n_rows, "reason": ""}


def undefined(reason: str, n_rows: int) -> dict[str, Any]:
    """One row of an OperandTable where nothing can be measured."""
    return dict.fromkeys(("value", "ci_low", "ci_high", "null"), np.nan) | {
        "n_rows": n_rows, "reason": reason,
    }  # fmt: skip


PERIODS = (2, 5, 10, 25, 50)
"""Periods in the code of a number, beside the number itself."""
FEWEST_ROWS, FEWEST_INPUTS = 60, 8
"""Rows, and different draws of inputs, below which nothing is read."""
N_FOLDS, N_RESAMPLES = 4, 200
_PENALTIES = (1e6, 1e4, 1e3, 1e2, 1e1, 1.0)
"""Of the ridge regressions, the strongest first: it wins ties, and leaves next to nothing but the mean."""


def number_code(value: Floats) -> Floats:
    """A number and its phases, cos and sin of 2πv/T for T in `PERIODS`, each of mean 0 and variance 1.

    Args:
        value: [row].

    Returns:
        [row column]; what does not vary over the rows is left out.
    """
    angle = 2 * np.pi * value[:, None] / np.array(PERIODS)
    columns = np.concatenate([value[:, None], np.cos(angle), np.sin(angle)], axis=1)
    spread = columns.std(axis=0)
    kept = spread > 1e-9
    return (columns[:, kept] - columns[:, kept].mean(axis=0)) / spread[kept]


@dataclass(frozen=True)
class Reading:
    """One number's code, as it is to be read from activations of chosen rows, with its permutations.

    Args:
        rows: which rows, [used].
        targets: the code, then `n_null` of it with values permuted over rows, [used code·(1 + n_null)].
        n_code: columns of one code.
        fold: the fold in which each row is not trained on, [used].
        inner: a second division, by which penalties are chosen among the rows trained on, [used].
        group: prompts of equal inputs as one group, from 0, [used].
        times: how often each group is drawn, once and in each resample, [1 + resample group].
        reason: why nothing is read; empty where it is.
    """

    rows: Ints
    targets: Floats
    n_code: int
    fold: Ints
    inner: Ints
    group: Ints
    times: Floats
    reason: str = ""

    @classmethod
    def of(
        cls, rows: Rows, inputs: Ints, at: Ints, number: str, n_null: int, rng: np.random.Generator
    ) -> Reading:
        """The code of a number on some rows.

        Args:
            rows: the rows that are read.
            inputs: prompts of equal inputs as one group, [used].
            at: where the rows stand among those that are recorded, [used].
            number: `x` or `y`.
            n_null: permutations.
            rng: deals, permutes and resamples.
        """
        names, group = np.unique(inputs, return_inverse=True)
        n = len(names)
        own = number_code(getattr(rows, number)) if len(at) else np.empty((0, 0))
        reason = "" if own.shape[1] else f"{number} does not vary"
        if len(at) < FEWEST_ROWS or n < FEWEST_INPUTS:
            reason = f"{len(at)} rows of {n} draws of inputs, {FEWEST_ROWS} of {FEWEST_INPUTS} needed"
        if reason:
            return cls(at, own, 0, group, group, group, np.empty((0, n)), reason)
        fold, inner = (dealt_inputs(rows.task, inputs, n_folds, rng) for n_folds in (N_FOLDS, 2))
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES)
        times = np.concatenate([np.ones((1, n)), drawn.astype(np.float64)])
        targets = np.concatenate([own, *(rng.permutation(own) for _ in range(n_null))], axis=1)
        return cls(at, targets, own.shape[1], fold, inner, group, times)

    def figures(self, acts: Floats) -> dict[str, Any]:
        """R² of the code from activations [row d_model] on prompts not trained on, its interval and null."""
        if self.reason:
            return undefined(self.reason, len(self.rows))
        r2 = held_out_r2(self._predicted(acts[self.rows]), self.targets, self.group, self.times)
        by_code = r2.reshape(len(r2), -1, self.n_code).mean(axis=2)
        null = float(by_code[0, 1:].mean()) if by_code.shape[1] > 1 else np.nan
        return figure(float(by_code[0, 0]), by_code[1:, 0], null, len(self.rows))

    def _predicted(self, acts: Floats) -> Floats:
        """Every target of every row, by a ridge regression of the other folds, [used column].

        The penalty of a code, own or permuted, is the one that does best between the two inner divisions of
        the rows trained on, so that no group of inputs is on both sides there either.
        """
        found, n_columns = np.empty_like(self.targets), self.targets.shape[1]
        for fold in np.unique(self.fold):
            train = self.fold != fold
            missed = np.zeros((len(_PENALTIES), n_columns))
            for side in (0, 1):
                fitted, checked = train & (self.inner == side), train & (self.inner != side)
                if fitted.any() and checked.any():
                    fit, wanted = Ridge.of(acts[fitted], self.targets[fitted]), self.targets[checked]
                    for i, penalty in enumerate(_PENALTIES):
                        guessed = fit.predicted(acts[checked], np.full(n_columns, penalty))
                        missed[i] += ((guessed - wanted) ** 2).sum(axis=0)
            best = missed.reshape(len(_PENALTIES), -1, self.n_code).sum(axis=2).argmin(axis=0)
            penalty = np.repeat(np.array(_PENALTIES)[best], self.n_code)
            found[~train] = Ridge.of(acts[train], self.targets[train]).predicted(acts[~train], penalty)
        return found


@dataclass(frozen=True)
class Ridge:
    """Ridge regressions of one set of columns, scaled on the training rows, for any penalty.

    Args:
        scaler: of the columns.
        right: right singular vectors of the scaled columns, [component d_model].
        size: singular values, [component].
        along: targets along the left singular vectors, [component target].
        mean: of each target, [target].
    """

    scaler: StandardScaler
    right: Floats
    size: Floats
    along: Floats
    mean: Floats

    @classmethod
    def of(cls, acts: Floats, targets: Floats) -> Ridge:
        """Fitted on activations [row d_model] and targets [row target]."""
        scaler = StandardScaler().fit(acts)
        left, size, right = np.linalg.svd(np.asarray(scaler.transform(acts)), full_matrices=False)
        mean = targets.mean(axis=0)
        return cls(scaler, right, size, left.T @ (targets - mean), mean)

    def predicted(self, acts: Floats, penalty: Floats) -> Floats:
        """Targets of activations [row d_model] with a penalty each [target], as [row target]."""
        shrunk = self.size[:, None] / (self.size[:, None] ** 2 + penalty) * self.along
        return self.mean + (np.asarray(self.scaler.transform(acts)) @ self.right.T) @ shrunk


def held_out_r2(predicted: Floats, targets: Floats, group: Ints, times: Floats) -> Floats:
    """R² = 1 − SSE / SST of each column, groups counted `times`; SST around the counted rows' mean.

    Args:
        predicted: [row column].
        targets: [row column].
        group: group of each row, from 0, [row].
        times: how often each group counts, [weighting group].

    Returns:
        [weighting column].
    """
    order = np.argsort(group, kind="stable")
    edges = np.searchsorted(group[order], np.arange(times.shape[1]))
    parts = ((targets - predicted) ** 2, targets, targets**2, np.ones((len(group), 1)))
    missed, total, square, count = (times @ np.add.reduceat(part[order], edges, axis=0) for part in parts)
    return 1 - missed / (square - total**2 / count)
