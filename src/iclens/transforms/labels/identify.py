"""Which latents code which concept: chosen on discovery tasks, measured on held-out tasks.

1. Rows of the grid's prompts are labelled by each concept. 2. The direction (higher on positives or on
negatives) is chosen on discovery tasks. 3. On held-out tasks: AUROC against matched negatives, its
interval with prompts resampled, a p-value with prompts as the unit, and the worst confound with the
concept held fixed. 4. Benjamini–Hochberg over all pairs, then the gates: a label is granted, or the
latent is a `candidate` with the gate that failed, or it is neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control

from iclens.errors import TableError
from iclens.tables.activations import LatentActs
from iclens.tables.prompts import PromptSet
from iclens.tables.transforms import TransformTable
from iclens.transforms.concepts import IDENTITY, Concept
from iclens.transforms.grid import TaskGrid
from iclens.transforms.labels.identity import EVERY_CONCEPT, TASK_IDENTITY, measure_identity
from iclens.transforms.labels.measure import measure, split_rows
from iclens.transforms.rows import FIRST_EXAMPLE, read_rows


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
