"""From a training folder to the folders that are shipped: weights, tokenizer, mixture and card.

1. A stage's files are copied to a temporary folder. 2. They are loaded from there by the code that loads
any model, and measured. 3. The card is written, and the folder takes its name in one rename.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from iclens.errors import ConfigError
from iclens.models.load import load_model
from iclens.names import PREFIX_LENGTH, TOKENS_PER_EXAMPLE
from iclens.reference.card import Card
from iclens.reference.evaluate import evaluate, evaluate_tasks, standard_conditions
from iclens.reference.interchange import interchange_figures
from iclens.reference.recipe import Recipe, StageName
from iclens.tasks.spec import parse_task

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

    Nothing is left behind when it fails, and what stood there before is replaced only when all is written.

    Args:
        out: folder of the stages `trunk`, `main` and `twin`, with their logs `<stage>.jsonl` when kept.
        checkpoints: folder to publish to.
        recipe: the recipe they were trained by.
        n_contexts: fresh contexts for the figures.
        n_prompts: donor prompts per task for the interchange figures.
        seed: of contexts and prompts.

    Raises:
        ConfigError: when a stage's files are missing.
        ModelError: when they are damaged.
    """
    for name, stage in PUBLISHED.items():
        new = checkpoints / f".{name}.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            _fill(new, out, stage, recipe)
            card = _card(new, name, out, stage, recipe, n_contexts=n_contexts, n_prompts=n_prompts, seed=seed)
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
    folder: Path,
    name: str,
    out: Path,
    stage: StageName,
    recipe: Recipe,
    *,
    n_contexts: int,
    n_prompts: int,
    seed: int,
) -> Card:
    model, mixture = load_model(folder), recipe.declared_mixture
    held_out = [spec for spec in recipe.interchange.excluded_donors if parse_task(spec).deterministic]
    counts = [j for j in (0, 1, 2, 4, 8, 12, 15) if j < recipe.examples]
    return Card(
        name=name,
        fingerprint=model.fingerprint,
        blocks=model.n_blocks,
        parameters=sum(p.numel() for p in model.network.parameters()),
        with_site=stage == "main",
        recipe=recipe,
        stages=[_stage(out, "trunk", recipe), _stage(out, stage, recipe)],
        log=[*_log(out, "trunk"), *_log(out, stage)],
        evaluation=evaluate(
            model,
            mixture,
            standard_conditions(mixture, held_out),
            n_contexts=n_contexts,
            n_examples=recipe.examples,
            seed=seed,
        ),
        tasks=evaluate_tasks(
            model, mixture, n_contexts=max(2, n_contexts // 64), n_examples=recipe.examples, seed=seed
        ),
        interchange=interchange_figures(
            model,
            mixture,
            held_out,
            n_seen=counts,
            n_prompts=n_prompts,
            n_examples=recipe.examples,
            seed=seed,
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
