"""Training the built-in model again: trunk, then the two branches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

from iclens.errors import ConfigError, nearest
from iclens.reference.recipe import StageName, load_recipe
from iclens.reference.train import Trainer

Backend = str
BACKENDS = ("eager", "compiled")


def retrain(
    recipe: Path | None, stage: str, out: Path, backend: Backend, report: Callable[[dict[str, Any]], None]
) -> Iterator[Path]:
    """Train stages of a recipe, continuing from their checkpoints; yields the folder of each as it is done.

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
        trainer.fit(report)
        yield trainer.folder
