"""`iclens replicate`: observations recorded elsewhere, run again on a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iclens.cli.output import say

app = typer.Typer(help="Recorded observations, run again on a model.", no_args_is_help=True)


@app.callback()
def replicate() -> None:
    """Recorded observations, run again on a model."""


@app.command("seed-post")
def seed_post(
    model: Annotated[str, typer.Option("--model", help="Model folder or hub name.")] = "checkpoints/icl-tiny",
    protocol: Annotated[
        str, typer.Option("--protocol", help="auto, recorded (layers and heads of llama-3-8b) or derived.")
    ] = "auto",
    parts: Annotated[
        str, typer.Option("--parts", help="all, or recorded: without what the notebooks left out.")
    ] = "all",
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option("--device", help="Torch device.")] = "cpu",
    out: Annotated[Path | None, typer.Option("--out", help="Folder to make with tables and JSON.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable results on stdout.")] = False,
) -> None:
    """Run what the seed post recorded on llama-3-8b, set it against the record, and add what was left out."""
    from iclens.study.replicate.run import replicate_seed_post

    def report(line: str) -> None:
        typer.echo(line, err=True)

    found = replicate_seed_post(
        model, protocol=protocol, parts=parts, dtype=dtype, device=device, out=out, report=report
    )
    say(found.as_json() if json else found.as_text())
