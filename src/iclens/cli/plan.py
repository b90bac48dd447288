"""`iclens plan`: memory, time and disk of a training run, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iclens.cli.output import say


def plan(
    config: Annotated[Path, typer.Argument(help="A YAML file.")],
    device: Annotated[
        str | None,
        typer.Option("--device", help="a100-40gb, a100-80gb, h100-80gb, h200 or cpu; the present machine."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable results on stdout.")] = False,
) -> None:
    """Say what a training run will take in memory, time and disk; exit 3 when it will not fit."""
    from iclens.training.config import load_train_config
    from iclens.training.planning.devices import find_device
    from iclens.training.planning.plan import plan as plan_training

    asked = load_train_config(config)
    found = plan_training(asked, find_device(device, asked.model.device))
    say(found.as_json() if json else found.as_text())
    found.refuse_unfit(str(config))
