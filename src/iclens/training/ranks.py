"""One training over several processes, started by torchrun, and its end by a signal.

1. SAEs are dealt out to processes. 2. Every process draws the same contexts, runs the model on its share of
them, and sends each site's rows to the process that trains on it; there they stand in the order in which one
process alone would have recorded them, so each SAE takes the steps it would take in one process. 3. Once per
step the processes agree on stopping and saving. 4. What fails in one fails in all, at the same place, so that
all can save; when one is lost, the others end in one line. 5. While the loop runs, SIGTERM and SIGINT are
only noted: it finishes its step, writes a checkpoint and ends. Before and after it they end training at once.

Weights and gradients never travel: an SAE lives in one process, and of a batch only its own sites' rows do.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from iclens.core import ConfigError, Site, StoppedError
from iclens.table import Ints
from iclens.training.config import SaeSpec
from iclens.training.data import Record

SIGNALS = (signal.SIGTERM, signal.SIGINT)
PATIENCE = 3
"""SIGINT so often ends training without a checkpoint."""
_LONGEST = timedelta(hours=2)
"""How long a process waits for another that is still there, for example while that one measures its SAEs."""


class Stopped(BaseException):
    """A signal came while nothing had to be saved."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class GoneError(StoppedError):
    """Another process is not there any more, so that nothing can be done together."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    world: int = 1
    _failures: list[BaseException] = field(default_factory=list, compare=False)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes what belongs to all."""
        return self.rank == 0

    def device(self, named: str) -> str:
        """The device of this process: of `cuda`, the one that torchrun counted for it."""
        return f"cuda:{os.environ['LOCAL_RANK']}" if self.world > 1 and named == "cuda" else named

    def deal(self, specs: Sequence[SaeSpec]) -> dict[str, int]:
        """SAE name → the process that trains it: the largest first, each to the least laden."""
        if self.world > len(specs):
            remedy = "Start at most one process for each SAE."
            raise ConfigError(f"{self.world} processes", f"for {len(specs)} SAEs", remedy)
        laden, owner = [0] * self.world, {}
        for spec in sorted(specs, key=lambda spec: -spec.d_sae):
            chosen = laden.index(min(laden))
            laden[chosen] += spec.d_sae
            owner[spec.name] = chosen
        return owner

    def largest(self, *values: int) -> tuple[int, ...]:
        """For each place, the largest value that any process gave."""
        if self.world == 1:
            return values
        shared = torch.tensor(values, dtype=torch.int64)
        with _together():
            dist.all_reduce(shared, dist.ReduceOp.MAX)
        return tuple(shared.tolist())

    def collect(self, value: Any) -> list[Any]:
        """What every process gave, in the order of processes; it travels as JSON."""
        if self.world == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        (longest,) = self.largest(len(text))
        padded = torch.full((longest,), ord(" "), dtype=torch.uint8)
        padded[: len(text)] = text
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        with _together():
            dist.all_gather(parts, padded)
        return [json.loads(bytes(part.numpy().tobytes())) for part in parts]

    def merged(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """Mappings of all processes as one."""
        return {name: item for part in self.collect(dict(value)) for name, item in part.items()}

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Inside, what fails in one process fails in all of them when they leave the block."""
        if self.world == 1:
            yield
            return
        failure: BaseException | None = None
        try:
            yield
        except (GoneError, Stopped, KeyboardInterrupt):
            raise
        except BaseException as error:  # whatever it is, the others have to know
            failure = error
        if any(self.largest(int(failure is not None))):
            lines = self.collect(None if failure is None else " ".join(str(failure).split())[:500])
            line = next(line for line in lines if line is not None)
            failure = failure or StoppedError("training in several processes", "another one failed", line)
            self._failures.append(failure)
            raise failure

    def known(self, error: BaseException) -> bool:
        """Whether every process ends with this error, or one that stands for it, at this place."""
        return self.world == 1 or any(error is failure for failure in self._failures)

    def shared(self, record: Record, readers: Mapping[Site, Sequence[int]]) -> Record:
        """A `Record` that runs the model on this process's share of the contexts.

        It returns the rows of all contexts, at the sites of which this process is among the `readers`; they
        are the same in every process.
        """
        if self.world == 1:
            return record

        def exchange(tokens: Ints, _sites: Sequence[Site]) -> dict[Site, Tensor]:
            share = math.ceil(len(tokens) / self.world)
            places = np.arange(self.rank * share, (self.rank + 1) * share)
            # The last share is filled up, so that all have one size; what fills it is cut off below.
            with self.agreed():
                recorded = record(tokens[np.minimum(places, len(tokens) - 1)], tuple(readers))
            return {
                site: whole[: len(tokens)]
                for site, ranks in readers.items()
                if (whole := self._gathered(recorded[site], ranks)) is not None
            }

        return exchange

    def _gathered(self, x: Tensor, readers: Sequence[int]) -> Tensor | None:
        """x of all processes, one after another, where this process is a reader; None elsewhere."""
        whole = None
        sent = x.contiguous().view(torch.uint8)  # as bytes, so that every dtype travels alike
        for reader in readers:
            parts = [torch.empty_like(sent) for _ in range(self.world)] if reader == self.rank else None
            with _together():
                dist.gather(sent, parts, dst=reader)
            if parts is not None:
                whole = torch.cat([part.view(x.dtype) for part in parts])
        return whole


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun started, connected inside; one alone when it did not start this one."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _together():
        dist.init_process_group(backend, timeout=_LONGEST)
    try:
        yield Ranks(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """Turns the failure of a common operation into one line: another process is gone."""
    try:
        yield
    except RuntimeError as cause:
        line = f"another process is gone ({str(cause).strip().splitlines()[0]})"
        remedy = "Continue from the newest checkpoint with --resume."
        raise GoneError("training in several processes", line, remedy) from cause


class Stop:
    """Whether a signal asked training to end; `receive` handles it."""

    def __init__(self) -> None:
        self.asked = 0
        """Number of the first signal that came; 0 while none did."""
        self._noting, self._interrupts = False, 0

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Inside, a signal is noted in `asked`; outside, it raises `Stopped`."""
        self._noting = True
        try:
            yield
        finally:
            self._noting = False

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """The signals' handler."""
        self.asked = self.asked or number
        self._interrupts += number == signal.SIGINT
        if self._interrupts >= PATIENCE:
            raise KeyboardInterrupt
        if not self._noting:
            raise Stopped(number)


@contextmanager
def watched() -> Iterator[Stop]:
    """Receive `SIGNALS` inside, and put the earlier handlers back; does nothing outside the main thread."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.receive) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped(number: int, checkpoint: Path | None) -> StoppedError:
    """The one line with which training ends after a signal."""
    how, remedy = f"stopped by {signal.Signals(number).name}", "Nothing was trained yet."
    if checkpoint is not None:
        how, remedy = f"{how}, checkpoint '{checkpoint}' written", "Continue with --resume."
    return StoppedError("training", how, remedy, 128 + number)
