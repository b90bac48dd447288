"""What is going on? One JSON line per SAE and interval on the disk, one line in the terminal; no service.

    <folder>/<SAE>.jsonl    step, tokens, lr, fvu, l0, dead, loss, … of that step's batch
    <folder>/pace.jsonl     step, tokens, seconds, tokens_per_second

The lines of an SAE hold nothing of the clock, so those of a continued run equal those of a run that was never
interrupted; on continuing, lines later than the checkpoint are cut off.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iclens.core import RunError

PACE = "pace"
MAKE_ROOM = "Make room on the disk, then continue with --resume."
_RECENT = 16
"""Intervals over which the pace is taken."""


@dataclass(frozen=True)
class MetricsLog:
    """Metrics files of some SAEs.

    Args:
        folder: where they are.
        names: of the SAEs, and `PACE`.
    """

    folder: Path
    names: tuple[str, ...]

    def file(self, name: str) -> Path:
        """The file of an SAE, or of the pace."""
        return self.folder / f"{name}.jsonl"

    def add(self, name: str, line: Mapping[str, Any]) -> None:
        """Append one line; a figure that is not finite is written as null.

        Raises:
            RunError: when the disk does not take it.
        """
        plain = {key: value if _finite(value) else None for key, value in line.items()}
        before = self.file(name).stat().st_size
        try:
            with self.file(name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(plain) + "\n")
        except OSError as cause:
            os.truncate(self.file(name), before)  # half a line would spoil the one after it
            raise RunError(
                f"metrics '{self.file(name)}'", f"cannot be written ({cause.strerror or cause})", MAKE_ROOM
            ) from cause

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, all of them on the disk."""
        return {name: _flushed_size(self.file(name)) for name in self.names}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Go back to the files as they were at `sizes`; empty ones where there are none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in self.names:
            with self.file(name).open("ab") as file:
                file.truncate(sizes.get(name, 0))


@dataclass
class Pace:
    """How fast training is, and how long it will take.

    Args:
        total: tokens of the whole training.
    """

    total: int
    _recent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_RECENT + 1))

    def at(self, tokens: int, seconds: float) -> dict[str, float | None]:
        """tokens_per_second of late and seconds_left, after `tokens` at a clock of `seconds`."""
        self._recent.append((tokens, seconds))
        (first, started), (last, now) = self._recent[0], self._recent[-1]
        if now <= started or last <= first:
            return {"tokens_per_second": None, "seconds_left": None}
        speed = (last - first) / (now - started)
        return {"tokens_per_second": round(speed, 1), "seconds_left": round((self.total - tokens) / speed, 1)}


def progress_text(found: Mapping[str, Any]) -> str:
    """The live line: `1.2 M of 100 M tokens, 21.3 k tokens/s, 1:17:20 left, FVU .21 to .34, L0 64, dead 1 %`.

    Args:
        found: tokens, of_tokens, tokens_per_second, seconds_left, and metrics per SAE under sites.
    """
    parts = [f"{_short(found['tokens'])} of {_short(found['of_tokens'])} tokens"]
    if found.get("tokens_per_second"):
        parts += [f"{_short(found['tokens_per_second'])} tokens/s", f"{_clock(found['seconds_left'])} left"]
    sites = list(found["sites"].values())
    for title, key, show in (("FVU", "fvu", _decimal), ("L0", "l0", _decimal), ("dead", "dead", _percent)):
        values = [float(m[key]) for m in sites if _finite(m.get(key)) and m.get(key) is not None]
        if values:
            parts.append(f"{title} {_span(values, show)}")
    return ", ".join(parts)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; an unfinished last line is left out."""
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def _span(values: Iterable[float], show: Any) -> str:
    texts = [show(value) for value in (min(values), max(values))]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} to {texts[1]}"


def _decimal(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _short(count: float) -> str:
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _flushed_size(file: Path) -> int:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
        return os.fstat(handle).st_size
    finally:
        os.close(handle)
