"""What a command says: progress on stderr, results on stdout, as text or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.control import Control, ControlType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from iclens.study.catalogue import Catalogue
    from iclens.study.check import Checked
    from iclens.study.stage import Event

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
        from iclens.training.metrics import progress_text

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
