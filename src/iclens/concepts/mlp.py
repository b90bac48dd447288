"""What MLPs and attention write at labels: where a concept is created, and where operands x and y stand.

`creation` reads concepts by linear probes around each part of a block; `operands` reads the numbers x and y,
and compares the subspaces in which they stand. Both record activations at `lab`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_array
from sklearn.covariance import ledoit_wolf
from sklearn.preprocessing import StandardScaler

from iclens.concepts.auroc import (
    auroc,
    order_entries,
    resampled_auroc,
    resampled_clusters,
    sides,
    split_rows,
)
from iclens.concepts.language import FIRST_EXAMPLE, Concept, Rows, TaskGrid
from iclens.concepts.probes import PENALTIES, deal_tasks, logistic, scaled, spread_prompts, within_strata
from iclens.core import Site, TableError
from iclens.model.attention import Knockout, record_knockout
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, record
from iclens.prompts.build import PromptSet
from iclens.schemas import CREATED, IN_ATTENTION, CreationTable, OperandTable
from iclens.stats import UNDEFINED, Interval, interval, sample_and_resamples
from iclens.table import Floats, Ints, Strings

LAB = "lab"

# ----------------------------------------------------------------------------------- rows that are recorded

MOST_BYTES = 2**30  # bytes of activations that are held at a time; more are recorded in several passes


def counted_examples(prompts: PromptSet, rows: Rows, first_example: int) -> list[int]:
    """The examples from `first_example` on, or a TableError when `rows` are not those of `prompts`."""
    shape = (prompts.n_prompts, prompts.n_examples)
    if len(rows) != shape[0] * shape[1] or (rows.task.reshape(shape) != prompts.task[:, None]).any():
        what = f"{len(rows)} rows of {prompts.n_prompts} prompts"
        remedy = "Give the rows that `read_rows` makes of these prompts."
        raise TableError(what, "they are not these prompts'", remedy)
    if not 0 <= first_example < prompts.n_examples:
        remedy = f"Choose first_example from 0 to {prompts.n_examples - 1}, or build longer prompts."
        raise TableError(f"rows from example {first_example} on", f"prompts of {prompts.n_examples}", remedy)
    return list(range(first_example, prompts.n_examples))


def input_groups(prompts: PromptSet) -> Ints:
    """Which prompts show the same inputs in the same order, [prompt]: a number that they share.

    Prompts of equal seed and index do so in every task that allows the same inputs. What one of them is read
    with must not have been fitted on another: the examples before `lab` would tell it x.
    """
    return np.unique(prompts.x, axis=0, return_inverse=True)[1].reshape(-1)


def layer_groups(layers: Sequence[int], size: int) -> Iterator[list[int]]:
    """Layers that are recorded in one pass, `size` float32 each, `MOST_BYTES` together at most."""
    most = max(1, MOST_BYTES // (4 * max(size, 1)))
    for start in range(0, len(layers), most):
        yield list(layers[start : start + most])


# ------------------------------------------------------------------------------------- creation of a concept

SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
END, NO_MLP, NO_ATTENTION = "end", "end, MLP ablated", "end, attention ablated"
SOURCES = (*SITES, END, NO_MLP, NO_ATTENTION)
ABSENT, PRESENT = 0.6, 0.85
"""AUROCs below the first say that a concept is not there, those from the second on that it is."""
FEWEST_PROMPTS = 5  # prompts with positives, and with negatives, that each side of the grid must have
BEFORE = "in the MLP's output, there before"
NOWHERE = "absent"
UNDECIDED, NOT_MEASURED = "undecided", "not measured"


def creation(
    model: LanguageModel, prompts: PromptSet, rows: Rows, concepts: Sequence[Concept], grid: TaskGrid,
    *, layers: Sequence[int], seed: int, batch: int = 128, first_example: int = FIRST_EXAMPLE,
    n_resamples: int = 200, max_rows: int = 4000,
) -> CreationTable:  # fmt: skip
    """How well concepts can be read at `lab` around each part of a block, and at the end without that part.

    Eight rows per concept and layer, one for each of `SOURCES`; NaN with a reason where too little is there.
    "end" is the last loaded block.

    Args:
        prompts: T-arm prompts of the grid's tasks, joined.
        rows: of these prompts at `lab`, [prompt·example].
        n_resamples: resamples of held-out prompts, the same at every source and layer.
        max_rows: greatest number of rows used, by whole prompts.
    """
    examples = counted_examples(prompts, rows, first_example)
    choosing, drawing = np.random.default_rng(seed).spawn(2)
    chosen = chosen_prompts(prompts, rows, grid, examples, max_rows, choosing)
    used = prompts.select(chosen)
    kept = rows.take((rows.example >= first_example) & np.isin(rows.prompt, chosen))
    readers = [Reader(one, kept, grid, n_resamples, drawing) for one in concepts]
    end, where = Site(model.n_blocks - 1, "resid_post"), used.positions(LAB)[examples]
    last = record(model, used.tokens, [end], where, batch=batch)[end].reshape(len(kept), -1)
    ends = [reader.decided(last) for reader in readers]
    by_concept: list[list[dict[str, Any]]] = [[] for _ in concepts]
    for some in layer_groups(layers, len(SITES) * len(kept) * model.d_model):
        sites = [Site(layer, hook) for layer in some for hook in SITES]
        recorded = record(model, used.tokens, sites, where, batch=batch)
        for layer in some:
            acts = {hook: recorded.pop(Site(layer, hook)).reshape(len(kept), -1) for hook in SITES}
            acts |= {
                source: _ablated(model, used, Site(layer, hook), acts[hook], end, where, batch)
                for source, hook in ((NO_MLP, "mlp_out"), (NO_ATTENTION, "attn_out"))
            }
            for reader, at_end, figures in zip(readers, ends, by_concept, strict=True):
                decided = {source: reader.decided(values) for source, values in acts.items()}
                figures += reader.figures(layer, decided | {END: at_end})
    return CreationTable.from_rows(row for figures in by_concept for row in figures)


def chosen_prompts(
    prompts: PromptSet, rows: Rows, grid: TaskGrid, examples: Sequence[int], max_rows: int,
    rng: np.random.Generator,
) -> Ints:  # fmt: skip
    """Prompts that are used, ascending [chosen]: evenly over tasks, and no inputs on both sides of the grid.

    Prompts of several tasks may show the same inputs (`input_groups`). Of those that stand on both sides,
    half the groups serve discovery tasks and the other half held-out tasks.
    """
    inputs, discovery = input_groups(prompts), np.isin(prompts.task, grid.discovery)
    both = rng.permutation(np.intersect1d(inputs[discovery], inputs[~discovery]))
    half = len(both) // 2
    gone = np.where(discovery, np.isin(inputs, both[:half]), np.isin(inputs, both[half:]))
    kept = rows.take(~gone[rows.prompt] & np.isin(rows.example, list(examples)))
    return np.unique(kept.prompt[spread_prompts(kept.task, kept.prompt, max_rows, rng)])


def _ablated(
    model: LanguageModel, prompts: PromptSet, site: Site, acts: Floats, end: Site, where: Ints, batch: int
) -> Floats:
    """The end at `lab` with `site` set to the mean of `acts` [row d_model] at every `lab`, [row d_model]."""
    edit = Edit.at(
        site, "mean", LAB, range(prompts.n_examples), acts.mean(axis=0)[None, None], layout=prompts.layout
    )
    recorded = record(model, prompts.tokens, [end], where, edits=[edit], batch=batch)
    return recorded[end].reshape(len(acts), -1)


class Reader:
    """A linear probe of one concept, trained on discovery tasks and read on held-out tasks."""

    def __init__(
        self, concept: Concept, rows: Rows, grid: TaskGrid, n_resamples: int, rng: np.random.Generator
    ) -> None:
        self.name = concept.name
        self.discovery, self.held_out = (
            split_rows(rows, concept, np.isin(rows.task, names)) for names in (grid.discovery, grid.held_out)
        )
        side = self.discovery
        deal = deal_tasks(side.rows.task, side.positive, side.stratum, most=2, rng=rng)
        # 0 or 1, the half of the discovery tasks in which each row is; empty when they have no two
        self.fold = deal.fold if deal.n_folds else np.empty(0, dtype=np.int64)
        # why nothing is measured; empty where it is
        self.reason = (
            side.too_few("discovery", FEWEST_PROMPTS)
            or self.held_out.too_few("held-out", FEWEST_PROMPTS)
            or self.held_out.unmatched("held-out")
        )
        if not self.reason:  # how often each held-out row is drawn in each resample, [held resample]
            self.times = resampled_clusters(self.held_out.prompt, n_resamples, rng)

    def decided(self, acts: Floats) -> Floats:
        """Decision values on held-out rows of a probe trained on `acts` [row d_model], [held].

        Of two penalties that do equally well in validation, and without folds, the stronger one is taken.
        Empty when the concept is not measured.
        """
        if self.reason:
            return np.empty(0)
        side, values = self.discovery, acts[self.discovery.used].astype(np.float64)
        reached = []
        for penalty in PENALTIES if len(self.fold) else ():
            checked = []
            for held in (self.fold == 0, self.fold == 1):
                view = scaled(values[~held], values[held])
                decided = logistic(view, side.positive[~held], penalty)
                checked.append(within_strata(decided[:, None], side.positive[held], side.stratum[held])[0])
            reached.append(np.nan_to_num(checked, nan=0.5).mean())
        best = PENALTIES[int(np.argmax(reached)) if reached else 0]
        read = scaled(values, acts[self.held_out.used].astype(np.float64))
        return logistic(read, side.positive, best)

    def figures(self, layer: int, decided: Mapping[str, Floats]) -> list[dict[str, Any]]:
        """Rows of the table for one layer from decision values, source → [held]."""
        positive = self.held_out.positive
        shared: dict[str, Any] = {
            "concept": self.name, "layer": layer, "n_positive": int(positive.sum()),
            "n_negative": int((~positive).sum()), "reason": self.reason,
        }  # fmt: skip
        if self.reason:
            shared |= {"auroc": np.nan, "ci_low": np.nan, "ci_high": np.nan}
            shared |= UNDEFINED.columns("attention_minus_mlp") | {"verdict": NOT_MEASURED, "larger": ""}
            return [shared | {"source": source} for source in SOURCES]
        values = np.round(np.stack([decided[source] for source in SOURCES], axis=1), 9)  # [held source]
        order = order_entries(csr_array(values), self.held_out.stratum)
        measured = auroc(order, *sides(positive))[:, 0]
        again = resampled_auroc(order, positive, self.times)  # [source resample]
        low, high = interval(again.T)
        attention, mlp = SOURCES.index("attn_out"), SOURCES.index("mlp_out")
        difference = Interval(measured[attention] - measured[mlp], *interval(again[attention] - again[mlp]))
        shared |= difference.columns("attention_minus_mlp") | {
            "verdict": verdict(dict(zip(SOURCES, measured.tolist(), strict=True))),
            "larger": larger(difference.low, difference.high),
        }
        return [
            shared | {"source": source, "auroc": measured[i], "ci_low": low[i], "ci_high": high[i]}
            for i, source in enumerate(SOURCES)
        ]


def verdict(measured: Mapping[str, float]) -> str:
    """What the AUROCs of one block, of each of `SOURCES`, say of where a concept at `lab` comes from.

    The first that holds: "in attention's output, not before": in attn_out and not in resid_pre. "in the
    MLP's output, there before": in it and in resid_mid. "created by the MLP": not in resid_mid, in mlp_out,
    and at the end gone with the MLP ablated and still there with attention ablated. "absent": in no site of
    the block. Else "undecided", with the clause that failed. In: `PRESENT` or more. Not in, gone: below
    `ABSENT`.
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


# ---------------------------------------------------------------------------------- operands: the whole table

OVERLAPS = ("x and y overlap", "x in both halves", "y in both halves")
UNRELATED = ("parity", "random")  # families whose y is drawn without regard to x
CUTS = {"": (), ", lab→x cut": ("x",), ", lab→example cut": ("x", "comma", "pre")}
"""What `lab` does not see of its own example. The last leaves no way for x to reach it."""
X_READ, Y_READ, APART = "x decodable", "y decodable", " (y unrelated)"
MEASURES = (
    *OVERLAPS, *(X_READ + cut for cut in CUTS), Y_READ, *(X_READ + cut + APART for cut in CUTS),
)  # fmt: skip
MOST_ROWS = 4000  # rows of all tasks, at most, from which numbers are read, by whole prompts


def operands(
    model: LanguageModel, prompts: PromptSet, rows: Rows, *, layers: Sequence[int], seed: int, rank: int = 4,
    n_null: int = 20, batch: int = 128, first_example: int = FIRST_EXAMPLE,
) -> OperandTable:  # fmt: skip
    """Where x and y stand in what each block's MLP reads at `lab`, and what x is left when it is not seen.

    Ten rows per layer, one for each of `MEASURES`; undefined figures are NaN with a reason.

    Args:
        prompts: T-arm prompts of the grid's tasks, joined.
        rows: of these prompts at `lab`, [prompt·example].
        n_null: permutations of the values over rows.
    """
    examples = counted_examples(prompts, rows, first_example)
    kept = rows.take(rows.example >= first_example)
    inputs = input_groups(prompts)[kept.prompt]
    numbers = np.flatnonzero(~np.isnan(kept.x) & ~np.isnan(kept.y))
    if not len(numbers):
        none = _figure(n_rows=0, reason="no example of the grid has numbers for x and y")
        return OperandTable.from_rows(
            {"layer": layer, "measure": name} | none for layer in layers for name in MEASURES
        )
    splitting, *reading = np.random.default_rng(seed).spawn(4)
    shared = Subspaces(kept.take(numbers), inputs[numbers], rank, n_null, splitting)
    apart = numbers[np.isin(kept.family[numbers], UNRELATED)]
    wide = numbers[spread_prompts(kept.task[numbers], kept.prompt[numbers], MOST_ROWS, splitting)]
    few = np.unique(kept.prompt[np.concatenate([wide, apart])])  # prompts from which numbers are read
    among = np.flatnonzero(np.isin(kept.prompt, few))
    of_x, of_y, of_x_apart = (
        Reading(kept.take(at), inputs[at], np.searchsorted(among, at), number, n_null, rng)
        for at, number, rng in zip((wide, wide, apart), ("x", "y", "x"), reading, strict=True)
    )
    where = prompts.positions(LAB)[examples]
    figures: dict[tuple[int, str], dict[str, Any]] = {}
    for some in layer_groups(layers, len(kept) * model.d_model):
        sites = [Site(layer, "resid_mid") for layer in some]
        for cut, every in CUTS.items():
            roles = [role for role in every if role in prompts.roles]
            tokens = prompts.tokens[few] if roles else prompts.tokens
            removed = (
                [Knockout.within(LAB, roles, examples, range(max(some) + 1), prompts.layout)] if roles else []
            )
            recorded = record_knockout(model, tokens, sites, where, removed, batch=batch)
            for site in sites:
                acts = recorded.pop(site).reshape(len(tokens) * len(examples), -1).astype(np.float64)
                if not roles:
                    overlaps = shared.figures(acts[numbers])
                    figures |= {(site.layer, name): row for name, row in overlaps.items()}
                    acts = acts[among]
                    figures[site.layer, Y_READ] = of_y.figures(acts)
                figures[site.layer, X_READ + cut] = of_x.figures(acts)
                figures[site.layer, X_READ + cut + APART] = of_x_apart.figures(acts)
    return OperandTable.from_rows(
        {"layer": layer, "measure": name} | figures[layer, name] for layer in layers for name in MEASURES
    )


def _figure(
    value: float = np.nan, again: Floats | None = None, null: float = np.nan, *, n_rows: int, reason: str = ""
) -> dict[str, Any]:
    """Columns of an OperandTable: a value, its 95 % interval from other draws [draw], and its null."""
    low, high = (np.nan, np.nan) if again is None else interval(again)
    return {"value": value, "ci_low": low, "ci_high": high, "null": null, "n_rows": n_rows, "reason": reason}


def dealt_inputs(task: Strings, inputs: Ints, n_folds: int, rng: np.random.Generator) -> Ints:
    """Fold of each row, [row]: whole groups of equal `inputs` [row] dealt at random, evenly in each task."""
    names, first, of_row = np.unique(inputs, return_index=True, return_inverse=True)
    fold = np.zeros(len(names), dtype=np.int64)
    for name in np.unique(task):
        own = rng.permutation(np.flatnonzero(task[first] == name))
        fold[own] = (np.arange(len(own)) + rng.integers(n_folds)) % n_folds
    return fold[of_row]


# ------------------------------------------------------------------------------ operands: reading one number

PERIODS = (2, 5, 10, 25, 50)  # periods in the code of a number, beside the number itself
FEWEST_ROWS, FEWEST_INPUTS = 60, 8  # rows, and different draws of inputs, below which nothing is read
N_FOLDS, N_RESAMPLES = 4, 200
_PENALTIES = (1e6, 1e4, 1e3, 1e2, 1e1, 1.0)
"""Of the ridge regressions, the strongest first: it wins ties, and leaves next to nothing but the mean."""


def number_code(value: Floats) -> Floats:
    """A number [row] and its phases, cos and sin of 2πv/T for T in `PERIODS`, each of mean 0 and variance 1.

    As [row column]; what does not vary over the rows is left out.
    """
    angle = 2 * np.pi * value[:, None] / np.array(PERIODS)
    columns = np.concatenate([value[:, None], np.cos(angle), np.sin(angle)], axis=1)
    spread = columns.std(axis=0)
    kept = spread > 1e-9
    return (columns[:, kept] - columns[:, kept].mean(axis=0)) / spread[kept]


class Reading:
    """The code of `number`, "x" or "y", on rows that stand `at` these places among the recorded ones.

    Prompts of equal `inputs` [used] are one group.
    """

    def __init__(
        self, rows: Rows, inputs: Ints, at: Ints, number: str, n_null: int, rng: np.random.Generator
    ) -> None:
        names, self.group = np.unique(inputs, return_inverse=True)
        code = number_code(getattr(rows, number)) if len(at) else np.empty((0, 0))
        self.rows, self.n_code = at, code.shape[1]
        self.reason = "" if self.n_code else f"{number} does not vary"
        if len(at) < FEWEST_ROWS or len(names) < FEWEST_INPUTS:
            drawn = f"{len(at)} rows of {len(names)} draws of inputs"
            self.reason = f"{drawn}, {FEWEST_ROWS} of {FEWEST_INPUTS} needed"
        if self.reason:
            return
        # the fold in which each row is not trained on; and a division, to choose penalties, of those that are
        self.fold, self.inner = (dealt_inputs(rows.task, inputs, n_folds, rng) for n_folds in (N_FOLDS, 2))
        self.times = sample_and_resamples(len(names), N_RESAMPLES, rng)  # of groups, [1 + resample group]
        # the code, then copies with values permuted over rows, [used code·(1 + n_null)]
        self.targets = np.concatenate([code, *(rng.permutation(code) for _ in range(n_null))], axis=1)

    def figures(self, acts: Floats) -> dict[str, Any]:
        """R² of the code from activations [row d_model] on prompts not trained on, its interval and null."""
        if self.reason:
            return _figure(n_rows=len(self.rows), reason=self.reason)
        r2 = held_out_r2(self._predicted(acts[self.rows]), self.targets, self.group, self.times)
        by_code = r2.reshape(len(r2), -1, self.n_code).mean(axis=2)  # [1 + resample, 1 + null]
        null = float(by_code[0, 1:].mean()) if by_code.shape[1] > 1 else np.nan
        return _figure(float(by_code[0, 0]), by_code[1:, 0], null, n_rows=len(self.rows))

    def _predicted(self, acts: Floats) -> Floats:
        """Every target of every row, by a ridge regression of the other folds, [used column].

        The penalty of a code, own or permuted, is the one that does best between the two inner divisions of
        the rows trained on, so that no group of inputs is on both sides there either.
        """
        predicted, n_columns = np.empty_like(self.targets), self.targets.shape[1]
        for fold in np.unique(self.fold):
            train = self.fold != fold
            missed = np.zeros((len(_PENALTIES), n_columns))
            for side in (0, 1):
                fitted, checked = train & (self.inner == side), train & (self.inner != side)
                if fitted.any() and checked.any():
                    fit, wanted = Ridge(acts[fitted], self.targets[fitted]), self.targets[checked]
                    for i, penalty in enumerate(_PENALTIES):
                        guessed = fit.predicted(acts[checked], np.full(n_columns, penalty))
                        missed[i] += ((guessed - wanted) ** 2).sum(axis=0)
            best = missed.reshape(len(_PENALTIES), -1, self.n_code).sum(axis=2).argmin(axis=0)  # [1 + null]
            penalty = np.repeat(np.array(_PENALTIES)[best], self.n_code)
            predicted[~train] = Ridge(acts[train], self.targets[train]).predicted(acts[~train], penalty)
        return predicted


class Ridge:
    """Ridge regressions of targets [row target] on scaled activations [row d_model], for any penalty."""

    def __init__(self, acts: Floats, targets: Floats) -> None:
        self.scaler = StandardScaler().fit(acts)
        left, self.size, self.right = np.linalg.svd(
            np.asarray(self.scaler.transform(acts)), full_matrices=False
        )
        self.mean = targets.mean(axis=0)
        self.along = left.T @ (targets - self.mean)  # [component target]

    def predicted(self, acts: Floats, penalty: Floats) -> Floats:
        """Targets of activations [row d_model] with a penalty each [target], as [row target]."""
        shrunk = self.size[:, None] / (self.size[:, None] ** 2 + penalty) * self.along
        return self.mean + (np.asarray(self.scaler.transform(acts)) @ self.right.T) @ shrunk


def held_out_r2(predicted: Floats, targets: Floats, group: Ints, times: Floats) -> Floats:
    """R² = 1 − SSE / SST of each column [row column], groups [row] counted `times` [weighting group].

    SST is around the counted rows' mean; [weighting column].
    """
    order = np.argsort(group, kind="stable")
    edges = np.searchsorted(group[order], np.arange(times.shape[1]))
    parts = ((targets - predicted) ** 2, targets, targets**2, np.ones((len(group), 1)))
    missed, total, square, count = (times @ np.add.reduceat(part[order], edges, axis=0) for part in parts)
    return 1 - missed / (square - total**2 / count)


# ------------------------------------------------------------------------- operands: subspaces of x and of y

LEAST_ROWS = 5  # rows of a value that has a coefficient
N_SPLITS = 10
_RIDGE = 1.0  # rows of zeros that each value has in the joint regression beside its own


def _frequent(value: Floats) -> NDArray[np.bool_]:
    _, of_row, size = np.unique(value, return_inverse=True, return_counts=True)
    return size[of_row] >= LEAST_ROWS


class Design:
    """The joint regression of activations on which x and which y a row shows, each as one-hot columns.

        B = (DᵀD + λI)⁻¹ Dᵀ(A − Ā)

    so that the coefficients of x are what x adds beside y, and the reverse.
    """

    def __init__(self, x: Floats, y: Floats, rows: Ints) -> None:
        # rows that enter, of all, [used]: those whose x and y stand on `LEAST_ROWS` of them
        self.rows = rows[_frequent(x[rows]) & _frequent(y[rows])]
        levels_x, of_x = np.unique(x[self.rows], return_inverse=True)
        levels_y, of_y = np.unique(y[self.rows], return_inverse=True)
        self.n_x, n = len(levels_x), len(self.rows)
        column = np.stack([of_x, self.n_x + of_y], axis=1).ravel()
        shape = (n, self.n_x + len(levels_y))  # D, [used value]: x's values first
        self.shown = csr_array((np.ones(2 * n), column, np.arange(0, 2 * n + 1, 2)), shape=shape)
        gram = (self.shown.T @ self.shown).toarray() + _RIDGE * np.eye(shape[1])
        self.factor = cho_factor(gram) if n else None

    @property
    def n_values(self) -> tuple[int, int]:
        """Values of x and of y that have a coefficient."""
        _, n_values = cast("tuple[int, int]", self.shown.shape)
        return self.n_x, n_values - self.n_x

    def subspaces(self, acts: Floats, rank: int) -> tuple[Floats, Floats]:
        """The x- and the y-subspace of activations of every row [row d_model], orthonormal [d_model rank].

        The largest right singular vectors of the coefficients, around their mean, each value weighing as its
        rows.
        """
        used = acts[self.rows]
        fitted = cho_solve(self.factor, self.shown.T @ (used - used.mean(axis=0)))  # [value d_model]
        weight = np.asarray(self.shown.sum(axis=0))

        def largest(values: slice) -> Floats:
            coefficients, weights = fitted[values], weight[values]
            centred = coefficients - np.average(coefficients, axis=0, weights=weights)
            _, _, directions = np.linalg.svd(np.sqrt(weights)[:, None] * centred, full_matrices=False)
            return directions[:rank].T

        return largest(slice(self.n_x)), largest(slice(self.n_x, None))


def overlap(one: Floats, other: Floats, root: Floats) -> float:
    """Mean squared cosine of the principal angles of two bases [d_model rank] in the metric of a covariance.

    Σ = R Rᵀ of `root` R [d_model d_model]; directions u go to Rᵀu. From 0 (orthogonal) to 1 (the same).
    """
    q, p = (np.linalg.qr(root.T @ basis)[0] for basis in (one, other))
    return float(((q.T @ p) ** 2).sum() / q.shape[1])


class Subspaces:
    """Half splits and permutations on which x- and y-subspaces are compared, the same at every layer.

    `rows` have numbers as x and y; prompts of equal `inputs` [row] are one group, and a half has whole
    groups.
    """

    def __init__(self, rows: Rows, inputs: Ints, rank: int, n_null: int, rng: np.random.Generator) -> None:
        self.rank, self.n_rows, self.reason = rank, len(rows), ""
        halves = [dealt_inputs(rows.task, inputs, 2, rng) for _ in range(N_SPLITS)]
        sides = [[np.flatnonzero(half == side) for side in (0, 1)] for half in halves]
        self.splits = [[Design(rows.x, rows.y, side) for side in both] for both in sides]
        for which, name in enumerate("xy"):
            fewest = min(design.n_values[which] for both in self.splits for design in both)
            if fewest <= rank and not self.reason:
                self.reason = f"{fewest} values of {name} in a half of the prompts, {rank + 1} needed"
        # of a permutation: its split, and the halves' designs with x permuted, and with y permuted
        self.nulls: list[tuple[int, list[Design], list[Design]]] = []
        for i in range(0 if self.reason else n_null):
            x, y = rng.permutation(rows.x), rng.permutation(rows.y)
            both = sides[i % N_SPLITS]
            with_x, with_y = ([Design(*v, side) for side in both] for v in ((x, rows.y), (rows.x, y)))
            self.nulls.append((i % N_SPLITS, with_x, with_y))

    def figures(self, acts: Floats) -> dict[str, dict[str, Any]]:
        """Each of `OVERLAPS`, its interval over half splits and its null, from activations [row d_model]."""
        if self.reason:
            return {name: _figure(n_rows=self.n_rows, reason=self.reason) for name in OVERLAPS}
        root = np.linalg.cholesky(ledoit_wolf(acts)[0])
        fitted = [[design.subspaces(acts, self.rank) for design in both] for both in self.splits]

        def overlaps(x: Sequence[Floats], y: Sequence[Floats], y_beside_x: Sequence[Floats]) -> list[float]:
            """x of each half against y of the other, averaged; x of the two halves; y of the two halves."""
            crossed = (overlap(x[0], y_beside_x[1], root) + overlap(x[1], y_beside_x[0], root)) / 2
            return [crossed, overlap(x[0], x[1], root), overlap(y[0], y[1], root)]

        values, null = [], []
        for both in fitted:
            x, y = zip(*both, strict=True)
            values.append(overlaps(x, y, y))
        for split, with_x, with_y in self.nulls:
            x = [design.subspaces(acts, self.rank)[0] for design in with_x]
            y = [design.subspaces(acts, self.rank)[1] for design in with_y]
            null.append(overlaps(x, y, [y for _, y in fitted[split]]))
        return {
            name: _figure(float(np.mean(own)), own, float(np.mean(chance)), n_rows=self.n_rows)
            for name, own, chance in zip(OVERLAPS, np.transpose(values), np.transpose(null), strict=True)
        }
