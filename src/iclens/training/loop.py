"""The training loop: steps, metrics, checkpoints, and the ways in which it ends.

1. A batch of the buffer goes to every SAE of this process. 2. At intervals the metrics are written and looked
at; an error that is not finite, or that explodes, ends training with its step and SAE. 3. A checkpoint is
written when one is due or a signal came. Between two intervals nothing waits for the device.

Everything that decides the next step is in a checkpoint: the SAEs' states, the buffer's rows and order, the
position in the contexts, torch's generators, the number of steps. The schedule follows from that number.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iclens.errors import ConfigError, RunError
from iclens.names import Site
from iclens.training.checkpoint import Checkpoint, CheckpointFolder, write_part
from iclens.training.config import SaeSpec, TrainConfig
from iclens.training.data.buffer import ActivationBuffer
from iclens.training.data.scaling import Scaling
from iclens.training.metrics import PACE, MetricsLog, Pace
from iclens.training.ranks import Ranks
from iclens.training.steps.build import SaeStep
from iclens.training.stop import Stop, stopped

Report = Callable[[dict[str, Any]], None]
EVERY = 20
"""Steps between two lines of metrics."""
EXPLODED = 100.0
"""Error, in multiples of the variance or of the first step's error, from which training has diverged."""


def learning_rate(config: TrainConfig, done: float) -> float:
    """Fraction of the peak rate when a fraction `done` of training is over: rise, plateau, linear fall."""
    settings = config.training
    rising = min(1.0, done / settings.warmup) if settings.warmup else 1.0
    falling = (1 - done) / (1 - settings.decay_from) if done > settings.decay_from else 1.0
    return min(rising, falling)


@dataclass
class Watch:
    """The first step at which each SAE diverged, kept on the device until somebody asks."""

    _first: dict[str, Tensor] = field(default_factory=dict)
    _limit: dict[str, Tensor] = field(default_factory=dict)

    def see(self, number: int, name: str, found: Mapping[str, Tensor]) -> None:
        """Note the metrics of step `number`."""
        fvu = found["fvu"].detach()
        if name not in self._first:
            self._first[name] = torch.full((), -1, dtype=torch.int64, device=fvu.device)
            self._limit[name] = EXPLODED * fvu.nan_to_num(1.0).clamp(1.0, 1e6)
        # A comparison with NaN is false, so a NaN is no good error either.
        good = (fvu <= self._limit[name]) & found["loss"].detach().isfinite()
        first = self._first[name]
        self._first[name] = torch.where(~good & (first < 0), number, first)

    def complaints(self) -> dict[str, int]:
        """SAE name → the step, from 0, at which it diverged; empty while none did."""
        return {name: int(first) for name, first in self._first.items() if int(first) >= 0}


@dataclass
class Loop:
    """SAEs in training.

    Args:
        config: what is trained.
        specs: the SAEs of this process.
        steps: their states, by name.
        buffer: serves batches of their sites.
        scalings: units of each site.
        checkpoints: of the run, shared by all processes.
        log: metrics files of this process.
        ranks: the processes.
        readers: the processes that train on each site.
        device: where the buffer is.
        stop: whether a signal came.
        report: called at every interval.
        constant: what else every checkpoint keeps: JSON that does not change.
    """

    config: TrainConfig
    specs: tuple[SaeSpec, ...]
    steps: Mapping[str, SaeStep]
    buffer: ActivationBuffer
    scalings: Mapping[Site, Scaling]
    checkpoints: CheckpointFolder
    log: MetricsLog
    ranks: Ranks
    readers: Mapping[Site, Sequence[int]]
    device: str
    stop: Stop
    report: Report
    constant: Mapping[str, Any]
    done: int = 0
    saved: int = -1
    seconds: float = 0.0
    watch: Watch = field(default_factory=Watch)

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return math.ceil(self.config.training.tokens / self.config.training.batch_tokens)

    @property
    def tokens(self) -> int:
        """Rows that each SAE was trained on so far."""
        return self.done * self.config.training.batch_tokens

    def continue_from(self, checkpoint: Checkpoint) -> None:
        """Take up the state of a checkpoint, to the bit, by however many processes it was written."""
        state, rank = checkpoint.state, self.ranks.rank
        for name, step in self.steps.items():
            step.restore(checkpoint.tensors(sae_part(name)))
        self.done = self.saved = state["done"]
        self.seconds = state["seconds"]
        rows: dict[str, Tensor] = {}
        for site in self.readers:
            if rank in self.readers[site]:
                rows |= checkpoint.tensors(site_part(site), self.device)
        self.buffer.restore(rows, state["buffer"])
        _restore_generators(checkpoint.tensors(f"generators-{rank if rank < state['world'] else 0}"))

    def run(self) -> None:
        """Train to the end, or until a signal; either way the last step's checkpoint is there.

        Raises:
            ConfigError: when an SAE diverged.
            StoppedError: when a signal came, or another process is gone.
        """
        pace, started, earlier = Pace(self.config.training.tokens), time.monotonic(), self.seconds
        saved_at = started
        while True:
            self.seconds = earlier + time.monotonic() - started
            interrupted, due = self.ranks.largest(self.stop.asked, self._due(time.monotonic() - saved_at))
            if interrupted or due or self.done == self.total:
                self.save()
                saved_at = time.monotonic()
            if interrupted:
                raise stopped(interrupted, self.checkpoints.root / f"{self.tokens:012d}")
            if self.done == self.total:
                return
            found = self._step()
            if (self.done - 1) % EVERY == 0 or self.done == self.total:
                self.seconds = earlier + time.monotonic() - started
                self._tell(found, pace.at(self.tokens, self.seconds))

    def _step(self) -> dict[str, dict[str, Tensor]]:
        batch = self.buffer.next()
        rate = learning_rate(self.config, self.done / self.total)
        found = {}
        for spec in self.specs:
            target = None if spec.target is None else batch[spec.target]
            found[spec.name] = self.steps[spec.name].update(batch[spec.site], target, rate)
            self.watch.see(self.done, spec.name, found[spec.name])
        self.done += 1
        return found

    def _due(self, seconds: float) -> int:
        """1 when a checkpoint is due; minutes count on the first process's clock."""
        wanted = self.config.checkpoints
        late = wanted.every_minutes is not None and seconds >= 60 * wanted.every_minutes
        far = False
        if wanted.every_tokens is not None:
            size = self.config.training.batch_tokens
            far = self.tokens // wanted.every_tokens > max(self.saved, 0) * size // wanted.every_tokens
        return int(((late and self.ranks.first) or far) and self.done > max(self.saved, 0))

    def _tell(self, found: dict[str, dict[str, Tensor]], pace: dict[str, Any]) -> None:
        """Write and report the metrics of the last step; ends training that diverged."""
        rate = learning_rate(self.config, (self.done - 1) / self.total)
        plain = {name: {key: float(x) for key, x in figures.items()} for name, figures in found.items()}
        for spec in self.specs:
            line = {"step": self.done, "tokens": self.tokens, "lr": spec.lr * rate, **plain[spec.name]}
            self.log.add(spec.name, line)
        self._refuse_divergence()
        sites = self.ranks.merged(plain)
        if self.ranks.first:
            self.log.add(
                PACE, {"step": self.done, "tokens": self.tokens, "seconds": round(self.seconds, 3), **pace}
            )
            self.report({
                "step": self.done, "of": self.total, "tokens": self.tokens,
                "of_tokens": self.total * self.config.training.batch_tokens,
                "seconds": round(self.seconds, 1), **pace,
                "sites": {spec.name: sites[spec.name] for spec in self.config.saes.members},
            })  # fmt: skip

    def save(self) -> None:
        """Write a checkpoint of this moment, unless there is one.

        Raises:
            ConfigError: when a state is not finite; it is not saved.
            RunError: when the disk does not take it.
        """
        if self.saved == self.done:
            return
        states = {name: step.tensors() for name, step in self.steps.items()}
        for name, tensors in states.items():
            if not all(bool(x.isfinite().all()) for x in tensors.values() if x.is_floating_point()):
                lost = torch.tensor(math.nan, device=self.device)
                self.watch.see(self.done - 1, name, {"fvu": lost, "loss": lost})
        self._refuse_divergence()
        partial = (
            self.checkpoints.root
            / self.ranks.collect(self.checkpoints.begin(self.tokens).name if self.ranks.first else "")[0]
        )
        try:
            self._write(partial, states)
        except OSError as cause:
            shutil.rmtree(partial, ignore_errors=True)
            raise RunError(
                f"checkpoint '{partial.parent}'", f"cannot be written ({cause.strerror or cause})",
                f"Make room; {self._last_good()}",
            ) from cause  # fmt: skip
        self.saved = self.done

    def _write(self, partial: Path, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Every process writes its SAEs' states and the rows of the sites it is the first reader of."""
        files = write_part(partial, f"generators-{self.ranks.rank}", _generators())
        for name, tensors in states.items():
            files |= write_part(partial, sae_part(name), tensors)
        rows = self.buffer.tensors()
        for site, readers in self.readers.items():
            if readers[0] == self.ranks.rank:
                mine = {name: x for name, x in rows.items() if name.startswith(f"{site.short}.")}
                files |= write_part(partial, site_part(site), mine | _scaling_tensors(self.scalings[site]))
        files, sizes = self.ranks.merged(files), self.ranks.merged(self.log.sizes())
        if self.ranks.first:
            state = {
                "done": self.done,
                "seconds": self.seconds,
                "world": self.ranks.world,
                "buffer": self.buffer.state(),
                "metrics": sizes,
            }
            self.checkpoints.finish(partial, files, {**self.constant, **state})
        self.ranks.collect(None)

    def _refuse_divergence(self) -> None:
        complaints = self.ranks.merged(self.watch.complaints())
        if complaints:
            name = min(complaints, key=lambda name: complaints[name])
            raise ConfigError(
                f"training of {name}", f"its error exploded or is not finite at step {complaints[name] + 1}",
                f"Lower lr; {self._last_good()}",
            )  # fmt: skip

    def _last_good(self) -> str:
        if self.saved < 0:
            return "no checkpoint was written yet."
        tokens = self.saved * self.config.training.batch_tokens
        return f"the last good checkpoint is '{self.checkpoints.root / f'{tokens:012d}'}'."


def sae_part(name: str) -> str:
    """Part of a checkpoint that holds an SAE's state."""
    return f"sae-{name}"


def site_part(site: Site) -> str:
    """Part of a checkpoint that holds the buffer's rows of a site."""
    return f"buffer-{site.short}"


def read_scaling(checkpoint: Checkpoint, site: Site, device: str) -> Scaling:
    """The units of a site in a checkpoint."""
    tensors = checkpoint.tensors(site_part(site), device)
    return Scaling(tensors["scaling.mean"], float(tensors["scaling.factor"]))


def _scaling_tensors(scaling: Scaling) -> dict[str, Tensor]:
    factor = torch.tensor(scaling.factor, dtype=torch.float64)
    return {"scaling.mean": scaling.mean, "scaling.factor": factor}


def _generators() -> dict[str, Tensor]:
    """States of torch's own generators."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_generators(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
