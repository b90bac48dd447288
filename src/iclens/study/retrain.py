"""Training the built-in model again: trunk, then the two branches."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

from iclens.builtin.model import StageName, load_recipe
from iclens.builtin.publish import publish
from iclens.builtin.train import Trainer
from iclens.core import ConfigError, nearest

Backend = str
Report = Callable[[dict[str, Any]], None]
BACKENDS = ("eager", "compiled")
PUBLISHED = "published"
"""Folder inside `out` that gets the measured models and their cards."""


def retrain(recipe: Path | None, stage: str, out: Path, backend: Backend, report: Report) -> Iterator[Path]:
    """Train stages of a recipe, continuing from their checkpoints; yields the folder of each as it is done.

    The losses go to `out/<stage>.jsonl` too. After "all", both branches are measured and published with their
    cards, and that folder comes last.

    Args:
        recipe: YAML recipe; the built-in one when None.
        stage: "all" or one of trunk, main, twin; a branch needs the trunk.
        out: folder of the stages.
        backend: "eager" or "compiled" (torch.compile).
        report: told the losses as training goes.

    Raises:
        ConfigError: for an unknown stage or a recipe that does not validate.
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
        publish(out, out / PUBLISHED, declared)
        yield out / PUBLISHED


def _also_logged(report: Report, log: Path) -> Report:
    log.parent.mkdir(parents=True, exist_ok=True)

    def both(found: dict[str, Any]) -> None:
        with log.open("a") as lines:
            lines.write(json.dumps(found) + "\n")
        report(found)

    return both
