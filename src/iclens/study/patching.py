"""Patching in a study: residuals and heads (stage sweep), single latents and sets of them (stage patch).

Run A holds examples of the task; run B, the recipient, holds none or as many with other labels. The patches
themselves stand in `iclens.patching`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from iclens import schemas
from iclens.core import ROLES, Site, TaskError
from iclens.patching.heads import WHOLE_LAYER, Ablation, Heads, ablate_heads, direct_effects, head_scores
from iclens.patching.latents import carry_levels, linear_screen, patch_latents, single_effects
from iclens.patching.receiver import prepare_patch
from iclens.patching.redundancy import iterative_ablation, redundancy_index
from iclens.patching.runs import ZERO, Runs, build_runs, runs_by_query
from iclens.patching.sets import FULL, GREEDY, HALF, patch_controls, patch_sets
from iclens.patching.sweep import graded, logit_lens, response_curve, response_fits, sweep
from iclens.prompts.arms import default_rival, other_task
from iclens.prompts.tasks import Task
from iclens.saes.load import Sae
from iclens.study.run import RunContext
from iclens.study.store import joined
from iclens.table import Table

HEADLINE, MATCHED = "task on own x", "S arm"
"""The metric by which a layer works, and the recipient as long as run A."""
IN_QUERY = ROLES[: ROLES.index("pre") + 1]
NEEDED = 1.0
"""Nats of the belief from which the loss of a head counts."""
TAIL_HOOKS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""Hooks at which an addition enters the residual stream."""


def task_runs(run: RunContext, task: Task | None = None, **drawn: Any) -> Runs:
    """Runs A and B of a task, the study's own when none is given; `drawn` as `patching.runs` takes it."""
    section = run.config.prompts
    rule = section.rule if task is None else task
    declared = run.config.declared
    written = {"inputs": section.inputs, "template": section.template}
    return build_runs(run.model.tokenizer, rule, declared=declared, **written, **drawn)


# Sweep: whole residuals, and the heads that bring the task to where it sits.


def sweep_runs(run: RunContext, seed: int) -> dict[str, Runs]:
    """Runs of both recipients, with equal donors."""
    n_prompts, shown = run.config.sweep.n_prompts, run.config.sweep.donor_examples
    return {
        recipient: task_runs(run, recipient=recipient, n_prompts=n_prompts, donor_examples=shown, seed=seed)
        for recipient in (ZERO, MATCHED)
    }


def sweep_tables(run: RunContext, runs: Mapping[str, Runs]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Residuals moved at every layer, the best layer's by examples, and the logit lens; by the table's name.

    Returns:
        The tables; and `layer value base` of the row in which the residual at `pre`, put into the recipient
        without examples, brings the task most.
    """
    section, prompts = run.config.sweep, run.config.prompts
    roles = {ZERO: ("pre",), MATCHED: tuple(section.roles)}
    table = schemas.SweepTable.concat([
        sweep(run.model, runs[recipient], roles=roles[recipient], layers=section.layers, seed=section.seed)
        for recipient in runs
    ])  # fmt: skip
    at_pre = table.where((table["recipient"] == ZERO) & (table["metric"] == HEADLINE))
    row = int(np.nanargmax(at_pre["value"]))
    best = {name: at_pre[name][row].item() for name in ("layer", "value", "base")}
    most = section.donor_examples
    by_examples = graded(
        run.model, prompts.rule, layer=best["layer"], n_prompts=section.n_prompts, seed=section.seed,
        inputs=prompts.inputs, counts=sorted({n for n in (0, 1, 2, 4, 8, 12, 15) if n <= most} | {most}),
    )  # fmt: skip
    asked = [role for role in IN_QUERY if role in runs[MATCHED].target.roles]
    lens = logit_lens(run.model, runs[MATCHED], roles=asked, seed=section.seed)
    return {"sweep": table, "graded": by_examples, "lens": lens}, best


def head_tables(run: RunContext, runs: Mapping[str, Runs], layer: int) -> dict[str, Any]:
    """Every table on heads, by its name; `layer` is where the task works at `pre`.

    Heads are chosen on the sweep's prompts by the first ablation, and looked into, by the same ablation, on
    others. The ladder sets heads to zero at `pre`, as the recorded experiments do.
    """
    model, section = run.model, run.config.sweep
    heads = schemas.HeadTable.concat([
        ablate_heads(model, runs[MATCHED], kind=kind, place=place, seed=section.seed)
        for kind, place in section.ablations
    ])  # fmt: skip
    needed, fresh = needed_heads(heads, section.belief, section.n_needed), sweep_runs(run, section.seed + 1)
    kind, place = section.ablations[0] if section.ablations else ("zero", "pre")
    pairs = [((i, WHOLE_LAYER), (i + 1, WHOLE_LAYER)) for i in range(model.n_blocks - 1)]
    on_fresh = {"runs": fresh[MATCHED], "seed": section.seed}
    sets = [*([needed] if len(needed) > 1 else []), *pairs]
    index = redundancy_index(
        model, fresh[MATCHED], *(Ablation(some, kind, place) for some in sets), seed=section.seed
    )
    ladder = []
    if section.ladder_steps:
        ladder.append(iterative_ablation(
            model, fresh[ZERO], belief=section.belief, max_steps=section.ladder_steps,
            n_controls=section.ladder_controls, seed=section.seed,
        ))  # fmt: skip
    direct = [direct_effects(model, ablation=Ablation(needed, kind, place), **on_fresh)] if needed else []
    return {
        "heads": heads,
        "head_scores": head_scores(model, runs[MATCHED], reference_layer=layer, seed=section.seed),
        "redundancy": index, "direct": schemas.DirectTable.concat(direct),
        "redundancy_ladder": schemas.RedundancyLadderTable.concat(ladder),
    }  # fmt: skip


def needed_heads(table: schemas.HeadTable, belief: str, most: int) -> Heads:
    """Single heads whose loss under the first ablation costs the belief `NEEDED` or more, strongest first."""
    rows = table.where((table["metric"] == f"effect on {belief}") & (table["head"] != WHOLE_LAYER))
    if not len(rows):
        return ()
    first = (rows["kind"] == rows["kind"][0]) & (rows["place"] == rows["place"][0])
    rows = rows.where(first & (rows["effect"] <= -NEEDED) & (rows["ci_high"] < 0))
    order = np.argsort(rows["effect"], kind="stable")[:most]
    return tuple((int(rows["layer"][i]), int(rows["head"][i])) for i in order)


def sweep_figures(best: Mapping[str, Any], heads: Mapping[str, Any]) -> dict[str, Any]:
    """What the stage sweep says when it is done."""
    return {
        "best layer at pre, zero-example recipient": best["layer"],
        "P(task on own x) there": round(best["value"], 4),
        "without the patch": round(best["base"], 4),
        "head that the answer needs most": most_needed_head(heads["heads"]),
        "layers taken away until none brings the task": ladder_in_words(heads["redundancy_ladder"]),
    }


def most_needed_head(heads: schemas.HeadTable) -> str:
    """The head without which P(task on own x) falls most, in words."""
    single = heads.where((heads["metric"] == HEADLINE) & (heads["head"] != WHOLE_LAYER))
    if not len(single):
        return "not ablated"
    i = int(single["effect"].argmin())
    return (
        f"layer {single['layer'][i]} head {single['head'][i]}, {single['kind'][i]} at {single['place'][i]}: "
        f"{single['base'][i]:.3f} to {single['ablated'][i]:.3f}"
    )


def ladder_in_words(table: schemas.RedundancyLadderTable) -> str:
    """The redundancy ladder's steps in words."""
    if not len(table):
        return "not asked"
    last = len(table) - 1
    if not last:
        return table["reason"][0] or "no layer works even without"
    end = "none works" if np.isnan(table["first_layer"][last]) else f"layer {table['first_layer'][last]:.0f}"
    return f"{table['ablated'][last]}: {end}; {table['verdict'][last]}"


# Patch: latents, one by one, in sets, and back.


def left_out(run: RunContext) -> list[str]:
    """Followed sites that are not patched: not asked for, or what is added there reaches no stream."""
    section = run.config.patch
    wanted = set(run.saes) if section.sites is None else {Site.parse(site) for site in section.sites}
    return [
        site.short
        for site, sae in run.saes.items()
        if site.hook not in TAIL_HOOKS or sae.target is not None or site not in wanted
    ]


def wrong_task(run: RunContext) -> Task | None:
    """The task whose values serve as a control: the named one, or a rival with one answer per x, if any."""
    asked = run.config.prompts
    if run.config.patch.wrong_task is not None:
        return other_task(run.config.patch.wrong_task, asked.rule, asked.inputs)
    try:
        return other_task(asked.rival or default_rival(asked.rule).name, asked.rule, asked.inputs)
    except TaskError:
        return None


def patch_tables(run: RunContext, skipped: list[str], wrong: Task | None) -> dict[str, Any]:
    """Patches at every site and role of the config but the skipped sites, by the name of their table.

    Values of the task `wrong` serve as a control, if there is one.
    """
    section = run.config.patch
    drawn: dict[str, Any] = {
        "recipient": section.recipient, "n_prompts": section.n_prompts,
        "donor_examples": section.donor_examples, "seed": section.seed,
    }  # fmt: skip
    runs, others = task_runs(run, **drawn), None if wrong is None else task_runs(run, wrong, **drawn)
    return joined(
        (
            table
            for site, sae in run.saes.items() if site.short not in skipped
            for role in run.config.patch.roles
            for table in _patched(run, sae, role, runs, others)
        ),
        schemas.PatchTable, schemas.LadderTable, schemas.SetTable, schemas.ControlTable, schemas.ScreenTable,
    )  # fmt: skip


def _patched(run: RunContext, sae: Sae, role: str, runs: Runs, wrong: Runs | None) -> Iterator[Table]:
    """Everything that is asked at one site and role."""
    section, seed = run.config.patch, run.config.patch.seed
    of_sets = {
        "chosen_for": section.chosen_for, "largest": section.largest_set,
        "n_controls": section.n_random_sets, "seed": seed,
    }  # fmt: skip
    at = {"role": role, "donor_value": section.donor_value, "seed": seed}
    sufficient = prepare_patch(run.model, sae, runs, **at)
    effects = single_effects(sufficient, sufficient.differing)
    patches = patch_latents(
        sufficient, effects=effects, n_tested=section.n_tested, n_controls=section.n_controls, seed=seed
    )
    sets = patch_sets(sufficient, effects, **of_sets)
    yield patches
    yield carry_levels(sufficient, patches, seed=seed)
    yield sets
    necessary = prepare_patch(run.model, sae, runs, direction="necessity", **at)
    yield patch_sets(necessary, single_effects(necessary, necessary.differing), **of_sets)
    yield linear_screen(sufficient, sufficient.differing, effects)
    tested, whole = np.unique(patches["latent"][patches["n_controls"] > 0]), greedy_members(sets)
    groups = [np.array([latent]) for latent in tested] + ([np.array(whole)] if len(whole) > 1 else [])
    if groups:
        yield patch_controls(sufficient, groups, wrong=wrong, seed=seed)


def greedy_members(sets: schemas.SetTable) -> list[int]:
    """The fewest latents of a greedy order with `HALF` of the full activation's effect; else all of them.

    The size is chosen on the screening half, so that its share on the test half is not chosen to be large.
    """
    rows = sets.where((sets["kind"] == GREEDY) & (sets["belief"] == sets["chosen_for"]))
    if not len(rows):
        return []
    order = np.argsort(rows["size"])
    enough = [i for i in order if rows["screen_share"][i] >= HALF]
    return [int(member) for member in str(rows["members"][enough[0] if enough else order[-1]]).split()]


def response_tables(run: RunContext, patches: schemas.PatchTable, sets: schemas.SetTable) -> dict[str, Any]:
    """How the answer follows x when latents are patched, and fits of it; empty where it cannot be asked."""
    curves = _response_curves(run, patches, sets)
    fits = schemas.ResponseFitTable.concat([])
    if len(curves):
        fits = response_fits(curves, seed=run.config.patch.seed)
    return {"responses": curves, "response_fits": fits}


def _response_curves(
    run: RunContext, patches: schemas.PatchTable, sets: schemas.SetTable
) -> schemas.ResponseTable:
    """Curves at the site whose full activation at `pre` moves the belief most; empty where x is no number.

    Patched are, beside the rungs of the ladder, the smallest set that carries half, then each tested latent.
    """
    section, prompts = run.config.patch, run.config.prompts
    place = carrier(sets.where(sets["role"] == "pre"))
    if not section.response_donors or place is None or not all(x.isdigit() for x in prompts.inputs):
        return schemas.ResponseTable.concat([])
    members = greedy_members(sets.where(_at(sets, place) & (sets["direction"] == "sufficiency")))
    tested = np.unique(patches["latent"][_at(patches, place) & (patches["n_controls"] > 0)]).tolist()
    runs = runs_by_query(
        run.model.tokenizer, prompts.rule, prompts.inputs, recipient=section.recipient,
        donors=section.response_donors, donor_examples=section.donor_examples, seed=section.seed,
        template=prompts.template,
    )  # fmt: skip
    chosen = [members, *([latent] for latent in tested)] if members else []
    return response_curve(
        run.model, run.saes[Site.parse(place[0])], runs, sets=chosen, donor_value=section.donor_value,
        seed=section.seed,
    )  # fmt: skip


def carrier(sets: schemas.SetTable) -> tuple[str, str] | None:
    """Site and role whose full activation, put into B, raises the belief most; None without one."""
    full = sets.where(
        (sets["kind"] == FULL) & (sets["direction"] == "sufficiency") & (sets["belief"] == sets["chosen_for"])
    )
    if not len(full):
        return None
    best = int(np.argmax(np.nan_to_num(full["effect"], nan=-np.inf)))
    return str(full["site"][best]), str(full["role"][best])


def _at(table: Table, place: tuple[str, str] | None) -> np.ndarray:
    site, role = place or ("", "")
    return (table["site"] == site) & (table["role"] == role)


def patch_figures(
    patches: schemas.PatchTable, sets: schemas.SetTable, skipped: list[str], wrong: Task | None
) -> dict[str, Any]:
    """What the stage patch says when it is done."""
    called = patches.where(patches["q_value"] <= schemas.PATCH_Q)
    tested = patches.where(patches["n_controls"] > 0)
    greedy = sets.where(
        (sets["kind"] == GREEDY) & (sets["direction"] == "sufficiency") & (sets["screen_share"] >= HALF)
        & (sets["belief"] == sets["chosen_for"]) & _at(sets, carrier(sets))
    )  # fmt: skip
    few, largest = "none of those tried", float(np.nan_to_num(np.abs(tested["effect"])).max(initial=0.0))
    if len(greedy):
        i = int(np.argmin(greedy["size"]))
        few = (
            f"{greedy['size'][i]} latents at {Site.parse(greedy['site'][i]).short} {greedy['role'][i]}: "
            f"{greedy['share_of_full'][i]:.2f}, random sets {greedy['control_share'][i]:.2f}"
        )
    return {
        "latents patched": _n_latents(patches),
        "tested": _n_latents(tested),
        f"with an effect at q ≤ {schemas.PATCH_Q}": _n_latents(called),
        "largest tested effect, nats": round(largest, 3),
        "smallest set chosen to bring half of the full activation's effect": few,
        "sites not patched": skipped or "none",
        "task whose values are the control": "none suggests itself" if wrong is None else wrong.name,
    }


def _n_latents(table: Table) -> int:
    return len(set(zip(table["site"].tolist(), table["latent"].tolist(), strict=True)))
