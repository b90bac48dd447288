"""Folds of whole tasks: what a probe is trained on and what it is tested on.

1. `spread_prompts` keeps at most so many rows, by whole prompts and evenly over tasks. 2. `deal_tasks` deals
the tasks to folds at random, each fold with a task of either side, and then exchanges tasks of one side
between folds while that raises the number of matched pairs. It sees labels and strata, never an activation.
3. `splits` holds out each fold in turn, with two inner folds of the training tasks for choosing the penalty.
4. `permuted_labels` gives the labels of whole prompts to other prompts, for a null.

A fold needs both classes, because AUROC is measured within folds. Pooling the predictions of single held-out
tasks instead is biased below .5 when tasks are pure: without a positive task the training rows hold fewer
positives, so whatever the probe learns of the base rate ranks that very task low.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from iclens.tables.arrays import Floats, Ints, Strings

_EXCHANGES = 300
"""Exchanges of two tasks that are tried after a deal."""


@dataclass(frozen=True)
class Deal:
    """The fold in which each row is held out.

    Args:
        fold: from 0, [row]; all 0 when there is a `reason`.
        n_folds: 0 when there is a `reason`.
        reason: why the tasks cannot be dealt to two folds; empty when they can.
    """

    fold: Ints
    n_folds: int
    reason: str = ""


@dataclass(frozen=True)
class Split:
    """One held-out fold.

    Args:
        train: training rows.
        held: held-out rows, of no training task.
        inner: (fitted, checked) rows of each inner fold, both of training tasks; empty when the training
            tasks cannot be dealt to two folds.
    """

    train: Ints
    held: Ints
    inner: tuple[tuple[Ints, Ints], ...]


def spread_prompts(task: Strings, prompt: Ints, most: int, rng: np.random.Generator) -> Ints:
    """Rows of whole prompts drawn at random, a prompt of each task per round, ascending.

    Args:
        task: task of each row, [row].
        prompt: prompt of each row, [row].
        most: greatest number of rows.
        rng: draws the prompts.

    Returns:
        Indices of the kept rows; all rows when they are at most `most`.
    """
    if len(prompt) <= most:
        return np.arange(len(prompt))
    names, first, of_row, size = np.unique(prompt, return_index=True, return_inverse=True, return_counts=True)
    drawn = rng.permutation(len(names))
    turn = np.zeros(len(names), dtype=np.int64)
    for name in np.unique(task):
        own = drawn[task[first[drawn]] == name]
        turn[own] = np.arange(len(own))
    drawn = drawn[np.argsort(turn[drawn], kind="stable")]
    kept = np.zeros(len(names), dtype=bool)
    kept[drawn[size[drawn].cumsum() <= most]] = True
    return np.flatnonzero(kept[of_row])


def deal_tasks(
    task: Strings, positive: NDArray[np.bool_], stratum: Ints, *, most: int, rng: np.random.Generator
) -> Deal:
    """Whole tasks dealt to min(tasks of the positive side, tasks of the negative side, `most`) folds.

    A task is on the positive side when most of its rows are positive. When every task has rows of both
    classes, there is one side, and the folds are min(tasks, `most`).

    Args:
        task: task of each row, [row].
        positive: [row].
        stratum: only rows of equal stratum are compared, [row].
        most: greatest number of folds.
        rng: deals the tasks and proposes exchanges.
    """
    names, of_row = np.unique(task, return_inverse=True)
    _, level = np.unique(stratum, return_inverse=True)
    count = np.zeros((2, len(names), int(level.max(initial=0)) + 1))
    np.add.at(count, (positive.astype(np.int64), of_row, level), 1.0)
    negatives, positives = count.sum(axis=2)
    if len(names) and (np.minimum(negatives, positives) > 0).all():
        sides = [np.arange(len(names))]
        lack = "" if len(names) > 1 else "rows in 1 task, 2 needed"
    else:
        sides = [np.flatnonzero(positives > negatives), np.flatnonzero(positives <= negatives)]
        lack = _lack(len(sides[0]), len(sides[1]))
    if lack or most < 2:
        return Deal(np.zeros(len(task), dtype=np.int64), 0, lack or f"at most {most} folds, 2 needed")
    n_folds = min(most, *(len(side) for side in sides))
    fold = np.zeros(len(names), dtype=np.int64)
    for side, forward in zip(sides, (True, False), strict=False):
        turn = np.arange(len(side)) % n_folds
        fold[rng.permutation(side)] = turn if forward else n_folds - 1 - turn
    return Deal(_exchanged(fold, sides, count, n_folds, rng)[of_row], n_folds)


def _lack(n_positive: int, n_negative: int) -> str:
    for what, n in (("positives", n_positive), ("negatives", n_negative)):
        if n < 2:
            return f"{what} in {n} task{'' if n == 1 else 's'}, 2 needed"
    return ""


def _exchanged(
    fold: Ints, sides: list[NDArray[np.int64]], count: Floats, n_folds: int, rng: np.random.Generator
) -> Ints:
    """Fold of each task after exchanges within a side that raise Σ_folds log(1 + matched pairs)."""
    best, spread = fold, _evenness(fold, count, n_folds)
    wide = [side for side in sides if len(side) > 1]
    for _ in range(_EXCHANGES):
        one, other = rng.choice(wide[int(rng.integers(len(wide)))], size=2, replace=False)
        if best[one] == best[other]:
            continue
        tried = best.copy()
        tried[[one, other]] = best[[other, one]]
        found = _evenness(tried, count, n_folds)
        if found > spread:
            best, spread = tried, found
    return best


def _evenness(fold: Ints, count: Floats, n_folds: int) -> float:
    member = (fold == np.arange(n_folds)[:, None]).astype(np.float64)
    pairs = ((member @ count[0]) * (member @ count[1])).sum(axis=1)
    return float(np.log1p(pairs).sum())


def splits(
    deal: Deal, task: Strings, positive: NDArray[np.bool_], stratum: Ints, rng: np.random.Generator
) -> list[Split]:
    """Each fold held out in turn, with two inner folds over whole training tasks.

    Args:
        deal: the fold of each row.
        task: task of each row, [row].
        positive: [row].
        stratum: only rows of equal stratum are compared, [row].
        rng: deals the inner folds.
    """
    found = []
    for fold in range(deal.n_folds):
        train, held = np.flatnonzero(deal.fold != fold), np.flatnonzero(deal.fold == fold)
        inside = deal_tasks(task[train], positive[train], stratum[train], most=2, rng=rng)
        inner = tuple((train[inside.fold != i], train[inside.fold == i]) for i in range(inside.n_folds))
        found.append(Split(train, held, inner))
    return found


def permuted_labels(positive: NDArray[np.bool_], prompt: Ints, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Each prompt with the labels of another prompt drawn without replacement, in order, [row].

    Args:
        positive: [row].
        prompt: prompt of each row, [row].
        rng: draws the permutation.

    Returns:
        [row]; a prompt with more rows than its donor repeats the donor's labels.
    """
    by_prompt = np.argsort(prompt, kind="stable")
    edges = [0, *(np.flatnonzero(np.diff(prompt[by_prompt])) + 1).tolist(), len(prompt)]
    blocks = [by_prompt[start:stop] for start, stop in pairwise(edges)]
    out = np.empty_like(positive)
    for block, donor in zip(blocks, rng.permutation(len(blocks)), strict=True):
        out[block] = np.resize(positive[blocks[donor]], len(block))
    return out
