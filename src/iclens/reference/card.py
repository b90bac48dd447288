"""The card of a published model: what it was trained on, how well it learned, what is built in.

A card is written twice, as `card.json` for programs and as `README.md` for people (from `card.md.j2`).
Every figure comes from `reference.evaluate` and `reference.interchange`, measured on the published files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import pandas as pd

from iclens.reference.fidelity import Evaluation, TaskTable
from iclens.reference.interchange import InterchangeTable
from iclens.reference.recipe import Recipe
from iclens.tables.frame import Table

_SHOTS = (0, 1, 2, 4, 8, 12, 15)
_DONOR_EXAMPLES = 12
_OVERALL = ("condition", "kl", "kl_se", "r", "slope", "r_beliefs", "slope_beliefs", "n_contexts")
_BY_SHOTS = ("condition", "n_seen", "top1", "exact_top1", "p_correct", "exact_p_correct", "kl")

_BY_TASK = ("task", "n_seen", "top1", "exact_top1", "p_correct", "exact_p_correct", "kl")
_WEAK = 0.85
"""A task is told as not well learned when P(correct) is below this share of the exact learner's."""


@dataclass(frozen=True)
class Card:
    """Everything that a card states.

    Args:
        name: the published folder's name.
        fingerprint: of its config and weights.
        blocks: number of blocks.
        parameters: number of weights.
        with_site: whether interchange-intervention training gave it a task-formation site.
        recipe: the recipe it was trained by.
        stages: what was trained, in order: stage, steps, planned_steps, tokens, minutes.
        log: training losses along the way.
        evaluation: against the exact posterior.
        tasks: every task by itself.
        interchange: whole-residual interchange at `pre`, donors never used as such in training.
        versions: package → version.
    """

    name: str
    fingerprint: str
    blocks: int
    parameters: int
    with_site: bool
    recipe: Recipe
    stages: Sequence[dict[str, Any]]
    log: Sequence[dict[str, Any]]
    evaluation: Evaluation
    tasks: TaskTable
    interchange: InterchangeTable
    versions: dict[str, str]

    @property
    def site(self) -> dict[str, Any] | None:
        """The task-formation site that training built in: hook, role, excluded donors; or None."""
        settings = self.recipe.interchange
        hook = f"blocks.{settings.block}.hook_resid_pre"
        built = {"hook": hook, "role": "pre", "excluded_donors": settings.excluded_donors}
        return built if self.with_site else None

    def as_json(self) -> str:
        """The card for programs; an undefined figure is null."""
        fields = {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "blocks": self.blocks,
            "parameters": self.parameters,
            "built_in_site": self.site,
            "training": list(self.stages),
            "training_log": list(self.log),
            "recipe": self.recipe.model_dump(),
            "evaluation": {
                "seed": self.evaluation.seed,
                "overall": _records(self.evaluation.overall),
                "shots": _records(self.evaluation.shots),
                "tasks": _records(self.tasks),
            },
            "interchange": _records(self.interchange),
            "versions": self.versions,
        }
        return json.dumps(fields, indent=1, allow_nan=False) + "\n"

    def as_markdown(self) -> str:
        """The card for people."""
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("iclens.reference", ""),
            undefined=jinja2.StrictUndefined,
            autoescape=False,  # Markdown from our own recipe, not a page
            keep_trailing_newline=True,
        )
        return environment.get_template("card.md.j2").render(
            name=self.name,
            fingerprint=self.fingerprint,
            blocks=self.blocks,
            parameters=self.parameters,
            site=self.site,
            block=self.recipe.interchange.block,
            recipe=self.recipe,
            mixture=self.recipe.declared_mixture,
            evaluation=self.evaluation,
            versions=self.versions,
            **self._data_tables(),
            **self._figure_tables(),
        )

    def _data_tables(self) -> dict[str, str]:
        mixture = self.recipe.declared_mixture
        families = [
            (family, declared["weight"], ", ".join(f"`{spec}`" for spec in declared["tasks"]))
            for family, declared in self.recipe.mixture["families"].items()
        ]
        stages = []
        for s in self.stages:
            steps = f"{s['steps']:,} of {s['planned_steps']:,}"
            stages.append((s["stage"], steps, f"{s['tokens'] / 1e6:.1f} M", f"{s['minutes']:.0f}"))
        return {
            "noise": _markdown(
                ["noise level", *map("{:g}".format, mixture.noise_levels)],
                [["prior", *map("{:g}".format, mixture.noise_prior)]],
            ),
            "families": _markdown(["family", "weight", "tasks"], families),
            "stages": _markdown(["stage", "steps", "tokens", "minutes"], stages),
        }

    def _figure_tables(self) -> dict[str, Any]:
        overall, shots = self.evaluation.overall.df, self.evaluation.shots.df
        chosen = shots[shots["n_seen"].isin(_SHOTS)][list(_BY_SHOTS)]
        tasks = self.tasks.df
        weak = tasks[tasks["p_correct"] < _WEAK * tasks["exact_p_correct"]].sort_values("p_correct")
        frame = self.interchange.df
        seen = int(frame["n_seen"][frame["n_seen"] <= _DONOR_EXAMPLES].max())
        return {
            "overall": _markdown(_OVERALL, overall[list(_OVERALL)].itertuples(index=False)),
            "shots": _markdown(_BY_SHOTS, chosen.itertuples(index=False)),
            "weak": _markdown(_BY_TASK, weak[list(_BY_TASK)].itertuples(index=False)) if len(weak) else "",
            "weak_below": _WEAK,
            "donor_examples": seen,
            "by_layer": _crossed(frame[frame["n_seen"] == seen], "layer"),
            "graded": _crossed(frame[frame["layer"] == self.recipe.interchange.block], "n_seen"),
        }


def _crossed(frame: pd.DataFrame, axis: str) -> str:
    """p_task / p_copy by task and `axis`, as a Markdown table."""
    cells = (frame["p_task"].map("{:.2f}".format) + " / " + frame["p_copy"].map("{:.2f}".format)).rename(
        "cell"
    )
    wide = frame[["task", axis]].join(cells).pivot(index="task", columns=axis, values="cell").reset_index()
    return _markdown([f"task, {axis}", *map(str, wide.columns[1:])], wide.itertuples(index=False))


def _records(table: Table) -> list[dict[str, Any]]:
    def defined(value: Any) -> Any:
        return None if isinstance(value, float) and math.isnan(value) else value

    columns = {name: table[name].tolist() for name in table.COLUMNS}
    return [{name: defined(values[row]) for name, values in columns.items()} for row in range(len(table))]


def _markdown(names: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; fractions get three decimals and an undefined figure a dash."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return "–" if math.isnan(value) else f"{value:.3f}"
        return str(value)

    header = list(names)
    lines = [header, ["---"] * len(header), *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
