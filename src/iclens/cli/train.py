"""`iclens train`: several SAEs from one forward pass; started by torchrun, in several processes."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from iclens.cli.output import sae_report, say


def train(
    config: Annotated[Path, typer.Argument(help="A YAML file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to make for the SAE set.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint, if there is one.")
    ] = False,
    wandb: Annotated[
        str | None, typer.Option("--wandb", help="Also send metrics to this project of Weights & Biases.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable results on stdout.")] = False,
) -> None:
    """Train several SAEs from one forward pass; a signal leaves a checkpoint to continue from."""
    from iclens.training.config import load_train_config
    from iclens.training.mirror import mirrored
    from iclens.training.report import REPORT, write_report
    from iclens.training.train import train_saes

    first, declared, report = os.environ.get("RANK", "0") == "0", load_train_config(config), sae_report()
    with mirrored(report, wandb, declared) if wandb and first else nullcontext(report) as telling:
        folder = train_saes(declared, out, telling, "newest" if resume else "no")
    if first:
        write_report(folder, folder / REPORT)
        say({"saes": str(folder)} if json else f"saes: {folder}, with report.html")
