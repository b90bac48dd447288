"""Will it fit, and how long will it take? Answered from the configuration and config.json alone.

1. `costs` gives the memory, time and disk of every part. 2. The peak over the run's phases is compared with
the device. 3. When it does not fit, `remedies` finds changes after which it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from iclens.core import WontFitError
from iclens.model.shape import ModelShape, read_shape
from iclens.training.config import TrainConfig
from iclens.training.planning.costs import PHASES, Cost, Disk, Job, Part, disk, memory, times
from iclens.training.planning.devices import Device
from iclens.training.planning.remedies import remedies

GB = 1e9


@dataclass(frozen=True)
class Remedy:
    """A change to the configuration, and the peak with it and those before it.

    Args:
        change: what to write, or do.
        peak: bytes.
    """

    change: str
    peak: int


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Args:
        device: planned for.
        memory: parts, with the bytes each holds in every phase.
        times: parts, with seconds per token.
        disk: bytes written.
        tokens: activations that each SAE sees.
        remedies: changes after which it fits, in order; empty when it fits. The last one's peak says whether
            they suffice.
    """

    device: Device
    memory: tuple[Part, ...]
    times: tuple[Cost, ...]
    disk: Disk
    tokens: int
    remedies: tuple[Remedy, ...] = ()

    @property
    def peaks(self) -> dict[str, int]:
        """Phase → bytes."""
        slack = 1 + self.device.slack
        return {
            phase: int(slack * sum(part.held.get(phase, 0) for part in self.memory)) + self.device.reserve
            for phase in PHASES
        }

    @property
    def peak(self) -> int:
        """Largest number of bytes over the phases."""
        return max(self.peaks.values())

    @property
    def fits(self) -> bool:
        """Whether the peak is within the device's memory."""
        return self.peak <= self.device.memory

    @property
    def seconds_per_token(self) -> float:
        """Over all parts."""
        return sum(cost.seconds(self.device) for cost in self.times)

    @property
    def seconds(self) -> float:
        """Of training, without loading and measuring."""
        return self.tokens * self.seconds_per_token

    def refuse_unfit(self, name: str) -> None:
        """Raise a WontFitError, with the first remedies, when the run does not fit."""
        if self.fits:
            return
        raise WontFitError(
            f"config '{name}' on {self.device.name}",
            f"it takes {self.peak / GB:.1f} GB of {self.device.memory / GB:.1f}",
            self._advice(),
        )

    def _advice(self) -> str:
        if not self.remedies:
            return "No change to it that is tried here helps."
        tried = "; then ".join(f"{remedy.change} ({remedy.peak / GB:.1f} GB)" for remedy in self.remedies)
        enough = self.remedies[-1].peak <= self.device.memory
        return f"{tried}." if enough else f"Even this is not enough: {tried}."

    def as_json(self) -> dict[str, object]:
        """Everything as plain numbers: bytes, seconds."""
        return {
            "device": asdict(self.device),
            "memory": {part.name: {k: int(v) for k, v in part.held.items()} for part in self.memory},
            "peaks": self.peaks, "peak": self.peak, "fits": self.fits,
            "seconds_per_token": {cost.name: cost.seconds(self.device) for cost in self.times},
            "tokens": self.tokens, "tokens_per_second": 1 / self.seconds_per_token, "seconds": self.seconds,
            "disk": asdict(self.disk), "remedies": [asdict(remedy) for remedy in self.remedies],
        }  # fmt: skip

    def as_text(self) -> str:
        """Tables for people."""
        verdict = (
            f"fits: {self.peak / GB:.1f} GB of {self.device.memory / GB:.1f}"
            if self.fits
            else f"does not fit: {self.peak / GB:.1f} GB of {self.device.memory / GB:.1f}. {self._advice()}"
        )
        kept, made = self.disk.checkpoints / GB, self.disk.saes / GB
        lines = [
            f"{self.device.name} ({self.device.source})", "", *self._memory_lines(), "", *self._time_lines(),
            "", f"disk, GB: up to {kept:.1f} for checkpoints, {made:.1f} for the SAEs", verdict,
        ]  # fmt: skip
        return "\n".join(lines)

    def _memory_lines(self) -> Iterator[str]:
        yield _row("memory, GB", PHASES)
        for part in self.memory:
            yield _row(part.name, [_gb(part.held.get(phase, 0)) for phase in PHASES])
        peaks = self.peaks
        if self.device.reserve:
            slack = {phase: peaks[phase] - sum(p.held.get(phase, 0) for p in self.memory) for phase in PHASES}
            yield _row("driver context and allocator, assumed", [_gb(slack[phase]) for phase in PHASES])
        yield _row("total", [_gb(peaks[phase]) for phase in PHASES])

    def _time_lines(self) -> Iterator[str]:
        yield _row("time, µs per token, assumed rates", ["", "share"])
        whole = self.seconds_per_token
        for cost in self.times:
            seconds = cost.seconds(self.device)
            yield _row(cost.name, [f"{1e6 * seconds:.2f}", f"{seconds / whole:.0%}"])
        yield _row("total", [f"{1e6 * whole:.2f}", f"{1 / whole:,.0f} tokens/s"])
        yield _row(f"{self.tokens:,} tokens", [_duration(self.seconds)])


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:<40}" + "".join(f"  {cell:>9}" for cell in cells)


def _gb(size: float) -> str:
    return f"{size / GB:.2f}" if size else "–"


def _duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def plan(config: TrainConfig, device: Device, shape: ModelShape | None = None) -> Plan:
    """What a run takes on a device.

    Args:
        config: what to train.
        device: planned for.
        shape: of the model; read from its config.json by default.

    Raises:
        ModelError, SiteError, ConfigError: when the model's shape cannot be had, or it has no such block.
    """
    found = shape or read_shape(config.model.name)
    return _plan(config, device, found, _remedies(config, device, found))


def _plan(config: TrainConfig, device: Device, shape: ModelShape, changes: tuple[Remedy, ...] = ()) -> Plan:
    job = Job(config, shape)
    return Plan(device, memory(job, device), times(job), disk(job), config.training.tokens, changes)


def _remedies(config: TrainConfig, device: Device, shape: ModelShape) -> tuple[Remedy, ...]:
    def peak(changed: TrainConfig) -> int:
        return _plan(changed, device, shape).peak

    if peak(config) <= device.memory:
        return ()
    return tuple(Remedy(*found) for found in remedies(config, peak, device.memory))
