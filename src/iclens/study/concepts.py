"""Concepts: what latents answer to on the task grid, how well each can be read, and what its latents do.

The stage identify follows every latent on the grid's prompts once and keeps it (`follow_grid`, `saved_grid`);
labels, probes, the mechanism and the pages all read that. The measures themselves stand in
`iclens.concepts` and `iclens.patching`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from iclens import schemas
from iclens.activations import LatentActs
from iclens.concepts import labels, language
from iclens.concepts.confidence import confidence
from iclens.concepts.mlp import creation, operands
from iclens.concepts.probes import probe
from iclens.concepts.transport import READ_BY_THE_NEXT, transport
from iclens.concepts.tuning import AXES, fit_tunings, operand_map, period_subspaces, task_means, tuning
from iclens.core import SaeError, Site
from iclens.model.run import record, record_neurons
from iclens.patching.receiver import prepare_patch
from iclens.patching.specificity import ablate_all_examples, specificity
from iclens.prompts.build import PromptSet
from iclens.saes.load import Sae, load_saes
from iclens.study.grid import GRID_ARM, asked_concepts, grid_prompts, task_grid
from iclens.study.inputs import locate
from iclens.study.patching import MATCHED, TAIL_HOOKS, task_runs
from iclens.study.run import RunContext, latents_name
from iclens.study.store import Arrays, load_prompts
from iclens.table import Floats, Ints
from iclens.tracking import Place, track

WIDTH = 10
"""Of a box of an operand map."""
MAX_FOLDS = 6
"""Folds of a probe at most; each holds out whole tasks."""
PERIODS_OF = "odd"
"""The concept whose best place is asked for periods of y beyond 2."""
LAB = "lab"
EVERYWHERE_CONTROLS = 19
"""Controls, at most, of an ablation at every example, by full passes; with 19, p can be .05."""
OWN_ANSWER = "exact"
"""The belief that reads the identity of the study's own task."""


@dataclass(frozen=True)
class FollowedGrid:
    """Every latent on the task grid's prompts, at `transforms.roles`."""

    grid: language.TaskGrid  # its tasks, split into discovery and held-out ones
    prompts: PromptSet  # of every task of the grid, with its own labels
    latents: Mapping[Place, LatentActs]  # (site, role) → active latents
    # the model's log P of the label shown, read at `pre` before it, nats [prompt example]
    label_log_prob: Floats


def follow_grid(run: RunContext, saes: Mapping[Site, Sae]) -> FollowedGrid:
    """Follow the latents of `saes` on the grid, in one pass of the model.

    Of answers of all its tasks that begin with one token, its probability is read.
    """
    config = run.config
    prompts = grid_prompts(
        config, run.model.tokenizer, n_prompts=config.grid.n_prompts, seed=config.grid.seed
    )
    tracked = track(run.model, saes, prompts, config.transforms.roles, config.track.batch, shared=True)
    column = {answer: i for i, answer in enumerate(tracked.probs.answers)}
    shown = np.vectorize(column.__getitem__, otypes=[np.int64])(prompts.y)
    log_prob = np.take_along_axis(tracked.probs.log_prob, shown[..., None], axis=2)[..., 0]
    return FollowedGrid(task_grid(config), prompts, tracked.latents, log_prob)


def saved_grid(run: RunContext) -> FollowedGrid:
    """The followed grid that the stage identify kept; latents are mapped into memory."""
    folder = run.of("identify")
    places = [(site, role) for site in run.saes for role in run.config.transforms.roles]
    latents = {
        (site, role): LatentActs.open(folder / f"{latents_name(GRID_ARM, site, role)}.safetensors")
        for site, role in places
    }
    log_prob = run.arrays("identify", "grid_labels")["log_prob"]
    return FollowedGrid(task_grid(run.config), load_prompts(folder, GRID_ARM), latents, log_prob)


# Labels: which latents answer to which concept.


def labelled(run: RunContext, followed: FollowedGrid) -> schemas.TransformTable:
    """Every latent asked for every concept, and the labels that the held-out tasks grant."""
    section = run.config.transforms
    return labels.identify(
        list(followed.latents.values()), followed.prompts, asked_concepts(run.config), grid=followed.grid,
        seed=section.seed, q=section.q,
    )  # fmt: skip


def label_tables(run: RunContext, table: schemas.TransformTable, followed: FollowedGrid) -> dict[str, Any]:
    """What labels rest on, by name: masses, tunings, means by task, and what the grid's labels were."""
    acts, prompts, rules = followed.latents, followed.prompts, followed.grid.rules
    seed = run.config.transforms.seed
    both = [site for site, role in acts if role == LAB and (site, "pre") in acts]
    means = {
        f"{site.short} {role}": task_means(of_site, prompts, rules, np.arange(of_site.d_sae)).mean
        for (site, role), of_site in acts.items()
    }
    fits = [
        fit_tunings(one, language.read_rows(prompts, one.role, rules), seed=seed) for one in acts.values()
    ]
    curves, maps = _tuning_of_best(table, followed, run.config.transforms.shown)
    marginals = language.slope_marginals(language.read_rows(prompts, LAB, rules))
    return {
        # Detection and execution, where both roles are followed.
        "masses": schemas.MassTable.concat(
            [labels.role_mass(acts[s, LAB], acts[s, "pre"], seed=seed) for s in both]
        ),
        "tunings": schemas.TuningTable.concat(fits),
        "tuning_curves": curves,
        "operand_maps": maps,
        "task_means": Arrays(
            {name: values.astype(np.float32) for name, values in means.items()},
            {"tasks": list(dict.fromkeys(prompts.task.tolist()))},
        ),
        "grid_labels": Arrays({"log_prob": followed.label_log_prob}),
        GRID_ARM: followed.grid.declared() | {"y marginals of slopes": marginals},
    }


def _tuning_of_best(
    table: schemas.TransformTable, followed: FollowedGrid, n: int
) -> tuple[schemas.TuningCurveTable, schemas.OperandMapTable]:
    """Tuning curves and operand maps of the `n` best latents of each concept."""
    curves: list[schemas.TuningCurveTable] = []
    maps: list[schemas.OperandMapTable] = []
    for row in labels.best_of(table, n):
        key = {name: row[name] for name in ("concept", "site", "role", "latent")}
        acts = followed.latents[Site.parse(row["site"]), row["role"]]
        latent = (acts, followed.prompts, followed.grid.rules, np.array([row["latent"]]))
        for axis in AXES:
            means = tuning(*latent, by=axis)
            curves.append(schemas.TuningCurveTable(_repeated(key | {"of": axis}, len(means.groups)) | {
                "value": means.groups, "mean": means.mean[0], "n_rows": means.n_rows,
            }))  # fmt: skip
        means = operand_map(*latent, width=WIDTH)
        maps.append(schemas.OperandMapTable(_repeated(key | {"width": WIDTH}, len(means.groups)) | {
            "x": means.groups[:, 0], "y": means.groups[:, 1], "mean": means.mean[0], "n_rows": means.n_rows,
        }))  # fmt: skip
    return schemas.TuningCurveTable.concat(curves), schemas.OperandMapTable.concat(maps)


def _repeated(values: dict[str, Any], n: int) -> dict[str, Any]:
    return {name: np.full(n, value, dtype=object) for name, value in values.items()}


def label_stability(
    run: RunContext, table: schemas.TransformTable, followed: FollowedGrid
) -> schemas.StabilityTable:
    """Whether each label is granted again in the other SAE sets that the config names."""
    others: dict[str, tuple[schemas.TransformTable, Sequence[LatentActs]]] = {}
    for name in run.config.transforms.other_saes:
        saes = {site: sae for site, sae in load_saes(locate(name), run.model).items() if site in run.saes}
        if not saes:
            have = ", ".join(site.short for site in run.saes)
            raise SaeError(
                f"transforms.other_saes: '{name}'", f"it has no SAE at {have}", "Name a set of these sites."
            )
        again = follow_grid(run, saes)
        others[name] = (labelled(run, again), list(again.latents.values()))
    return labels.stability(table, list(followed.latents.values()), others)


def label_figures(
    table: schemas.TransformTable, grid: language.TaskGrid, steady: schemas.StabilityTable
) -> dict[str, Any]:
    """What the stage identify says when it is done."""
    again = "not asked: transforms.other_saes names none, or no label is granted"
    if len(steady):
        again = f"{int(steady['stable'].sum())} of {len(steady)}"
    beyond = table.where(
        (table["confounding"] > labels.Gates().confounding) & (table["concept"] != language.IDENTITY)
    )
    confounded = sorted({f"{c} at {r}" for c, r in zip(beyond["concept"], beyond["role"], strict=True)})
    return {
        "latents with a label": dict(Counter(label for _, _, label in _distinct(labels.granted(table)))),
        "candidates": len({pair[:2] for pair in _distinct(table.where(table["label"] == labels.CANDIDATE))}),
        "tasks": {"discovery": len(grid.discovery), "held out": len(grid.held_out)},
        "labels found in other SAEs": again,
        "no label possible (V)": confounded or "none",
    }


def _distinct(table: schemas.TransformTable) -> set[tuple[str, int, str]]:
    """Site, latent and label, whatever the role."""
    return set(zip(table["site"].tolist(), table["latent"].tolist(), table["label"].tolist(), strict=True))


# Probes: each concept read from few latents or from everything, where a single latent told it best.


def probe_tables(run: RunContext, followed: FollowedGrid, table: schemas.TransformTable) -> dict[str, Any]:
    """Probes of every concept at its best place, and period subspaces at that of `PERIODS_OF`."""
    probes, subspaces = [], []
    for concept in asked_concepts(run.config):
        place = None if concept is labels.TASK_IDENTITY else best_place(table, concept)
        if place is None:
            continue
        rows, read = representations(run, followed, concept, place)
        where, section = {"site": place[0], "role": place[1]}, run.config.transforms
        probes.append(
            probe(
                read, concept, rows, site=str(place[0]), role=place[1], seed=section.seed,
                max_rows=section.probe_rows, max_folds=MAX_FOLDS,
            )
        )  # fmt: skip
        if concept.name == PERIODS_OF:
            sides = [np.isin(rows.task, names) for names in (followed.grid.discovery, followed.grid.held_out)]
            subspaces += [
                period_subspaces(
                    read[name], rows.y, *sides, **where, representation=name, of="y", seed=section.seed
                )
                for name in ("latents", "activation")
            ]
    return {"probes": schemas.ProbeTable.concat(probes), "subspaces": schemas.SubspaceTable.concat(subspaces)}


def best_place(table: schemas.TransformTable, concept: language.Concept) -> Place | None:
    """Where a latent told a concept best on the discovery tasks; None where it was not measured."""
    rows = table.where((table["concept"] == concept.name) & ~np.isnan(table["discovery_auroc"]))
    if not len(rows):
        return None
    best = int(rows["discovery_auroc"].argmax())
    return Site.parse(str(rows["site"][best])), str(rows["role"][best])


def representations(
    run: RunContext, followed: FollowedGrid, concept: language.Concept, place: Place
) -> tuple[language.Rows, dict[str, Any]]:
    """Rows of some prompts of every task that the concept uses, and their `latents`, `neurons`, `activation`.

    The raw activation and the block's MLP neurons are recorded at the place, [row width] each.
    """
    site, role = place
    every = language.read_rows(followed.prompts, role, followed.grid.rules)
    some = some_prompts(every, concept, run.config.transforms.probe_rows)
    used = np.isin(every.prompt, some) & (every.example >= language.FIRST_EXAMPLE)
    rows, batch = every.take(used), run.config.track.batch
    tokens = followed.prompts.tokens[some]
    positions = followed.prompts.positions(role)[language.FIRST_EXAMPLE :]
    activation = record(run.model, tokens, [site], positions, batch=batch)[site]
    neurons = record_neurons(run.model, tokens, site.layer, positions, batch=batch)
    return rows, {
        "latents": csr_array(followed.latents[place].matrix[np.flatnonzero(used)]),
        "neurons": neurons.reshape(len(rows), -1),
        "activation": activation.reshape(len(rows), -1),
    }


def some_prompts(rows: language.Rows, concept: language.Concept, n_rows: int) -> Ints:
    """Prompts, ascending, with about twice `n_rows` rows that the concept uses, as many of each task."""
    used = (concept.contrast.label(rows) != 0) & (rows.example >= language.FIRST_EXAMPLE)
    prompts, first = np.unique(rows.prompt[used], return_index=True)
    task = rows.task[used][first]
    per_prompt = max(1.0, used.sum() / max(len(prompts), 1))
    each = max(2, round(2 * n_rows / per_prompt / max(len(np.unique(task)), 1)))
    return np.sort(np.concatenate([prompts[task == name][:each] for name in np.unique(task)]))


# Mechanism: what moving labelled latents does, what MLPs write at `lab`, and where it is carried.


def mechanism_tables(
    run: RunContext, followed: FollowedGrid, table: schemas.TransformTable
) -> dict[str, Any]:
    """The causal matrix, what MLPs read and write, confidence and transport, by the name of the table."""
    matrix = causal_matrix(run, table)
    read, created = written_at_lab(run, followed)
    sizes, carried = confidence_and_transport(run, followed, table)
    return {
        "specificity": matrix, "operands": read, "creation": created, "confidence": sizes,
        "transport": carried,
    }  # fmt: skip


def causal_matrix(run: RunContext, table: schemas.TransformTable) -> schemas.SpecificityTable:
    """Each concept's best latents, moved where they were found; those at `lab` at every example as well.

    All of it in runs of the study's own task, so of task identities only this task's are moved.
    """
    section, config = run.config.transforms, run.config
    own = {one.name: one.belief for one in asked_concepts(config) if one.belief in config.belief_names}
    own[language.IDENTITY] = OWN_ANSWER
    elsewhere = (table["concept"] == language.IDENTITY) & (table["of"] != config.prompts.rule.name)
    by_place: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
    for row in labels.best_of(table.where(~elsewhere), section.shown):
        latent = (row["latent"], row["concept"], row["label"])
        by_place.setdefault((row["site"], row["role"]), []).append(latent)
    parts, runs = [], task_runs(
        run, recipient=MATCHED, n_prompts=section.n_pairs, donor_examples=section.donor_examples,
        seed=section.seed,
    )  # fmt: skip
    for (site, role), chosen in by_place.items():
        sae = run.saes[Site.parse(site)]
        if sae.site.hook not in TAIL_HOOKS:
            continue
        both = [
            prepare_patch(run.model, sae, runs, role=role, direction=direction, seed=section.seed)
            for direction in ("necessity", "sufficiency")
        ]
        parts.append(specificity(both, chosen, own, n_controls=section.n_controls, seed=section.seed))
        if role == LAB:
            parts.append(ablate_all_examples(
                run.model, sae, runs, chosen, own, role=role,
                n_controls=min(EVERYWHERE_CONTROLS, section.n_controls), seed=section.seed,
            ))  # fmt: skip
    return schemas.SpecificityTable.concat(parts)


def written_at_lab(
    run: RunContext, followed: FollowedGrid
) -> tuple[schemas.OperandTable, schemas.CreationTable]:
    """At every block: operands that attention and MLP read, and concepts that the MLP writes at `lab`."""
    section, batch = run.config.transforms, run.config.track.batch
    layers = section.layers or list(range(run.model.n_blocks))
    for layer in section.layers or ():
        run.model.check_site(Site(layer, "mlp_out"))
    rows = language.read_rows(followed.prompts, LAB, followed.grid.rules)
    concepts = [concept for concept in asked_concepts(run.config) if concept is not labels.TASK_IDENTITY]
    read = operands(run.model, followed.prompts, rows, layers=layers, seed=section.seed, batch=batch)
    created = creation(
        run.model, followed.prompts, rows, concepts, followed.grid, layers=layers, seed=section.seed,
        batch=batch, max_rows=2 * section.probe_rows,
    )  # fmt: skip
    return read, created


def confidence_and_transport(
    run: RunContext, followed: FollowedGrid, table: schemas.TransformTable
) -> tuple[schemas.ConfidenceTable, schemas.TransportTable]:
    """What the sizes of the best latents at `lab` follow, and where the values they write are read."""
    section = run.config.transforms
    best = labels.best_of(table, section.shown, role=LAB)
    chosen = [(Site.parse(row["site"]), row["latent"], row["concept"]) for row in best]
    carried = [latent for latent in chosen if latent[0].hook in READ_BY_THE_NEXT]
    at_lab = [acts for (_, role), acts in followed.latents.items() if role == LAB]
    known = [concept for concept in asked_concepts(run.config) if concept is not labels.TASK_IDENTITY]
    rows, concepts = (
        language.read_rows(followed.prompts, LAB, followed.grid.rules),
        known or language.CONCEPTS,
    )
    sizes = confidence(at_lab, chosen, followed.label_log_prob, rows, seed=section.seed, concepts=concepts)
    prompts = run.prompts(run.config.treated)
    return sizes, transport(run.model, run.saes, prompts, carried, seed=section.seed)


def mechanism_figures(run: RunContext, tables: Mapping[str, Any]) -> dict[str, Any]:
    """What the stage transforms says when it is done."""
    matrix, created, sizes = (tables[name] for name in ("specificity", "creation", "confidence"))
    own = matrix.where(matrix["own"] & (matrix["latent"] >= 0) & (matrix["n_active"] > 0))
    active = sizes.where(sizes["over"] == "active rows")
    blocks = created.where(created["source"] == "mlp_out")["verdict"].astype(str)
    able = set(TAIL_HOOKS) & set(READ_BY_THE_NEXT)
    return {
        "latents that move their own belief most, controls aside": (
            f"{_n_latents(own.where(own['specific']))} of {_n_latents(own)}"
        ),
        "concepts at lab, by block": _counted(verdict.split(":")[0] for verdict in blocks),
        "sizes of active latents at lab": _counted(
            kind or "not told" for kind in active["verdict"].astype(str)
        ),
        "sites not moved or followed": [s.short for s in run.saes if s.hook not in able] or "none",
    }


def _n_latents(table: schemas.SpecificityTable) -> int:
    return len(set(zip(table["site"].tolist(), table["latent"].tolist(), strict=True)))


def _counted(texts: Iterable[str]) -> dict[str, int]:
    return dict(Counter(texts).most_common())
