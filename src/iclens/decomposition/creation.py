"""Which part of a block creates a concept at `lab`, the MLP or attention?

1. A dense probe of a concept is trained at `lab` on discovery tasks, at every site of a block and at the end
(the last block's resid_post): columns scaled, an L2 logistic regression with balanced classes, its penalty
chosen between two by twofold validation over whole tasks. 2. It is read on held-out tasks: the AUROC of its
decision values within the concept's strata. 3. The block's mlp_out, or its attn_out, is set at every `lab` to
its mean over the rows, and a probe of the end is trained and read anew. 4. `verdict` says what these AUROCs
mean together; attention and MLP are compared on the same resampled prompts.

What enters: a model, the grid's prompts and rows at `lab`, and concepts. What leaves: a `CreationTable`. A
probe has a direction, so an AUROC below .5 stays below .5. What a probe cannot read linearly counts as not
there. Ablating a part at `lab` changes what later blocks make of it as well; a probe trained without the
ablation would call gone what only stands in other directions after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from iclens.decomposition.lab import LAB, counted_examples, input_groups, layer_groups, positions
from iclens.models.forward import record
from iclens.models.load import LanguageModel
from iclens.names import Site
from iclens.tables.arrays import Floats, Ints
from iclens.tables.decomposition import CREATED, IN_ATTENTION, CreationTable
from iclens.tables.edits import Edit
from iclens.tables.prompts import PromptSet
from iclens.transforms.concepts import Concept
from iclens.transforms.grid import TaskGrid
from iclens.transforms.labels.auroc import auroc, order_entries, resampled_clusters, sides
from iclens.transforms.reading.folds import deal_tasks, spread_prompts
from iclens.transforms.reading.probes import PENALTIES, within_strata
from iclens.transforms.rows import FIRST_EXAMPLE, Rows

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
