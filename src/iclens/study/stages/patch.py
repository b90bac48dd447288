"""Latents from run A into run B → PatchTable, SetTable and their controls; and how the answer follows x."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from iclens.core import Site, TaskError
from iclens.patching.latents import linear_screen, patch_ladder, patch_latents, single_effects
from iclens.patching.receiver import gather
from iclens.patching.runs import Runs, build_runs, runs_by_query
from iclens.patching.sets import FULL, GREEDY, HALF, patch_controls, patch_sets
from iclens.patching.sweep import response_curve, response_fits
from iclens.prompts.arms import default_rival, other_task
from iclens.prompts.tasks import Task
from iclens.saes.load import Sae
from iclens.schemas import (
    PATCH_Q,
    ControlTable,
    LadderTable,
    PatchTable,
    ResponseFitTable,
    ResponseTable,
    ScreenTable,
    SetTable,
)
from iclens.study.bench import Bench
from iclens.table import Table

PATCHES, LADDER, SETS = "patches.parquet", "ladder.parquet", "sets.parquet"
CONTROLS, SCREENS = "patch_controls.parquet", "screens.parquet"
RESPONSES, FITS = "responses.parquet", "response_fits.parquet"
WRITTEN: dict[str, type[Table]] = {
    PATCHES: PatchTable, LADDER: LadderTable, SETS: SetTable, CONTROLS: ControlTable, SCREENS: ScreenTable,
}  # fmt: skip
"""File → its table, each gathered over sites and roles."""
TAIL_HOOKS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""Hooks at which an addition enters the residual stream."""


@dataclass
class Found:
    """The tables of the places patched so far."""

    parts: dict[str, list[Any]] = field(default_factory=lambda: {file: [] for file in WRITTEN})

    def add(self, **tables: Table) -> None:
        """Keep the tables of one more place, by the name of their file."""
        for name, table in tables.items():
            self.parts[f"{name}.parquet"].append(table)

    def whole(self, file: str) -> Any:
        """One table of all places."""
        return WRITTEN[file].concat(self.parts[file])


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write the tables of `WRITTEN`, and the response curve of the site that carries most."""
    section = bench.config.patch
    wanted = None if section.sites is None else {Site.parse(site) for site in section.sites}
    skipped = [
        site.short for site, sae in bench.saes.items()
        if not _patchable(site, sae) or (wanted is not None and site not in wanted)
    ]  # fmt: skip
    runs, other = _runs(bench, bench.config.prompts.rule), wrong_task(bench)
    wrong = None if other is None else _runs(bench, other)
    found = Found()
    for site, sae in bench.saes.items():
        if site.short not in skipped:
            for role in section.roles:
                _place(bench, sae, role, (runs, wrong), found)
    for file in WRITTEN:
        found.whole(file).save(folder / file)
    sets = found.whole(SETS)
    responses = _responses(bench, found.whole(PATCHES), sets)
    responses.save(folder / RESPONSES)
    fits = response_fits(responses, seed=section.seed) if len(responses) else ResponseFitTable.concat([])
    fits.save(folder / FITS)
    return _summary(found.whole(PATCHES), sets) | {
        "sites not patched": skipped or "none",
        "task whose values are the control": "none suggests itself" if other is None else other.name,
    }


def _patchable(site: Site, sae: Sae) -> bool:
    return site.hook in TAIL_HOOKS and sae.target is None


def wrong_task(bench: Bench) -> Task | None:
    """The task whose values serve as a control: the named one, or a rival with one answer per x, if any."""
    rule = bench.config.prompts.rule
    if bench.config.patch.wrong_task is not None:
        return other_task(bench.config.patch.wrong_task, rule)
    try:
        return other_task(bench.config.prompts.rival or default_rival(rule).name, rule)
    except TaskError:
        return None


def _runs(bench: Bench, task: Task) -> Runs:
    section = bench.config.patch
    return build_runs(
        bench.model.tokenizer, task, recipient=section.recipient, n_prompts=section.n_prompts,
        donor_examples=section.donor_examples, seed=section.seed, inputs=bench.config.prompts.inputs,
        declared=bench.config.declared,
    )  # fmt: skip


def _place(bench: Bench, sae: Sae, role: str, runs: tuple[Runs, Runs | None], found: Found) -> None:
    """Everything that is asked at one site and role."""
    section, seed = bench.config.patch, bench.config.patch.seed
    of_sets = {
        "chosen_for": section.chosen_for, "largest": section.largest_set,
        "n_controls": section.n_random_sets, "seed": seed,
    }  # fmt: skip
    asked = {"role": role, "donor_value": section.donor_value, "seed": seed}
    held = gather(bench.model, sae, runs[0], **asked)
    effects = single_effects(held, held.differing)
    patches = patch_latents(
        held, effects=effects, n_tested=section.n_tested, n_controls=section.n_controls, seed=seed
    )
    sets = patch_sets(held, effects, **of_sets)
    needed = gather(bench.model, sae, runs[0], direction="necessity", **asked)
    back = patch_sets(needed, single_effects(needed, needed.differing), **of_sets)
    tested = np.unique(patches["latent"][patches["n_controls"] > 0])
    groups = [np.array([latent]) for latent in tested]
    whole = greedy_members(sets)
    groups += [np.array(whole)] if len(whole) > 1 else []
    found.add(patches=patches, ladder=patch_ladder(held, patches, seed=seed), sets=sets)
    found.add(sets=back, screens=linear_screen(held, held.differing, effects))
    if groups:
        found.add(patch_controls=patch_controls(held, groups, wrong=runs[1], seed=seed))


def greedy_members(sets: SetTable) -> list[int]:
    """The fewest latents of a greedy order with `HALF` of the full activation's effect; else all of them.

    The size is chosen on the screening half, so that its share on the test half is not chosen to be large.

    Args:
        sets: one place, sufficiency.
    """
    rows = sets.where((sets["kind"] == GREEDY) & (sets["belief"] == sets["chosen_for"]))
    if not len(rows):
        return []
    order = np.argsort(rows["size"])
    enough = [i for i in order if rows["screen_share"][i] >= HALF]
    return [int(member) for member in str(rows["members"][enough[0] if enough else order[-1]]).split()]


def _responses(bench: Bench, patches: PatchTable, sets: SetTable) -> ResponseTable:
    """Curves at the site whose full activation at `pre` moves the belief most; empty where x is no number.

    Patched are, beside the rungs of the ladder, the smallest set that carries half, then each tested latent.
    """
    section, prompts = bench.config.patch, bench.config.prompts
    place = carrier(sets.where(sets["role"] == "pre"))
    if not section.response_donors or place is None or not all(x.isdigit() for x in prompts.inputs):
        return ResponseTable.concat([])
    site = place[0]
    here = np.array([other == place for other in _places(sets)]) & (sets["direction"] == "sufficiency")
    members = greedy_members(sets.where(here))
    runs = runs_by_query(
        bench.model.tokenizer, prompts.rule, prompts.inputs, recipient=section.recipient,
        donors=section.response_donors, donor_examples=section.donor_examples, seed=section.seed,
    )  # fmt: skip
    sae = bench.saes[Site.parse(site)]
    sets_ = [members, *([latent] for latent in _tested(patches, place))] if members else []
    return response_curve(
        bench.model, sae, runs, sets=sets_, donor_value=section.donor_value, seed=section.seed
    )


def _tested(patches: PatchTable, place: tuple[str, str]) -> list[int]:
    """The latents of a site and role that were compared with matched random ones."""
    here = (patches["site"] == place[0]) & (patches["role"] == place[1]) & (patches["n_controls"] > 0)
    return np.unique(patches["latent"][here]).tolist()


def _places(sets: SetTable) -> list[tuple[str, str]]:
    return list(zip(sets["site"].tolist(), sets["role"].tolist(), strict=True))


def carrier(sets: SetTable) -> tuple[str, str] | None:
    """Site and role whose full activation, put into B, raises the belief most; None without one."""
    full = sets.where(
        (sets["kind"] == FULL) & (sets["direction"] == "sufficiency") & (sets["belief"] == sets["chosen_for"])
    )
    if not len(full):
        return None
    return _places(full)[int(np.argmax(np.nan_to_num(full["effect"], nan=-np.inf)))]


def _summary(table: PatchTable, sets: SetTable) -> dict[str, Any]:
    """What the stage says when it is done."""
    called, tested = table.where(table["q_value"] <= PATCH_Q), table.where(table["n_controls"] > 0)
    place = carrier(sets)
    greedy = sets.where(
        (sets["kind"] == GREEDY) & (sets["direction"] == "sufficiency") & (sets["screen_share"] >= HALF)
        & (sets["belief"] == sets["chosen_for"]) & [here == place for here in _places(sets)]
    )  # fmt: skip
    few, largest = "none of those tried", float(np.nan_to_num(np.abs(tested["effect"])).max(initial=0.0))
    if len(greedy):
        i = int(np.argmin(greedy["size"]))
        few = (
            f"{greedy['size'][i]} latents at {Site.parse(greedy['site'][i]).short} {greedy['role'][i]}: "
            f"{greedy['share_of_full'][i]:.2f}, random sets {greedy['control_share'][i]:.2f}"
        )
    return {
        "latents patched": len(set(zip(table["site"], table["latent"], strict=True))),
        "tested": len(set(zip(tested["site"], tested["latent"], strict=True))),
        f"with an effect at q ≤ {PATCH_Q}": len(set(zip(called["site"], called["latent"], strict=True))),
        "largest tested effect, nats": round(largest, 3),
        "smallest set chosen to bring half of the full activation's effect": few,
    }
