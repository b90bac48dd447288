"""Labels: which latents answer to a concept and to nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy.sparse import coo_array, csc_array, csr_array
from scipy.stats import false_discovery_control

from iclens.activations import LatentActs
from iclens.concepts.auroc import (
    COUNTS,
    UNDEFINED,
    Split,
    auroc,
    measure,
    order_entries,
    resampled_clusters,
    split_rows,
)
from iclens.concepts.language import (
    CONCEPTS,
    DETECTION,
    EXECUTION,
    FIRST_EXAMPLE,
    IDENTITY,
    Concept,
    Contrast,
    Rows,
    TaskGrid,
    everywhere,
    read_rows,
    signed,
)
from iclens.concepts.language import (
    concept as named_concept,
)
from iclens.core import TableError
from iclens.prompts.build import PromptSet
from iclens.schemas import MassTable, StabilityTable, TransformTable
from iclens.table import Floats, Ints

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
    values = [known["input magnitude"], named_concept("odd").contrast, named_concept("magnitude").contrast]
    return Concept(
        Contrast(IDENTITY, lambda r: signed(r.task == task, r.task != task)),
        TASK_IDENTITY.meaning,
        _same_answer,
        (*rivals, *values),
    )


@dataclass(frozen=True)
class Gates:
    """What a label demands.

    Args:
        auroc: least AUROC on held-out tasks.
        lower: least lower bound of its interval.
        confound: greatest max(a, 1 − a) of any confound.
        confounding: greatest Cramér's V, in the design, between the concept and a confound: beyond it so few
            rows tell the two apart that no label is granted, whatever they say.
        promising: least AUROC, on discovery and on held-out tasks, to be called a candidate.
        prompts: least number of held-out prompts with positives, and with negatives.
        tasks: least number of held-out tasks that the matched positives, and the negatives, are of: one
            alone cannot tell a concept from its own identity. It does not hold for `task identity`.
    """

    auroc: float = 0.90
    lower: float = 0.85
    confound: float = 0.65
    confounding: float = 0.70
    promising: float = 0.75
    prompts: int = 5
    tasks: int = 2


def identify(
    latents: LatentActs,
    prompts: PromptSet,
    concepts: Sequence[Concept] = EVERY_CONCEPT,
    *,
    grid: TaskGrid,
    seed: int,
    q: float = 0.05,
    first_example: int = FIRST_EXAMPLE,
    n_resamples: int = 200,
    gates: Gates = Gates(),
) -> TransformTable:
    """Every (latent, concept) pair of one site and role; multiplicity is over these pairs.

    Args:
        latents: activations on `prompts` at one role.
        prompts: T-arm prompts of the grid's tasks, joined.
        concepts: what is asked.
        grid: the tasks and which of them are held out.
        seed: of the prompt bootstrap.
        q: false discovery rate.
        first_example: rows count from this example on, so that the task can be known, examples.
        n_resamples: bootstrap resamples of prompts.
        gates: what a label demands.

    Raises:
        TableError: when `latents` are not of `prompts`, or a task is not in the grid.
    """
    return identify_all(
        [latents], prompts, concepts, grid=grid, seed=seed, q=q, first_example=first_example,
        n_resamples=n_resamples, gates=gates,
    )  # fmt: skip


def identify_all(
    latents: Sequence[LatentActs],
    prompts: PromptSet,
    concepts: Sequence[Concept] = EVERY_CONCEPT,
    *,
    grid: TaskGrid,
    seed: int,
    q: float = 0.05,
    first_example: int = FIRST_EXAMPLE,
    n_resamples: int = 200,
    gates: Gates = Gates(),
) -> TransformTable:
    """As `identify`, over several sites and roles, with multiplicity over the pairs of all of them."""
    parts: list[dict[str, Any]] = []
    for acts in latents:
        if (acts.n_prompts, acts.n_examples) != (prompts.n_prompts, prompts.n_examples):
            raise TableError(
                f"latents of {acts.site.short} at '{acts.role}'",
                f"{acts.n_prompts} prompts of {acts.n_examples} examples, not "
                f"{prompts.n_prompts} of {prompts.n_examples}",
                "Give the latents of `prompts` themselves.",
            )
        rows = read_rows(prompts, acts.role, grid.rules)
        seen = rows.example >= first_example
        matrix = acts.matrix
        for concept in concepts:
            asked = {"seed": seed, "n_resamples": n_resamples, "fewest_prompts": gates.prompts}
            if concept is TASK_IDENTITY:
                measured = measure_identity(rows, matrix, seen, **asked, promising=gates.promising)
            else:
                sides = [
                    split_rows(rows, matrix, concept, seen & np.isin(rows.task, names))
                    for names in (grid.discovery, grid.held_out)
                ]
                measured = measure(concept, *sides, **asked)
            names = {"site": str(acts.site), "role": acts.role, "concept": concept.name, "of": ""}
            repeated = {key: np.full(acts.d_sae, value, dtype=object) for key, value in names.items()}
            parts.append(repeated | {"latent": np.arange(acts.d_sae)} | measured)
    if not parts:
        return TransformTable.concat([])
    return _decided({key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, q, gates)


def _decided(columns: dict[str, Any], q: float, gates: Gates) -> TransformTable:
    """Add multiplicity, selectivity and the verdict."""
    p_value = columns["p_value"]
    q_value = np.full(len(p_value), np.nan)
    known = ~np.isnan(p_value)
    if known.any():
        q_value[known] = false_discovery_control(p_value[known])
    columns = columns | {"q_value": q_value, "selectivity": columns["auroc"] - columns["confound_auroc"]}
    label = np.full(len(p_value), "", dtype=object)
    reason = columns["reason"].copy()
    low = known & (columns["discovery_auroc"] < gates.promising)
    reason[low] = f"discovery AUROC below {gates.promising:.2f}"
    lost = known & ~low & ~(columns["auroc"] >= gates.promising)
    reason[lost] = f"AUROC below {gates.promising:.2f} on held-out tasks"
    for i in np.flatnonzero(known & ~low & ~lost):
        failed = _failed_gates({key: values[i] for key, values in columns.items()}, q, gates)
        label[i] = "candidate" if failed else columns["concept"][i]
        reason[i] = "; ".join(failed)
    return TransformTable(columns | {"label": label, "reason": reason})


def _failed_gates(row: dict[str, Any], q: float, gates: Gates) -> list[str]:
    failed = []
    if not row["auroc"] >= gates.auroc:
        failed.append(f"AUROC {row['auroc']:.3f} below {gates.auroc:.2f}")
    if not row["ci_low"] >= gates.lower:
        failed.append(f"lower bound {row['ci_low']:.3f} below {gates.lower:.2f}")
    if np.isnan(row["confound_auroc"]):
        failed.append("no confound can be measured")
    elif row["confound_auroc"] > gates.confound:
        failed.append(f"{row['worst_confound']} {row['confound_auroc']:.3f} above {gates.confound:.2f}")
    if row["confounding"] > gates.confounding:
        failed.append(
            f"design confounds it with {row['confounded_with']}, V {row['confounding']:.2f} above "
            f"{gates.confounding:.2f}"
        )
    if row["concept"] != IDENTITY:
        for side in ("positive", "negative"):
            if row[f"n_{side}_tasks"] < gates.tasks:
                failed.append(f"{side}s of {row[f'n_{side}_tasks']} held-out task, {gates.tasks} needed")
    if not row["q_value"] <= q:
        failed.append(f"q {row['q_value']:.3f} above {q:.2f}")
    return failed


NO_LABEL = ("", "candidate")
_AT_ONCE = 64
"""Labelled latents that are compared with all others at a time."""


def stability(
    table: TransformTable,
    own: Sequence[LatentActs],
    others: Mapping[str, tuple[TransformTable, Sequence[LatentActs]]],
    *,
    least: float = 0.8,
) -> StabilityTable:
    """The best-correlated latent of every other set of SAEs for each labelled latent, and its label.

    Args:
        table: labels of one set of SAEs.
        own: its activations, one per site and role.
        others: name of a set → its labels and activations on the same prompts.
        least: least correlation of a stable label.

    Returns:
        A row per labelled row of `table` and other set; a set without that site and role has match −1.

    Raises:
        TableError: when labelled latents have no activations, or two sets are of other prompts.
    """
    label = table["label"]
    found: list[dict[str, Any]] = []
    labelled = np.flatnonzero(~np.isin(label.astype(str), NO_LABEL))
    places = list(dict.fromkeys(zip(table["site"][labelled], table["role"][labelled], strict=True)))
    for site, role in places:
        at = labelled[(table["site"][labelled] == site) & (table["role"][labelled] == role)]
        mine = _at(own, site, role)
        if mine is None:
            raise TableError(
                f"stability at {site} '{role}'",
                "no activations",
                "Give `own` the latents of every site and role that `table` labels.",
            )
        for name, (given, acts) in others.items():
            labels = _labels(given, site, role)
            matches = _matches(mine, _at(acts, site, role), table["latent"][at], name)
            for row, (match, correlation, d_sae, reason) in zip(at, matches, strict=True):
                concept, wanted = str(table["concept"][row]), str(label[row])
                said = labels.get((match, concept), "")
                stable = correlation >= least and said == wanted
                found.append(
                    {
                        "site": site, "role": role, "latent": table["latent"][row], "concept": concept,
                        "other": name, "other_d_sae": d_sae, "match": match, "correlation": correlation,
                        "match_label": said, "stable": stable,
                        "reason": reason or ("" if stable else _failed(correlation, least, said, wanted)),
                    }
                )  # fmt: skip
    return StabilityTable({key: [row[key] for row in found] for key in StabilityTable.COLUMNS})


def _at(acts: Sequence[LatentActs], site: str, role: str) -> LatentActs | None:
    return next((a for a in acts if str(a.site) == site and a.role == role), None)


def _matches(
    mine: LatentActs, theirs: LatentActs | None, latents: Ints, name: str
) -> list[tuple[int, float, int, str]]:
    """(match, correlation, d_sae, reason) of each of `latents` in the other SAE."""
    place = f"{mine.site.short} at '{mine.role}'"
    if theirs is None:
        return [(-1, np.nan, -1, f"no SAE for {place}")] * len(latents)
    shape = (mine.n_prompts, mine.n_examples)
    if (theirs.n_prompts, theirs.n_examples) != shape:
        raise TableError(
            f"latents of '{name}' for {place}",
            f"{theirs.n_prompts} prompts of {theirs.n_examples} examples, not {shape[0]} of {shape[1]}",
            "Track the same prompts with every set.",
        )
    latent_ids, place_of = np.unique(latents, return_inverse=True)
    match, best = best_matches(csc_array(mine.matrix), csc_array(theirs.matrix), latent_ids)
    reasons = np.where(match < 0, "the latent, or every latent of the other SAE, is constant", "")
    return [(int(match[i]), float(best[i]), theirs.d_sae, str(reasons[i])) for i in place_of]


def best_matches(mine: csc_array, theirs: csc_array, latents: Ints) -> tuple[Ints, Floats]:
    """The latent of `theirs` with the greatest Pearson correlation over all rows, and that correlation.

        r = (⟨a b⟩ − ⟨a⟩⟨b⟩) / √((⟨a²⟩ − ⟨a⟩²)(⟨b²⟩ − ⟨b⟩²))

    Args:
        mine: activations, [row latent].
        theirs: activations over the same rows, [row latent].
        latents: columns of `mine` that are matched, [latent].

    Returns:
        Match and correlation, each [latent]; −1 and NaN where a correlation is undefined.
    """
    mine, theirs = csc_array(mine[:, latents].astype(np.float64)), csc_array(theirs.astype(np.float64))
    n_rows, _ = cast("tuple[int, int]", theirs.shape)
    (mean_a, spread_a), (mean_b, spread_b) = _moments(mine), _moments(theirs)
    match, best = np.full(len(latents), -1, dtype=np.int64), np.full(len(latents), np.nan)
    if not spread_b.any():
        return match, best
    for first in range(0, len(latents), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        joint = (mine[:, part].T @ theirs).toarray() / n_rows - mean_a[part, None] * mean_b
        scale = spread_a[part, None] * spread_b
        r = np.where(scale > 0, joint / np.where(scale > 0, scale, 1.0), -np.inf)
        top = r.argmax(axis=1)
        known = spread_a[part] > 0
        match[part] = np.where(known, top, -1)
        best[part] = np.where(known, np.clip(r[np.arange(len(top)), top], -1, 1), np.nan)
    return match, best


def _moments(acts: csc_array) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each column, [latent]; 0 spread where a column is constant."""
    mean, square = np.asarray(acts.mean(axis=0)), np.asarray((acts**2).mean(axis=0))
    variance = square - mean**2
    return mean, np.sqrt(np.where(variance > 1e-12 * square, variance, 0.0))


def _labels(given: TransformTable, site: str, role: str) -> dict[tuple[int, str], str]:
    """(latent, concept) → label at one site and role; pairs without a label are left out."""
    at = np.flatnonzero((given["site"] == site) & (given["role"] == role) & (given["label"] != ""))
    return {(int(given["latent"][i]), str(given["concept"][i])): str(given["label"][i]) for i in at}


def _failed(correlation: float, least: float, said: str, label: str) -> str:
    failed = [f"correlation {correlation:.3f} below {least:.2f}"] if not correlation >= least else []
    if said != label:
        failed.append(f"the match is labelled '{said}'" if said else "the match is not labelled")
    return "; ".join(failed)


SHARE = 0.9
"""Least share of the mass, at the interval's near end, that makes a detector or an executor."""
FEWEST = 20
"""Active rows below which nothing is said."""


def role_mass(
    lab: LatentActs, pre: LatentActs, *, seed: int, first_example: int = FIRST_EXAMPLE, n_resamples: int = 200
) -> MassTable:
    """Where each latent has its mass.

    Args:
        lab: activations at `lab`.
        pre: activations of the same latents on the same prompts at `pre`.
        seed: of the prompt bootstrap.
        first_example: rows count from this example on.
        n_resamples: bootstrap resamples of prompts.

    Raises:
        TableError: when the two are of other sites, SAEs or prompts.
    """
    for what in ("site", "sae_id", "n_prompts", "n_examples"):
        if getattr(lab, what) != getattr(pre, what):
            raise TableError(
                f"mass at {lab.site.short}",
                f"{what} differs between roles",
                "Give one SAE's latents at `lab` and `pre` of the same prompts.",
            )
    sums = [_by_prompt(acts, first_example) for acts in (lab, pre)]
    times = resampled_clusters(np.arange(lab.n_prompts), n_resamples, np.random.default_rng(seed)).T
    share = _share(*(np.asarray(part.sum(axis=0), dtype=np.float64) for part in sums))
    again = _share(*(times @ part for part in sums))
    known = ~np.isnan(share)
    low, high = np.full(len(share), np.nan), np.full(len(share), np.nan)
    if known.any():
        low[known], high[known] = np.nanquantile(again[:, known], (0.025, 0.975), axis=0)
    n_active = sum(_active_rows(acts, first_example) for acts in (lab, pre))
    told = known & (n_active >= FEWEST)
    kind = np.full(len(share), "", dtype=object)
    kind[told & (low >= SHARE)], kind[told & (high <= 1 - SHARE)] = DETECTION, EXECUTION
    reason = np.where(told, "", f"active in fewer than {FEWEST} rows").astype(object)
    columns = {"lab_share": share, "ci_low": low, "ci_high": high, "n_active": n_active, "kind": kind}
    site = np.full(len(share), str(lab.site), dtype=object)
    return MassTable(columns | {"site": site, "latent": np.arange(lab.d_sae), "reason": reason})


def _active_rows(acts: LatentActs, first_example: int) -> Ints:
    """Rows that count in which each latent is active, [latent]."""
    example = np.repeat(np.arange(len(acts.indptr) - 1) % acts.n_examples, np.diff(acts.indptr))
    return np.bincount(acts.index[example >= first_example], minlength=acts.d_sae)


def _by_prompt(acts: LatentActs, first_example: int) -> csr_array:
    """Summed activation of each latent in each prompt, float32 [prompt latent]."""
    rows = np.arange(acts.n_prompts * acts.n_examples)
    used = rows[rows % acts.n_examples >= first_example]
    at = (used // acts.n_examples, used)
    member = coo_array((np.ones(len(used), np.float32), at), shape=(acts.n_prompts, len(rows))).tocsr()
    return csr_array(member @ acts.matrix)


def _share(lab: np.ndarray, pre: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.where(lab + pre > 0, lab / (lab + pre), np.nan)


CANDIDATE = "candidate"


def granted(table: TransformTable) -> TransformTable:
    """The rows whose label is granted."""
    return table.where(~np.isin(table["label"].astype(str), ("", CANDIDATE)))


def best_of(table: TransformTable, n: int, *, role: str | None = None) -> list[dict[str, Any]]:
    """The `n` best latents of each concept: granted labels first, then candidates, each by AUROC.

    Args:
        table: of several sites and roles.
        n: latents of each concept, over all places; fewer where fewer have a label.
        role: only at this role; any when not given.

    Returns:
        A row per latent: `concept`, `site`, `role`, `latent`, `label`, `auroc`, `sign`.
    """
    label = table["label"].astype(str)
    at = np.ones(len(table), dtype=bool) if role is None else table["role"] == role
    rows = np.flatnonzero((label != "") & at)
    order = rows[np.lexsort((-table["auroc"][rows], label[rows] == CANDIDATE))]
    taken: dict[str, int] = {}
    found = []
    for i in order:
        concept = str(table["concept"][i])
        taken[concept] = taken.get(concept, 0) + 1
        if taken[concept] <= n:
            names = ("concept", "site", "role", "label")
            found.append(
                {name: str(table[name][i]) for name in names}
                | {"latent": int(table["latent"][i]), "sign": int(table["sign"][i])}
                | {"auroc": float(table["auroc"][i])}
            )
    return sorted(found, key=lambda row: list(taken).index(row["concept"]))
