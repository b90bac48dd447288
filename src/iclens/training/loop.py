"""The training loop: steps, metrics, checkpoints, and the ways in which it ends.

1. A batch of the buffer goes to every SAE of this process. 2. At intervals the metrics are written and looked
at; an error that is not finite, or that explodes, ends training with its step and SAE. 3. A checkpoint is
written when one is due, when a signal came, and when anything failed: data that cannot be read, a model or an
SAE out of memory, a full disk for metrics. When an SAE fails in a step, the checkpoint says which others took
it already (`ahead`), and these do not take it again. Only an SAE that failed while its weights were changed
leaves none. Between two intervals nothing waits for the device.

Everything that decides the next step is in a checkpoint: the SAEs' states, the buffer's rows and order, the
position in the contexts, torch's generators, the number of steps. The schedule follows from that number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from iclens.core import ConfigError, IclensError, RunError, Site, StoppedError
from iclens.training.checkpoint import Checkpoint, CheckpointFolder, write_part
from iclens.training.config import SaeSpec, TrainConfig
from iclens.training.data.buffer import ActivationBuffer
from iclens.training.data.scaling import Scaling
from iclens.training.metrics import PACE, MetricsLog, Pace
from iclens.training.ranks import GoneError, Ranks
from iclens.training.steps.build import SaeStep
from iclens.training.stop import Stop, Stopped, stopped

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


class DivergedError(ConfigError):
    """An SAE whose error exploded or is not finite; its state is not worth saving."""


class UnsavedError(RunError):
    """A checkpoint that the disk did not take."""


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
    ahead: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """SAEs, of any process, that took step `done` + 1 before another failed in it, with their metrics."""
    spoilt: bool = False
    """Whether an SAE of this process failed while its weights were changed."""
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
        self.seconds, self.ahead = state["seconds"], state["ahead"]
        rows: dict[str, Tensor] = {}
        for site in self.readers:
            if rank in self.readers[site]:
                rows |= checkpoint.tensors(site_part(site), self.device)
        self.buffer.restore(rows, state["buffer"])
        _restore_generators(checkpoint.tensors(f"generators-{rank if rank < state['world'] else 0}"))

    def run(self) -> None:
        """Train to the end, or until a signal or an error; the last whole step's checkpoint is there.

        Raises:
            DivergedError: when an SAE diverged.
            StoppedError: when a signal came, or another process is gone.
        """
        try:
            signal = self._train()
        except (DivergedError, UnsavedError, GoneError, Stopped, KeyboardInterrupt):
            raise
        except BaseException as error:  # whatever it is, a panic of a library too, what was trained is kept
            self._keep(error)
            raise
        if signal:
            raise stopped(signal, self.checkpoints.root / f"{self.tokens:012d}")

    def _train(self) -> int:
        """Train to the end, or until a signal, whose number is returned."""
        pace, started, earlier = Pace(self.config.training.tokens), time.monotonic(), self.seconds
        saved_at = started
        while True:
            self.seconds = earlier + time.monotonic() - started
            interrupted, due = self.ranks.largest(self.stop.asked, self._due(time.monotonic() - saved_at))
            if interrupted or due or self.done == self.total:
                self.save()
                saved_at = time.monotonic()
            if interrupted or self.done == self.total:
                return interrupted
            found = self._step()
            if (self.done - 1) % EVERY == 0 or self.done == self.total:
                self.seconds = earlier + time.monotonic() - started
                self._tell(found, pace.at(self.tokens, self.seconds))

    def _keep(self, error: BaseException) -> None:
        """Save the last whole step, where all processes can, and add to the error from where to go on."""
        if self.done and self.ranks.known(error) and not any(self.ranks.largest(int(self.spoilt))):
            with suppress(UnsavedError):  # the error that came first says why training ended
                self.save()
        if self.saved > 0:
            tokens = self.saved * self.config.training.batch_tokens
            words = f"{self._last_good()} --resume goes on from there, at {tokens:,} tokens."
        else:
            words = "Nothing was trained yet." if not self.done else self._last_good()
        words = words[0].upper() + words[1:]
        if isinstance(error, IclensError):
            error.also(words)
        else:
            error.add_note(words)

    def _step(self) -> dict[str, Mapping[str, Any]]:
        batch = self.buffer.next()
        rate = learning_rate(self.config, self.done / self.total)
        found: dict[str, Mapping[str, Any]] = dict(self.ahead)
        try:
            with self.ranks.agreed():
                for spec in (spec for spec in self.specs if spec.name not in found):
                    target = None if spec.target is None else batch[spec.target]
                    found[spec.name] = self._update(spec.name, batch[spec.site], target, rate)
                    self.watch.see(self.done, spec.name, found[spec.name])
        except BaseException:
            self.ahead = {name: _plain(figures) for name, figures in found.items()}
            self.buffer.give_back()
            raise
        self.ahead = {}
        self.done += 1
        return found

    def _update(self, name: str, x: Tensor, target: Tensor | None, rate: float) -> dict[str, Tensor]:
        step = self.steps[name]
        before = step.taken
        try:
            return step.update(x, target, rate)
        except BaseException:
            self.spoilt = step.taken != before
            raise

    def _due(self, seconds: float) -> int:
        """1 when a checkpoint is due; minutes count on the first process's clock."""
        wanted = self.config.checkpoints
        late = wanted.every_minutes is not None and seconds >= 60 * wanted.every_minutes
        far = False
        if wanted.every_tokens is not None:
            size = self.config.training.batch_tokens
            far = self.tokens // wanted.every_tokens > max(self.saved, 0) * size // wanted.every_tokens
        return int(((late and self.ranks.first) or far) and self.done > max(self.saved, 0))

    def _tell(self, found: Mapping[str, Mapping[str, Any]], pace: dict[str, Any]) -> None:
        """Write and report the metrics of the last step; ends training that diverged."""
        rate = learning_rate(self.config, (self.done - 1) / self.total)
        plain = {spec.name: _plain(found[spec.name]) for spec in self.specs}
        with self.ranks.agreed():
            for spec in self.specs:
                line = {"step": self.done, "tokens": self.tokens, "lr": spec.lr * rate, **plain[spec.name]}
                self.log.add(spec.name, line)
        self._refuse_divergence()
        sites = self.ranks.merged(plain)
        with self.ranks.agreed():
            if not self.ranks.first:
                return
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
            DivergedError: when a state is not finite; it is not saved.
            UnsavedError: when the disk does not take it.
        """
        if self.saved == self.done:
            return
        states = {name: step.tensors() for name, step in self.steps.items()}
        for name, tensors in states.items():
            if not all(bool(x.isfinite().all()) for x in tensors.values() if x.is_floating_point()):
                lost = torch.tensor(math.nan, device=self.device)
                self.watch.see(self.done - 1, name, {"fvu": lost, "loss": lost})
        self._refuse_divergence()
        try:
            with self.ranks.agreed():
                name = self.checkpoints.begin(self.tokens).name if self.ranks.first else ""
            self._write(self.checkpoints.root / self.ranks.collect(name)[0], states)
        except GoneError:
            raise
        except (OSError, SafetensorError, StoppedError) as cause:
            self.checkpoints.tidy()
            raise UnsavedError(
                f"checkpoint at {self.tokens:,} tokens in '{self.checkpoints.root}'",
                f"cannot be written ({getattr(cause, 'strerror', None) or cause})",
                f"Make room; {self._last_good()}",
            ) from cause  # fmt: skip
        self.saved = self.done

    def _write(self, partial: Path, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Every process writes its SAEs' states and the rows of the sites it is the first reader of."""
        rows = self.buffer.tensors()
        with self.ranks.agreed():
            files = write_part(partial, f"generators-{self.ranks.rank}", _generators())
            for name, tensors in states.items():
                files |= write_part(partial, sae_part(name), tensors)
            for site, readers in self.readers.items():
                if readers[0] == self.ranks.rank:
                    mine = {name: x for name, x in rows.items() if name.startswith(f"{site.short}.")}
                    files |= write_part(
                        partial, site_part(site), mine | _scaling_tensors(self.scalings[site])
                    )
            sizes = self.log.sizes()
        files, sizes = self.ranks.merged(files), self.ranks.merged(sizes)
        ahead = self.ranks.merged(self.ahead)
        with self.ranks.agreed():
            if self.ranks.first:
                state = {
                    "done": self.done,
                    "ahead": ahead,
                    "seconds": self.seconds,
                    "world": self.ranks.world,
                    "buffer": self.buffer.state(),
                    "metrics": sizes,
                }
                self.checkpoints.finish(partial, files, {**self.constant, **state})

    def _refuse_divergence(self) -> None:
        complaints = self.ranks.merged(self.watch.complaints())
        if complaints:
            name = min(complaints, key=lambda name: complaints[name])
            raise DivergedError(
                f"training of {name}", f"its error exploded or is not finite at step {complaints[name] + 1}",
                f"Lower lr; {self._last_good()}",
            )  # fmt: skip

    def _last_good(self) -> str:
        if self.saved < 0:
            return "no checkpoint was written yet."
        tokens = self.saved * self.config.training.batch_tokens
        return f"the last good checkpoint is '{self.checkpoints.root / f'{tokens:012d}'}'."


def _plain(figures: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(x) for key, x in figures.items()}


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
