"""The command line: one thin command per public function.

Progress goes to stderr, results to stdout. Exit codes: 0 done, 2 what was asked is wrong (one line), 3 it
will not fit, 130 and 143 ended by SIGINT and SIGTERM, 1 another process of the same training is gone. Nothing
here imports torch; a command imports what it needs when it runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from iclens.cli import plan, replicate, saes, train
from iclens.cli.output import pages_report, say, study_report, training_report
from iclens.errors import IclensError

app = typer.Typer(
    help="Does in-context learning add features, one update per example, and which features?",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
reference_app = typer.Typer(help="The built-in model.", no_args_is_help=True)
app.add_typer(saes.app, name="saes")
app.add_typer(replicate.app, name="replicate")
app.command()(plan.plan)
app.command()(train.train)
app.add_typer(reference_app, name="reference")

Json = Annotated[bool, typer.Option("--json", help="Machine-readable results on stdout.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
Config = Annotated[Path, typer.Argument(help="A YAML file.")]
AsIs = Annotated[bool, typer.Option("--as-is", help="From the tables that are there, without the model.")]
RunPath = Annotated[Path, typer.Argument(help="A run folder, or a study folder, whose newest run is taken.")]


@app.command()
def demo(runs: Runs = Path("runs"), json: Json = False) -> None:
    """Run the whole study on the built-in model and write its pages."""
    from iclens.study.config import demo_config
    from iclens.study.pipeline import run_study

    outcome = run_study(demo_config(), runs, study_report())
    say(outcome.as_json() if json else outcome.as_text())


@app.command()
def study(config: Config, runs: Runs = Path("runs"), json: Json = False) -> None:
    """Run a study: every stage that is not up to date, then its pages."""
    from iclens.study.config import load_study_config
    from iclens.study.pipeline import run_study

    outcome = run_study(load_study_config(config), runs, study_report())
    say(outcome.as_json() if json else outcome.as_text())


def _stage(name: str, run: Path, json: bool) -> None:
    from iclens.study.pipeline import run_stage

    outcome = run_stage(run, name, study_report())
    say(outcome.as_json() if json else outcome.as_text())


@app.command()
def track(run: RunPath, json: Json = False) -> None:
    """Follow every latent over the examples of a prompt; under torchrun, this rank's share of the prompts."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return _stage("track", run, json)
    from iclens.study.pipeline import run_track_shard

    return say(f"{run_track_shard(run, int(os.environ['RANK']), world)}")


@app.command()
def growth(run: RunPath, json: Json = False) -> None:
    """Test which latents grow with examples."""
    _stage("growth", run, json)


@app.command()
def transforms(run: RunPath, json: Json = False) -> None:
    """Identify which latents answer to which concept."""
    _stage("transforms", run, json)


@app.command()
def sweep(run: RunPath, json: Json = False) -> None:
    """Patch whole residuals from run A into run B, over layers and roles."""
    _stage("sweep", run, json)


@app.command()
def patch(run: RunPath, json: Json = False) -> None:
    """Patch single latents from run A into run B."""
    _stage("patch", run, json)


@app.command()
def dashboard(run: RunPath, as_is: AsIs = False, json: Json = False) -> None:
    """Write the pages."""
    if not as_is:
        return _stage("dashboard", run, json)
    from iclens.study.pages.as_is import write_as_is

    page = write_as_is(run, pages_report())
    return say({"index": str(page)} if json else f"pages: {page.resolve()}")


@reference_app.command("train")
def reference_train(
    out: Annotated[Path, typer.Option("--out", help="Folder of checkpoints; training continues from them.")],
    stage: Annotated[str, typer.Option("--stage", help="all, trunk, main or twin.")] = "all",
    recipe: Annotated[Path | None, typer.Option("--recipe", help="A YAML recipe; the built-in one.")] = None,
    compiled: Annotated[bool, typer.Option("--compiled", help="Use torch.compile.")] = False,
) -> None:
    """Train the built-in model and its plain twin from scratch."""
    from iclens.study.retrain import retrain

    for folder in retrain(recipe, stage, out, "compiled" if compiled else "eager", training_report()):
        say(f"{folder}")


def main() -> None:
    """Run the command line; an IclensError becomes one line on stderr and its exit code."""
    try:
        app()
    except IclensError as error:
        typer.echo(f"iclens: {' '.join(str(error).split())}", err=True)
        sys.exit(error.exit_code)
