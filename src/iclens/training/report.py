"""What people see of a training run: the live line, and a mirror on Weights & Biases."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iclens.core import ConfigError
from iclens.training.config import TrainConfig


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; an unfinished last line is left out."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


@contextmanager
def mirrored(
    report: Callable[[dict[str, Any]], None], project: str, config: TrainConfig
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A report that also goes to a project of Weights & Biases, which keeps the configuration."""
    try:
        import wandb
    except ImportError as cause:
        raise ConfigError("--wandb", "wandb is not installed", "pip install 'iclens[wandb]'.") from cause
    run = wandb.init(project=project, config=config.model_dump(mode="json"))

    def both(progress: dict[str, Any]) -> None:
        report(progress)
        if "sites" in progress:
            figures = {f"{name}/{key}": x for name, m in progress["sites"].items() for key, x in m.items()}
            figures |= {key: progress[key] for key in ("tokens_per_second", "tokens")}
            run.log(figures, step=progress["step"])
        for row in progress.get("quality", ()):
            run.summary.update({f"{row['site']}/{key}": x for key, x in row.items()})

    try:
        yield both
    finally:
        run.finish()


def progress_text(progress: Mapping[str, Any]) -> str:
    """The live line: `1.2 M of 100 M tokens, 21.3 k tokens/s, 1:17:20 left, FVU .21 to .34, L0 64`."""
    parts = [f"{_short(progress['tokens'])} of {_short(progress['of_tokens'])} tokens"]
    if progress.get("tokens_per_second"):
        left = _clock(progress["seconds_left"])
        parts += [f"{_short(progress['tokens_per_second'])} tokens/s", f"{left} left"]
    for title, key in (("FVU", "fvu"), ("L0", "l0"), ("dead", "dead")):
        values = [m[key] for m in progress["sites"].values() if m.get(key) is not None]
        values = [value for value in values if math.isfinite(value)]
        if values:
            ends = [_figure(key, value) for value in (min(values), max(values))]
            parts.append(f"{title} {' to '.join(dict.fromkeys(ends))}")
    return ", ".join(parts)


def _figure(key: str, value: float) -> str:
    if key == "dead":
        return f"{100 * value:.1f} %"
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def _short(count: float) -> str:
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= 0.9995 * size:  # what rounds to 1,000 of the next smaller unit is 1 of this
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
