"""Which latents are the identity of one task, whatever x and y are?

No other task could confirm such a label, so it is confirmed on other prompts of the same tasks. 1. Half of
each task's prompts discover: the task that each latent tells best from all others, comparing only rows that
show the same y, so that a latent for a single value tells nothing apart. 2. Where that is promising, the
other half measures it as any concept (`measure`), against rivals of the task: its slope, its offset,
parity, magnitude. 3. No single other task may stand out either: each is told from the rest, whatever y
they show, and the strongest counts as a confound. Rows whose label is not determined are left out.
Enter rows and activations; leave columns of a TransformTable, one row per latent.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from scipy.sparse import csr_array

from iclens.tables.arrays import Ints
from iclens.transforms.concepts import CONCEPTS, IDENTITY, Concept, Contrast, concept, everywhere, signed
from iclens.transforms.labels.auroc import auroc, order_entries
from iclens.transforms.labels.measure import COUNTS, UNDEFINED, Split, measure, split_rows
from iclens.transforms.rows import Rows

TASK_IDENTITY = Concept(Contrast(IDENTITY, everywhere), "the task is one and no other", everywhere, ())
"""Stands for task identity among the concepts that are asked for; `measure_identity` answers it."""
EVERY_CONCEPT = (*CONCEPTS, TASK_IDENTITY)
"""What latents are asked for unless something else is said."""
FEWEST_RIVALS = 5
"""Other tasks that have to show the same labels; with fewer, a task's own values would pass for it."""


def measure_identity(
    rows: Rows, acts: csr_array, seen: np.ndarray, *, seed: int, n_resamples: int, fewest_prompts: int,
    promising: float,
) -> dict[str, Any]:  # fmt: skip
    """Columns of a TransformTable for `task identity` at one site and role, before multiplicity and gates.

    Args:
        rows: every row of a role.
        acts: activations, [row latent].
        seen: rows late enough for the task to be known, [row].
        seed: of the prompt bootstrap.
        n_resamples: bootstrap resamples of prompts.
        fewest_prompts: prompts of the task, and of others, that each half must have.
        promising: least AUROC on the discovery prompts for a task to be looked into.

    Returns:
        column → [latent]; `of` is the task, "" where none is promising.
    """
    _, n_latents = cast("tuple[int, int]", acts.shape)
    seen = seen & (rows.label != "")
    first_half = seen & (_number_in_task(rows) % 2 == 0)
    tasks, best, found = _best_task(
        rows.take(first_half), cast("csr_array", acts[np.flatnonzero(first_half)])
    )
    columns = _undefined(n_latents)
    columns["discovery_auroc"] = found
    low = ~(found >= promising)
    columns["reason"][low] = f"no task at AUROC {promising:.2f} on the discovery prompts"
    by_latent = acts.tocsc()
    for t in np.unique(best[~low]):
        latents = np.flatnonzero(~low & (best == t))
        own = cast("csr_array", by_latent[:, latents].tocsr())
        asked = _identity_of(str(tasks[t]), rows)
        found, held = (split_rows(rows, own, asked, side) for side in (first_half, seen & ~first_half))
        measured = measure(
            asked, found, held, seed=seed, n_resamples=n_resamples, fewest_prompts=fewest_prompts
        )
        measured |= {"of": np.full(len(latents), tasks[t], dtype=object)}
        n_rivals = int(measured["n_negative_tasks"][0])
        if n_rivals < FEWEST_RIVALS:
            measured["reason"][:] = f"{n_rivals} other tasks show its labels, {FEWEST_RIVALS} needed"
            measured["p_value"][:] = np.nan
        elif not measured["reason"][0]:
            _add_strongest_other(measured, held)
        for name, values in measured.items():
            columns[name][latents] = values
    return columns


def _add_strongest_other(measured: dict[str, Any], held: Split) -> None:
    """Put the other task that stands out most in the place of the worst confound, where it is worse."""
    others = np.flatnonzero(~held.positive)
    tasks, of_row = np.unique(held.rows.task[others], return_inverse=True)
    own = (of_row[:, None] == np.arange(len(tasks))).astype(np.float32)
    order = order_entries(cast("csr_array", held.acts[others]), np.zeros(len(others), dtype=np.int64))
    strength = auroc(order, own, 1 - own)
    most = strength.argmax(axis=1)
    found = strength[np.arange(len(most)), most].astype(np.float64)
    worse = ~(found <= measured["confound_auroc"])
    measured["confound_auroc"] = np.where(worse, found, measured["confound_auroc"])
    named = np.array([f"task {task}" for task in tasks.tolist()], dtype=object)[most]
    measured["worst_confound"] = np.where(worse, named, measured["worst_confound"])


def _undefined(n_latents: int) -> dict[str, Any]:
    columns: dict[str, Any] = {name: np.full(n_latents, np.nan) for name in UNDEFINED}
    columns |= {
        name: np.full(n_latents, "", dtype=object)
        for name in ("of", "worst_confound", "confounded_with", "unmeasured", "reason")
    }
    columns |= {name: np.zeros(n_latents, dtype=np.int64) for name in COUNTS}
    return columns | {"sign": np.ones(n_latents, dtype=np.int64)}


def _number_in_task(rows: Rows) -> Ints:
    """The how-manieth of its task's prompts (in its template) each row's prompt is, [row]."""
    prompts, first = np.unique(rows.prompt, return_index=True)
    task = np.char.add(np.char.add(rows.task[first], " in "), rows.template[first])
    order = np.argsort(task, kind="stable")
    _, counts = np.unique(task, return_counts=True)
    number = np.empty(len(prompts), dtype=np.int64)
    number[order] = np.concatenate([np.arange(n) for n in counts]) if len(counts) else []
    return number[np.searchsorted(prompts, rows.prompt)]


def _best_task(rows: Rows, acts: csr_array) -> tuple[np.ndarray, Ints, np.ndarray]:
    """Tasks [task]; the one that each latent tells best from all others; its AUROC, both [latent]."""
    tasks, of_row = np.unique(rows.task, return_inverse=True)
    own = (of_row[:, None] == np.arange(len(tasks))).astype(np.float32)
    found = auroc(order_entries(acts, _same_answer(rows)), own, 1 - own)
    found = np.where(np.isnan(found), -1.0, found)
    best = found.argmax(axis=1)
    return tasks, best, found[np.arange(len(best)), best]


def _same_answer(rows: Rows) -> Ints:
    """A number for each label, be it a number or a word, [row]."""
    return np.unique(rows.label, return_inverse=True)[1]


def _identity_of(task: str, rows: Rows) -> Concept:
    """One task against all others at equal y, to be told from its slope, its offset and its values."""
    own = np.flatnonzero(rows.task == task)[0]
    family, slope, offset, number = (
        values[own] for values in (rows.family, rows.slope, rows.offset, rows.numeric_x)
    )
    alike = {
        "the family": lambda r: signed(r.family == family, r.family != family),
        "the slope": lambda r: signed(r.slope == slope, (r.slope != slope) & ~np.isnan(r.slope)),
        "the kind of input": lambda r: signed(r.numeric_x == number, r.numeric_x != number),
        "the offset": lambda r: signed(r.offset == offset, (r.offset != offset) & ~np.isnan(r.offset)),
    }
    # The task has all of these itself, so they are compared among the other tasks alone.
    rivals = [
        Contrast(name, lambda r, label=label: label(r) * (r.task != task)) for name, label in alike.items()
    ]
    known = {c.name: c for one in CONCEPTS for c in one.confounds}
    values = [known["input magnitude"], concept("odd").contrast, concept("magnitude").contrast]
    return Concept(
        Contrast(IDENTITY, lambda r: signed(r.task == task, r.task != task)),
        TASK_IDENTITY.meaning,
        _same_answer,
        (*rivals, *values),
    )
