"""`iclens saes`: list, check and convert sparse autoencoders of every supported layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iclens.cli.output import catalogue_text, checked_text, say

app = typer.Typer(help="Sparse autoencoders.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Machine-readable results on stdout.")]
Place = Annotated[
    str | None, typer.Option("--site", help="Site of one SAE, whatever its files name: L8.resid_post.")
]


@app.command("list")
def saes_list(
    model: Annotated[str | None, typer.Option("--model", help="Only releases for this model.")] = None,
    json: Json = False,
) -> None:
    """List the layouts that can be read, and the releases in the registry of sae_lens."""
    from iclens.study.catalogue import catalogue

    found = catalogue(model)
    say(found.as_json() if json else catalogue_text(found))


@app.command("check")
def saes_check(
    refs: Annotated[list[str], typer.Argument(help="SAE sets or SAEs: a folder, or release/sae_id.")],
    model: Annotated[str, typer.Option("--model", help="Model folder or hub name.")] = "checkpoints/icl-tiny",
    site: Place = None,
    force: Annotated[bool, typer.Option("--force", help="Go on with a misfit, and record it.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write them as one set for this model.")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option("--device", help="Torch device.")] = "cpu",
    json: Json = False,
) -> None:
    """Measure L0, FVU, KL and CE recovered at each role; refuse an SAE that does not fit the model."""
    from iclens.names import Site
    from iclens.study.check import check_saes

    place = None if site is None else Site.parse(site)
    misfit = "record" if force else "refuse"
    found = check_saes(refs, model, site=place, misfit=misfit, out=out, dtype=dtype, device=device)
    say(found.as_json() if json else checked_text(found))


@app.command("convert")
def saes_convert(
    ref: Annotated[str, typer.Argument(help="A folder, release/sae_id, or owner/repository/folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")],
    site: Place = None,
    input_scale: Annotated[
        float | None,
        typer.Option("--input-scale", help="For expected_average_only_in: √d_in / mean length in training."),
    ] = None,
    json: Json = False,
) -> None:
    """Write an SAE of any layout as SAELens saves it, with the scale of its input in its weights."""
    from iclens.names import Site
    from iclens.saes.convert import convert

    place = None if site is None else Site.parse(site)
    folder = convert(ref, out, site=place, input_scale=input_scale)
    say({"sae": str(folder)} if json else f"sae: {folder}")
