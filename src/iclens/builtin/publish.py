"""The built-in model from its recipe: trained, measured and published with its card."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import jinja2
import pandas as pd
import yaml

from iclens.builtin.evaluate import (
    Evaluation,
    InterchangeTable,
    TaskTable,
    evaluate,
    evaluate_tasks,
    interchange_figures,
    standard_conditions,
)
from iclens.builtin.model import Recipe, StageName, load_recipe
from iclens.builtin.train import Trainer
from iclens.core import PREFIX_LENGTH, TOKENS_PER_EXAMPLE, ConfigError, nearest
from iclens.model.load import load_model
from iclens.prompts.tasks import parse_task
from iclens.table import Table

Report = Callable[[dict[str, Any]], None]
DESTINATION = "published"
"""Folder inside `out` that gets the measured models and their cards."""
_SHOTS = (0, 1, 2, 4, 8, 12, 15)
"""Numbers of examples seen at which the card gives figures."""
_DONOR_EXAMPLES = 12
_OVERALL = ("condition", "kl", "kl_se", "r", "slope", "r_beliefs", "slope_beliefs", "n_contexts")
_BY_SHOTS = ("condition", "n_seen", "top1", "exact_top1", "p_correct", "exact_p_correct", "kl")

_BY_TASK = ("task", "n_seen", "top1", "exact_top1", "p_correct", "exact_p_correct", "kl")
_WEAK = 0.85
"""A task is told as not well learned when P(correct) is below this share of the exact learner's."""


@dataclass(frozen=True)
class Card:
    """Everything that a card states."""

    name: str  # the published folder's name
    fingerprint: str  # of its config and weights
    blocks: int  # number of blocks
    parameters: int  # number of weights
    with_site: bool  # whether interchange-intervention training gave it a task-formation site
    recipe: Recipe  # the recipe it was trained by
    # what was trained, in order: stage, steps, planned_steps, tokens, minutes
    stages: Sequence[dict[str, Any]]
    log: Sequence[dict[str, Any]]  # training losses along the way
    evaluation: Evaluation  # against the exact posterior
    tasks: TaskTable  # every task by itself
    # whole-residual interchange at `pre`, donors never used as such in training
    interchange: InterchangeTable
    versions: dict[str, str]  # package → version

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
            loader=jinja2.PackageLoader("iclens.builtin", ""),
            undefined=jinja2.StrictUndefined,
            autoescape=False,  # Markdown from our own recipe, not a page
            keep_trailing_newline=True,
        )
        derived = {
            "site": self.site,
            "block": self.recipe.interchange.block,
            "mixture": self.recipe.declared_mixture,
        }
        values = vars(self) | derived | self._data_tables() | self._figure_tables()
        return environment.get_template("card.md.j2").render(values)

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
        n_seen = int(frame["n_seen"][frame["n_seen"] <= _DONOR_EXAMPLES].max())
        return {
            "overall": _markdown(_OVERALL, overall[list(_OVERALL)].itertuples(index=False)),
            "shots": _markdown(_BY_SHOTS, chosen.itertuples(index=False)),
            "weak": _markdown(_BY_TASK, weak[list(_BY_TASK)].itertuples(index=False)) if len(weak) else "",
            "weak_below": _WEAK,
            "donor_examples": n_seen,
            "by_layer": _crossed(frame[frame["n_seen"] == n_seen], "layer"),
            "graded": _crossed(frame[frame["layer"] == self.recipe.interchange.block], "n_seen"),
        }


def _crossed(frame: pd.DataFrame, axis: str) -> str:
    """p_task / p_copy by task and `axis`, as a Markdown table."""
    cells = (frame["p_task"].map("{:.2f}".format) + " / " + frame["p_copy"].map("{:.2f}".format)).rename(
        "cell"
    )
    wide = frame[["task", axis]].join(cells).pivot(index="task", columns=axis, values="cell").reset_index()
    return _markdown([f"task, {axis}", *map(str, wide.columns[1:])], wide.itertuples(index=False))


def _records(table: Table) -> list[dict[Any, Any]]:
    """The rows by column, an undefined figure as None."""
    columns = table.df.astype(object)
    return columns.where(columns.notna(), None).to_dict("records")


def _markdown(names: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; fractions get three decimals and an undefined figure a dash."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return "–" if math.isnan(value) else f"{value:.3f}"
        return str(value)

    header = list(names)
    lines = [header, ["---"] * len(header), *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


PUBLISHED: dict[str, StageName] = {"icl-tiny": "main", "icl-tiny-twin": "twin"}
"""Folder → the stage whose weights it holds."""
_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
_PACKAGES = ("iclens", "torch", "transformers", "tokenizers", "safetensors", "numpy")
_LOG_ROWS = 40


def publish(
    out: Path,
    checkpoints: Path,
    recipe: Recipe,
    *,
    n_contexts: int = 2000,
    n_prompts: int = 24,
    seed: int = 1,
) -> None:
    """Write `checkpoints/icl-tiny` and `checkpoints/icl-tiny-twin` from a training folder.

    `out` holds the stages `trunk`, `main` and `twin`, with their logs `<stage>.jsonl` when kept. Nothing is
    left behind when it fails, and what stood there before is replaced only when all is written.
    """
    for name, stage in PUBLISHED.items():
        new = checkpoints / f".{name}.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            _fill(new, out, stage, recipe)
            card = _card(new, name, out, stage, recipe, n_contexts, n_prompts, seed)
            (new / "card.json").write_text(card.as_json(), encoding="utf-8")
            (new / "README.md").write_text(card.as_markdown(), encoding="utf-8")
            _swap_in(new, checkpoints / name)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _fill(new: Path, out: Path, stage: StageName, recipe: Recipe) -> None:
    for file in _FILES:
        try:
            shutil.copyfile(out / stage / file, new / file)
        except FileNotFoundError as cause:
            raise ConfigError(
                f"stage {stage}",
                f"{cause.filename} is missing",
                f"Run `iclens reference train --stage {stage}` first.",
            ) from cause
    text = yaml.safe_dump(recipe.mixture, sort_keys=False, allow_unicode=True)
    (new / "mixture.yaml").write_text(text, encoding="utf-8")


def _card(
    folder: Path, name: str, out: Path, stage: StageName, recipe: Recipe, n_contexts: int, n_prompts: int,
    seed: int,
) -> Card:  # fmt: skip
    model, mixture = load_model(folder), recipe.declared_mixture
    held_out = [spec for spec in recipe.interchange.excluded_donors if parse_task(spec).deterministic]
    conditions = standard_conditions(mixture, held_out)
    counts = [j for j in _SHOTS if j < recipe.examples]
    common = {"n_examples": recipe.examples, "seed": seed}
    return Card(
        name=name,
        fingerprint=model.fingerprint,
        blocks=model.n_blocks,
        parameters=sum(p.numel() for p in model.network.parameters()),
        with_site=stage == "main",
        recipe=recipe,
        stages=[_stage(out, "trunk", recipe), _stage(out, stage, recipe)],
        log=[*_log(out, "trunk"), *_log(out, stage)],
        evaluation=evaluate(model, mixture, conditions, n_contexts=n_contexts, **common),
        tasks=evaluate_tasks(model, mixture, n_contexts=max(2, n_contexts // 64), **common),
        interchange=interchange_figures(
            model, mixture, held_out, n_seen=counts, n_prompts=n_prompts, **common
        ),
        versions={"python": platform.python_version()}
        | {package: _version(package) for package in _PACKAGES},
    )


def _stage(out: Path, stage: StageName, recipe: Recipe) -> dict[str, Any]:
    path = out / stage / "progress.json"
    try:
        progress = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise ConfigError(
            f"stage {stage}", f"{path} is missing", f"Run `iclens reference train --stage {stage}` first."
        ) from cause
    per_step = recipe.contexts_per_step * (PREFIX_LENGTH + TOKENS_PER_EXAMPLE * recipe.examples)
    return {
        "stage": stage,
        "steps": progress["step"],
        "planned_steps": progress["of"],
        "tokens": progress["step"] * per_step,
        "minutes": progress["seconds"] / 60,
    }


def _log(out: Path, stage: StageName) -> list[dict[str, Any]]:
    """At most about `_LOG_ROWS` rows of a stage's log, the last one included; none when no log was kept."""
    path = out / f"{stage}.jsonl"
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    every = -(-len(rows) // _LOG_ROWS) or 1
    return rows[::-1][::every][::-1]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "from source"


def _swap_in(new: Path, final: Path) -> None:
    for file in new.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def retrain(recipe: Path | None, stage: str, out: Path, backend: str, report: Report) -> Iterator[Path]:
    """Train stages of a recipe, continuing from their checkpoints; yields the folder of each as it is done.

    `stage` is "all" or one of trunk, main, twin, of which a branch needs the trunk; `backend` "eager" or
    "compiled". The losses go to `report` and to `out/<stage>.jsonl`. After "all", both branches are measured
    and published with their cards, and that folder comes last.
    """
    known: tuple[StageName, ...] = get_args(StageName)
    if stage != "all" and stage not in known:
        raise ConfigError(f"stage '{stage}'", "unknown", nearest(stage, ("all", *known)) + ".")
    declared = load_recipe(recipe)
    for name in known:
        if stage not in ("all", name):
            continue
        trainer = Trainer(declared, name, out, compiled=backend == "compiled")
        trainer.fit(_also_logged(report, out / f"{name}.jsonl"))
        yield trainer.folder
    if stage == "all":
        publish(out, out / DESTINATION, declared)
        yield out / DESTINATION


def _also_logged(report: Report, log: Path) -> Report:
    log.parent.mkdir(parents=True, exist_ok=True)

    def both(event: dict[str, Any]) -> None:
        with log.open("a") as lines:
            lines.write(json.dumps(event) + "\n")
        report(event)

    return both
