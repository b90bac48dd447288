"""The command line: one thin command per public function.

Progress goes to stderr, results to stdout, as text or as JSON. Exit codes: 0 done, 2 what was asked is wrong
(one line), 3 it will not fit, 130 and 143 ended by SIGINT and SIGTERM, 1 another process of the same training
is gone. Nothing here imports torch; a command imports what it needs when it runs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.control import Control, ControlType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from iclens.core import IclensError

if TYPE_CHECKING:
    from iclens.study.check_saes import Catalogue, Checked
    from iclens.study.pipeline import Event


app = typer.Typer(
    help="Does in-context learning add features, one update per example, and which features?",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
model_app = typer.Typer(help="Language models.", no_args_is_help=True)
saes_app = typer.Typer(help="Sparse autoencoders.", no_args_is_help=True)
replicate_app = typer.Typer(help="Recorded observations, run again on a model.", no_args_is_help=True)
reference_app = typer.Typer(help="The built-in model.", no_args_is_help=True)
app.add_typer(model_app, name="model")
app.add_typer(saes_app, name="saes")
app.add_typer(replicate_app, name="replicate")
app.add_typer(reference_app, name="reference")

Json = Annotated[bool, typer.Option("--json", help="Machine-readable results on stdout.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
Config = Annotated[Path, typer.Argument(help="A YAML file.")]
AsIs = Annotated[bool, typer.Option("--as-is", help="From the tables that are there, without the model.")]
RunPath = Annotated[Path, typer.Argument(help="A run folder, or a study folder, whose newest run is taken.")]
Model = Annotated[str, typer.Option("--model", help="Model folder, GGUF file or hub name.")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")]
Device = Annotated[str, typer.Option("--device", help="Torch device.")]
SiteOf = Annotated[
    str | None, typer.Option("--site", help="Site of one SAE, whatever its files name: L8.resid_post.")
]


@app.command()
def plan(
    config: Config,
    device: Annotated[
        str | None,
        typer.Option("--device", help="a100-40gb, a100-80gb, h100-80gb, h200 or cpu; the present machine."),
    ] = None,
    json: Json = False,
) -> None:
    """Say what a training run will take in memory, time and disk; exit 3 when it will not fit."""
    from iclens.training.config import load_train_config
    from iclens.training.plan import find_device
    from iclens.training.plan import plan as plan_training

    training = load_train_config(config)
    planned = plan_training(training, find_device(device, training.model.device))
    _say_outcome(planned, json)
    planned.refuse_unfit(str(config))


@replicate_app.callback()
def replicate() -> None:
    """Recorded observations, run again on a model."""


@replicate_app.command("seed-post")
def seed_post(
    model: Model = "checkpoints/icl-tiny",
    protocol: Annotated[
        str, typer.Option("--protocol", help="auto, recorded (layers and heads of llama-3-8b) or derived.")
    ] = "auto",
    parts: Annotated[
        str, typer.Option("--parts", help="all, or recorded: without what the notebooks left out.")
    ] = "all",
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Annotated[Path | None, typer.Option("--out", help="Folder to make with tables and JSON.")] = None,
    json: Json = False,
) -> None:
    """Run what the seed post recorded on llama-3-8b, set it against the record, and add what was left out."""
    from iclens.seed_post.verdicts import replicate_seed_post

    report = partial(typer.echo, err=True)
    replication = replicate_seed_post(
        model, protocol=protocol, parts=parts, dtype=dtype, device=device, out=out, report=report
    )
    _say_outcome(replication, json)


@model_app.callback()
def models() -> None:
    """Language models."""


@model_app.command("convert")
def model_convert(
    file: Annotated[Path, typer.Argument(help="A GGUF file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")],
    json: Json = False,
) -> None:
    """Write the model of a GGUF file as a Hugging Face folder, in float32."""
    from iclens.model.gguf import convert_gguf

    folder = convert_gguf(file, out, report=partial(typer.echo, err=True))
    say({"model": str(folder)} if json else f"model: {folder}")


@saes_app.command("list")
def saes_list(
    model: Annotated[str | None, typer.Option("--model", help="Only releases for this model.")] = None,
    json: Json = False,
) -> None:
    """List the layouts that can be read, and the releases in the registry of sae_lens."""
    from iclens.study.check_saes import catalogue

    listed = catalogue(model)
    say(listed.as_json() if json else catalogue_text(listed))


@saes_app.command("check")
def saes_check(
    refs: Annotated[list[str], typer.Argument(help="SAE sets or SAEs: a folder, or release/sae_id.")],
    model: Model = "checkpoints/icl-tiny",
    site: SiteOf = None,
    force: Annotated[bool, typer.Option("--force", help="Go on with a misfit, and record it.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write them as one set for this model.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Measure L0, FVU, KL and CE recovered at each role; refuse an SAE that does not fit the model."""
    from iclens.core import Site
    from iclens.study.check_saes import check_saes

    stated = None if site is None else Site.parse(site)
    misfit = "record" if force else "refuse"
    checked = check_saes(refs, model, site=stated, misfit=misfit, out=out, dtype=dtype, device=device)
    say(checked.as_json() if json else checked_text(checked))


@saes_app.command("convert")
def saes_convert(
    ref: Annotated[str, typer.Argument(help="A folder, release/sae_id, or owner/repository/folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")],
    site: SiteOf = None,
    input_scale: Annotated[
        float | None,
        typer.Option("--input-scale", help="For expected_average_only_in: √d_in / mean length in training."),
    ] = None,
    json: Json = False,
) -> None:
    """Write an SAE of any layout as SAELens saves it, with the scale of its input in its weights."""
    from iclens.core import Site
    from iclens.saes.load import convert

    stated = None if site is None else Site.parse(site)
    folder = convert(ref, out, site=stated, input_scale=input_scale)
    say({"sae": str(folder)} if json else f"sae: {folder}")


@app.command()
def train(
    config: Config,
    out: Annotated[Path, typer.Option("--out", help="Folder to make for the SAE set.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint, if there is one.")
    ] = False,
    wandb: Annotated[
        str | None, typer.Option("--wandb", help="Also send metrics to this project of Weights & Biases.")
    ] = None,
    json: Json = False,
) -> None:
    """Train several SAEs from one forward pass; a signal leaves a checkpoint to continue from."""
    from iclens.pages.training import REPORT, write_report
    from iclens.training.config import load_train_config
    from iclens.training.loop import train_saes
    from iclens.training.report import mirrored

    first, declared, report = os.environ.get("RANK", "0") == "0", load_train_config(config), sae_report()
    with mirrored(report, wandb, declared) if wandb and first else nullcontext(report) as telling:
        folder = train_saes(declared, out, telling, "newest" if resume else "no")
    if first:
        write_report(folder, folder / REPORT)
        say({"saes": str(folder)} if json else f"saes: {folder}, with report.html")


@app.command()
def demo(runs: Runs = Path("runs"), json: Json = False) -> None:
    """Run the whole study on the built-in model and write its pages."""
    from iclens.study.config import demo_config
    from iclens.study.pipeline import run_study

    _say_outcome(run_study(demo_config(), runs, study_report()), json)


@app.command()
def study(config: Config, runs: Runs = Path("runs"), json: Json = False) -> None:
    """Run a study: every stage that is not up to date, then its pages."""
    from iclens.study.config import load_study_config
    from iclens.study.pipeline import run_study

    _say_outcome(run_study(load_study_config(config), runs, study_report()), json)


def _stage(name: str, run: Path, json: bool) -> None:
    from iclens.study.pipeline import run_stage

    _say_outcome(run_stage(run, name, study_report()), json)


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
    from iclens.pages.site import write_as_is

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
    from iclens.builtin.publish import retrain

    for folder in retrain(recipe, stage, out, "compiled" if compiled else "eager", training_report()):
        say(f"{folder}")


def main() -> None:
    """Run the command line; an IclensError becomes one line on stderr and its exit code."""
    try:
        app()
    except IclensError as error:
        typer.echo(f"iclens: {' '.join(str(error).split())}", err=True)
        sys.exit(error.exit_code)


_SELDOM = 30.0
"""Seconds between two lines where stderr is no terminal."""


class _Bar:
    """A bar on stderr, drawn while there are steps of `what` to do."""

    def __init__(self, console: Console, what: str) -> None:
        self._console, self._what, self._task = console, what, TaskID(0)
        self._progress: Progress | None = None

    def show(self, found: dict[str, Any]) -> None:
        """Move to step `found["step"]` of `found["of"]`; close after the last one."""
        step, total = found.get("step"), found.get("of")
        if step is None or total is None or not self._console.is_terminal:
            return
        if self._progress is None:
            named = TextColumn(f"  {self._what}")
            columns = (named, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._task = self._progress.add_task(self._what, total=total)
            self._progress.start()
        self._progress.update(self._task, completed=step)
        if step >= total:
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class _Line:
    """The progress of SAE training on stderr: one line that is rewritten, or now and then a line."""

    def __init__(self, console: Console) -> None:
        self._console, self._said, self._drawn = console, -_SELDOM, False

    def show(self, found: dict[str, Any]) -> None:
        """Show metrics as they come; close after the last step."""
        from iclens.training.report import progress_text

        if "continued_at" in found:
            return self._console.print(f"continued at {found['continued_at']:,} tokens", markup=False)
        if "data" in found:
            self.close()
            words = "; ".join(f"{what}: {count:,}" for what, count in found["data"].items() if count)
            return self._console.print(f"data: {words}", markup=False)
        if "bos" in found:
            return self._console.print(f"BOS: {found['bos']}", markup=False)
        if "sites" not in found:
            return self.close()
        last, line = found["step"] >= found["of"], f"  {progress_text(found)}"
        if self._console.is_terminal:
            self._console.control(Control.move_to_column(0), Control((ControlType.ERASE_IN_LINE, 2)))
            self._console.print(line, end="", markup=False, soft_wrap=True)
            self._drawn = True
        elif last or found["seconds"] >= self._said + _SELDOM:
            self._console.print(line, markup=False)
            self._said = found["seconds"]
        return self.close() if last else None

    def close(self) -> None:
        """Leave the line as it is."""
        if self._drawn:
            self._console.print()
            self._drawn = False


def study_report() -> Callable[[Event], None]:
    """A reporter of a study's stages, on stderr."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    line, bar = _Line(console), _Bar(console, "pages")

    def report(event: Event) -> None:
        if event.state == "progress":
            return (bar if event.stage == "dashboard" else line).show(dict(event.found))
        line.close()
        bar.close()
        why = f" ({event.why})" if event.why else ""
        if event.state == "begins":
            return console.print(f"{event.stage}: running{why}", markup=False)
        seconds = f" in {event.seconds:.1f} s" if event.state == "done" else ""
        taken = why if event.state == "taken over" else ""
        return console.print(
            f"{event.stage}: {event.state}{seconds}{taken}. {_brief(event.found)}", markup=False
        )

    return report


def training_report() -> Callable[[dict[str, Any]], None]:
    """A reporter of the built-in model's training steps, on stderr."""
    return _Bar(Console(stderr=True), "training").show


def pages_report() -> Callable[[int, int], None]:
    """A reporter of pages written, on stderr."""
    bar = _Bar(Console(stderr=True), "pages")
    return lambda done, total: bar.show({"step": done, "of": total})


def sae_report() -> Callable[[dict[str, Any]], None]:
    """A reporter of SAE training, on stderr."""
    return _Line(Console(stderr=True, highlight=False, soft_wrap=True)).show


def _say_outcome(outcome: Any, json: bool) -> None:
    """Print a result that has `as_json` and `as_text`."""
    say(outcome.as_json() if json else outcome.as_text())


def say(result: str | dict[str, Any] | list[Any]) -> None:
    """Print a result on stdout: text as it is, anything else as one line of JSON."""
    typer.echo(result if isinstance(result, str) else json.dumps(result, ensure_ascii=False))


def checked_text(found: Checked) -> str:
    """The figures of each SAE at each role, then what does not fit."""
    columns = ["site", "role", "l0", "fvu", "kl", "ce_recovered", "n_tokens"]
    frame = found.fidelity.df[columns]
    lines = [frame.to_string(index=False, float_format=lambda value: f"{value:.4f}")]
    lines.append(f"measured on prompts of {found.n_examples} examples")
    for site, reasons in found.mismatches.items():
        lines.append(f"{site.short} does not fit: {'; '.join(reasons)}")
    if found.folder is not None:
        lines.append(f"saes: {found.folder}")
    return "\n".join(lines)


def catalogue_text(found: Catalogue) -> str:
    """Layouts, then releases with their model and SAEs."""
    lines = ["layouts"]
    lines += [f"  {name}: {files}; {origin}" for name, files, origin in found.layouts]
    lines.append("on the hub" + ("" if found.model is None else f", for {found.model}"))
    lines += [f"  {ref}: {model}" for ref, model in found.published]
    for release in found.releases:
        count = len(release.sae_ids)
        lines.append(f"  {release.name}/{release.sae_ids[0]}: {release.model}, {count} SAE{'s'[: count > 1]}")
    return "\n".join(lines)


def _brief(found: Any) -> str:
    parts = []
    for name, value in dict(found).items():
        inner = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        text = ", ".join(map(str, inner)) if isinstance(inner, list) else inner
        parts.append(f"{name}: {text}")
    return "; ".join(parts)
