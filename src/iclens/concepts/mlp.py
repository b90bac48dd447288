"""What MLPs write at labels: creation, operands, subspaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_array
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from iclens.concepts.auroc import auroc, order_entries, resampled_clusters, sides
from iclens.concepts.language import FIRST_EXAMPLE, Concept, Rows, TaskGrid
from iclens.concepts.probes import PENALTIES, deal_tasks, spread_prompts, within_strata
from iclens.concepts.reading import (
    LAB,
    Reading,
    counted_examples,
    dealt_inputs,
    figure,
    input_groups,
    layer_groups,
    positions,
    undefined,
)
from iclens.core import Site
from iclens.model.attention import Knockout, record_knockout
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, record
from iclens.prompts.build import PromptSet
from iclens.schemas import CREATED, IN_ATTENTION, CreationTable, OperandTable
from iclens.table import Floats, Ints

SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
END, NO_MLP, NO_ATTENTION = "end", "end, MLP ablated", "end, attention ablated"
SOURCES = (*SITES, END, NO_MLP, NO_ATTENTION)
ABSENT, PRESENT = 0.6, 0.85
"""AUROCs below the first say that a concept is not there, those from the second on that it is."""
FEWEST_PROMPTS = 5
"""Prompts with positives, and with negatives, that each side of the grid must have."""
BEFORE = "in the MLP's output, there before"
NOWHERE = "absent"
UNDECIDED, NOT_MEASURED = "undecided", "not measured"


def creation(
    model: LanguageModel, prompts: PromptSet, rows: Rows, concepts: Sequence[Concept], grid: TaskGrid,
    *, layers: Sequence[int], seed: int, batch: int = 128, first_example: int = FIRST_EXAMPLE,
    n_resamples: int = 200, max_rows: int = 4000,
) -> CreationTable:  # fmt: skip
    """How well concepts can be read at `lab` around each part of a block, and at the end without that part.

    Args:
        model: the model; "end" is its last loaded block.
        prompts: T-arm prompts of the grid's tasks, joined.
        rows: of these prompts at `lab`, [prompt·example].
        concepts: what is read.
        grid: which tasks train probes, and on which they are read.
        layers: blocks.
        seed: of the choice of prompts, the folds and the prompt bootstrap.
        batch: prompts per forward pass.
        first_example: rows count from this example on, examples.
        n_resamples: resamples of held-out prompts, the same at every source and layer.
        max_rows: greatest number of rows used, by whole prompts.

    Returns:
        Eight rows per concept and layer, one for each of `SOURCES`; NaN with a reason where too little is
            there.

    Raises:
        TableError: when `rows` are not those of `prompts`, or no example is left.
        SiteError: for a layer that the model does not have.
    """
    examples = counted_examples(prompts, rows, first_example)
    choosing, drawing = np.random.default_rng(seed).spawn(2)
    chosen = chosen_prompts(prompts, rows, grid, examples, max_rows, choosing)
    used = prompts.select(chosen)
    kept = rows.take((rows.example >= first_example) & np.isin(rows.prompt, chosen))
    asked = [Asked.of(one, kept, grid, n_resamples, drawing) for one in concepts]
    end = Site(model.n_blocks - 1, "resid_post")
    where = positions(used, examples)
    last = record(model, used.tokens, [end], where, batch=batch)[end].reshape(len(kept), -1)
    ends = [one.decided(one.trained(last), last) for one in asked]
    found: list[dict[str, Any]] = []
    for layer, sites in _recorded(model, used, layers, where, batch):
        acts = sites | {
            source: _ablated(model, used, Site(layer, hook), sites[hook], end, where, batch)
            for source, hook in ((NO_MLP, "mlp_out"), (NO_ATTENTION, "attn_out"))
        }
        for one, at_end in zip(asked, ends, strict=True):
            if one.reason:
                found += one.unmeasured(layer)
                continue
            decided = {name: one.decided(one.trained(held), held) for name, held in acts.items()}
            found += one.figures(layer, decided | {END: at_end})
    order = {one.name: i for i, one in enumerate(concepts)}
    found.sort(key=lambda row: order[row["concept"]])
    return CreationTable({key: [row[key] for row in found] for key in CreationTable.COLUMNS})


def chosen_prompts(
    prompts: PromptSet, rows: Rows, grid: TaskGrid, examples: Sequence[int], max_rows: int,
    rng: np.random.Generator,
) -> Ints:  # fmt: skip
    """Prompts that are used, ascending [chosen]: evenly over tasks, and no inputs on both sides of the grid.

    Prompts of several tasks may show the same inputs (`input_groups`). Of those that stand on both sides,
    half the groups serve discovery tasks and the other half held-out tasks.

    Args:
        prompts: prompts of the grid's tasks.
        rows: theirs.
        grid: the two sides.
        examples: those that give a row.
        max_rows: greatest number of rows.
        rng: divides the groups and draws the prompts.
    """
    inputs, discovery = input_groups(prompts), np.isin(prompts.task, grid.discovery)
    both = rng.permutation(np.intersect1d(inputs[discovery], inputs[~discovery]))
    half = len(both) // 2
    gone = np.where(discovery, np.isin(inputs, both[:half]), np.isin(inputs, both[half:]))
    kept = rows.take(~gone[rows.prompt] & np.isin(rows.example, list(examples)))
    return np.unique(kept.prompt[spread_prompts(kept.task, kept.prompt, max_rows, rng)])


def _recorded(
    model: LanguageModel, prompts: PromptSet, layers: Sequence[int], where: Ints, batch: int
) -> Iterator[tuple[int, dict[str, Floats]]]:
    """Each layer's sites at `lab`, hook → [row d_model]; several layers from one pass."""
    n_rows = prompts.n_prompts * len(where)
    for some in layer_groups(layers, len(SITES) * n_rows * model.d_model):
        sites = [Site(layer, hook) for layer in some for hook in SITES]
        held = record(model, prompts.tokens, sites, where, batch=batch)
        for layer in some:
            yield layer, {hook: held.pop(Site(layer, hook)).reshape(n_rows, -1) for hook in SITES}


def _ablated(
    model: LanguageModel, prompts: PromptSet, site: Site, acts: Floats, end: Site, where: Ints, batch: int
) -> Floats:
    """The end at `lab` with `site` set to the mean of `acts` [row d_model] at every `lab`, [row d_model]."""
    edit = Edit.at(site, "mean", LAB, range(prompts.n_examples), acts.mean(axis=0)[None, None])
    held = record(model, prompts.tokens, [end], where, edits=[edit], batch=batch)
    return held[end].reshape(len(acts), -1)


@dataclass(frozen=True)
class Asked:
    """One concept on the rows that are used.

    Args:
        name: the concept's.
        train: rows of discovery tasks that it labels, of all, [trained].
        train_positive: [trained].
        train_stratum: only rows of equal stratum are compared, [trained].
        fold: 0 or 1, the half of the discovery tasks in which each row is; empty when they have no two.
        held: rows of held-out tasks that it labels, of all, [held].
        positive: [held].
        stratum: only rows of equal stratum are compared, [held].
        times: how often each row is drawn in each resample of prompts, [held resample].
        reason: why nothing is measured; empty where it is.
    """

    name: str
    train: Ints
    train_positive: NDArray[np.bool_]
    train_stratum: Ints
    fold: Ints
    held: Ints
    positive: NDArray[np.bool_]
    stratum: Ints
    times: Floats
    reason: str

    @classmethod
    def of(
        cls, concept: Concept, rows: Rows, grid: TaskGrid, n_resamples: int, rng: np.random.Generator
    ) -> Asked:
        """A concept's labels, folds of discovery tasks and resamples of held-out prompts."""
        (train, positive, stratum), (held, held_positive, held_stratum) = (
            _labelled(concept, rows, np.isin(rows.task, names)) for names in (grid.discovery, grid.held_out)
        )
        deal = deal_tasks(rows.task[train], positive, stratum, most=2, rng=rng)
        _, cluster = np.unique(rows.prompt[held], return_inverse=True)
        reason = _lack("discovery", rows.prompt[train], positive)
        reason = reason or _lack("held-out", rows.prompt[held], held_positive)
        if not reason and not np.isin(held_stratum[held_positive], held_stratum[~held_positive]).any():
            reason = "no held-out positive has a matched negative"
        times = np.empty((len(held), 0)) if reason else resampled_clusters(cluster, n_resamples, rng)
        fold = deal.fold if deal.n_folds else np.empty(0, dtype=np.int64)
        return cls(
            concept.name, train, positive, stratum, fold, held, held_positive, held_stratum, times, reason
        )

    def trained(self, acts: Floats) -> Pipeline | None:
        """The probe fitted on discovery rows of `acts` [row d_model]; None when the concept is not measured.

        Of two penalties that do equally well in validation, and without folds, the stronger one is taken.
        """
        if self.reason:
            return None
        values, reached = acts[self.train].astype(np.float64), []
        if len(self.fold):
            for penalty in PENALTIES:
                checked = [self._validated(values, penalty, self.fold == fold) for fold in (0, 1)]
                reached.append(np.nan_to_num(checked, nan=0.5).mean())
        best = int(np.argmax(reached)) if reached else 0
        return _probe(PENALTIES[best]).fit(values, self.train_positive)

    def _validated(self, values: Floats, penalty: float, held: NDArray[np.bool_]) -> float:
        """AUROC on the rows `held` of the training tasks, of a probe fitted on the others."""
        fitted = self.train_positive[~held]
        if fitted.all() or not fitted.any():
            return np.nan
        decided = _probe(penalty).fit(values[~held], fitted).decision_function(values[held])
        return float(within_strata(decided[:, None], self.train_positive[held], self.train_stratum[held])[0])

    def decided(self, probe: Pipeline | None, acts: Floats) -> Floats:
        """A probe's decision values on held-out rows of `acts` [row d_model], [held]."""
        return np.empty(0) if probe is None else probe.decision_function(acts[self.held].astype(np.float64))

    def figures(self, layer: int, decided: Mapping[str, Floats]) -> list[dict[str, Any]]:
        """Rows of the table for one layer from decision values, source → [held]."""
        values = np.round(np.stack([decided[source] for source in SOURCES], axis=1), 9)
        order = order_entries(csr_array(values), self.stratum)
        measured = auroc(order, *sides(self.positive))[:, 0]
        again = auroc(order, self.times * self.positive[:, None], self.times * ~self.positive[:, None])
        again = again[:, ~np.isnan(again).any(axis=0)]
        low, high = np.quantile(again, (0.025, 0.975), axis=1)
        attention, mlp = SOURCES.index("attn_out"), SOURCES.index("mlp_out")
        less_low, less_high = np.quantile(again[attention] - again[mlp], (0.025, 0.975))
        shared = self._named(layer) | {
            "verdict": verdict(dict(zip(SOURCES, measured.tolist(), strict=True))),
            "attention_minus_mlp": measured[attention] - measured[mlp],
            "attention_minus_mlp_low": less_low,
            "attention_minus_mlp_high": less_high,
            "larger": larger(less_low, less_high),
        }
        return [
            shared | {"source": source, "auroc": measured[i], "ci_low": low[i], "ci_high": high[i]}
            for i, source in enumerate(SOURCES)
        ]

    def unmeasured(self, layer: int) -> list[dict[str, Any]]:
        """Rows of the table for one layer where the concept cannot be measured."""
        names = ("auroc", "ci_low", "ci_high", "attention_minus_mlp", "attention_minus_mlp_low",
                 "attention_minus_mlp_high")  # fmt: skip
        shared = self._named(layer) | dict.fromkeys(names, np.nan) | {"verdict": NOT_MEASURED, "larger": ""}
        return [shared | {"source": source} for source in SOURCES]

    def _named(self, layer: int) -> dict[str, Any]:
        return {
            "concept": self.name, "layer": layer, "n_positive": int(self.positive.sum()),
            "n_negative": int((~self.positive).sum()), "reason": self.reason,
        }  # fmt: skip


def _labelled(
    concept: Concept, rows: Rows, wanted: NDArray[np.bool_]
) -> tuple[Ints, NDArray[np.bool_], Ints]:
    """The rows that a concept uses among the `wanted` [row], which are positive, and their strata."""
    chosen = np.flatnonzero(wanted)
    label = concept.contrast.label(rows.take(chosen))
    used = chosen[label != 0]
    return used, label[label != 0] > 0, concept.stratum(rows.take(used))


def _lack(side: str, prompt: Ints, positive: NDArray[np.bool_]) -> str:
    for what, of in (("positives", positive), ("negatives", ~positive)):
        n_prompts = len(np.unique(prompt[of]))
        if n_prompts < FEWEST_PROMPTS:
            return f"{what} in {n_prompts} {side} prompts, {FEWEST_PROMPTS} needed"
    return ""


def _probe(penalty: float) -> Pipeline:
    """An L2 logistic regression of scaled columns with balanced classes and inverse strength `penalty`."""
    return make_pipeline(
        StandardScaler(), LogisticRegression(C=penalty, class_weight="balanced", max_iter=5000)
    )


def verdict(measured: Mapping[str, float]) -> str:
    """What the AUROCs of one block say of where a concept at `lab` comes from; the first that holds.

    Args:
        measured: AUROC of each of `SOURCES`.

    Returns:
        "in attention's output, not before": in attn_out and not in resid_pre. "in the MLP's output, there
        before": in it and in resid_mid. "created by the MLP": not in resid_mid, in mlp_out, and at the end
        gone with the MLP ablated and still there with attention ablated. "absent": in no site of the block.
        Else "undecided", with the clause that failed. In: `PRESENT` or more. Not in, gone: below `ABSENT`.
    """
    pre, attention, mid, mlp = (measured[name] for name in SITES[:4])
    without_mlp, without_attention = measured[NO_MLP], measured[NO_ATTENTION]
    if attention >= PRESENT and pre < ABSENT:
        return IN_ATTENTION
    if mlp >= PRESENT and mid >= ABSENT:
        return BEFORE
    if mlp >= PRESENT and without_mlp < ABSENT and without_attention >= PRESENT:
        return CREATED
    if all(measured[name] < ABSENT for name in SITES):
        return NOWHERE
    if mlp >= PRESENT and without_mlp >= ABSENT:
        return f"{UNDECIDED}: {without_mlp:.2f} at the end with the MLP ablated, not below {ABSENT}"
    if mlp >= PRESENT:
        return f"{UNDECIDED}: {without_attention:.2f} at the end with attention ablated, below {PRESENT}"
    if attention >= PRESENT:
        return f"{UNDECIDED}: in attn_out, but {pre:.2f} in resid_pre, not below {ABSENT}"
    return f"{UNDECIDED}: {mlp:.2f} in mlp_out and {attention:.2f} in attn_out, both below {PRESENT}"


def larger(low: float, high: float) -> str:
    """Which part's AUROC is larger, by the interval of attention's minus the MLP's."""
    return "attention" if low > 0 else "MLP" if high < 0 else "neither"


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


UNRELATED = ("parity", "random")
"""Families whose y is drawn without regard to x."""
CUTS = {"": (), ", lab→x cut": ("x",), ", lab→example cut": ("x", "comma", "pre")}
"""What `lab` does not see of its own example. The last leaves no way for x to reach it."""
X_READ, Y_READ, APART = "x decodable", "y decodable", " (y unrelated)"
MEASURES = (
    *OVERLAPS, *(X_READ + cut for cut in CUTS), Y_READ, *(X_READ + cut + APART for cut in CUTS),
)  # fmt: skip
MOST_ROWS = 4000
"""Rows of all tasks, at most, from which numbers are read, by whole prompts."""


def operands(
    model: LanguageModel, prompts: PromptSet, rows: Rows, *, layers: Sequence[int], seed: int, rank: int = 4,
    n_null: int = 20, batch: int = 128, first_example: int = FIRST_EXAMPLE,
) -> OperandTable:  # fmt: skip
    """Where x and y stand in what each block's MLP reads at `lab`, and what x is left when it is not seen.

    Args:
        model: the model; only blocks up to the deepest layer are run.
        prompts: T-arm prompts of the grid's tasks, joined.
        rows: of these prompts at `lab`, [prompt·example].
        layers: blocks.
        seed: of the halves, folds, permutations and the prompt bootstrap.
        rank: dimensions of a subspace.
        n_null: permutations of the values over rows.
        batch: prompts per forward pass.
        first_example: rows count from this example on, examples.

    Returns:
        Ten rows per layer, one for each of `MEASURES`; undefined figures are NaN with a reason.

    Raises:
        TableError: when `rows` are not those of `prompts`, or no example is left.
        SiteError: for a layer that the model does not have.
    """
    examples = counted_examples(prompts, rows, first_example)
    kept = rows.take(rows.example >= first_example)
    inputs = input_groups(prompts)[kept.prompt]
    numbers = np.flatnonzero(~np.isnan(kept.x) & ~np.isnan(kept.y))
    splitting, *reading = np.random.default_rng(seed).spawn(4)
    shared = Subspaces(kept.take(numbers), inputs[numbers], rank, n_null, splitting)
    apart = numbers[np.isin(kept.family[numbers], UNRELATED)]
    wide = numbers[spread_prompts(kept.task[numbers], kept.prompt[numbers], MOST_ROWS, splitting)]
    few = np.unique(kept.prompt[np.concatenate([wide, apart])])
    among = np.flatnonzero(np.isin(kept.prompt, few))
    of_x, of_y, of_x_apart = (
        Reading.of(kept.take(at), inputs[at], np.searchsorted(among, at), number, n_null, rng)
        for at, number, rng in zip((wide, wide, apart), ("x", "y", "x"), reading, strict=True)
    )
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for some in layer_groups(layers, len(kept) * model.d_model):
        sites = [Site(layer, "resid_mid") for layer in some]
        where = positions(prompts, examples)
        for cut, roles in CUTS.items():
            tokens = prompts.tokens[few] if roles else prompts.tokens
            removed = [Knockout.within(LAB, roles, examples, range(max(some) + 1))] if roles else []
            held = record_knockout(model, tokens, sites, where, removed, batch=batch)
            for site in sites:
                acts = held.pop(site).reshape(len(tokens) * len(examples), -1).astype(np.float64)
                if not roles:
                    figures = shared.figures(acts[numbers])
                    found |= {(site.layer, name): row for name, row in figures.items()}
                    acts = acts[among]
                    found[site.layer, Y_READ] = of_y.figures(acts)
                found[site.layer, X_READ + cut] = of_x.figures(acts)
                found[site.layer, X_READ + cut + APART] = of_x_apart.figures(acts)
    table = [{"layer": layer, "measure": name} | found[layer, name] for layer in layers for name in MEASURES]
    return OperandTable({key: [row[key] for row in table] for key in OperandTable.COLUMNS})
