"""Labels: latents that answer to a concept and to nothing else, their role, and their match in other SAEs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csc_array, csr_array

from iclens.activations import LatentActs
from iclens.concepts.auroc import (
    Split,
    auroc,
    blank_columns,
    column_moments,
    measure,
    order_entries,
    resampled_clusters,
    split_rows,
)
from iclens.concepts.language import (
    CONCEPTS,
    DETECTION,
    EVERY_CONCEPT,
    EXECUTION,
    FIRST_EXAMPLE,
    IDENTITY,
    TASK_IDENTITY,
    Concept,
    Contrast,
    Rows,
    TaskGrid,
    concept,
    read_rows,
    signed,
)
from iclens.core import TableError
from iclens.prompts.build import PromptSet
from iclens.schemas import MassTable, StabilityTable, TransformTable
from iclens.stats import benjamini_hochberg, interval
from iclens.table import Floats, Ints

CANDIDATE = "candidate"

# -------------------------------------------------------------------------------------------- identification


@dataclass(frozen=True)
class Gates:
    """What a label demands."""

    auroc: float = 0.90  # least AUROC on held-out tasks
    lower: float = 0.85  # least lower bound of its interval
    confound: float = 0.65  # greatest max(a, 1 − a) of any confound
    # greatest Cramér's V, in the design, between the concept and a confound: beyond it so few rows tell the
    # two apart that no label is granted, whatever they say
    confounding: float = 0.70
    promising: float = 0.75  # least AUROC, on discovery and on held-out tasks, to be called a candidate
    prompts: int = 5  # least number of held-out prompts with positives, and with negatives
    # least number of held-out tasks that the matched positives, and the negatives, are of: one alone cannot
    # tell a concept from its own identity. It does not hold for `task identity`.
    tasks: int = 2


def identify(
    latents: LatentActs | Sequence[LatentActs], prompts: PromptSet,
    concepts: Sequence[Concept] = EVERY_CONCEPT,
    *, grid: TaskGrid, seed: int, q: float = 0.05, first_example: int = FIRST_EXAMPLE, n_resamples: int = 200,
    gates: Gates = Gates(),
) -> TransformTable:  # fmt: skip
    """Every (latent, concept) pair of some sites and roles; multiplicity is over all of these pairs.

    Args:
        latents: activations on `prompts`, of one site and role or of several.
        prompts: T-arm prompts of the grid's tasks, joined.
        concepts: what is asked.
        grid: the tasks and which of them are held out.
        q: false discovery rate.
        first_example: rows count from this example on, so that the task can be known, examples.
        gates: what a label demands.

    Raises:
        TableError: when `latents` are not of `prompts`, or a task is not in the grid.
    """
    parts: list[dict[str, Any]] = []
    for acts in [latents] if isinstance(latents, LatentActs) else latents:
        if (acts.n_prompts, acts.n_examples) != (prompts.n_prompts, prompts.n_examples):
            shape = f"{acts.n_prompts} prompts of {acts.n_examples} examples"
            problem = f"{shape}, not {prompts.n_prompts} of {prompts.n_examples}"
            remedy = "Give the latents of `prompts` themselves."
            raise TableError(f"latents of {acts.site.short} at '{acts.role}'", problem, remedy)
        rows, matrix = read_rows(prompts, acts.role, grid.rules), acts.matrix
        late = rows.example >= first_example
        bootstrap = {"seed": seed, "n_resamples": n_resamples, "fewest_prompts": gates.prompts}
        for one in concepts:
            if one is TASK_IDENTITY:
                columns = measure_identity(rows, matrix, late, **bootstrap, promising=gates.promising)
            else:
                sides = [
                    split_rows(rows, one, late & np.isin(rows.task, names))
                    for names in (grid.discovery, grid.held_out)
                ]
                columns = measure(one, matrix, *sides, **bootstrap)
            names = {"site": str(acts.site), "role": acts.role, "concept": one.name}
            named = {key: np.full(acts.d_sae, value, dtype=object) for key, value in names.items()}
            parts.append(columns | named | {"latent": np.arange(acts.d_sae)})
    if not parts:
        return TransformTable.concat([])
    return _labelled({key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, q, gates)


def _labelled(columns: dict[str, Any], q: float, gates: Gates) -> TransformTable:
    """Add multiplicity, selectivity and the label, or the reason why there is none."""
    known = ~np.isnan(columns["p_value"])
    columns = columns | {
        "q_value": benjamini_hochberg(columns["p_value"]),
        "selectivity": columns["auroc"] - columns["confound_auroc"],
    }
    label, reason = np.full(len(known), "", dtype=object), columns["reason"].copy()
    low = known & (columns["discovery_auroc"] < gates.promising)
    reason[low] = f"discovery AUROC below {gates.promising:.2f}"
    lost = known & ~low & ~(columns["auroc"] >= gates.promising)
    reason[lost] = f"AUROC below {gates.promising:.2f} on held-out tasks"
    for i in np.flatnonzero(known & ~low & ~lost):
        failed = _failed_gates({key: values[i] for key, values in columns.items()}, q, gates)
        label[i] = CANDIDATE if failed else columns["concept"][i]
        reason[i] = "; ".join(failed)
    return TransformTable(columns | {"label": label, "reason": reason})


def _failed_gates(row: dict[str, Any], q: float, gates: Gates) -> list[str]:
    confound = f"{row['worst_confound']} {row['confound_auroc']:.3f} above {gates.confound:.2f}"
    if np.isnan(row["confound_auroc"]):
        confound = "no confound can be measured"
    tied = (
        f"design confounds it with {row['confounded_with']}, V {row['confounding']:.2f} above "
        f"{gates.confounding:.2f}"
    )
    checks = [
        (row["auroc"] >= gates.auroc, f"AUROC {row['auroc']:.3f} below {gates.auroc:.2f}"),
        (row["ci_low"] >= gates.lower, f"lower bound {row['ci_low']:.3f} below {gates.lower:.2f}"),
        (row["confound_auroc"] <= gates.confound, confound),
        (not row["confounding"] > gates.confounding, tied),
    ]
    for side in ("positive", "negative") if row["concept"] != IDENTITY else ():
        n_tasks = row[f"n_{side}_tasks"]
        checks.append((n_tasks >= gates.tasks, f"{side}s of {n_tasks} held-out task, {gates.tasks} needed"))
    checks.append((row["q_value"] <= q, f"q {row['q_value']:.3f} above {q:.2f}"))
    return [said for passed, said in checks if not passed]


# --------------------------------------------------------------------------------------------- task identity

FEWEST_RIVALS = 5
"""Other tasks that have to show the same labels; with fewer, a task's own values would pass for it."""


def measure_identity(
    rows: Rows, acts: csr_array, late: NDArray[np.bool_], *, seed: int, n_resamples: int, fewest_prompts: int,
    promising: float,
) -> dict[str, Any]:  # fmt: skip
    """Columns of a TransformTable for `task identity` at one site and role, before multiplicity and gates.

    No other task could confirm the identity of a task, so half of each task's prompts discover which task a
    latent tells best from all others, at equal labels, and the other half confirm it, as `measure` does.
    `of` is the task, "" where none reaches the AUROC `promising` on the discovery prompts.
    """
    late = late & (rows.label != "")
    first_half = late & (_number_in_task(rows) % 2 == 0)
    discovery = np.flatnonzero(first_half)
    tasks, strength = _one_against_all(
        cast("csr_array", acts[discovery]), rows.task[discovery], _same_label(rows.take(discovery))
    )
    strength = np.where(np.isnan(strength), -1.0, strength)
    best, auroc_of_best = strength.argmax(axis=1), strength.max(axis=1)
    columns = blank_columns(strength.shape[0]) | {"discovery_auroc": auroc_of_best}
    low = ~(auroc_of_best >= promising)
    columns["reason"][low] = f"no task at AUROC {promising:.2f} on the discovery prompts"
    by_latent = acts.tocsc()
    for t in np.unique(best[~low]):
        latents = np.flatnonzero(~low & (best == t))
        chosen = cast("csr_array", by_latent[:, latents].tocsr())
        asked = _identity_of(str(tasks[t]), rows)
        sides = [split_rows(rows, asked, half) for half in (first_half, late & ~first_half)]
        measured = measure(
            asked, chosen, *sides, seed=seed, n_resamples=n_resamples, fewest_prompts=fewest_prompts
        )
        measured["of"][:] = tasks[t]
        n_rivals = int(measured["n_negative_tasks"][0])
        if n_rivals < FEWEST_RIVALS:
            measured["reason"][:] = f"{n_rivals} other tasks show its labels, {FEWEST_RIVALS} needed"
            measured["p_value"][:] = np.nan
        elif not measured["reason"][0]:
            _add_strongest_other(measured, chosen, sides[1])
        for name, values in measured.items():
            columns[name][latents] = values
    return columns


def _one_against_all(acts: csr_array, task: NDArray[np.str_], stratum: Ints) -> tuple[np.ndarray, Floats]:
    """Names of the tasks [task], and the AUROC of each against all others, [latent task]."""
    tasks, of_row = np.unique(task, return_inverse=True)
    own = (of_row[:, None] == np.arange(len(tasks))).astype(np.float32)
    return tasks, auroc(order_entries(acts, stratum), own, 1 - own)


def _add_strongest_other(measured: dict[str, Any], acts: csr_array, held_out: Split) -> None:
    """Put the other task that stands out most in the place of the worst confound, where it is worse."""
    other = ~held_out.positive
    task, stratum = held_out.rows.task[other], np.zeros(other.sum(), dtype=np.int64)
    tasks, strength = _one_against_all(cast("csr_array", acts[held_out.used[other]]), task, stratum)
    most, figure = strength.argmax(axis=1), strength.max(axis=1).astype(np.float64)
    worse = ~(figure <= measured["confound_auroc"])
    named = np.array([f"task {task}" for task in tasks.tolist()], dtype=object)[most]
    measured["confound_auroc"] = np.where(worse, figure, measured["confound_auroc"])
    measured["worst_confound"] = np.where(worse, named, measured["worst_confound"])


def _number_in_task(rows: Rows) -> Ints:
    """The how-manieth of its task's prompts (in its template) each row's prompt is, [row]."""
    prompts, first = np.unique(rows.prompt, return_index=True)
    task = np.char.add(np.char.add(rows.task[first], " in "), rows.template[first])
    order = np.argsort(task, kind="stable")
    _, counts = np.unique(task, return_counts=True)
    number = np.empty(len(prompts), dtype=np.int64)
    number[order] = np.arange(len(prompts)) - np.repeat(np.cumsum(counts) - counts, counts)
    return number[np.searchsorted(prompts, rows.prompt)]


def _same_label(rows: Rows) -> Ints:
    """A number for each label, be it a number or a word, [row]."""
    return np.unique(rows.label, return_inverse=True)[1]


def _identity_of(task: str, rows: Rows) -> Concept:
    """One task against all others at equal labels, to be told from its slope, its offset and its values."""
    own = np.flatnonzero(rows.task == task)[0]

    def rival(name: str, fact: str) -> Contrast:
        """Rows that share a fact with the task against those that do not, where the fact is known.

        The task has the fact itself, so the others are compared among themselves.
        """
        value = getattr(rows, fact)[own]

        def label(r: Rows) -> Ints:
            values = getattr(r, fact)
            known = ~np.isnan(values) if values.dtype.kind == "f" else True
            return signed(values == value, (values != value) & known) * (r.task != task)

        return Contrast(name, label)

    known = {c.name: c for one in CONCEPTS for c in one.confounds}
    return Concept(
        Contrast(IDENTITY, lambda r: signed(r.task == task, r.task != task)),
        TASK_IDENTITY.meaning,
        _same_label,
        (
            rival("the family", "family"),
            rival("the slope", "slope"),
            rival("the kind of input", "numeric_x"),
            rival("the offset", "offset"),
            known["input magnitude"],
            concept("odd").contrast,
            concept("magnitude").contrast,
        ),
    )


# ------------------------------------------------------------------------------------------- labelled latents


def granted(table: TransformTable) -> TransformTable:
    """The rows whose label is granted."""
    return table.where(~np.isin(table["label"].astype(str), ("", CANDIDATE)))


def best_of(table: TransformTable, n: int, *, role: str | None = None) -> list[dict[str, Any]]:
    """The `n` best latents of each concept, over all sites and roles or only at `role`.

    Granted labels come first, then candidates, each by AUROC; fewer where fewer have a label. A row per
    latent: `concept`, `site`, `role`, `latent`, `label`, `auroc`, `sign`.
    """
    label = table["label"].astype(str)
    rows = np.flatnonzero((label != "") & ((role is None) | (table["role"] == role)))
    order = rows[np.lexsort((-table["auroc"][rows], label[rows] == CANDIDATE))]
    by_concept: dict[str, list[dict[str, Any]]] = {}
    for i in order:
        row: dict[str, Any] = {name: str(table[name][i]) for name in ("concept", "site", "role", "label")}
        row |= {"latent": int(table["latent"][i]), "sign": int(table["sign"][i])}
        by_concept.setdefault(row["concept"], []).append(row | {"auroc": float(table["auroc"][i])})
    return [row for rows in by_concept.values() for row in rows[:n]]


# -------------------------------------------------------------------------------------------------- stability

_AT_ONCE = 64  # labelled latents that are compared with all others at a time


def stability(
    table: TransformTable, latents: Sequence[LatentActs],
    others: Mapping[str, tuple[TransformTable, Sequence[LatentActs]]], *, least: float = 0.8,
) -> StabilityTable:  # fmt: skip
    """The best-correlated latent of every other set of SAEs for each labelled latent, and its label.

    A row per labelled row of `table` and other set; a set without that site and role has match −1. `others`
    has labels and activations on the same prompts by the set's name; a stable label needs a correlation of
    `least`.
    """
    rows: list[dict[str, Any]] = []
    known = granted(table)
    for site, role in dict.fromkeys(zip(known["site"], known["role"], strict=True)):
        labelled = known.where((known["site"] == site) & (known["role"] == role))
        mine = _at(latents, site, role)
        if mine is None:
            remedy = "Give `latents` of every site and role that `table` labels."
            raise TableError(f"stability at {site} '{role}'", "no activations", remedy)
        for name, (their_table, their_latents) in others.items():
            there = their_table.where((their_table["site"] == site) & (their_table["role"] == role))
            pairs = zip(there["latent"].tolist(), there["concept"].tolist(), strict=True)
            labels = dict(zip(pairs, there["label"].tolist(), strict=True))
            theirs = _at(their_latents, site, role)
            match, correlation, missing = _matches(mine, theirs, labelled["latent"], name)
            for i, asked in enumerate(labelled["concept"].tolist()):
                label, match_label = labelled["label"][i], labels.get((int(match[i]), asked), "")
                failed = []
                if not correlation[i] >= least:
                    failed.append(f"correlation {correlation[i]:.3f} below {least:.2f}")
                if match_label != label:
                    given = f"labelled '{match_label}'" if match_label else "not labelled"
                    failed.append(f"the match is {given}")
                rows.append({
                    "site": site, "role": role, "latent": labelled["latent"][i], "concept": asked,
                    "other": name, "other_d_sae": -1 if theirs is None else theirs.d_sae, "match": match[i],
                    "correlation": correlation[i], "match_label": match_label, "stable": not failed,
                    "reason": missing[i] or "; ".join(failed),
                })  # fmt: skip
    return StabilityTable.from_rows(rows)


def _at(latents: Sequence[LatentActs], site: str, role: str) -> LatentActs | None:
    return next((acts for acts in latents if str(acts.site) == site and acts.role == role), None)


def _matches(
    mine: LatentActs, theirs: LatentActs | None, latents: Ints, name: str
) -> tuple[Ints, Floats, list[str]]:
    """Match, correlation, and why there is none, of each of `latents` in the other SAE."""
    where = f"{mine.site.short} at '{mine.role}'"
    if theirs is None:
        n = len(latents)
        return np.full(n, -1), np.full(n, np.nan), [f"no SAE for {where}"] * n
    shape = (mine.n_prompts, mine.n_examples)
    if (theirs.n_prompts, theirs.n_examples) != shape:
        problem = f"{theirs.n_prompts} prompts of {theirs.n_examples} examples, not {shape[0]} of {shape[1]}"
        remedy = "Track the same prompts with every set."
        raise TableError(f"latents of '{name}' for {where}", problem, remedy)
    distinct, of_row = np.unique(latents, return_inverse=True)
    match, best = best_matches(csc_array(mine.matrix), csc_array(theirs.matrix), distinct)
    constant = "the latent, or every latent of the other SAE, is constant"
    return match[of_row], best[of_row], [constant if i < 0 else "" for i in match[of_row]]


def best_matches(mine: csc_array, theirs: csc_array, latents: Ints) -> tuple[Ints, Floats]:
    """The latent of `theirs` with the greatest Pearson correlation over all rows, and that correlation.

        r = (⟨a b⟩ − ⟨a⟩⟨b⟩) / √((⟨a²⟩ − ⟨a⟩²)(⟨b²⟩ − ⟨b⟩²))

    For each of `latents` of `mine`; both are [row latent]. −1 and NaN where a correlation is undefined.
    """
    mine, theirs = csc_array(mine[:, latents].astype(np.float64)), csc_array(theirs.astype(np.float64))
    n_rows, _ = cast("tuple[int, int]", theirs.shape)
    (mean_a, spread_a), (mean_b, spread_b) = (
        (mean, np.sqrt(variance)) for mean, variance in (column_moments(mine), column_moments(theirs))
    )
    match, best = np.full(len(latents), -1, dtype=np.int64), np.full(len(latents), np.nan)
    if not spread_b.any():
        return match, best
    for first in range(0, len(latents), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        joint = (mine[:, part].T @ theirs).toarray() / n_rows - mean_a[part, None] * mean_b
        scale = spread_a[part, None] * spread_b  # [latent of mine, latent of theirs]
        r = np.where(scale > 0, joint / np.where(scale > 0, scale, 1.0), -np.inf)
        top = r.argmax(axis=1)
        known = spread_a[part] > 0
        match[part] = np.where(known, top, -1)
        best[part] = np.where(known, np.clip(r[np.arange(len(top)), top], -1, 1), np.nan)
    return match, best


# ------------------------------------------------------------------------------------ detection and execution

SHARE = 0.9
"""Least share of the mass, at the interval's near end, that makes a detector or an executor."""
FEWEST = 20
"""Active rows below which nothing is said."""


def role_mass(
    lab: LatentActs, pre: LatentActs, *, seed: int, first_example: int = FIRST_EXAMPLE, n_resamples: int = 200
) -> MassTable:
    """Where each latent has its mass: at `lab` (detection) or at `pre` (execution), by resampled prompts."""
    for what in ("site", "sae_id", "n_prompts", "n_examples"):
        if getattr(lab, what) != getattr(pre, what):
            remedy = "Give one SAE's latents at `lab` and `pre` of the same prompts."
            raise TableError(f"mass at {lab.site.short}", f"{what} differs between roles", remedy)
    sums, n_active = [], np.zeros(lab.d_sae, dtype=np.int64)
    for acts in (lab, pre):
        rows = np.arange(acts.n_prompts * acts.n_examples)
        used = rows[rows % acts.n_examples >= first_example]
        at = (used // acts.n_examples, used)
        member = coo_array((np.ones(len(used), np.float32), at), shape=(acts.n_prompts, len(rows))).tocsr()
        sums.append(csr_array(member @ acts.matrix))  # summed activation, float32 [prompt latent]
        counted = np.repeat(np.isin(rows, used), np.diff(acts.indptr))  # [entry]
        n_active += np.bincount(acts.index[counted], minlength=acts.d_sae)
    times = resampled_clusters(np.arange(lab.n_prompts), n_resamples, np.random.default_rng(seed)).T

    def share(at_lab: Floats, at_pre: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            return np.where(at_lab + at_pre > 0, at_lab / (at_lab + at_pre), np.nan)

    value = share(*(np.asarray(part.sum(axis=0), dtype=np.float64) for part in sums))
    low, high = np.where(np.isnan(value), np.nan, interval(share(*(times @ part for part in sums))))
    known = ~np.isnan(value) & (n_active >= FEWEST)
    kind = np.full(len(value), "", dtype=object)
    kind[known & (low >= SHARE)], kind[known & (high <= 1 - SHARE)] = DETECTION, EXECUTION
    return MassTable({
        "site": np.full(len(value), str(lab.site), dtype=object), "latent": np.arange(lab.d_sae),
        "lab_share": value, "ci_low": low, "ci_high": high, "n_active": n_active, "kind": kind,
        "reason": np.where(known, "", f"active in fewer than {FEWEST} rows").astype(object),
    })  # fmt: skip
