"""Sends the metrics to Weights & Biases as well, when asked to; nothing else here knows that it exists."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from iclens.core import ConfigError
from iclens.training.config import TrainConfig
from iclens.training.loop import Report


@contextmanager
def mirrored(report: Report, project: str, config: TrainConfig) -> Iterator[Report]:
    """A report that also goes to a project of Weights & Biases.

    Args:
        report: called as before.
        project: where a run is made.
        config: kept with the run.

    Raises:
        ConfigError: when the package is not installed.
    """
    try:
        service: Any = import_module("wandb")
    except ImportError as cause:
        raise ConfigError("--wandb", "wandb is not installed", "pip install 'iclens[wandb]'.") from cause
    run = service.init(project=project, config=config.model_dump(mode="json"))

    def both(found: dict[str, Any]) -> None:
        report(found)
        if "sites" in found:
            figures = {f"{name}/{key}": x for name, m in found["sites"].items() for key, x in m.items()}
            run.log(
                figures | {"tokens_per_second": found["tokens_per_second"], "tokens": found["tokens"]},
                step=found["step"],
            )
        for row in found.get("quality", ()):
            run.summary.update({f"{row['site']}/{key}": x for key, x in row.items()})

    try:
        yield both
    finally:
        run.finish()
