"""Linear probes of concepts, trained and read on different tasks, beside a dense probe and random labels.

1. Rows of whole prompts are drawn evenly over tasks. 2. Whole tasks are dealt to folds. 3. In each fold,
features, scales and the penalty are chosen on the training tasks, the penalty by two inner folds of whole
tasks. 4. The matched AUROC is taken within each held-out fold and averaged over folds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array, issparse
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from iclens.concepts.auroc import Matrix, Split, column_moments, matched_auroc
from iclens.concepts.language import Concept, Rows
from iclens.core import ConfigError, TableError
from iclens.schemas import ProbeTable
from iclens.stats import half_width
from iclens.table import Floats, Ints, Strings

# ---------------------------------------------------------------------------------------------------- folds

_EXCHANGES = 300  # exchanges of two tasks that are tried after a deal


@dataclass(frozen=True)
class Deal:
    """The fold in which each row is held out."""

    fold: Ints  # from 0, [row]; all 0 when there is a reason
    n_folds: int  # 0 when there is a reason
    reason: str = ""  # why the tasks cannot be dealt to two folds


@dataclass(frozen=True)
class Fold:
    """One held-out fold: training rows, and held-out rows, of no training task."""

    train: Ints
    held: Ints
    # (fitted, checked) rows of each inner fold, both of training tasks; empty when these cannot be dealt
    inner: tuple[tuple[Ints, Ints], ...]


def spread_prompts(task: Strings, prompt: Ints, most: int, rng: np.random.Generator) -> Ints:
    """`most` rows of whole prompts drawn at random, a prompt of each task per round, ascending."""
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
    classes, there is one side, and the folds are min(tasks, `most`). After the deal, exchanges of two tasks
    of a side that raise Σ_folds log(1 + matched pairs) are kept. `task`, `positive` and `stratum` are [row].
    """
    names, of_row = np.unique(task, return_inverse=True)
    _, level = np.unique(stratum, return_inverse=True)
    count = np.zeros((2, len(names), int(level.max(initial=0)) + 1))  # [label task stratum]
    np.add.at(count, (positive.astype(np.int64), of_row, level), 1.0)
    negatives, positives = count.sum(axis=2)
    if len(names) and (np.minimum(negatives, positives) > 0).all():
        sides = {"rows": np.arange(len(names))}
    else:
        mostly = positives > negatives
        sides = {"positives": np.flatnonzero(mostly), "negatives": np.flatnonzero(~mostly)}
    for what, side in sides.items():
        if len(side) < 2:
            reason = f"{what} in {len(side)} task{'' if len(side) == 1 else 's'}, 2 needed"
            return Deal(np.zeros(len(task), dtype=np.int64), 0, reason)
    if most < 2:
        return Deal(np.zeros(len(task), dtype=np.int64), 0, f"at most {most} folds, 2 needed")
    n_folds = min(most, *(len(side) for side in sides.values()))
    fold = np.zeros(len(names), dtype=np.int64)  # of each task
    for side, forward in zip(sides.values(), (True, False), strict=False):
        turn = np.arange(len(side)) % n_folds
        fold[rng.permutation(side)] = turn if forward else n_folds - 1 - turn

    def evenness(fold: Ints) -> float:
        member = (fold == np.arange(n_folds)[:, None]).astype(np.float64)
        pairs = ((member @ count[0]) * (member @ count[1])).sum(axis=1)  # of each fold
        return float(np.log1p(pairs).sum())

    best = evenness(fold)
    for _ in range(_EXCHANGES):
        side = list(sides.values())[int(rng.integers(len(sides)))]
        one, other = rng.choice(side, size=2, replace=False)
        if fold[one] == fold[other]:
            continue
        tried = fold.copy()
        tried[[one, other]] = fold[[other, one]]
        if (even := evenness(tried)) > best:
            fold, best = tried, even
    return Deal(fold[of_row], n_folds)


def splits(
    deal: Deal, task: Strings, positive: NDArray[np.bool_], stratum: Ints, rng: np.random.Generator
) -> list[Fold]:
    """Each fold held out in turn, with two inner folds over whole training tasks, which `rng` deals."""
    held_out = []
    for fold in range(deal.n_folds):
        train, held = np.flatnonzero(deal.fold != fold), np.flatnonzero(deal.fold == fold)
        inside = deal_tasks(task[train], positive[train], stratum[train], most=2, rng=rng)
        inner = tuple((train[inside.fold != i], train[inside.fold == i]) for i in range(inside.n_folds))
        held_out.append(Fold(train, held, inner))
    return held_out


def permuted_labels(positive: NDArray[np.bool_], prompt: Ints, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Each prompt with the labels of another prompt drawn without replacement, in order, [row].

    A prompt with more rows than its donor repeats the donor's labels. `prompt` is that of each row, [row].
    """
    by_prompt = np.argsort(prompt, kind="stable")
    edges = [0, *(np.flatnonzero(np.diff(prompt[by_prompt])) + 1).tolist(), len(prompt)]
    blocks = [by_prompt[start:stop] for start, stop in pairwise(edges)]
    out = np.empty_like(positive)
    for block, donor in zip(blocks, rng.permutation(len(blocks)), strict=True):
        out[block] = np.resize(positive[blocks[donor]], len(block))
    return out


# --------------------------------------------------------------------------------------------------- probes

View = tuple[Matrix, Matrix]
"""What one probe sees of the training rows and of the tested rows, each [row column]."""

DENSE = "activation"
"""Name of the representation that is read whole; every other one is read from few features."""
ALL = -1
PENALTIES = (0.01, 1.0)
"""Inverse L2 strengths C to choose from, the strongest penalty first: it wins ties."""
FEWEST_ACTIVE = 10
"""Training rows on which a sparse feature must be active to be used."""
_MEASURED = ("auroc", "ci_low", "ci_high", "minus_dense", "minus_dense_low", "minus_dense_high")


@dataclass(frozen=True)
class _Probe:
    """One row of figures for each of `ks`, all read from one `matrix`.

    `views` makes what each k sees from training rows, their labels and tested rows; `decide` gives the
    decision values on the tested rows for one view, and has one penalty when there is nothing to choose.
    """

    name: str
    matrix: Matrix
    ks: tuple[int, ...]
    views: Callable[[Matrix, NDArray[np.bool_], Matrix, tuple[int, ...]], Iterator[View]]
    decide: Callable[[View, NDArray[np.bool_], float], Floats]
    penalties: tuple[float, ...] = PENALTIES
    permuted: bool = False


def probe(
    representations: Mapping[str, Matrix], concept: Concept, rows: Rows,
    *, site: str, role: str, ks: Sequence[int] = (1, 2, 4, 8, 16, 32), seed: int, max_rows: int = 2000,
    max_folds: int = 12,
) -> ProbeTable:  # fmt: skip
    """Held-out AUROC of L2 logistic probes of one concept, per representation and number of features.

        AUROC = mean over folds f of P(d₊ > d₋ | f, same stratum),   d the decision values of held-out rows

    "activation" is read by PCA of each k ("PCA"), whole ("dense"), along the difference of the class means
    ("difference of means", no fit), and whole with labels of other prompts ("random labels"): these are
    permuted among the training prompts and, apart from them, among the held-out prompts, so that any probe
    has an expected AUROC of .5. Every other representation is read from the k features whose correlation
    with the label is largest in size on the training rows, and from all of them.

    Args:
        representations: name → values of every row, [row feature].
        concept: labels the rows and gives their stratum.
        rows: every row of the role.
        ks: numbers of features or components.
        seed: of the choice of prompts, the folds and the permuted labels.

    Returns:
        A row per representation and k; NaN with a reason when fewer than two folds can be measured.
    """
    if any(k < 1 for k in ks):
        raise ConfigError(f"ks {list(ks)}", "a probe needs a feature", "Give whole numbers of 1 or more.")
    for name, values in representations.items():
        n_rows, _ = cast("tuple[int, int]", values.shape)
        what = f"representation '{name}'"
        if n_rows != len(rows):
            remedy = "Give `values` one row for each of `rows`."
            raise TableError(what, f"{n_rows} rows, not {len(rows)}", remedy)
        if not np.isfinite(values.data if isinstance(values, csr_array) else values).all():
            raise TableError(
                what, "holds NaN or infinity", "Read the model in float32 (model.dtype in a study)."
            )
    dealing, inner, permuting = np.random.default_rng(seed).spawn(3)
    label = concept.contrast.label(rows)
    used = np.flatnonzero(label != 0)
    used = used[spread_prompts(rows.task[used], rows.prompt[used], max_rows, dealing)]
    kept = rows.take(used)
    about = Split(used, kept, label[used] > 0, concept.stratum(kept))
    deal = deal_tasks(kept.task, about.positive, about.stratum, most=max_folds, rng=dealing)
    folds = splits(deal, kept.task, about.positive, about.stratum, inner)
    read = {name: cast("Matrix", values[used].astype(np.float64)) for name, values in representations.items()}
    measured: list[tuple[_Probe, int, Floats]] = []
    for each in _probes(read, tuple(ks), seed):
        aurocs = _fold_aurocs(each, about, folds, permuting) if folds else np.empty((0, len(each.ks)))
        measured += [(each, k, aurocs[:, i]) for i, k in enumerate(each.ks)]
    dense = next((aurocs for each, _, aurocs in measured if each.name == "dense"), None)
    names = {"site": site, "role": role, "concept": concept.name}
    names |= {"n_rows": len(used), "n_tasks": len(np.unique(kept.task))}
    return ProbeTable.from_rows(
        names | _figures(each, k, aurocs, dense, deal.reason) for each, k, aurocs in measured
    )


def _probes(representations: Mapping[str, Matrix], ks: tuple[int, ...], seed: int) -> list[_Probe]:
    probes = [
        _Probe(name, values, (*ks, ALL), _few_features, logistic)
        for name, values in representations.items()
        if name != DENSE
    ]
    if DENSE in representations:
        values, whole = _dense(representations[DENSE]), (ALL,)
        if ks:
            probes.append(_Probe("PCA", values, ks, _Components(seed), logistic))
        probes += [
            _Probe("dense", values, whole, _whole, logistic),
            _Probe("difference of means", values, whole, _whole, _along_means, PENALTIES[:1]),
            _Probe("random labels", values, whole, _whole, logistic, permuted=True),
        ]
    return probes


def relevance(values: Matrix, positive: NDArray[np.bool_]) -> Floats:
    """Squared correlation of each feature [row feature] with the label, r² = F / (F + n − 2).

    NaN for a feature that is constant, or sparse and active on few rows (`FEWEST_ACTIVE`), and for every
    feature where all rows have one label.
    """
    lift = positive - positive.mean()
    _, spread = column_moments(values)
    live = (spread > 0) & (lift != 0).any()
    if isinstance(values, csr_array):
        live &= np.bincount(values.indices[values.data != 0], minlength=len(spread)) >= FEWEST_ACTIVE
    moved = (np.asarray(values.T @ lift) / len(positive)) ** 2
    return np.where(live, moved / np.where(live, spread * (lift**2).mean(), 1.0), np.nan)


def _few_features(
    train: Matrix, positive: NDArray[np.bool_], test: Matrix, ks: tuple[int, ...]
) -> Iterator[View]:
    """The k most relevant features, scaled; as SelectKBest → StandardScaler, with one ranking for all k."""
    relevant = relevance(train, positive)
    ranked = np.argsort(-np.nan_to_num(relevant, nan=-1.0), kind="stable")
    ranked = ranked[: int((~np.isnan(relevant)).sum())]
    fast, tested = (csc_array(part) if issparse(part) else part for part in (train, test))
    for k in ks:
        if k == ALL:
            yield scaled(cast("Matrix", fast[:, ranked]), cast("Matrix", tested[:, ranked]))
        else:
            yield scaled(_dense(fast[:, ranked[:k]]), _dense(tested[:, ranked[:k]]))


def _whole(train: Matrix, positive: NDArray[np.bool_], test: Matrix, ks: tuple[int, ...]) -> Iterator[View]:
    live = ~np.isnan(relevance(train, positive))
    yield from (scaled(train[:, live], test[:, live]) for _ in ks)


def _dense(values: Any) -> Floats:
    return values.toarray() if issparse(values) else values


def scaled(train: Matrix, test: Matrix) -> View:
    """Columns of unit spread over the training rows; sparse ones keep their zeros: the intercept centres."""
    if not cast("tuple[int, int]", train.shape)[1]:
        return train, test
    scaler = StandardScaler(with_mean=not issparse(train)).fit(train)
    return cast("View", (scaler.transform(train), scaler.transform(test)))


@dataclass(frozen=True)
class _Components:
    """The first k principal components of scaled columns; they are nested, so one PCA serves all k."""

    seed: int

    def __call__(
        self, train: Matrix, positive: NDArray[np.bool_], test: Matrix, ks: tuple[int, ...]
    ) -> Iterator[View]:
        train, test = next(_whole(train, positive, test, (ALL,)))
        most = min(max(ks, default=0), *cast("tuple[int, int]", train.shape))
        if most:
            axes = PCA(most, random_state=self.seed).fit(train)
            train, test = axes.transform(train), axes.transform(test)
        yield from ((train[:, :k], test[:, :k]) for k in ks)


def logistic(view: View, positive: NDArray[np.bool_], penalty: float) -> Floats:
    """Decision values of an L2 logistic regression with balanced classes; 0 where there is nothing to fit."""
    train, test = view
    n_tested, n_columns = cast("tuple[int, int]", test.shape)
    if not n_columns or positive.all() or not positive.any():
        return np.zeros(n_tested)
    model = LogisticRegression(C=penalty, class_weight="balanced", solver="lbfgs", max_iter=5000)
    return model.fit(train, positive).decision_function(test)


def _along_means(view: View, positive: NDArray[np.bool_], penalty: float) -> Floats:
    train, test = cast("tuple[Floats, Floats]", view)
    if positive.all() or not positive.any():
        return np.zeros(len(test))
    return test @ (train[positive].mean(axis=0) - train[~positive].mean(axis=0))


def _fold_aurocs(each: _Probe, used: Split, folds: Sequence[Fold], rng: np.random.Generator) -> Floats:
    """AUROC within each held-out fold, [fold k]; NaN in a fold without a matched pair."""
    aurocs = []
    for split in folds:
        positive = used.positive
        if each.permuted:
            positive = positive.copy()
            for part in (split.train, split.held):
                positive[part] = permuted_labels(positive[part], used.prompt[part], rng)
        best = np.zeros(len(each.ks), dtype=np.int64)  # penalty of each k
        if len(each.penalties) > 1 and split.inner:
            inside = [_aurocs(each, used, positive, *fold) for fold in split.inner]
            best = np.nan_to_num(inside, nan=0.5).mean(axis=0).argmax(axis=0)
        aurocs.append(_aurocs(each, used, positive, split.train, split.held)[best, np.arange(len(best))])
    return np.array(aurocs)


def _aurocs(each: _Probe, used: Split, positive: NDArray[np.bool_], train: Ints, test: Ints) -> Floats:
    """AUROC on `test` [row] of probes trained on `train` [row], [penalty k]."""
    fitted = positive[train]
    views = each.views(each.matrix[train], fitted, each.matrix[test], each.ks)
    values = [[each.decide(view, fitted, penalty) for penalty in each.penalties] for view in views]
    decided = np.array(values).reshape(len(each.ks) * len(each.penalties), len(test)).T
    return within_strata(decided, positive[test], used.stratum[test]).reshape(len(each.ks), -1).T


def within_strata(decided: Floats, positive: NDArray[np.bool_], stratum: Ints) -> Floats:
    """`matched_auroc` of decision values [row probe], [probe]; values that agree to nine decimals tie."""
    return matched_auroc(csr_array(np.round(decided, 9)), positive, stratum)


def _figures(each: _Probe, k: int, values: Floats, dense: Floats | None, reason: str) -> dict[str, Any]:
    """Columns of one row of the table from AUROCs within folds [fold]."""
    n_features = cast("tuple[int, int]", each.matrix.shape)[1]
    row: dict[str, Any] = {"representation": each.name, "k": k, "verdict": "", "n_folds": 0}
    row |= dict.fromkeys(_MEASURED, np.nan)
    known = values[~np.isnan(values)]
    if not reason and k > n_features:
        reason = f"only {n_features} features"
    if not reason and len(known) < 2:
        reason = f"matched pairs in {len(known)} fold{'' if len(known) == 1 else 's'}, 2 needed"
    if reason:
        return row | {"reason": reason}
    row["n_folds"] = len(known)
    row["auroc"], row["ci_low"], row["ci_high"] = np.clip(t_interval(known), 0, 1)
    reasons = [f"{len(values) - len(known)} folds without a matched pair"] if len(known) < len(values) else []
    if each.permuted or dense is None:
        reasons.append("labels permuted: not compared" if each.permuted else "no dense activation given")
    else:
        less = values - dense
        mean, low, high = t_interval(less[~np.isnan(less)])
        row |= {"minus_dense": mean, "minus_dense_low": low, "minus_dense_high": high}
        row["verdict"] = "" if each.name == "dense" else verdict(low, high)
    return row | {"reason": "; ".join(reasons)}


def t_interval(values: Floats) -> tuple[float, float, float]:
    """Mean of [fold] with its 95 % t interval, n − 1 degrees of freedom.

    Approximate: folds share training tasks, so their values are not independent, and equal values give an
    interval of no width.
    """
    mean = float(values.mean())
    reach = float(half_width(values.std(ddof=1), len(values)))
    return mean, mean - reach, mean + reach


def verdict(low: float, high: float) -> str:
    """Which reads better, from the interval of AUROC minus dense AUROC."""
    if high < 0:
        return "below dense"
    return "above dense" if low > 0 else "as dense"
